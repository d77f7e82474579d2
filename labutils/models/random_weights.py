"""Random weights that half precision can hold, as it holds those of a trained network.

A network of BatchNorm and ReLU is chaotic at initialization: a small difference grows from layer to
layer (Yang et al. 2019, A Mean Field Theory of Batch Normalization), and so do rounding errors. A
shift in every BatchNorm makes it less so (benchmarks/conditioning.py measures by how much). A gate
that opens halfway (sigmoid of 0) in every block lets the signal fade, and an initial layer scale of
1e-5 is below float16's normal range. Without this, sound networks fail the float16 gate narrowly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

SHIFT = 0.5
"""Bias of every BatchNorm, in units of its output's standard deviation."""

GATE_BIAS = 2.0
"""Bias before the sigmoid of a squeeze-excitation: the gate begins at 0.88."""

NOTE = f"conditioned for float16 (BatchNorm shift {SHIFT}, open gates, layer scales 1)"
"""What `condition_` does, in one line, for readers of figures made with such weights."""

_LAST_LAYER = ("fc2", "conv_expand")  # of a squeeze-excitation, in torchvision and timm
_LAYER_SCALE = ("gamma", "layer_scale")


def condition_(module: nn.Module) -> None:
    """Shift BatchNorms, open the gates of squeeze-excitations, set layer scales to 1, in place.

    Only initial values change, never the architecture. BatchNorm statistics are measured
    afterwards (`zoo.calibrate_`), because they depend on these values.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    for part in module.modules():
        if isinstance(part, _BatchNorm) and part.affine:
            torch.nn.init.constant_(part.bias, SHIFT)
        if _squeezes(part):
            for layer in filter(None, (getattr(part, name, None) for name in _LAST_LAYER)):
                torch.nn.init.constant_(layer.bias, GATE_BIAS)
        for name in _LAYER_SCALE:
            scale = getattr(part, name, None)
            if isinstance(scale, torch.nn.Parameter):
                torch.nn.init.ones_(scale)


def _squeezes(part: nn.Module) -> bool:
    """Whether `part` is a squeeze-excitation; in both libraries only the class's name says so."""
    return "Squeeze" in type(part).__name__ or type(part).__name__ == "SEModule"
