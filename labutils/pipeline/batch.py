"""Many models in one unattended run: one row each, and a failure is a row with its reason.

Each model is converted by ``labutils convert`` in its own process, so a crash, a hang or a
lack of memory costs that model alone. What is done is written down at once: a batch that was
stopped resumes where it stopped.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from .. import __version__, manifests, paths, tabular, untrusted
from ..errors import ModelFileError, UsageError, counted, worded
from ..models import random_weights
from ..onnxfile.file import OnnxFile
from . import destinations

OUTCOMES = ("converted", "refused", "wrong", "failed", "crashed", "timed out")
_OF_ERROR = {
    "TranslationError": "refused", "ConvertError": "refused", "ParityError": "wrong",
    "SurgeryError": "refused",  # no rule repairs what the target refuses
}  # fmt: skip
_AGAIN = ("crashed", "timed out")  # another run may end otherwise
STATE = "batch.jsonl"
_TABLE = "batch.csv"
_MAX_LINE = 4096  # characters; systems limit what a process is given
_PR_SET_PDEATHSIG = 1  # prctl(2): a killed batch takes its conversion along


@dataclass(frozen=True)
class Row:
    """The outcome for one model.

    Attributes
    ----------
    model
        As the list has it, with its options.
    outcome
        One of `OUTCOMES`; only ``"converted"`` left a file.
    reason
        Why not, in one line; "" when it was converted. An approximated model is named as such.
    repaired
        Rule name -> places.
    cosine, agreement
        From the parity gate: lowest (float) or mean (integer) cosine, share of the same top-1,
        None for what is not a classifier.
    bytes, file
        Of the artifact, inside the batch's folder.
    seconds
        On this machine, for everything (host time).
    key
        What was asked, as a hash: another model, option or version is another key.
    """

    model: str
    outcome: str
    reason: str = ""
    repaired: dict[str, int] | None = None
    cosine: float | None = None
    agreement: float | None = None
    bytes: int | None = None
    file: str = ""
    seconds: float = 0.0
    key: str = ""


@dataclass(frozen=True, repr=False)
class Batch(tabular.Table):
    """All rows of a run, and where they were written to."""

    rows: tuple[Row, ...]
    target: str
    folder: Path

    @property
    def ok(self) -> bool:
        """Whether every model was converted."""
        return all(row.outcome == "converted" for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, for ``--json``."""
        return {"target": self.target, "rows": [asdict(row) for row in self.rows]}

    def _parts(self) -> tuple:
        counts = Counter(row.outcome for row in self.rows)
        found = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name])
        title = f"{counted(len(self.rows), 'model')} for {self.target}: {found}"
        columns = ("model", "outcome", "repaired", "cosine", "top-1 agrees", "MB", "s")
        names = _names(self.rows)
        reasons = zip(names, self.rows, strict=True)
        notes = [f"{name}: {row.reason}" for name, row in reasons if row.reason]
        notes.append("Seconds are host time. Every converted file was run and compared.")
        cells = [_cells(*named) for named in zip(names, self.rows, strict=True)]
        return title, columns, cells, notes


def _names(rows: Sequence[Row]) -> list[str]:
    """Return the models without their options, where that tells them apart; `Row` has both."""
    alone = Counter(row.model.split()[0] for row in rows)
    return [row.model.split()[0] if alone[row.model.split()[0]] == 1 else row.model for row in rows]


def _cells(name: str, row: Row) -> tuple[str, ...]:
    rules = ", ".join(f"{n} {name}" for name, n in (row.repaired or {}).items())
    return (
        tabular.clipped(name, 44),
        row.outcome,
        rules or "-",
        "-" if row.cosine is None else f"{row.cosine:.4f}",
        "-" if row.agreement is None else f"{100 * row.agreement:.0f} %",
        "-" if row.bytes is None else f"{row.bytes / 1e6:.1f}",
        f"{row.seconds:.0f}",
    )


