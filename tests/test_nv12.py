"""NV12 against OpenCV's bytes, its limits, and the nodes that let an ONNX file take it."""

import json

import numpy as np
import onnx
import pytest
from colour_network import MEAN, STD, pictures, preprocessing, saved
from hypothesis import given
from hypothesis import strategies as st

from labutils.errors import ModelFileError, UnknownNameError, UsageError
from labutils.images import nv12
from labutils.onnxfile import byte_input
from labutils.onnxfile.session import Session
from labutils.rdk import nv12_input

# python -c "import cv2, numpy as np; rng = np.random.default_rng(5);
#            rgb = rng.integers(0, 256, (4, 8, 3), dtype=np.uint8);
#            yuv = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420);
#            print(yuv.tolist(), cv2.cvtColor(yuv, cv2.COLOR_YUV2RGB_I420)[0].tolist())"
# with opencv-python-headless 5.0.0
I420 = [
    [193, 197, 149, 159, 73, 183, 84, 172], [57, 127, 87, 142, 91, 92, 75, 74],
    [90, 96, 126, 104, 97, 123, 49, 104], [148, 91, 205, 149, 134, 138, 125, 82],
    [117, 173, 201, 120, 114, 167, 156, 191], [104, 44, 110, 82, 197, 139, 182, 145],
]  # fmt: skip
FIRST_ROW = [
    [168, 230, 184], [172, 234, 188], [21, 206, 246], [32, 217, 255],
    [38, 52, 214], [166, 180, 255], [6, 120, 63], [108, 222, 165],
]  # fmt: skip
RGB = np.random.default_rng(5).integers(0, 256, (4, 8, 3), dtype=np.uint8)
KINDS, ORDERS = ("video", "full"), ("nv12", "nv21")


def repacked(i420, height, width):
    """OpenCV's planar chroma as pairs, as the vendor's samples repack it."""
    flat = np.asarray(i420, np.uint8).reshape(-1)
    u, v = flat[height * width :].reshape(2, -1)
    return np.concatenate([flat[: height * width], np.stack([u, v], 1).reshape(-1)])


def test_the_bytes_are_those_of_opencv_repacked():
    ours = nv12.encode(RGB)
    np.testing.assert_array_equal(ours.reshape(-1), repacked(I420, 4, 8))
    np.testing.assert_array_equal(nv12.decode(ours)[0], FIRST_ROW)
    flat = nv12.decode(ours.reshape(-1), size=(4, 8))
    np.testing.assert_array_equal(flat, nv12.decode(ours))


@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(1, 12))
def test_the_bytes_are_those_of_the_installed_opencv(seed, rows, columns):
    cv2 = pytest.importorskip("cv2")
    shape = (2 * rows, 2 * columns, 3)
    rgb = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    yuv = cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420)
    ours = nv12.encode(rgb)
    np.testing.assert_array_equal(ours.reshape(-1), repacked(yuv, *shape[:2]))
    np.testing.assert_array_equal(nv12.decode(ours), cv2.cvtColor(yuv, cv2.COLOR_YUV2RGB_I420))


@pytest.mark.parametrize("kind", KINDS)
def test_the_formula_is_bt_601(kind):
    colours = np.random.default_rng(0).integers(0, 256, (500, 1, 1, 3), dtype=np.uint8)
    flat = colours.repeat(2, 1).repeat(2, 2)
    y, pairs = nv12.planes(nv12.encode(flat, kind))
    r, g, b = colours[:, 0, 0].astype(float).T
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    spans = {"video": (219, 16, 224), "full": (255, 0, 255)}[kind]
    want_y = luma * spans[0] / 255 + spans[1]
    want_u = (b - luma) / 1.772 * spans[2] / 255 + 128
    want_v = (r - luma) / 1.402 * spans[2] / 255 + 128
    assert np.abs(y[:, 0, 0] - want_y).max() < 0.6  # the constants of OpenCV are rounded
    for got, want in ((pairs[:, 0, 0, 0], want_u), (pairs[:, 0, 0, 1], want_v)):
        assert np.abs(got - np.clip(want, 0, 255)).max() < 0.6


@given(
    st.integers(0, 2**31), st.sampled_from(KINDS), st.sampled_from(ORDERS),
    st.sampled_from(("corner", "mean")),
)  # fmt: skip
def test_what_one_pair_can_hold_comes_back(seed, kind, order, chroma):
    colours = np.random.default_rng(seed).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    blocks = colours.repeat(2, 1).repeat(2, 2)
    seen = nv12.decode(nv12.encode(blocks, kind, order, chroma), kind, order)
    error = nv12.colour_error(blocks, seen)
    assert error.largest <= 3 and error.psnr_db > 45
    luma = nv12.encode(blocks, kind)[:, :8]
    assert luma.min() >= (16 if kind == "video" else 0) and luma.max() <= 255
    assert kind == "full" or luma.max() <= 235


def test_nv21_is_nv12_with_its_pairs_turned():
    a, b = nv12.encode(RGB), nv12.encode(RGB, order="nv21")
    np.testing.assert_array_equal(a[:4], b[:4])
    np.testing.assert_array_equal(a[4:, ::2], b[4:, 1::2])
    np.testing.assert_array_equal(nv12.decode(a, order="nv21"), nv12.decode(b))


