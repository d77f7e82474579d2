"""The plan of benchmarks/quantization.py: which rows there are, what makes each, and its key."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType
from typing import Any

import content_cache
from peer_environments import ENVIRONMENTS, Environment
from quantization_inputs import PROGRAM, SIZE, Inputs, tool
from quantization_makers import corrected, exported, searched, static, trained
from quantization_peers import (
    by_onnxruntime,
    by_onnxruntime_mixed,
    by_onnxruntime_qnn,
    by_program,
    by_torchao,
    by_torchao_xnnpack,
)
from quantization_training import by_torchao_qat, trained_as_long

from labutils import export, quantize, train
from labutils.quantize import presets, pt2e
from labutils.quantize import recipe as recipes

ARCHITECTURES = ("mobilenet_v3_large", "mobilenet_v3_small")
LARGE = ARCHITECTURES[:1]


@dataclass(frozen=True)
class Row:
    """One line of the table, for each network.

    Attributes
    ----------
    group, by, name
        Words for the table; `by` is ``ours``, ``peer``, or empty for the float network.
    make
        Writes the file: ``make(architecture, file, inputs)``; returns the seconds of its training,
        or of its quantizing where it knows better than a clock around it, else None.
    htp
        For which networks the HTP simulator runs the same file as well: a further line each.
    """

    group: str
    by: str
    name: str
    make: functools.partial
    htp: tuple[str, ...] = ()

    @property
    def recipe(self) -> recipes.Recipe | None:
        """The recipe that the row is made with, where it has one."""
        found = self.make.keywords.get("recipe")
        return found if isinstance(found, recipes.Recipe) else None

    @property
    def trains(self) -> bool:
        """Whether the network is trained."""
        return self.recipe is not None and self.recipe.qat is not None

    @property
    def _packages(self) -> tuple[ModuleType, ...]:
        """The lab's packages that the file depends on: of a peer's not what quantizes here."""
        if self.by == "ours" or (self.recipe and not self.environment and not self.trains):
            return quantize, train, export
        if self.trains:  # the schedule is a recipe's, and is in the settings
            return (train, export) if self.environment else (pt2e, train, export)
        return (export,)

    def _programs(self) -> dict[str, Any]:
        """Return the digest of what makes the file here, and the versions of the packages there."""
        names = ["inputs", "peers" if self.by == "peer" else "makers"]
        names += ["training"] if self.trains else []
        programs = [Path(__file__).with_name(f"quantization_{name}.py") for name in names]
        environment = self.environment
        made = content_cache.code(*programs, *([environment.script] if environment else []))
        return {"makers": made} | (environment.versions if environment else {})

    @property
    def environment(self) -> Environment | None:
        """The separate environment that makes the file, where one does."""
        return ENVIRONMENTS.get(self.make.keywords.get("tool", ""))

    @property
    def runtime(self) -> str:
        """What runs the file."""
        return self.environment.runtime if self.environment else "ORT"

    def content(self, architecture: str, inputs: Inputs) -> dict[str, Any]:
        """Return all that the file depends on, as plain values."""
        settings = {k: _plain(v) for k, v in self.make.keywords.items()}
        used: dict[str, Any] = {"calib": inputs.calibration, "size": SIZE, "set": inputs.image_set}
        if self.trains:
            used |= {"train": inputs.training, "steps": inputs.steps}
        return {
            "maker": self.make.func.__name__, "settings": settings, "inputs": used,
            "checkpoint": inputs.checkpoint(architecture), "images": content_cache.drawn(),
            "tool": tool(*self._packages) | self._programs(),
        }  # fmt: skip

    def file(self, architecture: str, inputs: Inputs) -> Path:
        """Return where the file is kept: the name changes with its content."""
        key = content_cache.key(**self.content(architecture, inputs))
        suffix = self.environment.suffix if self.environment else ".onnx"
        return content_cache.folder(PROGRAM) / f"{architecture}_{key}{suffix}"


def _plain(value: Any) -> Any:
    return value.to_yaml() if isinstance(value, recipes.Recipe) else value


@dataclass(frozen=True)
class Line:
    """A row, for one network, in one runtime: a line of the table."""

    architecture: str
    row: Row
    runtime: str

    @property
    def words(self) -> str:
        """What `--only` is compared with."""
        return f"{self.architecture}, {self.row.group}, {self.row.name}, {self.runtime}"


def plan(only: str = "*") -> Iterator[Line]:
    """Yield the lines of the table in their order; of some, where their words match a glob."""
    for architecture in ARCHITECTURES:
        lines = [Line(architecture, row, row.runtime) for row in ROWS]
        lines += [Line(architecture, r, "HTP simulator") for r in ROWS if architecture in r.htp]
        yield from (line for line in lines if fnmatchcase(line.words.lower(), only.lower()))


# ---------------------------------------------------------------- the rows


def ours(group: str, name: str, recipe: str | recipes.Recipe, htp: tuple[str, ...] = ()) -> Row:
    """Return a row of the lab's own: trained where the recipe says so, else after training."""
    chosen = presets.load(recipe)
    make = functools.partial(trained if chosen.qat else static, recipe=chosen)
    return Row(group, "ours", name, make, htp)


