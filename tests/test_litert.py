"""LiteRT's runtime: tiny .tflite files, written by the schema, are read, run, gated and located.

No converter is needed here; `test_litert_conversion` has the tests that call it.
"""

import json
import shutil
import struct
import time

import numpy as np
import pytest
import tflite_files
from hypothesis import given, settings
from hypothesis import strategies as st

from labutils import compare, export, manifests, paths, runtime
from labutils.__main__ import main
from labutils.errors import (
    MissingToolError,
    ModelFileError,
    ParityError,
    UnknownNameError,
    UsageError,
    WorkerError,
)
from labutils.images import data
from labutils.litert import take_road, time_roads
from labutils.machine import doctor
from labutils.models import zoo
from labutils.runtime import litert
from labutils.runtime.litert import availability, tflite_file
from labutils.show import serve

pytestmark = pytest.mark.litert
IMAGES = tflite_files.noise(4, 16)


@pytest.fixture(scope="module")
def small():
    return tflite_files.small_network()


@pytest.fixture(scope="module")
def exported(small, tmp_path_factory):
    file = tmp_path_factory.mktemp("litert") / "small.onnx"
    export.to_onnx(small, file, size=16)
    return file


@pytest.fixture(scope="module")
def good(small, tmp_path_factory):
    return tflite_files.network(tmp_path_factory.mktemp("litert") / "small.tflite", small)


def test_a_file_computes_what_its_network_does(small, good, exported):
    with runtime.connect(small) as ours, runtime.connect(good) as theirs:
        assert theirs.runtime.startswith("LiteRT ") and theirs.output == "logits"
        np.testing.assert_allclose(ours.run(IMAGES), theirs.run(IMAGES), atol=1e-5)
        report = compare.gate(ours, theirs, IMAGES, kind="litert_fp32", reference_onnx=exported)
        assert len(theirs.seconds(IMAGES)) == len(IMAGES)
    assert report.passed and report.required["cosine"] == compare.THRESHOLDS["ort_fp32"]


def exported_by():
    """Stand for what else was written."""


def test_a_road_says_what_its_file_has_and_how_far_it_is(small, good, tmp_path):
    def convert(file):
        time.sleep(0.1)
        shutil.copyfile(good, file)

    with runtime.connect(small) as ours:
        exact = ours.run(IMAGES)
    road = take_road("by the tests", tmp_path / "x.tflite", convert, IMAGES, exact, exported_by)
    assert road.difference < 1e-5 and "5 lines" in str(road)
    said = road.to_dict()
    assert (said["TRANSPOSE"], said["lines"], said["road"]) == (0, 5, "by the tests")
    assert 0.1 <= said["seconds"] < 60
    assert said["operators"] == road.contents.counts.total()


def test_roads_are_timed_in_turns_as_shares_of_one_of_them(good, tmp_path):
    same = shutil.copyfile(good, tmp_path / "same.tflite")
    found = time_roads({"one": good, "two": same}, IMAGES[:1], "two", turns=5)
    assert found["two"] == 1 and 0 < found["one"] < 50


@pytest.mark.parametrize("mistake", tflite_files.MISTAKES)
def test_a_conversion_that_is_wrong_without_an_error_is_caught_and_named(
    mistake, small, exported, tmp_path
):
    file = tflite_files.network(tmp_path / "wrong.tflite", small, mistake)
    with (
        runtime.connect(small) as ours,
        runtime.connect(file) as theirs,
        pytest.raises(ParityError) as caught,
    ):
        compare.gate(ours, theirs, IMAGES, kind="litert_fp32", reference_onnx=exported)
    found = caught.value.report.divergence
    assert found.op == tflite_files.MISTAKES[mistake], str(found)
    wanted = "depthwise" if mistake == "depthwise order" else "stem"
    assert found.op != "Conv" or found.module == wanted


def test_thresholds_of_litert_are_those_of_the_same_arithmetic():
    assert set(compare.gating.SAME_AS.values()) <= set(compare.THRESHOLDS)
    with pytest.raises(UnknownNameError, match="litert_int8"):
        compare.gate(None, None, IMAGES, kind="litert_int9")


def test_without_an_onnx_file_no_tensor_is_named_and_it_says_so(small, tmp_path):
    file = tflite_files.network(tmp_path / "wrong.tflite", small, "activation")
    with (
        runtime.connect(small) as ours,
        runtime.connect(file) as theirs,
        pytest.raises(ParityError, match="reference is not an ONNX file"),
    ):
        compare.gate(ours, theirs, IMAGES, kind="litert_fp32")


