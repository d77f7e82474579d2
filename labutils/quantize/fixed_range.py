"""A range that a recipe states, instead of one that calibration found."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import DocInfo, Interval, Predicate

from ..errors import UsageError

FARTHEST = 1e9
_SHORTEST = 1e-4  # as of a tensor that is constant 0
_WORDS = "two numbers, low and high, with zero between them or at an end, as [-4, 4]"


def is_range(ends: Any) -> bool:
    """Return whether this is None, or two finite numbers around zero, which padding needs."""
    if ends is None:
        return True
    if not isinstance(ends, tuple | list) or len(ends) != 2:
        return False
    low, high = ends
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends)
    return numbers and -FARTHEST <= low <= 0 <= high <= FARTHEST and high - low >= _SHORTEST


Magnitude = Annotated[float, Interval(gt=0.0, le=FARTHEST)]
Range = Annotated[tuple[float, float] | None, Predicate(is_range), DocInfo(_WORDS)]


def keep_range_(settings: Any) -> None:
    """Refuse a frozen dataclass with a `range` that is none, and keep a good one as floats.

    Raises
    ------
    UsageError
        The range holds no zero, is empty, or is not two finite numbers.
    """
    if not is_range(settings.range):
        raise UsageError(f"A range is {_WORDS}; found {settings.range!r:.80}.")
    if settings.range is not None:
        object.__setattr__(settings, "range", tuple(float(end) for end in settings.range))


def keep_magnitude_(settings: Any, name: str) -> None:
    """Refuse a dataclass whose magnitude is not a finite number above 0.

    Raises
    ------
    UsageError
        The message names the field.
    """
    value = getattr(settings, name)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (number and 0 < value <= FARTHEST):
        raise UsageError(f"{name} is a magnitude above 0, as 4; found {value!r:.80}.")
