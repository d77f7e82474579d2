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


def judge_count(answer: Any) -> None:
    """Judge a count on files whose nodes, names and parts differ in one respect each."""
    relu, swish, gate = ("Relu", _STEM), ("HardSwish", _STEM), ("HardSigmoid", _STEM)
    one, none = _count([relu, swish], answer), _count([relu, relu], answer)
    if none == one:
        _refuse_same(one, _count([swish, relu], answer, "features.1.2"))
    if none != 0:
        raise NotYet(f"in a file where the table takes every node, you count {none}.")
    if _count([gate, relu], answer) == 0:
        raise NotYet("a part whose HardSigmoid the tool refuses counts as clean with you.")
    twice = _count([swish, swish, gate], answer)
    if twice == 1:
        raise NotYet("you stop at the first refused node: the tool does too, but count them all.")
    if twice == 2:
        raise NotYet("you count kinds of operators; two nodes of one kind are two repairs.")
    if _count([relu, ("Softplus", _STEM)], answer):
        raise NotYet("you count a node of which the table says nothing; unknown is not refused.")
    if (one, twice) != (1, 3):
        raise NotYet(f"in a part with one refused node you count {one}.")
    _judge_verdicts(answer)
    _judge_places(answer)


def _refuse_same(found: int, exactly: int) -> None:
    words = f"your function gives {found} for a file with a HardSwish, and for one without: "
    if exactly == 1:
        raise NotYet(words + "a part holds what lies deeper in it, too.")
    if found:
        raise NotYet(words + "how many of its nodes does the check refuse?")
    raise NotYet(words + "print what you compare the part with; it may be written in another way.")


def _judge_verdicts(answer: Any) -> None:
    """Refuse who knows refused nodes by the names of two operators."""
    relu = ("Relu", _STEM)
    if _count([relu, (f"{_FOREIGN}.HardSwish", _STEM)], answer):
        raise NotYet(
            "you count a HardSwish of another domain than ONNX's own, of which the table says "
            "nothing. A name alone does not decide; the check's verdict does."
        )
    if not _count([relu, ("Gemm", _STEM)], answer):
        raise NotYet(
            "a part with a Gemm counts as clean with you. This one is refused for how it is set, "
            "and not for its kind: the check's verdict says so."
        )


def _judge_places(answer: Any) -> None:
    relu = ("Relu", _STEM)
    swish = lambda scope: ("HardSwish", scope)  # noqa: E731
    if _count([swish("/classifier/classifier.1"), relu], answer):
        raise NotYet("you count refused nodes that lie outside of the part as well.")
    if _count([swish(_GATE), relu], answer):
        raise NotYet(
            "you count nodes of features.12 as part of features.1: the names begin alike, and the "
            "modules are two."
        )
    if _count([swish(_OTHER), relu], answer):
        raise NotYet(
            "you count nodes of aux.features.1 as part of features.1: another module, whose name "
            "ends in the same way. A part's name is written from the top."
        )
    if _count([swish(_DEEP), relu], answer) != 1:
        raise NotYet("a node in features.1.block.0 lies inside features.1, only deeper.")
    if _count([swish(_STEM), relu], answer, "features.1.2") != 1:
        raise NotYet(
            "asked for features.1.2, the refused layer itself, you do not count 1: a part holds "
            "the node of its own name, too."
        )
    for part, true in (("features.1.block", 1), ("features", 2)):
        found = _count([swish(_DEEP), swish(_GATE)], answer, part)
        if found != true:
            raise NotYet(
                f"asked for {part}, which holds {true} refused, you count {found}: a part may lie "
                "at any depth, and its name is a module's, with dots."
            )
