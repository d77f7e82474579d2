"""Exports on real networks: what was asked for is in the file, and nothing else is.

Most are of MobileNetV3-Small with its first four blocks: the dynamo exporter takes half a second
for each of the eleven.
"""

import copy
import hashlib
import logging
import subprocess
import sys
import warnings

import numpy as np
import onnx
import pytest
import small_networks
import torch
from torch import nn

from labutils import export, paths
from labutils.errors import ExportError, UnknownNameError, UsageError
from labutils.export import exporters
from labutils.images import data
from labutils.models import architectures, zoo
from labutils.onnxfile import graph

HISTOGRAMS = {  # of four blocks, with 5 hard swishes and 2 hard sigmoids
    11: {"HardSigmoid": 7, "HardSwish": 0, "Mul": 7},
    13: {"HardSigmoid": 7, "HardSwish": 0, "Mul": 7},
    14: {"HardSigmoid": 2, "HardSwish": 5, "Mul": 2},
    17: {"HardSigmoid": 2, "HardSwish": 5, "Mul": 2},
    18: {"HardSigmoid": 2, "HardSwish": 5, "Mul": 2},
    20: {"HardSigmoid": 2, "HardSwish": 5, "Mul": 2},
}


@pytest.fixture(scope="module")
def _short():
    mobilenetv3 = architectures._models().mobilenetv3
    blocks, last = mobilenetv3._mobilenet_v3_conf("mobilenet_v3_small")
    return small_networks.seeded(lambda: mobilenetv3.MobileNetV3(blocks[:4], last, num_classes=16))


@pytest.fixture
def short(_short):
    """torchvision's mobilenet_v3_small with four blocks and 16 classes, of seeded weights."""
    return copy.deepcopy(_short)


@pytest.fixture(scope="module")
def exported(_short, tmp_path_factory):
    """A function (opset, exporter) -> (report, model read back), each made once."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def export_once(opset, exporter="auto"):
        if (opset, exporter) not in made:
            path = folder / f"{exporter}{opset}.onnx"
            report = export.to_onnx(
                copy.deepcopy(_short), path, size=64, opset=opset, exporter=exporter
            )
            made[opset, exporter] = report, onnx.load(path)
        return made[opset, exporter]

    return export_once


class Gated(nn.Module):
    """Chooses its branch by the values of its input."""

    def forward(self, x):
        return x.mean((2, 3)) if x.sum() > 1e9 else x.amax((2, 3))


class Frozen(nn.Module):
    """Turns a value into a Python number, which the tracer freezes."""

    def forward(self, x):
        return x.flatten(1) * float(x[0, 0, 0, 0])


class Strided(nn.Module):
    """Makes the TorchScript exporter's constant folding talk."""

    def forward(self, x):
        return x[:, :, ::2].roll(1, 2).flatten(1)


class Attention(nn.Module):
    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(x, x, x).flatten(1)


class SingularValues(nn.Module):
    def forward(self, x):
        return torch.linalg.svdvals(x).flatten(1)


class Selected(nn.Module):
    def forward(self, x):
        return x[x > 0]


class Pair(nn.Module):
    def forward(self, x):
        return x.flatten(1), "words"


class PadByShape(nn.Module):
    """An `if` on shapes only: the tracer warns, and is right all the same."""

    def forward(self, x):
        if torch.ceil(torch.tensor(x.shape[2]) / 2) * 2 - x.shape[2] > 0:
            x = nn.functional.pad(x, (0, 1, 0, 1))
        return x.flatten(1)


@pytest.mark.parametrize("opset", HISTOGRAMS)
def test_opset_asked_is_opset_written(exported, opset):
    report, model = exported(opset)
    assert [(e.domain, e.version) for e in model.opset_import] == [("", opset)]
    assert report.opset == opset
    assert report.exporter == ("torchscript" if opset < 18 else "dynamo")
    assert {op: report.nodes[op] for op in HISTOGRAMS[opset]} == HISTOGRAMS[opset]
    assert report.nodes["Identity"] == 0
    assert report.cosine > 0.99999
    assert "Things-16" in report.compared


