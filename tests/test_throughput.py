"""Concurrent requests: formulas and structure; what a machine takes is never asserted."""

import json
import math
import platform
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
import tflite_files
from colour_network import preprocessing, saved
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from labutils.errors import ModelFileError, UsageError
from labutils.measure import throughput
from labutils.measure.throughput import Median, Plan, median
from labutils.rdk import nv12_input
from labutils.show.figures import concurrency

QUICK = Plan((1, 3), rounds=2, frames=4, warm_up=1)


class Counted:
    """Sessions that count, and know how many of them run at once."""

    def __init__(self):
        self.sessions, self.runs, self.now, self.most = 0, 0, 0, 0
        self.lock = threading.Lock()

    def open(self):
        self.sessions += 1
        return self.run

    def run(self):
        with self.lock:
            self.runs, self.now = self.runs + 1, self.now + 1
            self.most = max(self.most, self.now)
        time.sleep(0.002)
        with self.lock:
            self.now -= 1


def test_each_request_has_its_session_and_each_round_its_frames():
    a, b = Counted(), Counted()
    made = throughput.measure({"a": ("r", a.open), "b": ("r", b.open)}, QUICK)
    for counted in (a, b):
        assert counted.sessions == 3  # as many as the most concurrent requests
        assert counted.runs == 3 * 1 + 2 * (1 + 3) * 4  # warm-up, then rounds x requests x frames
        assert 2 <= counted.most <= 3
    assert [(row.model, row.requests) for row in made.rows] == [
        ("a", 1), ("a", 3), ("b", 1), ("b", 3),
    ]  # fmt: skip
    for row in made.rows:
        assert row.latency_ms.n == row.frames_per_second.n == 2 and row.latency_ms.low >= 2.0


def test_models_take_turns():
    order = []
    models = {n: ("r", lambda n=n: lambda: order.append(n)) for n in ("a", "b")}
    throughput.measure(models, Plan((1,), rounds=3, frames=1, warm_up=0))
    assert order == ["a", "b"] * 3


def test_a_request_that_fails_fails_the_measurement():
    def broken():
        raise ModelFileError("no")

    with pytest.raises(ModelFileError, match="no"):
        throughput.measure({"a": ("r", lambda: broken)}, Plan((2,), 1, 1, 0))


@given(st.lists(st.floats(0.1, 1e3), min_size=1, max_size=40))
def test_the_median_lies_in_its_interval(figures):
    found = median(figures)
    assert found.low <= found.value <= found.high and found.n == len(figures)
    assert found.value == pytest.approx(float(np.median(figures)))


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (15, 4), (20, 6)])
def test_the_interval_covers_the_median_in_95_of_100_cases(n, rank):
    found = median(list(range(1, n + 1)))
    assert (found.low, found.high) == (rank, n + 1 - rank)
    outside = 2 * sum(math.comb(n, k) for k in range(rank)) / 2**n
    assert n < 6 or outside <= 0.05
    assert 2 * sum(math.comb(n, k) for k in range(rank + 1)) / 2**n > 0.05


@pytest.mark.parametrize(
    "wrong", [{"threads": ()}, {"threads": (0,)}, {"threads": (65,)}, {"rounds": 0}, {"frames": 0}]
)
def test_a_plan_without_figures_is_refused(wrong):
    with pytest.raises(UsageError):
        Plan(**wrong)


def test_the_frames_are_those_of_a_bare_loop(tmp_path, monkeypatch):
    """The same session, the same feeds and nothing else between two readings of the clock."""
    import onnxruntime

    calls = []
    real = onnxruntime.InferenceSession.run

    def run(self, names, feeds, *rest):
        calls.append((id(self), {name: value.shape for name, value in feeds.items()}))
        return real(self, names, feeds, *rest)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", run)
    _, make = throughput.opener(saved(tmp_path / "f.onnx"))
    throughput.measure({"f": ("ort", make)}, Plan((1, 2), rounds=1, frames=3, warm_up=0))
    assert len(calls) == 9 and len({session for session, _ in calls}) == 2
    assert {str(feeds) for _, feeds in calls} == {"{'data': (1, 3, 32, 32)}"}


