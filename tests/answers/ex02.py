"""Answers to the exercises of 02: a log's lines, editions of ONNX, refused nodes."""

import bisect
import re

import numpy as np
import onnx
import torch

from answers import right, wrong
from labutils import targets
from labutils.lab import exercises


@right("02.1")
def lines(random):
    log = exercises.find("02.1").given()
    index = next(i for i, line in enumerate(log) if re.search(r"ERROR - Node \S+:", line))
    yield "numpy's integer", np.int64(index)
    yield "a tensor", torch.tensor(index)
    yield "a float that is whole", float(index)
    yield "the line with its end", f"  {log[index]}\n"
    yield "the line out of an array", np.array(log)[index]


@wrong("02.1")
def other_lines(random):
    log = exercises.find("02.1").given()
    index = next(i for i, line in enumerate(log) if re.search(r"ERROR - Node \S+:", line))
    for i, line in enumerate(log):
        if i != index and line != log[index]:
            yield f"line {i}", i, ""
            if log.count(line) == 1:
                yield f"line {i} as text", line, ""
    yield "a line too far", len(log), "no line"
    yield "counted from the end", index - len(log), "counted from 0"
    yield "a part of the line", log[index][:30], "whole line"


@right("02.2")
def editions(random):
    def bisected(operator):
        return 1 + bisect.bisect_left(
            range(1, 30), True, key=lambda v: bool(onnx.defs.has(operator, v))
        )

    def by_schema(operator):
        for version in range(1, 40):
            try:
                return onnx.defs.get_schema(operator, version, "").since_version
            except onnx.defs.SchemaError:
                continue
        return None

    history = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            history.setdefault(schema.name, []).append(schema.since_version)
    yield "by bisection", bisected
    yield "by asking for the definition", by_schema
    yield "by the history", lambda operator: min(history[operator])
    yield (
        "a sum of what has it not",
        lambda name: np.int64(
            1 + sum(not onnx.defs.has(name, v) for v in range(1, onnx.defs.onnx_opset_version()))
        ),
    )


@wrong("02.2")
def wrong_editions(random):
    known = lambda name, start=1, stop=40: [  # noqa: E731
        v for v in range(start, stop) if onnx.defs.has(name, v)
    ]
    start = random.randint(5, 10)
    story = {"HardSwish": 14, "HardSigmoid": 1, "Celu": 12, "Mish": 18}
    yield f"begins to look at {start}", lambda name: known(name, start)[0], "older"
    yield "the newest", lambda name: known(name)[-1], ""
    yield "the last without", lambda name: known(name)[0] - 1, "one too early"
    yield "the second", lambda name: known(name)[1], "older"
    yield "how many there are", lambda name: len(known(name)), ""
    yield "the latest definition", lambda name: onnx.defs.get_schema(name).since_version, "last"
    yield "one number", lambda name: 14, "every operator"
    yield "four by heart", lambda name: story.get(name, 1), "not yet"


def _inside(node, part):
    return node.module == part or node.module.startswith(part + ".")


def _nodes(path):
    return targets.check(path, "snpe-2.7").nodes


@right("02.3")
def refused_nodes(random):
    def by_pattern(path, part):
        pattern = re.compile(re.escape(part) + r"(\.|$)")
        blockers = targets.check(path, "snpe-2.7").blockers
        return len([node for node in blockers if pattern.match(node.module)])

    def by_removal(path, part):
        count = 0
        for node in _nodes(path):
            if node.verdict == "unsupported":
                head, _, rest = node.module.partition(part)
                count += head == "" and (rest == "" or rest[0] == ".")
        return count

    yield "by a regular expression", by_pattern
    yield "by what is left of the name", by_removal
    yield (
        "in numpy",
        lambda path, part: np.sum(
            [_inside(n, part) for n in _nodes(path) if n.verdict == "unsupported"], dtype=int
        ),
    )


