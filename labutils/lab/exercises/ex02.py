"""Exercises of notebook 02: reading what a converter says."""

from __future__ import annotations

from typing import Any

from ..answer import NotYet, call, whole
from ..exercise import Exercise
from .logs import first_log, judge_culprit, judge_line
from .parts import judge_count

_ARRIVALS = (  # the first is the one of the story
    "HardSwish", "HardSigmoid", "Celu", "Mish", "Relu", "Clip", "Resize", "Einsum", "GridSample",
    "LayerNormalization", "Gelu", "BitShift", "Where", "SequenceMap",
)  # fmt: skip


def judge_arrived(arrived: Any) -> None:
    """Judge the first opset that has each operator; the answer is in the onnx package."""
    import onnx

    found, true = {}, {}
    for name in _ARRIVALS:
        found[name] = whole(call(arrived, name), "an opset, a whole number,")
        true[name] = next(v for v in range(1, 100) if onnx.defs.has(name, v))
    if found != true:
        raise NotYet(_explain_arrival(found, true))


def _explain_arrival(found: dict[str, int], true: dict[str, int]) -> str:
    import onnx

    if len(set(found.values())) == 1:
        return (
            f"your function gives {found['HardSwish']} for every operator; they arrived at "
            "different times. Look each one up."
        )
    if all(found[name] == true[name] - 1 for name in _ARRIVALS):
        return "one too early: that is the last edition without the operator."
    if found == {name: onnx.defs.get_schema(name).since_version for name in _ARRIVALS}:
        return "that is the edition that changed the operator's definition last; it arrived before."
    if all(onnx.defs.has(name, found[name]) for name in _ARRIVALS if 0 < found[name] < 100):
        return "these editions have the operators, but older ones had some of them already."
    wrong = next(name for name in _ARRIVALS if found[name] != true[name])
    return f"{wrong} is not yet in the edition that you give for it, {found[wrong]}."


LINE = Exercise(
    id="02.1",
    title="Which line of this log is the error?",
    verb="find the line of a converter's log that names the node",
    minutes=3,
    difficulty="easy",
    answer="error_line",
    stub='log = given("02.1")\nerror_line = TODO  # its number, counted from 0',
    reference=(
        'log = given("02.1")\n'
        "error_line = next(i for i, line in enumerate(log) if ' - ERROR - ' in line)"
    ),
    hints=(
        "Upwards from the end: which lines are the converter's, and which of the script around it?",
        "Two of the converter's lines give the reason. Only one of them also says where.",
        "The word ERROR is in more than one line; take the one that begins with date and time.",
    ),
    judge=judge_line,
    praise="time, code line, level, node, reason: everything needed to find the layer.",
    given=first_log,
)

_HISTORY = "import onnx\n\n\ndef arrived(operator):\n"
ARRIVED = Exercise(
    id="02.2",
    title="In which edition of ONNX did an operator arrive?",
    verb="tell which editions of ONNX know an operator",
    minutes=5,
    difficulty="easy",
    answer="arrived",
    stub="def arrived(operator):\n    return TODO  # the first opset that has it",
    reference=(
        _HISTORY + "    return next(v for v in range(1, 100) if onnx.defs.has(operator, v))"
    ),
    hints=(
        "Ask for one operator and one edition first: print(onnx.defs.has('HardSwish', 17)).",
        "Editions are counted from 1. The first for which the answer is True is the one.",
        "Put import onnx above the function; in it, a for loop over range(1, 100), and an if.",
    ),
    judge=judge_arrived,
    praise="an operator's name and an edition: with both, an error tells where its file came from.",
)

_CHECK = "from labutils import targets\n\n\ndef count_refused(onnx_path, part):\n"
_BLOCKERS = _CHECK + "    found = targets.check(onnx_path, 'snpe-2.7').blockers\n"
_INSIDE = "f'{node.module}.'.startswith(f'{part}.')"
COUNT = Exercise(
    id="02.3",
    title="Count the nodes that SNPE 2.7 refuses in one part of a network",
    verb="count what a target refuses in a model, before converting it",
    minutes=8,
    difficulty="medium",
    answer="count_refused",
    stub="def count_refused(onnx_path, part):\n    return TODO",
    reference=_BLOCKERS + f"    return sum({_INSIDE} for node in found)",
    hints=(
        "Print one of report.blockers: what does it know about its place in the network?",
        "A part holds the node with its own name, and nodes whose names continue with a dot.",
        "module == part, or module.startswith(part + '.'): count the refused nodes where it holds.",
    ),
    judge=judge_count,
    praise="now you know how much there is to repair, and where, before the tool stops once.",
)

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
    judge=judge_culprit,
    praise="it works on logs that you have not seen, and on one without an error.",
)

EXERCISES = (LINE, ARRIVED, COUNT, CULPRIT)
