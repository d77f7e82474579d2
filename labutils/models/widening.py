"""The weights of a network for a wider one of the same kind, as for another ``width_mult``.

``duplicate`` keeps the function (Net2WiderNet, Chen, Goodfellow and Shlens, "Net2Net", 2016): every
new channel is a copy of an old one, and what reads copies divides by their number. Which one is
copied is always the same: channel j of the wider layer is channel ``j mod n`` of the n old ones.
So layers that meet in a sum, a gate or a depthwise convolution agree without a look at the graph,
which holds for networks of convolutions, linear layers, BatchNorm, elementwise activations, sums
and products, pooling and flattening. It does not hold across a concatenation, where a layer
normalizes over channels whose numbers of copies differ, or where the wider network has other
shortcuts: torchvision's MobileNetV3-Small has one in its seventh block at width 0.5 (24 channels to
24) and none at 0.85 (32 to 40). `function_error` tells.

``slice`` copies into the leading channels and keeps the rest as it was initialized, as TI's toolkit
does. The function is another one then, and training starts from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from .. import typesetting
from ..errors import ModelFileError, UsageError
from . import architectures, checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn

HOW = ("duplicate", "slice")


@dataclass(frozen=True, repr=False)
class WidenReport(typesetting.Paragraph):
    """What of a narrower network went into a wider one.

    Attributes
    ----------
    source, how
        Whose weights, and by which way.
    copied
        Tensors that had the same shape.
    widened
        Name -> (shape in the source, shape in the network).
    missing
        In the network only; they are as they were.
    unexpected
        In the source only.
    kept
        The last layer's tensors where the number of classes differs; they are as they were.
    """

    source: str
    how: str
    copied: tuple[str, ...]
    widened: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    kept: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}

    def __str__(self) -> str:
        way = "by copies of channels" if self.how == "duplicate" else "into the leading channels"
        said = (
            f"{self.source}: {len(self.copied)} tensors copied, {len(self.widened)} widened {way}"
        )
        for what, names in (
            ("other classes, kept as they were", self.kept),
            ("not in the source, kept as they were", self.missing),
            ("in the source only", self.unexpected),
        ):
            more = ", ..." if len(names) > 3 else ""
            said += f"; {what}: {', '.join(names[:3])}{more}" if names else ""
        return f"{said}."


def load_wider_(
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    source: str = "the checkpoint",
    renames: Mapping[str, str] | None = None,
    *,
    how: Literal["duplicate", "slice"] = "duplicate",
    noise: float = 0.0,
    seed: int = 0,
) -> WidenReport:
    """Copy the weights of a narrower network into `module`, in place.

    Parameters
    ----------
    module
        The wider network, such as ``mobilenet_v3_small(width_mult=1.5)``.
    state
        Of the narrower one, from `checkpoint.state_dict` or its ``state_dict()``.
    source
        What the report calls it.
    renames
        As for `checkpoint.load_partly_`.
    how
        ``duplicate`` or ``slice``; see the module.
    noise
        For ``duplicate``: standard deviation of what is added to the copies, as a share of that of
        the tensor. Copies get equal gradients: dropout, augmentation or this tells them apart.
    seed
        Of the noise.

    Raises
    ------
    ModelFileError
        A tensor is larger in the source, has another number of dimensions, or belongs to a grouped
        convolution or another layer whose channels are not known; nothing was changed.
    UsageError
        `how` or `noise` is none.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from labutils.models import widening
    >>> def net(width):
    ...     return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 2, 1)).eval()
    >>> narrow, wide = net(4), net(7)
    >>> _ = widening.load_wider_(wide, narrow.state_dict())
    >>> widening.function_error(narrow, wide, torch.rand(1, 3, 8, 8)) < 1e-5
    True
    """
    import torch

    if how not in HOW:
        raise UsageError(f"how is duplicate or slice, not {how!r:.80}.")
    if not 0 <= noise <= 1:
        raise UsageError(f"noise is a share of a tensor's deviation, 0 to 1, not {noise!r:.80}.")
    wanted = module.state_dict()
    origin = checkpoint.renamed(state, renames or {})
    shared = [name for name in wanted if name in origin]
    if not shared:
        raise ModelFileError(
            f"Nothing in {source} has the name of a tensor of {type(module).__name__}. Give "
            "renames={pattern: replacement}."
        )
    generator = torch.Generator().manual_seed(seed)
    made: dict[str, torch.Tensor] = {}
    widened = {}
    kept = []
    for name in shared:
        old, new = state[origin[name]], wanted[name]
        if old.shape == new.shape:
            made[name] = old
            continue
        _refuse_smaller(name, old, new, source)
        if how == "slice":
            made[name] = _into_slice(old, new)
        elif _is_other_classes(module, name, old, new):
            kept.append(name)
            continue
        else:
            made[name] = _by_copies(module, name, old, new, noise, generator)
        widened[name] = (tuple(old.shape), tuple(new.shape))
    wanted.update(made)  # and keep what modules note beside their tensors, such as a version
    module.load_state_dict(wanted)
    return WidenReport(
        source, how, tuple(name for name in made if name not in widened), widened,
        tuple(name for name in wanted if name not in origin),
        tuple(there for name, there in origin.items() if name not in wanted), tuple(kept),
    )  # fmt: skip


def function_error(narrow: nn.Module, wide: nn.Module, example: torch.Tensor) -> float:
    """Return the largest difference of two networks' outputs, in units of the largest output.

    Parameters
    ----------
    narrow, wide
        In evaluation mode, each with one tensor as output.
    example
        (n, channels, height, width) float32.
    """
    import torch

    with torch.no_grad():
        expected, found = narrow(example), wide(example)
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-30))


def _refuse_smaller(name: str, old: torch.Tensor, new: torch.Tensor, source: str) -> None:
    if old.ndim != new.ndim or any(a > b for a, b in zip(old.shape, new.shape, strict=True)):
        raise ModelFileError(
            f"{name} is {tuple(old.shape)} in {source} and {tuple(new.shape)} in the network: it "
            "must be at least as large in every dimension. Build a wider network, or take what "
            "fits (checkpoint.load_partly_)."
        )


def _into_slice(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """Return the new tensor with the old one in its leading part."""
    result = new.clone()
    result[tuple(slice(length) for length in old.shape)] = old
    return result


def _is_other_classes(module: nn.Module, name: str, old: torch.Tensor, new: torch.Tensor) -> bool:
    """Return whether a tensor is of the last layer, and its number of classes differs."""
    return name.startswith(f"{architectures.head_name(module)}.") and old.shape[0] != new.shape[0]


def _by_copies(
    module: nn.Module,
    name: str,
    old: torch.Tensor,
    new: torch.Tensor,
    noise: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Return the old tensor with channels copied, divided where copies are summed."""
    import torch

    read = _axis_that_is_summed(module, name, old, new)
    result, copies = old, torch.zeros(1, dtype=torch.bool)
    for axis, length in enumerate(new.shape):
        there = old.shape[axis]
        chosen = torch.arange(length) % there
        result = result.index_select(axis, chosen)
        shape = [-1 if i == axis else 1 for i in range(new.ndim)]
        if axis == read:
            times = torch.bincount(chosen, minlength=there)[chosen]
            result = result / times.to(result.dtype).reshape(shape)
        copies = copies | (torch.arange(length) >= there).reshape(shape)
    if noise and old.is_floating_point() and old.ndim > 1:
        drawn = torch.randn(new.shape, generator=generator) * (noise * float(result.std()))
        result = torch.where(copies, result + drawn.to(result.dtype), result)
    return result


def _axis_that_is_summed(
    module: nn.Module, name: str, old: torch.Tensor, new: torch.Tensor
) -> int | None:
    """Return the axis of a weight over which its layer sums, None for one number per channel."""
    from torch import nn

    if old.ndim <= 1:
        return None
    owner: Any = module.get_submodule(name.rpartition(".")[0])
    convolution = isinstance(owner, nn.modules.conv._ConvNd)
    if convolution and owner.groups == owner.in_channels and old.shape[1] == new.shape[1]:
        return None  # depthwise
    if isinstance(owner, nn.Linear) or (convolution and owner.groups == 1):
        return 0 if convolution and owner.transposed else 1
    raise ModelFileError(
        f"{name} {tuple(old.shape)} belongs to a {type(owner).__name__}"
        f"{f' of {owner.groups} groups' if convolution else ''}, and how its channels are to be "
        f"copied into {tuple(new.shape)} is not known. Copy them into the leading ones "
        "(how='slice')."
    )
