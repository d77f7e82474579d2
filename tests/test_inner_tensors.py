"""Tensors from inside a network: by name, by module, and in pairs of two files."""

import numpy as np
import onnx
import pytest
import torch

from labutils import compare, export, quantize
from labutils.errors import UnknownNameError
from labutils.onnxfile import graph


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A small network as ONNX, and quantized; its modules are numbers."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 5)
    ).eval()
    folder = tmp_path_factory.mktemp("files")
    export.to_onnx(net, folder / "net.onnx", size=8)
    inputs = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)
    quantize.static(folder / "net.onnx", folder / "int8.onnx", inputs, "int8")
    return net, folder / "net.onnx", folder / "int8.onnx", inputs


def test_a_module_s_output_is_what_pytorch_computes_there(files):
    net, file, _, inputs = files
    found = compare.activations(file, ["0"], inputs)
    assert list(found) == ["0"]
    true = net[0](torch.from_numpy(inputs)).detach().numpy()
    assert found["0"].shape == true.shape == (4, 4, 6, 6)
    assert np.allclose(found["0"], true, atol=1e-5)


def test_a_tensor_is_found_by_its_own_name(files):
    _, file, _, inputs = files
    names = {graph.module_path(n): n.output[0] for n in onnx.load(file).graph.node}
    by_name = compare.activations(file, [names["1"], names["0"]], inputs)
    by_module = compare.activations(file, ["1", "0"], inputs)
    assert list(by_name) == [names["1"], names["0"]]
    assert np.array_equal(by_name[names["1"]], by_module["1"])
    assert (by_module["1"] >= 0).all() and (by_module["0"] < 0).any()


def test_an_unknown_name_gets_the_nearest(files):
    _, file, _, inputs = files
    with pytest.raises(UnknownNameError, match=r"no tensor or module named 'logit'.*logits"):
        compare.activations(file, ["logit"], inputs)


def test_pairs_are_those_that_per_layer_measures(files):
    _, file, quantized, inputs = files
    pairs = compare.paired_activations(file, quantized, inputs)
    rows = compare.per_layer(file, quantized, inputs).rows
    assert [name for name, _, _ in pairs] == [row.tensor for row in rows]
    for (_, before, after), row in zip(pairs, rows, strict=True):
        assert before.shape == after.shape and not np.array_equal(before, after)
        error = 10 * np.log10((before.astype(float) ** 2).sum() / ((before - after) ** 2).sum())
        assert error == pytest.approx(row.sqnr_db, abs=0.1)
