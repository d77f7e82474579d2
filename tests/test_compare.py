"""Gate, layer report, divergence and ladder, on real exports, ONNX Runtime and the simulator."""

import csv
import html
import re

import known_wrong
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from labutils import compare, metrics, quantize, runtime
from labutils.compare import closeness, gating, layerwise
from labutils.errors import ParityError, UnknownNameError, UsageError
from labutils.images import data

SIZE = 64
PREPROCESSING = data.Preprocessing(SIZE)
DAMAGED = "/features/features.5/block/block.1/block.1.0/Conv"  # depthwise


class Canned:
    """A runner that answers from a list: for what no real artifact gives on demand."""

    def __init__(self, logits, name="canned", file=None, runtime="test"):
        self.logits, self.name, self.file, self.runtime = np.float32(logits), name, file, runtime
        self.calls = []

    def run(self, batch):
        self.calls.append(len(batch))
        start = sum(self.calls[:-1]) % len(self.logits)
        return self.logits[start : start + len(batch)]

    def close(self):
        pass


def trained_like(n=32, classes=16, seed=0):
    """Logits as a trained network gives them: one class well above the others."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), np.arange(n) % classes] += 8
    return logits


def shown(markup):
    """The words of an HTML report, without its tags."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def damage(source, destination, node_name=DAMAGED):
    """Write `source` with one convolution's weights negated; return the tensor it makes."""
    model = onnx.load(source)
    node = next(n for n in model.graph.node if n.name == node_name)
    weight = next(w for w in model.graph.initializer if w.name == node.input[1])
    weight.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weight), weight.name))
    onnx.save(model, destination)
    return node.output[0]


