"""Many models, one description: a network as YAML of few kinds of layers, built in two frameworks.

`import_torch` reads a PyTorch network by torch.export, `emit_torch` builds it again, bit for bit,
and `emit_keras` builds it in Keras 3, channels last. Weights lie beside the text, by name. It is
made to be read and changed by hand: layout, padding, epsilon and the order of weights are explicit.
To exchange models ONNX is the better choice, and to keep a PyTorch network as it is a .pt2 file:
both know every operator, this knows at most 40 kinds.
"""

from .description import Description, Layer, load, read
from .importing import import_torch
from .keras_model import emit_keras
from .operator import KINDS, Call, Operator, operator
from .pytorch import Network, bit_equal, emit_torch

__all__ = [
    "KINDS",
    "Call",
    "Description",
    "Layer",
    "Network",
    "Operator",
    "bit_equal",
    "emit_keras",
    "emit_torch",
    "import_torch",
    "load",
    "operator",
    "read",
]
