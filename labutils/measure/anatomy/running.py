"""A network's stages as modules, and what enters and leaves modules while it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from ...errors import UsageError
from ...models import modes, zoo

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.hooks import RemovableHandle


class Call(NamedTuple):
    """One call of a module; shapes are without the batch."""

    name: str
    entered: tuple[int, ...]
    left: tuple[int, ...]


def taken(model: nn.Module | zoo.Model, size: int | None) -> tuple[nn.Module, tuple[int, ...]]:
    """Return the module and the shape (NCHW) of its input, the model's own by default.

    Raises
    ------
    UsageError
        The model is a file.
    """
    shape: tuple[int, ...] | None = None
    if isinstance(model, zoo.Model):
        if model.module is None:
            raise UsageError(f"{model.name} is a file; only a PyTorch module can be taken apart.")
        network, shape = model.module, model.input_shape
    else:
        network = model
    if size is not None:
        return network, (1, 3, size, size)
    return network, (1, *shape[1:]) if shape else (1, 3, 224, 224)


def noise(module: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """Return the same random input each time, of the kind and in the place of the weights."""
    import torch

    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weights = next(module.parameters(), drawn)
    return drawn.to(weights.device, weights.dtype)


def stage_modules(module: nn.Module) -> dict[str, nn.Module]:
    """Return the stages by name: the entries of ``features``, then its neighbours.

    Raises
    ------
    UsageError
        The network is not divided into ``features``.
    """
    return dict(_stages(module))


def _stages(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    if not hasattr(module, "features"):
        raise UsageError(
            f"{type(module).__name__} is not divided into `features`; use anatomy.walk instead."
        )
    for name, part in module.named_children():
        if name == "features":
            yield from ((f"features.{number}", stage) for number, stage in part.named_children())
        else:
            yield name, part


def calls(module: nn.Module, parts: dict[str, nn.Module], inputs: torch.Tensor) -> list[Call]:
    """Run `module` once; return every call of one of `parts`, in the order in which they ended."""
    seen: list[Call] = []

    def hook(name: str):
        return lambda _, entered, left: seen.append(
            Call(name, tuple(entered[0].shape[1:]), tuple(left.shape[1:]))
        )

    handles = [part.register_forward_hook(hook(name)) for name, part in parts.items()]
    run(module, inputs, handles)
    return seen


def inputs_of(
    module: nn.Module, kind: type[nn.Module], inputs: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Run a network once, and return what goes into each of its layers of one class.

    Parameters
    ----------
    module
        The network; it runs in evaluation mode, and is left as it was.
    kind
        A class, such as ``nn.Hardsigmoid``; subclasses count.
    inputs
        A batch for the network.

    Returns
    -------
    dict
        Name of the layer -> its first input, in the order in which the layers ran. Of a layer
        that is called several times it is the last input.

    Raises
    ------
    UsageError
        The network has no such layer.
    """
    parts = {name: part for name, part in module.named_modules() if isinstance(part, kind)}
    if not parts:
        raise UsageError(f"{type(module).__name__} has no {kind.__name__}.")
    seen: dict[str, torch.Tensor] = {}

    def hook(name: str):
        # a copy, because what comes later may work in place
        return lambda _, entered: seen.update({name: entered[0].clone()})

    handles = [part.register_forward_pre_hook(hook(name)) for name, part in parts.items()]
    run(module, inputs, handles)
    return {name: tensor.clone() for name, tensor in seen.items()}  # no inference tensors


def run(module: nn.Module, inputs: torch.Tensor, handles: list[RemovableHandle]) -> None:
    """Run `module` once in evaluation mode; its hooks are gone afterwards, whatever happens."""
    import torch

    try:
        with modes.evaluating(module), torch.inference_mode():
            module(inputs)
    finally:
        for handle in handles:
            handle.remove()
