"""The parity gate: an artifact counts as made only when it computes what the original computes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import tabular, typesetting
from ..errors import ParityError, UnknownNameError, UsageError
from ..metrics import Proportion
from ..onnxfile.file import OnnxFile
from ..runtime import Runner, run_all, scores_name
from . import closeness, locating
from .closeness import Pair, Parity, parity
from .divergence import Divergence

THRESHOLDS = {
    "ort_fp32": 0.9999,
    "htp_fp16": 0.999,
    "ort_a16w8": 0.99,
    "htp_a16w8": 0.99,
    "ort_int8": 0.95,
    "htp_int8": 0.95,
    "bpu_int8": 0.95,
}
"""Lowest cosine by kind. Float kinds are judged by their worst image, quantized ones by the mean:
the shipped MobileNetV3-Small in a16w8, in ONNX Runtime, agrees with fp32 on 99.7 % of 1,600 images
at a mean of 0.99925, and its worst image is at 0.09023; the large one in int8 has a mean of 0.99819
and a worst image at 0.91136. What sound files of both reach, kind by kind, stands in
``benchmarks/results/gate.txt`` (``benchmarks/gate.py``). The worst of n images falls as n grows;
where the arithmetic is meant to be the same, it must not."""

AGREEMENT = {
    "ort_fp32": 1.0,
    "htp_fp16": 0.99,
    "ort_a16w8": 0.99,
    "htp_a16w8": 0.99,
    "ort_int8": 0.95,
    "htp_int8": 0.95,
    "bpu_int8": 0.95,
}
"""Top-1 agreement by kind, on the images that the reference decides (see `least_lead`). The gate
refuses when the upper end of the 95 % interval lies below: with 32 of these one flip passes at 0.99
and four pass at 0.95; with 1,600 images 1.4 % do and 6 %."""

BY_THE_WORST = ("ort_fp32", "htp_fp16")
"""The kinds whose arithmetic is meant to be the original's: every image counts."""

SAME_AS = {
    "litert_fp32": "ort_fp32",
    "litert_fp16": "htp_fp16",
    "litert_int8": "ort_int8",
    "litert_int16x8": "ort_a16w8",
    "litert_mixed": "ort_int8",
    "litert_w8": "ort_a16w8",
}
"""LiteRT's kinds: the kind whose arithmetic is alike, and whose thresholds they have. In ``w8`` the
weights alone are stored in 8 bits."""

