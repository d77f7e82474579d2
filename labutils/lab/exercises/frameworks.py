"""Judging what is carried from PyTorch to Keras: kernels, padding, a BatchNorm."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from ..answer import NotYet, array, call, pair, several, whole

# --- 11.1: kernels --------------------------------------------------------------------------------

_KERNELS = (
    ((4, 3, 3, 3), False), ((6, 1, 3, 3), True), ((5, 4, 1, 1), False), ((8, 2, 3, 5), False),
    ((6, 1, 5, 2), True), ((3, 3, 3, 3), False), ((1, 1, 3, 3), True),
)  # fmt: skip
_KERAS = {True: (2, 3, 0, 1), False: (2, 3, 1, 0)}


def judge_kernel(to_keras: Any) -> None:
    """Judge kernels of ordinary, grouped and depthwise convolutions in Keras's layout."""
    for seed, (shape, depthwise) in enumerate(_KERNELS):
        weights = np.random.default_rng(seed).normal(size=shape)
        given = call(to_keras, weights.copy(), depthwise)
        found = array(given, call(np.shape, given))
        wanted = weights.transpose(_KERAS[depthwise])
        if found.shape != wanted.shape or not np.array_equal(found, wanted):
            raise NotYet(_explain_kernel(weights, depthwise, found))


def _explain_kernel(weights: np.ndarray, depthwise: bool, found: np.ndarray) -> str:
    kind = "a depthwise kernel" if depthwise else "a kernel"
    shape, wanted = weights.shape, weights.transpose(_KERAS[depthwise])
    if found.shape == shape and np.array_equal(found, weights):
        return f"{kind} of shape {shape} comes back as PyTorch has it."
    if np.array_equal(found, weights.transpose(_KERAS[not depthwise])):
        if depthwise:
            return (
                f"{kind} of shape {shape} became {found.shape}: one input and {shape[0]} outputs. "
                "In Keras each channel of a depthwise layer is an input, with one output."
            )
        return f"{kind} of shape {shape} became {found.shape}: here outputs come before inputs."
    if found.size == weights.size and np.array_equal(found.ravel(), weights.ravel()):
        return (
            f"{kind} has another shape, and its numbers stand in the old order: each weight is now "
            "at another place of another channel. Axes are moved, not cut again."
        )
    if found.ndim == 4 and np.array_equal(found.swapaxes(0, 1), wanted):
        return f"height and width of {kind} have changed places."
    if found.shape == wanted.shape:
        return f"{kind} has the right shape, and the weights are not where they belong."
    return f"{kind} of shape {shape} became {found.shape}. Height and width come first in Keras."


# --- 11.2: padding of "same" ----------------------------------------------------------------------

_WINDOWS = [
    (size, kernel, stride)
    for stride, kernel, size in itertools.product((2, 1, 3), (3, 5, 1, 2), (224, 7, 6, 13))
]


def judge_padding(same_padding: Any) -> None:
    """Judge what "same" pads before and after, for many sizes, kernels and strides."""
    for size, kernel, stride in _WINDOWS:
        found = pair(call(same_padding, size, kernel, stride), "(before, after)")
        before, after = (whole(side, "a number of zeros") for side in found)
        total = max(kernel - (size - 1) % stride - 1, 0)
        if (before, after) != (total // 2, total - total // 2):
            raise NotYet(_explain_padding((size, kernel, stride), (before, after), total))


def _explain_padding(asked: tuple[int, int, int], found: tuple[int, int], total: int) -> str:
    size, kernel, stride = asked
    told = f"{size} pixels, kernel {kernel}, stride {stride}: you pad {found[0]} and {found[1]}"
    if min(found) < 0:
        return f"{told}. Padding is never negative: where windows leave pixels out, it is zero."
    if sum(found) == total:
        return f"{told}. The sum is right; the larger part comes after, at the right and below."
    made, wanted = (size + sum(found) - kernel) // stride + 1, -(-size // stride)
    if found == (kernel // 2, kernel // 2) and made == wanted:
        return f"{told}, as PyTorch does. That makes {made} windows; fewer zeros do as well."
    if made != wanted:
        return f'{told}. That makes {made} windows, and "same" makes {wanted}.'
    return f"{told}. That makes {wanted} windows, as it should, with more zeros than needed."


# --- 11.3: a BatchNorm ----------------------------------------------------------------------------

_EPSILONS = ((1e-5, 1e-5), (1e-5, 1e-3), (1e-3, 1e-5), (1e-5, 0.1))
_ORDER = ("gamma", "beta", "mean", "variance")


def judge_norm(copy_norm: Any) -> None:
    """Judge the four arrays of a layer with another epsilon, by what it computes with them."""
    for seed, (own, theirs) in enumerate(_EPSILONS):
        norm = _norm(seed, own)
        given = several(call(copy_norm, dict(norm), theirs), "four arrays", most=4)
        if len(given) != 4:
            raise NotYet(f"{', '.join(_ORDER)} are expected, four arrays; you return {len(given)}.")
        found = [array(value, (6,)) for value in given]
        if not _same(norm, found, theirs):
            raise NotYet(_explain_norm(norm, found, theirs))


def _norm(seed: int, epsilon: float) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    variance = np.array([1e-4, 1e-3, 0.02, 0.3, 1.0, 40.0])
    return {
        "weight": rng.uniform(0.5, 2, 6), "bias": rng.normal(size=6),
        "running_mean": rng.normal(size=6), "running_var": variance, "eps": epsilon,
    }  # fmt: skip


def _computed(arrays: Any, epsilon: float) -> np.ndarray:
    gamma, beta, mean, variance = arrays
    pictures = np.linspace(-2, 3, 7)[:, None]
    with np.errstate(all="ignore"):
        return gamma * (pictures - mean) / np.sqrt(variance + epsilon) + beta


def _wanted(norm: dict[str, Any]) -> np.ndarray:
    names = ("weight", "bias", "running_mean", "running_var")
    return _computed([norm[name] for name in names], norm["eps"])


def _same(norm: dict[str, Any], found: Any, epsilon: float) -> bool:
    wanted = _wanted(norm)
    apart = np.abs(_computed(found, epsilon) - wanted).max()
    return bool(apart < 1e-5 * np.abs(wanted).max())


def _explain_norm(norm: dict[str, Any], found: list[np.ndarray], theirs: float) -> str:
    told = f"epsilon {norm['eps']:g} there, {theirs:g} here"
    if any(_same(norm, order, theirs) for order in itertools.permutations(found)):
        return f"these four arrays would do in another order: {', '.join(_ORDER)}."
    if (found[3] + theirs <= 0).any():
        return f"{told}: the variance that you return and epsilon add up to nothing or less."
    if _same(norm, found, norm["eps"]):
        return (
            f"{told}: your arrays fit a layer with the old epsilon. This one adds its own to the "
            "variance, which changes channels that vary little."
        )
    computed, wanted = _computed(found, theirs), _wanted(norm)
    if np.abs(computed).max() < np.abs(wanted).max() and theirs > norm["eps"]:
        return f"{told}: it computes values that are too small, most where the variance is small."
    return f"{told}: the layer computes other values, most where the variance is small."
