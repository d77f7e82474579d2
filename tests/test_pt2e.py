"""torchao's route on a network of a few layers: what a recipe says is what is observed."""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from labutils.errors import UnknownNameError, UsageError
from labutils.quantize import pt2e
from labutils.quantize.recipe import Calibration, Override, Recipe, Weights

SIZE = 16


@pytest.fixture(scope="module")
def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4), nn.Hardswish(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5),
        ).eval()  # fmt: skip


def pictures(n=8):
    return np.random.default_rng(0).normal(size=(n, 3, SIZE, SIZE)).astype(np.float32)


def test_the_observers_of_each_layer_are_those_of_its_recipe(network):
    """By the names and the operators of the float export, as for every other route."""
    exceptions = (
        Override("/2/Conv", activations=16, per_channel=False),
        Override(op_type="Gemm", weights=4),
    )
    prepared = pt2e.prepare(
        network, Recipe("mine", overrides=exceptions), torch.from_numpy(pictures(2))
    )
    found = {}
    for node in prepared.graph.nodes:
        if node.target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default):
            weight = prepared.get_submodule(node.args[1].target)
            found[node.name] = (weight.quant_max, getattr(weight, "ch_axis", None))
    assert found == {"conv2d": (127, 0), "conv2d_1": (127, None), "linear": (7, 0)}
    codes = {
        node.args[0].name: prepared.get_submodule(node.target).quant_max
        for node in prepared.graph.nodes
        if "post_process" in str(node.target) and node.args[0].op == "call_function"
    }
    assert codes["relu"] == codes["hardswish"] == codes["linear"] == 255
    assert codes["conv2d_1"] == 65535 and "conv2d" not in codes  # its ReLU clips


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"overrides": (Override("/9/Conv", weights=4),)}, UnknownNameError, "/9/Conv"),
        ({"overrides": (Override("/2/Conv", op_type="Gemm", weights=4),)}, UsageError, "is Conv"),
        ({"exclude": ("no/such",)}, UnknownNameError, "no/such"),
    ],
)
def test_globs_that_match_nothing_are_refused_as_by_the_other_routes(network, asked, error, words):
    with pytest.raises(error, match=words):
        pt2e.prepare(network, Recipe("mine", **asked), torch.from_numpy(pictures(2)))


def test_what_torchao_ignores_of_a_recipe_is_said():
    plain = Recipe(calibration=Calibration(outliers=Calibration().outliers))
    assert pt2e._ignored(plain) == ()
    asked = {
        "calibration by mse (min-max instead)": {"calibration": Calibration("mse")},
        "leaving out 5 % of the images": {"calibration": Calibration(outliers=0.05)},
        "ranges 1.25 times as long": {"calibration": Calibration(room=1.25)},
        "equalization": {"equalize": True},
        "corrected biases": {"correct_bias": True},
        "adaptive rounding": {"rounding": "adaptive"},
        "integer input or output": {"output": "quantized"},
    }
    for words, settings in asked.items():
        assert pt2e._ignored(Recipe(**settings)) == (words,)


def test_weights_that_torchao_cannot_have_are_refused(network, tmp_path):
    for weights in (Weights(16), Weights(symmetric=False)):
        with pytest.raises(UsageError, match="symmetric weights of 4 or 8 bits"):
            pt2e.write_qdq(network, tmp_path / "q.onnx", pictures(), Recipe(weights=weights))
    with pytest.raises(UsageError, match="there were none"):
        pt2e.write_qdq(network, tmp_path / "q.onnx", pictures(0), "int8")
    assert not list(tmp_path.iterdir())


def test_a_file_has_the_codes_that_its_recipe_says_and_whole_biases(network, tmp_path):
    with torch.no_grad():
        network[6].bias += 3  # far beyond what eight bits of its step would hold
    report = pt2e.write_qdq(network, tmp_path / "q.onnx", pictures(), "int8")
    graph = onnx.load(report.path).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    maker = {out: node for node in graph.node for out in node.output}
    for node, layer in zip(
        (n for n in graph.node if n.op_type in ("Conv", "Gemm")), (0, 2, 6), strict=True
    ):
        codes, step = (values[name] for name in maker[node.input[2]].input[:2])
        entry, weight = (values[maker[name].input[1]] for name in node.input[:2])
        assert codes.dtype == np.int32
        assert step == pytest.approx(entry * weight)
        assert codes * step == pytest.approx(
            network[layer].bias.detach().numpy(), abs=float(step.max())
        )
    assert report.weights == {"int8": 3} and report.biases == 3 and report.sqnr_db > 60
