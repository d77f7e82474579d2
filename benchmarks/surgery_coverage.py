"""Which networks surgery brings to which targets: 39 classifiers, a detector and a segmenter.

    python benchmarks/surgery_coverage.py [--models NAME ... -o FOLDER] [--fresh]

Each network is built with random weights (seed 0) at a small size, exported, checked against each
target's operator table, repaired with exact rules, checked again, compared with itself in ONNX
Runtime, and, for the targets that the lab converts for, written strictly as a DLC and run through
the parity gate on the HTP simulator (fp16). A failure is a row with its reason. Every network has
its own process, and what is done is kept by the content of the code, the tables and the versions
that it depends on: a run that was stopped resumes, and `--fresh` starts over.

Random weights are made such that float16 can hold them, as in a trained network: see
labutils/models/random_weights.py, which `--weights random` uses as well. BatchNorms have a shift of
0.5, the gates of squeeze-excitations begin open (bias 2), layer scales are 1, and BatchNorm
statistics are measured on Things-16. With that, noise of 1e-3 in every convolution costs
mobilenet_v2 a cosine of 3.4e-04 instead of 5.7e-03, and efficientnet_b0 6.0e-05 instead of 2.0e-03
(benchmarks/conditioning.py). The lab's gate is not loosened.

Writes benchmarks/results/surgery_coverage.csv and .txt.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import content_cache
import numpy as np
import results

import labutils
from labutils import dlc, export, paths, pipeline, runtime, surgery, tabular, targets
from labutils.errors import ConvertError, LabError, ParityError, SurgeryError
from labutils.images import data
from labutils.models import architectures, random_weights, zoo
from labutils.onnxfile import graph

SIZE, TIMEOUT = 64, 900
OWN_SIZE = {  # pixels, where the architecture asks for it
    "timm:efficientformer_l1": 224,
    "det:ssdlite320_mobilenet_v3_large": 128,
    "seg:lraspp_mobilenet_v3_large": 128,
}
SIZE_OPTION = {
    "tv:vit_b_16": "image_size",
    "timm:deit_tiny_patch16_224": "img_size",
    "timm:vit_tiny_patch16_224": "img_size",
    "timm:swin_tiny_patch4_window7_224": "img_size",
    "timm:levit_128s": "img_size",
}
TV = (
    "mobilenet_v2 mobilenet_v3_small mobilenet_v3_large resnet50 efficientnet_b0 convnext_tiny "
    "shufflenet_v2_x1_0 mnasnet1_0 regnet_y_400mf squeezenet1_1 densenet121 googlenet vit_b_16 "
    "swin_t"
)
TIMM = (
    "mobilenetv3_large_100 mobilenetv3_small_100 tf_mobilenetv3_large_100 mobilenetv4_conv_small "
    "mobilenetv4_hybrid_medium efficientnet_lite0 efficientnet_b0 resnet18 repvgg_a0 ghostnet_100 "
    "fastvit_t8 mobileone_s0 levit_128s mobilevit_s edgenext_xx_small efficientformer_l1 "
    "deit_tiny_patch16_224 vit_tiny_patch16_224 swin_tiny_patch4_window7_224 convnext_atto "
    "lcnet_050 hardcorenas_a tinynet_a poolformer_s12 mobilenet_edgetpu_v2_xs"
)
CLASSIFIERS = (*(f"tv:{n}" for n in TV.split()), *(f"timm:{n}" for n in TIMM.split()))
OTHERS = ("det:ssdlite320_mobilenet_v3_large", "seg:lraspp_mobilenet_v3_large")
TARGETS = ("snpe-2.7", "qnn", "tidl-11", "rdk-x5")
GATE_IMAGES = 2
PROGRAM = "surgery_coverage"


@dataclass(frozen=True)
class Row:
    """A network on a target.

    Attributes
    ----------
    before, after
        Nodes: supported or constrained / unsupported / unknown (a refused opset blocks, too).
    repair
        ``not needed``, ``tidied`` (nothing blocked), ``exact``, ``unknown`` (nothing blocks any
        more, but there are more operators that the table does not know), ``partly`` (the rest runs
        on the CPU), ``approximate`` (only approximate rules would help), ``not repairable``,
        ``failed``.
    rules
        ``name x places``.
    reason
        Why not, or what the DLC failed at.
    equal
        The repaired file against the original in ONNX Runtime, relative to the largest output.
    dlc, gate
        Whether a DLC was written strictly, and its lowest cosine on the HTP simulator; empty for
        targets that the lab only checks.
    """

    model: str
    target: str
    size: int = 0
    before: str = ""
    after: str = ""
    repair: str = "failed"
    rules: str = ""
    reason: str = ""
    equal: str = ""
    dlc: str = ""
    gate: str = ""
    seconds: float = 0.0


def main() -> None:
    """Run what has not been run, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[*CLASSIFIERS, *OTHERS], metavar="NAME")
    parser.add_argument("--fresh", action="store_true", help="forget what was done before")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    parser.add_argument("--one", metavar="NAME", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    for name in chosen.models:
        if name.partition(":")[0] not in ("tv", "timm", "det", "seg") or ":" not in name:
            parser.error(f"{name}: a name begins with tv:, timm:, det: or seg:, as in tv:resnet18.")
    if chosen.one:
        for row in rows_of(chosen.one):
            print(json.dumps(asdict(row)), flush=True)
        return
    place = results.place(chosen.output, chosen.models == [*CLASSIFIERS, *OTHERS])
    if place is None:
        parser.error("pass -o FOLDER: some of the networks do not replace the recorded results")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    state = content_cache.folder(PROGRAM) / f"rows_{state_key()}.jsonl"
    kept = results.KeptRows(state, Row, lambda row: (row.model, row.target))
    of_all_targets = lambda name: [(name, target) for target in TARGETS]  # noqa: E731
    done = kept.complete(chosen.models, in_a_process_of_its_own, of_all_targets)
    pairs = [(name, target) for name in chosen.models for target in TARGETS]
    write([done.get(pair) or Row(*pair, reason="not made: not run") for pair in pairs], place)


def state_key() -> str:
    """Return what changes with anything that a row depends on: code, tables and versions."""
    tables = {
        path.name: paths.sha256(path) for path in sorted(paths.OPERATOR_TABLES.glob("*.yaml"))
    }
    return content_cache.key(
        code=content_cache.code(labutils, Path(__file__)),
        tables=tables,
        versions=paths.versions("torch", "torchvision", "timm", "onnx", "onnxruntime",
                                "onnxruntime-qnn"),
    )  # fmt: skip


def in_a_process_of_its_own(name: str) -> list[Row]:
    """Return a network's rows; a crash or a hang is a row, too."""
    made, why = results.rows_of_a_process(__file__, name, Row, TIMEOUT)
    rows = {row.target: row for row in made}
    return [rows.get(target) or Row(name, target, reason=why) for target in TARGETS]


def rows_of(name: str) -> Iterable[Row]:
    """Yield one row per target."""
    network, preprocessing = built(name)
    inputs = preprocessing(np.asarray(data.load("val", GATE_IMAGES, preprocessing.size).images))
    with tempfile.TemporaryDirectory(prefix="labutils-coverage-") as folder:
        file, known = Path(folder, "model.onnx"), {}
        export.to_onnx(network, file, preprocessing=preprocessing)
        for target in TARGETS:
            began = time.monotonic()
            row = Row(name, target, preprocessing.size)
            try:
                row = on_target(row, network, file, inputs, known)
            except LabError as error:
                row = dataclasses.replace(row, reason=one_line(error))
            yield dataclasses.replace(row, seconds=round(time.monotonic() - began, 1))


def built(name: str) -> tuple[Any, data.Preprocessing]:
    """Return the network with random weights that float16 can hold (see the module's text)."""
    import torch

    torch.manual_seed(0)
    size = OWN_SIZE.get(name, SIZE)
    library, _, short = name.partition(":")
    if library in ("det", "seg"):
        network, preprocessing = dense(library, short), data.Preprocessing(size)
    else:
        architecture = architectures.find(name)
        options = {SIZE_OPTION[name]: size} if name in SIZE_OPTION else {}
        if library == "timm":
            network = architectures._timm().create_model(short, **options)
        else:
            network = architectures._models().get_model(short, weights=None, **options)
        preprocessing = dataclasses.replace(architecture.preprocessing, size=size)
    random_weights.condition_(network)
    zoo.calibrate_(network.eval(), preprocessing)
    return network.requires_grad_(False), preprocessing


def dense(kind: str, name: str) -> Any:
    """Return a detector up to its raw scores and boxes, or a segmenter, with one flat output."""
    import torch
    from torch import nn

    from labutils import _torchvision

    models = _torchvision.load().models

    class Detector(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = getattr(models.detection, name)(weights=None, weights_backbone=None)
            self.backbone, self.head = whole.backbone, whole.head

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = self.head(list(self.backbone(x).values()))
            return torch.cat([found["cls_logits"], found["bbox_regression"]], -1).flatten(1)

    class Segmenter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            build = getattr(models.segmentation, name)
            self.whole = build(weights=None, weights_backbone=None, num_classes=21)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.whole(x)["out"].flatten(1)

    return Detector() if kind == "det" else Segmenter()


def on_target(row: Row, network: Any, file: Path, inputs: np.ndarray, known: dict) -> Row:
    """Check, repair, check again, compare, convert."""
    destination = file.with_name(f"{row.target}.onnx")
    try:
        fixed = pipeline.apply(file, row.target, destination, inputs[:1])
        plan = fixed.plan
    except SurgeryError:  # nothing to do, or not all of it can be done
        fixed, plan = None, pipeline.suggest(file, row.target)
    after = fixed.check if fixed else plan.after or plan.check
    row = dataclasses.replace(
        row, before=counted(plan.check), after=counted(after), rules=listed(plan.rules),
        repair=verdict(plan, after), reason=reasons(plan),
    )  # fmt: skip
    if fixed:
        check = fixed.surgery.check
        row = dataclasses.replace(
            row, equal="not finite" if check is None else f"{check.relative_error:.0e}"
        )
    if not targets.TARGETS[row.target].convert or not plan.complete:
        return row
    repaired = fixed.file if fixed else file
    key = b"".join(node.SerializeToString() for node in graph.read(repaired).graph.node)
    if key not in known:  # the same file for two targets makes the same DLC
        known[key] = converted(row, network, file, repaired, inputs)
    done = known[key]
    return dataclasses.replace(row, dlc=done.dlc, gate=done.gate, reason=row.reason or done.reason)


def verdict(plan: pipeline.Plan, after: targets.CheckReport) -> str:
    """Return what the exact rules come to."""
    if not plan.complete:
        fewer = len(plan.unrepairable) < len(plan.check.blockers)
        partly = fewer and plan.check.table.on_unsupported == "partition"
        helps = sum(plan.offered.values()) >= len(plan.unrepairable)
        return "approximate" if helps else "partly" if partly else "not repairable"
    if after.counts["unknown"] > plan.check.counts["unknown"]:
        return "unknown"  # what blocked is gone, and operators came that the table does not know
    return "exact" if plan.needed else "tidied" if plan.rules else "not needed"


def counted(check: targets.CheckReport) -> str:
    """Return taken / unsupported / unknown."""
    counts = check.counts
    taken = counts["supported"] + counts["constrained"]
    refused = len(check.blockers)
    return f"{taken} / {refused} / {counts['unknown']}"


def listed(rules: dict[str, int]) -> str:
    """Return the rules in one cell."""
    return ", ".join(f"{name} x {n}" for name, n in rules.items())


def reasons(plan: pipeline.Plan) -> str:
    """Return the operators that are left, how many of each, and why."""
    found = Counter(node.op_type for node in plan.unrepairable)
    first = {node.op_type: node.evidence for node in reversed(plan.unrepairable)}
    return one_line("; ".join(f"{n} x {op}: {first[op]}" for op, n in found.items()))


def converted(row: Row, network: Any, file: Path, repaired: Path, inputs: np.ndarray) -> Row:
    """Write the DLC, strictly, and pass it through the gate; or say what failed."""
    output = file.with_name(f"{row.target}.dlc")
    try:
        with runtime.connect(network) as reference:
            gate = dlc.Gate(reference, inputs, file, check_top1=False)
            made = dlc.convert(repaired, row.target, output, gate)
    except ParityError as error:
        figures = getattr(error.report, "parity", None)
        gate = f"{figures.cosine_min:.5f}" if figures else ""
        return dataclasses.replace(row, dlc="yes", gate=f"FAILED {gate}", reason=one_line(error))
    except ConvertError as error:
        return dataclasses.replace(row, dlc="no", reason=one_line(error))
    return dataclasses.replace(row, dlc="yes", gate=f"{made.gate.parity.cosine_min:.5f}")


def one_line(error: object) -> str:
    """Return as much of a message as a cell holds."""
    return tabular.clipped(" ".join(str(error).split()), 400)


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write the CSV, and the text table with its totals."""
    images = f"split val (drawn), {GATE_IMAGES} per network for the gate; random weights"
    head = results.head(
        results.command("surgery_coverage.py"), images, "torch", "torchvision", "timm",
        "onnxruntime", "onnxruntime-qnn", developed=False,
    )  # fmt: skip
    results.write_csv(folder / "surgery_coverage.csv", head, rows)
    columns = ("model", "target", "px", "before", "after", "repair", "equal", "DLC", "gate", "s")
    cells = [
        (row.model, row.target, str(row.size), row.before, row.after, row.repair, row.equal or "-",
         row.dlc or "-", row.gate or "-", f"{row.seconds:.0f}")
        for row in rows
    ]  # fmt: skip
    notes = [*totals(rows), ""]
    notes += [f"{row.model} on {row.target}: {row.reason}" for row in rows if row.reason]
    title = "Surgery coverage; nodes are taken / refused / unknown, before and after exact rules"
    table = tabular.text(title, columns, cells, notes)
    words = "\n".join((__doc__ or "").strip().splitlines()[4:-2])
    text = "\n".join([*head, "", words, "", table]) + "\n"
    paths.write_text(folder / "surgery_coverage.txt", text)
    print("\n".join(totals(rows)))


def totals(rows: Sequence[Row]) -> list[str]:
    """Return the sentences that sum up a target each."""
    lines = []
    for target in TARGETS:
        own = [row for row in rows if row.target == target and row.model in CLASSIFIERS]
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(r.repair for r in own).items())
        unknown = sum(int(row.after.rpartition("/")[2] or 0) > 0 for row in own)
        line = f"{target}: of {len(own)} classifiers {kinds}; {unknown} keep unknown operators"
        if targets.TARGETS[target].convert:
            passed = sum(bool(row.gate) and not row.gate.startswith("FAILED") for row in own)
            line += f"; {passed} became a DLC strictly and passed the HTP fp16 gate"
        lines.append(line + ".")
    lines.append(f"Exact rules: {', '.join((*surgery.EXACT, *surgery.ONNX_ONLY))}.")
    return lines


if __name__ == "__main__":
    main()
