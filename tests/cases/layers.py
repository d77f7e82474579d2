"""Layers in forms that converters and quantizers trip over."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from .draft import CLASSES, Draft


def gemm_beta(seed=0, alpha=1.0, beta=0.8) -> onnx.ModelProto:
    """Return a classifier whose Gemm scales its product and its bias."""
    draft = Draft(seed)
    x = draft.stem()
    draft.head(x, bias=draft.draw(CLASSES), alpha=float(alpha), beta=float(beta))
    draft.weights["fc.weight"] *= 3
    return draft.finish()


def gemm_scalar_bias(seed=0, value=0.25) -> onnx.ModelProto:
    """Return a classifier whose Gemm adds one number to all scores."""
    draft = Draft(seed)
    draft.head(draft.stem(), bias=np.float32(value))
    return draft.finish()


def gemm_bias_of_two_dimensions(seed=0, shape=(1, CLASSES)) -> onnx.ModelProto:
    """Return a classifier whose Gemm broadcasts its bias from another shape than (N,)."""
    draft = Draft(seed)
    draft.head(draft.stem(), bias=draft.draw(*shape, scale=1.0))
    return draft.finish()


def grouped_deconvolution(seed=0, groups=4) -> onnx.ModelProto:
    """Return a network with three transposed convolutions: plain, grouped, sized by its output."""
    draft = Draft(seed)
    x = draft.stem()
    bias = draft.weight("bt", draft.draw(8))
    for name, shape in (
        ("wt1", (8, 8, 3, 3)),
        ("wt2", (8, 8 // groups, 4, 4)),
        ("wt3", (8, 8, 3, 3)),
    ):
        draft.weight(name, draft.draw(*shape, scale=0.1))
    twice = {"strides": [2, 2]}
    padded = {**twice, "pads": [1] * 4}
    plain = draft.node("ConvTranspose", [x, "wt1", bias], "t1", output_padding=[1, 1], **padded)
    grouped = draft.node("ConvTranspose", [x, "wt2", bias], "t2", group=groups, **padded)
    sized = draft.node("ConvTranspose", [x, "wt3"], "t3", output_shape=[32, 32], **twice)
    x = draft.node("Concat", [plain, grouped, sized], "all", axis=1)
    draft.head(draft.node("HardSwish", [x], "h"), channels=24)
    return draft.finish()


_RESIZES = (  # by scale or by size, mode, coordinates, rounding
    ("scale", "nearest", "asymmetric", "floor"),
    ("size", "linear", "align_corners", ""),
    ("scale", "nearest", "half_pixel", "round_prefer_ceil"),
    ("size", "linear", "pytorch_half_pixel", ""),
    ("scale", "linear", "asymmetric", ""),
)


def resize_modes(seed=0, factor=2) -> onnx.ModelProto:
    """Return a network that resizes in five ways, each of which QNN's HTP computes right."""
    draft = Draft(seed)
    s = draft.stem()
    draft.weight("scale", np.float32([1, 1, factor, factor]))
    draft.weight("size", np.int64([1, 8, 16 * factor, 16 * factor]))
    resized = []
    for number, (by, mode, coordinates, rounding) in enumerate(_RESIZES):
        inputs = [s, "", "scale"] if by == "scale" else [s, "", "", "size"]
        attributes = {"mode": mode, "coordinate_transformation_mode": coordinates}
        attributes |= {"nearest_mode": rounding} if rounding else {}
        resized.append(draft.node("Resize", inputs, f"r{number}", **attributes))
    x = draft.node("Concat", resized, "all", axis=1)
    x = draft.convolution(draft.node("HardSwish", [x], "h"), "c", 40, strides=[2, 2])
    draft.head(x)
    return draft.finish()


def resize_as_torch_writes_it(
    seed=0, factor=2, coordinates="asymmetric", rounding="floor"
) -> onnx.ModelProto:
    """Return a network with nearest upsampling by a whole factor, by default torch's."""
    draft = Draft(seed)
    scale = draft.weight("scale", np.float32([1, 1, factor, factor]))
    settings = {"coordinate_transformation_mode": coordinates, "nearest_mode": rounding}
    x = draft.node("Resize", [draft.stem(), "", scale], "r", mode="nearest", **settings)
    draft.head(draft.node("HardSwish", [draft.convolution(x, "c")], "h"))
    return draft.finish()


def rare_activations(seed=0, slope=0.25) -> onnx.ModelProto:
    """Return a network of activations that are rare, or written in a rare form."""
    draft = Draft(seed, opset=20)
    draft.weight("p1", np.abs(draft.draw(8, 1, 1)) * 0.2)
    draft.weight("p2", np.float32([slope]))
    draft.weight("p3", np.abs(draft.draw(1, 8, 1, 1)) * 0.2)
    x = draft.convolution("image", "c0", 3, strides=[2, 2])
    x = draft.convolution(draft.node("PRelu", [x, "p1"], "a1"), "c1", side=1)
    x = draft.node("PRelu", [draft.node("PRelu", [x, "p2"], "a2"), "p3"], "a3")
    x = draft.convolution(draft.node("Elu", [x], "a4", alpha=0.5), "c2", side=1)
    x = draft.node("Celu", [draft.node("Mish", [x], "a5")], "a6", alpha=2.0)
    x = draft.node("Gelu", [draft.convolution(x, "c3", side=1)], "a7", approximate="tanh")
    x = draft.node("ThresholdedRelu", [draft.node("Softplus", [x], "a8")], "a9", alpha=0.5)
    draft.head(draft.node("Gelu", [x], "a10"))
    return draft.finish()


def twin_branches(seed=0, branches=2, generated=False) -> onnx.ModelProto:
    """Return a network whose branches are the same layer: one weight, or equal ones computed."""
    draft = Draft(seed)
    s = draft.stem()
    shared = draft.weight("shared", draft.draw(8, 8, 3, 3))
    made = []
    for number in range(branches):
        weight = shared
        if generated:
            shape = draft.weight(f"shape{number}", np.int64([8, 8, 3, 3]))
            value = numpy_helper.from_array(np.float32([0.02]))
            weight = draft.node("ConstantOfShape", [shape], f"w{number}", value=value)
        made.append(draft.node("Conv", [s, weight], f"twin{number}", pads=[1] * 4))
    x = draft.node("HardSwish", [draft.node("Concat", made, "all", axis=1)], "h")
    draft.head(x, channels=8 * branches)
    return draft.finish()


def recurrent(seed=0, op="GRU") -> onnx.ModelProto:
    """Return a network that reads the columns of its features with a recurrent layer."""
    draft = Draft(seed)
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[op]
    rows = draft.node("ReduceMean", [draft.stem()], "rows", axes=[2], keepdims=0)
    steps = draft.node("Transpose", [rows], "steps", perm=[2, 0, 1])
    w = draft.weight("w", draft.draw(1, 8 * gates, 8))
    r = draft.weight("r", draft.draw(1, 8 * gates, 8))
    draft.node(op, [steps, w, r], ["", "last"], hidden_size=8)
    flat = draft.node("Reshape", ["last", draft.weight("shape", np.int64([1, 8]))], "flat")
    draft.weight("fc", draft.draw(8, CLASSES))
    draft.node("Gemm", [flat, "fc", draft.weight("fc.bias", draft.draw(CLASSES))], "scores")
    return draft.finish()
