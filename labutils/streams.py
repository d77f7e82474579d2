"""What a command does when whoever reads its output has closed it: ``labutils ... | head``."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def ending_quietly() -> Iterator[None]:
    """End the process without a word where its output is closed, in the way Python documents.

    Source: "Note on SIGPIPE" in the documentation of Python's ``signal``. What is still buffered is
    given to the null device, or the interpreter would complain at its end.

    Raises
    ------
    SystemExit
        With code 1, when stdout or stderr is a pipe that its reader has closed.
    """
    try:
        try:
            yield
        finally:  # what is in the buffer fails here, and not at the interpreter's end
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
    except BrokenPipeError:
        silenced = [_silenced(stream) for stream in (sys.stdout, sys.stderr)]
        if not any(silenced):
            raise  # another pipe than ours
        sys.exit(1)


def _silenced(stream: TextIO) -> bool:
    """Send a stream to the null device if its reader is gone; say whether it is."""
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
    except BrokenPipeError:
        return True
    except (OSError, ValueError):  # a stream in memory, as in a notebook
        return False
    if not hasattr(select, "poll"):  # Windows
        return False
    asked = select.poll()  # without a buffer (python -u) there was nothing to flush
    asked.register(place, 0)
    return any(found & select.POLLERR for _, found in asked.poll(0))
