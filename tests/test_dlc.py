"""Real DLCs and context binaries: written, read back, verified, executed."""

import json
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from labutils import dlc, metrics, paths, runtime
from labutils.errors import ConvertError, ModelFileError, UnknownNameError, UsageError
from labutils.runtime.qnn import dlc_file

pytestmark = pytest.mark.htp

CHANNELS, SIZE = 8, 16


def tiny(path, *, classes=4, scale=1.0, batchnorm=False):
    """Conv (3x3), Relu, global pool, Gemm on 3 x 16 x 16, seeded."""
    rng = np.random.default_rng(7)

    def constant(name, *shape):
        values = rng.normal(size=shape).astype(np.float32) * np.float32(scale)
        return numpy_helper.from_array(values, name)

    nodes = [
        helper.make_node("Conv", ["input", "w", "b"], ["c"], "/stem/Conv", pads=[1] * 4),
        helper.make_node("Relu", ["c"], ["r"], "/stem/Relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "/GlobalAveragePool"),
        helper.make_node("Flatten", ["p"], ["f"], "/Flatten"),
        helper.make_node("Gemm", ["f", "fw", "fb"], ["logits"], "/fc/Gemm", transB=1),
    ]
    constants = [
        constant("w", CHANNELS, 3, 3, 3),
        constant("b", CHANNELS),
        constant("fw", classes, CHANNELS),
        constant("fb", classes),
    ]
    if batchnorm:
        nodes[1].input[0] = "n"
        names = ["gamma", "beta", "mean", "var"]
        nodes.insert(1, helper.make_node("BatchNormalization", ["c", *names], ["n"], "/stem/Norm"))
        constants += [constant(name, CHANNELS) for name in names[:3]]
        constants.append(numpy_helper.from_array(np.full(CHANNELS, 2, np.float32), "var"))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, classes])],
        constants,
    )
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), str(path))
    return path


