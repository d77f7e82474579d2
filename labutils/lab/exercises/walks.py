"""Judging who swaps layers inside a model: on models of every build, and on a real one."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..answer import NotYet, array, call
from .curves import REFUSED, watched

if TYPE_CHECKING:
    import torch
    from torch import nn

_CHANGED_PYTORCH = (
    "you changed PyTorch itself: every model in this process, and the next exercise, would get it "
    "(it was put back). Change the model that you are given."
)


def _network() -> nn.Module:
    """Return a small network with activations at several depths, and others beside them."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 6, 1), nn.Hardsigmoid())
        block = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), gate)
        stem = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Hardswish())
        model = nn.Sequential(stem, block, nn.Flatten(), nn.Linear(6, 8), nn.Hardswish())
    return model.eval()


def _built() -> nn.Module:
    """Return a network whose parts are custom classes, lists and dictionaries."""
    from torch import nn

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.scale_activation = nn.Conv2d(4, 4, 1), nn.Hardsigmoid()

    class Norm(nn.Sequential):
        """A subclass of Sequential, as torchvision's Conv2dNormActivation is."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = Norm(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Hardswish(inplace=True))
            self.gate, self.tail = Gate(), nn.Sequential(nn.Sequential(nn.Hardswish()))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.Hardswish()
            self.blocks = nn.ModuleList([Block(), nn.Hardswish(), nn.ReLU6()])
            self.heads = nn.ModuleDict({"one": nn.Hardsigmoid(), "two": nn.Sequential(Gate())})
            self.twice = nn.ModuleList([self.blocks[0], nn.Hardtanh(), nn.GELU()])

    model = Net()
    model.heads.train()
    model.get_parameter("blocks.0.norm.0.weight").requires_grad_(False)
    return model


@functools.cache
def _real() -> nn.Module:
    """Return torchvision's mobilenet_v3_small, without trained weights; copy it before use."""
    import torch

    from ... import _torchvision

    _torchvision.load()
    from torchvision.models import mobilenet_v3_small

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mobilenet_v3_small(num_classes=2).eval()


def _own_code() -> dict[tuple[Any, str], Any]:
    """Return what of PyTorch itself a shortcut would overwrite."""
    from torch import nn

    classes = nn.Hardswish, nn.Hardsigmoid
    places: list[tuple[object, str]] = [
        (owner, name) for owner in classes for name in (*vars(owner), "__call__")
    ]
    for owner in (nn, nn.modules.activation):
        places += [(owner, cls.__name__) for cls in classes]
    places += [(nn.functional, "hardswish"), (nn.functional, "hardsigmoid")]
    return {(owner, name): getattr(owner, name) for owner, name in places}


@contextlib.contextmanager
def _pytorch_kept() -> Iterator[None]:
    """Put PyTorch's own code back, and refuse an answer that changed it."""
    before = _own_code()
    changed: list[tuple[Any, str]] = []
    try:
        yield
    finally:
        for (owner, name), was in before.items():
            if getattr(owner, name) is not was:
                changed.append((owner, name))
                setattr(owner, name, was)
    if changed:
        raise NotYet(_CHANGED_PYTORCH)


@contextlib.contextmanager
def _own_walk() -> Iterator[None]:
    """Refuse an answer that leaves the walk to the lab's surgery."""
    from ... import surgery

    with surgery.collect_reports() as reports:
        yield
    if reports:
        raise NotYet(
            "that is the lab's own way, and it works. Here, write the walk yourself, once."
        )


def judge_swap(swap_layers_: Any) -> None:
    """Judge a swap of layers: what is left, what else has changed, and what the model computes."""
    import torch

    model = _network()
    x = torch.linspace(-4, 4, 3 * 64).reshape(1, 3, 8, 8)
    with torch.no_grad():
        true = model(x).double().numpy()
    relu, convolution = model.get_submodule("1.1"), model.get_submodule("0.0")
    with _own_walk():
        _called(swap_layers_, model)
    _judge_swapped(model, relu, convolution, x, true)
    _judge_shared(swap_layers_)
    _judge_build("a network whose parts are custom classes", _built(), swap_layers_)
    _judge_build("torchvision's mobilenet_v3_small", copy.deepcopy(_real()), swap_layers_)