@pytest.mark.parametrize(
    "asked, given, found",
    [("1", 0, 1), (" 3,2", 0, 3), ("1", 2, 2), (None, 0, 0), ("", 0, 0), ("x", 0, 0), ("-1", 0, 0)],
)
def test_sessions_take_the_threads_that_the_environment_allows(asked, given, found, monkeypatch):
    from labutils.onnxfile import session

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if asked is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert session.options(threads=given).intra_op_num_threads == found


def test_sessions_have_one_thread(tmp_path):
    from labutils.onnxfile import session

    assert session.options(threads=1).intra_op_num_threads == 1
    _, make = throughput.opener(saved(tmp_path / "f.onnx"))
    (found,) = (c.cell_contents for c in make().__closure__ if hasattr(c.cell_contents, "inputs"))
    assert found._session.get_session_options().intra_op_num_threads == 1


def test_any_input_gets_noise_of_its_type(tmp_path):
    plain = saved(tmp_path / "f.onnx")
    bytes_ = nv12_input.prepend(plain, tmp_path / "n.onnx", preprocessing())
    assert throughput.opener(bytes_)[1]()()[0].shape == (1, 6)
    with pytest.raises(ModelFileError, match="HTP simulator"):
        throughput.opener("x.dlc")


@pytest.mark.parametrize("shape", [[1, "h", "w", 3], ["n", "s", 16], [1, "c", "h", "w"]])
def test_sizes_that_cannot_be_given_are_said_to_be_so(tmp_path, shape):
    ends = [helper.make_tensor_value_info(n, 1, shape) for n in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(made, tmp_path / "m.onnx")
    with pytest.raises(ModelFileError, match="only height and width of a picture in NCHW"):
        throughput.opener(tmp_path / "m.onnx", (32, 32))[1]()


@pytest.mark.litert
def test_a_tflite_is_run_with_one_thread_for_each_request(tmp_path):
    file = tflite_files.network(tmp_path / "small.tflite", tflite_files.small_network())
    words, make = throughput.opener(file)
    made = throughput.measure({"t": (words, make)}, QUICK)
    assert words.startswith("LiteRT ") and len(made.rows) == 2
    assert make() != make()  # a session each
    (tmp_path / "cut.tflite").write_bytes(file.read_bytes()[:99])
    with pytest.raises(ModelFileError):
        throughput.opener(tmp_path / "cut.tflite")


@pytest.mark.parametrize("name", ["f.onnx", "f.tflite"])
def test_a_file_without_a_module_is_not_run_by_torch(lab, tmp_path, name):
    file = saved(tmp_path / name)
    code, _, problem = lab("perf", file, "--backend", "torch")
    assert code == 2 and "without a PyTorch module" in problem


def test_the_processor_is_named():
    """By its model where Linux says one; "x86_64" says nothing."""
    found = throughput._processor()
    said = Path("/proc/cpuinfo")
    if said.is_file() and "model name" in said.read_text():
        assert found in said.read_text() and found != platform.machine()
    assert found


def test_the_command_prints_a_table_json_and_a_figure(lab, tmp_path):
    file, picture = saved(tmp_path / "f.onnx"), tmp_path / "p.png"
    asked = ("perf", file, "--threads", 1, 2, "--rounds", 1, "--frames", 2)
    code, out, err = lab(*asked, "--figure", picture)
    assert code == 0, err
    assert "latency ms [95 %]" in out and "not 95 %" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    code, out, _ = lab(*asked, "--json")
    told = json.loads(out)
    assert [row["requests"] for row in told["rows"]] == [1, 2]
    assert all(row["frames_per_second"]["value"] > 0 for row in told["rows"])
    code, _, err = lab("perf", file, file)
    assert code == 2 and "is given twice" in err
    code, _, err = lab("perf", tmp_path / "gone.onnx")
    assert code == 2 and "There is no file" in err


def test_the_note_on_waiting_stands_where_it_applies():
    row = throughput.Row("m", "r", 8, Median(1, 1, 1, 9), Median(1, 1, 1, 9))
    for cores, waits in ((2, True), (8, False)):
        made = throughput.Throughput((row,), Plan(), "x", cores)
        assert ("wait for each other" in str(made)) == waits
    assert "8 concurrent requests" in concurrency.latency_by_requests(made).alt
