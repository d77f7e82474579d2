"""An ONNX file as one object: parsed once per command, never stale, changed by nobody."""

import os
import re
import sys

import numpy as np
import onnx
import onnx.reference
import pytest
from onnx import numpy_helper

from labutils import paths, pipeline, quantize, runtime, surgery, targets
from labutils.errors import ModelFileError, UnknownNameError
from labutils.measure import complexity, traffic
from labutils.models import adapt
from labutils.onnxfile.file import OnnxFile
from labutils.onnxfile.session import Session

sys.path.insert(0, str(paths.ROOT / "benchmarks"))

import parse_counts


@pytest.fixture
def four_nodes(tmp_path):
    return parse_counts.write_model(tmp_path / "m.onnx")


def changed(model, name="weight", by=1.0):
    """Return a copy of a model with another weight."""
    made = type(model)()
    made.CopyFrom(model)
    tensor = next(t for t in made.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(by), name))
    return made


def rewrite(model, path, **beside):
    """Write a file in place, later than it was read also for a clock that ticks in milliseconds."""
    onnx.save(model, path, **beside)
    for file in (path, path.with_name("w.bin")):
        if file.is_file():
            os.utime(file, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns + 10**9))


# --- counted --------------------------------------------------------------------------------------

RUNS = {"convert --repair": [pytest.mark.htp, pytest.mark.slow], "quantize": [pytest.mark.slow]}
COMMANDS = [pytest.param(name, marks=RUNS.get(name, [])) for name in parse_counts.COMMANDS]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_parses_no_file_twice(command, tmp_path):
    counts = parse_counts.count(command, tmp_path)
    assert set(counts.parsed.values()) == {1}
    # the source, as it states its shapes and from its inputs alone; what is tried on it; each file
    graphs = 2 + len(surgery.TIDY) + 3
    assert counts.inferred <= graphs
    assert counts.checked <= 3


def test_the_count_sees_a_second_parse_and_a_second_inference(four_nodes):
    with parse_counts.counted() as counts:
        for _ in range(2):
            onnx.shape_inference.infer_shapes(OnnxFile(four_nodes).proto)
        onnx.checker.check_model(onnx.load(four_nodes))
    assert set(counts.parsed.values()) == {3}
    assert (counts.inferred, counts.checked) == (2, 1)


def test_the_recorded_counts_say_how_it_was_and_how_it_is():
    told = (paths.ROOT / "benchmarks/results/parse_counts.txt").read_text("utf-8")
    before, after = told.split("\nafter:\n")
    figures = [
        [line.split()[-5:] for line in part.splitlines() if line.startswith("labutils ")]
        for part in (before, after)
    ]
    assert [len(rows) for rows in figures] == [len(parse_counts.COMMANDS)] * 2
    for (parsed, *_), (now, _, most, *_) in zip(*figures, strict=True):
        assert int(now) < int(parsed) and most == "1"


# --- read when asked, and again when rewritten ----------------------------------------------------


def test_what_is_asked_again_is_the_same_object(four_nodes):
    file = OnnxFile(four_nodes)
    with parse_counts.counted() as counts:
        for _ in range(2):
            assert file.proto is file.proto and file.whole is file.proto
            assert file.shaped is file.shaped
            file.require_valid()
            assert OnnxFile.of(file) is file
    assert (counts.parsed.total(), counts.inferred, counts.checked) == (1, 1, 1)
    assert file.opset == 17
    assert [value.name for value in file.inputs] == ["image"]
    assert [value.name for value in file.outputs] == ["logits"]
    assert file.sha256 == paths.sha256(four_nodes)


def test_a_file_that_was_rewritten_is_opened_again(four_nodes):
    file = OnnxFile(four_nodes)
    rewrite(changed(file.proto), four_nodes)
    again = OnnxFile.of(file)
    assert again is not file and again.sha256 == paths.sha256(four_nodes)
    assert again.proto == onnx.load(four_nodes) != file.proto
    four_nodes.unlink()
    with pytest.raises(ModelFileError, match="There is no model file"):
        _ = OnnxFile.of(again).proto


def test_a_file_whose_weights_lie_beside_it_is_opened_again_when_they_change(four_nodes, tmp_path):
    model, path = onnx.load(four_nodes), tmp_path / "apart.onnx"
    beside = {"save_as_external_data": True, "location": "w.bin", "size_threshold": 0}
    onnx.save(changed(model, by=0.0), path, **beside)
    file = OnnxFile(path)
    assert file.proto.graph.initializer[0].external_data
    assert file.whole.graph.initializer[0].raw_data == model.graph.initializer[0].raw_data
    assert OnnxFile.of(file) is file
    rewrite(changed(model), path, **beside)
    found, wanted = (
        m.graph.initializer[0].raw_data for m in (OnnxFile.of(file).whole, changed(model))
    )
    assert found == wanted
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelFileError, match="external data"):
        _ = OnnxFile.of(file).whole


def test_a_fault_is_told_each_time(tmp_path):
    path = tmp_path / "m.onnx"
    file = OnnxFile(path)
    for _ in range(2):
        with pytest.raises(ModelFileError, match="There is no model file"):
            _ = file.shaped
    parse_counts.write_model(path)
    assert file.opset == 17, "a file that comes later is read"


def test_what_is_written_is_known_without_reading_it(four_nodes, tmp_path):
    model = changed(onnx.load(four_nodes))
    with parse_counts.counted() as counts:
        made = OnnxFile.write(tmp_path / "made.onnx", model)
        assert made.proto is model and made.current
    assert not counts.parsed
    assert onnx.load(tmp_path / "made.onnx") == model


