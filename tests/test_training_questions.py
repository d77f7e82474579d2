"""The four questions that users of TI's toolkit ask first, each answered by a run.

1. Does DistributedDataParallel complain about unused parameters?
2. Do surgery and quantization work together?
3. Is accuracy the same under several processes, and what if one dies?
4. Can a network be copied while it trains, for an average of its weights?
"""

import copy
import os
import signal
from pathlib import Path

import forked
import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from labutils import runtime, surgery, train
from labutils.images import data
from labutils.models import zoo
from labutils.quantize.presets import PRESETS
from labutils.quantize.recipe import Qat
from labutils.quantize.training import qat

SIZE, BATCH, STEPS = 32, 8, 4
RECIPE = PRESETS["int8"].replaced(qat=Qat(scales="learned", learning_rate=1e-3))
HOW = {"steps": STEPS, "size": SIZE, "batch_size": BATCH, "images": 32}


def operated():
    """MobileNetV3-Small after the surgery that changes its function."""
    model = zoo.load("mobilenet_v3_small", "things16").module.requires_grad_(True)
    surgery.replace_(model, "lite")
    return model


def prepared(network):
    model = qat.prepare(network, RECIPE, size=SIZE)
    images = data.load("calib", 16, SIZE)
    qat.calibrate_(model, images, data.Preprocessing(SIZE))
    return model


def gradients(called, model, part=slice(None)):
    """Backward of a batch; the gradients of `model`, which `called` may average over ranks."""
    images = data.load("train", BATCH, SIZE)
    inputs = torch.from_numpy(data.Preprocessing(SIZE)(images.images[part]))
    loss = nn.functional.cross_entropy(called(inputs), torch.from_numpy(images.labels[part]))
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def worker(task, folder):
    """What one of two processes does."""
    torch.set_num_threads(1)
    with train.joined() as ranks:
        {"gradients": _rank_of_gradients, "fit": _rank_of_fit}[task](ranks, folder)


def _rank_of_gradients(ranks, folder):
    network, part = operated(), ranks.part(BATCH)
    wrapped = nn.parallel.DistributedDataParallel(network.train())
    for _ in range(2):  # what was unused in the first step is noticed in the second
        gradients(wrapped, network, part)
    del wrapped
    model = prepared(operated().eval())  # another one: BatchNorm has moved its statistics
    wrapped = nn.parallel.DistributedDataParallel(model.train())
    for _ in range(2):
        gradients(wrapped, model, part)
    wrapped.eval()  # no dropout; BatchNorm is folded
    torch.save(gradients(wrapped, model, part), f"{folder}/gradients.{ranks.rank}.pt")
    del wrapped  # before its process group: as the group's last owner it could wait for ever
    network = operated()
    model = prepared(network)
    qat.fit_(model, teacher=network, ranks=ranks, **HOW)
    torch.save(model.state_dict(), f"{folder}/whole.{ranks.rank}.pt")


def _rank_of_fit(ranks, folder):
    network = operated()
    model = prepared(network)
    state = train.Resumable(f"{folder}/run.pt", every=2)

    def die(step, steps, trained):
        if ranks.rank == 1 and step == 3 and not Path(folder, "second").exists():
            os.kill(os.getpid(), signal.SIGKILL)

    print(qat.fit_(model, teacher=network, ranks=ranks, state=state, on_step=die, **HOW))
    torch.save(model.state_dict(), f"{folder}/resumed.{ranks.rank}.pt")


def two(task, folder):
    """Run two processes; return their exit codes and what they said."""
    return forked.two(worker, (task, str(folder)), folder)


