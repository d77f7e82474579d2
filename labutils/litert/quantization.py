"""A float ``.tflite`` to an integer one, by Google's ai-edge-quantizer: its recipes, or ours.

Our ranges are measured on the ``.tflite`` itself, image by image, and handed to the quantizer in
place of its moving average; which rules an operator gets is the caller's (`quantize.litert_rules`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConvertError, ToolError, counted, some
from ..runtime import litert
from ..tools.calling import Tool
from .layout import Layout
from .places import places

OWN = {
    "static": "static_wi8_ai8",
    "int16x8": "static_wi8_ai16",
    "dynamic": "dynamic_wi8_afp32",
    "weight_only": "weight_only_wi8_afp32",
}
"""Our name -> ai-edge-quantizer's own recipe, used as its documentation says."""

Rules = list[dict[str, Any]]


@dataclass(frozen=True)
class Seen:
    """What calibration saw of the tensors that are quantized.

    Attributes
    ----------
    names
        The tensors.
    low, high
        (images, tensors) float32: least and greatest value in each image.
    counts
        (tensors, bins) of their histograms; empty unless asked for.
    """

    names: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Quantization:
    """How a float ``.tflite`` is quantized.

    Attributes
    ----------
    name
        Of the recipe, for reports.
    images
        (n, channels, height, width) float32, normalized; None where nothing is calibrated.
    own
        One of `OWN`'s values: Google's recipe as it is. Empty: `rules` and `ranges` say all.
    rules
        From what is in the float file, the quantizer's rules.
    ranges
        From what calibration saw, tensor -> (low, high).
    histograms
        Whether `ranges` needs counts.
    facts
        For the manifest.
    named
        (node, place) of the nodes that are named: by exceptions, or by the ranges of a QDQ file.
    """

    name: str
    images: np.ndarray | None = None
    own: str = ""
    rules: Callable[[litert.Contents], Rules] | None = None
    ranges: Callable[[Seen], Mapping[str, tuple[float, float]]] | None = None
    histograms: bool = False
    facts: dict[str, Any] = field(default_factory=dict)
    named: tuple[tuple[str, str], ...] = ()


def plain(name: str, images: np.ndarray | None) -> Quantization:
    """Return one of ai-edge-quantizer's own recipes, by our name for it."""
    facts = {"recipe": {"name": name, "ai_edge_quantizer": OWN[name]}, "not_carried": []}
    return Quantization(name, images, OWN[name], facts=facts)


def quantize(
    tool: Tool, source: Path, made: Path, asked: Quantization, layout: Layout
) -> tuple[str, ...]:
    """Write a quantized ``.tflite`` of a float one; return what of it did not get there.

    Raises
    ------
    ConvertError
        ai-edge-quantizer fails; in its own words.
    """
    try:
        if asked.own:
            images = _as_fed(asked.images, layout, _batch(source))
            tool.ask("quantize_plainly", file=source, made=made, recipe=asked.own, images=images)
        else:
            _by_our_ranges(tool, source, made, asked, layout)
    except ToolError as error:
        reason = next(iter(error.reason.splitlines()), error.kind)
        raise ConvertError(
            f"ai-edge-quantizer cannot quantize by {asked.name}: {error.kind}: {reason[:300]}"
        ) from error
    left = []
    if names := _unreached(asked, litert.contents(source)):
        left.append(
            f"what is said of {counted(len(names), 'node')}, to which no operator of the file "
            f"could be traced: {some(names)}"
        )
    if litert.contents(made).precision == "fp32":
        left.append("anything: ai-edge-quantizer quantizes no operator of this network")
    return tuple(left)


def _unreached(asked: Quantization, contents: litert.Contents) -> list[str]:
    """Return the named nodes that left no trace in the names of a float file's tensors."""
    tensors = [contents.tensors[n].name for o in contents.operators for n in o.outputs]
    there = {place for name in tensors for place in places(name)}
    return [node for node, place in asked.named if place not in there]


def _by_our_ranges(
    tool: Tool, source: Path, made: Path, asked: Quantization, layout: Layout
) -> None:
    assert asked.rules is not None and asked.ranges is not None
    rules = asked.rules(litert.contents(source))
    images = _as_fed(asked.images, layout, _batch(source))
    found = tool.ask("measure", file=source, recipe=rules, images=images, bins=asked.histograms)
    names = tuple(found["names"])
    empty = np.zeros((0, 0), np.int64)
    seen = Seen(names, found["low"], found["high"], found.get("counts", empty))
    chosen = asked.ranges(seen)
    ends = np.array([chosen[name] for name in names], np.float32).reshape(-1, 2)
    tool.ask(
        "quantize", file=source, made=made, recipe=rules, names=list(names), example=images[0],
        ranges=ends,
    )  # fmt: skip


def _batch(file: Path) -> int:
    found = litert.contents(file)
    return found.tensors[found.inputs[0]].shape[0]


def halve(tool: Tool, source: Path, made: Path) -> None:
    """Write a ``.tflite`` with float16 weights of a float one.

    Raises
    ------
    ConvertError
        ai-edge-quantizer fails; in its own words.
    """
    try:
        tool.ask("halve", file=source, made=made)
    except ToolError as error:
        raise ConvertError(f"ai-edge-quantizer cannot write float16 weights: {error}") from error


def _as_fed(images: np.ndarray | None, layout: Layout, batch: int) -> np.ndarray:
    """Return images one run after the other, as the file takes them; what is left over goes.

    Fewer than a batch are repeated.
    """
    if images is None:
        return np.zeros((0, 1), np.float32)
    laid = images.transpose(0, 2, 3, 1) if layout == "nhwc" else images
    laid = laid[np.arange(max(len(laid), batch)) % len(laid)]
    whole = laid[: len(laid) // batch * batch]
    return np.ascontiguousarray(whole.reshape(-1, batch, *laid.shape[1:]))
