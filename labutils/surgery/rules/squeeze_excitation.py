"""Squeeze-excitation: the rule that takes it out, and how a gate is told from an activation.

A gate is an output, between 0 and 1 say, that scales another tensor. Made a ReLU it would scale by
anything: rules for bounded activations leave it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from ..rule import GraphForm, OnnxForm, Rule, Site

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..torch_level.graph_match import Found

SE_CLASSES = (
    "torchvision.ops.misc.SqueezeExcitation",
    "timm.layers.squeeze_excite.SEModule",
    "timm.layers.squeeze_excite.EffectiveSEModule",
    "timm.layers.squeeze_excite.SqueezeExciteCl",
    "timm.models._efficientnet_blocks.SqueezeExcite",
    "timm.models.senet.SEModule",
)
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
    from torch import nn

    if isinstance(site.module, nn.Sequential) or not site.path:
        return False
    layers = [m for m in site.module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    if not 1 <= len(layers) <= 2 or len(list(site.module.modules())) > 12:
        return False
    first, last = (_widths(layer) for layer in (layers[0], layers[-1]))
    if any(getattr(m, "num_features", 0) == first[0] for m in site.module.modules()):
        return False  # it normalizes its input besides
    pointwise = all(getattr(layer, "kernel_size", (1, 1)) == (1, 1) for layer in layers)
    if not pointwise or first[0] != last[1] or (len(layers) == 2 and first[1] != last[0]):
        return False
    return _scales_channels(site.module, first[0])


def _widths(layer: nn.Module) -> tuple[int, int]:
    return (getattr(layer, "in_channels", 0) or getattr(layer, "in_features", 0),
            getattr(layer, "out_channels", 0) or getattr(layer, "out_features", 0))  # fmt: skip


def _scales_channels(module: nn.Module, channels: int) -> bool:
    import torch

    from ...models.modes import evaluating

    weight = next(module.parameters())
    noise = torch.randn(1, channels, 5, 5, generator=torch.Generator().manual_seed(0))
    x = noise.to(weight.device, weight.dtype) + 3.0  # no zeros to divide by
    try:
        with evaluating(module), torch.no_grad(), torch.random.fork_rng(devices=[]):
            factor = (module(x.clone()) / x).float()
    except Exception:  # some other module, with other inputs
        return False
    if factor.shape != x.shape:
        return False
    spread = (factor.amax((2, 3)) - factor.amin((2, 3))).max()
    flat = (factor.max() - factor.min()) < 1e-7  # one factor for all: a scale, or the identity
    return bool(spread < 1e-3 and factor.min() > -1e-3 and factor.max() < 1.001 and not flat)


def looks_like_a_gate(site: Site, ran: bool = False) -> str:
    """Return why a bounded activation may be a gate, judged by names; ``""`` if it does not.

    Parameters
    ----------
    ran
        Whether a run has shown already what becomes of its output. Without one a Hardsigmoid
        outside a plain chain of layers is left: it is a gate nearly always.
    """
    from torch import nn

    name = site.path.rpartition(".")[2]
    around = [type(parent).__name__ for parent in site.parents[:2]]
    own = type(site.module).__name__
    if _GATE_NAMES.search(name.lower()) or any(_GATED_CLASSES.search(c) for c in around):
        return f"{GATE} (by its place: {name!r} in {around[0] if around else own})"
    chain = all(isinstance(parent, nn.Sequential) for parent in site.parents[:1])
    if "sigmoid" in own.lower() and not ran and not chain:
        return "it may be a gate, and only a run can show it: pass example_inputs="
    return ""


class Watch:
    """Follows marked tensors through views and scalings, to the product of two tensors."""

    def __init__(self) -> None:
        self.marks: dict[int, tuple[Any, frozenset[Any]]] = {}  # the tensor is held: ids stay
        self.gates: set[Any] = set()

    def mark(self, tensor: object, site: Any) -> None:
        """Follow a tensor; `site` is who made it."""
        self.marks[id(tensor)] = (tensor, self.sites(tensor) | {site})

    def sites(self, tensor: object) -> frozenset[Any]:
        """Return whose a tensor is."""
        return self.marks.get(id(tensor), (None, frozenset()))[1]

    def call(self, name: str, args: Sequence[Any], result: Any) -> None:
        """Hear of a call: a view passes the mark on, a product shows a gate."""
        import torch

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


def watch_mode(watch: Watch) -> Any:
    """Return the function mode through which a `Watch` hears of every call."""
    from torch.overrides import TorchFunctionMode

    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, kinds, args=(), kwargs=None):  # noqa: ANN001
            result = func(*args, **(kwargs or {}))
            watch.call(getattr(func, "__name__", ""), args, result)
            return result

    return Mode()


@contextmanager
def watching(modules: Sequence[nn.Module]) -> Iterator[Watch]:
    """Watch what becomes of these modules' outputs while the model runs."""
    watch = Watch()
    hooks = [
        m.register_forward_hook(lambda module, _, output: watch.mark(output, module))
        for m in modules
    ]
    try:
        with watch_mode(watch):
            yield watch
    finally:
        for hook in hooks:
            hook.remove()