@pytest.fixture(scope="module")
def quantized(small_onnx, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantized")
    calibration = data.calibration(128, SIZE)
    ranges = quantize.measure_ranges(small_onnx(17), calibration, PREPROCESSING)
    for bits, recipe in (("int8", "int8@1"), ("a16w8", "a16w8")):
        quantize.static(small_onnx(17), folder / f"{bits}.onnx", ranges, recipe)
    return folder


# ---------------------------------------------------------------- figures


def test_parity_figures_are_per_image():
    reference = trained_like(4)
    other = reference.copy()
    other[2] = -other[2]
    found = compare.parity(reference, other)
    assert found.cosine_min == pytest.approx(-1)
    assert found.cosine_mean == pytest.approx(0.5)
    assert (found.agreement.hits, found.n) == (3, 4)
    assert found.max_error == pytest.approx(2 * np.abs(reference[2]).max())


def test_thresholds_are_those_that_the_plan_states():
    assert compare.THRESHOLDS == {
        "ort_fp32": 0.9999, "htp_fp16": 0.999, "ort_a16w8": 0.99,
        "htp_a16w8": 0.99, "ort_int8": 0.95, "htp_int8": 0.95, "bpu_int8": 0.95,
    }  # fmt: skip
    assert compare.AGREEMENT.keys() == compare.THRESHOLDS.keys()


# ---------------------------------------------------------------- gate


def test_a_faithful_export_passes(small, small_onnx, inputs):
    with runtime.connect(small_onnx(17)) as candidate:
        report = compare.gate(
            runtime.connect(small), candidate, inputs(8, SIZE), kind="ort_fp32", check_top1=False
        )
    assert report.passed
    assert report.parity.cosine_min > 0.9999
    assert report.to_dict()["parity"]["n"] == 8
    assert "passed" in str(report)
    assert "ONNX Runtime" in str(report)


def test_one_damaged_convolution_is_found_by_name(small_onnx, inputs, tmp_path):
    wrong = tmp_path / "wrong.onnx"
    damage_at = damage(small_onnx(17), wrong)
    with pytest.raises(ParityError) as caught:
        compare.gate(
            runtime.connect(small_onnx(17)), runtime.connect(wrong), inputs(4, SIZE),
            kind="ort_fp32", check_top1=False,
        )  # fmt: skip
    divergence = caught.value.report.divergence
    assert divergence.tensor == damage_at
    assert (divergence.op, divergence.module) == ("Conv", "features.5.block.1.0")
    assert damage_at in str(caught.value)
    assert "cosine" in str(caught.value)


def test_a_divergence_is_named_for_a_torch_reference_through_its_onnx(
    small, small_onnx, inputs, tmp_path
):
    wrong = tmp_path / "wrong.onnx"
    damage_at = damage(small_onnx(17), wrong)
    settings = {"kind": "ort_fp32", "check_top1": False}
    with pytest.raises(ParityError) as caught:
        compare.gate(
            runtime.connect(small), runtime.connect(wrong), inputs(4, SIZE),
            reference_onnx=small_onnx(17), **settings,
        )  # fmt: skip
    assert caught.value.report.divergence.tensor == damage_at
    with pytest.raises(ParityError, match="reference is not an ONNX file"):
        compare.gate(
            runtime.connect(small), runtime.connect(wrong), inputs(4, SIZE), **settings
        )  # fmt: skip


# Untrained networks give some images logits fifty times smaller than others: eight bits cannot.
UNTRAINED = {"int8": {"min_cosine": 0.6}, "a16w8": {}}


@pytest.mark.parametrize("bits", ["int8", "a16w8"])
def test_quantized_files_pass_their_own_gate_and_not_the_float_one(
    bits, small_onnx, quantized, inputs
):
    pair = runtime.connect(small_onnx(17)), runtime.connect(quantized / f"{bits}.onnx")
    batch, settings = inputs(16, SIZE), {"check_top1": False, **UNTRAINED[bits]}
    assert compare.gate(*pair, batch, kind=f"ort_{bits}", **settings).passed
    with pytest.raises(ParityError) as caught:
        compare.gate(*pair, batch, kind="ort_fp32", check_top1=False)
    divergence = caught.value.report.divergence
    assert divergence.cosine < 0.9999
    assert divergence.tensor in str(caught.value)


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda x: np.where(np.arange(len(x))[:, None] == 3, np.nan, x),
            "16 of 512 logits are NaN",
        ),
        (lambda x: np.full_like(x, np.inf), "first in image 0"),
        (lambda x: x[:, :10], "shape (32, 10), the reference's (32, 16)"),
        (lambda x: np.tile(x[:1], (len(x), 1)), "same logits for all 32 images"),
        (lambda x: 2 * x, "SQNR 0.0 dB is below"),  # the cosine does not see a factor
        (lambda x: np.roll(x, 1, axis=0), "top-1 agreement"),
        (lambda x: -x, "cosine -1.00000"),
    ],
)
def test_every_way_of_being_wrong_has_its_reason(change, words):
    reference = trained_like()
    pair = Canned(reference), Canned(change(reference))
    with pytest.raises(ParityError) as caught:
        compare.gate(*pair, np.zeros((32, 3, 8, 8), np.float32), kind="htp_int8")
    assert any(words in reason for reason in caught.value.report.reasons)  # not only a figure
    assert not caught.value.report.passed
    assert "no ONNX file" in str(caught.value)


def test_the_judge_of_top1_is_the_interval_and_can_be_switched_off():
    reference = trained_like()
    batch = np.zeros((32, 3, 8, 8), np.float32)

    def flipped(count):
        logits = reference.copy()
        for i in range(count):  # the runner-up overtakes by a hair
            order = np.argsort(-logits[i])
            logits[i, order[1]] = logits[i, order[0]] + 0.01
        return Canned(reference), Canned(logits)

    settings = {"kind": "htp_fp16", "min_cosine": 0.5}
    assert compare.gate(*flipped(1), batch, **settings).passed
    with pytest.raises(ParityError, match=r"failed .* top-1 agreement"):
        compare.gate(*flipped(3), batch, **settings)
    assert compare.gate(*flipped(3), batch, check_top1=False, **settings).passed
    with pytest.raises(ParityError):
        compare.gate(*flipped(1), batch, kind="ort_fp32", min_cosine=0.5)


@pytest.mark.parametrize("images, flips", [(32, (0, 1, 4)), (1600, (0, 23, 97))])
def test_so_many_flips_pass_at_each_threshold_of_agreement(images, flips):
    """What the documentation of `AGREEMENT` says: none, one and four of 32, 1.4 % and 6 %."""
    reference = trained_like(images)
    order = np.argsort(-reference, axis=1)
    allowed = dict(zip((1.0, 0.99, 0.95), flips, strict=True))
    for kind, least in compare.AGREEMENT.items():
        required, _ = gating._required(kind, 0.0, check_top1=True)
        for count, passes in ((allowed[least], True), (allowed[least] + 1, False)):
            logits, rows = reference.copy(), np.arange(count)
            logits[rows, order[:count, 1]] = reference.max(axis=1)[:count] + 0.01
            pair = closeness.Pair("logits", reference, logits, has_scores=True)
            reasons = gating._judge(pair, required)[1]
            assert (reasons == []) == passes, (kind, count)
    float_kinds = {kind for kind, least in compare.AGREEMENT.items() if least == 1}
    assert float_kinds == {"ort_fp32"}
    assert {k for k, v in compare.AGREEMENT.items() if v == 0.95} == {
        "ort_int8",
        "htp_int8",
        "bpu_int8",
    }


