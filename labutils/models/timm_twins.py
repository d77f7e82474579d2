"""timm's MobileNetV3 with the weights of torchvision's: another program of the same function.

Both libraries build MobileNetV3 from the same layers in the same order. They differ in three ways:
names; the first layer of the head, which is linear in torchvision and a 1x1 convolution in timm;
and the epsilon of BatchNorm (0.001 and 0.00001), a difference that the running variance takes up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import ModelFileError

if TYPE_CHECKING:
    from torch import nn

TWINS = {
    "mobilenetv3_large_100": "mobilenet_v3_large",
    "mobilenetv3_small_100": "mobilenet_v3_small",
}
"""timm's name -> torchvision's, of what computes the same."""


def carry_over_(target: nn.Module, source: nn.Module) -> None:
    """Give timm's network the weights of torchvision's, in place; then it computes the same.

    Parameters
    ----------
    target
        A timm model of `TWINS`, with as many classes as `source`.
    source
        Its torchvision twin.

    Raises
    ------
    ModelFileError
        The two do not have the same layers.
    """
    import torch

    theirs, ours = _layers(source), _layers(target)
    sizes = [[layer.weight.numel() for layer in layers] for layers in (theirs, ours)]
    if sizes[0] != sizes[1]:
        raise ModelFileError(
            f"{type(target).__name__} does not have the layers of {type(source).__name__}: the "
            "weights of one cannot be carried over to the other."
        )
    with torch.no_grad():
        for layer, twin in zip(theirs, ours, strict=True):
            for name, values in layer.state_dict().items():
                held = twin.state_dict()[name]
                held.copy_(values.view_as(held))
            if hasattr(layer, "running_var"):
                twin.running_var += layer.eps - twin.eps


def _layers(module: nn.Module) -> list[Any]:
    """Return what has weights, in the order of computation."""
    from torch import nn

    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    return [part for part in module.modules() if isinstance(part, kinds)]