def _called(function: Any, model: nn.Module) -> None:
    """Call an in-place function, for which None is a good thing to return."""
    from torch import nn

    try:
        with _pytorch_kept():
            returned = call(function, model)
    finally:
        _refuse_dotted(model)
    if isinstance(returned, nn.Module) and returned is not model:
        raise NotYet(
            "you changed a copy: the model that was given is as it was. The name ends in _, so "
            "work in place."
        )


def _refuse_dotted(model: nn.Module) -> None:
    """Say what ``setattr(model, "0.2", new)`` does: it makes a child whose name has a dot."""
    dotted = [name for name in model._modules if "." in name]
    if dotted:
        raise NotYet(
            f"setattr takes one name and no path: it made a new child called '{dotted[0]}', and "
            "the layer at that path is still there. Go to the layer's parent first."
        )


def _judge_swapped(
    model: nn.Module, relu: Any, convolution: Any, x: torch.Tensor, true: np.ndarray
) -> None:
    import torch
    from torch import nn

    from ...layers import CustomHardsigmoid, CustomHardswish

    originals = nn.Hardswish, nn.Hardsigmoid
    left = {name: type(m).__name__ for name, m in model.named_modules() if type(m) in originals}
    if left:
        raise NotYet(_explain_left(left))
    modules = [m for _, m in model.named_modules(remove_duplicate=False)]
    swaps = [m for m in modules if isinstance(m, CustomHardsigmoid | CustomHardswish)]
    if not any(m is convolution for m in modules):
        raise NotYet("the convolutions are not the ones with the trained weights any more.")
    if not any(m is relu for m in modules):
        raise NotYet("the ReLU was replaced too, and no converter had complained about it.")
    with torch.no_grad(), watched() as operators:
        now = array(call(model, x, what="the model"), true.shape, "the model")
    if operators & set(REFUSED):
        raise NotYet("the new layers call the refused functions: the export would be the same.")
    error = float(np.abs(now - true).max())
    if not error <= 1e-5:
        raise NotYet("the model computes something else now: on the same input, other outputs.")
    if len(swaps) < 3:
        raise NotYet("right, but the new layers should be the two from labutils.layers.")


def _explain_left(left: dict[str, str]) -> str:
    kinds = set(left.values())
    if len(left) == 3:
        return "nothing was replaced: all three layers are still there."
    if len(kinds) == 1:
        return f"every {kinds.pop()} is left; there are two kinds of refused layers."
    if all("." in name for name in left):
        return f"only the top floor was replaced; {' and '.join(left)} lie deeper."
    return f"not all were replaced: {', '.join(left)} left."


def _judge_shared(answer: Any) -> None:
    """Ask for a layer that stands at two places to be replaced at both."""
    from torch import nn

    twice = nn.Hardswish()
    model = nn.Sequential(nn.Linear(2, 2), twice, nn.Linear(2, 2), twice)
    _called(answer, model)
    if any(type(module) is nn.Hardswish for module in model):
        raise NotYet(
            "a layer that a model uses at two places is still at the second one: named_modules() "
            "and named_children() list it once. remove_duplicate=False lists every place."
        )


def _judge_build(words: str, model: nn.Module, answer: Any) -> None:
    """Judge what became of every module of a model, place by place."""
    from torch import nn

    places = list(model.named_modules(remove_duplicate=False))
    parents = {path: type(model.get_submodule(path.rpartition(".")[0])) for path, _ in places[1:]}
    flags = {path: module.training for path, module in places}
    frozen = {name: p.requires_grad for name, p in model.named_parameters()}
    _called(answer, model)
    refused = [path for path, module in places if type(module) in (nn.Hardswish, nn.Hardsigmoid)]
    now = dict(model.named_modules(remove_duplicate=False))
    left = [path for path in refused if type(now.get(path)) in (nn.Hardswish, nn.Hardsigmoid)]
    if left:
        raise NotYet(
            f"in {words}, {len(left)} of {len(refused)} layers are left, such as {left[0]}, whose "
            f"parent is of the class {parents[left[0]].__name__}. A walk goes into every module, "
            "whatever its class and its name."
        )
    for path, was in places:
        if path not in refused and now.get(path) is not was:
            kind = type(was).__name__
            raise NotYet(f"in {words}, the {kind} at {path} is another now; leave it as it is.")
    if any(now[path].training != flags[path] for path in flags if path not in refused):
        raise NotYet("parts of the model changed between training and eval; leave that as it is.")
    if any(p.requires_grad != frozen.get(name) for name, p in model.named_parameters()):
        raise NotYet("which parameters are trained has changed; leave that as it is.")
