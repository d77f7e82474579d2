"""The figures of the lab: each returns a `Picture` whose `alt` says in one sentence what to see.

Colour is never the only carrier: markers, hatches, line styles and words say the same.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from ... import metrics
from ...errors import UsageError
from ...measure.complexity import Complexity
from ...onnxfile.graph import module_of_name
from ..graphs.long_names import folded
from ..graphs.picture import BLUE, GREEN, INK, ORANGE, VERMILION, Picture, blank, percent, styled
from .anatomy import hard_and_smooth, weight_work_time
from .architecture import architecture, inverted_residual
from .comparison import accuracy_by_size, answers_apart, ladder_chart, layer_sqnr
from .compression import compression_front
from .concurrency import latency_by_requests
from .error import filter_reach, u_curve
from .image import error_by_image, images
from .precision import front, layer_costs
from .pruning import accuracy_by_macs, block_widths, channel_costs, pruning_front
from .quantization import clipping_histogram, quantization_grid, quantized, ranges
from .surgery import cuts, gate_inputs, training_losses
from .target import operator_counts, verdict_bars

if TYPE_CHECKING:
    import torch

__all__ = [
    "Picture",
    "accuracy_by_macs",
    "accuracy_by_size",
    "activation_curves",
    "answers_apart",
    "architecture",
    "block_widths",
    "channel_costs",
    "clipping_histogram",
    "compression_front",
    "cuts",
    "error_by_image",
    "filter_reach",
    "front",
    "gate_inputs",
    "hard_and_smooth",
    "images",
    "inverted_residual",
    "ladder_chart",
    "latency_by_requests",
    "layer_costs",
    "layer_sqnr",
    "operator_counts",
    "pruning_front",
    "quantization_grid",
    "quantized",
    "ranges",
    "stage_costs",
    "top5",
    "training_losses",
    "u_curve",
    "verdict_bars",
    "weight_work_time",
]

_MAX_STAGES = 40


@styled
def activation_curves(slope: float | None = None) -> Picture:
    """Draw hard-sigmoid and hard-swish with their replacements, and the error of a rounded slope.

    Parameters
    ----------
    slope
        Of the approximate hard-sigmoid; default is the vendor's 0.167.
    """
    import torch

    from ... import layers

    slope = layers.VENDOR_SLOPE if slope is None else float(slope)
    kinks = [-3.0, 3.0, -0.5 / slope, 0.5 / slope]
    x = np.unique(np.concatenate([np.linspace(-4.5, 4.5, 901), kinks]))
    functions = torch.nn.functional
    sigmoid, swish = (_curve(f, x) for f in (functions.hardsigmoid, functions.hardswish))
    exact, near = (
        _curve(functools.partial(layers.custom_hardsigmoid, slope=s), x) for s in (1 / 6, slope)
    )
    worst = int(np.abs(near - sigmoid).argmax())
    error, at = abs(near - sigmoid)[worst], abs(x[worst])
    picture = blank(
        5.0,
        "Above, the replacements lie on hard-sigmoid and hard-swish; below, the exact one has no "
        f"error, and the slope {slope:g} is off by at most {error:.2e}, at x = ±{at:.3f}.",
    )
    axes = picture.subplot_mosaic([["sigmoid", "swish"], ["error", "error"]])
    custom = _curve(layers.custom_hardswish, x)
    for name, original, other in (("sigmoid", sigmoid, exact), ("swish", swish, custom)):
        _overlaid(axes[name], x, original, other, f"hard-{name}")
    below = axes["error"]
    below.plot(x, 1e3 * (exact - sigmoid), color=BLUE, label="slope 1/6")
    below.plot(x, 1e3 * (near - sigmoid), "--", color=VERMILION, label=f"slope {slope:g}")
    below.plot([-at, at], [-1e3 * error, 1e3 * error], "o", mfc="none", color=VERMILION)
    below.annotate(
        f"{1e3 * error:.3f}\nat x = {at:.3f}",  # in the unit of the axis
        (at, 1e3 * error),
        xytext=(10, 3),
        textcoords="offset points",
        va="top",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},  # over the grid's lines
    )
    below.set(xlabel="x", ylabel="error × 1000", title="replacement minus hard-sigmoid")
    below.legend(loc="lower right", frameon=False)
    below.grid(True)
    return picture


def _curve(function: Callable[[torch.Tensor], torch.Tensor], x: np.ndarray) -> np.ndarray:
    import torch

    result: torch.Tensor = function(torch.from_numpy(x))
    return result.numpy()


def _overlaid(
    axes: Axes, x: np.ndarray, original: np.ndarray, other: np.ndarray, name: str
) -> None:
    axes.plot(x, original, color=BLUE, linewidth=5, alpha=0.45, label=name)
    axes.plot(x, other, "--", color=INK, linewidth=1.4, label="replacement (exact)")
    axes.set(title=name, xlabel="x")
    axes.legend(loc="upper left", frameon=False)
    axes.grid(True)


@styled
def top5(
    image: np.ndarray, logits: ArrayLike, classes: Sequence[str], truth: str = "", title: str = ""
) -> Picture:
    """Draw an image beside its best five classes.

    Parameters
    ----------
    image
        (size, size, 3) uint8 RGB.
    logits
        (classes,) or (1, classes), of this image.
    classes
        Names, by class number.
    truth
        What is on the image, "" when nobody knows.
    title
        Above the bars, e.g. the name of the stage.
    """
    row = np.atleast_2d(np.asarray(logits))
    if row.shape != (1, len(classes)):
        raise UsageError(f"One image has 1 x {len(classes)} logits, not {np.shape(logits)}.")
    shares = metrics.softmax(row)[0]
    best = metrics.topk(row, min(5, len(classes)))[0]
    first = classes[best[0]]
    known = (
        f"; it is {_a(truth)}" + (", so that is right" if first == truth else "") if truth else ""
    )
    names = [
        "\n".join(textwrap.wrap(classes[k] + (" = truth" if classes[k] == truth else ""), 24))
        for k in best
    ]
    height = 2.7 + 0.12 * "".join(names).count("\n")  # ImageNet has long names
    picture = blank(height, f"The best guess is {first} with {percent(shares[best[0]])}{known}.")
    left, bars = picture.subplots(1, 2, width_ratios=(1, 1.9))
    left.imshow(image, interpolation="nearest")
    left.set_axis_off()
    left.set_title("\n".join(textwrap.wrap(f"truth: {truth}", 22)) if truth else "image")
    bars.barh(
        range(len(best)),
        shares[best],
        color=[GREEN if classes[k] == truth else BLUE for k in best],
        hatch=["//" if classes[k] == truth else "" for k in best],
        edgecolor="white",
    )
    bars.set_yticks(range(len(best)), names)
    bars.invert_yaxis()
    for place, k in enumerate(best):
        bars.annotate(
            percent(shares[k]), (shares[k], place), xytext=(4, 0), textcoords="offset points",
            va="center",
        )  # fmt: skip
    bars.spines["bottom"].set_bounds(0, 1)  # the rest is room for the last figure
    bars.set(xlim=(0, 1.2), title=title, xlabel="probability (softmax)")
    bars.set_xticks(np.linspace(0, 1, 6))
    return picture


@styled
def stage_costs(*networks: Complexity, titles: Sequence[str] = ()) -> Picture:
    """Draw parameters and multiply-accumulates per stage, of one network or of two.

    Parameters
    ----------
    networks
        One or two, from `complexity.count`; a stage is ``features.4``, ``classifier``, ...
    titles
        Their names; default what was counted.
    """
    if not 1 <= len(networks) <= 2 or (titles and len(titles) != len(networks)):
        raise UsageError("Costs per stage are drawn for one or two networks, with a title each.")
    titles = titles or [network.source for network in networks]
    grouped = [_stages(network) for network in networks]
    sentences = [
        f"{title}: of {network.parameters / 1e6:.2f} M parameters the largest share is in "
        f"{_largest(stages, 0, network.parameters)}, of {network.macs / 1e6:.1f} M MACs in "
        f"{_largest(stages, 1, network.macs)}"
        for title, network, stages in zip(titles, networks, grouped, strict=True)
    ]
    titles = [folded(title, 600 / len(networks), 10.5, 2) for title in titles]
    height = 0.93 + 0.2 * max(map(len, grouped))
    height += 0.17 * max(1 + title.count("\n") for title in titles)
    picture = blank(height, "; ".join(sentences) + ".")
    panels = picture.subplots(1, 2 * len(networks), squeeze=False)[0]
    limits = [max(costs[i] for stages in grouped for costs in stages.values()) for i in (0, 1)]
    for number, (title, stages) in enumerate(zip(titles, grouped, strict=True)):
        for kind, (what, unit, color, hatch) in enumerate(
            (("parameters", 1e3, BLUE, ""), ("MACs", 1e6, ORANGE, "///"))
        ):
            axes = panels[2 * number + kind]
            widths = [costs[kind] / unit for costs in stages.values()]
            axes.barh(range(len(stages)), widths, color=color, hatch=hatch, edgecolor="white")
            axes.set_yticks(range(len(stages)), list(stages) if kind == 0 else [])
            axes.invert_yaxis()
            axes.set(xlim=(0, 1.05 * limits[kind] / unit), ylim=(len(stages) - 0.4, -0.6))
            axes.set_xlabel(f"{what} × {('10³', '10⁶')[kind]}")
            axes.grid(True, axis="x")
        panels[2 * number].set_title(title, loc="left")
    return picture


def _stages(network: Complexity) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for row in network.rows:
        path = (module_of_name(row.name) or row.name).split(".")
        stage = ".".join(path[: 2 if path[1:2] and path[1].isdigit() and len(path) > 2 else 1])
        parameters, macs = found.get(stage, (0, 0))
        found[stage] = parameters + row.parameters, macs + row.macs
    if not found or len(found) > _MAX_STAGES:
        raise UsageError(
            f"{network.source} has {len(found)} stages by its names; 1 to {_MAX_STAGES} can be "
            "drawn. Count the PyTorch module instead of the file."
        )
    return found


def _largest(stages: dict[str, tuple[int, int]], kind: int, total: int) -> str:
    name = max(stages, key=lambda stage: stages[stage][kind])
    return f"{name} ({percent(stages[name][kind] / total)})" if total else "none"


def _a(noun: str) -> str:
    return ("an " if noun[:1].lower() in "aeiou" else "a ") + noun
