"""The rows of benchmarks/pruning.py: what is pruned, by whom, how long it is trained.

A row makes a network from a trained one. All are trained by one loop, with the same steps, images,
order, augmentation and distillation from the original (`Schedule`), and have their BatchNorm
statistics measured again afterwards, on the same images.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from labutils import prune, surgery, train
from labutils.images import data

LARGE, SMALL, V2, RESNET = (
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "tv:mobilenet_v2",
    "tv:resnet18",
)
RATED_ON = 256  # images
TUNED_ON = 1600  # of val: which of Torch-Pruning's criteria is taken
SIDE, TRAINING_SIDE, SMALL_SIDE = 128, 96, 64
TRAINED_HERE = (RESNET,)  # from nothing, which takes hours at 128 px


@dataclass(frozen=True)
class Schedule:
    """How every row is trained.

    Attributes
    ----------
    steps, size, batch_size, learning_rate, images, distillation_weight
        As in `train.FineTuningConfig`: trained on smaller images, a step takes half of the time.
        Twice as many images as the original has seen, and little weight for the teacher, were
        chosen on val: what the original says of images that it knows by heart is of little use.
    judged
        The side of the images that the network is rated and measured on.
    """

    steps: int = 2000
    size: int = TRAINING_SIDE
    judged: int = SIDE
    batch_size: int = 48
    learning_rate: float = 1e-3
    images: int = 32_000
    distillation_weight: float = 0.2

    def settings(self) -> dict[str, Any]:
        """Return the arguments of `train.fine_tune`."""
        return {name: value for name, value in vars(self).items() if name != "judged"}

    def of(self, architecture: str) -> Schedule:
        """Return the schedule of an architecture: at 64 px where the original is trained here.

        One core takes 42 images of ResNet-18 a second through forward and backward at 128 px, and
        139 at 64 px.
        """
        if architecture not in TRAINED_HERE:
            return self
        return dataclasses.replace(self, size=SMALL_SIDE, judged=SMALL_SIDE)


@dataclass(frozen=True)
class Task:
    """What a row's maker works with.

    Attributes
    ----------
    network
        The original, which is not changed.
    image_set
        What it learned.
    schedule
        How long it is trained, and on which images it is judged.
    state
        Where the training is kept, to resume from.
    told
        Gets the seconds of the training.
    """

    network: nn.Module
    image_set: str
    schedule: Schedule
    state: train.Resumable
    told: Callable[[float], None]

    @property
    def side(self) -> int:
        """Of the images that it is judged on, in pixels."""
        return self.schedule.judged

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of one input."""
        return (1, 3, self.side, self.side)

    def train_(self, network: nn.Module) -> nn.Module:
        """Train a network as every row is trained."""
        done = train.fine_tune(
            network, teacher=self.network, image_set=self.image_set, state=self.state,
            **self.schedule.settings(),
        )  # fmt: skip
        self.measure_norms_(network)
        print(done, flush=True)
        self.told(done.seconds)
        return network

    def recovered(self, plan: prune.ChannelPlan) -> nn.Module:
        """Return the network without the channels of a plan, trained."""
        removal, done = prune.recovered(
            self.network, plan, input_size=self.side, teacher=self.network,
            image_set=self.image_set, state=self.state, **self.schedule.settings(),
        )  # fmt: skip
        self.measure_norms_(removal.network)
        print(done, flush=True)
        self.told(done.seconds)
        return removal.network

    def recover_(self, network: nn.Module, plan: prune.Plan) -> nn.Module:
        """Train a network while a plan's masks come into force."""
        done = prune.recover_(
            network, plan, teacher=self.network, image_set=self.image_set, state=self.state,
            **self.schedule.settings(),
        )  # fmt: skip
        self.measure_norms_(network)
        print(done, flush=True)
        self.told(done.seconds)
        return network

    def rated(self) -> tuple[np.ndarray, np.ndarray]:
        """Return training images as inputs, and their labels."""
        images = data.load("train", RATED_ON, self.side, self.image_set)
        return data.Preprocessing(self.side)(images.images), images.labels

    def taylor(self) -> prune.Criterion:
        """Return what rates our channels, on those images.

        At half of the MACs the large network, not trained and with its norms measured again, has
        70 % of 640 images of val right by it, and 52 % by L1.
        """
        return prune.taylor(self.network, *self.rated())

    def measure_norms_(self, network: nn.Module) -> None:
        """Measure the BatchNorm statistics of a network again."""
        images = data.load("train", RATED_ON, self.side, self.image_set)
        batches = images.batches(64, data.Preprocessing(self.side))
        prune.reestimate_(network, [x for x, _ in batches])


