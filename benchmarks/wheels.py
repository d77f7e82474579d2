"""What becomes of ONNX files that come with packages: converted, quantized, or refused, and why.

    python benchmarks/wheels.py [--rows NAME ... -o FOLDER] [--fresh]

The nine light models of the onnx package, and files inside wheels of other packages: readers of
text, detectors, classifiers, and a few that take no picture at all (sound, bytes), which the lab
has to refuse by name. Wheels are installed without their dependencies into a temporary folder, in
pinned versions, and a file counts only with the SHA-256 that is stated here; nothing of them is
kept. Each file goes through `labutils convert --target qnn` (the HTP simulator runs the DLC) and
`labutils quantize`, in a separate process. Pixels are scaled to -1..1 for all of them: what is
compared is a file with its conversion, not its accuracy. Readers of text are judged on drawn
letters, all others on Things-16. The light models have constant weights and end in a Softmax over
1000 equal scores: 0.001 each, which 8 bits in steps of 1/255 round to 0, and the gate says so.

Rows are kept by the content of the code and the versions that they depend on: a run that was
stopped resumes, and `--fresh` starts over. Writes benchmarks/results/wheels.csv and wheels.txt; a
run of some rows needs `-o FOLDER`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import content_cache
import numpy as np
import results
import wheel_files
from PIL import Image, ImageDraw, ImageFont
from wheel_files import FILES, GRAY, File

import labutils
from labutils import paths, tabular
from labutils.onnxfile import graph

PROGRAM, TIMEOUT = "wheels", 600
NOT_MADE = "not made"
IMAGES = 8  # for calibration, and as many to compare the quantized file on


@dataclass(frozen=True)
class Row:
    """A file, and what both commands made of it.

    Attributes
    ----------
    opset, takes
        As the file states them.
    convert, quantize
        ``passed``, ``failed`` (written and run, and not close enough), ``refused`` (a sentence of
        the lab says why), ``crashed`` (anything else), ``not made``.
    convert_says, quantize_says
        The figures, or the sentence.
    """

    name: str
    version: str = ""
    licence: str = ""
    bytes: int = 0
    opset: int = 0
    takes: str = ""
    convert: str = NOT_MADE
    convert_says: str = ""
    quantize: str = NOT_MADE
    quantize_says: str = ""
    seconds: float = 0.0


def main(arguments: list[str] | None = None) -> None:
    """Run what has not been run, then write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = {file.name: file for file in FILES}
    parser.add_argument("--rows", nargs="+", default=list(known), choices=known, metavar="NAME")
    parser.add_argument("--fresh", action="store_true", help="forget what was done before")
    parser.add_argument("-o", "--output", type=Path, metavar="FOLDER")
    chosen = parser.parse_args(arguments)
    place = results.place(chosen.output, chosen.rows == list(known))
    if place is None:
        parser.error("pass -o FOLDER: some of the rows do not replace the recorded results")
    if chosen.fresh:
        content_cache.forget(PROGRAM)
    state = content_cache.folder(PROGRAM) / f"rows_{state_key()}.jsonl"
    # what could not be made is tried again
    kept = results.KeptRows(state, Row, lambda row: row.name, lambda row: row.convert == NOT_MADE)
    fresh: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="labutils-wheels-") as folder:
        packages = Packages(Path(folder))

        def make(name: str) -> list[Row]:
            row = fresh[name] = made(known[name], packages)
            print(f"    {row.convert}, {row.quantize}, {row.seconds} s", flush=True)
            return [row]

        done = fresh | kept.complete(chosen.rows, make)
    write([done[name] for name in chosen.rows], place)


def state_key() -> str:
    """Return what changes with anything that a row depends on: code, tables and versions."""
    tables = {
        path.name: paths.sha256(path) for path in sorted(paths.OPERATOR_TABLES.glob("*.yaml"))
    }
    return content_cache.key(
        code=content_cache.code(labutils, Path(__file__), Path(wheel_files.__file__)),
        tables=tables,
        versions=paths.versions("onnx", "onnxruntime", "onnxruntime-qnn"),
    )