def undecided(rows, n=32):
    """A reference whose runner-up is near in some rows, and a candidate that flips these."""
    reference = trained_like(n)
    order = np.argsort(-reference, axis=1)
    reference[rows, order[rows, 1]] = reference[rows, order[rows, 0]] - 0.1
    other = reference.copy()
    other[rows, order[rows, 1]] += 0.2
    return reference, other


def test_the_first_class_is_judged_where_the_reference_decides():
    reference, other = undecided(np.arange(12))
    batch = np.zeros((32, 3, 8, 8), np.float32)
    report = compare.gate(Canned(reference), Canned(other), batch, kind="ort_int8")
    assert (report.parity.agreement.hits, report.parity.n) == (20, 32)
    assert (report.decided.hits, report.decided.n) == (20, 20)
    said = "top-1 agreement 100.0 % [83.9, 100.0] (n=20) where the reference's first class leads"
    assert f"{said} by 0.316 of the spread of its scores" in str(report)
    other[20:26] = np.roll(other[20:26], 3, axis=1)  # these are decided
    with pytest.raises(ParityError) as caught:
        compare.gate(Canned(reference), Canned(other), batch, kind="ort_int8", min_cosine=0.5)
    assert caught.value.report.reasons[-1].startswith("top-1 agreement 70.0 %")
    with pytest.raises(ParityError, match=r"top-1 agreement 43.8 % .* \(n=32\) is below 100 %"):
        compare.gate(Canned(reference), Canned(other), batch, kind="ort_fp32", min_cosine=0.5)


def test_a_reference_that_decides_nothing_is_not_judged_by_its_first_class():
    reference, other = undecided(np.arange(32))
    batch = np.zeros((32, 3, 8, 8), np.float32)
    report = compare.gate(Canned(reference), Canned(other), batch, kind="ort_int8")
    assert report.decided is None and report.parity.agreement.hits == 0
    assert "decides none of these images" in str(report)


def test_two_classes_are_decided_by_their_lead_among_the_images():
    rng = np.random.default_rng(0)
    scores = rng.choice([-1.0, 1.0], 32) * np.where(np.arange(32) < 12, 0.02, rng.uniform(2, 5, 32))
    reference = np.stack([scores, -scores], axis=1).astype(np.float32)
    other = reference + np.where(np.arange(32)[:, None] < 12, -2 * reference, 0)  # flipped
    batch = np.zeros((32, 3, 8, 8), np.float32)
    with pytest.raises(ParityError) as caught:  # the opposite of an image has a cosine of -1
        compare.gate(Canned(reference), Canned(other), batch, kind="ort_int8")
    assert (caught.value.report.decided.hits, caught.value.report.decided.n) == (20, 20)
    assert not any("top-1" in reason for reason in caught.value.report.reasons)


@given(
    factor=st.floats(1e-3, 1e3), offset=st.floats(-100, 100),
    kind=st.sampled_from(sorted(compare.THRESHOLDS)), seed=st.integers(0, 99),
)  # fmt: skip
def test_what_is_decided_depends_on_neither_the_scale_nor_an_offset(factor, offset, kind, seed):
    required, _ = gating._required(kind, None, check_top1=True)
    rng = np.random.default_rng(seed)
    logits, other = rng.normal(size=(2, 64, 10))
    scaled = factor * (logits + offset)
    plain = gating._decided(closeness.Pair("logits", logits, other, has_scores=True), required)
    moved = gating._decided(closeness.Pair("logits", scaled, other, has_scores=True), required)
    assert plain == moved


