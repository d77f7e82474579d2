"""A network of seven layers, for tests of files and processes: known to timm as ``tiny_hardswish``.

It has what a journey is about (hard-swish, hard-sigmoid), and costs next to nothing.
"""

import torch
from torch import nn

from labutils.models import architectures

models = architectures._timm().models  # timm needs torchvision, which the lab loads in its own way

NAME = "timm:tiny_hardswish"
SIDE = 32
default_cfgs = models.generate_default_cfgs(
    {
        "tiny_hardswish.untrained": {
            "input_size": (3, SIDE, SIDE),
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "num_classes": 16,
        }
    }
)


class Tiny(nn.Module):
    """A convolution, a gate over its channels, a classifier with 2 MB of weights."""

    def __init__(self, num_classes=16):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.bn, self.act = nn.BatchNorm2d(16), nn.Hardswish()
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.Hardsigmoid())
        self.pool = nn.AdaptiveAvgPool2d(1)
        layers = [nn.Linear(16, 512), nn.Hardswish(), nn.Linear(512, 1024), nn.Hardswish()]
        self.fc = nn.Sequential(*layers, nn.Linear(1024, num_classes))

    def forward(self, x):
        x = self.act(self.bn(self.conv(x)))
        return self.fc(torch.flatten(self.pool(x * self.gate(x)), 1))


@models.register_model
def tiny_hardswish(pretrained=False, num_classes=16, **_):
    return Tiny(num_classes)
