"""Exercises of notebook 03: layers that a converter can translate, and their way into a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..answer import NotYet, call, number, shown
from ..exercise import Exercise, Wrong
from .curves import judge_curve, judge_export, judge_gradient
from .walks import judge_swap

if TYPE_CHECKING:
    from torch import nn


def _judge_hardsigmoid(answer: Any) -> None:
    import torch

    if isinstance(answer, type):
        raise NotYet("a function is asked for here, and this is a class.")
    judge_curve(answer, torch.nn.functional.hardsigmoid, "your function")
    judge_export(answer, "your function")
    judge_gradient(answer, torch.nn.functional.hardsigmoid, "your function")


def _judge_error(answer: Any) -> None:
    found = number(answer)
    slope = 0.167
    x = 0.5 / slope  # where the steeper curve reaches 1, and the true one does not yet
    true = 1 - (x / 6 + 0.5)
    near = lambda value, other: abs(value - other) <= 0.02 * abs(other)  # noqa: E731
    if near(found, true):
        return
    if found < 0:
        raise NotYet("an error is a distance: it is not negative.")
    if found == 0:
        raise NotYet("zero: at x = 3, and beyond, both are cut off. Look just inside.")
    if near(found, slope - 1 / 6):
        raise NotYet("that is the difference of the two slopes, which is the error at x = 1 only.")
    if near(found, x * true):
        raise NotYet("that is what hard-swish, x times the gate, would be off by.")
    if near(found, 100 * true):
        raise NotYet("that looks like per cent: give the difference of the two values itself.")
    if 0.6 * true < found < true:  # what steps of 1, or of 0.1, give
        raise NotYet(
            f"{found:.2g} is too small: the worst x lies between two points of your grid. Take a "
            "finer one."
        )
    raise NotYet(f"{found:.3g} is {'too large' if found > true else 'too small'}.")


def _judge_layer(answer: Any) -> None:
    import torch

    if isinstance(answer, torch.nn.Module):
        raise NotYet("this is one layer; give the class, from which each place gets its own.")
    if not isinstance(answer, type) or not issubclass(answer, torch.nn.Module):
        raise NotYet(f"a subclass of nn.Module is asked for, and this is {shown(answer)}.")
    layer = _made(answer)
    if _hidden_weights(layer):
        raise NotYet("your layer has parameters or buffers; the original has none to load.")
    judge_curve(layer.eval(), torch.nn.functional.hardswish, "your layer")
    judge_export(layer, "your layer")
    what = "in training mode your layer"
    judge_curve(layer.train(), torch.nn.functional.hardswish, what)
    judge_gradient(layer, torch.nn.functional.hardswish, "your layer")


def _made(cls: type) -> Any:
    """Make the learner's layer; a forgotten ``super().__init__()`` gets a sentence of its own."""
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