def test_an_override_is_recorded_and_printed():
    reference = trained_like()
    noisy = reference + np.random.default_rng(1).normal(0, 0.6, reference.shape)
    batch = np.zeros((32, 3, 8, 8), np.float32)
    with pytest.raises(ParityError):
        compare.gate(Canned(reference), Canned(noisy), batch, kind="htp_fp16")
    report = compare.gate(Canned(reference), Canned(noisy), batch, kind="htp_fp16", min_cosine=0.9)
    assert report.overridden == {"cosine": (0.9, 0.999)}
    assert report.to_dict()["overridden"] == {"cosine": (0.9, 0.999)}
    for text in (str(report), shown(report._repr_html_())):
        assert "OVERRIDDEN" in text
        assert "0.9 instead of 0.999" in text


def at_cosine(reference, cosine):
    """`reference` with its first image turned to a cosine; length and first class stay."""
    other = reference.astype(np.float64)
    length = np.linalg.norm(other[0])
    aside = np.random.default_rng(2).normal(size=other.shape[1])
    aside -= aside @ other[0] / length**2 * other[0]
    aside *= length / np.linalg.norm(aside)
    other[0] = cosine * other[0] + np.sqrt(1 - cosine**2) * aside
    return other


@pytest.mark.parametrize("kind", compare.THRESHOLDS)
def test_quantized_kinds_are_judged_by_the_mean_and_float_kinds_by_the_worst_image(kind):
    """31 equal images and one below the threshold, whose mean and SQNR are good enough."""
    least = compare.THRESHOLDS[kind]
    reference = trained_like()
    pair = Canned(reference), Canned(at_cosine(reference, 1 - 2 * (1 - least)))
    batch = np.zeros((32, 3, 8, 8), np.float32)
    if kind.endswith(("w8", "int8")):
        report = compare.gate(*pair, batch, kind=kind)
        assert report.parity.cosine_min < least < report.parity.cosine_mean
        return
    with pytest.raises(ParityError) as caught:
        compare.gate(*pair, batch, kind=kind)
    (reason,) = caught.value.report.reasons  # the worst image and nothing else
    assert "(worst image) is below" in reason
    assert caught.value.report.parity.cosine_mean > least


@pytest.mark.parametrize("kind", compare.THRESHOLDS)
def test_every_threshold_lies_between_what_passes_and_what_fails(kind):
    """All images alike, so that the mean is the worst; the noise is what the cosine implies."""
    least, reference = compare.THRESHOLDS[kind], np.tile(trained_like(1), (32, 1))
    reference *= np.linspace(1, 2, 32, dtype=np.float32)[:, None]  # not the same for all images
    turned = at_cosine(reference, 1 - 0.5 * (1 - least))[:1] / np.linalg.norm(reference[0])
    good = turned * np.linalg.norm(reference, axis=1, keepdims=True)
    turned = at_cosine(reference, 1 - 1.5 * (1 - least))[:1] / np.linalg.norm(reference[0])
    bad = turned * np.linalg.norm(reference, axis=1, keepdims=True)
    batch = np.zeros((32, 3, 8, 8), np.float32)
    assert compare.gate(Canned(reference), Canned(good), batch, kind=kind).passed
    with pytest.raises(ParityError) as caught:
        compare.gate(Canned(reference), Canned(bad), batch, kind=kind)
    assert [reason.split()[0] for reason in caught.value.report.reasons] == ["cosine"]


@pytest.mark.parametrize("cosine, factor", [(0.95, 1), (0.999, 1), (0.9999, 1)])
def test_the_least_sqnr_is_that_of_noise_at_right_angles_less_six_decibels(cosine, factor):
    signal = np.array([1.0, 0.0])
    turned = np.array([cosine, np.sqrt(1 - cosine**2)])
    implied = metrics.sqnr_db(signal, turned)
    assert gating._least_sqnr(cosine) == pytest.approx(implied - 6, abs=0.06)  # one decimal


def test_a_gate_that_sees_little_says_so():
    same = Canned(np.tile(trained_like(1), (8, 1)))
    batch = np.zeros((8, 3, 8, 8), np.float32)
    report = compare.gate(same, Canned(same.logits), batch, kind="ort_fp32")
    assert "sees little" in str(report)
    assert "sees little" in shown(report._repr_html_())


