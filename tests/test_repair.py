"""Repair: the plan is what the rules do to this model, the result is compared with the original."""

import dataclasses
import json

import known_wrong
import numpy as np
import onnx
import pytest
from cases.draft import CLASSES, Draft
from onnx import helper

from labutils import dlc, manifests, paths, pipeline, surgery, targets
from labutils.errors import ConvertError, SurgeryError, TranslationError, UsageError
from labutils.models import zoo
from labutils.onnxfile.file import OnnxFile
from labutils.pipeline import steps

REPAIR = pipeline.Preparation(repair_for="snpe-2.7")


def test_plan_at_opset_17(small_onnx):
    plan = pipeline.suggest(small_onnx(17), "snpe-2.7")
    assert plan.rules == {"hardsigmoid": 9, "hardswish": 19}
    assert plan.complete
    assert "rule 'hardswish' would repair 19 nodes" in str(plan)


def test_plan_at_opset_13_knows_the_decomposed_hardswish(small_onnx):
    plan = pipeline.suggest(small_onnx(13), "snpe-2.7")
    assert len(plan.check.blockers) == 28  # all of them HardSigmoid
    assert plan.rules == {"hardsigmoid": 9, "hardswish": 19}
    assert plan.complete


@pytest.mark.parametrize("opset", [13, 17])
def test_apply_leaves_nothing_that_blocks(opset, small_onnx, inputs, tmp_path):
    done = pipeline.apply(small_onnx(opset), "snpe-2.7", tmp_path / "r.onnx", inputs(1, 64))
    assert done.check.ok
    assert done.surgery.check.rounding
    assert targets.check(tmp_path / "r.onnx", "snpe-2.7").opset == opset
    ops = {node.op_type for node in onnx.load(tmp_path / "r.onnx").graph.node}
    assert not ops & {"HardSwish", "HardSigmoid"}
    with pytest.raises(SurgeryError, match="no repair is needed"):
        pipeline.apply(tmp_path / "r.onnx", "snpe-2.7", tmp_path / "again.onnx")
    assert not (tmp_path / "again.onnx").exists()


def test_a_repaired_file_has_a_manifest_that_says_what_was_done(small_onnx, tmp_path, lab):
    asked = ("--target", "snpe-2.7", "-o", tmp_path / "r.onnx")
    code, said, err = lab("repair", small_onnx(17), *asked)
    assert code == 0 and "Surgery on the ONNX graph" in said, err
    manifest = manifests.read(tmp_path / "r.onnx")
    assert manifest["sha256"] == paths.sha256(tmp_path / "r.onnx")
    assert manifest["brought"]["sha256"] == paths.sha256(small_onnx(17))
    assert (manifest["target"], manifest["opset"]) == ("snpe-2.7", 17)
    assert manifest["repair"]["rules"]["hardswish"]["exact"] is True
    again = ("--replay", paths.edits_file(tmp_path / "r.onnx"), "-o", tmp_path / "again.onnx")
    assert lab("repair", small_onnx(17), *again)[0] == 0
    replayed = manifests.read(tmp_path / "again.onnx")["repair"]
    assert replayed["edits"] == manifest["repair"]["edits"]


def test_what_the_table_does_not_know_is_not_called_fine(lab, tmp_path):
    einsum = helper.make_node("Einsum", ["input"], ["pixels"], name="/e", equation="nchw->nwhc")
    source, _ = known_wrong.build(tmp_path / "m.onnx", [einsum], size=16, opset=17)
    said = str(pipeline.suggest(source, "qnn"))
    assert "Unknown to it, and perhaps refused: Einsum (1 node)" in said
    assert "no repair is needed" not in said and "labutils convert" in said
    _, out, _ = lab("diagnose", source, "--target", "qnn")
    assert "Einsum (1 node)" in out and "no repair is needed" not in out


def test_what_no_rule_repairs_is_said(tmp_path):
    nodes = [
        helper.make_node("HardSwish", ["input"], ["a"], name="/act/HardSwish"),
        helper.make_node("Hardmax", ["a"], ["pixels"], name="/odd/Hardmax"),
    ]
    source, _ = known_wrong.build(tmp_path / "m.onnx", nodes, size=16, opset=17)
    plan = pipeline.suggest(source, "qnn")  # QNN takes HardSwish, and has no Hardmax
    assert [node.node for node in plan.unrepairable] == ["/odd/Hardmax"]
    assert "no rule repairs 1 x Hardmax" in str(plan)
    with pytest.raises(SurgeryError, match="cannot be repaired in full"):
        pipeline.apply(source, "qnn", tmp_path / "r.onnx")
    assert not (tmp_path / "r.onnx").exists()


