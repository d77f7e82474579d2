"""Fewer bits: recipes, static quantization of ONNX files for the HTP, mixed precision."""

from .equalize import equalize_
from .importing import Imported, imported
from .integer import IntegerReport, write_integer
from .ptq import QuantizeReport, static
from .ranges import Ranges, measure_ranges
from .recipe import PRESETS, Calibration, Override, Recipe, Weights
from .recipe import load as load_recipe

__all__ = [
    "PRESETS",
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