@pytest.mark.parametrize("opset", HISTOGRAMS)
def test_file_is_one_static_graph_without_traces_of_this_machine(exported, opset):
    report, model = exported(opset)
    content = report.path.read_bytes()
    for trace in (str(paths.ROOT), str(report.path.parent), "site-packages", ".py", "stack_trace"):
        assert trace.encode() not in content
    assert sorted(p.name for p in report.path.parent.glob(f"*auto{opset}.*")) == [report.path.name]
    assert not any(t.external_data for t in model.graph.initializer)
    shapes = [
        (v.name, [d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in (*model.graph.input, *model.graph.output)
    ]
    assert shapes == [("input", [1, 3, 64, 64]), ("logits", [1, 16])]
    assert not any(node.doc_string for node in model.graph.node)


def test_both_exporters_name_nodes_and_weights_by_module(exported, short):
    for opset in (17, 18):
        model = exported(opset)[1]
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        assert "/features/features.0/features.0.2/HardSwish" in names
        for node in model.graph.node:
            module = graph.module_path(node)
            if node.op_type in ("Conv", "Gemm"):
                assert isinstance(short.get_submodule(module), nn.Conv2d | nn.Linear)
                assert node.input[1] == f"{module}.weight"
            if node.op_type == "HardSwish":
                assert isinstance(short.get_submodule(module), nn.Hardswish)
    convs = [
        {n.name for n in exported(opset)[1].graph.node if n.op_type in ("Conv", "HardSwish")}
        for opset in (17, 18)
    ]
    assert convs[0] == convs[1]


@pytest.mark.parametrize("exporter", ["torchscript", "dynamo"])
def test_same_module_same_bytes(exported, short, tmp_path, exporter):
    asked = {"dynamo": "auto"}.get(exporter, exporter)  # what opset 18 comes from
    first = exported(18, asked)[0].path.read_bytes()
    second = export.to_onnx(short, tmp_path / "again.onnx", size=64, opset=18, exporter=exporter)
    assert second.path.read_bytes() == first


@pytest.mark.slow
def test_same_bytes_in_another_process(exported, short, tmp_path):
    torch.save(short, tmp_path / "small.pt")
    code = (
        "import sys, torch\n"
        "from labutils import _torchvision, export\n"
        "_torchvision.load()\n"
        "model = torch.load(sys.argv[1], weights_only=False)\n"  # our own file, of a moment ago
        "export.to_onnx(model, sys.argv[2], size=64)\n"
    )
    arguments = [str(tmp_path / "small.pt"), str(tmp_path / "other.onnx")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=120)
    other, here = (tmp_path / "other.onnx").read_bytes(), exported(17)[0].path.read_bytes()
    assert hashlib.sha256(other).hexdigest() == hashlib.sha256(here).hexdigest()


def test_equal_weights_are_not_shared_through_identity_nodes(tmp_path):
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)).eval()
    for part in module:
        nn.init.zeros_(part.bias)
    export.to_onnx(module, tmp_path / "x.onnx", size=16)
    model = onnx.load(tmp_path / "x.onnx")
    assert [node.op_type for node in model.graph.node] == ["Conv"] * 3
    assert {t.name for t in model.graph.initializer} == set(module.state_dict())


def test_quiet_also_when_it_fails(tmp_path, capfd, small):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for exporter, opset in (("torchscript", 17), ("dynamo", 18)):
            export.to_onnx(Strided(), tmp_path / "x.onnx", size=16, opset=opset, exporter=exporter)
            for module in (SingularValues(), Gated()):
                with pytest.raises(ExportError):
                    export.to_onnx(
                        module, tmp_path / "y.onnx", size=16, opset=opset, exporter=exporter
                    )
        export.to_onnx(small, tmp_path / "x.onnx", size=64, simplify=True)
    assert capfd.readouterr() == ("", "")
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize(
    ("module", "options", "says"),
    [
        (SingularValues(), {}, r"aten::linalg_svdvals .*dynamo"),
        (SingularValues(), {"opset": 18}, r"aten\._linalg_svd"),
        (Attention(), {"opset": 13}, r"scaled_dot_product_attention .*opset 14 or later"),
        (Gated(), {}, r"`if` or loop .*torch\.where"),
        (Gated(), {"opset": 18}, r"`if` or loop .*torch\.where"),
        (Frozen(), {}, r"frozen by the tracer: try exporter='dynamo'"),
        (Selected(), {}, r"depends on the input's values"),
        (Pair(), {}, r"returns a str, and tensors are needed"),
        (nn.Conv2d(4, 1, 1), {}, r"Conv2d does not run on .*\(1, 3, 16, 16\)"),
        (nn.Flatten(), {"opset": 13, "exporter": "dynamo"}, r"18 to 23, not 13.*'torchscript'"),
        (nn.Flatten(), {"opset": 22, "exporter": "torchscript"}, r"not 22.*'dynamo'"),
        (nn.Flatten(), {"opset": 9}, r"11 to 20, not 9: ask for"),
    ],
)
def test_what_cannot_be_exported_is_one_error_with_a_cure(tmp_path, module, options, says):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"what was there before")
    with pytest.raises(ExportError, match=says) as caught:
        export.to_onnx(module.eval(), path, size=16, **options)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"what was there before"
    assert [p.name for p in tmp_path.iterdir()] == ["x.onnx"]


