"""Judging replacements: a rule that is stated as a dict, and a maker of new layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..answer import NotYet, call, in_words, shown

if TYPE_CHECKING:
    from torch import nn


def _family() -> nn.Module:
    """Return a small network with SiLU in two depths, as a gate's neighbour, and as a function."""
    import torch
    from torch import nn

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act, self.gate = nn.Conv2d(6, 6, 1), nn.SiLU(), nn.Sigmoid()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.gate(self.fc(self.act(x.mean((2, 3), keepdim=True))))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.SiLU(inplace=True))
        others = nn.Sequential(nn.ReLU(inplace=True), nn.Mish(), nn.ELU(), nn.Hardtanh(), nn.Tanh())
        return nn.Sequential(
            stem, Gate(), nn.GELU(), others, nn.Flatten(), nn.Linear(216, 4)
        ).eval()


def judge_dict(answer: Any) -> None:
    """Judge a rule by what the surgery makes of it in a network with other activations beside."""
    import torch
    from torch import nn

    from ... import surgery

    if isinstance(answer, set | frozenset):
        raise NotYet("that is a set: it does not say which of the two is replaced by which.")
    if not isinstance(answer, Mapping):
        raise NotYet(f"a dict is asked for, and this is {shown(answer)}.")
    if any(isinstance(key, nn.Module) for key in answer):
        raise NotYet("the left side is one layer; a rule is for a class of layers.")
    model = _family()
    try:
        report = surgery.replace_(model, answer, example_inputs=torch.zeros(1, 3, 8, 8))
    except Exception as error:
        if "must be Tensor" in str(error):
            raise NotYet(
                "a function of numbers stands right of the colon. A layer is replaced by a layer: "
                "give its class."
            ) from None
        if "matched nothing" in str(error):
            raise NotYet("your rule finds nothing in a network that has two SiLU layers.") from None
        raise NotYet(f"the surgery refuses your rule: {in_words(error)}") from None
    kinds = [type(m) for m in model.modules()]
    if nn.SiLU in kinds:
        left = [name for name, m in model.named_modules() if type(m) is nn.SiLU]
        few = f"a SiLU is left, at {left[0]}." if len(left) == 1 else "both SiLU layers are left."
        raise NotYet(f"{few} What stands left of the colon does not mean them all.")
    if nn.Sigmoid not in kinds:
        raise NotYet(
            "the Sigmoid was replaced too. It is a gate here: 1.gate scales what comes from 0."
        )
    for other in (nn.GELU, nn.ReLU, nn.Mish, nn.ELU, nn.Hardtanh, nn.Tanh):
        if other not in kinds:
            raise NotYet(f"the {other.__name__} was replaced too, and nobody had asked for that.")
    if kinds.count(nn.Hardswish) == 2 and len(report.matches) == 2:
        return
    became = ", ".join(dict.fromkeys(match.became for match in report.matches))
    raise NotYet(f"each SiLU became {became}; a Hardswish is asked for.")


def judge_dropout(answer: Any) -> None:
    """Judge a maker of dropouts on old layers of several settings, training and not."""
    from torch import nn

    if isinstance(answer, type) or not callable(answer):
        raise NotYet(f"a function of the old layer is asked for, and this is {shown(answer)}.")
    made = [
        (old, _new_of(answer, old))
        for old in (
            nn.Dropout(0.2, inplace=True), nn.Dropout(0.35, inplace=True), nn.Dropout(0.0),
            nn.Dropout(1.0), nn.Dropout(0.125, inplace=True).eval(),
        )
    ]  # fmt: skip
    _judge_probability(made)
    if any(new.inplace for _, new in made):
        raise NotYet("the new layer still works in place.")
    if any(old.training and not new.training for old, new in made):
        raise NotYet(
            "the old layer was training, and the new one is in eval mode: it drops nothing until "
            "somebody calls train()."
        )


def _new_of(answer: Any, old: nn.Dropout) -> nn.Dropout:
    from torch import nn

    before = old.p, old.inplace, old.training
    new = call(answer, old)
    if new is None:
        raise NotYet("your function returned None (a forgotten return?).")
    if new is old:
        raise NotYet(
            "your function returns the old layer itself. Whoever keeps the original network, to "
            "compare with, shares that layer: make a new one."
        )
    if (old.p, old.inplace, old.training) != before:
        raise NotYet("your function changes the old layer; the original network has it still.")
    if not isinstance(new, nn.Dropout):
        raise NotYet(f"an nn.Dropout is asked for, and this is {shown(new)}.")
    return new


def _judge_probability(made: list[tuple[nn.Dropout, nn.Dropout]]) -> None:
    wrong = [(old.p, new.p) for old, new in made if old.p != new.p]
    if not wrong:
        return
    if all(new.p == 0.5 for _, new in made):
        raise NotYet(
            "every new layer drops half of its inputs, whatever the old one dropped: that is what "
            "the class does when it is told nothing."
        )
    if len({new.p for _, new in made}) == 1:
        raise NotYet(
            f"right for one network. A layer that was told {wrong[0][0]:g} drops {wrong[0][1]:g} "
            "now: ask the old layer."
        )
    raise NotYet(f"a layer that was told {wrong[0][0]:g} drops {wrong[0][1]:g} now.")
