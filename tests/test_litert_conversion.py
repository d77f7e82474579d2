"""Conversion to .tflite, the whole way through Google's tools.

What calls the converter is skipped where its tool environment is not installed.
"""

import dataclasses
import json

import pytest
import tflite_files
import torch

from labutils import export, litert, manifests, metrics, paths, pipeline, quantize, runtime
from labutils.__main__ import main
from labutils.errors import TranslationError
from labutils.images import data
from labutils.litert import converter as converter_module
from labutils.models import zoo
from labutils.onnxfile.file import OnnxFile
from labutils.pipeline import batch
from labutils.quantize.recipe import Override, Recipe
from labutils.tools import environment

PREPROCESSING = data.Preprocessing(16, (0.5,) * 3, (0.25,) * 3, "a test")


@pytest.fixture(scope="module")
def relu_file(tmp_path_factory):
    """A float ONNX file with a ReLU, which the quantizer leaves to the range."""
    file = tmp_path_factory.mktemp("relu") / "net.onnx"
    export.to_onnx(tflite_files.relu_network(), file, size=16)
    return file


def test_without_the_converter_one_sentence_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(environment.PLACE, str(tmp_path / "empty"))
    if not runtime.litert.probe().ok:
        pytest.skip("LiteRT's runtime is asked for first")
    call = ["convert", "mobilenet_v3_small", "--target", "litert", "-o", str(tmp_path / "x.tflite")]
    assert main(call) == 1
    assert "labutils tools install litert" in capsys.readouterr().err
    assert not (tmp_path / "x.tflite").exists()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (["--target", "litert", "-o", "x.dlc"], "output is a .tflite file"),
        (["--target", "qnn", "-o", "x.tflite"], "output is a .dlc file"),
        (["--target", "qnn", "-o", "x.dlc", "--layout", "nchw"], "--layout is for a .tflite"),
        (["--target", "litert", "-o", "x.tflite", "--quantize", "int8", "--precision", "fp16"],
         "--precision is for a float file"),
        (["--target", "litert"], "Pass -o FILE.tflite"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_are_refused_before_any_work(call, words, capsys):
    assert main(["convert", "mobilenet_v3_small", *call]) == 2
    assert words in capsys.readouterr().err


@pytest.fixture(scope="module")
def converter():
    if not runtime.litert.probe().ok:
        pytest.skip(runtime.litert.probe().reason)
    if environment.survey("litert").state != "installed":
        pytest.skip("`labutils tools install litert` was not run")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """A .pt2 of the small network."""
    file = tmp_path_factory.mktemp("program") / "small.pt2"
    example = (torch.zeros(1, 3, 16, 16),)
    torch.export.save(torch.export.export(tflite_files.small_network(), example), file)
    return file


@pytest.mark.slow
def test_a_program_is_converted_quantized_and_run(converter, program, tmp_path, capsys):
    model = dataclasses.replace(zoo.load(program), preprocessing=PREPROCESSING)
    comparison = pipeline.Comparison(tflite_files.noise(32, 16))
    file = tmp_path / "x.tflite"
    made = pipeline.convert_to_litert(model, file, recipe="dynamic", comparison=comparison)
    assert made.gate.passed and made.contents.precision == "w8"
    stated = manifests.read(file)
    assert stated["precision"] == "w8" and stated["layout"] == "nhwc"
    assert stated["float_gate"]["kind"] == "litert_fp32"
    assert main(["run", str(file), "--images", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"]


@pytest.mark.slow
def test_what_a_max_pool_is_padded_with_is_in_no_range(converter, tmp_path):
    """Minus infinity: a range that reached there made a file that ended LiteRT's process."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1),
        torch.nn.Conv2d(8, 8, 3, 1, 1), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(8, 5),
    ).eval()  # fmt: skip
    export.to_onnx(network, tmp_path / "pool.onnx", size=32, preprocessing=data.Preprocessing(32))
    model = zoo.load(tmp_path / "pool.onnx")
    for recipe in ("int8", "int8_minmax"):
        made = pipeline.convert_to_litert(model, tmp_path / f"{recipe}.tflite", recipe=recipe)
        assert made.gate.passed and made.gate.parity.sqnr_db > 25, recipe


@pytest.mark.slow
def test_exceptions_by_node_reach_the_file_or_are_told_as_lost(converter, tmp_path, monkeypatch):
    """What torch.export cannot unflatten is converted without the names of its modules."""
    file, recipe = tmp_path / "small.onnx", tmp_path / "mine.yaml"
    export.to_onnx(tflite_files.small_network(), file, size=16)
    model = dataclasses.replace(zoo.load(file), preprocessing=PREPROCESSING)
    images = tflite_files.noise(32, 16)
    comparison = pipeline.Comparison(images, calibration=tflite_files.noise(16, 16, seed=2))
    mine = Recipe(
        "mine", exclude=("/stem/*",),
        overrides=(Override("/depthwise/*", activations=16), Override("/head/*", range=(-8, 8))),
    )  # fmt: skip
    mine.save(recipe)
    made = pipeline.convert_to_litert(
        model, tmp_path / "x.tflite", recipe=recipe, comparison=comparison
    )
    found = made.contents
    written = {o.type: found.tensors[o.outputs[0]] for o in found.operators}
    assert written["CONV_2D"].type == "float32"
    assert written["DEPTHWISE_CONV_2D"].type == "int16"
    head = written["FULLY_CONNECTED"]
    assert head.type == "int8" and head.scales[0] == pytest.approx(16 / 255, rel=1e-3)
    assert not any("traced" in note for note in made.not_carried)
    flat = litert.TOOL_PROGRAM.read_text("utf-8").replace("torch.export.unflatten(", "_no(")
    (tmp_path / "flat.py").write_text(flat, encoding="utf-8")
    monkeypatch.setattr(converter_module, "TOOL_PROGRAM", tmp_path / "flat.py")
    made = pipeline.convert_to_litert(
        model, tmp_path / "flat.tflite", recipe=recipe, comparison=comparison
    )
    (lost,) = [note for note in made.not_carried if "traced" in note]
    assert "2 nodes" in lost and "/stem/Conv" in lost and "/depthwise/Conv" in lost


@pytest.mark.slow
def test_a_qdq_file_keeps_its_ranges(converter, relu_file, tmp_path):
    rounded_file = tmp_path / "q.onnx"
    quantize.static(relu_file, rounded_file, tflite_files.noise(64, 16), "int8_trim")
    model = dataclasses.replace(zoo.load(rounded_file), preprocessing=PREPROCESSING)
    comparison = pipeline.Comparison(tflite_files.noise(16, 16, seed=3))
    form = litert.Form("nchw")
    made = pipeline.convert_to_litert(
        model, tmp_path / "x.tflite", form=form, comparison=comparison
    )
    assert made.contents.image == ("nchw", (3, 16, 16))
    assert made.gate.passed and made.not_carried
    codes = litert.take_apart(OnnxFile.of(rounded_file)).codes
    first = next(o for o in made.contents.operators if o.type == "QUANTIZE")
    (scale,) = made.contents.tensors[first.outputs[0]].scales
    span = codes[""].high - codes[""].low
    assert scale == pytest.approx(span / 255, rel=1e-3)


@pytest.mark.slow
def test_an_operator_without_a_translation_is_named(converter, tmp_path):
    class Determinant(torch.nn.Module):
        def forward(self, x):
            return torch.linalg.det(x)

    with runtime.connect(Determinant()) as reference:
        gate = litert.Gate(reference, tflite_files.noise(2, 8))
        with pytest.raises(TranslationError, match="_linalg_det") as caught:
            litert.convert(Determinant(), tmp_path / "x.tflite", gate, name="determinant")
    assert caught.value.op_type.startswith("aten.") and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_batch_for_litert_has_a_row_for_each_model(converter, program, tmp_path):
    known = "--mean .5 .5 .5 --std .25 .25 .25"
    (tmp_path / "list.txt").write_text(f"{program} {known}\nnobody\n")
    made = batch.run(tmp_path / "list.txt", "litert", tmp_path / "out")
    good, bad = made.rows
    assert good.outcome == "converted" and good.file.endswith(".tflite") and good.cosine > 0.9999
    assert bad.outcome == "failed" and not made.ok
    again = batch.run(tmp_path / "list.txt", "litert", tmp_path / "out", echo=print)
    assert again.rows[0] == good
    assert (tmp_path / "out" / good.file).is_file()
    assert paths.manifest(tmp_path / "out" / good.file).is_file()


class Excited(torch.nn.Module):
    """A loud channel before a hard-swish, and a gate whose hard-sigmoid the converter fuses."""

    def __init__(self, channels=8):
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, channels, 3, 1, 1), torch.nn.Hardswish())
        self.squeeze = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Conv2d(channels, channels, 1),
            torch.nn.Hardsigmoid(),
        )  # fmt: skip
        self.project = torch.nn.Conv2d(channels, channels, 3, 1, 1)
        self.head = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(channels, 5)
        )
        with torch.no_grad():
            self.stem[0].weight[-1] *= 30
            self.project.weight[:, -1] /= 30
            self.squeeze[1].weight *= 6

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.project(x * self.squeeze(x)).relu())


@pytest.mark.slow
def test_equalized_gates_and_fused_ranges_reach_the_file(converter, tmp_path):
    network, images = Excited().eval(), tflite_files.noise(32, 16)
    with torch.no_grad():
        exact = network(torch.from_numpy(images)).numpy()
    example = (torch.zeros(1, 3, 16, 16),)
    torch.export.save(torch.export.export(network, example), tmp_path / "excited.pt2")
    model = dataclasses.replace(zoo.load(tmp_path / "excited.pt2"), preprocessing=PREPROCESSING)
    comparison = pipeline.Comparison(images, calibration=tflite_files.noise(64, 16, seed=2))
    noise = {}
    for recipe in ("int8", "int8_trim"):
        file = tmp_path / f"{recipe}.tflite"
        made = pipeline.convert_to_litert(model, file, recipe=recipe, comparison=comparison)
        with runtime.connect(file) as runner:
            noise[recipe] = metrics.sqnr_db(exact, runner.run(images))
        assert made.gate.passed
        told = json.loads(paths.manifest(file).read_text("utf-8"))
        assert told["recipe"]["name"] == quantize.load_recipe(recipe).name
    assert noise["int8"] > max(25, noise["int8_trim"] + 3)
    assert not any("equalize_gates" in note for note in made.not_carried)