def test_integer_ends_are_quantized_and_dequantized(tmp_path):
    file, step = tflite_files.doubled(tmp_path / "d.tflite", 0.05), 0.05
    images = np.clip(tflite_files.noise(5, 4), -2, 2)
    with runtime.connect(file) as runner:
        found = runner.run(images)
    wanted = 2 * images.transpose(0, 2, 3, 1)
    assert np.abs(found - wanted).max() <= step * 1.001  # half a step of the input, twice
    assert np.abs(found).max() <= 2 * 128 * step


def test_a_batch_of_the_file_is_filled_and_another_is_refused(tmp_path):
    w = tflite_files.Writer((2, 4, 4, 3))
    out = w.add("RELU", [w.input], (2, 4, 4, 3))
    with runtime.connect(w.write(tmp_path / "two.tflite", out)) as runner:
        images = tflite_files.noise(4, 4)
        np.testing.assert_array_equal(
            runner.run(images), np.maximum(images, 0).transpose(0, 2, 3, 1)
        )
        with pytest.raises(UsageError, match="batch 2"):
            runner.run(images[:3])


def test_images_that_do_not_fit_are_refused(good):
    with runtime.connect(good) as runner:
        with pytest.raises(UsageError, match=r"takes float32 \(n, 3, 16, 16\)"):
            runner.run(tflite_files.noise(1, 8))
        with pytest.raises(UsageError, match="inner=True"):
            runner.inner_tensors(IMAGES)
    with pytest.raises(UsageError, match="layout"):
        runtime.connect(good, layout="nwhc")
    with pytest.raises(ModelFileError, match=r"litert runs \.tflite"):
        runtime.connect(good, "ort")


@pytest.mark.parametrize(
    ("shape", "layout", "size"),
    [((1, 224, 224, 3), "nhwc", (3, 224, 224)), ((1, 3, 96, 160), "nchw", (3, 96, 160)),
     ((1, 28, 28, 1), "nhwc", (1, 28, 28)), ((1, 1, 28, 28), "nchw", (1, 28, 28)),
     ((1, 3, 3, 3), "nhwc", (3, 3, 3)), ((1, 12, 12, 8), "nhwc", (8, 12, 12))],
)  # fmt: skip
def test_the_layout_is_read_from_the_shape(shape, layout, size):
    assert tflite_file.layout_of(shape) == (layout, size)


@pytest.mark.parametrize(("channels", "size"), [(8, 6), (3, 4)])
def test_the_layout_of_a_file_of_the_lab_is_what_its_manifest_says(channels, size, tmp_path):
    """Of a picture of eight channels, or of few pixels, the shape tells nothing."""
    w = tflite_files.Writer((1, channels, size, size))
    out = w.add("RELU", [w.input], (1, channels, size, size))
    file = w.write(tmp_path / "x.tflite", out)
    assert litert.contents(file).image[0] == "nhwc"
    manifest(file, layout="nchw")
    assert litert.contents(file).image == ("nchw", (channels, size, size))
    assert zoo.load(file).input_shape == (1, channels, size, size)
    with runtime.connect(file) as runner:
        assert (runner.layout, runner.shape) == ("nchw", [1, channels, size, size])
    manifest(file, layout="another")
    assert litert.contents(file).layout == ""
    file.write_bytes(file.read_bytes() + b"\0")  # the manifest is of another file now
    assert litert.contents(file).layout == ""


def test_codes_without_a_sign_are_int8_as_well(tmp_path):
    """TensorFlow 1 quantized so; an index or a picture of whole numbers is no code."""
    for scale, precision in ((0.1, "int8"), (None, "fp32")):
        w = tflite_files.Writer((1, 4, 4, 3), np.uint8)
        stored = w.tensor((1, 4, 4, 3), np.uint8, np.full((1, 4, 4, 3), 138), scale=scale, zero=128)
        out = w.add("ADD", [w.input, stored], (1, 4, 4, 3), ("AddOptions", {}), np.uint8,
                    scale=scale, zero=128)  # fmt: skip
        file = w.write(tmp_path / "u.tflite", out)
        assert litert.contents(file).precision == precision
        assert litert.values(file, stored).max() == (pytest.approx(1) if scale else 138)


def test_what_is_in_a_file(good):
    found = litert.contents(good)
    assert found.precision == "fp32" and found.image == ("nhwc", (3, 16, 16))
    assert found.counts["CONV_2D"] == 1 and found.counts["DEPTHWISE_CONV_2D"] == 1
    assert "takes float32 [1, 16, 16, 3] (NHWC)" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["counts"]["PAD"] == 2


