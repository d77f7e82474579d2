"""What decides a training run: sizes, steps, rates."""

from __future__ import annotations

import json
import math
import typing
import warnings
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, MinLen, doc

from .. import located_yaml, untrusted, validation
from ..errors import EarlierFormatWarning, UsageError
from ..images import data

Architecture = Literal["mobilenet_v3_large", "mobilenet_v3_small"]
ARCHITECTURES: tuple[str, ...] = typing.get_args(Architecture)
ImageSetName = Literal["things16", "marked-things"]
FORMAT = 1
"""Of stored configurations; a newer one is refused."""

_Count = Annotated[int, Ge(1)]
_NotNegative = Annotated[float, Ge(0)]
_Phases = Annotated[
    tuple[tuple[_Count, _Count], ...],
    MinLen(1),
    doc("a list of [side in pixels, steps], such as [[64, 3500], [96, 1100]]"),
]


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run.

    Attributes
    ----------
    phases
        (side in pixels, steps): progressive resizing, small and cheap first.
    momentum
        Of the BatchNorm statistics; torchvision's 0.01 is too slow for a run this short.
    image_set
        The procedural set that is learned, one of `data.DRAWN`.
    start
        The set whose shipped checkpoint the weights begin as, all but the last layer; None for
        random weights.
    """

    architecture: Architecture = "mobilenet_v3_large"
    seed: Annotated[int, Ge(0)] = 0
    images: _Count = 40_000
    source_size: _Count = 112
    batch_size: _Count = 128
    phases: _Phases = ((64, 3500), (96, 1100), (128, 330))
    learning_rate: _NotNegative = 3e-3
    warmup_steps: _Count = 150
    weight_decay: _NotNegative = 0.02
    label_smoothing: _NotNegative = 0.05
    ema_decay: _NotNegative = 0.998
    momentum: _NotNegative = 0.1
    smallest_crop: _NotNegative = 0.75
    image_set: ImageSetName = "things16"
    start: ImageSetName | None = None

    @property
    def name(self) -> str:
        """What its checkpoint is called, without a suffix."""
        return data.checkpoint_name(self.architecture, self.image_set)

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


def read_config(path: str | Path) -> TrainConfig:
    """Read a configuration from YAML or JSON, or the one of a run from its model card (JSON).

    Fields that it leaves out keep their value.

    Raises
    ------
    UsageError
        No such file, a field that `TrainConfig` does not have or that is given twice, or a value
        that it does not take; the message names the line.
    """
    try:
        text = untrusted.text(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as a training configuration: {error}") from None
    data, fail = located_yaml.read(text, str(path), "a training configuration", UsageError)
    if not isinstance(data, dict):
        raise fail((), "write fields and values, such as batch_size: 256")
    key = next((key for key in ("config", "recipe") if key in data), None)
    place = () if key is None else (key,)
    fields = data if key is None else data[key]
    values = validation.without_format(fields, FORMAT, fail, place)
    config = validation.checked(TrainConfig, values, fail, place)
    if key == "recipe":
        warnings.warn(
            f"{path} is a model card of an earlier version, which called the configuration a "
            "recipe; it was read as one.",
            EarlierFormatWarning,
            stacklevel=2,
        )
    else:
        validation.note_missing_format(fields, FORMAT, str(path))
    return config


def stored(config: TrainConfig) -> dict[str, Any]:
    """Return a configuration with all its values and its format, as a model card holds it."""
    return {"format": FORMAT, **asdict(config)}


def is_stored(config: TrainConfig, text: object) -> bool:
    """Whether a stored configuration (JSON) is this one; what it leaves out has its default."""
    try:
        found = untrusted.json_value(text) if isinstance(text, str) else None
    except ValueError:
        return False
    plain = untrusted.json_value(json.dumps(stored(config)))
    return isinstance(found, dict) and stored(TrainConfig()) | found == plain


# Fine markings need more of the larger sizes, and pictures as large as the last of them. There are
# 16,000 of those, 143 of a class: few enough that training is over once a million has been seen.
_MARKED = TrainConfig(
    image_set="marked-things",
    start="things16",
    images=16_000,
    source_size=128,
    phases=((64, 4500), (96, 2200), (128, 500)),
)

CONFIGS = {
    config.name: config
    for config in (
        TrainConfig(),
        TrainConfig(architecture="mobilenet_v3_small", phases=((64, 2800), (96, 900), (128, 280))),
        _MARKED,
        replace(_MARKED, architecture="mobilenet_v3_small"),
    )
}
