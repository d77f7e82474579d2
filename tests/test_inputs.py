"""Inputs that are not square RGB: gray, rectangular, of other channels, and what is no image."""

import json

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image

from labutils import export
from labutils.commands import options
from labutils.errors import UsageError
from labutils.images import data

GRAY = ["--mean", "0.1307", "--std", "0.3081"]
RGB = ["--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5"]
FEW = ["--images", "8", "--held-out", "16"]


def network(channels):
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    return layers.eval()


def written(folder, channels, height, width):
    import torch

    file = folder / f"net{channels}.onnx"
    export.to_onnx(network(channels), file, example=torch.zeros(1, channels, height, width))
    return file


# --- pixels -------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_gray_is_pillow_s_luma(seed, height, width):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels).convert("L"))
    np.testing.assert_array_equal(data.luma(pixels)[..., 0], expected)
    gray = np.repeat(expected[..., None], 3, axis=-1)  # as a gray picture is read
    np.testing.assert_array_equal(data.luma(gray)[..., 0], expected)


def test_a_gray_picture_is_read_as_it_is(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels, "L").save(tmp_path / "digit.png")
    inputs = data.Preprocessing(28, (0.0,), (1.0,))(data.read_images([tmp_path / "digit.png"], 28))
    assert inputs.shape == (1, 1, 28, 28)
    np.testing.assert_allclose(inputs[0, 0] * 255, pixels, atol=1e-3)


@pytest.mark.parametrize("size", [(96, 160), (160, 96), (33, 64)])
def test_rectangles_are_cut_out_of_the_centre(size):
    images = data.load("val", 3, size)
    assert images.images.shape == (3, *size, 3) and f"{size[0]} x {size[1]} px" in images.source
    whole = data.load("val", 3, max(size)).images
    height, width = size
    top, left = (max(size) - height) // 2, (max(size) - width) // 2
    if (max(size) - min(size)) % 2 == 0:
        cut = whole[:, top : top + height, left : left + width]
        np.testing.assert_array_equal(images.images, cut)
    assert data.Preprocessing(size)(images.images).shape == (3, 3, *size)


def test_a_square_is_a_square_however_it_is_said():
    assert data.Preprocessing((64, 64)) == data.Preprocessing(64)
    assert data.Preprocessing((64, 64)).shape == (3, 64, 64)


