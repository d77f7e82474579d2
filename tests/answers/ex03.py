"""Answers to the exercises of 03: activations from known operators, and their way into a model."""

import copy
from fractions import Fraction

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from answers import right, wrong
from labutils.layers import CustomHardsigmoid, CustomHardswish

NEW = {nn.Hardsigmoid: CustomHardsigmoid, nn.Hardswish: CustomHardswish}


def gate(x):
    return (x + 3).clamp(0, 6) / 6


@right("03.1")
def gates(random):
    k = random.choice([2.0, 4.0, 8.0])
    yield "hardtanh", lambda x: F.hardtanh(x / 3, -1, 1) / 2 + 0.5
    yield "two ReLUs", lambda x: (F.relu(x + 3) + F.relu(x + -3) * -1) / 6
    yield "minimum by ReLU", lambda x: F.relu(F.relu(x / 6 + 0.5) * -1 + 1) * -1 + 1
    yield f"scaled by {k:g}", lambda x: (k * x + 3 * k).clamp(0, 6 * k) / (6 * k)
    yield "a module", nn.Sequential(CustomHardsigmoid())


def without_gradient(x):
    with torch.no_grad():
        return gate(x)


@wrong("03.1")
def no_gates(random):
    slope = round(random.uniform(0.1655, 0.1664), 4)
    yield "detached", lambda x: gate(x).detach(), "no gradient"
    yield "under no_grad", without_gradient, "no gradient"
    yield "from .data", lambda x: gate(x.data), "does not depend on x"
    yield "a difference", lambda x: (F.relu(x + 3) - F.relu(x - 3)) / 6, "exports to Sub"
    yield "over numpy", lambda x: torch.from_numpy(np.clip(x.numpy() / 6 + 0.5, 0, 1)), "PyTorch"
    yield "over a list", lambda x: torch.tensor(gate(x).tolist()), ""
    yield "half a gradient", lambda x: gate(x) / 2 + gate(x).detach() / 2, "the gradient is not"
    yield "in place", lambda x: x.add_(3).clamp_(0, 6).div_(6), "writes into its input"
    yield f"slope {slope}", lambda x: (slope * x + 0.5).clamp(0, 1), "The slope was rounded"
    yield "not cut above", lambda x: (x / 6 + 0.5).clamp(min=0), "between -3 and 3"
    yield "moved", lambda x: (x + 2.5).clamp(0, 6) / 6, "another curve"
    yield "hard-swish", lambda x: x * gate(x), "another curve"
    yield "always float32", lambda x: gate(x.float()), "float64"
    yield "the refused one, twice", lambda x: 2 * F.hardsigmoid(x), "another curve"
    yield "the refused one, in place", lambda x: F.hardsigmoid(x.clone(), inplace=True), "refuses"


@right("03.2")
def errors(random):
    n = random.randint(20_000, 90_000)
    x = np.linspace(-3.5, 3.5, n)
    off = np.clip(0.167 * x + 0.5, 0, 1) - np.clip(x / 6 + 0.5, 0, 1)
    yield f"{n} points", np.abs(off).max()
    yield "float32", np.abs(off).astype(np.float32).max()
    yield "one side", off.max()
    yield "a fraction", Fraction(1, 2) * (1 - Fraction(1000, 6 * 167))
    yield "a tensor", torch.from_numpy(off).abs().max()


@wrong("03.2")
def no_errors(random):
    step = random.choice([0.5, 0.25, 1.0])
    x = np.arange(-4, 4 + step, step)
    fine = np.linspace(-4, 4, 80_001)
    curve = lambda slope, x: np.clip(slope * x + 0.5, 0, 1)  # noqa: E731
    off = curve(0.167, fine) - curve(1 / 6, fine)
    yield f"steps of {step}", np.abs(curve(0.167, x) - curve(1 / 6, x)).max(), "grid"
    yield "the mean", np.abs(off).mean(), "too small"
    yield "the root of the mean square", (off**2).mean() ** 0.5, ""
    yield "the smallest", off.min(), "not negative"
    yield "not cut off", np.abs(0.167 * fine - fine / 6).max(), "too large"
    yield "of the slopes", Fraction(167, 1000) - Fraction(1, 6), "two slopes"
    yield "per cent", 100 * off.max(), "per cent"
    yield "times x", np.abs(fine * off).max(), "hard-swish"
    yield "another rounding", np.abs(curve(0.17, fine) - curve(1 / 6, fine)).max(), "too large"


def layer(forward, **more):
    return type("Mine", (nn.Module,), {"forward": forward, **more})


@right("03.3")
def layers(random):
    class Constants(nn.Module):
        def __init__(self, low=0.0, high=6.0):
            super().__init__()
            self.register_buffer("ends", torch.tensor([low, high]), persistent=False)
            self.clip = nn.Hardtanh(low, high)

        def forward(self, x):
            return x * self.clip(x + 3) / 6

    class Clip(nn.ReLU6):
        def forward(self, x):
            return x * super().forward(x + 3) / 6

    yield "ends in a buffer that is not saved", Constants
    yield "a subclass of ReLU6", Clip
    yield "by two ReLUs", layer(lambda self, x: x * (F.relu(x + 3) + F.relu(x + -3) * -1) / 6)
    yield "multiplied first", layer(lambda self, x: (x / 6) * (x + 3).clamp(min=0, max=6))
    yield "a layer within", layer(lambda self, x: x * CustomHardsigmoid()(x))


