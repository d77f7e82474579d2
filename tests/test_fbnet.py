"""FBNet-A against what was published of it."""

import json

import pytest
import torch

from labutils.errors import UsageError
from labutils.measure import complexity
from labutils.models import fbnet, zoo


@pytest.fixture(scope="module")
def network():
    return fbnet.FBNet().eval()


def test_it_has_the_published_weights_and_multiplications(network):
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert sum(m.weight.numel() for m in convolutions) == 4_270_288  # published: 4.27029 million
    macs = complexity.count(network, (1, 3, 224, 224)).macs
    assert macs == 244_452_664
    pooled = 7 * 7 * 1504  # the published figure has the pooling, too: 244.52636 million
    assert macs + pooled == 244_526_360


PRINTED = """\
FBNet(
  (backbone): FBNetBackbone(
    (stages): Sequential(
      (xif0_0): ConvBNRelu(
        (conv): Conv2d(3, 16, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
        (bn): BatchNorm2d(16, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)
        (relu): ReLU(inplace=True)
      )
      (xif1_0): Identity()
      (xif2_0): IRFBlock(
        (pw): ConvBNRelu(
          (conv): Conv2d(16, 48, kernel_size=(1, 1), stride=(1, 1))
"""
END = """\
  (head): ClsConvHead(
    (avg_pool): AdaptiveAvgPool2d(output_size=(1, 1))
    (conv): Conv2d(1504, 1000, kernel_size=(1, 1), stride=(1, 1))
  )
)"""


def test_it_is_printed_as_the_reference_is(network):
    said = str(network).replace(" bias=True,", "")  # which PyTorch prints since 2.13
    assert said.startswith(PRINTED) and said.endswith(END)
    assert list(dict(network.backbone.stages.named_children()))[-2:] == ["xif5_4", "xif6_0"]
    assert "(pwl)" in said and "ChannelShuffle(groups=2)" in said


def test_a_shuffle_takes_a_channel_of_each_group_in_turn():
    x = torch.arange(6.0).reshape(1, 6, 1, 1)
    assert fbnet.ChannelShuffle(2)(x).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert torch.equal(fbnet.ChannelShuffle(3)(x), torch.nn.ChannelShuffle(3)(x))


def test_residuals_are_where_shape_and_stride_allow_them(network):
    blocks = dict(network.backbone.stages.named_children())
    added = [n for n, b in blocks.items() if getattr(b, "residual", False)]
    assert added == ["xif2_1", "xif3_1", "xif3_2", "xif3_3", "xif4_1", "xif4_2", "xif4_3",
                     "xif4_5", "xif4_6", "xif4_7", "xif5_1", "xif5_2", "xif5_3"]  # fmt: skip


def test_it_is_a_model_of_the_zoo():
    model = zoo.load("fbnet_a", "random", size=64)
    assert model.input_shape == (1, 3, 64, 64) and len(model.classes) == 1000
    with pytest.raises(UsageError, match="no ImageNet weights of fbnet_a"):
        zoo.load("fbnet_a", "imagenet")
    with pytest.raises(UsageError, match="no Things-16 checkpoint of fbnet_a"):
        zoo.load("fbnet_a", "things16")


@pytest.mark.slow
def test_it_is_trained_from_the_command_line(lab, tmp_path, few_pictures):
    file = tmp_path / "fbnet_a.safetensors"
    options = ["--weights", "random", "--steps", "2", "--size", "32", "--images", "64"]
    code, _, said = lab("train", "fbnet_a", *options, "-o", file)
    assert code == 0, said
    assert json.loads(file.with_suffix(".json").read_text("utf-8"))["architecture"] == "fbnet_a"
    assert len(zoo.load("fbnet_a", file).classes) == 16
