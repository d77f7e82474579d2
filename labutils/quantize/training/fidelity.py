"""Whether a prepared network, with its rounding switched off, is still the network it was made of.

What tracing loses is not visible in the graph: a statement on a tensor that was read under another
name, a buffer that the forward method writes. So both are run on the same image.
"""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from ...errors import SurgeryError, UsageError
from ...images import data
from .fake_quant import passing

PICTURES = (3, 1)
"""Channels that an image may have: RGB, gray."""

_FLOAT32, _FLOAT64 = 1e-4, 1e-7
"""Relative to the largest output: what another order of rounding does to a deep network."""


def example_for(model: nn.Module, size: data.Size) -> torch.Tensor:
    """Return a seeded image that a network takes, (1, channels, height, width) float32.

    Raises
    ------
    UsageError
        It takes no RGB or gray image of this size, or its weights are not float32.
    """
    name = type(model).__name__
    kinds = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if kinds:
        raise UsageError(
            f"The weights of {name} are {kinds.pop()}, and the rounding of integer grids is "
            "defined on float32: prepare model.float(), and use torch.autocast for speed."
        )
    height, width = data.sides(size)
    if min(height, width) < 1:
        raise UsageError(f"size={size}: pass the side of the images in pixels, above zero.")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    reasons = {}
    for channels in PICTURES:
        generator = torch.Generator().manual_seed(0)
        image = torch.randn(1, channels, height, width, generator=generator).to(device)
        try:
            _answers(copy.deepcopy(model).eval(), image)
        except Exception as error:  # the network's own code
            reasons[channels] = (str(error).strip() or type(error).__name__).splitlines()[0]
        else:
            return image
    raise UsageError(
        f"{name} takes no images of {data.shown(size)}. RGB: {reasons[3]} Gray: {reasons[1]} "
        "Pass the size=... that it was made for: a side, or (height, width)."
    )


def check(model: nn.Module, graph: fx.GraphModule, example: torch.Tensor) -> None:
    """Refuse a prepared network that computes something other than its original, unrounded.

    Parameters
    ----------
    model
        The original; it is left as it is.
    graph
        What was made of it.
    example
        (1, channels, height, width) float32.

    Raises
    ------
    SurgeryError
        The outputs differ by more than float rounding; the message names the first such layer.
    """
    original = copy.deepcopy(model).eval()
    with passing(graph):
        error, peak = _distance(original, graph, example)
        if error <= _FLOAT32 * peak:
            return
        try:  # the order of sums, or another function? In double precision only the second is left
            twin, wide = copy.deepcopy(original).double(), copy.deepcopy(graph).double()
            exact, _ = _distance(twin, wide, example.double())
        except RuntimeError:  # it makes float32 tensors by itself
            exact = error
        if exact <= _FLOAT64 * peak:
            return
        first = _first_departure(original, graph, example)
    named = f" The first layer whose output differs is {first}." if first else ""
    raise SurgeryError(
        f"{type(model).__name__} cannot be prepared: traced by torch.fx, and with the rounding "
        f"switched off, it computes another function. Outputs of up to {peak:.3g} differ by "
        f"{error:.2g}.{named} Look there for a tensor that is changed in place while another name "
        "holds it, and for a forward method that changes the network; write it without, or "
        "quantize after training (quantize.static)."
    )


def _distance(original: nn.Module, graph: nn.Module, example: torch.Tensor) -> tuple[float, float]:
    """Return the largest difference of the outputs, and the largest output."""
    pairs = list(zip(_answers(original, example), _answers(graph, example), strict=True))
    peak = max((a.nan_to_num(posinf=0, neginf=0).abs().max().item() for a, _ in pairs), default=0.0)
    return max((_difference(a, b) for a, b in pairs), default=0.0), peak


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape:
        return float("inf")
    same = (one == other) | (one.isnan() & other.isnan())
    return torch.where(same, 0.0, (one - other).abs()).nan_to_num(nan=torch.inf).max().item()


def _answers(network: nn.Module, example: torch.Tensor) -> list[torch.Tensor]:
    """Return a copy of every float tensor that a network gives, as float."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # should it draw something
        given = network(example.clone())
    return [
        t.detach().clone() for t in tree_leaves(given)
        if isinstance(t, torch.Tensor) and t.is_floating_point() and t.numel()
    ]  # fmt: skip


def _first_departure(original: nn.Module, graph: fx.GraphModule, example: torch.Tensor) -> str:
    """Return the first module, in the graph's order, whose output is another; "" for none."""
    seen: dict[str, list[torch.Tensor]] = defaultdict(list)

    def watching(name: str) -> Callable[..., None]:
        def watch(module: nn.Module, inputs: object, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                seen[name].append(output.detach().clone())

        return watch

    handles = [
        module.register_forward_hook(watching(name)) for name, module in original.named_modules()
        if name and not list(module.children())
    ]  # fmt: skip
    _answers(original, example)
    for handle in handles:
        handle.remove()
    run = _Compared(graph, seen)
    with torch.no_grad():
        run.run(example.clone())
    return run.first


class _Compared(fx.Interpreter):
    """Runs a graph, and compares what its modules give with what was seen."""

    def __init__(self, graph: fx.GraphModule, seen: dict[str, list[torch.Tensor]]) -> None:
        super().__init__(graph)
        self.seen, self.first, self.calls = seen, "", Counter[str]()

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        result = super().call_module(target, args, kwargs)
        folded: Any = self.module.meta
        name = folded.get("folded", {}).get(target, target)
        expected, place = self.seen.get(name, []), self.calls[name]
        self.calls[name] += 1
        known = hasattr(result, "shape") and place < len(expected)
        if known and not self.first and expected[place].shape == result.shape:
            peak = expected[place].abs().max().item()
            if _difference(expected[place], result) > 10 * _FLOAT32 * peak:
                kind: Any = self.fetch_attr(target)
                self.first = f"'{target}' ({type(kind).__name__})"
        return result
