"""The parts of a stage: its convolutions, linear layers and squeeze-excitations, by their roles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from .running import Call

ACTIVATIONS = (
    "ReLU", "ReLU6", "Hardswish", "SiLU", "GELU", "CustomHardswish",
    "Hardsigmoid", "CustomHardsigmoid", "Sigmoid",
)  # fmt: skip


@dataclass(frozen=True)
class Part:
    """One convolution, linear layer or squeeze-excitation with what follows it.

    Attributes
    ----------
    name
        The module's, ``features.4.block.0.0``.
    role
        ``expand``, ``depthwise``, ``squeeze-excitation``, ``project``, ``convolution``, ``linear``.
    channels, side
        Of what leaves it; the side of the picture in pixels.
    kernel, stride
        0 where there is none.
    activation
        Its class, one of `ACTIVATIONS`, "" for none; in squeeze-excitation that of its gate.
    squeezed
        Channels in the middle of a squeeze-excitation, else 0.
    """

    name: str
    role: str
    channels: int
    side: int
    kernel: int = 0
    stride: int = 0
    activation: str = ""
    squeezed: int = 0


def leaves(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield what a part is read from: modules without children, gates and activations whole."""
    whole = squeezes(module) or type(module).__name__ in ACTIVATIONS
    if whole or not any(module.children()):
        yield name, module
    else:
        for child, inner in module.named_children():
            yield from leaves(f"{name}.{child}", inner)


def squeezes(module: nn.Module) -> bool:
    """Tell whether this is a squeeze-excitation, torchvision's or timm's."""
    return "squeeze" in type(module).__name__.lower()


def depthwise(module: nn.Module) -> bool:
    """Tell whether this is a convolution that sees every channel separately."""
    return getattr(module, "groups", 1) > 1 and module.groups == module.in_channels


def read(ran: Sequence[tuple[nn.Module, Call]]) -> tuple[Part, ...]:
    """Return the parts of a stage.

    Parameters
    ----------
    ran
        The calls of its `leaves`, in order.
    """
    from torch import nn

    weighted = [m for m, _ in ran if isinstance(m, nn.Conv2d | nn.Linear) or squeezes(m)]
    deep = [depthwise(module) for module in weighted]
    middle = deep.index(True) if True in deep else None
    found: list[Part] = []
    for module, call in ran:
        place = next((i for i, w in enumerate(weighted) if w is module), None)
        kind = type(module).__name__
        if place is not None:
            found.append(_part(module, call, place, middle))
        elif found and kind in ACTIVATIONS and not found[-1].activation:
            found[-1] = replace(found[-1], activation=kind)
    return tuple(found)


def _part(module: Any, call: Call, place: int, middle: int | None) -> Part:
    from torch import nn

    channels, side = call.left[0], call.left[-1] if len(call.left) == 3 else 1
    if squeezes(module):
        inner = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        kinds = [type(m).__name__ for m in module.modules()]
        gate = next((kind for kind in reversed(kinds) if kind in ACTIVATIONS), "")
        squeezed = len(inner[0].weight) if inner else 0
        return Part(call.name, "squeeze-excitation", channels, side, 0, 0, gate, squeezed)
    if isinstance(module, nn.Linear):
        return Part(call.name, "linear", channels, side)
    if middle is None:
        role = "convolution"
    else:
        role = "depthwise" if place == middle else "expand" if place < middle else "project"
    return Part(call.name, role, channels, side, module.kernel_size[0], module.stride[0])
