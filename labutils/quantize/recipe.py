"""How a network is quantized, as a frozen dataclass and as a YAML file that says the same.

A recipe names everything that a result depends on but the images: bits, symmetry, granularity,
calibration, repairs of the weights, and exceptions by node. `parse` reads YAML; `Recipe.save`
writes it, with all values, so that it loads back equal. The recipes of the lab: `presets`.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Interval, Lt

from .. import located_yaml, paths, typesetting, validation
from ..errors import UsageError
from .fixed_range import Magnitude, Range, keep_magnitude_, keep_range_

Method = Literal["minmax", "percentile", "entropy", "mse"]
IoType = Literal["float32", "quantized"]
MAX_IMAGES = 100_000  # of calibration; more is surely a typo
FORMAT = 1
"""Of the YAML; a newer one is refused."""
LATER = ("range", "limit", "weight_range", "equalize_gates", "flat_ends", "vector_outliers")
"""Fields that the first recipes did not have."""
PARTS = ("activations", "weights", "calibration")

Share = Annotated[float, Interval(ge=0.0, le=1.0)]


@dataclass(frozen=True)
class Activations:
    """The tensors that flow: one scale each, stored unsigned.

    Attributes
    ----------
    bits
        8 or 16.
    symmetric
        The zero point in the middle of the codes; otherwise the range is used as it is.
    power_of_two
        Scales rounded up to a power of two, as fixed-point accelerators want them.
    range
        (low, high) of every tensor, whatever calibration saw (TI's R4 is -4 to 4); a tensor that
        calibration saw on one side of zero only takes that side. With powers of two, the codes
        end one step below `high`.
    """

    bits: Literal[8, 16] = 8
    symmetric: bool = False
    power_of_two: bool = False
    range: Range = None

    def __post_init__(self) -> None:
        keep_range_(self)


@dataclass(frozen=True)
class Weights:
    """The constants of convolutions and matrix products, stored signed.

    Attributes
    ----------
    bits
        4, 8 or 16.
    symmetric
        Zero point 0; the HTP takes nothing else per channel.
    per_channel
        One scale per output channel instead of one per tensor.
    power_of_two
        As for `Activations`.
    mse
        The range that makes the least squared error, instead of the whole one.
    limit
        The greatest magnitude that codes reach (TI's M4 is 4); greater weights are clipped to it.
    """

    bits: Literal[4, 8, 16] = 8
    symmetric: bool = True
    per_channel: bool = True
    power_of_two: bool = False
    mse: bool = False
    limit: Magnitude | None = None

    def __post_init__(self) -> None:
        keep_magnitude_(self, "limit")


@dataclass(frozen=True)
class Calibration:
    """Where the ranges of activations come from.

    Attributes
    ----------
    method
        ``minmax``, ``percentile``, ``entropy`` (Kullback-Leibler divergence of 8-bit histograms),
        ``mse`` (least mean squared error).
    images
        Calibration images, taken from the calibration split.
    outliers
        For ``minmax``: share of the images whose extremes a range may leave out, on either side.
    percentile
        For ``percentile``: percent of a tensor's values that a range keeps.
    room
        Factor by which the range of a 16-bit activation is longer than what calibration saw, for
        images that reach beyond. 65,536 codes can spare it; with 8 bits it would cost.
    vector_outliers
        As `outliers`, for tensors with one value per channel and image, as in a
        squeeze-excitation or at the logits; None takes the same. An extreme is one value there,
        not the greatest of thousands: as large a share cuts off more of what images differ by.
    """

    method: Method = "minmax"
    images: Annotated[int, Interval(ge=1, le=MAX_IMAGES)] = 256
    outliers: Annotated[float, Ge(0.0), Lt(0.5)] = 0.0
    percentile: Annotated[float, Interval(ge=50.0, le=100.0)] = 99.99
    room: Annotated[float, Interval(ge=1.0, le=4.0)] = 1.0
    vector_outliers: Annotated[float, Ge(0.0), Lt(0.5)] | None = None


@dataclass(frozen=True)
class Qat:
    """Quantization-aware training: how the network learns to live with the rounding.

    Attributes
    ----------
    scales
        ``learned``: steps are trained with the weights, from the calibrated ranges on (LSQ);
        ``observed``: ranges follow the batches until they are frozen.
    freeze_at
        For ``observed``: the share of the run after which ranges stay.
    steps, batch_size, size
        Length of the run, images in a step, and their side in pixels (0: the checkpoint's own).
    learning_rate
        Peak of the cosine; small, because the network is trained already.
    distillation
        Share of the loss that asks for the float network's answers instead of the labels.
    temperature
        Of the distillation's softmax (Hinton et al. 2015).
    """

    scales: Literal["learned", "observed"] = "learned"
    freeze_at: Share = 0.5
    steps: Annotated[int, Interval(ge=1, le=100_000)] = 300
    batch_size: Annotated[int, Interval(ge=1, le=4096)] = 48
    size: Annotated[int, Interval(ge=0, le=4096)] = 0
    learning_rate: Annotated[float, Interval(ge=0.0, le=10.0)] = 2e-4
    distillation: Share = 0.9
    temperature: Annotated[float, Interval(ge=0.1, le=1000.0)] = 2.0


@dataclass(frozen=True)
class Override:
    """An exception for some nodes; of several that match, the last one that says a thing wins.

    Attributes
    ----------
    node
        A glob over node names, as ``/features/features.16/*``; `*` crosses slashes.
    op_type
        A glob over operator types, as ``HardSigmoid``; given with `node`, both must match.
    activations
        Bits of the tensors that the node reads and writes.
    weights
        Bits of its weights.
    per_channel, method
        Of its weights; of the ranges of the tensors that it writes.
    range
        (low, high) of the tensors that it writes, instead of calibration's; training keeps it.
    weight_range
        The magnitude that the codes of its weights reach, as 4 for -4 to 4; training keeps it.
    """

    node: str = "*"
    op_type: str = "*"
    activations: Literal[8, 16] | None = None
    weights: Literal[4, 8, 16] | None = None
    per_channel: bool | None = None
    method: Method | None = None
    range: Range = None
    weight_range: Magnitude | None = None

    def __post_init__(self) -> None:
        keep_range_(self)
        keep_magnitude_(self, "weight_range")

    def idle_range(self) -> str:
        """Return what to tell somebody whose range reaches no tensor that is rounded."""
        asked = self.node if self.node != "*" else self.op_type
        return (
            f"The range {list(self.range or ())} for {asked!r} would do nothing: what such nodes "
            "write is not rounded. A Conv before a Relu is rounded after the Relu: give the range "
            "to that one."
        )

    def matches(self, node: str, op_type: str) -> bool:
        """Return whether a node of this name and operator is meant."""
        return fits(node, self.node) and fits(op_type, self.op_type)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a network is quantized.

    Attributes
    ----------
    name, about
        For tables and manifests.
    activations, weights, calibration
        The defaults of every node.
    equalize
        Cross-layer equalization, where it is exact (Nagel et al. 2019).
    equalize_gates
        HardSwish and SiLU apart in value and gate, where one channel of the value reaches much
        farther than the others, and the channels equalized; exact, too (see `gates`).
    flat_ends
        Ranges end where all that reads a tensor is flat, as HardSigmoid is beyond -3 and 3.
    correct_bias
        Give back the mean that rounding took from each output channel (Nagel et al. 2019).
    rounding
        ``nearest``, or ``adaptive``: up or down as the layer's output errs least (see `rounding`).
    overrides
        Exceptions by node.
    exclude
        Globs of nodes that stay in float.
    qat
        Training with the rounding in place; None is quantization after training only.
    input, output
        ``float32``, or ``quantized``: the file then takes (gives) the integers themselves.
    """

    name: str = "int8"
    about: str = ""
    activations: Activations = Activations()
    weights: Weights = Weights()
    calibration: Calibration = Calibration()
    equalize: bool = False
    equalize_gates: bool = False
    flat_ends: bool = False
    correct_bias: bool = False
    rounding: Literal["nearest", "adaptive"] = "nearest"
    overrides: tuple[Override, ...] = ()
    exclude: tuple[str, ...] = ()
    qat: Qat | None = None
    input: IoType = "float32"
    output: IoType = "float32"

    def __post_init__(self) -> None:
        for name, kind in (("overrides", Override), ("exclude", str)):
            given = getattr(self, name)
            if not isinstance(given, tuple | list) or not all(isinstance(g, kind) for g in given):
                one = 'Override(node="...")' if kind is Override else '"..."'
                raise UsageError(
                    f"A recipe's {name} must be a tuple, even a single one: {name}=({one},), with "
                    f"the comma. Found {given!r:.80}."
                )
            object.__setattr__(self, name, tuple(given))

    @property
    def kind(self) -> str:
        """The words of a table: ``int8``, ``a16w8``, ``mixed`` and the like."""
        default, weight = self.activations.bits, self.weights.bits
        if any((o.activations or default) != default for o in self.overrides):
            return "mixed"
        return {(8, 8): "int8", (16, 8): "a16w8"}.get((default, weight), f"a{default}w{weight}")

    @property
    def sha256(self) -> str:
        """SHA-256 of everything that decides the result: all fields but `name` and `about`.

        What came later and is not set is left out: earlier recipes keep their hash.
        """
        facts = dataclasses.asdict(self)
        del facts["name"], facts["about"]
        for part in (facts, *map(facts.get, PARTS), *facts["overrides"]):
            for later in LATER:
                if part.get(later, "") in (None, False):
                    del part[later]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def setting(self, node: str, op_type: str, what: str) -> Any:
        """Return an override's `what` for a node, None where the default holds."""
        for override in reversed(self.overrides):
            value = getattr(override, what)
            if value is not None and override.matches(node, op_type):
                return value
        return None

    def excluded(self, node: str) -> bool:
        """Return whether a node of this name stays in float."""
        return any(fits(node, glob) for glob in self.exclude)

    def replaced(self, **changes: Any) -> Recipe:
        """Return a copy with other fields, e.g. ``replaced(name="mine", equalize=True)``."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return the format and all values, as a manifest keeps them.

        All of them, because a default that changes must not change what an old file meant.
        """
        return {"format": FORMAT} | _plain(dataclasses.asdict(self))

    def to_yaml(self) -> str:
        """Return the recipe with all its values as YAML that `parse` reads back equal."""
        return located_yaml.written(self.to_dict())

    def save(self, file: str | Path) -> Path:
        """Write the YAML; the file appears at once."""
        paths.write_text(file, self.to_yaml())
        return Path(file)

    def __str__(self) -> str:
        """Return YAML without what is at its default: what makes this recipe this one."""
        return located_yaml.written({"format": FORMAT} | _sparse(self)).rstrip()

    def _repr_html_(self) -> str:
        return typesetting.listing(str(self))


def fits(name: str, glob: str) -> bool:
    """Return whether a name matches a glob, whose `*` crosses slashes."""
    return fnmatch.fnmatchcase(name, glob)


def parse(text: str, file: str = "recipe", *, note: bool = False) -> Recipe:
    """Return the recipe in YAML `text`.

    Parameters
    ----------
    text
        What it leaves out is at its default.
    file
        Its name, for messages.
    note
        Whether to say in a line that it has no format number.

    Raises
    ------
    UsageError
        Not YAML, or an unknown key, a wrong type or a value outside its limits: with the line.
    """
    data, fail = located_yaml.read(text, file, "a recipe", UsageError)
    data = {} if data is None else data
    if isinstance(data, dict) and "outline" in data:
        raise fail(
            ("outline",),
            "these are the edits of a surgery, not a recipe: replay them with `labutils repair "
            "--replay`",
        )
    values = validation.without_format(data, FORMAT, fail)
    made = validation.checked(Recipe, values, fail)
    if note:
        validation.note_missing_format(data, FORMAT, file)
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def _sparse(item: Any) -> Any:
    """Return a dataclass as plain values without its defaults (but the name)."""
    if isinstance(item, tuple):
        return [_sparse(value) for value in item]
    if not dataclasses.is_dataclass(item):
        return item
    found = {}
    for entry in dataclasses.fields(item):
        value = getattr(item, entry.name)
        if value != entry.default or entry.name == "name":
            found[entry.name] = _sparse(value)
    return found
