"""Smaller networks that were trained: channels, zeros, lite surgery, peers, everything at once.

    python benchmarks/pruning.py --list                 # the rows, and which are made already
    python benchmarks/pruning.py                        # what is recorded: hours, resumable
    python benchmarks/pruning.py --rows mobilenet_v3_large/2of4 --steps 9 --images 224 -o FOLDER

On Marked Things, in ONNX Runtime, on the same images of the split. Points are paired, against the
better of the original and the original trained as long. Every row is trained by one loop, with the
same steps, images, order, augmentation, and distillation from the original. Latency is one image of
224 px, one thread, in turns. The networks are kept by the content of all that they depend on (see
content_cache.py), trainings resume where they were stopped; `--fresh` forgets them. A network that
is not shipped for the set (ResNet-18) is trained first.

Writes benchmarks/results/pruning.csv and .txt; some of the rows need `-o FOLDER`.
"""

from __future__ import annotations

import argparse
import copy
import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import content_cache
import numpy as np
import pruning_rows
import results
import torch
from pruning_rows import SIDE, Row, Schedule, Task

from labutils import compare, export, metrics, paths, prune, runtime, surgery, tabular, train
from labutils.errors import LabError, ParityError
from labutils.images import data
from labutils.lab import recorded
from labutils.measure import complexity
from labutils.models import architectures, zoo

PROGRAM = "pruning"
PREPROCESSING = data.Preprocessing(SIDE)
IMAGES, GATE_IMAGES, TURNS, LATENCY_SIDE = 20_000, 32, 15, 224
BASE = Schedule(steps=6000, learning_rate=3e-3)  # of a network that is not shipped
EVERYTHING = ("macs=0.6,megabytes=1.7,points=2", "macs=0.5,megabytes=1.5,points=2")
PUBLISHED = (
    "TI publishes figures of ImageNet, which are not comparable with these: ResNet-50, "
    "30 % of the channels: 76.13 to 74.07 %, 49 % of the operations left; 41:64: ResNet-50 76.13 "
    "to 76.02 %, MobileNetV2 71.88 to 70.37 %."
)


@dataclasses.dataclass(frozen=True)
class Measured:
    """A row of the table."""

    row: str
    kind: str
    way: str
    top1: float
    hits: int
    n: int
    points: float
    low: float
    high: float
    macs: float
    parameters: float
    zeros: float
    megabytes: float
    latency: float
    minutes: float
    gate: str


