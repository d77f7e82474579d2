"""Small networks for the tests of pruning: one of each way in which layers share channels."""

import torch
from torch import nn
from torch.nn import functional as F

from labutils import prune

SIDE = 16


def conv(a, b, k=3, stride=1, groups=1):
    return nn.Sequential(
        nn.Conv2d(a, b, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(b),
        nn.Hardswish(),
    )  # fmt: skip


class Gate(nn.Module):
    """Squeeze-excitation."""

    def __init__(self, width):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, 8, 1), nn.Conv2d(8, width, 1)

    def forward(self, x):
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Mobile(nn.Module):
    """A stem, two inverted residuals with a gate, a classifier of two layers."""

    def __init__(self, width=16, middle=32, classes=10):
        super().__init__()
        self.stem = conv(3, width, 3, 2)
        self.expand, self.depthwise = conv(width, middle, 1), conv(middle, middle, groups=middle)
        self.gate, self.project = Gate(middle), nn.Conv2d(middle, width, 1)
        self.last = conv(width, 48, 1)
        self.classifier = nn.Sequential(
            nn.Linear(48, 40), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(40, classes)
        )

    def forward(self, x):
        x = self.stem(x)
        x = x + self.project(self.gate(self.depthwise(self.expand(x))))
        return self.classifier(self.last(x).mean((2, 3)))


class Body(nn.Module):
    """A convolution, something in the middle, a classifier."""

    def __init__(self, width=16, out=16):
        super().__init__()
        self.stem, self.head = conv(3, width), nn.Linear(out, 10)

    def forward(self, x):
        return self.head(self.middle(self.stem(x)).flatten(2).mean(2))


class Grouped(Body):
    def __init__(self, groups=4, width=16, out=24):
        super().__init__(width, out)
        self.middle = nn.Sequential(conv(width, out, groups=groups), conv(out, out, 1))


class Concatenated(Body):
    def __init__(self):
        super().__init__(16, 28)
        self.left, self.right = conv(16, 12), conv(16, 16, 1)

    def middle(self, x):
        return torch.cat([self.left(x), self.right(x)], 1)


class Ghost(Body):
    """GhostNet: half of the channels are made of the other half, and a residual joins both."""

    def __init__(self):
        super().__init__(16, 32)
        self.primary, self.cheap = conv(16, 16, 1), conv(16, 16, groups=16)
        self.shortcut, self.last = nn.Conv2d(16, 32, 1), conv(32, 32, 1)

    def middle(self, x):
        made = self.primary(x)
        return self.last(torch.cat([made, self.cheap(made)], 1)[:, :32] + self.shortcut(x))


class Split(Body):
    def __init__(self):
        super().__init__(16, 24)
        self.left, self.right = conv(8, 12), conv(8, 12)

    def middle(self, x):
        a, b = x.split(8, 1)
        return torch.cat([self.left(a), self.right(b)], 1)


class Shuffled(Body):
    def __init__(self):
        super().__init__(16, 16)
        self.after = conv(16, 16, groups=2)

    def middle(self, x):
        n, c, h, w = x.shape
        return self.after(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


class Tied(Body):
    def __init__(self):
        super().__init__(16, 16)
        self.first, self.second = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.second.weight = self.first.weight
        self.free = conv(16, 16, 1)

    def middle(self, x):
        return self.free(F.relu(self.second(F.relu(self.first(x)))))


class Attention(Body):
    """A transformer's block: attention written out, a norm over channels, an MLP."""

    def __init__(self):
        super().__init__(16, 16)
        self.norm, self.qkv, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.fc1, self.fc2 = nn.Linear(16, 32), nn.Linear(32, 16)

    def middle(self, x):
        x = x.flatten(2).transpose(1, 2)
        n, places, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(n, places, 3, 2, 8).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0))
        x = x + self.out(mixed.transpose(1, 2).reshape(n, places, width))
        return (x + self.fc2(F.gelu(self.fc1(x)))).transpose(1, 2)


class Multihead(Body):
    def __init__(self):
        super().__init__(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.last = conv(16, 24, 1)
        self.head = nn.Linear(24, 10)

    def middle(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        mixed = self.attention(tokens, tokens, tokens)[0].transpose(1, 2)
        return self.last(mixed.reshape(x.shape))


class Flattened(nn.Module):
    """As VGG ends: a linear layer reads every place of every channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.pool = conv(3, 16, 3, 2), nn.AdaptiveAvgPool2d(2)
        self.fc1, self.fc2 = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(self.pool(self.stem(x)).flatten(1))))


class Upsampled(Body):
    """A transposed convolution, PReLU, and a scale of its own."""

    def __init__(self):
        super().__init__(16, 24)
        self.up, self.act = nn.ConvTranspose2d(16, 24, 2, 2), nn.PReLU(24)
        self.gamma = nn.Parameter(torch.rand(24, 1, 1))
        self.last = conv(24, 24, 1)

    def middle(self, x):
        return self.last(self.act(self.up(x)) * self.gamma)


class Sigmoids(Body):
    """What is not zero at zero: the reader must lose its inputs, too."""

    def __init__(self):
        super().__init__(16, 16)
        self.a, self.b = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 16, 1)

    def middle(self, x):
        return self.b(torch.sigmoid(self.a(x)) + torch.cos(self.a(x)))


def made(kind, **options):
    """A network with seeded weights and statistics that were measured."""
    torch.manual_seed(0)
    network = kind(**options)
    for _ in range(3):
        network.train()(torch.randn(8, 3, SIDE, SIDE))
    return network.eval()


def inputs(n=4):
    return torch.randn(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def planned(network, method="channels", **options):
    options = {"size": SIDE, "ratio": 0.4} | options
    return prune.plan(network, method, **options)


def close(a, b):
    return (a - b).abs().max() <= 1e-5 * a.abs().max()
