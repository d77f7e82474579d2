"""Descriptions in Keras itself, in its own environment: the same logits, and what is refused."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from described_networks import (
    CLASSIFIERS,
    PARTS,
    SIZE,
    Block,
    Odd,
    Part,
    assert_equal,
    classifier,
    outputs,
    own_kinds,
    pictures,
    randomized,
)
from torch import nn

from labutils import representation
from labutils.errors import MissingToolError, ToolError
from labutils.models import zoo
from labutils.representation import Operator, keras_program, operator
from labutils.tools import calling, environment, writing


def test_keras_is_asked_for_only_where_it_is_used():
    if importlib.util.find_spec("keras") is not None:
        pytest.skip("Keras is installed here")
    described = representation.import_torch(nn.Conv2d(3, 4, 1), SIZE)
    with pytest.raises(MissingToolError, match="labutils tools install keras"):
        representation.emit_keras(*described)


@pytest.fixture(scope="module")
def tool():
    """Keras in its own environment, where somebody installed it."""
    if environment.survey("keras").state != "installed":
        pytest.skip("`labutils tools install keras` was not run")
    with calling.opened("keras", Path(keras_program.__file__)) as opened:
        yield opened


@pytest.fixture
def keras(tool):
    """A function: text, images and weights to logits in Keras, as arrays."""

    def run(text, images, weights, **more):
        arrays = {name: value.numpy() for name, value in weights.items()}
        return tool.ask("run", text=text, images=images.numpy(), **more, **arrays)["logits"]

    return run


def difference(keras, network, size, n=3):
    """How far Keras is from a network: a share of its largest output."""
    description, weights = representation.import_torch(network, size)
    images = pictures(n, size)
    expected = outputs(network, images).numpy()
    found = keras(description.to_yaml(), images, weights)
    if found.ndim == 4:
        found = found.transpose(0, 3, 1, 2)
    assert found.shape == expected.shape
    return np.abs(found - expected).max() / np.abs(expected).max()


# --- the same ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_keras_computes_every_kind(keras):
    apart = {
        name: difference(keras, randomized(network), SIZE)
        for name, network in {"block": Block(), **PARTS}.items()
    }
    assert max(apart.values()) <= 1e-5, apart


@pytest.mark.sweep
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_keras_computes_the_classifiers(keras, name):
    network, size = classifier(name)
    assert difference(keras, network, size, n=4) <= 1e-5


@pytest.mark.slow
def test_names_that_would_meet_in_keras_are_kept_apart(keras):
    inner = nn.Module()
    inner.b = nn.Conv2d(3, 3, 3, padding=1)
    network = Part(
        lambda m, x: m.a_b(m.a.b(m.conv(m.conv_pad(x)))), conv=nn.Conv2d(3, 3, 3, padding=1),
        conv_pad=nn.ZeroPad2d(1), a=inner, a_b=nn.Conv2d(3, 3, 1),
    )  # fmt: skip
    assert difference(keras, network.eval(), SIZE) <= 1e-5
    assert difference(keras, nn.Conv2d(3, 4, 1).eval(), SIZE) <= 1e-5  # weights without a prefix


@pytest.mark.slow
def test_a_model_with_stored_tensors_can_be_saved(tool, tmp_path):
    description, weights = representation.import_torch(randomized(PARTS["convnext"]), SIZE)
    arrays = {name: value.numpy() for name, value in weights.items()}
    tool.ask("save", text=description.to_yaml(), file=tmp_path / "made.keras", **arrays)
    assert (tmp_path / "made.keras").stat().st_size > 1000


# --- 256 images, and the four known mistakes --------------------------------------------------

MISTAKES = {
    "padding": """
        def keras(self, k, x):
            if self.pad == 0:
                return super().keras(k, x)
            common = dict(kernel_size=self.kernel, strides=self.stride, padding="same",
                          use_bias=self.bias, name=k.name)
            if self._depthwise(x.shape[-1]):
                return k.weighted(k.layers.DepthwiseConv2D(**common), x)
            return k.weighted(k.layers.Conv2D(self.out, groups=self.groups, **common), x)
    """,
    "depthwise order": """
        def keras_weights(self, own):
            kernel, *bias = super().keras_weights(own)
            if kernel.shape[-1] == 1 < self.groups:
                kernel = own["weight"].reshape(kernel.shape)
            return [kernel, *bias]
    """,
    "kernel order": """
        def keras_weights(self, own):
            kernel, *bias = super().keras_weights(own)
            return [kernel.swapaxes(0, 1), *bias]
    """,
}  # fmt: skip
HEAD = "from labutils.representation import KINDS, operator\n"


def mistaken(folder, name):
    """A file in which the kind conv makes a mistake."""
    body = f'@operator("conv", "conv2d")\nclass Mistaken(KINDS["conv"]):\n{MISTAKES[name]}'
    file = folder / f"{name.replace(' ', '_')}.py"
    file.write_text(HEAD + body)
    return file


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fbnet_a", "mobilenet_v3_small"])
def test_keras_agrees_on_256_images_and_each_known_mistake_shows(keras, tmp_path, name):
    network = zoo.load(name, "random", 32).module
    description, weights = representation.import_torch(network, 32)
    text, images = description.to_yaml(), pictures(256, 32)
    expected = network(images).numpy()

    def apart(text, **more):
        return (
            np.abs(keras(text, images, weights, **more) - expected).max() / np.abs(expected).max()
        )

    assert np.abs(expected).max() > 1e-3
    assert apart(text) <= 1e-5
    if name == "fbnet_a":
        for mistake in MISTAKES:
            assert apart(text, kinds=mistaken(tmp_path, mistake)) > 1e-3, mistake
        keras_epsilon = text.replace("op: batch_norm", "op: batch_norm, eps: 0.001")
        assert apart(keras_epsilon) > 1e-3
        assert apart(text) <= 1e-5  # a file of kinds is for one call


# --- refused by name, and one's own ------------------------------------------------------------


class Mish(Operator):
    def torch(self):
        return nn.Mish()

    def keras(self, k, x):
        return x * k.ops.tanh(k.ops.softplus(x))


class OnlyInPyTorch(Operator):
    def torch(self):
        return nn.Mish()


OWN = """
from torch import nn

