"""The widgets of the notebooks: each comes after a plain call that shows the same.

They call the functions that the cells call, compute for real, and say what goes on and
what went wrong. Plain Python can move their controls: ``slider.bits.value = 4``.
"""

from __future__ import annotations

from .clipping import ClippingSlider
from .image_editor import ImageEditor
from .ladder_picker import LadderPicker
from .pareto_front import ParetoFront
from .replacement_board import ReplacementBoard
from .stage_explorer import StageExplorer
from .width_slider import WidthSlider

__all__ = [
    "ClippingSlider",
    "ImageEditor",
    "LadderPicker",
    "ParetoFront",
    "ReplacementBoard",
    "StageExplorer",
    "WidthSlider",
]
