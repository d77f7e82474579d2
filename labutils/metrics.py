"""The figures of the lab, in numpy: top-k, agreement, cosine, SQNR, and 95 % intervals.

Every proportion carries its number of images and an interval, because a difference of one point
on a hundred images says nothing. Logits are float arrays of shape (images, classes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import UsageError

Z95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval


@dataclass(frozen=True)
class Proportion:
    """`hits` out of `n`, with Wilson's score interval.

    Notes
    -----
    Wilson, E. B. (1927), "Probable inference, the law of succession, and statistical inference",
    JASA 22, 209-212. Unlike the normal interval it stays inside [0, 1] and keeps a width at 0 %
    and 100 %, where accuracies of a converted model like to be.
    """

    hits: int
    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise UsageError("A proportion needs at least one image; there were none.")
        if not 0 <= self.hits <= self.n:
            raise UsageError(f"A proportion of {self.hits} hits in {self.n} images is impossible.")

    @property
    def value(self) -> float:
        """The share of hits, 0 to 1."""
        return self.hits / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval (low, high), each 0 to 1."""
        p, n, z2 = self.value, self.n, Z95 * Z95
        center = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        # rounding must not push an end past the value or outside [0, 1]
        return max(0.0, min(center - half, p)), min(1.0, max(center + half, p))

    def __str__(self) -> str:
        low, high = self.interval
        return f"{100 * self.value:.1f} % [{100 * low:.1f}, {100 * high:.1f}] (n={self.n})"

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two top-1 rates on the same images, in percentage points.

    Attributes
    ----------
    value
        ``100 * mean(correct_a - correct_b)``.
    interval
        95 % interval (low, high), in points.
    n
        Number of images.
    """

    value: float
    interval: tuple[float, float]
    n: int

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:+.2f} points [{low:+.2f}, {high:+.2f}] (n={self.n})"

    def __repr__(self) -> str:
        return str(self)


def paired_difference(correct_a: ArrayLike, correct_b: ArrayLike) -> PairedDifference:
    """Compare two models on the same images.

    Parameters
    ----------
    correct_a, correct_b
        Booleans of shape (n,): was image i classified correctly.

    Returns
    -------
    PairedDifference
        a minus b, in points. Only the images where exactly one of the two is right decide.

    Notes
    -----
    The interval is Wald's on the per-image difference after adding half an image to each of the
    four cells of the paired table: Agresti, A. & Min, Y. (2005), "Simple improved confidence
    intervals for comparing matched proportions", Statistics in Medicine 24, 729-740. The plain
    Wald interval has zero width when the two models never disagree, the usual case for an
    exactly repaired model; this one keeps its coverage there (the tests simulate it).

    Examples
    --------
    >>> from labutils import metrics
    >>> metrics.paired_difference([True, True, False, True], [True, False, False, True])
    +25.00 points [-27.56, +60.90] (n=4)
    """
    a, b = _flags(correct_a), _flags(correct_b)
    if a.shape != b.shape:
        raise UsageError(f"A paired difference needs the same images: {a.shape} against {b.shape}.")
    n = len(a)
    only_a, only_b = int(np.sum(a & ~b)), int(np.sum(b & ~a))
    more_a, more_b, total = only_a + 0.5, only_b + 0.5, n + 2
    center = (more_a - more_b) / total
    half = Z95 * math.sqrt(more_a + more_b - (more_a - more_b) ** 2 / total) / total
    low, high = max(-1.0, center - half), min(1.0, center + half)
    return PairedDifference(100 * (only_a - only_b) / n, (100 * low, 100 * high), n)


def softmax(logits: ArrayLike) -> NDArray[np.float64]:
    """Return the probabilities of `logits` (n, classes), in float64; each row adds up to 1."""
    logits = _logits(logits).astype(np.float64)
    powers: NDArray[np.float64] = np.exp(logits - logits.max(axis=1, keepdims=True))
    powers /= powers.sum(axis=1, keepdims=True)
    return powers


def topk(logits: ArrayLike, k: int = 1) -> NDArray[np.int64]:
    """Return the `k` best classes per image, best first, as integers of shape (n, k).

    Equal logits are ordered by class number, as ``argmax`` does.
    """
    logits = _logits(logits)
    if not 1 <= k <= logits.shape[1]:
        raise UsageError(f"top-{k} of {logits.shape[1]} classes is impossible.")
    return np.argsort(-logits, axis=1, kind="stable")[:, :k].astype(np.int64)


def correct(logits: ArrayLike, labels: ArrayLike, k: int = 1) -> NDArray[np.bool_]:
    """Tell per image whether its label is among the `k` best classes; booleans of shape (n,)."""
    best = topk(logits, k)
    labels = np.asarray(labels)
    if labels.shape != (len(best),):
        raise UsageError(f"{len(best)} rows of logits, but labels of shape {labels.shape}.")
    if labels.dtype.kind not in "iu":
        raise UsageError(f"Labels must be integer class numbers, not {labels.dtype}.")
    classes = np.shape(logits)[1]
    if len(labels) and not 0 <= labels.min() <= labels.max() < classes:
        raise UsageError(
            f"Labels run from {labels.min()} to {labels.max()}, the model has {classes} classes. "
            "Leave out images of unknown class (-1), as gallery.accuracy does."
        )
    found: NDArray[np.bool_] = (best == labels[:, None]).any(axis=1)
    return found


def accuracy(logits: ArrayLike, labels: ArrayLike, k: int = 1) -> Proportion:
    """Return the top-`k` accuracy of `logits` (n, classes) on integer `labels` (n,).

    Examples
    --------
    >>> from labutils import metrics
    >>> logits = [[2.0, 0.1], [0.3, 0.9], [1.5, 1.0], [0.2, 0.4]]
    >>> metrics.accuracy(logits, [0, 1, 1, 1])
    75.0 % [30.1, 95.4] (n=4)
    """
    right = correct(logits, labels, k)
    return Proportion(int(right.sum()), len(right))


def agreement(a: ArrayLike, b: ArrayLike) -> Proportion:
    """Return how often two models name the same class first; both (n, classes)."""
    a, b = _logits(a), _logits(b)
    if a.shape != b.shape:
        raise UsageError(
            f"Agreement needs equal shapes, not {a.shape} and {b.shape}. Compare networks with the "
            "same classes, on the same images."
        )
    return Proportion(int((a.argmax(axis=1) == b.argmax(axis=1)).sum()), len(a))


def cosine(a: ArrayLike, b: ArrayLike) -> float:
    """Return the cosine of the angle between two tensors, flattened, in float64.

    1.0 when both are all zero, 0.0 when only one is. Blind to a constant factor: read it
    beside the SQNR.

    Examples
    --------
    >>> from labutils import metrics
    >>> round(metrics.cosine([1.0, 2.0], [2.0, 4.0]), 6)  # blind to a factor
    1.0
    """
    a, b = _pair(a, b)
    if np.array_equal(a, b):
        return 1.0  # without rounding
    # scaled first, so that tiny activations do not underflow when squared
    a, b = a / (np.abs(a).max() or 1.0), b / (np.abs(b).max() or 1.0)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    if norms == 0.0:
        return 0.0
    return float(np.clip(a @ b / norms, -1.0, 1.0))


def sqnr_db(reference: ArrayLike, test: ArrayLike) -> float:
    """Return the signal to quantization noise ratio in dB: ``10 log10(|r|^2 / |r - t|^2)``.

    ``inf`` when the tensors are equal, ``-inf`` when the reference is all zero and the test is
    not. 6 dB is one bit.

    Examples
    --------
    >>> from labutils import metrics
    >>> round(metrics.sqnr_db([1.0, 2.0, 3.0], [1.01, 1.98, 3.0]), 1)
    44.5
    """
    reference, test = _pair(reference, test)
    if np.array_equal(reference, test):
        return math.inf
    scale = max(np.abs(reference).max(), np.abs(test).max())
    signal = float(np.sum((reference / scale) ** 2))
    noise = float(np.sum(((reference - test) / scale) ** 2))
    return sqnr_of_sums(signal, noise)


def sqnr_of_sums(signal: float, noise: float) -> float:
    """Return the SQNR in decibels from sums of squares: of the reference, and of the difference.

    For tensors that are seen in parts; `sqnr_db` is for whole ones.
    """
    if noise == 0.0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def cosine_of_sums(aa: float, bb: float, ab: float, *, equal: bool) -> float:
    """Return the cosine from the sums of squares of two tensors and of their products.

    `equal` decides where one is all zero: 1.0 when the other is, too, else 0.0. For tensors that
    are seen in parts; `cosine` is for whole ones.
    """
    return min(1.0, ab / math.sqrt(aa * bb)) if aa * bb > 0.0 else float(equal)


def _flags(values: ArrayLike) -> NDArray[np.bool_]:
    values = np.asarray(values)
    if values.ndim != 1 or values.dtype != np.bool_:
        raise UsageError(f"Expected booleans of shape (n,), got {values.dtype} {values.shape}.")
    if not len(values):
        raise UsageError("A paired difference needs at least one image; there were none.")
    return values


def _logits(values: ArrayLike) -> NDArray[np.floating]:
    values = np.asarray(values)
    if values.ndim != 2 or 0 in values.shape:
        raise UsageError(f"Logits must have the shape (images, classes), not {values.shape}.")
    if values.dtype.kind != "f":
        raise UsageError(f"Logits must be floating point numbers, not {values.dtype}.")
    _refuse_non_finite(values)
    return values


def _pair(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise UsageError(f"Only tensors of one shape can be compared: {a.shape} and {b.shape}.")
    if not a.size:
        raise UsageError("Empty tensors cannot be compared.")
    _refuse_non_finite(a)
    _refuse_non_finite(b)
    return a.ravel(), b.ravel()


def _refuse_non_finite(values: NDArray[np.floating]) -> None:
    bad = int((~np.isfinite(values)).sum())
    if bad:
        raise UsageError(
            f"{bad} of {values.size} values are NaN or infinite: no figure means anything here. "
            "Find the layer that made them first."
        )
