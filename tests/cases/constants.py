"""Weights that are not plain float32 initializers, and names that get in the way."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .draft import CLASSES, SIDE, Draft


def _chain(draft, x, length, prefix):
    """Add a chain of Identity; return its end."""
    for step in range(length):
        x = draft.node("Identity", [x], f"{prefix}{step}")
    return x


def constant_nodes(seed=0, identities=2, factor=2.0) -> onnx.ModelProto:
    """Return a network with Constant nodes of all forms, and Identity on weights and outputs."""
    draft = Draft(seed)
    w = draft.tensor_node("k.weight", draft.draw(8, 8, 3, 3))
    b = draft.constant("k.bias", value_floats=[float(v) for v in draft.draw(8)])
    two = draft.constant("k.factor", value_float=float(factor))
    shape = draft.constant("k.shape", value_ints=[0, -1])
    x = draft.node("Conv", [draft.stem(), w, b], "c1", pads=[1] * 4)
    x = draft.node("Mul", [x, two], "m1")
    inner = draft.weight("inner", draft.draw(8, 8, 3, 3))
    x = draft.node("Conv", [x, _chain(draft, inner, identities, "w")], "c2", pads=[1] * 4)
    x = draft.node("HardSwish", [_chain(draft, x, identities, "i")], "hs")
    x = draft.node("GlobalAveragePool", [x], "pooled")
    x = draft.node("Reshape", [x, shape], "flat")
    draft.weight("fc.weight", draft.draw(CLASSES, 8))
    draft.weight("fc.bias", draft.draw(CLASSES))
    x = draft.node("Gemm", [x, "fc.weight", "fc.bias"], "logits", transB=1)
    draft.node("Identity", [x], "scores")
    return draft.finish()


def bias_in_value_floats(seed=0, form="value_floats") -> onnx.ModelProto:
    """Return a network whose first bias is a Constant in a short form; a scalar one is added."""
    draft = Draft(seed)
    w = draft.weight("w0", draft.draw(8, 3, 3, 3))
    if form == "value_floats":
        b = draft.constant("b0", value_floats=[float(v) for v in draft.draw(8)])
        x = draft.node("Conv", ["image", w, b], "c0", strides=[2, 2], pads=[1] * 4)
    else:
        b = draft.constant("b0", value_float=float(draft.draw(1)[0]))
        x = draft.node("Conv", ["image", w], "c", strides=[2, 2], pads=[1] * 4)
        x = draft.node("Add", [x, b], "c0")
    draft.head(draft.node("Relu", [x], "s"))
    return draft.finish()


def bias_behind_identity(seed=0, readers=3) -> onnx.ModelProto:
    """Return a network whose convolutions share one bias, all but the first through Identity."""
    draft = Draft(seed)
    bias = draft.weight("b0", draft.draw(8))
    x, inside = "image", 3
    for number in range(readers):
        b = bias if number == 0 else draft.node("Identity", [bias], f"b{number}")
        w = draft.weight(f"w{number}", draft.draw(8, inside, 3, 3))
        stride = [1, 1] if number else [2, 2]
        x = draft.node("Conv", [x, w, b], f"c{number}", pads=[1] * 4, strides=stride)
        x = draft.node("HardSwish" if number % 2 else "Relu", [x], f"a{number}")
        inside = 8
    draft.head(x)
    return draft.finish()


def torch_legacy_export(seed=0, channels=8) -> onnx.ModelProto:
    """Return what torch's legacy exporter writes of a fresh network with equal weights."""
    import torch
    from torch import nn

    class LastNorm(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, channels, 3, 2, 1), LastNorm(channels), nn.GELU(),
            nn.Conv2d(channels, channels, 3, 1, 1), LastNorm(channels), nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES),
        ).eval()  # fmt: skip
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.zeros(1, 3, SIDE, SIDE),), file, opset_version=17, dynamo=False,
            input_names=["image"], output_names=["scores"],
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def sparse_weight(seed=0, zero_below=0.25) -> onnx.ModelProto:
    """Return a network with one pruned weight, stored sparsely."""
    draft = Draft(seed)
    pruned = draft.draw(8, 8, 3, 3)
    pruned[np.abs(pruned) < zero_below] = 0
    kept = np.flatnonzero(pruned).astype(np.int64)
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(pruned.ravel()[kept], "w1"),
        numpy_helper.from_array(kept, "w1_indices"),
        pruned.shape,
    )
    x = draft.node("Conv", [draft.stem(), "w1"], "c1", pads=[1] * 4)
    draft.head(draft.node("HardSwish", [x], "hs"))
    return draft.finish(sparse=[sparse])


