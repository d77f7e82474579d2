"""Legal oddities: other ways to write the same network, each done to a model in place.

Each returns whether it found a place. The number beside it is the first opset that allows it.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DOMAIN = "drawn.ops"


def _floats(model):
    """Return the names of float32 weights that nodes of the main graph read."""
    read = {name for node in model.graph.node for name in node.input}
    return [t.name for t in model.graph.initializer
            if t.data_type == TensorProto.FLOAT and t.name in read]  # fmt: skip


def _taken(model, name):
    """Take a weight out of the model; return it."""
    tensor = next(t for t in model.graph.initializer if t.name == name)
    kept = onnx.TensorProto()
    kept.CopyFrom(tensor)
    model.graph.initializer.remove(tensor)
    for value in [v for v in model.graph.input if v.name == name]:
        model.graph.input.remove(value)
        model.ir_version = max(model.ir_version, 4)
    return kept


def _rewire(model, old, new):
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == old:
                node.input[index] = new


def _some(chance, names, most=3):
    return [str(name) for name in chance.permutation(sorted(names))[:most]]


def _constant_nodes(model, chance):
    """Write some weights as Constant nodes."""
    names = _some(chance, [t.name for t in model.graph.initializer], 4)
    for name in names:
        tensor = _taken(model, name)
        model.graph.node.insert(
            0, helper.make_node("Constant", [], [name], f"/Constant_{name}", value=tensor)
        )
    return bool(names)


def _short_constants(model, chance):
    """Write short weights as ``value_float(s)`` and ``value_int(s)``."""
    short = {t.name: t for t in model.graph.initializer if len(t.dims) <= 1 and 0 not in t.dims}
    names = _some(chance, short, 3)
    for name in names:
        array = numpy_helper.to_array(_taken(model, name))
        key = "value_int" if array.dtype == np.int64 else "value_float"
        key, value = (key + "s", array.tolist()) if array.ndim else (key, array.item())
        node = helper.make_node("Constant", [], [name], f"/Constant_{name}", **{key: value})
        model.graph.node.insert(0, node)
    return bool(names)


def _constant_inputs(model, chance):
    """List the weights as inputs, too, as files of IR version 3 must."""
    listed = {value.name for value in model.graph.input}
    new = [t for t in model.graph.initializer if t.name not in listed]
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in new
    )
    return bool(new)


def _identities(model, chance):
    """Put Identity behind some weights and some tensors; two readers may share one."""
    names = _some(chance, _floats(model), 2)
    inner = [n.output[0] for n in model.graph.node if n.output[0] != "scores"]
    names += _some(chance, inner, 2)
    for name in names:
        ends = [f"{name}/same", f"{name}/same_again"][: int(chance.integers(1, 3))]
        _rewire(model, name, ends[-1])
        place = next((i + 1 for i, n in enumerate(model.graph.node) if name in n.output), 0)
        for end in reversed(ends):
            before = name if end == ends[0] else ends[0]
            model.graph.node.insert(
                place, helper.make_node("Identity", [before], [end], f"/Identity_{end}")
            )
    return bool(names)


def _identity_at_the_end(model, chance):
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            if name == "scores":
                node.output[index] = "scores_inside"
    model.graph.node.append(helper.make_node("Identity", ["scores_inside"], ["scores"], "/last"))
    return True


def _shared_weights(model, chance):
    """Let equal biases be one, the second read through Identity, as torch writes them."""
    shapes: dict[tuple, list] = {}
    values = {t.name: t for t in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) > 2 and node.input[2] in values:
            tensor = values[node.input[2]]
            shapes.setdefault(tuple(tensor.dims), []).append(node)
    same = next((nodes for nodes in shapes.values() if len(nodes) > 1), None)
    if same is None:
        return False
    first, second = same[:2]
    model.graph.node.insert(
        0, helper.make_node("Identity", [first.input[2]], ["bias/shared"], "/shared")
    )
    second.input[2] = "bias/shared"
    return True


def _sparse(model, chance):
    """Store one weight sparsely."""
    names = [n for n in _floats(model) if _size(model, n) > 8]
    for name in _some(chance, names, 1):
        array = numpy_helper.to_array(_taken(model, name)).copy()
        array[np.abs(array) < np.median(np.abs(array)) / 2] = 0
        kept = np.flatnonzero(array).astype(np.int64)
        values = numpy_helper.from_array(array.ravel()[kept], name)
        places = numpy_helper.from_array(kept, f"{name}_places")
        model.graph.sparse_initializer.append(
            helper.make_sparse_tensor(values, places, array.shape)
        )
        model.ir_version = max(model.ir_version, 5)
    return bool(names)


def _size(model, name):
    tensor = next(t for t in model.graph.initializer if t.name == name)
    return int(np.prod(tensor.dims))


def _halves(model, chance):
    """Store some weights in float16, behind a Cast."""
    names = _some(chance, _floats(model), 3)
    for name in names:
        array = numpy_helper.to_array(_taken(model, name)).astype(np.float16)
        model.graph.initializer.append(numpy_helper.from_array(array, f"{name}/half"))
        cast = helper.make_node("Cast", [f"{name}/half"], [name], f"/Cast_{name}", to=1)
        model.graph.node.insert(0, cast)
    model.ir_version = max(model.ir_version, 4)
    return bool(names)


def _brain_floats(model, chance):
    """Store some weights in bfloat16, behind a Cast."""
    names = _some(chance, _floats(model), 3)
    for name in names:
        array = numpy_helper.to_array(_taken(model, name))
        stored = helper.make_tensor(
            f"{name}/brain", TensorProto.BFLOAT16, array.shape, array.ravel().tolist()
        )
        model.graph.initializer.append(stored)
        cast = helper.make_node("Cast", [stored.name], [name], f"/Cast_{name}", to=1)
        model.graph.node.insert(0, cast)
    return bool(names)


def _computed_weights(model, chance):
    """Store some weights in another order or shape, behind Transpose or Reshape."""
    names = [n for n in _floats(model) if _size(model, n) > 1]
    names = _some(chance, names, 2)
    for name in names:
        array = numpy_helper.to_array(_taken(model, name))
        if array.ndim > 1:
            order = [int(i) for i in chance.permutation(array.ndim)]
            back = [order.index(i) for i in range(array.ndim)]
            stored = np.ascontiguousarray(array.transpose(order))
            node = helper.make_node(
                "Transpose", [f"{name}/turned"], [name], f"/T_{name}", perm=back
            )
        else:
            stored = array.reshape(-1, 1)
            shape = numpy_helper.from_array(np.array([-1], np.int64), f"{name}/shape")
            model.graph.initializer.append(shape)
            inputs = [f"{name}/turned", f"{name}/shape"]
            node = helper.make_node("Reshape", inputs, [name], f"/R_{name}")
        model.graph.initializer.append(numpy_helper.from_array(stored, f"{name}/turned"))
        model.graph.node.insert(0, node)
    model.ir_version = max(model.ir_version, 4)
    return bool(names)


_SAME = ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "HardSigmoid", "Softplus", "HardSwish",
         "Mish", "Gelu", "Abs", "BatchNormalization", "PRelu")  # fmt: skip


def _functions(model, chance):
    """Put some nodes into functions of the model's own."""
    nodes = [n for n in model.graph.node if n.op_type in (*_SAME, "Conv") and all(n.input)]
    imports = list(model.opset_import)
    for number, index in enumerate(chance.permutation(len(nodes))[:2]):
        node = nodes[int(index)]
        inputs = [f"i{k}" for k in range(len(node.input))]
        inner = helper.make_node(node.op_type, inputs, ["o"], "inner")
        inner.attribute.extend(node.attribute)
        name = f"Part{number}"
        model.functions.append(helper.make_function(DOMAIN, name, inputs, ["o"], [inner], imports))
        node.op_type, node.domain = name, DOMAIN
        del node.attribute[:]
    if nodes:
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
        model.ir_version = max(model.ir_version, 8)
    return bool(nodes)


