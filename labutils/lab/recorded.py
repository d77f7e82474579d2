"""Steps that need Qualcomm's wheel, or a tool: run where they work, else shown as recorded.

A recorded result is a display (text and HTML) with its date, versions and machine; that of a tool
has its plain values, too. It is never
shown as if it had been run here: its first line says that it was not, and why. With
``LABUTILS_RECORD=1`` (`make notebooks`) a step that runs is recorded as well.
"""

from __future__ import annotations

import csv
import itertools
import json
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import paths, typesetting, untrusted
from ..errors import MissingToolError, UsageError
from ..runtime import litert, qnn
from ..tools import environment

FOLDER = paths.DATA / "recorded"

_LIVE = "A live view; it is not recorded."
_RULER = re.compile(r"-+(  -+)+")  # under the heads of a table's columns
_KEY = re.compile(r"\d\d\.[a-z0-9_]+")


@dataclass(frozen=True)
class Network:
    """Which network a step works with: a recorded result counts for this one only.

    Attributes
    ----------
    words
        Its name and weights, for a reader.
    sha256
        Of its weights, as in `zoo.Model`; "" when that is unknown.
    recipes
        Name -> hash of the recipes (`quantize.Recipe.sha256`) of the quantized files at work.
    """

    words: str = ""
    sha256: str = ""
    recipes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Shown(typesetting.Shown):
    """The outcome of a step: what there is to see, one part below the other.

    Attributes
    ----------
    values
        What the step returned; None when it was not run here.
    parts
        (text, HTML) of each part.
    heading
        Where a recorded result comes from; empty for a step that was run.
    facts
        Of a step that needs a tool: what its value's `to_dict` returned, here or where it was
        recorded.
    """

    values: Any = field(repr=False)
    parts: tuple[tuple[str, str], ...]
    heading: str = ""
    facts: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def recorded(self) -> bool:
        """Whether the step was not run here."""
        return bool(self.heading)

    def measured(self, read: Callable[..., Any]) -> Any:
        """Return what `read` makes of the step's results; None where the step was not run here.

        Parameters
        ----------
        read
            Called with what the step returned; with several arguments where that is a tuple.
        """
        if self.values is None:
            return None
        return read(*self.values) if isinstance(self.values, tuple) else read(self.values)

    def __str__(self) -> str:
        texts = [text for text, _ in self.parts]
        return "\n\n".join([self.heading, *texts] if self.heading else texts)

    def _repr_html_(self) -> str:
        body = "".join(typesetting.scrolling(part) for _, part in self.parts)
        if not self.heading:
            return body
        head = f"<p role='note'><strong>{typesetting.words(self.heading)}</strong></p>"
        return f"<div style='border-left:4px solid #e69f00;padding-left:1em'>{head}{body}</div>"


def run(key: str, step: Callable[..., Any], *args: Any, network: Network | None = None) -> Shown:
    """Run a step on the HTP simulator, or return what it showed where it was recorded.

    Parameters
    ----------
    key
        Names the step, after its notebook: ``"06.ladder"``.
    step, *args
        Called where the simulator works. Returns something displayable, or a tuple of such.
    network
        Kept with a record, and compared with it: a result of another network says that it is.

    Raises
    ------
    UsageError
        `key` has another form.
    """
    _refuse_other_forms(key)
    availability = qnn.probe()
    needed = _Needed({"qnn": availability.versions.get("QNN", "")}, availability.reason)
    return _run(
        key, replace(needed, missing="") if availability.ok else needed, step, args, network
    )


def run_with(
    tools: tuple[str, ...],
    key: str,
    step: Callable[..., Any],
    *args: Any,
    network: Network | None = None,
) -> Shown:
    """Run a step that needs tools of `labutils tools`, or return what it showed elsewhere.

    Parameters
    ----------
    tools
        Their names; LiteRT's runtime is needed as well.
    key, step, *args, network
        As for `run`.

    Raises
    ------
    UsageError
        `key` has another form.
    """
    _refuse_other_forms(key)
    return _run(key, _needed(tools), step, args, network)


