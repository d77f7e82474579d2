"""Judging a schedule: which phase of a training a step belongs to."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..answer import NotYet, call, words

PHASES = ("observe", "freeze ranges", "freeze all")
_RUNS = (100, 8, 12, 5, 7, 9, 4, 3, 2, 1, 2000)
_MOST = 150  # steps of a run that are asked about


def right(step: int, steps: int) -> str:
    """Return the phase of a step: marks at the half and at three quarters, the last one frozen."""
    if 4 * step >= 3 * steps or step == steps - 1:
        return PHASES[2]
    return PHASES[1] if 2 * step >= steps else PHASES[0]


def judge_phases(phase: Any) -> None:
    """Judge the phases of runs of many lengths; then the same in another order."""
    said: dict[tuple[int, int], str] = {}
    for steps in _RUNS:
        for step in range(0, steps, -(-steps // _MOST)):
            said[step, steps] = _ask(phase, step, steps)
        last = steps - 1
        said[last, steps] = _ask(phase, last, steps)
    for (step, steps), word in said.items():
        if word != right(step, steps):
            raise NotYet(_explain_phase(said, step, steps))
    order = np.random.default_rng(9).permutation(len(said))
    for step, steps in (list(said)[at] for at in order):
        if _ask(phase, step, steps) != said[step, steps]:
            raise NotYet(_remembers(step, steps))


def _ask(phase: Any, step: int, steps: int) -> str:
    word = words(call(phase, step, steps), "the name of a phase")
    if word not in PHASES:
        listed = ", ".join(repr(name) for name in PHASES)
        raise NotYet(f"there are three phases, {listed}, and yours says {word[:40]!r}.")
    return word


def _remembers(step: int, steps: int) -> str:
    return (
        f"asked once more about step {step} of {steps}, your function gives a different answer: "
        "it remembers its calls. A run that was killed resumes in the middle, in a new process."
    )


def _explain_phase(said: dict[tuple[int, int], str], step: int, steps: int) -> str:
    run = [said[s, n] for s, n in said if n == steps]
    word, wanted = said[step, steps], right(step, steps)
    where = f"in a run of {steps}, step {step}"
    first = {name: run.index(name) for name in PHASES if name in run}
    if sorted(run, key=PHASES.index) != run:
        if first.get(PHASES[2], steps) < first.get(PHASES[1], -1):
            return "BatchNorm stops before the ranges do: the ranges would follow what has stopped."
        return f"{where} goes back to {word!r}: what is frozen stays so until the end."
    if set(run) == {PHASES[0]} and steps > 1:
        return f"a run of {steps} freezes nothing at all."
    if step == steps - 1:
        return (
            f"{where} is the last, and is not frozen: the file would hold ranges that no step was "
            "trained with. Short runs have a last step, too."
        )
    if 2 * step == steps or 4 * step == 3 * steps:
        return f"{where} is exactly on the mark: a phase begins with it, and not with the next one."
    late = PHASES.index(word) < PHASES.index(wanted)
    return f"{where} comes {'after' if late else 'before'} the mark, and you say {word!r}." + (
        " Compare numbers that are not rounded, and count from 0." if abs(steps - 50) < 48 else ""
    )
