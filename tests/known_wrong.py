"""Graphs that QNN converts without a word and computes wrong: the parity gate must stop them.

Each builder writes one tiny ONNX file and returns it with inputs, float32 (2, 3, size, size); the
single output is float32 (n, values), so any runner takes it.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SEED = 20


def build(path, nodes, *, size, opset, constants=None):
    """Write `nodes` from "input" to "pixels", then a Flatten to "logits"; batch 1."""
    nodes = [*nodes, helper.make_node("Flatten", ["pixels"], ["logits"], name="/Flatten")]
    graph = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, None])],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    imports = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=8)
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    inputs = np.random.default_rng(SEED).normal(size=(2, 3, size, size)).astype(np.float32)
    return path, inputs


def hardswish_of_opset_13(folder):
    """``x * HardSigmoid(x)``, TorchScript's Hardswish at opset 13: becomes ``HardSwish(x) * x``."""
    nodes = [
        helper.make_node(
            "HardSigmoid", ["input"], ["gate"], name="/act/HardSigmoid", alpha=1 / 6, beta=0.5
        ),
        helper.make_node("Mul", ["input", "gate"], ["pixels"], name="/act/Mul"),
    ]
    return build(folder / "hardswish_13.onnx", nodes, size=16, opset=13)


def average_pool_with_ceil_mode(folder):
    """``AveragePool(ceil_mode=1)`` at an odd size: the HTP never writes the extra row."""
    pool = helper.make_node(
        "AveragePool",
        ["input"],
        ["pixels"],
        name="/pool/AveragePool",
        kernel_shape=[2, 2],
        strides=[2, 2],
        ceil_mode=1,
    )
    return build(folder / "average_pool_ceil.onnx", [pool], size=9, opset=17)


def nearest_resize_with_half_pixel(folder):
    """Nearest ``Resize`` with half-pixel and floor: the HTP computes the asymmetric one."""
    resize = helper.make_node(
        "Resize",
        ["input", "", "scales"],
        ["pixels"],
        name="/up/Resize",
        mode="nearest",
        coordinate_transformation_mode="half_pixel",
        nearest_mode="floor",
    )
    constants = {"scales": np.array([1, 1, 2, 2], np.float32)}
    return build(folder / "resize_half_pixel.onnx", [resize], size=8, opset=17, constants=constants)


def pad_at_the_end_after_an_activation(folder):
    """A constant ``Pad`` at the end of the last axis: the HTP does not write the added column."""
    nodes = [
        helper.make_node("Relu", ["input"], ["r"], name="/act/Relu"),
        helper.make_node("Pad", ["r", "pads", "value"], ["pixels"], name="/pad/Pad"),
    ]
    pads = np.array([0, 0, 0, 0, 0, 0, 0, 8])
    constants = {"pads": pads, "value": np.float32(2)}
    return build(folder / "pad.onnx", nodes, size=8, opset=17, constants=constants)


TOLD = (nearest_resize_with_half_pixel, pad_at_the_end_after_an_activation)
"""Those that the table of qnn tells: a conversion refuses them, and a rule repairs them."""

ALL = (hardswish_of_opset_13, average_pool_with_ceil_mode, *TOLD)
