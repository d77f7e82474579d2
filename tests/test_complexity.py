"""Counts against figures known from arithmetic, PyTorch and the literature."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from labutils import _torchvision, export
from labutils.errors import ModelFileError, UnknownNameError, UsageError
from labutils.measure import complexity
from labutils.models import zoo


@pytest.fixture(scope="module")
def published():
    return _torchvision.load().models.mobilenet_v3_large().eval()


@pytest.fixture(scope="module")
def distinct(_small):
    """`small` with biases that differ, as in a trained network: no exporter can share them."""
    import copy

    model = copy.deepcopy(_small)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.01 * torch.randn_like(parameter))
    return model


def test_mobilenet_v3_large_as_published(published):
    found = complexity.count(published, (1, 3, 224, 224))
    assert found.parameters == 5_483_032
    assert found.macs == pytest.approx(216.59e6, abs=5e3)
    assert found.not_counted["hardswish"] == 21
    assert found.not_counted["hardsigmoid"] == 8
    assert "219 M" in str(found)
    assert "219 M" not in str(complexity.count(published, (1, 3, 128, 128)))


def test_rows_add_up_and_name_modules(published):
    found = complexity.count(published, (1, 3, 64, 64))
    assert sum(row.macs for row in found.rows) == found.macs
    assert sum(row.parameters for row in found.rows) == found.parameters
    rows = {row.name: row for row in found.rows}
    assert rows["features.0.0"].macs == 16 * 32 * 32 * 3 * 9
    assert rows["features.1.block.0.0"].macs == 16 * 32 * 32 * 9  # depthwise
    assert rows["classifier.3"] == complexity.Row("classifier.3", "Linear", 1_281_000, 1_280_000)
    assert rows["features.0.1"].macs == 0


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_onnx_agrees_with_the_module_after_batchnorm_folding(distinct, tmp_path, opset):
    path = tmp_path / "x.onnx"
    export.to_onnx(distinct, path, size=64, opset=opset)
    module = complexity.count(distinct, (1, 3, 64, 64))
    file = complexity.count(path, (1, 3, 64, 64))
    norms = [m for m in distinct.modules() if isinstance(m, nn.BatchNorm2d)]
    # A folded BatchNorm's scale and shift (2 per channel) become a convolution's bias (1).
    assert file.parameters == module.parameters - sum(m.num_features for m in norms)
    assert file.macs == module.macs
    assert sum(row.macs for row in file.rows) == file.macs
    assert file.not_counted["HardSigmoid"] == (28 if opset == 13 else 9)


def test_zoo_file_and_path_count_alike(small_onnx):
    from labutils.models import zoo

    path = small_onnx(17)
    by_path = complexity.count(path, (1, 3, 64, 64))
    assert complexity.count(zoo.load(path), (1, 3, 64, 64)) == by_path
    assert complexity.count(str(path), (1, 3, 64, 64)) == by_path


def test_quantized_file_has_the_macs_and_weights_of_the_float_one(small_onnx, inputs, tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        left = [{"input": batch[None]} for batch in inputs(4, 64)]

        def get_next(self):
            return self.left.pop() if self.left else None

    path = tmp_path / "qdq.onnx"
    quantize_static(small_onnx(17), path, Reader(), weight_type=QuantType.QInt8, per_channel=True)
    floats, quantized = (complexity.count(p, (1, 3, 64, 64)) for p in (small_onnx(17), path))
    assert quantized.macs == floats.macs
    assert quantized.parameters == floats.parameters
    assert quantized.not_counted["DequantizeLinear"] > 50


def test_weights_in_constant_nodes_count(small_onnx, tmp_path):
    model = onnx.load(small_onnx(17))
    constants = [
        helper.make_node("Constant", [], [tensor.name], value=tensor)
        for tensor in model.graph.initializer
    ]
    nodes = [*constants, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, tmp_path / "constants.onnx")
    moved = complexity.count(tmp_path / "constants.onnx", (1, 3, 64, 64))
    assert moved.parameters == complexity.count(small_onnx(17), (1, 3, 64, 64)).parameters > 1e6


def test_lone_numbers_and_settings_are_no_parameters(tmp_path):
    class Clipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 1, 1)  # a bias of one element is one all the same

        def forward(self, x):
            return (self.conv(x) * 2.5 + 0.5).clamp(0, 6).flatten(1)

    export.to_onnx(Clipped().eval(), tmp_path / "x.onnx", size=16)
    assert complexity.count(tmp_path / "x.onnx", (1, 3, 16, 16)).parameters == 4


@pytest.mark.parametrize(
    ("module", "shape", "macs"),
    [
        (nn.Conv2d(4, 6, (3, 1), stride=2, groups=2), (1, 4, 9, 8), 6 * 4 * 4 * 2 * 3),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), (1, 4, 5, 5), 4 * 5 * 5 * 3 * 9),
        (nn.Linear(5, 7), (1, 5), 35),
        (nn.Linear(5, 7, bias=False), (1, 3, 5), 105),  # a MatMul in ONNX
    ],
)
def test_formulas_against_arithmetic(tmp_path, module, shape, macs):
    assert complexity.count(module, shape).macs == macs
    example = torch.zeros(shape)
    export.to_onnx(module, tmp_path / "x.onnx", example=example)
    assert complexity.count(tmp_path / "x.onnx", shape).macs == macs


def test_functional_and_attention_products_are_counted():
    class Functional(nn.Module):
        def forward(self, x):
            return nn.functional.conv2d(x, torch.ones(2, 3, 1, 1)).flatten(2) @ torch.ones(64, 5)

    assert complexity.count(Functional(), (1, 3, 8, 8)).macs == 2 * 3 * 64 + 2 * 64 * 5
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    found = complexity.count(attention, (1, 4, 8))
    assert found.macs == 4 * (3 * 8 * 8 + 8 * 8) + 2 * (4 * 4 * 8) + 2 * (4 * 8 * 16)
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_changes_nothing(small):
    small.train()
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    complexity.count(small, (1, 3, 64, 64))
    assert small.training and small.features[0][1].training
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())


def test_open_batch_is_filled_in_and_a_wrong_shape_refused(small_onnx, tmp_path):
    with pytest.raises(UsageError, match=r"shape \(1, 3, 64, 64\), not \(1, 3, 128, 128\)"):
        complexity.count(small_onnx(17), (1, 3, 128, 128))
    model = onnx.load(small_onnx(17))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "N"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
    onnx.save(model, tmp_path / "open.onnx")
    one, four = (complexity.count(tmp_path / "open.onnx", (n, 3, 64, 64)).macs for n in (1, 4))
    assert four == 4 * one
    with pytest.raises(UsageError, match="does not run"):
        complexity.count(nn.Linear(5, 7), (1, 6))


@pytest.mark.parametrize("shape", [(1, 3, 224, 224), (1, 3, 96, 160), (2, 5, 7, 3)])
def test_a_file_is_counted_at_its_own_shape(shape, tmp_path):
    weight = numpy_helper.from_array(np.ones((2, shape[1], 1, 1), np.float32), "weight")
    ends = [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)]
    ends.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, None))
    nodes = [helper.make_node("Conv", ["input", "weight"], ["logits"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph), tmp_path / "x.onnx")
    found = complexity.count(tmp_path / "x.onnx")
    assert found.input_shape == shape
    assert found.macs == 2 * np.prod(shape)
    assert found == complexity.count(tmp_path / "x.onnx", shape)


def test_a_zoo_model_is_counted_at_its_own_size(small_onnx):
    model = zoo.load("mobilenet_v3_small", "things16", size=96)
    assert complexity.count(model).input_shape == (1, 3, 96, 96)
    assert complexity.count(zoo.load(small_onnx(17))).input_shape == (1, 3, 64, 64)


def test_sizes_that_nobody_states_are_the_default_s_or_asked_for(tmp_path):
    assert complexity.count(nn.Conv2d(3, 2, 1)).input_shape == complexity.DEFAULT_SHAPE
    weight = numpy_helper.from_array(np.ones((4, 3), np.float32), "weight")
    ends = [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 4])]
    ends.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, None))
    nodes = [helper.make_node("MatMul", ["input", "weight"], ["logits"])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph), tmp_path / "x.onnx")
    with pytest.raises(UsageError, match="pass input_shape"):
        complexity.count(tmp_path / "x.onnx")
    assert complexity.count(tmp_path / "x.onnx", (1, 4)).macs == 12


def test_files_that_are_not_models(tmp_path):
    with pytest.raises(ModelFileError, match="no model file"):
        complexity.count(tmp_path / "none.onnx")
    (tmp_path / "x.onnx").write_bytes(b"\x0a\xffnot a model")
    with pytest.raises(ModelFileError, match="ONNX"):
        complexity.count(tmp_path / "x.onnx")


def test_shapes_that_cannot_be_inferred_are_an_error(tmp_path):
    nodes = [
        helper.make_node("NonZero", ["input"], ["found"]),
        helper.make_node("Cast", ["found"], ["as_float"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["weight", "as_float"], ["logits"], name="odd"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((3, 2), np.float32), "weight")],
    )
    onnx.save(helper.make_model(graph), tmp_path / "x.onnx")
    with pytest.raises(UsageError, match="odd"):
        complexity.count(tmp_path / "x.onnx", (1, 4))


def test_text_and_html_say_the_same(published, read):
    found = complexity.count(published, (1, 3, 224, 224))
    for words in ("5,483,032", "216.59", "features.12.block.0.0", "hardswish 21", "219 M"):
        assert words in str(found)
        assert words in read(found._repr_html_())


def test_a_row_is_found_by_its_name(distinct):
    found = complexity.count(distinct, (1, 3, 64, 64))
    assert found["features.0.0"].macs == 16 * 3 * 9 * 32 * 32
    with pytest.raises(UnknownNameError, match=r"features\.0\.0"):
        found["features.0.00"]
