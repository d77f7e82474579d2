"""LiteRT's ``.tflite``: converted by Google's tools, run, and compared before it counts.

`converter` and `quantization` call the tool environment ``litert`` (`labutils tools`), whose end is
`tool_program`; `onnx_network.read` makes a PyTorch network of an ONNX file, because the converter
reads PyTorch alone.
"""

from .conversion import (
    ENDING,
    PRECISIONS,
    Conversion,
    Form,
    Gate,
    convert,
    refuse_impossible,
    require_tools,
)
from .converter import TOOL_PROGRAM
from .places import places
from .quantization import OWN, Quantization, Seen, plain
from .roads import ONNX2TF_PROGRAM, ONNX_TF_PROGRAM, Road, difference, take_road, time_roads
from .rounded_onnx import Rounded, is_rounded, take_apart

__all__ = [
    "ENDING",
    "ONNX2TF_PROGRAM",
    "ONNX_TF_PROGRAM",
    "OWN",
    "PRECISIONS",
    "TOOL_PROGRAM",
    "Conversion",
    "Form",
    "Gate",
    "Quantization",
    "Road",
    "Rounded",
    "Seen",
    "convert",
    "difference",
    "is_rounded",
    "places",
    "plain",
    "refuse_impossible",
    "require_tools",
    "take_apart",
    "take_road",
    "time_roads",
]
