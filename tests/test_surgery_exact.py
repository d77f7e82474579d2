"""Every exact rule computes the same: hypothesis over shapes, strides, paddings, dtypes."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from torch import nn

from labutils import surgery
from labutils.errors import SurgeryError

quick = settings(
    max_examples=30, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
dtypes = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}
seeds = st.integers(0, 999)


def noise(seed, *shape, dtype=torch.float32, scale=3.0):
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (scale * made).to(dtype)


class Call(nn.Module):
    """A model whose forward is a function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def same(make, rule, x, level, exactly=False):
    """Replace in a fresh model, and compare with it in the same dtype."""
    model = make()
    model = model.to(x.dtype) if isinstance(model, nn.Module) else Call(model)
    with torch.no_grad():
        expected = model(x)
    replaced = copy.deepcopy(model)
    report = surgery.replace_(replaced, rule, level=level, example_inputs=x)
    assert report.level == level and report.matches
    with torch.no_grad():
        got = replaced(x)
    assert got.shape == expected.shape and got.dtype == expected.dtype
    if exactly:
        assert torch.equal(got, expected)
    else:
        peak = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        assert float((got - expected).abs().max()) <= TOLERANCE[x.dtype] * peak
    return report


# --- activations ---------------------------------------------------------------------------------

ACTIVATIONS = {
    "hardsigmoid": (nn.Hardsigmoid, F.hardsigmoid),
    "hardswish": (nn.Hardswish, F.hardswish),
    "silu": (nn.SiLU, F.silu),
    "gelu": (nn.GELU, F.gelu),
    "mish": (nn.Mish, F.mish),
}


@quick
@given(
    name=st.sampled_from(sorted(ACTIVATIONS)), shape=st.lists(st.integers(1, 6), max_size=4),
    dtype=dtypes, scale=st.sampled_from([0.01, 1.0, 4.0, 30.0]), seed=seeds,
    level=st.sampled_from(["module", "function", "graph"]),
)  # fmt: skip
def test_activations(name, shape, dtype, scale, seed, level):
    cls, function = ACTIVATIONS[name]
    x = noise(seed, *shape, dtype=dtype, scale=scale)
    make = (lambda: nn.Sequential(cls())) if level == "module" else (lambda: function)
    same(make, name, x, level)


@quick
@given(seed=seeds, scale=st.sampled_from([0.1, 2.0, 50.0]), tanh=st.booleans())
def test_gelu_of_both_kinds_and_the_gradients(seed, scale, tanh):
    kind = "tanh" if tanh else "none"
    model = nn.Sequential(nn.GELU(kind))
    x = noise(seed, 40, dtype=torch.float64, scale=scale).requires_grad_()
    (before,) = torch.autograd.grad(model(x).sum(), x)
    surgery.replace_(model, "gelu", example_inputs=x.detach())
    (after,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_mish_and_silu_do_not_overflow():
    x = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4])
    model = nn.Sequential(nn.Mish(), nn.SiLU())
    expected = model(x)
    surgery.replace_(model, ["mish", "silu"])
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)


# --- pools ---------------------------------------------------------------------------------------


@st.composite
def pools(draw):
    kernel = draw(st.tuples(st.integers(1, 9), st.integers(4, 9)))
    stride = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = tuple(draw(st.integers(k, k + 14)) for k in kernel)
    return kernel, stride, padding, size


@quick
@given(pool=pools(), dtype=dtypes, seed=seeds, level=st.sampled_from(["module", "function"]))
def test_max_pools(pool, dtype, seed, level):
    kernel, stride, padding, size = pool
    x = noise(seed, 2, 3, *size, dtype=dtype)
    make = {
        "module": lambda: nn.Sequential(nn.MaxPool2d(kernel, stride, padding)),
        "function": lambda: lambda x: F.max_pool2d(x, kernel, stride, padding),
    }[level]
    report = same(make, "large-maxpool", x, level, exactly=True)
    assert report.macs == (0, 0)


