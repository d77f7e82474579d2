"""The plan of a compression: one YAML file that decides every stage, from surgery to the DLC."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from ... import located_yaml, paths, prune, surgery, untrusted, validation
from ...errors import UnknownNameError, UsageError, worded
from ...quantize import presets
from ...train import FineTuningConfig

FORMAT = 1
"""Of the YAML; a newer one is refused."""

AUTO = "auto"
"""Among the rules of a surgery: the exact ones that the target asks for."""

_Count = Annotated[int, Ge(1)]
_Part = Annotated[float, Interval(gt=0, le=1)]
_Share = Annotated[float, Interval(ge=0, le=1)]
_Names = tuple[str, ...]


class MisfitError(UsageError):
    """Values that are allowed one by one and contradict each other, with their place in a plan."""

    def __init__(self, place: tuple[str, ...], problem: str) -> None:
        super().__init__(problem)
        self.place = place


def _refuse_clock(stage: str, training: FineTuningConfig) -> None:
    """Refuse a training that the clock ends: after a kill it would end at another step."""
    if training.seconds is not None or training.steps is None:
        words = f"The training of {stage} needs steps, and no seconds, so that it can be resumed."
        raise MisfitError((stage, "training"), words)


@dataclass(frozen=True)
class CompressionBudget:
    """What the result may cost; all that is given is wanted, and at least one is.

    Attributes
    ----------
    macs, parameters
        At most this share of the original's.
    latency
        At most this share of the original's time on ONNX Runtime, both in float: one image, one
        thread, in turns.
    megabytes
        At most this size of the quantized ONNX file (1 MB is 1e6 bytes).
    points
        At most this loss of top-1, in percentage points, against the better of the original and
        the original trained as long.
    """

    macs: _Part | None = None
    parameters: _Part | None = None
    latency: _Part | None = None
    megabytes: Annotated[float, Gt(0)] | None = None
    points: Annotated[float, Ge(0)] | None = None

    def __post_init__(self) -> None:
        if all(value is None for value in asdict(self).values()):
            names = ", ".join(entry.name for entry in dataclasses.fields(self))
            words = f"A budget says at least one of {names}, such as macs=0.5,points=1."
            raise MisfitError(("budget",), words)

    @classmethod
    def parse(cls, text: str) -> CompressionBudget:
        """Return the budget that ``macs=0.5,megabytes=2,points=1`` says.

        Raises
        ------
        UsageError
            It is not of that form, or a number is out of range.
        """
        values: dict[str, float] = {}
        for item in text.split(","):
            name, _, number = (part.strip() for part in item.partition("="))
            try:
                values[name] = float(number)
            except ValueError:
                raise UsageError(
                    f"The budget {untrusted.shown(item.strip())} is not NAME=NUMBER, such as "
                    "macs=0.5,megabytes=2,points=1."
                ) from None

        def fail(path: tuple[str | int, ...], problem: str) -> UsageError:
            where = ".".join(map(str, path)) or "it"
            words = f"The budget {untrusted.shown(text)}: {where}: {problem}"
            return UsageError(words if words.endswith("?") else f"{words}.")

        return validation.checked(cls, values, fail)

    def __str__(self) -> str:
        return ", ".join(f"{k} {v:g}" for k, v in asdict(self).items() if v is not None)


@dataclass(frozen=True)
class SurgeryPlan:
    """Which layers are replaced first.

    Attributes
    ----------
    rules
        Names of rules or sets, such as ``lite``; ``auto``: the exact rules that the target asks
        for. Empty leaves the network as it is.
    training
        How the network is trained afterwards, where a rule changes what it computes.
    """

    rules: _Names = (AUTO,)
    training: FineTuningConfig = field(default_factory=lambda: FineTuningConfig(steps=300))

    def __post_init__(self) -> None:
        for name in self.rules:
            if name != AUTO and name not in surgery.SETS and name not in surgery.RULES:
                known = [AUTO, *surgery.SETS, *surgery.RULES]
                unknown = UnknownNameError("surgery rule", name, known)
                raise MisfitError(("surgery", "rules"), str(unknown))
        _refuse_clock("surgery", self.training)


@dataclass(frozen=True)
class PruningPlan:
    """How channels go until the budget of MACs, parameters, time and size is kept to.

    Attributes
    ----------
    criterion
        What rates them, as in `prune.plan`; ``taylor`` rates on training images.
    exclude
        Globs of layers that stay.
    multiple
        Widths are multiples of this.
    schedule, end
        How masks come into force, and after which share of the run all have. One-shot, the
        channels are removed before the training.
    images
        Training images on which each group's sensitivity is measured.
    bits
        Width of a weight that a budget of megabytes counts on, on average: fewer leave more
        channels, and more layers at 4 bits.
    training
        How the network is trained.
    """

    criterion: Literal["l1", "l2", "bn_scale", "fpgm", "taylor"] = "taylor"
    exclude: _Names = ()
    multiple: _Count = 8
    schedule: Literal["one-shot", "incremental", "cubic", "blend"] = "one-shot"
    end: _Share = 0.5
    images: _Count = 256
    bits: Annotated[float, Interval(ge=4, le=8)] = 5.0
    training: FineTuningConfig = field(default_factory=lambda: FineTuningConfig(steps=600))

    def __post_init__(self) -> None:
        _refuse_clock("pruning", self.training)


@dataclass(frozen=True)
class QuantizationPlan:
    """How the network is quantized, and trained with the rounding in place.

    Attributes
    ----------
    recipe
        A preset, or a YAML file, with 8-bit activations: what mixed precision starts from.
    mac_share
        At most this share of the MACs gets 16-bit activations, where they pay most.
    calibration
        Images that ranges are measured on.
    steps, size
        Of the training; None for what the recipe says. 0 steps leave it out.
    """

    recipe: str = "int8"
    mac_share: _Share = 0.15
    calibration: _Count = 256
    steps: Annotated[int, Ge(0)] | None = None
    size: Annotated[int, Ge(16)] | None = None


@dataclass(frozen=True)
class EvaluationPlan:
    """What the stages are measured on.

    Attributes
    ----------
    part
        Of a drawn set. Of a folder it is its val/, or test/ where that is missing.
    images
        How many; None for as many as the model cards are about, or all of a folder's.
    simulated
        Of those, how many the DLC runs on the simulator.
    control
        Whether the original is trained for as many steps on the same images, so that points are
        against the better of the two.
    """

    part: Literal["val", "test"] = "val"
    images: _Count | None = None
    simulated: _Count = 96
    control: bool = True


@dataclass(frozen=True)
class CompressionPlan:
    """Everything that decides a compression.

    Attributes
    ----------
    model, weights
        As `zoo.load` takes them; a network by name.
    budget
        What the result may cost.
    data, image_set
        What is learned: a folder of pictures, or a set of `data.DRAWN`; of neither, the set that
        the weights learned.
    target
        What the DLC is made for.
    surgery, pruning, quantization
        The stages.
    evaluation
        What they are measured on.
    """

    model: str
    budget: CompressionBudget
    weights: str = "auto"
    data: str | None = None
    image_set: Literal["things16", "marked-things"] | None = None
    target: str = "qnn"
    surgery: SurgeryPlan = SurgeryPlan()
    pruning: PruningPlan = PruningPlan()
    quantization: QuantizationPlan = QuantizationPlan()
    evaluation: EvaluationPlan = EvaluationPlan()

    def __post_init__(self) -> None:
        if self.data and self.image_set:
            words = "data and image_set are two things to learn: give one of them."
            raise MisfitError(("image_set",), words)

    def with_steps(self, steps: int) -> CompressionPlan:
        """Return the plan with this many steps for each of its trainings."""

        def changed(stage: Any) -> Any:
            training = dataclasses.replace(stage.training, steps=steps, seconds=None)
            return dataclasses.replace(stage, training=training)

        return dataclasses.replace(
            self, surgery=changed(self.surgery), pruning=changed(self.pruning),
            quantization=dataclasses.replace(self.quantization, steps=steps),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Return the format and all values, as plain ones."""
        return {"format": FORMAT} | _plain(asdict(self))

    def to_yaml(self) -> str:
        """Return YAML that `parse_plan` reads back equal."""
        return located_yaml.written(self.to_dict())

    def save(self, file: str | Path) -> Path:
        """Write the YAML; the file appears at once."""
        paths.write_text(file, self.to_yaml())
        return Path(file)


