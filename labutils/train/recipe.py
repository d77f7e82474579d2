"""What decides a training run: sizes, steps, rates, as a frozen recipe."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import untrusted
from ..errors import UnknownNameError, UsageError

ARCHITECTURES = ("mobilenet_v3_large", "mobilenet_v3_small")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a run.

    Attributes
    ----------
    phases
        (side in pixels, steps): progressive resizing, small and cheap first.
    momentum
        Of the BatchNorm statistics; torchvision's 0.01 is too slow for a run this short.
    """

    architecture: str = "mobilenet_v3_large"
    seed: int = 0
    images: int = 40_000
    source_size: int = 112
    batch_size: int = 128
    phases: tuple[tuple[int, int], ...] = ((64, 3500), (96, 1100), (128, 330))
    learning_rate: float = 3e-3
    warmup_steps: int = 150
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    ema_decay: float = 0.998
    momentum: float = 0.1
    smallest_crop: float = 0.75

    @property
    def steps(self) -> int:
        """Number of optimizer steps in all phases."""
        return sum(steps for _, steps in self.phases)

    def size_at(self, step: int) -> int:
        """Return the side of the training images at `step`."""
        for size, steps in self.phases:
            if step < steps:
                return size
            step -= steps
        return self.phases[-1][0]

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate: warm-up, then a cosine over the *work* done, not the steps.

        A step at 128 pixels costs four times one at 64, and the rate falls accordingly.
        """
        work = [size * size * steps for size, steps in self.phases]
        done, left = 0.0, step
        for size, steps in self.phases:
            done += size * size * min(left, steps)
            left = max(0, left - steps)
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        return self.learning_rate * warmup * cosine(done, sum(work))


def cosine(done: float, whole: float = 1.0) -> float:
    """Return the factor of a learning rate after `done` of the `whole` run: from 1 to 0.005."""
    return 0.995 * (0.5 * (1 + math.cos(math.pi * done / whole))) + 0.005


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe from JSON: fields of `Recipe` (others keep their value), or a model card's.

    Raises
    ------
    UsageError
        No such file, a field that `Recipe` does not have, or a value that is not of its type.
    """
    try:
        content = untrusted.json_file(path, piped=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a recipe in JSON: {error}") from None
    fields = content.get("recipe", content) if isinstance(content, dict) else content
    if not isinstance(fields, dict):
        raise UsageError(f'{path} holds no recipe: write {{"batch_size": 256, ...}}.')
    usual = asdict(Recipe())
    for name, value in fields.items():
        if name not in usual:
            raise UnknownNameError(f"recipe field ({path})", name[:100], usual)
        fields[name] = _typed(path, name, value, usual[name])
    return Recipe(**fields)


def _typed(path: str | Path, name: str, value: Any, usual: Any) -> Any:
    if name == "phases":
        good = isinstance(value, list) and value and all(_is_phase(phase) for phase in value)
        value = tuple(tuple(phase) for phase in value) if good else value
        wanted = "a list of [side in pixels, steps], such as [[64, 3500], [96, 1100]]"
    elif isinstance(usual, str):
        good, wanted = value in ARCHITECTURES, f"one of {', '.join(ARCHITECTURES)}"
    elif isinstance(usual, int):
        least = 0 if name == "seed" else 1
        good = type(value) is int and value >= least
        wanted = f"a whole number, {least} or more"
    else:
        good, wanted = type(value) in (int, float) and value >= 0, "a number, 0 or more"
    if not good:
        raise UsageError(f"{path}: {name} must be {wanted}, got {untrusted.shown(value)}.")
    return value


def _is_phase(phase: Any) -> bool:
    return (
        isinstance(phase, list) and len(phase) == 2 and all(type(n) is int and n > 0 for n in phase)
    )


RECIPES = {
    "mobilenet_v3_large": Recipe(),
    "mobilenet_v3_small": Recipe(
        architecture="mobilenet_v3_small", phases=((64, 2800), (96, 900), (128, 280))
    ),
}