_F = "import torch.nn.functional as F\n\n"
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
    right=(
        _F + "def my_hardsigmoid(x):\n    return F.relu6(x + 3) / 6",
        "import torch\n\n"
        "def my_hardsigmoid(x):\n    return torch.clamp(x * (1 / 6) + 0.5, min=0.0, max=1.0)",
        "def my_hardsigmoid(x):\n    return (x / 6 + 0.5).relu().clamp(max=1)",
    ),
    wrong=(
        Wrong(
            "def my_hardsigmoid(x):\n    return (0.167 * x + 0.5).clamp(0, 1)",
            "nearly: your function is off by 1.0e-03 at |x| = 2.994. A slope was rounded; exact is "
            "asked, and a float has more digits than three.",
        ),
        Wrong(
            "def my_hardsigmoid(x):\n    return x / 6 + 0.5",
            "right between -3 and 3, but at x = 20 your function gives 3.833.",
        ),
        Wrong(
            "import torch\n\ndef my_hardsigmoid(x):\n    return torch.sigmoid(x)",
            "at x = -4 your function gives 0.01799: another curve.",
        ),
        Wrong(
            _F + "def my_hardsigmoid(x):\n    return F.hardsigmoid(x)",
            "right values, but your function calls the very function that the converter refuses: "
            "the exported graph would have the same node again.",
        ),
        Wrong(
            "import torch\n\n"
            "def my_hardsigmoid(x):\n"
            "    return torch.where(x < -3, 0.0, torch.where(x > 3, 1.0, x / 6 + 0.5))",
            "right values, but your function exports to Greater, Less, Where, of which the table "
            "of SNPE 2.7 says nothing: unknown is not supported. Add, Mul, Div and Clip it takes.",
        ),
        Wrong(
            "import torch\n\n"
            "def my_hardsigmoid(x):\n"
            "    return torch.from_numpy(((x + 3).clamp(0, 6) / 6).numpy())",
            "right values, but your function leaves PyTorch on the way: the exported graph does "
            "not depend on x any more.",
        ),
        Wrong(
            "def my_hardsigmoid(x):\n    return ((x + 3).clamp(0, 6) / 6).detach()",
            "right values, and no gradient comes back through your function: a network that holds "
            "it cannot be trained on, which notebook 07 does. Something on the way cuts it off.",
        ),
        Wrong(
            "def my_hardsigmoid(x):\n    return x.add_(3).clamp_(0, 6).div_(6)",
            "your function writes into its input; whoever else reads that tensor is lost.",
        ),
        Wrong(
            "def my_hardsigmoid(x):\n    (x + 3).clamp(0, 6) / 6",
            "your function must return a tensor, and returned None.",
        ),
    ),
    judge=_judge_hardsigmoid,
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
    right=(
        "largest_error = 0.5 * (1 - 1 / (6 * 0.167))",
        "import numpy as np\n"
        "x = np.arange(-5, 5, 1e-4)\n"
        "largest_error = np.abs(np.clip(.167 * x + .5, 0, 1) - np.clip(x / 6 + .5, 0, 1)).max()",
        "largest_error = 9.98e-4",
    ),
    wrong=(
        Wrong(
            "largest_error = 0.167 - 1 / 6",
            "that is the difference of the two slopes, which is the error at x = 1 only.",
        ),
        Wrong(
            "x = 3\nlargest_error = min(1, 0.167 * x + 0.5) - min(1, x / 6 + 0.5)",
            "zero: at x = 3, and beyond, both are cut off. Look just inside.",
        ),
        Wrong(
            "x = 0.5 / 0.167\nlargest_error = x * (1 - (x / 6 + 0.5))",
            "that is what hard-swish, x times the gate, would be off by.",
        ),
        Wrong(
            "x = -0.5 / 0.167\nlargest_error = 0 - (x / 6 + 0.5)",
            "an error is a distance: it is not negative.",
        ),
        Wrong(
            "import numpy as np\n"
            "x = np.linspace(-4, 4, 100_001)\n"
            "off = np.clip(0.167 * x + 0.5, 0, 1) - np.clip(x / 6 + 0.5, 0, 1)\n"
            "largest_error = np.abs(off).mean()",
            "0.000374 is too small.",
        ),
        Wrong(
            "import numpy as np\n"
            "x = np.arange(-6, 7)\n"
            "off = np.clip(0.167 * x + 0.5, 0, 1) - np.clip(x / 6 + 0.5, 0, 1)\n"
            "largest_error = np.abs(off).max()",
            "0.00067 is too small: the worst x lies between two points of your grid. Take a finer "
            "one.",
        ),
    ),
    judge=_judge_error,
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
        "One line is enough: what goes in, times what my_hardsigmoid makes of it.",
    ),
    right=(
        "import torch\nimport torch.nn.functional as F\n\n"
        "class MyHardswish(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.clip = torch.nn.ReLU6()\n\n"
        "    def forward(self, input):\n"
        "        return input * self.clip(input + 3.0) * (1.0 / 6.0)",
        _CLASS + "        return x * (x / 6 + 0.5).clamp(min=0, max=1)",
        "from labutils.layers import CustomHardswish\nMyHardswish = CustomHardswish",
    ),
    wrong=(
        Wrong(
            _CLASS + "        return (x + 3).clamp(0, 6) / 6",
            "your layer gives the gate alone: the input itself is not multiplied by it.",
        ),
        Wrong(
            _CLASS + "        return x * (0.167 * x + 0.5).clamp(0, 1)",
            "nearly: your layer is off by 3.0e-03 at |x| = 2.994. A slope was rounded; exact is "
            "asked, and a float has more digits than three.",
        ),
        Wrong(
            _CLASS + "        return nn.functional.hardswish(x)",
            "right values, but your layer calls the very function that the converter refuses: the "
            "exported graph would have the same node again.",
        ),
        Wrong(
            _CLASS + "        return x * (x + 3).clamp(0, 6) / 6\n\n\nMyHardswish = MyHardswish()",
            "this is one layer; give the class, from which each place gets its own.",
        ),
        Wrong(
            "from torch import nn\n\n"
            "class MyHardswish(nn.Module):\n"
            "    def __init__(self):\n"
            "        self.clip = nn.ReLU6()\n\n"
            "    def forward(self, x):\n"
            "        return x * self.clip(x + 3) / 6",
            "your __init__ does not begin with super().__init__(): without it, nn.Module has not "
            "prepared the place for its parts.",
        ),
        Wrong(
            _CLASS + "        return x * (x > -3) * (x + 3).clamp(max=6) / 6",
            "right values, but your layer exports to Cast, Greater, of which the table of SNPE 2.7 "
            "says nothing: unknown is not supported. Add, Mul, Div and Clip it takes.",
        ),
        Wrong(
            _CLASS + "        return x.detach() * (x + 3).clamp(0, 6) / 6",
            "right values, and another gradient than the original's: at x = 1 it is 0.1667. A part "
            "of the way is cut off.",
        ),
        Wrong(
            _CLASS + "        return x * nn.functional.silu(x)",
            "at x = -4 your layer gives 0.2878: another curve.",
        ),
    ),
    judge=_judge_layer,
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
    right=(
        _SWAP + "def swap_layers_(model):\n"
        "    for name, child in list(model._modules.items()):\n"
        "        if type(child) in NEW:\n"
        "            setattr(model, name, NEW[type(child)]())\n"
        "        else:\n"
        "            swap_layers_(child)",
        _SWAP + "def swap_layers_(model):\n"
        "    for parent in list(model.modules()):\n"
        "        for name, child in parent._modules.items():\n"
        "            parent._modules[name] = NEW.get(type(child), lambda: child)()\n"
        "    return model",
    ),
    wrong=(
        Wrong(
            _SWAP + "def swap_layers_(model):\n"
            "    for path, module in list(model.named_modules()):\n"
            "        if type(module) in NEW:\n"
            "            model.set_submodule(path, NEW[type(module)]())\n"
            "    return model",
            "a layer that a model uses at two places is still at the second one: named_modules() "
            "and named_children() list it once. remove_duplicate=False lists every place.",
        ),
        Wrong(
            "import copy\n\n" + _SWAP + "def swap_layers_(model):\n"
            "    model = copy.deepcopy(model)\n"
            "    for path, module in list(model.named_modules(remove_duplicate=False)):\n"
            "        if type(module) in NEW:\n"
            "            model.set_submodule(path, NEW[type(module)]())\n"
            "    return model",
            "you changed a copy: the model that was given is as it was. The name ends in _, so "
            "work in place.",
        ),
        Wrong(
            _SWAP + "def swap_layers_(model):\n"
            "    for name, child in model.named_children():\n"
            "        if type(child) in NEW:\n"
            "            setattr(model, name, NEW[type(child)]())\n"
            "    return model",
            "only the top floor was replaced; 0.2 and 1.2.2 lie deeper.",
        ),
        Wrong(
            _SWAP + "def swap_layers_(model):\n"
            "    for name, child in list(model._modules.items()):\n"
            "        if type(child) in NEW:\n"
            "            setattr(model, name, NEW[type(child)]())\n"
            "        elif isinstance(child, nn.Sequential):\n"
            "            swap_layers_(child)",
            "in a network whose parts are classes of their own, 9 of 10 layers are left, such as "
            "blocks.0.norm.2, whose parent is of the class Norm. A walk goes into every module, "
            "whatever its class and its name.",
        ),
        Wrong(
            _SWAP + "def swap_layers_(model):\n"
            "    nn.Hardswish.forward = CustomHardswish.forward\n"
            "    return model",
            "you changed PyTorch itself: every model in this process, and the next exercise, would "
            "get it (it was put back). Change the model that you are given.",
        ),
        Wrong(
            _SWAP + "def swap_layers_(model):\n"
            "    for path, module in list(model.named_modules()):\n"
            "        if type(module) is nn.Hardswish:\n"
            "            model.set_submodule(path, CustomHardswish())\n"
            "    return model",
            "every Hardsigmoid is left; there are two kinds of refused layers.",
        ),
        Wrong(
            _SWAP + "def swap_layers_(model):\n"
            "    NEW[nn.ReLU] = CustomHardswish\n"
            "    for path, module in list(model.named_modules()):\n"
            "        if type(module) in NEW:\n"
            "            model.set_submodule(path, NEW[type(module)]())",
            "the ReLU was replaced too, and no converter had complained about it.",
        ),
        Wrong(
            _SWAP + "def swap_layers_(model):\n"
            "    for path, module in model.named_modules():\n"
            "        if type(module) in NEW:\n"
            "            module = NEW[type(module)]()\n"
            "    return model",
            "nothing was replaced: all three layers are still there.",
        ),
        Wrong(
            "from labutils import surgery\n\n"
            "def swap_layers_(model):\n"
            "    surgery.replace_(model, level='module')\n"
            "    return model",
            "that is the lab's own way, and it works. Here, write the walk yourself, once.",
        ),
        Wrong(
            _SWAP + "def swap_layers_(model):\n"
            "    for path, module in model.named_modules():\n"
            "        if type(module) in NEW:\n"
            "            setattr(model, path, NEW[type(module)]())\n"
            "    return model",
            "setattr takes one name and no path: it made a new child called '0.2', and the layer "
            "at that path is still there. Go to the layer's parent first.",
        ),
        Wrong(
            _SWAP + "def swap_layers_(model):\n"
            "    NEW[nn.Hardsigmoid] = lambda: CustomHardsigmoid(0.167)\n"
            "    for path, module in list(model.named_modules()):\n"
            "        if type(module) in NEW:\n"
            "            model.set_submodule(path, NEW[type(module)]())",
            "the model computes something else now: on the same input, other outputs.",
        ),
    ),
    judge=judge_swap,
    praise="every floor, nothing else, the same outputs, and PyTorch as it was.",
)

EXERCISES = (HARDSIGMOID, ERROR, LAYER, SWAP)
