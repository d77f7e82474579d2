"""Exercises of notebook 02: reading what a converter says."""

from __future__ import annotations

from typing import Any

from ..answer import NotYet, call, whole
from ..exercise import Exercise, Wrong
from .logs import first_log, judge_culprit, judge_line
from .parts import judge_count

_ARRIVALS = (  # the first is the one of the story
    "HardSwish", "HardSigmoid", "Celu", "Mish", "Relu", "Clip", "Resize", "Einsum", "GridSample",
    "LayerNormalization", "Gelu", "BitShift", "Where", "SequenceMap",
)  # fmt: skip


def _judge_arrived(answer: Any) -> None:
    import onnx

    found, true = {}, {}
    for name in _ARRIVALS:
        found[name] = whole(call(answer, name), "an opset, a whole number,")
        true[name] = next(v for v in range(1, 100) if onnx.defs.has(name, v))
    if found == true:
        return
    if len(set(found.values())) == 1:
        raise NotYet(
            f"your function gives {found['HardSwish']} for every operator; they arrived at "
            "different times. Look each one up."
        )
    if all(found[name] == true[name] - 1 for name in _ARRIVALS):
        raise NotYet("one too early: that is the last edition without the operator.")
    latest = {name: onnx.defs.get_schema(name).since_version for name in _ARRIVALS}
    if found == latest:
        raise NotYet(
            "that is the edition that changed the operator's definition last; it arrived before."
        )
    if all(onnx.defs.has(name, found[name]) for name in _ARRIVALS if 0 < found[name] < 100):
        raise NotYet("these editions have the operators, but older ones had some of them already.")
    wrong = next(name for name in _ARRIVALS if found[name] != true[name])
    raise NotYet(f"{wrong} is not yet in the edition that you give for it, {found[wrong]}.")


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
        "Upwards from the end: which lines are the converter's, and which of whatever called it?",
        "Two of the converter's lines give the reason. Only one of them also says where.",
        "The word ERROR is in more than one line; take the one that begins with date and time.",
    ),
    right=(
        "error_line = next(s for s in given('02.1') if 'Node' in s and 'registered' in s)",
        "log = given('02.1')\nerror_line = log.index([s for s in log if ' - ERROR - ' in s][0])",
        "error_line = max(i for i, line in enumerate(given('02.1')) if 'Node /' in line)",
    ),
    wrong=(
        Wrong(
            "error_line = next(i for i, s in enumerate(given('02.1')) if s.startswith('KeyError'))",
            "that line has the cause, and the operator, but in a network with twenty such nodes "
            "you would not know which one to look at. Another line says more.",
        ),
        Wrong(
            "error_line = next(i for i, s in enumerate(given('02.1')) if 'failed' in s)",
            "it says 'failed', but what failed is a clean-up of the graph, and the tool went on "
            "without it. Look further down.",
        ),
        Wrong(
            "error_line = next(i for i, s in enumerate(given('02.1')) if 'WARNING_OP' in s)",
            "that line is a warning: the tool went on after it. Look further down.",
        ),
        Wrong(
            "error_line = next(i for i, s in enumerate(given('02.1')) if 'Traceback' in s)",
            "that line belongs to the traceback: it shows where in the converter's own code it "
            "happened, not where in your model.",
        ),
        Wrong(
            "error_line = len(given('02.1')) - 1",
            "that line comes from whatever called the converter. It passes on that something "
            "failed, and does not know what.",
        ),
        Wrong(
            "error_line = 0",
            "a line that begins with # is the replica's own; the real tool has no such.",
        ),
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
    right=(
        _HISTORY + "    known = onnx.defs.get_all_schemas_with_history()\n"
        "    return min(s.since_version for s in known if s.name == operator and not s.domain)",
        _HISTORY + "    opset = 1\n"
        "    while not onnx.defs.has(operator, opset):\n"
        "        opset += 1\n"
        "    return opset",
    ),
    wrong=(
        Wrong(
            "def arrived(operator):\n    return 17",
            "your function gives 17 for every operator; they arrived at different times. Look each "
            "one up.",
        ),
        Wrong(
            _HISTORY + "    return max([0, *(v for v in range(1, 24) "
            "if not onnx.defs.has(operator, v))])",
            "one too early: that is the last edition without the operator.",
        ),
        Wrong(
            _HISTORY + "    return onnx.defs.get_schema(operator).since_version",
            "that is the edition that changed the operator's definition last; it arrived before.",
        ),
        Wrong(
            _HISTORY + "    return onnx.defs.has(operator, 17)",
            "an opset, a whole number, is asked for, and this is True.",
        ),
    ),
    judge=_judge_arrived,
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
        "A part holds a node of its own name, and nodes whose names go on with a dot.",
        "module == part, or module.startswith(part + '.'): count the refused nodes where it holds.",
    ),
    right=(
        _CHECK + "    nodes = targets.check(onnx_path, 'snpe-2.7').nodes\n"
        "    inside = [n for n in nodes if n.module == part or n.module.startswith(part + '.')]\n"
        "    return len([n for n in inside if n.verdict == 'unsupported'])",
        _BLOCKERS + "    parts = part.split('.')\n"
        "    return sum(node.module.split('.')[: len(parts)] == parts for node in found)",
    ),
    wrong=(
        Wrong(
            _BLOCKERS + "    return sum(node.module.startswith(part + '.') for node in found)",
            "asked for features.1.2, the refused layer itself, you do not count 1: a part holds "
            "the node of its own name, too.",
        ),
        Wrong(
            _BLOCKERS + "    return len(found)",
            "you count refused nodes that lie outside of the part as well.",
        ),
        Wrong(
            _BLOCKERS + "    return sum(node.module.startswith(part) for node in found)",
            "you count nodes of features.12 as part of features.1: the names begin alike, and the "
            "modules are two.",
        ),
        Wrong(
            _BLOCKERS + "    return sum('.'.join(node.module.split('.')[:2]) == part\n"
            "               and node.module.count('.') < 3 for node in found)",
            "a node in features.1.block.0 lies inside features.1, only deeper.",
        ),
        Wrong(
            _BLOCKERS
            + f"    return sum({_INSIDE} for node in found if node.op_type == 'HardSwish')",
            "a part whose HardSigmoid the tool refuses counts as clean with you.",
        ),
        Wrong(
            _BLOCKERS + f"    return len({{node.op_type for node in found if {_INSIDE}}})",
            "you count kinds of operators; two nodes of one kind are two repairs.",
        ),
        Wrong(
            _CHECK + "    nodes = targets.check(onnx_path, 'snpe-2.7').nodes\n"
            f"    return sum(node.verdict in ('unsupported', 'unknown') and {_INSIDE} "
            "for node in nodes)",
            "you count a node of which the table says nothing; unknown is not refused.",
        ),
        Wrong(
            _BLOCKERS + f"    return int(any({_INSIDE} for node in found))",
            "you stop at the first refused node: the tool does too, but count them all.",
        ),
    ),
    judge=judge_count,
    praise="now you know how much there is to repair, and where, before the tool stops once.",
)

