"""Figures: what they say, that it is true, that it can be read, and that nothing leaks."""

import dataclasses
import io
import itertools
import math
import subprocess
import sys

import matplotlib as mpl
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from onnx import TensorProto, helper
from PIL import Image

from labutils import compare, metrics, surgery, targets
from labutils.compare import LayerReport, Stage
from labutils.errors import UnknownNameError, UsageError
from labutils.images import data, things
from labutils.measure import complexity
from labutils.measure.throughput import THREADS, Median, Plan, Row, Throughput
from labutils.models import zoo
from labutils.quantize import Ranges
from labutils.show import figures
from labutils.show.graphs.picture import COLORS, MARKERS, decibels


class FakeRunner:
    """Right on every image but the last `wrong` ones."""

    name = "fake"

    def __init__(self, runtime, wrong=0, file=None):
        self.runtime, self.wrong, self.file = runtime, wrong, file

    def run(self, batch):
        labels = batch[:, 0, 0, 0].round().astype(int)  # the image says its own number
        logits = np.zeros((len(batch), 16), np.float32)
        shift = labels >= 64 - self.wrong
        logits[np.arange(len(batch)), (labels + shift) % 16] = 5
        return logits

    def close(self):
        pass


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    pixels = np.zeros((64, 2, 2, 3), np.uint8)
    pixels[:] = np.arange(64, dtype=np.uint8)[:, None, None, None]
    images = data.ImageSet(pixels, np.arange(64) % 16, things.CLASSES, "numbers")
    folder = tmp_path_factory.mktemp("ladder")
    files = [folder / "large.onnx", folder / "small.dlc"]
    for file, size in zip(files, (8_000_000, 2_000_000), strict=True):
        with file.open("wb") as opened:
            opened.truncate(size)
    stages = [
        Stage("PyTorch", FakeRunner("PyTorch CPU")),
        Stage("ONNX", FakeRunner("ONNX Runtime CPU", 1, files[0])),
        Stage("HTP int8", FakeRunner("HTP simulator (QNN 2.51), SM8550", 20, files[1])),
    ]
    unscaled = data.Preprocessing(2, (0, 0, 0), (1 / 255,) * 3)
    return compare.ladder(stages, images, unscaled)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two real files that differ in one multiplication; what comes before it is equal."""
    folder = tmp_path_factory.mktemp("layers")
    files = []
    for factor in (1.0, 1.02):
        value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 4, 4]) for n in "xy"]
        const = helper.make_tensor("k", TensorProto.FLOAT, [], [factor])
        names = [f"/features/features.{i}/{op}" for i, op in enumerate(("Abs", "Mul", "HardSwish"))]
        nodes = [
            helper.make_node("Abs", ["x"], ["a"], names[0]),
            helper.make_node("Mul", ["a", "k"], ["b"], names[1]),
            helper.make_node("HardSwish", ["b"], ["y"], names[2]),
        ]
        graph = helper.make_graph(nodes, "g", value[:1], value[1:], [const])
        files.append(folder / f"{factor}.onnx")
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        model.ir_version = 8
        onnx.save(model, str(files[-1]))
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)
    return compare.per_layer(*files, x)


@pytest.fixture(scope="module")
def network():
    rows = tuple(
        complexity.Row(f"features.{i}.block.0", "Conv2d", 100 * 2**i, 10**6 * (6 - i))
        for i in range(5)
    )
    rows += (complexity.Row("classifier.0", "Linear", 10_000, 10_000),)
    totals = sum(r.parameters for r in rows), sum(r.macs for r in rows)
    return complexity.Complexity("Net", (1, 3, 8, 8), *totals, rows, None)


LONG = tuple(f"{name} {i}" for i in range(4) for name in (
    "black-and-tan coonhound", "West Highland white terrier", "Staffordshire Bullterrier",
    "vacuum",
))  # fmt: skip


def onnx_file(path, *operators, opset=17):
    """A chain of operators without attributes, named as the TorchScript exporter does."""
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4]) for n in "xy"]
    tensors = ["x", *(f"t{i}" for i in range(len(operators) - 1)), "y"]
    nodes = [
        helper.make_node(op, [tensors[i]], [tensors[i + 1]], f"/features/features.{i}/{op}")
        for i, op in enumerate(operators)
    ]
    graph = helper.make_graph(nodes, "g", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("operators")
    return (
        onnx_file(folder / "before.onnx", "Relu", "HardSwish", "Relu", "HardSwish"),
        onnx_file(folder / "after.onnx", "Relu", "Neg", "Relu", "Neg", "Abs", opset=13),
    )


@pytest.fixture(scope="module")
def checks(files):
    return [targets.check(files[0], t) for t in ("snpe-2.7", "tidl-11", "rdk-x5", "qnn")]


@pytest.fixture(scope="module")
def measured():
    """Ranges of 50 tensors over 100 images; in one image the tensor 7 is ten times as wide."""
    rng = np.random.default_rng(1)
    high = 1 + rng.random((100, 50)).astype(np.float32)
    high[42, 7] = 20
    names = tuple(f"/features/features.{i // 5}/block/Conv_{i}_output_0" for i in range(50))
    return Ranges(names, -0.5 * np.ones_like(high), high)


def throughput_of(*models):
    """Made-up figures of two cores: up to 8 requests share them."""
    rows = [
        Row(
            model, "ONNX Runtime", n, Median(3 * max(1, n / 2), 2.8 * max(1, n / 2), 4.5 * n, 9),
            Median(300 * min(n, 2), 250 * min(n, 2), 310 * min(n, 2), 9),
        )
        for model in models
        for n in THREADS
    ]  # fmt: skip
    return Throughput(tuple(rows), Plan(), "a processor", 2)


@pytest.fixture(scope="module")
def every(ladder, report, network, checks, files, measured, _small):
    """All figures once."""
    sheet = data.load("val", 9, 64)
    guesses = 9 * np.eye(16, dtype=np.float32)[(sheet.labels + (np.arange(9) == 4)) % 16]
    long = data.ImageSet(sheet.images, sheet.labels, LONG, "long names")
    near = 1 - 10 ** np.random.default_rng(0).uniform(-7, -3, 32)
    thousand = tuple(f"{LONG[i % 16]}, number {i}" for i in range(1000))
    image = data.load("val", 4, 64).images[3]
    values = np.random.default_rng(0).normal(size=5000)
    logits = np.arange(16.0)
    return {
        "curves": figures.activation_curves(),
        "top5": figures.top5(image, logits, things.CLASSES, things.CLASSES[15], "PyTorch"),
        "stages": figures.stage_costs(network),
        "two": figures.stage_costs(network, network, titles=("one", "two")),
        "layers": figures.layer_sqnr(report),
        "clipping": figures.clipping_histogram(values, -2, 3, 8, "features.3"),
        "ladder": figures.ladder_chart(ladder),
        "size": figures.accuracy_by_size(ladder),
        "apart": figures.answers_apart(
            sheet.head(7), {"PyTorch": sheet.labels[:7], "int8 CPU": (sheet.labels[:7] + 1) % 16}
        ),
        "apart long": figures.answers_apart(long.head(1), {"int8 CPU": [2]}),
        "architecture": figures.architecture(_small, 64),
        "block": figures.inverted_residual(_small, size=64),
        "narrow": figures.inverted_residual(_small, "features.1", 64),
        "verdicts": figures.verdict_bars(checks),
        "verdict": figures.verdict_bars(checks[0]),
        "operators": figures.operator_counts(*files),
        "images": figures.images(sheet),
        "guesses": figures.images(long, guesses),
        "image": figures.images(sheet.head(1)),
        "gate": figures.error_by_image(near, 0.9999, title="HTP fp16"),
        "gate one": figures.error_by_image([1.0], 0.9999),
        "gate negative": figures.error_by_image([-0.4, 0.2, 0.97], 0.95, "mean"),
        "grid": figures.quantization_grid([-1, -0.3, 0, 0.004, 1.7, 3, 3.6], 4 / 255, 64),
        "grid small": figures.quantization_grid([2.0], 1e-3, 0, 4),
        "ranges": figures.ranges(measured),
        "ranges all": figures.ranges(measured, 0),
        "gates in": figures.gate_inputs({"features.1.block.1.gate": values, "f.2": 90 * values}),
        "losses": figures.training_losses(
            {"lite": np.geomspace(2, 0.3, 60), "gates as ReLU": np.linspace(3.2, 2.9, 60)}, 2.77
        ),
        "cuts": figures.cuts(ladder, 16),
        "requests": figures.latency_by_requests(throughput_of("mobilenet_v2", "mobilenet_v3")),
        "u curve": figures.u_curve(
            ENDS, 1 / ENDS**4, 1e-5 * ENDS**2, MARKS, "features.0.0, 8 bits"
        ),
        "filters": figures.filter_reach(
            {"features.1.block.0.0": FILTERS[:16], "features.10.block.1.0": FILTERS}, 4
        ),
        "filters one": figures.filter_reach({"features.4": FILTERS[:3]}),
        "top5 of 1000": figures.top5(image, np.arange(1000.0), thousand, thousand[998], "fp32"),
    }


ENDS = np.geomspace(1.4, 46, 20)
MARKS = {"minmax": 46.2, "percentile": 24.6, "entropy": 23.8, "mse": 28.7}
FILTERS = np.geomspace(6, 0.2, 576)[:, None] * np.random.default_rng(3).uniform(-1, 1, (576, 9))

NAMES = [
    "curves", "top5", "stages", "two", "layers", "clipping", "ladder", "size", "apart",
    "apart long", "architecture",
    "block", "narrow", "verdicts", "verdict", "operators", "images", "guesses", "image", "gate",
    "gate one", "gate negative", "grid", "grid small", "ranges", "ranges all", "top5 of 1000",
    "gates in", "losses", "cuts", "requests", "u curve", "filters", "filters one",
]  # fmt: skip


def drawn(picture):
    """(text, its box) of every word that is really drawn: ticks beyond the limits are not."""
    found = []
    canvas = FigureCanvasAgg(picture)
    draw = mpl.text.Text.draw

    def noted(self, renderer):
        if self.get_visible() and self.get_text().strip():
            found.append(self)
        draw(self, renderer)

    mpl.text.Text.draw = noted
    try:
        canvas.draw()
    finally:
        mpl.text.Text.draw = draw
    renderer = canvas.get_renderer()
    return [(t, t.get_window_extent(renderer)) for t in found], renderer


@pytest.fixture(scope="module")
def seen(every):
    return {name: drawn(picture) for name, picture in every.items()}


def said(picture):
    return " ".join(t.get_text() for t, _ in drawn(picture)[0])


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_is_fit_to_be_read(every, seen, name):
    picture = every[name]
    assert 20 < len(picture.alt) < 500 and picture.alt.endswith(".")
    data = picture.png()
    image = Image.open(io.BytesIO(data))
    assert image.width == 760  # a notebook's text
    assert len(data) < 200_000
    texts, renderer = seen[name]
    width, height = renderer.get_canvas_width_height()
    assert texts
    for text, box in texts:
        assert text.get_size() >= 9, text
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1, text


@pytest.mark.parametrize("name", NAMES)
def test_no_two_words_overlap(seen, name):
    texts, _ = seen[name]
    for (a, one), (b, two) in itertools.combinations(texts, 2):
        if 90 in (a.get_rotation(), b.get_rotation()) and a.get_rotation() != b.get_rotation():
            continue  # boxes of turned words are generous
        across = min(one.x1, two.x1) - max(one.x0, two.x0)
        down = min(one.y1, two.y1) - max(one.y0, two.y0)
        assert across <= 1.5 or down <= 3, (a, b)


def test_the_html_carries_the_sentence_and_is_escaped(every):
    picture = every["size"]
    html = picture._repr_html_()
    assert f'alt="{picture.alt}"' in html and "data:image/png;base64," in html
    # a name from a file must not become markup
    odd = figures.clipping_histogram([0.0, 1.0], 0, 1, 8, "<img src=x>")
    assert "<img src=x>" not in odd._repr_html_() and "&lt;img src=x&gt;" in odd._repr_html_()


def test_bytes_are_equal_for_equal_data(network, tmp_path):
    one, two = (figures.stage_costs(network) for _ in "ab")
    assert one.png() == one.png() == two.png()
    assert one.save(tmp_path / "a.png").read_bytes() == one.png()
    with pytest.raises(UsageError):
        one.save(tmp_path / "a.jpg")


def test_nothing_leaks_into_matplotlib(network):
    before = dict(mpl.rcParams)
    figures.stage_costs(network).png()
    with pytest.raises(UsageError):
        figures.stage_costs()
    assert dict(mpl.rcParams) == before


def test_the_users_style_does_not_leak_in(network):
    plain = figures.stage_costs(network).png()
    with mpl.rc_context({"font.size": 30, "text.color": "red", "axes.facecolor": "black"}):
        assert figures.stage_costs(network).png() == plain


def test_pyplot_is_not_used():
    code = "import sys, labutils.show.figures; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_colours_are_not_the_only_carrier(every, ladder):
    assert len(set(COLORS)) == len(COLORS) == len(set(MARKERS)) == len(MARKERS)
    marks = {line.get_marker() for line in every["ladder"].legends[0].get_lines()}
    assert len(marks) == len({row.runtime for row in ladder.rows}) == 3
    hatches = {bar.get_hatch() for axes in every["stages"].axes for bar in axes.patches}
    assert len(hatches) == 2
    styles = {line.get_linestyle() for line in every["curves"].axes[0].lines}
    assert len(styles) == 2


def test_the_error_of_the_vendors_slope():
    picture = figures.activation_curves()
    assert "9.98e-04, at x = ±2.994" in picture.alt
    # the error is what the formula says: half of 1 - 1 / (6 * 0.167)
    assert f"{0.5 * (1 - 1 / (6 * 0.167)):.2e}" in picture.alt
    below = picture.axes[2]
    exact, near = below.lines[:2]
    assert not exact.get_ydata().any()
    assert np.abs(near.get_ydata()).max() == pytest.approx(0.998, abs=1e-3)
    assert "slope 0.25 is off by at most 1.67e-01, at x = ±2.000" in (
        figures.activation_curves(0.25).alt
    )


def test_top5_shows_the_truth_and_five_shares():
    logits = np.zeros(16)
    logits[[2, 7]] = 5, 4
    image = np.zeros((8, 8, 3), np.uint8)
    right = figures.top5(image, logits, things.CLASSES, things.CLASSES[2])
    assert right.alt.startswith(f"The best guess is {things.CLASSES[2]} with 6")
    assert "so that is right" in right.alt
    bars = right.axes[1].patches
    assert len(bars) == 5 and [b.get_hatch() for b in bars] == ["//", "", "", "", ""]
    wrong = figures.top5(image, logits, things.CLASSES, things.CLASSES[7])
    assert "is right" not in wrong.alt and things.CLASSES[7] in wrong.alt
    unknown = figures.top5(image, logits, things.CLASSES)
    assert "it is" not in unknown.alt and "truth" not in said(unknown)
    with pytest.raises(UsageError, match="16 logits"):
        figures.top5(image, logits[:5], things.CLASSES)


def test_stage_costs_add_up(network):
    picture = figures.stage_costs(network)
    parameters, macs = picture.axes
    assert sum(b.get_width() for b in parameters.patches) * 1e3 == pytest.approx(network.parameters)
    assert sum(b.get_width() for b in macs.patches) * 1e6 == pytest.approx(network.macs)
    names = [t.get_text() for t in parameters.get_yticklabels()]
    assert names == [*(f"features.{i}" for i in range(5)), "classifier"]
    assert "parameters the largest share is in classifier" in picture.alt
    assert "in features.0" in picture.alt


def test_stages_of_a_real_file(small_onnx):
    network = complexity.count(small_onnx(), (1, 3, 64, 64))
    names = [t.get_text() for t in figures.stage_costs(network).axes[0].get_yticklabels()]
    assert names == [*(f"features.{i}" for i in range(13)), "classifier"]


def test_stage_costs_refuse_what_cannot_be_drawn(network):
    rows = tuple(complexity.Row(f"node_{i}", "Conv", 1, 1) for i in range(60))
    with pytest.raises(UsageError, match="60 stages"):
        figures.stage_costs(dataclasses.replace(network, rows=rows))
    with pytest.raises(UsageError):
        figures.stage_costs(network, titles=("a", "b"))


def test_layers_name_the_worst(report):
    picture = figures.layer_sqnr(report, worst=1)
    worst = report.worst(1)[0]
    assert worst.module in picture.alt and f"{worst.sqnr_db:.1f} dB" in picture.alt
    assert f"{worst.sqnr_db:.1f} dB" in said(picture)
    assert "equal, no noise" in said(picture)  # Abs comes before the difference
    assert worst.op in ("Mul", "HardSwish")


def test_layers_that_are_not_finite_are_drawn(report):
    broken = dataclasses.replace(report.rows[1], cosine=math.nan, sqnr_db=-math.inf)
    odd = dataclasses.replace(report, rows=(report.rows[0], broken))
    picture = figures.layer_sqnr(odd)
    picture.png()
    assert "not finite" in picture.alt and "not finite" in said(picture)
    with pytest.raises(UsageError):
        figures.layer_sqnr(LayerReport("a", "b", "c", 1, ()))


def test_the_ladder_draws_its_intervals(ladder):
    picture = figures.ladder_chart(ladder)
    left, right, noise = picture.axes
    assert len(left.containers) == 3 and len(right.containers) == 2
    loud = [float(line.get_xdata()[0]) for line in noise.lines]
    assert loud == [r.parity.sqnr_db for r in ladder.rows[1:] if np.isfinite(r.parity.sqnr_db)]
    for container, row in zip(left.containers, ladder.rows, strict=True):
        low, high = container.lines[2][0].get_segments()[0][:, 0]
        assert (low, high) == pytest.approx([100 * v for v in row.top1.interval])
    for container, row in zip(right.containers, ladder.rows[1:], strict=True):
        low, high = container.lines[2][0].get_segments()[0][:, 0]
        assert (low, high) == pytest.approx(row.difference.interval)
    assert "clearly below the first stage: HTP int8" in picture.alt
    assert "ONNX" not in picture.alt.split("clearly")[1]  # one image of 64 says nothing
    assert "n=64" in said(picture)


def test_without_labels_agreement_is_drawn(ladder):
    rows = tuple(dataclasses.replace(r, top1=None, difference=None) for r in ladder.rows)
    nobody = dataclasses.replace(ladder, rows=rows)
    picture = figures.ladder_chart(nobody)
    axes, _ = picture.axes
    for container, row in zip(axes.containers, rows, strict=True):
        low, high = container.lines[2][0].get_segments()[0][:, 0]
        assert (low, high) == pytest.approx([100 * v for v in row.parity.agreement.interval])
    assert "Top-1 of 3 stages is unknown" in picture.alt
    assert "HTP int8 agrees least with PyTorch: on 68.8 % of the images" in picture.alt
    by_size = figures.accuracy_by_size(nobody)
    assert by_size.axes[0].get_ylabel() == "agreement with PyTorch, %"
    assert "HTP int8 with 2.00 MB and agreement with PyTorch 68.8 %" in by_size.alt


def test_where_top1_is_the_same_everywhere_the_noise_is_drawn_and_no_difference(ladder):
    first = ladder.rows[0]
    rows = tuple(
        dataclasses.replace(r, top1=first.top1, difference=first.difference) for r in ladder.rows
    )
    left, noise = figures.ladder_chart(dataclasses.replace(ladder, rows=rows)).axes
    assert left.get_xlabel() == "top-1, %" and noise.get_xlabel() == "SQNR against PyTorch, dB"


def test_a_stage_looks_the_same_in_both_charts_of_a_ladder(ladder):
    chart, size = figures.ladder_chart(ladder), figures.accuracy_by_size(ladder)
    looks = [(c.lines[0].get_color(), c.lines[0].get_marker()) for c in chart.axes[0].containers]
    filed = [look for look, row in zip(looks, ladder.rows, strict=True) if row.bytes]
    assert filed == [
        (c.lines[0].get_color(), c.lines[0].get_marker()) for c in size.axes[0].containers
    ]
    assert len({marker for _, marker in looks}) == len(looks)


def test_both_answers_stand_above_each_image():
    sheet = data.load("val", 2, 64)
    right, wrong = np.asarray(sheet.labels), (np.asarray(sheet.labels) + 1) % 16
    picture = figures.answers_apart(sheet, {"PyTorch": right, "int8 CPU": [right[0], wrong[1]]})
    name, other = sheet.classes[right[1]], sheet.classes[wrong[1]]
    assert picture.axes[1].get_title("left") == f"✓ PyTorch: {name}\n✗ int8 CPU: {other}"
    assert f"{name}: PyTorch says {name}, int8 CPU says {other}" in picture.alt
    with pytest.raises(UsageError, match="one answer each"):
        figures.answers_apart(sheet, {"PyTorch": [1]})


def test_files_of_one_size_stand_side_by_side(ladder):
    twins = [dataclasses.replace(row, bytes=5_000_000) for row in ladder.rows]
    picture = figures.accuracy_by_size(dataclasses.replace(ladder, rows=tuple(twins)))
    places = sorted(bars.lines[0].get_xdata()[0] for bars in picture.axes[0].containers)
    assert np.diff(places).min() > 0.1 and abs(np.mean(places) - 5) < 1e-9


def test_equal_shares_give_way_to_decibels(ladder):
    first = ladder.rows[0].top1
    same = dataclasses.replace(
        ladder, rows=tuple(dataclasses.replace(row, top1=first) for row in ladder.rows)
    )
    assert len(figures.accuracy_by_size(ladder).axes) == 1
    panel = figures.accuracy_by_size(same).axes[1]
    assert "SQNR against" in panel.get_ylabel()
    told = {text.get_text() for text in panel.texts}
    assert told == {decibels(row.parity.sqnr_db) for row in same.rows if row.bytes}


def test_accuracy_by_size(ladder):
    picture = figures.accuracy_by_size(ladder)
    assert "smallest file is HTP int8 with 2.00 MB" in picture.alt
    assert "largest ONNX with 8.00 MB" in picture.alt
    assert "1 stage without a file is not shown" in picture.alt
    only = dataclasses.replace(ladder, rows=ladder.rows[:1])
    with pytest.raises(UsageError, match="no size"):
        figures.accuracy_by_size(only)


def test_every_name_is_drawn(every):
    assert sorted(NAMES) == sorted(every)


def luminance(color):
    red, green, blue = (c / 12.92 if c <= 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in color)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# Vienot, Brettel & Mollon (1999), on linear RGB: how the two red-green deficiencies see.
PROTAN = np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]])
DEUTAN = np.array([[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]])


@pytest.mark.parametrize("vision", [np.eye(3), PROTAN, DEUTAN], ids=["all", "protan", "deutan"])
def test_the_palette_is_told_apart_by_every_vision(vision):
    seen = [vision @ np.array(mpl.colors.to_rgb(c)) ** 2.2 for c in COLORS]
    for a, b in itertools.combinations(seen, 2):
        assert np.abs(np.clip(a, 0, 1) ** (1 / 2.2) - np.clip(b, 0, 1) ** (1 / 2.2)).max() > 0.1


def test_words_are_dark_on_white(seen):
    for name, (texts, _) in seen.items():
        for text, _ in texts:
            contrast = 1.05 / (luminance(mpl.colors.to_rgb(text.get_color())) + 0.05)
            assert contrast > 4.5, (name, text)


def test_two_pictures_of_the_same_have_equal_bytes(checks, measured, _small):
    for build in (
        lambda: figures.verdict_bars(checks),
        lambda: figures.ranges(measured),
        lambda: figures.inverted_residual(_small, "features.1", 64),
    ):
        one, two = build(), build()
        assert one.png() == two.png() == one.png()


def test_the_architecture_is_what_the_module_is(_small):
    picture = figures.architecture(zoo.Model("small", _small, None, (), "", "", False), 64)
    assert picture.alt.startswith("small at 64 px: in 15 stages")
    assert "hard-swish sits in features.0 and features.4 to classifier.0" in picture.alt
    assert "squeeze-excitation in 9 stages" in picture.alt  # torchvision's small: 9 of 11 blocks
    sides, channels, _ = picture.axes
    assert [b.get_height() for b in sides.patches][:4] == [32, 16, 8, 8]
    out = [b.get_height() for b in channels.patches[15:]]
    assert out == [16, 16, 24, 24, 40, 40, 40, 48, 48, 96, 96, 96, 576, 1024, 16]
    assert not any(part._forward_hooks for part in _small.modules())


def test_a_replaced_activation_is_still_called_hard_swish(small):
    before = figures.architecture(small, 64).alt
    surgery.replace_(small)
    assert figures.architecture(small, 64).alt == before


def test_an_architecture_without_hard_swish():
    from torch import nn

    module = nn.Module()
    module.features = nn.Sequential(nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU()))
    module.forward = lambda x: module.features(x)
    assert "hard-swish sits in no stage" in figures.architecture(module, 32).alt
    with pytest.raises(UsageError, match="no depthwise"):
        figures.inverted_residual(module, "features.0", 32)
    with pytest.raises(UsageError, match="Linear is not divided"):
        figures.architecture(nn.Linear(2, 2))


def test_a_block_tells_its_real_shapes(_small):
    one = figures.inverted_residual(_small, "features.1", 64)
    assert one.alt == (
        "features.1: 16 channels at 32 px are filtered 3×3 one by one with stride 2 and weighted "
        "by squeeze-excitation (8 channels inside) and projected to 16 at 16 px; the input is not "
        "added again."
    )
    assert "expand" not in said(one) and "residual" not in said(one)
    chosen = figures.inverted_residual(_small, size=64)
    assert "features.5" in chosen.alt and "the input is added again." in chosen.alt
    assert "hard-swish" in said(chosen) and "expand" in said(chosen)
    heights = [
        p.get_height() for p in chosen.axes[0].patches if isinstance(p, mpl.patches.Rectangle)
    ]
    assert heights[1] / heights[0] == pytest.approx(240 / 40)
    with pytest.raises(UnknownNameError, match=r"features\.5"):
        figures.inverted_residual(_small, "features.55", 64)


def test_verdicts_add_up_and_say_how_it_ends(checks):
    picture = figures.verdict_bars(checks)
    bars = picture.axes[0].containers
    total = sum(np.array([b.get_width() for b in bar]) for bar in bars)
    assert list(total) == [len(c.nodes) for c in checks] == [4, 4, 4, 4]
    assert "snpe-2.7: stops at HardSwish in features.1" in picture.alt
    assert "rdk-x5: refuses opset 17" in picture.alt and "qnn: nothing blocks" in picture.alt
    assert "were not run" in said(picture)
    assert len({bar[0].get_hatch() for bar in bars}) == 4
    listed = {text.get_text() for text in picture.legends[0].get_texts()}
    assert listed == {word for c in checks for word, n in c.counts.items() if n}
    with pytest.raises(UsageError, match="No report"):
        figures.verdict_bars([])


def test_verdicts_of_two_files_name_the_files(files):
    picture = figures.verdict_bars([targets.check(file, "snpe-2.7") for file in files])
    assert "snpe-2.7, before.onnx: stops" in picture.alt
    assert "snpe-2.7, after.onnx: " in picture.alt


def test_operators_that_differ_are_marked(files):
    picture = figures.operator_counts(*files)
    assert "before.onnx, opset 17 has 4 nodes, after.onnx, opset 13 has 5" in picture.alt
    assert "different: HardSwish 2 → 0, Neg 0 → 2, Abs 0 → 1." in picture.alt
    names = [t.get_text() for t in picture.axes[0].get_yticklabels()]
    assert names == ["≠ HardSwish", "≠ Neg", "Relu", "≠ Abs"]
    same = figures.operator_counts(files[0], onnx.load(files[0]), ("a", "b"))
    assert "every operator occurs equally often" in same.alt and "≠ Relu" not in said(same)
    with pytest.raises(UsageError, match="two titles"):
        figures.operator_counts(*files, titles=("one",))


def test_the_sheet_counts_right_and_wrong(every):
    sheet = data.load("val", 9, 64)
    assert "8 of 9 with a known class are right; wrong: Staff" not in every["images"].alt
    wrong = f"{LONG[4]} taken for {LONG[5]}"
    assert f"8 of 9 with a known class are right; wrong: {wrong}." in every["guesses"].alt
    framed = [a for a in every["guesses"].axes if a.spines["left"].get_linewidth() == 3]
    assert len(framed) == 1 and framed[0].get_title().startswith("✗")
    nobody = data.ImageSet(sheet.images, np.full(9, -1), sheet.classes, "my own image")
    assert "class unknown" in figures.images(nobody).alt
    asked = figures.images(nobody, np.eye(16, dtype=np.float32)[:9])
    assert "no answer is right or wrong; answered: mug," in asked.alt.replace(
        sheet.classes[0], "mug"
    )
    assert asked.alt.endswith(" and others.")
    assert "✗" not in said(asked) and "✓" not in said(asked)
    with pytest.raises(UsageError, match=r"\(9, 16\)"):
        figures.images(sheet, np.zeros((9, 3)))
    with pytest.raises(UsageError, match="1 to 48"):
        figures.images(sheet, count=0)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.sampled_from(["min", "mean"]))
def test_the_gate_picture_judges_as_the_gate_does(cosines, judged):
    picture = figures.error_by_image(cosines, 0.95, judged)
    passed = (min(cosines) if judged == "min" else float(np.mean(cosines))) >= 0.95
    assert picture.alt.endswith("passed." if passed else "FAILED.")
    assert f" {sum(c < 0.95 for c in cosines)} lie below" in picture.alt


def test_the_gate_picture_takes_cosines_of_logits():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(8, 16))
    found = [metrics.cosine(a, b) for a, b in zip(one, one + 1e-3, strict=True)]
    picture = figures.error_by_image(found, compare.THRESHOLDS["ort_fp32"])
    low, high = picture.axes[0].get_ylim()
    assert low > high  # up is better
    for bad in ([], [float("nan")]):
        with pytest.raises(UsageError):
            figures.error_by_image(bad, 0.99)
    with pytest.raises(UsageError, match="median"):
        figures.error_by_image(found, 0.99, "median")


def test_ranges_find_the_outlier(measured):
    picture = figures.ranges(measured)
    high = measured.high[:, 7]
    factor = (high.max() + 0.5) / (np.quantile(high, 0.99) + 0.5)
    assert "the widest is -0.5 to 20 (features.1.block Conv_7)" in picture.alt
    assert f"features.1.block Conv_7 shrinks {factor:.1f}-fold" in picture.alt
    assert "changes none" in figures.ranges(measured, 0).alt
    with pytest.raises(UsageError, match="no tensor"):
        figures.ranges(Ranges((), np.zeros((3, 0)), np.zeros((3, 0))))


# --- surgery ------------------------------------------------------------------------------------


def test_the_widest_gate_is_named_and_its_ends_are_said():
    alt = figures.gate_inputs({"a": [-1, 2], "b.block.2": [-180, 0, 237.8]}).alt
    assert "from -180 to 238 (in b.block.2)" in alt and "2 gates" in alt


def test_smoothed_losses_begin_and_end_where_the_training_did():
    alt = figures.training_losses({"flat": [2.0] * 30, "one": [1.5]}).alt
    assert "flat from 2.00 to 2.00" in alt and "one from 1.50 to 1.50" in alt


@pytest.mark.parametrize("draw", [figures.gate_inputs, figures.training_losses])
def test_nothing_to_draw_of_a_surgery_is_an_error(draw):
    for nothing in ({}, {"a": []}):
        with pytest.raises(UsageError, match="there were none"):
            draw(nothing)


def test_every_cut_is_told_with_its_top1(ladder):
    alt = figures.cuts(ladder, 16).alt
    assert all(f"{row.name} {100 * row.top1.value:.1f}" in alt for row in ladder.rows)
    unknown = dataclasses.replace(
        ladder, rows=tuple(dataclasses.replace(row, top1=None) for row in ladder.rows)
    )
    with pytest.raises(UsageError, match="no label counts"):
        figures.cuts(unknown, 16)
