"""What surgery finds in 41 networks at each of its levels, and whether the outputs stay equal.

    python benchmarks/surgery_levels.py [--models NAME ... -o FOLDER]

The networks are those of surgery_coverage.py, with the same random weights. Each is built again for
every level and rule set: ``exact`` must leave the outputs as they were, within rounding; ``lite``
changes the function, and is only counted here (benchmarks/lite.py measures what it costs). A level
that finds nothing says so, as a user's call would. Nothing is kept between runs. Writes
benchmarks/results/surgery_levels.csv and .txt; some of the networks alone need `-o FOLDER`.
"""

from __future__ import annotations

import argparse
import csv
import io
import time
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import results
from surgery_coverage import CLASSIFIERS, OTHERS, built, one_line

from labutils import export, paths, surgery, tabular
from labutils.errors import LabError
from labutils.images import data

LEVELS = ("auto", "module", "function", "graph", "onnx")
SETS = {"exact": surgery.EXACT, "lite": surgery.LITE}


@dataclass(frozen=True)
class Row:
    """A network, a rule set, a level.

    Attributes
    ----------
    replaced, left
        Occurrences; those that a rule looked at and left, each with a reason in its report.
    error
        Largest difference of the outputs, in units of the largest output; empty when not compared.
    rules
        ``name x places``.
    reason
        Why nothing was replaced.
    """

    model: str
    rules_asked: str
    level: str
    replaced: int = 0
    left: int = 0
    error: str = ""
    seconds: float = 0.0
    rules: str = ""
    reason: str = ""


def main() -> None:
    """Run all of it and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=[*CLASSIFIERS, *OTHERS], metavar="NAME")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args()
    place = results.place(chosen.output, chosen.models == [*CLASSIFIERS, *OTHERS])
    if place is None:
        parser.error("pass -o FOLDER: some of the networks do not replace the recorded results")
    rows: list[Row] = []
    for number, name in enumerate(chosen.models, start=1):
        print(f"[{number}/{len(chosen.models)}] {name} ...", flush=True)
        rows += rows_of(name)
    write(rows, place)


def rows_of(name: str) -> Iterable[Row]:
    """Yield a row per rule set and level."""
    for rules_asked in SETS:
        for level in LEVELS:
            began = time.monotonic()
            try:
                report = operated(name, rules_asked, level)
            except LabError as error:
                yield Row(name, rules_asked, level, reason=one_line(error)[:300])
                continue
            yield Row(
                name,
                rules_asked,
                level,
                len(report.matches),
                len(report.left),
                f"{report.check.relative_error:.0e}" if report.check else "",
                round(time.monotonic() - began, 1),
                ", ".join(f"{rule} x {n}" for rule, n in report.counts.items() if n),
            )


def operated(name: str, rules_asked: str, level: str) -> surgery.Report:
    """Return the report of one surgery."""
    import onnx
    import torch

    network, preprocessing = built(name)
    images = data.load("val", 1, preprocessing.size).images
    inputs = preprocessing(images)
    rules = SETS[rules_asked]
    if level != "onnx":
        known = [rule for rule in rules if rule not in surgery.ONNX_ONLY]
        return surgery.replace_(network, known, level, torch.from_numpy(inputs))
    with paths.scratch() as folder:
        file = Path(folder, "model.onnx")
        export.to_onnx(network, file, preprocessing=preprocessing)
        return surgery.replace_(onnx.load(file), rules, "onnx", inputs)


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write the CSV with everything, and the text with a line per network and rule set."""
    images = "split val (drawn), 1 per network to compare outputs by; random weights"
    head = results.head(
        results.command("surgery_levels.py"), images, "torch", "torchvision", "timm", "onnx",
        "onnxruntime", developed=False,
    )  # fmt: skip
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow(field.name for field in fields(Row))
    writer.writerows(astuple(row) for row in rows)
    paths.write_text(folder / "surgery_levels.csv", results.commented(head) + made.getvalue())
    cells = {(row.model, row.rules_asked, row.level): row for row in rows}
    table = []
    for model, rules_asked in dict.fromkeys((row.model, row.rules_asked) for row in rows):
        of_level = [cells[model, rules_asked, level] for level in LEVELS]
        table.append((model, rules_asked, *map(_cell, of_level), of_level[0].error or "-"))
    title = (
        "Occurrences that surgery replaced, by level (- nothing to replace; ! the level does not "
        "apply, see below), and the largest error of 'auto' in units of the largest output"
    )
    text = tabular.text(title, ("model", "rules", *LEVELS, "error"), table, _summary(rows))
    paths.write_text(folder / "surgery_levels.txt", "\n".join([*head, "", text]) + "\n")
    print("\n".join(_summary(rows)))


def _cell(row: Row) -> str:
    if row.replaced:
        return str(row.replaced)
    return "-" if "matched nothing" in row.reason else "!"


def _summary(rows: Sequence[Row]) -> list[str]:
    exact = [row for row in rows if row.rules_asked == "exact" and row.error]
    worst = max(exact, key=lambda row: float(row.error))
    odd = {(r.model, r.level): r.reason for r in rows if r.reason and "matched no" not in r.reason}
    return [
        f"{len(exact)} exact surgeries were compared; the largest error is {worst.error} "
        f"({worst.model}, level {worst.level}).",
        *(f"{model}, level {level}: {why}" for (model, level), why in odd.items()),
    ]


if __name__ == "__main__":
    main()
