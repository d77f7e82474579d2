"""Names that ONNX Runtime's quantizer gives out itself: a network may have any of them."""

import numpy as np
import onnx
import onnxruntime as ort
from cases.draft import Draft
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from labutils import metrics, quantize
from labutils.onnxfile.edit import rename_tensors_

MADE = (
    "", "_quantized", "_scale", "_zero_point", "_QuantizeLinear", "_QuantizeLinear_Output",
    "_DequantizeLinear", "_DequantizeLinear_Output", "_quantized_scale", "_quantized_zero_point",
    "_convert", "_quantize", "_1",
)  # fmt: skip
BASES = ("w", "b", "image", "scores", "w_scale", "b_quantized", "network")
POOL = sorted({base + end for base in BASES for end in MADE} - {"image", "scores"})
LEAST_DB = {"a16w8": 30, "int8": 5}


def network(names, nodes):
    """Return a network with a residual, whose inner tensors and nodes have these names."""
    draft = Draft(5)
    x = draft.convolution("image", "first", 3, strides=[2, 2])
    before = draft.node("Relu", [x], "relu")
    x = draft.node("Add", [draft.convolution(before, "second"), before], "sum")
    x = draft.node(
        "Mul", [draft.node("Relu", [x], "relu2"), draft.weight("k", np.float32(1.3))], "m"
    )
    draft.head(x)
    model = draft.finish()
    inner = [t.name for t in model.graph.initializer]
    inner += [out for node in model.graph.node for out in node.output if out != "scores"]
    rename_tensors_(model.graph, dict(zip(inner, names, strict=False)))
    for node, name in zip(model.graph.node, nodes, strict=False):
        node.name = name
    onnx.checker.check_model(model)
    return model


def computed(file, images):
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


@settings(
    max_examples=12, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(names=st.permutations(POOL), nodes=st.permutations(POOL))
def test_any_names_are_quantized_and_kept(names, nodes, tmp_path):
    model = network(names, nodes)
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 32), np.float32)
    onnx.save(model, tmp_path / "x.onnx")
    expected = computed(tmp_path / "x.onnx", images)
    for recipe, least in LEAST_DB.items():
        made = tmp_path / f"{recipe}.onnx"
        report = quantize.static(tmp_path / "x.onnx", made, images, recipe)
        assert report.function.error < 1e-6
        assert metrics.sqnr_db(expected, computed(made, images)) > least
        graph = onnx.load(made).graph
        ours = {node.name: node.op_type for node in model.graph.node if node.op_type != "Relu"}
        theirs = {node.name: node.op_type for node in graph.node}
        assert ours.items() <= theirs.items()
