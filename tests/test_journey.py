"""The journey: every row of the ladder comes from its own file, and it can be run again."""

import csv
import json

import numpy as np
import pytest

from labutils import journey, paths, qnn
from labutils.errors import SurgeryError

STAGES = ["PyTorch", "patched", "ONNX", "int8 CPU", "HTP fp16", "HTP int8", "HTP a16w8"]


@pytest.fixture(scope="module")
def traveled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("journey")
    lines = []
    made = journey.run("mobilenet_v3_small", images=8, folder=folder, echo=lines.append)
    return made, folder, lines


@pytest.mark.htp
@pytest.mark.slow
def test_it_ends_in_the_ladder(traveled):
    made, folder, _ = traveled
    assert [row.name for row in made.ladder.rows] == STAGES
    for name in ("patched", "ONNX"):
        assert made.ladder[name].parity.agreement.value == 1.0
    assert made.ladder["HTP fp16"].parity.agreement.value == 1.0
    with (folder / "ladder.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["stage"] for row in rows] == STAGES
    for row in rows[4:]:
        assert row["runtime"].startswith("DLC on HTP simulator")
        assert (folder / row["file"]).is_file()


@pytest.mark.htp
@pytest.mark.slow
def test_every_row_has_a_file_of_its_own(traveled):
    made, folder, _ = traveled
    files = [row.file for row in made.ladder.rows if row.file]
    assert len(files) == len(set(files)) == 5
    hashes = {paths.sha256(folder / file) for file in files}
    assert len(hashes) == 5


@pytest.mark.htp
@pytest.mark.slow
def test_every_artifact_has_a_true_manifest(traveled):
    made, folder, _ = traveled
    artifacts = [path for name, path in made.artifacts.items() if name != "ladder.csv"]
    assert len(artifacts) == 9
    for path in artifacts:
        manifest = json.loads((folder / f"{path.name}.manifest.json").read_text())
        assert manifest["sha256"] == paths.sha256(path)
        assert manifest["versions"]["torch"]
        assert manifest["preprocessing"]["size"] == 128
        if path.suffix in {".onnx", ".dlc"}:
            assert manifest["opset"] in {13, 17}


@pytest.mark.htp
@pytest.mark.slow
def test_it_tells_the_vendors_story(traveled):
    _, _, lines = traveled
    story = "\n".join(map(str, lines))
    assert "opset 13 stops at HardSigmoid in features.0.2" in story
    assert "opset 17 stops at HardSwish in features.0.2" in story
    assert "9 hardsigmoid, 19 hardswish" in story


def test_without_qualcomms_wheel_it_ends_after_the_quantized_files(tmp_path, monkeypatch):
    absent = qnn.Availability(False, "There is no wheel for this machine.", {})
    monkeypatch.setattr(qnn, "probe", lambda: absent)
    monkeypatch.setattr(journey, "CPU_IMAGES", 16)
    made = journey.run("mobilenet_v3_small", images=8, folder=tmp_path, echo=lambda line: None)
    assert [row.name for row in made.ladder.rows] == STAGES[:4]
    assert any("There is no wheel" in note for note in made.notes)
    assert not list(tmp_path.glob("*.dlc"))


def test_a_model_without_these_activations_is_told(tmp_path):
    with pytest.raises(SurgeryError, match="hard-swish and hard-sigmoid"):
        journey.run("tv:resnet18", "random", folder=tmp_path, images=2, echo=lambda line: None)


def test_labels_of_other_classes_are_not_judged():
    from labutils import data, zoo

    images = data.load("val", 4, 16)
    same = zoo.Model("m", None, None, images.classes, "", "", True)
    other = zoo.Model("m", None, None, ("a", "b"), "", "", True)
    np.testing.assert_array_equal(journey._labels(images, same), images.labels)
    assert not journey._labels(images, other).any()
