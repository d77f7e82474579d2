"""`labutils export`: ONNX with names of your own, and submodules as files that were run."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from labutils import manifests, paths
from labutils.errors import ExportError
from labutils.models import zoo
from labutils.onnxfile import parts
from labutils.pipeline import submodules

MODEL = ("mobilenet_v3_small", "--weights", "random", "--size", 64)


@pytest.fixture(scope="module")
def model():
    return zoo.load("mobilenet_v3_small", "random", 64)


def run(file, inputs):
    session = onnxruntime.InferenceSession(file)
    return session.run(None, {session.get_inputs()[0].name: inputs})[0]


def test_a_model_becomes_onnx_with_names_of_your_own_and_a_manifest(lab, tmp_path, model):
    file = tmp_path / "x.onnx"
    names = ("--input-name", "image", "--output-name", "scores")
    code, out, err = lab("export", *MODEL, "-o", file, *names)
    assert code == 0, err
    assert "against PyTorch" in out and f"wrote {file}" in out
    graph = onnx.load(file).graph
    assert [graph.input[0].name, graph.output[0].name] == ["image", "scores"]
    entry = manifests.read(file)
    assert (entry["opset"], entry["model"]["sha256"]) == (17, model.sha256)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.onnx", "x.onnx.manifest.json"]
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32)
    with torch.no_grad():
        expected = model.module(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run(file, x), expected, atol=1e-4)
    assert zoo.load(file).preprocessing.size == 64  # what the export wrote into it is still there


def test_a_file_s_tensors_are_renamed_and_it_computes_the_same(lab, small_onnx, tmp_path):
    source, file = small_onnx(17), tmp_path / "y.onnx"
    code, _, err = lab("export", source, "-o", file, "--input-name", "image")
    assert code == 0, err
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32)
    np.testing.assert_array_equal(run(file, x), run(source, x))
    assert "image" in [value.name for value in onnx.load(file).graph.input]


def test_chosen_modules_are_files_that_compute_what_they_computed(lab, tmp_path, model):
    folder = tmp_path / "parts"
    chosen = ("--module", "features.4", "--module", "classifier")
    code, out, err = lab("export", *MODEL, "--parts", folder, *chosen, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert [part["module"] for part in facts["parts"]] == ["features.4", "classifier"]
    names = [f"mobilenet_v3_small.{name}.onnx" for name in ("classifier", "features.4")]
    assert sorted(path.name for path in folder.glob("*.onnx")) == names
    part = facts["parts"][0]
    ((_, shape),) = part["inputs"].items()
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    with torch.no_grad():
        expected = model.module.features[4](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(run(folder / names[1], x), expected, atol=1e-4)
    assert part["cosine"] > 0.9999
    entry = manifests.read(folder / names[1])
    assert entry["part"]["module"] == "features.4" and "preprocessing" not in entry
    assert entry["part"]["inputs"] == part["inputs"]


def test_all_modules_of_a_depth_follow_one_another(small_onnx, model, tmp_path):
    made = submodules.split(model, small_onnx(17), tmp_path, depth=1)
    assert [part.module for part in made.submodules] == ["features", "avgpool", "classifier"]
    x = np.random.default_rng(0).standard_normal((1, 3, 64, 64), np.float32)
    whole = run(small_onnx(17), x)
    ends = dict.fromkeys(made.submodules[0].part.inputs, x)
    for one in made.submodules:  # the parts, one after another, are the network
        session = onnxruntime.InferenceSession(one.part.file)
        if one.module == "classifier":  # what stands between the modules is in no part
            (flat,) = one.part.inputs
            (pooled,) = made.submodules[1].part.outputs
            ends[flat] = ends[pooled].reshape(1, -1)
        wanted = {value.name: ends[value.name] for value in session.get_inputs()}
        ends |= dict(zip(one.part.outputs, session.run(None, wanted), strict=True))
    np.testing.assert_allclose(ends["logits"], whole, atol=1e-5)
    assert made.between == {"Flatten": 1} and "In no part: 1 Flatten." in str(made)
    assert "3 parts of" in str(made) and "cosine" in made._repr_html_()


def test_a_part_that_computes_something_else_is_refused_and_nothing_is_written(
    small_onnx, model, tmp_path, monkeypatch
):
    def poisoned(source, destination, module, extract=parts.extract):
        part = extract(source, destination, module=module)
        wrong = onnx.load(destination)
        weight = next(w for w in wrong.graph.initializer if len(w.dims) == 4)
        weight.raw_data = np.ones(weight.dims, np.float32).tobytes()
        onnx.save(wrong, destination)
        return part

    monkeypatch.setattr(parts, "extract", poisoned)
    with pytest.raises(ExportError, match="does not compute what the whole network computes"):
        submodules.split(model, small_onnx(17), tmp_path, ["features.4"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Pass -o FILE.onnx, --parts FOLDER, or both."),
        (["-o", "x.dlc"], "must be an .onnx file"),
        (["-o", "x.onnx", "--module", "features.4"], "pass --parts FOLDER with them"),
        (["--parts", "p", "--module", "feature.4"], "Did you mean features.4"),
        (["--parts", "p", "--module", "features", "--depth", 1], "not both"),
        (["--parts", "p", "--depth", 0], "--depth must be at least 1, not 0"),
        (["-o", "x.onnx", "--input-name", "logits"], "Two tensors would be called"),
        (["-o", "x.onnx", "--output-name", ""], "name is empty or"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_a_wrong_call_exits_2_and_writes_no_file(
    arguments, words, lab, tmp_path, monkeypatch, small_onnx
):
    monkeypatch.chdir(tmp_path)
    renaming = {"--input-name", "--output-name"} & set(map(str, arguments))
    source = (small_onnx(17),) if renaming or "--parts" in arguments else MODEL
    code, _, err = lab("export", *source, *arguments)
    assert code == 2 and words in err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_is_not_exported_again_for_nothing(lab, small_onnx, tmp_path):
    code, _, err = lab("export", small_onnx(17), "-o", tmp_path / "x.onnx")
    assert code == 2 and "is an ONNX file already" in err
    code, _, err = lab("export", small_onnx(17), "-o", small_onnx(17), "--input-name", "x")
    assert code == 2 and "is the model itself" in err


def test_a_part_does_not_claim_to_be_the_whole_network(lab, small_onnx, tmp_path):
    code, _, err = lab("export", *MODEL, "--parts", tmp_path, "--module", "features.2")
    assert code == 0, err
    (part,) = tmp_path.glob("*.onnx")
    loaded = zoo.load(str(part))
    assert loaded.preprocessing is None and "a file of yours" in loaded.note


def test_a_file_without_modules_says_so(lab, tmp_path):
    from onnx import TensorProto, helper

    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 8, 8]) for n in "xy"]
    made = helper.make_graph([helper.make_node("Relu", ["x"], ["y"], "r")], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(made), tmp_path / "m.onnx")
    before = paths.sha256(tmp_path / "m.onnx")
    code, _, err = lab("export", tmp_path / "m.onnx", "--parts", tmp_path / "p")
    assert code == 2 and "does not say which module its nodes come from" in err
    assert paths.sha256(tmp_path / "m.onnx") == before


@pytest.mark.parametrize("side", ["input", "output"])
def test_of_several_inputs_or_outputs_none_is_renamed_by_chance(side, lab, tmp_path):
    from onnx import TensorProto, helper

    def info(name):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8])

    nodes = [helper.make_node("Add", ["x", "z"], ["s"]), helper.make_node("Relu", ["s"], ["y"])]
    nodes = nodes if side == "input" else [helper.make_node("Relu", ["x"], [n]) for n in "sy"]
    inputs, outputs = ("xz", "y") if side == "input" else ("x", "sy")
    made = helper.make_graph(nodes, "g", [*map(info, inputs)], [*map(info, outputs)])
    onnx.save(helper.make_model(made), tmp_path / "m.onnx")
    code, _, err = lab(
        "export", tmp_path / "m.onnx", "-o", tmp_path / "n.onnx", f"--{side}-name", "t"
    )
    assert code == 2 and f"has 2 {side}s" in err
    assert not (tmp_path / "n.onnx").exists()


@pytest.mark.parametrize("name", ["", "two\nlines", "\x1b[31m"])
def test_a_tensor_gets_no_name_that_cannot_be_printed(name, lab, small_onnx, tmp_path):
    code, _, err = lab("export", small_onnx(17), "-o", tmp_path / "n.onnx", "--output-name", name)
    assert code == 2 and "empty or cannot be printed" in err
    assert not (tmp_path / "n.onnx").exists()