@pytest.mark.parametrize("k", range(4, 14))
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_every_padding_of_a_square_max_pool(k, stride):
    x = noise(k, 1, 2, 21, 26)
    for padding in range(k // 2 + 1):
        same(lambda p=padding: nn.Sequential(nn.MaxPool2d(k, stride, p)), "large-maxpool", x,
             "module", exactly=True)  # fmt: skip


@quick
@given(pool=pools(), dtype=dtypes, seed=seeds, divisor=st.sampled_from([None, 1, 7]))
def test_average_pools(pool, dtype, seed, divisor):
    kernel, stride, padding, size = pool
    x = noise(seed, 2, 3, *size, dtype=dtype, scale=1.0)
    same(lambda: nn.Sequential(nn.AvgPool2d(kernel, stride, padding, divisor_override=divisor)),
         "large-avgpool", x, "module")  # fmt: skip
    same(lambda: lambda x: F.avg_pool2d(x, kernel, stride, padding, divisor_override=divisor),
         "large-avgpool", x, "function")  # fmt: skip


@quick
@given(
    dims=st.sampled_from([(2, 3), (-1, -2), (3, 2), (-2, 3)]), keep=st.booleans(), seed=seeds,
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)), dtype=dtypes,
)  # fmt: skip
def test_means_over_images(dims, keep, size, seed, dtype):
    x = noise(seed, 2, 3, *size, dtype=dtype)
    same(lambda: lambda x: x.mean(dims, keepdim=keep), "mean-to-global-pool", x, "function")
    same(lambda: lambda x: torch.mean(x, dims, keep), "mean-to-global-pool", x, "function")


def test_other_means_are_none_of_the_rules_business():
    with pytest.raises(SurgeryError, match="matched nothing") as caught:
        surgery.replace_(Call(lambda x: x.mean(1) + x.mean()), "mean-to-global-pool",
                         example_inputs=noise(0, 2, 3, 4, 5))  # fmt: skip
    assert "Left" not in str(caught.value)


# --- normalization -------------------------------------------------------------------------------


@quick
@given(
    shape=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    last=st.lists(st.integers(2, 7), min_size=1, max_size=2), affine=st.booleans(),
    eps=st.sampled_from([1e-3, 1e-5, 1e-6]), seed=seeds,
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)  # fmt: skip
def test_layer_norm(shape, last, affine, eps, seed, dtype):
    x = noise(seed, *shape, *last, dtype=dtype)

    def make():
        layer = nn.LayerNorm(last, eps, elementwise_affine=affine)
        for n, p in enumerate(layer.parameters()):
            nn.init.normal_(p, generator=torch.Generator().manual_seed(seed + n))
        return nn.Sequential(layer)

    same(make, "layer-norm", x, "module")
    same(lambda: lambda x: F.layer_norm(x, last, eps=eps), "layer-norm", x, "function")


@quick
@given(
    groups=st.integers(1, 4), each=st.integers(1, 3), affine=st.booleans(), seed=seeds,
    spatial=st.lists(st.integers(2, 6), min_size=1, max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_group_norm_and_instance_norm(groups, each, affine, seed, spatial, dtype):
    channels = groups * each
    x = noise(seed, 2, channels, *spatial, dtype=dtype)

    def weighted(layer):
        for n, p in enumerate(layer.parameters()):
            nn.init.normal_(p, generator=torch.Generator().manual_seed(seed + n))
        return nn.Sequential(layer)

    same(lambda: weighted(nn.GroupNorm(groups, channels, affine=affine)), "group-norm", x, "module")
    same(lambda: lambda x: F.group_norm(x, groups), "group-norm", x, "function")
    norm = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[len(spatial) - 1]
    same(lambda: weighted(norm(channels, affine=affine)), "instance-norm", x, "module")
    same(lambda: lambda x: F.instance_norm(x), "instance-norm", x, "function")


def test_weights_stay_the_same_parameters():
    model = nn.Sequential(nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4, affine=True))
    weights, names = list(model.parameters()), list(model.state_dict())
    surgery.replace_(model, ["layer-norm", "group-norm", "instance-norm"])
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
    assert list(model.state_dict()) == names


# --- convolutions, resizing, products ------------------------------------------------------------


@quick
@given(
    kernel=st.tuples(st.sampled_from([1, 2, 3, 4, 6]), st.sampled_from([2, 4, 6])),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.sampled_from([0, 1, 2, (0, 3), "same", "valid"]), groups=st.sampled_from([1, 2, 4]),
    bias=st.booleans(), seed=seeds, dtype=st.sampled_from([torch.float32, torch.float64]),
)  # fmt: skip
def test_even_kernels(kernel, stride, dilation, padding, groups, bias, seed, dtype):
    assume(padding != "same" or stride == (1, 1))
    x = noise(seed, 2, 4, 17, 18, dtype=dtype)

    def make():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(4, 8, kernel, stride, padding, dilation, groups, bias)
        )  # fmt: skip

    same(make, "even-kernel", x, "module")


