"""The plan of benchmarks/quantization.py: which rows there are, what makes each, and its key."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import content_cache
import torch
from quantization_inputs import PREPROCESSING, PROGRAM, SIZE, Inputs, float_file, tool
from quantization_peers import (
    LITERT,
    by_litert,
    by_onnxruntime,
    by_onnxruntime_qnn,
    by_torchao,
    by_torchao_xnnpack,
)

from labutils import paths, quantize
from labutils.models import zoo
from labutils.quantize import mixed
from labutils.quantize import recipe as recipes
from labutils.quantize.training import corrections, qat

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
    backend
        ``ort``, or ``litert``.
    htp
        For which networks the HTP simulator runs the same file as well: a further line each.
    """

    group: str
    by: str
    name: str
    make: functools.partial
    backend: str = "ort"
    htp: tuple[str, ...] = ()

    def content(self, architecture: str, inputs: Inputs) -> dict[str, Any]:
        """Return all that the file depends on, as plain values."""
        settings = {k: _plain(v) for k, v in self.make.keywords.items()}
        used: dict[str, Any] = {"calib": inputs.calibration, "size": SIZE}
        recipe = self.make.keywords.get("recipe")
        if isinstance(recipe, recipes.Recipe) and recipe.qat:
            used |= {"train": inputs.training, "steps": inputs.steps}
        return {
            "maker": self.make.func.__name__, "settings": settings, "inputs": used,
            "checkpoint": content_cache.checkpoint(architecture), "images": content_cache.drawn(),
            "tool": tool() | _makers(self.backend),
        }  # fmt: skip

    def file(self, architecture: str, inputs: Inputs) -> Path:
        """Return where the file is kept: the name changes with its content."""
        key = content_cache.key(**self.content(architecture, inputs))
        suffix = ".tflite" if self.backend == "litert" else ".onnx"
        return content_cache.folder(PROGRAM) / f"{architecture}_{key}{suffix}"


def _plain(value: Any) -> Any:
    return value.to_yaml() if isinstance(value, recipes.Recipe) else value


def _makers(backend: str) -> dict[str, Any]:
    programs = [f"quantization_{name}.py" for name in ("rows", "peers")]
    programs += ["litert_quantize.py"] if backend == "litert" else []
    made = content_cache.code(*(Path(__file__).with_name(name) for name in programs))
    return {"makers": made} | ({"litert": LITERT} if backend == "litert" else {})


@dataclass(frozen=True)
class Line:
    """A row, for one network, in one runtime: a line of the table."""

    architecture: str
    row: Row
    runtime: str


def plan() -> Iterator[Line]:
    """Yield every line of the table, in its order."""
    for architecture in ARCHITECTURES:
        for row in ROWS:
            yield Line(architecture, row, "LiteRT" if row.backend == "litert" else "ORT")
        for row in ROWS:
            if architecture in row.htp:
                yield Line(architecture, row, "HTP simulator")


# ---------------------------------------------------------------- ours


def exported(architecture: str, file: Path, inputs: Inputs) -> None:
    """Copy the float export: the network that all others are compared with."""
    shutil.copyfile(float_file(architecture), file)


def trained(architecture: str, file: Path, inputs: Inputs, *, recipe: recipes.Recipe) -> float:
    """Train with the rounding in place, write the file, and return the seconds of the training."""
    network, seconds = _fitted(architecture, file.with_suffix(".pt"), inputs, recipe)
    print(qat.to_qdq(network, file, size=SIZE, preprocessing=PREPROCESSING))
    return seconds


def _fitted(
    architecture: str, kept: Path, inputs: Inputs, recipe: recipes.Recipe
) -> tuple[torch.nn.Module, float]:
    """Return a network after QAT, and the seconds that its training took (once, when it ran)."""
    model = zoo.load(architecture, weights="things16").module
    network = qat.prepare(model, recipe, size=SIZE)
    if not kept.exists():
        print(qat.calibrate_(network, inputs.calibration_set(), PREPROCESSING))
        start = time.time()

        def on_step(step: int, last: int, _: torch.nn.Module) -> None:
            if step % 10 == 0:
                print(f"  {architecture} {recipe.name}: step {step}/{last}, "
                      f"{time.time() - start:.0f} s", flush=True)  # fmt: skip

        done = qat.fit_(
            network, teacher=model, steps=inputs.steps, images=inputs.training, on_step=on_step
        )
        print(done, flush=True)
        with paths.atomic(kept) as temporary:
            torch.save({"state": network.state_dict(), "seconds": done.seconds}, temporary)
    saved = torch.load(kept, weights_only=True)
    network.load_state_dict(saved["state"])
    return network.eval(), saved["seconds"]


def static(architecture: str, file: Path, inputs: Inputs, *, recipe: recipes.Recipe) -> None:
    """Quantize after training."""
    quantize.static(float_file(architecture), file, inputs.calibration_set(), recipe,
                    preprocessing=PREPROCESSING)  # fmt: skip


