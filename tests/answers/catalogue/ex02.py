"""Catalogued answers to the exercises of notebook 02."""

import re

import onnx

from answers.catalogue import right, right_value, wrong, wrong_value
from labutils import targets
from labutils.lab.lesson import given

# --- 02.1 ----------------------------------------------------------------------------------------


@right_value("02.1")
def _():
    return next(s for s in given("02.1") if "Node" in s and "registered" in s)


@right_value("02.1")
def _():
    log = given("02.1")
    return log.index([s for s in log if " - ERROR - " in s][0])


@right_value("02.1")
def _():
    return max(i for i, line in enumerate(given("02.1")) if "Node /" in line)


@wrong_value(
    "02.1",
    "that line has the cause, and the operator, but in a network with twenty such nodes you "
    "would not know which one to look at. Another line says more.",
)
def _():
    return next(i for i, s in enumerate(given("02.1")) if s.startswith("KeyError"))


@wrong_value(
    "02.1",
    "it says 'failed', but what failed is a clean-up of the graph, and the tool went on without"
    " it. Look further down.",
)
def _():
    return next(i for i, s in enumerate(given("02.1")) if "failed" in s)


@wrong_value(
    "02.1",
    "that line is a warning: the tool went on after it. Look further down.",
)
def _():
    return next(i for i, s in enumerate(given("02.1")) if "WARNING_OP" in s)


@wrong_value(
    "02.1",
    "that line belongs to the traceback: it shows where in the converter's own code it "
    "happened, not where in your model.",
)
def _():
    return next(i for i, s in enumerate(given("02.1")) if "Traceback" in s)


@wrong_value(
    "02.1",
    "that line comes from whatever called the converter. It passes on that something failed, "
    "and does not know what.",
)
def _():
    return len(given("02.1")) - 1


@wrong_value(
    "02.1",
    "a line that begins with # is the replica's own; the real tool does not print such lines.",
)
def _():
    return 0


# --- 02.2 ----------------------------------------------------------------------------------------


@right("02.2")
def arrived(operator):
    known = onnx.defs.get_all_schemas_with_history()
    return min(s.since_version for s in known if s.name == operator and not s.domain)


@right("02.2")
def arrived(operator):
    opset = 1
    while not onnx.defs.has(operator, opset):
        opset += 1
    return opset


@wrong(
    "02.2",
    "your function gives 17 for every operator; they arrived at different times. Look each one up.",
)
def arrived(operator):
    return 17


@wrong(
    "02.2",
    "one too early: that is the last edition without the operator.",
)
def arrived(operator):
    return max([0, *(v for v in range(1, 24) if not onnx.defs.has(operator, v))])


@wrong(
    "02.2",
    "that is the edition that changed the operator's definition last; it arrived before.",
)
def arrived(operator):
    return onnx.defs.get_schema(operator).since_version


@wrong(
    "02.2",
    "an opset, a whole number, is expected, but this is True.",
)
def arrived(operator):
    return onnx.defs.has(operator, 17)


# --- 02.3 ----------------------------------------------------------------------------------------


@right("02.3")
def count_refused(onnx_path, part):
    nodes = targets.check(onnx_path, "snpe-2.7").nodes
    inside = [n for n in nodes if n.module == part or n.module.startswith(part + ".")]
    return len([n for n in inside if n.verdict == "unsupported"])


@right("02.3")
def count_refused(onnx_path, part):
    found = targets.check(onnx_path, "snpe-2.7").blockers
    parts = part.split(".")
    return sum(node.module.split(".")[: len(parts)] == parts for node in found)


@wrong(
    "02.3",
    "asked for features.1.2, the refused layer itself, you do not count 1: a part holds the "
    "node it is named after, too.",
)
def count_refused(onnx_path, part):
    found = targets.check(onnx_path, "snpe-2.7").blockers
    return sum(node.module.startswith(part + ".") for node in found)


@wrong(
    "02.3",
    "you count refused nodes that lie outside of the part as well.",
)
def count_refused(onnx_path, part):
    found = targets.check(onnx_path, "snpe-2.7").blockers
    return len(found)


