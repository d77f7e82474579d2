"""The tables of the RDK X5: what int8 costs and where, and what a vendor's columns hold here."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from labutils import export, metrics, paths
from labutils.compare import qdq_edit
from labutils.errors import UsageError
from labutils.images import data, nv12
from labutils.measure import throughput
from labutils.models import zoo
from labutils.onnxfile.file import OnnxFile
from labutils.pipeline import rdk_emulation
from labutils.quantize.recipe import Recipe, Weights
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
    made.form = OnnxFile.write(folder / "joined.onnx", bpu_form.joined(made.source)[0])
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
    ours = bench.searched()
    assert bench.share(ours) <= bench.share(ten_points.VENDORS) < 0.8
    rows = list(bench.rows(ours))
    assert [row.difference for row in rows[:1]] == [0.0] and len(rows) == 9
    by = {(row.what, row.input): row for row in rows}
    assert by["int8, the sample's four", "pictures"].int16_nodes == 2
    assert "march: bayes-e" in ten_points._yaml(bench, ours)


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
