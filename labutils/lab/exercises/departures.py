"""Judging who finds the tensor at which a wrong conversion departs."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..answer import NotYet, call, shown


def _tensors(*names_: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.normal(size=64) for name in names_}


def _turned(tensor: np.ndarray, cosine: float) -> np.ndarray:
    """Return a tensor at exactly this cosine from `tensor`, of its length."""
    other = np.random.default_rng(1).normal(size=tensor.shape)
    other -= tensor * (other @ tensor) / (tensor @ tensor)
    other *= np.linalg.norm(tensor) / np.linalg.norm(other)
    return cosine * tensor + np.sqrt(1 - cosine**2) * other


def judge_departure(answer: Any) -> None:
    """Judge a search on tensors that depart at known places, by angle, length, offset and NaN."""
    ours = _tensors("stem", "expand", "act", "project", "add", "logits")
    equal = {name: tensor.copy() for name, tensor in ours.items()}
    one = {**equal, "expand": _turned(ours["expand"], 0.97), "act": _turned(ours["act"], 0.3)}
    one |= {"project": _turned(ours["project"], 0.03), "logits": _turned(ours["logits"], 0.2)}
    rounded = {**equal, "stem": _turned(ours["stem"], 0.9995)}

    def ask(theirs: dict[str, np.ndarray], limit: float = 0.99, first: Any = ours) -> Any:
        copies = [{k: v.copy() for k, v in d.items()} for d in (first, theirs)]
        with np.errstate(all="ignore"):
            return call(answer, *copies, limit)

    _refuse_other_places(ask(one))
    at_limits = {limit: ask(one, limit) for limit in (0.9, 0.25, 0.1)}
    if set(at_limits.values()) == {"expand"}:
        raise NotYet("your limit is fixed: with another one, another tensor is the first.")
    if at_limits != {0.9: "act", 0.25: "project", 0.1: "project"}:
        raise NotYet(
            "with a limit of 0.9 you name a tensor whose cosine is 0.97, or miss one below. The "
            "limit is a cosine; what do you hold against it?"
        )
    within = ask(rounded)
    if within is not None and within not in list(ours):
        raise NotYet(
            f"where nothing departs you return {shown(within)}, which is the name of no tensor; "
            "None itself is asked for."
        )
    if within is not None:
        raise NotYet("you call a departure what lies within the limit: rounding is allowed.")
    if ask(equal) is not None:
        raise NotYet(f"when all tensors are equal you return {shown(ask(equal))}.")
    _judge_nan(ask, ours, equal)
    if ask({**equal, "add": -ours["add"]}) != "add":
        raise NotYet("a tensor with its sign turned round is called equal by your function.")
    _judge_measure(ask, equal)


def _judge_nan(ask: Any, ours: dict[str, np.ndarray], equal: dict[str, np.ndarray]) -> None:
    one = ours["act"].copy()
    one[7] = np.nan
    for act in (np.full(64, np.nan), one):
        try:
            found = ask({**equal, "act": act, "logits": _turned(ours["logits"], 0.5)})
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


def _judge_measure(ask: Any, equal: dict[str, np.ndarray]) -> None:
    """Refuse measures that are no cosine: they see another size, or miss an offset."""
    for factor in (3, 0.3):
        if ask({name: factor * tensor for name, tensor in equal.items()}) is not None:
            raise NotYet(
                "tensors of the same direction and another length have the cosine 1, and you call "
                "them departed. It is a cosine that the limit is given for."
            )
    if ask({**equal, "act": 3 * _turned(equal["act"], 0.6)}) != "act":
        raise NotYet("a tensor that is turned passes with you as soon as it is longer, too.")
    if ask({**equal, "project": equal["project"] + 3}) != "project":
        raise NotYet(
            "a tensor to which a constant was added has another direction, and passes with you. "
            "What do you subtract before you compare?"
        )
    along = {"act": np.eye(64)[0] * 2.0**20}
    if ask(along, 1.0, along) is not None:
        raise NotYet("a cosine of just the limit still counts as equal.")


def _refuse_other_places(found: Any) -> None:
    if isinstance(found, int | np.integer):
        raise NotYet("that is a position; the name of the tensor tells where to look.")
    if found == "project":
        raise NotYet("that is the tensor that is furthest off. It inherited that: find the cause.")
    if found == "logits":
        raise NotYet("the logits are where a fault is noticed, not where it began.")
    if found is None:
        raise NotYet("you find no departure where four tensors depart.")
    if found == "act":
        raise NotYet("an earlier tensor is below the limit already.")
    if found != "expand":
        raise NotYet(f"{shown(found)} agrees in both, or is no tensor of the two.")
