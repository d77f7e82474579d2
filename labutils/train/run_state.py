"""The state of a fine-tuning on disk: a run that was stopped resumes to the same weights.

A state belongs to one run. What decides that run is kept with it (settings, the weights it began
with, those of a teacher, the pictures), and a state of another run is refused.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import paths, untrusted
from ..errors import ModelFileError, UsageError
from ..images import data
from .ranks import Ranks

SAVE_EVERY = 50  # steps: a minute or less on two cores
_DIGITS = 64  # of a SHA-256, which no message shows


class Resumable:
    """Where a run keeps its state, and how often.

    Parameters
    ----------
    path
        A file; or a folder, in which the name of the file follows from what decides the run, so
        that one folder serves many runs.
    every
        Steps between two saves; the last step is always saved.

    Attributes
    ----------
    file
        The file of the run that uses it; None before it begins.
    """

    def __init__(self, path: str | Path, every: int = SAVE_EVERY) -> None:
        if not isinstance(every, int) or every < 1:
            raise UsageError(f"A state is saved every {every} steps: pass 1 or more.")
        self.path, self.every = paths.expanded(path), every
        self.file: Path | None = None

    def refuse_unwritable(self) -> None:
        """Refuse a place that takes no file; UsageError says why."""
        try:
            is_folder = self.path.is_dir()
        except OSError:  # too long a name
            is_folder = False
        paths.refuse_unwritable(self.path / "state.pt" if is_folder else self.path)

    def remove(self) -> None:
        """Delete the state, once what the run was for is written, and what a kill left of one.

        What another process is writing there stays.
        """
        if self.file is not None:
            self.file.unlink(missing_ok=True)
            if self.file.parent.is_dir():
                paths.sweep(self.file.parent)


@dataclass
class Run:
    """What changes in the course of a run.

    Attributes
    ----------
    model, optimizer
        What is trained, and by what.
    on_step
        Called after every step; where it has ``state_dict`` and ``load_state_dict``, its state is
        kept, too.
    seconds
        Wall time of the steps that are done.
    losses
        Of the steps that are done.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    on_step: Any
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return all of it as tensors and plain values."""
        state = {
            "seconds": self.seconds,
            "losses": self.losses,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        return state | ({"on_step": self.on_step.state_dict()} if keeps(self.on_step) else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if keeps(self.on_step):
            self.on_step.load_state_dict(state["on_step"])
        self.seconds, self.losses = state["seconds"], list(state["losses"])


def keeps(on_step: Any) -> bool:
    """Whether a function that is called after every step has a state."""
    return hasattr(on_step, "state_dict") and hasattr(on_step, "load_state_dict")


class RunState:
    """The file of a run's state: read by rank 0 for all ranks, and written by it.

    Parameters
    ----------
    kept
        Where, and how often.
    facts
        What decides the run, as plain values; those of rank 0 count.
    ranks
        The processes that train together.
    """

    def __init__(self, kept: Resumable, facts: dict[str, Any], ranks: Ranks) -> None:
        self.facts = ranks.agreed(json.dumps(facts, sort_keys=True))
        self.ranks, self.every = ranks, kept.every
        key = hashlib.sha256(self.facts.encode()).hexdigest()[:16]
        self.file = kept.file = kept.path / f"{key}.pt" if kept.path.is_dir() else kept.path

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Keep other processes of this user from the file, for this block.

        Raises
        ------
        UsageError
            Another one has it.
        """
        if not self.ranks.first:
            yield
            return
        with paths.locked(self.file, self._refuse):
            yield

    def _refuse(self) -> None:
        raise UsageError(
            f"Another process trains the same at this moment, and keeps its state in {self.file}. "
            "Wait for it, or stop it: this run then resumes. For a second one, name another state, "
            "or another seed."
        )

    def resume(self, run: Run) -> None:
        """Continue from the file, if there is one.

        The number of processes may be another one. Then BatchNorm sees other parts of the batches
        from here on, and the weights are no longer those of a run that was never stopped.

        Raises
        ------
        ModelFileError
            It is not a state, or that of another run; the message says what differs.
        """
        state = self.ranks.read(self.file)
        if state is None:
            return
        if not isinstance(state, dict) or not isinstance(state.get("facts"), str):
            raise ModelFileError(f"{self.file} is not the state of a run. Name another file.")
        if state["facts"] != self.facts:
            try:
                theirs = untrusted.json_value(state["facts"])
            except ValueError:
                theirs = None
            theirs = theirs if isinstance(theirs, dict) else {}
            differences = _differences(theirs, untrusted.json_value(self.facts))
            raise ModelFileError(
                f"{self.file} is the state of another run, which differs in {differences}. Remove "
                "it to start again, or name another file."
            )
        try:
            run.load_state_dict(state)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"{self.file} does not fit what is trained ({str(error).splitlines()[0]}). Remove "
                "it to start again, or name another file."
            ) from error

    def save(self, run: Run) -> None:
        """Write everything that a resumed run needs; of many processes only rank 0 does."""
        if not self.ranks.first:
            return
        state = {"facts": self.facts, "processes": self.ranks.size, **run.state_dict()}
        with paths.atomic(self.file) as temporary, temporary.open("wb") as file:
            torch.save(state, file)  # into an open file: what the disk says is then told


def _differences(there: dict[str, Any], here: dict[str, Any]) -> str:
    """Return what differs, as a phrase."""
    names = [name for name in there | here if there.get(name) != here.get(name)]
    return ", ".join(_difference(name, there.get(name), here.get(name)) for name in names)


def _difference(name: str, there: Any, here: Any) -> str:
    shown = (str(there), str(here))
    if any(len(value) == _DIGITS for value in shown):
        return name
    return f"{name} ({shown[0]} there, {shown[1]} here)"


def digest(module: nn.Module) -> str:
    """Return the SHA-256 of all weights and buffers of a network, and of which are trained."""
    found = hashlib.sha256()
    for name, values in module.state_dict().items():
        found.update(name.encode())
        if isinstance(values, torch.Tensor):
            found.update(f"{values.dtype} {tuple(values.shape)}".encode())
            plain = values.detach().cpu().contiguous().flatten()
            found.update(plain.view(torch.uint8).numpy().tobytes())
    trained = [name for name, p in module.named_parameters() if p.requires_grad]
    found.update(json.dumps(trained).encode())
    return found.hexdigest()


def pictures_digest(images: data.ImageSet) -> str:
    """Return the SHA-256 of pixels, labels and the names of classes."""
    found = hashlib.sha256(json.dumps([*images.classes, *images.images.shape]).encode())
    for values in (images.images, images.labels):
        found.update(np.ascontiguousarray(values).reshape(-1).data)
    return found.hexdigest()
