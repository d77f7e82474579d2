"""A user's own RDK X5 tools, found and called in their own process; a stand-in for them."""

import json
import os
import venv

import colour_network
import numpy as np
import onnx
import pytest
from onnx import helper
from rdk_environment import made, yaml_of

from labutils.errors import ConvertError, MissingToolError, ToolError, UsageError
from labutils.images import nv12
from labutils.machine import doctor
from labutils.onnxfile.file import OnnxFile
from labutils.rdk import hb_mapper, vendor_log, vendor_tools


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory):
    return made(tmp_path_factory.mktemp("rdk_environment"))


@pytest.fixture
def own_tools(interpreter, monkeypatch):
    monkeypatch.setenv(vendor_tools.VARIABLE, str(interpreter))
    return interpreter


@pytest.fixture(scope="module")
def tool(interpreter):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(vendor_tools.VARIABLE, str(interpreter))
        called = vendor_tools.connect()
    yield called
    called.close()


@pytest.fixture
def network(tmp_path):
    return OnnxFile(colour_network.saved(tmp_path / "colours.onnx"))


PICTURES = colour_network.pictures(24)
PRE = colour_network.preprocessing()
NV12 = vendor_tools.Order(PRE, "video", "max")
FLOATS = vendor_tools.Order(PRE, None, "max")


def build(tool, network, order, folder, pictures=PICTURES.images):
    folder.mkdir(exist_ok=True)
    return vendor_tools.build(tool, network, order, pictures, folder / "colours")


# ---------------------------------------------------------------- what is found


def test_without_the_vendors_tools_the_message_says_how_they_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv(vendor_tools.VARIABLE, raising=False)
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path))
    assert vendor_tools.found() is None
    with pytest.raises(MissingToolError, match=r"LABUTILS_RDK_PYTHON.*does not install.*\.onnx"):
        vendor_tools.connect()
    monkeypatch.setenv(vendor_tools.VARIABLE, str(tmp_path / "python"))
    with pytest.raises(MissingToolError, match="which is not a file"):
        vendor_tools.connect()


def test_an_environment_in_the_cache_is_found(tmp_path, monkeypatch):
    monkeypatch.delenv(vendor_tools.VARIABLE, raising=False)
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path))
    place = vendor_tools.own_environment()
    place.parent.mkdir(parents=True)
    place.touch()
    assert vendor_tools.found() == place


def test_an_interpreter_without_the_packages_is_named(monkeypatch, tmp_path):
    venv.create(tmp_path / "e", with_pip=False, symlinks=os.name == "posix")
    monkeypatch.setenv(vendor_tools.VARIABLE, str(tmp_path / "e" / "bin" / "python"))
    called = vendor_tools.connect()
    with pytest.raises(MissingToolError, match="ModuleNotFoundError: No module named 'horizon_nn'"):
        vendor_tools.versions(called)
    called.close()


def test_the_doctor_lists_them(own_tools, monkeypatch, tmp_path):
    found = doctor._rdk_tools()
    assert found.present and "dgdk 0.0" in found.found and str(own_tools) in found.found
    assert not found.needed
    monkeypatch.setenv(vendor_tools.VARIABLE, str(tmp_path / "nothing"))
    assert "which is not a file" in doctor._rdk_tools().found
    monkeypatch.delenv(vendor_tools.VARIABLE)
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path))
    missing = doctor._rdk_tools()
    assert not missing.present and vendor_tools.VARIABLE in missing.cure


# ---------------------------------------------------------------- the protocol


@pytest.mark.parametrize("order", [NV12, FLOATS, vendor_tools.Order(PRE, "full", "kl")])
def test_what_is_built_computes_the_network_on_the_simulator(tool, network, order, tmp_path):
    built = build(tool, network, order, tmp_path / "made")
    assert built.estimate == vendor_log.Estimate(0.7891, 1267.23, 4830528)
    assert [line.node for line in built.nodes] == ["conv", "pool", "flatten", "head"]
    assert {(n.on, n.bits, n.cosine, n.threshold) for n in built.nodes} == {
        ("BPU", "int8", 0.999876, 2.51)
    }
    runner = vendor_tools.VendorRunner(tool, built.compiled, order, "data", PRE)
    found = runner.run(PRE(PICTURES.images)).argmax(1)
    assert (found == PICTURES.labels).mean() > 0.95
    assert built.versions == dict.fromkeys(vendor_tools.PACKAGES, "0.0+stand.in")


def test_node_info_reaches_the_tool_in_its_words(tool, network, tmp_path):
    said = {"head": hb_mapper.Node("BPU", 16, 16), "conv": hb_mapper.Node(each=((0, 16), (1, 8)))}
    order = vendor_tools.Order(PRE, "video", "max", nodes=said)
    assert order.arguments("data")["node_dict"] == {
        "head": {"ON": "BPU", "InputType": "int16", "OutputType": "int16"},
        "conv": {"ON": "BPU", "InputType0": "int16", "InputType1": "int8"},
    }
    built = build(tool, network, order, tmp_path / "made")
    assert {line.node: line.bits for line in built.nodes}["head"] == "int16"
    other = vendor_tools.Order(PRE, "video", "max", nodes={"tail": said["head"]})
    with pytest.raises(ConvertError, match="node_dict names tail"):
        build(tool, network, other, tmp_path / "other")


