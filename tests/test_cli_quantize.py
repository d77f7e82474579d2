"""`labutils quantize` as a user meets it: files, figures, front, reasons, refusals."""

import ast
import dataclasses
import json
import re

import numpy as np
import onnx
import pytest
from cases.draft import Draft
from onnx import TensorProto, helper, numpy_helper
from onnx.tools import update_model_dims
from PIL import Image

from labutils import compare, metrics, paths, pipeline, quantize, runtime
from labutils.commands import options
from labutils.images import data, things
from labutils.models import zoo
from labutils.quantize import mixed
from labutils.runtime import qnn

STATED = ("--mean", 0.485, 0.456, 0.406, "--std", 0.229, 0.224, 0.225)
FEW = (*STATED, "--images", 8, "--held-out", 16)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Five convolutions at 32 px, the third with one wide channel; 16 logits."""
    r, nodes, weights = np.random.default_rng(0), [], []
    for i in range(5):
        shape = (16 if i == 4 else 8, 8 if i else 3, 1, 1)
        weight = (r.normal(size=shape) / np.sqrt(shape[1])).astype(np.float32)
        weight[5] *= 25 if i == 2 else 1
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("Conv", [f"t{i}", f"w{i}"], [f"t{i + 1}"], f"conv{i}"))
    nodes.append(helper.make_node("GlobalAveragePool", ["t5"], ["p"], "pool"))
    nodes.append(helper.make_node("Flatten", ["p"], ["logits"], "flat"))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("t0", (1, 3, 32, 32)), ("logits", (1, 16)))
    ]
    graph = helper.make_graph(nodes, "tiny", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("tiny") / "tiny.onnx"
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Pass -o FILE.onnx"),
        (["-o", "x.bin"], "must be an .onnx file"),
        (["-o", "x.onnx", "--recipe", "int8_trimm"], "Did you mean int8_trim"),
        (["-o", "x.onnx", "--recipe", "absent.yaml"], "Cannot read the recipe"),
        (["-o", "x.onnx", "--recipe", "int8_qat"], "is for training"),
        (["-o", "x.onnx", "--recipe", "a16w8", "--mac-share", 0.1], "start from one with 8"),
        (["-o", "x.onnx", "--mac-share", 15], "mac_share is a share, 0 to 1"),
        (["-o", "x.onnx", "--mac-share", 0.1, "--sqnr", 20], "A budget is one of"),
        (["-o", "x.onnx", "--calibration", "absent.npz"], "There is no file"),
        (["-o", "x.onnx", "--images", 0], "at least one is needed"),
        (["-o", "x.onnx", "--held-out", 0], "at least one image"),
        (["-o", "x.onnx", "--repair-for", "snpe-2"], "Did you mean snpe-2.7"),
        (["--explain", "--backend", "htpp"], "Did you mean htp"),
        (["--explain", "--layers", 0], "--layers must be at least 1"),
    ],
    ids=lambda value: " ".join(map(str, value[-2:])) if isinstance(value, list) else "",
)
def test_a_wrong_call_exits_2_and_writes_nothing(
    arguments, words, lab, tiny, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, _, err = lab("quantize", tiny, *STATED, *arguments)
    assert (code, "Traceback" in err) == (2, False)
    assert words in err
    assert not list(tmp_path.iterdir())


def test_the_model_itself_is_not_overwritten(lab, tiny):
    before = paths.sha256(tiny)
    code, _, err = lab("quantize", tiny, *STATED, "-o", tiny)
    assert code == 2 and "is the model itself" in err
    assert paths.sha256(tiny) == before


def test_a_recipe_makes_a_file_that_was_run_beside_the_float_one(lab, tiny, tmp_path):
    made = tmp_path / "q.onnx"
    asked = ("quantize", tiny, *FEW, "--recipe", "int8_trim", "-o", made)
    code, out, _ = lab(*asked, "--tidl-hints", "--json")
    facts = json.loads(out)
    assert code == (0 if facts["ok"] else 1)
    beside = {"q.onnx", "q.onnx.quantization.yaml", "q.onnx.manifest.json", "q.tidl.json"}
    assert {path.name for path in tmp_path.iterdir()} == beside
    assert facts["written"][0] == str(made)
    saved = quantize.load_recipe(paths.recipe_file(made))
    assert saved.calibration.images == 8 and saved.calibration.outliers == 0.05
    # the figures are the file's own, run here again
    images = data.load("val", 16, 32)
    inputs = data.Preprocessing(32)(images.images)
    with runtime.OrtRunner(tiny) as theirs, runtime.OrtRunner(made) as ours:
        found = compare.parity(theirs.run(inputs), ours.run(inputs))
    row = facts["ladder"]["rows"][-1]
    assert row["n"] == 16
    assert row["sqnr_db"] == pytest.approx(found.sqnr_db, abs=1e-3)
    manifest = json.loads(paths.manifest(made).read_text())
    assert manifest["sha256"] == paths.sha256(made)
    assert manifest["gate"]["passed"] == facts["gate"]["passed"]
    assert "prequantized_model" in (tmp_path / "q.tidl.json").read_text()
    # once more, without hints: what described the file before is gone with it
    lab(*asked)
    assert {path.name for path in tmp_path.iterdir()} == beside - {"q.tidl.json"}


def test_weights_in_a_file_beside_the_model_are_found(lab, tiny, tmp_path, monkeypatch):
    apart, made = tmp_path / "model" / "apart.onnx", tmp_path / "q.onnx"
    apart.parent.mkdir()
    stored = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    onnx.save(onnx.load(tiny), apart, **stored)
    monkeypatch.chdir(tmp_path)
    budget = ("--mac-share", 0.5, "--explain", "--layers", 1)
    _, whole, _ = lab("quantize", tiny, *FEW, *budget, "-o", tmp_path / "whole.onnx")
    _, out, _ = lab("quantize", apart, *FEW, *budget, "-o", made)
    assert made.read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    assert "This layer costs most" in out and out.count("dB") == whole.count("dB")


def test_accuracy_is_stated_of_a_trained_model_with_n_and_the_paired_difference(lab, tmp_path):
    model = ("mobilenet_v3_small", "--weights", "things16", "--size", 64)
    few = ("--images", 8, "--held-out", 16)
    out = lab("quantize", *model, *few, "-o", tmp_path / "q.onnx")[1]
    assert re.search(r"float +16 +\d+\.\d+ \[\d", out)
    assert re.search(r"int8@2 +16 +\d+\.\d+ \[.*\] +[-+]\d+\.\d+ \[", out)
    assert "float: in memory, PyTorch" in out and "int8@2: q.onnx, ONNX Runtime" in out
    assert "Wrote q.onnx, q.onnx.quantization.yaml, q.onnx.manifest.json." in out


def test_what_is_not_good_enough_is_kept_and_said(lab, tiny, tmp_path):
    asked = ("--min-cosine", 0.99999, "-o", tmp_path / "q.onnx")
    code, out, _ = lab("quantize", tiny, *FEW, *asked)
    assert code == 1
    assert "FAILED" in out and "OVERRIDDEN" in out and "NOT GOOD ENOUGH" in out
    assert (tmp_path / "q.onnx").exists()
    assert not json.loads((tmp_path / "q.onnx.manifest.json").read_text())["gate"]["passed"]


def test_with_16_bits_everywhere_it_is_not_advised(lab, tiny, tmp_path):
    asked = ("--recipe", "a16w8", "--min-cosine", 0.9999999, "-o", tmp_path / "q.onnx")
    code, out, _ = lab("quantize", tiny, *FEW, *asked)
    assert code == 1 and "NOT GOOD ENOUGH" in out
    assert "have 16 bits already" in out and "the recipe a16w8 spends" not in out


def test_a_network_for_several_images_is_told_how_to_take_one(lab, tmp_path):
    draft = Draft(shape=(4, 3, 32, 32))
    draft.head(draft.stem())
    path = tmp_path / "net.onnx"
    onnx.save(draft.finish([("scores", (4, 16))]), path)
    stated = ["--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5", "--images", "8"]
    command = ("quantize", path, *stated, "--held-out", "16", "-o", tmp_path / "q.onnx")
    code, _, err = lab(*command)
    assert code == 2 and "takes 4 images at once" in err
    words = r"onnx\.tools\.(\w+)\.(\w+)\(model, (.*?)\) changes"
    advice = re.search(words, err)
    assert advice[1] == "update_model_dims"
    opened, given = ast.literal_eval(f"[{advice[3]}]")
    change = getattr(update_model_dims, advice[2])
    onnx.save(change(onnx.load(path), opened, given), path)
    code, out, err = lab(*command)
    assert (code, err) in ((0, ""), (1, "")) and "open batch was fixed to 1" in out


@pytest.fixture(scope="module")
def searched(tiny, tmp_path_factory):
    """A mixed recipe for at most half of the MACs, made through the command's own function."""
    made = tmp_path_factory.mktemp("mixed") / "m.onnx"
    budget = mixed.Budget(mac_share=0.5)
    model = dataclasses.replace(zoo.load(tiny), preprocessing=data.Preprocessing(32))
    search, few = pipeline.Search(budget), pipeline.Comparison(16)
    return pipeline.quantize_model(model, made, search, 8, comparison=few)