def test_a_refused_opset_is_not_promised_a_repair(small_onnx, tmp_path):
    plan = pipeline.suggest(small_onnx(20), "rdk-x5")  # whose Reshape has an idle allowzero
    if plan.check.opset_blocker is None:
        pytest.fail("the table of rdk-x5 documents opsets 10 and 11 only")
    assert plan.complete and "opset-11" in plan.rules
    nodes = [helper.make_node("Hardmax", ["input"], ["pixels"], name="/h")]  # another one at 11
    source, _ = known_wrong.build(tmp_path / "m.onnx", nodes, size=16, opset=20)
    assert not pipeline.suggest(source, "rdk-x5").complete
    with pytest.raises(SurgeryError, match="cannot be repaired in full"):
        pipeline.apply(source, "rdk-x5", tmp_path / "r.onnx")
    assert not (tmp_path / "r.onnx").exists()


def random_small():
    return zoo.load("mobilenet_v3_small", weights="random", size=64)


@pytest.mark.htp
def test_without_repair_nothing_is_written_and_the_rules_are_named(tmp_path):
    with pytest.raises(TranslationError) as caught:
        pipeline.convert_model(random_small(), "snpe-2.7", tmp_path / "x.dlc")
    text = str(caught.value)
    assert "HardSwish" in text
    assert "features.0.2" in text
    assert "rule 'hardswish'" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.htp
def test_a_named_model_becomes_a_verified_dlc(tmp_path):
    made = pipeline.convert_model(random_small(), "snpe-2.7", tmp_path / "x.dlc", REPAIR)
    assert made.gate.passed
    assert made.gate.parity.n == steps.GATE_IMAGES
    assert "PyTorch" in made.gate.reference  # the module that was brought, not the repaired one
    assert zoo.load(tmp_path / "x.dlc").preprocessing.size == 64


@pytest.mark.htp
def test_a_wrong_rule_is_not_taken(tmp_path, monkeypatch):
    """A rule that claims to be exact and is not: the vendor's 0.167 with a slip, 0.67."""
    import dataclasses

    from labutils.surgery.rules import book

    def build(builder, x, node):
        return builder.clip(builder.add(builder.mul(x, 0.67), 0.5), 0.0, 1.0)

    good = surgery.RULES["hardsigmoid"]
    forms = tuple(dataclasses.replace(f, build=build) if f.build else f for f in good.onnx)
    monkeypatch.setitem(book.RULES, "hardsigmoid", dataclasses.replace(good, onnx=forms))
    with pytest.raises(SurgeryError, match="9 x HardSigmoid"):
        pipeline.convert_model(random_small(), "snpe-2.7", tmp_path / "x.dlc", REPAIR)
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_is_asked_for_its_preprocessing(tmp_path, small_onnx):
    model = onnx.load(small_onnx(17))
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    with pytest.raises(UsageError, match="never guessed"):
        pipeline.convert_model(
            zoo.load(tmp_path / "foreign.onnx"), "snpe-2.7", tmp_path / "x.dlc", REPAIR
        )


@pytest.fixture
def without_exact_hardswish(monkeypatch):
    """A rule book in which Hardswish has no exact rule."""
    monkeypatch.delitem(surgery.RULES, "hardswish")


def test_approximate_rules_are_offered_and_not_applied(
    small_onnx, tmp_path, without_exact_hardswish
):
    plan = pipeline.suggest(small_onnx(17), "snpe-2.7")
    assert plan.rules == {"hardsigmoid": 9}
    assert not plan.complete
    assert plan.offered == {"hardswish-to-relu": 19}
    assert "--allow-approximate" in str(plan)
    assert plan.to_dict()["offered_approximate"] == {"hardswish-to-relu": 19}
    with pytest.raises(SurgeryError, match="cannot be repaired in full"):
        pipeline.apply(small_onnx(17), "snpe-2.7", tmp_path / "r.onnx")
    assert list(tmp_path.iterdir()) == []


def test_allowed_they_are_applied_and_said_aloud(small_onnx, tmp_path, without_exact_hardswish):
    done = pipeline.apply(small_onnx(17), "snpe-2.7", tmp_path / "r.onnx", allow_approximate=True)
    assert done.check.ok
    assert not done.exact
    assert not done.edits.exact
    assert done.plan.rules == {"hardsigmoid": 9, "hardswish-to-relu": 19}
    assert "APPROXIMATED" in str(done)
    assert "DIFFERENT" in str(done.surgery)
    assert surgery.edits_in(onnx.load(done.file))[0]["exact"] is False