def test_the_arguments_say_what_the_yaml_says():
    size = 224
    settings = hb_mapper.parse(yaml_of(calibration="max_percentile: 0.9999"))
    said = vendor_tools.Order.of(settings, size).arguments("data")
    entry = said["input_dict"]["data"]
    np.testing.assert_allclose(entry["means"], [123.675, 116.28, 103.53])
    np.testing.assert_allclose(entry["scales"], [0.01712475, 0.017507, 0.01742919])
    assert entry["input_shape"] == [1, 3, 224, 224]
    assert entry["expected_input_type"] == "YUV_BT601_FULL_RANGE"  # it says no bt601_video
    assert said["cali_dict"] == {"calibration_type": "max", "max_percentile": 0.9999}
    assert said["hbdk_dict"]["hbdk_pass_through_params"] == "--O2 --core-num 1 --fast"
    json.dumps(said)  # plain values only: they cross a pipe


def test_what_the_compiler_can_be_told_is_passed_on():
    more = "compile_mode: latency, core_num: 2, jobs: 4, debug: True, input_source: {data: pyramid}"
    found = vendor_tools.Order.of(hb_mapper.parse(yaml_of(compiler=more)), 224).arguments("data")
    assert found["hbdk_dict"] == {  # as makertbin logs it
        "hbdk_pass_through_params": "--O2 --debug --core-num 2 --fast --jobs 4",
        "input-source": {"data": "pyramid", "_default_value": "ddr"},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("section", "said", "line"),
    [
        ("model", "output_nodes: conv", 1), ("model", "remove_node_type: Reshape", 1),
        ("model", "remove_node_name: head", 1), ("model", "layer_out_dump: True", 1),
        ("inputs", "input_batch: 4", 4), ("calibration", "per_channel: True", 5),
        ("calibration", "optimization: set_model_output_int8", 5),
        ("compiler", "compile_mode: bandwidth", 6), ("compiler", "max_time_per_fc: 1000", 6),
        ("compiler", "input_source: {data: ddr}", 6), ("compiler", "jobs: 4 --O0", 6),
        ("compiler", "jobs: 4}\ncustom_op: {op_register_files: mine.py", 7),
    ],
)  # fmt: skip
def test_what_would_make_another_file_and_is_not_passed_on_is_refused(section, said, line):
    settings = hb_mapper.parse(yaml_of(**{section: said}), "c.yaml")
    with pytest.raises(UsageError, match=rf"c\.yaml, line {line}: \w+: .* is not passed on"):
        vendor_tools.Order.of(settings, 224)


def test_the_scores_are_those_of_the_chosen_output(tool, network, tmp_path):
    model = network.copy()
    model.graph.output.insert(0, helper.make_tensor_value_info("p", 1, [1, 3, 1, 1]))
    two = OnnxFile.write(tmp_path / "two.onnx", model)
    built = build(tool, two, NV12, tmp_path / "made")
    inputs = PRE(PICTURES.images[:2])
    for output, classes in (("output", 6), ("p", 3)):
        with vendor_tools.VendorRunner(tool, built.compiled, NV12, "data", PRE, output) as runner:
            assert runner.run(inputs).shape == (2, classes)


def wrong_calibrations():
    pixels = np.ascontiguousarray(PICTURES.images.transpose(0, 3, 1, 2), np.float32)
    interleaved = PICTURES.images.astype(np.float32).reshape(pixels.shape)
    return {
        "another type": (pixels.astype(np.float64), "TypeError: dtype <f8"),
        "another byte order": (pixels.astype(">f4"), "TypeError: dtype >f4"),
        "another shape": (pixels[:, :, :16], r"ValueError: shape \[1, 3, 16, 32\]"),
        "NHWC bytes": (interleaved, "ValueError: .*NHWC bytes in an NCHW shape"),
        "normalised": (PRE(PICTURES.images), "ValueError: .*pixels from 0 to 255"),
    }


@pytest.mark.parametrize("case", wrong_calibrations())
def test_the_stand_in_refuses_what_a_real_tool_takes_silently(tool, network, tmp_path, case):
    calibration, words = wrong_calibrations()[case]
    with pytest.raises(ToolError, match=words):
        tool.ask(
            "build", model=str(network.path), prefix=str(tmp_path / "x"),
            settings=NV12.arguments("data"), calibration=calibration,
        )  # fmt: skip


@pytest.mark.parametrize("order", [NV12, FLOATS], ids=["nv12", "float"])
def test_the_simulator_refuses_other_pictures(tool, network, tmp_path, order):
    built = build(tool, network, order, tmp_path / "made")
    right = order.inputs(PRE(PICTURES.images[:1]), PRE)
    planar = np.ascontiguousarray(right.transpose(0, 3, 1, 2)).reshape(right.shape)
    wrong = {
        "dtype": right.astype(np.float64), "shape": right[:, 1:],
        "byte order": right.astype(">f4" if right.dtype.kind == "f" else ">i2"),
    }  # fmt: skip
    if order is NV12:
        wrong |= {"layout": planar, "bytes as they are": (right.astype(int) + 128).astype("u1")}
    for array in wrong.values():
        with pytest.raises(ToolError, match=r"TypeError: dtype|ValueError: (shape|.*NCHW bytes)"):
            tool.ask("run", file=str(built.compiled), name="data", inputs=array)


