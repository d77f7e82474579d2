"""A network behind the layout of images that its file is to take."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .layout import Layout


class Fed(nn.Module):
    """A network behind the layout of images that a file is to take.

    Parameters
    ----------
    network
        It takes channels first.
    layout
        ``nhwc``: channels last, as TensorFlow's own networks take them.
    """

    def __init__(self, network: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.network, self.last = network, layout == "nhwc"

    def forward(self, images: torch.Tensor) -> Any:
        """Return what the network gives."""
        return self.network(images.permute(0, 3, 1, 2) if self.last else images)