def _branches(model, chance):
    """Put a node into a branch of an If whose condition is a constant; one has a Constant."""
    nodes = [n for n in model.graph.node if n.op_type in _SAME and n.domain == ""]
    if not nodes:
        return False
    node = nodes[int(chance.integers(len(nodes)))]
    holds, out = bool(chance.random() < 0.5), node.output[0]
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    inner.name, inner.output[0] = "inside", f"{out}/inside"
    one = numpy_helper.from_array(np.float32(1), "one")
    times_one = [
        helper.make_node("Constant", [], [f"{out}/one"], "one", value=one),
        helper.make_node("Mul", [inner.output[0], f"{out}/one"], [f"{out}/product"], "product"),
    ]
    other = helper.make_node("Identity", [node.input[0]], [f"{out}/other"], "other")

    def branch(name, *body):
        made = helper.make_tensor_value_info(body[-1].output[0], TensorProto.FLOAT, None)
        return helper.make_graph(list(body), name, [], [made])

    taken = branch("taken", inner, *(times_one if chance.random() < 0.5 else ()))
    left = branch("left", other)
    then, otherwise = (taken, left) if holds else (left, taken)
    model.graph.initializer.append(numpy_helper.from_array(np.array(holds), f"{out}/condition"))
    model.ir_version = max(model.ir_version, 4)
    place = list(model.graph.node).index(node)
    model.graph.node.remove(node)
    model.graph.node.insert(
        place,
        helper.make_node("If", [f"{out}/condition"], [out], f"/If_{out}", then_branch=then,
                         else_branch=otherwise),
    )  # fmt: skip
    return True


