"""Outputs that a network does not compute: constants, such as anchors, and the input itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import ModelFileError
from .edit import nodes_within, remove_unused_, subgraphs

if TYPE_CHECKING:
    import onnx

_CONSTANT, _INPUT = "a constant", "the input itself"
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
           "RandomUniformLike")  # fmt: skip


def idle_outputs(graph: onnx.GraphProto) -> dict[str, str]:
    """Return which outputs of a graph in order nothing computes, and what each one is.

    One that follows from no input is a constant. A graph without inputs has none.
    """
    weights = {tensor.name for tensor in graph.initializer}
    same = {value.name for value in graph.input} - weights
    if not same:
        return {}
    computed = set(same)
    for node in graph.node:
        inner = [n for owner in subgraphs(node) for n in nodes_within(owner)]
        read = {name for n in (node, *inner) for name in n.input}
        if not read.isdisjoint(computed) or any(n.op_type in _RANDOM for n in (node, *inner)):
            computed.update(node.output)
        if node.op_type == "Identity" and node.input[0] in same:
            same.update(node.output)
    found = {}
    for output in graph.output:
        if output.name in same:
            found[output.name] = _INPUT
        elif output.name not in computed:
            found[output.name] = _CONSTANT
    return found


def leave_out_(model: onnx.ModelProto) -> list[str]:
    """Take the outputs that nothing computes off a model, in place; return what was changed.

    No accelerator gives them, and there is nothing in them to quantize or to compare.

    Raises
    ------
    ModelFileError
        No other output is left.
    """
    found = idle_outputs(model.graph)
    if not found:
        return []
    kept = [output for output in model.graph.output if output.name not in found]
    said = "; ".join(f"{name!r} is {what}" for name, what in found.items())
    if not kept:
        raise ModelFileError(
            f"Nothing in the network computes its output: {said}. Export it with an output that "
            "is computed from its input."
        )
    copies = [type(output).FromString(output.SerializeToString()) for output in kept]
    del model.graph.output[:]
    model.graph.output.extend(copies)
    remove_unused_(model)
    return [f"output {name!r} left out: it is {what}" for name, what in found.items()]