@settings(max_examples=25)
@given(place=st.integers(0, 1500), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_file_is_refused_or_read_but_breaks_nothing(
    tmp_path_factory, good, place, value, cut
):
    bytes_ = bytearray(good.read_bytes())
    damaged = bytes_[: 8 + place] if cut else bytes_
    if not cut:
        damaged[place % len(damaged)] = value
    file = tmp_path_factory.mktemp("damaged") / "x.tflite"
    file.write_bytes(damaged)
    try:
        litert.contents(file)
    except ModelFileError as error:
        assert str(file) in str(error)


@pytest.mark.parametrize("content", [b"", b"\0" * 64, struct.pack("<I", 99) + b"TFL3" + b"\1" * 40])
def test_what_is_not_a_tflite_says_so(tmp_path, content, capsys):
    file = tmp_path / "x.tflite"
    file.write_bytes(content)
    with pytest.raises(ModelFileError, match=r"x\.tflite"):
        litert.contents(file)
    assert main(["run", str(file)]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_crash_of_the_runtime_costs_one_process(good, monkeypatch):
    with runtime.connect(good) as runner:
        before = runner.run(IMAGES)
        process = runner._worker._process
        monkeypatch.setattr(process, "poll", lambda: None)  # its death is not known yet
        runner._worker.interrupt()
        with pytest.raises(WorkerError, match="LiteRT worker died"):
            runner.run(IMAGES)
        np.testing.assert_array_equal(runner.run(IMAGES), before)  # a fresh one opens it again


def test_an_operator_that_the_runtime_does_not_have_is_refused_in_its_words(tmp_path):
    w = tflite_files.Writer((1, 4, 4, 3))
    out = w.add("CUSTOM", [w.input], (1, 4, 4, 3))
    w.model.operatorCodes[0].customCode = b"Elsewhere"
    file = w.write(tmp_path / "custom.tflite", out)
    assert litert.contents(file).counts == {"Elsewhere": 1}
    with pytest.raises(ModelFileError, match=r"(?s)LiteRT cannot run custom\.tflite.*Elsewhere"):
        runtime.connect(file)


def manifest(file, **facts):
    stated = data.Preprocessing(16, (0.5,) * 3, (0.25,) * 3, "a test")
    story = {"preprocessing": stated, "classes": list("abcde"), "claim": "Made by a test.", **facts}
    manifests.write(file, story)


def test_a_file_runs_by_its_manifest(good, tmp_path, capsys):
    file = tmp_path / "own.tflite"
    file.write_bytes(good.read_bytes())
    model = zoo.load(file)
    assert model.input_shape == (1, 3, 16, 16) and model.preprocessing is None
    assert main(["run", str(file), "--images", "2"]) == 2  # nobody said how it was normalised
    assert "--mean" in capsys.readouterr().err
    manifest(file)
    assert main(["run", str(file), "--images", "2", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["runtime"].startswith("LiteRT") and len(told["rows"]) == 2
    file.write_bytes(file.read_bytes() + b"\0")
    assert "knows nothing about" in zoo.load(file).note


def test_a_file_can_be_looked_at_but_is_no_network_to_convert(good, tmp_path, capsys):
    assert main(["diagnose", str(good)]) == 0
    said = capsys.readouterr().out
    assert "1 DEPTHWISE_CONV_2D" in said and "LiteRT opens it" in said
    known = ["--mean", ".5", ".5", ".5", "--std", "1", "1", "1"]
    for call in (
        ["convert", str(good), "--target", "qnn", *known, "-o", str(tmp_path / "x.dlc")],
        ["convert", str(good), "--target", "litert", *known, "-o", str(tmp_path / "x.tflite")],
        ["export", str(good), "-o", str(tmp_path / "x.onnx")],
        ["quantize", str(good), *known, "-o", str(tmp_path / "x.onnx")],
    ):
        assert main(call) in (1, 2), call
        error = capsys.readouterr().err
        assert "small.tflite" in error and "Traceback" not in error, error
    assert not list(tmp_path.iterdir())


def test_netron_serves_it(good, tmp_path):
    with serve(good) as server:
        assert server.name == "small.tflite"
    (tmp_path / "no.tflite").write_bytes(b"PK\3\4" * 8)
    with pytest.raises(ModelFileError, match=r"not a \.tflite"):
        serve(tmp_path / "no.tflite")


def test_without_the_wheel_one_sentence_says_what_to_install(good, monkeypatch):
    monkeypatch.setattr(availability.util, "find_spec", lambda name: None)
    availability.probe.cache_clear()
    try:
        with pytest.raises(MissingToolError, match="ai-edge-litert"):
            runtime.connect(good)
        finding = doctor._litert()
        assert not finding.present and not finding.needed
    finally:
        monkeypatch.undo()
        availability.probe.cache_clear()
    assert doctor._litert().present


def test_the_requirement_is_one_everywhere():
    made = (paths.ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"LITERT      := {availability.REQUIREMENT}\n" in made
    pins = (paths.ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert availability.REQUIREMENT in pins
    project = (paths.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'litert = ["{availability.REQUIREMENT}"]' in project
    locked = (paths.DATA / "tools" / "litert.yaml").read_text(encoding="utf-8")
    assert f"- {availability.REQUIREMENT}\n" in locked