def test_a_budget_is_searched_and_its_recipe_makes_the_same_file(searched, lab, tiny):
    assert 0 < searched.search.point.mac_share <= 0.5
    assert searched.search.point.wide
    text = str(searched)
    assert "at most 50 % of the MACs at 16 bits" in text
    assert "by block (its recipe names them): " in text
    shown = searched._repr_html_()
    assert all(part in shown for part in ("Mixed precision", "Fidelity ladder", "Parity gate"))
    again = searched.file.with_name("again.onnx")
    lab("quantize", tiny, *STATED, "--held-out", 16,
        "--recipe", paths.recipe_file(searched.file), "-o", again)  # fmt: skip
    assert again.read_bytes() == searched.file.read_bytes()


def test_a_budget_that_holds_on_the_calibration_images_only_is_missed(searched):
    found = searched.ladder.rows[-1].parity.sqnr_db
    for wanted, missed in ((found - 1, False), (found + 1, True)):
        search = dataclasses.replace(searched.search, budget=mixed.Budget(sqnr_db=wanted))
        made = dataclasses.replace(searched, search=search)
        assert bool(made.missed) == missed
        assert ("BUDGET MISSED" in str(made)) == missed
        assert made.ok == (searched.gate.passed and not missed)


@pytest.mark.parametrize("hits, missed", [(0, True), (8, True), (15, False), (16, False)])
def test_an_agreement_is_missed_when_the_interval_on_held_out_images_lies_below(
    searched, hits, missed
):
    rows = searched.ladder.rows
    agreement = metrics.Proportion(hits, 16)
    parity = dataclasses.replace(rows[-1].parity, agreement=agreement)
    last = dataclasses.replace(rows[-1], parity=parity)
    made = dataclasses.replace(
        searched,
        ladder=dataclasses.replace(searched.ladder, rows=(*rows[:-1], last)),
        search=dataclasses.replace(searched.search, budget=mixed.Budget(agreement=0.95)),
    )
    assert (agreement.interval[1] < 0.95) == missed
    assert made.missed.startswith("BUDGET MISSED on the held-out images: top-1") == missed
    assert made.ok == (searched.gate.passed and not missed)


