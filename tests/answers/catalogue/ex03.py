"""Catalogued answers to the exercises of notebook 03."""

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from answers.catalogue import right, right_value, wrong, wrong_value
from labutils import surgery
from labutils.layers import CustomHardsigmoid, CustomHardswish

# --- 03.1 ----------------------------------------------------------------------------------------


@right("03.1")
def my_hardsigmoid(x):
    return F.relu6(x + 3) / 6


@right("03.1")
def my_hardsigmoid(x):
    return torch.clamp(x * (1 / 6) + 0.5, min=0.0, max=1.0)


@right("03.1")
def my_hardsigmoid(x):
    return (x / 6 + 0.5).relu().clamp(max=1)


@wrong(
    "03.1",
    "nearly: your function is off by 1.0e-03 at |x| = 2.994. The slope was rounded; an exact "
    "function is expected, and a float has more than three digits.",
)
def my_hardsigmoid(x):
    return (0.167 * x + 0.5).clamp(0, 1)


@wrong(
    "03.1",
    "right between -3 and 3, but at x = 20 your function gives 3.833.",
)
def my_hardsigmoid(x):
    return x / 6 + 0.5


@wrong(
    "03.1",
    "at x = -4 your function gives 0.01799: another curve.",
)
def my_hardsigmoid(x):
    return torch.sigmoid(x)


@wrong(
    "03.1",
    "right values, but your function calls the very function that the converter refuses: the "
    "exported graph would have the same node again.",
)
def my_hardsigmoid(x):
    return F.hardsigmoid(x)


@wrong(
    "03.1",
    "right values, but your function exports to Greater, Less, Where, which the table of SNPE "
    "2.7 does not list: unknown is not supported. It accepts Add, Mul, Div and Clip.",
)
def my_hardsigmoid(x):
    return torch.where(x < -3, 0.0, torch.where(x > 3, 1.0, x / 6 + 0.5))


@wrong(
    "03.1",
    "right values, but your function leaves PyTorch on the way: the exported graph does not "
    "depend on x any more.",
)
def my_hardsigmoid(x):
    return torch.from_numpy(((x + 3).clamp(0, 6) / 6).numpy())


@wrong(
    "03.1",
    "right values, but no gradient comes back through your function: a network that contains it"
    " cannot be trained further, as notebook 07 does. Something cuts the gradient off.",
)
def my_hardsigmoid(x):
    return ((x + 3).clamp(0, 6) / 6).detach()


@wrong(
    "03.1",
    "your function writes into its input; everything else that reads that tensor gets wrong "
    "values.",
)
def my_hardsigmoid(x):
    return x.add_(3).clamp_(0, 6).div_(6)


@wrong(
    "03.1",
    "your function must return a tensor, and returned None.",
)
def my_hardsigmoid(x):
    (x + 3).clamp(0, 6) / 6


# --- 03.2 ----------------------------------------------------------------------------------------


@right_value("03.2")
def _():
    return 0.5 * (1 - 1 / (6 * 0.167))


@right_value("03.2")
def _():
    x = np.arange(-5, 5, 1e-4)
    return np.abs(np.clip(0.167 * x + 0.5, 0, 1) - np.clip(x / 6 + 0.5, 0, 1)).max()


@right_value("03.2")
def _():
    return 9.98e-4


@wrong_value(
    "03.2",
    "that is the difference of the two slopes, which is the error at x = 1 only.",
)
def _():
    return 0.167 - 1 / 6


@wrong_value(
    "03.2",
    "zero: at x = 3, and beyond, both are cut off. Look just inside.",
)
def _():
    x = 3
    return min(1, 0.167 * x + 0.5) - min(1, x / 6 + 0.5)


@wrong_value(
    "03.2",
    "that is what hard-swish, x times the gate, would be off by.",
)
def _():
    x = 0.5 / 0.167
    return x * (1 - (x / 6 + 0.5))


@wrong_value(
    "03.2",
    "an error is a distance: it is not negative.",
)
def _():
    x = -0.5 / 0.167
    return 0 - (x / 6 + 0.5)


@wrong_value(
    "03.2",
    "0.000374 is too small.",
)
def _():
    x = np.linspace(-4, 4, 100_001)
    off = np.clip(0.167 * x + 0.5, 0, 1) - np.clip(x / 6 + 0.5, 0, 1)
    return np.abs(off).mean()


@wrong_value(
    "03.2",
    "0.00067 is too small: the worst x lies between two points of your grid. Take a finer one.",
)
def _():
    x = np.arange(-6, 7)
    off = np.clip(0.167 * x + 0.5, 0, 1) - np.clip(x / 6 + 0.5, 0, 1)
    return np.abs(off).max()


# --- 03.3 ----------------------------------------------------------------------------------------


