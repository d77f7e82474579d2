"""Judging a pattern of several operations: on networks that write it in several ways."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..answer import NotYet, StillTodo, in_words, shown

if TYPE_CHECKING:
    import torch
    from torch import nn


def _quick(kind: str) -> nn.Module:
    """Return a network with one scaled sigmoid, written in one of several ways."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.one(x)
            if kind == "written":
                h = h * torch.sigmoid(1.702 * h)
            elif kind == "turned":
                h = (h * 1.702).sigmoid() * h
            elif kind == "mixed":
                h = torch.sigmoid(1.702 * h) * h
            elif kind == "residual":
                h = h + h * torch.sigmoid(1.702 * h)
            elif kind == "squashed":
                h = h * torch.tanh(1.702 * h)
            elif kind == "added":
                h = h + torch.sigmoid(1.702 * h)
            elif kind == "silu":
                h = h * torch.sigmoid(h)
            elif kind == "steeper":
                h = h * torch.sigmoid(2.5 * h)
            elif kind == "gate":
                h = h * torch.sigmoid(1.702 * self.two(x))
            return self.two(h)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Net().eval()


_PROMISED = "your rule promises to be exact, and a ReLU is another function."

_OTHERS = {
    "silu": "x * sigmoid(x), which is SiLU, was replaced too: there is no 1.702 in it.",
    "steeper": "x * sigmoid(2.5 * x) was replaced too: another number is another function.",
    "squashed": "x * tanh(1.702 * x) was replaced too, which has no sigmoid.",
    "added": "x + sigmoid(1.702 * x) was replaced too, which is not a product.",
    "gate": "x * sigmoid(1.702 * y) was replaced too: a gate, which scales another tensor.",
}


def judge_pattern(my_pattern: Any) -> None:
    """Judge a rule on networks that write the operations in several ways, and on others."""
    import torch

    _refuse_other_kinds(my_pattern)
    x = torch.linspace(-40, 40, 12).reshape(3, 4)
    for kind, written in _WAYS.items():
        model, report = _operated(my_pattern, kind, x)
        if report is None:
            raise NotYet(f"your pattern does not match {written}.")
        _judge_became(model, x)
    _judge_residual(my_pattern, x)
    for kind, sentence in _OTHERS.items():
        _, report = _operated(my_pattern, kind, x)
        if report is not None:
            raise NotYet(sentence)
    if my_pattern.exact:
        raise NotYet(_PROMISED)


def _refuse_other_kinds(answer: Any) -> None:
    """Refuse what is not a rule with a pattern of one tensor."""
    from ... import surgery

    if isinstance(answer, Mapping | type) or callable(answer):
        raise NotYet("a pattern is several operations: make the rule with surgery.pattern_rule.")
    if not isinstance(answer, surgery.Rule):
        raise NotYet(f"a rule is expected, but this is {shown(answer)}.")
    if not answer.graph:
        raise NotYet("this rule has no pattern of several operations: use surgery.pattern_rule.")
    _refuse_two_arguments(answer)


def _refuse_two_arguments(rule: Any) -> None:
    try:
        taken = len(inspect.signature(rule.graph[0].pattern).parameters)
    except (TypeError, ValueError):  # a module, or a function without a signature
        return
    if taken != 1:
        raise NotYet(
            f"your pattern takes {taken} tensors. In quick GELU one and the same tensor is scaled "
            "and does the scaling; with two it would be a gate."
        )


_WAYS = {
    "written": "h * torch.sigmoid(1.702 * h), where h is the output of a layer",
    "turned": "(h * 1.702).sigmoid() * h",
    "mixed": "torch.sigmoid(1.702 * h) * h",
}


def _operated(rule: Any, kind: str, x: Any) -> tuple[Any, Any]:
    """Return the network and the report; None where nothing matched."""
    from ... import surgery
    from ...errors import SurgeryError

    model = _quick(kind)
    try:
        return model, surgery.replace_(model, rule, level="graph", example_inputs=(x,))
    except SurgeryError as error:
        if "matched nothing" in str(error):
            return model, None
        if rule.exact and "promises the same result" in str(error):
            raise NotYet(_PROMISED) from None
        raise NotYet(f"the surgery refuses your rule: {in_words(error)}") from None
    except StillTodo:
        raise
    except Exception as error:
        if "_Todo" in str(error):  # the tracer met it in a function, and names its type
            raise StillTodo from None
        raise NotYet(f"the surgery with your rule raised {in_words(error)}") from None


def _judge_became(model: nn.Module, x: Any) -> None:
    import torch

    one, two = model.get_submodule("one"), model.get_submodule("two")
    h = one(x)
    found, true = model(x), two(torch.relu(h))
    if not torch.allclose(found, true, atol=1e-5):
        raise NotYet(_explain_became(model, h, found))
    weight = model.get_parameter("one.weight")
    wanted = torch.autograd.grad(true.sum(), weight)[0]
    got = torch.autograd.grad(found.sum(), weight, allow_unused=True)[0]
    if got is None or not torch.allclose(got, wanted, atol=1e-4):
        raise NotYet(
            "it matches, with the right values, and the layer before it gets no gradient any more: "
            "the network could not be trained on."
        )


def _judge_residual(rule: Any, x: Any) -> None:
    """Let another reader have the same tensor: a replacement must not write into it."""
    import torch

    model, report = _operated(rule, "residual", x)
    h = model.one(x).detach()
    with torch.no_grad():
        if report is not None and not torch.allclose(
            model(x), model.two(h + torch.relu(h)), atol=1e-4
        ):
            raise NotYet(
                "on h + h * torch.sigmoid(1.702 * h) the sum is another: the replacement writes "
                "into the tensor that it reads, and the sum reads it as well."
            )


def _explain_became(model: nn.Module, h: torch.Tensor, found: torch.Tensor) -> str:
    import torch

    for other, words in (
        (h * torch.sigmoid(1.702 * h), "computes what was there before."),
        (torch.relu(1.702 * h), "is a ReLU of 1.702 * x: too steep."),
        (h.clamp(0, 6), "cuts off at 6: that is another function, ReLU6."),
    ):
        if torch.allclose(found, model.get_submodule("two")(other), atol=1e-5):
            return f"it matches, and the replacement {words}"
    return "it matches, and what the network computes then is not the ReLU of the same x."
