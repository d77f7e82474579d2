"""The wall around the libraries below: whatever they raise becomes one error of the lab.

ONNX, onnx_ir, onnxscript, ONNX Runtime's quantizer and the exporters raise whatever they happen to
raise: KeyErrors with a tensor's name, assertions, errors of C++. `wall` turns each into an error
that names what was done, the node, and the way on. The library's own error stays its cause, for a
debugger.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ..errors import LabError, LibraryError

if TYPE_CHECKING:
    import onnx

_LONGEST = 400  # characters of a reason
_BARE = (KeyError, IndexError, AttributeError, AssertionError, TypeError, StopIteration)
_ADVICE = "Check the file with `python -m onnx.checker`, or export it again, at opset 17."


@contextlib.contextmanager
def wall(
    library: str,
    name: str,
    *,
    error: type[LabError] = LibraryError,
    model: onnx.ModelProto | None = None,
    advice: str = _ADVICE,
) -> Iterator[None]:
    """Turn whatever a library raises inside the block into one error.

    Parameters
    ----------
    library
        What does not do its work, as a sentence begins: ``"ONNX's checker refuses"``.
    name
        Of the user's file or model.
    error
        The error's class.
    model
        What the library works on: where its error names no node, a tensor that it names leads to
        one.
    advice
        What to do next.

    Raises
    ------
    LabError
        `error`; the lab's own errors pass as they are.
    """
    try:
        yield
    except LabError:
        raise
    except Exception as found:  # the libraries' errors have no common base
        node = node_of(found, model)
        at = f", at {node}" if node and node not in str(found) else ""
        raise error(f"{library} {name}{at}: {reason_of(found)}. {advice}") from found


def reason_of(found: BaseException, lines: int | None = None) -> str:
    """Return what an error says, on one line; with its kind where its words alone say little.

    Parameters
    ----------
    found
        The error; where another one caused it, that one is told.
    lines
        How many of the error's own lines count; all, by default.
    """
    while isinstance(found.__cause__, Exception):
        found = found.__cause__
    words = " ".join(str(found).strip().splitlines()[:lines]).split()
    text = " ".join(words)[:_LONGEST].rstrip(".")
    kind = type(found).__name__
    return f"{kind}: {text}" if text and isinstance(found, _BARE) else text or kind


def node_of(found: BaseException, model: onnx.ModelProto | None = None) -> str:
    """Return the node at which a library failed, as ``Conv '/conv'``; "" where nothing tells.

    A name in the error's words tells, a node's, or a tensor's, whose node is the one that makes or
    reads it; else the node that the innermost function of the library was called with.
    """
    links: list[BaseException] = [found]
    while links[-1].__cause__ is not None:
        links.append(links[-1].__cause__)
    named = [_named(str(link), model) for link in links if model is not None]
    return next(filter(None, [*named, *(_in_hand(link.__traceback__) for link in links[::-1])]), "")


@contextlib.contextmanager
def naming(name: str, draft: str) -> Iterator[None]:
    """Let the lab's own errors inside the block say `name` where they say a draft's name."""
    try:
        yield
    except LabError as error:
        error.args = tuple(a.replace(draft, name) if isinstance(a, str) else a for a in error.args)
        raise


def _in_hand(trace: TracebackType | None) -> str:
    found = ""
    while trace is not None:
        values, code = trace.tb_frame.f_locals, trace.tb_frame.f_code
        own = code.co_varnames[: code.co_argcount]  # a loop's variable may be any node
        held = getattr(values.get("self"), "__dict__", {}).get("node")
        given = values.get("node") if "node" in own else None
        found = _label(held) or _label(given) or found
        trace = trace.tb_next
    return found


def _label(value: Any) -> str:
    """Return what a node of onnx or of onnx_ir is called; "" for anything else."""
    op_type, name = getattr(value, "op_type", None), getattr(value, "name", None)
    if not isinstance(op_type, str) or not hasattr(value, "domain"):
        return ""
    outputs = [getattr(out, "name", out) for out in getattr(value, "output", None) or ()]
    outputs = outputs or [out.name for out in getattr(value, "outputs", ())]
    return f"{op_type} '{name}'" if name else f"the {op_type} of '{(*outputs, '')[0]}'"


def _named(text: str, model: onnx.ModelProto) -> str:
    words = set(re.findall(r"[^\s'\"(),:;\[\]]+", text))
    for node in model.graph.node:
        if node.name and node.name in words:
            return _label(node)
    for names in ("output", "input"):
        for node in model.graph.node:
            # a quantizer appends to the names: w_scale, w_quantized
            starts = tuple(f"{name}_" for name in getattr(node, names) if name)
            if any(f"{word}_".startswith(starts) for word in words):
                return _label(node)
    return ""
