"""Judging errors of a range, factors that equalize, and fake quantization: on values, gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..answer import NotYet, array, call, number, pair, shown

if TYPE_CHECKING:
    import torch


def judge_errors(two_errors: Any) -> None:
    """Judge the two errors of a range on values of which some lie just inside its ends."""
    random = np.random.default_rng(8)
    for scale, low_code in ((0.05, -40), (0.2, 0), (0.01, -128)):
        low, high = scale * low_code, scale * (low_code + 255)
        x = random.normal(scale=0.6 * high, size=600)
        x[:6] = low + 0.3 * scale, high - 0.3 * scale, low - 0.3 * scale, high + 0.3 * scale, 0, low
        back = np.clip(np.round(x / scale), low_code, low_code + 255) * scale
        found = pair(call(two_errors, x.copy(), back.copy(), low, high), "(clipping, rounding)")
        clipping = number(found[0], "a number as the error of clipping")
        rounding = number(found[1], "a number as the error of rounding")
        squared = (x - back) ** 2
        outside = (x < low) | (x > high)
        true = squared[outside].sum() / x.size, squared[~outside].sum() / x.size
        if not np.allclose((clipping, rounding), true, rtol=1e-4, atol=1e-12):  # float32 will do
            raise NotYet(_explain_errors(x, back, (low, high), (clipping, rounding)))


def _explain_errors(
    x: np.ndarray, back: np.ndarray, ends: tuple[float, float], found: tuple[float, float]
) -> str:
    squared, distance, gone = (x - back) ** 2, np.abs(x - back), (x < ends[0]) | (x > ends[1])
    sums = np.array([squared[gone].sum(), squared[~gone].sum()])
    true = sums / x.size
    same = lambda a, b: bool(np.allclose(a, b, rtol=1e-4, atol=1e-12))  # noqa: E731
    if same(found, true[::-1]):
        return "right values, in the other order: clipping comes first."
    if same(found, (squared[gone].mean(), squared[~gone].mean())):
        return (
            "each of your means is over its own values, so their sum is not the error of the "
            "tensor. Few are clipped: they must not count as if they were all."
        )
    if same(found[0], squared[x > ends[1]].sum() / x.size):
        return "a range has two ends, and values lie beyond the lower one as well."
    if same(found[0], squared[x < ends[0]].sum() / x.size):
        return "a range has two ends, and values lie beyond the upper one as well."
    if same(found, (distance[gone].sum() / x.size, distance[~gone].sum() / x.size)):
        return "those are distances. Squared error counts a far one more than many near."
    if same(found, sums):
        return "those are sums: with twice the values they double. The means are expected."
    if same(found, sums / (x.size - 1)):
        return "divided by one less than there are values; a mean has all of them."
    if same(found, np.sqrt(true)):
        return "those are roots. Roots do not add up to the whole; the squares do."
    if same(sum(found), sum(true)):
        return (
            "the sum is right, and it is divided between the two at another place: a value that "
            "lies inside the range is rounded, however near to the end."
        )
    return f"together they make {sum(found):.4g}, the tensor's {sum(true):.4g}."


def judge_factors(factors: Any) -> None:
    """Judge factors on two layers with uneven channels, then with dead ones."""
    random = np.random.default_rng(82)
    first = random.normal(size=(5, 7)) * np.array([[0.02], [0.3], [1.0], [4.0], [0.5]])
    second = random.normal(size=(3, 5)) * np.array([2.0, 0.1, 1.0, 0.7, 3.0])
    second[2] = np.abs(second[2])
    first[3, 2], second[1, 0] = -9.0, -8.0  # the largest of a channel is negative here
    s = _factors(factors, first, second)
    own, theirs = np.abs(first).max(axis=1), np.abs(second).max(axis=0)
    if (s <= 0).any() or not np.allclose(own / s, theirs * s, rtol=1e-5):
        raise NotYet(_explain_factors(s, first, second))
    _judge_dead(factors, first, second)


def _explain_factors(s: np.ndarray, first: np.ndarray, second: np.ndarray) -> str:
    own, theirs = np.abs(first).max(axis=1), np.abs(second).max(axis=0)
    close = lambda other: bool(np.allclose(s, other, rtol=1e-5))  # noqa: E731
    if (s <= 0).any():
        return (
            "a factor is not positive; a ReLU between the layers would see other signs, and the "
            "network would compute something else."
        )
    if close(own / theirs):
        return "with these factors the two layers change places: what was uneven still is."
    if close(np.sqrt(theirs / own)):
        return "upside down: the channels that were large get larger."
    if close(own):
        return "the first layer is even now, and all that was uneven has moved into the second."
    if close(1 / theirs):
        return "the second layer is even now, and all that was uneven has moved into the first."
    if np.ptp(s) < 1e-9:
        return "one number for all channels changes nothing between them."
    if close(np.sqrt(first.max(axis=1) / second.max(axis=0))):
        return "the largest weight of a channel may be a negative one."
    return (
        f"channel 0 reaches {own[0] / s[0]:.3g} in the first layer then, and "
        f"{theirs[0] * s[0]:.3g} in the second: not equal."
    )


def _judge_dead(answer: Any, first: np.ndarray, second: np.ndarray) -> None:
    """Ask for 1 where a channel is dead in either layer or in both, and for the rest as before."""
    first, second = first.copy(), second.copy()
    first[1], second[:, 4] = 0, 0
    first[2], second[:, 2] = 0, 0
    with np.errstate(all="ignore"):
        s = np.asarray(_factors(answer, first, second), np.float64)
    if not np.isfinite(s).all() or (s <= 0).any():
        raise NotYet(
            "a channel whose weights are all 0 gets no usable factor: dead filters are common, "
            "and one of them would spoil the layer. Leave it as it is."
        )
    dead = np.array([False, True, True, False, True])
    odd = s[dead & ~np.isclose(s, 1, rtol=1e-4)]
    if odd.size:
        raise NotYet(
            "a channel whose weights are all 0 in one of the layers gets the factor "
            f"{odd[0]:.3g}. There is nothing to equalize there: leave it as it is."
        )
    own, theirs = np.abs(first).max(axis=1), np.abs(second).max(axis=0)
    if not np.allclose((own / s)[~dead], (theirs * s)[~dead], rtol=1e-5):
        raise NotYet("where one channel is dead, the others still have to be equalized.")


def _factors(answer: Any, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    found = call(answer, first.copy(), second.copy())
    shape = np.shape(found) if isinstance(found, np.ndarray) else getattr(found, "shape", None)
    if shape is not None and tuple(shape) != (len(first),):
        raise NotYet(
            "one factor per channel is expected, an array of the shape "
            f"{(len(first),)}, and yours has {tuple(shape)}."
        )
    return array(found, (len(first),))


_VALUES = (-5.0, -2.3, -1.9, -0.7, -0.1, 0.1, 0.6, 0.9, 1.4, 4.0)
_GRIDS = ((-4, 3, 0.5), (0, 15, 0.125), (-128, 127, 0.031))  # first and last code, step


def judge_fake_quant(fake_quant: Any) -> None:
    """Judge fake quantization: its values, then the gradients of x and of the scale."""
    import torch

    for low, high, step in _GRIDS:
        values = _values_on(low, high, step)
        x = values.clone().requires_grad_()
        scale = torch.tensor(step, requires_grad=True)
        y = call(lambda x, scale: fake_quant(x, scale, low, high), x * 1, scale * 1)  # noqa: B023
        if not isinstance(y, torch.Tensor) or y.shape != x.shape:
            raise NotYet(f"a tensor like x is expected, but this is {shown(y)}.")
        exact = (values / step).round().clamp(low, high) * step
        if not np.allclose(y.detach(), exact, atol=1e-6):
            raise NotYet(_explain_values(y.detach(), exact, values, step))
        if not y.requires_grad:
            raise NotYet(
                "right values, and no gradient reaches anything: detach only the difference."
            )
        to_x, to_scale = torch.autograd.grad(y.sum(), (x, scale), allow_unused=True)
        _judge_to_x(to_x, (values / step >= low) & (values / step <= high))
        _judge_to_scale(to_scale, values / step, low, high)


def _values_on(low: int, high: int, step: float) -> torch.Tensor:
    """Return values at all parts of a step, and beyond both ends."""
    import torch

    if step == 0.5:
        return torch.tensor(_VALUES)
    random = torch.Generator().manual_seed(high)
    codes = torch.randint(low + 1, high, (40,), generator=random)
    parts = torch.tensor([-0.4, -0.3, -0.1, 0.3]).repeat(10)
    return torch.cat([codes + parts, torch.tensor([low - 3.3, high + 2.6])]) * step


def _explain_values(y: torch.Tensor, exact: torch.Tensor, x: torch.Tensor, step: float) -> str:
    import torch

    if np.allclose(y, exact / step, atol=1e-6):
        return "those are the codes; the network continues with values."
    if np.allclose(y, (x / step).round() * step, atol=1e-6):
        return "nothing is cut off: there are no codes below `low` or above `high`."
    if np.allclose(y, x, atol=1e-6) or np.allclose(y, x.clamp(exact.min(), exact.max()), atol=1e-6):
        return "nothing is rounded: the network would train as if there were no codes."
    worst = int(torch.argmax((y - exact).abs().nan_to_num(torch.inf)))
    became = f"x = {x[worst]:.4g} became {y[worst]:.3g}"
    low, high = exact.min(), exact.max()
    for way, words in (
        (torch.floor, "down, always"),
        (torch.ceil, "up, always"),
        (torch.trunc, "towards zero"),
    ):
        if np.allclose(y, (way(x / step) * step).clamp(low, high), atol=1e-6):
            return f"you round {words}: {became}, and {exact[worst]:.3g} is nearer."
    return f"the values are others: {became}, not {exact[worst]:.3g}."


def _judge_to_x(found: torch.Tensor | None, inside: torch.Tensor) -> None:
    if found is None or not found.any():
        raise NotYet(
            "right values, and the gradient of x is 0 everywhere: a staircase is flat. Nothing "
            "would be trained."
        )
    if np.allclose(found, 1) and not inside.all():
        raise NotYet(
            "the gradient passes beyond the range as well. There the output does not depend on x: "
            "the optimizer would push values on that are cut off already."
        )
    if not np.allclose(found, inside.float(), atol=1e-6):
        raise NotYet("inside the range the gradient of x should be 1, as if nothing were rounded.")


def _judge_to_scale(found: torch.Tensor | None, codes: torch.Tensor, low: int, high: int) -> None:
    if found is None:
        raise NotYet("x gets its gradient, and the scale none: it could not be learned.")
    inside = (codes >= low) & (codes <= high)
    true = (codes.clamp(low, high).round() - codes * inside).sum()
    if not np.allclose(found, true, atol=1e-3):
        raise NotYet(
            f"x gets its gradient; the scale gets {float(found):.3g} here. It acts twice: it "
            f"divides before the rounding and multiplies behind it, which makes {float(true):.3g}."
        )
