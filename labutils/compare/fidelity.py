"""The fidelity ladder: what each step from PyTorch to the chip costs, on the same images."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import metrics, paths, tabular
from ..errors import ParityError, UsageError
from ..images.data import NO_LABEL, ImageSet, Preprocessing
from ..metrics import PairedDifference, Proportion
from ..runtime import Runner, outputs, run_all, scores_name
from ..tracking import Progress, tracked
from .closeness import Pair, Parity, pairs, parity

_COLUMNS = (
    "stage", "n", "top-1 % [95 %]", "minus first, points", "agrees % [95 %]",
    "cosine", "SQNR dB", "MB",
)  # fmt: skip
_LEGEND = (
    "[ ]: 95 % intervals, Wilson's for shares, paired for differences. Agreement, cosine and SQNR "
    "are against the first stage, on the same n images."
)
_UNKNOWN = (
    "Top-1 is unknown: these images carry no label that counts for this model. Agreement, cosine "
    "and SQNR need none."
)


@dataclass(frozen=True)
class Stage:
    """One step of the way, and how to run it.

    Attributes
    ----------
    name
        Short, for the first column: ``"HTP int8"``.
    runner
        Runs this stage's own artifact on its own runtime.
    note
        Shown below the table.
    n
        Number of images for this stage, None for all; simulators get fewer.
    """

    name: str
    runner: Runner
    note: str = ""
    n: int | None = None


@dataclass(frozen=True)
class Rung:
    """The figures of one stage; `parity` and `difference` are against the first stage.

    `top1`, `top5` and `difference` are None where no image's class is known, `top5` also for
    fewer than six classes. `bytes` is None for a module in memory. `parity` is of the classifier's
    scores, `others` of the other outputs; of a network without scores, of its first float output.
    """

    name: str
    runtime: str
    file: str
    bytes: int | None
    n: int
    top1: Proportion | None
    top5: Proportion | None
    difference: PairedDifference | None
    parity: Parity
    note: str
    others: dict[str, Parity | Proportion] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain values; shares 0 to 1, differences in points."""
        top5 = self.top5.value if self.top5 else None
        low, high = self.difference.interval if self.difference else (None, None)
        agreement, found = self.parity.agreement, self.parity
        return {
            "stage": self.name,
            "runtime": self.runtime,
            "file": self.file,
            "bytes": self.bytes,
            "n": self.n,
            **_share("top1", self.top1),
            "top5": top5,
            "difference_points": self.difference.value if self.difference else None,
            "difference_low": low,
            "difference_high": high,
            **_share("agreement", agreement),
            "cosine_mean": found.cosine_mean,
            "cosine_min": found.cosine_min,
            "sqnr_db": found.sqnr_db,
            "max_error": found.max_error,
            "note": self.note,
        }


