"""Batches: one row per model whatever happens to it, and nothing is done twice."""

import csv
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import onnx
import psutil
import pytest
from onnx import helper

from labutils.errors import UsageError
from labutils.pipeline import batch


def listed(folder, *lines):
    path = folder / "models.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def unrepairable(path):
    node = helper.make_node("Einsum", ["input"], ["logits"], name="/Einsum", equation="nchw->nc")
    ends = [("input", [1, 3, 32, 32]), ("logits", [1, 3])]
    values = [helper.make_tensor_value_info(name, 1, shape) for name, shape in ends]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


IMAGENET = "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225"


@pytest.mark.slow
@pytest.mark.htp
def test_every_model_ends_in_a_row_and_a_second_run_does_nothing(
    small_onnx, inputs, tmp_path, monkeypatch
):
    shutil.copy(small_onnx(17), tmp_path / "good.onnx")
    np.savez(tmp_path / "few.npz", inputs(4, 64))  # the gate's, which 32 would take longer
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x07 not an ONNX file")
    unrepairable(tmp_path / "odd.onnx")
    names = listed(
        tmp_path,
        "# three files and a typing error",
        f"{tmp_path / 'good.onnx'} {IMAGENET} --inputs {tmp_path / 'few.npz'}  # repaired",
        f"{tmp_path / 'broken.onnx'} {IMAGENET}",
        f"{tmp_path / 'odd.onnx'} {IMAGENET}",
        "mobilenet_v3_small --no-such-option",
    )
    made = batch.run(names, "snpe-2.7", tmp_path / "out", ["--repair"])
    assert [row.outcome for row in made.rows] == ["converted", "failed", "refused", "failed"]
    good, broken, odd, typing = made.rows
    assert (tmp_path / "out" / good.file).stat().st_size == good.bytes
    assert good.repaired == {"hardsigmoid": 9, "hardswish": 19}
    assert good.cosine > 0.999
    assert "does not parse as an ONNX model" in broken.reason
    assert "Einsum" in odd.reason
    assert "--no-such-option" in typing.reason
    with (tmp_path / "out" / "batch.csv").open(newline="", encoding="utf-8") as file:
        assert [row["outcome"] for row in csv.DictReader(file)] == [r.outcome for r in made.rows]
    assert "1 converted, 1 refused, 2 failed" in str(made)

    monkeypatch.setattr(batch, "_convert", None)  # would be a TypeError
    assert batch.run(names, "snpe-2.7", tmp_path / "out", ["--repair"]).rows == made.rows


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A function that makes `convert` another program, and runs a batch of one model with it."""

    def run(program, **settings):
        script = tmp_path / "convert.py"
        script.write_text(program, encoding="utf-8")
        real = batch._run
        swapped = lambda command, *rest: real([sys.executable, str(script)], *rest)  # noqa: E731
        monkeypatch.setattr(batch, "_run", swapped)
        return batch.run(listed(tmp_path, "tv:resnet18"), "qnn", tmp_path / "out", **settings)

    return run


def test_a_crash_is_a_row_and_is_tried_again(fake):
    dying = "import os, sys; print('last words', file=sys.stderr, flush=True); os.abort()"
    (row,) = fake(dying).rows
    assert row.outcome == "crashed"
    assert "last words" in row.reason
    refusing = 'print(\'{"error": "ParityError", "message": "cosine 0.03"}\'); raise SystemExit(1)'
    (row,) = fake(refusing).rows
    assert (row.outcome, row.reason) == ("wrong", "cosine 0.03")
    (row,) = fake(dying).rows  # what was decided is not tried again
    assert row.outcome == "wrong"


def test_a_hang_is_stopped_with_what_it_started(fake, tmp_path):
    hanging = (
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    (row,) = fake(hanging, timeout_s=3).rows
    assert row.outcome == "timed out"
    state = batch.Path("/proc", (tmp_path / "pid").read_text(), "stat")
    deadline = time.monotonic() + 300  # a killed process has still to end
    while running(state) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(state)


def running(state):
    try:
        return state.read_text().split()[2] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked to see to it")
def test_a_killed_batch_takes_its_conversion_along(tmp_path):
    program = (
        "import pathlib, sys; from labutils.pipeline import batch\n"
        "child = 'import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True);'"
        "'time.sleep(600)'\n"
        "batch._run([sys.executable, '-c', child], pathlib.Path(sys.argv[1]), 600)"
    )
    log = tmp_path / "log"
    with subprocess.Popen([sys.executable, "-c", program, str(log)]) as parent:
        deadline = time.monotonic() + 300
        while not (log.exists() and log.read_text().endswith("\n")) and time.monotonic() < deadline:
            time.sleep(0.05)
        parent.kill()
    pid = int(log.read_text())
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(pid)


def test_a_state_file_that_a_kill_cut_short_costs_its_last_line_only(fake, tmp_path):
    refusing = 'print(\'{"error": "ConvertError", "message": "no"}\'); raise SystemExit(1)'
    first = fake(refusing)
    state = tmp_path / "out" / batch.STATE
    state.write_text(state.read_text() + '{"model": "tv:res')
    assert batch._done(tmp_path / "out") == {first.rows[0].key: first.rows[0]}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["# nothing"], "names no model"),
        (['timm:"x'], "line 1"),
        (["tv:resnet18", '""'], "line 2: the model's name is empty"),
        (["tv:resnet18", '" "'], "line 2: the model's name is empty"),
        (["tv:resnet18", "x --mean \0"], "line 2: it holds a NUL"),
        (["tv:resnet18", "--help"], "line 2: it begins with the option --help"),
        (["tv:resnet18 " + "x" * 200_000], "line 1: it has more than 4,096 characters"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, lines, says):
    with pytest.raises(UsageError, match=says):
        batch.run(listed(tmp_path, *lines), "qnn", tmp_path / "out")


def test_a_name_that_no_file_can_have_is_a_row(fake, monkeypatch):
    name = "é" * 300
    monkeypatch.setattr(batch, "_read_list", lambda file: [[name]])
    (row,) = fake('print(\'{"error": "UsageError", "message": "no"}\'); raise SystemExit(2)').rows
    assert (row.model, row.outcome, row.reason) == (name, "failed", "no")


def test_a_log_that_cannot_be_written_is_a_row(fake, tmp_path):
    key = batch._key(["tv:resnet18", "qnn"])
    (tmp_path / "out" / f"tv_resnet18-{key[:6]}.log").mkdir(parents=True)
    (row,) = fake("").rows
    assert row.outcome == "crashed" and "could not be started" in row.reason


def test_a_line_that_only_asks_for_help_has_failed(fake):
    (row,) = fake("print('usage: ...')").rows
    assert row.outcome == "failed" and "exit code 0" in row.reason


ROW = asdict(batch.Row("m", "converted", "", {"r": 1}, 0.9, 1.0, 3, "m.dlc", 1.5, "key"))
DAMAGE = [
    *({"model": m} for m in (3, "", " ", None)), {"outcome": [1]}, {"outcome": "done"},
    *({"repaired": r} for r in ([1], "x", {"r": "x"}, {"r": None})), {"reason": None},
    *({n: v} for n in ("cosine", "agreement", "bytes", "seconds")
      for v in ("x", [1], True, 10**400, float("nan"), float("inf"))),
    {"seconds": None}, {"key": [1]}, {"outcome": "failed"},
    *({"file": f} for f in (3, "", "..", "/tmp/x.dlc", "../../x.dlc", "a/x.dlc")),
]  # fmt: skip


def test_a_damaged_row_of_the_state_is_left_out_and_counted(tmp_path):
    lines = [json.dumps(ROW), *(json.dumps(ROW | {"key": "k"} | change) for change in DAMAGE)]
    (tmp_path / batch.STATE).write_text("\n".join([*lines, "[]", "3", "{"]))
    said = []
    assert batch._done(tmp_path, said.append) == {"key": batch.Row(**ROW)}
    assert len(said) == 1 and f"{len(DAMAGE) + 3} lines of" in said[0]


SPECIAL = {
    "a folder": lambda path: path.mkdir(),
    "a loop": lambda path: path.symlink_to(path.name),
    "a pipe": os.mkfifo if hasattr(os, "mkfifo") else None,
}


@pytest.mark.skipif(os.name != "posix", reason="links and pipes of POSIX")
@pytest.mark.parametrize("kind", SPECIAL)
def test_a_state_or_table_that_is_no_file_is_refused_before_the_work(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(batch, "_convert", None)  # would be a TypeError
    (tmp_path / "out").mkdir()
    names = {batch.STATE, "batch.csv"} if kind == "a folder" else {batch.STATE}
    for name in names:
        SPECIAL[kind](tmp_path / "out" / name)
        with pytest.raises(UsageError, match=name):
            batch.run(listed(tmp_path, "tv:resnet18"), "qnn", tmp_path / "out")
        if kind == "a folder":
            (tmp_path / "out" / name).rmdir()


def test_other_calls_that_cannot_work(tmp_path):
    with pytest.raises(UsageError, match="Cannot read the list"):
        batch.run(tmp_path / "none.txt", "qnn", tmp_path / "out")
    with pytest.raises(UsageError, match="tidl-11"):
        batch.run(listed(tmp_path, "tv:resnet18"), "tidl-11", tmp_path / "out")


def test_a_changed_file_is_another_model(tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"1")
    before = batch._key([str(path)])
    path.write_bytes(b"2")
    assert batch._key([str(path)]) != before


def test_the_table_says_what_failed_and_names_models_without_their_options():
    gate = "Parity gate (htp_fp16): FAILED\n  reference   x\n  failed      SQNR 9 dB is below 21.\n"
    reason = batch._reason("wrong", gate + "  where       First tensor that departs: /a")
    assert reason == "SQNR 9 dB is below 21. First tensor that departs: /a."
    assert batch._reason("failed", "two\n  lines") == "two lines"
    rows = [batch.Row(f"timm:{name} --size 64", "failed", "r") for name in ("a", "b")]
    assert batch._names(rows) == ["timm:a", "timm:b"]
    rows.append(batch.Row("timm:a --size 96", "failed", "r"))
    assert batch._names(rows) == ["timm:a --size 64", "timm:b", "timm:a --size 96"]