def load_plan(file: str | Path) -> CompressionPlan:
    """Read a plan; what it leaves out is at its default.

    Raises
    ------
    UsageError
        It cannot be read, or is not a plan; the message names the line.
    """
    try:
        text = untrusted.text(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read the plan {file}: {worded(error)}.") from None
    return parse_plan(text, Path(file).name)


def parse_plan(text: str, file: str = "plan") -> CompressionPlan:
    """Return the plan in YAML `text`; `file` is its name for messages.

    Raises
    ------
    UsageError
        As for `load_plan`.
    """
    found, fail = located_yaml.read(text, file, "a plan of a compression", UsageError)
    if not isinstance(found, dict):
        raise fail((), "write fields and values, such as model: mobilenet_v3_large")
    values = validation.without_format(found, FORMAT, fail)
    for place, training in _trainings(values):
        whole = asdict(FineTuningConfig(steps=_steps(place[0])))
        inner = training.get("augmentation")
        if isinstance(inner, Mapping):
            training = training | {"augmentation": whole["augmentation"] | dict(inner)}
        values = values | {place[0]: values[place[0]] | {"training": whole | training}}
    try:
        made = validation.checked(CompressionPlan, values, fail)
    except MisfitError as error:
        raise fail(error.place, str(error).rstrip(".")) from None
    try:
        presets.load(made.quantization.recipe)
    except UnknownNameError as error:
        raise fail(("quantization", "recipe"), str(error).rstrip(".")) from None
    validation.note_missing_format(found, FORMAT, file)
    return made


def _trainings(values: Mapping[str, Any]) -> list[tuple[tuple[str, str], dict[str, Any]]]:
    """Return where the file says how to train, and what."""
    stages = ((name, values.get(name)) for name in ("surgery", "pruning"))
    return [
        ((name, "training"), stage["training"])
        for name, stage in stages
        if isinstance(stage, dict) and isinstance(stage.get("training"), dict)
    ]


def _steps(stage: str) -> int | None:
    usual: SurgeryPlan | PruningPlan = SurgeryPlan() if stage == "surgery" else PruningPlan()
    return usual.training.steps


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple) else value


def structural(budget: CompressionBudget, bits: float) -> prune.Budget | None:
    """Return what pruning is asked for; None where the budget asks for none.

    A tenth of the file is counted for what are not weights: scales, names, nodes.
    """
    float_mb = None if budget.megabytes is None else 0.9 * budget.megabytes * 32 / bits
    asked = (budget.macs, budget.parameters, float_mb, budget.latency)
    return prune.Budget(*asked) if any(value is not None for value in asked) else None
