"""Where the boxes of a small graph go: layers from top to bottom, long edges led around boxes.

A Sugiyama-style drawing in plain Python (layering by longest path, barycentre ordering, priority
coordinates): no measuring of fonts and no randomness, so every machine gets the same numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

ROW_GAP = 46  # room between two rows for arrows and the shapes beside them
BOX_GAP = 22
_PORT = 18  # between two arrows that end at one box
_BYPASS = 10  # half the width of the lane of an edge that passes a row
_SWEEPS = 6

Edge = tuple[int, int]
Point = tuple[int, int]


@dataclass(frozen=True)
class Extent:
    """Room that a box needs, in pixels: left and right of its middle, and its height."""

    left: int
    right: int
    height: int


@dataclass(frozen=True)
class Layout:
    """Middle of every box's upper edge, the points of every edge, and the size of it all."""

    boxes: list[Point]
    routes: list[list[Point]]
    width: int
    height: int


@dataclass
class _Layered:
    """The graph with one lane vertex per row that an edge passes."""

    extents: list[Extent]
    ranks: list[int]
    rows: list[list[int]]
    chains: list[list[int]]  # per edge: its source, its lanes, its target
    above: dict[int, list[int]] = field(default_factory=dict)
    below: dict[int, list[int]] = field(default_factory=dict)


def arrange(extents: Sequence[Extent], edges: Sequence[Edge]) -> Layout:
    """Return positions for boxes of the given extents.

    Parameters
    ----------
    extents
        One per box, in topological order.
    edges
        (source, target), indices into `extents`, each source before its target.
    """
    graph = _layered(list(extents), edges)
    _order(graph)
    xs = _columns(graph)
    heights = [max(graph.extents[v].height for v in row) for row in graph.rows]
    tops = [sum(heights[:r]) + ROW_GAP * r for r in range(len(heights))]
    boxes = [(xs[v], tops[graph.ranks[v]]) for v in range(len(extents))]
    routes = [_route(graph, chain, xs, tops, heights) for chain in graph.chains]
    _spread(edges, routes)
    width = max(xs[v] + graph.extents[v].right for v in range(len(graph.extents)))
    return Layout(boxes, routes, width, tops[-1] + heights[-1])


def _layered(extents: list[Extent], edges: Sequence[Edge]) -> _Layered:
    ranks = [0] * len(extents)
    for source, target in sorted(edges, key=lambda edge: edge[1]):
        ranks[target] = max(ranks[target], ranks[source] + 1)
    fed = {target for _, target in edges}
    for vertex in range(len(extents)):  # an input stands right above its first reader
        readers = [ranks[t] for s, t in edges if s == vertex]
        if vertex not in fed and readers:
            ranks[vertex] = min(readers) - 1
    chains = []
    for source, target in edges:
        lanes = range(len(extents), len(extents) + ranks[target] - ranks[source] - 1)
        extents.extend(Extent(_BYPASS, _BYPASS, 0) for _ in lanes)
        ranks.extend(range(ranks[source] + 1, ranks[target]))
        chains.append([source, *lanes, target])
    rows = [[v for v in range(len(ranks)) if ranks[v] == r] for r in range(max(ranks) + 1)]
    graph = _Layered(extents, ranks, rows, chains)
    for chain in chains:
        for upper, lower in itertools.pairwise(chain):
            graph.below.setdefault(upper, []).append(lower)
            graph.above.setdefault(lower, []).append(upper)
    return graph


def _order(graph: _Layered) -> None:
    """Sort every row by the mean place of its neighbours, downwards and upwards in turn."""
    for sweep in range(_SWEEPS):
        near = graph.above if sweep % 2 == 0 else graph.below
        place = {v: i for row in graph.rows for i, v in enumerate(row)}
        for row in graph.rows if sweep % 2 == 0 else reversed(graph.rows):
            middle = {v: _mean([place[n] for n in near.get(v, [])], place[v]) for v in row}
            row.sort(key=middle.__getitem__)
            place.update({v: i for i, v in enumerate(row)})


def _columns(graph: _Layered) -> list[int]:
    """Return the x of every vertex: near its neighbours, in the row's order, not overlapping."""
    xs = [0.0] * len(graph.extents)
    for row in graph.rows:
        _place(graph, row, xs, [0.0] * len(row))
    for sweep in range(_SWEEPS):
        near = (graph.above, graph.below)[sweep % 2]
        for row in graph.rows if sweep % 2 == 0 else reversed(graph.rows):
            _place(graph, row, xs, [_mean([xs[n] for n in near.get(v, [])], xs[v]) for v in row])
    left = min(x - extent.left for x, extent in zip(xs, graph.extents, strict=True))
    return [round(x - left) for x in xs]


def _place(graph: _Layered, row: list[int], xs: list[float], wanted: list[float]) -> None:
    """Move a row towards `wanted`: the mean of packing it from the left and from the right."""
    ext = graph.extents
    gaps = [ext[a].right + BOX_GAP + ext[b].left for a, b in itertools.pairwise(row)]
    forth, back = list(wanted), list(wanted)
    for i, gap in enumerate(gaps):
        forth[i + 1] = max(forth[i + 1], forth[i] + gap)
    for i, gap in reversed(list(enumerate(gaps))):
        back[i] = min(back[i], back[i + 1] - gap)
    for vertex, a, b in zip(row, forth, back, strict=True):
        xs[vertex] = (a + b) / 2


def _route(
    graph: _Layered, chain: list[int], xs: list[int], tops: list[int], heights: list[int]
) -> list[Point]:
    source, *lanes, target = chain
    points = [(xs[source], tops[graph.ranks[source]] + graph.extents[source].height)]
    for lane in lanes:
        rank = graph.ranks[lane]
        points += [(xs[lane], tops[rank]), (xs[lane], tops[rank] + heights[rank])]
    return [*points, (xs[target], tops[graph.ranks[target]])]


def _spread(edges: Sequence[Edge], routes: list[list[Point]]) -> None:
    """Give every arrow that ends at one box its own place there, in the order they come from."""
    for target in {t for _, t in edges}:
        ending = [i for i, (_, t) in enumerate(edges) if t == target]
        ending.sort(key=lambda i: routes[i][-2][0])
        for place, i in enumerate(ending):
            x, y = routes[i][-1]
            routes[i][-1] = (x + round(_PORT * (place - (len(ending) - 1) / 2)), y)


def _mean(values: list[float], default: float) -> float:
    return sum(values) / len(values) if values else default