def peer(group: str, name: str, maker: Callable, **settings: Any) -> Row:
    """Return a row of another's quantizer."""
    return Row(group, "peer", name, functools.partial(maker, **settings))


TRIM = presets.PRESETS["int8_trim"]
INT8 = presets.PRESETS["int8"]
TENSOR = TRIM.replaced(name="int8_trim_tensor", weights=recipes.Weights(per_channel=False))
INT8_TENSOR = INT8.replaced(name="int8_one_scale", weights=recipes.Weights(per_channel=False))
QAT8, QAT4 = presets.PRESETS["int8_qat"], presets.PRESETS["w4a8_qat"]

CHANNEL, PER_TENSOR, W4, WIDE = "int8 per channel", "int8 per tensor", "w4a8", "16 bits mixed"
TRAINED8, TRAINED4 = "QAT int8", "QAT w4a8"

CHOSEN = {
    CHANNEL: "PTQ int8",
    PER_TENSOR: "PTQ int8, one scale per tensor",
    W4: "PTQ w4a8, adaptive rounding",
    WIDE: "mixed, 15 % of the MACs",
    TRAINED8: "QAT int8",
    TRAINED4: "QAT w4a8",
}
"""Group -> our preset, which the verdict is about whatever our other rows score."""


def ti(name: str, **settings: Any) -> Row:
    """Return a row of `corrected`, one scale per tensor."""
    return Row(PER_TENSOR, "ours", name, functools.partial(corrected, recipe=TENSOR, **settings))


def aimet(group: str, name: str, **settings: Any) -> Row:
    """Return a row of AIMET after training, with its description of a v81 HTP."""
    return peer(group, f"AIMET, {name}", by_program, tool="aimet", **settings)


def nncf(group: str, name: str, **settings: Any) -> Row:
    """Return a row of NNCF after training."""
    return peer(group, f"NNCF, {name}", by_program, tool="nncf", **settings)


def torchao(group: str, name: str, maker: Callable, **settings: Any) -> Row:
    """Return a row of torchao's."""
    return peer(group, f"torchao pt2e{name}", maker, **settings)


