"""Smaller networks that were trained: channels, zeros, lite surgery, peers, everything at once.

    python benchmarks/pruning.py --list                 # the rows, and which are made already
    python benchmarks/pruning.py                        # what is recorded: hours, resumable
    python benchmarks/pruning.py --rows mobilenet_v3_large/2of4 --steps 9 --images 224 -o FOLDER

On Marked Things, in ONNX Runtime, on the same images of the split. Points are paired, against the
better of the original and the original trained as long, which are made if they are missing. Every
row is trained by one loop, with the same steps, images, order, augmentation, and distillation from
the original. Latency is one image of 224 px, one thread, in turns. A network that is not shipped
for the set (ResNet-18) is trained first, and all of its rows are made at 64 px.

The networks are kept by the content of all that they depend on (see content_cache.py), trainings
resume where they were stopped. What was measured of a network is kept on its card in
benchmarks/results/pruned/, with which images it names rightly: a row that has a card is not made
again, and is compared on the same images. `--fresh` forgets the networks, and makes the rows again.

Writes benchmarks/results/pruning.csv and .txt from all cards; a trial needs `-o FOLDER`.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import content_cache
import numpy as np
import pruning_rows
import results
import torch
from pruning_cards import Card, packed, read
from pruning_rows import SIDE, Row, Schedule, Task
from pruning_tables import PACKAGES, PROGRAM, Measured, shape_of, write

from labutils import (
    compare,
    export,
    metrics,
    paths,
    prune,
    quantize,
    runtime,
    surgery,
    tabular,
    train,
)
from labutils.errors import LabError, ParityError
from labutils.images import data
from labutils.measure import complexity
from labutils.models import architectures, zoo
from labutils.pipeline import compression
from labutils.pipeline.settings import Listener

IMAGES, GATE_IMAGES, TURNS, LATENCY_SIDE = 20_000, 32, 15, 224
BASE = Schedule(steps=6000, learning_rate=3e-3)  # of a network that is not shipped
EVERYTHING = ("macs=0.6,megabytes=1.7,points=2", "macs=0.5,megabytes=1.5,points=2")
BY_ID = {row.id: row for row in pruning_rows.rows()}
KNOWN = [*BY_ID, *(f"everything/{budget}" for budget in EVERYTHING)]


class Bench:
    """Makes the networks, each once, and measures them on the same images."""

    def __init__(self, image_set: str, split: str, images: int, schedule: Schedule) -> None:
        self.image_set, self.split, self.images = image_set, split, images
        self.schedule = schedule
        self.folder = content_cache.folder(PROGRAM)

    def schedule_of(self, row: Row) -> Schedule:
        """Return how a row is trained; its images have that side."""
        return self.schedule.of(row.architecture)

    def preprocessing(self, row: Row) -> data.Preprocessing:
        """Return what a row's images go through."""
        return data.Preprocessing(self.schedule_of(row).judged)

    def place(self, row: Row, what: str = "", suffix: str = ".safetensors") -> Path:
        """Return where a row's network is kept."""
        schedule = dataclasses.asdict(self.schedule_of(row))
        base = dataclasses.asdict(BASE) if self.shipped(row.architecture) is None else None
        key = content_cache.key(
            row=row.id, schedule=schedule, set=self.image_set, base=base,
            checkpoint=self.shipped(row.architecture), images=content_cache.drawn(), what=what,
            code=content_cache.code(prune, train, surgery, Path(pruning_rows.__file__)),
            versions=paths.versions("torch", "torchvision", "torch-pruning"),
        )  # fmt: skip
        return self.folder / f"{row.id.replace('/', '_')}{what}_{key}{suffix}"

    def shipped(self, architecture: str) -> str | None:
        """Return the digest of the checkpoint that learned the set, None without one."""
        name = data.checkpoint_name(architecture.removeprefix("tv:"), self.image_set)
        file = paths.CHECKPOINTS / f"{name}.safetensors"
        return paths.sha256(file) if file.is_file() else None

    def original(self, row: Row) -> torch.nn.Module:
        """Return the trained network; one that is not shipped is trained once."""
        if self.shipped(row.architecture) is not None:
            return zoo.load(row.architecture, self.image_set).module
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            classes = len(data.classes_of(self.image_set))
            network = architectures.find(row.architecture).build(classes).eval()
        place = self.place(dataclasses.replace(row, name="base"))
        if place.is_file():
            network.load_state_dict(torch.load(place.with_suffix(".pt"), weights_only=True))
            return network
        state = train.Resumable(place.with_suffix(".resume.pt"))
        settings = BASE.of(row.architecture).settings() | {
            "steps": min(BASE.steps, 4 * self.schedule.steps), "images": self.schedule.images,
        }  # fmt: skip
        print(train.fine_tune(network, image_set=self.image_set, state=state, **settings))
        torch.save(network.state_dict(), place.with_suffix(".pt"))
        place.touch()
        state.remove()
        return network

    def file(self, row: Row) -> Path:
        """Return a row's network as ONNX, made when it is missing; also at the side of latency."""
        place = self.place(row, suffix=".onnx")
        if place.is_file():
            return place
        print(f"{row.id} ...", flush=True)
        original = self.original(row)
        state = train.Resumable(place.with_suffix(".resume.pt"))
        network, seconds = copy.deepcopy(original), []
        if row.make is not None:
            schedule = self.schedule_of(row)
            task = Task(original, self.image_set, schedule, state, seconds.append)
            network = row.make(task)
        facts = {"seconds": round(sum(seconds)), **shape_of(network, original)}
        paths.write_text(place.with_suffix(".json"), json.dumps(facts))
        wide = data.Preprocessing(LATENCY_SIDE)
        export.to_onnx(network.eval(), place.with_suffix(".wide.onnx"), preprocessing=wide)
        export.to_onnx(network.eval(), place, preprocessing=self.preprocessing(row))
        state.remove()
        return place

    def answers(self, row: Row) -> np.ndarray:
        """Return the logits of a row's file, kept batch by batch."""
        file, prepared = self.file(row), self.preprocessing(row)
        images = data.load(self.split, self.images, prepared.size, self.image_set)
        versions = paths.versions("onnxruntime")
        with content_cache.Remembered(
            file, lambda: runtime.connect(file), PROGRAM, "ort", versions
        ) as runner:
            return np.concatenate([runner.run(x) for x, _ in images.batches(64, prepared)])

    def facts(self, row: Row) -> dict[str, Any]:
        """Return what a card of a row must be of."""
        return {
            "by": row.way, "kind": row.kind, "architecture": row.architecture,
            "image_set": self.image_set, "split": self.split, "images": self.images,
            "schedule": dataclasses.asdict(self.schedule_of(row)),
            "seed": train.FineTuningConfig().seed, "checkpoint": self.shipped(row.architecture),
        }  # fmt: skip

    def card(self, row: Row, made: list[str]) -> Card:
        """Return a row's card, measured; its network is made if it was not yet."""
        original, _ = pruning_rows.controls(row.architecture)
        labels = np.arange(self.images) % len(data.classes_of(self.image_set))
        answers, before = self.answers(row), self.answers(original)
        file, whole = self.file(row), self.file(original)
        counted, there = complexity.count(file), complexity.count(whole)
        found = json.loads(file.with_suffix(".json").read_text("utf-8"))
        seconds = found.pop("seconds")
        figures = {
            "agreement": metrics.agreement(answers, before).value,
            "macs": counted.macs / there.macs, "parameters": counted.parameters / there.parameters,
            "zeros": zeros_share(file), "megabytes": file.stat().st_size / 1e6,
            "latency": latency_ratio(file, whole), "minutes": seconds / 60,
            "gate": gate_word(file, self.image_set, self.preprocessing(row)),
        }  # fmt: skip
        digests = {"sha256": paths.sha256(file), "original": paths.sha256(whole)}
        right = packed(metrics.correct(answers, labels))
        return Card(row.id, self.facts(row), found | digests, figures, right, made)


