"""What the notebooks hand to each other: found where an earlier one left it, or made, and said."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import paths, untrusted
from .errors import UnknownNameError

if TYPE_CHECKING:
    from . import zoo

CALIBRATION_IMAGES = 128
FILES = {
    "opset13": "01_{model}_opset13.onnx",
    "opset17": "01_{model}_opset17.onnx",
    "patched": "03_{model}_patched.onnx",
    "int8": "05_{model}_int8.onnx",
    "a16w8": "05_{model}_a16w8.onnx",
}
"""What the notebooks leave behind, by the name that a cell uses."""

NEEDS = {
    "02": ("opset13", "opset17"),
    "03": ("opset13", "opset17"),
    "04": ("opset13", "opset17", "patched"),
    "05": ("patched",),
    "06": ("patched", "int8", "a16w8"),
    "07": ("opset13", "opset17"),
    "08": ("patched",),
}
"""What a notebook needs of those before it."""


def path_of(name: str, model: zoo.Model) -> Path:
    """Return where the artifact called `name` belongs, whether it is there or not.

    Raises
    ------
    UnknownNameError
        `name` is not one of `FILES`.
    """
    if name not in FILES:
        raise UnknownNameError("artifact of the notebooks", name, FILES)
    return paths.generated() / FILES[name].format(model=model.name.replace(":", "_"))


def loaded_or_made(name: str, model: zoo.Model, echo: Callable[[str], object]) -> Path:
    """Return the artifact called `name`, made for this model if it is not there already."""
    path = path_of(name, model)
    reason = problem(path, model)
    if not reason:
        echo(f"Loaded {path.name}, which an earlier notebook left.")
        return path
    _make(name, model, reason, echo)
    return path


def _make(name: str, model: zoo.Model, reason: str, echo: Callable[[str], object]) -> None:
    path = path_of(name, model)
    if name in ("int8", "a16w8"):
        source = path_of("patched", model)
        if why := problem(source, model):
            _make("patched", model, why, echo)
    echo(f"Making {path.name} ({reason}) ...")
    if name.startswith("opset"):
        _export(model, path, int(name.removeprefix("opset")))
    elif name == "patched":
        _export(_patched(model), path, 17)
    else:
        _quantize(model, path, name, source, echo)


def problem(path: Path, model: zoo.Model) -> str:
    """Say why the file cannot be used for this model, "" when it can."""
    if not path.is_file():
        return "it is not there"
    try:
        manifest = untrusted.json_file(path.with_name(f"{path.name}.manifest.json"))
        same = manifest["model"]["weights"] == model.weights
        same &= manifest["preprocessing"]["size"] == model.preprocessing.size
        digest = manifest["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return "the one there has no manifest"
    if not same:
        return "the one there was made with other weights or another size"
    return "" if digest == paths.sha256(path) else "the one there was changed"


def _export(model: zoo.Model, path: Path, opset: int) -> None:
    from . import export

    report = export.to_onnx(model, path, opset=opset)
    record(path, model, opset=report.opset)


def _patched(model: zoo.Model) -> zoo.Model:
    from . import surgery

    module = copy.deepcopy(model.module)
    surgery.replace_(module, level="module")
    return replace(model, module=module)


def _quantize(
    model: zoo.Model, path: Path, bits: str, source: Path, echo: Callable[[str], object]
) -> None:
    from . import gallery, quantize

    calibration = gallery.load(model, CALIBRATION_IMAGES, "calib")
    if calibration.labels.min() == gallery.UNKNOWN:
        echo(f"Calibrating on {calibration.source}.")
    quantize.static(source, path, calibration, bits, preprocessing=model.preprocessing)
    record(path, model, bits=bits, calibration=len(calibration), pictures=calibration.source)


def record(path: Path, model: zoo.Model, **facts: Any) -> None:
    """Write the manifest of an artifact; `problem` reads it."""
    from . import repair

    paths.record(path, {**repair.facts(model), **facts})
