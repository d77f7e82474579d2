"""A network taken apart: its stages, what runs inside one of them, and how long each takes.

A stage is an entry of ``features``, and then ``avgpool`` and ``classifier``: the division that
torchvision's mobile networks share. Everything is read from the module or measured on it.
"""

from .parts import ACTIVATIONS, Part
from .reading import Anatomy, Stage, Step, Walk, stages, walk
from .running import inputs_of
from .timing import Times, times

__all__ = [
    "ACTIVATIONS",
    "Anatomy",
    "Part",
    "Stage",
    "Step",
    "Times",
    "Walk",
    "inputs_of",
    "stages",
    "times",
    "walk",
]
