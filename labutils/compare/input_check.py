"""What a file is fed and what its network wants: classic mistakes of preprocessing, told apart.

From a few labelled pictures. The network proper begins where the first convolution reads: what
arrives there shows what was done to the pixels, and the network's answers show what it was trained
on. So both sides are known, and a mistake is their difference: channels in the other order, chroma
in the other order, mean and scale twice, another range.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import metrics, tabular, typesetting
from ..errors import UsageError
from ..images import data, nv12
from . import conventions, network_entry
from .conventions import Convention
from .network_entry import Entry

_SURE = 0.01  # of seeing so many pictures answered better by chance, over all conventions
_WORTH = 0.1  # nats: a smaller gain, significant or not, changes no answer


@dataclass(frozen=True)
class Row:
    """What a network answers when it is fed by one convention."""

    convention: Convention
    accuracy: metrics.Proportion
    certainty: float
    """Mean natural logarithm of the true class's probability."""


@dataclass(frozen=True, repr=False)
class InputCheck(typesetting.Shown):
    """What a file's network gets, what it wants, and the mistakes that are the difference.

    Attributes
    ----------
    file, pictures
        What was checked, and on what.
    fed
        How its input was made, as text.
    delivered
        What arrives at the first convolution; None where it is none of the known conventions, or
        the input's preprocessing is not stated.
    now
        How many answers are right with that; None where nothing was stated.
    rows
        Every convention, the best one first.
    mistakes
        (kind, what is wrong and what to do); empty where none was found.
    verdict
        One sentence.
    """

    file: str
    pictures: str
    fed: str
    delivered: Convention | None
    now: metrics.Proportion | None
    rows: tuple[Row, ...]
    mistakes: tuple[tuple[str, str], ...]
    verdict: str

    @property
    def ok(self) -> bool:
        """Whether no mistake was found."""
        return not self.mistakes

    def to_dict(self) -> dict[str, Any]:
        """Return the check as plain values, for JSON."""
        return {
            "file": self.file, "pictures": self.pictures, "fed": self.fed,
            "delivered": self.delivered.name if self.delivered else None,
            "now": str(self.now) if self.now else None,
            "rows": [
                {"convention": row.convention.name, "top1": str(row.accuracy),
                 "certainty": row.certainty} for row in self.rows
            ],
            "mistakes": [{"kind": kind, "what": what} for kind, what in self.mistakes],
            "verdict": self.verdict, "ok": self.ok,
        }  # fmt: skip

    def __str__(self) -> str:
        head = ("the first convolution gets", "top-1", "mean log-probability")
        rows = [
            (row.convention.name, str(row.accuracy), f"{row.certainty:.2f}") for row in self.rows
        ]
        gets = self.delivered.name if self.delivered else "none of the known conventions"
        now = f"; top-1 {self.now}" if self.now else ""
        said = [f"fed: {self.fed}"] + ([f"so it gets: {gets}{now}"] if self.now else [])
        title = f"{self.file}, input checked on {self.pictures}"
        table = tabular.text(title, head, rows, [])
        found = [f"{kind}: {what}" for kind, what in self.mistakes]
        return "\n".join([table, *said, *found, self.verdict])


def check(
    artifact: Any,
    pictures: data.ImageSet,
    preprocessing: data.Preprocessing | None,
    *,
    output: str | None = None,
    kind: nv12.Range | None = None,
    order: nv12.Order = "nv12",
) -> InputCheck:
    """Find out which mistake of preprocessing a file suffers from, if any.

    Parameters
    ----------
    artifact
        A module, an `OnnxFile`, or the path of an ``.onnx`` or ``.dlc``; it takes one float32
        picture, or the bytes of NV12.
    pictures
        At the file's size, each with the number of its class as the file numbers them.
    preprocessing
        What the file's input is normalised with; None where nobody says, or for bytes.
    output
        Which output has the scores; by default the one whose shape and name say so.
    kind, order
        Of the NV12 bytes that the file is fed; by default what its metadata say, else as OpenCV
        makes them (video range).

    Raises
    ------
    UsageError
        There are no labelled pictures, or the file gives no scores.
    """
    known = pictures.labels != data.NO_LABEL
    if not known.any():
        raise UsageError(
            "The input check compares answers with labels, and these pictures have none. Pass "
            "--data FOLDER with one subfolder per class."
        )
    pixels, labels = np.asarray(pictures.images)[known], pictures.labels[known]
    with network_entry.opened(artifact, output) as entry:
        fed = _feeding(entry, preprocessing, kind, order)
        pixels = pixels if entry.channels == 3 else data.luma(pixels)
        through = _seen(pixels, fed) if fed.bytes else pixels
        wanted = conventions.usual(entry.channels, preprocessing)
        orders = dict.fromkeys(c.order for c in wanted)
        arriving = entry.delivered(fed.make(pixels)) if fed.make else None
        now = _Answers.of(entry.answers(arriving), labels) if arriving is not None else None
        delivered = None
        if arriving is not None:
            delivered = conventions.fitted(arriving, _damaged(pixels, fed), wanted)
        if delivered is not None and delivered.scaling == conventions.OWN:
            wanted += [dataclasses.replace(delivered, order=o, damage="") for o in orders]
        if delivered is not None:
            wanted += conventions.once(delivered, preprocessing if not fed.bytes else None, wanted)
        rows = {c: _Answers.of(entry.answers(c(through)), labels) for c in wanted}
    alike = _alike(rows)
    best = min(alike, key=lambda c: _differences(c, delivered))
    mistakes, verdict = _judged(delivered, best, now, rows, fed)
    if now is not None and len(alike) > 1:
        others = "; ".join(c.name for c in alike if c != best)
        verdict += f" These pictures do not tell {best.name} from: {others}."
    return InputCheck(
        file=entry.name,
        pictures=f"{len(labels)} pictures ({pictures.source})",
        fed=fed.words,
        delivered=delivered,
        now=now.accuracy if now else None,
        rows=_sorted(rows),
        mistakes=mistakes,
        verdict=verdict,
    )


