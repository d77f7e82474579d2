"""Judging what is done with a camera's pictures: the chroma of NV12, and the order of channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..answer import NotYet, array, call, words

# --- 12.1: the rows of chroma ---------------------------------------------------------------------

_BLOCKS = ((2, 3), (3, 2), (1, 1), (4, 5))


def judge_chroma(interleave: Any) -> None:
    """Judge the rows that two planes of chroma become."""
    for seed, (high, wide) in enumerate(_BLOCKS):
        rng = np.random.default_rng(seed)
        u, v = (rng.permutation(256)[: high * wide].reshape(high, wide) for _ in range(2))
        u, v = (u // 2).astype(np.uint8), (v // 2 + 128).astype(np.uint8)
        found = array(call(interleave, u.copy(), v.copy()), (high, 2 * wide))
        wanted = np.empty((high, 2 * wide))
        wanted[:, 0::2], wanted[:, 1::2] = u, v
        if not np.array_equal(found, wanted):
            raise NotYet(_explain_chroma(found, u, v))


def _explain_chroma(found: np.ndarray, u: np.ndarray, v: np.ndarray) -> str:
    if np.array_equal(found[:, 0::2], v) and np.array_equal(found[:, 1::2], u):
        return "every pair begins with V: those are the bytes of NV21, and red becomes blue."
    if np.array_equal(found, np.concatenate([u, v], axis=1)):
        return "a row holds all of U and then all of V; in NV12 they take turns."
    if np.array_equal(found.ravel(), np.concatenate([u.ravel(), v.ravel()])):
        return "all of U comes first, then all of V: those are two planes, as I420 has them."
    if np.array_equal(found, np.repeat(u, 2, axis=1)) or not np.isin(v, found).all():
        return "some values of V are missing."
    if not np.isin(u, found).all():
        return "some values of U are missing."
    row, column = np.argwhere(found != _turns(u, v))[0]
    return f"row {row}, column {column} holds the value of another block."


def _turns(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    pairs = np.empty((*u.shape, 2))
    pairs[..., 0], pairs[..., 1] = u, v
    return pairs.reshape(len(u), -1)


# --- 12.2: the order of channels ------------------------------------------------------------------

_WANTED = ("RGB", "BGR")


def _pictures() -> tuple[np.ndarray, np.ndarray]:
    """Return pictures of three colours, and the class of each: which channel is largest."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    pictures = rng.integers(0, 90, (24, 6, 8, 3))
    pictures[np.arange(24), :, :, labels] += 120
    pictures[:, 0, 0] = np.arange(24)[:, None]  # by which a network knows those that it gets wrong
    return pictures.astype(np.uint8), labels


def _network(order: str, wrong: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return a network that wants this order, and errs on the first so many pictures."""

    def run(pictures: np.ndarray) -> np.ndarray:
        pictures = np.asarray(pictures)
        if pictures.ndim != 4 or pictures.shape[1:] != (6, 8, 3):
            raise NotYet(
                f"the network takes pictures of shape (n, 6, 8, 3), and you ran it on "
                f"{pictures.shape}."
            )
        seen = pictures if order == "RGB" else pictures[..., ::-1]
        found = seen.reshape(len(seen), -1, 3).mean(axis=1).argmax(axis=1)
        return np.where(seen[:, 0, 0, 0] < wrong, (found + 1) % 3, found)

    return run


def judge_order(find_order: Any) -> None:
    """Judge which order of channels a network is said to want."""
    for order, wrong in (("RGB", 0), ("BGR", 0), ("BGR", 11), ("RGB", 11), ("BGR", 3)):
        pictures, labels = _pictures()
        found = words(call(find_order, _network(order, wrong), pictures, labels), "an order")
        if found not in _WANTED:
            raise NotYet(f'the answer is "RGB" or "BGR", not {found!r:.40}.')
        if found != order:
            raise NotYet(_explain_order(order, wrong, found, (pictures, labels)))


def _explain_order(order: str, wrong: int, found: str, given: tuple[np.ndarray, np.ndarray]) -> str:
    pictures, labels = given
    run = _network(order, wrong)
    plain = int((run(pictures) == labels).sum())
    turned = int((run(np.ascontiguousarray(np.flip(pictures, 3))) == labels).sum())
    counts = f"it is right on {plain} of {len(labels)} as they are, on {turned} the other way round"
    if wrong > 3:
        return f"this network errs often: {counts}. Which is more? You say {found}."
    return f"you say {found} of a network of which {counts}; the pictures are RGB."
