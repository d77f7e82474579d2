"""Exercises of notebook 03: layers that a converter can translate, and their way into a model."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ..answer import NotYet, call, number, shown
from ..exercise import Exercise
from .curves import judge_curve, judge_export, judge_gradient
from .walks import judge_swap

if TYPE_CHECKING:
    from torch import nn


def judge_hardsigmoid(my_hardsigmoid: Any) -> None:
    """Judge the values, then the operators that it exports to, then the gradient."""
    import torch

    if isinstance(my_hardsigmoid, type):
        raise NotYet("a function is expected here, but this is a class.")
    judge_curve(my_hardsigmoid, torch.nn.functional.hardsigmoid, "your function")
    judge_export(my_hardsigmoid, "your function")
    judge_gradient(my_hardsigmoid, torch.nn.functional.hardsigmoid, "your function")


def judge_error(largest_error: Any) -> None:
    """Judge the largest distance of the two curves: where the steeper one reaches 1."""
    found = number(largest_error)
    x = 0.5 / 0.167  # there 0.167 * x + 0.5 is 1, and the true gate is not yet
    true = 1 - (x / 6 + 0.5)
    if not math.isclose(found, true, rel_tol=0.02):
        raise NotYet(_explain_error(found, true, x))


def _explain_error(found: float, true: float, x: float) -> str:
    near = lambda other: math.isclose(found, other, rel_tol=0.02)  # noqa: E731
    if found < 0:
        return "an error is a distance: it is not negative."
    if found == 0:
        return "zero: at x = 3, and beyond, both are cut off. Look just inside."
    if near(0.167 - 1 / 6):
        return "that is the difference of the two slopes, which is the error at x = 1 only."
    if near(x * true):
        return "that is what hard-swish, x times the gate, would be off by."
    if near(100 * true):
        return "that looks like per cent: give the difference of the two values itself."
    if 0.6 * true < found < true:  # what steps of 1, or of 0.1, give
        return (
            f"{found:.2g} is too small: the worst x lies between two points of your grid. Take a "
            "finer one."
        )
    return f"{found:.3g} is {'too large' if found > true else 'too small'}."


def judge_layer(MyHardswish: Any) -> None:  # noqa: N803 - as the learner calls it
    """Judge a layer made of the class: its values, its export, its gradient; training or not."""
    import torch

    if isinstance(MyHardswish, torch.nn.Module):
        raise NotYet("this is one layer; give the class, from which each place gets its own.")
    if not isinstance(MyHardswish, type) or not issubclass(MyHardswish, torch.nn.Module):
        raise NotYet(f"a subclass of nn.Module is expected, but this is {shown(MyHardswish)}.")
    layer = _made(MyHardswish)
    if _hidden_weights(layer):
        raise NotYet("your layer has parameters or buffers; the original has none to load.")
    judge_curve(layer.eval(), torch.nn.functional.hardswish, "your layer")
    judge_export(layer, "your layer")
    what = "in training mode your layer"
    judge_curve(layer.train(), torch.nn.functional.hardswish, what)
    judge_gradient(layer, torch.nn.functional.hardswish, "your layer")


def _made(cls: type) -> Any:
    """Make the learner's layer; a forgotten ``super().__init__()`` gets its own sentence."""
    forgotten = (
        "your __init__ does not begin with super().__init__(): without it, nn.Module has not "
        "prepared the place for its parts."
    )
    try:
        layer = call(cls, what="making your layer")
    except NotYet as reason:
        raise NotYet(forgotten if "Module.__init__() call" in str(reason) else reason) from None
    if "_modules" not in vars(layer):
        raise NotYet(forgotten)
    return layer


def _hidden_weights(layer: nn.Module) -> bool:
    return bool(layer.state_dict()) or any(True for _ in layer.parameters())


