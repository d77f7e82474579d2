"""The child's end of a worker: it answers calls until its parent is gone.

Standard input and output carry the protocol of `channel`; file descriptors 1 and 2 lead to a log
file that the parent opened, so whatever libraries print cannot spoil an answer. A thread reads the
input all the time: when the parent dies, the worker ends at once, even in the middle of a run. On
Linux the kernel sees to it as well: a worker that is stopped reads nothing.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

from . import channel

if TYPE_CHECKING:
    import numpy as np

    Arrays = dict[str, np.ndarray]
    Answer = tuple[dict[str, Any], Arrays]

_PR_SET_PDEATHSIG = 1  # prctl(2)


def serve(answer: Callable[[dict[str, Any], Arrays], Answer], parent: int | None) -> None:
    """Answer the parent's calls until it closes our standard input.

    Parameters
    ----------
    answer
        Called with each message and its arrays.
    parent
        The parent's process id; None when the worker was started by hand.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    _die_with_the_parent(parent)
    incoming, outgoing = _take_over_standard_streams()
    requests: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(incoming, requests), daemon=True).start()
    while True:
        told, results = answer(*requests.get())
        empty_log()
        channel.send(outgoing, told, results)


def _die_with_the_parent(parent: int | None) -> None:
    if sys.platform != "linux" or parent is None:
        return  # started by hand, or no such service: closed input ends us, unless we are stopped
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(0)


def _take_over_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    incoming = os.fdopen(os.dup(0), "rb")
    outgoing = os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return incoming, outgoing


def _listen(incoming: BinaryIO, requests: queue.SimpleQueue) -> None:
    try:
        while True:
            requests.put(channel.receive(incoming))
    except (EOFError, OSError):
        os._exit(0)  # the parent closed us, or died: nobody wants what is being computed
    except BaseException:  # such as an array, and no NumPy here: the rest cannot be read either
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def empty_log() -> None:
    """Forget what was printed so far."""
    sys.stderr.flush()
    try:
        os.ftruncate(2, 0)
        os.lseek(2, 0, os.SEEK_SET)
    except OSError:
        pass  # started by hand: standard error is a terminal


def read_log() -> str:
    """Return what was printed since the log was emptied."""
    sys.stderr.flush()
    try:
        if os.name == "posix":
            ctypes.CDLL(None).fflush(None)  # what the native code printed lies in C's buffers
        os.lseek(2, 0, os.SEEK_SET)
        parts = []
        while chunk := os.read(2, 1 << 20):
            parts.append(chunk)
    except OSError:
        return ""
    return b"".join(parts).decode(errors="replace")
