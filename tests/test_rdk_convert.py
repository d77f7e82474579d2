"""`labutils convert --target rdk-x5`: a .bin by the user's tools (a stand-in), or an emulation."""

import colour_network
import numpy as np
import onnx
import pytest
from rdk_environment import made, yaml_of

from labutils import manifests, pipeline, quantize, runtime
from labutils.errors import ParityError
from labutils.images import data
from labutils.models import zoo
from labutils.onnxfile.file import OnnxFile
from labutils.pipeline import rdk_conversion
from labutils.rdk import hb_mapper, hb_mapper_writing, vendor_tools

PICTURES = colour_network.pictures(24)
PRE = colour_network.preprocessing()


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    return made(tmp_path_factory.mktemp("rdk_environment"))


@pytest.fixture
def own_tools(interpreter, monkeypatch):
    monkeypatch.setenv(vendor_tools.VARIABLE, str(interpreter))


@pytest.fixture
def network(tmp_path):
    return OnnxFile(colour_network.saved(tmp_path / "colours.onnx"))


def arguments(network, output, *more):
    mean, std = (list(map(str, v)) for v in (colour_network.MEAN, colour_network.STD))
    return [
        "convert", network.path, "--target", "rdk-x5", "-o", output,
        "--mean", *mean, "--std", *std, *more,
    ]  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Pictures in folders by class."""
    from PIL import Image

    for index, (pixels, label) in enumerate(zip(PICTURES.images, PICTURES.labels, strict=True)):
        place = tmp_path / "pictures" / PICTURES.classes[label]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{index}.png")
    return tmp_path / "pictures"


def test_convert_makes_a_bin_with_the_users_tools_and_gates_it(lab, own_tools, network, folder):
    output = folder.parent / "m.bin"
    code, said, problem = lab(*arguments(network, output, "--data", folder))
    assert code == 0, problem
    assert "the vendor's estimate, not measured on a board: 0.789 ms, 1267.2 frames/s" in said
    assert "Parity gate (bpu_int8): passed" in said and "2 of 2 pictures" in said
    assert {file.name for file in output.parent.glob("m*")} == {
        "m.bin", "m_quantized_model.onnx", "m.vendor.log", manifests.paths.manifest(output).name,
    }  # fmt: skip
    kept = manifests.read(output)
    assert kept["vendor"]["estimate"]["latency_ms"] == 0.7891 and kept["gate"]["passed"]
    assert onnx.load(output).graph.node[0].op_type == "HzBpuHBM"
    assert "core[0]" not in said


def test_a_wrong_file_of_the_tools_does_not_get_its_name(
    lab, own_tools, network, folder, monkeypatch
):
    """The tool is told BGR's means: what it makes is another function, and the gate says so."""
    order = vendor_tools.Order.arguments

    def swapped(self, name):
        said = order(self, name)
        said["input_dict"][name]["means"] = [0.0, 250.0, 0.0]
        return said

    monkeypatch.setattr(vendor_tools.Order, "arguments", swapped)
    output = folder.parent / "m.bin"
    code, _, problem = lab(*arguments(network, output, "--data", folder))
    assert code == 1 and "Parity gate (bpu_int8): FAILED" in problem
    assert not list(folder.parent.glob("m*"))


def test_a_bin_that_is_not_its_quantized_onnx_is_a_problem(
    lab, own_tools, network, folder, monkeypatch
):
    run = vendor_tools.VendorRunner.run
    off = {"BPU simulator": 0.0, "quantized ONNX": 1.0}
    monkeypatch.setattr(
        vendor_tools.VendorRunner, "run",
        lambda self, batch: run(self, batch) + next(v for k, v in off.items() if k in self.runtime),
    )  # fmt: skip
    output = folder.parent / "m.bin"
    code, said, _ = lab(*arguments(network, output, "--data", folder))
    assert code == 1 and "on 0 of 2 pictures\nWARNING: " in said and output.exists(), said


def test_a_yaml_that_normalises_otherwise_is_refused(lab, own_tools, network, folder):
    file = folder.parent / "c.yaml"
    file.write_text(yaml_of())
    output = folder.parent / "m.bin"
    code, _, problem = lab(*arguments(network, output, "--data", folder, "--quantize", file))
    assert code == 2 and "normalises otherwise" in problem and "--input-check" in problem


@pytest.mark.parametrize("ending", ["bin", "onnx"])
def test_a_yaml_is_applied_with_its_own_pictures_and_the_rest_of_it_is_listed(
    lab, own_tools, network, folder, ending
):
    place, output = folder.parent / "board", folder.parent / f"m.{ending}"
    place.mkdir()
    hb_mapper_writing.write_calibration(place / "cal_f32", PICTURES.head(20))
    file = place / "board.yaml"
    text = hb_mapper_writing.Plan("m.onnx", "m", PRE, {}, "max", cal_data_dir="cal_f32").text()
    file.write_text(text.replace("  layer_out", "  debug_mode: dump_calibration_data\n  layer_out"))
    asked = arguments(network, output, "--inputs", folder / "red", "--quantize", file)
    code, said, problem = lab(*asked)
    assert code == 0, problem
    kept = manifests.read(output)
    assert kept["pictures"] == "20 files of cal_f32"
    told = {what.partition(":")[0].rpartition(".")[2] for what, _ in kept["not_taken"]}
    always = {"debug_mode", "compile_mode"}
    assert told == (
        always if ending == "bin" else always | {"input_type_rt", "input_space_and_range",
                                                 "optimize_level"}
    )  # fmt: skip
    mark = "emulation | " if ending == "onnx" else ""
    assert f"\n{mark}NOT TAKEN " in said
    code, said, problem = lab(*asked, "--calibration", folder / "blue")
    assert code == 0, problem
    assert f"\n{mark}NOT TAKEN cal_data_dir: cal_f32: calibrated on " in said


