"""What decides a training run: sizes, steps, rates."""

from __future__ import annotations

import json
import math
import typing
import warnings
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval, MinLen, doc

from .. import located_yaml, untrusted, validation
from ..errors import EarlierFormatWarning, UnknownNameError, UsageError, worded
from ..images import data
from ..located_yaml import Fail
from .batches import Augmentation

Architecture = Literal["mobilenet_v3_large", "mobilenet_v3_small", "mobilenet_v2", "fbnet_a"]
ARCHITECTURES: tuple[str, ...] = typing.get_args(Architecture)
ImageSetName = Literal["things16", "marked-things"]
FORMAT = 1
"""Of stored configurations; a newer one is refused."""

_Count = Annotated[int, Ge(1)]
_Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]  # a million of them, and a step, fit 64 bits
_Side = Annotated[int, Interval(ge=16, le=4096)]  # pixels; as much as a model card may state
_NotNegative = Annotated[float, Ge(0)]
_Share = Annotated[float, Interval(ge=0, le=1)]
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
    seed: _Seed = 0
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

    def __post_init__(self) -> None:
        validation.check_fields(self)

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


@dataclass(frozen=True)
class FineTuningConfig:
    """Everything that decides a fine-tuning but the network, its teacher and the pictures.

    Attributes
    ----------
    steps, seconds
        How long; `train.fine_tune` needs one of the two. With `seconds` alone the rate follows the
        clock; with both, whichever ends first ends the run.
    size
        Side of the training images, in pixels.
    batch_size
        Images per step, of all processes together.
    learning_rate
        The highest, after the warm-up.
    images
        How many of the training images are used, at most.
    seed
        Of the order, the augmentation and dropout.
    label_smoothing
        Of the cross-entropy.
    weight_decay
        Of matrices and filters; vectors (biases, norms, scales) do not decay.
    temperature
        Of both softmaxes in the distillation term.
    distillation_weight
        Share of the distillation term in the loss, 0 to 1; the labels have the rest.
    freeze_batch_norm_at
        Share of the run (0 to 1) from which BatchNorm keeps its statistics; 0 for all of it.
    augmentation
        How the pictures are varied.
    """

    steps: _Count | None = None
    seconds: Annotated[float, Gt(0)] | None = None
    size: _Side = 96
    batch_size: Annotated[int, Ge(2)] = 64
    learning_rate: _NotNegative = 5e-4
    images: _Count = 8000
    seed: _Seed = 0
    label_smoothing: _Share = 0.05
    weight_decay: _NotNegative = 0.02
    temperature: Annotated[float, Gt(0)] = 2.0
    distillation_weight: _Share = 0.5
    freeze_batch_norm_at: _Share | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        validation.check_fields(self)

    def replaced(self, **settings: Any) -> FineTuningConfig:
        """Return a copy with other fields, e.g. ``replaced(steps=200)``.

        Raises
        ------
        UnknownNameError
            There is no such field; the message suggests the nearest.
        UsageError
            A field does not take that value; the message begins with its name.
        """
        known = [entry.name for entry in fields(self)]
        for name in settings:
            if name not in known:
                raise UnknownNameError("setting of a fine-tuning", name, known)
        return replace(self, **settings)


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
    found, place, fail = _read(path)
    config = validation.checked(TrainConfig, _values(found, place, fail), fail, place)
    if place == ("recipe",):
        warnings.warn(
            f"{path} is a model card of an earlier version, which called the configuration a "
            "recipe; it was read as one.",
            EarlierFormatWarning,
            stacklevel=2,
        )
    else:
        validation.note_missing_format(found, FORMAT, str(path))
    return config


def read_fine_tuning_config(
    path: str | Path, base: FineTuningConfig | None = None
) -> FineTuningConfig:
    """Read the settings of a fine-tuning from YAML or JSON, or those on the card of such a run.

    Parameters
    ----------
    path
        The file; ``format: 1`` and any fields of `FineTuningConfig`.
    base
        What a field has that the file leaves out; by default, its default.

    Raises
    ------
    UsageError
        As for `read_config`.
    """
    found, place, fail = _read(path)
    given = _values(found, place, fail)
    if isinstance(given, dict):
        values = asdict(base or FineTuningConfig())
        inner = given.get("augmentation")
        if isinstance(inner, dict):
            given = {**given, "augmentation": values["augmentation"] | inner}
        given = values | given
    config = validation.checked(FineTuningConfig, given, fail, place)
    validation.note_missing_format(found, FORMAT, str(path))
    return config


def _read(path: str | Path) -> tuple[Any, tuple[str, ...], Fail]:
    """Return the fields in a file, where in it they stand (in a card: below a key), and `fail`."""
    try:
        text = untrusted.text(path)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read as a training configuration: {worded(error)}."
        ) from None
    found, fail = located_yaml.read(text, str(path), "a training configuration", UsageError)
    if not isinstance(found, dict):
        raise fail((), "write fields and values, such as batch_size: 256")
    key = next((key for key in ("config", "recipe") if key in found), None)
    return (found, (), fail) if key is None else (found[key], (key,), fail)


def _values(found: Any, place: tuple[str, ...], fail: Fail) -> Any:
    return validation.without_format(found, FORMAT, fail, place)


def stored(config: TrainConfig | FineTuningConfig) -> dict[str, Any]:
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
        replace(_MARKED, architecture="mobilenet_v2", start=None),
        replace(_MARKED, architecture="fbnet_a", start=None),
    )
}


def shipped_config(architecture: str, image_set: str) -> TrainConfig:
    """Return the configuration of a checkpoint that is shipped.

    Raises
    ------
    UsageError
        The lab has none of this network for this set; the message names the sets that it has.
    """
    name = data.checkpoint_name(architecture, image_set)
    if name not in CONFIGS:
        sets = [c.image_set for c in CONFIGS.values() if c.architecture == architecture]
        raise UsageError(
            f"The lab has no schedule for {architecture} on {image_set}: pass --set "
            f"{' or '.join(sets)}, or --config with your own."
        )
    return CONFIGS[name]
