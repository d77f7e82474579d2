"""A recipe of a surgery: written, read back, replayed on other weights, refused elsewhere."""

import copy
import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from labutils import paths, pipeline, surgery, train
from labutils.errors import SurgeryError, UsageError


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


def test_the_recipe_lies_beside_the_file_and_in_it(repaired):
    beside = paths.recipe(repaired.file)
    assert beside.name == "r.onnx.recipe.yaml"
    assert surgery.Recipe.read(beside) == repaired.recipe
    (recorded,) = surgery.recipes_in(onnx.load(repaired.file))
    assert recorded == repaired.recipe.to_dict()
    assert recorded["steps"][0]["replaced"] == {"hardsigmoid": 9, "hardswish": 19}


def test_it_is_replayed_on_another_checkpoint(repaired, small, tmp_path):
    from labutils import export

    export.to_onnx(other_weights(small), tmp_path / "other.onnx", size=64)
    done = pipeline.replay(
        tmp_path / "other.onnx", paths.recipe(repaired.file), tmp_path / "again.onnx"
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
        pipeline.replay(large_onnx(17), repaired.recipe, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_module_recipe_with_globs(small):
    model = copy.deepcopy(small)
    rule = surgery.RULES["hardswish"].without("features.0.*").only("features.*")
    report = surgery.replace_(model, rule)
    recipe = surgery.recipe_of(report, model="mobilenet_v3_small")
    assert surgery.Recipe.from_yaml(recipe.to_yaml()) == recipe
    other = other_weights(small)
    (again,) = surgery.replay_(other, recipe)
    assert again.counts == report.counts
    assert type(other.features[0][2]).__name__ == "Hardswish"
    assert surgery.outline(other) == surgery.outline(model)


def test_another_module_is_refused_and_left_alone(small):
    recipe = surgery.recipe_of(surgery.replace_(copy.deepcopy(small), "hardswish"))
    wider = train.network("mobilenet_v3_small", classes=10)
    before = surgery.outline(wider)
    with pytest.raises(SurgeryError, match=r"'classifier\.3 Linear 10x1024 10' here"):
        surgery.replay_(wider, recipe)
    assert surgery.outline(wider) == before


def test_a_rule_book_that_changed_is_noticed(small):
    recipe = surgery.recipe_of(surgery.replace_(copy.deepcopy(small), "hardswish"))
    text = recipe.to_yaml().replace("hardswish: 19", "hardswish: 18")
    model = copy.deepcopy(small)
    before = surgery.outline(model)
    with pytest.raises(SurgeryError, match="the rule book has changed"):
        surgery.replay_(model, surgery.Recipe.from_yaml(text))
    assert surgery.outline(model) == before


def test_rules_of_ones_own_are_handed_in():
    rule = surgery.select({nn.GELU: nn.ReLU})[0]
    model = nn.Sequential(nn.Linear(3, 3), nn.GELU())
    recipe = surgery.recipe_of(surgery.replace_(copy.deepcopy(model), rule))
    assert not recipe.exact
    with pytest.raises(UsageError, match="no surgery rule"):
        surgery.replay_(copy.deepcopy(model), recipe)
    surgery.replay_(model, recipe, rules=[rule])
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
        (GOOD.replace("level: onnx", "levle: onnx"), 4, "levle: unknown key"),
        (GOOD.replace("[hardswish]", "hardswish"), 3, "rules: expected list"),
        (GOOD.replace("hardswish: 3", "hardswish: many"), 5, "expected a whole number"),
        (GOOD.replace("- Conv 8x3x3x3", "- 8"), 7, "expected text"),
        (GOOD.replace("format: 1", "format: 2"), 1, "this lab reads 1"),
        (GOOD.replace("outline:\n- Conv 8x3x3x3\n", ""), 1, "'outline' is missing"),
        (GOOD.replace("steps:", "steps: ["), 3, "not readable as a recipe"),
        ("- a list", 1, "expected a mapping"),
        (GOOD.replace("format: 1", "format: 1\nformat: 1"), 2, "'format' is given twice"),
        (GOOD.replace("level: onnx", "level: onnx\n  level: auto"), 5, "'level' is given twice"),
        (GOOD.replace("{hardswish: 3}", "{hardswish: 3, hardswish: 4}"), 5, "is given twice"),
    ],
)
def test_a_faulty_recipe_names_the_line(wrong, line, words):
    assert surgery.Recipe.from_yaml(GOOD).steps[0].replaced == {"hardswish": 3}
    with pytest.raises(UsageError, match=words) as caught:
        surgery.Recipe.from_yaml(wrong, "r.yaml")
    assert f"r.yaml, line {line}" in str(caught.value)


def test_the_command_line_repairs_and_replays(small_onnx, tmp_path, capsys):
    from labutils import __main__

    def lab(*words):
        return __main__.main([*map(str, words)])

    made = tmp_path / "m.onnx"
    assert lab("repair", small_onnx(17), "--target", "rdk-x5", "-o", made, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["exact"] is True
    assert [step["rules"] for step in facts["recipe"]["steps"]] == [["hardswish"], ["opset-11"]]
    assert facts["counts_after"]["unsupported"] == 0
    again = tmp_path / "again.onnx"
    recipe = paths.recipe(made)
    assert lab("repair", small_onnx(17), "--recipe", recipe, "-o", again) == 0
    a, b = (onnx.load(f) for f in (made, again))
    assert a.graph.node == b.graph.node
    assert lab("repair", small_onnx(17), "-o", again) == 2
    assert lab("repair", small_onnx(17), "--target", "qnn", "-o", again) == 0  # nothing to repair