def test_a_branch_on_shapes_is_no_obstacle(tmp_path):
    assert export.to_onnx(PadByShape().eval(), tmp_path / "x.onnx", size=17).nodes["Pad"] == 1


def test_an_opset_other_than_asked_is_refused(exported):
    model = copy.deepcopy(exported(17)[1])
    with pytest.raises(ExportError, match="Asked for opset 13, and the dynamo exporter wrote 17"):
        export._check(model, 13, "dynamo")
    model.opset_import[0].version = 13  # relabelled: HardSwish is unknown there
    told = "checker refuses what the torchscript exporter wrote, at HardSwish"
    with pytest.raises(ExportError, match=told):
        export._check(model, 13, "torchscript")


def test_a_file_that_computes_something_else_is_refused(small, tmp_path, monkeypatch):
    def poisoned(*given, written=exporters.write):
        model = written(*given)
        for node in model.graph.node:
            if node.op_type == "HardSigmoid":
                next(a for a in node.attribute if a.name == "alpha").f = 0.2
        return model

    monkeypatch.setattr(exporters, "write", poisoned)
    with pytest.raises(ExportError, match="does not compute what PyTorch computes"):
        export.to_onnx(small, tmp_path / "x.onnx", size=64)
    assert list(tmp_path.iterdir()) == []


def test_the_module_is_left_as_it_was(short, tmp_path):
    short.train()
    short.features[3].eval()
    modes = {name: part.training for name, part in short.named_modules()}
    state = {name: tensor.clone() for name, tensor in short.state_dict().items()}
    for opset in (17, 18):
        export.to_onnx(short, tmp_path / "x.onnx", size=64, opset=opset)
        assert {name: part.training for name, part in short.named_modules()} == modes
        for name, tensor in short.state_dict().items():
            assert torch.equal(tensor, state[name]), name
    assert all(p.requires_grad for p in short.parameters())


def test_simplified_export_computes_the_same(short, exported, tmp_path):
    report = export.to_onnx(short, tmp_path / "x.onnx", size=64, simplify=True)
    assert report.opset == 17
    assert report.nodes == exported(17)[0].nodes
    assert report.cosine > 0.99999


def test_a_zoo_model_takes_its_preprocessing_and_classes_along(small, tmp_path):
    torch.save(small.state_dict(), tmp_path / "own.pth")
    model = zoo.load("mobilenet_v3_small", tmp_path / "own.pth", size=64)
    export.to_onnx(model, tmp_path / "x.onnx")
    back = zoo.load(tmp_path / "x.onnx")
    assert back.preprocessing == model.preprocessing
    assert back.classes == model.classes
    assert back.trained
    assert back.input_shape == (1, 3, 64, 64)
    assert "own.pth" in back.note
    with pytest.raises(UsageError, match="a file already"):
        export.to_onnx(back, tmp_path / "y.onnx")


def test_preprocessing_of_a_plain_module_is_recorded(small, tmp_path):
    given = data.Preprocessing(64, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "half and quarter")
    export.to_onnx(small, tmp_path / "x.onnx", preprocessing=given)
    assert zoo.load(tmp_path / "x.onnx").preprocessing == given


def test_other_shapes_by_example(tmp_path):
    report = export.to_onnx(nn.Linear(5, 3), tmp_path / "x.onnx", example=torch.zeros(1, 5))
    assert "random inputs (1, 5)" in report.compared
    assert report.nodes == {"Gemm": 1}


def test_calls_that_make_no_sense(small, tmp_path):
    path, half = tmp_path / "x.onnx", torch.zeros(1, 3, 64, 64, dtype=torch.float16)
    for options, says in (
        ({}, "shape is needed"),
        ({"size": 64, "example": torch.zeros(1, 3, 64, 64)}, "either size"),
        ({"example": half}, "float32"),
        ({"size": 96, "preprocessing": data.Preprocessing(64)}, "makes 64 px"),
    ):
        with pytest.raises(UsageError, match=says):
            export.to_onnx(small, path, **options)
    with pytest.raises(UnknownNameError, match="torchscript"):
        export.to_onnx(small, path, size=64, exporter="torchscrip")


def test_report_says_the_same_in_text_and_html(exported, read):
    report = exported(13)[0]
    assert "ONNX opset 13 (torchscript exporter)" in str(report)
    assert "HardSigmoid 7" in str(report)
    assert " ".join(str(report).split()) in read(report._repr_html_())
    assert np.isfinite(report.max_error)