@wrong(
    "02.3",
    "you count nodes of features.12 as part of features.1: the names begin alike, and the "
    "modules are two.",
)
def count_refused(onnx_path, part):
    found = targets.check(onnx_path, "snpe-2.7").blockers
    return sum(node.module.startswith(part) for node in found)


@wrong(
    "02.3",
    "a node in features.1.block.0 lies inside features.1, only deeper.",
)
def count_refused(onnx_path, part):
    found = targets.check(onnx_path, "snpe-2.7").blockers
    return sum(
        ".".join(node.module.split(".")[:2]) == part and node.module.count(".") < 3
        for node in found
    )


@wrong(
    "02.3",
    "a part whose HardSigmoid the tool refuses counts as clean with you.",
)
def count_refused(onnx_path, part):
    found = targets.check(onnx_path, "snpe-2.7").blockers
    return sum(
        f"{node.module}.".startswith(f"{part}.") for node in found if node.op_type == "HardSwish"
    )


@wrong(
    "02.3",
    "you count kinds of operators; two nodes of one kind are two repairs.",
)
def count_refused(onnx_path, part):
    found = targets.check(onnx_path, "snpe-2.7").blockers
    return len({node.op_type for node in found if f"{node.module}.".startswith(f"{part}.")})


@wrong(
    "02.3",
    "you count a node that the table does not list; unknown is not refused.",
)
def count_refused(onnx_path, part):
    nodes = targets.check(onnx_path, "snpe-2.7").nodes
    return sum(
        node.verdict in ("unsupported", "unknown") and f"{node.module}.".startswith(f"{part}.")
        for node in nodes
    )


@wrong(
    "02.3",
    "you stop at the first refused node: the tool does too, but count them all.",
)
def count_refused(onnx_path, part):
    found = targets.check(onnx_path, "snpe-2.7").blockers
    return int(any(f"{node.module}.".startswith(f"{part}.") for node in found))


# --- 02.4 ----------------------------------------------------------------------------------------


@right("02.4")
def culprit(log):
    found = re.search(r"ERROR - Node (\S+): .* onnx_(\w+)", "\n".join(log))
    return found.groups() if found else None


@right("02.4")
def culprit(log):
    lines = [line.split() for line in log if " onnx_" in line and " Node " in line]
    for line in lines:
        return [line[line.index("Node") + 1].rstrip(":"), line[-1].strip("'.")[5:]]


@wrong(
    "02.4",
    "'KeyError' is not a node of the model; nodes are named like paths.",
)
def culprit(log):
    lines = [line for line in log if line.startswith("KeyError")]
    return lines[0].split(":")[0], lines[0].split("onnx_")[1][:-2]


@wrong(
    "02.4",
    "the prefix of the converter's own names is still on the operator.",
)
def culprit(log):
    words = log[-1].split()
    return words[words.index("Node") + 1].rstrip(":"), words[-1].strip("'.")


@wrong(
    "02.4",
    "on a log that continues below the refusal, your function raised ValueError: 'Node' is not in"
    " list",
)
def culprit(log):
    words = log[-1].split()
    node = words[words.index("Node") + 1].rstrip(":")
    return node, words[-1].strip("'.")[5:]


@wrong(
    "02.4",
    "on a log with another ERROR above the refusal, your function raised ValueError: 'Node' is "
    "not in list",
)
def culprit(log):
    errors = [line for line in log if " ERROR " in line]
    words = errors[0].split()
    return words[words.index("Node") + 1].rstrip(":"), words[-1].strip("'.")[5:]


@wrong(
    "02.4",
    "on a log whose node has an unusual name, your operator is taken from the node's name, "
    "which may be anything.",
)
def culprit(log):
    errors = [line.split() for line in log if " ERROR - Node " in line]
    if errors:
        node = errors[0][errors[0].index("Node") + 1].rstrip(":")
        return node, node.rsplit("/", 1)[1]


@wrong(
    "02.4",
    "the node '/features/Relu' is not the one that the log refuses.",
)
def culprit(log):
    return "/features/Relu", "Relu"


@wrong(
    "02.4",
    'a pair (node, operator) is expected, but this is "2023-04-16 1...x_hardswish.\'".',
)
def culprit(log):
    return log[-1]
