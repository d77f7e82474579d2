"""What cannot be trained with the rounding in place, refused before any work."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ...errors import UsageError
from ..recipe import Recipe


def refuse_parametrized(model: nn.Module) -> None:
    """Raise UsageError for a network whose weights are computed by masks."""
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            chains: Any = module.parametrizations
            kinds = sorted({type(part).__name__ for chain in chains.values() for part in chain})
            raise UsageError(
                f"The weights of {name} are computed by {', '.join(kinds)}, which tracing would "
                "lose. Channels: prune.removed(model).network. Single weights: take the masks off "
                "a copy (prune.remove_), prepare it, then prune.transfer_masks_(model, prepared)."
            )


def refuse_untrainable(recipe: Recipe) -> None:
    """Raise UsageError for settings that training replaces, or that are not written."""
    calibration = recipe.calibration.method
    methods = {o.method for o in recipe.overrides if o.method} - {"minmax"}
    reasons = {
        f"calibration by {calibration}: training starts from min-max (outliers may be left out), "
        "and learns the ranges": calibration != "minmax",
        f"overrides with the method {' or '.join(sorted(methods))}: training starts from min-max, "
        "and learns the ranges": bool(methods),
        "room: training learns the ranges": recipe.calibration.room != 1,
        "rounding: adaptive rounding is for a network that is not trained": (
            recipe.rounding != "nearest"
        ),
        "equalize: scales per channel make it needless here": recipe.equalize,
        "asymmetric weights: no device of the lab takes them per channel": (
            not recipe.weights.symmetric
        ),
        "integer input or output: fake quantization ends in float": (
            "quantized" in (recipe.input, recipe.output)
        ),
    }
    for reason, asked in reasons.items():
        if asked:
            raise UsageError(f"Recipe {recipe.name} cannot be trained with {reason}.")