class Packages:
    """Wheels in a temporary folder, one folder each.

    Parameters
    ----------
    folder
        Where they are installed; it is the caller's to delete.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._why_not = folder, dict[str, str]()

    def find(self, package: str) -> importlib.metadata.Distribution:
        """Return an installed package; OSError when it cannot be had."""
        name, pinned, _ = package.partition("==")
        if not pinned:
            return importlib.metadata.distribution(name)
        place = self._folder / name
        if package in self._why_not:
            raise OSError(self._why_not[package])
        if not place.exists():
            done = subprocess.run(
                [*installer(), "--no-deps", "--only-binary", ":all:", "--target", str(place),
                 package],
                capture_output=True, text=True, check=False, timeout=TIMEOUT,
            )  # fmt: skip
            if done.returncode:
                # an installer's message names the index that it asked
                self._why_not[package] = f"{package} cannot be installed here"
                raise OSError(self._why_not[package])
        return next(iter(importlib.metadata.distributions(name=name, path=[str(place)])))


def installer() -> list[str]:
    """Return the command that installs wheels: pip, or uv where the environment has no pip."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    uv = shutil.which("uv")
    if uv is None:
        raise OSError("neither pip nor uv is there to install wheels")
    return [uv, "pip", "install", "-q", "--python", sys.executable]


def made(file: File, packages: Packages) -> Row:
    """Return a file's row; a package that cannot be had is a row, too."""
    row = Row(file.name, version=file.package.partition("==")[2])
    try:
        package = packages.find(file.package)
        place = Path(str(package.locate_file(file.path)))
        if not paths.sha256(place).startswith(file.sha256):
            raise OSError(f"{place.name} has another SHA-256 than the one stated here")
    except (OSError, StopIteration, importlib.metadata.PackageNotFoundError) as error:
        return replace(row, convert_says=f"not made: {error}", quantize_says=f"not made: {error}")
    row = replace(row, version=package.version, licence=licence(package.metadata))
    return tried(row, place, file.options, file.text)


def licence(metadata: Any) -> str:
    """Return the licence that a package states: by SPDX, in a word, or in its classifiers."""
    for stated in (metadata.get("License-Expression"), metadata.get("License")):
        if stated and "\n" not in stated:
            return re.sub(r"^The | License( \(\w+\))?$", "", stated)
    classifiers = metadata.get_all("Classifier") or []
    found = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License :: ")]
    return re.sub(r" License$", "", found[0]) if found else "not stated"


def tried(row: Row, file: Path, options: Sequence[str], text: tuple[int, int] | None = None) -> Row:
    """Return the row with what the file states and what both commands made of it.

    Parameters
    ----------
    row
        Its name, version and licence.
    file
        An ONNX file; it is read where it lies, and nothing is written beside it.
    options
        Of both commands.
    text
        Size of the pictures of text that it is judged on; None: Things-16.
    """
    began = time.monotonic()
    model = graph.read(file)
    opset = next(x.version for x in model.opset_import if x.domain in ("", "ai.onnx"))
    row = replace(row, bytes=file.stat().st_size, opset=opset, takes=takes(model.graph))
    few = ["--images", str(IMAGES), "--held-out", str(IMAGES)]
    own: list[str] = []
    with tempfile.TemporaryDirectory(prefix="labutils-wheels-") as folder:
        copy = Path(shutil.copy(file, folder))  # no sentence then names where packages lie
        if text:
            channels = 1 if tuple(options[: len(GRAY)]) == GRAY else 3
            for name, seed in (("ranges", 0), ("judged", 1)):
                np.savez(Path(folder, f"{name}.npz"), pictures_of_text(text, channels, seed))
            few, own = ["--calibration", "ranges.npz"], ["--inputs", "judged.npz"]
        converted = run("convert", copy, [*options, *own, "--target", "qnn", "-o", "made.dlc"])
        quantized = run("quantize", copy, [*options, *few, *own, "-o", "made.onnx"])
    return replace(
        row, convert=converted[0], convert_says=converted[1], quantize=quantized[0],
        quantize_says=quantized[1], seconds=round(time.monotonic() - began, 1),
    )  # fmt: skip


def pictures_of_text(size: tuple[int, int], channels: int, seed: int) -> np.ndarray:
    """Return black letters on white, float32 (`IMAGES`, channels, height, width) in -1..1.

    Readers of text answer almost nothing for pictures without any.
    """
    height, width = size
    letters = np.random.default_rng(seed)
    made = np.empty((IMAGES, channels, height, width), np.float32)
    for picture in made:
        page = Image.new("L", (width, height), 255)
        font = ImageFont.load_default(float(letters.integers(18, 28)))
        word = "".join(letters.choice(list("ABCDEFGHKLMNPRSTUVXYZ23456789"), 8))
        place = (int(letters.integers(0, 12)), int(letters.integers(0, height - 30)))
        ImageDraw.Draw(page).text(place, word, 0, font)
        picture[:] = np.asarray(page, np.float32) / 127.5 - 1
    return made


