"""Judging who finds the tensor at which a wrong conversion departs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..answer import NotYet, call, shown

_Tensors = dict[str, np.ndarray]


def _tensors(*names_: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.normal(size=64) for name in names_}


def _turned(tensor: np.ndarray, cosine: float) -> np.ndarray:
    """Return a tensor at exactly this cosine from `tensor`, of its length."""
    other = np.random.default_rng(1).normal(size=tensor.shape)
    other -= tensor * (other @ tensor) / (tensor @ tensor)
    other *= np.linalg.norm(tensor) / np.linalg.norm(other)
    return cosine * tensor + np.sqrt(1 - cosine**2) * other


def _asked(answer: Any, ours: _Tensors, theirs: _Tensors, limit: float) -> Any:
    """Ask the learner's function, with copies."""
    copies = [{name: tensor.copy() for name, tensor in given.items()} for given in (ours, theirs)]
    with np.errstate(all="ignore"):
        return call(answer, *copies, limit)


def judge_departure(departing: Any) -> None:
    """Judge a search on tensors that depart at known places, by angle, length, offset and NaN."""
    ours = _tensors("stem", "expand", "act", "project", "add", "logits")
    turned = {"expand": 0.97, "act": 0.3, "project": 0.03, "logits": 0.2}  # name -> cosine
    theirs = ours | {name: _turned(ours[name], cosine) for name, cosine in turned.items()}

    def ask(theirs: _Tensors, limit: float = 0.99) -> Any:
        return _asked(departing, ours, theirs, limit)

    if ask(theirs) != "expand":
        raise NotYet(_explain_place(ask(theirs)))
    at = {limit: ask(theirs, limit) for limit in (0.9, 0.25, 0.1)}
    if at != {0.9: "act", 0.25: "project", 0.1: "project"}:
        raise NotYet(_explain_limit(at))
    within = ask(ours | {"stem": _turned(ours["stem"], 0.9995)})
    if within is not None:
        raise NotYet(_explain_within(within, ours))
    if ask(ours) is not None:
        raise NotYet(f"when all tensors are equal you return {shown(ask(ours))}.")
    _judge_nan(ask, ours)
    if ask(ours | {"add": -ours["add"]}) != "add":
        raise NotYet("a tensor with its sign reversed is called equal by your function.")
    _judge_measure(ask, ours)
    along = {"act": np.eye(64)[0] * 2.0**20}
    if _asked(departing, along, along, 1.0) is not None:
        raise NotYet("a cosine of just the limit still counts as equal.")


def _judge_nan(ask: Any, ours: _Tensors) -> None:
    one = ours["act"].copy()
    one[7] = np.nan
    for act in (np.full(64, np.nan), one):
        try:
            found = ask(ours | {"act": act, "logits": _turned(ours["logits"], 0.5)})
        except NotYet as error:  # labutils.metrics refuses NaN; its advice is for another case
            raise NotYet(
                "NaN counts as departed, and your function stops there with an error: ask for NaN "
                "before you compare."
            ) from error
        if found != "act":
            full = "full of NaN" if act is not one else "with one NaN in it"
            raise NotYet(
                f"a tensor {full} passes with you: every comparison with NaN is false, so ask "
                "whether it stays within the limit, not whether it leaves it."
            )


def _judge_measure(ask: Any, ours: _Tensors) -> None:
    """Refuse measures other than the cosine: they see another length, or miss an offset."""
    for factor in (3, 0.3):
        if ask({name: factor * tensor for name, tensor in ours.items()}) is not None:
            raise NotYet(
                "tensors of the same direction and another length have the cosine 1, and you call "
                "them departed. It is a cosine that the limit is given for."
            )
    if ask(ours | {"act": 3 * _turned(ours["act"], 0.6)}) != "act":
        raise NotYet("a tensor that is turned passes with you as soon as it is longer, too.")
    if ask(ours | {"project": ours["project"] + 3}) != "project":
        raise NotYet(
            "a tensor to which a constant was added has another direction, and passes with you. "
            "What do you subtract before you compare?"
        )


def _explain_place(found: Any) -> str:
    if isinstance(found, int | np.integer):
        return "that is a position; the name of the tensor tells where to look."
    if found == "project":
        return "that is the tensor that is furthest off. It inherited that: find the cause."
    if found == "logits":
        return "the logits are where a fault is noticed, not where it began."
    if found is None:
        return "you find no departure where four tensors depart."
    if found == "act":
        return "an earlier tensor is below the limit already."
    return f"{shown(found)} agrees in both, or is not a tensor of the two."


def _explain_limit(found: dict[float, Any]) -> str:
    if set(found.values()) == {"expand"}:
        return "your limit is fixed: with another one, another tensor is the first."
    return (
        "with a limit of 0.9 you name a tensor whose cosine is 0.97, or miss one below. The "
        "limit is a cosine; what do you hold against it?"
    )


def _explain_within(found: Any, ours: _Tensors) -> str:
    if found not in list(ours):
        return (
            f"where nothing departs you return {shown(found)}, which is not the name of a tensor; "
            "None itself is expected."
        )
    return "you call a departure what lies within the limit: rounding is allowed."
