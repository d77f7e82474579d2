"""Edits of a surgery: written, read back, replayed on other weights, refused elsewhere."""

import copy
import dataclasses
import json
import warnings

import numpy as np
import onnx
import pytest
import torch
import yaml
from torch import nn

from labutils import paths, pipeline, provenance, quantize, surgery, train
from labutils.errors import EarlierFormatWarning, SurgeryError, UsageError
from labutils.models import zoo
from labutils.pipeline import conversion, steps


@pytest.fixture(scope="module")
def repaired(small_onnx, tmp_path_factory):
    file = tmp_path_factory.mktemp("repaired") / "r.onnx"
    return pipeline.apply(small_onnx(17), "snpe-2.7", file)


def other_weights(model):
    """The same network with other weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    return other


def test_the_edits_lie_beside_the_file_and_in_it(repaired):
    beside = paths.edits_file(repaired.file)
    assert beside.name == "r.onnx.edits.yaml"
    assert surgery.Edits.read(beside) == repaired.edits
    (recorded,) = surgery.edits_in(onnx.load(repaired.file))
    assert recorded == repaired.edits.to_dict()
    assert recorded["steps"][0]["replaced"] == {"hardsigmoid": 9, "hardswish": 19}


def test_it_is_replayed_on_another_checkpoint(repaired, small, tmp_path):
    from labutils import export

    export.to_onnx(other_weights(small), tmp_path / "other.onnx", size=64)
    done = pipeline.replay(
        tmp_path / "other.onnx", paths.edits_file(repaired.file), tmp_path / "again.onnx"
    )
    assert done.surgery.check.rounding
    assert done.surgery.counts == {"hardsigmoid": 9, "hardswish": 19}
    assert done.check.ok
    weights = {
        t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(done.file).graph.initializer
    }
    first = {t.name: onnx.numpy_helper.to_array(t)
             for t in onnx.load(repaired.file).graph.initializer}  # fmt: skip
    assert any(not np.array_equal(weights[n], first[n]) for n in weights.keys() & first.keys())


def test_another_network_is_refused_by_its_first_difference(repaired, large_onnx, tmp_path):
    with pytest.raises(SurgeryError, match=r"node \d+ is '.+' here and '.+' there"):
        pipeline.replay(large_onnx(17), repaired.edits, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_edits_of_modules_with_globs(small):
    model = copy.deepcopy(small)
    rule = surgery.RULES["hardswish"].without("features.0.*").only("features.*")
    report = surgery.replace_(model, rule)
    edits = surgery.edits_of(report, model="mobilenet_v3_small")
    assert surgery.Edits.from_yaml(edits.to_yaml()) == edits
    other = other_weights(small)
    (again,) = surgery.replay_(other, edits)
    assert again.counts == report.counts
    assert type(other.features[0][2]).__name__ == "Hardswish"
    assert surgery.outline(other) == surgery.outline(model)


def test_another_module_is_refused_and_left_alone(small):
    edits = surgery.edits_of(surgery.replace_(copy.deepcopy(small), "hardswish"))
    wider = train.network("mobilenet_v3_small", classes=10)
    before = surgery.outline(wider)
    with pytest.raises(SurgeryError, match=r"'classifier\.3 Linear 10x1024 10' here"):
        surgery.replay_(wider, edits)
    assert surgery.outline(wider) == before


def test_a_rule_book_that_changed_is_noticed(small):
    edits = surgery.edits_of(surgery.replace_(copy.deepcopy(small), "hardswish"))
    text = edits.to_yaml().replace("hardswish: 19", "hardswish: 18")
    model = copy.deepcopy(small)
    before = surgery.outline(model)
    with pytest.raises(SurgeryError, match="the rule book has changed"):
        surgery.replay_(model, surgery.Edits.from_yaml(text))
    assert surgery.outline(model) == before


def test_rules_of_ones_own_are_handed_in():
    rule = surgery.select({nn.GELU: nn.ReLU})[0]
    model = nn.Sequential(nn.Linear(3, 3), nn.GELU())
    edits = surgery.edits_of(surgery.replace_(copy.deepcopy(model), rule))
    assert not edits.exact
    with pytest.raises(UsageError, match="no surgery rule"):
        surgery.replay_(copy.deepcopy(model), edits)
    surgery.replay_(model, edits, rules=[rule])
    assert isinstance(model[1], nn.ReLU)


GOOD = """format: 1
steps:
- rules: [hardswish]
  level: onnx
  replaced: {hardswish: 3}
