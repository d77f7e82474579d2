"""Recipes: they round-trip, say mistakes by line, and take other tools' settings."""

import dataclasses
import json
import types
import typing
import warnings

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from labutils import __main__, quantize
from labutils.errors import EarlierFormatWarning, UnknownNameError, UsageError
from labutils.quantize import recipe
from labutils.quantize.importing import TI_PRESETS
from labutils.quantize.recipe import Activations, Calibration, Override, Qat, Recipe, Weights

NAMES = st.text("abcdef./*[]_-' :#", min_size=1, max_size=12)

RDK = """\
model_parameters:
  onnx_model: net.onnx
  march: bayes-e
  node_info:
    /blocks/blocks.3/conv_pwl/Conv: {ON: BPU, InputType: int16, OutputType: int16}
    /bn1/act/Mul: {ON: BPU, InputType: int16, OutputType: int8}
    /head/Softmax: {ON: CPU}
input_parameters:
  input_type_rt: nv12
calibration_parameters:
  calibration_type: kl
  per_channel: false
"""

TIDL = """\
tensor_bits: 8
accuracy_level: 1
advanced_options:
  calibration_frames: 50
  quantization_scale_type: 1
  bias_calibration: 1
  output_feature_16bit_names_list: "/a/Conv_output_0, 23"
"""


