"""What a command does when its output is closed (``labutils ... | head``), full, or not there."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


@contextlib.contextmanager
def ending_quietly() -> Iterator[None]:
    """End the process where its output cannot be written: silently if its reader has left.

    Source: "Note on SIGPIPE" in the documentation of Python's ``signal``. What is still buffered is
    given to the null device, or the interpreter would complain at its end. A stream that the
    process was started without is the null device from the beginning.

    Raises
    ------
    SystemExit
        With code 1, when stdout is a pipe that its reader has closed; after one line on stderr,
        when the system refuses something else, as a full disk does. Messages on stderr that
        cannot be written are lost, and the exit code stays that of the command.
    """
    _open_missing()
    try:
        try:
            yield
        finally:  # what is in the buffer fails here, and not at the interpreter's end
            with contextlib.suppress(OSError):  # messages that are lost do not change the outcome
                sys.stderr.flush()
            _silenced(sys.stderr)
            sys.stdout.flush()
    except OSError as error:
        silenced = [_silenced(stream) for stream in (sys.stdout, sys.stderr)]
        if not isinstance(error, BrokenPipeError):
            with contextlib.suppress(OSError):  # stderr may be full, too
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        elif not any(silenced):
            raise  # another pipe than ours
        sys.exit(1)


def say(message: str) -> None:
    """Print a line on stderr; where stderr is closed or full the line is lost, and nothing else."""
    with contextlib.suppress(OSError):
        print(message, file=sys.stderr, flush=True)


def _open_missing() -> None:
    """Open the null device for each standard stream that is closed (``>&-``): Python has None."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            null = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115 (stays open)
            setattr(sys, name, null)


def _silenced(stream: TextIO) -> bool:
    """Send a stream to the null device if it takes nothing more; say whether that is so."""
    if not _abandoned(stream):
        return False
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
    return True


def _abandoned(stream: TextIO) -> bool:
    try:
        stream.flush()
        place = stream.fileno()
    except ValueError:  # a stream in memory, as in a notebook
        return False
    except OSError:  # its reader is gone, or the disk is full
        return True
    if not hasattr(select, "poll"):  # Windows
        return False
    asked = select.poll()  # without a buffer (python -u) there was nothing to flush
    asked.register(place, 0)
    return any(found & select.POLLERR for _, found in asked.poll(0))
