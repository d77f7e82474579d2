"""Fewer bits: static quantization of ONNX files for the HTP."""

from .ptq import BITS, QuantizeReport, Ranges, measure_ranges, static
from .recipe import PRESETS, Recipe

__all__ = ["BITS", "PRESETS", "QuantizeReport", "Ranges", "Recipe", "measure_ranges", "static"]
