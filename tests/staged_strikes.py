"""Strikes in each stage of a journey and of a conversion, at a random point of it, from a seed.

The network is a tiny one: a run costs seconds, and goes through every stage all the same.
"""

import itertools
import json
import os
import signal
import time
from collections import Counter
from dataclasses import asdict, dataclass, fields

import faults
from faults import Ground
from forked import GIVEN_UP_S

KILL, TERMINATE, WORKER = "kill", "terminate", "kill a worker"
# What a command says when a stage begins, and when it is over.
HEADS = ("export", "diagnose for snpe-2.7", "replace layers", "quantize", "convert to fp16 DLC")
HEADS += ("convert to int8 DLC", "convert to a16w8 DLC", "context binary for SM8550", "compare")
STAGES = {
    "journey": {
        stage: (f"== {stage}", f"== {after}" if after else "One image")
        for stage, after in zip(HEADS, (*HEADS[1:], None), strict=True)
    },
    "convert": {
        "export": ("input 'input'", "ONNX opset"),
        "repair": ("ONNX opset", "Repaired for"),
        "quantize": ("Repaired for", "Quantized "),
        "load QNN": ("Quantized ", "writing the"),
        "write the DLC": ("writing the", "comparing "),
        "compare": ("comparing ", "recipe:"),
    },
}
# before the first of Qualcomm's workers is there
ALONE = {("journey", stage) for stage in HEADS[:3]}
ALONE |= {("convert", stage) for stage in ("export", "repair", "quantize")}
TRIES = 12  # until a strike lands in its stage


@dataclass(frozen=True)
class Struck:
    """One strike; all is well when `wrong` and `survivors` are empty.

    `left` counts what a killed process left to the next run, under a hidden name.
    """

    command: str
    stage: str
    how: str
    at_s: float
    code: int | None
    left: int
    wrong: str
    survivors: str

    def __str__(self):
        ended = "hung" if self.code is None else f"exit {self.code}"
        found = self.wrong or self.survivors or "nothing lost"
        where = f"{self.command}, {self.stage}"
        return f"{where:<32} {self.how:<14} {self.at_s:5.1f} s in: {ended:<9} {found}"


def ways(command, stage):
    """The ways of striking a stage, in turn, for ever."""
    workers = [] if (command, stage) in ALONE else [WORKER]
    return itertools.cycle([KILL, TERMINATE, *workers])


