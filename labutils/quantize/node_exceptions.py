"""A recipe on one network: what the caller says besides it, and whether its names fit anything."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import UnknownNameError, UsageError
from ..onnxfile.file import OnnxFile
from . import recipe as recipes
from .recipe import Recipe

if TYPE_CHECKING:
    import onnx


def adapted(recipe: Recipe, outliers: float | None, exclude: Sequence[str]) -> Recipe:
    """Return the recipe with what the caller says instead."""
    if outliers is not None:
        if not 0 <= outliers < 0.5:
            raise UsageError(f"outliers is a share of images, 0 to below 0.5, not {outliers}.")
        calibration = dataclasses.replace(
            recipe.calibration, method="minmax", outliers=outliers, vector_outliers=None
        )
        recipe = recipe.replaced(calibration=calibration)
    return recipe.replaced(exclude=(*recipe.exclude, *map(_literal, exclude)))


def _literal(name: str) -> str:
    """Return a glob that fits this name alone."""
    import glob

    return glob.escape(name)


def check_names(
    model: onnx.ModelProto, recipe: Recipe, source: OnnxFile, exclude: Sequence[str]
) -> None:
    """Refuse an exception that fits nothing: it would be a silent no-op."""
    nodes = [(node.name, node.op_type) for node in model.graph.node]
    names = [name for name, _ in nodes]
    for name in exclude:
        if name not in names:
            raise UnknownNameError(f"node in {source.name}", name, names)
    for glob in recipe.exclude[: len(recipe.exclude) - len(exclude)]:
        if not any(recipes.fits(name, glob) for name in names):
            raise UnknownNameError(f"node in {source.name} (excluded)", glob, names)
    for override in recipe.overrides:
        if not any(override.matches(*node) for node in nodes):
            known = names if override.node != "*" else {op for _, op in nodes}
            asked = override.node if override.node != "*" else override.op_type
            raise UnknownNameError(f"node in {source.name} (override)", asked, known)
