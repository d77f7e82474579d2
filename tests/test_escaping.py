"""Names that are HTML stay names: in every report, and on the page of a diagnosis."""

import ast
import dataclasses
import importlib
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from bad_files import model, node, value

from labutils import litert, paths, pipeline, prune, surgery
from labutils.models import zoo
from labutils.onnxfile.file import OnnxFile
from labutils.show import diagnosis

HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(2)<script>&"  # no slash: a file name too
OTHERWISE = {  # class -> why it is not tried here
    "Server": "test_netron.py",
    "Panes": "test_netron.py",
    "Picture": "test_figures.py",
    "ReplacementBoard": "a widget: test_widgets.py",
    "BiasReport": "figures only",
    "ColourError": "figures only",
    "Table": "the class that others are made of",
    "Shown": "the class that others are made of; recorded.Shown holds the HTML of other reports",
    "Paragraph": "the class that others are made of",
}
SHOW = {"_repr_html_", "tabular.Table", "typesetting.Shown", "typesetting.Paragraph"}


def reports():
    """Module and name of every class that shows itself as HTML."""
    for file in sorted((paths.ROOT / "labutils").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        if not any(name.rpartition(".")[2] in text for name in SHOW):
            continue  # nine in ten: not worth parsing
        module = ".".join(file.relative_to(paths.ROOT).with_suffix("").parts)
        for defined in ast.parse(text).body:
            names = [getattr(part, "name", "") for part in getattr(defined, "body", ())]
            names += [ast.unparse(base) for base in getattr(defined, "bases", ())]
            shows = SHOW & set(names)
            if shows and defined.name not in OTHERWISE:
                yield module, defined.name


def filled(kind):
    """A value of a type, with hostile text wherever text goes."""
    origin, inside = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin is typing.Literal:
        return inside[0]
    plain = {str: HOSTILE, int: 3, float: 0.5, bool: True, Path: Path(HOSTILE)}
    plain |= {typing.Any: HOSTILE, object: HOSTILE, np.ndarray: np.ones((2, 3), np.float32)}
    plain |= {OnnxFile: OnnxFile(HOSTILE)}
    if kind in plain:
        return plain[kind]
    if origin in (typing.Union, types.UnionType):
        return filled(next(part for part in inside if part is not types.NoneType))
    if origin is Counter:
        return Counter({HOSTILE: 3})
    if origin is Callable:
        return print  # what is called shows itself by its name, which Python's rules bound
    if origin in (dict, Mapping):
        return {filled(inside[0]): filled(inside[1])}
    if inside == (float, float):
        return -0.5, 0.5  # ranges have zero in them
    if origin is tuple and inside[-1] is not ...:
        return tuple(filled(part) for part in inside)
    if origin in (tuple, list, Sequence):
        return (list if origin is list else tuple)([filled(inside[0])])
    if dataclasses.is_dataclass(kind):
        return kind(**fields(kind))
    raise TypeError(f"{kind} needs an entry in SPECIAL")


def fields(kind, names=None):
    hints = typing.get_type_hints(kind)
    return {
        field.name: filled(hints[field.name])
        for field in dataclasses.fields(kind)
        if field.init and (names is None or field.name in names)
    }


def hostile_onnx(folder):
    """A file, a graph and nodes with hostile names; one node blocks and can be repaired."""
    nodes = [
        node("HardSwish", ["input"], ["a"], f"/{HOSTILE}/HardSwish"),
        node(HOSTILE, ["a"], ["logits"], HOSTILE, domain="com.example"),
    ]
    made = model(nodes, [value("input", (1, 3, 8, 8))], domains=["com.example"])
    made.graph.name = HOSTILE
    path = folder / f"{HOSTILE}.onnx"
    onnx.save(made, path)
    return path


def gate(folder):
    from labutils.compare.gating import GateReport

    values = fields(GateReport)
    values |= {"required": {"cosine": 0.9, "judged": "min", "sqnr_db": 9.0, "agreement": None}}
    return GateReport(**values | {"overridden": {}})


def conversion(folder):
    from labutils.dlc import Conversion, DlcInfo

    names = ("file", "target", "precision", "source", "claim", "manifest")
    rest = {"check": None, "transcript": None, "info": filled(DlcInfo), "gate": gate(folder)}
    return Conversion(**fields(Conversion, names) | rest)


def rdk_conversion(folder):
    from labutils.pipeline.rdk_conversion import RdkConversion
    from labutils.rdk.vendor_tools import Built

    names = ("file", "written")
    return RdkConversion(
        **fields(RdkConversion, names), gate=gate(folder), built=filled(Built), bit_equal=2
    )


def tflite_contents():
    from labutils.runtime.litert.tflite_file import Contents

    values = fields(Contents)
    return Contents(**values | {"tensors": 8 * values["tensors"]})  # numbers name some of them


def zoo_model(folder):
    rest = {"module": None, "preprocessing": None, "classes": (HOSTILE,), "trained": True}
    return zoo.Model(name=HOSTILE, weights=HOSTILE, note=HOSTILE, **rest)


def plan(folder):
    found = pipeline.suggest(hostile_onnx(folder), "snpe-2.7")
    return dataclasses.replace(found, unrepairable=found.check.nodes)


def surgery_edits(folder):
    step = surgery.Edit(**fields(surgery.Edit))
    return surgery.Edits((step,), (HOSTILE,), made_for=HOSTILE, model=HOSTILE)


def mixed_report(folder):
    from labutils.quantize import mixed

    rest = {"budget": mixed.Budget(megabytes=1.0), "chosen": 0, "judge": None}
    names = {field.name for field in dataclasses.fields(mixed.MixedReport)} - set(rest)
    return mixed.MixedReport(**fields(mixed.MixedReport, names) | rest)


def integer_report(folder):
    from labutils.quantize import IntegerReport

    names = {field.name for field in dataclasses.fields(IntegerReport)} - {"gate"}
    return IntegerReport(**fields(IntegerReport, names) | {"gate": gate(folder)})


def removal(folder):
    from labutils.prune import Removal

    names = {field.name for field in dataclasses.fields(Removal)} - {"network"}
    return Removal(network=torch.nn.Identity(), **fields(Removal, names))


def quantized(folder):
    from labutils.pipeline import Quantized

    rest = {"search": mixed_report(folder), "gate": gate(folder)}
    rest["integer"] = integer_report(folder)
    names = {field.name for field in dataclasses.fields(Quantized)} - set(rest)
    return Quantized(**fields(Quantized, names) | rest)


def fine_tuning(folder):
    from labutils.train import FineTuning

    settings = dict.fromkeys(("size", "batch_size", "learning_rate"), 3)
    return FineTuning(3, 0.5, 3, (0.5,) * 3, settings | {"teacher": HOSTILE})


SPECIAL = {
    "surgery.edits.Edits": surgery_edits,
    "MixedReport": mixed_report,
    "Quantized": quantized,
    "FineTuning": fine_tuning,
    "IntegerReport": integer_report,
    "Removal": removal,
    "GateReport": gate,
    "RdkConversion": rdk_conversion,
    "Conversion": conversion,
    "Model": zoo_model,
    "planning.Plan": plan,
    "tflite_file.Contents": lambda folder: tflite_contents(),
    "roads.Road": lambda folder: litert.Road(HOSTILE, tflite_contents(), 0.5, 3, 2.5),
    "report.Plan": lambda folder: filled(prune.ChannelPlan),  # what the class is made for
    "Repair": lambda folder: pipeline.apply(
        hostile_onnx(folder), "snpe-2.7", folder / "fixed.onnx"
    ),
    "Report": lambda folder: surgery.replace_file(hostile_onnx(folder), folder / "fixed.onnx"),
    "CheckReport": lambda folder: pipeline.suggest(hostile_onnx(folder), "snpe-2.7").check,
}


@pytest.mark.parametrize(("module", "name"), reports(), ids=lambda part: part.split(".")[-1])
def test_a_report_shows_hostile_names_as_text(module, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(HOSTILE).write_bytes(b"a file of that name")
    make = next((SPECIAL[key] for key in SPECIAL if f"{module}.{name}".endswith(f".{key}")), None)
    kind = getattr(importlib.import_module(module), name)
    shown = (make(tmp_path) if make else filled(kind))._repr_html_()
    assert "&lt;img src=x" in shown or "base64," in shown
    assert "<img src=x" not in shown
    assert "<script" not in shown


def test_the_page_of_a_diagnosis_shows_hostile_names_as_text(tmp_path):
    path = hostile_onnx(tmp_path)
    found = pipeline.suggest(path, "snpe-2.7")
    page = diagnosis.write(found, tmp_path / "page.html", HOSTILE, path).read_text(encoding="utf-8")
    assert page.count("&lt;script") > 5
    assert "<img src=x" not in page
    assert "<script" not in page
