"""onnx-tf and onnx2tf, other ways from ONNX to .tflite, each in its own environment."""

import sys
from pathlib import Path

import pytest
import tflite_files
import torch

from labutils import export, litert, runtime
from labutils.errors import ToolError
from labutils.runtime.litert import contents as litert_contents
from labutils.tools import calling, environment


class Pooled(torch.nn.Sequential):
    """A mean over the picture, which two exporters write as two operators."""

    def __init__(self):
        super().__init__(
            torch.nn.Conv2d(3, 4, 3, 2, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        )


class Averaged(torch.nn.Conv2d):
    """A mean that the network itself computes, which both exporters write as ReduceMean."""

    def forward(self, x):
        return super().forward(x).mean((2, 3))


@pytest.mark.sweep
def test_onnx_tf_refuses_a_new_mean_and_takes_what_is_said_to_cure_it(tmp_path):
    """Two minutes and 1.4 GB where it is not installed; it stays in the cache."""
    environment.install("onnx-tf", echo=print)
    images = tflite_files.noise(1, 16)
    with calling.opened("onnx-tf", litert.ONNX_TF_PROGRAM) as tool:
        for network, exporter, opset, taken in (
            (Pooled(), "dynamo", 18, False), (Pooled(), "torchscript", 18, True),
            (Averaged(3, 4, 3), "torchscript", 18, False),
            (Averaged(3, 4, 3), "torchscript", 17, True),
        ):  # fmt: skip
            file = tmp_path / f"{type(network).__name__}_{exporter}_{opset}.onnx"
            export.to_onnx(network.eval(), file, size=16, opset=opset, exporter=exporter)
            if not taken:
                with pytest.raises(ToolError, match="ReduceMean version 18 is not imp") as caught:
                    tool.ask("run", file=file, images=images)
                assert caught.value.kind == "BackendIsNotSupposedToImplementIt"
                continue
            with torch.no_grad():
                exact = network(torch.from_numpy(images)).numpy()
            assert (
                litert.difference(exact, tool.ask("run", file=file, images=images)["logits"]) < 1e-5
            )
            road = litert.take_road(
                "onnx-tf", file.with_suffix(".tflite"),
                lambda made, file=file: tool.ask("convert", file=file, made=made), images, exact,
            )  # fmt: skip
            assert road.difference < 1e-5 and road.to_dict()["TRANSPOSE"] >= 1


# --- onnx2tf ------------------------------------------------------------------------------------

ONNX2TF = """
import os, sys
import numpy as np

def convert(input_onnx_file_path, output_folder_path, **how):
    print("\\x1b[33mWARNING:\\x1b[0m something is old")
    with open(input_onnx_file_path, "rb") as file:
        way = file.read().decode()
    if way == "exit":
        print("\\x1b[31mERROR:\\x1b[0m Use another option.")
        sys.exit(1)
    if way == "unknown":
        print("\\x1b[31mERROR:\\x1b[0m Det OP is not yet implemented.")
        import onnx2tf_ops_Det
    if way == "raise":
        raise ValueError("Dimensions must be equal")
    if way == "lost":
        print("Full INT8 Quantization tflite output failed.")
        return
    os.mkdir(output_folder_path)
    samples = np.load("calibration_image_sample_data_20x128x128x3_float32.npy")
    assert samples.shape == (20, 128, 128, 3) and samples.dtype == np.float32
    with open(input_onnx_file_path, "w") as file:
        file.write("changed")
    with open(output_folder_path + "/network_float32.tflite", "w") as file:
        file.write("float, signatures: %(output_signaturedefs)s" % how)
"""


@pytest.fixture
def onnx2tf_stand_in(tmp_path):
    """The program of the lab beside a package that is called as onnx2tf, and behaves as it does."""
    (tmp_path / "onnx2tf.py").write_text(ONNX2TF, encoding="utf-8")
    program = tmp_path / "program.py"
    program.write_text(litert.ONNX2TF_PROGRAM.read_text("utf-8"), encoding="utf-8")
    tool = calling.Called("onnx2tf", Path(sys.executable), program)
    yield tool
    tool.close()


def test_onnx2tf_fetches_nothing_and_gets_a_copy_of_the_file(onnx2tf_stand_in, tmp_path):
    file, made = tmp_path / "x.onnx", tmp_path / "x.tflite"
    file.write_text("good")
    onnx2tf_stand_in.ask("convert", file=file, made=made)
    assert made.read_text() == "float, signatures: True" and file.read_text() == "good"


@pytest.mark.parametrize(
    ("way", "kind", "words"),
    [
        ("exit", "Onnx2TfError", "Use another option."),
        ("unknown", "Onnx2TfError", "Det OP is not yet implemented."),
        ("raise", "ValueError", "Dimensions must be equal"),
        ("lost", "Onnx2TfError", "Full INT8 Quantization tflite output failed."),
    ],
)
def test_what_onnx2tf_says_before_it_gives_up_is_the_reason(
    onnx2tf_stand_in, tmp_path, way, kind, words
):
    (tmp_path / "x.onnx").write_text(way)
    with pytest.raises(ToolError) as caught:
        onnx2tf_stand_in.ask("convert", file=tmp_path / "x.onnx", made=tmp_path / "x.tflite")
    assert (caught.value.kind, caught.value.reason) == (kind, words)
    assert not (tmp_path / "x.tflite").exists()


@pytest.mark.sweep
def test_onnx2tf_is_installed_and_converts_what_onnx_tf_refuses(tmp_path):
    """A minute and 1.5 GB where it is not installed; it stays in the cache."""
    environment.install("onnx2tf", echo=print)
    network, images, file = Pooled().eval(), tflite_files.noise(8, 16), tmp_path / "x.onnx"
    export.to_onnx(network, file, size=16, opset=18, exporter="dynamo")
    with torch.no_grad():
        exact = network(torch.from_numpy(images)).numpy()
    with calling.opened("onnx2tf", litert.ONNX2TF_PROGRAM) as tool:
        road = litert.take_road(
            "onnx2tf", tmp_path / "x.tflite",
            lambda made: tool.ask("convert", file=file, made=made), images, exact,
        )  # fmt: skip
        tool.ask("quantize", file=file, made=tmp_path / "q.tflite", images=images)
    assert road.difference < 1e-5 and road.to_dict()["TRANSPOSE"] == 0
    assert road.contents.image == ("nhwc", (3, 16, 16))
    with runtime.connect(tmp_path / "q.tflite") as runner:
        assert litert.difference(exact, runner.run(images)) < 0.05
    whole = litert_contents(tmp_path / "q.tflite")
    assert not whole.in_float and {t.type for t in whole.tensors} <= {"int8", "int32"}