QNN8 = {"maker": by_onnxruntime_qnn, "weight": "QInt8"}
QNN = "ONNX Runtime, QNN configuration"
SQNR: dict[str, Any] = {"scheme": "tf_enhanced"}
ROWS = (
    Row("float", "", "fp32", functools.partial(exported)),
    Row("float", "", "fp32, trained as long as QAT int8",
        functools.partial(trained_as_long, recipe=QAT8)),
    Row("float", "", "fp32, trained as long as QAT w4a8",
        functools.partial(trained_as_long, recipe=QAT4)),
    ours(CHANNEL, "PTQ int8", INT8, htp=LARGE),
    peer(CHANNEL, QNN, **QNN8, per_channel=True),
    torchao(CHANNEL, ", XNNPACK quantizer", by_torchao_xnnpack, per_channel=True),
    torchao(CHANNEL, " route, min-max", by_torchao, recipe=presets.load("int8@1")),
    peer(CHANNEL, "ai-edge-quantizer, static int8", by_program, tool="litert",
         kind="static_wi8_ai8"),
    peer(CHANNEL, "ExecuTorch, XNNPACK quantizer", by_program, tool="executorch",
         per_channel=True),
    nncf(CHANNEL, "mixed preset", preset="mixed"),
    nncf(CHANNEL, "mixed preset, accurate bias correction", preset="mixed", fast=False),
    aimet(CHANNEL, "min-max", scheme="min_max"),
    aimet(CHANNEL, "SQNR ranges, equalized", **SQNR, equalize=True),
    ours(PER_TENSOR, "PTQ int8, one scale per tensor", INT8_TENSOR),
    ti("int8_trim, one scale per tensor"),
    ti("int8_trim, biases calibrated", biases=True),
    ti("int8_trim, weights within 32 medians", ratio=32.0),
    ti("int8_trim, weights within 16 medians", ratio=16.0),
    peer(PER_TENSOR, "ONNX Runtime, defaults", by_onnxruntime),
    peer(PER_TENSOR, QNN, **QNN8, per_channel=False),
    torchao(PER_TENSOR, ", XNNPACK quantizer", by_torchao_xnnpack, per_channel=False),
    peer(PER_TENSOR, "ExecuTorch, XNNPACK quantizer", by_program, tool="executorch",
         per_channel=False),
    nncf(PER_TENSOR, "mixed preset", preset="mixed", per_channel=False),
    aimet(PER_TENSOR, "SQNR ranges", **SQNR, per_channel=False),
    aimet(PER_TENSOR, "SQNR ranges, equalized", **SQNR, per_channel=False, equalize=True),
    ours(W4, "PTQ w4a8", "w4a8"),
    ours(W4, "PTQ w4a8, adaptive rounding", "w4a8_adaptive"),
    peer(W4, QNN, by_onnxruntime_qnn, weight="QInt4", per_channel=True),
    torchao(W4, " route, min-max", by_torchao, recipe=presets.load("w4a8@1")),
    aimet(W4, "SQNR ranges", **SQNR, weights=4),
    aimet(W4, "sequential MSE", scheme="min_max", weights=4, rounding="seq_mse"),
    Row(WIDE, "ours", "mixed, 15 % of the MACs",
        functools.partial(searched, recipe=INT8, mac_share=0.15), LARGE),
    ours(WIDE, "PTQ a16w8, all 16-bit", "a16w8"),
    ours(WIDE, "PTQ a16w8, ranges with room", "a16w8_room"),
    peer(WIDE, "ONNX Runtime, QNN, all 16-bit", **QNN8, per_channel=True, activation="QUInt16"),
    peer(WIDE, "ONNX Runtime, QNN, the worst 10 % of the tensors", by_onnxruntime_mixed, share=0.1),
    aimet(WIDE, "5 % of the layers flipped", **SQNR, flip=5),
    aimet(WIDE, "10 % of the layers flipped", **SQNR, flip=10),
    aimet(WIDE, "all 16-bit", scheme="min_max", activations=16),
    ours(TRAINED8, "QAT int8", QAT8),
    torchao(TRAINED8, ", XNNPACK quantizer", by_torchao_qat, recipe=QAT8, bits=8),
    peer(TRAINED8, "AIMET, range learning", by_program, tool="aimet_train", recipe=QAT8, weights=8),
    peer(TRAINED8, "NNCF, mixed preset", by_program, tool="nncf_train", recipe=QAT8),
    ours(TRAINED4, "QAT w4a8", QAT4),
    torchao(TRAINED4, ", XNNPACK quantizer", by_torchao_qat, recipe=QAT4, bits=4),
    peer(TRAINED4, "AIMET, range learning", by_program, tool="aimet_train", recipe=QAT4, weights=4),
)  # fmt: skip