def test_calls_that_make_no_sense_are_refused():
    good = Canned(trained_like(2))
    batch = np.zeros((2, 3, 8, 8), np.float32)
    with pytest.raises(UnknownNameError, match="htp_fp16"):
        compare.gate(good, good, batch, kind="htp_fp61")
    with pytest.raises(UsageError, match="between 0 and 1"):
        compare.gate(good, good, batch, kind="ort_fp32", min_cosine=99)
    with pytest.raises(UsageError, match="empty"):
        compare.gate(good, good, batch[:0], kind="ort_fp32")
    with pytest.raises(UsageError, match=r"reference .* itself"):
        compare.gate(Canned(np.full((2, 4), np.nan)), good, batch, kind="ort_fp32")


# ---------------------------------------------------------------- layer by layer


def test_layers_of_a_file_against_itself_are_equal(small_onnx, inputs):
    report = compare.per_layer(small_onnx(17), small_onnx(17), inputs(2, SIZE))
    nodes = [n for n in onnx.load(small_onnx(17)).graph.node if n.op_type != "Constant"]
    assert [row.tensor for row in report.rows] == [n.output[0] for n in nodes]
    assert {row.sqnr_db for row in report.rows} == {np.inf}
    assert {row.cosine for row in report.rows} == {1.0}


@pytest.mark.parametrize("bits, first_db, last_db", [("int8", 25, 5), ("a16w8", 35, 10)])
def test_layers_of_a_quantized_file(bits, first_db, last_db, small_onnx, quantized, inputs):
    report = compare.per_layer(small_onnx(17), quantized / f"{bits}.onnx", inputs(4, SIZE))
    assert len(report.rows) > 80
    assert report.rows[0].op == "Conv"
    assert report.rows[0].module == "features.0.0"
    assert report.rows[-1].tensor == "logits"
    assert report.rows[0].sqnr_db > first_db
    assert report.rows[-1].sqnr_db > last_db
    assert report.worst(3)[0].sqnr_db == min(row.sqnr_db for row in report.rows)
    frame = report.to_frame()
    figures = ["cosine", "sqnr_db", "low", "high", "clipped"]
    assert list(frame.columns) == ["tensor", "op", "module", *figures]
    assert (frame.low < frame.high).all()
    assert len(frame) == len(report.rows)
    text, markup = str(report), shown(report._repr_html_())
    assert max(map(len, text.splitlines())) <= 120
    for row in report.rows:
        assert f"{row.sqnr_db:.1f}" in markup
    assert "made outputs to be seen" in " ".join(text.split())
    assert "made outputs to be seen" in markup


def test_more_bits_are_closer_in_every_block(small_onnx, quantized, inputs):
    batch = inputs(4, SIZE)
    eight = compare.per_layer(small_onnx(17), quantized / "int8.onnx", batch).rows
    sixteen = {
        row.tensor: row.sqnr_db
        for row in compare.per_layer(small_onnx(17), quantized / "a16w8.onnx", batch).rows
    }
    better = [sixteen[row.tensor] > row.sqnr_db for row in eight if row.op != "HardSigmoid"]
    assert np.mean(better) > 0.95


def test_files_without_a_common_tensor_are_refused(small_onnx, tmp_path, inputs):
    other = onnx.helper.make_model(
        onnx.parser.parse_graph("g (float[1,3,64,64] a) => (float[1,3,64,64] b) { b = Relu(a) }"),
        opset_imports=[onnx.helper.make_opsetid("", 17)],
    )
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(UsageError, match="share no tensor name"):
        compare.per_layer(small_onnx(17), tmp_path / "other.onnx", inputs(1, SIZE))


def test_cut_keeps_only_what_a_tensor_needs(small_onnx):
    model = onnx.load(small_onnx(17))
    third = model.graph.node[2].output[0]
    part = layerwise.cut(model, [third])
    assert [n.name for n in part.graph.node] == [n.name for n in model.graph.node[:3]]
    assert len(part.graph.initializer) < len(model.graph.initializer)
    assert [o.name for o in part.graph.output] == [third]
    assert len(model.graph.output) == 1  # the model itself is left alone


# ---------------------------------------------------------------- ladder


@pytest.fixture(scope="module")
def stages(small_onnx, quantized):
    files = {"ONNX": small_onnx(17), "int8": quantized / "int8.onnx"}
    runners = {name: runtime.connect(file) for name, file in files.items()}
    first = compare.Stage("reference", runtime.OrtRunner(files["ONNX"], optimize=False))
    return [first, *(compare.Stage(name, runner) for name, runner in runners.items())]


