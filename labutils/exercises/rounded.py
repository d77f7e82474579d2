"""Judging factors that equalize, and fake quantization: on values and gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..answer import NotYet, array, call, shown

if TYPE_CHECKING:
    import torch


def judge_factors(answer: Any) -> None:
    """Judge factors on two layers with uneven channels, then with dead ones."""
    random = np.random.default_rng(82)
    first = random.normal(size=(5, 7)) * np.array([[0.02], [0.3], [1.0], [4.0], [0.5]])
    second = random.normal(size=(3, 5)) * np.array([2.0, 0.1, 1.0, 0.7, 3.0])
    second[2] = np.abs(second[2])
    first[3, 2], second[1, 0] = -9.0, -8.0  # the largest of a channel is negative here
    s = array(call(answer, first.copy(), second.copy()), (5,))
    own, theirs = np.abs(first).max(axis=1), np.abs(second).max(axis=0)
    close = lambda other: bool(np.allclose(s, other, rtol=1e-5))  # noqa: E731
    if (s <= 0).any():
        raise NotYet(
            "a factor is not positive; a ReLU between the layers would see other signs, and the "
            "network would compute something else."
        )
    if close(own / theirs):
        raise NotYet("with these factors the two layers change places: what was uneven still is.")
    if close(np.sqrt(theirs / own)):
        raise NotYet("upside down: the channels that were large get larger.")
    if close(own):
        raise NotYet(
            "the first layer is even now, and all that was uneven has moved into the second."
        )
    if np.ptp(s) < 1e-9:
        raise NotYet("one number for all channels changes nothing between them.")
    if close(np.sqrt(first.max(axis=1) / second.max(axis=0))):
        raise NotYet("the largest weight of a channel may be a negative one.")
    if not np.allclose(own / s, theirs * s, rtol=1e-5):
        raise NotYet(
            f"channel 0 reaches {own[0] / s[0]:.3g} in the first layer then, and "
            f"{theirs[0] * s[0]:.3g} in the second: not equal."
        )
    first[1], second[:, 4] = 0, 0
    with np.errstate(all="ignore"):
        s = np.asarray(call(answer, first, second), np.float64)
    if not np.isfinite(s).all() or (s <= 0).any():
        raise NotYet(
            "a channel whose weights are all 0 gets no usable factor: dead filters are common, "
            "and one of them would spoil the layer. Leave it as it is."
        )


def judge_fake_quant(answer: Any) -> None:
    """Judge fake quantization: its values, then the gradients of x and of the scale."""
    import torch

    low, high, step = -4, 3, 0.5
    values = torch.tensor([-5.0, -2.3, -2.0, -0.7, -0.1, 0.1, 0.6, 0.9, 1.4, 4.0])
    x = values.clone().requires_grad_()
    scale = torch.tensor(step, requires_grad=True)
    y = call(answer, x, scale, low, high)
    if not isinstance(y, torch.Tensor) or y.shape != x.shape:
        raise NotYet(f"a tensor like x is asked for, and this is {shown(y)}.")
    exact = (values / step).round().clamp(low, high) * step
    _judge_forward(y.detach(), exact, values, step)
    if not y.requires_grad:
        raise NotYet("right values, and no gradient reaches anything: detach only the difference.")
    to_x, to_scale = torch.autograd.grad(y.sum(), (x, scale), allow_unused=True)
    _judge_to_x(to_x, (values / step >= low) & (values / step <= high))
    _judge_to_scale(to_scale, values / step, low, high)


def _judge_forward(y: torch.Tensor, exact: torch.Tensor, x: torch.Tensor, step: float) -> None:
    if np.allclose(y, exact, atol=1e-6):
        return
    if np.allclose(y, exact / step, atol=1e-6):
        raise NotYet("those are the codes; the network goes on computing with values.")
    if np.allclose(y, (x / step).round() * step, atol=1e-6):
        raise NotYet("nothing is cut off: there are no codes below `low` and above `high`.")
    if np.allclose(y, x, atol=1e-6):
        raise NotYet("nothing is rounded: the network would train as if there were no codes.")
    raise NotYet(f"the values are others: x = {x[3]:g} became {y[3]:.3g}, not {exact[3]:g}.")


def _judge_to_x(found: torch.Tensor | None, inside: torch.Tensor) -> None:
    if found is None or not found.any():
        raise NotYet(
            "right values, and the gradient of x is 0 everywhere: a staircase is flat. Nothing "
            "would be trained."
        )
    if np.allclose(found, 1):
        raise NotYet(
            "the gradient passes beyond the range as well. There the output does not depend on x: "
            "the optimizer would push values on that are cut off already."
        )
    if not np.allclose(found, inside.float(), atol=1e-6):
        raise NotYet("inside the range the gradient of x is to be 1, as if nothing were rounded.")


def _judge_to_scale(found: torch.Tensor | None, codes: torch.Tensor, low: int, high: int) -> None:
    if found is None:
        raise NotYet("x gets its gradient, and the scale none: it could not be learned.")
    inside = (codes >= low) & (codes <= high)
    true = (codes.clamp(low, high).round() - codes * inside).sum()
    if not np.allclose(found, true, atol=1e-5):
        raise NotYet(
            f"x gets its gradient; the scale gets {float(found):.3g} here. It acts twice: it "
            f"divides before the rounding and multiplies behind it, which makes {float(true):.3g}."
        )
