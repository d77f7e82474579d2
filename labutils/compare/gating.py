"""The parity gate: an artifact counts as made only when it computes what the original computes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .. import metrics, tabular, typesetting
from ..errors import LabError, ParityError, UnknownNameError, UsageError
from ..metrics import Proportion
from ..onnxfile.file import OnnxFile
from ..runtime import HtpRunner, Runner
from .divergence import Divergence, first_divergence

THRESHOLDS = {
    "ort_fp32": 0.9999,
    "htp_fp16": 0.999,
    "ort_a16w8": 0.99,
    "htp_a16w8": 0.99,
    "ort_int8": 0.95,
    "htp_int8": 0.95,
}
"""Lowest cosine by kind. Float kinds are judged by their worst image, quantized ones by the mean:
the shipped MobileNetV3-Small in a16w8, in ONNX Runtime, agrees with fp32 on 99.7 % of 1,600 images
at a mean of 0.99925, and its worst image is at 0.09023; the large one in int8 has a mean of 0.97316
and a worst image at 0.81389. What sound files of both reach, kind by kind, stands in
``benchmarks/results/gate.txt`` (``benchmarks/gate.py``). The worst of n images falls as n grows;
where the arithmetic is meant to be the same, it must not."""

AGREEMENT = {
    "ort_fp32": 1.0,
    "htp_fp16": 0.99,
    "ort_a16w8": 0.99,
    "htp_a16w8": 0.99,
    "ort_int8": 0.95,
    "htp_int8": 0.95,
}
"""Top-1 agreement by kind. The gate refuses when the upper end of the 95 % interval lies below:
with 32 images one flip passes at 0.99 and four pass at 0.95; with 1,600 images 1.4 % do and 6 %."""

BY_THE_WORST = ("ort_fp32", "htp_fp16")
"""The kinds whose arithmetic is meant to be the original's: every image counts."""

_SLACK_DB = 6.0
_IMAGES_FOR_SEARCH = 2


@dataclass(frozen=True)
class Parity:
    """How far logits are from the reference's.

    Attributes
    ----------
    n
        Number of images.
    cosine_mean, cosine_min
        Over images; the cosine of each image's logits.
    sqnr_db
        Signal to noise over all logits, in dB.
    agreement
        Share of images with the same first class.
    max_error
        Largest absolute difference of a logit.
    """

    n: int
    cosine_mean: float
    cosine_min: float
    sqnr_db: float
    agreement: Proportion
    max_error: float

    def __str__(self) -> str:
        return (
            f"cosine {self.cosine_mean:.5f} (worst image {self.cosine_min:.5f}), "
            f"SQNR {self.sqnr_db:.1f} dB, top-1 agreement {self.agreement}, "
            f"largest error {self.max_error:.3g}"
        )

    def __repr__(self) -> str:
        return str(self)


def parity(reference: ArrayLike, logits: ArrayLike) -> Parity:
    """Compare logits of shape (n, classes) with the reference's, image by image."""
    reference, logits = np.asarray(reference), np.asarray(logits)
    agreement = metrics.agreement(reference, logits)  # refuses what cannot be compared
    cosines = [metrics.cosine(a, b) for a, b in zip(reference, logits, strict=True)]
    error = np.abs(reference.astype(np.float64) - logits).max()
    return Parity(
        n=len(cosines),
        cosine_mean=float(np.mean(cosines)),
        cosine_min=min(cosines),
        sqnr_db=metrics.sqnr_db(reference, logits),
        agreement=agreement,
        max_error=float(error),
    )


