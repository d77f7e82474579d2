"""A classifier of colours, and pictures for it: unlike those of Things-16, colours decide."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from labutils.images import data

CLASSES = ("red", "green", "blue", "yellow", "cyan", "purple")
_COLOURS = np.array(
    [(200, 60, 50), (60, 180, 70), (50, 70, 210), (200, 190, 60), (60, 190, 190), (150, 60, 170)]
)
MEAN, STD = (0.45, 0.5, 0.4), (0.2, 0.25, 0.3)


def pictures(n=60, size=32, seed=0):
    """Each of one colour, darker or lighter, with another patch and noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(CLASSES)
    images = _COLOURS[labels][:, None, None] * rng.uniform(0.8, 1.1, (n, 1, 1, 1))
    images = np.broadcast_to(images, (n, size, size, 3)).copy()
    images[:, : size // 2, : size // 8] = rng.integers(0, 256, (n, 1, 1, 3))
    images += rng.normal(0, 8, images.shape)
    pixels = np.clip(images, 0, 255).astype(np.uint8)
    return data.ImageSet(pixels, labels, CLASSES, f"{n} coloured pictures")


def preprocessing(size=32):
    return data.Preprocessing(size, MEAN, STD, "the colour network's")


def saved(path, *, size=32, swapped=False, folded=False, before=(), opset=11):
    """Write it as ONNX: it wants normalised RGB.

    `swapped`: it wants BGR. `folded`: its first convolution normalises. `before`: nodes of a
    front part, (operator, constant), between the input and the network.
    """
    goals = (_COLOURS / 255 - MEAN) / STD
    # nearest colour: w.x + b has its maximum at the goal with the least distance
    head, bias = 8 * goals, -4 * (goals**2).sum(1)
    kernel = np.zeros((3, 3, 3, 3), np.float32)
    kernel[range(3), range(3)] = 1 / 9
    offset = np.zeros(3, np.float32)
    if folded:
        offset = (-np.array(MEAN) / STD).astype(np.float32)
        kernel /= 255 * np.float32(STD)[:, None, None, None]
    kernel = kernel[:, ::-1] if swapped else kernel
    nodes, constants, now = [], [], "data"
    for i, (op, value) in enumerate(before):
        constants.append((f"c{i}", np.float32(value).reshape(1, -1, 1, 1)))
        nodes.append(helper.make_node(op, [now, f"c{i}"], [f"t{i}"], f"front{i}"))
        now = f"t{i}"
    constants += [("w", kernel), ("o", offset), ("h", head), ("b", bias)]
    nodes += [
        helper.make_node("Conv", [now, "w", "o"], ["x"], "conv"),
        helper.make_node("GlobalAveragePool", ["x"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "h", "b"], ["output"], "head", transB=1),
    ]
    ends = (
        [helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, len(CLASSES)])],
    )
    stored = [numpy_helper.from_array(np.ascontiguousarray(v, np.float32), n) for n, v in constants]
    graph = helper.make_graph(nodes, "colours", *ends, stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)
    onnx.save(made, path)
    return path
