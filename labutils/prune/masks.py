"""Masks: parts of a weight that are computed as zeros while the network trains.

A `Mask` is a parametrization (`torch.nn.utils.parametrize`) of a weight: what the optimizer moves
is the weight below it, what the layer sees has zeros. A soft mask multiplies by ``1 - strength``
instead of 0, so that it can harden step by step. Masks are part of the state dict, and are copied,
exported and synchronized with the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from ..errors import UnknownNameError, UsageError


class Mask(nn.Module):
    """Computes a tensor with zeros where `keep` is 0; all of it in the shape of the tensor.

    Parameters
    ----------
    keep
        1 where values stay, 0 where they go.
    """

    keep: torch.Tensor
    strength: torch.Tensor

    def __init__(self, keep: torch.Tensor) -> None:
        super().__init__()
        # not bool: gloo cannot broadcast that between the processes of a distributed run
        # a copy: the caller's tensor must not change with the mask
        self.register_buffer("keep", keep.to(torch.uint8, copy=True))
        self.register_buffer("strength", torch.ones((), device=keep.device))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values under the mask."""
        share = torch.where(self.keep.bool(), 1.0, 1.0 - self.strength)
        return values * share.to(values.dtype)

    def right_inverse(self, values: torch.Tensor) -> torch.Tensor:
        """Return what lies below the mask when a weight is set: the weight itself."""
        return values

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        soft = "" if self.strength == 1 else f", strength {float(self.strength):.2f}"
        return f"{100 * (1 - self.keep.float().mean()):.1f} % zeros{soft}"


def masks_of(model: nn.Module) -> dict[str, Mask]:
    """Return every mask of a network by the name of its parameter, as ``features.0.0.weight``."""
    found = {}
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for tensor, chain in module.parametrizations.items():
                for mask in chain:
                    if isinstance(mask, Mask):
                        found[f"{name}.{tensor}" if name else tensor] = mask
    return found


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the tensors that a network trains, by the names they have without masks."""
    return {_without_mask(name): parameter for name, parameter in model.named_parameters()}


def _without_mask(name: str) -> str:
    plain = name.replace(".parametrizations.", ".").replace("parametrizations.", "", 1)
    return plain.removesuffix(".original") if plain != name else name


def tied(model: nn.Module) -> dict[str, str]:
    """Return, by name, why a parameter that several layers share cannot lose a part."""
    owners: dict[int, list[str]] = {}
    for layer, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            name = _without_mask(f"{layer}.{key}" if layer else key)
            owners.setdefault(id(parameter), []).append(name)
    return {
        name: f"{' and '.join(names)} are one tied weight, which cannot be cut for one of them"
        for names in owners.values()
        if len(names) > 1
        for name in names
    }


def set_masks_(model: nn.Module, keep: Mapping[str, torch.Tensor], strength: float = 1.0) -> None:
    """Put masks onto a network, in place of those that it has on the same parameters.

    On a network with fake quantization the mask comes below the rounding: zeros stay zeros.

    Parameters
    ----------
    model
        The network.
    keep
        By parameter: 1 where values stay, 0 where they go; of the parameter's shape.
    strength
        1 for zeros; less multiplies by ``1 - strength``.

    Raises
    ------
    UnknownNameError
        The network has no such parameter.
    UsageError
        A mask has another shape than its parameter, or the strength is not in 0 to 1.
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"A mask's strength is between 0 and 1, not {strength}.")
    weights, there = weights_of(model), masks_of(model)
    for name, kept in keep.items():
        if name not in weights:
            raise UnknownNameError("parameter", name, weights)
        if kept.shape != weights[name].shape:
            raise UsageError(
                f"The mask of {name} has the shape {tuple(kept.shape)}; the parameter has "
                f"{tuple(weights[name].shape)}. Plan again for this network."
            )
    for name, kept in keep.items():
        kept = kept.to(weights[name].device)
        if name not in there:
            there[name] = _put_on_(model, name, kept)
        there[name].keep.copy_(kept)
        there[name].strength.fill_(strength)


def _put_on_(model: nn.Module, name: str, keep: torch.Tensor) -> Mask:
    layer, _, tensor = name.rpartition(".")
    module: Any = model.get_submodule(layer)
    mask = Mask(keep).train(module.training)
    if parametrize.is_parametrized(module, tensor):
        module.parametrizations[tensor].insert(0, mask)
    else:
        parametrize.register_parametrization(module, tensor, mask)
    return mask


def transfer_masks_(source: nn.Module, target: nn.Module) -> int:
    """Put the masks of single weights of a network onto another with the same layers, in place.

    That is how they are kept through quantization-aware training::

        plain = copy.deepcopy(model)
        prune.remove_(plain)
        quantized = qat.prepare(plain, "int8_qat", size=96)
        prune.transfer_masks_(model, quantized)

    Parameters
    ----------
    source
        A network with hard masks.
    target
        The network that gets them, below whatever else computes its weights.

    Returns
    -------
    int
        How many masks there are.

    Raises
    ------
    UnknownNameError
        The target has no such layer: channels of BatchNorm are masked, which quantization folds
        away. Remove the channels first (`removed`), then quantize.
    UsageError
        A layer has another shape, or the source has no masks.
    """
    found = masks_of(source)
    if not found:
        raise UsageError(f"{type(source).__name__} has no masks to transfer.")
    set_masks_(target, {name: mask.keep for name, mask in found.items()})
    return len(found)


def remove_(model: nn.Module, *, zeros: bool = True) -> int:
    """Take all masks off a network, in place.

    Parameters
    ----------
    model
        The network. What lies above a mask (fake quantization) stays.
    zeros
        Whether the weights become what the masks made of them; otherwise they are what lay below.

    Returns
    -------
    int
        How many masks there were.
    """
    found = masks_of(model)
    for name, mask in found.items():
        layer, _, tensor = name.rpartition(".")
        module: Any = model.get_submodule(layer)
        chain = module.parametrizations[tensor]
        if zeros:
            with torch.no_grad():
                chain.original.copy_(mask(chain.original))
        if len(chain) > 1:
            del chain[[part is mask for part in chain].index(True)]
        else:
            _uncover_(module, tensor)
    return len(found)


def _uncover_(module: Any, tensor: str) -> None:
    """Make a parametrized tensor a plain parameter again, the one that lay below.

    `parametrize.remove_parametrizations` takes the property off the module's class, which a deep
    copy shares with its original: the original would lose its weight.
    """
    chains, plain = dict(module.parametrizations.items()), type(module).__bases__[0]
    del module.parametrizations
    module.__class__ = plain
    for name, chain in chains.items():
        module.register_parameter(name, chain.original)
        for part in chain if name != tensor else ():
            parametrize.register_parametrization(module, name, part, unsafe=True)
