"""How a tool that splits a graph between accelerator and CPU would split it."""

from __future__ import annotations

from collections.abc import Sequence

from .onnx_nodes import Node


def subgraphs(nodes: Sequence[Node], offloaded: Sequence[bool]) -> list[int]:
    """Return the number of each node's accelerator subgraph, 0 for a node on the CPU.

    Connected offloaded nodes share a subgraph as long as no path between them leaves the
    accelerator: joining across such a path would make two subgraphs wait for each other.

    Parameters
    ----------
    nodes
        In topological order.
    offloaded
        For each node, whether it runs on the accelerator.
    """
    maker = {name: i for i, node in enumerate(nodes) for name in node.proto.output if name}
    level: list[int] = []  # how often a path to the node changed the processor, at most
    group = list(range(len(nodes)))

    def root(i: int) -> int:
        while group[i] != i:
            i = group[i]
        return i

    for index, node in enumerate(nodes):
        sources = [maker[name] for name in node.proto.input if name in maker]
        steps = [level[s] + (offloaded[s] != offloaded[index]) for s in sources]
        level.append(max(steps, default=0))
        for source in sources:
            if offloaded[index] and offloaded[source] and level[source] == level[index]:
                group[root(index)] = root(source)
    numbers: dict[int, int] = {}
    for index in range(len(nodes)):
        if offloaded[index]:
            numbers.setdefault(root(index), len(numbers) + 1)
    return [numbers[root(i)] if offloaded[i] else 0 for i in range(len(nodes))]
