"""Judging who counts refused nodes in a part of a network: small ONNX files, and what they hold."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..answer import NotYet, call, whole

FEATURES = "/features/features.0/features.0"
_STEM, _GATE, _DEEP, _OTHER = (
    "/features/features.1/features.1.2",
    "/features/features.12/block/block.2",
    "/features/features.1/block/block.0",
    "/aux/features/features.1/features.1.2",
)
_FOREIGN = "com.example"


def write_chain(path: Path, nodes: Sequence[tuple[str, str]], opset: int = 17) -> Path:
    """Write a small ONNX file: a Constant added to the input, then a chain of unary `nodes`.

    Parameters
    ----------
    path
        Where to.
    nodes
        (operator, the scope in its name) one after the other. A ``Gemm`` multiplies by a matrix
        that is not transposed; ``com.example.X`` is an operator X of that domain.
    opset
        Of the file.
    """
    import numpy as np
    import onnx
    from onnx import helper, numpy_helper

    one = numpy_helper.from_array(np.ones(1, np.float32), "one")
    made = [
        helper.make_node("Constant", [], ["one"], name="/Constant", value=one),
        helper.make_node("Add", ["input", "one"], ["t0"], name="/Add"),
    ]
    for i, (op, scope) in enumerate(nodes):
        domain, _, kind = op.rpartition(".")
        last = i == len(nodes) - 1
        inputs, out = [f"t{i}", *(["square"] if kind == "Gemm" else [])], f"t{i + 1}"
        made.append(
            helper.make_node(
                kind, inputs, ["logits" if last else out], name=f"{scope}/{kind}", domain=domain
            )
        )
    square = [numpy_helper.from_array(np.eye(4, dtype=np.float32), "square")]
    ends = [helper.make_tensor_value_info(n, 1, [4, 4]) for n in ("input", "logits")]
    used = square if any(op == "Gemm" for op, _ in nodes) else []
    graph = helper.make_graph(made, "chain", ends[:1], ends[1:], used)
    imports = [helper.make_opsetid("", opset)]
    if any("." in op for op, _ in nodes):
        imports.append(helper.make_opsetid(_FOREIGN, 1))
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def _count(nodes: list[tuple[str, str]], function: Callable, part: str = "features.1") -> int:
    with tempfile.TemporaryDirectory(prefix="labutils-") as folder:
        path = write_chain(Path(folder, "model.onnx"), nodes)
        return whole(call(function, path, part), "a whole number")


def judge_count(count_refused: Any) -> None:
    """Judge a count on small files, each of which differs from the others in one respect."""
    _refuse_constant(count_refused)
    for nodes, part, true, sentence in _CASES:
        found = _count(nodes, count_refused, part)
        if found != true:
            raise NotYet(sentence.get(found, sentence[None]).format(found=found))


def _refuse_constant(count_refused: Callable) -> None:
    """Say what may be wrong where a file with a refused node and one without count the same."""
    one, none = (_count([_RELU, last], count_refused) for last in (_SWISH, _RELU))
    if one != none:
        return
    words = f"your function gives {one} for a file with a HardSwish, and for one without: "
    if _count([_SWISH, _RELU], count_refused, "features.1.2") == 1:
        raise NotYet(words + "a part holds what lies deeper in it, too.")
    if one:
        raise NotYet(words + "how many of its nodes does the check refuse?")
    raise NotYet(words + "print what you compare the part with; it may be written in another way.")


_RELU, _SWISH, _HARDSIGMOID = ("Relu", _STEM), ("HardSwish", _STEM), ("HardSigmoid", _STEM)
_ANY_DEPTH = (
    "asked for {part}, which holds {true} refused, you count {{found}}: a part may lie at any "
    "depth, and its name is a module's, with dots."
)
_CASES: tuple[tuple[list[tuple[str, str]], str, int, dict[int | None, str]], ...] = (
    # nodes, part, how many of them are refused there, what is said of another count
    (
        [_RELU, _RELU], "features.1", 0,
        {None: "in a file where the table takes every node, you count {found}."},
    ),
    (
        [_HARDSIGMOID, _RELU], "features.1", 1,
        {None: "in a part with one refused node you count {found}.",
         0: "a part whose HardSigmoid the tool refuses counts as clean with you."},
    ),
    (
        [_SWISH, _SWISH, _HARDSIGMOID], "features.1", 3,
        {None: "in a part with three refused nodes you count {found}.",
         1: "you stop at the first refused node: the tool does too, but count them all.",
         2: "you count kinds of operators; two nodes of one kind are two repairs."},
    ),
    (
        [_RELU, ("Softplus", _STEM)], "features.1", 0,
        {None: "you count a node that the table does not list; unknown is not refused."},
    ),
    (
        [_RELU, _SWISH], "features.1", 1,
        {None: "in a part with one refused node you count {found}."},
    ),
    (
        [_RELU, (f"{_FOREIGN}.HardSwish", _STEM)], "features.1", 0,
        {None: "you count a HardSwish from a domain other than ONNX's own, which the table does "
               "not list. The name alone does not decide; the verdict of the check does."},
    ),
    (
        [_RELU, ("Gemm", _STEM)], "features.1", 1,
        {None: "a part with a Gemm counts as clean with you. This one is refused for how it is "
               "set, and not for its kind: the check's verdict says so."},
    ),
    (
        [("HardSwish", "/classifier/classifier.1"), _RELU], "features.1", 0,
        {None: "you count refused nodes that lie outside of the part as well."},
    ),
    (
        [("HardSwish", _GATE), _RELU], "features.1", 0,
        {None: "you count nodes of features.12 as part of features.1: the names begin alike, and "
               "the modules are two."},
    ),
    (
        [("HardSwish", _OTHER), _RELU], "features.1", 0,
        {None: "you count nodes of aux.features.1 as part of features.1: another module, whose "
               "name ends in the same way. A part's name is written from the top."},
    ),
    (
        [("HardSwish", _DEEP), _RELU], "features.1", 1,
        {None: "a node in features.1.block.0 lies inside features.1, only deeper."},
    ),
    (
        [_SWISH, _RELU], "features.1.2", 1,
        {None: "asked for features.1.2, the refused layer itself, you do not count 1: a part "
               "holds the node it is named after, too."},
    ),
    (
        [("HardSwish", _DEEP), ("HardSwish", _GATE)], "features.1.block", 1,
        {None: _ANY_DEPTH.format(part="features.1.block", true=1)},
    ),
    (
        [("HardSwish", _DEEP), ("HardSwish", _GATE)], "features", 2,
        {None: _ANY_DEPTH.format(part="features", true=2)},
    ),
)  # fmt: skip
