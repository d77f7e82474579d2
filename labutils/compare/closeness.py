"""How close two networks' outputs are: each by name, and which of them is the classifier's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from .. import metrics
from ..errors import UsageError, counted
from ..metrics import Proportion
from ..runtime import outputs


@dataclass(frozen=True)
class Parity:
    """How far an output is from the reference's.

    Attributes
    ----------
    n
        Number of images.
    cosine_mean, cosine_min
        Over images; the cosine of each image's values.
    sqnr_db
        Signal to noise over all values, in dB.
    agreement
        Share of images with the same first class; of whole numbers, share of equal values. None
        for what is neither.
    max_error
        Largest absolute difference of a value.
    """

    n: int
    cosine_mean: float
    cosine_min: float
    sqnr_db: float
    agreement: Proportion | None
    max_error: float

    def __str__(self) -> str:
        top1 = f"top-1 agreement {self.agreement}, " if self.agreement else ""
        return (
            f"cosine {self.cosine_mean:.5f} (worst image {self.cosine_min:.5f}), "
            f"SQNR {self.sqnr_db:.1f} dB, {top1}largest error {self.max_error:.3g}"
        )

    def __repr__(self) -> str:
        return str(self)


def parity(reference: ArrayLike, logits: ArrayLike, *, top1: bool = True) -> Parity:
    """Compare an output with the reference's, image by image.

    Parameters
    ----------
    reference, logits
        Of one shape, images along the first axis.
    top1
        Whether they are a classifier's scores, (n, classes), whose first classes are compared.
    """
    reference, logits = np.asarray(reference), np.asarray(logits)
    # refuses what cannot be compared
    agreement = metrics.agreement(reference, logits) if top1 else None
    if not len(reference):
        raise UsageError("There are no images to compare on.")
    rows = (values.reshape(len(values), -1) for values in (reference, logits))
    cosines = [metrics.cosine(a, b) for a, b in zip(*rows, strict=True)]
    error = np.abs(reference.astype(np.float64) - logits).max()
    return Parity(
        n=len(cosines),
        cosine_mean=float(np.mean(cosines)),
        cosine_min=min(cosines),
        sqnr_db=metrics.sqnr_db(reference, logits),
        agreement=agreement,
        max_error=float(error),
    )


def agreement_where_decided(
    reference: np.ndarray, logits: np.ndarray, lead: float
) -> Proportion | None:
    """Return how often both name the same class first, of the images that the reference decides.

    Parameters
    ----------
    reference, logits
        (n, classes) each, at least two classes.
    lead
        By how much the reference's first class leads there, as a share of the median, over the
        images, of the standard deviation of an image's scores. (Two scores alone lead by twice
        their own deviation, however close they are.)

    Returns
    -------
    Proportion or None
        None when the reference decides none of them.
    """
    ordered = np.sort(reference.astype(np.float64), axis=1)
    spread = np.median(ordered.std(axis=1))
    rows = ordered[:, -1] - ordered[:, -2] > lead * spread
    return metrics.agreement(reference[rows], logits[rows]) if rows.any() else None


@dataclass(frozen=True)
class Pair:
    """One output of the reference and its counterpart.

    Attributes
    ----------
    name
        As the reference calls it.
    ours, theirs
        The values of both; scores as (n, classes).
    has_scores
        Whether they are what a classifier's first class is taken from.
    """

    name: str
    ours: np.ndarray
    theirs: np.ndarray
    has_scores: bool

    @property
    def is_float(self) -> bool:
        """Whether both hold floats; whole numbers are compared exactly."""
        return self.ours.dtype.kind == "f" and self.theirs.dtype.kind == "f"

    def equal(self) -> Proportion:
        """Return the share of equal values, for whole numbers."""
        return Proportion(int((self.ours == self.theirs).sum()), self.ours.size)


def pairs(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], scores: str
) -> tuple[list[Pair], list[str], list[str]]:
    """Match the outputs of a reference and a candidate by name.

    Parameters
    ----------
    ours, theirs
        All outputs of both, by name.
    scores
        The reference's output that has a classifier's scores; "" for none.

    Returns
    -------
    tuple
        The pairs, scores first; what cannot be compared, as reasons; what was not, as notes.
    """
    names, missing = outputs.matched(ours, theirs)
    reasons = [
        f"the candidate has no output {name!r}; it has {', '.join(map(repr, theirs))}"
        for name in missing
    ]
    further = [name for name in theirs if name not in names.values()]
    notes = []
    if further:
        what = counted(len(further), "output")
        listed = ", ".join(map(repr, further))
        notes = [f"The candidate has {what} that the reference lacks, not compared: {listed}."]
    found = []
    for name, other in sorted(names.items(), key=lambda entry: entry[0] != scores):
        a, b = ours[name], theirs[other]
        if name == scores:
            a, b = outputs.as_scores(a), outputs.as_scores(b)
        if a.shape != b.shape:
            reasons.append(
                f"{called(name, ours)} have the shape {b.shape}, the reference's {a.shape}"
            )
        else:
            found.append(Pair(name, a, b, name == scores))
    return found, reasons, notes


def called(name: str, all_of_them: Mapping[str, np.ndarray]) -> str:
    """Return what a sentence calls an output: ``logits`` where there is only one."""
    return outputs.ONLY if len(all_of_them) == 1 else f"the values of output {name!r}"
