"""Exercise of notebook 00: one line, to try how exercises work."""

from __future__ import annotations

import math
from typing import Any

from ..answer import NotYet, call, number
from ..exercise import Exercise

_CASES = ((3, 4), (0, 7), (95, 96), (32, 32), (1, 3), (1577, 1600))
_CLOSE = 2e-6  # relative: what float32 rounds away is not a mistake


def judge_share(share: Any) -> None:
    """Judge shares of several counts; float32 is exact enough."""
    for right, n in _CASES:
        found = number(call(share, right, n))
        if not math.isclose(found, right / n, rel_tol=_CLOSE):
            raise NotYet(_explain_share(found, right, n))


def _explain_share(found: float, right: int, n: int) -> str:
    given = f"share({right}, {n}) gives {found:.4g}"
    if math.isclose(found, 100 * right / n, rel_tol=_CLOSE):
        return f"{given}: that is per cent. A share lies between 0 and 1."
    if found == right // n:
        return f"{given}: the digits after the point are lost. // rounds down."
    if abs(found - (n - right) / n) <= _CLOSE:
        return f"{given}: that is the share of wrong answers."
    if abs(found - right / n) < 0.006:
        return (
            f"share({right}, {n}) gives {found:.8g}, which is near. Is something rounded, or "
            "counted that should not be? Leave the rounding to the code that prints the number."
        )
    return f"{given}. Of {n} answers {right} are right."


SHARE = Exercise(
    id="00.1",
    title="The share of right answers",
    verb="use check, hints and settle",
    minutes=2,
    difficulty="easy",
    answer="share",
    stub="def share(right, n):\n    return TODO",
    reference="def share(right, n):\n    return right / n",
    hints=(
        "Three right answers of four are a share of 0.75.",
        "A share is a part of the whole: one number divided by another.",
        "The right answers go above the line, all answers below it.",
    ),
    judge=judge_share,
    praise="that is how it works. In this lab a share always comes with its n.",
)

EXERCISES = (SHARE,)