def _refuse_other_forms(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise UsageError(f"A step is named after its notebook, like '06.ladder', not {key!r}.")


@dataclass(frozen=True)
class _Needed:
    """What a record says of the programs that a step needs, and what is missing here of them."""

    entry: dict[str, str]
    missing: str = ""


def _needed(tools: tuple[str, ...]) -> _Needed:
    surveys = [environment.survey(tool) for tool in tools]
    pins = [package for survey in surveys for package in survey.lock.packages]
    entry = {"tools": ", ".join(pin.replace("==", " ") for pin in pins)}
    for survey in surveys:
        try:
            _ = survey.python
        except MissingToolError as error:
            return _Needed(entry, str(error))
    runtime = litert.probe()
    return _Needed(entry, "" if runtime.ok else runtime.reason)


def _run(
    key: str,
    needed: _Needed,
    step: Callable[..., Any],
    args: tuple[Any, ...],
    network: Network | None,
) -> Shown:
    if needed.missing:
        return _replayed(key, needed.missing, network)
    values = step(*args)
    parts = tuple(map(_display, values if isinstance(values, tuple) else (values,)))
    facts = values.to_dict() if "tools" in needed.entry and hasattr(values, "to_dict") else {}
    shown = Shown(values, parts, facts=facts)
    if os.environ.get("LABUTILS_RECORD") == "1":
        _write(key, shown, needed.entry, network or Network())
    return shown


def machine() -> str:
    """Return this machine as text, as far as a figure depends on it: cores and system."""
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def _display(value: Any) -> tuple[str, str]:
    """Return a value's text and HTML, as a notebook would show it."""
    text = str(value)
    rich = getattr(value, "_repr_html_", None)
    shown = rich() if rich else None
    return text, shown or typesetting.listing(text)


def at_hand() -> bool:
    """Whether there are recorded results at all."""
    return any(FOLDER.glob("*.json"))


def file_of(key: str) -> Path:
    """Return where the record of a step belongs; it may not exist."""
    return FOLDER / f"{key}.json"


def _replayed(key: str, reason: str, network: Network | None) -> Shown:
    file = file_of(key)
    try:
        entry = untrusted.json_file(file)
        parts = tuple((str(part["text"]), str(part["html"])) for part in entry["parts"])
        words = ", ".join(filter(None, (entry["machine"], entry["model"])))
        made = entry["tools"] if "tools" in entry else f"QNN {entry['qnn']}"
        told = f"ecorded on {entry['date']} with {made} ({words})"
        other = _other(entry, network) if network else ""
        facts = dict(entry.get("facts", {}))
    except FileNotFoundError:
        return Shown(None, (), f"Not run here: {reason} There is no recorded result of it.")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Shown(None, (), f"Not run here: {reason} {_damaged(file)}")
    heading = f"{other}: r{told}" if other else f"R{told}"
    return Shown(None, parts, f"{heading}; not run here: {reason}", facts)


def _damaged(file: Path) -> str:
    return (
        f"Its recorded result, {file.name}, is damaged. Restore it "
        f"(git checkout -- data/recorded/{file.name}), or copy it again."
    )


def _other(entry: dict[str, Any], network: Network) -> str:
    """Say in a heading's first words that a record is not of this network; "" when it is."""
    stated = entry.get("sha256")
    if not stated or not network.sha256:
        return "OF AN UNKNOWN NETWORK (no SHA-256 of its weights)"
    if stated != network.sha256:
        return (
            f"OF ANOTHER NETWORK (weights with SHA-256 {stated[:12]}..., those loaded here have "
            f"{network.sha256[:12]}...)"
        )
    recipes = entry.get("recipes", {})
    others = [name for name, digest in network.recipes.items() if recipes.get(name) != digest]
    return f"OF ANOTHER QUANTIZATION of this network ({', '.join(others)})" if others else ""


def _write(key: str, shown: Shown, made: dict[str, str], network: Network) -> None:
    if not paths.CHECKOUT:
        raise UsageError("Results are recorded in a checkout; this is an installed package.")
    parts = [
        {"text": _anonymous(text), "html": _anonymous(_still(text, rich))}
        for text, rich in shown.parts
    ]
    entry = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        **made,
        "machine": machine(),
        "model": network.words,
        "sha256": network.sha256,
        "recipes": network.recipes,
        "parts": parts,
    }
    if "tools" in made:
        entry["facts"] = json.loads(_anonymous(json.dumps(shown.facts)))
    paths.write_text(file_of(key), json.dumps(entry, indent=1, ensure_ascii=False) + "\n")


def _still(text: str, rich: str) -> str:
    """Return the HTML without frames, whose servers are gone when it is shown again."""
    return typesetting.paragraph(f"{text} ({_LIVE})") if "<iframe" in rich else rich


def _anonymous(text: str) -> str:
    """Take this machine's folders out of what is stored."""
    for folder, name in (
        (paths.generated(), "generated_models"),
        (paths.cache(), "cache"),
        (paths.ROOT, "."),
        (Path.home(), "~"),
    ):
        text = text.replace(str(folder), name) if len(str(folder)) > 1 else text
    return text


