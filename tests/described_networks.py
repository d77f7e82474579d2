"""Small networks that have every kind of layers between them, and what is asked of all."""

import contextlib
import sys

import torch
from torch import nn

from labutils import paths, representation
from labutils.models import fbnet

sys.path.insert(0, str(paths.ROOT / "benchmarks"))

import surgery_coverage

SIZE = 8
CLASSIFIERS = surgery_coverage.CLASSIFIERS


def randomized(network, seed=0):
    """A small network whose normalizations have nobody's defaults."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm):
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.3)
    return network.eval().requires_grad_(False)


@contextlib.contextmanager
def own_kinds():
    """Afterwards the registry of kinds is as it was."""
    before = dict(representation.KINDS)
    try:
        yield
    finally:
        representation.KINDS.clear()
        representation.KINDS.update(before)


def pictures(n, size):
    return torch.rand(n, 3, size, size, generator=torch.manual_seed(1))


def outputs(network, images):
    """What a network gives, which must be worth a comparison: it tells the pictures apart."""
    with torch.no_grad():
        found = network(images)
    largest = found.abs().max()
    assert largest > 1e-3 and (found - found.mean(0)).abs().max() > 0.01 * largest
    return found


def assert_equal(network, size, n=3):
    """A network and what its written description builds give the same bits."""
    description, weights = representation.import_torch(network, size)
    again = representation.read(description.to_yaml())
    assert again == description
    images = pictures(n, size)
    outputs(network, images)
    assert representation.bit_equal(representation.emit_torch(again, weights), network, images)
    return description, weights


def classifier(name):
    """One of the 39 with conditioned weights, and the side of its pictures."""
    network = surgery_coverage.built(name)[0]
    for weights in network.parameters():
        if not weights.any():  # a head that begins at zero makes all logits zero
            nn.init.normal_(weights, 0, 0.02)
    return network, surgery_coverage.OWN_SIZE.get(name, surgery_coverage.SIZE)


class Block(nn.Module):
    """What mobile networks are made of, in one small network."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, (3, 5), 2, (1, 2), bias=False)
        self.norm = nn.BatchNorm2d(8, eps=1e-3)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1),
            nn.Hardsigmoid(),
        )  # fmt: skip
        self.shuffle = fbnet.ChannelShuffle(2)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16 * 2 * 2, 5)

    def forward(self, x):
        x = nn.functional.hardswish(self.norm(self.stem(x)))
        x = self.shuffle(x * self.gate(x)) + 1.0
        left, right = x.chunk(2, dim=1)
        x = torch.cat([x, nn.functional.relu6(left), torch.sigmoid(right)], 1)
        x = nn.functional.max_pool2d(x, 3, 2, 1)[:, :, :, :2]
        return self.head(self.drop(x).flatten(1))


class Part(nn.Module):
    """A function of the module and the pictures, with what it needs.

    Parameters
    ----------
    function
        Called with the module and pictures.
    **parts
        Modules, parameters, and tensors, which become buffers.
    """

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)

    def forward(self, x):
        return self.function(self, x)


