"""A description as a PyTorch module whose submodules are called as its layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from ..errors import ModelFileError, counted
from .description import Description, Layer
from .operator import built

_SEED = 0


class Network(nn.Module):
    """The network that a description stands for.

    Parameters
    ----------
    description
        Its layers become submodules of the same names.
    """

    def __init__(self, description: Description) -> None:
        super().__init__()
        self._description = description
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_SEED)
            for layer in description.layers:
                try:
                    _put(self, layer.name, built(layer.operator))
                except (ValueError, KeyError) as error:
                    raise ModelFileError(
                        f"{description.name}: the layer {layer.name} ({layer.operator.kind}) is "
                        f"not built: {error.args[0]}"
                    ) from None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output of the last layer for pictures (n, channels, height, width)."""
        values = {"input": x}
        for layer in self._description.layers:
            given = [values[name] for name in layer.inputs]
            values[layer.name] = self.get_submodule(layer.name)(*given)
        return values[self._description.output]


def emit_torch(
    description: Description, weights: Mapping[str, torch.Tensor] | None = None
) -> Network:
    """Return a description as a PyTorch network in `eval` mode.

    Parameters
    ----------
    description
        As imported, or written by hand.
    weights
        By the names that the layers give them; without any, layers begin as PyTorch's own (seed 0).

    Raises
    ------
    ModelFileError
        Layers do not fit together, or weights are missing or have another shape; each is named.
    """
    made = Network(description).eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(_SEED)
        _measured(made)
    if weights is not None:
        _load_(made, weights)
    return made.requires_grad_(False)


def bit_equal(one: nn.Module, other: nn.Module, pictures: torch.Tensor) -> bool:
    """Whether two networks give the same bits for pictures (n, channels, height, width).

    nn.MultiheadAttention has a fused kernel with other bits, which torch.export does not take: it
    is off meanwhile. A matrix product can have other bits where weights require gradients.
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            return torch.equal(one(pictures), other(pictures))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def weight_names(layer: Layer, network: nn.Module) -> dict[str, str]:
    """Return what a layer calls its weights -> their names beside the description."""
    state = network.get_submodule(layer.name).state_dict()
    own = [name for name in state if name != "num_batches_tracked"]
    return {name: layer.full_name(name) for name in own}


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    *path, last = name.split(".")
    for part in path:
        if part not in dict(root.named_children()):
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.add_module(last, module)


def _measured(network: Network) -> None:
    """Give lazy layers their shapes, from one picture; the first that does not fit is named."""
    values = {"input": torch.zeros(1, *network._description.input)}
    for layer in network._description.layers:
        given = [values[name] for name in layer.inputs]
        try:
            values[layer.name] = network.get_submodule(layer.name)(*given)
        except Exception as error:  # a learner's own kind may raise anything
            shapes = " and ".join(str(tuple(x.shape)) for x in given) or "none"
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelFileError(
                f"{network._description.name}: the layer {layer.name} ({layer.operator.kind}) does "
                f"not take inputs of shape {shapes}: {reason}"
            ) from None


def _load_(network: Network, weights: Mapping[str, torch.Tensor]) -> None:
    problems = []
    for layer in network._description.layers:
        state = network.get_submodule(layer.name).state_dict()
        for own, full in weight_names(layer, network).items():
            if full not in weights:
                problems.append(f"{layer.name}: there are no weights {full}")
            elif weights[full].shape != state[own].shape:
                shapes = tuple(state[own].shape), tuple(weights[full].shape)
                problems.append(
                    f"{layer.name}: {full} must have the shape {shapes[0]}, not {shapes[1]}"
                )
            else:
                state[own].copy_(weights[full])
    if problems:
        more = f"; {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ModelFileError(
            f"{network._description.name}: the weights do not fit "
            f"{counted(len(problems), 'time')}: {'; '.join(problems[:5])}{more}. Build it without "
            "weights to train it."
        )
