"""How a gate is told from an activation, and a squeeze-excitation by what it does.

A gate is an output, between 0 and 1 say, that scales another tensor. If it were made a ReLU, it
would scale by anything: rules for bounded activations leave it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ...models.modes import evaluating
from ..forms import Leave, Site

GATE = "a gate: its output scales another tensor, and a ReLU would not bound it"
_GATE_NAMES = re.compile(r"gate|scale_activation|attn|attention")
_GATED_CLASSES = re.compile(
    r"(?i)squeeze|excit|^e?se(_|layer|module|block|net)?$|attention|gate|h(ard)?_?s(wish|igmoid)"
)


def is_squeeze_excitation(site: Site) -> bool:
    """Tell a squeeze-excitation by what it does, whatever its class is called.

    It holds two 1x1 convolutions (or linear layers) there and back, or one, and multiplies its
    input by one factor between 0 and 1 per channel: seen in a run on random numbers.
    """
    if isinstance(site.module, nn.Sequential) or not site.path:
        return False
    layers = [m for m in site.module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if not 1 <= len(layers) <= 2 or len(list(site.module.modules())) > 12:
        return False
    first, last = (_widths(layer) for layer in (layers[0], layers[-1]))
    if any(getattr(m, "num_features", 0) == first[0] for m in site.module.modules()):
        return False  # it also normalizes its input
    pointwise = all(getattr(layer, "kernel_size", (1, 1)) == (1, 1) for layer in layers)
    if not pointwise or first[0] != last[1] or (len(layers) == 2 and first[1] != last[0]):
        return False
    return _scales_channels(site.module, first[0])


def _widths(layer: nn.Module) -> tuple[int, int]:
    return (getattr(layer, "in_channels", 0) or getattr(layer, "in_features", 0),
            getattr(layer, "out_channels", 0) or getattr(layer, "out_features", 0))  # fmt: skip


def _scales_channels(module: nn.Module, channels: int) -> bool:
    weight = next(module.parameters())
    noise = torch.randn(1, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    x = noise.to(weight.device, weight.dtype) + 3.0  # no zeros to divide by
    try:
        with evaluating(module), torch.no_grad(), torch.random.fork_rng(devices=[]):
            factor = (module(x.clone()) / x).float()
    except Exception:  # a different kind of module, with other inputs
        return False
    if factor.shape != x.shape:
        return False
    spread = (factor.amax((2, 3)) - factor.amin((2, 3))).max()
    flat = (factor.max() - factor.min()) < 1e-7  # one factor for all: a scale, or the identity
    return bool(spread < 1e-3 and factor.min() > -1e-3 and factor.max() < 1.001 and not flat)


def check_by_name(site: Site, ran: bool = False) -> Leave | None:
    """Leave a bounded activation that is a gate, judged by names.

    Parameters
    ----------
    ran
        Whether a run has already shown where its output goes. Without one a Hardsigmoid outside
        a plain chain of layers is left: it is nearly always a gate.
    """
    name = site.path.rpartition(".")[2]
    around = [type(parent).__name__ for parent in site.parents[:2]]
    own = type(site.module).__name__
    if _GATE_NAMES.search(name.lower()) or any(_GATED_CLASSES.search(c) for c in around):
        return Leave(f"{GATE} (by its place: {name!r} in {around[0] if around else own})")
    chain = all(isinstance(parent, nn.Sequential) for parent in site.parents[:1])
    if "sigmoid" in own.lower() and not ran and not chain:
        return Leave("it may be a gate; only a run can tell: pass example_inputs=")
    return None


class Watch:
    """Follows marked tensors through views and scalings, to the product of two tensors."""

    def __init__(self) -> None:
        self.marks: dict[int, tuple[Any, frozenset[Any]]] = {}  # the tensor is held: ids stay
        self.gates: set[Any] = set()

    def mark(self, tensor: object, site: Any) -> None:
        """Follow a tensor; `site` is the module or call that made it."""
        self.marks[id(tensor)] = (tensor, self.sites(tensor) | {site})

    def sites(self, tensor: object) -> frozenset[Any]:
        """Return the modules or calls that made a tensor."""
        return self.marks.get(id(tensor), (None, frozenset()))[1]

    def call(self, name: str, args: Sequence[Any], result: Any) -> None:
        """Observe a call: a view passes the mark on, a product shows a gate."""
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if name in _RESHAPING:
            tensors = tensors[:1]
        if len(tensors) == 1 and isinstance(result, torch.Tensor):
            sites = self.sites(tensors[0])
            if sites:
                self.marks[id(result)] = (result, sites | self.sites(result))
        elif len(tensors) == 2 and name in _PRODUCTS:
            for one, other in (tensors, tensors[::-1]):
                if one.numel() <= other.numel():  # in x * f(x) the factor is f's
                    self.gates |= self.sites(one) - self.sites(other)


_RESHAPING = {"expand_as", "view_as", "reshape_as", "type_as"}
_PRODUCTS = {"mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__"}


class _Watching(TorchFunctionMode):
    """The function mode through which a `Watch` observes every call."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(
        self, func: Callable[..., Any], kinds: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.watch.call(getattr(func, "__name__", ""), args, result)
        return result


@contextmanager
def watching(modules: Sequence[nn.Module]) -> Iterator[Watch]:
    """Watch where these modules' outputs go while the model runs."""
    watch = Watch()
    hooks = [
        m.register_forward_hook(lambda module, _, output: watch.mark(output, module))
        for m in modules
    ]
    try:
        with _Watching(watch):
            yield watch
    finally:
        for hook in hooks:
            hook.remove()