# --- nobody changes what everybody has ------------------------------------------------------------


def test_a_copy_is_nobody_elses(four_nodes):
    file = OnnxFile(four_nodes)
    for shaped in (False, True):
        del file.copy(shaped).graph.node[:]
    assert len(file.proto.graph.node) == len(file.shaped.graph.node) == 4
    assert len(file.copy(shaped=True).graph.value_info) == 3 and not file.copy().graph.value_info


def test_who_is_handed_a_file_leaves_it_as_it_is(four_nodes, tmp_path):
    file = OnnxFile(four_nodes)
    before = [model.SerializeToString() for model in (file.proto, file.shaped)]
    images = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)
    adapt.adapted(file)
    for target in targets.TARGETS:
        targets.check(file, target)
    complexity.count(file)
    traffic.estimate(file)
    pipeline.suggest(file, "snpe-2.7", allow_approximate=True)
    made = pipeline.apply(file, "snpe-2.7", tmp_path / "repaired.onnx")
    surgery.replace_file(file, tmp_path / "replaced.onnx", "exact")
    pipeline.replay(file, made.edits, tmp_path / "replayed.onnx")
    quantize.static(file, tmp_path / "q.onnx", images, "int8")
    with runtime.connect(file) as runner:
        runner.run(images)
    assert [model.SerializeToString() for model in (file.proto, file.shaped)] == before
    assert made.onnx.proto == onnx.load(made.file), "the object is the file"


# --- one session, errors in words -----------------------------------------------------------------


def test_what_onnx_runtime_refuses_is_said_with_the_file_and_the_reason(four_nodes, tmp_path):
    model = onnx.load(four_nodes)
    model.graph.node[1].op_type = "NoSuchOperator"
    path = tmp_path / "strange.onnx"
    onnx.save(model, path)
    reason = "NoSuchOperator"
    with pytest.raises(ModelFileError, match=f"does not load {path}: .*{reason}"):
        Session(path)
    with pytest.raises(ModelFileError, match=f"does not load the graph: .*{reason}"):
        Session(model)
    with pytest.raises(ModelFileError, match=f"does not load the copy: .*{reason}"):
        Session(OnnxFile(path), name="the copy")


def test_what_fails_while_it_runs_is_said_in_one_line(four_nodes):
    session = Session(four_nodes, optimize="none", threads=1)
    with pytest.raises(ModelFileError, match=r"m\.onnx fails while it runs: .*image") as caught:
        session.run({"image": np.zeros((1, 3, 7, 7), np.float32)})
    assert "\n" not in str(caught.value)


def test_a_session_computes_what_onnx_says(four_nodes):
    rng = np.random.default_rng(1)
    image = rng.standard_normal((1, 3, 32, 32)).astype(np.float32)
    exact = onnx.reference.ReferenceEvaluator(str(four_nodes)).run(None, {"image": image})[0]
    for level in ("none", "basic", "all"):
        session = Session(four_nodes, optimize=level)
        assert session.inputs == [("image", [1, 3, 32, 32], "tensor(float)")]
        (found,) = session.run({"image": image})
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5)
    with pytest.raises(UnknownNameError, match="optimization level"):
        Session(four_nodes, optimize="most")


def test_products_of_8_bits_do_not_saturate(tmp_path):
    """ONNX Runtime's default kernels give 128 times 65,534 here, where a processor has no VNNI."""
    channels, one = 256, np.float32(1)
    weight = numpy_helper.from_array(np.full((8, channels, 1, 1), 127, np.int8), "weight")
    scale = numpy_helper.from_array(one, "scale")
    zeros = [numpy_helper.from_array(np.array(0, t), t.__name__) for t in (np.uint8, np.int8)]
    node = onnx.helper.make_node
    pairs = (  # the quantized tensors around a convolution, as ONNX Runtime fuses them
        node("QuantizeLinear", ["image", "scale", "uint8"], ["codes"]),
        node("DequantizeLinear", ["codes", "scale", "uint8"], ["x"]),
        node("DequantizeLinear", ["weight", "scale", "int8"], ["w"]),
        node("Conv", ["x", "w"], ["y"]),
        node("QuantizeLinear", ["y", "coarse", "uint8"], ["rounded"]),
        node("DequantizeLinear", ["rounded", "coarse", "uint8"], ["out"]),
    )
    largest = 255 * 127 * channels
    coarse = numpy_helper.from_array(np.float32(largest / 200), "coarse")
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("image", [1, channels, 8, 8]), ("out", [1, 8, 8, 8]))
    ]
    weights = [weight, scale, coarse, *zeros]
    graph = onnx.helper.make_graph(pairs, "eight_bits", ends[:1], ends[1:], weights)
    opsets = [onnx.helper.make_opsetid("", 13)]
    file = tmp_path / "m.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8), file)
    image = np.full((1, channels, 8, 8), 255, np.float32)
    for level in ("none", "all"):
        (found,) = Session(file, optimize=level).run({"image": image})
        np.testing.assert_allclose(found, largest, rtol=1e-6)


def test_sessions_are_made_in_one_place():
    package = paths.ROOT / "labutils"
    makers = {
        file.relative_to(package).as_posix()
        for file in package.rglob("*.py")
        if re.search(r"\bInferenceSession\(|\bSessionOptions\(", file.read_text("utf-8"))
    }
    # the worker's session is QNN's, and its errors are read from QNN's log
    assert makers == {"onnxfile/session.py", "runtime/qnn/worker.py"}