def run(
    names: str | Path,
    target: str,
    folder: str | Path,
    options: Sequence[str] = (),
    *,
    timeout_s: float = 1800,
    echo: Callable[[str], object] = lambda line: None,
) -> Batch:
    """Convert every model of a list, and return the table.

    Parameters
    ----------
    names
        A text file: one MODEL per line, options of ``labutils convert`` after it where a model
        needs its own; ``#`` begins a comment.
    target
        A name in ``targets.TARGETS`` that the lab can convert for.
    folder
        Receives the ``.dlc`` or ``.tflite`` files, a log per model, ``batch.csv`` and the state
        (`STATE`).
    options
        Of ``labutils convert``, for all models.
    timeout_s
        Per model.
    echo
        Called with a line when a model begins, and one when it is done.

    Raises
    ------
    UsageError
        No such list, nothing in it, a line that names no model, a target that the lab cannot
        convert for, or no plain file where the state or the table goes.
    """
    listed = _read_list(Path(names))
    folder = paths.folder(folder)
    destinations.refuse_impossible(target, folder / f"x{destinations.ending(target)}")
    if (folder / _TABLE).is_dir():
        raise UsageError(f"{folder / _TABLE} is a folder; the table goes there. Rename it.")
    done = _done(folder, echo)
    rows = []
    for number, words in enumerate(listed, start=1):
        key = _key([*words, *options, target])
        row = done.get(key)
        if row and (row.outcome != "converted" or _still_there(row, folder)):
            echo(f"[{number}/{len(listed)}] {row.model}: {row.outcome} (done before)")
        else:
            echo(f"[{number}/{len(listed)}] {' '.join(words)} ...")
            row = _convert(words, target, folder, options, timeout_s, key)
            with (folder / STATE).open("a", encoding="utf-8") as state:
                state.write(json.dumps(asdict(row)) + "\n")
            echo(f"    {row.outcome}{': ' + row.reason if row.reason else ''}")
        rows.append(row)
    _write_csv(rows, folder / _TABLE)
    return Batch(tuple(rows), target, folder)


def _read_list(file: Path) -> list[list[str]]:
    try:
        text = untrusted.text(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"Cannot read the list of models {file}: {worded(error)}.") from None
    listed = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            words = shlex.split(line, comments=True, posix=os.name == "posix")
        except ValueError as error:
            raise UsageError(f"{file}, line {number}: {error}.") from None
        if problem := _problem(line, words):
            raise UsageError(f"{file}, line {number}: {problem}.")
        if words:
            listed.append(words)
    if not listed:
        raise UsageError(f"{file} names no model: write one per line, such as timm:resnet18.")
    return listed


def _problem(line: str, words: Sequence[str]) -> str:
    """Say why a line of the list cannot be passed to ``labutils convert``; "" when it can."""
    if "\0" in line:
        return "it holds a NUL character"
    if len(line) > _MAX_LINE:
        return f"it has more than {_MAX_LINE:,} characters"
    if words and not words[0].strip():
        return "the model's name is empty"
    if words and words[0].startswith("-"):
        return f"it begins with the option {words[0][:40]}; the model comes first"
    return ""


def _key(words: Sequence[str]) -> str:
    """Return what was asked for, as a hash: a file that was changed is another model or recipe."""
    begun = [__version__, random_weights.NOTE, *words]
    digest = hashlib.sha256(json.dumps(begun).encode())
    shipped = (paths.CHECKPOINTS / f"{words[0]}.safetensors",)
    for file in filter(_is_file, (*map(Path, words), *shipped)):
        digest.update(_digest(file).encode())
    return digest.hexdigest()[:16]


def _is_file(path: Path) -> bool:
    """Whether a word names a file; no name of one is one that the system refuses, as too long."""
    with contextlib.suppress(OSError, ValueError):
        return path.is_file()
    return False


def _digest(file: Path) -> str:
    if file.suffix == ".onnx":
        with contextlib.suppress(ModelFileError):  # `convert` will say what is wrong with it
            return OnnxFile(file).sha256
    return paths.sha256(file)


def _still_there(row: Row, folder: Path) -> bool:
    """Whether the file of a converted row is the one that was converted."""
    if not _is_file(folder / row.file):
        return False
    try:
        manifests.read(folder / row.file)
    except (ModelFileError, OSError):
        return False
    return True


def _done(folder: Path, echo: Callable[[str], object] = lambda line: None) -> dict[str, Row]:
    """Return the rows of earlier runs that need not be made again, by key."""
    state = folder / STATE
    try:
        content = untrusted.content(state, untrusted.MAX_TEXT_BYTES, plain=True)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(
            f"Cannot read the state of the batch, {state}: {worded(error).rstrip('.')}. Delete it "
            "to start over, or name another folder."
        ) from None
    lines = content.decode("utf-8", errors="replace").split("\n")
    rows = [_stated(line) for line in lines if line.strip()]
    if damaged := rows.count(None):  # one of them is what a kill cut short
        echo(f"{counted(damaged, 'line')} of {state} cannot be used; their models run again.")
    return {row.key: row for row in rows if row and row.outcome not in _AGAIN}


def _stated(line: str) -> Row | None:
    """Return the row that a line of the state says; None where a batch would not write it."""
    try:
        entry = untrusted.json_value(line)
        row = Row(**{field.name: entry[field.name] for field in fields(Row)})
    except (ValueError, KeyError, TypeError):
        return None
    texts = (row.model, row.outcome, row.reason, row.file, row.key)
    if not all(isinstance(text, str) for text in texts) or not row.model.split():
        return None
    if row.outcome not in OUTCOMES or Path(row.file).name != row.file:
        return None
    if (row.outcome == "converted") != row.file.endswith(destinations.ENDINGS):
        return None
    figures = [row.seconds, *(n for n in (row.cosine, row.agreement, row.bytes) if n is not None)]
    rules = {} if row.repaired is None else row.repaired
    if not isinstance(rules, dict) or not all(map(_is_figure, (*figures, *rules.values()))):
        return None
    return row


