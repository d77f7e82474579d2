"""How often a command parses ONNX files, infers their shapes and checks them.

The commands run in this process on a seeded file of four nodes, with onnx's own functions counted:
``ModelProto.FromString`` and ``ParseFromString``, ``infer_shapes``, ``check_model``. What onnx
parses on its own account (inference and version conversion go through bytes) is not a file and is
not counted. Files are told apart by their content. ONNX Runtime and QNN read files themselves.

    python benchmarks/parse_counts.py                  # the table
    python benchmarks/parse_counts.py --record after   # also to benchmarks/results/parse_counts.txt

The recorded file keeps two tables: ``before`` is of commit ec79892, where every function opened the
path that it was given; ``after`` of the code as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnx.version_converter
import results
from onnx import TensorProto, helper, numpy_helper

from labutils import __main__, tabular

SIDE, CLASSES = 32, 8
SECTIONS = ("before", "after")

COMMANDS = {
    "convert --repair": "convert m.onnx --target snpe-2.7 --repair -o m.dlc",
    "quantize": "quantize m.onnx --images 8 --held-out 8 -o q.onnx",
    "diagnose": "diagnose m.onnx --target snpe-2.7",
    "repair": "repair m.onnx --target snpe-2.7 -o r.onnx",
}
_AS_PIXELS = "--mean 0.5 0.5 0.5 --std 0.5 0.5 0.5"  # for the commands that run the model


@dataclass
class Counts:
    """What one command did.

    Attributes
    ----------
    parsed
        How often each content of a file was parsed, by its SHA-256.
    inferred, checked
        Calls of `onnx.shape_inference.infer_shapes` and `onnx.checker.check_model`.
    """

    parsed: Counter[str] = field(default_factory=Counter)
    inferred: int = 0
    checked: int = 0


def write_model(path: Path) -> Path:
    """Write a file of four nodes, one of which (HardSwish) SNPE 2.7 refuses; return `path`."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((CLASSES, 3, 3, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["conv"], "/conv/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("HardSwish", ["conv"], ["act"], "/act/HardSwish"),
        helper.make_node("GlobalAveragePool", ["act"], ["pooled"], "/pool/GlobalAveragePool"),
        helper.make_node("Flatten", ["pooled"], ["logits"], "/Flatten"),
    ]
    ends = [
        helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE]),
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES]),
    ]
    weights = [numpy_helper.from_array(weight, "weight")]
    graph = helper.make_graph(nodes, "four nodes", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


@contextlib.contextmanager
def counted() -> Iterator[Counts]:
    """Count what onnx does in this process while the context lasts."""
    counts, inside = Counts(), [0]
    kind, parse = onnx.ModelProto, onnx.ModelProto.ParseFromString

    def note(data: bytes) -> None:
        if not inside[0]:
            counts.parsed[hashlib.sha256(data).hexdigest()] += 1

    def from_string(data: bytes) -> onnx.ModelProto:
        note(data)
        model = kind()
        parse(model, data)
        return model

    def parse_from_string(model: onnx.ModelProto, data: bytes) -> int:
        note(data)
        return parse(model, data)

    def noted(function: Callable, name: str) -> Callable:
        def call(*arguments: Any, **settings: Any) -> Any:
            if name and not inside[0]:
                setattr(counts, name, getattr(counts, name) + 1)
            inside[0] += 1
            try:
                return function(*arguments, **settings)
            finally:
                inside[0] -= 1

        return call

    wrapped = (
        (onnx.shape_inference, "infer_shapes", "inferred"),
        (onnx.checker, "check_model", "checked"),
        (onnx.version_converter, "convert_version", ""),
    )
    with contextlib.ExitStack() as stack:
        for owner, name, new in (
            (kind, "FromString", staticmethod(from_string)),
            (kind, "ParseFromString", parse_from_string),
            *((module, name, noted(getattr(module, name), to)) for module, name, to in wrapped),
        ):
            stack.enter_context(mock.patch.object(owner, name, new))  # the wrapper calls the real
        yield counts


def count(command: str, folder: Path) -> Counts:
    """Run one of `COMMANDS` in `folder`, on a new file, and return what it did."""
    words = [str(folder / w) if w.endswith((".onnx", ".dlc")) else w
             for w in COMMANDS[command].split()]  # fmt: skip
    write_model(folder / "m.onnx")
    if words[0] in ("convert", "quantize"):
        words += _AS_PIXELS.split()
    told = io.StringIO()
    with contextlib.redirect_stdout(told), counted() as counts:
        code = __main__.main(words)
    if code not in (0, 1):
        raise RuntimeError(f"{command} ended with {code}:\n{told.getvalue()}")
    return counts


def table(counts: dict[str, Counts]) -> str:
    """Return the counts as text, one command a line."""
    columns = ("command", "parsed", "files", "most often", "shapes inferred", "checked")
    rows = [
        (f"labutils {COMMANDS[name]}", c.parsed.total(), len(c.parsed),
         max(c.parsed.values(), default=0), c.inferred, c.checked)
        for name, c in counts.items()
    ]  # fmt: skip
    title = "How often ONNX files are parsed, their shapes inferred, and their rules checked"
    notes = ("files: different contents; most often: parses of the one that is parsed most.",)
    return tabular.text(title, columns, [tuple(map(str, row)) for row in rows], notes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", choices=SECTIONS, help="write it to benchmarks/results, too")
    chosen = parser.parse_args()
    os.environ.setdefault("LABUTILS_WORKERS", "1")
    found = {}
    for command in COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            found[command] = count(command, Path(folder))
    told = table(found)
    print(told)
    if chosen.record:
        record(told, chosen.record)


def record(told: str, section: str, file: Path = results.FOLDER / "parse_counts.txt") -> None:
    """Write a table into its section of the results; the other section stays."""
    kept = {}
    for part in file.read_text("utf-8").split("\n\n")[1:] if file.is_file() else ():
        title, _, text = part.partition(":\n")
        kept[title] = text.rstrip()
    kept[section] = told
    head = results.head(
        results.command("parse_counts.py"),
        f"8 to 32 of Things-16 at {SIDE} px, which the counts do not depend on",
        "onnx", "onnxruntime", "onnx_ir",
        developed=False,
    )  # fmt: skip
    tables = [f"{name}:\n{kept[name]}" for name in SECTIONS if name in kept]
    file.write_text("\n\n".join(["\n".join(head), *tables]) + "\n", "utf-8")


if __name__ == "__main__":
    main()
