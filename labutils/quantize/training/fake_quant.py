"""Fake quantization: a tensor is rounded to its integer grid and comes back as float.

A `FakeQuant` computes exactly what ONNX's QuantizeLinear and DequantizeLinear compute (divide,
round half to even, add the zero point, clamp), so a model trained with it and the file written
from it give the same numbers. The gradient passes straight through the rounding (Bengio et al.
2013) and reaches the step size, so that the step can be learned: LSQ (Esser et al. 2020), in the
logarithm, where one learning rate serves steps of any size (TQT, Jain et al. 2020).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from ...errors import EarlierFormatWarning, UsageError
from .grids import Grid

SMALLEST_STEP = 2.0**-24
"""A tensor that is zero everywhere still needs a step above zero."""

WEAKEST_CHANNEL = 1 / 256
"""Least step of a channel, as a share of the tensor's largest.

A channel of almost zeros would get a step so small that its bias overflows 32 bits; TI's toolkit
sets the same bound.
"""

GAIN = 8.0
"""Steps are stored as log2(step) / GAIN, so that one learning rate serves weights and steps."""

_OBSERVE, _FOLLOW, _FROZEN, _PASS = "observing", "following", "frozen", "passing"
_PHASES = (_OBSERVE, _FOLLOW, _FROZEN, _PASS)


class _Round(torch.autograd.Function):
    """Round to a grid and back; gradients of Esser et al. (2020), section 2.1."""

    @staticmethod
    def forward(ctx, x, step, low, high, share):  # noqa: ANN001
        """`step`, `low` and `high` broadcast against `x`; bounds are relative to the zero point."""
        ctx.save_for_backward(x, step, low, high)
        ctx.share = share
        rounded = torch.div(x, step).round_()
        return rounded.clamp_(low, high).mul_(step)

    @staticmethod
    def backward(ctx, gradient):  # noqa: ANN001
        x, step, low, high = ctx.saved_tensors
        scaled = x / step
        inside = (scaled >= low) & (scaled <= high)
        to_step = None
        if ctx.needs_input_grad[1]:
            error = torch.where(inside, scaled.round() - scaled, torch.clamp(scaled, low, high))
            to_step = (gradient * error).mul_(ctx.share).sum_to_size(step.shape)
        return gradient * inside, to_step, None, None, None


class FakeQuant(nn.Module):
    """Rounds activations, or weights when registered as their parametrization.

    It goes through three phases: *observing* (`calibrate_` lets it see tensors and returns them
    as they are), *following* (rounds, and in training keeps adapting its range), *frozen* (rounds
    on a grid that stays, or that only the optimizer moves).

    Parameters
    ----------
    grid
        The integers.
    channels
        Length along the grid's axis; 1 without an axis.
    learned
        Whether the optimizer moves the step once the range is frozen.
    momentum
        How fast a range follows the batches of training.
    constant
        Whether what it rounds is a parameter, unsigned: no image tells its range.
    """

    def __init__(
        self,
        grid: Grid,
        channels: int = 1,
        *,
        learned: bool = False,
        momentum: float = 0.05,
        constant: bool = False,
    ) -> None:
        super().__init__()
        self.grid, self.momentum, self.constant = grid, momentum, constant
        self.learned = learned and grid.range is None
        self.exponent = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))
        self.register_buffer("low", torch.zeros(1))
        self.register_buffer("high", torch.zeros(1))
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.vector = False  # one value per channel and image, as far as was observed
        self.held_in: tuple[nn.Module, ...] = ()  # of a weight: what holds the trained one
        self.phase = _FOLLOW

    # ------------------------------------------------------------ phases

    def observe_(self) -> None:
        """Start to record ranges, image by image, and to let tensors pass as they are."""
        self.seen, self.phase = [], _OBSERVE

    def settle_(self, outliers: float = 0.0, vector_outliers: float | None = None) -> None:
        """Take the range from what was observed, leaving out a share of the images at each end.

        `vector_outliers` is the share where a channel has one value per image; None: the same.
        """
        if not self.seen:
            raise UsageError("A quantizer has seen no image: call calibrate_ with images first.")
        low, high = (torch.cat(side) for side in zip(*self.seen, strict=True))
        if self.vector and vector_outliers is not None:
            outliers = vector_outliers
        outliers = 0.0 if self.constant else outliers
        self.low = torch.quantile(low, outliers).reshape(1)
        self.high = torch.quantile(high, 1 - outliers).reshape(1)
        self.seen, self.phase = [], _FOLLOW
        self._fit_activation()

    @property
    def sees_finite(self) -> bool:
        """Whether all that was recorded are finite numbers."""
        return all(bool(end.isfinite().all()) for ends in self.seen for end in ends)

    def freeze_(self) -> None:
        """Stop adapting; from here on only the optimizer moves the step, if it is learned.

        A frozen one stays as it is: to fit it to its range again would undo what was learned.
        """
        if self.phase == _FROZEN:
            return
        if not self.grid.signed:
            _agree(self.low, self.high)
            self._fit_activation()
        self.phase = _FROZEN
        self.exponent.requires_grad_(self._is_trained)

    @property
    def _is_trained(self) -> bool:
        """Whether the optimizer is to move the step: not that of a weight that stays."""
        stays = any(not chain.original.requires_grad for chain in self.held_in)
        return self.learned and not stays

    @property
    def follows(self) -> bool:
        """Whether training adapts the range to what it sees."""
        return self.phase == _FOLLOW

    def get_extra_state(self) -> torch.Tensor:
        """Keep the phase and the grid in the state dict: (11,) float64."""
        phase = torch.tensor([_PHASES.index(self.phase)], dtype=torch.float64)
        return torch.cat([phase, self.grid.numbers()])

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Take the phase from a state dict."""
        self.phase = _PHASES[int(state.flatten()[0])]
        self.exponent.requires_grad_(self._is_trained and self.phase == _FROZEN)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **named: Any
    ) -> None:
        """Refuse steps that belong to another grid; then load as every module does."""
        state = state_dict.get(f"{prefix}_extra_state")
        if isinstance(state, torch.Tensor) and state.numel() > 1:
            self._refuse_other(Grid.of_numbers(state.flatten()[1:]), prefix)
        elif state is not None:
            warnings.warn(
                "This state of a prepared network has no grids in it (an earlier version wrote "
                "it): that it belongs to this recipe cannot be checked.",
                EarlierFormatWarning, stacklevel=2,
            )  # fmt: skip
        super()._load_from_state_dict(state_dict, prefix, *others, **named)

    def _refuse_other(self, theirs: Grid, prefix: str) -> None:
        differs = [
            f"{field.name.replace('_', ' ')} {getattr(theirs, field.name)} in the state, "
            f"{getattr(self.grid, field.name)} here"
            for field in fields(Grid)
            if getattr(theirs, field.name) != getattr(self.grid, field.name)
        ]
        if differs:
            name = prefix.removesuffix(".").replace(".parametrizations.weight.0", ".weight")
            raise UsageError(
                f"This is the state of a network that was prepared by another recipe: {name} has "
                f"{'; '.join(differs)}. Prepare the network with the recipe of the state, and load "
                "the state into that."
            )

    # ------------------------------------------------------------ the grid

    @property
    def step(self) -> torch.Tensor:
        """The distance of two neighbours on the grid, float32, (channels,)."""
        log2 = self.exponent * GAIN
        if self.grid.power_of_two:
            log2 = log2 + (log2.round() - log2).detach()  # straight through, as TQT
        step, longest = torch.exp2(log2), self.grid.longest_step
        if longest is not None:
            step = step + (step.clamp(max=longest) - step).detach()  # its gradient still passes
        return step

    @torch.no_grad()
    def _set_step(self, step: torch.Tensor) -> None:
        step = step.clamp(min=SMALLEST_STEP)
        log2 = torch.log2(step)
        log2 = torch.ceil(log2 - 1e-4) if self.grid.power_of_two else log2
        self.exponent.copy_(log2 / GAIN)

    def _fit_activation(self) -> None:
        """Derive step and zero point from the range, which always holds zero."""
        grid = self.grid
        ends = grid.ends(self.low.item(), self.high.item())
        low, high = (torch.full_like(self.low, end) for end in ends)
        # a fixed range of 4 with steps of a power of two is -4 to 4 less one step, not -8 to 8
        spare = int(grid.range is not None and grid.power_of_two)
        levels = grid.highest - grid.lowest
        if not grid.symmetric:
            self._set_step((high - low) / (levels + spare))
            point = grid.lowest - torch.round(low / self.step.detach())
        elif low.item() == 0:
            self._set_step(high / (levels + spare))
            point = low
        else:
            half = (levels + 1) // 2
            self._set_step(torch.maximum(-low, high) / (half - 1 + spare))
            point = torch.full_like(low, half)
        self.zero_point = point.clamp(self.grid.lowest, self.grid.highest).to(torch.int32)

    @torch.no_grad()
    def fit_weight_(self, weight: torch.Tensor, candidates: int = 1) -> None:
        """Set the step of a weight from its largest value, or from the least squared error.

        Parameters
        ----------
        weight
            The tensor.
        candidates
            Number of steps to try, from the one that reaches the largest value downwards; with
            few bits, clipping a little and rounding finer is better. 1 takes the largest value.
        """
        rows = weight.detach().reshape(1, -1)
        if self.grid.axis is not None:
            rows = weight.detach().movedim(self.grid.axis, 0).flatten(1)
        widest = rows.abs().amax(1) / self.grid.highest
        widest = widest.clamp(min=max(SMALLEST_STEP, widest.max().item() * WEAKEST_CHANNEL))
        if self.grid.range is not None:
            reach = self.grid.highest + int(self.grid.power_of_two)
            self._set_step(torch.full_like(widest, self.grid.range[1] / reach))
            return
        if self.grid.longest_step is not None:
            widest = widest.clamp(max=self.grid.longest_step)
        best, least = widest, torch.full_like(widest, torch.inf)
        for i in range(candidates):
            step = widest * (1 - 0.7 * i / candidates)
            if self.grid.power_of_two:
                step = torch.exp2(torch.ceil(torch.log2(step) - 1e-4))
            s = step[:, None]
            error = (rows / s).round_().clamp_(self.grid.lowest, self.grid.highest).mul_(s)
            error = error.sub_(rows).square_().sum(1)
            best, least = torch.where(error < least, step, best), torch.minimum(error, least)
        self._set_step(best)

    @torch.no_grad()
    def _watch(self, x: torch.Tensor) -> None:
        whole = self.constant or not x.ndim
        images = x.detach().float().reshape(1 if whole else len(x), -1)
        low, high = images.amin(1), images.amax(1)
        if self.phase == _OBSERVE:
            self.seen.append((low, high))
            self.vector = x.ndim > 1 and 1 < x[0].numel() == x.shape[1]
            return
        if self.grid.range is not None:
            return
        if self.constant:
            self.low, self.high = low, high
            self._fit_activation()
            return
        self.low = self.low + self.momentum * (torch.quantile(low, 0.01) - self.low)
        self.high = self.high + self.momentum * (torch.quantile(high, 0.99) - self.high)
        self._fit_activation()

    # ------------------------------------------------------------ rounding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` on its grid, float32 of the same shape."""
        if self.phase == _OBSERVE:
            if not self.grid.signed:
                self._watch(x)
            return x
        if self.phase == _PASS:
            return x
        if self.training and self.phase == _FOLLOW:
            self.fit_weight_(x) if self.grid.signed else self._watch(x)
        step, point = self.step, self.zero_point
        if self.grid.axis is not None:
            shape = [1] * x.ndim
            shape[self.grid.axis] = -1
            step = step.reshape(shape)
        # of an activation the values of one image: processes that share a batch get what one gets
        values = x.numel() / (step.numel() if self.grid.signed else max(1, len(x) if x.ndim else 1))
        share = (values * self.grid.highest) ** -0.5
        low, high = self.grid.lowest - point, self.grid.highest - point
        return _Round.apply(x, step, low.float(), high.float(), share)

    def extra_repr(self) -> str:
        """Return what `print(model)` shows."""
        kind = "signed" if self.grid.signed else "unsigned"
        parts = [f"{self.grid.bits} bits {kind}", self.phase]
        parts += [f"axis {self.grid.axis}"] if self.grid.axis is not None else []
        parts += ["power of two"] if self.grid.power_of_two else []
        parts += [f"range {self.grid.range}"] if self.grid.range else []
        return ", ".join(parts + (["learned"] if self.learned else []))


