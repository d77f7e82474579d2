"""What a library below raises reaches a user as one error of the lab; nothing is outside."""

import ast
import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from labutils import dlc, errors, export, paths, quantize, surgery
from labutils.errors import ExportError, LabError, LibraryError, ModelFileError, SurgeryError
from labutils.onnxfile import edit, graph, parts
from labutils.onnxfile.file import OnnxFile
from labutils.onnxfile.session import Session
from labutils.onnxfile.wall import node_of, wall

PACKAGE = Path(paths.__file__).parent


def network():
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32)
    graph_ = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "w"], ["c"], "/conv"),
            helper.make_node("HardSwish", ["c"], ["h"], "/act"),
            helper.make_node("GlobalAveragePool", ["h"], ["p"], "/pool"),
            helper.make_node("Flatten", ["p"], ["scores"], "/flat"),
        ],
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, (1, 3, 8, 8))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, (1, 4))],
        [numpy_helper.from_array(weights, "w")],
    )
    return helper.make_model(graph_, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def images(n=4):
    return np.random.default_rng(1).normal(size=(n, 3, 8, 8)).astype(np.float32)


# ---------------------------------------------------------------- the wall


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            KeyError("w_scale"),
            r"the tool cannot take a\.onnx, at Conv '/conv': KeyError: 'w_scale'",
        ),
        (AssertionError(), r"the tool cannot take a\.onnx: AssertionError\."),
        (ValueError("two\n  lines."), r"the tool cannot take a\.onnx: two lines\. Do this\."),
        (RuntimeError("Node (/act) Op (HardSwish) fails"), r"at HardSwish '/act': Node \(/act\)"),
    ],
)
def test_an_error_of_a_library_becomes_one_of_the_lab(found, said):
    with pytest.raises(LibraryError, match=said) as caught:  # noqa: SIM117
        with wall("the tool cannot take", "a.onnx", model=network(), advice="Do this."):
            raise found
    assert caught.value.__cause__ is found
    assert str(caught.value).endswith("Do this.")


def test_the_labs_own_errors_and_interrupts_pass():
    for error in (SurgeryError("mine"), KeyboardInterrupt(), SystemExit(3)):
        with pytest.raises(type(error)) as caught, wall("it cannot", "a.onnx"):
            raise error
        assert caught.value is error


def test_the_node_in_hand_of_the_innermost_function_is_named():
    class Operator:
        def __init__(self, node):
            self.node = node

        def quantize(self):
            return {}["x"]

    def convert(node):
        Operator(node).quantize()

    with pytest.raises(LibraryError, match="at HardSwish '/act'"), wall("it cannot", "a.onnx"):
        convert(network().graph.node[1])
    ir_node = onnx_ir.node("Relu", [onnx_ir.Value(name="x")])
    ir_node.outputs[0].name = "y"
    try:
        convert(ir_node)
    except KeyError as error:
        assert node_of(error) == "the Relu of 'y'"
    assert node_of(KeyError("x")) == ""


def test_the_variable_of_a_loop_is_not_the_node_in_hand():
    with pytest.raises(LibraryError) as caught, wall("it cannot", "a.onnx"):
        for node in network().graph.node:
            if node.name:
                raise RuntimeError("no name")
    assert "/conv" not in str(caught.value)


# ---------------------------------------------------------------- our temporary files


@given(st.sampled_from(["net", "my net", ".hidden", "a.b"]), st.sampled_from([".onnx", ".dlc", ""]))
def test_no_error_names_a_temporary_file(stem, suffix):
    import tempfile

    with tempfile.TemporaryDirectory(prefix="users-") as folder:
        destination = Path(folder, stem + suffix)
        with paths.atomic(destination) as temporary, paths.scratch() as scratch:
            temporary.touch()
            for path in (temporary, scratch / destination.name, scratch / "made" / stem):
                said = str(ModelFileError(f"{path} is not valid; see {path}."))
                assert ".tmp" not in said and ".labutils" not in said, said
                assert stem.lstrip(".") in said
            assert ".labutils" not in str(LabError(f"no room in {scratch}"))
        assert str(LabError(f"{destination} stays")) == f"{destination} stays"


