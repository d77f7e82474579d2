"""`labutils compress`: the plan, the stages with a kill between, the ladder, what is missed."""

import csv
import dataclasses
import json
import re

import numpy as np
import pytest
import tiny_network
import torch
from safetensors.torch import save_file

from labutils import __main__, compare, manifests, metrics, paths
from labutils.errors import LabError, UsageError
from labutils.images import data, fasteners, folder
from labutils.models import zoo
from labutils.pipeline import compression
from labutils.pipeline.compression import (
    CompressionBudget,
    CompressionPlan,
    files,
    ladder,
    networks,
    stages,
    store,
)
from labutils.pipeline.settings import Listener
from labutils.quantize import mixed
from labutils.show import figures

SIDE = 32
BUDGET = "macs=0.7,megabytes=0.8,points=60"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder of pictures in four classes, and weights of a tiny network for them."""
    place = tmp_path_factory.mktemp("own")
    names = ("dotted nut", "dotted washer", "striped nut", "striped washer")
    pictures = fasteners.write_folder(place / "fasteners", 80, names, size=SIDE)
    torch.manual_seed(0)
    network = zoo.load(tiny_network.NAME, "random", SIDE).module
    network.fc[-1] = torch.nn.Linear(1024, len(names))
    weights = place / "tiny.safetensors"
    save_file(network.state_dict(), weights)
    weights.with_suffix(".json").write_text(json.dumps({"classes": names, "size": SIDE}))
    return pictures, weights


@pytest.fixture
def lab(capsys):
    def call(*arguments):
        code = __main__.main(["compress", *(str(argument) for argument in arguments)])
        return code, *capsys.readouterr()

    return call


def test_a_plan_comes_back_from_its_file_and_what_it_leaves_out_is_at_its_default(tmp_path):
    plan = CompressionPlan("mobilenet_v3_small", CompressionBudget(0.5, points=1.0))
    plan = dataclasses.replace(plan.with_steps(7), image_set="things16")
    assert compression.load_plan(plan.save(tmp_path / "plan.yaml")) == plan
    short = compression.parse_plan(
        "format: 1\nmodel: mobilenet_v3_small\nbudget: {macs: 0.5, points: 1}\n"
        "image_set: things16\npruning:\n  training: {steps: 7, augmentation: {flip: false}}\n"
    )
    training = short.pruning.training
    assert (training.steps, training.size, training.augmentation.flip) == (7, 96, False)
    assert training.augmentation.tint == plan.pruning.training.augmentation.tint
    assert short.quantization == compression.QuantizationPlan()


@pytest.mark.parametrize(
    ("lines", "words"),
    (
        ("model: a\nbudget: {macs: 2}", "line 2: budget.macs: 2 is above 1"),
        ("model: a\nbudget: {}", "line 2: budget: A budget says at least one of macs"),
        ("model: a\nbudget: {mac: 1}", "line 2: budget.mac: unknown key; did you mean macs?"),
        ("budget: {macs: 1}", "the key 'model' is missing"),
        ("model: a\nbudget: {macs: 1}\npruning:\n  criterion: l3", "line 4: pruning.criterion"),
        ("model: a\nbudget: {macs: 1}\npruning:\n  training:\n    stepz: 1", "line 5.*steps"),
        ("model: a\nbudget: {macs: 1}\npruning:\n  training:\n    seconds: 1", "line 4.*resumed"),
        ("model: a\nbudget: {macs: 1}\nsurgery: {rules: [lyte]}", "line 3: surgery.rules.*lite"),
        ("model: a\nbudget: {macs: 1}\nquantization:\n  recipe: int9", "line 4.*int8"),
        ("model: a\nbudget: {macs: 1}\ndata: x\nimage_set: things16", "line 4: image_set"),
        ("format: 2\nmodel: a", "newer version"),
        ("[]", "write fields and values"),
        ("model: [", "not readable as a plan of a compression"),
    ),
)
def test_a_mistake_in_a_plan_has_its_line(lines, words):
    with pytest.raises(UsageError, match=words):
        compression.parse_plan(f"{lines}\nformat: 1\n" if "budget" in lines else lines, "p.yaml")


@pytest.mark.parametrize("text", ("", "macs", "macs=", "macs=0", "latency=1.1", "flops=1", "a=b"))
def test_a_budget_that_says_nothing_is_refused(text):
    with pytest.raises(UsageError):
        CompressionBudget.parse(text)


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (("mobilenet_v3_small",), "Pass MODEL and --budget"),
        (("--budget", "macs=0.5"), "Pass MODEL and --budget"),
        (("mobilenet_v3_small", "--budget", "macs=2"), "above 1"),
        (("mobilenet_v3_small", "--budget", "macs=0.5", "--steps", "0"), "--steps"),
        (("mobilenet_v3_small", "--budget", "macs=0.5", "--multiple", "0"), "multiple: 0 is below"),
        (("mobilenet_v3_small", "--budget", "macs=0.5", "--surgery", "lyte"), "lite"),
        (("mobilenet_v3_small", "--budget", "macs=0.5", "--target", "tidl-11"), "does not convert"),
        (
            ("mobilenet_v3_small", "--budget", "macs=0.5", "--target", "litert"),
            "A DLC is for snpe-2.7, qnn, qairt-2025.",
        ),
        (("mobilenet_v3_small", "--budget", "macs=0.5", "--recipe", "a16"), "a16w8"),
        (("mobilenet_v3_small", "--budget", "macs=0.5", "--set", "things16", "--data", "x"), "one"),
        (("--plan", "nowhere.yaml"), "nowhere.yaml"),
    ),
)
def test_mistakes_are_explained_before_any_work(lab, arguments, words, tmp_path):
    code, said, err = lab(*arguments, "-o", tmp_path / "out")
    assert code == 2 and words in said + err and not (tmp_path / "out").exists()


class _KilledError(Exception):
    pass


def killing_at(step, words):
    """A progress that ends a run as a kill does, after some steps of what is called so."""

    def progress(items, description):
        for number, item in enumerate(items):
            if words in description and number == step:
                raise _KilledError
            yield item

    return progress


@pytest.mark.slow
@pytest.mark.htp
def test_everything_at_once_resumes_after_a_kill(own, tmp_path):
    pictures, weights = own
    model = zoo.load(tiny_network.NAME, weights)
    source = folder.read(pictures, model.classes)
    plan = CompressionPlan(model.name, CompressionBudget.parse(BUDGET), str(weights))
    plan = plan.with_steps(60)
    training = plan.pruning.training.replaced(size=SIDE, learning_rate=2e-3, batch_size=32)
    plan = dataclasses.replace(
        plan,
        pruning=dataclasses.replace(plan.pruning, training=training, images=64),
        quantization=compression.QuantizationPlan(calibration=64, steps=3, size=SIDE),
        evaluation=compression.EvaluationPlan(simulated=8),
    )
    said = []
    killed = Listener(said.append, killing_at(55, "fine-tuning"))
    with pytest.raises(_KilledError):
        compression.compress(plan, tmp_path / "out", model, source, killed)
    kept = tmp_path / "out" / "stages"
    before = {file.name: file.stat().st_mtime_ns for file in kept.glob("*.*")}
    assert not (tmp_path / "out" / "ladder.csv").exists()
    assert {name.split("_")[0] for name in before} == {"float", "answers", "widths"}
    assert len(list((kept / "trainings").iterdir())) == 1

    said.clear()
    made = compression.compress(plan, tmp_path / "out", model, source, Listener(said.append))
    text = "\n".join(map(str, said))
    assert "resumed at step 50" in text
    assert all((kept / n).stat().st_mtime_ns == time for n, time in before.items())
    assert not list((kept / "trainings").iterdir())
    check_ladder(made, source, tmp_path / "out")

    whole = compression.compress(plan, tmp_path / "whole", model, source)
    answers = [(row.name, row.top1, row.agreement, row.file.split("_")[0]) for row in made.rows]
    assert [
        (row.name, row.top1, row.agreement, row.file.split("_")[0]) for row in whole.rows
    ] == answers


def check_ladder(made, source, out):
    names = ["original", "original, trained", "pruned", "pruned, trained", "quantized",
             "quantized, trained", "DLC, simulated"]  # fmt: skip
    assert [row.name for row in made.rows] == names
    assert all(row.gate == "passed" for row in made.rows[1:])
    assert made["pruned, trained"].macs < 0.7 and made["quantized"].macs < 0.7
    assert made["quantized, trained"].megabytes <= 0.8 < made["original"].megabytes
    n = len(source.part("val"))
    assert [row.n for row in made.rows] == [n] * 6 + [8]
    better = max(made["original"].top1.value, made["original, trained"].top1.value)
    for row in made.rows[:-1]:
        assert row.points.value == pytest.approx(100 * (row.top1.value - better))
    assert made.artifact == out / f"{manifests.stem_of(made.model)}.dlc"
    assert manifests.read(made.artifact)["gate"]["passed"]
    assert "COMPRESSED" in manifests.read(made.artifact)["claim"]
    assert compression.load_plan(out / "plan.yaml").budget == made.budget
    with (out / "ladder.csv").open(encoding="utf-8", newline="") as file:
        assert [row["stage"] for row in csv.DictReader(file)] == names
    assert paths.recipe_file(made.artifact.with_suffix(".onnx")).exists()
    assert made.ok and "The budget is met." in (out / "ladder.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("budget", "options", "words"),
    (
        ("macs=1", {}, ""),
        ("megabytes=9", {}, ""),
        ("macs=0.5", {"exclude": ("*",)}, "No channel of .* can go: .*excluded by"),
        ("macs=0.5", {"multiple": 4096}, "no widths keep to it"),
    ),
)
def test_where_no_channel_goes_the_stage_is_left_out_and_says_why(budget, options, words, tmp_path):
    model = zoo.load(tiny_network.NAME, "random", SIDE)
    plan = CompressionPlan(model.name, CompressionBudget.parse(budget))
    pruning = dataclasses.replace(plan.pruning, images=8, **options)
    plan = dataclasses.replace(plan, pruning=pruning)
    job = networks.Job(plan, model, data.THINGS16, store.Store(tmp_path), Listener())
    found = networks.pruned(job, model.module)
    assert found.network is None and re.search(words, found.short)
    assert bool(found.short) == bool(words)


def test_stages_are_measured_on_the_part_that_the_plan_says(own, tmp_path):
    """A folder has its own; gates stay with val."""
    model = zoo.load(tiny_network.NAME, "random", SIDE)
    plan = CompressionPlan(model.name, CompressionBudget(0.5))
    for part in ("val", "test"):
        plan = dataclasses.replace(plan, evaluation=compression.EvaluationPlan(part=part))
        assert compression.parse_plan(plan.to_yaml()) == plan
        pictures = folder.read(own[0])
        for source, expected in ((data.THINGS16, part), (pictures, pictures.evaluation)):
            job = networks.Job(plan, model, source, store.Store(tmp_path), Listener())
            assert files.evaluated_part(job) == expected
        job = networks.Job(plan, model, data.THINGS16, store.Store(tmp_path), Listener())
        prepared = model.known_preprocessing()
        gates = prepared(data.load("val", files.GATE_IMAGES, prepared.size).images)
        assert np.array_equal(files.gate_inputs(job), gates)


@pytest.mark.slow
def test_a_run_that_was_killed_does_not_resume_in_one_of_another_budget(own, tmp_path):
    model = zoo.load(tiny_network.NAME, own[1])
    source = folder.read(own[0], model.classes)
    kept = store.Store(tmp_path, **networks.contents(model, source))

    def prune_to(share, listener):
        plan = CompressionPlan(model.name, CompressionBudget(share)).with_steps(52)
        training = plan.pruning.training.replaced(size=SIDE, batch_size=16)
        pruning = dataclasses.replace(plan.pruning, training=training, images=32)
        plan = dataclasses.replace(plan, pruning=pruning)
        return networks.pruned(networks.Job(plan, model, source, kept, listener), model.module)

    said = []
    with pytest.raises(_KilledError):
        prune_to(0.7, Listener(said.append, killing_at(51, "fine-tuning")))
    assert prune_to(0.5, Listener(said.append)).network is not None
    assert "resumed" not in " ".join(map(str, said))
    prune_to(0.7, Listener(said.append))
    assert "resumed at step 50" in " ".join(map(str, said))


@pytest.mark.slow
@pytest.mark.htp
def test_the_command_ends_in_the_nearest_point(own, lab, tmp_path):
    pictures, weights = own
    code, said, err = lab(
        tiny_network.NAME, "--weights", weights, "--data", pictures, "--budget",
        "macs=0.05,megabytes=0.02", "--steps", "2", "--size", SIDE, "--images", "48",
        "--simulated", "4", "--no-control", "-o", tmp_path,
    )  # fmt: skip
    assert code == 1, said + err
    assert "The budget is NOT met; this is the nearest point:" in said
    assert "no widths keep to it" in said and "of the MACs, not 5 %" in said
    assert "original, trained" not in said
    assert (tmp_path / "front.png").read_bytes()[:4] == b"\x89PNG"


def rung(name, top1, macs, megabytes, latency=1.0, n=100):
    right = [True] * top1 + [False] * (n - top1)
    whole = [True] * 90 + [False] * (n - 90)
    return compression.CompressionRung(
        name, f"{name}.onnx", n, metrics.Proportion(top1, n), metrics.Proportion(n, n),
        metrics.paired_difference(right, whole), macs, macs, megabytes, latency, "passed",
    )  # fmt: skip


ROWS = (
    rung("original", 90, 1.0, 16.9), rung("pruned", 20, 0.5, 9.0, 0.6),
    rung("pruned, trained", 88, 0.5, 9.0, 0.6), rung("quantized, trained", 85, 0.5, 2.4, 1.4),
)  # fmt: skip


def judged(text, rows=ROWS, short=(), refused=()):
    budget = CompressionBudget.parse(text)
    return ladder.missed(budget, rows, "quantized, trained", "pruned, trained", short, refused)


def test_what_is_missed_says_what_would_reach_it():
    assert judged("macs=0.5,latency=0.6,megabytes=2.4,points=5") == ()
    assert judged("macs=0.4") == ("macs: 50.0 % of the MACs, not 40 %.",)
    assert judged("latency=0.5") == ("latency: 60.0 % of the time, not 50 %.",)
    assert judged("megabytes=2") == ("megabytes: 2.40 MB, not 2.",)
    [rounding] = judged("points=3")
    assert "-5.00" in rounding and "pruned, trained: -2.00" in rounding and "-3.00" in rounding
    assert "16 bits for more layers" in rounding
    [widths] = judged("points=1")
    assert "about macs=0.75" in widths  # half of what pruning lost, half of the MACs
    assert judged("macs=0.4", short=("", "Raise it."))[-1] == "Raise it."
    assert judged("macs=0.5,points=5", short=("Raise it.",)) == ()  # wider than needed, and met


@pytest.mark.parametrize("budget", ("macs=0.5,megabytes=2.4,points=5", "points=3", "macs=0.4"))
def test_why_no_file_is_handed_on_is_said_whatever_else_is_missed(budget):
    refused = ("gate: WHY", "", "The DLC of quantized: WHY NOT")
    rest = judged(budget)
    assert judged(budget, refused=refused) == (*rest, refused[0], refused[2])


def test_a_file_that_fails_its_gate_is_not_handed_on_and_says_why(tmp_path):
    report = compare.GateReport(
        "ort_int8", "float", "int8", None, {}, {}, ("cosine mean 0.8 < 0.95",)
    )
    stage = stages.Stage("quantized", tmp_path / "q.onnx", 1, 1, report)
    said = stages._failed(stage)
    assert "cosine mean 0.8 < 0.95" in said and "more megabytes" in said
    passed = dataclasses.replace(stage, gate=dataclasses.replace(report, reasons=()))
    assert stages._failed(passed) == "" and stages._word(passed) == "passed"


def test_the_picture_says_what_the_ladder_says():
    budget = CompressionBudget.parse("macs=0.5,megabytes=2,points=1")
    made = compression.CompressionLadder(
        "net", "qnn", "100 images", budget, ROWS, "original", None, "quantized, trained",
        judged("macs=0.5,megabytes=2,points=1"),
    )  # fmt: skip
    picture = figures.compression_front(made)
    assert "50 % of the MACs, 2.40 MB and -5.00 points; the budget is not met" in picture.alt
    dashed = (line for line in picture.axes[0].lines if line.get_linestyle() == "--")
    assert next(dashed).get_xdata()[0] == 50
    assert any("-70" in text.get_text() for text in picture.axes[0].texts)
    assert not made.ok and "nothing is handed on" in str(made)
    assert json.dumps(made.to_dict()) and made._repr_html_()


def test_the_least_size_is_where_a_search_ends(tmp_path):
    from labutils import export

    model = zoo.load(tiny_network.NAME, "random", SIDE)
    export.to_onnx(model.module, tmp_path / "net.onnx", preprocessing=model.preprocessing)
    least = mixed.least_megabytes(tmp_path / "net.onnx")
    images = data.load("calib", 4, SIDE)

    def search(megabytes):
        budget = mixed.Budget(mac_share=0.0, megabytes=megabytes)
        return mixed.search(
            tmp_path / "net.onnx", images, budget, preprocessing=model.preprocessing, judged=4
        )

    assert search(least + 1e-6).front[0].bytes == pytest.approx(1e6 * least, abs=2)
    with pytest.raises(LabError, match="All weights at 4 bits"):
        search(least - 1e-3)
