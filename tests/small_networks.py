"""Networks of a few layers that hold what makes names and places of roundings hard."""

import torch
from torch import nn
from torch.nn import functional

SIDE = 16


class Block(nn.Module):
    """A residual block with one ReLU module that is called twice."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.relu, self.conv2 = nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(x + y)


class Crossing(nn.Module):
    """SiLU, ReLU6, blocks, an activation and a container called twice, functions, dropout."""

    def __init__(self, width=8, classes=4):
        super().__init__()
        self.stem = nn.Sequential()
        self.stem.add_module("conv", nn.Conv2d(3, width, 3, 2, 1))
        self.stem.add_module("act", nn.SiLU())
        self.layer = nn.Sequential(Block(width), Block(width))
        self.narrow = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), nn.ReLU6())
        self.act, self.head = nn.Hardswish(), nn.Linear(width, classes)
        self.two = nn.Sequential(nn.Hardsigmoid(), nn.Hardswish())
        self.drop = nn.Dropout(0.2)

    def forward(self, x):
        x = self.narrow(self.layer(self.stem(x)))
        x = self.two(x) + self.act(self.two(x - 1))
        x = functional.silu(x) * torch.sigmoid(x + 1) + functional.relu(x - 0.5)
        return self.head(self.drop(torch.flatten(self.act(x).mean((2, 3)), 1)))


def crossing():
    """Return a `Crossing` of seeded weights and statistics, in evaluation mode."""
    return seeded(Crossing)


def seeded(build):
    """Return what `build` returns with seeded weights and statistics, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return network.eval()


def vision_transformer(size=SIDE, **settings):
    """Return timm's vit_tiny with two heads of 8 channels, of seeded weights."""
    from labutils.models import architectures

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        options = {"img_size": size, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
        network = architectures._timm().create_model(
            "vit_tiny_patch16_224", num_classes=4, **(options | settings)
        )
        for parameter in network.parameters():  # timm starts biases at 0 and factors at 1
            parameter.data += 0.05 * torch.randn(parameter.shape)
    return network.eval()


def inputs(n=8, size=SIDE, seed=0):
    """Return (n, 3, size, size) float32 noise as NumPy has it."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, size, size, generator=generator).numpy()