@pytest.mark.htp
def test_an_approximated_dlc_is_judged_by_the_surgered_model_and_says_so(
    tmp_path, without_exact_hardswish
):
    """The gate cannot pass against the model that was brought; the manifest has the distance."""
    said = []
    made = pipeline.convert_model(
        random_small(),
        "snpe-2.7",
        tmp_path / "x.dlc",
        dataclasses.replace(REPAIR, allow_approximate=True),
        listener=pipeline.Listener(lambda line: said.append(str(line))),
    )
    assert made.gate.passed
    assert "PyTorch" not in made.gate.reference  # the repaired file, not the module brought
    assert made.claim.startswith("APPROXIMATED by hardswish-to-relu: this is NOT the original")
    assert any(line.startswith("APPROXIMATED by") for line in said)
    manifest = json.loads(made.manifest.read_text())
    assert manifest["claim"] == made.claim
    assert manifest["approximation"]["cosine_mean"] < 0.99
    assert surgery.Edits.read(paths.edits_file(made.file)).steps


@pytest.mark.htp
def test_an_exact_repair_leaves_its_edits_and_no_caveat(tmp_path):
    made = pipeline.convert_model(random_small(), "snpe-2.7", tmp_path / "x.dlc", REPAIR)
    manifest = json.loads(made.manifest.read_text())
    assert manifest["approximation"] is None
    edits = surgery.Edits.read(tmp_path / "x.dlc.edits.yaml")
    assert manifest["repair"]["edits"] == edits.to_dict()
    assert edits.exact
    replayed = pipeline.Preparation(edits=edits)
    again = pipeline.convert_model(random_small(), "snpe-2.7", tmp_path / "y.dlc", replayed)
    assert again.gate.passed


def test_a_partial_repair_is_for_targets_that_split_the_graph(tmp_path):
    nodes = [
        helper.make_node("Relu", ["input"], ["r"], name="/a/Relu"),
        helper.make_node("Sub", ["input", "r"], ["d"], name="/b/Sub"),
        helper.make_node("Mish", ["d"], ["m"], name="/c/Mish"),
        helper.make_node("Softsign", ["m"], ["pixels"], name="/d/Softsign"),
    ]
    source, _ = known_wrong.build(tmp_path / "m.onnx", nodes, size=16, opset=18)
    done = pipeline.apply(source, "tidl-11", tmp_path / "r.onnx")
    assert "sub-to-add" in done.plan.rules
    blocking = [node.op_type for node in done.plan.check.blockers]
    assert len(done.check.blockers) < len(blocking)


def test_an_erf_is_taken_within_a_gelu_only(tmp_path):
    def check(op, factor):
        constants = {"root": np.float32(factor), "one": np.float32(1)}
        nodes = [
            helper.make_node("Div", ["input", "root"], ["d"], name="/Div"),
            helper.make_node("Erf", ["d"], ["e"], name="/Erf"),
            helper.make_node(op, ["e", "one"], ["pixels"], name="/Last"),
        ]
        path = tmp_path / f"{op}{factor:.0f}.onnx"
        source, _ = known_wrong.build(path, nodes, size=8, opset=17, constants=constants)
        return [node.op_type for node in targets.check(source, "qnn").blockers]

    assert check("Add", 2**0.5) == []
    assert check("Add", 3.0) == ["Erf"]
    assert check("Mul", 2**0.5) == ["Erf"]


def test_the_reasons_of_the_rules_reach_the_user(tmp_path):
    """A rule that is for what blocks, and objects, says why; a node in its way is named."""
    nodes = [
        helper.make_node("Relu", ["input"], ["r"], name="/a/Relu"),
        helper.make_node("GridSample", ["r", "grid"], ["pixels"], name="/b/GridSample"),
    ]
    constants = {"grid": np.zeros((1, 4, 4, 2), np.float32)}
    source, _ = known_wrong.build(tmp_path / "m.onnx", nodes, size=8, opset=18, constants=constants)
    plan = pipeline.suggest(source, "rdk-x5")
    assert "opset 18" in plan.objections
    words = "rule 'opset-11' leaves it: GridSample '/b/GridSample': opset 11 has no such operator"
    assert words in str(plan)
    assert "no rule repairs 1 x opset" not in str(plan)
    assert any(words in line for line in plan.to_dict()["objections"]["opset 18"])