def _identity(_: nn.Module) -> nn.Module:
    from torch import nn

    return nn.Identity()


def _same(x: torch.Tensor, *_: Any) -> torch.Tensor:
    return x


def _patterns() -> tuple[GraphForm, ...]:
    """Return squeeze-excitation as written in a forward, with layers as attributes of a model."""
    return tuple(
        GraphForm(_LazySe(act, gate).label, _LazySe(act, gate),
                  build=lambda _: _same, check=_one_by_one)
        for act in ("relu", "silu", "hardswish", "")
        for gate in ("sigmoid", "hardsigmoid")
    )  # fmt: skip


class _LazySe:
    """Makes the pattern's module when it is traced: the rule book imports no torch."""

    def __init__(self, act: str, gate: str) -> None:
        self.words = act, gate
        inner = f"{act}(conv(mean(x)))" if act else "mean(x)"
        self.label = f"x * {gate}(conv({inner}))"

    def make(self) -> nn.Module:
        import torch.nn.functional as F
        from torch import nn

        act, gate = (getattr(F, word) if word else None for word in self.words)

        class SqueezeExcitation(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.down = nn.Conv2d(1, 1, 1) if act else None
                self.up = nn.Conv2d(1, 1, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                squeezed = x.mean((2, 3), keepdim=True)
                return x * gate(self.up(act(self.down(squeezed)) if act else squeezed))

        return SqueezeExcitation()


def _one_by_one(found: Found) -> str:
    wide = any(size != (1, 1) for size in found.kernel_sizes())
    return "the convolutions in it are not 1x1" if wide else ""


def _onnx_form(gate: str, pool: str, act: str) -> OnnxForm:
    def pattern(op: Any, x: Any) -> Any:
        if pool == "ReduceMean":
            squeezed = op.ReduceMean(x, _allow_other_attributes=True, _allow_other_inputs=True)
        else:
            squeezed = op.GlobalAveragePool(x)
        kwargs = {"_allow_other_attributes": True, "_allow_other_inputs": True}
        reduced = op.Conv(squeezed, **kwargs)
        if not act:
            return op.Mul(
                x, getattr(op, gate)(reduced, _allow_other_attributes=True, _outputs=["y"])
            )
        if act == "Silu":
            active = op.Mul(reduced, op.Sigmoid(reduced))
        else:
            active = getattr(op, act)(reduced)
        wide = op.Conv(active, **kwargs)
        gated = getattr(op, gate)(wide, _allow_other_attributes=True, _outputs=["y"])
        return op.Mul(x, gated)

    ops = (gate, "Mul", "Conv", pool, *([act, "Conv"] if act else []))
    parts = ", ".join(filter(None, (pool, act, gate)))
    return OnnxForm(f"squeeze-excitation ({parts})", ops, pattern,
                    lambda g, x, node: g.op("Identity", x))  # fmt: skip


SE_TO_IDENTITY = Rule(
    name="se-to-identity",
    exact=False,
    error="the channels are no longer weighed against each other; parameters shrink; retrain",
    source="TI's lite models (edgeai-modeloptimization); Hu et al. 2018, Squeeze-and-Excitation "
    "Networks",
    keeps="names, hooks, train/eval state; the block's weights are gone",
    needs_training=True,
    modules=SE_CLASSES,
    module=_identity,
    recognizes=is_squeeze_excitation,
    graph=_patterns(),
    onnx=tuple(
        _onnx_form(gate, pool, act)
        for gate in ("Sigmoid", "HardSigmoid")
        for pool in ("GlobalAveragePool", "ReduceMean")
        for act in ("Relu", "Silu", "HardSwish", "")
    ),
)

RULES = (SE_TO_IDENTITY,)