class BiasQuant(nn.Module):
    """Rounds a bias to the 32-bit grid of the accumulator: step of the input times of the weight.

    The two quantizers are held in a tuple: they belong to the model elsewhere, and must neither
    appear twice in the state dict nor be lost when the model is copied.
    """

    def __init__(self, entry: FakeQuant, weight: FakeQuant) -> None:
        super().__init__()
        self._sources = (entry, weight)

    @property
    def step(self) -> torch.Tensor:
        """The distance of two neighbours on the grid, float32, (channels,)."""
        entry, weight = self._sources
        return (entry.step * weight.step).detach()

    def forward(self, bias: torch.Tensor) -> torch.Tensor:
        """Return `bias` on its grid."""
        entry, weight = self._sources
        if {_OBSERVE, _PASS} & {entry.phase, weight.phase}:
            return bias
        rounded = torch.round(bias / self.step) * self.step
        return bias + (rounded - bias).detach()


def quantizers(model: nn.Module) -> dict[str, FakeQuant]:
    """Return every `FakeQuant` of a model by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, FakeQuant)}


@contextlib.contextmanager
def passing(model: nn.Module) -> Iterator[None]:
    """Switch all rounding off: inside the block, the model is the float network."""
    found = list(quantizers(model).values())
    phases = [quantizer.phase for quantizer in found]
    for quantizer in found:
        quantizer.phase = _PASS
    try:
        yield
    finally:
        for quantizer, phase in zip(found, phases, strict=True):
            quantizer.phase = phase


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Leave the caller's autocast inside the block: grids and files are made of float32."""
    with contextlib.ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _agree(low: torch.Tensor, high: torch.Tensor) -> None:
    """Give all processes of a distributed run the widest range that one of them saw."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(low, distributed.ReduceOp.MIN)
        distributed.all_reduce(high, distributed.ReduceOp.MAX)