def float16_inside(seed=0, kind="FLOAT16") -> onnx.ModelProto:
    """Return a network with float32 ends, and half precision between two Casts."""
    half = TensorProto.DataType.Value(kind)
    draft = Draft(seed)
    x = draft.node("Cast", ["image"], "image16", to=half)
    x = draft.convolution(x, "c0", 3, strides=[2, 2])
    s = draft.node("HardSwish", [x], "s")
    x = draft.node("HardSigmoid", [draft.convolution(s, "c1")], "gate")
    logits = draft.head(draft.node("Mul", [x, s], "m"), output="logits")
    draft.node("Cast", [logits], "scores", to=TensorProto.FLOAT)
    draft.weights = {name: a.astype(np.float16) for name, a in draft.weights.items()}
    return draft.finish()


def names_of_the_quantizer(seed=0, bias="b") -> onnx.ModelProto:
    """Return a network whose tensors are named as ONNX Runtime's quantizer names its own."""
    draft = Draft(seed)
    draft.weight(bias, draft.draw(8))
    half = draft.weight("w1_scale", np.float32(0.5))
    more = draft.weight(f"{bias}_quantized", np.float32(1.5))
    for name, inside in (("w0", 3), ("w1", 8), ("w2", 8)):
        draft.weight(name, draft.draw(8, inside, 3, 3))
    x = draft.node("Conv", ["image", "w0", bias], "b0", strides=[2, 2], pads=[1] * 4)
    x = draft.node("Relu", [x], "b1")
    x = draft.node("Conv", [x, "w1", bias], f"{bias}_DequantizeLinear_Output", pads=[1] * 4)
    x = draft.node("Mul", [x, more], "b1_QuantizeLinear_Output")
    x = draft.node("Mul", [draft.node("HardSwish", [x], "b2"), half], "b3")
    draft.head(draft.node("Conv", [x, "w2", bias], "b4", pads=[1] * 4))
    return draft.finish()


def old_opset(seed=0, opset=11) -> onnx.ModelProto:
    """Return a plain network of an opset that quantization per channel does not take."""
    draft = Draft(seed, opset=opset)
    draft.head(draft.convolution(draft.stem(), "c1"))
    return draft.finish()


def paddle(seed=0, opset=11) -> onnx.ModelProto:
    """Return a network as Paddle2ONNX writes it."""
    draft = Draft(seed, opset=opset, shape=("DynamicDimension.0", 3, SIDE, SIDE))
    arrays = {
        "conv2d_0.w_0": draft.draw(8, 3, 3, 3), "conv2d_1.w_0": draft.draw(8, 1, 3, 3),
        "bn.w": np.abs(draft.draw(8)) + 0.5, "bn.b": draft.draw(8), "bn.m": draft.draw(8),
        "bn.v": np.abs(draft.draw(8)) + 0.5, "fc.w": draft.draw(8, CLASSES),
        "fc.b": draft.draw(CLASSES), "three": np.float32([3]), "k0": np.float32(0),
        "k6": np.float32(6), "six": np.float32([6]), "shape": np.int64([-1, 8]),
    }  # fmt: skip
    for name, array in arrays.items():
        draft.tensor_node(name, array)
    weights = ["image", "conv2d_0.w_0"]
    x = draft.node("Conv", weights, "conv2d_0.tmp_0", strides=[2, 2], pads=[1] * 4)
    norm = draft.node("BatchNormalization", [x, "bn.w", "bn.b", "bn.m", "bn.v"], "bn.tmp_3")
    x = draft.node("Clip", [draft.node("Add", [norm, "three"], "a"), "k0", "k6"], "cl")
    x = draft.node("Div", [draft.node("Mul", [norm, x], "mu"), "six"], "hardswish_0.tmp_0")
    c2 = draft.node("Conv", [x, "conv2d_1.w_0"], "c2", group=8, pads=[1] * 4)
    x = draft.node("GlobalAveragePool", [c2], "g")
    x = draft.node("HardSigmoid", [x], "hsg", alpha=1 / 6, beta=0.5)
    x = draft.node("GlobalAveragePool", [draft.node("Mul", [c2, x], "se")], "gp")
    x = draft.node("MatMul", [draft.node("Reshape", [x, "shape"], "fl"), "fc.w"], "mm")
    x = draft.node("Softmax", [draft.node("Add", [x, "fc.b"], "ad")], "sm", axis=1)
    draft.node("Identity", [x], "scores")
    return draft.finish([("scores", ("DynamicDimension.1", CLASSES))])
