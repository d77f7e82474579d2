"""A layer that writes its result into its input."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class InPlace(nn.Module):
    """A layer whose result overwrites its input, as that of the layer did that it stands in for.

    Parameters
    ----------
    layer
        What computes the result, of the input's shape and type.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Overwrite `x`, of any shape, and return it."""
        return x.copy_(self.layer(x.clone()))  # the gradient of the layer wants x as it was
