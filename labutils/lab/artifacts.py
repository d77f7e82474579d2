"""What the notebooks hand to each other: found where an earlier one left it, or made, and said."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import paths
from ..errors import ModelFileError, OtherFileError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from ..models import zoo

CALIBRATION_IMAGES = 128
FILES = {
    "opset13": "01_{model}_opset13.onnx",
    "opset17": "01_{model}_opset17.onnx",
    "patched": "03_{model}_patched.onnx",
    "int8": "05_{model}_int8.onnx",
    "a16w8": "05_{model}_a16w8.onnx",
}
"""What the notebooks leave behind, by the name that a cell uses."""

OPSETS = {"opset13": 13, "opset17": 17, "patched": 17}
QUANTIZED = ("int8", "a16w8")
"""Made of `patched` by the preset of their name, from `CALIBRATION_IMAGES` images."""

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
    return paths.generated() / FILES[name].format(model=paths.stem_of(model.name))


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
    if name in QUANTIZED:
        source = path_of("patched", model)
        if why := problem(source, model):
            _make("patched", model, why, echo)
    echo(f"Making {path.name} ({reason}) ...")
    if name.startswith("opset"):
        _export(model, path, OPSETS[name])
    elif name == "patched":
        _export(_patched(model), path, OPSETS[name])
    else:
        _quantize(model, path, name, source, echo)


def problem(path: Path, model: zoo.Model) -> str:
    """Say why the file cannot be used for this model, "" when it can.

    It must be the file that its manifest describes, of the weights that are loaded (not only of
    the same name), at this size, opset, recipe and number of calibration images.
    """
    if not path.is_file():
        return "it is not there"
    try:
        manifest = paths.read_manifest(path)
    except OtherFileError:
        return "the one there was changed"
    except ModelFileError:  # none, or a damaged one
        return "the one there has no manifest"
    try:
        return _other_network(manifest, model) or _made_otherwise(manifest, _name_of(path, model))
    except (KeyError, TypeError, AttributeError):
        return "the one there has a manifest that lacks something"


def _other_network(manifest: dict[str, Any], model: zoo.Model) -> str:
    stated = manifest["model"].get("sha256")
    if not stated or not model.sha256:
        return "the one there does not say which network's it is"
    if manifest["model"]["weights"] != model.weights or stated != model.sha256:
        return (
            f"the one there belongs to another network, SHA-256 {stated[:12]}...; the weights "
            f"loaded now have {model.sha256[:12]}..."
        )
    size = manifest["preprocessing"]["size"]
    wanted = model.known_preprocessing().size
    return "" if size == wanted else f"the one there is for {size} px, not {wanted}"


def _made_otherwise(manifest: dict[str, Any], name: str) -> str:
    for key, value in _expected(name).items():
        found = manifest.get(key)
        if found != value:
            return {
                "opset": f"the one there has opset {found}, not {value}",
                "calibration": f"the one there was calibrated on {found} images, not {value}",
                "recipe_sha256": "the one there was quantized by another recipe",
            }[key]
    return ""


def _expected(name: str) -> dict[str, Any]:
    """Return what the manifest of an artifact must say of how it was made."""
    if name in QUANTIZED:
        return {"recipe_sha256": recipe_sha256(name), "calibration": CALIBRATION_IMAGES}
    return {"opset": OPSETS[name]}


def recipe_sha256(name: str) -> str:
    """Return the hash of the recipe of a quantized artifact, as its manifest states it."""
    from .. import quantize

    return quantize.load_recipe(name).sha256


def _name_of(path: Path, model: zoo.Model) -> str:
    return next(name for name in FILES if path_of(name, model).name == path.name)


def _export(model: zoo.Model, path: Path, opset: int) -> None:
    from .. import export

    report = export.to_onnx(model, path, opset=opset)
    record(path, model, opset=report.opset)


def _patched(model: zoo.Model) -> zoo.Model:
    from .. import surgery

    if model.module is None:
        raise UsageError(f"{model.name} is a file: the layers of a PyTorch module are replaced.")
    module = copy.deepcopy(model.module)
    surgery.replace_(module, level="module")
    return replace(model, module=module)


def _quantize(
    model: zoo.Model, path: Path, recipe: str, source: Path, echo: Callable[[str], object]
) -> None:
    from .. import quantize
    from ..images import data
    from ..models import gallery

    calibration = gallery.pictures(model, CALIBRATION_IMAGES, "calib")
    if calibration.labels.min() == data.NO_LABEL:
        echo(f"Calibrating on {calibration.source}.")
    report = quantize.static(source, path, calibration, recipe, preprocessing=model.preprocessing)
    record(path, model, opset=report.opset, pictures=calibration.source, **report.facts())


def record(path: Path, model: zoo.Model, **facts: Any) -> None:
    """Write the manifest of an artifact; `problem` reads it.

    `recipe` names that of a quantized one, or is it; what else there is goes in as it is.
    """
    from .. import pipeline, quantize

    if "recipe" in facts and "recipe_sha256" not in facts:
        recipe = quantize.load_recipe(facts["recipe"])
        facts |= {"recipe": recipe.name, "recipe_sha256": recipe.sha256}
    paths.record(path, {**pipeline.facts(model), **facts})