outline:
- Conv 8x3x3x3
"""


@pytest.mark.parametrize(
    ("wrong", "line", "words"),
    [
        (
            GOOD.replace("level: onnx", "levle: onnx"),
            4,
            "levle: unknown key; did you mean",
        ),
        (GOOD.replace("[hardswish]", "hardswish"), 3, "rules: expected a list, found 'hardswish'"),
        (
            GOOD.replace("hardswish: 3", "hardswish: many"),
            5,
            "expected a whole number, found 'many'",
        ),
        (GOOD.replace("- Conv 8x3x3x3", "- 8"), 7, "outline.0: expected text, found 8"),
        (GOOD.replace("format: 1", "format: 2"), 1, "this lab reads up to 1"),
        (GOOD.replace("outline:\n- Conv 8x3x3x3\n", ""), 1, "'outline' is missing"),
        (GOOD.replace("steps:", "steps: ["), 3, "not readable as the edits"),
        ("- a list", 1, "expected a mapping"),
        (GOOD.replace("format: 1", "format: 1\nformat: 1"), 2, "'format' is given twice"),
        (GOOD.replace("level: onnx", "level: onnx\n  level: auto"), 5, "'level' is given twice"),
        (GOOD.replace("{hardswish: 3}", "{hardswish: 3, hardswish: 4}"), 5, "is given twice"),
    ],
)
def test_faulty_edits_name_the_line(wrong, line, words):
    assert surgery.Edits.from_yaml(GOOD).steps[0].replaced == {"hardswish": 3}
    with pytest.raises(UsageError, match=words) as caught:
        surgery.Edits.from_yaml(wrong, "r.yaml")
    assert f"r.yaml, line {line}" in str(caught.value)


def test_the_command_line_repairs_and_replays(small_onnx, tmp_path, capsys):
    from labutils import __main__

    def lab(*words):
        return __main__.main([*map(str, words)])

    made = tmp_path / "m.onnx"
    assert lab("repair", small_onnx(17), "--target", "rdk-x5", "-o", made, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["exact"] is True
    assert [step["rules"] for step in facts["edits"]["steps"]] == [["hardswish"], ["opset-11"]]
    assert facts["counts_after"]["unsupported"] == 0
    again = tmp_path / "again.onnx"
    edits = paths.edits_file(made)
    assert lab("repair", small_onnx(17), "--replay", edits, "-o", again) == 0
    a, b = (onnx.load(f) for f in (made, again))
    assert a.graph.node == b.graph.node
    assert lab("repair", small_onnx(17), "-o", again) == 2
    assert lab("repair", small_onnx(17), "--target", "qnn", "-o", again) == 0  # nothing to repair


def test_edits_are_stored_with_every_value_and_their_format(repaired):
    data = yaml.safe_load(paths.edits_file(repaired.file).read_text())
    assert repaired.edits.to_dict() == {key: data[key] for key in data if key != "outline"}
    assert data["format"] == 1
    assert set(data) == {"format"} | {entry.name for entry in dataclasses.fields(surgery.Edits)}
    for step in data["steps"]:
        assert set(step) == {entry.name for entry in dataclasses.fields(surgery.Edit)}


def test_edits_are_not_taken_for_a_recipe(repaired):
    with pytest.raises(UsageError, match="the edits of a surgery, not a recipe"):
        quantize.load_recipe(paths.edits_file(repaired.file))


def test_edits_of_an_earlier_version_are_read_with_a_line(tmp_path, repaired):
    earlier = tmp_path / "r.onnx.recipe.yaml"
    earlier.write_text(GOOD)  # written without its empty values
    with pytest.warns(EarlierFormatWarning, match="called edits a recipe"):
        assert surgery.Edits.read(earlier).steps[0].replaced == {"hardswish": 3}
    with pytest.warns(EarlierFormatWarning, match=r"r\.yaml has no format number"):
        assert surgery.Edits.from_yaml(GOOD.replace("format: 1\n", ""), "r.yaml").exact
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        surgery.Edits.read(paths.edits_file(repaired.file))


@pytest.mark.parametrize("command", [("repair",), ("convert", "--target", "qnn")])
def test_the_option_of_before_is_refused_with_its_new_name(command, tmp_path, capsys):
    from labutils import __main__

    out = tmp_path / "x.dlc"
    words = [*command, "mobilenet_v3_small", "--recipe", "r.yaml", "-o", str(out)]
    assert __main__.main(words) == 2
    assert "--replay r.yaml" in capsys.readouterr().err


def test_a_file_that_was_changed_says_so_wherever_it_is_loaded(small_onnx, tmp_path):
    approximated = tmp_path / "lite.onnx"
    report = surgery.replace_file(small_onnx(17), approximated, "lite")
    assert not report.exact
    loaded = zoo.load(str(approximated))
    assert "APPROXIMATED by" in loaded.note and "hardswish-to-relu" in loaded.note
    (earlier,) = steps.facts_of(loaded)["earlier_edits"]
    assert earlier["exact"] is False
    (caveat,) = conversion._caveats(loaded, None)
    assert caveat.startswith("The original file: APPROXIMATED by")


def test_a_file_that_was_repaired_exactly_says_so_without_a_caveat(repaired):
    loaded = zoo.load(str(repaired.file))
    assert "repaired by exact rules for 'snpe-2.7'" in loaded.note
    assert list(conversion._caveats(loaded, None)) == []


DAMAGED = ["5", "{", '"ab"', "[1]", '[{"exact": true, "steps": 5}]', '[{"exact": 1, "steps": []}]',
           '[{"exact": false, "steps": [3]}]', '[{"exact": false, "steps": [{"replaced": 7}]}]',
           '[{"steps": []}]', "[" * 3000]  # fmt: skip


@pytest.mark.parametrize("record", DAMAGED, ids=lambda record: record[:30])
def test_a_damaged_record_of_surgery_is_neither_a_crash_nor_no_surgery(
    small_onnx, tmp_path, record
):
    model = onnx.load(small_onnx(17))
    model.metadata_props.add(key=provenance.EDITS_KEY, value=record)
    onnx.save(model, tmp_path / "m.onnx")
    loaded = zoo.load(str(tmp_path / "m.onnx"))
    assert "record of surgery is damaged" in loaded.note
    assert "damaged" in next(conversion._caveats(loaded, None))


def test_names_in_a_record_of_surgery_do_not_command_a_terminal(small_onnx, tmp_path):
    model = onnx.load(small_onnx(17))
    record = [{"exact": False, "steps": [{"replaced": {"\x1b[31m" + "x" * 9000: 1}}]}]
    model.metadata_props.add(key=provenance.EDITS_KEY, value=json.dumps(record))
    onnx.save(model, tmp_path / "m.onnx")
    note = zoo.load(str(tmp_path / "m.onnx")).note
    assert "\x1b" not in note and len(note) < 300
