"""Pruning: masks that train, and channels that are removed.

    plan = prune.plan(model, "channels", ratio=0.3, size=96)   # changes nothing; print(plan)
    removal, done = prune.recovered(model, plan, teacher=model, steps=300)  # removed, and trained

or under masks, which other methods need (``"unstructured"`` and ``"n:m"``: 2:4, 41:64; their
weights stay dense)::

    prune.recover_(model, plan, teacher=original, steps=300)   # or prune.apply_masks_(model, plan)
    smaller = prune.removed(model, size=96).network            # verified against the masked one

`Schedule` brings masks into force step by step, in any loop. On the command line: ``labutils
prune``.
"""

from torch import nn

from .budget import Budget, Search, nearest, search
from .coupling import coupled
from .criteria import CRITERIA, Criterion, taylor
from .groups import Group, Refusal, Slice
from .masks import Mask, masks_of, remove_, set_masks_, transfer_masks_
from .plan_file import read_plan, write_plan
from .planning import DEFAULT_SIZE, plan
from .recovery import recover_, recovered, reestimate_
from .removal import Removal, removed
from .report import ChannelPlan, Plan, WeightPlan
from .scan import RATIOS, Sensitivity, sensitivity
from .schedule import KINDS, ONE_SHOT, Schedule

__all__ = [
    "CRITERIA", "DEFAULT_SIZE", "KINDS", "ONE_SHOT", "RATIOS", "Budget", "ChannelPlan",
    "Criterion", "Group", "Mask", "Plan", "Refusal", "Removal", "Schedule", "Search",
    "Sensitivity", "Slice", "WeightPlan", "apply_masks_", "coupled", "masks_of", "nearest",
    "plan", "read_plan", "recover_", "recovered", "reestimate_", "remove_", "removed", "search",
    "sensitivity", "set_masks_", "taylor", "transfer_masks_", "write_plan",
]  # fmt: skip


def apply_masks_(model: nn.Module, plan: Plan) -> Plan:
    """Put the masks of a plan onto a network, in place; they are hard and complete.

    The parameters of the network are replaced by those below the masks only in name: an optimizer
    that was built before still trains them.

    Raises
    ------
    UnknownNameError
        The network lacks a layer of the plan.
    UsageError
        A layer has another shape than when it was planned.
    """
    set_masks_(model, plan.masks(model))
    return plan
