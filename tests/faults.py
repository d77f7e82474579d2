"""Strike a journey or a conversion at a random point, from a seed, and judge what it leaves.

Linux: processes are found by a mark in their environment, whatever became of their parents.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from labutils import graph, paths
from labutils.qnn import dlc_file

# The command line as it is, with few images: what is tried is its files, not its figures.
QUICK = """
import sys
from labutils import __main__, journey, repair
journey.CPU_IMAGES, repair.GATE_IMAGES, repair.CALIBRATION_IMAGES = 4, 2, 16
sys.exit(__main__.main(sys.argv[1:]))
"""
MODEL = ["mobilenet_v3_small", "--weights", "things16", "--size", "96"]
MARK = "LABUTILS_TEST_RUN"
HOWS = ("kill", "kill", "kill", "terminate", "kill a worker")
PATIENCE_S = 30  # for the kernel and a busy machine
GIVEN_UP_S = 300  # a run that takes longer hangs


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


class Ground:
    """A folder for artifacts and one for temporary files, and the processes that work in them."""

    def __init__(self, place, seed=0):
        self.artifacts, self.temporary = place / "artifacts", place / "temporary"
        self.artifacts.mkdir()
        self.temporary.mkdir()
        self.chance = random.Random(seed)
        self.mark = str(place)
        self.lasted = {"journey": 10.0, "convert": 5.0}  # seconds; measured by `complete`

    def start(self, command):
        """Start ``journey`` or ``convert``; return the process when it has said its first line."""
        arguments = [command, *MODEL]
        if command == "journey":
            arguments += ["--images", "1", "-o", str(self.artifacts)]
        else:
            arguments += ["--target", "snpe-2.7", "--repair", "--quantize", "int8"]
            arguments += ["-o", str(self.artifacts / "own.dlc")]
        environment = os.environ | {"TMPDIR": str(self.temporary), MARK: self.mark}
        process = subprocess.Popen(
            [sys.executable, "-c", QUICK, *arguments],
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        process.said = process.stdout.readline()
        return process

    def complete(self, *commands):
        """Run commands at the same time to their ends; return what they said."""
        running = [(self.start(command), time.monotonic(), command) for command in commands]
        said = []
        for process, begun, command in running:
            rest, _ = process.communicate(timeout=GIVEN_UP_S)
            assert process.returncode == 0, rest[-2000:]
            self.lasted[command] = time.monotonic() - begun
            said.append(process.said + rest)
        return said

    def strike(self, command, how=None):
        """Strike one run at a random point."""
        how = how or self.chance.choice(HOWS)
        process = self.start(command)
        begun = time.monotonic()
        wanted = self.chance.uniform(0, self.lasted[command])
        while time.monotonic() - begun < wanted and process.poll() is None:
            time.sleep(0.005)
        victim = process
        if how == "kill a worker":
            while process.poll() is None and not (victim := self._worker(process)):
                time.sleep(0.005)
        at = time.monotonic() - begun
        if process.poll() is None:
            victim.terminate() if how == "terminate" else victim.kill()
        else:
            how = "it had ended"
        try:
            said, _ = process.communicate(timeout=GIVEN_UP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return Strike(command, how, at, None, ("it hung",), tuple(self.survivors()))
        lost = self.lost()
        if how != "kill":  # it had the time to take its unfinished work away
            lost += self.unfinished()
            lost += (
                ["it said: " + said[-300:]] if not _expected(how, process.returncode, said) else []
            )
        return Strike(command, how, at, process.returncode, tuple(lost), tuple(self.survivors()))

    def _worker(self, process):
        try:
            found = [c for c in psutil.Process(process.pid).children() if _is_worker(c)]
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

    def unfinished(self):
        """What lies about under a hidden name, or a temporary one."""
        hidden = [p for folder in (self.artifacts, self.temporary) for p in folder.glob(".*")]
        return [f"left behind: {path.name}" for path in hidden]

    def survivors(self):
        """Processes of this ground that are still there after some patience."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := list(self._running())) and time.monotonic() < deadline:
            time.sleep(0.05)
        return [f"still runs: {process.pid}" for process in found]

    def _running(self):
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self.mark and process.status() != "zombie":
                    yield process
            except (psutil.Error, OSError):
                continue


def _is_worker(process):
    try:
        return "labutils.qnn.worker" in process.cmdline()
    except psutil.Error:
        return False


def _expected(how, code, said):
    if how == "terminate":
        return code == 128 + signal.SIGTERM and "Traceback" not in said
    return code == 0 or (code == 1 and "WorkerError: The QNN worker died (signal SIGKILL)" in said)


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
        graph.require_valid(path)
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
