"""The replacement layers: their formulas, what they keep, and what exporters make of them."""

from __future__ import annotations

import io
import logging
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

from labutils.layers import (
    VENDOR_SLOPE,
    CustomHardsigmoid,
    CustomHardswish,
    custom_hardsigmoid,
    custom_hardswish,
)

LAYERS = [CustomHardsigmoid(), CustomHardsigmoid(VENDOR_SLOPE), CustomHardswish()]
PAIRS = [(custom_hardsigmoid, F.hardsigmoid), (custom_hardswish, F.hardswish)]
ALLOWED = {"Add", "Mul", "Div", "Clip", "Constant"}

values = hnp.arrays(
    np.float32, hnp.array_shapes(max_dims=4), elements=st.floats(-1e4, 1e4, width=32)
)


@given(values)
def test_hardsigmoid_is_pytorchs(x):
    x = torch.from_numpy(x)
    assert (custom_hardsigmoid(x) - F.hardsigmoid(x)).abs().max() <= 1e-7


@given(values)
def test_hardswish_is_bit_equal_to_pytorchs(x):
    x = torch.from_numpy(x)
    assert torch.equal(custom_hardswish(x), F.hardswish(x))


@given(values)
def test_vendor_slope_is_never_off_by_more_than_stated(x):
    x = torch.from_numpy(x).double()
    assert (custom_hardsigmoid(x, VENDOR_SLOPE) - F.hardsigmoid(x)).abs().max() <= 9.981e-4


def test_vendor_slope_reaches_its_maximum_error_where_the_docstring_says():
    x = torch.tensor([-0.5 / VENDOR_SLOPE, 0.5 / VENDOR_SLOPE], dtype=torch.float64)
    error = (custom_hardsigmoid(x, VENDOR_SLOPE) - F.hardsigmoid(x)).abs()
    assert error.tolist() == pytest.approx([9.98e-4, 9.98e-4], abs=1e-6)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 0), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)],
)
@pytest.mark.parametrize("ours, theirs", PAIRS)
def test_other_dtypes_are_kept_and_within_the_stated_error(dtype, tolerance, ours, theirs):
    x = torch.linspace(-50, 50, 20001).to(dtype)
    before = x.clone()
    y = ours(x)
    error = (y.double() - theirs(x).double()).abs() / x.double().abs().clamp(min=1)
    assert y.dtype == dtype and error.max() <= tolerance
    assert torch.equal(x, before), "the layer wrote into its input"


def test_device_and_shape_are_kept():
    x = torch.empty(2, 3, 4, 5, device="meta")
    for layer in LAYERS:
        assert layer(x).device.type == "meta" and layer(x).shape == x.shape


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_gradients_are_right(layer):
    x = torch.linspace(-5, 5, 31, dtype=torch.float64).add(0.01).requires_grad_()  # off the kinks
    assert torch.autograd.gradcheck(layer, (x,))


@pytest.mark.parametrize("ours, theirs", PAIRS)
def test_gradients_are_pytorchs(ours, theirs):
    x = torch.linspace(-5, 5, 1001).add(1e-3).requires_grad_()
    a, b = (torch.autograd.grad(f(x).sum(), x)[0] for f in (ours, theirs))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_script_trace_and_export_compute_the_same():
    x = torch.linspace(-5, 5, 24).reshape(1, 2, 3, 4)
    for layer in LAYERS:
        assert torch.equal(torch.jit.script(layer)(x), layer(x))
        assert torch.equal(torch.jit.trace(layer, x)(x), layer(x))
    model = nn.Sequential(*LAYERS)
    program = torch.export.export(model, (x,), strict=True)
    assert torch.equal(program.module()(x), model(x))


def _operators(model, opset):
    x = torch.randn(1, 2, 3, 4)
    if opset >= 18:
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            model.eval(), (x,), dynamo=True, opset_version=opset, verbose=False
        )
        graph = program.model_proto
    else:
        file = io.BytesIO()
        torch.onnx.export(model.eval(), (x,), file, opset_version=opset, dynamo=False)
        graph = onnx.load_from_string(file.getvalue())
    assert graph.opset_import[0].version == opset
    return Counter(node.op_type for node in graph.graph.node)


@pytest.mark.parametrize("opset", [11, 13, 17, 18])
def test_exports_hold_only_what_every_converter_knows(opset):
    operators = _operators(nn.Sequential(*LAYERS), opset)
    assert set(operators) <= ALLOWED and operators["Clip"] == len(LAYERS)


def test_the_originals_do_not_export_to_those():
    assert not set(_operators(nn.Hardswish(), 13)) <= ALLOWED
    assert not set(_operators(nn.Hardsigmoid(), 17)) <= ALLOWED


def test_layers_have_no_state_and_say_their_slope():
    assert not any(layer.state_dict() for layer in LAYERS)
    assert repr(CustomHardsigmoid()) == "CustomHardsigmoid(slope=1/6)"
    assert repr(CustomHardsigmoid(VENDOR_SLOPE)) == "CustomHardsigmoid(slope=0.167)"