@dataclass(frozen=True)
class Row:
    """One network of the table.

    Attributes
    ----------
    name
        How `--rows` names it, without the architecture.
    architecture
        Of the original.
    kind
        ``control``, ``channels``, ``weights`` or ``surgery``.
    way
        By what, for the table.
    make
        Makes the network; None for the original.
    """

    name: str
    architecture: str
    kind: str
    way: str
    make: Callable[[Task], nn.Module] | None

    @property
    def id(self) -> str:
        """How `--rows` names it."""
        return f"{self.architecture.removeprefix('tv:')}/{self.name}"


# ------------------------------------------------------------ ours


def train_as_long(task: Task) -> nn.Module:
    """Train the original itself for as many steps."""
    return task.train_(copy.deepcopy(task.network))


def prune_to(macs: float) -> Callable[[Task], nn.Module]:
    """Return a maker of a network with a share of the MACs, widths by our search."""

    def make(task: Task) -> nn.Module:
        budget = prune.Budget(macs=macs)
        found = prune.search(task.network, budget, *task.rated(), criterion=task.taylor())
        print(found, flush=True)
        return task.recovered(found.plan)

    return make


def prune_channels(ratio: float) -> Callable[[Task], nn.Module]:
    """Return a maker of a network without a share of each group's channels, as in TI's table."""

    def make(task: Task) -> nn.Module:
        plan = prune.plan(task.network, ratio=ratio, criterion=task.taylor(), size=task.side)
        assert isinstance(plan, prune.ChannelPlan)
        return task.recovered(plan)

    return make


def mask_weights(method: str, **options: Any) -> Callable[[Task], nn.Module]:
    """Return a maker of a network with zeros among its weights."""

    def make(task: Task) -> nn.Module:
        student = copy.deepcopy(task.network)
        task.recover_(student, prune.plan(student, method, size=task.side, **options))
        prune.remove_(student)
        return student

    return make


def operate_lite(task: Task) -> nn.Module:
    """Apply TI's lite surgery."""
    student = copy.deepcopy(task.network)
    inputs = torch.from_numpy(task.rated()[0][:4])
    print(surgery.replace_(student, "lite", example_inputs=inputs), flush=True)
    return student


def train_lite(task: Task) -> nn.Module:
    """Apply TI's lite surgery, and train."""
    return task.train_(operate_lite(task))


# ------------------------------------------------------------ peers


PEER_CRITERIA: dict[str, tuple[str, dict[str, Any]]] = {
    "magnitude, p=1": ("GroupMagnitudeImportance", {"p": 1}),
    "magnitude, p=2": ("GroupMagnitudeImportance", {"p": 2}),
    "BNScale": ("BNScaleImportance", {}),
    "FPGM": ("FPGMImportance", {}),
    "LAMP": ("LAMPImportance", {}),
    "Random": ("RandomImportance", {}),
    "Taylor": ("GroupTaylorImportance", {}),
    "Hessian": ("GroupHessianImportance", {}),
}
"""Torch-Pruning's documented criteria: class and arguments.

Its OBD-C is not among them: in 1.6.1 it ends in a TypeError on networks without attention.
"""

PEER_SCOPES: dict[str, dict[str, bool]] = {
    "per layer": {},
    "global": {"global_pruning": True},
    "isomorphic": {"global_pruning": True, "isomorphic": True},
}
"""What Torch-Pruning compares channels with: those of the layer, of all, of layers alike."""

_HALVINGS = 8  # of the ratio, which is then known to 0.4 points


def prune_by_torch_pruning(macs: float) -> Callable[[Task], nn.Module]:
    """Return a maker by Torch-Pruning: same rounding, its best way on val, then trained."""

    def make(task: Task) -> nn.Module:
        slopes = gradients(task)
        ways = [(criterion, scope) for criterion in PEER_CRITERIA for scope in PEER_SCOPES]
        tuned = {way: cut_by_peer(task, macs, *way, slopes) for way in ways}
        images = data.load("val", TUNED_ON, task.side, task.image_set)
        reached = {
            way: float(np.mean(train.logits_of(smaller, images).argmax(1) == images.labels))
            for way, smaller in tuned.items()
        }
        best = max(reached, key=lambda way: reached[way])
        told = ", ".join(f"{' '.join(way)} {100 * top1:.1f}" for way, top1 in reached.items())
        print(f"Torch-Pruning on val, not trained, top-1 %: {told}; taken: {best}", flush=True)
        return task.train_(tuned[best])

    return make