# --- benchmarks ---------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Benchmark(typesetting.Shown):
    """What a long run measured elsewhere, as its program wrote it.

    Attributes
    ----------
    name
        Of the file in ``benchmarks/results``.
    text
        The table, or the sentence that there is none.
    heading
        When it was recorded, and with which command.
    rows
        Of ``NAME.csv`` beside it, column -> text; none where there is no such file.
    """

    name: str
    text: str
    heading: str
    rows: tuple[dict[str, str], ...] = field(default=(), repr=False)

    def __str__(self) -> str:
        return f"{self.heading}\n\n{self.text}"

    def only(self, *words: str) -> Benchmark:
        """Return the same, with only those lines of the table, and below it, that hold a word.

        Parameters
        ----------
        *words
            Such as a model's name. The columns' heads stay, and what is said right above them.

        Raises
        ------
        UsageError
            No line holds any of them, or there is no table.
        """
        lines = self.text.splitlines()
        ruler = _ruler(lines)
        if ruler is None:
            if self.text.startswith("Not recorded yet."):
                return self
            raise UsageError(f"The results of {self.name} have no table to choose lines from.")
        blank = [i for i in range(ruler) if not lines[i].strip()]
        rows: list[str] = []
        head = lines[blank[-1] + 1 if blank else 0 : ruler + 1]
        for line in lines[ruler + 1 :]:
            if line.startswith("  ") and rows:  # a long line that continues
                rows[-1] += f"\n{line}"
            else:
                rows.append(line)
        chosen = [row for row in rows if any(word in row for word in words)]
        if not chosen:
            raise UsageError(f"No line of {self.name} has {' or '.join(words) or 'no word'}.")
        return replace(self, text="\n".join([*head, *chosen]))

    def _repr_html_(self) -> str:
        above, table, below = _around_table(self.text)
        heading = f"<p><strong>{typesetting.words(self.heading)}</strong></p>"
        if not table or _ruler(below) is not None:  # its columns are of another kind: as it stands
            return heading + typesetting.columns(self.text)
        head, *rows = table
        shown = typesetting.table(head, rows)
        return heading + _paragraphs(above) + shown + _paragraphs(below)


def _ruler(lines: list[str]) -> int | None:
    """Return where the line under the heads of a table's columns stands."""
    return next((i for i, line in enumerate(lines) if _RULER.fullmatch(line)), None)


def _around_table(text: str) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the lines above a text's table, the table's cells, and the lines below it."""
    lines = text.splitlines()
    ruler = _ruler(lines)
    if ruler is None:
        return lines, [], []
    spans = [found.span() for found in re.finditer("-+", lines[ruler])]
    gaps = [(left[1], right[0]) for left, right in itertools.pairwise(spans)]

    def in_columns(line: str) -> bool:
        return len(line) <= spans[-1][1] and not any(line[a:b].strip() for a, b in gaps)

    rows = list(itertools.takewhile(in_columns, lines[ruler + 1 :]))
    table = [[line[a:b].strip() for a, b in spans] for line in (lines[ruler - 1], *rows)]
    return lines[: ruler - 1], table, lines[ruler + 1 + len(rows) :]


def _paragraphs(lines: list[str]) -> str:
    """Return prose as HTML: a line that begins with spaces continues the one before it."""
    told = re.sub(r"\n +", " ", "\n".join(lines)).split("\n\n")
    return "".join(
        f"<p>{typesetting.words(part.strip()).replace(chr(10), '<br>')}</p>"
        for part in told
        if part.strip()
    )


def benchmark(name: str, folder: Path | None = None) -> Benchmark:
    """Return a recorded benchmark, such as ``"lite"``, to be shown; or the sentence that it lacks.

    Parameters
    ----------
    name
        Of ``benchmarks/results/NAME.txt``.
    folder
        Where results lie; default is the repository's.
    """
    file = (folder or paths.ROOT / "benchmarks" / "results") / f"{name}.txt"
    command = f"python benchmarks/{name}.py"
    try:
        lines = file.read_text("utf-8").strip().splitlines()
    except OSError:
        return Benchmark(name, f"Not recorded yet. {command} makes it.", "No recorded result.")
    dated = lines and lines[0].lstrip("# ").lower().startswith("recorded")
    head = lines.pop(0).lstrip("# ") if dated else f"recorded with: {command}"
    told = f"{head[:1].upper()}{head[1:]}; not run here."
    return Benchmark(name, "\n".join(lines).strip("\n"), told, _rows(file.with_suffix(".csv")))


def _rows(file: Path) -> tuple[dict[str, str], ...]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except OSError:
        return ()
    return tuple(csv.DictReader(line for line in lines if not line.startswith("#")))
