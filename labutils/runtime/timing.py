"""Seconds on this machine, so measured that their ratios mean something."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from ..errors import UsageError
from .runners import Runner


def seconds_in_turns(
    runners: Mapping[str, Runner], batch: np.ndarray, turns: int = 30
) -> dict[str, float]:
    """Time several runners on the same batch, one after the other in every turn.

    Whatever else the machine does meanwhile disturbs all of them alike, so their *ratios* mean
    something even where the seconds do not.

    Parameters
    ----------
    runners
        Name -> what is timed. Two sessions on several threads each disturb one another: connect
        with ``threads=1``.
    batch
        What each of them runs.
    turns
        That count; three more go before them.

    Returns
    -------
    dict
        Name -> seconds of one run, the median of the turns.

    Raises
    ------
    UsageError
        There is no runner, or no turn.
    """
    if not runners or turns < 1:
        raise UsageError(f"{len(runners)} runners in {turns} turns: at least one of each is timed.")
    taken: dict[str, list[float]] = {name: [] for name in runners}
    for turn in range(turns + 3):
        for name, runner in runners.items():
            start = time.perf_counter()
            runner.run(batch)
            if turn >= 3:
                taken[name].append(time.perf_counter() - start)
    return {name: float(np.median(times)) for name, times in taken.items()}
