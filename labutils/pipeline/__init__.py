"""Where targets and surgery meet: which rules would mend what a target refuses, and doing it.

Exact rules are applied by themselves: the repaired model computes what the original computes, and
is compared with it all the same. Approximate rules are only named, until they are asked for; what
they make is another network, and everything that is written then says so.
"""

from .conversion import CALIBRATION_IMAGES, GATE_IMAGES, convert_model, facts
from .planning import NothingToRepairError, Plan, Repair, apply, refused, replay, suggest
from .quantization import Quantized, quantize_model

__all__ = [
    "CALIBRATION_IMAGES",
    "GATE_IMAGES",
    "NothingToRepairError",
    "Plan",
    "Quantized",
    "Repair",
    "apply",
    "convert_model",
    "facts",
    "quantize_model",
    "refused",
    "replay",
    "suggest",
]