@dataclass(frozen=True, repr=False)
class Ladder(tabular.Table):
    """All stages, first to last.

    Attributes
    ----------
    rows
        One `Rung` per stage.
    images
        What was classified, as text.
    preprocessing
        How the pixels were prepared, as text.
    """

    rows: tuple[Rung, ...]
    images: str
    preprocessing: str

    def __getitem__(self, name: str) -> Rung:
        return next(row for row in self.rows if row.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Return the whole table as plain values."""
        rows = [row.to_dict() for row in self.rows]
        return {"images": self.images, "preprocessing": self.preprocessing, "rows": rows}

    def to_csv(self, path: str | Path) -> Path:
        """Write one line per stage, all figures at full precision; the file appears at once."""
        rows = [row.to_dict() for row in self.rows]
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        paths.write_text(path, buffer.getvalue())
        return Path(path)

    @classmethod
    def read_csv(cls, path: str | Path, images: str = "", preprocessing: str = "") -> Ladder:
        """Return the ladder that `to_csv` wrote; what it was measured on is the caller's to say.

        Raises
        ------
        UsageError
            There is no such file, or it is not a ladder.
        """
        try:
            with Path(path).open(encoding="utf-8", newline="") as file:
                rows = tuple(_read_rung(row) for row in csv.DictReader(file))
        except (OSError, KeyError, ValueError) as error:
            raise UsageError(f"{path} is not a ladder that the lab wrote: {error}") from None
        return cls(rows, images, preprocessing)

    def _parts(self) -> tuple:
        rows = [_cells(row, row is self.rows[0]) for row in self.rows]
        made_by = []
        for row in self.rows:
            text = f"{row.name}: {row.file or 'in memory'}, {row.runtime}."
            made_by.append(f"{text} {row.note}".strip())
            made_by += [f"{row.name}, output {name}: {it}." for name, it in row.others.items()]
        unknown = [] if all(row.top1 for row in self.rows) else [_UNKNOWN]
        notes = [_LEGEND, *unknown, f"Images: {self.images}. {self.preprocessing}.", *made_by]
        return "Fidelity ladder", _COLUMNS, rows, notes


def ladder(
    stages: Sequence[Stage],
    images: ImageSet,
    preprocessing: Preprocessing,
    n: int | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Ladder:
    """Run every stage on the same images and compare each with the first.

    Parameters
    ----------
    stages
        The first is the reference, usually PyTorch; it sees at least as many images as any other.
    images, preprocessing
        Pixels with labels, and what turns them into inputs. A label of `NO_LABEL` is unknown;
        so are all of them when the stages have another number of classes than the images.
    n
        Images at most, for all stages; ``Stage.n`` lowers it for one.
    batch_size
        Images per call of a runner.
    progress
        Called as ``progress(iterable, stage name and unit)`` around the batches.

    Raises
    ------
    ParityError
        A stage gives NaN, or logits of another shape; the message names the stage and its file.
    """
    if not stages:
        raise UsageError("A ladder needs at least one stage.")
    if len({stage.name for stage in stages}) < len(stages):
        raise UsageError("Two stages of the ladder have the same name.")
    total = min(n or len(images), len(images))
    counts = [min(stage.n or total, total) for stage in stages]
    counts[0] = max(counts)
    reference: dict[str, np.ndarray] = {}
    scores, rows = "", []
    for stage, count in zip(stages, counts, strict=True):
        part = images.head(count)
        found = _outputs(stage, part, preprocessing, batch_size, progress)
        if not reference:
            reference, scores = found, scores_name(stage.runner)
        known = _known_labels(part, outputs.as_scores(reference[scores]) if scores else None)
        rows.append(
            _rung(stage, found, {n: v[:count] for n, v in reference.items()}, scores, known)
        )
    return Ladder(tuple(rows), images.source, str(preprocessing))


@dataclass(frozen=True, repr=False)
class AccuracyTable(tabular.Table):
    """Best classes and their probabilities for one image, stage by stage.

    Attributes
    ----------
    rows
        ``(stage, runtime, ((class, probability), ...))``, best class first.
    title
        What was classified.
    """

    rows: tuple[tuple[str, str, tuple[tuple[str, float], ...]], ...]
    title: str

    def _parts(self) -> tuple:
        depth = len(self.rows[0][2])
        columns = ("stage", *(f"top-{k + 1}" for k in range(depth)))
        rows = [
            (stage, *(f"{tabular.clipped(name, 14)} {share:.4f}" for name, share in best))
            for stage, _, best in self.rows
        ]
        notes = [f"{stage}: {runtime}." for stage, runtime, _ in self.rows]
        runtimes = " ".join(runtime for _, runtime, _ in self.rows)
        title = self.title
        if "ONNX Runtime" in runtimes:
            title += "; ORT stands in for FP32 on CPU"
        if "HTP" in runtimes:
            title += "; the HTP simulator stands in for the chip"
        return title, columns, rows, notes


def accuracy_table(
    stages: Sequence[Stage],
    image: np.ndarray,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    truth: str = "",
) -> AccuracyTable:
    """Classify one image at every stage, as the vendor's case study does: top-5, probabilities.

    Parameters
    ----------
    stages
        As for `ladder`.
    image
        (size, size, 3) uint8 RGB.
    preprocessing
        What turns it into an input.
    classes
        Names, by class number.
    truth
        What is on the image, for the title.
    """
    if not stages:
        raise UsageError("An accuracy table needs at least one stage.")
    inputs, rows = preprocessing(image[None]), []
    for stage in stages:
        logits = outputs.as_scores(stage.runner.run(inputs))
        _refuse(stage, logits, (1, len(classes)))
        shares = metrics.softmax(logits)[0]
        best = metrics.topk(logits, min(5, len(classes)))[0]
        named = tuple((classes[k], float(shares[k])) for k in best)
        rows.append((stage.name, stage.runner.runtime, named))
    subject = f"One image ({truth})" if truth else "One image"
    return AccuracyTable(tuple(rows), f"{subject}: top classes and probabilities")


def _outputs(
    stage: Stage,
    images: ImageSet,
    preprocessing: Preprocessing,
    batch_size: int,
    progress: Progress | None,
) -> dict[str, np.ndarray]:
    starts = range(0, len(images), batch_size)
    parts = [
        run_all(stage.runner, preprocessing(images.images[start : start + batch_size]))
        for start in tracked(starts, stage.name, "batches", progress)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _known_labels(images: ImageSet, scores: np.ndarray | None) -> np.ndarray:
    """Return the labels, unknown to a network of other classes or without any."""
    if scores is None or scores.shape[1] != len(images.classes):
        return np.full(len(images), NO_LABEL)
    return np.asarray(images.labels)


def _where(stage: Stage) -> str:
    return f"Stage {stage.name!r} ({stage.runner.file or 'in memory'}, {stage.runner.runtime})"


def _refuse(stage: Stage, logits: np.ndarray, shape: tuple[int, ...]) -> None:
    where = _where(stage)
    if logits.shape != shape:
        raise ParityError(f"{where} gives logits of shape {logits.shape}, expected {shape}.")
    bad = int((~np.isfinite(logits)).sum())
    if bad:
        raise ParityError(
            f"{where} gives {bad} logits that are NaN or infinite. compare.per_layer shows where "
            "they come from."
        )


def _paired(
    stage: Stage, found: dict[str, np.ndarray], reference: dict[str, np.ndarray], scores: str
) -> list[Pair]:
    """Return the outputs beside the reference's, scores first; refuse what cannot be compared."""
    matched, reasons, _ = pairs(reference, found, scores)
    if reasons and scores and len(reference) == len(found) == 1:
        logits = outputs.as_scores(next(iter(found.values())))
        _refuse(stage, logits, outputs.as_scores(reference[scores]).shape)
    if reasons:
        raise ParityError(f"{_where(stage)}: {'; '.join(reasons)}.")
    for pair in matched:
        if pair.is_float:
            _refuse(stage, pair.theirs, pair.ours.shape)
    if not any(pair.is_float for pair in matched):
        raise ParityError(f"{_where(stage)} gives labels, not scores: nothing to measure.")
    return sorted(matched, key=lambda pair: not pair.is_float)


def _rung(
    stage: Stage,
    found: dict[str, np.ndarray],
    reference: dict[str, np.ndarray],
    scores: str,
    labels: np.ndarray,
) -> Rung:
    main, *rest = _paired(stage, found, reference, scores)
    file = stage.runner.file
    known = labels != NO_LABEL
    judged = bool(known.any())
    ours, first, labels = main.theirs[known], main.ours[known], labels[known]
    return Rung(
        name=stage.name,
        runtime=stage.runner.runtime,
        file=Path(file).name if file else "",
        bytes=Path(file).stat().st_size if file else None,
        n=len(main.theirs),
        top1=metrics.accuracy(ours, labels) if judged else None,
        top5=metrics.accuracy(ours, labels, 5) if judged and ours.shape[1] > 5 else None,
        difference=_difference(ours, first, labels) if judged else None,
        parity=parity(main.ours, main.theirs, top1=main.has_scores),
        note=stage.note,
        others={
            p.name: parity(p.ours, p.theirs, top1=False) if p.is_float else p.equal() for p in rest
        },
    )


def _difference(ours: np.ndarray, first: np.ndarray, labels: np.ndarray) -> PairedDifference:
    return metrics.paired_difference(*(metrics.correct(x, labels) for x in (ours, first)))


def _read_rung(row: dict[str, str]) -> Rung:
    n = int(row["n"])

    def counted(name: str) -> Proportion:
        return Proportion(round(float(row[name]) * n), n)

    def share(name: str) -> Proportion | None:
        return counted(name) if row[name] else None

    difference = None
    if row["difference_points"]:
        ends = float(row["difference_low"]), float(row["difference_high"])
        difference = PairedDifference(float(row["difference_points"]), ends, n)
    return Rung(
        name=row["stage"],
        runtime=row["runtime"],
        file=row["file"],
        bytes=int(row["bytes"]) if row["bytes"] else None,
        n=n,
        top1=share("top1"),
        top5=share("top5"),
        difference=difference,
        parity=Parity(
            n=n,
            cosine_mean=float(row["cosine_mean"]),
            cosine_min=float(row["cosine_min"]),
            sqnr_db=float(row["sqnr_db"]),
            agreement=share("agreement"),
            max_error=float(row["max_error"]),
        ),
        note=row["note"],
    )


def _share(name: str, share: Proportion | None) -> dict[str, float | None]:
    low, high = share.interval if share else (None, None)
    return {name: share.value if share else None, f"{name}_low": low, f"{name}_high": high}


def _cells(row: Rung, first: bool) -> tuple[str, ...]:
    size = f"{row.bytes / 1e6:.2f}" if row.bytes is not None else "-"
    own = (tabular.clipped(row.name, 18), str(row.n), _percent(row.top1))
    if first:
        return (*own, "-", "-", "-", "-", size)
    difference = "unknown"
    if row.difference:
        low, high = row.difference.interval
        difference = f"{row.difference.value:+.2f} [{low:+.2f}, {high:+.2f}]"
    return (
        *own,
        difference,
        _percent(row.parity.agreement),
        f"{row.parity.cosine_mean:.4f}",
        f"{row.parity.sqnr_db:.1f}",
        size,
    )


def _percent(share: Proportion | None) -> str:
    if share is None:
        return "unknown"
    low, high = share.interval
    return f"{100 * share.value:.2f} [{100 * low:.1f}, {100 * high:.1f}]"