def test_pictures_come_back_from_what_was_normalised(network):
    sent = NV12.inputs(PRE(PICTURES.images), PRE)
    luma, pairs = nv12.planes(nv12.encode(PICTURES.images))
    np.testing.assert_array_equal(sent[..., 0].astype(int) + 128, luma)
    np.testing.assert_array_equal(sent[:, 1::2, 1::2, 1:].astype(int) + 128, pairs)
    noise = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    with pytest.raises(UsageError, match="not pictures of whole pixels"):
        NV12.inputs(noise, PRE)


def test_a_newer_opset_is_refused_before_the_tool_is_asked(tool, tmp_path):
    newer = OnnxFile(colour_network.saved(tmp_path / "n.onnx", opset=13))
    with pytest.raises(ConvertError, match=r"opset 13.*--opset 11"):
        build(tool, newer, NV12, tmp_path / "made")
    later = onnx.load(colour_network.saved(tmp_path / "i.onnx"))
    later.ir_version = 10
    onnx.save(later, tmp_path / "i.onnx")
    with pytest.raises(ConvertError, match="IR version 10"):
        build(tool, OnnxFile(tmp_path / "i.onnx"), NV12, tmp_path / "made")


def test_a_log_without_a_table_or_an_estimate_is_no_error():
    assert vendor_log.estimate("nothing") is None and vendor_log.nodes("nothing") == ()
    log = "\n".join(vendor_log.table(vendor_log.nodes(MAKERTBIN)))
    assert vendor_log.nodes(log) == vendor_log.nodes(MAKERTBIN) and len(log.splitlines()) == 5


# in the form of the log of YOLO11 on RDK X5 in rdk_model_zoo (hb_mapper 1.24.3); our own rows
MAKERTBIN = """\
2024-11-26 19:28:01,000 INFO The quantized model node information:
2024-11-26 19:28:01,001 INFO ======================================================================
Node                         ON   Subgraph  Type              Cosine Similarity  Threshold  DataType
-----------------------------------------------------------------------------------------------------
/conv_stem/Conv              BPU  id(0)     HzSQuantizedConv  0.999712           2.64        int8
...ks.0.0/se/gate/HardSigmoid  BPU  id(0)   HzLut             0.998             14.1012     int16
/classifier/Gemm_reshape     CPU  --        Reshape           0.982              --          float
2024-11-26 19:28:01,010 INFO The quantify model output:
/not/a/row                   BPU  id(9)     HzLut             0.1                1.0         int8
"""


def test_the_vendors_table_is_read_as_it_is_printed():
    found = vendor_log.nodes(MAKERTBIN)
    assert [line.node for line in found] == [
        "/conv_stem/Conv", "...ks.0.0/se/gate/HardSigmoid", "/classifier/Gemm_reshape",
    ]  # fmt: skip
    assert found[1] == vendor_log.NodeLine(
        "...ks.0.0/se/gate/HardSigmoid", "BPU", "id(0)", "HzLut", 0.998, 14.1012, "int16"
    )
    assert (found[2].on, found[2].threshold, found[2].bits) == ("CPU", None, "float")


@pytest.mark.parametrize(
    ("cosine", "threshold", "read"),
    [("1", "2.5", (1.0, 2.5)), ("nan", "2.5", (None, 2.5)), ("0.9", "1e-05", (0.9, 1e-5)),
     ("0.9", "inf", (0.9, None)), ("-0.25", "3.", (-0.25, 3.0)), ("--", "--", (None, None))],
)  # fmt: skip
def test_any_number_is_read_and_the_rows_below_it_too(cosine, threshold, read):
    log = MAKERTBIN.replace("0.999712           2.64 ", f"{cosine} {threshold} ")
    assert log != MAKERTBIN
    found = vendor_log.nodes(log)
    assert (found[0].cosine, found[0].threshold) == read and len(found) == 3


def test_a_table_ends_with_the_log_and_not_with_a_line_that_is_strange():
    row = "/conv_stem/Conv              BPU"
    strange = MAKERTBIN.replace(row, f"/odd/Conv BPU ?\n{row}")
    assert len(vendor_log.nodes(strange)) == 3
    for end in ("", "[Sun Nov 29 2026] End to compile.", "2024-11-26 19:28:01,010 INFO x"):
        rows = MAKERTBIN.splitlines()
        cut = "\n".join([*rows[:5], end, *rows[5:7]])
        assert len(vendor_log.nodes(cut)) == 1, end


def test_what_is_no_estimate_is_none():
    assert vendor_log.estimate("FPS=1.2.3, latency = 789.1 us") is None
    found = vendor_log.estimate("FPS=1e3, latency = 1000 us")
    assert found == vendor_log.Estimate(1.0, 1000.0)
