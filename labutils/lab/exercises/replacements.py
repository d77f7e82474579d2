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


def judge_dict(my_rule: Any) -> None:
    """Judge a rule by what the surgery makes of it in a network with other activations beside."""
    import torch
    from torch import nn

    from ... import surgery

    _refuse_other_kinds(my_rule)
    model = _family()
    try:
        report = surgery.replace_(model, my_rule, example_inputs=torch.zeros(1, 3, 8, 8))
    except Exception as error:
        raise NotYet(_explain_refused(error)) from None
    layers = {name: type(module) for name, module in model.named_modules()}
    left = [name for name, kind in layers.items() if kind is nn.SiLU]
    if left:
        few = f"a SiLU is left, at {left[0]}." if len(left) == 1 else "both SiLU layers are left."
        raise NotYet(f"{few} What stands left of the colon does not mean them all.")
    for other in (nn.Sigmoid, nn.GELU, nn.ReLU, nn.Mish, nn.ELU, nn.Hardtanh, nn.Tanh):
        if other not in layers.values():
            raise NotYet(_explain_other(other))
    became = ", ".join(dict.fromkeys(match.became for match in report.matches))
    if list(layers.values()).count(nn.Hardswish) != 2 or len(report.matches) != 2:
        raise NotYet(f"each SiLU became {became}; a Hardswish is expected.")


def _refuse_other_kinds(rule: Any) -> None:
    """Refuse what is not a rule in the form of a dict."""
    from torch import nn

    if isinstance(rule, set | frozenset):
        raise NotYet("that is a set: it does not say which of the two is replaced by which.")
    if not isinstance(rule, Mapping):
        raise NotYet(f"a dict is expected, but this is {shown(rule)}.")
    if any(isinstance(key, nn.Module) for key in rule):
        raise NotYet("the left side is one layer; a rule is for a class of layers.")


def _explain_refused(error: Exception) -> str:
    if "must be Tensor" in str(error):
        return (
            "a function of numbers stands right of the colon. A layer is replaced by a layer: "
            "give its class."
        )
    if "matched nothing" in str(error):
        return "your rule finds nothing in a network that has two SiLU layers."
    return f"the surgery refuses your rule: {in_words(error)}"


def _explain_other(kind: type[nn.Module]) -> str:
    if kind.__name__ == "Sigmoid":
        return "the Sigmoid was replaced too. It is a gate here: 1.gate scales what comes from 0."
    return f"the {kind.__name__} was replaced too, although nothing asks for that."


def judge_dropout(out_of_place: Any) -> None:
    """Judge a maker of dropouts on old layers of several settings, training and not."""
    from torch import nn

    if isinstance(out_of_place, type) or not callable(out_of_place):
        raise NotYet(f"a function of the old layer is expected, but this is {shown(out_of_place)}.")
    old_layers = [
        nn.Dropout(0.2, inplace=True),
        nn.Dropout(0.35, inplace=True),
        nn.Dropout(0.0),
        nn.Dropout(1.0),
        nn.Dropout(0.125, inplace=True).eval(),
    ]
    new_layers = [_new_of(out_of_place, old) for old in old_layers]
    told = [(old.p, new.p) for old, new in zip(old_layers, new_layers, strict=True)]
    if any(old != new for old, new in told):
        raise NotYet(_explain_probability(told))
    if any(new.inplace for new in new_layers):
        raise NotYet("the new layer still works in place.")
    if [new.training for new in new_layers[:4]] != [True] * 4:
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
            "your function returns the old layer itself. The original network, kept for "
            "comparison, would share that layer: make a new one."
        )
    if (old.p, old.inplace, old.training) != before:
        raise NotYet("your function changes the old layer; the original network has it still.")
    if not isinstance(new, nn.Dropout):
        raise NotYet(f"an nn.Dropout is expected, but this is {shown(new)}.")
    return new


def _explain_probability(told: list[tuple[float, float]]) -> str:
    wrong = [(old, new) for old, new in told if old != new]
    if all(new == 0.5 for _, new in told):
        return (
            "every new layer drops half of its inputs, whatever the old one dropped: that is what "
            "the class does when it is told nothing."
        )
    if len({new for _, new in told}) == 1:
        return (
            f"right for one network. A layer that was told {wrong[0][0]:g} drops {wrong[0][1]:g} "
            "now: ask the old layer."
        )
    return f"a layer that was told {wrong[0][0]:g} drops {wrong[0][1]:g} now."
