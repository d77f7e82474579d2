"""Do the tests notice a fault? Small faults, drawn by seed, are put into the product one at a time.

The places are all comparisons, arithmetic and boolean operators, numbers and returns of `PARTS`.
For each that is drawn, the tests that execute its line run, the quick ones first, until one fails.
A mutant lives in the memory of a forked process only: no file of the checkout is ever changed.
Tests marked slow, browser or sweep do not take part. Linux and macOS; about 50 minutes of one core.

    python benchmarks/mutants.py                # writes results/mutants.csv and mutants.txt
    python benchmarks/mutants.py --survivors    # only those that survived in results/mutants.csv
"""

from __future__ import annotations

import argparse
import ast
import csv
import hashlib
import sys
import time
from collections import Counter
from pathlib import Path

import mutant_runs
import yaml

ROOT = Path(__file__).resolve().parents[1]
PARTS = ["surgery", "quantize", "compare", "targets", "metrics.py"]
RESULTS = ROOT / "benchmarks/results/mutants.csv"
EQUIVALENT = ROOT / "benchmarks/equivalent_mutants.yaml"
COLUMNS = ["file", "line", "text", "kind", "before", "after", "verdict", "by"]
IDENTITY = ["file", "text", "before", "after"]  # a line's number moves

SWAPS = {
    ast.Lt: [ast.LtE, ast.GtE],
    ast.LtE: [ast.Lt, ast.Gt],
    ast.Gt: [ast.GtE, ast.LtE],
    ast.GtE: [ast.Gt, ast.Lt],
    ast.Eq: [ast.NotEq],
    ast.NotEq: [ast.Eq],
    ast.In: [ast.NotIn],
    ast.NotIn: [ast.In],
    ast.Is: [ast.IsNot],
    ast.IsNot: [ast.Is],
    ast.Add: [ast.Sub],
    ast.Sub: [ast.Add],
    ast.Mult: [ast.Div, ast.Add],
    ast.Div: [ast.Mult, ast.FloorDiv],
    ast.FloorDiv: [ast.Div, ast.Mult],
    ast.Mod: [ast.Mult, ast.FloorDiv],
    ast.Pow: [ast.Mult],
    ast.And: [ast.Or],
    ast.Or: [ast.And],
    ast.USub: [ast.UAdd],
}
LOGICAL = (ast.Compare, ast.BoolOp)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--number", type=int, default=160)
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--survivors", action="store_true", help="try those of the results again")
    chosen = parser.parse_args()
    started = time.monotonic()
    every = [place for file in sources() for place in places(file)]
    rows = drawn(every, chosen.seed, chosen.number)
    if chosen.survivors:
        _take_verdicts(rows)
    covered = mutant_runs.coverage([ROOT / file for file in sources()], chosen.jobs)
    open_ones = [row for row in rows if not row["verdict"]]
    mutant_runs.judge(open_ones, covered, mutated, chosen.jobs)
    _excuse(rows)
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    head = f"{len(rows)} of {len(every)} places, seed {chosen.seed}, in {', '.join(PARTS)}"
    text = summary(head, rows)
    RESULTS.with_suffix(".txt").write_text(text)
    print(text, f"\n{(time.monotonic() - started) / 60:.0f} minutes, {chosen.jobs} at once")
    sys.exit(mutant_runs.control(rows, chosen.jobs))


def sources() -> list[str]:
    """Return the product's files, as paths below the repository's root, in order."""
    folder = ROOT / "labutils"
    files = [f for part in PARTS for f in (folder / part, *sorted((folder / part).rglob("*.py")))]
    return [file.relative_to(ROOT).as_posix() for file in files if file.is_file()]


def places(file: str) -> list[dict]:
    """Return all places of a file in the order of its text, each with the number of ways."""
    source = (ROOT / file).read_text()
    found = []
    for number, (node, parent, statement, inside) in enumerate(_walk(ast.parse(source))):
        ways = _ways(node, parent)
        found.append(
            {
                "file": file,
                "line": node.lineno,
                "text": source.splitlines()[node.lineno - 1].strip(),
                "number": number,
                "ways": len(ways),
                "shown": f"{type(node).__name__} in {ast.unparse(parent)}" if ways else "",
                # the lines whose tests see it: None stands for all tests of the file
                "lines": (statement.lineno, node.end_lineno) if inside else None,
            }
        )
    return [place for place in found if place["ways"]]


def drawn(every: list[dict], seed: int, number: int) -> list[dict]:
    """Draw places and a way to change each: those whose hash with the seed is least.

    Unlike a sample by index, this draw stays the same where the sources stay the same.
    """
    seen: Counter = Counter()
    for place in every:
        key = f"{place['file']} {place['text']} {place['shown']}"
        seen[key] += 1
        place["hash"] = hashlib.sha256(f"{seed} {key} {seen[key]}".encode()).hexdigest()
    rows = []
    chosen = sorted(every, key=lambda place: place["hash"])[:number]
    for place in sorted(chosen, key=lambda place: (place["file"], place["number"])):
        way = int(place["hash"], 16) % place["ways"]
        row = {**place, "way": way, "verdict": "", "by": ""}
        row["kind"], row["before"], row["after"], _ = mutated(row)
        rows.append(row)
    return rows


def mutated(row: dict) -> tuple[str, str, str, ast.Module]:
    """Return kind, text before and after, and the changed module of a row."""
    tree = ast.parse((ROOT / row["file"]).read_text())
    node, parent, *_ = list(_walk(tree))[row["number"]]
    kind, change = _ways(node, parent)[row["way"]]
    shown = parent if isinstance(parent, ast.expr | ast.Return) else node
    before = ast.unparse(shown)
    change()
    return kind, before, ast.unparse(shown), ast.fix_missing_locations(tree)