def test_ladder_compares_every_stage_with_the_first(stages, inputs):
    images = data.load("val", 40, SIZE)
    table = compare.ladder(stages, images, PREPROCESSING, batch_size=16)
    assert [row.name for row in table.rows] == ["reference", "ONNX", "int8"]
    assert table["reference"].parity.sqnr_db == np.inf
    assert table["ONNX"].parity.agreement.value == 1
    logits = [stage.runner.run(inputs(40, SIZE)) for stage in stages]
    expected = compare.parity(logits[0], logits[2])
    assert table["int8"].parity.cosine_mean == pytest.approx(expected.cosine_mean)
    right = logits[2].argmax(axis=1) == images.labels
    assert table["int8"].top1.hits == right.sum()
    assert table["int8"].bytes < table["ONNX"].bytes / 2
    assert table["int8"].file == "int8.onnx"
    assert table["ONNX"].runtime.startswith("ONNX Runtime")


def test_top_5_counts_the_true_class_down_to_the_fifth_place():
    places = np.arange(8) % 8  # image i has its true class in place i
    labels = (3 * np.arange(8)) % 8
    logits = np.empty((8, 8), np.float32)
    for i, (label, place) in enumerate(zip(labels, places, strict=True)):
        order = np.roll(np.arange(8), place - int(label))  # `label` comes at `place`
        logits[i, order] = -np.arange(8)
    blank = np.zeros((8, SIZE, SIZE, 3), np.uint8)
    images = data.ImageSet(blank, labels, tuple("abcdefgh"), "blank")
    (row,) = compare.ladder([compare.Stage("one", Canned(logits))], images, PREPROCESSING).rows
    assert (row.top1.hits, row.top5.hits) == (1, 5)
    assert row.to_dict()["top5"] == 5 / 8


def test_each_row_speaks_for_its_own_runner():
    labels = np.arange(32) % 16
    right = np.eye(16, dtype=np.float32)[labels] * 9
    wrong = np.roll(right, 1, axis=1)
    images = data.ImageSet(
        np.zeros((32, 8, 8, 3), np.uint8), labels, tuple(map(str, range(16))), "blank"
    )
    stages = [
        compare.Stage("right", Canned(right)),
        compare.Stage("wrong", Canned(wrong), note="on purpose"),
        compare.Stage("few", Canned(right[:8]), n=8),
    ]
    table = compare.ladder(stages, images, data.Preprocessing(8), batch_size=8)
    assert [row.top1.value for row in table.rows] == [1, 0, 1]
    assert [row.parity.agreement.value for row in table.rows] == [1, 0, 1]
    assert [row.difference.value for row in table.rows] == [0, -100, 0]
    assert [row.n for row in table.rows] == [32, 32, 8]
    assert [sum(stage.runner.calls) for stage in stages] == [32, 32, 8]
    assert "on purpose" in str(table)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [(np.full(8, -1), "abcd"), (np.arange(8) % 4, "abcde")],
    ids=["nobody knows", "labels of other classes"],
)
def test_accuracy_is_unknown_without_labels_that_count(labels, classes, tmp_path):
    logits = np.eye(4, dtype=np.float32)[np.arange(8) % 4]
    images = data.ImageSet(np.zeros((8, 8, 8, 3), np.uint8), labels, tuple(classes), "blank")
    other = np.where(np.arange(8)[:, None] == 0, logits[1], logits)
    stages = [compare.Stage("a", Canned(logits)), compare.Stage("b", Canned(other))]
    table = compare.ladder(stages, images, data.Preprocessing(8))
    assert [(row.top1, row.difference) for row in table.rows] == [(None, None)] * 2
    assert table["b"].parity.agreement.hits == 7
    assert str(table).count("unknown") >= 4 and "Top-1 is unknown" in str(table)
    assert "0.00 [" not in str(table)
    read = compare.Ladder.read_csv(table.to_csv(tmp_path / "ladder.csv"))
    assert [(row.top1, row.difference) for row in read.rows] == [(None, None)] * 2


def test_only_images_of_known_class_are_judged():
    logits = np.eye(4, dtype=np.float32)[np.arange(8) % 4]
    labels = np.where(np.arange(8) < 4, np.arange(8) % 4, -1)
    images = data.ImageSet(np.zeros((8, 8, 8, 3), np.uint8), labels, tuple("abcd"), "blank")
    table = compare.ladder([compare.Stage("a", Canned(logits))], images, data.Preprocessing(8))
    assert (table["a"].top1.hits, table["a"].top1.n, table["a"].n) == (4, 4, 8)


