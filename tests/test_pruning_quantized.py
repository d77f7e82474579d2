"""Pruned networks go on: copied, saved, exported, quantized, trained on two processes."""

import copy
import re

import forked
import numpy as np
import onnx
import pruned_networks as nets
import pytest
import torch
from onnx import numpy_helper
from pruned_networks import SIDE, made
from torch import distributed, nn

from labutils import prune
from labutils.errors import UnknownNameError, UsageError
from labutils.prune import single_weights
from labutils.quantize.training import qat

INPUTS = np.random.default_rng(0).normal(size=(32, 3, SIDE, SIDE)).astype("f4")


def trained_(network, steps=3):
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        network.train()(torch.from_numpy(INPUTS)).square().mean().backward()
        optimizer.step()
    return network.eval()


def masked_and_rounded(method="2:4"):
    """A network with a mask below the rounding of its weights, trained a little."""
    network = made(nets.Mobile)
    prune.apply_masks_(network, prune.plan(network, method, ratio=0.5, size=SIDE))
    plain = copy.deepcopy(network)
    prune.remove_(plain)
    quantized = qat.prepare(plain, "int8_qat", size=SIDE)
    assert prune.transfer_masks_(network, quantized) == len(prune.masks_of(network))
    qat.calibrate_(quantized, INPUTS)
    trained_(quantized)
    qat.freeze_(quantized)
    return quantized.eval()


def removed_and_rounded():
    network = made(nets.Mobile)
    prune.apply_masks_(network, prune.plan(network, size=SIDE))
    quantized = qat.prepare(prune.removed(network, size=SIDE).network, "int8_qat", size=SIDE)
    qat.calibrate_(quantized, INPUTS)
    trained_(quantized)
    qat.freeze_(quantized)
    return quantized.eval()


@pytest.mark.slow
@pytest.mark.parametrize("make", (masked_and_rounded, removed_and_rounded))
def test_a_pruned_and_quantized_network_is_copied_saved_and_exported(make, tmp_path):
    network, inputs = make(), torch.from_numpy(INPUTS)
    expected = network(inputs)
    copied = copy.deepcopy(network)
    assert torch.equal(copied(inputs), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.is_floating_point():
                parameter.mul_(0.5)
    assert torch.equal(network(inputs), expected)
    copied.load_state_dict(network.state_dict())
    assert torch.equal(copied(inputs), expected)
    program = torch.export.export(network, (inputs,)).module()
    assert torch.allclose(program(inputs), expected, atol=1e-6)
    report = qat.to_qdq(network, tmp_path / "q.onnx", size=SIDE, images=INPUTS)
    assert report.sqnr_db > 40 and report.weights.total() == 9


@pytest.mark.parametrize("method", ("2:4", "unstructured"))
def test_zeros_stay_zeros_in_the_integers_of_the_file(method, tmp_path):
    network = masked_and_rounded(method)
    qat.to_qdq(network, tmp_path / "q.onnx", size=SIDE, images=INPUTS)
    stored = {
        w.name: numpy_helper.to_array(w) for w in onnx.load(tmp_path / "q.onnx").graph.initializer
    }
    integers = sorted(
        (w.shape for w in stored.values() if w.dtype == np.int8 and w.ndim > 1), key=str
    )
    masks = prune.masks_of(network)
    for name, mask in masks.items():
        keep = mask.keep.numpy()
        fitting = [w for w in stored.values() if w.dtype == np.int8 and w.shape == keep.shape]
        assert any((w[keep == 0] == 0).all() for w in fitting), (name, integers)
    if method == "2:4":
        weight = torch.tensor(
            next(w for w in stored.values() if w.dtype == np.int8 and w.shape == (32, 16, 1, 1))
        ).float()
        assert (weight != 0).sum() <= single_weights.pattern_mask(weight.abs(), 2, 4).sum()


def test_quantization_refuses_masks_that_tracing_would_lose():
    network = made(nets.Mobile)
    with pytest.raises(UsageError, match="no masks to transfer"):
        prune.transfer_masks_(network, network)
    prune.apply_masks_(network, prune.plan(network, size=SIDE))
    with pytest.raises(UsageError, match=r"prune\.removed"):
        qat.prepare(network, "int8_qat", size=SIDE)
    plain = copy.deepcopy(network)
    prune.remove_(plain)
    with pytest.raises(UnknownNameError, match="parameter"):
        prune.transfer_masks_(network, qat.prepare(plain, "int8_qat", size=SIDE))


def test_channels_of_a_quantized_network_are_refused():
    quantized = masked_and_rounded()
    with pytest.raises(UsageError, match="FakeQuant"):
        prune.plan(quantized, size=SIDE)


def _rank_of_two(kinds):
    """What one of two processes does, with each kind of pruned network."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    for kind in kinds:
        _train_as_rank(distributed.get_rank(), kind)
    distributed.destroy_process_group()


def _train_as_rank(rank, kind):
    network = masked_and_rounded() if kind == "rounded" else made(nets.Mobile)
    if kind != "rounded":
        plan = prune.plan(network, "channels", size=SIDE)
        schedule = prune.Schedule(network, plan, "cubic", steps=4, stages=2)
    if kind == "removed":
        prune.apply_masks_(network, plan)
        network = prune.removed(network, size=SIDE).network
    shared = nn.parallel.DistributedDataParallel(network.train())
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 1e-2)
    inputs = torch.from_numpy(INPUTS)[rank * 16 : rank * 16 + 16]
    for _ in range(4):
        optimizer.zero_grad()
        shared(inputs).square().mean().backward()
        optimizer.step()
        if kind == "masked":
            schedule.step()
    trained = torch.cat([p.detach().flatten() for p in network.parameters()])
    kept = [m.keep.float().sum().reshape(1) for m in prune.masks_of(network).values()]
    digest = torch.cat([trained, *kept])
    both = [torch.zeros_like(digest) for _ in range(2)]
    distributed.all_gather(both, digest)
    assert torch.equal(*both)
    if kind == "masked":
        assert prune.removed(network.eval(), size=SIDE).departure < 1e-8
    print("equal", kind)
    del shared  # before its process group: as the group's last owner it could wait for ever


@pytest.mark.slow
def test_two_processes_train_one_pruned_network(tmp_path):
    kinds = ["masked", "removed", "rounded"]
    codes, said = forked.two(_rank_of_two, (kinds,), tmp_path)
    assert codes == [0, 0], said
    for text in said:
        assert re.findall(r"^equal (\w+)", text, re.M) == kinds
