"""Everything at once: surgery, pruning, mixed precision, training with rounding, DLC, one plan.

    plan = compression.CompressionPlan("mobilenet_v3_small", compression.CompressionBudget(0.5))
    compression.compress(plan, "out", zoo.load(plan.model), "things16")

On the command line: ``labutils compress``.
"""

from .ladder import CompressionLadder, CompressionRung
from .plan import (
    CompressionBudget,
    CompressionPlan,
    EvaluationPlan,
    PruningPlan,
    QuantizationPlan,
    SurgeryPlan,
    load_plan,
    parse_plan,
)
from .stages import compress

__all__ = [
    "CompressionBudget",
    "CompressionLadder",
    "CompressionPlan",
    "CompressionRung",
    "EvaluationPlan",
    "PruningPlan",
    "QuantizationPlan",
    "SurgeryPlan",
    "compress",
    "load_plan",
    "parse_plan",
]