def test_the_mean_of_a_block_is_another_chroma():
    corner, mean = nv12.encode(RGB), nv12.encode(RGB, chroma="mean")
    np.testing.assert_array_equal(corner[:4], mean[:4])
    blocks = RGB.reshape(2, 2, 4, 2, 3).astype(float).mean((1, 3))
    blocks = np.floor(blocks + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(mean[4:], nv12.encode(blocks.repeat(2, 0).repeat(2, 1))[4:])


def test_the_colour_error_is_what_it_says():
    seen = RGB.copy()
    seen[0, 0] = np.clip(seen[0, 0].astype(int) + np.array([9, 0, 0]), 0, 255)
    apart = int(seen[0, 0, 0]) - int(RGB[0, 0, 0])
    error = nv12.colour_error(RGB[None], seen[None])
    assert (error.largest, error.pictures) == (abs(apart), 1)
    assert error.mean == pytest.approx(abs(apart) / RGB.size)
    assert error.psnr_db == pytest.approx(10 * np.log10(255**2 * RGB.size / apart**2))
    same = nv12.colour_error(RGB[None], RGB[None])
    assert same.psnr_db == np.inf and json.loads(json.dumps(same.to_dict()))["psnr_db"] is None


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: nv12.encode(RGB[:3]), "both sides are even, not 3 x 8"),
        (lambda: nv12.encode(RGB[:, :7]), "both sides are even, not 4 x 7"),
        (lambda: nv12.encode(RGB.astype(np.float32)), r"not float32 \(4, 8, 3\)"),
        (lambda: nv12.encode(RGB[..., 0]), "height, width, 3"),
        (lambda: nv12.decode(nv12.encode(RGB)[:5]), "both sides even"),
        (lambda: nv12.decode(nv12.encode(RGB).reshape(-1), size=(4, 6)), "has 36 bytes, not 48"),
        (lambda: nv12.decode(nv12.encode(RGB).astype(np.int8)), "not int8"),
        (lambda: nv12.colour_error(RGB[None], RGB[None, :2]), "equal stacks"),
    ],
)
def test_what_is_not_a_picture_or_its_bytes_is_refused(call, words):
    with pytest.raises(UsageError, match=words):
        call()


@pytest.mark.parametrize("wrong", [{"kind": "tv"}, {"order": "nv61"}, {"chroma": "left"}])
def test_an_unknown_word_is_refused(wrong):
    with pytest.raises(UnknownNameError):
        nv12.encode(RGB, **wrong)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_a_file_that_takes_bytes_computes_what_the_float_path_does(kind, order, tmp_path):
    plain = saved(tmp_path / "f.onnx")
    file = nv12_input.prepend(plain, tmp_path / "n.onnx", preprocessing(), kind, order)
    onnx.checker.check_model(file.proto, full_check=True)
    assert str(byte_input.read(file.proto)) == f"{order.upper()} bytes of 32 x 32, {kind} range"
    runs, decoding = Session(file, threads=1), file.copy()
    first = next(n.input[0] for n in decoding.graph.node if n.name == "conv")
    decoding.graph.output.append(onnx.helper.make_tensor_value_info(first, 1, [1, 3, 32, 32]))
    decodes, network = Session(decoding, threads=1), Session(plain, threads=1)
    rng, apart = np.random.default_rng(3), 0
    for _ in range(60):
        sent = rng.integers(0, 256, (1, 48, 32), dtype=np.uint8)
        wanted = preprocessing()(nv12.decode(sent, kind, order))
        got = decodes.run({"data": sent}, [first])[0]
        codes = np.abs(got - wanted) * 255 * np.array(STD)[None, :, None, None]
        apart += int((codes > 1e-3).sum())
        assert codes.max() < 1.01  # one code of rounding at most
        np.testing.assert_allclose(
            runs.run({"data": sent})[0], network.run({"data": wanted})[0], atol=0.01, rtol=1e-3
        )
    assert apart / (60 * 32 * 32 * 3) < 1e-4


def test_an_older_file_or_another_input_is_refused(tmp_path):
    old = saved(tmp_path / "o.onnx", opset=10)
    with pytest.raises(ModelFileError, match="opset 10"):
        nv12_input.prepend(old, tmp_path / "n.onnx", preprocessing())
    plain = saved(tmp_path / "f.onnx")
    with pytest.raises(UsageError, match="the preprocessing is for 3 x 64 x 64"):
        nv12_input.prepend(plain, tmp_path / "n.onnx", preprocessing(64))
    odd = saved(tmp_path / "odd.onnx", size=31)
    with pytest.raises(UsageError, match="both sides are even, not 31 x 31"):
        nv12_input.prepend(odd, tmp_path / "n.onnx", preprocessing(31))
    bytes_ = nv12_input.prepend(plain, tmp_path / "n.onnx", preprocessing())
    with pytest.raises(UsageError, match="NV12 replaces one float32 picture"):
        nv12_input.prepend(bytes_, tmp_path / "again.onnx", preprocessing())
    assert not (tmp_path / "again.onnx").exists()


def test_the_command_writes_a_file_that_takes_bytes_and_measures_the_colours(lab, tmp_path):
    plain, made = saved(tmp_path / "f.onnx"), tmp_path / "n.onnx"
    folder = tmp_path / "pictures"
    folder.mkdir()
    from PIL import Image

    for i, picture in enumerate(pictures(6).images):
        Image.fromarray(picture).save(folder / f"{i}.png")
    asked = ("rdk", "nv12", plain, "--mean", *MEAN, "--std", *STD, "--data", folder)
    code, out, err = lab(*asked, "--images", 6, "-o", made, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert byte_input.read(onnx.load(made)).kind == "video"
    assert told["colours"]["pictures"] >= 4 and 0 < told["colours"]["mean"] < 10
    assert told["agreement"].startswith("100.0 %") and told["range"] == "video"
    code, _, err = lab("rdk", "nv12", plain, "-o", made)
    assert code == 2 and "--mean R G B --std R G B" in err