_SLACK_DB = 6.0


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
        The figures of the classifier's scores; of a network without any, those of its worst float
        output. None when the outputs could not be compared at all.
    required
        ``cosine`` (with ``judged`` by ``min`` or ``mean``), ``sqnr_db``, ``agreement`` (None when
        top-1 was not judged) and the ``lead`` of images that it is asked of.
    overridden
        Thresholds that the caller set, with the usual value: ``{"cosine": (0.9, 0.999)}``.
    reasons
        Why it failed; empty when it passed.
    notes
        What a reader must know beside the figures.
    divergence
        The first tensor that departs, if it was looked for and found.
    output
        Name of the output that `parity` is of.
    is_classifier
        Whether that holds a classifier's scores; if not, it is the worst float output.
    others
        The figures of the other outputs, by name; all of them are judged. Those of whole numbers
        are shares of equal values.
    decided
        Top-1 agreement on the images whose first class leads, in the reference, by the lead that is
        required; it is what was judged. None when top-1 was not, or no image has that lead.
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
    output: str = ""
    is_classifier: bool = True
    others: dict[str, Parity | Proportion] = field(default_factory=dict)
    decided: Proportion | None = None

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
        if self.decided and self.parity and self.decided.n < self.parity.n:
            share = f"top-1 agreement {self.decided} where the reference's first class leads"
            lead = f"{self.required['lead']:.3g} of the spread of its scores"
            rows.insert(3, ("judged", f"{share} by {lead}"))
        if self.others and self.output:
            which = "classifier" if self.is_classifier else "worst"
            cure = "; --output chooses another" if self.is_classifier else ""
            rows.insert(2, (which, f"output {self.output!r}{cure}"))
        for name, found in self.others.items():
            equal = f"equal values: {found}" if isinstance(found, Proportion) else str(found)
            rows.append((f"output {name}", equal))
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
        (n, channels, height, width) float32, normalized; 32 images are usual.
    kind
        A key of `THRESHOLDS` or of `SAME_AS`: which arithmetic the candidate uses.
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
    ours, theirs = run_all(reference, inputs), run_all(candidate, inputs)
    _refuse_unusable(reference, ours)
    scores = scores_name(reference)
    if not scores:
        required["agreement"] = required["lead"] = None
    matched, reasons, notes = closeness.pairs(ours, theirs, scores)
    least_equal = AGREEMENT[SAME_AS.get(kind, kind)] if check_top1 else None
    main, figures, more = _judge_all(matched, required, least_equal)
    judged = figures.pop(main, None)
    reasons += more
    decided = _decided(matched[0], required) if judged else None
    notes = [*_notes(ours, scores, check_top1), *notes]
    if judged and scores and check_top1 and decided is None and matched[0].ours.shape[1] > 1:
        notes.append(_UNDECIDED)
    divergence = None
    if reasons and locate:
        divergence, note = locating.locate(
            reference, candidate, inputs, required["cosine"], reference_onnx
        )
        notes += [note] if note else []
    report = GateReport(
        kind, _described(reference), _described(candidate),
        judged if isinstance(judged, Parity) else None,
        required, overridden, tuple(reasons), tuple(notes), divergence, main, bool(scores), figures,
        decided,
    )  # fmt: skip
    if reasons:
        raise ParityError(str(report), report)
    return report


def _refuse_unusable(reference: Runner, ours: Mapping[str, np.ndarray]) -> None:
    """Refuse a reference that is not finite, or whose outputs are all labels."""
    floats = [values for values in ours.values() if values.dtype.kind == "f"]
    if not all(np.isfinite(values).all() for values in floats):
        raise UsageError(
            f"The reference {reference.name} itself gives NaN or infinite logits: nothing can be "
            "compared with it. Check its weights and its preprocessing."
        )
    if not floats:
        raise UsageError(
            f"{reference.name} gives labels (whole numbers), not scores: how close two networks "
            "are cannot be said from these. Compare the network that ends before them."
        )


def _required(
    kind: str, min_cosine: float | None, check_top1: bool
) -> tuple[dict[str, Any], dict[str, tuple[float, float]]]:
    if kind not in THRESHOLDS and kind not in SAME_AS:
        raise UnknownNameError("kind of parity", kind, [*THRESHOLDS, *SAME_AS])
    kind = SAME_AS.get(kind, kind)
    usual = THRESHOLDS[kind]
    cosine = usual if min_cosine is None else min_cosine
    if not 0 <= cosine <= 1:
        raise UsageError(f"min_cosine must lie between 0 and 1, not {cosine}.")
    return {
        "cosine": cosine,
        "judged": "min" if kind in BY_THE_WORST else "mean",
        "sqnr_db": _least_sqnr(cosine),
        "agreement": AGREEMENT[kind] if check_top1 else None,
        "lead": least_lead(usual) if check_top1 else None,
    }, {"cosine": (cosine, usual)} if cosine != usual else {}


def least_lead(cosine: float) -> float:
    """Return by how much the first class leads on an image that the reference decides.

    As a share of the standard deviation of an image's scores, in the median. A candidate with that
    cosine differs from the reference by as much, so a first class that leads by less says nothing
    about it. What
    sound and unsound files keep of all answers, and of those that are decided, stands in
    ``benchmarks/results/gate.txt``.
    """
    return math.sqrt(2 * (1 - cosine))


def _decided(pair: Pair, required: dict[str, Any]) -> Proportion | None:
    """Return the top-1 agreement on the images that the reference decides, None without any."""
    if required["agreement"] is None or not pair.has_scores or pair.ours.shape[1] < 2:
        return None
    return closeness.agreement_where_decided(pair.ours, pair.theirs, required["lead"])


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


