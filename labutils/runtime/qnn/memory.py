"""Outputs that were simulated before: a journey compares the same images at several places."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable

from .pool import Graph
from .process import Arrays

_Key = tuple[Hashable, ...]


class Memory:
    """What the simulator gave for a graph and an image, so that neither is simulated twice.

    A graph is known by its content, its chip and its options, an image by its values. It is meant
    for one piece of work: nothing is thrown away before the memory itself is.
    """

    def __init__(self) -> None:
        self._known: dict[_Key, Arrays] = {}

    def complete(
        self, graph: Graph, items: list[Arrays], run: Callable[[list[Arrays]], list[Arrays]]
    ) -> list[Arrays]:
        """Return the outputs for all items; only those of new items are computed, by `run`."""
        keys = [_key(graph, item) for item in items]
        new = {k: item for k, item in zip(keys, items, strict=True) if k not in self._known}
        if new:
            self._known.update(zip(new, run(list(new.values())), strict=True))
        return [self._known[key] for key in keys]


def _key(graph: Graph, item: Arrays) -> _Key:
    options = tuple(sorted({**graph.options, **graph.config}.items()))
    values = [(n, a.shape, hashlib.sha256(a.tobytes()).digest()) for n, a in sorted(item.items())]
    return graph.digest, options, tuple(values)
