"""Exercises of notebook 11: a kernel, the padding of "same", a BatchNorm, a kind of layers."""

from __future__ import annotations

from ..exercise import Exercise
from .frameworks import judge_kernel, judge_norm, judge_padding
from .kinds import judge_kind

_KERNEL = (
    "def to_keras(weights, depthwise):  # (outputs, inputs of a group, height, width); yes or no\n"
)
KERNEL = Exercise(
    id="11.1",
    title="Transpose a kernel",
    verb="bring a kernel of PyTorch into Keras's layout, depthwise or not",
    minutes=6,
    difficulty="easy",
    answer="to_keras",
    stub=_KERNEL
    + "    return TODO  # (height, width, inputs, outputs); depthwise: (..., channels, 1)",
    reference=(
        _KERNEL + "    if depthwise:\n"
        "        return weights.transpose(2, 3, 0, 1)\n"
        "    return weights.transpose(2, 3, 1, 0)"
    ),
    hints=(
        "Both layouts have the same four axes. Write down which axis goes where.",
        "In a depthwise kernel of PyTorch the channels are the outputs, the first axis; its second "
        "axis has one entry.",
        "weights.transpose takes the old numbers of the axes, in their new order.",
    ),
    judge=judge_kernel,
    praise="axes moved, values did not, and a depthwise layer has its own order.",
)

_PADDING = "def same_padding(size, kernel, stride):  # of one axis, in pixels\n"
PADDING = Exercise(
    id="11.2",
    title="Find the padding of same",
    verb="say what padding='same' adds on each side, and where it is not symmetric",
    minutes=8,
    difficulty="medium",
    answer="same_padding",
    stub=_PADDING + "    return TODO  # (zeros before, zeros after)",
    reference=(
        _PADDING + "    outputs = -(-size // stride)  # rounded up\n"
        "    total = max((outputs - 1) * stride + kernel - size, 0)\n"
        "    return total // 2, total - total // 2"
    ),
    hints=(
        "First ask how many windows there are: the size divided by the stride, rounded up.",
        "The last window begins at the stride times (the number of windows minus 1). Where does it "
        "end?",
        "What lies outside the picture is the total. Half of it comes before, the rest after.",
    ),
    judge=judge_padding,
    praise="the total is what the last window needs, and an odd one is not shared evenly.",
)

_NORM = (
    "import numpy as np\n\n\n"
    "def copy_norm(norm, epsilon):  # the layer's arrays by name; the other's epsilon\n"
)
NORM = Exercise(
    id="11.3",
    title="Copy a BatchNorm",
    verb="copy a BatchNorm into a layer with another epsilon",
    minutes=10,
    difficulty="medium",
    answer="copy_norm",
    stub=_NORM + "    return TODO  # gamma, beta, mean, variance",
    reference=(
        _NORM + '    variance = norm["running_var"]\n'
        '    wider = np.sqrt((variance + epsilon) / (variance + norm["eps"]))\n'
        '    return norm["weight"] * wider, norm["bias"], norm["running_mean"], variance'
    ),
    hints=(
        "Both layers divide by the root of variance plus epsilon. With another epsilon they divide "
        "by something else.",
        "By what must gamma be multiplied, so that gamma divided by the new root equals gamma "
        "divided by the old one?",
        "By the new root divided by the old one, channel by channel.",
    ),
    judge=judge_norm,
    praise="the layer divides by something else, and gamma makes up for it.",
)

_KIND = (
    "from torch import nn\n\n"
    "from labutils.representation import Operator\n\n\n"
    "class LeakyReLU(Operator):  # stands for the call leaky_relu(self, negative_slope=0.01)\n"
)
KIND = Exercise(
    id="11.4",
    title="Add an operator to the representation",
    verb="teach a description of networks an operator that it does not know",
    minutes=12,
    difficulty="stretch",
    answer="LeakyReLU",
    stub=(
        _KIND + "    def torch(self):\n"
        "        return TODO  # a module of PyTorch\n\n"
        "    def keras(self, k, x):\n"
        "        return TODO  # the output in Keras, with the functions of k.ops"
    ),
    reference=(
        _KIND + "    negative_slope: float = 0.01\n\n"
        "    def torch(self):\n"
        "        return nn.LeakyReLU(self.negative_slope)\n\n"
        "    def keras(self, k, x):\n"
        "        return k.ops.leaky_relu(x, negative_slope=self.negative_slope)"
    ),
    hints=(
        "Two networks may have two slopes: the layer has to keep its own.",
        "The field is named as the argument of the call, and has the same default.",
        "Give the class a field negative_slope, and use self.negative_slope in both methods.",
    ),
    judge=judge_kind,
    praise="the slope travels from the call into the text, and from there into both frameworks.",
)

EXERCISES = (KERNEL, PADDING, NORM, KIND)