@dataclass(frozen=True)
class _Feeding:
    words: str
    make: Callable[[np.ndarray], np.ndarray] | None
    bytes: tuple[nv12.Range, nv12.Order] | None = None


def _feeding(
    entry: Entry,
    preprocessing: data.Preprocessing | None,
    kind: nv12.Range | None,
    order: nv12.Order,
) -> _Feeding:
    """Return how the file's input is made of pictures, as it is stated."""
    if entry.bytes is not None:
        chosen: nv12.Range = kind or entry.bytes.kind or "video"
        words = f"{order.upper()} bytes, {chosen} range"
        return _Feeding(words, lambda p: nv12.encode(p, chosen, order), (chosen, order))
    if preprocessing is None:
        return _Feeding("nothing is stated, and nothing was fed", None)
    return _Feeding(str(preprocessing), preprocessing)


def _seen(pixels: np.ndarray, fed: _Feeding) -> np.ndarray:
    """Return the pictures as NV12 can show them."""
    assert fed.bytes is not None  # asked by the caller
    return nv12.decode(nv12.encode(pixels, *fed.bytes), *fed.bytes)


def _damaged(pixels: np.ndarray, fed: _Feeding) -> dict[str, np.ndarray]:
    """Return the pictures as they arrive, by what may have happened to their bytes."""
    if fed.bytes is None:
        return {"": pixels}
    kind, order = fed.bytes
    sent = nv12.encode(pixels, kind, order)
    other_kind: nv12.Range = "full" if kind == "video" else "video"
    other_order: nv12.Order = "nv21" if order == "nv12" else "nv12"
    swapped = f"{order.upper()} read as {other_order.upper()}"
    ranged = f"{kind} range read as {other_kind}"
    return {
        "": nv12.decode(sent, kind, order),
        swapped: nv12.decode(sent, kind, other_order),
        ranged: nv12.decode(sent, other_kind, order),
        f"{swapped}, {ranged}": nv12.decode(sent, other_kind, other_order),
    }


@dataclass(frozen=True)
class _Answers:
    right: np.ndarray
    certainty: np.ndarray

    @classmethod
    def of(cls, scores: np.ndarray, labels: np.ndarray) -> _Answers:
        shares = metrics.softmax(scores)
        true = np.log(np.maximum(shares[np.arange(len(labels)), labels], 1e-12))
        return cls(metrics.correct(scores, labels), true)

    @property
    def accuracy(self) -> metrics.Proportion:
        return metrics.Proportion(int(self.right.sum()), len(self.right))


def _sorted(rows: Mapping[Convention, _Answers]) -> tuple[Row, ...]:
    made = [Row(c, a.accuracy, float(a.certainty.mean())) for c, a in rows.items()]
    return tuple(sorted(made, key=lambda row: (-row.accuracy.value, -row.certainty)))


def _alike(rows: Mapping[Convention, _Answers]) -> list[Convention]:
    """Return the conventions that are answered best, as far as these pictures tell; best first."""
    ordered = sorted(rows, key=lambda c: (-rows[c].right.sum(), -rows[c].certainty.mean()))
    top = rows[ordered[0]]
    best = ordered[0].scaling
    return [c for c in ordered if not _better(top, rows[c], len(rows), c.scaling == best)]