@wrong("02.3")
def miscounted_nodes(random):
    def count(test):
        return lambda path, part: sum(bool(test(node, part)) for node in _nodes(path))

    refused = lambda node: node.verdict == "unsupported"  # noqa: E731
    hard = ("HardSwish", "HardSigmoid")
    yield "two operators by name", count(lambda n, p: n.op_type in hard and _inside(n, p)), "domain"
    yield (
        "two operators by name, refused",
        count(lambda n, p: n.op_type in hard and refused(n) and _inside(n, p)),
        "Gemm",
    )
    yield (
        "the node's own name, as a path",
        count(lambda n, p: refused(n) and f"/{p}/" in n.node),
        "aux.features.1",
    )
    yield (
        "the node's own name, from its start",
        count(lambda n, p: refused(n) and n.node.startswith(p)),
        "what you compare",
    )
    yield "anywhere in the name", count(lambda n, p: refused(n) and p in n.module), "features.12"
    yield (
        "anywhere between dots",
        count(lambda n, p: refused(n) and f".{p}." in f".{n.module}."),
        "aux.features.1",
    )
    yield "the module alone", count(lambda n, p: refused(n) and n.module == p), "deeper"
    yield (
        "its children alone",
        count(lambda n, p: refused(n) and n.module.rpartition(".")[0] == p),
        "",
    )
    yield (
        "whatever is not supported",
        count(lambda n, p: n.verdict != "supported" and _inside(n, p)),
        "",
    )
    yield "all nodes", count(_inside), ""
    yield "everywhere", count(lambda n, p: refused(n)), "outside"
    yield (
        "kinds",
        lambda path, part: len(
            {n.op_type for n in _nodes(path) if refused(n) and _inside(n, part)}
        ),
        "kinds of operators",
    )
    yield (
        "whether there is one",
        lambda path, part: int(any(refused(n) and _inside(n, part) for n in _nodes(path))),
        "stop at the first",
    )


_REFUSED = re.compile(r" - ERROR - Node (\S+): .*onnx_(\w+)")


@right("02.4")
def readers(random):
    def split(log):
        for line in log:
            _, marked, tail = line.partition(" ERROR - Node ")
            if marked:
                node, _, reason = tail.partition(": ")
                return node, reason[reason.index("onnx_") + 5 :].rstrip(".'\" ")
        return None

    def backwards(log):
        found = [_REFUSED.search(line) for line in reversed(log)]
        return next((list(match.groups()) for match in found if match), None)

    def upper(log):
        match = _REFUSED.search(" ".join(log))
        return np.array([match[1], match[2].upper()]) if match else None

    yield "by partitions", split
    yield "from the end, a list", backwards
    yield "in capitals, an array", upper


@wrong("02.4")
def misreaders(random):
    def first(log):
        return next((m for m in map(_REFUSED.search, log) if m), None)

    def two_operators(log):
        match = first(log)
        return match and (match[1], "HardSwish" if "hardswish" in match[0] else "HardSigmoid")

    def emptied(log):
        while log:
            match = _REFUSED.search(log.pop(0))
            if match:
                return match.groups()
        return None

    def last_line_but(k):
        def read(log):
            match = _REFUSED.search(log[-k])
            return match.groups() if match else None

        return read

    def of_a_warning(log):
        match = re.search(r"Node (\S+):", "\n".join(log))
        return match and (match[1], first(log)[2] if first(log) else "Conv")

    def named(log):
        match = first(log)
        return match and (match[1], match[1].rpartition("/")[2])

    def any_error(log):
        return (
            first(log).groups()
            if first(log)
            else (("/", "?") if any(" ERROR " in line for line in log) else None)
        )

    yield "two operators by name", two_operators, "another operator"
    yield (
        "takes the log apart",
        emptied,
        "writes into its input; everything else that reads that list",
    )
    yield "the last line alone", last_line_but(1), "continues below"
    yield "any line that names a node", of_a_warning, ""
    yield "the operator out of the node", named, "may be anything"
    yield "every ERROR", any_error, "no refusal"
    yield "turned round", lambda log: first(log) and first(log).groups()[::-1], "not a node"
    yield (
        "with the prefix",
        lambda log: first(log) and (first(log)[1], "onnx_" + first(log)[2]),
        ("prefix"),
    )
    yield "with the colon", lambda log: first(log) and (first(log)[1] + ":", first(log)[2]), "node"
    yield "never None", lambda log: first(log).groups() if first(log) else ("", ""), "succeeded"
    yield "joined", lambda log: first(log) and " ".join(first(log).groups()), "a pair"
