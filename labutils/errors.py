"""The typed exceptions of the lab.

Every message says what happened, to which file or node, and what to do next. The command line
turns them into an exit code: 1 when the model has a problem, 2 when the call has one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

_MARK = r"\.[0-9a-f]{8}-\d+-[0-9a-f]+\.tmp"  # of what `paths.atomic` and `paths.scratch` make
_FOLDER = re.compile(rf"(?:[^\s'\"]*/)?\.labutils{_MARK}(?:/made)?(?:/[0-9a-f]{{8}})?(?:/|\b)")
_FILE = re.compile(rf"(?<![\w.])\.([^/\n'\"]*?){_MARK}(\.\w+)?")


def without_temporary(text: str) -> str:
    """Return `text` with the names of our temporary files as those of the files that they become.

    Examples
    --------
    >>> without_temporary("cannot load /tmp/.labutils.01234567-89-abcdef01.tmp/made/net.onnx")
    'cannot load net.onnx'
    >>> without_temporary("cannot load out/.net.01234567-89-abcdef01.tmp.onnx")
    'cannot load out/net.onnx'
    """
    return _FILE.sub(r"\1\2", _FOLDER.sub("", text))


class LabError(Exception):
    """Base of all errors that the lab raises on purpose; `exit_code` is for the command line.

    No message names a temporary file of ours.
    """

    exit_code = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(without_temporary(a) if isinstance(a, str) else a for a in arguments))


class UsageError(LabError):
    """The call itself is wrong: a missing file, a bad option, an impossible combination."""

    exit_code = 2


class LimitError(UsageError, ValueError):
    """A file has more bytes, or is nested deeper, than anything that the lab reads.

    Also a ValueError, because readers turn those into an error that says what the file was to be.
    """


class EarlierFormatWarning(UserWarning):
    """A file of an earlier format was read; the message says what that means, in one line."""


def worded(error: Exception) -> str:
    """Return what an error says, without the number and the path that Python adds to an OSError."""
    return str(getattr(error, "strerror", None) or error)


def some(names: Iterable[str]) -> str:
    """Return the first eight of many names, and how many more there are, for a line."""
    listed = list(names)
    return ", ".join(listed[:8]) + (f", and {len(listed) - 8} more" if len(listed) > 8 else "")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, as a message says it: ``1 node``, ``2 nodes``.

    Parameters
    ----------
    number
        How many there are.
    noun
        Of one; an s makes it many.
    """
    return f"{number} {noun}{'s' * (number != 1)}"


def printable(text: str) -> str:
    """Return `text` without characters that command a terminal or turn its writing around.

    What stands in a file's name or in a node's may have been put there for that: control
    characters, and Unicode's marks of direction. Line breaks stay.
    """
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


class UnknownNameError(UsageError):
    """A name that no registry knows; the message suggests the nearest ones.

    Parameters
    ----------
    kind
        What was looked up, e.g. ``"target"``.
    name
        The name that was asked for.
    known
        The names that exist.
    otherwise
        What to do where none of them is meant: said where none is near.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], otherwise: str = "") -> None:
        known = sorted(known)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        listed = ", ".join(known[:40]) + (f", ... ({len(known)} in all)" if len(known) > 40 else "")
        hint = f"Did you mean {' or '.join(near)}?" if near else f"Known: {listed}"
        hint += f". {otherwise}" if otherwise and not near else ""
        super().__init__(f"There is no {kind} named {name!r}. {hint}")
        self.kind, self.name, self.near = kind, name, near


class ModelFileError(UsageError):
    """A model file is missing, truncated, of a foreign format, or holds something we refuse."""


class NoManifestError(ModelFileError):
    """No manifest lies beside an artifact: nothing is known about it."""


class DamagedManifestError(ModelFileError):
    """The manifest beside an artifact cannot be read."""


class OtherFileError(ModelFileError):
    """The manifest beside an artifact describes another file."""


class FetchError(LabError):
    """A download failed, or its checksum did not match."""


class ExportError(LabError):
    """PyTorch could not export the model, or the file is not what was asked for."""


class StaleOptimizerError(UsageError):
    """An optimizer holds the parameters of a network from before it was wrapped.

    Attributes
    ----------
    parameters
        Their names.
    """

    def __init__(self, message: str, parameters: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.parameters = tuple(parameters)


class SurgeryError(LabError):
    """A replacement matched nothing, or changed what it must not change."""


class NothingMatchedError(SurgeryError):
    """The rules matched nothing in the model; the message says what it has instead.

    Attributes
    ----------
    left
        The places that the rules are for and left alone, with the reason (`surgery.Left`).
    """

    left: tuple[object, ...] = ()


class PruningError(LabError):
    """A network cannot be pruned as asked, or without its channels it computes something else."""


class TrainingError(LabError):
    """Training diverged: a loss that is not finite, or a network without a gradient."""


class TableError(LabError):
    """An operator table in ``data/targets`` is malformed."""


class TranslationError(LabError):
    """A converter met a node that it has no translation for.

    Attributes
    ----------
    node, op_type, module
        The ONNX node's name, its operator, and the module that it came from (may be empty).
    """

    def __init__(
        self, message: str, *, node: str = "", op_type: str = "", module: str = ""
    ) -> None:
        super().__init__(message)
        self.node, self.op_type, self.module = node, op_type, module


class ConvertError(LabError):
    """Qualcomm's own tools refused the model; the message carries their REASON per node.

    Attributes
    ----------
    nodes
        The operator, the name and the reason of each node that was refused, where they are known.
    """

    def __init__(self, message: str, nodes: tuple[tuple[str, str, str], ...] = ()) -> None:
        super().__init__(message)
        self.nodes = nodes


class ParityError(LabError):
    """An artifact was made and run, but does not compute what the original computes.

    Attributes
    ----------
    report
        The gate's report: figures, thresholds, and the first tensor that departs.
    """

    def __init__(self, message: str, report: object = None) -> None:
        super().__init__(message)
        self.report = report


class LibraryError(LabError):
    """A library that the lab stands on failed; the message names the node, the cause, a way on."""


class WrongFunctionError(LabError):
    """A quantized file computes another function than its source, beside its rounding."""


class WorkerError(LabError):
    """Native code crashed, hung or ran out of memory in its child process."""


class MissingToolError(LabError):
    """A tool that this machine does not have is needed; the message names the cure."""


class ToolError(LabError):
    """A tool of another vendor failed in its own environment; the message is its own.

    Attributes
    ----------
    kind, reason
        The name of the exception that the tool raised, and what that says.
    """

    def __init__(self, message: str, kind: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.kind, self.reason = kind, reason