def _differences(one: Convention, other: Convention | None) -> tuple[int, bool]:
    """Return in how much two conventions differ; of equals, mean and std is the usual one."""
    apart = (one.order != other.order) + (one.scaling != other.scaling) if other else 0
    return apart, one.scaling != conventions.MEAN_AND_SCALE


def _better(best: _Answers, now: _Answers, tried: int, one_scaling: bool) -> bool:
    """Whether answers are better by more than chance: sign tests, corrected for the choice.

    A larger scale makes any network surer of itself, so scalings are judged by how many answers
    are right; orders of channels also by how sure the right ones are.
    """
    won = int((best.right & ~now.right).sum()), int((now.right & ~best.right).sum())
    if _chance(*won) * tried < _SURE:
        return True
    gain = best.certainty - now.certainty
    surer = int((gain > 0).sum()), int((gain < 0).sum())
    more = best.right.sum() >= now.right.sum() and gain.mean() > _WORTH
    return bool(one_scaling and more and _chance(*surer) * tried < _SURE)


def _chance(up: int, down: int) -> float:
    """Return the probability of at least `up` heads in that many throws of a coin."""
    n = up + down
    return sum(math.comb(n, k) for k in range(up, n + 1)) / 2**n


def _judged(
    delivered: Convention | None,
    best: Convention,
    now: _Answers | None,
    rows: Mapping[Convention, _Answers],
    fed: _Feeding,
) -> tuple[tuple[tuple[str, str], ...], str]:
    """Return the mistakes, and a sentence about all of it."""
    top = rows[best]
    if now is None:
        return (), f"It states no preprocessing. It answers best on {best.name}."
    same = delivered is not None and delivered.scaling == best.scaling
    twice = delivered is not None and delivered.scaling == conventions.TWICE
    worse = (
        twice and best.scaling == conventions.MEAN_AND_SCALE and top.right.sum() > now.right.sum()
    )
    if not worse and not _better(top, now, len(rows), same):
        damage = _of_damage(delivered, fed)
        if damage:
            return damage, "The answers hardly suffer from it on these pictures."
        return (), "No mistake found: no other convention is answered better by more than chance."
    if delivered is None:
        what = f"what its first convolution gets is not a known convention; it wants {best.name}"
        return (("preprocessing inside the file", what),), _gain(top, now)
    found = [*_of_damage(delivered, fed), *_of_order(delivered, best)]
    found += _of_scaling(delivered, best)
    return tuple(found), _gain(top, now)


def _gain(top: _Answers, now: _Answers) -> str:
    points = metrics.paired_difference(top.right, now.right)
    return f"Without that, top-1 is {top.accuracy} instead of {now.accuracy}: {points}."


def _of_damage(delivered: Convention | None, fed: _Feeding) -> tuple[tuple[str, str], ...]:
    if delivered is None or not delivered.damage:
        return ()
    found = []
    for part in delivered.damage.split(", "):
        kind = "range" if "range" in part else "NV12/NV21"
        cure = (
            "write the bytes in the range that the file reads, or build the file for the other "
            "one (hb_mapper: input_space_and_range)"
            if kind == "range"
            else "swap the two bytes of each chroma pair, or build the file for the other order"
        )
        found.append((kind, f"{part}: {cure}"))
    return tuple(found)


def _of_order(delivered: Convention, best: Convention) -> list[tuple[str, str]]:
    if delivered.order == best.order:
        return []
    what = (
        f"the network wants {best.order} and gets {delivered.order}: swap the first and the last "
        "channel once, where the picture is read or in the file"
    )
    return [("RGB/BGR", what)]


def _of_scaling(delivered: Convention, best: Convention) -> list[tuple[str, str]]:
    gets, wants = delivered.scaling, best.scaling
    ends = [(np.array(c.scale), np.array(c.offset)) for c in (delivered, best)]
    if gets == wants or conventions.equal(*ends):
        return []
    if gets == conventions.TWICE or wants.startswith(conventions.ONCE):
        what = (
            f"its first convolution gets {gets}; it wants {wants}. Leave one of the two out: "
            "either the file normalises, or what feeds it does"
        )
        return [("mean and scale twice", what)]
    what = f"the network wants {wants} and gets {gets}"
    if gets == conventions.MEAN_AND_SCALE and wants.startswith("pixels 0"):
        what += (
            ". Either it was trained on those, or its first convolution has mean and scale folded "
            "in, and they are applied twice. Feed it those pixels"
        )
        return [("mean and scale twice, or range", what)]
    return [("range", f"{what}: state the mean and std that it was trained with")]
