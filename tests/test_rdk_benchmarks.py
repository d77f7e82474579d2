"""The tables of the RDK X5: what int8 costs and where, and what a vendor's columns hold here."""

import dataclasses
import json
import subprocess
import sys

import colour_network
import numpy as np
import pytest
import torch
from torch import nn

from labutils import export, metrics, paths
from labutils.compare import qdq_edit
from labutils.errors import MissingToolError, ModelFileError, UnknownNameError, UsageError
from labutils.images import data, nv12
from labutils.measure import throughput
from labutils.models import architectures, zoo
from labutils.onnxfile.file import OnnxFile
from labutils.pipeline import rdk_emulation
from labutils.quantize.recipe import Calibration, Recipe, Weights
from labutils.rdk import bpu_form

sys.path.insert(0, str(paths.ROOT / "benchmarks"))

import nv12_colours
import performance
import ten_points

PIXELS = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8)


def test_a_smaller_run_needs_a_place_of_its_own(tmp_path):
    for program in (ten_points, performance):
        with pytest.raises(SystemExit):
            program.main(["--images", "4"])


def test_the_ways_of_nv12_are_the_bytes_and_their_wrong_range():
    assert ten_points.through(PIXELS, "pictures") is PIXELS
    right = ten_points.through(PIXELS, "NV12")
    np.testing.assert_array_equal(right, nv12.decode(nv12.encode(PIXELS, "video"), "video"))
    gray = np.full_like(PIXELS, 235)
    wrong = ten_points.through(gray, "NV12 read in the other range")
    assert (ten_points.through(gray, "NV12") == 235).all() and (wrong == 218).all()


def test_a_row_is_accuracy_and_the_paired_difference_to_float():
    rng = np.random.default_rng(1)
    exact, labels = rng.normal(size=(40, 5)), rng.integers(0, 5, 40)
    found = exact + rng.normal(size=exact.shape)
    row = ten_points.judged("x", "pictures", (exact, found), labels, (("a", "b"), 0.25))
    right, ours = (x.argmax(1) == labels for x in (exact, found))
    assert row.top1 == ours.mean() and row.n == 40 and row.int16_nodes == 2
    assert row.difference == pytest.approx(100 * (ours.mean() - right.mean()))
    assert (row.difference_low, row.difference_high) == metrics.paired_difference(
        ours, right
    ).interval
    text = ten_points.table([row])
    assert (
        "25.00" in text
        and "An emulation" in text
        and "says nothing of theirs" in " ".join(text.split())
    )


