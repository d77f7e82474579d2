"""What was made of another network, by another recipe, or of a file that changed since: told."""

import json
import zipfile

import mutations
import numpy as np
import onnx
import pytest
import safetensors.torch
from onnx import TensorProto, helper, numpy_helper

from labutils import manifests, paths, provenance
from labutils.errors import (
    DamagedManifestError,
    LabError,
    ModelFileError,
    NoManifestError,
    OtherFileError,
)
from labutils.lab import artifacts, lesson, recorded
from labutils.models import checkpoint, zoo
from labutils.onnxfile.file import OnnxFile
from labutils.pipeline import batch
from labutils.quantize import PRESETS
from labutils.runtime import qnn

GONE = qnn.Availability(False, "onnxruntime-qnn is not installed.", {})
NAME = "mobilenet_v3_small"


@pytest.fixture(scope="module")
def model():
    return zoo.load(NAME, "things16", size=64)


@pytest.fixture
def trained_again(tmp_path, monkeypatch):
    """The shipped checkpoint after another training, for all that asks for it: one bias differs."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    state = safetensors.torch.load_file(paths.CHECKPOINTS / f"{NAME}.safetensors")
    state["classifier.3.bias"] = state["classifier.3.bias"] + 1
    safetensors.torch.save_file(state, folder / f"{NAME}.safetensors")
    card = json.loads((paths.CHECKPOINTS / f"{NAME}.json").read_text("utf-8"))
    card["sha256"] = paths.sha256(folder / f"{NAME}.safetensors")
    (folder / f"{NAME}.json").write_text(json.dumps(card))
    monkeypatch.setattr(paths, "CHECKPOINTS", folder)
    return folder / f"{NAME}.safetensors"


# --- which network: the weights, not their name --------------------------------------------------


def test_a_model_states_the_hash_of_the_file_its_weights_came_from(model, trained_again):
    shipped = paths.ROOT / "data" / "checkpoints" / f"{NAME}.json"
    assert model.sha256 == json.loads(shipped.read_text("utf-8"))["sha256"]
    again = zoo.load(NAME, "things16", size=64)
    assert again.weights == model.weights == "things16"
    assert again.sha256 == paths.sha256(trained_again) != model.sha256
    assert zoo.load(NAME, trained_again, size=64).sha256 == again.sha256


def test_weights_without_a_file_are_known_by_their_tensors():
    import torch

    state = {"a": torch.zeros(2, 3), "b": torch.tensor(1.0, dtype=torch.bfloat16)}
    same = checkpoint.digest(state)
    assert checkpoint.digest({name: tensor.clone() for name, tensor in state.items()}) == same
    others = (
        {**state, "a": torch.zeros(3, 2)},
        {**state, "a": torch.zeros(2, 3, dtype=torch.int32)},
        {**state, "b": state["b"] + 1},
        {"c": state["a"], "b": state["b"]},
    )
    assert len({same, *map(checkpoint.digest, others)}) == 5


def test_a_file_is_known_with_the_weights_that_lie_beside_it(tmp_path):
    file = tmp_path / "x.onnx"
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 64]) for n in ("x", "y")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    made = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight]))
    onnx.save(made, file)
    assert OnnxFile(file).sha256 == paths.sha256(file)
    onnx.save(made, file, save_as_external_data=True, location="w.bin", size_threshold=0)
    first = OnnxFile(file).sha256
    data = bytearray((tmp_path / "w.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "w.bin").write_bytes(data)
    assert OnnxFile(file).sha256 != first


# --- artifacts of the notebooks ------------------------------------------------------------------


def left(name, model, **facts):
    """An artifact that somebody left, with its manifest; only the manifest is of interest here."""
    path = artifacts.path_of(name, model)
    path.write_bytes(b"made")
    artifacts.record(path, model, **facts)
    return path


INT8 = {
    "recipe": artifacts.QUANTIZED["int8"],
    "calibration": artifacts.CALIBRATION_IMAGES,
    "opset": 17,
}


@pytest.mark.parametrize(
    ("name", "facts"),
    [("opset13", {"opset": 13}), ("patched", {"opset": 17}), ("int8", INT8)],
)
def test_artifacts_of_another_checkpoint_of_one_name_are_not_taken(
    model, trained_again, name, facts, tmp_path, monkeypatch
):
    monkeypatch.setenv("LABUTILS_GENERATED", str(tmp_path))
    path = left(name, model, **facts)
    assert artifacts.problem(path, model) == ""
    problem = artifacts.problem(path, zoo.load(NAME, "things16", size=64))
    assert "belongs to another network" in problem and model.sha256[:12] in problem


@pytest.mark.parametrize(
    ("name", "facts", "words"),
    [
        ("int8", {**INT8, "calibration": 256}, "calibrated on 256 images, not 128"),  # the journey
        ("int8", {**INT8, "recipe": PRESETS["int8_trim"]}, "another recipe"),
        ("a16w8", INT8, "another recipe"),
        ("int8", {**INT8, "opset": 13}, "has opset 13, not 17"),
        ("opset13", {"opset": 17}, "has opset 17, not 13"),
        ("patched", {"opset": 18}, "has opset 18, not 17"),
        ("patched", {}, "has opset None"),
    ],
)
def test_artifacts_made_otherwise_are_not_taken(model, name, facts, words, tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_GENERATED", str(tmp_path))
    assert words in artifacts.problem(left(name, model, **facts), model)


def stated_otherwise(path, change):
    entry = json.loads(paths.manifest(path).read_text("utf-8"))
    change(entry)
    paths.write_text(paths.manifest(path), json.dumps(entry))


def test_every_value_of_a_recipe_is_compared_also_those_at_their_defaults(
    model, tmp_path, monkeypatch
):
    """A default that changes makes another recipe of the same name."""
    monkeypatch.setenv("LABUTILS_GENERATED", str(tmp_path))
    path = left("int8", model, **INT8)
    assert artifacts.problem(path, model) == ""
    stated_otherwise(path, lambda entry: entry["quantization"]["weights"].update(mse=True))
    assert "another recipe (weights: {" in artifacts.problem(path, model)
    stated_otherwise(path, lambda entry: entry["quantization"].pop("weights"))
    assert "another recipe (weights: None" in artifacts.problem(path, model)


def test_an_old_manifest_is_held_to_what_it_states_and_one_line_says_so(
    model, tmp_path, monkeypatch
):
    monkeypatch.setenv("LABUTILS_GENERATED", str(tmp_path))
    path = left("int8", model, **INT8)
    for key in ("format", "quantization", "opset"):  # as the lab wrote them before
        stated_otherwise(path, lambda entry, key=key: entry.pop(key))
    said = []
    assert artifacts.load_or_make("int8", model, said.append) == path
    (line,) = said
    assert "Loaded" in line and "before manifests had a format number" in line
    stated_otherwise(path, lambda entry: entry.update(recipe_sha256="0" * 64))
    assert "another recipe" in artifacts.problem(path, model)


def test_a_dlc_with_an_old_manifest_says_so(converted):
    assert "format number" not in zoo.load(converted).note
    stated_otherwise(converted, lambda entry: entry.pop("format"))
    assert "before manifests had a format number" in zoo.load(converted).note


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda entry: entry["model"].pop("sha256"), "does not say which network"),
        (lambda entry: entry.pop("model"), "lacks something"),
        (lambda entry: entry.update(model=[1]), "lacks something"),
        (lambda entry: entry.pop("sha256"), "damaged manifest"),
        (lambda entry: entry.update(sha256="0" * 64), "was changed"),
    ],
)
def test_artifacts_of_which_too_little_is_known_are_not_taken(
    model, change, words, tmp_path, monkeypatch
):
    monkeypatch.setenv("LABUTILS_GENERATED", str(tmp_path))
    path = left("patched", model, opset=17)
    stated_otherwise(path, change)
    assert words in artifacts.problem(path, model)


# --- recorded results ----------------------------------------------------------------------------


def test_shipped_records_are_of_the_shipped_networks_and_presets():
    known = {name: zoo.load(name, "things16").sha256 for name in (NAME, "mobilenet_v3_large")}
    presets = {name: artifacts.recipe_sha256(name) for name in artifacts.QUANTIZED}
    records = list(recorded.FOLDER.glob("*.json"))
    assert records
    for file in records:
        entry = json.loads(file.read_text("utf-8"))
        if file.name.startswith("11"):  # of FBNet-A, and of networks that learned two sets
            name, _, weights = entry["model"].partition(", weights ")
            assert entry["sha256"] == zoo.load(name, weights.split()[0]).sha256, file.name
            assert entry["recipes"] == {}
            continue
        if file.name.startswith(("09", "10")):  # of the network that the notebook trains
            assert entry["sha256"] not in known.values() and entry["recipes"] == {}
            continue
        assert entry["sha256"] == known[entry["model"].partition(",")[0]], file.name
        assert entry["recipes"] == (presets if file.name[:2] in ("05", "06") else {}), file.name


def test_a_record_of_another_network_says_so_first(model, trained_again, monkeypatch):
    monkeypatch.setattr(qnn, "probe", lambda: GONE)
    shown = lesson.on_htp("08.mixed", pytest.fail, model=model)
    assert str(shown).startswith("Recorded on 2026")
    again = zoo.load(NAME, "things16", size=64)
    shown = lesson.on_htp("08.mixed", pytest.fail, model=again)
    assert str(shown).startswith("OF ANOTHER NETWORK (weights with SHA-256 " + model.sha256[:12])
    assert "OF ANOTHER NETWORK" in shown._repr_html_()
    assert shown.values is None


ENTRY = {
    "date": "2026-11-25", "qnn": "2.51.0", "machine": "2 cores", "model": "x, weights things16",
    "sha256": "ab" * 32, "recipes": {"int8": "cd" * 32}, "parts": [{"text": "t", "html": "h"}],
}  # fmt: skip


@pytest.fixture
def replay(tmp_path, monkeypatch):
    """A function (text of the record) -> what is shown where it cannot be run."""
    monkeypatch.setattr(qnn, "probe", lambda: GONE)
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    network = recorded.Network("x, weights things16", "ab" * 32, {"int8": "cd" * 32})

    def show(text):
        (tmp_path / "06.x.json").write_text(text, "utf-8")
        return recorded.run("06.x", pytest.fail, network=network)

    return show


@pytest.mark.parametrize(
    ("changes", "begins"),
    [
        ({}, "Recorded on 2026-11-25"),
        ({"sha256": "ef" * 32}, "OF ANOTHER NETWORK"),
        ({"sha256": ""}, "OF AN UNKNOWN NETWORK"),
        ({"sha256": None}, "OF AN UNKNOWN NETWORK"),
        ({"recipes": {"int8": "ef" * 32}}, "OF ANOTHER QUANTIZATION of this network (int8)"),
        ({"recipes": {}}, "OF ANOTHER QUANTIZATION of this network (int8)"),
    ],
)
def test_a_record_says_whose_it_is(replay, changes, begins):
    assert str(replay(json.dumps(ENTRY | changes))).startswith(begins)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", '"x"', "[" * 100_000, "\x00",
        *(json.dumps({k: v for k, v in ENTRY.items() if k != name})
          for name in ("date", "qnn", "machine", "model", "parts")),
        *(json.dumps(ENTRY | {"parts": wrong}) for wrong in (None, 1, [1], [{"text": "t"}])),
        json.dumps(ENTRY | {"model": 3}), json.dumps(ENTRY | {"sha256": 3}),
        json.dumps(ENTRY | {"recipes": 3}),
    ],
)  # fmt: skip
def test_a_damaged_record_is_named_in_a_sentence(replay, text):
    shown = replay(text)
    assert shown.recorded and shown.values is None
    assert "06.x.json, is damaged. Restore it" in str(shown)


# --- manifests, and all that reads them ----------------------------------------------------------


CLAIM = "Accepted and written by QNN 2.51.0"
FACTS = {
    "preprocessing": {"size": 32, "mean": [0, 0, 0], "std": [1, 1, 1], "source": "mine"},
    "classes": ["a", "b"], "claim": CLAIM,
}  # fmt: skip


@pytest.fixture
def converted(tmp_path):
    """A zip that passes for a DLC until it is run, with a manifest of the lab."""
    path = tmp_path / "x.dlc"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model", b"")
    manifests.write(path, FACTS)
    return path


def test_manifests_are_compared_with_the_file(converted):
    assert manifests.read(converted)["claim"] == CLAIM
    with converted.open("ab") as file:
        file.write(b" ")
    with pytest.raises(OtherFileError, match="describes another file"):
        manifests.read(converted)
    for text in ("", "{", "[]", "{}", "[" * 100_000):
        paths.manifest(converted).write_text(text)
        with pytest.raises(DamagedManifestError, match="is damaged"):
            manifests.read(converted)
    paths.manifest(converted).unlink()
    with pytest.raises(NoManifestError):
        manifests.read(converted)


def test_a_dlc_of_other_bytes_does_not_borrow_its_manifest_s_claim(converted, lab):
    model = zoo.load(converted)
    assert CLAIM in model.note and model.classes == ("a", "b")
    with zipfile.ZipFile(converted, "a") as archive:
        archive.writestr("weights", b"of another network")
    model = zoo.load(converted)
    assert "knows nothing about" in model.note and "convert the model again" in model.note
    assert CLAIM not in model.note and model.classes == () and model.preprocessing is None
    for options in ((), ("--size", 32)):
        code, out, err = lab("run", converted, *options)
        assert code == 2
        assert "knows nothing about" in err and CLAIM not in out + err


@pytest.mark.parametrize(
    "facts",
    [
        {k: v for k, v in FACTS.items() if k != "claim"},
        FACTS | {"classes": "ab"},
        FACTS | {"classes": [1, 2]},
        FACTS | {"classes": ["x" * 10_000]},
        *(FACTS | {"claim": claim} for claim in (None, 3, ["x"], "x" * 10_000)),
        FACTS | {"preprocessing": None},
        *(
            FACTS | {"preprocessing": {**FACTS["preprocessing"], name: value}}
            for name in ("mean", "std")
            for value in (
                "123", [True] * 3, {"0": 1, "1": 1, "2": 1}, ["1", "1", "1"], [1e308] * 3,
                [10**400] * 3, [float("nan")] * 3, [1, 1], 1, None,
            )
        ),
        *(
            FACTS | {"preprocessing": {**FACTS["preprocessing"], "std": std}}
            for std in ([0, 1, 1], [-1, 1, 1], [1e-300] * 3)
        ),
        *(
            FACTS | {"preprocessing": {**FACTS["preprocessing"], "size": size}}
            for size in (-64, 0, 4097, True, 32.0, 10**20)
        ),
        FACTS | {"preprocessing": {**FACTS["preprocessing"], "source": None}},
        FACTS | {"padding": "x" * manifests.MAX_BYTES},
        FACTS | {"preprocessing": {**FACTS["preprocessing"], "size": "32"}},
        FACTS | {"preprocessing": {**FACTS["preprocessing"], "mean": [0]}},
    ],
)  # fmt: skip
def test_a_manifest_that_lacks_something_is_an_error_with_a_name(converted, facts):
    manifests.write(converted, facts)
    with pytest.raises(DamagedManifestError, match="damaged"):
        zoo.load(converted)


def test_an_onnx_file_that_was_changed_does_not_borrow_its_claim(tmp_path, model):
    from labutils import export

    file = tmp_path / "x.onnx"
    export.to_onnx(model, file)
    assert zoo.load(file).note.startswith("exported by the lab")  # by what the file itself says
    manifests.write(file, {})
    assert zoo.load(file).note.startswith("exported by the lab")
    changed = onnx.load(file)
    changed.graph.initializer[0].raw_data = bytes(len(changed.graph.initializer[0].raw_data))
    onnx.save(changed, file)
    assert zoo.load(file).note.startswith("a file that the lab knows nothing about")


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not JSON"), ('{"classes": 16}', "list of names"), ('{"classes": [1]}', "of names")],
)
def test_a_damaged_model_card_is_an_error_with_a_name(trained_again, text, words):
    trained_again.with_suffix(".json").write_text(text)
    with pytest.raises(ModelFileError, match=rf"model card .*{NAME}\.json is damaged.*{words}"):
        zoo.load(NAME, "things16", size=64)


@pytest.mark.parametrize("names", [["a"], ["a"] * 9])
def test_classes_of_another_network_are_not_given_to_the_outputs(names, tmp_path, lab):
    made = mutations.good_model()
    stated = next(p for p in made.metadata_props if p.key == provenance.MODEL_KEY)
    stated.value = json.dumps({"classes": names})
    onnx.save(made, tmp_path / "x.onnx")
    code, _, err = lab("run", tmp_path / "x.onnx", "--images", 1)
    assert code == 2 and f"{len(names)} classes and gives 4 outputs" in err


# --- batches -------------------------------------------------------------------------------------


def test_a_batch_is_asked_anew_when_a_file_that_it_names_was_changed(tmp_path, trained_again):
    for name in ("recipe.yaml", "own.pth", "x.onnx"):
        (tmp_path / name).write_bytes(b"first")
    listed = [["tv:resnet18", "--weights", str(tmp_path / "own.pth")], [str(tmp_path / "x.onnx")]]
    listed.append(["tv:resnet18", "--quantize", str(tmp_path / "recipe.yaml")])
    before = list(map(batch._key, listed))
    assert list(map(batch._key, listed)) == before
    for name in ("recipe.yaml", "own.pth", "x.onnx"):
        (tmp_path / name).write_bytes(b"second")
    assert not set(map(batch._key, listed)) & set(before)
    shipped = batch._key([NAME])
    trained_again.write_bytes(b"trained once more")
    assert batch._key([NAME]) != shipped


def test_a_batch_converts_again_what_is_not_the_file_that_it_made(converted):
    row = batch.Row("x", "converted", file=converted.name)
    assert batch._still_there(row, converted.parent)
    with converted.open("ab") as file:
        file.write(b" ")
    assert not batch._still_there(row, converted.parent)


# --- recipes -------------------------------------------------------------------------------------


def test_a_recipe_s_hash_is_of_what_decides_the_result():
    recipe = PRESETS["int8"]
    assert recipe.replaced(name="mine", about="as it is").sha256 == recipe.sha256
    assert len({preset.sha256 for preset in PRESETS.values()}) == len(PRESETS)
    assert recipe.replaced(equalize=not recipe.equalize).sha256 != recipe.sha256


def test_every_error_of_a_manifest_is_one_of_the_lab(converted):
    paths.manifest(converted).unlink()
    paths.manifest(converted).mkdir()
    with pytest.raises(LabError):
        zoo.load(converted)