def test_what_stands_in_the_way_of_an_older_opset_is_replaced_first(tmp_path):
    nodes = [helper.make_node("Celu", ["input"], ["pixels"], name="/a/Celu", alpha=0.5)]
    source, _ = known_wrong.build(tmp_path / "m.onnx", nodes, size=8, opset=18)
    done = pipeline.apply(source, "rdk-x5", tmp_path / "r.onnx")
    assert done.plan.rules == {"celu": 1, "opset-11": 1}
    assert done.surgery.check.rounding


@pytest.mark.htp
@pytest.mark.parametrize("target", ["snpe-2.7", "qnn", "qairt-2025"])
def test_the_writer_takes_part_in_the_plan(target, tmp_path):
    """The targets' tables differ; the file must pass the one tool that writes it."""
    nodes = [
        helper.make_node("Celu", ["input"], ["a"], name="/a/Celu", alpha=0.5),
        helper.make_node("Relu", ["a"], ["b"], name="/b/Relu"),
        helper.make_node("Pad", ["b", "pads"], ["pixels"], name="/c/Pad"),
    ]
    constants = {"pads": np.array([0, 0, 0, 0, 0, 0, 0, 1])}
    source, _ = known_wrong.build(tmp_path / "m.onnx", nodes, size=8, opset=17, constants=constants)
    refused = dlc.refused_nodes(OnnxFile.of(source))
    assert {node.op_type for node in refused} == {"Celu", "Pad"}
    assert any("not supported by QNN EP" in node.evidence for node in refused)
    done = pipeline.apply(source, target, tmp_path / "r.onnx", writer=dlc.refused_nodes)
    assert {"celu", "pad-to-concat"} <= done.plan.rules.keys()
    assert dlc.refused_nodes(OnnxFile.of(done.file)) == ()


@pytest.mark.htp
def test_operators_that_part_the_graph_are_named_and_replaced(tmp_path):
    """ONNX Runtime writes a Mish as its parts, which QNN takes: five graphs, and no refusal."""
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["a"], name="/a/Conv"),
        helper.make_node("Mish", ["a"], ["b"], name="/b/Mish"),
        helper.make_node("Conv", ["b", "w"], ["pixels"], name="/c/Conv"),
    ]
    constants = {"w": np.random.default_rng(0).normal(size=(3, 3, 1, 1)).astype(np.float32)}
    source, _ = known_wrong.build(tmp_path / "m.onnx", nodes, size=8, opset=18, constants=constants)
    with pytest.raises(ConvertError, match=r"(?s)split at these.*Mish '/b/Mish'.*--repair"):
        dlc.write(source, tmp_path / "m.dlc")
    assert not (tmp_path / "m.dlc").exists()
    (refused,) = dlc.refused_nodes(OnnxFile.of(source))
    assert (refused.op_type, refused.node, refused.module) == ("Mish", "/b/Mish", "b")
    done = pipeline.apply(source, "snpe-2.7", tmp_path / "r.onnx", writer=dlc.refused_nodes)
    assert done.plan.rules == {"mish": 1}
    assert dlc.refused_nodes(OnnxFile.of(done.file)) == ()


@pytest.mark.htp
def test_what_the_writer_refuses_and_no_rule_repairs_is_said_with_its_reason(tmp_path):
    nodes = [
        helper.make_node("MaxPool", ["input"], ["pixels"], name="/p/MaxPool",
                         kernel_shape=[2, 2], dilations=[2, 2]),
    ]  # fmt: skip
    source, _ = known_wrong.build(tmp_path / "m.onnx", nodes, size=9, opset=17)
    with pytest.raises(SurgeryError, match=r"MaxPool.*refuses it: .*dilations"):
        pipeline.apply(source, "snpe-2.7", tmp_path / "r.onnx", writer=dlc.refused_nodes)
    assert not (tmp_path / "r.onnx").exists()


def test_what_adapting_a_file_left_out_is_told_by_its_repair(lab, tmp_path):
    draft = Draft(shape=(1, 3, 16, 16))
    draft.head(draft.stem("HardSwish"))
    anchors = draft.weight("anchors", np.float32([1, 2]))
    file, made = tmp_path / "m.onnx", tmp_path / "r.onnx"
    onnx.save(draft.finish([("scores", (1, CLASSES)), (anchors, (2,))]), file)
    code, said, err = lab("repair", file, "--target", "snpe-2.7", "-o", made)
    assert code == 0, err
    assert "output 'anchors' left out: it is a constant" in said
    assert "output 'anchors' left out" in manifests.read(made)["model"]["note"]