@pytest.mark.htp
@pytest.mark.slow
def test_convert_takes_the_recipe_and_gives_a_gated_dlc(lab, tmp_path):
    model = ("mobilenet_v3_small", "--weights", "things16", "--size", 96)
    made, dlc = tmp_path / "m.onnx", tmp_path / "m.dlc"
    asked = ("--images", 32, "--held-out", 16, "--mac-share", 0.1, "-o", made)
    assert lab("quantize", *model, *asked)[0] == 0
    recipe = paths.recipe_file(made)
    code, out, err = lab("convert", *model, "--target", "qnn", "--quantize", recipe, "-o", dlc)
    assert code == 0, err
    assert "Parity gate (htp_int8): passed" in out
    assert json.loads(paths.manifest(dlc).read_text())["quantization"]["overrides"]
    batch = data.Preprocessing(96)(data.load("val", 2, 96).images)
    with runtime.connect(dlc) as theirs, runtime.OrtRunner(made, optimize=False) as ours:
        assert compare.parity(ours.run(batch), theirs.run(batch)).sqnr_db > 15


def test_a_repaired_networks_recipe_names_the_repaired_nodes(lab, small_onnx, tmp_path):
    made = tmp_path / "q.onnx"
    _, out, _ = lab("quantize", small_onnx(17), *FEW, "--repair-for", "snpe-2.7", "-o", made)
    assert f"reference   {small_onnx(17).name}" in out  # what was brought, not what was repaired
    ops = {node.op_type for node in onnx.load(made).graph.node}
    assert "HardSwish" not in ops and "QuantizeLinear" in ops
    assert paths.edits_file(made).exists()