def _walk(node, parent=None, statement=None, inside=False):
    """Every node that runs, with its parent, its statement, and whether a function holds it."""
    yield from () if statement is None else [(node, parent, statement, inside)]
    for name, content in ast.iter_fields(node):
        if name in {"annotation", "returns", "format_spec"}:
            continue
        held = inside or (name == "body" and isinstance(node, ast.FunctionDef | ast.Lambda))
        for child in content if isinstance(content, list) else [content]:
            if isinstance(child, ast.AST) and hasattr(child, "lineno"):
                own = child if isinstance(child, ast.stmt) else statement
                yield from _walk(child, node, own, held)
            elif isinstance(child, ast.AST):  # arguments, comprehensions, keywords without a line
                yield from _below(child, node, statement, held)


def _below(group, parent, statement, inside):
    for child in ast.iter_child_nodes(group):
        if hasattr(child, "lineno") and not isinstance(child, ast.arg):
            own = child if isinstance(child, ast.stmt) else statement
            yield from _walk(child, parent, own, inside)


def _ways(node, parent) -> list[tuple]:
    """All changes of one node: (kind, a function that makes it)."""
    match node:
        case ast.Compare():
            return [
                ("comparison", lambda at=at, new=new: node.ops.__setitem__(at, new()))
                for at, operator in enumerate(node.ops)
                for new in SWAPS[type(operator)]
            ]
        case ast.BinOp() | ast.AugAssign() | ast.UnaryOp() if type(node.op) in SWAPS:
            if any(_is_text(side) for side in ast.iter_child_nodes(node)):
                return []
            return [("arithmetic", _setter(node, "op", new())) for new in SWAPS[type(node.op)]]
        case ast.BoolOp():
            return [("boolean", _setter(node, "op", new())) for new in SWAPS[type(node.op)]]
        case ast.UnaryOp(op=ast.Not()):
            twice = ast.UnaryOp(ast.Not(), node.operand)
            return [("boolean", _setter(node, "operand", twice))]
        case ast.Constant(value=int() | float()) if not isinstance(node.value, bool):
            return [("number", _setter(node, "value", new)) for new in _other(node.value)]
        case ast.Return(value=ast.Constant(value=bool() as value)):
            return [("return", _setter(node.value, "value", not value))]
        case ast.Return(value=value) if value and ast.unparse(value) != "None":
            negated = isinstance(value, LOGICAL) or _is_not(value)
            new = ast.UnaryOp(ast.Not(), value) if negated else ast.Constant(None)
            return [("return", _setter(node, "value", new))]
    return []


def _setter(node, name, new):
    return lambda: setattr(node, name, new)


def _other(value: int | float) -> list:
    if isinstance(value, int):
        return [value + 1, value - 1]
    return [value * 2, value / 2] if value else [1.0]


def _is_not(node) -> bool:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _is_text(node) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _take_verdicts(rows: list[dict]) -> None:
    """Keep what the results say of mutants that were killed, or are shown equivalent."""
    known = {}
    with RESULTS.open(newline="") as file:
        known = {tuple(row[k] for k in IDENTITY): row for row in csv.DictReader(file)}
    for row in rows:
        old = known.get(tuple(row[k] for k in IDENTITY))
        if old and old["verdict"] != "survived":
            row.update(verdict=old["verdict"], by=old["by"])


def _excuse(rows: list[dict]) -> None:
    """Call a survivor equivalent where the committed file says why."""
    listed = yaml.safe_load(EQUIVALENT.read_text()) if EQUIVALENT.exists() else []
    reasons = {tuple(entry[k] for k in IDENTITY): entry["reason"] for entry in listed}
    for row in rows:
        reason = reasons.get(tuple(row[k] for k in IDENTITY))
        if row["verdict"] == "survived" and reason:
            row.update(verdict="equivalent", by=reason)


def summary(head: str, rows: list[dict]) -> str:
    """Return counts by kind and by part, the survivors, and what killed the others."""
    counts = Counter(row["verdict"] for row in rows)
    judged = len(rows) - counts["equivalent"]
    lines = [f"Recorded {time.strftime('%Y-%m-%d')} with: python benchmarks/mutants.py", head, ""]
    lines += [f"{counts['killed']} of {judged} killed ({counts['killed'] / judged:.1%}), "]
    lines[-1] += f"{counts['survived']} survived, {counts['equivalent']} equivalent"
    for name, key in [("kind", lambda row: row["kind"]), ("part", _part)]:
        lines += ["", f"{name:<12}" + "".join(f"{verdict:>12}" for verdict in counts)]
        for value in sorted({key(row) for row in rows}):
            own = Counter(row["verdict"] for row in rows if key(row) == value)
            lines.append(f"{value:<12}" + "".join(f"{own[verdict]:>12}" for verdict in counts))
    for verdict in ("survived", "equivalent", "killed"):
        lines += ["", verdict, "-" * len(verdict)]
        for row in rows:
            if row["verdict"] == verdict:
                lines.append(f"{row['file']}:{row['line']} {row['kind']}: {_short(row['before'])}")
                lines.append(f"    -> {_short(row['after'])}   [{row['by']}]")
    return "\n".join(lines) + "\n"


def _part(row: dict) -> str:
    return Path(row["file"]).parts[1].removesuffix(".py")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 90 else text[:89] + "…"


if __name__ == "__main__":
    main()
