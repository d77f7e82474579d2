"""MobileNetV3 Edge Lab: check, repair, convert and verify models for edge accelerators.

Exit codes: 0 done; 1 the model has a problem, which is explained; 2 the call has one. A reader who
closes our output (``labutils ... | head``) ends us silently, with 1.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import errno
import json
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from . import __version__, streams, untrusted
from .commands import (
    compressing,
    converting,
    exporting,
    housekeeping,
    options,
    performing,
    pruning,
    quantizing,
    rdk,
    representing,
    running,
    tools,
    training,
)
from .errors import EarlierFormatWarning, LabError, UsageError, printable, without_temporary


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse `arguments` (the process's own by default), run the command, return the exit code."""
    with streams.ending_quietly():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a sign that the terminal cannot show does not stop us
            stream.reconfigure(errors="backslashreplace")
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        parser.print_help(sys.stderr)
        return UsageError.exit_code
    chosen = parser.parse_args(options.joined(sys.argv[1:] if arguments is None else arguments))
    try:
        with _stoppable(), _files_that_can_be_written(), _notes_in_one_line():
            return chosen.command(chosen)
    except LabError as error:
        if getattr(chosen, "json", False):
            print(json.dumps({"error": type(error).__name__, "message": str(error)}, indent=2))
        else:
            streams.say(printable(f"{type(error).__name__}: {error}"))
        return error.exit_code
    except KeyboardInterrupt:
        streams.say("Stopped.")
        return 130


@contextlib.contextmanager
def _files_that_can_be_written() -> Iterator[None]:
    """Tell of a name too long for any file, and of a place that takes none, as of a mistake.

    Most places are refused before any work. `paths.atomic` tells of a full disk.
    """
    try:
        yield
    except OSError as error:
        name = str(error.filename or "")
        unfinished = without_temporary(name) != name  # nobody knows that name
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"No file can have the name {untrusted.shown(name)}.") from None
        if unfinished or error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            place = f"a file in {Path(name).parent}" if unfinished else name
            words = f"Cannot read or write {place}: {error.strerror}."
            raise UsageError(f"{words} Name another place.") from None
        raise


@contextlib.contextmanager
def _notes_in_one_line() -> Iterator[None]:
    """Print what is said of a file of an earlier format without Python's file and line."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *rest: Any, **named: Any) -> None:
            if issubclass(category, EarlierFormatWarning):
                streams.say(printable(f"Note: {message}"))
            else:
                usual(message, category, *rest, **named)

        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """Let `kill` and a closing terminal end us as Ctrl-C does: unfinished files are taken away.

    Only as long as there is work: Python's own way out would answer with a traceback.
    """
    ours = []
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP; nohup had it ignored
            number = getattr(signal, name, None)
            if number and signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, _stopped)
                ours.append(number)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _stopped(number: int, frame: object) -> None:
    sys.exit(128 + number)


class _Parser(argparse.ArgumentParser):
    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse what is not among the choices, with the nearest; argparse lists all of them."""
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), known, 1)
        hint = f"Did you mean {near[0]}?" if near else f"Choose from {', '.join(known)}."
        raise argparse.ArgumentError(action, f"{untrusted.shown(value)} is not known. {hint}")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print a help text or a version; argparse's own says nothing where that fails."""
        if message and file not in (None, sys.stderr):
            file.write(message)
        elif message:
            streams.say(message.removesuffix("\n"))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="labutils", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--version", action="version", version=f"labutils {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    groups = (
        converting, exporting, representing, quantizing, pruning, compressing, training,
        running, performing, rdk, housekeeping, tools,
    )  # fmt: skip
    for group in groups:
        group.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
