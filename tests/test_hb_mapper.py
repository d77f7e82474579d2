"""hb_mapper's YAML both ways: every line accounted for, applied, written, and read back equal."""

import json
import re

import numpy as np
import onnx
import pytest
import yaml
from colour_network import MEAN, STD, pictures, preprocessing, saved
from hypothesis import given
from hypothesis import strategies as st

from labutils import paths, quantize
from labutils.errors import UsageError
from labutils.images import data
from labutils.onnxfile.file import OnnxFile
from labutils.quantize import exporting
from labutils.quantize.recipe import Calibration, Override, Recipe
from labutils.rdk import hb_mapper, hb_mapper_writing, vendor_tools

# The settings of D-Robotics' MobileNetV3 sample (rdk_model_zoo at 63e1411), in a file of our own
SAMPLE = """\
model_parameters:
  onnx_model: ./mobilenetv3_large_100.onnx
  march: "bayes-e"
  layer_out_dump: False
  working_dir: MobileNetV3_224x224_nv12
  output_model_file_prefix: MobileNetV3_224x224_nv12
  node_info: {
    "/blocks/blocks.3/blocks.3.1/conv_pwl/Conv":
      {"ON": "BPU", "InputType": "int16", "OutputType": "int16"},
    "/blocks/blocks.0/blocks.0.0/conv_dw/Conv": {ON: BPU, InputType: int16, OutputType: int16},
    "/bn1/act/Mul": {"ON": "BPU", "InputType": "int16", "OutputType": "int16"},
    "/blocks/blocks.0/blocks.0.0/Add": {"ON": "BPU", "InputType": "int16", "OutputType": "int16"},
  }
input_parameters:
  input_name: ""
  input_type_rt: nv12
  input_type_train: rgb
  input_layout_train: NCHW
  input_shape: ""
  norm_type: data_mean_and_scale
  mean_value: 123.675 116.28 103.53
  scale_value: 0.01712475 0.017507 0.01742919
calibration_parameters:
  cal_data_dir: ./calibration_data_rgb_f32
  cal_data_type: float32
  calibration_type: default
compiler_parameters:
  compile_mode: latency
  debug: False
  optimize_level: O3
"""


def test_every_line_of_the_vendors_sample_is_accounted_for():
    found = hb_mapper.parse(SAMPLE, "MobileNetV3_config.yaml")
    texts = SAMPLE.splitlines()
    for line in found.lines:
        assert texts[line.number - 1].strip().startswith(f"{line.key}:"), line
        assert bool(line.taken) != bool(line.left), line
    keys = re.findall(r"^  (\w+):", SAMPLE, re.MULTILINE)
    assert [line.key for line in found.lines] == keys
    left = {line.key for line in found.lines if line.left}
    assert left == {
        "onnx_model", "march", "layer_out_dump", "working_dir", "output_model_file_prefix",
        "input_name", "input_shape", "compile_mode", "debug",
    }  # fmt: skip
    assert set(found.nodes.values()) == {hb_mapper.Node("BPU", 16, 16)} and len(found.nodes) == 4
    made = found.preprocessing(224)
    np.testing.assert_allclose(made.mean, data.IMAGENET_MEAN, atol=1e-6)
    np.testing.assert_allclose(made.std, data.IMAGENET_STD, atol=1e-4)
    assert found.byte_range == "full"  # it does not say bt601_video
    assert f"of {len(keys)} settings taken" in str(found)


def test_the_sample_that_the_lab_ships_says_the_same():
    shipped, ours = hb_mapper.read(paths.DATA / "rdk_x5_mobilenetv3.yaml"), hb_mapper.parse(SAMPLE)
    assert shipped.nodes == ours.nodes
    for line, other in zip(shipped.lines, ours.lines, strict=True):
        assert line.key == "node_info" or (line.key, line.value) == (other.key, other.value)