@right("03.3")
class MyHardswish(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.clip = torch.nn.ReLU6()

    def forward(self, input):
        return input * self.clip(input + 3.0) * (1.0 / 6.0)


@right("03.3")
class MyHardswish(nn.Module):
    def forward(self, x):
        return x * (x / 6 + 0.5).clamp(min=0, max=1)


@right_value("03.3")
def _():
    return CustomHardswish


@wrong(
    "03.3",
    "your layer gives the gate alone: the input itself is not multiplied by it.",
)
class MyHardswish(nn.Module):
    def forward(self, x):
        return (x + 3).clamp(0, 6) / 6


@wrong(
    "03.3",
    "nearly: your layer is off by 3.0e-03 at |x| = 2.994. The slope was rounded; an exact "
    "function is expected, and a float has more than three digits.",
)
class MyHardswish(nn.Module):
    def forward(self, x):
        return x * (0.167 * x + 0.5).clamp(0, 1)


@wrong(
    "03.3",
    "right values, but your layer calls the very function that the converter refuses: the "
    "exported graph would have the same node again.",
)
class MyHardswish(nn.Module):
    def forward(self, x):
        return nn.functional.hardswish(x)


@wrong_value(
    "03.3",
    "this is one layer; give the class, from which each place gets its own.",
)
def _():
    class MyHardswish(nn.Module):
        def forward(self, x):
            return x * (x + 3).clamp(0, 6) / 6

    MyHardswish = MyHardswish()
    return MyHardswish


@wrong(
    "03.3",
    "your __init__ does not begin with super().__init__(): without it, nn.Module has not "
    "prepared the place for its parts.",
)
class MyHardswish(nn.Module):
    def __init__(self):
        self.clip = nn.ReLU6()

    def forward(self, x):
        return x * self.clip(x + 3) / 6


@wrong(
    "03.3",
    "right values, but your layer exports to Cast, Greater, which the table of SNPE 2.7 does "
    "not list: unknown is not supported. It accepts Add, Mul, Div and Clip.",
)
class MyHardswish(nn.Module):
    def forward(self, x):
        return x * (x > -3) * (x + 3).clamp(max=6) / 6


@wrong(
    "03.3",
    "right values, but the gradient is not the original's: at x = 1 it is 0.1667. Part of it is"
    " cut off.",
)
class MyHardswish(nn.Module):
    def forward(self, x):
        return x.detach() * (x + 3).clamp(0, 6) / 6


@wrong(
    "03.3",
    "at x = -4 your layer gives 0.2878: another curve.",
)
class MyHardswish(nn.Module):
    def forward(self, x):
        return x * nn.functional.silu(x)


# --- 03.4 ----------------------------------------------------------------------------------------


REPLACEMENTS = NEW = {nn.Hardsigmoid: CustomHardsigmoid, nn.Hardswish: CustomHardswish}


@right_value("03.4")
def _():
    def swap_layers_(model):
        for name, child in list(model._modules.items()):
            if type(child) in NEW:
                setattr(model, name, NEW[type(child)]())
            else:
                swap_layers_(child)

    return swap_layers_


@right("03.4")
def swap_layers_(model):
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            parent._modules[name] = NEW.get(type(child), lambda: child)()
    return model


@wrong(
    "03.4",
    "a layer that a model uses at two places is still at the second one: named_modules() and "
    "named_children() list it once. remove_duplicate=False lists every place.",
)
def swap_layers_(model):
    for path, module in list(model.named_modules()):
        if type(module) in NEW:
            model.set_submodule(path, NEW[type(module)]())
    return model


@wrong(
    "03.4",
    "you changed a copy: the model that was given is as it was. The name ends in _, so work in "
    "place.",
)
def swap_layers_(model):
    model = copy.deepcopy(model)
    for path, module in list(model.named_modules(remove_duplicate=False)):
        if type(module) in NEW:
            model.set_submodule(path, NEW[type(module)]())
    return model


@wrong(
    "03.4",
    "only the top floor was replaced; 0.2 and 1.2.2 lie deeper.",
)
def swap_layers_(model):
    for name, child in model.named_children():
        if type(child) in NEW:
            setattr(model, name, NEW[type(child)]())
    return model


@wrong_value(
    "03.4",
    "in a network whose parts are custom classes, 9 of 10 layers are left, such as "
    "blocks.0.norm.2, whose parent is of the class Norm. A walk goes into every module, "
    "whatever its class and its name.",
)
def _():
    def swap_layers_(model):
        for name, child in list(model._modules.items()):
            if type(child) in NEW:
                setattr(model, name, NEW[type(child)]())
            elif isinstance(child, nn.Sequential):
                swap_layers_(child)

    return swap_layers_


@wrong(
    "03.4",
    "you changed PyTorch itself: every model in this process, and the next exercise, would get "
    "it (it was put back). Change the model that you are given.",
)
def swap_layers_(model):
    nn.Hardswish.forward = CustomHardswish.forward
    return model


@wrong(
    "03.4",
    "every Hardsigmoid is left; there are two kinds of refused layers.",
)
def swap_layers_(model):
    for path, module in list(model.named_modules()):
        if type(module) is nn.Hardswish:
            model.set_submodule(path, CustomHardswish())
    return model


@wrong_value(
    "03.4",
    "the ReLU was replaced too, and no converter had complained about it.",
)
def _():
    NEW = dict(REPLACEMENTS)

    def swap_layers_(model):
        NEW[nn.ReLU] = CustomHardswish
        for path, module in list(model.named_modules()):
            if type(module) in NEW:
                model.set_submodule(path, NEW[type(module)]())

    return swap_layers_


@wrong(
    "03.4",
    "nothing was replaced: all three layers are still there.",
)
def swap_layers_(model):
    for path, module in model.named_modules():
        if type(module) in NEW:
            module = NEW[type(module)]()
    return model


@wrong(
    "03.4",
    "that is the lab's own way, and it works. Here, write the walk yourself, once.",
)
def swap_layers_(model):
    surgery.replace_(model, level="module")
    return model


@wrong(
    "03.4",
    "setattr takes one name and no path: it made a new child called '0.2', and the layer at "
    "that path is still there. Go to the layer's parent first.",
)
def swap_layers_(model):
    for path, module in model.named_modules():
        if type(module) in NEW:
            setattr(model, path, NEW[type(module)]())
    return model


@wrong_value(
    "03.4",
    "the model computes something else now: on the same input, other outputs.",
)
def _():
    NEW = dict(REPLACEMENTS)

    def swap_layers_(model):
        NEW[nn.Hardsigmoid] = lambda: CustomHardsigmoid(0.167)
        for path, module in list(model.named_modules()):
            if type(module) in NEW:
                model.set_submodule(path, NEW[type(module)]())

    return swap_layers_