def takes(network: Any) -> str:
    """Return the inputs of a graph: ``float32 1x3x224x224``."""
    import onnx

    weights = {tensor.name for tensor in network.initializer}
    found = []
    for value in network.input:
        if value.name in weights:
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        sizes = [
            str(d.dim_value) if d.dim_value > 0 else "?" for d in value.type.tensor_type.shape.dim
        ]
        found.append(f"{kind} {'x'.join(sizes) or 'scalar'}")
    return ", ".join(found)


def run(command: str, file: Path, options: Sequence[str]) -> tuple[str, str]:
    """Run a command of the lab in a separate process, in the file's folder.

    Returns
    -------
    tuple of str
        The verdict, and the figures or the sentence.
    """
    call = [sys.executable, "-m", "labutils", command, file.name, *options]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [*call, "--json"], cwd=file.parent, stdout=subprocess.PIPE, stderr=errors, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            printed, _ = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            return "crashed", f"no end after {TIMEOUT} s"
        finally:
            results.end(process)
        errors.seek(0)
        return judged(process.returncode, printed, errors.read())


def judged(code: int, printed: str, errors: str) -> tuple[str, str]:
    """Return the verdict on a command, and its figures or its sentence.

    Parameters
    ----------
    code
        Its exit code.
    printed, errors
        What it wrote to stdout (JSON) and to stderr.
    """
    try:
        said = json.loads(printed)
    except json.JSONDecodeError:
        last = next((line for line in reversed(errors.splitlines()) if line.strip()), "")
        usage = code == 2 and "error: " in last
        return ("refused" if usage else "crashed"), one_line(f"exit code {code}: {last}")
    if "error" in said:
        verdict = "failed" if said["error"] == "ParityError" else "refused"
        return verdict, one_line(f"{said['error']}: {said['message']}")
    gate = said["gate"]
    return ("passed" if gate["passed"] else "failed"), figures(gate)


def figures(gate: dict[str, Any]) -> str:
    """Return what a gate found, and why it failed."""
    found = gate["parity"]
    told = []
    if found:
        told = [f"cosine {found['cosine_min']:.5f}", f"SQNR {found['sqnr_db']:.1f} dB"]
    return one_line(", ".join(told) + "".join(f"; {reason}" for reason in gate["reasons"]))


def one_line(message: object) -> str:
    """Return as much of a message as a cell holds."""
    return tabular.clipped(" ".join(str(message).split()), 400)


def write(rows: Sequence[Row], folder: Path) -> None:
    """Write the CSV, and the text table with its totals and its sentences."""
    images = (
        f"split val (drawn), 32 per file for the DLC's gate, {IMAGES} for the quantized file's; "
        f"{IMAGES} of drawn text for both, where a file reads text"
    )
    head = results.head(
        results.command("wheels.py"), images, "onnx", "onnxruntime", "onnxruntime-qnn",
        developed=False,
    )  # fmt: skip
    results.write_csv(folder / "wheels.csv", head, rows)
    columns = ("file", "version", "licence", "MB", "opset", "takes", "DLC", "quantized", "s")
    cells = [
        (row.name, row.version, row.licence, f"{row.bytes / 1e6:.1f}", str(row.opset), row.takes,
         row.convert, row.quantize, f"{row.seconds:.0f}")
        for row in rows
    ]  # fmt: skip
    notes = [*totals(rows), ""]
    for row in rows:
        notes += [f"{row.name}, convert: {row.convert_says}"]
        notes += [f"{row.name}, quantize: {row.quantize_says}"]
    title = "ONNX files of packages: fp32 DLC on the HTP simulator, and int8 on ONNX Runtime"
    table = tabular.text(title, columns, cells, notes)
    words = "\n".join((__doc__ or "").strip().splitlines()[4:-4])
    paths.write_text(folder / "wheels.txt", "\n".join([*head, "", words, "", table]) + "\n")
    print("\n".join(totals(rows)))


def totals(rows: Sequence[Row]) -> list[str]:
    """Return the sentences that sum up both commands."""
    lines = []
    for command in ("convert", "quantize"):
        counted = Counter(getattr(row, command) for row in rows)
        said = ", ".join(f"{n} {verdict}" for verdict, n in sorted(counted.items()))
        lines.append(f"{command}: of {len(rows)} files {said}.")
    return lines


if __name__ == "__main__":
    main()