class Odd(nn.Module):
    """A network with an operator that no kind stands for."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Mish()

    def forward(self, x):
        return self.inner(x).flatten(1)


F = nn.functional
FIRST_TO_LAST, LAST_TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def _parameter(*shape):
    return nn.Parameter(torch.rand(shape, generator=torch.manual_seed(2)))


def _convnext(m, x):
    y = m.wide(m.norm(m.deep(x).permute(FIRST_TO_LAST)))
    return x + m.scale * m.narrow(F.gelu(y)).permute(LAST_TO_FIRST)


def _attention(m, x):
    """A class token, positions, several heads, and the token's result."""
    patches = m.embed(x).flatten(2).transpose(1, 2)
    tokens = torch.cat([m.token.expand(len(x), -1, -1), patches], 1) + m.places
    heads = m.qkv(tokens).reshape(len(x), 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    query, key, value = heads.unbind(0)
    attended = F.scaled_dot_product_attention(query, key, value, scale=0.4)
    weighted = (F.normalize(query, dim=-1) @ key.transpose(-2, -1)).softmax(-1) @ value
    both = (attended.contiguous() - weighted / 2).transpose(1, 2).reshape(len(x), 5, 8)
    return (tokens + both)[:, 0]


def _windows(m, x):
    """Shifted windows with a bias by relative position, as of Swin."""
    x = F.pad(x.permute(FIRST_TO_LAST), (0, 0, 0, 1, 0, 1))[:, :8, :8].roll((-2, -2), (1, 2))
    windows = x.view(len(x), 2, 4, 2, 4, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, 16, 3)
    bias = m.table[m.index.view(-1)].view(16, 16, 1).permute(2, 0, 1)
    fit = (windows @ windows.transpose(1, 2) + bias).softmax(-1) @ windows
    return fit.view(len(x), 2, 2, 4, 4, 3)[:, :, 0, ::2].mean((1, 2, 3))


def _positions(m, x):
    """What is computed for all pictures alike: a constant."""
    places = torch.ones(len(x), 8, 8).cumsum(1) / torch.arange(1.0, 9.0).sqrt()
    return x * places.unsqueeze(1).contiguous()


def _poolings(m, x):
    counted = F.avg_pool2d(x, 3, 2, 1, count_include_pad=False) - F.avg_pool2d(x, 3, 2, 1)
    return torch.cat([counted, F.max_pool2d(x, 2, 2, ceil_mode=True), F.avg_pool2d(x, 2)], 1)


PARTS = {
    "convnext": Part(
        _convnext, deep=nn.Conv2d(3, 3, 3, padding="same", groups=3), norm=nn.LayerNorm(3),
        wide=nn.Linear(3, 8), narrow=nn.Linear(8, 3), scale=_parameter(3, 1, 1),
    ),
    "attention": Part(
        _attention, token=_parameter(1, 1, 8), places=_parameter(1, 5, 8),
        embed=nn.Conv2d(3, 8, 4, 4), qkv=nn.Linear(8, 24),
    ),
    "windows": Part(
        _windows, table=_parameter(5, 1),
        index=torch.randint(5, (16, 16), generator=torch.manual_seed(3)),
    ),
    "positions": Part(_positions),
    "poolings": Part(_poolings),
    "padded alike": nn.Conv2d(3, 4, (3, 5), padding="same", dilation=2),
    "not padded": nn.Conv2d(3, 4, 3, padding="valid"),
    "norms": nn.Sequential(nn.GroupNorm(3, 3), nn.LayerNorm(8), nn.SiLU(), nn.GELU("tanh")),
    "vectors": nn.Sequential(nn.Flatten(2), nn.BatchNorm1d(3), nn.Flatten(1), nn.Linear(192, 5),
                             nn.BatchNorm1d(5)),
    "as wide as its channels": nn.Sequential(nn.Conv2d(3, 8, 1), nn.Linear(8, 8)),
    "means": Part(lambda m, x: x.mean(1) + x.mean(2).mean(1, keepdim=True)),
    "steps": Part(lambda m, x: torch.cat([x[:, 1:, ::2], x.narrow(1, 0, 2)[..., 1::2, :]], 1)),
    "a buffer": Part(lambda m, x: (x - m.shift) / m.scale, shift=torch.rand(1, 3, 1, 1),
                     scale=torch.rand(8) + 1),
    "in place": Part(lambda m, x: m.act(m.conv(x)) + x, conv=nn.Conv2d(3, 3, 1),
                     act=nn.ReLU(inplace=True)),
    "called twice": Part(lambda m, x: m.conv(m.conv(x)), conv=nn.Conv2d(3, 3, 1)),
    "nothing": nn.Identity(),
}  # fmt: skip
"""Networks for pictures of `SIZE`, by what they are about."""
