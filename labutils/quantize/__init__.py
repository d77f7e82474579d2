"""Fewer bits: static quantization of ONNX files for the HTP."""

from .ptq import BITS, QuantizeReport, Ranges, measure_ranges, static

__all__ = ["BITS", "QuantizeReport", "Ranges", "measure_ranges", "static"]
