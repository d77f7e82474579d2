"""timm's MobileNetV3 carries torchvision's weights, and computes what torchvision's computes."""

import pytest
import torch

from labutils import export, train
from labutils.errors import ModelFileError, UsageError
from labutils.images import data
from labutils.models import architectures, timm_twins, zoo
from labutils.onnxfile import graph
from labutils.onnxfile.file import OnnxFile


@pytest.fixture(params=[(twin, s) for s in data.DRAWN for twin in timm_twins.TWINS], ids=str)
def pair(request):
    twin, image_set = request.param
    return tuple(zoo.load(n, image_set) for n in (f"timm:{twin}", timm_twins.TWINS[twin]))


def test_the_twins_give_the_same_logits(pair):
    theirs, ours = pair
    pictures = data.load("val", 48, 128, ours.weights)
    images = torch.from_numpy(ours.preprocessing(pictures.images))
    with torch.inference_mode():
        found, expected = (
            theirs.module.double()(images.double()),
            ours.module.double()(images.double()),
        )
    # not of float32's rounding: BatchNorm's epsilon would make a difference of more than 0.01
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert expected.abs().max() > 3


def test_a_twin_is_known_as_what_it_carries(pair):
    theirs, ours = pair
    assert (theirs.weights, theirs.classes, theirs.sha256) == (
        ours.weights, ours.classes, ours.sha256,
    )  # fmt: skip
    assert theirs.preprocessing == ours.preprocessing and theirs.trained
    assert "mobilenet_v3" in theirs.note
    assert type(theirs.module).__module__.startswith("timm.")


def test_epsilon_alone_makes_a_difference():
    """So the test above would see it, were it not taken up."""
    name = "mobilenetv3_small_100"
    ours = zoo.load(timm_twins.TWINS[name], "things16")
    without = architectures.find(f"timm:{name}").build(16).eval()
    timm_twins.carry_over_(without, ours.module)
    for layer in without.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_var -= 1e-3 - layer.eps
    images = torch.from_numpy(ours.preprocessing(data.load("val", 8, 128).images))
    with torch.inference_mode():
        assert (without(images) - ours.module(images)).abs().max() > 0.01


@pytest.mark.parametrize("classes", [16, 1000])
def test_the_file_has_as_many_parameters_as_the_vendors_script_counts(classes):
    """5,470,832 with 1,000 classes: D-Robotics' sample, opset 11, names data and output."""
    torch.manual_seed(0)
    module = architectures.find("timm:mobilenetv3_large_100").build(classes).eval()
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            tensor.data = torch.rand_like(tensor) + 0.5  # equal ones would be stored once
    written = export.unchecked(module, torch.rand(1, 3, 64, 64), 11)
    assert graph.stored_values(written) == 5_470_832 - 1_281 * (1_000 - classes)
    assert graph.stored_values(written) < sum(p.numel() for p in module.parameters())


@pytest.mark.slow
def test_the_command_writes_the_vendors_file(lab, tmp_path):
    asked = ("export", "timm:mobilenetv3_large_100", "--weights", "things16", "--size", 64)
    names = ("--opset", 11, "--input-name", "data", "--output-name", "output", "--simplify")
    code, out, err = lab(*asked, *names, "-o", tmp_path / "m.onnx")
    assert code == 0, err
    made = OnnxFile(tmp_path / "m.onnx")
    assert [value.name for value in (*made.inputs, *made.outputs)] == ["data", "output"]
    assert made.opset == 11 and "HardSwish" not in {n.op_type for n in made.proto.graph.node}
    assert "m.onnx: 4,210,328 parameters" in out


def test_networks_of_other_layers_are_refused():
    small = train.network("mobilenet_v3_small")
    with pytest.raises(ModelFileError, match="does not have the layers"):
        timm_twins.carry_over_(train.network("mobilenet_v3_large"), small)
    with pytest.raises(UsageError, match="no Things-16 checkpoint of mobilenetv3_rw"):
        zoo.load("timm:mobilenetv3_rw", "things16")
