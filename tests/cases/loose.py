"""Files that ONNX permits, or ONNX Runtime runs, and that other readers stumble over."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from .draft import Draft


def _plain(seed: int) -> onnx.ModelProto:
    draft = Draft(seed)
    x = draft.node("HardSwish", [draft.convolution(draft.stem(), "c1")], "h")
    draft.head(draft.convolution(x, "c2"))
    return draft.finish()


def nodes_of_one_name(seed=0, names=("conv", "")) -> onnx.ModelProto:
    """Return a network whose convolutions all have one name, and whose other nodes have another."""
    model = _plain(seed)
    for node in model.graph.node:
        node.name = names[0] if node.op_type == "Conv" else names[1]
    return model


def unsorted_nodes(seed=0, moved=1) -> onnx.ModelProto:
    """Return a network some of whose last nodes come first."""
    model = _plain(seed)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes[-moved:], *nodes[:-moved]])
    return model


def input_left_out(seed=0, op="Conv") -> onnx.ModelProto:
    """Return a network that leaves out an optional input by an empty name at the end."""
    draft = Draft(seed)
    x = draft.stem()
    weight = draft.weight("w1", draft.draw(8, 8, 3, 3))
    bias = [""] if op == "Conv" else []
    x = draft.node("Conv", [x, weight, *bias], "c1", pads=[1] * 4)
    bounds = [draft.weight("zero", draft.draw(1)[0] * 0), ""] if op == "Clip" else []
    x = draft.node(op, [x, *bounds], "a") if op == "Clip" else draft.node("HardSwish", [x], "a")
    draft.head(draft.convolution(x, "c2"))
    return draft.finish()


def other_name_of_the_domain(seed=0, nodes=True) -> onnx.ModelProto:
    """Return a network whose operators are of ``ai.onnx``, which is the domain without a name."""
    model = _plain(seed)
    model.opset_import[0].domain = "ai.onnx"
    for node in model.graph.node:
        node.domain = "ai.onnx" if nodes else ""
    return model


def stale_shapes(seed=0, where="inside") -> onnx.ModelProto:
    """Return a network that states shapes which it no longer has."""
    model = _plain(seed)
    if where == "inside":
        stale = helper.make_tensor_value_info("h", TensorProto.FLOAT, (1, 8, 8, 8))
        model.graph.value_info.append(stale)
    else:
        model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1000
    return model


def negative_batch(seed=0, batch=-1) -> onnx.ModelProto:
    """Return a network whose open batch is stated as a negative number."""
    model = _plain(seed)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    return model


def tied_weights(seed=0, mirrored="ConvTranspose") -> onnx.ModelProto:
    """Return an autoencoder whose halves share their weights, with a classifier behind."""
    draft = Draft(seed)
    tied = draft.weight("tied", draft.draw(8, 8, 3, 3))
    x = draft.node("Relu", [draft.node("Conv", [draft.stem(), tied], "c1", pads=[1] * 4)], "r1")
    if mirrored == "ConvTranspose":
        x = draft.node("ConvTranspose", [x, tied], "c2", pads=[1] * 4)
    else:
        sized = draft.node("ReduceMean", [tied], "mean", axes=[2, 3], keepdims=1)
        x = draft.node("Conv", [x, sized], "c2")
    draft.head(draft.node("Relu", [x], "r2"))
    return draft.finish()


def bias_read_elsewhere(seed=0, by="Reshape") -> onnx.ModelProto:
    """Return a network one of whose biases is added a second time, behind the activation."""
    draft = Draft(seed)
    bias = draft.weight("b1", draft.draw(8))
    weight = draft.weight("w1", draft.draw(8, 8, 3, 3))
    x = draft.node("Conv", [draft.stem(), weight, bias], "c1", pads=[1] * 4)
    x = draft.node("Relu", [x], "r1")
    shape = draft.weight("shape", np.int64([1, 8, 1, 1] if by == "Reshape" else [0, 2, 3]))
    again = draft.node(by, [bias, shape], "b1.again")
    draft.head(draft.node("Add", [x, again], "sum"))
    return draft.finish()


def group_normalization(seed=0, groups=4, layers=2) -> onnx.ModelProto:
    """Return a network with group normalizations, behind which ONNX infers no shape."""
    draft = Draft(seed, opset=21)
    x = draft.stem()
    for number in range(layers):
        x = draft.convolution(x, f"c{number}")
        scale = draft.weight(f"scale{number}", np.abs(draft.draw(8)) + np.float32(0.5))
        bias = draft.weight(f"shift{number}", draft.draw(8))
        inputs = [x, scale, bias]
        x = draft.node("GroupNormalization", inputs, f"gn{number}", num_groups=groups)
        x = draft.node("Relu", [x], f"r{number}")
    draft.head(x)
    return draft.finish()


def fused_by_onnxruntime(seed=0, activation="Relu") -> onnx.ModelProto:
    """Return what ONNX Runtime saves after its extended optimization: FusedConv, QuickGelu."""
    import onnxruntime as ort

    draft = Draft(seed)
    x = draft.node(activation, [draft.convolution(draft.stem(), "c1")], "a1")
    gate = draft.node("Sigmoid", [draft.convolution(x, "c2")], "gate")
    draft.head(draft.node("Mul", ["c2", gate], "silu"))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "optimized.onnx"))
        ort.InferenceSession(
            draft.finish().SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        model = onnx.load(options.optimized_model_filepath)
    assert any(node.op_type == "FusedConv" for node in model.graph.node)
    return model
