"""Whether LiteRT's runtime, the wheel ai-edge-litert, is here and works."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from importlib import util

from ... import paths
from ...errors import MissingToolError, WorkerError
from .process import Worker

REQUIREMENT = "ai-edge-litert==2.3.0"


@dataclass(frozen=True)
class Availability:
    """Whether LiteRT's runtime runs here; `reason` is one sentence, with the cure."""

    ok: bool
    reason: str
    version: str = ""


@functools.cache
def probe() -> Availability:
    """Say whether LiteRT's runtime loads here, by loading it in a child process (once)."""
    if util.find_spec("ai_edge_litert") is None:
        return Availability(False, _why_no_wheel())
    version = paths.versions("ai-edge-litert").get("ai-edge-litert", "")
    worker = Worker()
    try:
        worker.call({"call": "hello"})
    except (WorkerError, MissingToolError) as error:
        reason = f"ai-edge-litert is installed but does not load: {' '.join(str(error).split())}"
        return Availability(False, reason[:400], version)
    finally:
        worker.close()
    return Availability(True, "LiteRT's runtime loads in a child process.", version)


def _why_no_wheel() -> str:
    rest = "everything else works without it."
    system, machine = platform.system(), platform.machine()
    published = (("Linux", "x86_64"), ("Darwin", "arm64"), ("Windows", "AMD64"))
    glibc = system != "Linux" or platform.libc_ver()[0] == "glibc"
    if (system, machine) not in published or not glibc:
        return f"Google publishes no wheel of {REQUIREMENT} for this machine; {rest}"
    return f"ai-edge-litert is not installed: pip install {REQUIREMENT}; {rest}"


def require() -> Availability:
    """Return the probe's answer, or raise MissingToolError with the cure."""
    found = probe()
    if not found.ok:
        raise MissingToolError(f"A .tflite file needs LiteRT's runtime. {found.reason}")
    return found
