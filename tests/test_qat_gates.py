"""Gates equalized in the network that is trained: as in a file, by the same names."""

import copy

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from labutils import export, quantize, runtime
from labutils.errors import UsageError
from labutils.images import data
from labutils.quantize import gates, presets
from labutils.quantize.prepare import prepared
from labutils.quantize.recipe import Override
from labutils.quantize.training import qat
from labutils.quantize.training.fake_quant import passing

SIDE = 16
RECIPE = presets.PRESETS["int8_qat"]
LOUD = 20.0


class WrittenOut(nn.Module):
    """HardSwish as surgery writes it: the product is divided afterwards."""

    def forward(self, x):
        return x * torch.clamp(x + 3, 0, 6) / 6


class DividedBefore(nn.Module):
    def forward(self, x):
        return x / 6 * torch.clamp(3 + x, 0, 6)


ACTS = (nn.Hardswish, nn.SiLU, WrittenOut, DividedBefore)


class Gated(nn.Module):
    """A stem with a loud channel, its activation, and who may read that."""

    def __init__(self, act=nn.Hardswish, skip=True, channels=6, loud=LOUD, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.skip = skip
        self.stem = nn.Sequential(
            nn.Conv2d(3, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), act()
        )
        self.depthwise = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels)
        self.project = nn.Conv2d(channels, channels, 1)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))
        with torch.no_grad():
            self.stem[0].weight[-1] *= loud
            self.depthwise.weight[-1] /= loud
        self.eval()

    def forward(self, x):
        y = self.stem(x)
        z = self.project(torch.relu(self.depthwise(y)))
        return self.head(z + y if self.skip else z)


def pictures(n=48, side=SIDE):
    return np.random.default_rng(1).normal(size=(n, 3, side, side)).astype(np.float32)


def decibels(exact, found):
    return 10 * np.log10(np.square(exact).sum() / np.square(found - exact).sum())


def answers(network, images):
    with torch.no_grad():
        return network(torch.from_numpy(images)).numpy()


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    act=st.sampled_from(ACTS), skip=st.booleans(), seed=st.integers(0, 99),
    loud=st.floats(8, 60), channels=st.integers(4, 9),
)  # fmt: skip
def test_with_the_rounding_off_it_computes_what_the_network_computes(
    act, skip, seed, loud, channels
):
    network, images = Gated(act, skip, channels, loud, seed), pictures()
    trained = qat.prepare(network, RECIPE, size=SIDE, images=images)
    assert qat.describe(trained).equalized == ("stem.0",)
    with passing(trained):
        found = answers(trained, images)
    exact = answers(network, images)
    assert np.abs(found - exact).max() < 1e-5 * np.abs(exact).max()


@pytest.mark.parametrize("act", ACTS)
def test_a_loud_channel_no_longer_takes_the_codes_of_the_others(act):
    network, images = Gated(act, skip=False, loud=100.0), pictures()
    exact, noise = answers(network, images), {}
    for given_images in (None, images):
        student = qat.prepare(network, RECIPE, size=SIDE, images=given_images)
        qat.calibrate_(student, images)
        noise[given_images is None] = decibels(exact, answers(student, images))
    assert noise[False] > noise[True] + 6


def test_it_measures_the_factors_that_a_file_gets(tmp_path):
    network, images = Gated(), pictures()
    file = tmp_path / "float.onnx"
    export.to_onnx(network, file, size=SIDE)
    ((_, factor),) = gates.factors(prepared(file), images).items()
    student = qat.prepare(network, RECIPE, size=SIDE, images=images)
    (scale,) = [m for n, m in student.named_modules() if n.endswith(".scale")]
    np.testing.assert_allclose(scale.weight.detach().flatten(), factor, rtol=0.01)


