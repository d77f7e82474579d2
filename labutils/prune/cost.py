"""What a network costs weight by weight, and what it costs under masks.

Multiply-accumulates of a convolution or a matrix product are proportional to the weights that are
left, because every weight is used at every place of the output. They are counted where a weight is
read, not where its module is: attention reads those of layers that are never called themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..measure import complexity
from .coupling import unmasked


@dataclass(frozen=True)
class Cost:
    """Parameters of a network and its MACs, for one image.

    Attributes
    ----------
    shape
        Of the input.
    macs
        By parameter: multiply-accumulates with it.
    rest
        MACs without a parameter, which no mask changes: activations times activations.
    elements
        By parameter: its elements.
    """

    shape: tuple[int, ...]
    macs: Mapping[str, int]
    rest: int
    elements: Mapping[str, int]

    def of(self, layer: str, stays: Mapping[str, int] | None = None) -> int:
        """Return the MACs of a layer, where `stays` has the elements that stay, by parameter."""
        return self._with(f"{layer}.weight" if layer else "weight", stays)

    def total(self, stays: Mapping[str, int] | None = None) -> tuple[int, int]:
        """Return (MACs, parameters)."""
        parameters = sum((stays or {}).get(name, n) for name, n in self.elements.items())
        return self.rest + sum(self._with(name, stays) for name in self.macs), parameters

    def _with(self, name: str, stays: Mapping[str, int] | None) -> int:
        count = self.elements.get(name, 0)
        share = (stays or {}).get(name, count) / count if count else 1.0
        return round(self.macs.get(name, 0) * share)


def measured(model: nn.Module, shape: Sequence[int]) -> Cost:
    """Return what a network costs, its masks looked through."""
    plain = unmasked(model)
    shape = (1, *shape[1:])
    parameters = dict(plain.named_parameters())
    with _ByParameter(parameters) as found:
        rows = complexity.count(plain, shape).rows
    macs = dict(found.macs)
    for row in rows:  # a weight that is computed from its parameter, as a standardized one
        weight = f"{row.name}.weight" if row.name else "weight"
        if row.macs and weight in parameters and weight not in macs:
            macs[weight] = row.macs
    rest = sum(row.macs for row in rows) - sum(macs.values())
    return Cost(shape, macs, rest, {name: p.numel() for name, p in parameters.items()})


class _ByParameter(TorchDispatchMode):
    """Counts the MACs of whatever reads a parameter or a view of it, by the parameter's name."""

    def __init__(self, parameters: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        weights = {name: p for name, p in parameters.items() if p.ndim > 1}  # no biases
        self.names = {p.untyped_storage().data_ptr(): name for name, p in weights.items()}
        self.macs: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001
        made = func(*args, **(kwargs or {}))
        if flops := flop_registry.get(func.overloadpacket):
            tensors = (leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor))
            places = [tensor.untyped_storage().data_ptr() for tensor in tensors]
            read = [self.names[place] for place in places if place in self.names]
            if read:  # the weight comes after what it is applied to
                self.macs[read[-1]] += flops(*args, **(kwargs or {}), out_val=made) // 2
        return made
