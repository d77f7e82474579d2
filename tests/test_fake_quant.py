"""One fake quantizer: the values of ONNX Runtime, the gradients of the paper, the best clipping."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from labutils.quantize.training.fake_quant import FakeQuant, Grid


def session(kind):
    import onnxruntime as ort

    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "one",
        [info("x", 1, ["n"]), info("s", 1, []), info("z", kind, [])],
        [info("y", 1, ["n"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


SESSIONS = {8: session(TensorProto.UINT8), 16: session(TensorProto.UINT16)}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([8, 16]), st.booleans(), st.booleans(),
    st.floats(-20, 0), st.floats(0.01, 20), st.integers(0, 9999),
)  # fmt: skip
def test_a_fake_quantizer_computes_what_onnx_runtime_computes(
    bits, symmetric, pow2, low, high, seed
):
    quantizer = FakeQuant(Grid(bits, symmetric=symmetric, power_of_two=pow2)).eval()
    quantizer.observe_()
    quantizer(torch.tensor([[low, high]], dtype=torch.float32))
    quantizer.settle_()
    step, point = quantizer.step.detach(), quantizer.zero_point
    x = torch.from_numpy(np.random.default_rng(seed).normal(0, 8, 500).astype(np.float32))
    ties = (torch.arange(-20, 20) + 0.5) * step  # half to even, before the zero point is added
    x = torch.cat([x, ties, torch.tensor([low, high, 0.0])])
    kind = np.uint8 if bits == 8 else np.uint16
    feeds = {
        "x": x.numpy(), "s": step.numpy().reshape(()), "z": point.numpy().astype(kind).reshape(()),
    }  # fmt: skip
    (expected,) = SESSIONS[bits].run(None, feeds)
    assert np.array_equal(quantizer(x).detach().numpy(), expected)
    if pow2:
        assert torch.frexp(step).mantissa.item() == 0.5
    if symmetric:
        assert point.item() == (0 if np.float32(low) == 0 else 1 << bits - 1)
    assert quantizer(torch.zeros(1)).item() == 0  # padding stays padding


def test_gradients_are_those_of_learned_step_size_quantization():
    quantizer = FakeQuant(Grid(4, signed=True, symmetric=True), learned=True)
    quantizer._set_step(torch.tensor([0.5]))
    quantizer.freeze_()
    x = torch.tensor([0.6, -1.3, 99.0, -99.0, 3.5], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0, 1]  # straight through inside, nothing outside
    v = np.array([0.6, -1.3, 99.0, -99.0, 3.5]) / 0.5
    inside = np.abs(v) <= 7
    by_step = np.where(inside, np.round(v) - v, np.clip(v, -7, 7)).sum()
    share = 1 / np.sqrt(5 * 7)  # the paper's g = 1 / sqrt(N Qp)
    chain = 0.5 * np.log(2) * 8  # step = 2 ** (8 exponent)
    assert quantizer.exponent.grad.item() == pytest.approx(by_step * share * chain, rel=1e-5)


def test_a_step_of_activations_learns_alike_from_a_batch_and_from_its_parts():
    """N of the paper counts the values of one image, so processes may share a batch."""
    x = torch.linspace(-3, 9, 4 * 6).reshape(4, 6)

    def gradient(rows):
        quantizer = FakeQuant(Grid(4), learned=True)
        quantizer._set_step(torch.tensor([0.5]))
        quantizer.phase = "frozen"
        quantizer.exponent.requires_grad_()
        quantizer(rows).sum(1).mean().backward()  # a loss is a mean over the images
        return quantizer.exponent.grad.item()

    parts = [gradient(x[:2]), gradient(x[2:])]
    assert gradient(x) == pytest.approx(sum(parts) / 2, rel=1e-5) != 0


@given(st.integers(0, 999))
@settings(max_examples=15, deadline=None)
def test_four_bits_clip_where_it_pays_and_no_channel_vanishes(seed):
    weight = torch.from_numpy(np.random.default_rng(seed).standard_t(3, (6, 40)).astype(np.float32))
    weight[3] *= 1e-9  # a dead channel: its bias must still fit into 32 bits
    errors = []
    for candidates in (1, 40):
        quantizer = FakeQuant(Grid(4, signed=True, symmetric=True, axis=0), 6).eval()
        quantizer.fit_weight_(weight, candidates)
        assert quantizer.step.min() >= quantizer.step.max() / 256 * 0.29
        errors.append((quantizer(weight) - weight).square().sum(1))
    assert (errors[1] <= errors[0] * (1 + 1e-6)).all()
    assert errors[1].sum() < errors[0].sum()
