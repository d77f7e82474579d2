"""The lines of benchmarks/quantization.py as a table, and what they say of ours and others'."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import results
from quantization_rows import CHOSEN

from labutils import metrics, paths

COLUMNS = ("model", "group", "by", "what", "runtime", "n", "top-1 % [95 %]",
           "minus fp32, points", "half-width", "agrees %", "SQNR dB", "MB", "time / fp32",
           "in float", "MACs at 16 bits %", "seconds")  # fmt: skip
_HEAD = ("model", "group", "by", "what", "runtime")

READING = (
    "Accuracy of the file that was written, in its runtime. QAT: seconds of its training.",
    "Points are lost against fp32; those of a trained row against the better of fp32 and fp32"
    " trained as long, which got the same steps, images and distillation from the original.",
    "half-width: 196 sqrt(d/n) points, d the share on which exactly one of the two is right.",
    "time / fp32: one image on one thread of this CPU, in turns with fp32 in ONNX Runtime.",
    "in float: convolutions and matrix products that a quantizer left in float.",
    "A verdict compares our preset of the group, chosen before, with the best row of all peers.",
    "torchao pt2e route, min-max: places, bits and symmetry of our recipes int8 and w4a8; torchao's"
    " observers leave no images out.",
    "AIMET's AdaRound is left out: by the 15,000 iterations that AIMET advises below 8 bits, it had"
    " rounded 3 of 64 layers of the large network after 35 minutes on one core.",
)


def cells(line: dict[str, object]) -> list[str]:
    """Return the words of a line."""
    head = [str(line[k]) for k in _HEAD]
    if "note" in line:
        rest = len(COLUMNS) - len(_HEAD) - 1
        return [*head, f"not made: {line['note']}", *[""] * rest]
    top1, (low, high) = line["top1"], line["top1"].interval
    difference = line["difference"]
    a, b = difference.interval
    return [
        *head, str(line["n"]), f"{100 * top1.value:.2f} [{100 * low:.1f}, {100 * high:.1f}]",
        f"{difference.value:+.2f} [{a:+.2f}, {b:+.2f}]", f"{line['half']:.2f}",
        f"{100 * line['agreement'].value:.2f}", f"{line['sqnr']:.1f}", f"{line['MB']:.2f}",
        _number(line, "ratio", ".2f"), _number(line, "floats", "d"), _number(line, "wide", ".1f"),
        _number(line, "seconds", ".0f"),
    ]  # fmt: skip


def _number(line: dict[str, object], key: str, form: str) -> str:
    value = line.get(key)
    return "" if value is None else format(value, form)


_EQUAL_DB = 0.1


def verdicts(lines: list[dict[str, object]]) -> list[str]:
    """Return, for each group, where our preset stands beside the best of the peers.

    Ahead or behind: the 95 % interval of the paired difference in top-1 excludes zero. A group
    counts with two peers that ran.
    """
    said = []
    shown = [x for x in lines if "top1" in x and x["runtime"] != "HTP simulator"]
    for model, group in dict.fromkeys((x["model"], x["group"]) for x in shown):
        rows = [x for x in shown if (x["model"], x["group"]) == (model, group)]
        preset = [x for x in rows if x["what"] == CHOSEN.get(group)]
        peers = [x for x in rows if x["by"] == "peer"]
        if preset and peers:
            counts = len({tool(str(x["what"])) for x in peers}) >= 2
            said += _verdict(f"{model}, {group}", preset[0], peers, counts)
    return said


def tool(what: str) -> str:
    """Return whose a peer's row is: what stands before the comma, without a version of it."""
    return what.partition(",")[0].partition(" pt2e")[0]


def _verdict(
    where: str, ours: dict[str, object], peers: list[dict[str, object]], counts: bool
) -> list[str]:
    best = max(peers, key=lambda x: (x["top1"].hits, x["sqnr"]))
    difference = metrics.paired_difference(ours["right"], best["right"])
    low, high = difference.interval
    place = "ahead" if low > 0 else "behind" if high < 0 else "tied"
    only = "" if counts else " (does not count: fewer than two peers ran)"
    nearest = max(peers, key=lambda x: x["sqnr"])
    gain = ours["sqnr"] - nearest["sqnr"]
    noise = "ahead" if gain > _EQUAL_DB else "behind" if gain < -_EQUAL_DB else "tied"
    return [
        f"{where}: ours {place} in top-1{only}, {difference}: {_said(ours)}; {_said(best)}",
        f"  and {noise} in SQNR: {_said(nearest)}",
    ]


def _said(line: dict[str, object]) -> str:
    return f"{line['what']} {100 * line['top1'].value:.2f} % {line['sqnr']:.1f} dB"


def write(
    lines: list[dict[str, object]],
    beginning: list[str],
    took: float,
    place: Path,
    name: str = "quantization",
) -> str:
    """Write NAME.csv and NAME.txt into a folder; return the text."""
    table = [COLUMNS, *(cells(line) for line in lines)]
    # a reason why not runs on to the right; it must not widen the column that it starts in
    counted = [["" if c.startswith("not made") else c for c in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*counted, strict=True)]
    text = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table
    ]
    new = sum(bool(line.get("made")) for line in lines)
    ran = f"{new} files were made in this run, which took {took / 60:.0f} min; the others earlier."
    full = "\n".join([*beginning, *READING, ran, "", *text, "", *verdicts(lines)]) + "\n"
    paths.write_text(place / f"{name}.txt", full)
    buffer = io.StringIO(results.commented(beginning))
    buffer.seek(0, io.SEEK_END)
    csv.writer(buffer, lineterminator="\n").writerows(table)
    paths.write_text(place / f"{name}.csv", buffer.getvalue())
    return full
