"""Nothing connects to another machine, and nothing listens to one, unless `fetch` is asked."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

# refuses, and notes, what Python asks for
STARTUP = Path(__file__).parent / "notebooks" / "startup"
# The command line, call by call in one process; what it starts is guarded as well.
PROGRAM = """
import json, sys
from labutils import __main__
from labutils.commands import quantized_training
from labutils.pipeline import journey, steps
journey.CPU_IMAGES, steps.GATE_IMAGES, steps.CALIBRATION_IMAGES = 4, 2, 16
quantized_training._CALIBRATION, quantized_training._HELD_OUT = 16, 4
codes = {words[0]: __main__.main(words) for words in json.loads(sys.argv[1])}
print(json.dumps(codes))
"""
# A network without any other machine, whose kernel counts what tries to leave it or to answer.
ALONE = ["unshare", "--net", "--map-root-user"]
COUNTED = [*ALONE, "sh", "-c", '"$@"; code=$?; cat /proc/net/snmp; exit $code', "sh"]
# of IPv4; not every kernel counts an IPv6 connection that finds no route
FIGURES = ("OutNoRoutes", "ActiveOpens", "PassiveOpens", "OutDatagrams")
HERE = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def alone():
    tried = shutil.which("unshare") and subprocess.run([*ALONE, "true"], capture_output=True)
    return bool(tried) and tried.returncode == 0


def guarded(folder, *command):
    """Run a command alone, if the system lets us; return what it said, its counts, its ears."""
    environment = os.environ | {
        "PYTHONPATH": str(STARTUP),
        "LABUTILS_TEST_IN_KERNEL": "1",
        "LABUTILS_TEST_OUTSIDE": str(folder / "asked.txt"),
    }
    said, ears = folder / "said.txt", set()
    with said.open("w") as file:
        process = subprocess.Popen(
            [*(COUNTED if alone() else []), *command], stdout=file, stderr=file, env=environment
        )
        while process.poll() is None:
            ears |= listening(process.pid)
            time.sleep(0.3)  # reading the tables takes time as well
    text = said.read_text(encoding="utf-8")
    assert process.returncode == 0, text[-3000:]
    return text, counted(text), ears


def counted(text):
    """The kernel's figures, from its tables of names and values; {} where it did not count."""
    found = {}
    lines = [line.split() for line in text.splitlines() if line.strip()]
    for names, values in itertools.pairwise(lines):
        if names[0] == values[0] and names[0] in ("Ip:", "Tcp:", "Udp:"):
            found |= dict(zip(names, values, strict=True))
    return {name: int(found[name]) for name in FIGURES if name in found}


def listening(pid):
    """Where processes of the network that `pid` has for itself listen, but for loopback."""
    try:
        if Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink():
            return set()
        tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    except OSError:
        return set()
    rows = [row.split() for table in tables for row in table.splitlines()[1:]]
    return {row[1] for row in rows if row[3] == "0A" and not row[1].startswith(HERE)}


@pytest.mark.slow
@pytest.mark.htp
def test_the_command_line_keeps_to_itself(tmp_path):
    small = ["mobilenet_v3_small", "--weights", "things16", "--size", "64"]
    few = tmp_path / "few.npz"  # the gate's images in the child process
    np.savez(few, np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32))
    line = f"mobilenet_v3_small --size 64 --inputs {few}"
    (tmp_path / "models.txt").write_text(line, encoding="utf-8")
    made, repaired = str(tmp_path / "m.dlc"), ["--target", "snpe-2.7", "--repair"]
    short = ["--steps", "1", "--size", "32", "--images", "64"]
    calls = [
        ["doctor"],
        ["diagnose", *small, "--html", str(tmp_path / "page.html")],
        ["convert", *small, *repaired, "-o", made],
        ["run", made, "--images", "1"],
        ["quantize", *small, "--images", "32", "--held-out", "8", "-o", str(tmp_path / "q.onnx")],
        ["train", *small[:3], "--recipe", "int8_qat", *short, "-o", str(tmp_path / "t.onnx")],
        ["journey", *small, "--images", "1", "-o", str(tmp_path / "journey")],
        ["batch", str(tmp_path / "models.txt"), *repaired, "-o", str(tmp_path / "batch")],
        ["reset", "03", "--folder", str(tmp_path / "my")],
        ["cache", "list"],
    ]
    text, counts, ears = guarded(tmp_path, sys.executable, "-c", PROGRAM, json.dumps(calls))
    codes = json.loads(next(line for line in text.splitlines() if line.startswith('{"doctor"')))
    assert codes == dict.fromkeys(codes, 0) | {"diagnose": 1}  # 1: it found what blocks
    assert len(codes) == len(calls)
    assert not (tmp_path / "asked.txt").exists()
    assert counts == {} or set(counts.values()) == {0}
    assert not ears


@pytest.mark.skipif(not alone(), reason="this system gives no process a network of its own")
@pytest.mark.parametrize(
    ("words", "figure"),
    [
        ("s.connect_ex(('192.0.2.1', 80))", "OutNoRoutes"),
        ("s.bind(('0.0.0.0', 0)); s.listen(); time.sleep(1)", ""),
    ],
    ids=["connect", "listen"],
)
def test_the_guard_sees_what_python_does_not_tell(words, figure, tmp_path):
    program = f"import socket, time; s = socket.socket(); {words}"
    unguarded = (sys.executable, "-I", "-S", "-c", program)  # no sitecustomize
    _, counts, ears = guarded(tmp_path, *unguarded)
    assert list(counts) == list(FIGURES)
    assert not figure or counts[figure] > 0
    assert bool(ears) == (not figure)


def test_onnx_runtime_is_told_not_to_report(monkeypatch):
    program = "import os, labutils; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "1\n"
