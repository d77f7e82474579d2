"""Exercise of notebook 01: what a convolution costs, by hand."""

from __future__ import annotations

from typing import Any

from ..exercise import Exercise, NotYet, Wrong, call, whole

# height and width of the output, channels in and out, kernel side, groups
_CASES = (
    (64, 64, 3, 16, 3, 1),
    (32, 32, 24, 72, 1, 1),
    (16, 8, 72, 72, 5, 72),
    (14, 14, 96, 48, 3, 4),
)


def _true(height: int, width: int, inputs: int, outputs: int, kernel: int, groups: int) -> int:
    return height * width * outputs * (inputs // groups) * kernel**2


def _judge_macs(answer: Any) -> None:
    for case in _CASES:
        height, width, inputs, outputs, kernel, groups = case
        found, true = whole(call(answer, *case)), _true(*case)
        if found == true:
            continue
        if found == 2 * true:
            raise NotYet(
                "twice too many: that counts multiplications and additions apart. One of each "
                "together is one MAC."
            )
        if found * height * width == true:
            raise NotYet("that is the number of weights. Each is used at every place of the map.")
        if groups > 1 and found == true * groups:
            raise NotYet(
                f"right for groups=1. With {inputs} channels in and groups={groups}, an output "
                f"channel reads {inputs // groups} of them, not all."
            )
        if groups > 1 and found * groups == true:
            raise NotYet("groups count twice in your answer: they thin out one side only.")
        if kernel > 1 and found * kernel == true:
            raise NotYet("a kernel is a square: count both of its sides.")
        if found * outputs == true:
            raise NotYet(f"that is for one output channel, and there are {outputs} of them.")
        told = f"{kernel}x{kernel} from {inputs} to {outputs} channels on a {height}x{width} map"
        raise NotYet(f"{told}: {found:,} is too {'many' if found > true else 'few'}.")


_STUB = "def conv_macs(height, width, inputs, outputs, kernel, groups):\n"
MACS = Exercise(
    id="01.1",
    title="Count the MACs of a convolution",
    verb="count what a convolution costs by hand",
    minutes=5,
    difficulty="easy",
    answer="conv_macs",
    stub=_STUB + "    return TODO",
    reference=_STUB + "    return height * width * outputs * (inputs // groups) * kernel * kernel",
    hints=(
        "First one number of the output: how many products does it add up?",
        "One output number reads a kernel-sized window from each input channel of its group.",
        "Then count the output numbers: one per place of the map and per output channel.",
    ),
    right=(
        _STUB + "    weights = outputs * inputs / groups * kernel**2\n"
        "    return weights * height * width",
        _STUB + "    per_number = kernel ** 2 * inputs // groups\n"
        "    numbers = height * width * outputs\n"
        "    return numbers * per_number",
    ),
    wrong=(
        Wrong(
            _STUB + "    return height * width * outputs * inputs * kernel * kernel",
            "right for groups=1. With 72 channels in and groups=72, an output channel reads 1 of "
            "them, not all.",
        ),
        Wrong(
            _STUB + "    return 2 * height * width * outputs * (inputs // groups) * kernel**2",
            "twice too many: that counts multiplications and additions apart. One of each together "
            "is one MAC.",
        ),
        Wrong(
            _STUB + "    return outputs * (inputs // groups) * kernel**2",
            "that is the number of weights. Each is used at every place of the map.",
        ),
        Wrong(
            _STUB + "    return height * width * outputs * (inputs // groups) * kernel",
            "a kernel is a square: count both of its sides.",
        ),
        Wrong(
            _STUB + "    return height * width * (inputs // groups) * kernel**2",
            "that is for one output channel, and there are 16 of them.",
        ),
        Wrong(
            _STUB
            + "    return height * width * (outputs // groups) * (inputs // groups) * kernel**2",
            "groups count twice in your answer: they thin out one side only.",
        ),
        Wrong(
            _STUB + "    return height + width + outputs + inputs + kernel",
            "3x3 from 3 to 16 channels on a 64x64 map: 150 is too few.",
        ),
    ),
    judge=_judge_macs,
    praise="now you can see why a depthwise convolution is cheap: its groups divide the cost.",
)

EXERCISES = (MACS,)