def gradients(task: Task) -> dict[str, dict[str, torch.Tensor]]:
    """Return what Taylor and Hessian rate by: means of gradients, and of each image's squared.

    Torch-Pruning's own `accumulate_grad` keeps those of the last image alone.
    """
    network = copy.deepcopy(task.network).eval().requires_grad_(True)
    found = {
        way: {name: torch.zeros_like(p) for name, p in network.named_parameters()}
        for way in ("Taylor", "Hessian")
    }
    for image, label in zip(*map(torch.from_numpy, task.rated()), strict=True):
        network.zero_grad()
        nn.functional.cross_entropy(network(image[None]), label[None]).backward()
        for name, parameter in network.named_parameters():
            if parameter.grad is not None:
                found["Taylor"][name] += parameter.grad / RATED_ON
                found["Hessian"][name] += parameter.grad.square() / RATED_ON
    return found


def cut_by_peer(
    task: Task, macs: float, criterion: str, scope: str, slopes: dict[str, dict[str, torch.Tensor]]
) -> nn.Module:
    """Return what Torch-Pruning makes, its ratio halved until the MACs are kept to.

    BatchNorm is measured again, as ours has it: without, no criterion says anything on val.
    """
    low, high, best = 0.0, 0.95, None
    for _ in range(_HALVINGS):
        ratio = (low + high) / 2
        smaller = _cut(task, ratio, criterion, scope, slopes)
        if _macs(task, smaller) <= macs * _macs(task, task.network):
            best, high = smaller, ratio
        else:
            low = ratio
    network = best if best is not None else _cut(task, high, criterion, scope, slopes)
    task.measure_norms_(network)
    return network


def _cut(
    task: Task, ratio: float, criterion: str, scope: str, slopes: dict[str, dict[str, torch.Tensor]]
) -> nn.Module:
    import torch_pruning

    network = copy.deepcopy(task.network).eval().requires_grad_(True)
    for name, parameter in network.named_parameters():
        parameter.grad = slopes[criterion][name].clone() if criterion in slopes else None
    kind, options = PEER_CRITERIA[criterion]
    last = [m for m in network.modules() if isinstance(m, nn.Linear)][-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch_pruning.pruner.BasePruner(
            network, torch.zeros(task.shape), pruning_ratio=ratio, ignored_layers=[last],
            importance=getattr(torch_pruning.importance, kind)(**options), round_to=8,
            **PEER_SCOPES[scope],
        ).step()  # fmt: skip
    network.zero_grad(set_to_none=True)
    return network.requires_grad_(False)


def _macs(task: Task, network: nn.Module) -> int:
    return prune.cost.measured(network, task.shape).total()[0]


def mask_by_torch(share: float) -> Callable[[Task], nn.Module]:
    """Return a maker by torch.nn.utils.prune: global L1, one shot, then trained under the masks."""

    def make(task: Task) -> nn.Module:
        from torch.nn.utils import prune as official

        network = copy.deepcopy(task.network)
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        official.global_unstructured(
            [(layer, "weight") for layer in layers], official.L1Unstructured, amount=share
        )
        task.train_(network)
        for layer in layers:
            official.remove(layer, "weight")
        return network

    return make


def controls(architecture: str) -> list[Row]:
    """Return what the other rows of an architecture are compared with."""
    return [
        Row("original", architecture, "control", "the original", None),
        Row("long", architecture, "control", "the original, trained as long", train_as_long),
    ]


def rows() -> list[Row]:
    """Return every row of the table, the originals first."""
    made = controls(LARGE)
    for share in (0.7, 0.5):
        made += [
            Row(f"macs{100 * share:.0f}", LARGE, "channels", "ours", prune_to(share)),
            Row(f"tp{100 * share:.0f}", LARGE, "channels", "Torch-Pruning",
                prune_by_torch_pruning(share)),
        ]  # fmt: skip
    made += [
        Row("2of4", LARGE, "weights", "ours, 2:4", mask_weights("2:4")),
        Row("41of64", LARGE, "weights", "ours, 41:64", mask_weights("41:64")),
        Row("zeros80", LARGE, "weights", "ours, unstructured 80 %",
            mask_weights("unstructured", ratio=0.8, scope="global")),
        Row("torch80", LARGE, "weights", "torch.nn.utils.prune, 80 %", mask_by_torch(0.8)),
        Row("lite0", LARGE, "surgery", "lite surgery, not trained", operate_lite),
        Row("lite", LARGE, "surgery", "lite surgery", train_lite),
        Row("ti30", LARGE, "channels", "ours, 30 % of the channels", prune_channels(0.3)),
    ]  # fmt: skip
    for architecture in (SMALL, V2, RESNET):
        made += [
            *controls(architecture),
            Row("ti30", architecture, "channels", "ours, 30 % of the channels",
                prune_channels(0.3)),
            Row("41of64", architecture, "weights", "ours, 41:64", mask_weights("41:64")),
        ]  # fmt: skip
    return made