@dataclass(frozen=True, repr=False)
class GateReport(typesetting.Shown):
    """What the gate compared, what it asked for, and what it found.

    Attributes
    ----------
    kind
        Which thresholds applied.
    reference, candidate
        Name and runtime of either side.
    parity
        The figures; None when the outputs could not be compared at all.
    required
        ``cosine`` (with ``judged`` by ``min`` or ``mean``), ``sqnr_db``, ``agreement`` (None when
        top-1 was not judged).
    overridden
        Thresholds that the caller set, with the usual value: ``{"cosine": (0.9, 0.999)}``.
    reasons
        Why it failed; empty when it passed.
    notes
        What a reader must know beside the figures.
    divergence
        The first tensor that departs, if it was looked for and found.
    """

    kind: str
    reference: str
    candidate: str
    parity: Parity | None
    required: dict[str, Any]
    overridden: dict[str, tuple[float, float]]
    reasons: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    divergence: Divergence | None = None

    @property
    def passed(self) -> bool:
        """Whether the gate passed."""
        return not self.reasons

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for a manifest."""
        return {"passed": self.passed, **asdict(self)}

    def _parts(self) -> tuple:
        title = f"Parity gate ({self.kind}): {'passed' if self.passed else 'FAILED'}"
        required = ", ".join(_asked(self.required))
        rows = [
            ("reference", self.reference),
            ("candidate", self.candidate),
            ("found", str(self.parity) if self.parity else "nothing that can be compared"),
            ("asked for", required),
        ]
        rows += [
            ("OVERRIDDEN", f"{name}: {now:g} instead of {usual:g}")
            for name, (now, usual) in self.overridden.items()
        ]
        rows += [("failed", reason) for reason in self.reasons]
        if self.divergence:
            rows.append(("where", str(self.divergence)))
        return title, rows + [("note", note) for note in self.notes]

    def __str__(self) -> str:
        title, rows = self._parts()
        return "\n".join([title, *(f"  {name:<10}  {value}" for name, value in rows)])

    def _repr_html_(self) -> str:
        title, rows = self._parts()
        return tabular.markup(title, ("", ""), rows)


def gate(
    reference: Runner,
    candidate: Runner,
    inputs: np.ndarray,
    *,
    kind: str,
    min_cosine: float | None = None,
    check_top1: bool = True,
    reference_onnx: OnnxFile | str | Path | None = None,
    locate: bool = True,
) -> GateReport:
    """Run both on the same images and refuse the candidate when it computes something else.

    Parameters
    ----------
    reference
        The model the user brought, on PyTorch or ONNX Runtime; never a repaired one.
    candidate
        The artifact on its runtime or simulator.
    inputs
        (n, 3, size, size) float32, normalized; 32 images are usual.
    kind
        A key of `THRESHOLDS`: which arithmetic the candidate uses.
    min_cosine
        Another threshold; the report keeps the usual value beside it.
    check_top1
        Whether first classes must agree. Switch it off for untrained weights, whose logits are
        too close to each other.
    reference_onnx
        An ONNX file of the reference, to look for the first tensor that departs when `reference`
        is a module in memory.
    locate
        Whether to look for that tensor when the gate fails (about ten short runs on the HTP).

    Returns
    -------
    GateReport
        Which passed.

    Raises
    ------
    ParityError
        The candidate fails; ``.report`` is the `GateReport` with the first departing tensor.
    UsageError
        The reference itself gives NaN, or `inputs` are empty.

    Examples
    --------
    >>> import numpy as np
    >>> from labutils import compare, export, runtime
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Hardswish(), nn.Flatten())
    >>> _ = export.to_onnx(net, "net.onnx", size=32)
    >>> images = np.random.default_rng(0).standard_normal((8, 3, 32, 32), np.float32)
    >>> ours, theirs = runtime.connect(net), runtime.connect("net.onnx")
    >>> report = compare.gate(ours, theirs, images, kind="ort_fp32")
    >>> report.passed, round(report.parity.cosine_min, 4)
    (True, 1.0)
    """
    required, overridden = _required(kind, min_cosine, check_top1)
    if not len(inputs):
        raise UsageError("The parity gate needs images: inputs is empty.")
    ours, theirs = reference.run(inputs), candidate.run(inputs)
    if not np.isfinite(ours).all():
        raise UsageError(
            f"The reference {reference.name} itself gives NaN or infinite logits: nothing can be "
            "compared with it. Check its weights and its preprocessing."
        )
    figures, reasons = _judge(ours, theirs, required)
    notes = _notes(ours, check_top1)
    divergence = None
    if reasons and locate:
        divergence, note = _locate(reference, candidate, inputs, required, reference_onnx)
        notes += (note,) if note else ()
    report = GateReport(
        kind, _described(reference), _described(candidate), figures,
        required, overridden, tuple(reasons), notes, divergence,
    )  # fmt: skip
    if reasons:
        raise ParityError(str(report), report)
    return report


def _required(
    kind: str, min_cosine: float | None, check_top1: bool
) -> tuple[dict[str, Any], dict[str, tuple[float, float]]]:
    if kind not in THRESHOLDS:
        raise UnknownNameError("kind of parity", kind, THRESHOLDS)
    usual = THRESHOLDS[kind]
    cosine = usual if min_cosine is None else min_cosine
    if not 0 <= cosine <= 1:
        raise UsageError(f"min_cosine must lie between 0 and 1, not {cosine}.")
    return {
        "cosine": cosine,
        "judged": "min" if kind in BY_THE_WORST else "mean",
        "sqnr_db": _least_sqnr(cosine),
        "agreement": AGREEMENT[kind] if check_top1 else None,
    }, {"cosine": (cosine, usual)} if cosine != usual else {}


def _least_sqnr(cosine: float) -> float:
    """Return what that cosine alone implies, less 6 dB.

    The cosine is blind to a factor: doubled logits have a cosine of 1. Noise at right angles to
    the signal with cosine c has 10 log10(1 / (2 (1 - c))) dB.
    """
    if cosine >= 1:
        return math.inf
    return round(max(-10 * math.log10(2 * (1 - cosine)) - _SLACK_DB, 0.0), 1)


def _asked(required: dict[str, Any]) -> list[str]:
    over = "of the worst image" if required["judged"] == "min" else "on average"
    parts = [f"cosine {over} >= {required['cosine']:g}", f"SQNR >= {required['sqnr_db']:.1f} dB"]
    if required["agreement"] is None:
        return [*parts, "top-1 not judged"]
    return [*parts, f"top-1 agreement >= {100 * required['agreement']:g} % (upper end of interval)"]


def _judge(
    ours: np.ndarray, theirs: np.ndarray, required: dict[str, Any]
) -> tuple[Parity | None, list[str]]:
    if ours.shape != theirs.shape:
        return None, [f"logits have the shape {theirs.shape}, the reference's {ours.shape}"]
    bad = ~np.isfinite(theirs)
    if bad.any():
        first = int(np.argmax(bad.any(axis=1)))
        text = f"{bad.sum()} of {bad.size} logits are NaN or infinite, first in image {first}"
        return None, [text]
    found = parity(ours, theirs)
    reasons = []
    cosine = found.cosine_min if required["judged"] == "min" else found.cosine_mean
    if cosine < required["cosine"]:
        which = "worst image" if required["judged"] == "min" else "mean"
        reasons.append(f"cosine {cosine:.5f} ({which}) is below {required['cosine']:g}")
    if found.sqnr_db < required["sqnr_db"]:
        reasons.append(f"SQNR {found.sqnr_db:.1f} dB is below {required['sqnr_db']:.1f} dB")
    least = required["agreement"]
    if least is not None and found.agreement.interval[1] < least:
        reasons.append(f"top-1 agreement {found.agreement} is below {100 * least:g} %")
    if _constant(theirs) and not _constant(ours):
        reasons.append(f"the candidate gives the same logits for all {len(theirs)} images")
    return found, reasons


def _constant(logits: np.ndarray) -> bool:
    return len(logits) > 1 and float(np.ptp(logits, axis=0).max()) == 0.0


def _notes(ours: np.ndarray, check_top1: bool) -> tuple[str, ...]:
    unjudged = "Top-1 agreement was not judged (untrained weights, or too few images)."
    notes: tuple[str, ...] = () if check_top1 else (unjudged,)
    if _constant(ours):
        notes += (
            "The reference gives the same logits for every image, so this comparison sees little. "
            "Check its preprocessing, or use other images.",
        )
    return notes


def _locate(
    reference: Runner,
    candidate: Runner,
    inputs: np.ndarray,
    required: dict[str, Any],
    reference_onnx: OnnxFile | str | Path | None,
) -> tuple[Divergence | None, str]:
    file = reference_onnx or _onnx(reference)
    if not _onnx(candidate):
        return None, "No tensor is named: the candidate has no ONNX file to inspect."
    own = file is None and isinstance(candidate, HtpRunner)
    if own:
        file = _onnx(candidate)
    if file is None:
        return None, "No tensor is named: the reference has no ONNX file (reference_onnx=)."
    try:
        found = first_divergence(file, candidate, inputs[:_IMAGES_FOR_SEARCH], required["cosine"])
    except LabError as error:
        return None, f"The search for the first tensor that departs stopped: {error}"
    if found:
        return found, ""
    if own:
        return None, (
            "The file computes on ONNX Runtime what it computes on the simulator: the fault is in "
            "the file, not in the runtime."
        )
    return None, "No tensor that the two graphs share falls below the cosine threshold."


def _onnx(runner: Runner) -> OnnxFile | Path | None:
    file = getattr(runner, "onnx", None) or runner.file  # runners of a learner's own have a path
    return file if file is not None and Path(file).suffix == ".onnx" else None


def _described(runner: Runner) -> str:
    return f"{runner.name}, run by: {runner.runtime}"