def test_a_short_first_stage_still_covers_the_others():
    labels = np.arange(8) % 4
    logits = np.eye(4, dtype=np.float32)[labels]
    images = data.ImageSet(np.zeros((8, 8, 8, 3), np.uint8), labels, tuple("abcd"), "blank")
    stages = [compare.Stage("a", Canned(logits), n=2), compare.Stage("b", Canned(logits), n=6)]
    table = compare.ladder(stages, images, data.Preprocessing(8))
    assert [row.n for row in table.rows] == [6, 6]
    assert table["a"].top5 is None  # of four classes, top-5 is no question


def test_ladder_as_csv_text_and_html_says_the_same(stages, tmp_path):
    table = compare.ladder(stages, data.load("val", 16, SIZE), PREPROCESSING)
    path = table.to_csv(tmp_path / "ladder.csv")
    assert [p.name for p in tmp_path.iterdir()] == ["ladder.csv"]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, found in zip(rows, table.rows, strict=True):
        assert row["stage"] == found.name
        assert float(row["sqnr_db"]) == found.parity.sqnr_db
        assert float(row["agreement_low"]) == found.parity.agreement.interval[0]
        assert float(row["difference_high"]) == found.difference.interval[1]
        assert int(row["n"]) == 16
        assert int(row["bytes"]) == found.bytes
    text, markup = " ".join(str(table).split()), shown(table._repr_html_())
    assert max(map(len, str(table).splitlines())) <= 120
    for line in [*(row.name for row in table.rows), *(row.runtime for row in table.rows)]:
        assert line in text
        assert line in markup
    cells = re.findall(r"[+-]?\d+\.\d+", str(table).split("[ ]:")[0])
    assert len(cells) > 20
    assert all(cell in markup for cell in cells)


def test_names_are_escaped_in_html():
    labels = np.arange(4)
    images = data.ImageSet(np.zeros((4, 8, 8, 3), np.uint8), labels, tuple("abcd"), "<b>blank</b>")
    stages = [compare.Stage("<script>x", Canned(np.eye(4)))]
    markup = compare.ladder(stages, images, data.Preprocessing(8))._repr_html_()
    assert "<script>" not in markup
    assert "<b>" not in markup
    assert "&lt;script&gt;" in markup


def test_ladder_reports_progress_and_names_the_stage_that_breaks():
    images = data.ImageSet(
        np.zeros((8, 8, 8, 3), np.uint8), np.arange(8) % 4, tuple("abcd"), "blank"
    )
    seen = []

    def progress(batches, description):
        seen.append((description, len(batches)))
        return batches

    good, bad = np.eye(4)[np.arange(8) % 4], np.full((8, 4), np.nan)
    stages = [compare.Stage("fine", Canned(good)), compare.Stage("broken", Canned(bad))]
    with pytest.raises(ParityError, match=r"'broken'.*NaN"):
        compare.ladder(stages, images, data.Preprocessing(8), batch_size=4, progress=progress)
    assert seen == [("fine (batches)", 2), ("broken (batches)", 2)]
    with pytest.raises(ParityError, match=r"'thin'.*shape"):
        thin = compare.Stage("thin", Canned(good[:, :3]))
        compare.ladder([stages[0], thin], images, data.Preprocessing(8), batch_size=4)
    with pytest.raises(UsageError, match="same name"):
        compare.ladder([stages[0]] * 2, images, data.Preprocessing(8))
    with pytest.raises(UsageError, match="at least one stage"):
        compare.ladder([], images, data.Preprocessing(8))


def test_accuracy_table_of_one_image(stages, images):
    classes = data.load("val", 16, SIZE).classes
    image = images(4, SIZE)[3]
    table = compare.accuracy_table(stages, image, PREPROCESSING, classes, truth=classes[3])
    logits = stages[2].runner.run(PREPROCESSING(image[None]))[0].astype(np.float64)
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    stage, ran_on, best = table.rows[2]
    assert stage == "int8"
    assert ran_on.startswith("ONNX Runtime")
    assert [name for name, _ in best] == [
        classes[k] for k in np.argsort(-logits, kind="stable")[:5]
    ]
    assert [share for _, share in best] == pytest.approx(sorted(shares)[:-6:-1])
    for text in (str(table), shown(table._repr_html_())):
        assert "ORT stands in for FP32 on CPU" in text
        assert f"One image ({classes[3]})" in text
        assert all(f"{share:.4f}" in text for _, _, row in table.rows for _, share in row)
    assert max(map(len, str(table).splitlines())) <= 120


