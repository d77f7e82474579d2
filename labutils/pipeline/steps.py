"""The steps of every way through the lab: export, patch, repair, quantize, with manifests.

The journey, the command line and the notebooks call these, so that a file of one of them is what
another would have made.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import export, manifests, paths, provenance, quantize, runtime, surgery
from ..errors import UsageError
from ..images import data
from ..models import gallery, zoo
from ..onnxfile.file import OnnxFile
from . import planning
from .planning import Repair
from .settings import Listener, Preparation

if TYPE_CHECKING:
    import torch

GATE_IMAGES = 32
CALIBRATION_IMAGES = 256


def export_model(model: zoo.Model, path: Path, opset: int, **facts: Any) -> export.ExportReport:
    """Write a model as ONNX, compared with PyTorch, and its manifest.

    Parameters
    ----------
    model
        With its module.
    path, opset
        The ``.onnx`` to write; the opset that it gets.
    facts
        More for the manifest.

    Raises
    ------
    ExportError
        The model cannot be exported, or the file computes something else.
    """
    report = export.to_onnx(model, path, opset=opset)
    write_manifest(path, model, opset=report.opset, cosine=report.cosine, **facts)
    return report


def connect(model: zoo.Model, artifact: Any, **settings: Any) -> runtime.Runner:
    """Return a runner of a model, or of a file made from it; both have the same scores."""
    if artifact is model.module:
        settings.setdefault("name", model.name)
    return runtime.connect(artifact, output=model.output or None, **settings)


def as_onnx(
    model: zoo.Model, path: Path, opset: int, echo: Callable[[object], object] = lambda line: None
) -> OnnxFile:
    """Return the model's own ONNX file, or an export of it at `path`, without a manifest.

    Raises
    ------
    ExportError
        As for `export_model`.
    """
    file = model.onnx or model.file
    if model.module is None and file is not None:
        return OnnxFile.of(file)
    report = export.to_onnx(model, path, opset=opset)
    echo(report)
    return OnnxFile.of(report.onnx or report.path)


def patch_model(model: zoo.Model) -> tuple[zoo.Model, surgery.Report]:
    """Return a copy of a model without hard-swish and hard-sigmoid, and what was replaced.

    The copy is compared with the model on an image.

    Raises
    ------
    SurgeryError
        There is nothing to replace, or the copy computes something else.
    """
    if model.module is None:
        raise UsageError(f"{model.name} is a file: the layers of a PyTorch module are replaced.")
    module = copy.deepcopy(model.module)
    report = surgery.replace_(module, example_inputs=_example(model))
    note = f"{model.note}, layers replaced"
    return dataclasses.replace(model, module=module, note=note), report


def _example(model: zoo.Model) -> torch.Tensor:
    import torch

    preprocessing = model.known_preprocessing()
    image = data.load("val", 1, preprocessing.size).images
    return torch.from_numpy(preprocessing(np.asarray(image)))


def repair_file(
    source: OnnxFile | Path,
    path: Path,
    preparation: Preparation,
    echo: Callable[[object], object],
    writer: planning.Writer | None = None,
) -> Repair | None:
    """Write a copy of an ONNX file with what its target refuses replaced; say what was done.

    Parameters
    ----------
    writer
        As in `planning.apply`.

    Returns
    -------
    Repair or None
        None where no repair was asked for, or there is nothing to repair.

    Raises
    ------
    SurgeryError
        The edits are for another network, or the rules do not remove all that blocks.
    """
    if preparation.edits is not None:
        fixed = planning.replay(source, preparation.edits, path)
    elif preparation.repair_for is None:
        return None
    else:
        try:
            fixed = planning.apply(
                source, preparation.repair_for, path,
                allow_approximate=preparation.allow_approximate, writer=writer,
            )  # fmt: skip
        except planning.NothingToRepairError:
            return None
    echo(fixed)
    return fixed


def calibration_images(
    model: zoo.Model, n: int, echo: Callable[[str], object] = lambda line: None
) -> data.ImageSet:
    """Return `n` images to calibrate a model on; say which where they are not of its classes."""
    images = gallery.pictures(model, n, "calib")
    if images.labels.min() == data.NO_LABEL:
        echo(f"Calibrating on {images.source}.")
    return images


def quantize_file(
    model: zoo.Model,
    source: OnnxFile | Path,
    path: Path,
    calibration: np.ndarray | data.ImageSet | quantize.Ranges,
    recipe: str | Path | quantize.Recipe,
    *,
    pictures: data.ImageSet | np.ndarray | None = None,
    listener: Listener | None = None,
) -> quantize.QuantizeReport:
    """Quantize the float ONNX file `source` of a model, and write the manifest of the result.

    Parameters
    ----------
    model
        Whose file `source` is.
    source, path
        The float file; the QDQ file to write.
    calibration
        Images, or the ranges that were measured on them.
    recipe
        A preset's name, a YAML file, or a recipe.
    pictures
        The images, for the manifest, where ranges that were measured on them are given.
    listener
        Follows the calibration.

    Raises
    ------
    ModelFileError, UsageError, UnknownNameError
        As for `quantize.static`.
    """
    listener = listener or Listener()
    report = quantize.static(
        source, path, calibration, recipe,
        preprocessing=model.preprocessing, progress=listener.progress,
    )  # fmt: skip
    images = calibration if pictures is None else pictures
    if isinstance(images, quantize.Ranges):
        raise UsageError("Pass pictures= as well: ranges do not say what they were measured on.")
    write_manifest(path, model, **provenance.calibrated_on(images), **report.facts())
    return report


def gate_inputs(model: zoo.Model, n: int | None = None) -> np.ndarray:
    """Return the images that a DLC is compared on: (n, channels, height, width) float32.

    They are those of `gallery.pictures`: of the set that the model learned, where it is known.
    """
    images = gallery.pictures(model, GATE_IMAGES if n is None else n)
    return model.known_preprocessing()(np.asarray(images.images))


def write_manifest(path: Path, model: zoo.Model, **facts: Any) -> None:
    """Write the manifest of an artifact of a model."""
    manifests.write(path, {**facts_of(model), **facts})


def facts_of(model: zoo.Model, fixed: Repair | None = None) -> dict[str, Any]:
    """Return what a manifest says of the model: where it came from, its input, its classes."""
    brought = model.brought or model.file
    return {
        "model": {
            "name": model.name,
            "weights": model.weights,
            "note": model.note,
            "sha256": model.sha256,
        },
        "classes": list(model.classes),
        "preprocessing": model.preprocessing,
        "brought": {"file": brought.name, "sha256": paths.sha256(brought)} if brought else None,
        "earlier_edits": provenance.edits_in(model.onnx.proto) if model.onnx else [],
        "repair": fixed.surgery.to_dict() | {"edits": fixed.edits.to_dict()} if fixed else None,
    }