class Gate(nn.Module):
    """Squeeze-and-excitation."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return x * torch.sigmoid(self.fc(x.mean((2, 3), keepdim=True)))


class Block(nn.Module):
    """A block with every kind of node, named as timm names them."""

    def __init__(self):
        super().__init__()
        self.conv_pw, self.conv_dw = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.act, self.se, self.classifier = nn.Hardswish(), Gate(), nn.Linear(4, 5)

    def forward(self, x):
        x = self.act(self.conv_pw(x))
        y = self.se(self.conv_dw(x)) + x
        return self.classifier(torch.flatten(y.mean((2, 3), keepdim=True), 1))


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """The bench on a small network, its pictures and its ranges."""
    folder = tmp_path_factory.mktemp("bench")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        export.to_onnx(Block().eval(), folder / "float.onnx", opset=11, size=16)
    made = ten_points.Bench.__new__(ten_points.Bench)
    made.split, made.folder = "val", folder
    made.counts = {"images": 8, "calibration": 8, "judged": 8, "node_images": 6}
    made.preprocessing = data.Preprocessing(16)
    made.source = OnnxFile(folder / "float.onnx")
    made.exact = OnnxFile.write(folder / "joined.onnx", bpu_form.joined(made.source)[0])
    made.form, made.method = made.exact, Calibration("mse", 8)
    pictures = data.ImageSet(PIXELS, np.arange(8) % 5, tuple("abcde"), "8 of noise")
    made.pictures = made.calibration = pictures
    return made


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_every_node_is_of_one_kind(bench):
    units = qdq_edit.units(bench.quantized().whole)
    kinds = {unit.name: ten_points.kind_of(unit, bench.form) for unit in units}
    assert kinds["/act/HardSwish" if "/act/HardSwish" in kinds else "/act/Mul"] == "hard-swish"
    assert kinds["/conv_dw/Conv"] == "depthwise convolutions"
    assert kinds["/conv_pw/Conv"] == "other convolutions" and kinds["input"] == "the picture"
    assert kinds["/se/fc/Conv"] == "squeeze-and-excitation" and kinds["/Add"] == "shortcuts"


def test_a_node_alone_and_all_others_are_what_is_measured(bench, cache):
    units = qdq_edit.units(bench.quantized().whole)
    inputs = bench.preprocessing(PIXELS[:6])
    exact = bench.answers(bench.form, PIXELS[:6])
    everything = bench.loss("all", "", units, units, 6)
    whole = bench.answers(bench.quantized(), PIXELS[:6])
    assert everything.alone_db == pytest.approx(metrics.sqnr_db(exact, whole), abs=0.01)
    assert everything.without_db > 80  # nothing is quantized: rounding of float32 only
    one = next(u for u in units if u.name == "/conv_dw/Conv")
    found = bench.loss(one.name, one.op, [one], units, 6)
    assert found.alone_db > everything.alone_db and found.nodes == 1 and found.n == 6
    assert bench.loss(one.name, one.op, [one], units, 6) == found  # kept
    assert len(list((cache / "benchmarks" / "ten_points").glob("loss_*.json"))) == 2
    assert inputs.shape == (6, 3, 16, 16)
    assert "/conv_dw/Conv" in ten_points.losses_table("t", [found])


def test_the_search_stays_within_the_macs_of_the_vendors_nodes(bench, cache, monkeypatch):
    monkeypatch.setattr(ten_points, "VENDORS", ("/conv_dw/Conv", "/classifier/Gemm"))
    monkeypatch.setattr(ten_points.data, "load", lambda *_: bench.pictures)
    with monkeypatch.context() as patch:
        patch.setattr(ten_points, "MOST_LOST", -1000.0)  # nothing is good enough: all are tried
        ours, lost = bench.searched()
    assert bench.share(ours) <= bench.share(ten_points.VENDORS) < 0.8
    rows = [*bench.rows(ours), *bench.own_rows(ours)]
    assert [row.difference for row in rows[:1]] == [0.0] and len(rows) == 11
    by = {(row.stage, row.input): row for row in rows}
    assert by["int8, the sample's four", "pictures"].int16_nodes == 2
    assert "march: bayes-e" in ten_points._yaml(bench, ours)
    said = ten_points.reached(rows, lost)
    assert ("calib, where the nodes were chosen, met" in said) == (lost <= 0.5)
    assert ("table met" in said) == (-by["int8, ours", "pictures"].difference <= 0.5)
    with pytest.raises(UsageError, match="has no node /nosuch"):
        bench.share(("/conv_dw/Conv", "/nosuch"))


def test_without_a_loss_no_node_gets_16_bits(bench, monkeypatch):
    monkeypatch.setattr(bench, "lost", lambda wide: {(): 0.4}[wide], raising=False)
    assert bench.searched() == ((), 0.4)


def test_where_none_loses_little_it_is_said(bench):
    rows = [dataclasses.replace(r, difference=-0.8) for r in bench_rows(bench)]
    said = ten_points.reached(rows, 0.7)
    assert "not met by any set on the search's front (+0.70 lost" in said
    assert "on the images of the table not met (+0.80 lost" in said


def bench_rows(bench):
    logits, wide = np.eye(5), (("a",), 0.1)
    return [ten_points.judged("int8, ours", "pictures", (logits, logits), np.arange(5), wide)]


def test_what_single_causes_leave_unexplained_is_a_figure():
    def loss(name, points):
        return ten_points.Loss(name, "", 1, 20.0, 30.0, f"{points:+.2f} [-9.00, +9.00]", "", 56)

    said = ten_points.explained([loss("a", -0.5), loss("b", 0.25)], loss("all nodes", -1.0))
    assert "added up: -0.25 points; all of them together: -1.00" in said
    assert "unexplained by single causes: -0.75 (on the same 56 images)" in said


def test_the_samples_four_nodes_are_in_timms_export():
    torch.manual_seed(0)
    module = architectures.find("timm:mobilenetv3_large_100").build(16).eval()
    made = export.unchecked(module, torch.rand(1, 3, 64, 64), 11)
    assert len(ten_points.VENDORS) == 4
    assert set(ten_points.VENDORS) <= {node.name for node in made.graph.node}


def test_the_schemes_recipe_is_the_samples(bench):
    recipe = bench.recipe(("/conv_dw/Conv",))
    assert recipe == rdk_emulation.bpu_recipe(recipe.replaced(name="int16x1"))
    assert recipe.calibration.method == "mse" and recipe.activations.symmetric
    with pytest.raises(UsageError):
        rdk_emulation.bpu_recipe(Recipe("x", weights=Weights(4)))


# ---------------------------------------------------------------- who writes NV12 how


def test_the_table_of_writers_is_kept_and_says_what_was_not_made(tmp_path, monkeypatch):
    monkeypatch.setattr(nv12_colours.importlib.util, "find_spec", lambda name: None)
    assert nv12_colours.main(["--images", "2", "-o", str(tmp_path)]) == 0
    text = (tmp_path / "nv12_colours.txt").read_text()
    assert "split val of things16 (drawn), 2 images" in text and text.count("not made") == 2
    with pytest.raises(SystemExit):
        nv12_colours.main(["--images", "2"])


def test_a_writer_is_compared_byte_by_byte(monkeypatch):
    monkeypatch.setattr(nv12_colours.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(nv12_colours, "_by_opencv", nv12.encode)
    monkeypatch.setattr(
        nv12_colours, "_by_pyav", lambda picture: nv12.encode(picture, chroma="mean") ^ 1
    )
    corner, mean = nv12_colours._others(PIXELS)
    assert corner[:5] == ("OpenCV", "100.00 %", "0", "100.00 %", "0")
    assert mean[1:3] == ("0.00 %", "1") and mean[5:] == ("0.00 %", "1")


# ---------------------------------------------------------------- the vendor's columns


def row(name, macs):
    return performance.Row(name, 128, 112, 4_000_000, macs, "80 %", "79 %", "3.00", "9.00",
                           "333.0", "1.00", "500.0")  # fmt: skip


def test_the_vendors_row_stands_last_and_is_not_compared():
    text = performance.table([row("mobilenet_v3_large", 70_000_000)])
    assert text.index("mobilenet_v3_large ") < text.index("D-Robotics, mobilenetv3_large_100")
    assert all(figure in text for figure in ("64.75 %", "2.02", "714.22", "nothing is compared"))
    both = performance.beside([row("tv:mobilenet_v2", 1e8), row("fbnet_a", 1e8)])
    assert "tv:mobilenet_v2 (ours" in both and "fbnet_a" not in both
    assert "MobileNetV2 1.0 (paper" in both and "1905.02244v1" in both


def test_weights_that_did_not_learn_the_set_have_no_accuracy(tmp_path):
    assert performance.top1(_unlearned(), tmp_path / "none.onnx", 8) == "-"


def _unlearned():
    return zoo.Model(
        name="x", weights="random", note="", module=None, preprocessing=data.Preprocessing(16),
        classes=tuple("abcde"), trained=False,
    )  # fmt: skip


def test_a_network_without_weights_of_the_set_says_why_and_a_damaged_checkpoint_fails(
    monkeypatch, capsys
):
    def load(name, weights, size=None):
        if weights == "random":
            return name, size
        raise why

    monkeypatch.setattr(performance.zoo, "load", load)
    why = UsageError("There is no checkpoint of x.")
    assert performance.loaded("x") == ("x", 128) and str(why) in capsys.readouterr().out
    why = MissingToolError("No extra.")
    assert performance.loaded("efficientnet_lite0") == ("efficientnet_lite0", 128)
    for why in (ModelFileError("it was cut short"), UnknownNameError("network", "x", ["y"])):
        with pytest.raises(type(why)):
            performance.loaded("x")


def test_photographs_judge_imagenets_weights_only(tmp_path, monkeypatch):
    files = (tmp_path / "float", tmp_path / "int8")
    assert performance.agreement(_unlearned(), files, 8) == "-"
    logits = {"float": np.eye(4), "int8": np.eye(4)[[0, 1, 2, 2]]}
    monkeypatch.setattr(performance, "answers", lambda model, file, judged: logits[file.name])
    monkeypatch.setattr(performance.crops, "load", lambda split, n, size: (split, n, size))
    trained = dataclasses.replace(_unlearned(), weights="imagenet")
    assert performance.agreement(trained, files, 4).startswith("75.0 %")


def test_the_command_and_the_bare_loop_take_turns(tmp_path, monkeypatch):
    order = []

    def run(command, **_):
        order.append("perf" if "perf" in command else "bare")
        rows = {"rows": [{"latency_ms": {"value": 3.0}}]}
        text = json.dumps(rows) if order[-1] == "perf" else "2.0\n"
        return subprocess.CompletedProcess(command, 0, text, "")

    monkeypatch.setattr(performance.subprocess, "run", run)
    found = performance.to_a_bare_loop(tmp_path / "f", {"rounds": 1, "frames": 1, "turns": 3})
    assert order == ["perf", "bare", "bare", "perf", "perf", "bare"]
    assert found == throughput.Median(1.5, 1.5, 1.5, 3)
    assert "latency 1.500 [1.500, 1.500] of the loop's (3 turns)" in performance.bare_line(
        "x", found
    )
    for low, high, near in ((0.96, 1.04, "yes"), (0.96, 1.06, "no, "), (0.9, 1.0, "no, ")):
        assert f"5 %: {near}" in performance.bare_line("x", throughput.Median(1.0, low, high, 9))


def test_both_print_what_is_read_of_them(tmp_path):
    file = colour_network.saved(tmp_path / "f.onnx")
    found = performance.to_a_bare_loop(file, {"rounds": 1, "frames": 2, "turns": 1})
    assert found.n == 1 and found.value > 0


def test_the_table_is_written_with_its_figure(tmp_path):
    one = throughput.Median(1.0, 1.0, 1.0, 1)
    times = throughput.Throughput(
        (throughput.Row("x", "ORT", 1, one, one),), throughput.Plan((1,)), "a processor", 2
    )
    performance._write([row("x", 9)], times, tmp_path, "python x", {"images": 8}, "a note")
    text = (tmp_path / "performance.txt").read_text()
    assert text.rstrip().endswith("a note") and "int8 agrees, photographs" in text
    assert (tmp_path / "performance.png").read_bytes().startswith(b"\x89PNG")


def test_a_line_of_the_table_takes_its_figures_from_the_measurement(tmp_path, monkeypatch):
    def times(model, requests, ms):
        figure = throughput.Median(ms, ms, ms, 9)
        return throughput.Row(model, "ORT", requests, figure, throughput.Median(1e3 / ms, 1, 2, 9))

    rows = tuple(times(name, n, 2.0 * n) for name in ("x", "x, int8") for n in throughput.THREADS)
    found = throughput.Throughput(rows, throughput.Plan(), "a processor", 2)
    counted = type("Counted", (), {"parameters": 7, "macs": 9})
    monkeypatch.setattr(performance.complexity, "count", lambda model: counted)
    made = performance.row("x", _unlearned(), (tmp_path / "a", tmp_path / "b"), 8, found)
    assert made.latency_ms.startswith("2.00") and made.latency_multi_ms.startswith("8.00")
    assert made.frames_per_second.startswith("125.0") and made.int8_latency_ms.startswith("2.00")
    assert (made.parameters, made.macs, made.size, made.float_top1) == (7, 9, 16, "-")