class Bench:
    """Makes the networks, each once, and measures them on the same images."""

    def __init__(self, image_set: str, split: str, images: int, schedule: Schedule) -> None:
        self.image_set, self.split, self.images = image_set, split, images
        self.schedule = schedule
        self.folder = content_cache.folder(PROGRAM)

    def place(self, row: Row, what: str = "", suffix: str = ".safetensors") -> Path:
        """Return where a row's network is kept."""
        base = dataclasses.asdict(BASE) if self.shipped(row.architecture) is None else None
        key = content_cache.key(
            row=row.id, schedule=dataclasses.asdict(self.schedule), set=self.image_set, base=base,
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
        settings = BASE.settings() | {"steps": min(BASE.steps, 4 * self.schedule.steps)}
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
            task = Task(original, self.image_set, self.schedule, state, seconds.append)
            network = row.make(task)
        paths.write_text(place.with_suffix(".seconds"), f"{sum(seconds):.0f}")
        wide = data.Preprocessing(LATENCY_SIDE)
        export.to_onnx(network.eval(), place.with_suffix(".wide.onnx"), preprocessing=wide)
        export.to_onnx(network.eval(), place, preprocessing=PREPROCESSING)
        state.remove()
        return place

    def answers(self, file: Path) -> np.ndarray:
        """Return the file's logits, kept batch by batch."""
        images = data.load(self.split, self.images, SIDE, self.image_set)
        versions = paths.versions("onnxruntime")
        with content_cache.Remembered(
            file, lambda: runtime.connect(file), PROGRAM, "ort", versions
        ) as runner:
            return np.concatenate([runner.run(x) for x, _ in images.batches(64, PREPROCESSING)])

    def measure(self, row: Row) -> Measured:
        """Return a row's figures."""
        rows = {r.name: r for r in pruning_rows.rows() if r.architecture == row.architecture}
        labels = np.arange(self.images) % len(data.classes_of(self.image_set))
        own = metrics.correct(self.answers(self.file(row)), labels)
        whole = self.file(rows["original"])
        right = [metrics.correct(self.answers(whole), labels)]
        if self.place(rows["long"], suffix=".onnx").is_file():  # made by its own row, before
            right.append(metrics.correct(self.answers(self.file(rows["long"])), labels))
        reference = max(right, key=lambda r: r.mean())
        points = metrics.paired_difference(own, reference)
        file = self.file(row)
        counted, before = complexity.count(file), complexity.count(whole)
        return Measured(
            row.id, row.kind, row.way, float(own.mean()), int(own.sum()), len(own),
            points.value, *points.interval, counted.macs / before.macs,
            counted.parameters / before.parameters, zeros_share(file),
            file.stat().st_size / 1e6, latency_ratio(file, whole),
            int(file.with_suffix(".seconds").read_text("utf-8")) / 60,
            gate_word(file, self.image_set),
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


def gate_word(file: Path, image_set: str) -> str:
    """Return whether the network's float DLC passes the gate on the HTP simulator (fp16)."""
    from labutils import dlc

    images = data.load("val", GATE_IMAGES, SIDE, image_set)
    with paths.scratch() as folder, runtime.connect(file) as reference:
        gate = dlc.Gate(reference, PREPROCESSING(images.images))
        try:
            report = dlc.convert(file, "qnn", folder / "net.dlc", gate).gate
        except ParityError as error:
            return f"FAILED: {str(error).splitlines()[0][:80]}"
        except LabError as error:
            return f"not written: {str(error).splitlines()[0][:80]}"
    assert isinstance(report, compare.GateReport) and report.parity is not None
    return f"{report.parity.cosine_min:.5f}"


def everything_at_once(bench: Bench, budget: str) -> Measured:
    """Return the figures of `labutils compress` for the large network."""
    from labutils.pipeline import compression
    from labutils.pipeline.settings import Listener

    wanted = compression.CompressionBudget.parse(budget)
    plan = compression.CompressionPlan(
        pruning_rows.LARGE, wanted, bench.image_set, image_set=bench.image_set
    )
    plan = plan.with_steps(bench.schedule.steps)
    evaluation = dataclasses.replace(plan.evaluation, images=bench.images)
    plan = dataclasses.replace(plan, evaluation=evaluation)
    model = zoo.load(plan.model, plan.weights)
    key = content_cache.key(budget=budget, plan=plan.to_yaml())
    folder = bench.folder / f"compress_{key}"
    made = compression.compress(plan, folder, model, bench.image_set, Listener(print))
    print(made, flush=True)
    row = made[made.result or made.rows[-1].name]
    dlc = f"{made.artifact.stat().st_size / 1e6:.2f} MB" if made.artifact else "none"
    return Measured(
        f"everything/{budget}", "everything", "surgery, pruning, mixed precision, QAT (val)",
        row.top1.value, row.top1.hits, row.n, row.points.value, *row.points.interval, row.macs,
        row.parameters, 0.0, row.megabytes, made["pruned, trained"].latency or 0.0, 0.0,
        f"{row.gate}; DLC {dlc}",
    )  # fmt: skip


def main() -> None:
    """Make what is missing, measure, and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = [row.id for row in pruning_rows.rows()] + [f"everything/{b}" for b in EVERYTHING]
    parser.add_argument("--list", action="store_true", help="say which rows there are, and stop")
    parser.add_argument("--rows", nargs="+", default=known, choices=known, metavar="ROW")
    parser.add_argument("--set", dest="image_set", choices=[*data.DRAWN], default="marked-things")
    parser.add_argument("--split", choices=("val", "test"), default="test")
    parser.add_argument("--steps", type=int, default=Schedule.steps)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--training", type=int, default=Schedule.images, help="training images")
    parser.add_argument("--fresh", action="store_true", help="forget what is kept, train again")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args()
    bench = Bench(
        chosen.image_set,
        chosen.split,
        chosen.images,
        Schedule(steps=chosen.steps, images=chosen.training),
    )
    if chosen.list:
        print(listed(bench))
        return
    asked = (chosen.rows, chosen.image_set, chosen.split, chosen.steps, chosen.images)
    usual = (known, "marked-things", "test", Schedule.steps, IMAGES)
    whole = asked == usual and chosen.training == Schedule.images
    place = results.place(chosen.output, whole)
    if place is None:
        parser.error("pass -o FOLDER: some of the rows do not replace the recorded results")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    by_id = {row.id: row for row in pruning_rows.rows()}
    for name in chosen.rows:
        if name in by_id:
            bench.file(by_id[name])
    made = [
        bench.measure(by_id[name]) if name in by_id
        else everything_at_once(bench, name.partition("/")[2])
        for name in chosen.rows
    ]  # fmt: skip
    write(made, chosen, place)


def listed(bench: Bench) -> str:
    """Return the rows as a table, with what is made already."""
    rows = [
        (row.id, row.kind, row.way, "made" if bench.place(row, suffix=".onnx").is_file() else "-")
        for row in pruning_rows.rows()
    ]
    rows += [
        (f"everything/{budget}", "everything", "labutils compress", "-") for budget in EVERYTHING
    ]
    notes = [f"{bench.schedule.steps} steps each, on {bench.image_set}; {bench.images} images."]
    return tabular.text("Rows", ("row", "kind", "by", ""), rows, notes)


def write(rows: list[Measured], chosen: Any, folder: Path) -> None:
    """Write the table as CSV and as text."""
    images = f"split {chosen.split} of {chosen.image_set} (drawn), {rows[0].n} images at {SIDE} px"
    head = results.head(
        results.command(f"{PROGRAM}.py"), images, "torch", "torchvision", "torch-pruning",
        "onnxruntime", "onnxruntime-qnn", developed=chosen.split == "val",
    )  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in dataclasses.fields(Measured)],
                            lineterminator="\n")  # fmt: skip
    writer.writeheader()
    writer.writerows(dataclasses.asdict(row) for row in rows)
    paths.write_text(folder / f"{PROGRAM}.csv", results.commented(head) + text.getvalue())
    columns = ("row", "by", "top-1 %", "points [95 %]", "MACs", "zeros", "MB", "time",
               "minutes", "gate")  # fmt: skip
    cells = [
        (r.row, r.way, f"{100 * r.top1:.2f}", f"{r.points:+.2f} [{r.low:+.2f}, {r.high:+.2f}]",
         f"{100 * r.macs:.1f} %", f"{100 * r.zeros:.0f} %", f"{r.megabytes:.2f}",
         f"{r.latency:.2f}", f"{r.minutes:.0f}", r.gate)
        for r in rows
    ]  # fmt: skip
    notes = [
        "points: against the better of the original and the original trained as long, paired.",
        f"time: at {LATENCY_SIDE} px, one thread, median of {TURNS} turns on "
        f"{recorded.machine()}, as a share of the original's. minutes: of training, on one core. "
        "gate: lowest cosine of the float DLC on the HTP simulator.",
        PUBLISHED,
    ]
    title = f"Pruned networks on {chosen.image_set}, {chosen.steps} steps each"
    table = tabular.text(title, columns, cells, notes)
    paths.write_text(folder / f"{PROGRAM}.txt", "\n".join([*head, "", table]) + "\n")
    print(table)


if __name__ == "__main__":
    main()