_LINES = "def culprit(log):\n    lines = [line for line in log if line.startswith('KeyError')]\n"
_LAST = "def culprit(log):\n    words = log[-1].split()\n"
_ERRORS = "def culprit(log):\n    errors = [line for line in log if ' ERROR ' in line]\n"
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
        "    lines = [line.split() for line in log if ' onnx_' in line and ' Node ' in line]\n"
        "    for line in lines:\n"
        "        return [line[line.index('Node') + 1].rstrip(':'), line[-1].strip(\"'.\")[5:]]",
    ),
    wrong=(
        Wrong(
            _LINES + "    return lines[0].split(':')[0], lines[0].split('onnx_')[1][:-2]",
            "'KeyError' is no node of the model; nodes are named like paths.",
        ),
        Wrong(
            _LAST
            + "    return words[words.index('Node') + 1].rstrip(':'), words[-1].strip(\"'.\")",
            "the prefix of the converter's own names is still on the operator.",
        ),
        Wrong(
            _LAST + "    node = words[words.index('Node') + 1].rstrip(':')\n"
            '    return node, words[-1].strip("\'.")[5:]',
            "on a log that goes on below the refusal, your function raised ValueError: 'Node' is "
            "not in list",
        ),
        Wrong(
            _ERRORS + "    words = errors[0].split()\n"
            "    return words[words.index('Node') + 1].rstrip(':'), words[-1].strip(\"'.\")[5:]",
            "on a log with another ERROR above the refusal, your function raised ValueError: "
            "'Node' is not in list",
        ),
        Wrong(
            "def culprit(log):\n"
            "    errors = [line.split() for line in log if ' ERROR - Node ' in line]\n"
            "    if errors:\n"
            "        node = errors[0][errors[0].index('Node') + 1].rstrip(':')\n"
            "        return node, node.rsplit('/', 1)[1]",
            "on a log whose node has a name of its own, your operator is taken from the node's "
            "name, which may be anything.",
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
    judge=judge_culprit,
    praise="it works on logs that you have not seen, and on one without an error.",
)

EXERCISES = (LINE, ARRIVED, COUNT, CULPRIT)