def read(folder, name):
    """Return what each of the two processes has written."""
    return [torch.load(folder / f"{name}.{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def undisturbed(images, tmp_path_factory):
    """What two processes write that nobody kills."""
    folder = tmp_path_factory.mktemp("undisturbed")
    codes, said = two("gradients", folder)
    assert codes == [0, 0], said
    return folder


@pytest.fixture(scope="module")
def images():
    """Drawn once, before two processes want them."""
    for split, n, size in (("train", 32, 112), ("train", BATCH, SIZE), ("calib", 16, SIZE)):
        data.load(split, n, size)


@pytest.mark.slow
def test_1_and_3_two_processes_have_the_gradients_of_one_and_no_unused_parameters(undisturbed):
    model = prepared(operated().eval())
    torch.set_num_threads(1)
    expected = gradients(model.eval(), model)
    ranks = read(undisturbed, "gradients")
    assert ranks[0].keys() == expected.keys()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == expected.keys(), "a parameter that the forward pass does not use"
    for name, gradient in expected.items():
        assert torch.equal(ranks[0][name], ranks[1][name]), name
        peak = gradient.abs().max().item()
        # an average over two halves rounds otherwise than a sum over all
        torch.testing.assert_close(ranks[0][name], gradient, rtol=0, atol=1e-4 * peak, msg=name)


@pytest.mark.slow
def test_3_a_killed_process_is_named_and_the_run_resumes_to_the_same_weights(undisturbed, tmp_path):
    codes, said = two("fit", tmp_path)
    assert codes[1] == -signal.SIGKILL and codes[0] != 0
    assert "TrainingError: Rank 0 lost another process of the run at step 3" in said[0]
    assert "Start the same command again: it resumes from the last state" in said[0]
    state = torch.load(tmp_path / "run.pt", weights_only=True)
    assert len(state["losses"]) == 2 and state["processes"] == 2

    (tmp_path / "second").touch()
    codes, said = two("fit", tmp_path)
    assert codes == [0, 0], said
    assert "resumed at step 2" in said[0]
    whole, resumed = read(undisturbed, "whole"), read(tmp_path, "resumed")
    for name, value in whole[0].items():
        for other in (whole[1], *resumed):
            assert torch.equal(other[name], value), name


@pytest.mark.slow
def test_2_a_network_after_surgery_is_trained_for_8_bits_and_exported(images, tmp_path):
    network = operated()
    assert not any(isinstance(m, nn.Hardswish) for m in network.modules())
    model = prepared(network.eval())
    qat.fit_(model, teacher=network, **HOW)
    report = qat.to_qdq(model, tmp_path / "q.onnx", size=SIZE)
    assert report.sqnr_db > 40
    kinds = {node.op_type for node in onnx.load(report.path).graph.node}
    assert {"QuantizeLinear", "Conv"} <= kinds and "HardSwish" not in kinds


@pytest.mark.slow
@pytest.mark.parametrize("scales", ["learned", "observed"])
def test_4_a_copy_while_it_trains_serves_as_an_average(images, tmp_path, scales):
    torch.manual_seed(0)  # dropout; without it, what the file loses depends on the tests before
    network = operated().eval()
    recipe = PRESETS["int8"].replaced(qat=Qat(scales=scales))
    model = qat.prepare(network, recipe, size=SIZE)
    qat.calibrate_(model, data.load("calib", 16, SIZE), data.Preprocessing(SIZE))
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    schedule = qat.Schedule(model, 4)
    gradients(model.train(), model)
    twin, average = copy.deepcopy(model), None
    before = {name: p.detach().clone() for name, p in twin.named_parameters()}
    weights = []
    for _ in range(4):
        gradients(model.train(), model)
        optimizer.step()
        if "observers" in schedule.step() or (scales == "learned" and average is None):
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        if average is not None:
            average.update_parameters(model)
            weights.append(_weight(model))
    assert all(torch.equal(p, before[name]) for name, p in twin.named_parameters())
    expected = weights[0]
    for weight in weights[1:]:
        expected = 0.5 * expected + 0.5 * weight
    torch.testing.assert_close(_weight(average.module), expected)
    report = qat.to_qdq(average.module.eval(), tmp_path / "average.onnx", size=SIZE)
    assert report.sqnr_db > 40
    with runtime.connect(report.path) as runner:
        assert np.isfinite(runner.run(np.zeros((1, 3, SIZE, SIZE), np.float32))).all()


def _weight(model):
    return model.get_submodule("classifier.0").parametrizations.weight.original.detach().clone()
