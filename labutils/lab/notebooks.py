"""The notebooks as files: find them, solve them, run them, hand out a copy, take it back.

``python -m labutils.lab.notebooks checkout`` hands out copies and opens nothing (``labutils lab``
does both); `make notebooks` runs ``... refresh``.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import paths, streams, untrusted
from ..errors import LabError, UnknownNameError, UsageError
from . import exercises

if TYPE_CHECKING:
    from nbformat import NotebookNode

SOURCE = paths.ROOT / "notebooks"
MINE = SOURCE / "my"
"""The learner's copies in a checkout (not in git); `make lab` opens them."""

ELSEWHERE = "edge_lab"
"""The folder for the learner's copies that an installed package makes in the current one."""

KEPT = "nbval-check-output"
"""Tag of the cells whose output is stored, and compared by the tests."""

PAGES = ("troubleshooting.md", "glossary.md", "own_training_loop.md", "images/*")
"""What notebooks link to; it goes with the copies."""

CELL_SECONDS = 900  # a loaded laptop, and a cold cache

_ORIGINALS = ".originals.json"  # in the learner's folder: what each copy was taken from
_EXERCISE = re.compile(r"^### Exercise (\d\d\.\d+): (.+)$", re.MULTILINE)


# --- reading ------------------------------------------------------------------------------------


def find() -> list[Path]:
    """Return the lab's notebooks, in order."""
    return sorted(SOURCE.glob("[0-9][0-9]_*.ipynb"))


def named(number: str) -> Path:
    """Return the original of the notebook with this number, such as ``"03"``.

    Raises
    ------
    UnknownNameError
        There is none.
    """
    for path in find():
        if path.name[:2] == number:
            return path
    raise UnknownNameError("notebook", number, [path.name[:2] for path in find()])


def read(path: str | Path) -> NotebookNode:
    """Return a notebook's content; UsageError where the file is none."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError:
        raise UsageError(f"There is no notebook {path}.") from None
    except Exception as error:  # nbformat raises a dozen types for damaged files
        raise UsageError(f"{path} is not a notebook that can be read: {error}") from None


def tags(cell: NotebookNode) -> list[str]:
    """Return a cell's tags."""
    return list(cell.metadata.get("tags", []))


def exercise_cells(notebook: NotebookNode) -> Iterator[tuple[str, NotebookNode]]:
    """Yield (exercise id, cell) of each cell tagged ``exercise``; the heading above has the id.

    Raises
    ------
    UsageError
        A cell is tagged, and no exercise heading stands above it.
    """
    id = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (headings := _EXERCISE.findall(cell.source)):
            id = headings[-1][0]
        elif "exercise" in tags(cell):
            if not id:
                raise UsageError(f"Cell {cell.id} is an exercise, and no heading says which.")
            yield id, cell


# --- solving and running ------------------------------------------------------------------------


def solve(notebook: NotebookNode) -> NotebookNode:
    """Return a copy in which every exercise is answered by its reference."""
    solved = copy.deepcopy(notebook)
    for id, cell in exercise_cells(solved):
        cell.source = exercises.find(id).reference
    return solved


def execute(notebook: NotebookNode, environment: Mapping[str, str] | None = None) -> NotebookNode:
    """Run all cells of a copy in a new kernel and return it, with all outputs.

    Parameters
    ----------
    notebook
        As from `read`.
    environment
        Variables for the kernel, beside this process's own.

    Raises
    ------
    LabError
        A cell failed; the message has its traceback.
    """
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    executed = copy.deepcopy(notebook)
    client = NotebookClient(
        executed,
        timeout=CELL_SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        store_widget_state=False,  # with it a page without a kernel shows an empty widget
        resources={"metadata": {"path": str(SOURCE)}},
    )
    try:
        client.execute(env={**os.environ, **(environment or {})})
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise LabError(f"A cell of the notebook failed:\n{error}") from None
    return executed