def _is_figure(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < 1e15  # neither NaN nor infinite


def _convert(
    words: list[str], target: str, folder: Path, options: Sequence[str], timeout_s: float, key: str
) -> Row:
    stage = "batch_tflite" if destinations.ending(target) == ".tflite" else "batch"
    output = folder / manifests.file_name(words[0], stage, key[:6])
    command = [sys.executable, "-m", "labutils", "convert", *options, *words, "--json"]
    command += ["--target", target, "-o", str(output)]
    began = time.monotonic()
    row = Row(" ".join(words), "crashed", key=key)
    try:
        code, printed = _run(command, output.with_suffix(".log"), timeout_s)
    except OSError as error:  # a folder where its log goes, or no process can be started
        return replace(row, reason=_one_line(f"It could not be started: {error}"))
    row = replace(row, seconds=time.monotonic() - began)
    answer = _answer(printed)
    if code == 0 and answer:
        try:
            return _row_of(output, answer, row)
        except ModelFileError as error:
            return replace(row, outcome="failed", reason=_one_line(str(error)))
    if "error" in answer:
        outcome = _OF_ERROR.get(answer["error"], "failed")
        return replace(row, outcome=outcome, reason=_reason(outcome, answer["message"]))
    log = f"see {output.with_suffix('.log').name}"
    if code is None:
        reason = f"not finished after {timeout_s:g} s; {log}"
        return replace(row, outcome="timed out", reason=reason)
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    last = _last_line(output.with_suffix(".log"))
    outcome = "failed" if code in (0, 2) else "crashed"  # argparse printed its help, or refused
    return replace(row, outcome=outcome, reason=f"{ended}: {last}; {log}")


def _row_of(output: Path, answer: dict[str, Any], row: Row) -> Row:
    gate = answer["gate"]
    parity = gate["parity"]
    floating = answer["precision"] in ("fp32", "fp16")  # judged by the worst image
    manifest = manifests.read(output)
    repair, apart = manifest.get("repair") or {}, manifest.get("approximation")
    return replace(
        row,
        outcome="converted",
        reason=apart["caveat"] if apart else "",
        repaired=repair.get("counts"),
        cosine=parity["cosine_min" if floating else "cosine_mean"],
        agreement=_share(parity["agreement"]),
        bytes=answer["bytes"],
        file=output.name,
    )


def _share(agreement: dict[str, int] | None) -> float | None:
    """Return the agreement of first classes, None for what is not a classifier."""
    return None if agreement is None else agreement["hits"] / agreement["n"]


def _run(command: list[str], log: Path, timeout_s: float) -> tuple[int | None, str]:
    """Run one conversion; return its exit code (None: it took too long) and what it printed."""
    log.unlink(missing_ok=True)  # what lies there may be a link or a pipe
    with log.open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
            **ending_with_us(),
        )  # fmt: skip
        try:
            printed, _ = process.communicate(timeout=timeout_s)
            return process.returncode, printed
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            _stop(process)


def ending_with_us() -> dict[str, Any]:
    """Return what `subprocess.Popen` needs for a child that is ended when we are killed.

    Its session is its own, so that its children can be stopped with it. Elsewhere than on Linux
    nobody ends it: there the system has no such request.
    """
    group: dict[str, Any] = {"start_new_session": True} if os.name == "posix" else {}
    if sys.platform == "linux":
        ask = ctypes.CDLL(None).prctl  # loaded here: after the fork it may only be called
        group["preexec_fn"] = functools.partial(ask, _PR_SET_PDEATHSIG, signal.SIGTERM)
    return group


def _stop(process: subprocess.Popen[str]) -> None:
    """Stop a conversion that is still running, with the workers that it has started."""
    if process.poll() is None:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def _answer(printed: str) -> dict[str, Any]:
    try:
        answer = json.loads(printed)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _reason(outcome: str, message: str) -> str:
    """Return an error in one line; of a parity gate what failed, by how much, and where first."""
    telling = [
        line.split(maxsplit=1)[1]
        for line in message.splitlines()
        if outcome == "wrong" and line.split(maxsplit=1)[:1] in (["failed"], ["where"])
    ]
    return _one_line(". ".join(line.rstrip(".") for line in telling) + "." if telling else message)


def _one_line(message: str) -> str:
    """Return as much of an error as a note below a table can hold."""
    return tabular.clipped(" ".join(message.split()), 400)


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no message")


def _write_csv(rows: Sequence[Row], path: Path) -> None:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [field.name for field in fields(Row) if field.name != "key"]
    writer.writerow(names)
    for row in rows:
        values = asdict(row)
        writer.writerow(["" if values[name] is None else values[name] for name in names])
    paths.write_text(path, text.getvalue())