@pytest.mark.parametrize("act", ACTS)
def test_nodes_and_tensors_have_the_names_that_they_have_after_training_or_without(tmp_path, act):
    network, images = Gated(act), pictures()
    file = tmp_path / "float.onnx"
    export.to_onnx(network, file, size=SIDE)
    recipe = RECIPE.replaced(qat=None)
    quantize.static(file, tmp_path / "static.onnx", images, recipe)
    student = qat.prepare(network, RECIPE, size=SIDE, images=images)
    qat.calibrate_(student, images)
    qat.to_qdq(student, tmp_path / "trained.onnx", size=SIDE, images=images[:16])

    def named(path):
        nodes = onnx.load(path).graph.node
        computing = [n for n in nodes if not n.op_type.endswith("Linear")]
        return {n.name: n.output[0].replace("_QuantizeLinear_Input", "") for n in computing}

    static, trained = named(tmp_path / "static.onnx"), named(tmp_path / "trained.onnx")
    assert any(name.endswith("/equalized.scale") for name in trained)
    assert any(name.endswith("/equalized.restore") for name in trained)
    if act in (WrittenOut, DividedBefore):  # static leaves a Clip to the ends of its range
        static, trained = (
            {name: tensor for name, tensor in found.items() if "Add" not in name + tensor
             and "Clip" not in name + tensor}
            for found in (static, trained)
        )  # fmt: skip
    assert trained == static


def test_an_identity_before_a_gate_hides_nothing():
    """As in timm's networks, whose files have no such node."""
    network = Gated(lambda: nn.Sequential(nn.Identity(), nn.Hardswish())).eval()
    student = qat.prepare(network, RECIPE, size=SIDE, images=pictures())
    assert qat.describe(student).equalized == ("stem.0",)


def test_without_images_or_a_loud_channel_the_gates_stay():
    assert qat.describe(qat.prepare(Gated(), RECIPE, size=SIDE)).equalized == ()
    quiet = qat.prepare(Gated(loud=1.0), RECIPE, size=SIDE, images=pictures())
    assert qat.describe(quiet).equalized == ()
    assert not [name for name, _ in quiet.named_modules() if "equalized" in name]


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (data.calibration(2, SIDE), "holds pixels"),
        (pictures(0), "there were none"),
        (pictures()[:, :1], "takes .n, 3"),
        (pictures() * np.float32(np.nan), "NaN"),
    ],
    ids=["pixels", "none", "gray", "NaN"],
)
def test_images_that_tell_no_reach_are_refused(images, told):
    with pytest.raises(UsageError, match=told):
        qat.prepare(Gated(), RECIPE, size=SIDE, images=images)


def test_factors_are_not_trained_and_the_rest_is():
    images = pictures()
    student = qat.prepare(Gated(), RECIPE, size=SIDE, images=images)
    qat.calibrate_(student, images)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in student.parameters() if p.requires_grad], lr=0.01)
    student(torch.from_numpy(images)).square().mean().backward()
    optimizer.step()
    changed = {n for n, value in student.state_dict().items() if not torch.equal(value, before[n])}
    assert any(name.startswith("stem.0") for name in changed)
    assert not [n for n in changed if n.startswith("equalized.") and "weight" in n]
    again = copy.deepcopy(student)
    again.load_state_dict(student.state_dict())
    np.testing.assert_array_equal(answers(again, images), answers(student, images))


def test_a_searched_recipe_names_the_added_nodes(tmp_path):
    """At 16 bits the added convolutions are 3 x 3: the HTP dies of a depthwise one of 1 x 1."""
    wide = RECIPE.replaced(overrides=(Override("*/equalized.scale", activations=16),))
    images = pictures()
    student = qat.prepare(Gated(), wide, size=SIDE, images=images)
    kernels = {n: m.kernel_size for n, m in student.named_modules() if n.startswith("equalized.")
               and isinstance(m, nn.Conv2d)}  # fmt: skip
    assert {n.rpartition(".")[2]: k for n, k in kernels.items()} == {
        "scale": (3, 3), "restore": (1, 1),
    }  # fmt: skip
    qat.calibrate_(student, images)
    file = tmp_path / "wide.onnx"
    report = qat.to_qdq(student, file, size=SIDE, images=images[:16])
    assert report.sqnr_db > 40
    qat.prepare(Gated(), wide, size=SIDE)  # gates as they are: nobody has such a name, and it runs


@pytest.mark.htp
@pytest.mark.parametrize("bits", [8, 16])
def test_what_was_trained_runs_on_the_simulator(tmp_path, bits):
    recipe = RECIPE.replaced(overrides=(Override("*", activations=bits),))
    images = pictures(side=32)
    student = qat.prepare(Gated(), recipe, size=32, images=images)
    qat.calibrate_(student, images)
    file = tmp_path / "trained.onnx"
    qat.to_qdq(student, file, size=32, images=images[:16])
    with runtime.connect(file, "htp") as htp, runtime.connect(file, "ort") as ort:
        assert decibels(ort.run(images[:4]), htp.run(images[:4])) > 25