_CLASHES = ("{}_quantized", "{}_scale", "{}_zero_point", "{}_QuantizeLinear_Output",
            "{}_DequantizeLinear_Output", "{}_QuantizeLinear_Input")  # fmt: skip


def _clashing_names(model, chance):
    """Name tensors as the quantizer would name its own for other tensors."""
    weights = _some(chance, [t.name for t in model.graph.initializer], 2)
    inner = [n.output[0] for n in model.graph.node if n.output[0] not in ("scores", "")]
    inner = [name for name in inner if not name.startswith("bias/")]
    for weight, name in zip(weights, _some(chance, inner, len(weights)), strict=False):
        clash = _CLASHES[int(chance.integers(len(_CLASHES)))].format(weight)
        _rewire(model, name, clash)
        for node in model.graph.node:
            for index, made in enumerate(node.output):
                if made == name:
                    node.output[index] = clash
    return bool(weights and inner)


def _no_names(model, chance):
    """Leave all nodes without names."""
    for node in model.graph.node:
        node.name = ""
    return True


def _open_batch(model, chance):
    for value in (*model.graph.input[:1], *model.graph.output):
        dim = value.type.tensor_type.shape.dim[0]
        dim.Clear()
        dim.dim_param = "N"
    del model.graph.value_info[:]
    return True


def _dropout(model, chance):
    """Put a Dropout, which does nothing at inference, before the last node."""
    last = next(n for n in model.graph.node if "scores" in n.output)
    inner = [name for name in last.input if any(name in n.output for n in model.graph.node)]
    if not inner:
        return False
    place = list(model.graph.node).index(last)
    node = helper.make_node("Dropout", [inner[0]], [f"{inner[0]}/kept"], "/Dropout")
    last.input[list(last.input).index(inner[0])] = f"{inner[0]}/kept"
    model.graph.node.insert(place, node)
    return True


# In this order they are done. Subgraphs come last: what is done before does not look into them.
ODDITIES = {
    "Dropout": (7, _dropout),
    "shared weights": (7, _shared_weights),
    "Identity": (7, _identities),
    "Identity at the end": (7, _identity_at_the_end),
    "computed weights": (7, _computed_weights),
    "float16 weights": (9, _halves),
    "bfloat16 weights": (13, _brain_floats),
    "Constant nodes": (9, _constant_nodes),
    "short constants": (12, _short_constants),
    "sparse weight": (11, _sparse),
    "clashing names": (7, _clashing_names),
    "no names": (7, _no_names),
    "open batch": (7, _open_batch),
    "constants listed as inputs": (9, _constant_inputs),
    "functions": (15, _functions),
    "If": (11, _branches),
}
