"""How long each stage of a network takes on this machine's processor."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...errors import UnknownNameError, UsageError
from ...models import zoo
from . import running

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Times:
    """How long the stages take on this machine's processor.

    Attributes
    ----------
    source
        What ran.
    seconds
        Shortest per stage, for one image: whatever else runs on a machine only adds time.
    repeats
        Number of passes that the shortest is taken from.
    machine
        Where; these figures hold nowhere else.
    """

    source: str
    seconds: dict[str, float]
    repeats: int
    machine: str

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    def share(self, stage: str) -> float:
        """Return the part, 0 to 1, of the time that `stage` takes."""
        if stage not in self.seconds:
            raise UnknownNameError("stage", stage, self.seconds)
        return self.seconds[stage] / self.total

    def __str__(self) -> str:
        slowest = sorted(self.seconds, key=self.seconds.__getitem__, reverse=True)[:3]
        listed = ", ".join(f"{name} {100 * self.share(name):.0f} %" for name in slowest)
        return (
            f"{self.source}: {1e3 * self.total:.1f} ms for one image, shortest of {self.repeats} "
            f"passes, on {self.machine}. Most: {listed}."
        )

    def __repr__(self) -> str:
        return str(self)


def times(model: nn.Module | zoo.Model, size: int | None = None, *, repeats: int = 30) -> Times:
    """Measure how long each stage takes, one image at a time, on this machine's processor.

    Parameters
    ----------
    model, size
        As in `stages`.
    repeats
        Passes that count; three more go before them. PyTorch has one thread meanwhile, which
        disturbs the figures least.
    """
    import torch

    module, shape = running.taken(model, size)
    if repeats < 1:
        raise UsageError(f"At least one pass must count, not {repeats}.")
    parts = running.stage_modules(module)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        inputs = running.noise(module, shape)
        passes = [_timed(module, parts, inputs) for _ in range(3 + repeats)][3:]
    finally:
        torch.set_num_threads(before)
    shortest = {name: min(one[name] for one in passes) for name in parts}
    machine = f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores, 1 used"
    return Times(type(module).__name__, shortest, repeats, machine)


def _timed(
    module: nn.Module, parts: dict[str, nn.Module], inputs: torch.Tensor
) -> dict[str, float]:
    begun, took = {}, dict.fromkeys(parts, 0.0)

    def start(name: str):
        return lambda *_: begun.update({name: time.perf_counter()})

    def stop(name: str):
        return lambda *_: took.update({name: time.perf_counter() - begun[name]})

    handles = [part.register_forward_pre_hook(start(name)) for name, part in parts.items()]
    handles += [part.register_forward_hook(stop(name)) for name, part in parts.items()]
    running.run(module, inputs, handles)
    return took