# ---------------------------------------------------------------- on the simulator


@pytest.mark.htp
@pytest.mark.parametrize("make", known_wrong.ALL, ids=lambda make: make.__name__)
def test_conversions_that_succeed_and_are_wrong_are_stopped(make, tmp_path):
    file, batch = make(tmp_path)
    candidate = runtime.connect(file, "htp")  # QNN takes it without a word
    with pytest.raises(ParityError) as caught:
        compare.gate(
            runtime.connect(file), candidate, batch, kind="htp_fp16", check_top1=False
        )  # fmt: skip
    divergence = caught.value.report.divergence
    assert divergence.tensor == "pixels"
    assert divergence.against == "its own file on ONNX Runtime"
    vanishes = {known_wrong.hardswish_of_opset_13: True,
                known_wrong.pad_at_the_end_after_an_activation: False}  # fmt: skip
    assert divergence.vanishes == vanishes.get(
        make
    )  # None where no inner tensor is there to look at


@pytest.mark.htp
@pytest.mark.slow
def test_opset_13_hardswish_departs_on_the_htp_at_its_mul(small_onnx, inputs):
    file = small_onnx(13)
    with pytest.raises(ParityError) as caught:
        compare.gate(
            runtime.connect(file), runtime.connect(file, "htp"), inputs(2, SIZE),
            kind="htp_fp16", check_top1=False,
        )  # fmt: skip
    divergence = caught.value.report.divergence
    first = next(n for n in onnx.load(file).graph.node if n.op_type == "Mul")
    assert divergence.tensor == first.output[0]
    assert divergence.module == "features.0.2"
    assert divergence.vanishes  # seen, the HardSigmoid is no longer fused
    assert "fuses the nodes" in str(caught.value)
    assert "HTP simulator" in str(caught.value)


@pytest.mark.htp
@pytest.mark.slow
def test_int8_passes_on_the_htp_with_its_layers(small_onnx, quantized, inputs):
    candidate = runtime.connect(quantized / "int8.onnx", "htp")
    batch = inputs(4, SIZE)
    settings = {"kind": "htp_int8", "check_top1": False, **UNTRAINED["int8"]}
    assert compare.gate(runtime.connect(small_onnx(17)), candidate, batch, **settings).passed
    report = compare.per_layer(small_onnx(17), quantized / "int8.onnx", batch[:2], backend="htp")
    on_ort = compare.per_layer(small_onnx(17), quantized / "int8.onnx", batch[:2])
    assert [row.tensor for row in report.rows] == [row.tensor for row in on_ort.rows]
    assert "HTP simulator" in report.runtime
    assert report.rows[0].sqnr_db > 25
    table = compare.accuracy_table(
        [compare.Stage("HTP int8", candidate)],
        data.load("val", 1, SIZE).images[0],
        PREPROCESSING,
        data.load("val", 1, SIZE).classes,
    )
    assert "the HTP simulator stands in for the chip" in str(table)


def test_a_ladder_is_read_back_as_it_was_written(tmp_path):
    logits, labels = trained_like(), np.arange(32) % 16
    images = data.ImageSet(
        np.zeros((32, SIZE, SIZE, 3), np.uint8), labels, tuple("abcdefghijklmnop"), ""
    )
    worse = logits[:, ::-1].copy()
    stages = [compare.Stage("first", Canned(logits)), compare.Stage("second", Canned(worse))]
    table = compare.ladder(stages, images, PREPROCESSING)
    back = compare.Ladder.read_csv(table.to_csv(tmp_path / "ladder.csv"), "", str(PREPROCESSING))
    assert back.to_dict() == table.to_dict() and str(back) == str(table)
    (tmp_path / "other.csv").write_text("stage,n\nPyTorch,32\n")
    for wrong in ("other.csv", "absent.csv"):
        with pytest.raises(UsageError, match=f"{wrong} is not a ladder"):
            compare.Ladder.read_csv(tmp_path / wrong)
