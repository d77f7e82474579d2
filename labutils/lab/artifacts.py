"""What the notebooks hand to each other: found where an earlier one left it, or made, and said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import manifests, paths
from ..errors import (
    DamagedManifestError,
    ModelFileError,
    NoManifestError,
    OtherFileError,
    UnknownNameError,
)

if TYPE_CHECKING:
    from ..models import zoo

CALIBRATION_IMAGES = 128
"""The journey takes 256 (`pipeline.steps`): a cell of a notebook has less time. `problem` compares
the number, so neither takes the other's file for its own."""

FILES = {
    "opset13": ("export", "opset13"),
    "opset17": ("export", "opset17"),
    "patched": ("patch", "patched"),
    "int8": ("quantize", "int8"),
    "a16w8": ("quantize", "a16w8"),
}
"""What the notebooks leave behind, by the name that a cell uses: stage and detail of its file."""

OPSETS = {"opset13": 13, "opset17": 17, "patched": 17, "int8": 17, "a16w8": 17}
QUANTIZED = {"int8": "int8@1", "a16w8": "a16w8"}
"""Made of `patched` by these recipes, from `CALIBRATION_IMAGES` images.

The notebooks are about ranges, so their int8 is the recipe that chooses ranges and nothing else.
"""

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
    return paths.generated() / manifests.file_name(model.name, *FILES[name])


def load_or_make(name: str, model: zoo.Model, echo: Callable[[str], object]) -> Path:
    """Return the artifact called `name`; make it for this model if it is not there already."""
    path = path_of(name, model)
    reason = problem(path, model)
    if not reason:
        aged = manifests.age_note(manifests.read(path))
        aged = f" ({aged})" if aged else ""
        echo(f"Loaded {path.name}, made by an earlier notebook or the journey{aged}.")
        return path
    _make(name, model, reason, echo)
    return path


def _make(name: str, model: zoo.Model, reason: str, echo: Callable[[str], object]) -> None:
    """Make an artifact by the same steps as the journey, after what it is made of."""
    from ..pipeline import steps

    path, source = path_of(name, model), path_of("patched", model)
    if name in QUANTIZED and (why := problem(source, model)):
        _make("patched", model, why, echo)
    echo(f"Making {path.name} ({reason}) ...")
    if name in QUANTIZED:
        images = steps.calibration_images(model, CALIBRATION_IMAGES, echo)
        steps.quantize_file(model, source, path, images, QUANTIZED[name])
    else:
        exported = steps.patch_model(model)[0] if name == "patched" else model
        steps.export_model(exported, path, OPSETS[name])


def problem(path: Path, model: zoo.Model) -> str:
    """Say why the file cannot be used for this model, "" when it can.

    It must be the file that its manifest describes, of the weights that are loaded (not only of
    the same name), at this size, opset, recipe (all its values) and number of calibration images.
    A manifest from before these had a format number is held to what it states.
    """
    if not path.is_file():
        return "it is not there"
    try:
        manifest = manifests.read(path)
    except OtherFileError:
        return "the one there was changed"
    except NoManifestError:
        return "the one there has no manifest"
    except DamagedManifestError:
        return "the one there has a damaged manifest"
    except ModelFileError as error:
        return f"the one there cannot be used: {error}"
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
    opset = manifest.get("opset")
    if opset != OPSETS[name] and not (name in QUANTIZED and opset is None and _aged(manifest)):
        return f"the one there has opset {opset}, not {OPSETS[name]}"
    if name not in QUANTIZED:
        return ""
    found = manifest.get("calibration")
    if found != CALIBRATION_IMAGES:
        return f"the one there was calibrated on {found} images, not {CALIBRATION_IMAGES}"
    return _other_recipe(manifest, name)


def _aged(manifest: dict[str, Any]) -> bool:
    return bool(manifests.age_note(manifest))


def _other_recipe(manifest: dict[str, Any], name: str) -> str:
    """Name the first value in which the recipe of a manifest differs from that of `name`."""
    from .. import quantize
    from ..quantize.recipe import LATER

    if _aged(manifest):  # it has the hash alone
        same = manifest.get("recipe_sha256") == recipe_sha256(name)
        return "" if same else "the one there was quantized by another recipe"
    wanted = manifests.as_stored(quantize.load_recipe(QUANTIZED[name]).to_dict())
    later = {name: False for name in LATER if hasattr(quantize.Recipe, name)}
    stated = later | manifest["quantization"]
    for key in sorted(wanted.keys() | stated.keys()):
        if wanted.get(key) != stated.get(key) and key not in ("name", "about"):
            return (
                f"the one there was quantized by another recipe ({key}: {stated.get(key)}, not "
                f"{wanted.get(key)})"
            )
    return ""


def recipe_sha256(name: str) -> str:
    """Return the hash of the recipe of a quantized artifact, as its manifest states it."""
    from .. import quantize

    return quantize.load_recipe(QUANTIZED[name]).sha256


def _name_of(path: Path, model: zoo.Model) -> str:
    return next(name for name in FILES if path_of(name, model).name == path.name)


def record(path: Path, model: zoo.Model, **facts: Any) -> None:
    """Write the manifest of an artifact; `problem` reads it.

    `recipe` names that of a quantized one, or is it; what else there is goes in as it is.
    """
    from .. import quantize
    from ..pipeline import steps

    if "recipe" in facts and "quantization" not in facts:
        recipe = quantize.load_recipe(facts["recipe"])
        facts |= {
            "recipe": recipe.name,
            "recipe_sha256": recipe.sha256,
            "quantization": recipe.to_dict(),
        }
    steps.write_manifest(path, model, **facts)
