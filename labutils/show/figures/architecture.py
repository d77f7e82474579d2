"""Figures of a network's build: all its stages at a glance, and one block from the inside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from ...errors import UnknownNameError, UsageError
from ...measure import anatomy
from ...measure.anatomy import Part, Stage
from ...models import zoo
from ..graphs.picture import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    SKY,
    VERMILION,
    WIDTH,
    Picture,
    blank,
    styled,
)

if TYPE_CHECKING:
    from torch import nn

_MOST_STAGES = 26
_NAMES = {  # a replacement is called like what it replaces
    "Hardswish": "hard-swish",
    "CustomHardswish": "hard-swish",
    "Hardsigmoid": "hard-sigmoid",
    "CustomHardsigmoid": "hard-sigmoid",
    "Sigmoid": "sigmoid",
}
_KINDS = {  # activation: (short name, colour, hatch)
    "hard-swish": ("HS", VERMILION, "///"),
    "ReLU": ("RE", SKY, ""),
    "ReLU6": ("R6", SKY, ".."),
    "": ("–", GREY, ""),
}


@styled
def architecture(model: zoo.Model | nn.Module, size: int | None = None) -> Picture:
    """Draw every stage: its resolution, its channels, and a row of marks as in the paper's table.

    Parameters
    ----------
    model
        A MobileNet with ``features`` and ``classifier``; torchvision's V3 and V2 are.
    size
        Side of the input in pixels; default is the model's own.

    Raises
    ------
    UsageError
        The model is built otherwise, or has too many stages for a page.
    """
    found = anatomy.stages(model, size)
    stages = list(_columns(found.stages))
    if not stages:
        raise UsageError(f"No stage of {found.source} holds weights: nothing to draw.")
    if len(stages) > _MOST_STAGES:
        raise UsageError(f"{len(stages)} stages do not fit a picture (at most {_MOST_STAGES}).")
    swish = [s.name for s in stages if _called(s.activation) == "hard-swish"]
    squeezed = [s for s in stages if s.gated]
    name = model.name if isinstance(model, zoo.Model) else type(model).__name__
    first, side = stages[0], found.input_shape[-1]
    smallest = min((_side(s.entered) for s in stages if _side(s.entered) > 1), default=1)
    picture = blank(
        5.7,
        f"{name} at {side} px: in {len(stages)} stages the side shrinks from "
        f"{first.parts[-1].side} to {smallest} pixels while "
        f"the channels grow from {first.parts[-1].channels} to "
        f"{max(p.channels for s in stages for p in s.parts)}; "
        f"hard-swish sits in {_listed(swish, [s.name for s in stages])}, squeeze-excitation in "
        f"{len(squeezed)} stages.",
    )
    above, middle, below = picture.subplots(3, 1, sharex=True, height_ratios=(1, 1.5, 1.9))
    places = range(len(stages))
    sides = [stage.parts[-1].side for stage in stages]
    above.bar(places, sides, color=[_look(s)[1] for s in stages], edgecolor="white",
              hatch=[_look(s)[2] for s in stages])  # fmt: skip
    _heights(above, sides)
    above.set(ylabel="side, px", title=f"{name}, input {side} × {side} px")
    _channel_bars(middle, stages)
    _marks(below, stages)
    return picture


def _columns(stages: Iterable[Stage]) -> Iterator[Stage]:
    """Yield what gets a column: each stage with weights, but of a head each layer."""
    for stage in stages:
        if stage.name.startswith("features."):
            yield from [stage] if stage.parts else []
            continue
        for part in stage.parts:
            yield replace(stage, name=part.name, kernel=part.kernel, stride=part.stride,
                          gated=False, activation=part.activation, shortcut=False,
                          parts=(part,))  # fmt: skip


def _called(activation: str) -> str:
    return _NAMES.get(activation, activation)


def _side(shape: tuple[int, ...]) -> int:
    return shape[-1] if len(shape) == 3 else 1


def _look(stage: Stage) -> tuple[str, str, str]:
    return _KINDS.get(_called(stage.activation), (stage.activation[:2], ORANGE, "xx"))


def _heights(axes: Axes, heights: Sequence[int]) -> None:
    for place, height in enumerate(heights):
        axes.annotate(f"{height}", (place, height), xytext=(0, 1), textcoords="offset points",
                      ha="center", va="bottom", size=9)  # fmt: skip
    axes.set_ylim(0, 1.18 * max(heights))


def _channel_bars(axes: Axes, stages: Sequence[Stage]) -> None:
    widest = [max(part.channels for part in stage.parts) for stage in stages]
    out = [stage.parts[-1].channels for stage in stages]
    places = range(len(stages))
    axes.bar(
        places,
        widest,
        facecolor="#f2f2f2",
        edgecolor=GREY,
        linestyle="--",
        label="at its widest, inside",
    )
    axes.bar(places, out, width=0.56, color=BLUE, label="leaving the stage")
    axes.set(ylabel="channels", ylim=(0, 1.05 * max(widest)))
    axes.legend(loc="upper left", frameon=False)


def _marks(axes: Axes, stages: Sequence[Stage]) -> None:
    rows = ["widest", "leaving", "kernel", "stride", "squeeze-exc.", "activation", "residual"]
    axes.set(xlim=(-0.6, len(stages) - 0.4), ylim=(len(rows) - 0.4, -0.6))
    axes.set_yticks(range(len(rows)), rows)
    axes.set_xticks(range(len(stages)), [_short(s.name) for s in stages], rotation=90)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for line in range(len(rows) - 1):
        axes.axhline(line + 0.5, color="#d9d9d9", linewidth=0.7)
    for place, stage in enumerate(stages):
        short, color, _ = _look(stage)
        words = (
            str(max(part.channels for part in stage.parts)),
            str(stage.parts[-1].channels),
            f"{stage.kernel}×{stage.kernel}" if stage.kernel else "–",
            str(stage.stride or "–"),
            "SE" if stage.gated else "",
            short,
            "+" if stage.shortcut else "",
        )
        axes.add_patch(Rectangle((place - 0.5, 4.5), 1, 1, facecolor=color, alpha=0.3,
                                 edgecolor="white"))  # fmt: skip
        for row, word in enumerate(words):
            strong = "bold" if row in (4, 6) or word == "HS" else "normal"
            axes.text(place, row, word, ha="center", va="center", size=9, weight=strong)
    used = dict.fromkeys(_called(stage.activation) for stage in stages)
    listed = [f"{_KINDS[k][0]} {k}" for k in used if k and k in _KINDS]
    listed += ["SE squeeze-excitation"] if any(s.gated for s in stages) else []
    listed += ["+ the input is added again"] if any(s.shortcut for s in stages) else []
    axes.set_xlabel(", ".join(listed))


def _short(name: str) -> str:
    kind, _, number = name.partition(".")
    return f"{kind[:5]}.{number}" if kind == "classifier" else f"feat.{number}"


def _listed(names: Sequence[str], order: Sequence[str]) -> str:
    """Return names as text, neighbours as "a to b"."""
    runs: list[list[str]] = []
    for place, name in enumerate(order):
        if name in names:
            if runs and place and runs[-1][-1] == order[place - 1]:
                runs[-1].append(name)
            else:
                runs.append([name])
    listed = [run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs]
    return " and ".join(listed) or "no stage"


_BAR, _BOX, _GAP = 0.24, 1.16, 0.1  # inches
_HEIGHT, _TALL, _MIDDLE, _LINE = 3.5, 1.9, 1.72, 0.165


@styled
def inverted_residual(
    model: zoo.Model | nn.Module, name: str = "", size: int | None = None
) -> Picture:
    """Draw one block from left to right: bars are its tensors, boxes what happens between them.

    Parameters
    ----------
    model
        As for `architecture`.
    name
        The stage, e.g. ``"features.5"``; default is the first block that has every kind of part.
    size
        Side of the input in pixels; default is the model's own.

    Raises
    ------
    UnknownNameError
        No stage has this name.
    UsageError
        The stage has no depthwise convolution: so it is not such a block.
    """
    stage = _block(anatomy.stages(model, size).stages, name)
    if not stage.part("depthwise"):
        raise UsageError(f"{stage.name} has no depthwise convolution; try another stage.")
    picture = blank(_HEIGHT, _described(stage))
    picture.set_layout_engine("none")  # one drawing in inches
    axes = picture.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(0, _HEIGHT))
    axes.set_axis_off()
    count = len(stage.parts)
    length = (count + 1) * _BAR + count * (_BOX + 2 * _GAP) + (0.42 if stage.shortcut else 0)
    x = left = (WIDTH - length) / 2
    most = max(stage.entered[0], *(part.channels for part in stage.parts))
    _tensor(axes, x, stage.entered[0], _side(stage.entered), most)
    for part in stage.parts:
        x += _BAR
        _operation(axes, x + _GAP, part)
        _arrow(axes, (x, _MIDDLE), (x + _GAP, _MIDDLE))
        x += 2 * _GAP + _BOX
        _arrow(axes, (x - _GAP, _MIDDLE), (x, _MIDDLE))
        _tensor(axes, x, part.channels, part.side, most)
    if stage.shortcut:
        _shortcut(axes, left, x + _BAR, _TALL * stage.entered[0] / most)
    title = f"{stage.name}: the bars are tensors, as high as their channels"
    axes.text(WIDTH / 2, _HEIGHT - 0.12, title, ha="center", va="top", size=10.5)
    return picture


def _block(stages: Iterable[Stage], name: str) -> Stage:
    """Return the stage called `name`, or the first that shows the most: parts, sum, hard-swish."""
    found = {stage.name: stage for stage in stages}
    if name and name not in found:
        raise UnknownNameError("stage", name, found)
    if name:
        return found[name]
    return max(
        found.values(),
        key=lambda s: len(s.parts) + s.shortcut + (_called(s.activation) == "hard-swish"),
    )


def _described(stage: Stage) -> str:
    wide, deep, project = (stage.part(role) for role in ("expand", "depthwise", "project"))
    squeeze = stage.part("squeeze-excitation")
    steps = [f"{stage.entered[0]} channels at {_side(stage.entered)} px are"]
    if wide:
        steps.append(f"expanded to {wide.channels},")
    if deep:
        stride = f" with stride {deep.stride}" if deep.stride > 1 else ""
        steps.append(f"filtered {deep.kernel}×{deep.kernel} one by one{stride}")
    if squeeze:
        steps.append(f"and weighted by squeeze-excitation ({squeeze.squeezed} channels inside)")
    if project:
        steps.append(f"and projected to {project.channels} at {project.side} px")
    end = "; the input is added again" if stage.shortcut else "; the input is not added again"
    return f"{stage.name}: {' '.join(steps)}{end}."


def _tensor(axes: Axes, x: float, channels: int, side: int, most: int) -> None:
    height = max(_TALL * channels / most, 0.04)
    axes.add_patch(Rectangle((x, _MIDDLE - height / 2), _BAR, height, facecolor=BLUE,
                             edgecolor=INK, linewidth=0.8))  # fmt: skip
    axes.text(x + _BAR / 2, 0.62, f"{channels}", ha="center", va="top", size=10, weight="bold")
    axes.text(x + _BAR / 2, 0.42, f"{side}×{side}", ha="center", va="top", size=9)


def _operation(axes: Axes, x: float, part: Part) -> None:
    title, lines, color = _words(part)
    height = _LINE * (len(lines) + 1.9)
    axes.add_patch(FancyBboxPatch((x, _MIDDLE - height / 2), _BOX, height, facecolor="white",
                                  edgecolor=color, linewidth=2,
                                  boxstyle="round,pad=0,rounding_size=0.06"))  # fmt: skip
    top = _MIDDLE + height / 2 - 0.45 * _LINE
    for place, line in enumerate([title, *lines]):
        axes.text(x + _BOX / 2, top - place * _LINE * 1.06, line, ha="center", va="top", size=9,
                  weight="normal" if place else "bold")  # fmt: skip


def _words(part: Part) -> tuple[str, list[str], str]:
    """Return the title, the lines and the border of an operation's box."""
    named = _called(part.activation)
    after = [named or "no activation"]
    if part.role == "squeeze-excitation":
        inside = ["mean of each", f"to {part.squeezed}, ReLU", f"back to {part.channels}",
                  named, "× each channel"]  # fmt: skip
        return "squeeze-excite", [line for line in inside if line], GREEN
    stride = [f"stride {part.stride}"] if part.stride > 1 else []
    if part.role == "depthwise":
        kernel = f"{part.kernel}×{part.kernel} per channel"
        return "depthwise", [kernel, *stride, *after], ORANGE
    return part.role, [f"{part.kernel}×{part.kernel} conv", *stride, *after], VERMILION


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=8, color=INK,
                                   shrinkA=0, shrinkB=0, linewidth=1.1))  # fmt: skip


def _shortcut(axes: Axes, left: float, right: float, low: float) -> None:
    """Draw the way of the input around the block, to a sum at its end."""
    x, top, plus = left + _BAR / 2, _MIDDLE + _TALL / 2 + 0.18, right + 0.3
    axes.plot([x, x, plus], [_MIDDLE + low / 2, top, top], color=INK, linewidth=1.1)
    _arrow(axes, (plus, top), (plus, _MIDDLE + 0.12))
    _arrow(axes, (right, _MIDDLE), (plus - 0.12, _MIDDLE))
    angle = np.linspace(0, 2 * np.pi, 60)
    axes.fill(plus + 0.12 * np.cos(angle), _MIDDLE + 0.12 * np.sin(angle), facecolor="white",
              edgecolor=INK)  # fmt: skip
    axes.text(plus, _MIDDLE - 0.005, "+", ha="center", va="center", size=12, weight="bold")
    axes.text((left + right) / 2, top + 0.04, "residual: the input is added again", ha="center",
              va="bottom", size=9)  # fmt: skip