def _judge_all(
    matched: Sequence[Pair], required: dict[str, Any], least_equal: float | None
) -> tuple[str, dict[str, Parity | Proportion], list[str]]:
    """Return the name of the scores (or the worst output), all figures, and what failed."""
    figures: dict[str, Parity | Proportion] = {}
    failed: list[str] = []
    for pair in matched:
        if pair.is_float:
            found, reasons = _judge(pair, required)
            figures |= {pair.name: found} if found else {}
        else:
            figures[pair.name] = share = pair.equal()
            low = least_equal is not None and share.interval[1] < least_equal
            reasons = [f"equal values {share} are below {100 * (least_equal or 0):g} %"] * low
        where = "" if len(matched) == 1 else f"output {pair.name!r}: "
        failed += [f"{where}{reason}" for reason in reasons]
    judged = {name: found for name, found in figures.items() if isinstance(found, Parity)}
    main = next((pair.name for pair in matched if pair.has_scores), None)
    if main is None and judged:
        main = min(judged, key=lambda name: _cosine(judged[name], required))
    return main or "", figures, failed


def _judge(pair: Pair, required: dict[str, Any]) -> tuple[Parity | None, list[str]]:
    """Return the figures of a float output, and why it is too far from the reference's."""
    ours, theirs, scores = pair.ours, pair.theirs, pair.has_scores
    values = "logits" if scores else "values"
    bad = ~np.isfinite(theirs)
    if bad.any():
        first = int(np.argmax(bad.reshape(len(bad), -1).any(axis=1)))
        text = f"{bad.sum()} of {bad.size} {values} are NaN or infinite, first in image {first}"
        return None, [text]
    found = parity(ours, theirs, top1=scores)
    reasons = []
    cosine = _cosine(found, required)
    if cosine < required["cosine"]:
        which = "worst image" if required["judged"] == "min" else "mean"
        reasons.append(f"cosine {cosine:.5f} ({which}) is below {required['cosine']:g}")
    if found.sqnr_db < required["sqnr_db"]:
        reasons.append(f"SQNR {found.sqnr_db:.1f} dB is below {required['sqnr_db']:.1f} dB")
    agreement, least = _decided(pair, required), required["agreement"]
    if agreement is not None and agreement.interval[1] < least:
        reasons.append(f"top-1 agreement {agreement} is below {100 * least:g} %")
    if _constant(theirs) and not _constant(ours):
        reasons.append(f"the candidate gives the same {values} for all {len(theirs)} images")
    return found, reasons


def _cosine(found: Parity, required: dict[str, Any]) -> float:
    return found.cosine_min if required["judged"] == "min" else found.cosine_mean


def _constant(logits: np.ndarray) -> bool:
    return len(logits) > 1 and float(np.ptp(logits, axis=0).max()) == 0.0


def _notes(ours: Mapping[str, np.ndarray], scores: str, check_top1: bool) -> list[str]:
    notes = []
    if not scores:
        notes.append(
            "No output has a classifier's scores, (n, classes), so no top-1 is claimed: every "
            "output is judged by cosine and SQNR, and the worst decides."
        )
    elif not check_top1:
        notes.append("Top-1 agreement was not judged (untrained weights, or too few images).")
    if scores and ours[scores].ndim > 2:
        shape = ", ".join(map(str, ours[scores].shape[1:]))
        notes.append(f"The scores, (n, {shape}), are compared as (n, {ours[scores][0].size}).")
    judged = ours[scores] if scores else next(v for v in ours.values() if v.dtype.kind == "f")
    if _constant(judged):
        notes.append(
            "The reference gives the same logits for every image, so this comparison sees little. "
            "Check its preprocessing, or use other images."
        )
    return notes


_UNDECIDED = (
    "Top-1 agreement was not judged: the reference itself decides none of these images, its first "
    "class leads by less than the cosine allows as noise."
)


def _described(runner: Runner) -> str:
    return f"{runner.name}, run by: {runner.runtime}"