def test_what_a_recipe_cannot_say_to_the_tools_is_said_and_kept(lab, own_tools, network, folder):
    output = folder.parent / "m.bin"
    recipe = quantize.load_recipe("int8_minmax").replaced(flat_ends=True)
    recipe.save(folder.parent / "r.yaml")
    asked = arguments(network, output, "--data", folder, "--quantize", folder.parent / "r.yaml")
    code, said, problem = lab(*asked)
    assert code == 0, problem
    assert "NOT TAKEN flat_ends: the tool has no such" in said
    assert manifests.read(output)["not_taken"] == [["flat_ends", "the tool has no such"]]


@pytest.mark.parametrize("ending", ["bin", "onnx"])
def test_a_newer_opset_is_arranged_by_repair(lab, own_tools, folder, ending):
    newer = OnnxFile(colour_network.saved(folder.parent / "newer.onnx", opset=17))
    output = folder.parent / f"m.{ending}"
    code, _, problem = lab(*arguments(newer, output, "--data", folder))
    assert code == 1 and "opset" in problem and not output.exists()
    code, said, problem = lab(*arguments(newer, output, "--data", folder, "--repair"))
    assert code == 0, problem
    assert manifests.read(output)["gate"]["passed"] and "opset" in said


def test_prepare_writes_what_hb_mapper_reads(lab, network, tmp_path):
    newer, later = tmp_path / "newer.onnx", onnx.load(network.path)
    colour_network.saved(newer, opset=13)
    later.ir_version = 10
    onnx.save(later, tmp_path / "later.onnx")
    asked = ("--mean", *colour_network.MEAN, "--std", *colour_network.STD, "--images", 20, "-o")
    code, _, problem = lab("rdk", "prepare", newer, *asked, tmp_path / "a")
    assert code == 1 and "opset 13" in problem and "labutils repair" in problem
    assert not (tmp_path / "a").exists()
    code, _, problem = lab("rdk", "prepare", tmp_path / "later.onnx", *asked, tmp_path / "b")
    assert code == 0, problem
    assert onnx.load(tmp_path / "b" / "b.onnx").ir_version == 9


@pytest.mark.slow
def test_what_is_handed_over_has_equalized_gates_and_computes_the_same(lab, tmp_path):
    """No range suits the stem of MobileNetV3 as it is: one channel reaches 16 times as far."""
    name, asked = "timm:mobilenetv3_small_100", ("--weights", "things16", "--size", 128)
    code, said, problem = lab("rdk", "prepare", name, *asked, "--images", 20, "-o", tmp_path / "b")
    assert code == 0, problem
    assert "equalized the channels before" in said
    file = OnnxFile(tmp_path / "b" / "b.onnx")
    assert file.opset == 11 and any("/equalized" in n.name for n in file.proto.graph.node)
    assert hb_mapper.read(tmp_path / "b" / "b.yaml").get("max_percentile") == 0.9995
    model = zoo.load(name, "things16", 128)
    images = data.load("val", 32, 128)
    inputs = model.preprocessing(images.images)
    with runtime.connect(file) as ours, runtime.connect(model.module) as theirs:
        assert np.abs(ours.run(inputs) - (exact := theirs.run(inputs))).max() < 1e-3
    right = {}
    for recipe in (rdk_conversion.RECIPE, rdk_conversion.RECIPE.replaced(equalize_gates=False)):
        comparison = pipeline.Comparison(images, min_cosine=0.1)
        output = tmp_path / f"{recipe.equalize_gates}.onnx"
        try:
            made = pipeline.convert_for_rdk(model, output, recipe, comparison=comparison)
        except ParityError as error:
            right[recipe.equalize_gates] = error.report.parity.sqnr_db
        else:
            right[recipe.equalize_gates] = made.gate.parity.sqnr_db
            asked = manifests.read(output)["quantization"]["equalize_gates"]
            assert asked == recipe.equalize_gates
    assert len(exact) == 32 and right[True] > right[False] + 1, right


def test_a_bin_needs_the_tools_and_an_onnx_does_not(lab, network, folder, monkeypatch, tmp_path):
    monkeypatch.delenv(vendor_tools.VARIABLE, raising=False)
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))
    code, _, problem = lab(*arguments(network, tmp_path / "m.bin", "--data", folder))
    assert code != 0 and "D-Robotics' tools are not here" in problem
    code, said, problem = lab(*arguments(network, tmp_path / "m.onnx", "--data", folder))
    assert code == 0, problem
    rows = [line for line in said.splitlines() if "BPU" in line or "HzS" in line]
    assert rows and all(line.startswith("emulation | ") for line in rows)
    assert "emulation | Parity gate (ort_int8): passed" in said
    _, _, table = said.partition("emulation | ")
    told = [line for line in table.splitlines()[1:] if line]
    assert all(line.startswith("emulation | ") for line in told)
    assert told[-1].startswith("emulation | Wrote m.onnx") and "top-1" in table
    code, _, problem = lab(*arguments(network, tmp_path / "m.dlc", "--data", folder))
    assert code == 2 and "FILE.bin" in problem and "FILE.onnx" in problem
