"""Strike a journey or a conversion at a random point, from a seed, and judge what it leaves.

Linux: processes are found by a mark in their environment, whatever became of their parents.
"""

import getpass
import json
import random
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import forked
import psutil
import tiny_network

from labutils import __main__, paths, surgery
from labutils.onnxfile.file import OnnxFile
from labutils.pipeline import journey, steps
from labutils.runtime.qnn import dlc_file

MODEL = [tiny_network.NAME, "--weights", "random"]
RECIPE = "calibration: {images: 16}\n"
MARK = "LABUTILS_TEST_RUN"
HOWS = ("kill", "kill", "kill", "terminate", "kill a worker")
PATIENCE_S = 120  # for the kernel and a busy machine
OWNER = re.compile(r"\.[0-9a-f]{8}-(\d+)-\w+\.tmp")  # the process in an unfinished file's name
OTHERS = {f"torchinductor_{getpass.getuser()}"}  # PyTorch's, empty


@dataclass(frozen=True)
class Strike:
    """What happened at one point: all is well when `lost` and `survivors` are empty."""

    command: str
    how: str
    at_s: float
    code: int | None
    lost: tuple[str, ...]
    survivors: tuple[str, ...]

    def __str__(self):
        ended = "hung" if self.code is None else f"exit {self.code}"
        found = "; ".join([*self.lost, *self.survivors]) or "nothing lost"
        return f"{self.command:<8} {self.how:<14} after {self.at_s:5.1f} s: {ended:<9} {found}"


class Run:
    """One call of the command line, in a process of its own."""

    def __init__(self, arguments, output, temporary, mark):
        self.output = output
        environment = {"TMPDIR": str(temporary), MARK: mark, "OMP_NUM_THREADS": "1"}
        self.process = forked.start(_command, (arguments,), output, environment)

    @property
    def said(self):
        return self.output.read_text(encoding="utf-8")

    @property
    def code(self):
        """The exit code; None while it runs."""
        with forked.ONE:
            return self.process.exitcode

    def wait(self):
        """Wait for the end, but not for ever; return the exit code."""
        deadline = time.monotonic() + forked.GIVEN_UP_S
        while self.code is None and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.code


def _command(arguments):
    """Call the command line; few images, because its files are tried and not its figures."""
    journey.CPU_IMAGES, steps.CALIBRATION_IMAGES, steps.GATE_IMAGES = 4, 16, 2
    sys.exit(__main__.main(arguments))