def refresh(path: Path, *, record: bool = False) -> None:
    """Run a notebook from nothing and write back the outputs of the cells tagged `KEPT`.

    Parameters
    ----------
    path
        Is changed: kept outputs are text alone, all other outputs are taken out.
    record
        Whether steps that need Qualcomm's wheel are recorded as well, see `recorded`.

    Raises
    ------
    LabError
        A cell failed, or a kept one wrote to stderr; the file is as it was.
    """
    import nbformat

    notebook = read(path)
    with tempfile.TemporaryDirectory(prefix="labutils-refresh-") as folder:
        environment = {
            "LABUTILS_GENERATED": folder,
            "LABUTILS_PROGRESS": folder,
            "LABUTILS_STRICT": "0",
            "LABUTILS_RECORD": "1" if record else "0",
        }
        executed = execute(strip(notebook), environment)
    count = 0
    for cell, ran in zip(notebook.cells, executed.cells, strict=True):
        if cell.cell_type != "code":
            continue
        count += 1
        kept = KEPT in tags(cell)
        cell.outputs = [_text_only(output, cell.id) for output in ran.outputs] if kept else []
        # nbval compares nothing where the count is missing
        cell.execution_count = count if kept else None
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    notebook.metadata.pop("widgets", None)
    nbformat.validate(notebook)
    paths.write_text(path, nbformat.writes(notebook) + "\n")


def strip(notebook: NotebookNode) -> NotebookNode:
    """Return a copy without outputs and counts."""
    stripped = copy.deepcopy(notebook)
    for cell in stripped.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return stripped


def _text_only(output: NotebookNode, cell: str) -> NotebookNode:
    if output.get("name") == "stderr":
        raise LabError(f"Cell {cell} keeps its output, and wrote to stderr: {output.text[:300]}")
    if "data" in output:
        output.data = {"text/plain": output.data["text/plain"]}
        output.metadata = {}
    return output


# --- the learner's copy -------------------------------------------------------------------------


@dataclass(frozen=True)
class Checkout:
    """What became of the learner's copies.

    Attributes
    ----------
    folder
        Where they are.
    copied, kept, outdated
        Names: new or untouched by the learner and now as the original; the learner's, left as
        they are; of these, the ones whose original has changed since.
    pages
        Names of the pages and pictures that are not as the lab made them, left as they are.
    """

    folder: Path
    copied: tuple[str, ...]
    kept: tuple[str, ...]
    outdated: tuple[str, ...]
    pages: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for ``--json``."""
        return {**asdict(self), "folder": str(self.folder)}

    def __str__(self) -> str:
        lines = [
            f"Your copies: {self.folder}",
            f"  {len(self.copied)} as the lab made them; "
            f"{len(self.kept)} that you have changed, left as you left them",
        ]
        lines += [
            f"{name} has a newer original. To take it and keep yours as a backup: "
            f"labutils reset {name[:2]}"
            for name in self.outdated
        ]
        lines += [
            f"{name} is not as the lab made it, and was left as it is. To get the lab's, rename "
            "this one and run this again."
            for name in self.pages
        ]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)


def learners_folder() -> Path:
    """Return where the learner's copies are, unless another folder is named.

    In a checkout, `MINE`. With an installed package the current folder if they lie there, as in
    a terminal of JupyterLab; else `ELSEWHERE` in it.
    """
    if paths.CHECKOUT:
        return MINE
    here = paths.here()
    return here if (here / _ORIGINALS).is_file() else here / ELSEWHERE


def checkout(folder: Path | None = None) -> Checkout:
    """Give the learner a copy of every notebook; what the learner changed is never overwritten.

    The copies come without outputs: a stored one would answer the prediction above it.
    The pages and pictures that notebooks link to lie beside them and are updated, if
    they are the lab's. What is written is written in the folder, and not through a link in it.

    Raises
    ------
    UsageError
        The folder cannot be made, or a folder or device has the name of a copy.
    """
    folder = paths.folder(folder or learners_folder())
    origins = _origins(folder)
    pages = _copy_pages(folder, origins)
    done: dict[str, list[str]] = {"copied": [], "kept": [], "outdated": []}
    for original in find():
        name, copied = original.name, folder / original.name
        edition = _edition(original)
        digest = _digest(edition)
        if (found := _found(copied)) is None or found == origins.get(name):
            paths.write_text(copied, edition)
            origins[name] = digest
            done["copied"].append(name)
            continue
        done["kept"].append(name)
        if origins.get(name, digest) != digest:
            done["outdated"].append(name)
    paths.write_text(folder / _ORIGINALS, json.dumps(origins, indent=1) + "\n")
    return Checkout(folder, **{key: tuple(names) for key, names in done.items()}, pages=pages)


def _copy_pages(folder: Path, origins: dict[str, Any]) -> tuple[str, ...]:
    """Copy what `PAGES` names, note its digests in `origins`; return what is not the lab's."""
    left = []
    for page in sorted(page for pattern in PAGES for page in SOURCE.glob(pattern)):
        copied, digest = folder / page.relative_to(SOURCE), paths.sha256(page)
        name = copied.relative_to(folder).as_posix()
        found = _found(copied)
        elsewhere = copied.parent != folder and copied.parent.is_symlink()
        if elsewhere or found not in (None, digest, origins.get(name)):
            left.append(name)
            continue
        if found != digest:
            with paths.atomic(copied) as temporary:
                shutil.copyfile(page, temporary)
        origins[name] = digest
    return tuple(left)