def literals(kind):
    """A value of a dataclass field's type."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{n: literals(h) for n, h in hints.items()})
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    if typing.get_origin(kind) in (types.UnionType, typing.Union):  # with None
        return st.none() | literals(typing.get_args(kind)[0])
    if typing.get_origin(kind) is tuple:
        return st.tuples(st.floats(-99, 0), st.floats(0.25, 99))  # a range
    if kind is float:
        return st.floats(0.25, 99)
    return {bool: st.booleans(), str: NAMES}[kind]


recipes = st.builds(
    Recipe,
    name=NAMES,
    about=st.text(max_size=30),
    activations=literals(Activations),
    weights=literals(Weights),
    calibration=st.builds(
        Calibration, st.sampled_from(["minmax", "mse"]), st.integers(1, 999), st.floats(0, 0.49)
    ),
    overrides=st.lists(
        st.builds(Override, NAMES, NAMES, st.sampled_from([None, 8, 16])), max_size=3
    ).map(tuple),
    exclude=st.lists(NAMES, max_size=3).map(tuple),
    equalize=st.booleans(),
    output=st.sampled_from(["float32", "quantized"]),
)


@settings(max_examples=50)
@given(recipes)
def test_yaml_gives_the_recipe_back(made):
    assert recipe.parse(made.to_yaml()) == made


def every_key(data):
    """The paths of all keys in nested mappings."""
    return {
        (key, *rest)
        for key, value in data.items()
        for rest in (every_key(value) | {()} if isinstance(value, dict) else {()})
    }


@pytest.mark.parametrize("name", ["int8", "int8_qat"])
def test_a_stored_recipe_holds_its_format_and_every_value(name, tmp_path):
    preset = quantize.PRESETS[name]
    stored = yaml.safe_load(preset.save(tmp_path / "r.yaml").read_text())
    assert stored == preset.to_dict()
    assert every_key(stored) == {("format",)} | every_key(dataclasses.asdict(preset))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert quantize.load_recipe(tmp_path / "r.yaml") == preset
    assert yaml.safe_load(str(quantize.PRESETS["a16w8"])) == {
        "format": 1,
        "name": "a16w8",
        "about": "16-bit activations, 8-bit weights",
        "activations": {"bits": 16},
    }


def test_a_recipe_without_a_format_is_read_with_a_line(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    with pytest.warns(EarlierFormatWarning, match=r"mine\.yaml has no format number"):
        assert quantize.load_recipe(tmp_path / "mine.yaml") == Recipe("mine")


@pytest.mark.parametrize(
    ("number", "words"),
    [("2", "written by a newer version"), ("true", "found True"), ("0", "found 0"), ("a", "'a'")],
)
def test_a_format_that_this_lab_does_not_know_is_refused(number, words):
    with pytest.raises(UsageError, match=f"line 2: format: .*{words}"):
        recipe.parse(f"name: a\nformat: {number}\n")


@given(st.from_regex(r"[-+]?[0-9]{1,3}(\.[0-9]{0,2})?[eE][-+]?[0-9]{1,2}", fullmatch=True))
def test_a_name_that_looks_like_a_number_stays_a_name(name):
    assert recipe.parse(Recipe(name).to_yaml()).name == name


def test_a_number_with_an_exponent_is_a_number():
    assert recipe.parse("qat: {learning_rate: 1e-4}").qat.learning_rate == 1e-4


def test_presets_round_trip_and_have_words(tmp_path):
    for name, preset in quantize.PRESETS.items():
        assert quantize.load_recipe(preset.save(tmp_path / f"{name}.yaml")) == preset
        assert preset.about
        assert quantize.load_recipe(name) is preset
        assert quantize.load_recipe(preset.to_yaml()) == preset


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: a\nactivations: {bits: 9}", "line 2: activations.bits: 9 is not one of 8, 16"),
        ("name: a\n\nweigths:\n  bits: 8", "line 3: weigths: unknown key; did you mean weights?"),
        ("calibration:\n  images: 0", "line 2: calibration.images: 0 is below 1"),
        ("calibration:\n  outliers: 0.5", "line 2: calibration.outliers: 0.5 must be below 0.5"),
        ("overrides:\n  - node: a\n    weights: 5", "line 3: overrides.0.weights: 5 is not one of"),
        ("equalize: 1", "line 1: equalize: expected true or false, found 1"),
        ("activations: {bits: true}", "True is not one of 8, 16"),
        ("exclude: a", "line 1: exclude: expected a list, found 'a'"),
        ("name: a\nname: b", "line 2: not readable as a recipe: 'name' is given twice"),
        ("- a", "expected a mapping, found a list"),
        ("a: [", "not readable"),
    ],
)
def test_mistakes_name_the_line(text, words, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        quantize.load_recipe(file)
    assert "mine.yaml" in str(caught.value)
    assert words in str(caught.value)
    assert not str(caught.value).endswith(("?.", ".."))


NUMBERS = [
    (part, field.name)
    for part, kind in (("calibration", Calibration), ("qat", Qat))
    for field in dataclasses.fields(kind)
    if isinstance(field.default, int | float) and not isinstance(field.default, bool)
]
BEYOND = (".inf", "-.inf", ".nan", "9" * 20, "1.0e+300", "0x" + "f" * 6000, "-0x" + "f" * 6000)


@pytest.mark.parametrize(("part", "name"), NUMBERS)
def test_every_number_of_a_recipe_is_limited_and_finite(part, name):
    for value in BEYOND:
        with pytest.raises(UsageError, match="line 2") as caught:
            recipe.parse(f"{part}:\n  {name}: {value}\n")
        assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    "wrong",
    [{"overrides": Override("a")}, {"overrides": ("a",)}, {"exclude": "/conv1/*"}],
)
def test_one_exception_without_its_comma_is_told(wrong):
    with pytest.raises(UsageError, match="with the comma"):
        Recipe().replaced(**wrong)
    assert Recipe(overrides=[Override("a")]) == Recipe(overrides=(Override("a"),))


def test_the_last_exception_that_speaks_wins():
    made = Recipe(
        overrides=(
            Override("/features/*", activations=16),
            Override("/features/*/Add", "Add", activations=8, weights=4),
            Override("/features/1/*", weights=8),
        )
    )
    assert made.setting("/features/0/Conv", "Conv", "activations") == 16
    assert made.setting("/features/0/Add", "Add", "activations") == 8
    assert made.setting("/features/1/Add", "Add", "weights") == 8
    assert made.setting("/classifier/Gemm", "Gemm", "activations") is None
    assert made.kind == "mixed"


def test_every_preset_of_ti_is_taken_and_what_it_loses_is_said():
    for name in TI_PRESETS:
        found = quantize.imported(name)
        assert recipe.parse(found.recipe.to_yaml()) == found.recipe
        assert found.recipe.weights.per_channel == ("WT" not in name)
        assert found.recipe.weights.power_of_two == ("P2" in name)
    four = quantize.imported("WC4M4_AT8")
    assert four.recipe.weights.bits == 4
    assert (four.unmapped, four.recipe.weights.limit) == ((), 4.0)
    assert "NOT MAPPED +WC4_AT8" in str(quantize.imported("WC8_AT8+WC4_AT8"))
    assert len(quantize.imported("WC32_AT32").unmapped) == 2
    with pytest.raises(UnknownNameError, match=r"Did you mean WC8_AT8"):
        quantize.imported("WC8_AT")


def test_an_hb_mapper_yaml_is_taken(tmp_path):
    file = tmp_path / "MobileNetV3_config.yaml"
    file.write_text(RDK)
    found = quantize.imported(file)
    assert found.recipe.overrides == (
        Override("/blocks/blocks.3/conv_pwl/Conv", activations=16),
        Override("/bn1/act/Mul", activations=16),
    )
    assert found.recipe.exclude == ("/head/Softmax",)
    assert found.recipe.calibration.method == "entropy"
    assert found.recipe.weights.per_channel  # the YAML says "per_channel: False" of feature maps
    lost = dict(found.unmapped)
    assert "model_parameters.march" in lost
    assert "input_type_rt: nv12" in lost
    assert "/bn1/act/Mul: input and output differ" in lost
    file.write_text(RDK.replace("{ON: CPU}", "CPU"))
    with pytest.raises(UsageError, match="line 7: model_parameters"):
        quantize.imported(file)


def test_tidl_options_are_taken(tmp_path):
    file = tmp_path / "tidl.yaml"
    file.write_text(TIDL)
    found = quantize.imported(file)
    assert found.recipe.overrides == (
        Override("/a/Conv", activations=16),
        Override("23", activations=16),
    )
    assert found.recipe.activations == Activations(8, True, True)
    assert found.recipe.weights == Weights(8, True, False, True)
    assert found.recipe.correct_bias
    assert found.recipe.calibration.images == 50
    assert [key for key, _ in found.unmapped] == ["accuracy_level: 1"]
    file.write_text("something: else")
    with pytest.raises(UsageError, match="neither an hb_mapper YAML"):
        quantize.imported(file)


def test_the_command_line_shows_lists_and_imports(tmp_path, capsys):
    assert __main__.main(["recipe", "list"]) == 0
    assert "a16w8" in capsys.readouterr().out
    out = tmp_path / "mine.yaml"
    assert __main__.main(["recipe", "import", "WT8SYMP2_AT8SYMP2", "-o", str(out)]) == 0
    assert quantize.load_recipe(out).activations.power_of_two
    capsys.readouterr()
    assert __main__.main(["recipe", "show", str(out), "--json"]) == 0
    said = capsys.readouterr().out
    assert json.loads(said)["weights"]["per_channel"] is False
    assert __main__.main(["recipe", "show"]) == 2
    assert __main__.main(["recipe", "show", "int9"]) == 2
    assert "Did you mean int8" in capsys.readouterr().err


# --- versions ------------------------------------------------------------------------------------


def test_every_version_of_a_preset_has_a_name_and_the_plain_name_is_one_of_them():
    for name, versions in quantize.VERSIONS.items():
        assert quantize.PRESETS[name] in versions
        for number, version in enumerate(versions, start=1):
            assert quantize.load_recipe(f"{name}@{number}") is version
            assert version.name == (f"{name}@{number}" if len(versions) > 1 else name)
            assert recipe.parse(version.to_yaml()) == version


def test_the_first_int8_quantizes_as_it_always_did():
    first = quantize.load_recipe("int8@1")
    assert first == Recipe(first.name, first.about, calibration=Calibration(outliers=0.01))
    assert first.sha256 == (  # as before there were versions
        "546c2b64709ce4579184f9a6ee38e4737b159c348e333255c136c35ffb3804ab"
    )


@pytest.mark.parametrize(
    ("name", "near"),
    [("int8@9", "int8@2"), ("int@1", "int8@1"), ("a16w8@2", "a16w8@1"), ("int_8", "int8")],
)
def test_a_version_that_does_not_exist_suggests_the_nearest(name, near):
    with pytest.raises(UnknownNameError, match=r"Did you mean .*\?") as caught:
        quantize.load_recipe(name)
    assert near in caught.value.near


def test_the_list_names_versions_and_which_is_current(capsys):
    assert __main__.main(["recipe", "list", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["int8"] == f"= {quantize.PRESETS['int8'].name}"
    assert {"int8@1", "int8@2", "a16w8"} <= set(listed)
    assert "a16w8@1" not in listed
