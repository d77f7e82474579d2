"""Judging masks: the smallest weights of a layer, and n of every m along its inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..answer import NotYet, array, call

# --- 10.1: the smallest weights -------------------------------------------------------------------


def _layers() -> dict[str, tuple[np.ndarray, float]]:
    """Return kind -> weights, and the share of them that goes."""
    random = np.random.default_rng(10)
    ordinary = random.normal(size=(4, 10))
    return {
        "ordinary": (ordinary, 0.5),
        "negative": (-np.abs(random.normal(size=(3, 8))) - 0.1, 0.25),
        "filters": (random.normal(size=(4, 2, 3, 3)), 0.75),
        "few": (random.normal(size=(2, 5)), 0.3),
        "none": (ordinary, 0.0),
        "equal": (np.where(random.random((4, 10)) < 0.5, -0.5, 0.5), 0.4),
    }


def judge_smallest(smallest_mask: Any) -> None:
    """Judge the masks of several layers: zeros and ones, the right number, the right places."""
    for kind, (weights, share) in _layers().items():
        found = array(call(smallest_mask, weights.copy(), share), weights.shape)
        if not np.isin(found, (0, 1)).all():
            raise NotYet("a mask has ones where weights stay, zeros where they go, nothing else.")
        gone, wanted = int((found == 0).sum()), round(share * weights.size)
        size = np.abs(weights)
        if gone != wanted:
            raise NotYet(_explain_number(kind, gone, wanted, weights.size))
        if gone and gone < weights.size and size[found == 0].max() > size[found == 1].min():
            raise NotYet(_explain_place(weights, found))


def _explain_number(kind: str, gone: int, wanted: int, all_of: int) -> str:
    if gone == all_of - wanted:
        return f"{gone} of {all_of} weights go where {wanted} should: those that go are the zeros."
    if kind == "equal":
        return (
            f"where all weights have the same magnitude, {gone} of {all_of} go instead of "
            f"{wanted}: a threshold cannot divide equals. Count places, not values."
        )
    return f"of {all_of} weights {wanted} should go, and {gone} do."


def _explain_place(weights: np.ndarray, found: np.ndarray) -> str:
    size, gone = np.abs(weights), int((found == 0).sum())
    largest = np.sort(size.ravel())[-gone:].sum()
    if np.isclose(size[found == 0].sum(), largest):
        return "the largest weights go, and the smallest stay: the other way round."
    lowest = np.sort(weights.ravel())[:gone].sum()
    if np.isclose(weights[found == 0].sum(), lowest):
        return "the most negative weights go. A weight of -3 does as much as one of 3."
    return "a weight goes that is larger than one that stays. Only the magnitude counts."


# --- 10.4: n of every m ---------------------------------------------------------------------------

_PATTERNS = ((2, 4), (1, 2), (3, 4), (1, 3), (5, 8), (41, 64))


def judge_pattern(zero_n_of_m: Any) -> None:
    """Judge weights with n zeros in every m along the inputs, for several patterns."""
    for at, (n, m) in enumerate(_PATTERNS):
        weights = np.random.default_rng(at).normal(size=(6, 3 * m))
        _judge_blocks(zero_n_of_m, weights, n, m)
    equal = np.where(np.random.default_rng(9).random((3, 8)) < 0.5, -1.0, 1.0)
    _judge_blocks(zero_n_of_m, equal, 2, 4)


def _judge_blocks(zero_n_of_m: Any, weights: np.ndarray, n: int, m: int) -> None:
    found = array(call(zero_n_of_m, weights.copy(), n, m), weights.shape)
    blocks, original = found.reshape(len(weights), -1, m), weights.reshape(len(weights), -1, m)
    gone = (blocks == 0).sum(-1)
    if (gone == m - n).all() and n != m - n:
        raise NotYet(f"with {n}:{m}, {m - n} of {m} are zeros: here n counts zeros, not the rest.")
    if (gone != n).any():
        raise NotYet(_explain_blocks(found, weights, n, m))
    stays = blocks != 0
    if not np.allclose(blocks[stays], original[stays]):
        raise NotYet("weights that stay have other values than before: signs and sizes stay.")
    size = np.abs(original)
    if (np.where(stays, 0, size).max(-1) > np.where(stays, size, np.inf).min(-1)).any():
        raise NotYet("in some group a weight goes that is larger than one that stays beside it.")


def _explain_blocks(found: np.ndarray, weights: np.ndarray, n: int, m: int) -> str:
    zeros = found == 0
    if not zeros.any():
        return "no weight is zero."
    if zeros.sum() == zeros.size * n / m:
        across = len(weights) % m == 0 and (zeros.reshape(-1, m, zeros.shape[1]).sum(1) == n).all()
        if across:
            return "the groups run over the filters; they run along the inputs of each filter."
        strided = zeros.reshape(len(weights), m, -1).sum(1)
        if (strided == n).all():
            return f"{m} weights that lie far apart make a group; a group is {m} neighbours."
        return (
            f"the number of zeros is right for the whole layer, and some {m} neighbours have more "
            f"than {n}, others fewer. A chip that reads {m} at a time needs {n} in each."
        )
    return f"with {n}:{m}, every {m} neighbours have {n} zeros; in yours some have another number."