def reset(number: str, folder: Path | None = None) -> Path | None:
    """Put the original of a notebook back into the learner's folder.

    Returns
    -------
    pathlib.Path or None
        Where the learner's own file is kept; None where there was none, or nothing in it to keep.

    Raises
    ------
    UnknownNameError
        There is no such notebook.
    """
    original = named(number)
    folder = paths.folder(folder or learners_folder())
    mine = folder / original.name
    backup, edition = None, _edition(original)
    if _found(mine) not in (None, _digest(edition)):
        backup = _free(mine)
        mine.replace(backup)
    paths.write_text(mine, edition)
    origins = {**_origins(folder), original.name: _digest(edition)}
    paths.write_text(folder / _ORIGINALS, json.dumps(origins, indent=1) + "\n")
    return backup


def untouched(number: str, folder: Path | None = None) -> bool:
    """Whether the learner's copy of a notebook is there, and as `reset` would make it."""
    original = named(number)
    mine = paths.folder(folder or learners_folder()) / original.name
    return _found(mine) == _digest(_edition(original))


def _edition(original: Path) -> str:
    """Return the text that a learner gets: the notebook without outputs."""
    import nbformat

    return nbformat.writes(strip(read(original))) + "\n"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _found(copied: Path) -> str | None:
    """Return the digest of what lies under a copy's name; None where nothing does.

    Raises
    ------
    UsageError
        It is a folder, a pipe or a device.
    """
    if not copied.exists():
        return None
    if not copied.is_file():
        raise UsageError(f"{copied} is not a file. Rename it, or name another folder.")
    return paths.sha256(copied)


def _free(mine: Path) -> Path:
    """Return the first name for a backup that is not taken; it is listed after the notebooks."""
    number = 1
    while (backup := mine.with_name(f"backup-{number}_of_{mine.name}")).exists():
        number += 1
    return backup


def _origins(folder: Path) -> dict[str, Any]:
    try:
        found = untrusted.json_file(folder / _ORIGINALS)
    except (OSError, ValueError):  # not there yet, or damaged: then every copy is the learner's
        return {}
    return found if isinstance(found, dict) else {}


# --- for the Makefile ---------------------------------------------------------------------------


def main(words: list[str]) -> int:
    """Do ``checkout [FOLDER]``, or ``refresh`` (all notebooks, or those with the numbers given)."""
    try:
        if words[:1] == ["checkout"] and len(words) <= 2:
            print(checkout(Path(words[1]) if words[1:] else None))
        elif words[:1] == ["refresh"] and not paths.CHECKOUT:
            raise UsageError("Originals are run in a checkout; this is an installed package.")
        elif words[:1] == ["refresh"]:
            for path in map(named, words[1:]) if words[1:] else find():
                print(f"Running {path.name} ...", flush=True)
                refresh(path, record=True)
        else:
            raise UsageError(
                "Say checkout (and where to), or refresh (with the numbers of notebooks, or all)."
            )
    except LabError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    with streams.ending_quietly():
        code = main(sys.argv[1:])
    sys.exit(code)