def quantized(source, target, activation):
    """QDQ-quantize `source` for the HTP, ranges from noise."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize
    from onnxruntime.quantization.execution_providers.qnn import get_qnn_qdq_config

    class Noise(CalibrationDataReader):
        def __init__(self):
            rng = np.random.default_rng(3)
            shape = (8, 1, 3, SIZE, SIZE)
            self.left = iter([{"input": x} for x in rng.normal(size=shape).astype(np.float32)])

        def get_next(self):
            return next(self.left, None)

    kinds = {"int8": (QuantType.QUInt8, False), "a16w8": (QuantType.QUInt16, True)}
    kind, per_channel = kinds[activation]
    config = get_qnn_qdq_config(
        str(source), Noise(), activation_type=kind, weight_type=QuantType.QInt8,
        per_channel=per_channel,
    )  # fmt: skip
    quantize(str(source), str(target), config)
    return target


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("dlc")


@pytest.fixture(scope="module")
def source(folder):
    return tiny(folder / "tiny.onnx")


@pytest.fixture(scope="module")
def sources(folder, source):
    return {
        "fp32": source,
        "fp16": source,
        "int8": quantized(source, folder / "int8.onnx", "int8"),
        "a16w8": quantized(source, folder / "a16w8.onnx", "a16w8"),
    }


@pytest.fixture(scope="module")
def made(folder, sources):
    return {
        kind: dlc.write(path, folder / f"my model {kind}.dlc", "fp16" if kind == "fp16" else "auto")
        for kind, path in sources.items()
    }


def noise(n=2, size=SIZE):
    return np.random.default_rng(11).normal(size=(n, 3, size, size)).astype(np.float32)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8", "a16w8"])
def test_a_dlc_says_what_it_holds(made, kind):
    info = dlc.info(made[kind].file)
    assert info.file.name == f"my model {kind}.dlc"  # the name that the user chose
    assert info.precision == kind
    assert info.counts["Conv2d"] == info.counts["FullyConnected"] == 1
    assert info.macs == SIZE * SIZE * CHANNELS * 27 + 4 * CHANNELS
    assert info.parameters == CHANNELS * 27 + CHANNELS + 4 * CHANNELS + 4
    assert [(t.name, t.shape, t.dtype) for t in info.inputs] == [
        ("input", (1, 3, SIZE, SIZE), "float32")
    ]
    assert [(t.name, t.shape) for t in info.outputs] == [("logits", (1, 4))]
    assert info.contents.writer.startswith("QNN 2.")
    order = [op.type for op in info.contents.ops]
    assert order.index("Conv2d") < order.index("Pool") < order.index("FullyConnected")


def test_quantization_parameters_are_read_as_onnx_has_them(made, sources):
    model = onnx.load(str(sources["int8"]))
    constants = {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}
    first = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    tensor = made["int8"].contents.tensors[first.output[0]]
    assert tensor.scale == pytest.approx(float(constants[first.input[1]]))
    assert tensor.zero_point == int(constants[first.input[2]])
    per_channel = made["a16w8"].contents.tensors["w_quantized"]
    assert (per_channel.axis, per_channel.channels) == (3, CHANNELS)


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8", "a16w8"])
def test_the_dlc_itself_computes_what_its_source_computes(made, sources, kind):
    with runtime.connect(sources[kind]) as reference, runtime.connect(made[kind].file) as runner:
        assert runner.runtime.startswith("DLC on HTP simulator (QNN 2.")
        expected, found = reference.run(noise()), runner.run(noise())
    assert metrics.cosine(expected, found) > 0.999
    if kind != "fp16":  # same graph, same compiler: the very same bits as the provider's session
        with runtime.connect(sources[kind], "htp") as session:
            np.testing.assert_array_equal(session.run(noise()), found)


def test_text_html_and_sidecar_say_the_same(made):
    info = made["int8"]
    sidecar = json.loads(dlc.sidecar(info.file).read_text())
    assert sidecar["macs"] == info.macs and len(sidecar["operators"]) == len(info.contents.ops)
    assert sidecar["notes"]["source"] == "int8.onnx"
    assert "heavy operators" in sidecar["notes"]["verified"]
    for text in (str(info), info._repr_html_()):
        assert "Conv2d" in text and f"{info.macs / 1e6:.1f} M MACs" in text
    assert "written by QNN" in info.summary()


def test_notes_of_the_caller_are_kept_and_a_dlc_without_sidecar_is_read(source, tmp_path):
    path = tmp_path / "x.dlc"
    dlc.write(source, path, notes={"target": "snpe-2.7"})
    assert dlc.info(path).notes["target"] == "snpe-2.7"
    dlc.sidecar(path).unlink()
    assert dlc.info(path).notes == {} and dlc.info(path).counts["Conv2d"] == 1


def test_a_dlc_of_another_model_does_not_verify(made, folder):
    other = tiny(folder / "other.onnx", scale=1.01)
    with pytest.raises(ConvertError, match=r"weight 'w' \(8, 3, 3, 3\) has other values"):
        dlc.verify(made["fp32"].file, other)
    wider = tiny(folder / "wider.onnx", classes=5)
    with pytest.raises(ConvertError, match=r"outputs: ONNX .*\(1, 5\).*DLC .*\(1, 4\)"):
        dlc.verify(made["fp32"].file, wider)


def test_weights_that_onnxruntime_folds_verify(tmp_path):
    path = tiny(tmp_path / "norm.onnx", batchnorm=True)
    info = dlc.write(path, tmp_path / "norm.dlc")
    assert info.counts["Conv2d"] == 1 and "BatchNorm" not in str(info.counts)


def test_one_changed_weight_in_the_file_is_noticed(made, source, tmp_path):
    broken = tmp_path / "broken.dlc"
    members = dlc_file.members(made["fp32"].file)
    raw = bytearray(members["model.params.bin"])
    weight = made["fp32"].contents.weights["fw"].tobytes()
    raw[raw.find(weight) + 3] ^= 1
    with zipfile.ZipFile(broken, "w") as archive:
        for name, data in (members | {"model.params.bin": bytes(raw)}).items():
            archive.writestr(name, data)
    with pytest.raises(ConvertError, match="weight 'fw'"):
        dlc.verify(broken, source)


@pytest.mark.parametrize(
    "content",
    [b"", b"not a zip at all", b"PK\x03\x04 but no more"],
)
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "x.dlc"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match="not a DLC, or it is truncated"):
        dlc.info(path)
    with pytest.raises(ModelFileError):
        runtime.connect(path)


def test_missing_truncated_and_other_zip_files_are_refused(made, tmp_path):
    with pytest.raises(ModelFileError, match="no file"):
        dlc.info(tmp_path / "nothing.dlc")
    path = tmp_path / "cut.dlc"
    path.write_bytes(made["fp32"].file.read_bytes()[:-300])
    with pytest.raises(ModelFileError, match="truncated"):
        dlc.info(path)
    with zipfile.ZipFile(tmp_path / "zip.dlc", "w") as archive:
        archive.writestr("readme", "hello")
    with pytest.raises(ModelFileError, match="no members model"):
        dlc.info(tmp_path / "zip.dlc")
    with zipfile.ZipFile(tmp_path / "odd.dlc", "w") as archive:
        archive.writestr("model", bytes(64))
        archive.writestr("model.params", bytes(64))
    with pytest.raises(ModelFileError, match="not known here"):
        dlc.info(tmp_path / "odd.dlc")


def test_a_refused_graph_writes_nothing(tmp_path):
    model = onnx.load(str(tiny(tmp_path / "tiny.onnx")))
    model.graph.node[1].op_type = "Erf"
    onnx.save(model, str(tmp_path / "erf.onnx"))
    with pytest.raises(ConvertError, match=r"Erf '/stem/Relu' \(module stem\).*not supported"):
        dlc.write(tmp_path / "erf.onnx", tmp_path / "erf.dlc")
    assert [p.name for p in tmp_path.iterdir() if "dlc" in p.name] == []


def test_precision_is_checked(sources, tmp_path):
    with pytest.raises(UsageError, match="choose one of"):
        dlc.write(sources["fp32"], tmp_path / "x.dlc", "int4")
    with pytest.raises(UsageError, match="is quantized"):
        dlc.write(sources["int8"], tmp_path / "x.dlc", "fp16")


def test_a_context_binary_runs_as_its_source_and_names_its_chip(sources, tmp_path):
    made = dlc.context_binary(sources["int8"], tmp_path / "int8.bin", "sm8550")
    assert made.size == made.file.stat().st_size > 1000
    assert "SM8550 (Snapdragon 8 Gen 2, HTP v73) by QNN 2." in str(made)
    with runtime.connect(made.wrapper, "htp") as loaded:
        found = loaded.run(noise())
    with runtime.connect(sources["int8"], "htp") as session:
        np.testing.assert_array_equal(session.run(noise()), found)


def test_chips_differ_in_what_they_take(sources, tmp_path):
    with pytest.raises(UnknownNameError, match="SM8550"):
        dlc.context_binary(sources["int8"], tmp_path / "x.bin", "SM9999x")
    with pytest.raises(ConvertError, match=r"HTP v68\) has no float16"):
        dlc.context_binary(sources["fp32"], tmp_path / "x.bin", "SM8350")
    old = dlc.context_binary(sources["int8"], tmp_path / "old.bin", "SM8350")
    new = dlc.context_binary(sources["int8"], tmp_path / "new.bin", "SM8650")
    assert paths.sha256(old.file) != paths.sha256(new.file)
    assert not (tmp_path / "x.bin").exists()


def test_mobilenet_v3_becomes_a_dlc_that_computes_the_same(small_onnx, inputs, tmp_path):
    info = dlc.write(small_onnx(17), tmp_path / "small.dlc")
    assert info.counts["HardSwish"] == 19 and info.counts["HardSigmoid"] == 9
    assert info.counts["DepthWiseConv2d"] == 11 and info.counts["Conv2d"] == 41
    with runtime.connect(info.file) as runner, runtime.connect(small_onnx(17)) as reference:
        batch = inputs(2, 64)
        assert metrics.cosine(reference.run(batch), runner.run(batch)) > 0.999


def test_qnn_writes_opset_13_hardswish_as_a_node_that_the_htp_rejects(small_onnx, tmp_path):
    info = dlc.write(small_onnx(13), tmp_path / "small13.dlc")  # converts without a word
    assert "0 HardSwish in the ONNX are 19 HardSwish in the DLC" in info.notes["verified"]
    with pytest.raises(ConvertError, match=r"not valid for this chip's HTP.*\n.*HardSigmoid"):
        runtime.connect(info.file)


def test_a_c_interface_that_we_do_not_know_is_not_called(made):
    # In a process of its own: native code never comes into this one.
    code = textwrap.dedent("""
        import sys
        from labutils import paths
        from labutils.runtime.qnn import dlc_executor, options, worker
        dlc_executor.KNOWN_INTERFACE = (9, 9)
        message = {
            "call": "build",
            "model": sys.argv[1],
            "digest": paths.sha256(sys.argv[1]),
            "options": options.htp(),
            "config": {},
        }
        print(worker.Server().serve(message, {})[0]["missing"])
    """)
    command = [sys.executable, "-c", code, str(made["fp32"].file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "needs QNN's C interface (9, 9), and this wheel has (2, " in done.stdout