def test_the_recipe_of_the_vendors_sample_has_its_nodes_and_its_preprocessing(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(SAMPLE)
    found = quantize.imported(file)
    assert len(found.recipe.overrides) == 4 and {o.activations for o in found.recipe.overrides} == {
        16
    }
    taken = dict(found.mapped)
    assert taken["mean_value: 123.675 116.28 103.53"] == "--mean 0.485 0.456 0.406"
    assert taken["scale_value: 0.01712475 0.017507 0.01742919"].startswith(
        "--std 0.229 0.224 0.225"
    )


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("march: \"bayes-e\"", "march: bayes-x", r"line 3: .*march: 'bayes-x' is not one of bern"),
        ("optimize_level: O3", "optimize_level: O9", "line 30: .*'O9' is not one of O0"),
        ("calibration_type: default", "calibration_type: best", "line 26: .*'best' is not one"),
        ("input_type_rt: nv12", "input_type_rt: nv12; rgb", "line 16: .*names several"),
        ("input_type_rt: nv12", "input_type_rt: gray", "line 16: .*gray is not fed to .* of rgb"),
        ("input_type_train: rgb", "input_type_train: gray", "line 16: .*nv12 is not .* of gray"),
        ("input_shape: \"\"", "input_shape: 1x32x32x3", "line 19: .*in NCHW: 1x3xHEIGHTxWIDTH"),
        ("input_shape: \"\"", "input_shape: 8x3x32x32", "line 19: .*is not one picture"),
        ("input_shape: \"\"", "input_shape: 1x3xhx32", "line 19: .*is not one picture"),
        ("input_shape: \"\"", "input_shape: 1x3x0x0", "line 19: .*without pixels"),
        ("input_shape: \"\"", "input_shape: 1x3x96x64", "1x3x96x64 is not the size .* 224 x 224"),
        ("mean_value: 123.675 116.28 103.53", "mean_value: 1 2", "line 21: .*'1 2' is 2 numbers"),
        ("type: default", "type: max\n  max_percentile: abc", "line 27: .*'abc' is not a share"),
        ("type: default", "type: max\n  max_percentile: [1, 1]", "line 27: .* is not a share"),
        ("type: default", "type: max\n  max_percentile: 5", "line 27: .*5 is not a share"),
        ("type: default", "type: max\n  run_on_cpu: [a, b]", "line 27: .*; between .* found list"),
        ("scale_value: 0.01712475", "scale_value: -1", "line 22: .*must be above 0"),
        ("\"OutputType\": \"int16\"}", "\"OutputType\": \"int4\"}", "'int4' is not one of int8"),
        ("{ON: BPU, InputType", "{ON: GPU, InputType", "line 10: .*'GPU' is not one of BPU, CPU"),
        ("compiler_parameters", "compiler_parameter", "did you mean compiler_parameters?"),
        (SAMPLE, "a: 1", "is not an hb_mapper YAML"),
    ],
)  # fmt: skip
def test_what_hb_mapper_would_not_take_is_named_with_its_line(old, new, words):
    assert old in SAMPLE
    with pytest.raises(UsageError, match=words):
        hb_mapper.parse(SAMPLE.replace(old, new, 1), "c.yaml").preprocessing(224)


def test_a_key_of_another_release_is_listed_and_not_lost():
    found = hb_mapper.parse(SAMPLE.replace("  debug: False", "  debugs: False"), "c.yaml")
    line = next(line for line in found.lines if line.key == "debugs")
    assert line.left == "unknown; did you mean debug?"


@pytest.mark.parametrize(
    ("norm", "mean", "scale"),
    [
        ("no_preprocess", [0, 0, 0], [1, 1, 1]),
        ("data_mean", [123.675, 116.28, 103.53], [1, 1, 1]),
        ("data_scale", [0, 0, 0], [0.01712475, 0.017507, 0.01742919]),
    ],
)
def test_the_norm_type_decides_what_counts(norm, mean, scale):
    found = hb_mapper.parse(SAMPLE.replace("data_mean_and_scale", norm), "c.yaml")
    np.testing.assert_array_equal(found.normalisation(3), [mean, scale])


