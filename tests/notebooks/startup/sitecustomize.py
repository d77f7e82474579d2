"""Runs first in every kernel under test, and in what it starts: no network, maybe no wheel.

``LABUTILS_TEST_OUTSIDE`` names a file: any attempt to leave this machine is refused, and noted
there, because code may swallow the refusal. ``LABUTILS_TEST_HIDDEN`` names packages, with commas,
that are to look as if they were not installed.
"""

import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

LOCAL = ("127.", "::1", "localhost", "0.0.0.0")
CONNECTING = {"socket.connect", "socket.sendto", "socket.sendmsg"}
RESOLVING = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}


def refuse_outside(event, arguments):
    """Audit hook: raise for an address that is not this machine's own."""
    if event in CONNECTING:
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # a path: a Unix socket
    elif event in RESOLVING:
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host and not host.startswith(LOCAL):
        with Path(os.environ["LABUTILS_TEST_OUTSIDE"]).open("a", encoding="utf-8") as file:
            file.write(f"{event} {host}\n")
        raise OSError(f"Notebooks are tested without a network; this one asked for {host}.")


def hide(packages):
    """Let the import system not find these packages."""
    found = PathFinder.find_spec

    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in packages else found(name, path, target)

    PathFinder.find_spec = staticmethod(find_spec)


def in_kernel():
    """Whether this process is a kernel, or was started by one; pytest itself is neither."""
    return "ipykernel_launcher" in sys.orig_argv or "LABUTILS_TEST_IN_KERNEL" in os.environ


if in_kernel():
    os.environ["LABUTILS_TEST_IN_KERNEL"] = "1"
    if "LABUTILS_TEST_OUTSIDE" in os.environ:
        sys.addaudithook(refuse_outside)
    if hidden := os.environ.get("LABUTILS_TEST_HIDDEN"):
        hide(set(hidden.split(",")))
