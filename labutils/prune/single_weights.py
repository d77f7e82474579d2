"""Masks of single weights: unstructured by magnitude, and n of every m along the input channels.

``n:m`` here is n zeros in every m weights, as TI's toolkit counts it: 41:64 is 64 % zeros. For 2:4
that is also what NVIDIA's sparse tensor cores take. Filters are cut into blocks of m along their
input channels, where vector units and sparse tensor cores read them. Where m does not divide
the input channels, the last block has the same share of zeros, rounded down: padded to m with
zeros, as hardware pads it, it still has at least n.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from ..errors import UsageError

_PATTERN = re.compile(r"(\d+):(\d+)")
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Layer:
    """A layer whose weights can be masked.

    Attributes
    ----------
    name
        Of the module.
    tensor
        Of its weight, within the module.
    weights
        Elements of its weight.
    inputs
        Input channels that one filter reads.
    dim
        The weight's axis of input channels.
    groups
        Into how many parts a transposed convolution divides that axis: a filter reads one of them.
    """

    name: str
    tensor: str
    weights: int
    inputs: int
    dim: int = 1
    groups: int = 1

    @property
    def parameter(self) -> str:
        """The name of the weight."""
        return f"{self.name}.{self.tensor}" if self.name else self.tensor


def layers_of(model: nn.Module) -> list[Layer]:
    """Return the convolutions, linear layers and attentions of a network, in its order."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, (_ConvNd, nn.Linear)):
            transposed = isinstance(module, _ConvNd) and module.transposed
            dim, groups = (0, int(module.groups)) if transposed else (1, 1)  # type: ignore[arg-type]
            shape = module.weight.shape
            found.append(Layer(name, "weight", shape.numel(), shape[dim] // groups, dim, groups))
        elif isinstance(module, nn.MultiheadAttention):
            weights = {key: getattr(module, key) for key in _ATTENTION}
            found += [
                Layer(name, key, weight.numel(), weight.shape[1])
                for key, weight in weights.items()
                if weight is not None
            ]
    return found


def pattern(text: str) -> tuple[int, int]:
    """Return n and m of ``"n:m"``.

    Raises
    ------
    UsageError
        It is not of that form, or n is not between 1 and m - 1.
    """
    found = _PATTERN.fullmatch(text)
    n, m = (int(part) for part in found.groups()) if found else (0, 0)
    if not 0 < n < m:
        raise UsageError(
            f"{text!r} is not a pattern n:m with 0 < n < m: n zeros in every m weights along the "
            "input channels, such as 2:4 or 41:64."
        )
    return n, m


def zeros_of(length: int, n: int, m: int) -> int:
    """Return the zeros of a filter with `length` input channels under n:m.

    Examples
    --------
    >>> zeros_of(8, 2, 4), zeros_of(10, 2, 4), zeros_of(16, 41, 64)
    (4, 5, 10)
    """
    return length // m * n + length % m * n // m


def pattern_mask(
    sizes: torch.Tensor, n: int, m: int, dim: int = 1, groups: int = 1
) -> torch.Tensor:
    """Return 1 for the weights that stay, 0 for the n smallest of every m along `dim`.

    Parameters
    ----------
    sizes
        Magnitudes of a weight, any shape.
    n, m
        Zeros in a block, and its length.
    dim
        The axis of input channels.
    groups
        Into how many equal parts that is divided; no block reaches from one into the next.

    Returns
    -------
    torch.Tensor
        uint8, of the weight's shape. Every block has exactly its number of zeros, ties included.
    """
    size = sizes.movedim(dim, -1).unflatten(-1, (groups, -1)).contiguous()
    keep = torch.ones(size.shape, dtype=torch.uint8, device=size.device)
    whole = size.shape[-1] // m * m
    if whole and n:
        blocks = size[..., :whole].unflatten(-1, (-1, m))
        least = blocks.topk(n, largest=False).indices
        keep[..., :whole] = (
            torch.ones_like(blocks, dtype=torch.uint8).scatter_(-1, least, 0).flatten(-2)
        )
    if rest := (size.shape[-1] - whole) * n // m:
        least = size[..., whole:].topk(rest, largest=False).indices + whole
        keep.scatter_(-1, least, 0)
    return keep.flatten(-2).movedim(-1, dim).contiguous()


def magnitude_masks(
    sizes: Mapping[str, torch.Tensor], ratios: Mapping[str, float], *, together: bool
) -> dict[str, torch.Tensor]:
    """Return masks without the smallest weights.

    Parameters
    ----------
    sizes
        Magnitudes of the weights, by parameter.
    ratios
        Share of zeros, by parameter.
    together
        Whether one threshold holds for all parameters of the same ratio; otherwise each has its
        own.

    Returns
    -------
    dict
        uint8 by parameter; 1 stays. The number of zeros is exact, ties included.
    """
    together_by: dict[object, list[str]] = {}
    for name, ratio in ratios.items():
        together_by.setdefault(ratio if together else name, []).append(name)
    masks: dict[str, torch.Tensor] = {}
    for names in together_by.values():
        flat = torch.cat([sizes[name].flatten().cpu() for name in names])
        keep = torch.ones(len(flat), dtype=torch.uint8)
        gone = round(len(flat) * ratios[names[0]])
        if gone:
            keep[flat.topk(gone, largest=False).indices] = 0
        counts = [sizes[name].numel() for name in names]
        for name, part in zip(names, keep.split(counts), strict=True):
            masks[name] = part.reshape(sizes[name].shape).to(sizes[name].device)
    return masks