def test_other_ways_to_name_nodes_are_read():
    flow = SAMPLE[SAMPLE.index("  node_info") : SAMPLE.index("input_parameters")]
    text = SAMPLE.replace(flow, "  node_info: a:int16;/b/c:int16\n")
    text = text.replace("  cal_data_dir", "  run_on_cpu: d; e\n  cal_data_dir")
    found = hb_mapper.parse(text, "c.yaml")
    assert found.nodes == {
        "a": hb_mapper.Node("BPU", 16, 16), "/b/c": hb_mapper.Node("BPU", 16, 16),
        "d": hb_mapper.Node("CPU"), "e": hb_mapper.Node("CPU"),
    }  # fmt: skip


def with_nodes(said, calibration="calibration_type: max"):
    """The sample with other settings of nodes, and of calibration."""
    flow = SAMPLE[SAMPLE.index("  node_info") : SAMPLE.index("input_parameters")]
    text = SAMPLE.replace(flow, f"  {said}\n")
    return text.replace("calibration_type: default", calibration)


def test_each_input_keeps_its_own_width_and_an_output_alone_is_widened():
    own = "{InputType0: int16, InputType1: int8, OutputType: int8}"
    found = hb_mapper.parse(with_nodes(f"node_info: {{a: {own}}}")).nodes["a"]
    assert found == hb_mapper.Node("BPU", None, 8, ((0, 16), (1, 8)))
    assert found.entry() == {
        "ON": "BPU", "InputType0": "int16", "InputType1": "int8", "OutputType": "int8",
    }  # fmt: skip
    later = hb_mapper.parse(with_nodes("set_node_data_type: a:int16;b:int16")).nodes
    assert later == dict.fromkeys("ab", hb_mapper.Node("BPU", None, 16))


@pytest.mark.parametrize("place", ["BPU", "CPU"])
def test_where_a_node_runs_does_not_erase_its_width(place):
    text = with_nodes(
        "node_info: {a: {InputType: int16, OutputType: int16}}",
        f"calibration_type: max\n  run_on_{place.lower()}: a;b;",
    )
    assert hb_mapper.parse(text).nodes == {
        "a": hb_mapper.Node(place, 16, 16), "b": hb_mapper.Node(place),
    }  # fmt: skip


def test_a_semicolon_behind_a_value_names_nothing():
    found = hb_mapper.parse(SAMPLE.replace("input_type_rt: nv12", 'input_type_rt: "nv12;"'))
    assert found.get("input_type_rt") == "nv12" and found.byte_range == "full"


def test_a_key_that_is_no_word_is_listed_as_unknown():
    (line,) = hb_mapper.parse("model_parameters: {1: 2}\n").lines
    assert line.key == "1" and line.left.startswith("unknown; known: ")


def test_a_size_in_either_layout_is_read_and_figures_are_plain():
    text = SAMPLE.replace('input_shape: ""', "input_shape: 1x96x64x3")
    assert hb_mapper.parse(text.replace("NCHW", "NHWC")).size == (96, 64)
    made = hb_mapper.parse(SAMPLE).preprocessing(224)
    assert {type(v) for v in (*made.mean, *made.std)} == {float} and "np." not in str(made)


