"""Two repairs that need neither labels nor gradients, for prepared networks (`qat.prepare`).

`calibrate_bias_` gives back the mean that rounding took from each output channel. It compares with
the float network, so the rounding of weights is corrected too (TI's second toolkit compares a
tensor with itself before and after its own rounding, which cannot see the weights).
`constrain_weights_` clips outliers that would set the step of a whole tensor.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ... import typesetting
from ...errors import UsageError
from . import graph
from .fake_quant import passing

_UNUSUAL = 0.2  # share of the images, at either end, that do not count in a mean error


@dataclass(frozen=True, repr=False)
class BiasReport(typesetting.Paragraph):
    """What `calibrate_bias_` did.

    Attributes
    ----------
    layers, gates
        Number of layers with a bias that were corrected; and of those in squeeze-excitations,
        which were left.
    images
        What it took.
    before, after
        By how much rounding moves the channels of the corrected layers for usual images: root mean
        square over the channels, as a share of the float means' own, averaged over the layers.
    """

    layers: int
    gates: int
    images: int
    before: float
    after: float

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return (
            f"Bias calibration of {self.layers} layers on {self.images} images ({self.gates} in "
            "squeeze-excitations left as they are):\n  rounding moved the channel means by "
            f"{100 * self.before:.1f} % of their size, now by {100 * self.after:.1f} %."
        )


@torch.no_grad()
def calibrate_bias_(model: nn.Module, calibration: np.ndarray) -> BiasReport:
    """Move each bias by the difference of its channel's mean, in float and rounded.

    Layer after layer within one run, so that each layer sees the corrected ones before it.
    Correcting all at once, as TI's first toolkit does in small steps, gives the same error back
    many times in a deep network: here it made things worse with any but tiny factors.

    Two things are left out, each measured to do harm. *Unusual images*: clipping makes large errors
    on a few images, which would move the bias for all; so a fifth of the images at either end does
    not count. *The convolutions of a squeeze-excitation* (one pixel): moved to their own float
    means, they no longer fit the channels that they weigh.

    Parameters
    ----------
    model
        A prepared and calibrated network.
    calibration
        (n, 3, size, size) float32, normalized; run as one batch, so 64 to 256 images.

    Notes
    -----
    Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction" (2019),
    section 4.2; here on images instead of from BatchNorm's statistics.
    """
    layers = {
        name: module
        for name, (module, _) in graph.weights_of(model).items()
        if module.bias is not None
    }
    if not layers or not len(calibration):
        raise UsageError("Bias calibration needs a prepared network with biases, and images.")
    was = model.training
    batch = torch.from_numpy(np.ascontiguousarray(calibration))
    batch = batch.to(next(model.parameters()).device)
    model.eval()
    with passing(model):
        wanted, gates = _channel_means(model, layers, batch)
    layers = {name: module for name, module in layers.items() if name not in gates}
    before = _distance(_channel_means(model, layers, batch)[0], wanted)
    _channel_means(model, layers, batch, wanted)
    after = _distance(_channel_means(model, layers, batch)[0], wanted)
    model.train(was)
    return BiasReport(len(layers), len(gates), len(calibration), before, after)


def _distance(means: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    shares = [
        _shift(wanted[name], mean).square().mean() / wanted[name].mean(0).square().mean()
        for name, mean in means.items()
    ]
    return float(torch.stack(shares).sqrt().mean())


def _shift(wanted: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Return the mean difference per channel over the images between the ends, (channels,)."""
    difference = (wanted - found).sort(0).values
    cut = int(len(difference) * _UNUSUAL)
    return difference[cut : len(difference) - cut].mean(0)


def _bias(module: Any) -> torch.Tensor:
    parametrized: Any = getattr(module, "parametrizations", {})
    return parametrized["bias"].original if "bias" in parametrized else module.bias


def _channel_means(
    model: nn.Module,
    layers: dict[str, nn.Module],
    batch: torch.Tensor,
    wanted: dict[str, torch.Tensor] | None = None,
) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Return (images, channels) for every layer, and which are gates; correct, given `wanted`."""
    found: dict[str, torch.Tensor] = {}
    gates: set[str] = set()

    def hook(name: str) -> Any:
        def look(module: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor | None:
            found[name] = output.flatten(2).mean(2) if output.ndim > 2 else output
            if output.ndim > 2 and output.shape[2:].numel() == 1:
                gates.add(name)
            if wanted is None:
                return None
            shift = _shift(wanted[name], found[name])
            _bias(module).add_(shift)
            return output + shift.reshape(-1, *[1] * (output.ndim - 2))

        return look

    handles = [module.register_forward_hook(hook(name)) for name, module in layers.items()]
    try:
        model(batch)
    finally:
        for handle in handles:
            handle.remove()
    return found, gates


@dataclass(frozen=True, repr=False)
class ConstraintReport(typesetting.Shown):
    """What `constrain_weights_` clipped: (layer, weights clipped, largest before, bound)."""

    ratio: float
    layers: tuple[tuple[str, int, float, float], ...]
    looked_at: int

    def to_dict(self) -> dict[str, Any]:
        """Return everything for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [
            f"Weights over {self.ratio:g} times their tensor's median: in {len(self.layers)} of "
            f"{self.looked_at} layers."
        ]
        lines += [
            f"  {name}: {count} clipped, from {largest:.3g} to {bound:.3g}"
            for name, count, largest, bound in self.layers
        ]
        return "\n".join(lines)


@torch.no_grad()
def constrain_weights_(model: nn.Module, ratio: float = 32.0) -> ConstraintReport:
    """Clip weights that are larger than `ratio` times the median of their tensor's magnitudes.

    For one step per tensor: there a single weight sets the step of all channels. Call it between
    `qat.prepare` and `qat.calibrate_`. What is clipped is lost, so train or calibrate biases
    afterwards, and measure.

    Parameters
    ----------
    model
        A prepared network.
    ratio
        The bound. TI's first toolkit uses 16 (only above a magnitude of 15; no such gate here,
        because a folded BatchNorm makes any magnitude). On Things-16's mobilenet_v3_small 16 takes
        the logit SQNR from 15.2 to 9.6 dB before any training, and 32 to 15.0
        (``benchmarks/results/quantization_things16.txt``).
    """
    if not ratio > 1:
        raise UsageError(f"ratio must be above 1, got {ratio}.")
    clipped, layers = [], graph.weights_of(model)
    module: Any  # what `parametrize` adds is not in its type
    for name, (module, _) in layers.items():
        weight = module.parametrizations.weight.original
        bound = ratio * weight.abs().median().item()
        count = int((weight.abs() > bound).sum())
        if count and bound > 0:
            clipped.append((name, count, weight.abs().max().item(), bound))
            weight.clamp_(-bound, bound)
    return ConstraintReport(ratio, tuple(clipped), len(layers))