@quick
@given(channels=st.integers(1, 5), size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
       dtype=dtypes, seed=seeds)  # fmt: skip
def test_focus(channels, size, dtype, seed):
    x = noise(seed, 2, channels, 2 * size[0], 2 * size[1], dtype=dtype)

    class Focus(nn.Module):
        def forward(self, x):
            return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2],
                              x[..., 1::2, 1::2]], 1)  # fmt: skip

    report = same(lambda: nn.Sequential(Focus()), "focus", x, "graph", exactly=True)
    assert len(report.matches) == 1


@quick
@given(
    size=st.tuples(st.integers(2, 12), st.integers(2, 12)), seed=seeds,
    out=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    mode=st.sampled_from([("nearest", None), ("bilinear", False), ("bilinear", True),
                          ("bicubic", False), ("area", None)]),
)  # fmt: skip
def test_resizing(size, out, mode, seed):
    x = noise(seed, 2, 3, *size)
    same(lambda: lambda x: F.interpolate(x, out, mode=mode[0], align_corners=mode[1]),
         "resize-to-scale", x, "function") if _fits(size, out) else None  # fmt: skip
    assume(mode[0] != "area")
    model = nn.Sequential(nn.Upsample(out, mode=mode[0], align_corners=mode[1]))
    expected = model(x)
    surgery.replace_(model, "resize-to-scale", level="module", example_inputs=x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def _fits(size, out):
    from labutils.surgery.layers.resizing import scales

    return scales(torch.empty(1, 1, *size), out) is not None


@pytest.mark.parametrize(
    "equation, shapes",
    [
        ("bhid,bhjd->bhij", ((2, 3, 4, 5), (2, 3, 6, 5))),
        ("bhij,bhjd->bihd", ((2, 3, 4, 6), (2, 3, 6, 5))),
        ("nchw,oc->nohw", ((2, 3, 4, 5), (7, 3))),
        ("ab,bc->ca", ((2, 3), (3, 4))),
        ("ab,cd->acbd", ((2, 3), (4, 5))),
        ("abc,abc->ab", ((2, 3, 4), (2, 3, 4))),
        ("i,i->", ((4,), (4,))),
    ],
)
def test_einstein_sums(equation, shapes):
    other = noise(1, *shapes[1])
    same(lambda: lambda x: torch.einsum(equation, x, other), "einsum", noise(0, *shapes[0]),
         "function")  # fmt: skip


@pytest.mark.parametrize("equation", ["aab,bc->ac", "abd,bc->ac", "...a,ab->...b", "ab,bc"])
def test_einstein_sums_that_are_left(equation):
    a = noise(0, 3, 3, 4) if equation[:3] in ("aab", "abd") else noise(0, 3, 4)
    b = noise(1, 4 if equation != "abd,bc->ac" else 3, 2)
    with pytest.raises(SurgeryError, match="matched nothing"):
        surgery.replace_(Call(lambda x: torch.einsum(equation, x, b)), "einsum", example_inputs=a)


@quick
@given(
    heads=st.integers(1, 3), tokens=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    width=st.integers(1, 8), mask=st.sampled_from([None, "bool", "float", "causal"]),
    scale=st.sampled_from([None, 0.3]), seed=seeds,
)  # fmt: skip
def test_attention(heads, tokens, width, mask, scale, seed):
    x = noise(seed, 2, heads, tokens[0], width, scale=1.0)
    key, value = (noise(seed + n, 2, heads, tokens[1], width, scale=1.0) for n in (1, 2))
    given_mask = {
        "bool": noise(seed, *tokens) > 0, "float": noise(seed, *tokens),
    }.get(mask)  # fmt: skip
    if mask == "bool":
        given_mask[:, 0] = True  # a row that sees nothing has no softmax

    def attend(x):
        return F.scaled_dot_product_attention(x, key, value, given_mask, 0.0, mask == "causal",
                                              scale=scale)  # fmt: skip

    same(lambda: attend, "attention", x, "function")


# --- ONNX ----------------------------------------------------------------------------------------


def graph(node, shape, opset, weights=(), rank=4):
    tensors = [numpy_helper.from_array(value, name) for name, value in weights]
    made = helper.make_graph(
        [node], "one node", [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, [None] * rank)], tensors,
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def rewritten(model, rule, gone):
    report = surgery.replace_(model, rule)
    assert report.counts == {rule: 1} and report.check.rounding
    stays = ("Conv", "Gemm", "MaxPool")  # with other attributes
    assert gone in stays or gone not in {node.op_type for node in model.graph.node}
    return report


def values(seed, *shape):
    return noise(seed, *shape, scale=1.0).numpy()


@settings(quick, max_examples=12)
@given(
    kernel=st.tuples(st.integers(1, 6), st.integers(4, 6)), data=st.data(), seed=seeds,
    padded=st.booleans(), counted=st.sampled_from([None, 0, 1]),
)  # fmt: skip
def test_onnx_average_pools_that_leave_their_padding_out_are_not_exact_as_conv(
    kernel, data, seed, padded, counted
):
    """Their windows at the edge have other divisors; without padding both are the same."""
    pads = [data.draw(st.integers(0, k // 2)) for k in kernel * 2] if padded else [0] * 4
    more = {} if counted is None else {"count_include_pad": counted}
    node = helper.make_node(
        "AveragePool", ["x"], ["y"], "/pool/P", kernel_shape=kernel, pads=pads, **more
    )
    model = graph(node, [2, 3, 9, 8], 17)
    if any(pads) and not counted:
        with pytest.raises(SurgeryError, match="count_include_pad=0"):
            surgery.replace_(model, "large-avgpool")
        return
    before = copy.deepcopy(model)
    rewritten(model, "large-avgpool", "AveragePool")
    x = {"x": values(seed, 2, 3, 9, 8)}
    exact, found = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, x)
        for m in (before, model)
    )
    assert found[0] == pytest.approx(exact[0], abs=1e-5)


@quick
@given(
    kernel=st.tuples(st.integers(1, 9), st.integers(4, 9)), data=st.data(), seed=seeds,
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)), average=st.booleans(),
    opset=st.sampled_from([11, 13, 17]),
)  # fmt: skip
def test_onnx_pools(kernel, data, strides, average, seed, opset):
    pads = [data.draw(st.integers(0, k // 2)) for k in kernel * 2]
    size = [data.draw(st.integers(k, k + 9)) for k in kernel]
    op = "AveragePool" if average else "MaxPool"
    more = {"count_include_pad": 1} if average else {}
    node = helper.make_node(op, ["x"], ["y"], "/pool/P", kernel_shape=kernel, strides=strides,
                            pads=pads, **more)  # fmt: skip
    model = graph(node, [2, 3, *size], opset)
    rewritten(model, "large-avgpool" if average else "large-maxpool", op)
    assert all(
        max(a.ints) <= 3
        for n in model.graph.node if n.op_type == "MaxPool"
        for a in n.attribute if a.name == "kernel_shape"
    )  # fmt: skip


@quick
@given(
    shape=st.lists(st.integers(2, 5), min_size=2, max_size=4), data=st.data(), seed=seeds,
    opset=st.sampled_from([17, 18, 21]), bias=st.booleans(),
)  # fmt: skip
def test_onnx_layer_normalization(shape, data, seed, opset, bias):
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    last = shape[axis:]
    weights = [("s", values(seed, *last)), *([("b", values(seed + 1, *last))] if bias else [])]
    node = helper.make_node("LayerNormalization", ["x", *(n for n, _ in weights)], ["y"], "/n/L",
                            axis=axis, epsilon=1e-4)  # fmt: skip
    model = graph(node, shape, opset, weights, len(shape))
    rewritten(model, "layer-norm", "LayerNormalization")


@quick
@given(groups=st.integers(1, 3), each=st.integers(1, 3), seed=seeds,
       spatial=st.lists(st.integers(2, 5), min_size=1, max_size=2))  # fmt: skip
def test_onnx_group_and_instance_normalization(groups, each, spatial, seed):
    channels = groups * each
    weights = [("s", values(seed, channels)), ("b", values(seed + 1, channels))]
    shape = [2, channels, *spatial]
    for op, opset, rule, more in (
        ("GroupNormalization", 21, "group-norm", {"num_groups": groups}),
        ("InstanceNormalization", 13, "instance-norm", {}),
    ):
        node = helper.make_node(op, ["x", "s", "b"], ["y"], "/n/N", **more)
        rewritten(graph(node, shape, opset, weights, len(shape)), rule, op)


@quick
@given(
    kernel=st.tuples(st.sampled_from([1, 2, 3, 4]), st.sampled_from([2, 4])), data=st.data(),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)), group=st.sampled_from([1, 2]),
    dilations=st.tuples(st.integers(1, 2), st.integers(1, 2)), seed=seeds, bias=st.booleans(),
)  # fmt: skip
def test_onnx_even_kernels(kernel, data, strides, group, dilations, seed, bias):
    pads = [data.draw(st.integers(0, 3)) for _ in range(4)]
    weights = [("w", values(seed, 6, 4 // group, *kernel))] + [("b", values(seed, 6))] * bias
    node = helper.make_node("Conv", ["x", *(n for n, _ in weights)], ["y"], "/c/Conv", pads=pads,
                            strides=strides, dilations=dilations, group=group)  # fmt: skip
    model = graph(node, [2, 4, 13, 12], 17, weights)
    rewritten(model, "even-kernel", "Conv")
    weight = next(t for t in model.graph.initializer if len(t.dims) == 4)
    assert all(side % 2 for side in weight.dims[2:])


@quick
@given(alpha=st.sampled_from([1.0, 0.5, -2.0]), beta=st.sampled_from([1.0, 0.25]),
       trans=st.integers(0, 1), bias=st.booleans(), seed=seeds)  # fmt: skip
def test_onnx_gemm(alpha, beta, trans, bias, seed):
    assume((alpha, beta, trans) != (1.0, 1.0, 1))
    weights = [("w", values(seed, *((3, 5) if trans else (5, 3))))]
    weights += [("b", values(seed + 1, 3))] * bias
    node = helper.make_node("Gemm", ["x", *(n for n, _ in weights)], ["y"], "/f/Gemm", alpha=alpha,
                            beta=beta, transB=trans)  # fmt: skip
    model = graph(node, [4, 5], 13, weights, 2)
    rewritten(model, "plain-gemm", "Gemm")
    assert [a.name for a in model.graph.node[0].attribute] == ["transB"]


@quick
@given(rank=st.integers(1, 3), seed=seeds, kind=st.sampled_from(
    [("Gelu", "gelu", 20, {}), ("Gelu", "gelu", 20, {"approximate": "tanh"}),
     ("Mish", "mish", 18, {}), ("Mish", "mish", 22, {})]))  # fmt: skip
def test_onnx_smooth_activations(kind, rank, seed):
    op, rule, opset, attributes = kind
    node = helper.make_node(op, ["x"], ["y"], f"/a/{op}", **attributes)
    rewritten(graph(node, [3] * rank, opset, rank=rank), rule, op)


@quick
@given(size=st.tuples(st.integers(1, 50), st.integers(30, 50)), keep=st.integers(0, 1),
       opset=st.sampled_from([11, 13, 17, 18]))  # fmt: skip
def test_onnx_global_pools(size, keep, opset):
    axes = [("axes", np.array([2, 3]))] if opset >= 18 else []
    more = {} if axes else {"axes": [-1, 2]}
    node = helper.make_node("ReduceMean", ["x", *(n for n, _ in axes)], ["y"], "/p/R",
                            keepdims=keep, **more)  # fmt: skip
    model = graph(node, [2, 3, *size], opset, axes, 4 if keep else 2)
    rewritten(model, "mean-to-global-pool", "ReduceMean")
    if size[0] * size[1] > 1024:
        wide = graph(helper.make_node("GlobalAveragePool", ["x"], ["y"], "/p/G"), [2, 3, *size],
                     opset)  # fmt: skip
        rewritten(wide, "wide-global-pool", "GlobalAveragePool")


@quick
@given(
    size=st.tuples(st.integers(2, 9), st.integers(2, 9)), factor=st.tuples(
        st.integers(1, 4), st.integers(1, 4)), opset=st.sampled_from([11, 13, 18]),
    mode=st.sampled_from(["nearest", "linear", "cubic"]),
    where=st.sampled_from(["half_pixel", "align_corners", "asymmetric"]),
)  # fmt: skip
def test_onnx_resizing(size, factor, mode, where, opset):
    wanted = np.array([2, 3, size[0] * factor[0], size[1] * factor[1]])
    node = helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], "/r/R", mode=mode,
                            coordinate_transformation_mode=where)  # fmt: skip
    if opset < 13:
        node.input[1], node.input[2] = "roi", "none"
    empty = np.array([], np.float32)
    model = graph(node, [2, 3, *size], opset, [("sizes", wanted), ("roi", empty), ("none", empty)])
    rewritten(model, "resize-to-scale", "nothing")
    (made,) = model.graph.node
    assert len(made.input) == 3 and {a.name for a in made.attribute} >= {"mode"}


@pytest.mark.parametrize("op", ["Identity", "Dropout"])
def test_onnx_idle_nodes(op):
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node(op, ["a"], ["b"], "/i/I"),
             helper.make_node("Relu", ["b"], ["y"])]  # fmt: skip
    value = helper.make_tensor_value_info
    made = helper.make_graph(nodes, "g", [value("x", 1, [3])], [value("y", 1, [3])])
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    rewritten(model, "idle-nodes", op)
    last = copy.deepcopy(model)
    last.graph.node[-1].CopyFrom(helper.make_node(op, [last.graph.node[0].output[0]], ["y"]))
    with pytest.raises(SurgeryError, match="names an output of the graph"):
        surgery.replace_(last, "idle-nodes")


def test_every_exact_rule_is_tested_here():
    """A new exact rule needs a property test: this list is what the tests above cover."""
    covered = {*ACTIVATIONS, "layer-norm", "group-norm", "instance-norm", "large-maxpool",
               "large-avgpool", "mean-to-global-pool", "wide-global-pool", "even-kernel", "focus",
               "resize-to-scale", "einsum", "attention", "plain-gemm", "relu-out-of-place",
               "dropout-out-of-place", "idle-nodes"}  # fmt: skip
    assert covered == set(surgery.EXACT)


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_out_of_place_layers(p):
    x = noise(0, 2, 3, 4, 4)
    for cls in (nn.Dropout, nn.Dropout2d, nn.AlphaDropout):
        model = nn.Sequential(cls(p, inplace=True), nn.ReLU(inplace=True))
        kept = x.clone()
        surgery.replace_(model, ["dropout-out-of-place", "relu-out-of-place"], example_inputs=x)
        torch.manual_seed(0)
        model(kept)
        assert torch.equal(kept, x) and model[0].p == p and type(model[0]) is cls
