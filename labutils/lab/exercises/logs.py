"""The logs that 02.1 and 02.4 work on, and judging who reads them."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ...errors import TranslationError
from ..answer import NotYet, call, pair, shown, whole, words
from .parts import FEATURES, write_chain


def transcript(nodes: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """Run the converter (the replica, or the real tool when it is on PATH) on such a chain."""
    from ...targets import snpe

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
    """Return the log that exercise 02.1 hands out: with the noise that a real one has."""
    log = transcript([("Relu", f"{FEATURES}.1"), ("HardSwish", f"{FEATURES}.2")])
    heading = sum(line.startswith("#") for line in log)
    if not heading:  # the real tool was on PATH, and brings its own noise
        return log
    return (*log[:heading], *_start_up_noise(), *log[heading:], *_script_noise())


def _script_noise() -> list[str]:
    """Return what a shell that runs the converter in a build adds below its log."""
    return [
        "# The next two lines are not the converter's: a build script called it, and says that.",
        "make: *** [Makefile:12: model.dlc] Error 1",
        "ERROR: job 'convert' has failed with exit code 2",
    ]


def _start_up_noise() -> list[str]:
    """Return two harmless lines of the vendor's screenshots, which the replica leaves out.

    Their level is inferred: the code line, 219, is that of the tool's warnings.
    """
    from ... import targets

    messages = targets.load("snpe-2.7").messages
    words = [messages[name].template for name in ("simplify_failed_1", "simplify_failed_2")]
    return [
        "# The next two lines are copied from the start of the vendor's own log.",
        *(f"2023-04-16 19:01:02,914 - 219 - WARNING - {text}" for text in words),
    ]


def judge_line(error_line: Any) -> None:
    """Judge the number of a line, or the line itself: it must name the node that is refused."""
    line = _line_of(error_line)
    if "ERROR - Node" not in line:
        raise NotYet(_explain_line(line))


def _line_of(answer: Any) -> str:
    log = first_log()
    if isinstance(answer, str):
        if answer.strip() not in map(str.strip, log):
            raise NotYet("no line of the log reads like that; give its number, or the whole line.")
        return answer.strip()
    index = whole(answer, "the number of a line, or the line itself,")
    if not 0 <= index < len(log):
        raise NotYet(f"the log has no line {index}; they are counted from 0.")
    return log[index].strip()


def _explain_line(line: str) -> str:
    if line.startswith("#"):
        return (
            "a line that begins with # is the replica's own; the real tool does not print such "
            "lines."
        )
    if "simplification failed" in line:
        return (
            "it says 'failed', but what failed is a clean-up of the graph, and the tool went on "
            "without it. Look further down."
        )
    if "WARNING" in line:
        return "that line is a warning: the tool went on after it. Look further down."
    if line.startswith("KeyError"):
        return (
            "that line has the cause, and the operator, but in a network with twenty such nodes "
            "you would not know which one to look at. Another line says more."
        )
    if line in _script_noise():
        return (
            "that line comes from whatever called the converter. It passes on that something "
            "failed, and does not know what."
        )
    return (
        "that line belongs to the traceback: it shows where in the converter's own code it "
        "happened, not where in your model."
    )


def _clean_log() -> list[str]:
    return list(transcript([("Relu", f"{FEATURES}.1")]))


def _failed_log(op: str, scope: str) -> list[str]:
    return list(transcript([("Relu", f"{FEATURES}.1"), (op, scope)]))


_ERROR = "2023-04-16 19:01:02,990 - 219 - ERROR - Could not import onnxsim; going on without."
_WARNING = "2023-04-16 19:01:02,991 - 219 - WARNING - Node /stem/Conv: uneven padding."


def _logs() -> list[tuple[str, list[str], str, str]]:
    """Return (what is special, log, node, operator); the later ones made harder by hand."""
    gate = "/features/features.4/se"
    swish = _failed_log("HardSwish", f"{FEATURES}.2")
    node = f"{FEATURES}.2/HardSwish"
    renamed = [line.replace(node, "/head/act_7") for line in swish]
    einsum = [line.replace("onnx_hardswish", "onnx_einsum") for line in swish]  # seen in the wild
    return [
        ("", swish, node, "HardSwish"),
        ("", _failed_log("HardSigmoid", gate), f"{gate}/HardSigmoid", "HardSigmoid"),
        (
            "on a log that continues below the refusal, ",
            [*swish, *_script_noise()],
            node,
            "HardSwish",
        ),
        ("on a log with another ERROR above the refusal, ", [_ERROR, *swish], node, "HardSwish"),
        ("on a log whose node has an unusual name, ", renamed, "/head/act_7", "HardSwish"),
        ("on a log that refuses another operator, ", einsum, node, "Einsum"),
        ("on a log with a warning about another node, ", [_WARNING, *swish], node, "HardSwish"),
    ]


def judge_culprit(culprit: Any) -> None:
    """Judge a reader of logs on failed conversions and on clean ones."""
    for special, log, node, operator in _logs():
        try:
            _judge_refusal(call(culprit, log), node, operator)
        except NotYet as reason:
            raise NotYet(f"{special}{reason}") from None
    clean = call(culprit, _clean_log())
    if clean is not None:
        raise NotYet(f"on the log of a conversion that succeeded you return {shown(clean)}.")
    try:
        warned = call(culprit, [_WARNING, _ERROR, *_clean_log()])
    except NotYet as reason:
        raise NotYet(f"on a log with an ERROR and no refusal, {reason}") from None
    if warned is not None:
        raise NotYet(
            f"on a log with an ERROR and no refusal you return {shown(warned)}: it went on."
        )


def _judge_refusal(found: Any, true_node: str, true_operator: str) -> None:
    if found is None:
        raise NotYet("your function finds nothing, though the conversion failed.")
    found = pair(found, "(node, operator)")
    node, operator = (words(part, "text in both places") for part in found)
    if node != true_node or operator.lower() != true_operator.lower():
        raise NotYet(_explain_refusal(node, operator, true_node, true_operator))


def _explain_refusal(node: str, operator: str, true_node: str, true_operator: str) -> str:
    if not node.startswith("/"):
        return f"{shown(node)} is not a node of the model; nodes are named like paths."
    if node != true_node:
        return f"the node {shown(node)} is not the one that the log refuses."
    if "onnx_" in operator.lower():
        return "the prefix of the converter's own names is still on the operator."
    if operator.lower() == true_node.rsplit("/", 1)[1].lower() != true_operator.lower():
        return "your operator is taken from the node's name, which may be anything."
    return f"{shown(operator)} is not the operator that the log names."
