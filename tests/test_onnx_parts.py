"""A module of a network as an ONNX file of its own; tensors renamed."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from labutils.errors import UnknownNameError, UsageError
from labutils.onnxfile import parts


def test_a_module_alone_computes_what_it_computed(small, small_onnx, tmp_path):
    part = parts.extract(small_onnx(17), tmp_path / "part.onnx", module="features.4")
    ((name, shape),) = part.inputs.items()
    assert len(part.outputs) == 1
    assert "of the" in str(part)
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    (got,) = onnxruntime.InferenceSession(part.file).run(None, {name: x})
    with torch.no_grad():
        expected = small.features[4](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_features_1_is_not_features_10(small_onnx, tmp_path):
    part = parts.extract(small_onnx(17), tmp_path / "p.onnx", module="features.1")
    names = [node.name for node in onnx.load(part.file).graph.node]
    assert names
    assert all("/features.1/" in name or name.startswith("Identity") for name in names)


def test_unknown_names_are_answered(small_onnx, tmp_path):
    with pytest.raises(UnknownNameError, match=r"features\.4"):
        parts.extract(small_onnx(17), tmp_path / "p.onnx", module="feature.4")
    with pytest.raises(UnknownNameError, match="tensor"):
        parts.extract(small_onnx(17), tmp_path / "p.onnx", inputs=["input"], outputs=["no"])
    with pytest.raises(UsageError, match="Give module"):
        parts.extract(small_onnx(17), tmp_path / "p.onnx")
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_renamed_everywhere(small_onnx):
    model = onnx.load(small_onnx(17))
    changed = parts.rename_tensors_(model, {"input": "image", r"(.*)_output_0": r"\1"})
    onnx.checker.check_model(model, full_check=True)
    assert changed["input"] == "image"
    assert model.graph.input[0].name == "image"
    assert not any(name.endswith("_output_0") for n in model.graph.node for name in n.output)
    x = np.zeros((1, 3, 64, 64), np.float32)
    (before,) = onnxruntime.InferenceSession(small_onnx(17)).run(None, {"input": x})
    after = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"image": x})[0]
    np.testing.assert_array_equal(before, after)


def test_a_clash_or_an_unknown_name_changes_nothing(small_onnx):
    model = onnx.load(small_onnx(17))
    before = model.SerializeToString(deterministic=True)
    with pytest.raises(UsageError, match="Two tensors would be called 'logits'"):
        parts.rename_tensors_(model, {"input": "logits"})
    with pytest.raises(UnknownNameError, match="inputs"):
        parts.rename_tensors_(model, {"inputs": "x"})
    assert model.SerializeToString(deterministic=True) == before
