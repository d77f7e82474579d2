"""Judging what pruning costs: the MACs that are left, and the group that is best left alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..answer import NotYet, call, number, words

Layer = tuple[str, int, int, int, int]  # kind, inputs, outputs, kernel, places

# --- 10.3: MACs of fewer channels -----------------------------------------------------------------

_NETWORKS: dict[str, tuple[Layer, ...]] = {
    "a block": (
        ("conv", 3, 16, 3, 64), ("conv", 16, 64, 1, 64), ("depthwise", 64, 64, 3, 16),
        ("conv", 64, 24, 1, 16), ("conv", 24, 10, 1, 1),
    ),
    "plain": (("conv", 3, 32, 3, 64), ("conv", 32, 64, 3, 16), ("conv", 64, 10, 1, 1)),
    "depthwise": (
        ("conv", 4, 64, 1, 16), ("depthwise", 64, 64, 5, 16), ("depthwise", 64, 64, 3, 16),
        ("conv", 64, 8, 1, 16),
    ),
    "one layer": (("conv", 3, 8, 3, 16),),
}  # fmt: skip


def count_macs(layers: tuple[Layer, ...], share: float, first: bool, last: bool) -> float:
    """Return the MACs with a share of the channels; `first`, `last`: whether the ends shrink."""
    total = 0.0
    for i, (kind, inputs, outputs, kernel, places) in enumerate(layers):
        ins = inputs * (share if i or first else 1)
        outs = outputs * (share if i < len(layers) - 1 or last else 1)
        total += places * kernel**2 * outs * (1 if kind == "depthwise" else ins)
    return total


def judge_macs(macs_left: Any) -> None:
    """Judge the MACs of networks with and without depthwise layers, at several shares."""
    for name, layers in _NETWORKS.items():
        for share in (1.0, 0.5, 0.75):
            found = number(call(macs_left, list(layers), share), "a number of MACs")
            wanted = count_macs(layers, share, False, False)
            if not np.isclose(found, wanted, rtol=1e-6):
                raise NotYet(_explain_macs(name, layers, share, found))


def _explain_macs(name: str, layers: tuple[Layer, ...], share: float, found: float) -> str:
    whole = count_macs(layers, 1.0, False, False)
    where = f"{name}, {share:g} of the channels: you say {found:,.0f} MACs"
    if share == 1:
        dense = sum(p * k * k * i * o for _, i, o, k, p in layers)
        if np.isclose(found, dense):
            return f"{where}. In a depthwise layer each channel reads itself alone."
        return f"{where}; nothing was pruned, so all {whole:,.0f} are left."
    simple = {
        share * whole: "each layer loses as much as its channels: but it has inputs, too.",
        share**2 * whole: "that is the square for every layer. Which layers lose less?",
        count_macs(layers, share, True, False): "the picture keeps its channels.",
        count_macs(layers, share, False, True): "the classes keep their outputs.",
        count_macs(layers, share, True, True): "the picture and the classes keep their channels.",
    }
    for value, reason in simple.items():
        if np.isclose(found, value, rtol=1e-6):
            return f"{where}: {reason}"
    return f"{where}. Go layer by layer: how many inputs does it read, how many outputs stay?"


# --- 10.2: the group that is best left alone ------------------------------------------------------

_SCANS: tuple[tuple[dict[str, float], dict[str, float]], ...] = (
    ({"a": 10.0, "b": 2.0, "c": 6.0}, {"a": 12.0, "b": 4.0, "c": 2.0}),
    ({"m": 12.0, "n": 3.0, "o": 1.6}, {"m": 8.0, "n": 1.0, "o": 0.9}),
    ({"stem": 3.0, "expand": 8.0, "last": 1.0}, {"stem": 0.5, "expand": 9.0, "last": 12.0}),
    ({"x": -1.0, "y": 0.0, "z": 0.5, "w": 4.0}, {"x": 0.1, "y": 5.0, "z": 1.0, "w": 9.0}),
    ({"p": 30.0, "q": 20.0}, {"p": 40.0, "q": 10.0}),
)


def judge_group(leave_alone: Any) -> None:
    """Judge which group costs most points for each MAC that it saves."""
    for lost, saved in _SCANS:
        found = words(call(leave_alone, dict(lost), dict(saved)), "the name of a group")
        if found not in lost:
            listed = ", ".join(lost)
            raise NotYet(f"{found[:40]!r} is not the name of a group; they are {listed}.")
        price = {name: lost[name] / saved[name] for name in lost}
        wanted = max(price, key=lambda name: price[name])
        if found != wanted:
            raise NotYet(_explain_group(found, lost, saved, price))


def _explain_group(
    found: str, lost: dict[str, float], saved: dict[str, float], price: dict[str, float]
) -> str:
    facts = f"{found} loses {lost[found]:g} points and saves {saved[found]:g} % of the MACs"
    if found == min(price, key=lambda name: price[name]):
        return f"{facts}: that is the cheapest of them. Look for the costliest."
    if found == max(lost, key=lambda name: lost[name]):
        return f"{facts}: it loses most, and it saves a lot. What does each saved percent cost?"
    if found == min(saved, key=lambda name: saved[name]):
        return f"{facts}: it saves least, and what does that cost?"
    return f"{facts}; in another group each saved percent costs more."
