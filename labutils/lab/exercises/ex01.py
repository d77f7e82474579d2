"""Exercise of notebook 01: what a convolution costs, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..answer import NotYet, call, whole
from ..exercise import Exercise

# height and width of the output, channels in and out, kernel side, groups; maps need not be square
_Case = tuple[int, int, int, int, int, int]
_CASES: tuple[_Case, ...] = (
    (64, 64, 3, 16, 3, 1),
    (32, 24, 24, 72, 1, 1),
    (16, 9, 72, 72, 5, 72),
    (7, 14, 96, 48, 3, 4),
    (5, 1, 40, 120, 7, 8),
    (1, 11, 15, 15, 3, 15),
)


def _true(height: int, width: int, inputs: int, outputs: int, kernel: int, groups: int) -> int:
    return height * width * outputs * (inputs // groups) * kernel**2


_READ = "an output channel reads only its own group's inputs"
_MISTAKES: tuple[tuple[Callable[..., int], str], ...] = (  # as they are made in all cases
    (
        lambda h, w, i, o, k, g: 2 * _true(h, w, i, o, k, g),
        "twice too many: that counts multiplications and additions apart. One of each together is "
        "one MAC.",
    ),
    (
        lambda h, w, i, o, k, g: _true(1, 1, i, o, k, g),
        "that is the number of weights. Each is used at every place of the map.",
    ),
    (
        lambda h, w, i, o, k, g: _true(h, h, i, o, k, g),
        "right where the map is square. Its width is another number than its height.",
    ),
    (
        lambda h, w, i, o, k, g: _true(w, w, i, o, k, g),
        "right where the map is square. Its height is another number than its width.",
    ),
    (
        lambda h, w, i, o, k, g: h * w * (o // g) * (i // g) * k**2,
        "groups count twice in your answer: they thin out one side only.",
    ),
    (
        lambda h, w, i, o, k, g: h * w * o * (i // g) * k,
        "a kernel is a square: count both of its sides.",
    ),
    (
        lambda h, w, i, o, k, g: h * w * o * (i // g) * 2 * k,
        "a square of side k has k times k places, not two times k.",
    ),
    (
        lambda h, w, i, o, k, g: h * w * (i // g) * k**2,
        "that is for one output channel, and there are {outputs} of them.",
    ),
    (
        lambda h, w, i, o, k, g: h * w * o * k**2,
        f"that is for one input channel; {_READ}.",
    ),
    (
        lambda h, w, i, o, k, g: _true(h, w, i, o, k, g) + h * w * o,
        "one too many per number of the output: that counts a bias, which multiplies nothing.",
    ),
)


def judge_macs(conv_macs: Any) -> None:
    """Judge counts for convolutions of several shapes, with and without groups."""
    found = {case: whole(call(conv_macs, *case)) for case in _CASES}
    for case in _CASES:
        height, width, inputs, outputs, kernel, groups = case
        if found[case] != height * width * outputs * (inputs // groups) * kernel**2:
            raise NotYet(_explain_macs(found, case))


def _explain_macs(found: dict[_Case, int], wrong: _Case) -> str:
    height, width, inputs, outputs, kernel, groups = wrong
    for mistake, words in _MISTAKES:
        if all(found[case] == mistake(*case) for case in _CASES):
            return words.replace("{outputs}", str(outputs))
    if groups > 1 and all(found[case] == _true(*case) * case[-1] for case in _CASES):
        return (
            f"right for groups=1. With {inputs} channels in and groups={groups}, an output "
            f"channel reads {inputs // groups} of them, not all."
        )
    told = f"{kernel}x{kernel} from {inputs} to {outputs} channels on a {height}x{width} map"
    many = "many" if found[wrong] > _true(*wrong) else "few"
    split = f" in {groups} groups" if groups > 1 else ""
    return f"{told}{split}: {found[wrong]:,} is too {many}."


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
    judge=judge_macs,
    praise="now you can see why a depthwise convolution is cheap: its groups divide the cost.",
)

EXERCISES = (MACS,)