def test_the_costliest_layers_are_explained_and_nothing_is_written(
    lab, tiny, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    out = " ".join(lab("quantize", tiny, *FEW, "--explain", "--layers", 2)[1].split())
    assert "These two layers cost most" in out
    assert "2 layers (the costliest of 8), 8 images" in out
    assert "Nothing was written (no -o)." in out
    assert not list(tmp_path.iterdir())


def test_images_of_ones_own_on_both_sides(lab, tiny, tmp_path):
    pixels = data.Preprocessing(32)(data.load("train", 12, 32).images)
    np.savez(tmp_path / "calib.npz", pixels[:8])
    np.savez(tmp_path / "held.npz", pixels[8:])
    own = ("--calibration", tmp_path / "calib.npz", "--inputs", tmp_path / "held.npz")
    _, out, _ = lab("quantize", tiny, *STATED, *own, "-o", tmp_path / "q.onnx")
    assert "8 calibration images" in out and "(n=4)" in out
    assert "Fidelity ladder" not in out  # no labels: no accuracy
    _, out, _ = lab("quantize", tiny, *STATED, *own, "--images", 4, "-o", tmp_path / "r.onnx")
    assert "4 calibration images" in out


def test_folders_of_pictures(lab, tiny, tmp_path):
    for folder, split, n in (("some", "train", 6), ("others", "test", 3), ("none", "test", 0)):
        (tmp_path / folder).mkdir()
        for i in range(n):
            Image.fromarray(things.image(i, split, 48)).save(tmp_path / folder / f"{i}.png")
    (tmp_path / "none" / "notes.txt").touch()
    own = ("--calibration", tmp_path / "some", "--inputs", tmp_path / "others")
    _, out, _ = lab("quantize", tiny, *STATED, *own, "-o", tmp_path / "q.onnx")
    assert "6 calibration images" in out and "3 pictures in others" in out
    assert "Top-1 is unknown" in out
    code, _, err = lab("quantize", tiny, *STATED, "--calibration", tmp_path / "none", "--explain")
    assert code == 2 and "holds no pictures (.jpg" in err


def test_without_the_wheel_the_simulator_is_refused_before_the_work(lab, tiny, monkeypatch):
    absent = qnn.Availability(False, "There is no wheel for this machine", {})
    monkeypatch.setattr("labutils.runtime.qnn.pool.probe", lambda: absent)
    code, out, err = lab("quantize", tiny, *STATED, "--explain", "--backend", "htp")
    assert code == 1 and not out
    assert "needs Qualcomm's onnxruntime-qnn. There is no wheel for this machine" in err


def test_long_work_says_a_line_now_and_then_where_there_is_no_terminal(capsys, monkeypatch):
    assert list(options.progress_bar(range(3), "calibration")) == [0, 1, 2]
    assert capsys.readouterr().err == ""  # it was quick
    monkeypatch.setattr(options, "_SILENT_S", -1.0)
    assert list(options.progress_bar(range(3), "calibration")) == [0, 1, 2]
    assert capsys.readouterr().err.splitlines()[-1] == "calibration: 3 of 3"


def test_layers_are_explained_with_the_weights_that_equalized_gates_have(lab):
    """Left in float with those of the network as it was, one layer alone would cost 30 dB."""
    model = ("mobilenet_v3_small", "--weights", "things16", "--size", 64)
    asked = ("--images", 16, "--held-out", 8, "--explain", "--layers", 3, "--json")
    code, out, err = lab("quantize", *model, *asked)
    assert code == 0, err
    found = re.findall(r'"alone_db": (-?[\d.]+)', out)
    assert len(found) == 3 and all(float(alone) > 15 for alone in found)
