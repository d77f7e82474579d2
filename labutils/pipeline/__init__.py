"""From a model to files that were run: diagnose, repair, quantize, convert; one way, three callers.

Exact rules are applied by themselves: the repaired model computes what the original computes, and
is compared with it all the same. Approximate rules are only named, until they are asked for; what
they make is another network, and everything that is written then says so.
"""

from .brought_files import refused_as_brought
from .conversion import convert_model, measure_accuracy
from .destinations import refuse_impossible
from .litert_conversion import convert_to_litert
from .planning import (
    NothingToRepairError,
    Plan,
    Repair,
    apply,
    refused,
    replay,
    suggest,
)
from .quantization import Quantized, add_integer, add_tidl_hints, quantize_model
from .rdk_conversion import RdkConversion, convert_for_rdk
from .settings import Comparison, Explanation, Listener, Preparation, Search
from .sparse_speed import SparseSpeed, measure_sparse_speed

__all__ = [
    "Comparison",
    "Explanation",
    "Listener",
    "NothingToRepairError",
    "Plan",
    "Preparation",
    "Quantized",
    "RdkConversion",
    "Repair",
    "Search",
    "SparseSpeed",
    "add_integer",
    "add_tidl_hints",
    "apply",
    "convert_for_rdk",
    "convert_model",
    "convert_to_litert",
    "measure_accuracy",
    "measure_sparse_speed",
    "quantize_model",
    "refuse_impossible",
    "refused",
    "refused_as_brought",
    "replay",
    "suggest",
]