def compared(cards: Mapping[str, Card], row: Row) -> Measured:
    """Return a line of the table: a row beside the better of its controls."""
    card = cards[row.id]
    controls = [cards[control.id].correct() for control in pruning_rows.controls(row.architecture)]
    own = card.correct()
    points = metrics.paired_difference(own, max(controls, key=lambda right: right.mean()))
    return Measured(
        row.id, row.kind, row.way, card.facts["schedule"]["judged"], float(own.mean()),
        int(own.sum()), len(own), points.value, *points.interval, **card.figures,
    )  # fmt: skip


def zeros_share(file: Path) -> float:
    """Return the zeros among the weights of convolutions and linear layers."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    read = {n.input[1] for n in graph.node if n.op_type in ("Conv", "Gemm", "MatMul")}
    arrays = [numpy_helper.to_array(t) for t in graph.initializer if t.name in read]
    return float(sum((a == 0).sum() for a in arrays) / max(1, sum(a.size for a in arrays)))


def latency_ratio(file: Path, whole: Path) -> float:
    """Return a network's time at 224 px as a share of the original's."""
    wide = {name: f.with_suffix(".wide.onnx") for name, f in (("own", file), ("whole", whole))}
    image = np.random.default_rng(0).normal(size=(1, 3, LATENCY_SIDE, LATENCY_SIDE))
    runners = {name: runtime.connect(f, threads=1) for name, f in wide.items()}
    seconds = runtime.seconds_in_turns(runners, image.astype(np.float32), TURNS)
    return seconds["own"] / seconds["whole"]


def gate_word(file: Path, image_set: str, prepared: data.Preprocessing) -> str:
    """Return whether the network's float DLC passes the gate on the HTP simulator (fp16)."""
    from labutils import dlc

    images = data.load("val", GATE_IMAGES, prepared.size, image_set)
    with paths.scratch() as folder, runtime.connect(file) as reference:
        gate = dlc.Gate(reference, prepared(images.images))
        try:
            report = dlc.convert(file, "qnn", folder / "net.dlc", gate).gate
        except ParityError as error:
            return f"FAILED: {str(error).splitlines()[0][:80]}"
        except LabError as error:
            return f"not written: {str(error).splitlines()[0][:80]}"
    assert isinstance(report, compare.GateReport) and report.parity is not None
    return f"{report.parity.cosine_min:.5f}"