def test_as_many_values_as_channels():
    with pytest.raises(UsageError, match="as many values"):
        data.Preprocessing(32, (0.5,), (0.5, 0.5))
    with pytest.raises(UsageError, match=r"this input has 4.*npz"):
        data.Preprocessing(32, (0.5,) * 4, (0.5,) * 4)(np.zeros((1, 32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("said", "found"),
    [("--size 64 m.onnx", "--size=64 m.onnx"), ("--size 96 160 m", "--size=96,160 m"),
     ("--mean 0 0 0 m --std .5", "--mean=0,0,0 m --std=.5"), ("m --size 1 2 3", "m --size=1,2 3"),
     ("--size", "--size"), ("--images 4 5", "--images 4 5")],
)  # fmt: skip
def test_numbers_behind_an_option_are_one_value(said, found):
    assert options.joined(said.split()) == found.split()


# --- whole ways ---------------------------------------------------------------------------------


@pytest.mark.htp
@pytest.mark.parametrize(
    ("channels", "height", "width", "stated"),
    [(1, 28, 28, GRAY), (3, 96, 160, RGB), (1, 32, 100, GRAY)],
    ids=["gray 28 x 28", "96 x 160", "gray 32 x 100"],
)
def test_it_goes_all_the_way(channels, height, width, stated, lab, tmp_path):
    file = written(tmp_path, channels, height, width)
    assert lab("diagnose", file, "--target", "snpe-2.7")[0] == 0
    made, q = tmp_path / "n.dlc", tmp_path / "q.onnx"
    code, out, err = lab("convert", file, *stated, "--target", "qnn", "-o", made)
    assert code == 0, out + err
    kind = "gray" if channels == 1 else "RGB"
    assert f"{height}x{width} {kind}" in out
    code, out, err = lab("quantize", file, *stated, *FEW, "--recipe", "a16w8", "-o", q)
    assert q.is_file() and not err, out + err
    picture = tmp_path / "p.png"
    Image.new("L", (50, 40), 90).save(picture)
    for artifact, extra in ((file, stated), (made, []), (q, stated)):
        code, out, err = lab("run", artifact, *extra, "--images", picture)
        assert code == 0 and "p.png" in out, out + err


@pytest.mark.htp
@pytest.mark.slow
def test_a_network_by_name_takes_a_rectangle(lab, tmp_path):
    made = tmp_path / "m.dlc"
    code, out, err = lab(
        "convert", "mobilenet_v3_small", "--weights", "things16", "--size", 64, 96, "--target",
        "qnn", "-o", made,
    )  # fmt: skip
    assert code == 0 and "64x96 RGB" in out, out + err
    code, out, err = lab("run", made, "--images", 2)
    assert code == 0 and "64x96" in out, out + err


def test_a_size_that_is_left_open_is_closed_with_two_numbers(lab, tmp_path):
    file = written(tmp_path, 3, 48, 64)
    model = onnx.load(file)
    for axis, name in ((2, "h"), (3, "w")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del model.graph.value_info[:]
    onnx.save(model, file)
    code, _, err = lab("run", file, *RGB, "--images", 1)
    assert code == 2 and "--size HEIGHT WIDTH" in err
    code, out, err = lab("run", file, *RGB, "--size", 48, 80, "--images", 1)
    assert code == 0 and "48 x 80 px" in out and "48x80 RGB" in out, out + err
    static = written(tmp_path, 1, 48, 80)
    code, _, err = lab("run", static, *GRAY, "--size", 48, "--images", 1)
    assert code == 2 and "takes 48 x 80 px images" in err


@pytest.mark.parametrize(
    ("channels", "stated", "told"),
    [(1, RGB, "1 channel: give --mean and --std 1 value each, not 3 and 3"),
     (3, GRAY, "3 channels: give --mean and --std 3 values each, not 1 and 1"),
     (1, [], "MNIST's: 0.1307 and 0.3081")],
)  # fmt: skip
def test_the_number_of_values_is_checked_before_any_work(channels, stated, told, lab, tmp_path):
    file = written(tmp_path, channels, 32, 32)
    code, out, err = lab("run", file, *stated, "--images", 1)
    assert code == 2 and told in err and not out


@pytest.mark.htp
@pytest.mark.parametrize("channels", [2, 4])
def test_other_channels_go_with_inputs_of_one_s_own(channels, lab, tmp_path):
    file = written(tmp_path, channels, 32, 32)
    stated = ["--mean", *["0.5"] * channels, "--std", *["0.5"] * channels]
    q, made = tmp_path / "q.onnx", tmp_path / "n.dlc"
    ways = {
        "run": (["run", file, *stated], "--images FILE.npz"),
        "quantize": (["quantize", file, *stated, "-o", q], "--calibration FILE.npz and --inputs"),
        "convert": (["convert", file, *stated, "--target", "qnn", "-o", made], "--inputs FILE.npz"),
    }
    for command, cure in ways.values():
        code, out, err = lab(*command)
        assert code == 2 and f"{channels} channels" in err and cure in err and not out
    arrays = np.random.default_rng(0).standard_normal((16, channels, 32, 32), np.float32)
    np.savez(tmp_path / "mine.npz", arrays)
    np.save(tmp_path / "mine.npy", arrays)
    mine = ["--inputs", tmp_path / "mine.npz", "--calibration", tmp_path / "mine.npy"]
    code, out, err = lab("run", file, *stated, "--images", tmp_path / "mine.npy")
    assert code == 0 and "input 15" in out, out + err
    code, out, err = lab(*ways["quantize"][0], *mine, "--recipe", "a16w8")
    assert q.is_file() and not err, out + err
    code, out, err = lab(*ways["convert"][0], *mine, "--quantize", "a16w8", "--min-cosine", 0.5)
    assert "writing the a16w8 DLC" in out, out + err
    code, _, err = lab(*ways["convert"][0], *mine)
    assert code == 2 and "--quantize" in err


# --- what is no image ---------------------------------------------------------------------------


def other(folder, *inputs, sequence=False):
    """A model with these inputs, (name, type, shape), of which it negates or lowers the first."""
    values = [helper.make_tensor_value_info(*entry) for entry in inputs]
    made = helper.make_tensor_value_info("y", inputs[0][1], inputs[0][2])
    text = inputs[0][1] == TensorProto.STRING
    lower = {"case_change_action": "LOWER"} if text else {}
    op_type = "StringNormalizer" if text else "Neg"
    node = helper.make_node(op_type, [inputs[0][0]], ["y"], "/one", **lower)
    if sequence:
        values = [helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)]
        made = helper.make_tensor_value_info("y", TensorProto.INT64, ())
        node = helper.make_node("SequenceLength", ["s"], ["y"], "/len")
    graph = helper.make_graph([node], "g", values, [made])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "other.onnx")
    return folder / "other.onnx"


OTHERS = {
    "string": ([("text", TensorProto.STRING, (1, 8))], "'text' (tensor(string) of shape (1, 8))"),
    "tokens": ([("ids", TensorProto.INT64, (1, 128))], "'ids' (tensor(int64) of shape (1, 128))"),
    "audio": ([("wave", TensorProto.FLOAT, (1, 16000))], "'wave' (tensor(float) of shape (1, 16"),
    "two": (
        [("a", TensorProto.FLOAT, (1, 3, 8, 8)), ("b", TensorProto.FLOAT, (1, 1))],
        "2 inputs: 'a' (tensor(float) of shape (1, 3, 8, 8)), 'b' (tensor(float) of shape (1, 1))",
    ),
    "any rank": ([("x", TensorProto.FLOAT, None)], "'x' (tensor(float) of any rank)"),
    "int image": ([("i", TensorProto.INT32, (1, 3, 8, 8))], "'i' (tensor(int32) of shape (1, 3,"),
}


@pytest.mark.parametrize("kind", [*OTHERS, "sequence"])
def test_what_is_no_image_is_refused_by_name_and_type_and_can_be_diagnosed(kind, lab, tmp_path):
    inputs, told = OTHERS.get(kind, ([("s", TensorProto.FLOAT, ())], "'s' (sequence)"))
    file = other(tmp_path, *inputs, sequence=kind == "sequence")
    for command in (
        ["run", file], ["quantize", file, "-o", tmp_path / "q.onnx"],
        ["convert", file, "--target", "qnn", "-o", tmp_path / "n.dlc"],
    ):  # fmt: skip
        code, out, err = lab(*command)
        assert code == 2 and told in err and not out, err
        assert "labutils diagnose other.onnx" in err
    code, out, err = lab("diagnose", file, "--target", "rknn-2.3", "--json")
    assert code in (0, 1) and json.loads(out), err


def test_keras_s_gray_image_with_its_channel_last_is_one(lab, tmp_path):
    file = written(tmp_path, 1, 28, 28)
    model = onnx.load(file)
    node = helper.make_node("Transpose", ["image"], ["input"], "/t", perm=[0, 3, 1, 2])
    model.graph.node.insert(0, node)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("image", 1, (1, 28, 28, 1)))
    onnx.save(model, file)
    code, out, err = lab("run", file, *GRAY, "--images", 2)
    assert code == 0 and "NHWC input takes NCHW" in out and "28x28 gray" in out, out + err
