"""Which small max pools together cover a large one: numbers only, for PyTorch and for ONNX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Pool:
    """One pool of a chain; height and width."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of a setting that may be one number."""
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[-1]))


def chain(
    kernel: int | Sequence[int], stride: int | Sequence[int] | None, padding: int | Sequence[int]
) -> list[Pool]:
    """Return max pools of at most 3x3 that together cover a larger kernel.

    n pools of 3 see 2 n + 1 positions, one of 2 adds one: an odd kernel is (k - 1) / 2 pools of
    3, an even one (k - 2) / 2 and one of 2. All but the last have stride 1. Padding is -inf, so
    it does not matter which of the pools pads: one position each, on as many as are needed.
    """
    kernel, stride = pair(kernel), pair(kernel if stride in (None, ()) else stride)
    ways = [_one_way(k, p) for k, p in zip(kernel, pair(padding), strict=True)]
    length = max(map(len, ways))
    high, wide = ([(1, 0)] * (length - len(way)) + way for way in ways)
    return [
        Pool((h[0], w[0]), stride if last else (1, 1), (h[1], w[1]))
        for last, h, w in zip([False] * (length - 1) + [True], high, wide, strict=True)
    ]


def _one_way(kernel: int, padding: int) -> list[tuple[int, int]]:
    """Return (kernel, padding) of the pools along one axis."""
    sizes = [3] * ((kernel - 1) // 2) + [2] * (1 - kernel % 2) if kernel > 1 else [1]
    return [(size, int(n < padding)) for n, size in enumerate(sizes)]