@wrong("03.3")
def no_layers(random):
    class Weighted(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.PReLU(init=0.0))

        def forward(self, x):
            return x * gate(x)

    yield "gate detached", layer(lambda self, x: x * gate(x).detach()), "the gradient is not"
    yield "input detached", layer(lambda self, x: x.detach() * gate(x)), "the gradient is not"
    yield "under no_grad", layer(lambda self, x: x.data * without_gradient(x)), "no gradient"
    yield "only in eval", layer(lambda self, x: x if self.training else x * gate(x)), "training"
    yield "in place", layer(lambda self, x: x.mul_(gate(x))), "writes into its input"
    yield "weights within", Weighted, "parameters or buffers"
    yield "gate alone", layer(lambda self, x: gate(x)), "gate alone"
    yield "x + gate", layer(lambda self, x: x + gate(x)), "another curve"
    yield "the refused one", layer(lambda self, x: F.hardswish(x)), "the very function"
    yield "half of it refused", layer(lambda self, x: x * F.hardsigmoid(x)), "the very function"
    yield "always float32", layer(lambda self, x: (x * gate(x)).float()), "float64"
    yield "a function", lambda: lambda x: x * gate(x), "subclass of nn.Module"
    yield "not cut below", layer(lambda self, x: x * (x + 3).clamp(max=6) / 6), "between -3 and 3"


def _set(parent, name, child):
    parent._modules[name] = NEW[type(child)]()


@right("03.4")
def swaps(random):
    def stack(model):
        todo, seen = [model], set()
        while todo:
            parent = todo.pop()
            if id(parent) in seen:
                continue
            seen.add(id(parent))
            for name, child in parent._modules.items():
                if type(child) in NEW:
                    setattr(parent, name, NEW[type(child)]())
                else:
                    todo.append(child)
        return model

    def applied(model):
        def visit(module):
            for name, child in list(module._modules.items()):
                if isinstance(child, tuple(NEW)):
                    _set(module, name, child)

        model.apply(visit)

    def by_place(model):
        for path, module in list(model.named_modules(remove_duplicate=False)):
            if type(module) in NEW:
                parent, _, name = path.rpartition(".")
                setattr(model.get_submodule(parent), name, NEW[type(module)]())
        return model

    def one_for_all(model):
        made = {cls: new() for cls, new in NEW.items()}
        for parent in list(model.modules()):
            for name, child in list(parent._modules.items()):
                if type(child) in made:
                    parent.add_module(name, made[type(child)])

    yield "with a stack", stack
    yield "with apply", applied
    yield "by the parent of each path", by_place
    yield "one layer at all places", one_for_all


@wrong("03.4")
def no_swaps(random):
    depth = random.randint(2, 3)

    def through(*containers, deepest=99):
        def walk(model, floor=0):
            for name, child in list(model._modules.items()):
                if type(child) in NEW:
                    _set(model, name, child)
                elif isinstance(child, containers) and floor < deepest:
                    walk(child, floor + 1)
            return model

        return walk

    def attributes(*names):
        def walk(model):
            for parent in list(model.modules()):
                for name in names:
                    if type(parent._modules.get(name)) in NEW:
                        _set(parent, name, parent._modules[name])

        return walk

    def once(model):
        for parent in model.modules():
            for name, child in list(parent.named_children()):
                if type(child) in NEW:
                    _set(parent, name, child)

    def anew(model):
        swapped = through(nn.Module)(copy.deepcopy(model))
        model._modules = swapped._modules

    def in_training(model):
        return through(nn.Module)(model).train()

    def frozen(model):
        return through(nn.Module)(model).requires_grad_(False)

    def every_clip(model):
        through(nn.Module)(model)
        for parent in list(model.modules()):
            for name, child in list(parent._modules.items()):
                if isinstance(child, nn.ReLU6):
                    parent._modules[name] = CustomHardsigmoid()

    def forwards(model):
        nn.Hardswish.forward = CustomHardswish.forward
        nn.Hardsigmoid.forward = lambda self, x: gate(x)

    def in_functional(model):
        F.hardswish = F.hardsigmoid = gate
        return model

    def exchanged(model):
        for parent in list(model.modules()):
            for name, child in list(parent._modules.items()):
                if type(child) in NEW:
                    other = nn.Hardswish if type(child) is nn.Hardsigmoid else nn.Hardsigmoid
                    parent._modules[name] = NEW[other]()

    own = "custom classes"
    yield "walks Sequential only", through(nn.Sequential), own
    yield "walks Sequential and ModuleList only", through(nn.Sequential, nn.ModuleList), own
    yield "walks all but ModuleDict", through(nn.Sequential, nn.ModuleList, nn.Conv2d), own
    yield f"goes {depth} floors deep", through(nn.Module, deepest=depth), ""
    yield "the top floor", through(nn.Module, deepest=0), "top floor"
    yield "knows places by number", attributes(*map(str, range(9))), own
    yield "a layer once per parent", once, "second one"
    yield "all modules anew", anew, "trained weights"
    yield "training mode", in_training, ""
    yield "all frozen", frozen, "which parameters are trained"
    yield "every ReLU6 as well", every_clip, "ReLU6"
    yield "PyTorch's forwards", forwards, "changed PyTorch itself"
    yield "PyTorch's functions", in_functional, "changed PyTorch itself"
    yield "the two exchanged", exchanged, "something else"
    yield "a copy", lambda model: through(nn.Module)(copy.deepcopy(model)), "a copy"
    yield "nothing", lambda model: model, "nothing was replaced"