def imported(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    return quantize.imported(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "order", ["calibration_type: {}\n  {}", "{1}\n  calibration_type: {0}"], ids=["after", "before"]
)
def test_a_percentile_is_of_max_only_wherever_it_stands(tmp_path, order):
    share = "max_percentile: 0.999"
    found = imported(tmp_path, with_nodes("debug_mode: ''", order.format("max", share)))
    assert found.recipe.calibration == Calibration("percentile", percentile=99.9)
    text = with_nodes("debug_mode: ''", order.format("kl", share))
    found = imported(tmp_path, text)
    assert found.recipe.calibration == Calibration("entropy")
    assert dict(found.unmapped)[share] == "of calibration_type max only"
    (line,) = [line for line in hb_mapper.parse(text).lines if line.key == "max_percentile"]
    assert line.left == "of calibration_type max only"


def test_the_recipe_has_the_widest_end_of_each_node_and_says_where_ends_differ(tmp_path):
    text = with_nodes(
        "node_info: {a: {InputType0: int16, InputType1: int16, OutputType: int16}, b: {ON: CPU}}\n"
        "  set_node_data_type: c:int16",
        "calibration_type: max\n  run_on_bpu: d",
    )
    found = imported(tmp_path, text)
    assert found.recipe.overrides == tuple(Override(n, activations=16) for n in "ac")
    assert found.recipe.exclude == ("b",) and ("d ON BPU", "quantized, as all are") in found.mapped
    assert [key for key, _ in found.unmapped if "differ" in key] == ["c: input and output differ"]


def test_bgr_is_not_fed_as_rgb():
    found = hb_mapper.parse(SAMPLE.replace("input_type_train: rgb", "input_type_train: bgr"))
    with pytest.raises(UsageError, match="trained on bgr in NCHW"):
        found.preprocessing(224)


figures = st.floats(0.01, 0.99, allow_nan=False)


@given(
    mean=st.tuples(figures, figures, figures), std=st.tuples(figures, figures, figures),
    nodes=st.dictionaries(
        st.text("abc/._ :#", min_size=1, max_size=12),
        st.builds(hb_mapper.Node, st.sampled_from(["BPU", "CPU"]), st.sampled_from([None, 8, 16]),
                  st.sampled_from([None, 8, 16]), st.sampled_from([(), ((0, 16), (2, 8))])),
        max_size=4,
    ),
    kind=st.sampled_from(["default", "mix", "kl", "max"]),
    channel=st.sampled_from([None, True, False]),
)  # fmt: skip
def test_what_is_written_is_read_back_equal(mean, std, nodes, kind, channel):
    seen = data.Preprocessing((64, 96), mean, std)
    plan = hb_mapper_writing.Plan("net.onnx", "net", seen, nodes, kind, None, channel)
    found = hb_mapper.parse(plan.text())
    assert found.nodes == nodes and found.byte_range == "video"
    back = found.preprocessing()
    assert back.size == (64, 96)
    np.testing.assert_allclose(back.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(back.std, std, rtol=1e-12)
    assert (found.get("calibration_type"), found.get("per_channel")) == (kind, channel)
    assert yaml.safe_load(plan.text())["input_parameters"]["input_shape"] == "1x3x64x96"


def test_a_network_of_gray_is_fed_gray():
    """rdk_doc's table of input types has no other pair with gray."""
    seen = data.Preprocessing((32, 32), (0.5,), (0.25,))
    found = hb_mapper.parse(hb_mapper_writing.Plan("n.onnx", "n", seen, {}).text())
    assert (found.get("input_type_rt"), found.get("input_type_train")) == ("gray", "gray")
    assert found.get("input_space_and_range") is None and found.byte_range is None
    assert found.preprocessing().shape == (1, 32, 32)
    with pytest.raises(UsageError, match=r"gray is not passed on .* `labutils rdk prepare`"):
        vendor_tools.Order.of(found)


def test_a_recipe_is_written_with_its_nodes_and_without_what_cannot_be_said(tmp_path):
    model = OnnxFile(saved(tmp_path / "net.onnx"))
    recipe = Recipe(
        calibration=Calibration("percentile", percentile=99.99), equalize=True,
        overrides=(Override("co*", activations=16),), exclude=("head",),
    )  # fmt: skip
    made = exporting.for_hb_mapper(recipe, model, preprocessing(), prefix="net", kind="full")
    (tmp_path / "net.yaml").write_text(made.text)
    back = quantize.imported(tmp_path / "net.yaml").recipe
    assert back.overrides == (Override("conv", activations=16),) and back.exclude == ("head",)
    assert back.calibration.method == "percentile" and back.weights.per_channel
    assert "per_channel" not in made.text  # of feature maps, which have one range each here
    assert back.calibration.percentile == pytest.approx(99.99)
    assert dict(made.lost) == {"equalize": "it changes weights: export the changed network"}
    assert hb_mapper.parse(made.text).byte_range == "full"
    for wrong in (Recipe(exclude=("gone",)), Recipe(overrides=(Override("gon*", activations=16),))):
        with pytest.raises(UsageError, match=r"names no node of net\.onnx"):
            exporting.for_hb_mapper(wrong, model, preprocessing(), prefix="net")


@pytest.mark.parametrize(
    ("value", "told"),
    [("True", "ranges per channel of a feature map; here a tensor has one range"),
     ("False", "one range per tensor; weights: per channel")],
)  # fmt: skip
def test_per_channel_is_said_of_feature_maps_and_not_of_weights(tmp_path, value, told):
    text = hb_mapper_writing.Plan("net.onnx", "net", preprocessing(), {}, "max").text()
    text = text.replace("  calibration_type: max\n",
                        f"  calibration_type: max\n  per_channel: {value}\n")  # fmt: skip
    (tmp_path / "net.yaml").write_text(text)
    found = quantize.imported(tmp_path / "net.yaml")
    assert found.recipe.weights.per_channel
    assert dict((*found.mapped, *found.unmapped))[f"per_channel: {value}"] == told


def test_calibration_files_are_raw_pixels_and_calibration_sees_them_normalised(tmp_path):
    drawn, folder = pictures(24), tmp_path / "calibration_rgb_f32"
    hb_mapper_writing.write_calibration(folder, drawn)
    files = sorted(folder.iterdir())
    assert [file.name for file in files][:2] == ["00000.rgb", "00001.rgb"] and len(files) == 24
    raw = np.fromfile(files[3], np.float32).reshape(3, 32, 32)
    np.testing.assert_array_equal(raw.transpose(1, 2, 0), drawn.images[3])
    seen = preprocessing()
    plan = hb_mapper_writing.Plan("net.onnx", "net", seen, {})
    settings = hb_mapper.parse(plan.text().replace("  cal_data_type: float32\n", ""))
    inputs = hb_mapper_writing.read_calibration(folder, settings, seen.shape)
    np.testing.assert_allclose(inputs, seen(drawn.images), atol=2e-6)
    files[5].write_bytes(b"1234")
    with pytest.raises(UsageError, match=r"00005\.rgb has 4 bytes; a picture of 3 x 32 x 32"):
        hb_mapper_writing.read_calibration(folder, settings, seen.shape)
    with pytest.raises(UsageError, match="exists: name a new folder"):
        hb_mapper_writing.write_calibration(folder, drawn)
    with pytest.raises(UsageError, match="19 calibration pictures: pass 20 to 1,000"):
        hb_mapper_writing.write_calibration(tmp_path / "few", drawn.head(19))
    assert not (tmp_path / "few").exists()


def written(folder, images, turn, kind="<f4"):
    """Calibration files of pictures (n, height, width, 3), turned and typed like this."""
    folder.mkdir()
    for index, picture in enumerate(images):
        np.ascontiguousarray(turn(picture), kind).tofile(folder / f"{index:02d}.rgb")
    return folder


def planes(picture):
    return picture.transpose(2, 0, 1)


WRONG_FILES = {
    "normalised": (lambda p: planes((p / 255 - MEAN) / STD), "<f4", "pixels of 0 to 255"),
    "from 0 to 1": (lambda p: planes(p / 255), "<f4", "normalised already, or of another byte"),
    "big-endian": (planes, ">f4", "pixels of 0 to 255|another byte order"),
    "interleaved": (lambda p: p, "<f4", r"look like \(height, width, channel\)"),
    "NaN": (lambda p: planes(p) * np.float32("nan"), "<f4", "pixels of 0 to 255"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_calibration_files_that_are_not_the_yamls_pictures_are_refused(tmp_path, case):
    turn, kind, words = WRONG_FILES[case]
    settings = hb_mapper.parse(hb_mapper_writing.Plan("n.onnx", "n", preprocessing(), {}).text())
    folder = written(tmp_path / "cal_f32", pictures(8).images, turn, kind)
    with pytest.raises(UsageError, match=words):
        hb_mapper_writing.read_calibration(folder, settings, (3, 32, 32))


def test_dark_pictures_and_files_without_preprocessing_are_taken(tmp_path):
    settings = hb_mapper.parse(hb_mapper_writing.Plan("n.onnx", "n", preprocessing(), {}).text())
    images = pictures(4).images
    images[0] = 0
    folder = written(tmp_path / "cal_f32", images, planes)
    assert hb_mapper_writing.read_pixels(folder, settings, (3, 32, 32)).max() > 100
    own = hb_mapper.parse(SAMPLE.replace("data_mean_and_scale", "no_preprocess"))
    folder = written(tmp_path / "own_f32", preprocessing()(images).transpose(0, 2, 3, 1), planes)
    assert hb_mapper_writing.read_calibration(folder, own, (3, 32, 32)).min() < 0


def test_apply_says_that_no_folder_or_one_of_pictures_is_named(lab, tmp_path):
    net = saved(tmp_path / "net.onnx")
    text = hb_mapper_writing.Plan("n.onnx", "n", preprocessing(), {}).text()
    for change, words in (
        (("  cal_data_dir: calibration_rgb_f32\n", ""), "c.yaml says no cal_data_dir: pass --cal"),
        (("preprocess_on: false", "preprocess_on: true"), "holds pictures that hb_mapper scales"),
    ):
        assert change[0] in text
        (tmp_path / "c.yaml").write_text(text.replace(*change))
        code, _, problem = lab("rdk", "apply", tmp_path / "c.yaml", net, "-o", tmp_path / "q.onnx")
        assert code == 2 and words in problem


@pytest.mark.slow
def test_apply_takes_the_ranges_of_the_folders_pictures(lab, tmp_path):
    """Two folders, one darker than the other: the input's scale is that of the brightest pixel."""
    net = saved(tmp_path / "net.onnx")
    seen = data.Preprocessing((32, 32), (0.0,) * 3, (1.0,) * 3)
    (tmp_path / "c.yaml").write_text(
        hb_mapper_writing.Plan("n.onnx", "n", seen, {}, calibration_type="max").text()
    )
    scales = {}
    for brightest in (180, 240):
        images = np.clip(pictures(20).images, 0, brightest)
        folder = written(tmp_path / f"{brightest}_f32", images, planes)
        made = tmp_path / f"{brightest}.onnx"
        asked = (tmp_path / "c.yaml", net, "--calibration", folder, "--held-out", 8, "-o", made)
        code, _, problem = lab("rdk", "apply", *asked)
        assert code == 0, problem
        stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(made).graph.initializer}
        first = next(n for n in onnx.load(made).graph.node if n.op_type == "QuantizeLinear")
        scales[brightest] = float(stored[first.input[1]])
    assert scales == {n: pytest.approx(n / 255 / 255, rel=1e-3) for n in (180, 240)}


@pytest.mark.slow
def test_the_commands_prepare_show_and_apply(lab, tmp_path):
    net, folder, made = saved(tmp_path / "net.onnx"), tmp_path / "board", tmp_path / "q.onnx"
    stated = ("--mean", *MEAN, "--std", *STD)
    code, out, err = lab("rdk", "prepare", net, *stated, "--images", 20, "-o", folder, "--json")
    assert code == 0, err
    assert json.loads(out)["opset"] == 11 and json.loads(out)["int16"] == []
    assert {file.name for file in folder.iterdir()} == {
        "board.onnx", "board.yaml", "calibration_rgb_f32",
    }  # fmt: skip
    code, out, _ = lab("rdk", "show", folder / "board.yaml")
    assert code == 0 and "mean_value" in out
    asked = (folder / "board.yaml", folder / "board.onnx", "--held-out", 8, "-o", made)
    code, out, err = lab("rdk", "apply", *asked)
    assert code == 0 and made.exists(), (out, err)
    assert "calibration: 20 files" in out and "not D-Robotics' own tool" in out
