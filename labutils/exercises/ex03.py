"""Exercises of notebook 03: layers that a converter can translate, and their way into a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..exercise import Exercise, NotYet, Wrong, array, call, number, shown
from .curves import REFUSED, judge_curve, judge_export, watched

if TYPE_CHECKING:
    from torch import nn


def _judge_hardsigmoid(answer: Any) -> None:
    import torch

    if isinstance(answer, type):
        raise NotYet("a function is asked for here, and this is a class.")
    judge_curve(answer, torch.nn.functional.hardsigmoid, "your function")
    judge_export(answer, "your function")


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
    raise NotYet(f"{found:.1g} is {'too large' if found > true else 'too small'}.")


def _judge_layer(answer: Any) -> None:
    import torch

    if isinstance(answer, torch.nn.Module):
        raise NotYet("this is one layer; give the class, from which each place gets its own.")
    if not isinstance(answer, type) or not issubclass(answer, torch.nn.Module):
        raise NotYet(f"a subclass of nn.Module is asked for, and this is {shown(answer)}.")
    layer = _made(answer)
    if _hidden_weights(layer):
        raise NotYet("your layer has parameters or buffers; the original has none to load.")
    judge_curve(layer, torch.nn.functional.hardswish, "your layer")
    judge_export(layer, "your layer")


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
    return bool(getattr(layer, "_parameters", None) or getattr(layer, "_buffers", None))


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


def _own_code() -> dict[tuple[Any, str], Any]:
    """Return what of PyTorch itself a shortcut would overwrite."""
    import torch
    from torch import nn

    places = [(nn, "Hardswish"), (nn, "Hardsigmoid"), (nn.Hardswish, "forward")]
    places += [(nn.Hardsigmoid, "forward"), (nn.modules.activation, "Hardswish")]
    functional = torch.nn.functional
    places += [(functional, "hardswish"), (functional, "hardsigmoid")]
    return {place: getattr(*place) for place in places}


def _judge_swap(answer: Any) -> None:
    import torch
    from torch import nn

    from ..surgery import modules

    before = _own_code()
    before[modules, "replace_modules_"] = replace_modules = modules.replace_modules_
    taken: list[bool] = []
    model = _network()
    relu, convolution = model[1][1], model[0][0]
    x = torch.linspace(-4, 4, 3 * 64).reshape(1, 3, 8, 8)
    with torch.no_grad():
        true = model(x).double().numpy()
    originals = nn.Hardswish, nn.Hardsigmoid
    modules.replace_modules_ = lambda *given: taken.append(True) or replace_modules(*given)
    before_call = {**before, (modules, "replace_modules_"): modules.replace_modules_}
    try:
        returned = _called(answer, model)
        changed = [place for place, was in before_call.items() if getattr(*place) is not was]
    finally:
        for (owner, name), was in before.items():
            setattr(owner, name, was)
    if changed:
        raise NotYet(
            "you changed PyTorch itself: every model in this process, and the next exercise, would "
            "get it (it was put back). Change the model that you are given."
        )
    if taken:
        raise NotYet(
            "that is the lab's own way, and it works. Here, write the walk yourself, once."
        )
    if isinstance(returned, nn.Module) and returned is not model:
        raise NotYet(
            "you changed a copy: the model that was given is as it was. The name ends in _, so "
            "work in place."
        )
    _judge_swapped(model, originals, relu, convolution, x, true)
    _judge_shared(answer)


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


def _called(function: Any, model: nn.Module) -> Any:
    """Call an in-place function, for which None is a good thing to return."""
    returned: list[Any] = []
    try:
        call(lambda: returned.append(function(model)) or True)
    finally:
        _refuse_dotted(model)
    call(lambda: returned[0] if returned[0] is not None else True)  # TODO inside
    return returned[0]


def _refuse_dotted(model: nn.Module) -> None:
    """Say what ``setattr(model, "0.2", new)`` does: it makes a child whose name has a dot."""
    dotted = [name for name in model._modules if "." in name]
    if dotted:
        raise NotYet(
            f"setattr takes one name and no path: it made a new child called '{dotted[0]}', and "
            "the layer at that path is still there. Go to the layer's parent first."
        )


def _judge_swapped(
    model: nn.Module, originals: tuple, relu: Any, convolution: Any, x: Any, true: np.ndarray
) -> None:
    import torch

    from ..layers import CustomHardsigmoid, CustomHardswish

    found = {name: type(m).__name__ for name, m in model.named_modules() if type(m) in originals}
    left, kinds = list(found), set(found.values())
    if len(left) == 3:
        raise NotYet("nothing was replaced: all three layers are still there.")
    if len(kinds) == 1:
        raise NotYet(f"every {kinds.pop()} is left; there are two kinds of refused layers.")
    if left and all("." in name for name in left):
        raise NotYet(f"only the top floor was replaced; {' and '.join(left)} lie deeper.")
    if left:
        raise NotYet(f"not all were replaced: {', '.join(left)} left.")
    modules = list(model.modules())
    swaps = [type(m).__name__ for m in modules if type(m) in (CustomHardsigmoid, CustomHardswish)]
    if not any(m is relu for m in modules):
        raise NotYet("the ReLU was replaced too, and no converter had complained about it.")
    if not any(m is convolution for m in modules):
        raise NotYet("the convolutions are not the ones with the trained weights any more.")
    with torch.no_grad(), watched() as operators:
        found = array(call(model, x, what="the model"), true.shape, "the model")
    if operators & set(REFUSED):
        raise NotYet("the new layers call the refused functions: the export would be the same.")
    error = float(np.abs(found - true).max())
    if not error <= 1e-5:
        raise NotYet("the model computes something else now: on the same input, other outputs.")
    if len(swaps) < 3:
        raise NotYet("right, but the new layers are to be the two of labutils.layers.")


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
            "0.0004 is too small.",
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
    judge=_judge_swap,
    praise="every floor, nothing else, the same outputs, and PyTorch as it was.",
)

EXERCISES = (HARDSIGMOID, ERROR, LAYER, SWAP)