def plan_of(bench: Bench, budget: str) -> compression.CompressionPlan:
    """Return what `labutils compress` is asked for, trained as the rows are."""
    wanted = compression.CompressionBudget.parse(budget)
    plan = compression.CompressionPlan(
        pruning_rows.LARGE, wanted, bench.image_set, image_set=bench.image_set
    ).with_steps(bench.schedule.steps)
    evaluation = dataclasses.replace(plan.evaluation, images=bench.images, part=bench.split)
    training = plan.pruning.training.replaced(**bench.schedule.settings())
    pruning = dataclasses.replace(plan.pruning, training=training)
    return dataclasses.replace(plan, evaluation=evaluation, pruning=pruning)


def everything_at_once(bench: Bench, budget: str, made_by: list[str]) -> Card:
    """Return the card of what `labutils compress` makes of the large network."""
    plan = plan_of(bench, budget)
    model = zoo.load(plan.model, plan.weights)
    code = content_cache.code(prune, train, surgery, quantize, compression)
    key = content_cache.key(budget=budget, plan=plan.to_yaml(), code=code)
    folder = bench.folder / f"compress_{key}"
    made = compression.compress(plan, folder, model, bench.image_set, Listener(print))
    print(made, flush=True)
    row = made[made.result or made.rows[-1].name]
    dlc = f"{made.artifact.stat().st_size / 1e6:.2f} MB" if made.artifact else "none"
    measured = Measured(
        f"everything/{budget}", "everything", "surgery, pruning, mixed precision, QAT", SIDE,
        row.top1.value, row.top1.hits, row.n, row.points.value, *row.points.interval,
        row.agreement.value, row.macs, row.parameters, 0.0, row.megabytes,
        made["pruned, trained"].latency or 0.0, 0.0, f"{row.gate}; DLC {dlc}",
    )  # fmt: skip
    found = {"plan": plan.to_dict(), "ladder": made.to_dict()}
    facts = facts_of_everything(bench, budget)
    return Card(measured.row, facts, found, dataclasses.asdict(measured), None, made_by)