class Ground:
    """A folder for artifacts and one for temporary files, and the processes that work in them."""

    def __init__(self, place, seed=0):
        self.artifacts, self.temporary = place / "artifacts", place / "temporary"
        self.said = place / "said"
        for folder in (self.artifacts, self.temporary, self.said):
            folder.mkdir()
        self.recipe = self.said / "quantization.yaml"
        self.recipe.write_text(RECIPE, encoding="utf-8")
        self.runs = 0
        self.chance = random.Random(seed)
        self.mark = str(place)
        self.lasted = {"journey": 10.0, "convert": 5.0}  # seconds; measured by `complete`

    def start(self, command):
        """Start ``journey`` or ``convert``; return the run when it has said its first line."""
        arguments = [command, *MODEL]
        if command == "journey":
            arguments += ["--images", "1", "-o", str(self.artifacts)]
        else:
            arguments += ["--target", "snpe-2.7", "--repair", "--quantize", str(self.recipe)]
            arguments += ["-o", str(self.artifacts / "own.dlc")]
        self.runs += 1
        run = Run(arguments, self.said / f"{self.runs}.txt", self.temporary, self.mark)
        while "\n" not in run.said and run.code is None:
            time.sleep(0.005)
        return run

    def complete(self, *commands):
        """Run commands at the same time to their ends; return what they said."""
        running = [(self.start(command), time.monotonic(), command) for command in commands]
        for run, begun, command in running:
            assert run.wait() == 0, run.said[-2000:]
            self.lasted[command] = time.monotonic() - begun
        return [run.said for run, _, _ in running]

    def strike(self, command, how=None):
        """Strike one run at a random point."""
        how = how or self.chance.choice(HOWS)
        run = self.start(command)
        begun = time.monotonic()
        wanted = self.chance.uniform(0, self.lasted[command])
        while time.monotonic() - begun < wanted and run.code is None:
            time.sleep(0.005)
        victim = run.process
        if how == "kill a worker":
            while run.code is None and not (victim := self.worker_of(run.process.pid)):
                time.sleep(0.005)
        at = time.monotonic() - begun
        if run.code is not None:
            how = "too late"
        elif how == "terminate":
            victim.terminate()
        else:
            victim.kill()
        if run.wait() is None:
            run.process.kill()
            return Strike(command, how, at, None, ("it hung",), tuple(self.survivors()))
        lost = self.lost()
        if how != "kill":  # which leaves what it was at to the next run
            lost += self.unfinished(run.process.pid)
            lost += [] if expected(how, run.code, run.said) else [f"it said: {run.said[-300:]}"]
        return Strike(command, how, at, run.code, tuple(lost), tuple(self.survivors()))

    def worker_of(self, pid):
        """One of the workers that the process `pid` has at the moment; None when it has none."""
        try:
            found = [c for c in psutil.Process(pid).children() if _is_worker(c)]
        except psutil.NoSuchProcess:
            return None
        return self.chance.choice(found) if found else None

    def lost(self):
        """What is wrong among the files that have their names."""
        wrong = []
        for path in sorted(self.artifacts.iterdir()):
            if not path.name.startswith("."):
                try:
                    _judge(path)
                except Exception as error:
                    wrong.append(f"{path.name}: {type(error).__name__}: {error}"[:300])
        return wrong

    def unfinished(self, pid=None):
        """What lies about under a hidden name or a temporary one; with `pid`, of that process.

        A killed process leaves what it was at to the next run, which may itself be struck before
        it has looked: so the leftovers of one process say nothing about another's.
        """
        found = [p for p in self.artifacts.iterdir() if p.name.startswith(".")]
        found += [p for p in self.temporary.iterdir() if p.name not in OTHERS and not _trial(p)]
        mine = [p.name for p in found if pid is None or not (o := OWNER.search(p.name))
                or int(o[1]) == pid]  # fmt: skip
        return [f"left behind: {name}" for name in sorted(mine)]

    def survivors(self, known=()):
        """Processes of this ground, but for `known` ones, that are there after some patience."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := self.running() - set(known)) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [f"still runs: {pid}" for pid in sorted(found)]

    def running(self):
        """The process ids of this ground."""
        return {process.pid for process in self._running()}

    def _running(self):
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != "zombie":
                    yield process
            except (psutil.Error, OSError):
                continue


def _is_worker(process):
    try:
        return "labutils.runtime.qnn.worker" in process.cmdline()
    except psutil.Error:
        return False


def _trial(path):
    """Whether a file is Python's own trial of a temporary folder, made at the first `gettempdir`.

    It writes four bytes and removes it again; a kill in between leaves it, in any Python program.
    """
    return bool(re.fullmatch(r"[a-z0-9_]{8}", path.name)) and path.stat().st_size in (0, 4)


def expected(how, code, said):
    """Whether a struck run ended as it should: with this exit code, having said that."""
    if how == "terminate":
        # by our own handler while there was work, by the system's on the way in and out
        ended = (0, 128 + signal.SIGTERM, -signal.SIGTERM)
        return code in ended and "Traceback" not in said
    died = "Error: " in said and "The QNN worker died (signal SIGKILL)" in said
    return code == 0 or (how == "kill a worker" and code == 1 and died)


def _judge(path):
    """Raise when a file is not whole, or says of another what is not so."""
    if path.name.endswith(".manifest.json"):
        story = json.loads(path.read_text("utf-8"))
        assert paths.sha256(path.with_name(story["file"])) == story["sha256"], "another file's hash"
    elif path.name.endswith(".dlc.json"):
        story, described = json.loads(path.read_text("utf-8")), path.with_suffix("")
        contents = dlc_file.read(described)
        assert (story["file"], story["written"]) == (described.name, contents.written), "another's"
        assert story["bytes"] == described.stat().st_size, "another's size"
    elif path.suffix == ".dlc":
        assert dlc_file.read(path).ops
    elif path.suffix == ".onnx":
        OnnxFile(path).require_valid()
    elif path.name.endswith(".edits.yaml"):
        assert surgery.Edits.read(path).steps, "nothing in it"
        assert path.with_name(path.name.removesuffix(".edits.yaml")).is_file(), "of no file"
    elif path.suffix == ".csv":
        assert len({line.count(",") > 5 for line in path.read_text("utf-8").splitlines()}) == 1
    else:
        assert path.suffix == ".bin" and path.stat().st_size > 1000, "an unknown file"


def everything_is_described(folder: Path):
    """Whether each artifact of a whole run has its manifest, and each DLC its summary."""
    made = [p for p in folder.iterdir() if p.suffix in (".onnx", ".dlc", ".bin")]
    made = [p for p in made if not p.name.endswith(".ctx.onnx")]
    described = all(paths.manifest(p).is_file() for p in made)
    return described and all(
        p.with_name(p.name + ".json").is_file() for p in made if p.suffix == ".dlc"
    )
