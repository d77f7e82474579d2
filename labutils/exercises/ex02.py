"""Exercises of notebook 02: reading what a converter says."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ..errors import TranslationError
from ..exercise import Exercise, NotYet, Wrong, call, shown, whole, words

FEATURES = "/features/features.0/features.0"


def write_chain(path: Path, nodes: Sequence[tuple[str, str]], opset: int = 17) -> Path:
    """Write a small ONNX file: a Constant added to the input, then a chain of unary `nodes`.

    Parameters
    ----------
    path
        Where to.
    nodes
        (operator, the scope in its name) one after the other.
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
        last = i == len(nodes) - 1
        out = "logits" if last else f"t{i + 1}"
        made.append(helper.make_node(op, [f"t{i}"], [out], name=f"{scope}/{op}"))
    ends = [helper.make_tensor_value_info(n, 1, [1, 4, 4, 4]) for n in ("input", "logits")]
    graph = helper.make_graph(made, "chain", ends[:1], ends[1:])
    imports = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def transcript(nodes: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Run the converter (the replica, or the real tool when it is on PATH) on such a chain."""
    from ..targets import snpe

    lines: list[str] = []
    with tempfile.TemporaryDirectory(prefix="labutils-") as folder:
        path = write_chain(Path(folder, "model.onnx"), nodes)
        try:
            clock = lambda: datetime(2023, 4, 16, 19, 1, 3, 227_000)  # noqa: E731
            snpe.translate(path, path.with_suffix(".dlc"), clock=clock, echo=lines.append)
        except TranslationError:
            pass  # the log is what is wanted
    return tuple(lines)


@functools.cache
def first_log() -> tuple[str, ...]:
    """Return the log that exercise 02.1 hands out."""
    return transcript([("Relu", f"{FEATURES}.1"), ("HardSwish", f"{FEATURES}.2")])


def _judge_line(answer: Any) -> None:
    log = first_log()
    if isinstance(answer, str):
        found = [i for i, line in enumerate(log) if line.strip() == answer.strip()]
        if not found:
            raise NotYet("no line of the log reads like that; give its number, or the whole line.")
        index = found[0]
    else:
        index = whole(answer, "the number of a line, or the line itself,")
    if not 0 <= index < len(log):
        raise NotYet(f"the log has no line {index}; they are counted from 0.")
    line = log[index]
    if line.startswith("#"):
        raise NotYet("a line that begins with # is the replica's own; the real tool has no such.")
    if "WARNING" in line:
        raise NotYet("that line is a warning: the tool went on after it. Look further down.")
    if line.startswith("KeyError"):
        raise NotYet(
            "that line has the cause, and the operator, but in a network with twenty such nodes "
            "you would not know which one to look at. Another line says more."
        )
    if "ERROR - Node" not in line:
        raise NotYet(
            "that line belongs to the traceback: it shows where in the converter's own code it "
            "happened, not where in your model."
        )


def _judge_opset(answer: Any) -> None:
    import onnx

    opset = whole(answer, "an opset number")
    arrived = next(v for v in range(1, 100) if onnx.defs.has("HardSwish", v))
    if opset == arrived:
        raise NotYet("at this opset ONNX has HardSwish, so the exporter writes that node.")
    if opset > arrived:
        raise NotYet(
            "a newer opset than that in which HardSwish arrived still has HardSwish: the log would "
            "stop there, and not at HardSigmoid."
        )
    if opset < 1:
        raise NotYet("opsets are counted from 1.")
    if opset < arrived - 1:
        raise NotYet("this opset does give HardSigmoid first, but a newer one does too.")


def _count(nodes: list[tuple[str, str]], function: Callable) -> int:
    with tempfile.TemporaryDirectory(prefix="labutils-") as folder:
        path = write_chain(Path(folder, "model.onnx"), nodes)
        return whole(call(function, path), "your function must return a whole number; that")


def _judge_count(answer: Any) -> None:
    one = _count([("Relu", "/a"), ("HardSwish", "/b")], answer)
    none = _count([("Relu", "/a"), ("Relu", "/b")], answer)
    if none == one:
        raise NotYet(f"your function gives {one} for a file with a HardSwish, and for one without.")
    if none != 0:
        raise NotYet(f"in a file where the table takes every node, you count {none}.")
    gate = _count([("HardSigmoid", "/a"), ("Relu", "/b")], answer)
    if gate == 0:
        raise NotYet("a file whose HardSigmoid the tool refuses counts as clean with you.")
    twice = _count([("HardSwish", "/a"), ("HardSwish", "/b"), ("HardSigmoid", "/c")], answer)
    if twice == 1:
        raise NotYet("you stop at the first refused node: the tool does too, but count them all.")
    if twice == 2:
        raise NotYet("you count kinds of operators; two nodes of one kind are two repairs.")
    unknown = _count([("Relu", "/a"), ("Softplus", "/b")], answer)
    if unknown:
        raise NotYet("you count a node of which the table says nothing; unknown is not refused.")
    if (one, gate, twice) != (1, 1, 3):
        raise NotYet(f"in a file with one refused node you count {one}.")


def _judge_culprit(answer: Any) -> None:
    for op, scope in (("HardSwish", f"{FEATURES}.2"), ("HardSigmoid", "/features/features.4/se")):
        found = call(answer, list(transcript([("Relu", f"{FEATURES}.1"), (op, scope)])))
        if found is None:
            raise NotYet("your function finds nothing in the log of a conversion that failed.")
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise NotYet(f"a pair (node, operator) is asked for, and this is {shown(found)}.")
        node, operator = (words(part, "text in both places") for part in found)
        _judge_pair(node, operator, f"{scope}/{op}", op)
    clean = call(answer, list(transcript([("Relu", f"{FEATURES}.1")])))
    if clean is not None:
        raise NotYet(f"on the log of a conversion that succeeded you return {shown(clean)}.")


def _judge_pair(node: str, operator: str, true_node: str, true_operator: str) -> None:
    if not node.startswith("/"):
        raise NotYet(f"{shown(node)} is no node of the model; nodes are named like paths.")
    if node != true_node:
        raise NotYet(f"the node {shown(node)} is not the one that the log refuses.")
    if "onnx_" in operator.lower():
        raise NotYet("the prefix of the converter's own names is still on the operator.")
    if operator.lower() != true_operator.lower():
        raise NotYet(f"{shown(operator)} is not the operator that the log names.")


LINE = Exercise(
    id="02.1",
    title="Which line of this log is the error?",
    verb="find the line of a converter's log that names the node",
    minutes=3,
    difficulty="easy",
    answer="error_line",
    stub="log = given('02.1')\nerror_line = TODO  # its number, counted from 0",
    reference=(
        "log = given('02.1')\n"
        "error_line = next(i for i, line in enumerate(log) if ' - ERROR - ' in line)"
    ),
    hints=(
        "Read a log from its end. What is the last thing that it says?",
        "Two lines give the reason. Only one of them also says where in your model.",
        "Its level is written between two dashes, after the time stamp.",
    ),
    right=(
        "error_line = given('02.1')[-1]",
        "log = given('02.1')\nerror_line = len(log) - 1",
        "error_line = max(i for i, line in enumerate(given('02.1')) if 'Node /' in line)",
    ),
    wrong=(
        Wrong(
            "error_line = next(i for i, s in enumerate(given('02.1')) if s.startswith('KeyError'))",
            "that line has the cause, and the operator, but in a network with twenty such nodes "
            "you would not know which one to look at. Another line says more.",
        ),
        Wrong(
            "error_line = next(i for i, s in enumerate(given('02.1')) if 'WARNING' in s)",
            "that line is a warning: the tool went on after it. Look further down.",
        ),
        Wrong(
            "error_line = next(i for i, s in enumerate(given('02.1')) if 'Traceback' in s)",
            "that line belongs to the traceback: it shows where in the converter's own code it "
            "happened, not where in your model.",
        ),
        Wrong(
            "error_line = 0",
            "a line that begins with # is the replica's own; the real tool has no such.",
        ),
    ),
    judge=_judge_line,
    praise="time, code line, level, node, reason: everything needed to find the layer.",
    given=first_log,
)

OPSET = Exercise(
    id="02.2",
    title="The newest opset at which MobileNetV3 stops at HardSigmoid first",
    verb="tell from an error which opset a file was exported at",
    minutes=5,
    difficulty="easy",
    answer="opset",
    stub="opset = TODO  # a number",
    reference=(
        "import onnx\n\nopset = max(v for v in range(1, 18) if not onnx.defs.has('HardSwish', v))"
    ),
    hints=(
        "The layer is the same in both screenshots. What can an exporter write for it?",
        "Before ONNX had HardSwish, the exporter wrote it as x * HardSigmoid(x).",
        "onnx.defs.has('HardSwish', v) says whether opset v has the operator.",
    ),
    right=(
        "opset = 13",
        "import numpy as np\nopset = np.int64(13)",
        "import onnx\nopset = onnx.defs.get_schema('HardSwish', 17).since_version - 1",
    ),
    wrong=(
        Wrong(
            "opset = 14",
            "at this opset ONNX has HardSwish, so the exporter writes that node.",
        ),
        Wrong(
            "opset = 17",
            "a newer opset than that in which HardSwish arrived still has HardSwish: the log would "
            "stop there, and not at HardSigmoid.",
        ),
        Wrong("opset = 11", "this opset does give HardSigmoid first, but a newer one does too."),
        Wrong("opset = 0", "opsets are counted from 1."),
    ),
    judge=_judge_opset,
    praise="so the vendor's two screenshots cannot come from one export.",
)

COUNT = Exercise(
    id="02.3",
    title="Count the nodes that SNPE 2.7 refuses in a file",
    verb="count what a target refuses in a model, before converting it",
    minutes=8,
    difficulty="medium",
    answer="count_refused",
    stub="def count_refused(onnx_path):\n    return TODO",
    reference=(
        "from labutils import targets\n\n\n"
        "def count_refused(onnx_path):\n"
        "    return len(targets.check(onnx_path, 'snpe-2.7').blockers)"
    ),
    hints=(
        "targets.check(path, 'snpe-2.7') judges every node of a file by the operator table.",
        "Its report has a verdict per node; four verdicts exist, and one of them is a refusal.",
        "Look at the report's nodes, counts and blockers.",
    ),
    right=(
        "from labutils import targets\n\n"
        "def count_refused(onnx_path):\n"
        "    return targets.check(onnx_path, 'snpe-2.7').counts['unsupported']",
        "from labutils import targets\n\n"
        "def count_refused(onnx_path):\n"
        "    nodes = targets.check(onnx_path, 'snpe-2.7').nodes\n"
        "    return sum(node.verdict == 'unsupported' for node in nodes)",
    ),
    wrong=(
        Wrong(
            "import onnx\n\n"
            "def count_refused(onnx_path):\n"
            "    nodes = onnx.load(onnx_path).graph.node\n"
            "    return sum(node.op_type == 'HardSwish' for node in nodes)",
            "a file whose HardSigmoid the tool refuses counts as clean with you.",
        ),
        Wrong(
            "from labutils import targets\n\n"
            "def count_refused(onnx_path):\n"
            "    report = targets.check(onnx_path, 'snpe-2.7')\n"
            "    return len({node.op_type for node in report.blockers})",
            "you count kinds of operators; two nodes of one kind are two repairs.",
        ),
        Wrong(
            "from labutils import targets\n\n"
            "def count_refused(onnx_path):\n"
            "    report = targets.check(onnx_path, 'snpe-2.7')\n"
            "    return sum(node.verdict != 'supported' for node in report.nodes)",
            "in a file where the table takes every node, you count 1.",
        ),
        Wrong(
            "from labutils import targets\n\n"
            "def count_refused(onnx_path):\n"
            "    counts = targets.check(onnx_path, 'snpe-2.7').counts\n"
            "    return counts['unsupported'] + counts['unknown']",
            "you count a node of which the table says nothing; unknown is not refused.",
        ),
        Wrong(
            "from labutils import targets\n\n"
            "def count_refused(onnx_path):\n"
            "    return int(targets.check(onnx_path, 'snpe-2.7').first_blocker is not None)",
            "you stop at the first refused node: the tool does too, but count them all.",
        ),
    ),
    judge=_judge_count,
    praise="now you know the size of the repair before the tool stops at its first node.",
)

_LINES = "def culprit(log):\n    lines = [line for line in log if line.startswith('KeyError')]\n"
CULPRIT = Exercise(
    id="02.4",
    title="Get the refused node and its operator out of any log",
    verb="read a converter's log by program",
    minutes=12,
    difficulty="stretch",
    answer="culprit",
    stub="def culprit(log):\n    return TODO  # (node, operator), or None when nothing was refused",
    reference=(
        "def culprit(log):\n"
        "    for line in log:\n"
        "        if ' - ERROR - Node ' in line:\n"
        "            node = line.split(' - ERROR - Node ')[1].split(': ')[0]\n"
        "            return node, line.split('onnx_')[1].strip(\" .'\")\n"
        "    return None"
    ),
    hints=(
        "First write it for the log of 02.1, then think of a log without an error.",
        "The node's name stands between the level and a colon; the operator is the last word.",
        "str.split or re.search will do; mind the prefix and the full stop around the operator.",
    ),
    right=(
        "import re\n\n"
        "def culprit(log):\n"
        "    found = re.search(r'ERROR - Node (\\S+): .* onnx_(\\w+)', '\\n'.join(log))\n"
        "    return found.groups() if found else None",
        "def culprit(log):\n"
        "    errors = [line.split() for line in log if ' ERROR ' in line]\n"
        "    if errors:\n"
        "        node = errors[0][errors[0].index('Node') + 1].rstrip(':')\n"
        "        return [node, node.rsplit('/', 1)[1]]",
    ),
    wrong=(
        Wrong(
            _LINES + "    return lines[0].split(':')[0], lines[0].split('onnx_')[1][:-2]",
            "'KeyError' is no node of the model; nodes are named like paths.",
        ),
        Wrong(
            "def culprit(log):\n"
            "    words = log[-1].split()\n"
            "    return words[words.index('Node') + 1].rstrip(':'), words[-1].strip(\"'.\")",
            "the prefix of the converter's own names is still on the operator.",
        ),
        Wrong(
            "def culprit(log):\n"
            "    words = log[-1].split()\n"
            "    node = words[words.index('Node') + 1].rstrip(':')\n"
            "    return node, node.split('/')[-1]",
            "your function raised ValueError: 'Node' is not in list",
        ),
        Wrong(
            "def culprit(log):\n    return '/features/Relu', 'Relu'",
            "the node '/features/Relu' is not the one that the log refuses.",
        ),
        Wrong(
            "def culprit(log):\n    return log[-1]",
            'a pair (node, operator) is asked for, and this is "2023-04-16 1...x_hardswish.\'".',
        ),
    ),
    judge=_judge_culprit,
    praise="it works on logs that you have not seen, and on one without an error.",
)

EXERCISES = (LINE, OPSET, COUNT, CULPRIT)
