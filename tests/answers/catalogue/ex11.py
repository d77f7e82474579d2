"""Catalogued answers to the exercises of notebook 11."""

import numpy as np
from torch import nn

from answers.catalogue import right, right_value, wrong, wrong_value
from labutils.representation import Operator

# --- 11.1 ----------------------------------------------------------------------------------------


@right("11.1")
def to_keras(weights, depthwise):
    return np.transpose(weights, (2, 3, 0, 1) if depthwise else (2, 3, 1, 0))


@right("11.1")
def to_keras(weights, depthwise):
    moved = np.moveaxis(weights, (2, 3), (0, 1))
    return moved if depthwise else moved.swapaxes(2, 3)


@wrong(
    "11.1",
    "a depthwise kernel of shape (6, 1, 3, 3) became (3, 3, 1, 6): one input and 6 outputs. In "
    "Keras each channel of a depthwise layer is an input, with one output.",
)
def to_keras(weights, depthwise):
    return weights.transpose(2, 3, 1, 0)


@wrong(
    "11.1",
    "a kernel of shape (4, 3, 3, 3) became (3, 3, 4, 3): here outputs come before inputs.",
)
def to_keras(weights, depthwise):
    return weights.transpose(2, 3, 0, 1)


@wrong(
    "11.1",
    "a depthwise kernel has another shape, and its numbers stand in the old order: each weight is "
    "now at another place of another channel. Axes are moved, not cut again.",
)
def to_keras(weights, depthwise):
    if depthwise:
        return weights.reshape(*weights.shape[2:], len(weights), 1)
    return weights.transpose(2, 3, 1, 0)


@wrong("11.1", "height and width of a kernel have changed places.")
def to_keras(weights, depthwise):
    return weights.transpose(3, 2, 0, 1) if depthwise else weights.T


# --- 11.2 ----------------------------------------------------------------------------------------


@right("11.2")
def same_padding(size, kernel, stride):
    left_over = size % stride or stride
    total = max(kernel - left_over, 0)
    return total // 2, (total + 1) // 2


@right("11.2")
def same_padding(size, kernel, stride):
    total = 0
    while (size + total - kernel) // stride + 1 < np.ceil(size / stride):
        total += 1
    return [total // 2, total - total // 2]


@wrong(
    "11.2",
    "224 pixels, kernel 3, stride 2: you pad 1 and 1, as PyTorch does. That makes 112 windows; "
    "fewer zeros do as well.",
)
def same_padding(size, kernel, stride):
    return kernel // 2, kernel // 2


@wrong(
    "11.2",
    "224 pixels, kernel 3, stride 2: you pad 1 and 0. The sum is right; the larger part comes "
    "after, at the right and below.",
)
def same_padding(size, kernel, stride):
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total - total // 2, total // 2


@wrong(
    "11.2",
    "224 pixels, kernel 1, stride 2: you pad -1 and 0. Padding is never negative: where windows "
    "leave pixels out, it is zero.",
)
def same_padding(size, kernel, stride):
    total = (-(-size // stride) - 1) * stride + kernel - size
    return total // 2, total - total // 2


@wrong(
    "11.2",
    '7 pixels, kernel 3, stride 2: you pad 0 and 0. That makes 3 windows, and "same" makes 4.',
)
def same_padding(size, kernel, stride):
    total = max((size // stride - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


# --- 11.3 ----------------------------------------------------------------------------------------


@right("11.3")
def copy_norm(norm, epsilon):
    variance = norm["running_var"] + norm["eps"] - epsilon
    return norm["weight"], norm["bias"], norm["running_mean"], variance


@right("11.3")
def copy_norm(norm, epsilon):
    gamma = norm["weight"] / np.sqrt(norm["running_var"] + norm["eps"])
    return [gamma, norm["bias"], norm["running_mean"], np.ones_like(gamma) - epsilon]


@wrong(
    "11.3",
    "epsilon 1e-05 there, 0.001 here: your arrays fit a layer with the old epsilon. This one adds "
    "its own to the variance, which changes channels that vary little.",
)
def copy_norm(norm, epsilon):
    return norm["weight"], norm["bias"], norm["running_mean"], norm["running_var"]


@wrong("11.3", "these four arrays would do in another order: gamma, beta, mean, variance.")
def copy_norm(norm, epsilon):
    variance = norm["running_var"]
    wider = np.sqrt((variance + epsilon) / (variance + norm["eps"]))
    return norm["running_mean"], variance, norm["weight"] * wider, norm["bias"]


@wrong(
    "11.3",
    "epsilon 1e-05 there, 0.001 here: it computes values that are too small, most where the "
    "variance is small.",
)
def copy_norm(norm, epsilon):
    variance = norm["running_var"]
    wider = np.sqrt((variance + norm["eps"]) / (variance + epsilon))
    return norm["weight"] * wider, norm["bias"], norm["running_mean"], variance


@wrong("11.3", "gamma, beta, mean, variance are expected, four arrays; you return 3.")
def copy_norm(norm, epsilon):
    return norm["weight"], norm["bias"], norm["running_mean"]


# --- 11.4 ----------------------------------------------------------------------------------------


@right_value("11.4")
def leaky_relu():
    class LeakyReLU(Operator):
        negative_slope: float

        def torch(self):
            return nn.LeakyReLU(self.negative_slope)

        def keras(self, k, x):
            return k.ops.where(x > 0, x, self.negative_slope * x)

    return LeakyReLU


@right_value("11.4")
def leaky_relu():
    class LeakyReLU(Operator):
        negative_slope: float = 0.01

        def torch(self):
            return nn.LeakyReLU(self.negative_slope)

        def keras(self, k, x):
            return k.layers.LeakyReLU(negative_slope=self.negative_slope, name=k.name)(x)

    return LeakyReLU


@wrong_value(
    "11.4",
    "in PyTorch: the network's slope is 0.3, and below zero your layer has 0.01. It must remember "
    "what the call says.",
)
def leaky_relu():
    class LeakyReLU(Operator):
        def torch(self):
            return nn.LeakyReLU()

        def keras(self, k, x):
            return k.ops.leaky_relu(x, negative_slope=0.01)

    return LeakyReLU


@wrong_value(
    "11.4",
    "in Keras: the network's slope is 0.01, and below zero your layer has 0.2. It must remember "
    "what the call says.",
)
def leaky_relu():
    class LeakyReLU(Operator):
        negative_slope: float = 0.01

        def torch(self):
            return nn.LeakyReLU(self.negative_slope)

        def keras(self, k, x):
            return k.ops.leaky_relu(x)

    return LeakyReLU


@wrong_value(
    "11.4",
    "a field is called slope, and the call has no argument of that name: fields are named as "
    "PyTorch's arguments.",
)
def leaky_relu():
    class LeakyReLU(Operator):
        slope: float = 0.01

        def torch(self):
            return nn.LeakyReLU(self.slope)

        def keras(self, k, x):
            return k.ops.leaky_relu(x, negative_slope=self.slope)

    return LeakyReLU


@wrong_value(
    "11.4",
    "a class that inherits from Operator is expected; LeakyReLU is not.",
)
def leaky_relu():
    return nn.LeakyReLU