HARDSIGMOID = Exercise(
    id="03.1",
    title="Write hard-sigmoid without hardsigmoid, exactly",
    verb="write an activation from operators that every converter knows",
    minutes=5,
    difficulty="easy",
    answer="my_hardsigmoid",
    stub="def my_hardsigmoid(x):\n    return TODO",
    reference="def my_hardsigmoid(x):\n    return (x + 3).clamp(0, 6) / 6",
    hints=(
        "The line goes through (-3, 0) and (3, 1): what is its slope, and what is it at 0?",
        "A line that is cut off below and above needs no if: one method of tensors does both.",
        "Two ways: the line first, then cut at 0 and 1; or add 3, cut at 0 and 6, and divide last.",
    ),
    judge=judge_hardsigmoid,
    praise="the same curve, in the kinks too, from operators that the table knows.",
)

ERROR = Exercise(
    id="03.2",
    title="How far is the slope 0.167 from hard-sigmoid, at most?",
    verb="measure what a rounded constant costs",
    minutes=5,
    difficulty="easy",
    answer="largest_error",
    stub="largest_error = TODO  # over all x",
    reference=(
        "import torch\n\n"
        "x = torch.linspace(-4, 4, 100_001)\n"
        "rounded = (0.167 * x + 0.5).clamp(0, 1)\n"
        "largest_error = (rounded - torch.nn.functional.hardsigmoid(x)).abs().max()"
    ),
    hints=(
        "Measure: both curves on a fine grid of x, the largest absolute difference.",
        "The grid must be fine near -3 and 3; steps of 1 miss the place.",
        "By hand: it is where the steeper line reaches 1 and the other one does not yet.",
    ),
    judge=judge_error,
    praise="small in one layer; what eight of them do to the logits, section 6 measures.",
)

_CLASS = "from torch import nn\n\n\nclass MyHardswish(nn.Module):\n    def forward(self, x):\n"
LAYER = Exercise(
    id="03.3",
    title="Write hard-swish as a layer",
    verb="write a drop-in layer that exports to known operators",
    minutes=8,
    difficulty="medium",
    answer="MyHardswish",
    stub=_CLASS + "        return TODO",
    reference=_CLASS + "        return x * (x + 3).clamp(0, 6) / 6",
    hints=(
        "forward may call other functions, and one of them you have written already: 03.1.",
        "The layer has no parameters and needs no __init__; if you write one, super().__init__().",
        "One line is enough: the input, times my_hardsigmoid of the input.",
    ),
    judge=judge_layer,
    praise="exact, without weights, without the refused operator.",
)

_SWAP = (
    "from torch import nn\n\n"
    "from labutils.layers import CustomHardsigmoid, CustomHardswish\n\n"
    "NEW = {nn.Hardsigmoid: CustomHardsigmoid, nn.Hardswish: CustomHardswish}\n\n\n"
)
SWAP = Exercise(
    id="03.4",
    title="Swap the layers of any model, without touching PyTorch",
    verb="replace layers inside a model and leave the library alone",
    minutes=15,
    difficulty="stretch",
    answer="swap_layers_",
    stub=_SWAP + "def swap_layers_(model):\n    return TODO  # the same model, its layers replaced",
    reference=(
        _SWAP + "def swap_layers_(model):\n"
        "    for path, module in list(model.named_modules(remove_duplicate=False)):\n"
        "        if type(module) in NEW:\n"
        "            model.set_submodule(path, NEW[type(module)]())\n"
        "    return model"
    ),
    hints=(
        "A module keeps its children as attributes: setattr(parent, name, new) swaps one.",
        "Children have children. Either call yourself, or walk model.named_modules().",
        "named_modules(remove_duplicate=False) gives dotted paths; "
        "model.set_submodule(path, new) takes one.",
    ),
    judge=judge_swap,
    praise="every floor, nothing else, the same outputs, and PyTorch as it was.",
)

EXERCISES = (HARDSIGMOID, ERROR, LAYER, SWAP)