class Campaign:
    """Strikes in one ground.

    Parameters
    ----------
    each
        Strikes in each stage.
    done
        Those of earlier calls.
    note
        Is told each new one.
    """

    def __init__(self, ground: Ground, each, done=(), note=lambda struck: None):
        self.ground, self.each, self.note = ground, each, note
        self.done = list(done)

    def todo(self, command, stage):
        """The ways of the strikes that this stage still lacks."""
        had = Counter(s.how for s in self.done if (s.command, s.stage) == (command, stage))
        lacking = []
        for how in itertools.islice(ways(command, stage), self.each):
            had[how] -= 1
            if had[how] < 0:
                lacking.append(how)
        return lacking

    def strike_stages(self, command):
        """Strike each stage of a command as often as it lacks; return the stages that need more."""
        lasted = self._measured(command)
        for stage in STAGES[command]:
            for how in self.todo(command, stage):
                for _ in range(TRIES):
                    if struck := self._strike(command, stage, how, lasted[stage]):
                        self.done.append(struck)
                        self.note(struck)
                        break
        return [stage for stage in STAGES[command] if self.todo(command, stage)]

    def _measured(self, command):
        """The seconds that each stage takes in a run that is left alone, the second of two."""
        self._whole(command)
        begun = self._whole(command)
        return {stage: begun[last] - begun[first]
                for stage, (first, last) in STAGES[command].items()}  # fmt: skip

    def left_alone(self, command):
        """Let a run come to its end; return what is wrong then, or lies about."""
        self._whole(command)
        wrong = self.ground.lost() + self.ground.unfinished() + self.ground.survivors()
        whole = faults.everything_is_described(self.ground.artifacts)
        return wrong + ([] if whole else ["an artifact is not described"])

    def _whole(self, command):
        """The moments at which a run that is left alone came to each sign of its stages."""
        run = self.ground.start(command)
        signs = {sign for signs in STAGES[command].values() for sign in signs}
        said = {}
        while run.code is None or signs - set(said):
            said |= {sign: time.monotonic() for sign in signs - set(said) if sign in run.said}
            assert run.code in (None, 0), run.said[-2000:]
            time.sleep(0.002)
        return said

    def _strike(self, command, stage, how, lasted):
        """Strike a run in a stage; return None when it was through before."""
        first, last = STAGES[command][stage]
        known = self.ground.running()
        run = self.ground.start(command)
        victim = run.process.pid

        def ended():
            return run.code is not None

        def passed():
            return ended() or last in run.said

        self._until(lambda: first in run.said or ended())
        at = self._wait(passed, lasted)
        landed = self._hit(victim, how, passed)
        if not landed or how == WORKER:  # one that goes on without a worker is ended
            self._until(passed)
            if not ended():
                run.process.terminate()
        code = run.wait()
        if code is None:
            run.process.kill()
        # the end that was asked for above, by our own handler or, on the way out, by the system's
        told = TERMINATE if code in (128 + signal.SIGTERM, -signal.SIGTERM) else how
        found = self._judged(told, victim, code, run.said, known)
        return Struck(command, stage, how, at, code, *found) if landed else None

    def _wait(self, passed, lasted):
        """Wait for a random point of a stage that lasted so long; return the seconds waited."""
        begun, wanted = time.monotonic(), self.ground.chance.uniform(0, lasted)
        self._until(lambda: passed() or time.monotonic() - begun > wanted)
        return round(time.monotonic() - begun, 2)

    def _hit(self, victim, how, passed):
        """Strike, unless the stage is over; whether it was in time."""
        target = victim
        if how == WORKER:
            target = None
            while target is None and not passed():
                target = self.ground.worker_of(victim)
                time.sleep(0.005)
        if target is None or passed():
            return False
        if how == WORKER:
            target.kill()
        else:
            os.kill(target, signal.SIGKILL if how == KILL else signal.SIGTERM)
        return True

    def _until(self, true):
        deadline = time.monotonic() + GIVEN_UP_S
        while not true() and time.monotonic() < deadline:
            time.sleep(0.005)

    def _judged(self, how, victim, code, said, known):
        """What is left to the next run, what is wrong, who survived."""
        if code is None:
            return 0, "it hung", "; ".join(self.ground.survivors(known))
        wrong, left = self.ground.lost(), self.ground.unfinished(victim)
        if how != KILL:
            wrong += left + ([] if faults.expected(how, code, said) else [f"said: {said[-300:]}"])
        survivors = self.ground.survivors(known)
        return len(left) * (how == KILL), "; ".join(wrong), "; ".join(survivors)


def saved(struck):
    """A strike as a line of text."""
    return json.dumps(asdict(struck))


def loaded(line):
    """The strike that `saved` wrote."""
    entry = json.loads(line)
    return Struck(**{field.name: entry[field.name] for field in fields(Struck)})


def table(done):
    """A line per stage: strikes by way, half files and other losses, leftovers, survivors."""
    rows = [f"{'command':<8} {'stage':<23} kill  terminate  worker  wrong  survivors  to next run"]
    for command, stage in dict.fromkeys((s.command, s.stage) for s in done):
        here = [s for s in done if (s.command, s.stage) == (command, stage)]
        hows = Counter(s.how for s in here)
        worker = "-" if (command, stage) in ALONE else hows[WORKER]
        rows.append(
            f"{command:<8} {stage:<23} {hows[KILL]:>4}  {hows[TERMINATE]:>9}  {worker:>6}  "
            f"{sum(bool(s.wrong) for s in here):>5}  {sum(bool(s.survivors) for s in here):>9}  "
            f"{sum(s.left for s in here):>11}"
        )
    return "\n".join(rows)
