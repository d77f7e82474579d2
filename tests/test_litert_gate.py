"""A wrong .tflite in place of the converter's: it is refused, named, and nothing of it is left.

The converter is a stand-in, so only LiteRT's runtime is needed.
"""

import contextlib
import dataclasses
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import tflite_files
import torch

from labutils import litert, paths, pipeline, runtime
from labutils.errors import ParityError
from labutils.images import data
from labutils.litert import conversion, converter, quantization
from labutils.models import zoo
from labutils.tools import lock

pytestmark = pytest.mark.litert
IMAGES = tflite_files.noise(32, 16)
PREPROCESSING = data.Preprocessing(16, (0.5,) * 3, (0.25,) * 3, "a test")


class Quantizer:
    """Stands for the tool: what it writes is the float file again."""

    lock = lock.find("litert")

    def ask(self, function, **given):
        self.images = given.get("images")
        shutil.copyfile(given["file"], given["made"])


@pytest.fixture
def converting(monkeypatch):
    """Have the converter write a file of the small network, with a mistake or without."""
    tool, asked = Quantizer(), SimpleNamespace(mistake="")

    def convert(tool, network, shape, file, *more):
        tflite_files.network(file, tflite_files.small_network(), asked.mistake)

    monkeypatch.setattr(conversion, "require_tools", lambda: None)
    monkeypatch.setattr(pipeline.litert_conversion.litert, "require_tools", lambda: None)
    monkeypatch.setattr(converter, "opened", lambda: contextlib.nullcontext(tool))
    monkeypatch.setattr(converter, "convert", convert)
    return asked


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    file = tmp_path_factory.mktemp("program") / "small.pt2"
    network = tflite_files.small_network()
    torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 16, 16),)), file)
    return dataclasses.replace(zoo.load(file), preprocessing=PREPROCESSING)


@pytest.mark.parametrize("mistake", tflite_files.MISTAKES)
def test_a_wrong_file_of_the_converter_is_refused_and_nothing_is_left(
    mistake, converting, model, tmp_path
):
    converting.mistake = mistake
    with pytest.raises(ParityError) as caught:
        pipeline.convert_to_litert(
            model, tmp_path / "x.tflite", comparison=pipeline.Comparison(IMAGES)
        )
    found = caught.value.report.divergence
    assert found.op == tflite_files.MISTAKES[mistake] and found.tensor in str(caught.value)
    assert not list(tmp_path.iterdir())  # no file, no manifest, no scratch


def test_a_file_that_was_there_stays_when_the_new_one_is_wrong(converting, tmp_path):
    """Also without an ONNX file to name a tensor by, and when the float file is the wrong one."""
    file = tmp_path / "x.tflite"
    network = tflite_files.small_network()
    with runtime.connect(network) as reference:
        gate = litert.Gate(reference, IMAGES)
        good = litert.convert(network, file, gate)
        before = [file.read_bytes(), paths.manifest(file).read_bytes()]
        converting.mistake = "kernel order"
        form = litert.Form(quantization=litert.plain("static", IMAGES))
        with pytest.raises(ParityError, match="litert_fp32"):
            litert.convert(network, file, gate, form)
    assert good.gate.passed and good.contents.layout == "nhwc"
    assert [file.read_bytes(), paths.manifest(file).read_bytes()] == before
    assert sorted(tmp_path.iterdir()) == [file, paths.manifest(file)]


def test_what_a_quantization_did_not_reach_is_said(converting, tmp_path):
    network, named = tflite_files.small_network(), (("/stem/Conv", "stem"),)
    asked = dataclasses.replace(litert.plain("static", IMAGES), named=named)
    with runtime.connect(network) as reference:
        made = litert.convert(
            network, tmp_path / "x.tflite", litert.Gate(reference, IMAGES),
            litert.Form(quantization=asked),
        )  # fmt: skip
    unnamed, nothing = made.not_carried  # tensors of this file hold no paths, its numbers no codes
    assert "1 node" in unnamed and "/stem/Conv" in unnamed
    assert "quantizes no operator" in nothing and made.precision == "fp32"
    assert all(f"not carried: {note}" in str(made) for note in made.not_carried)


def test_fewer_images_than_a_batch_are_repeated(tmp_path):
    w = tflite_files.Writer((5, 4, 4, 3))
    file = w.write(tmp_path / "five.tflite", w.add("RELU", [w.input], (5, 4, 4, 3)))
    tool, images = Quantizer(), tflite_files.noise(2, 4)
    for count, runs in ((2, 1), (1, 1)):
        asked = litert.plain("static", images[:count])
        quantization.quantize(tool, file, tmp_path / "q.tflite", asked, "nhwc")
        laid = images[:count].transpose(0, 2, 3, 1)
        assert tool.images.shape == (runs, 5, 4, 4, 3)
        np.testing.assert_array_equal(tool.images[0], laid[np.arange(5) % count])