from labutils.representation import Operator, operator
"""


def described(made):
    """The description and the weights of a network with a kind of one's own."""
    with own_kinds():
        operator("mish", "mish", "mish_")(made)
        return assert_equal(Odd().eval(), 4)


def registering(file, made):
    """The file that registers it in another process."""
    writing.write_program(file, OWN, made)
    file.write_text(f"{file.read_text()}\n\noperator('mish', 'mish', 'mish_')({made.__name__})\n")
    return file


def test_a_kind_is_added_in_ten_lines():
    description, _ = described(Mish)
    assert [layer.operator.kind for layer in description.layers] == ["mish", "flatten"]
    assert writing.count_lines(Mish) + 1 <= 10


@pytest.mark.slow
def test_a_kind_of_ones_own_reaches_keras_by_its_file(keras, tmp_path):
    description, weights = described(Mish)
    images, text = pictures(3, 4), description.to_yaml()
    with pytest.raises(ToolError, match="no kind of layers named 'mish'"):
        keras(text, images, weights)
    found = keras(text, images, weights, kinds=registering(tmp_path / "mine.py", Mish))
    expected = Odd()(images).numpy()
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.slow
def test_what_keras_does_not_build_is_refused_by_its_name(keras, tmp_path):
    description, weights = described(OnlyInPyTorch)
    file = registering(tmp_path / "mine.py", OnlyInPyTorch)
    with pytest.raises(ToolError, match=r"The layer inner \(mish\) is not built in Keras") as told:
        keras(description.to_yaml(), pictures(1, 4), weights, kinds=file)
    assert told.value.kind == "TranslationError"
    described_conv, _ = representation.import_torch(nn.Sequential(nn.Conv2d(3, 4, 1)), 4)
    with pytest.raises(ToolError, match=r"0: there are no weights 0\.bias") as told:
        keras(described_conv.to_yaml(), pictures(1, 4), {"0.weight": torch.zeros(4, 3, 1, 1)})
    assert told.value.kind == "ModelFileError"
