"""Names that ONNX Runtime's quantizer would give to other tensors and nodes: out of its way.

It names what it makes after what it quantizes: the weight ``b`` becomes ``b_quantized`` with
``b_scale`` and ``b_zero_point``. A tensor of the network that is called so already becomes another
one of the same name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from ..onnxfile.edit import free_name, rename_tensors_

if TYPE_CHECKING:
    import onnx

_MADE = re.compile(r"_(quantized|scale|zero_point|(Deq|Q)uantizeLinear|(de)?quantized?|convert)")
_NEUTRAL = "network"


def clashes(model: onnx.ModelProto) -> tuple[dict[str, str], dict[str, str]]:
    """Return other names for the tensors and for the nodes that stand in the quantizer's way.

    Names of inputs and outputs stay: where the quantizer would make one, the tensor that it makes
    it of is renamed instead.

    Returns
    -------
    tuple of dict
        Name -> neutral name, of tensors and of nodes.
    """
    graph = model.graph
    ends = {value.name for value in (*graph.input, *graph.output)}
    tensors = {t.name for t in graph.initializer} | ends
    tensors |= {name for node in graph.node for name in (*node.input, *node.output) if name}
    nodes = {node.name for node in graph.node}
    known = tensors | nodes
    renamed = {name for name in tensors - ends if any(s in known for s in _stems(name))}
    renamed |= {stem for end in ends for stem in _stems(end) if stem in tensors - ends}
    neutral, taken = _NEUTRAL, set(known)
    while any(name.startswith(neutral) for name in known):  # nor does any name that is made of it
        neutral = f"_{neutral}"
    of_tensors = {name: free_name(neutral, taken) for name in sorted(renamed)}
    moved = sorted(name for name in nodes if any(stem in known for stem in _stems(name)))
    return of_tensors, {name: free_name(neutral, taken) for name in moved}


def _stems(name: str) -> Iterator[str]:
    """Yield what the quantizer would have to quantize in order to make this name."""
    for match in _MADE.finditer(name):
        yield name[: match.start()]


def rename_(model: onnx.ModelProto, tensors: Mapping[str, str], nodes: Mapping[str, str]) -> None:
    """Rename tensors and nodes of a model in place."""
    if tensors:
        rename_tensors_(model.graph, tensors)
    for node in model.graph.node:
        node.name = nodes.get(node.name, node.name)


def restore_(model: onnx.ModelProto, tensors: Mapping[str, str], nodes: Mapping[str, str]) -> None:
    """Give a quantized model the network's own names back.

    Where the quantizer has made something of such a name meanwhile, that gets another one. What it
    made of a renamed tensor is named after that tensor's own name, where that is free.
    """
    graph = model.graph
    found = {t.name for t in graph.initializer}
    found |= {value.name for value in (*graph.input, *graph.output)}
    found |= {name for node in graph.node for name in (*node.input, *node.output) if name}
    rename_(model, _back(found, tensors), _back({node.name for node in graph.node}, nodes))


def _back(found: Iterable[str], names: Mapping[str, str]) -> dict[str, str]:
    """Return the own name of everything whose name begins with a neutral one."""
    own = {neutral: name for name, neutral in names.items()}
    found, back = set(found), {}
    present = sorted(found & own.keys())
    taken = found | {own[neutral] for neutral in present}
    for neutral in present:
        wanted = back[neutral] = own[neutral]
        if wanted in found:
            back[wanted] = free_name(wanted, taken)
    for name in sorted(found - back.keys()):
        neutral = next((n for n in _stems(name) if n in own), "")
        wanted = own.get(neutral, "") + name[len(neutral) :]
        if neutral and wanted not in taken:
            taken.add(wanted)
            back[name] = wanted
    return back
