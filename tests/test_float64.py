"""Networks in float64 are computed in float32, and what that changes is said."""

import numpy as np
import onnx
import pytest
from cases.draft import CLASSES, Draft
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from labutils.models import adapt
from labutils.onnxfile.half_precision import half_types
from labutils.onnxfile.session import Session

STATED = ["--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5"]


def network(ends, weight=None):
    """Return a network in float64; its image and scores may be float32."""
    draft = Draft()
    x = draft.stem()
    if ends == "float32":
        draft.nodes.insert(0, helper.make_node("Cast", ["image"], ["wide"], "/c", to=11))
        draft.nodes[1].input[0] = "wide"
    draft.head(draft.node("Relu", [draft.convolution(x, "c2")], "r"), output="wide_scores")
    last = "Cast" if ends == "float32" else "Identity"
    draft.node(last, ["wide_scores"], "scores", **({"to": 1} if last == "Cast" else {}))
    kind = TensorProto.FLOAT if ends == "float32" else TensorProto.DOUBLE
    value = helper.make_tensor_value_info
    weights = [numpy_helper.from_array(a.astype(np.float64), n) for n, a in draft.weights.items()]
    if weight is not None:
        weights[0] = numpy_helper.from_array(np.full((8, 3, 3, 3), weight), weights[0].name)
    graph = helper.make_graph(
        draft.nodes, "g", [value("image", kind, draft.shape)],
        [value("scores", kind, [1, CLASSES])], weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


@pytest.mark.parametrize("ends", ["float32", "float64"])
def test_it_is_computed_in_float32(ends, tmp_path):
    model = network(ends)
    onnx.save(model, tmp_path / "net.onnx")
    made = adapt.adapted(tmp_path / "net.onnx")
    assert any("its float64 is computed in float32" in change for change in made.changes)
    assert any("NOT compared" in change for change in made.changes)  # ONNX Runtime has no kernel
    assert not half_types(onnx.load(made.file))
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32))
    given = x if ends == "float64" else x.astype(np.float32)
    (expected,) = ReferenceEvaluator(model).run(None, {"image": given})
    (found,) = Session(made.file).run({"image": x.astype(np.float32)})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_it_is_quantized(lab, tmp_path):
    onnx.save(network("float64"), tmp_path / "net.onnx")
    few = ["--images", "8", "--held-out", "16"]
    code, out, err = lab(
        "quantize", tmp_path / "net.onnx", *STATED, *few, "-o", tmp_path / "q.onnx"
    )
    assert (code, err) in ((0, ""), (1, "")), out + err


def test_a_weight_beyond_float32_is_refused_by_name(lab, tmp_path):
    onnx.save(network("float64", weight=1e300), tmp_path / "net.onnx")
    code, _, err = lab("diagnose", tmp_path / "net.onnx")
    assert code == 2 and "Weight 'stem.weight' is float64 and larger" in err


def test_a_number_in_float64_beside_float32_is_no_such_network():
    draft = Draft()
    x = draft.node("Cast", [draft.stem()], "wide", to=11)
    x = draft.node("Mul", [x, draft.weight("two", np.float64(2))], "twice")
    draft.head(draft.node("Cast", [x], "narrow", to=1))
    assert not half_types(draft.finish())