def facts_of_everything(bench: Bench, budget: str) -> dict[str, Any]:
    """Return what the card of a compression must be of."""
    plan = plan_of(bench, budget)
    return {"plan": plan.to_dict(), "checkpoint": bench.shipped(plan.model)}


def main() -> None:
    """Make and measure what no card is of, and write the tables of all that there are."""
    chosen = command_line().parse_args()
    schedule = Schedule(steps=chosen.steps, images=chosen.training)
    bench = Bench(chosen.image_set, chosen.split, chosen.images, schedule)
    asked = (chosen.image_set, chosen.split, chosen.steps, chosen.images, chosen.training)
    usual = ("marked-things", "test", Schedule.steps, IMAGES, Schedule.images)
    place = results.place(chosen.output, asked == usual)
    if chosen.list:
        print(listed(bench, place or results.FOLDER))
        return
    if place is None:
        command_line().error("pass -o FOLDER: a trial does not replace the recorded results")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    images = f"split {chosen.split} of {chosen.image_set} (drawn), {chosen.images} images"
    head = results.head(
        results.command(f"{PROGRAM}.py"), images, *PACKAGES, developed=chosen.split == "val"
    )
    for name in with_controls(chosen.rows):
        if kept(bench, place, name) is None or chosen.fresh:
            row, budget = BY_ID.get(name), name.partition("/")[2]
            made = bench.card(row, head) if row else everything_at_once(bench, budget, head)
            made.write(place)
    found = {name: kept(bench, place, name) for name in KNOWN}
    cards = {name: card for name, card in found.items() if card is not None}
    write([measured(cards, name) for name in cards], head, chosen, place)


def kept(bench: Bench, place: Path, name: str) -> Card | None:
    """Return the card of a row that is kept in a folder of results, if it is of that network."""
    row = BY_ID.get(name)
    facts = bench.facts(row) if row else facts_of_everything(bench, name.partition("/")[2])
    return read(place, name, facts)


def measured(cards: Mapping[str, Card], name: str) -> Measured:
    """Return a line of the table."""
    row = BY_ID.get(name)
    return compared(cards, row) if row else Measured(**cards[name].figures)


def with_controls(names: Sequence[str]) -> list[str]:
    """Return rows with those that they are compared with, in the order of the table."""
    asked = set(names)
    for name in names:
        if name in BY_ID:
            asked |= {row.id for row in pruning_rows.controls(BY_ID[name].architecture)}
    return [name for name in KNOWN if name in asked]


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="say which rows there are, and stop")
    parser.add_argument("--rows", nargs="+", default=KNOWN, choices=KNOWN, metavar="ROW")
    parser.add_argument("--set", dest="image_set", choices=[*data.DRAWN], default="marked-things")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--steps", type=int, default=Schedule.steps)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--training", type=int, default=Schedule.images, help="training images")
    parser.add_argument("--fresh", action="store_true", help="forget what is kept, train again")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    return parser


def listed(bench: Bench, place: Path) -> str:
    """Return the rows as a table, with what is made already."""
    rows = []
    for name in KNOWN:
        row = BY_ID.get(name)
        kind, way = (row.kind, row.way) if row else ("everything", "labutils compress")
        made = row is not None and bench.place(row, suffix=".onnx").is_file()
        rows.append((name, kind, way, "made" if made else "-", _word(kept(bench, place, name))))
    notes = [f"{bench.schedule.steps} steps each, on {bench.image_set}; {bench.images} images."]
    return tabular.text("Rows", ("row", "kind", "by", "network", "measured"), rows, notes)


def _word(card: Card | None) -> str:
    return "-" if card is None else card.made[0].split()[1]


if __name__ == "__main__":
    main()
