"""Catalogued answers to the exercises of notebook 01."""

from answers.catalogue import right, wrong

# --- 01.1 ----------------------------------------------------------------------------------------


@right("01.1")
def conv_macs(height, width, inputs, outputs, kernel, groups):
    weights = outputs * inputs / groups * kernel**2
    return weights * height * width


@right("01.1")
def conv_macs(height, width, inputs, outputs, kernel, groups):
    per_number = kernel**2 * inputs // groups
    numbers = height * width * outputs
    return numbers * per_number


@wrong(
    "01.1",
    "right for groups=1. With 72 channels in and groups=72, an output channel reads 1 of them, "
    "not all.",
)
def conv_macs(height, width, inputs, outputs, kernel, groups):
    return height * width * outputs * inputs * kernel * kernel


@wrong(
    "01.1",
    "twice too many: that counts multiplications and additions apart. One of each together is "
    "one MAC.",
)
def conv_macs(height, width, inputs, outputs, kernel, groups):
    return 2 * height * width * outputs * (inputs // groups) * kernel**2


@wrong(
    "01.1",
    "that is the number of weights. Each is used at every place of the map.",
)
def conv_macs(height, width, inputs, outputs, kernel, groups):
    return outputs * (inputs // groups) * kernel**2


@wrong(
    "01.1",
    "a kernel is a square: count both of its sides.",
)
def conv_macs(height, width, inputs, outputs, kernel, groups):
    return height * width * outputs * (inputs // groups) * kernel


@wrong(
    "01.1",
    "that is for one output channel, and there are 16 of them.",
)
def conv_macs(height, width, inputs, outputs, kernel, groups):
    return height * width * (inputs // groups) * kernel**2


@wrong(
    "01.1",
    "groups count twice in your answer: they thin out one side only.",
)
def conv_macs(height, width, inputs, outputs, kernel, groups):
    return height * width * (outputs // groups) * (inputs // groups) * kernel**2


@wrong(
    "01.1",
    "right where the map is square. Its width is another number than its height.",
)
def conv_macs(height, width, inputs, outputs, kernel, groups):
    return height**2 * outputs * (inputs // groups) * kernel**2


@wrong(
    "01.1",
    "3x3 from 3 to 16 channels on a 64x64 map: 150 is too few.",
)
def conv_macs(height, width, inputs, outputs, kernel, groups):
    return height + width + outputs + inputs + kernel
