"""Fewer bits: recipes, static quantization of ONNX files for the HTP, mixed precision."""

from .importing import Imported, imported
from .ptq import QuantizeReport, static
from .ranges import Ranges, measure_ranges
from .recipe import PRESETS, Recipe
from .recipe import load as load_recipe

__all__ = [
    "PRESETS",
    "Imported",
    "QuantizeReport",
    "Ranges",
    "Recipe",
    "imported",
    "load_recipe",
    "measure_ranges",
    "static",
]
