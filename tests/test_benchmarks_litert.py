"""The table of PyTorch, Keras and LiteRT: its rows, what they are compared with, where it goes."""

import contextlib
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

import labutils
from labutils import paths
from labutils.errors import FetchError

sys.path.insert(0, str(paths.ROOT / "benchmarks"))

import content_cache
import litert
import results
import surgery_coverage


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Keep files in a folder of this test; return what their names depend on, of programs."""
    asked = []
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(content_cache, "code", lambda *of: asked.extend(of) or "0")
    return asked


def test_files_are_named_after_the_scheme_of_the_report(cache):
    made = [litert.kept("mobilenet_v3_small", "things16", what) for what in litert.RECIPES]
    assert len(set(made)) == len(made) and all(file.suffix == ".tflite" for file in made)
    assert made[0].name == "mobilenet_v3_small.tflite"
    assert made[1].name == "mobilenet_v3_small_things16_int8_128x128_model.tflite"
    peer = litert.kept("mobilenet_v3_small", "things16", "TFLite int8, onnx2tf's")
    assert peer.name == "mobilenet_v3_small_things16_int8_onnx2tf_128x128_model.tflite"
    keras = litert.kept("mobilenet_v3_small", "things16", "Keras")
    assert keras.name == "mobilenet_v3_small.keras"


def test_onnx2tf_is_given_the_network_at_opset_18_and_the_images_of_the_peers(
    monkeypatch, tmp_path
):
    asked = {}

    class Tool:
        def ask(self, function, file, made, images):
            graph = onnx.load(file)
            asked.update(function=function, images=images, opset=graph.opset_import[0].version)
            made.write_bytes(b"made")

    @contextlib.contextmanager
    def opened(name, program):
        asked.update(tool=name, program=program.name)
        yield Tool()

    monkeypatch.setattr(litert.calling, "opened", opened)
    monkeypatch.setattr(litert.quantize, "Calibration", lambda: SimpleNamespace(images=3))
    model = litert.network("mobilenet_v3_small", "things16")
    litert.quantize_by_onnx2tf(model, tmp_path / "x.tflite")
    assert (tmp_path / "x.tflite").read_bytes() == b"made"
    assert asked.pop("images").shape == (3, 3, 128, 128)
    program = "onnx2tf_program.py"
    assert asked == {"function": "quantize", "opset": 18, "tool": "onnx2tf", "program": program}


def test_a_class_among_five_is_counted():
    reference, logits = np.eye(6)[[0, 5]], np.array([[9.0, 8, 7, 6, 5, 4]] * 2)
    assert (litert.among_five(reference, logits).hits, len(logits)) == (1, 2)


def test_a_file_is_made_again_when_anything_of_the_lab_changes(cache):
    litert.kept("mobilenet_v3_small", "things16", litert.OURS)
    assert labutils in cache


# --- the tables -----------------------------------------------------------------------------------

LABELS = np.arange(40) % 8
ROWS = {"PyTorch": 0, "Keras": 0, **dict.fromkeys(litert.RECIPES, 2), litert.PEERS[0]: 6,
        litert.PEERS[1]: 10}  # fmt: skip
"""Row -> how many images its file gets wrong."""


def made(wrong):
    logits = np.eye(8, dtype=np.float32)[LABELS]
    logits[:wrong] = logits[:wrong, ::-1]
    return SimpleNamespace(file=None, runner=SimpleNamespace(close=lambda: None)), logits


@pytest.fixture
def tables(monkeypatch, tmp_path):
    """Make the tables of stand-ins, where some rows fail; return the exit code and the text."""

    def run(*arguments, failing=()):
        def make(name, image_set, what):
            if what in failing:
                raise FetchError(f"no checkpoint of {name}")
            return made(ROWS[what])[0] if what != "PyTorch" else made(0)[0]

        def answers(found, model, split, n, image_set):
            return made(ROWS[rows.pop(0)])[1]

        rows = [what for what in ROWS if what not in failing]
        monkeypatch.setattr(litert, "network", lambda *of: None)
        monkeypatch.setattr(litert, "make", make)
        monkeypatch.setattr(litert, "answers", answers)
        monkeypatch.setattr(litert, "labels_of", lambda chosen: LABELS)
        monkeypatch.setattr(results, "FOLDER", tmp_path)
        code = litert.main(["--networks", "fbnet_a", "-o", str(tmp_path), *arguments])
        return code, {file.name: file.read_text("utf-8") for file in tmp_path.glob("*.txt")}

    return run


def test_ours_is_compared_with_each_peer_image_by_image(tables):
    code, files = tables()
    text = files["litert.txt"]
    assert code == 0
    head, rows = text[: text.index("Ours beside others")], text[text.index("Ours beside") :]
    for what, wrong in ROWS.items():
        (line,) = [line for line in head.splitlines() if f" {what}  " in line]
        assert f"{100 * (40 - wrong) / 40:.2f} [" in line, line
    for peer, wrong in ((litert.PEERS[0], 6), (litert.PEERS[1], 10)):
        (line,) = [line for line in rows.splitlines() if peer in line]
        assert line.count(f"{100 * (wrong - 2) / 40:+.2f} [") == 2, line
    for package in ("litert-torch", "ai-edge-quantizer", "keras", "onnx2tf"):
        assert f"{package} " in head


def test_each_set_has_a_file(tables):
    assert list(tables("--set", "things16")[1]) == ["litert_things16.txt"]
    listed = (paths.ROOT / "benchmarks" / "README.md").read_text("utf-8")
    for image_set, command in (("marked-things", ""), ("things16", " --set things16")):
        name = litert.file_name(image_set)
        assert f"| `{name}` | `python benchmarks/litert.py{command}` |" in listed


def test_16_bit_activations_have_a_table_of_their_own(cache):
    def rows(**asked):
        return litert.rows_of(SimpleNamespace(**{"int16": True, "rows": None} | asked))

    assert rows() == tuple(litert.INT16) and rows(int16=False) == ("Keras", *litert.RECIPES)
    assert rows(rows=["TFLite int16x8, ours"]) == ("TFLite int16x8, ours",)
    files = {litert.kept("mobilenet_v3_small", "things16", what) for what in litert.INT16}
    assert len(files) == 2
    assert {f.name for f in files} == {"mobilenet_v3_small_things16_int16x8_128x128_model.tflite"}
    listed = (paths.ROOT / "benchmarks" / "README.md").read_text("utf-8")
    assert f"`{litert.file_name('things16', int16=True)}`" in listed
    assert f"`{litert.file_name('marked-things', int16=True)}`" in listed


def test_without_pytorchs_row_a_network_has_none_and_it_is_said(tables):
    code, files = tables(failing=["PyTorch"])
    text = files["litert.txt"]
    assert code == 1 and "fbnet_a, PyTorch: not made: no checkpoint of fbnet_a" in text
    assert "Keras:" not in text and "TFLite" not in text


def test_a_peer_that_cannot_be_made_leaves_the_other_comparison(tables):
    code, files = tables(failing=litert.PEERS[:1])
    below = files["litert.txt"].partition("Ours beside others")[2]
    assert code == 1 and litert.PEERS[1] in below and litert.PEERS[0] not in below


def test_a_smaller_table_does_not_replace_the_recorded_one():
    with pytest.raises(SystemExit):
        litert.main(["--images", "4"])


# --- many networks --------------------------------------------------------------------------------


def test_the_list_for_batch_has_every_classifier_in_float_and_int8():
    lines = (paths.ROOT / "benchmarks" / "litert_models.txt").read_text("utf-8").splitlines()
    listed = [line.split() for line in lines if line and not line.startswith("#")]
    int8 = [words[0] for words in listed if words[-2:] == ["--quantize", "int8"]]
    in_float = [words[0] for words in listed if "--quantize" not in words]
    assert int8 == in_float == list(surgery_coverage.CLASSIFIERS)
    assert len(listed) == 2 * len(surgery_coverage.CLASSIFIERS) == 78
