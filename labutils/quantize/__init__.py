"""Fewer bits: recipes, static quantization of ONNX files for the HTP, mixed precision."""

from .equalize import equalize_
from .importing import Imported, imported
from .integer import IntegerReport, write_integer
from .presets import PRESETS, VERSIONS
from .presets import load as load_recipe
from .ptq import QuantizeReport, static
from .ranges import Ranges, measure_ranges
from .recipe import Calibration, Override, Recipe, Weights

__all__ = [
    "PRESETS",
    "VERSIONS",
    "Calibration",
    "Imported",
    "IntegerReport",
    "Override",
    "QuantizeReport",
    "Ranges",
    "Recipe",
    "Weights",
    "equalize_",
    "imported",
    "load_recipe",
    "measure_ranges",
    "static",
    "write_integer",
]