def test_what_onnx_runtime_says_of_a_draft_names_the_users_file(tmp_path):
    model = network()
    del model.graph.initializer[:]
    with paths.scratch(tmp_path) as folder:
        file = OnnxFile.write(folder / "mine.onnx", model)
        with pytest.raises(ModelFileError, match=r"does not load mine\.onnx") as caught:
            Session(file)
    assert "labutils." not in str(caught.value) and caught.value.__cause__ is not None


# ---------------------------------------------------------------- every boundary


def _raise(*_, **__):
    raise KeyError("c")


def quantized(file, folder):
    quantize.static(file, folder / "q.onnx", images())


def rewritten(file, folder):
    surgery.replace_file(file, folder / "r.onnx", "hardswish")


def exported(file, folder):
    export.to_onnx(nn.Conv2d(3, 4, 3), folder / "e.onnx", size=8, simplify=True)


def cut(file, folder):
    parts.extract(file, folder / "p.onnx", inputs=["c"], outputs=["h"])


def trimmed(file, folder):
    edit.remove_unused_(OnnxFile(file).copy())


def halved(file, folder):
    dlc.to_fp16(file, folder / "h.onnx")


def checked(file, folder):
    OnnxFile(file).require_valid()


BOUNDARIES = [
    (quantized, "onnxruntime.quantization.qdq_quantizer.QDQQuantizer.quantize_model", LibraryError),
    (quantized, "onnxruntime.quantization.qdq_quantizer.QDQQuantizer.__init__", LibraryError),
    (
        quantized,
        "onnxruntime.quantization.execution_providers.qnn.get_qnn_qdq_config",
        LibraryError,
    ),
    (quantized, "onnxruntime.InferenceSession", ModelFileError),
    (quantized, "onnx.checker.check_model", ModelFileError),
    (quantized, "onnx_ir.convenience.extract", ModelFileError),
    (rewritten, "onnx_ir.from_proto", SurgeryError),
    (rewritten, "onnx_ir.to_proto", SurgeryError),
    (rewritten, "onnxscript.rewriter.pattern.RewriteRuleSet.apply_to_model", SurgeryError),
    (rewritten, "onnx.checker.check_model", SurgeryError),
    (exported, "torch.onnx.export", ExportError),
    (exported, "onnx.load_from_string", ExportError),
    (exported, "onnxsim.simplify", ExportError),
    (exported, "onnx.checker.check_model", ExportError),
    (cut, "onnx_ir.convenience.extract", errors.UsageError),
    (cut, "onnx.checker.check_model", errors.UsageError),
    (trimmed, "onnx_ir.from_proto", ModelFileError),
    (trimmed, "onnx_ir.to_proto", ModelFileError),
    (trimmed, "onnx_ir.passes.common.RemoveUnusedNodesPass.call", ModelFileError),
    (checked, "onnx.checker.check_model", ModelFileError),
    (
        halved,
        "onnxruntime.transformers.float16.convert_float_to_float16",
        errors.ConvertError,
    ),
]


@pytest.mark.parametrize(("does", "function", "error"), BOUNDARIES)
def test_whatever_a_library_raises_is_one_error_in_words(
    does, function, error, tmp_path, monkeypatch
):
    file = tmp_path / "net.onnx"
    onnx.save(network(), file)
    monkeypatch.setattr(function, _raise)
    with pytest.raises(error, match="KeyError: 'c'") as caught:
        does(file, tmp_path)
    links = [caught.value]
    while links[-1].__cause__ is not None:
        links.append(links[-1].__cause__)
    assert isinstance(links[-1], KeyError), "a debugger sees the library's own error"
    assert not re.search(r"\.labutils|\.tmp", str(caught.value))
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