def corrected(
    architecture: str, file: Path, inputs: Inputs, *,
    recipe: recipes.Recipe, ratio: float | None = None, biases: bool = False,
) -> None:  # fmt: skip
    """Quantize with the counterparts of TI's weight constraint and bias calibration."""
    model = zoo.load(architecture, weights="things16").module
    network = qat.prepare(model, recipe, size=SIZE)
    if ratio is not None:
        print(corrections.constrain_weights_(network, ratio))
    qat.calibrate_(network, inputs.calibration_set(), PREPROCESSING)
    if biases:
        print(corrections.calibrate_bias_(network, inputs.calibration_inputs()))
    qat.to_qdq(network, file, size=SIZE, preprocessing=PREPROCESSING)


def searched(
    architecture: str, file: Path, inputs: Inputs, *, recipe: recipes.Recipe, mac_share: float
) -> None:
    """Search 16-bit activations within a share of the MACs, and quantize so."""
    calibration = inputs.calibration_set()
    found = mixed.search(
        float_file(architecture), calibration, mixed.Budget(mac_share=mac_share), recipe,
        preprocessing=PREPROCESSING,
    )  # fmt: skip
    print(found)
    static(architecture, file, inputs, recipe=found.recipe)


# ---------------------------------------------------------------- the rows


def ours(group: str, name: str, recipe: str | recipes.Recipe, htp: tuple[str, ...] = ()) -> Row:
    """Return a row of the lab's own: trained where the recipe says so, else after training."""
    chosen = recipes.load(recipe)
    make = functools.partial(trained if chosen.qat else static, recipe=chosen)
    return Row(group, "ours", name, make, htp=htp)


def peer(group: str, name: str, maker: Callable, backend: str = "ort", **settings: Any) -> Row:
    """Return a row of another's quantizer."""
    return Row(group, "peer", name, functools.partial(maker, **settings), backend)


TRIM = recipes.PRESETS["int8_trim"]
TENSOR = TRIM.replaced(name="int8_trim_tensor", weights=recipes.Weights(per_channel=False))
W4A16 = recipes.PRESETS["w4a16"].replaced(
    name="w4a16_adaptive", rounding="adaptive", correct_bias=True
)


def ti(name: str, **settings: Any) -> Row:
    """Return a row of `corrected`, one scale per tensor."""
    return Row("int8 per tensor", "ours", name,
               functools.partial(corrected, recipe=TENSOR, **settings))  # fmt: skip


QNN8 = {"maker": by_onnxruntime_qnn, "weight": "QInt8"}
ROWS = (
    Row("float", "", "fp32", functools.partial(exported)),
    ours("int8", "PTQ int8", TRIM, htp=LARGE),
    ours("int8", "QAT int8", "int8_qat", htp=LARGE),
    peer("int8", "ONNX Runtime, defaults", by_onnxruntime),
    peer("int8", "ONNX Runtime, QNN configuration", **QNN8, per_channel=True),
    peer("int8", "torchao pt2e, XNNPACK quantizer", by_torchao_xnnpack, per_channel=True),
    peer("int8", "torchao pt2e route, min-max", by_torchao, recipe=recipes.PRESETS["int8"]),
    peer("int8", "ai-edge-quantizer, static int8", by_litert, "litert", kind="static_wi8_ai8"),
    ours("int8 per tensor", "PTQ int8, one scale per tensor", TENSOR),
    ti("and biases calibrated", biases=True),
    ti("and weights within 32 medians", ratio=32.0),
    ti("and weights within 16 medians", ratio=16.0),
    ti("within 16 medians, biases calibrated", ratio=16.0, biases=True),
    peer("int8 per tensor", "ONNX Runtime, QNN configuration", **QNN8, per_channel=False),
    peer("int8 per tensor", "torchao pt2e, XNNPACK quantizer", by_torchao_xnnpack,
         per_channel=False),
    ours("4-bit weights", "PTQ w4a8", "w4a8"),
    ours("4-bit weights", "PTQ w4a8, adaptive rounding", "w4a8_adaptive"),
    ours("4-bit weights", "QAT w4a8", "w4a8_qat", htp=LARGE),
    ours("4-bit weights", "PTQ w4a16, adaptive rounding", W4A16),
    peer("4-bit weights", "ONNX Runtime, QNN configuration", by_onnxruntime_qnn, weight="QInt4",
         per_channel=True),
    peer("4-bit weights", "torchao pt2e route, min-max", by_torchao,
         recipe=recipes.PRESETS["w4a8"]),
    peer("4-bit weights", "ai-edge-quantizer, float activations", by_litert, "litert",
         kind="dynamic_wi4_afp32"),
    Row("16-bit where it pays", "ours", "mixed, 15 % of the MACs",
        functools.partial(searched, recipe=TRIM, mac_share=0.15), htp=LARGE),
    ours("16-bit where it pays", "PTQ a16w8, all 16-bit", "a16w8"),
    ours("16-bit where it pays", "PTQ a16w8, ranges with room", "a16w8_room"),
    peer("16-bit where it pays", "ONNX Runtime, QNN, all 16-bit", **QNN8, per_channel=True,
         activation="QUInt16"),
)  # fmt: skip
