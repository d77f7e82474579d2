"""Training with the rounding in place (QAT), and the QDQ file of the trained network."""

from . import corrections, qat
from .fake_quant import FakeQuant, Grid

__all__ = ["FakeQuant", "Grid", "corrections", "qat"]