def test_where_shapes_cannot_be_inferred_the_model_stays_as_it_is(monkeypatch):
    monkeypatch.setattr("onnx.shape_inference.infer_shapes", _raise)
    model = network()
    assert graph.with_shapes(model) is model


def test_what_protobuf_cannot_write_is_said(tmp_path, monkeypatch):
    class Huge:
        def SerializeToString(self, deterministic):
            raise ValueError("exceeds maximum protobuf size of 2GB")

    with pytest.raises(errors.LimitError, match=r"protobuf cannot write huge\.onnx: exceeds"):
        OnnxFile.write(tmp_path / "huge.onnx", Huge())
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- nothing is outside

RAISING = {
    "check_model", "infer_shapes", "convert_version", "from_proto", "to_proto", "fold_constants",
    "inline_local_functions", "InferenceSession", "quantizer.quantize_model", "load_from_string",
    "FromString", "SerializeToString", "load_external_data_for_model", "apply_to_model",
    "get_qnn_qdq_config", "onnxsim.simplify", "torch.onnx.export", "torch.export.export",
    "ir.convenience.extract",
    "rewrite_", "convert_float_to_float16",
}  # fmt: skip

INSIDE = {
    "onnxfile/canonical_form.py": "canonicalize_, which says what could not be done",
    "onnxfile/constants.py": "onnxfile/canonical_form.py, canonicalize_, and models/adapt.py",
    "onnxfile/idle_outputs.py": "a copy of an output's entry",
    "surgery/onnx_level/rewriting.py": "surgery/onnx_level/graph.py, _rewritten",
    "surgery/onnx_level/passes.py": "surgery/onnx_level/graph.py, _rewritten",
    "quantize/insertion.py": "quantize/ptq.py, _inserted",
    "rdk/vendor_program.py": "its own process; tools/calling.py reads its report",
    "runtime/qnn/worker.py": "its own process; runtime/qnn reads its report",
    "lab/answer.py": "a copy of what a learner made",
}


def _called(node):
    """Return what a call calls, ``onnx.checker.check_model``; "" where it copies a node."""
    name = ast.unparse(node.func)
    return "" if name.startswith(("type(node).", "node.")) else name


def _guarded(tree):
    """The calls inside ``with wall(...)``, or in a ``try`` that catches Exception."""
    found = set()
    for node in ast.walk(tree):
        wide = isinstance(node, ast.Try) and any(
            isinstance(handler.type, ast.Name) and handler.type.id == "Exception"
            for handler in node.handlers
        )
        walled = isinstance(node, ast.With) and any(
            ast.unparse(item.context_expr).startswith("wall(") for item in node.items
        )
        if wide or walled:
            found |= {inner for part in node.body for inner in ast.walk(part)}
    return found


def test_every_call_into_a_library_stands_behind_the_wall():
    outside = []
    for file in sorted(PACKAGE.rglob("*.py")):
        place = file.relative_to(PACKAGE).as_posix()
        if place in INSIDE:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        guarded = _guarded(tree)
        outside += [
            f"{place}:{node.lineno} {_called(node)}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and node not in guarded
            and (_called(node) in RAISING or _called(node).rpartition(".")[2] in RAISING)
        ]  # fmt: skip
    assert outside == []


def test_what_is_said_to_stand_inside_exists():
    assert all((PACKAGE / place).is_file() for place in INSIDE)


def test_an_operator_that_onnx_runtime_lacks_is_named_with_its_node():
    node = onnx.helper.make_node("MyAct", ["x"], ["y"], "/act", domain="my.ops")
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    domains = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("my.ops", 1)]
    model = onnx.helper.make_model(graph, opset_imports=domains, ir_version=8)
    with pytest.raises(
        ModelFileError, match=r"MyAct of the domain my\.ops, at node '/act'.*Export"
    ):
        Session(model)
