"""The journey: every row of the ladder comes from its own file, and it can be run again."""

import csv
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from labutils import compare, manifests, paths, runtime
from labutils.errors import SurgeryError, UsageError
from labutils.images import data
from labutils.lab import artifacts
from labutils.models import gallery, zoo
from labutils.pipeline import Listener, journey, steps
from labutils.runtime import qnn

STAGES = ["PyTorch", "patched", "ONNX", "int8 CPU", "HTP fp16", "HTP int8", "HTP a16w8"]
BLOCKED = """
import socket, sys
def refuse(*arguments, **settings):
    raise OSError("this test runs without a network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from labutils import __main__
from labutils.pipeline import journey, steps
journey.CPU_IMAGES, steps.CALIBRATION_IMAGES, steps.GATE_IMAGES = 8, 32, 4
sys.exit(__main__.main(sys.argv[1:]))
"""


def without_network():
    """A command prefix that leaves no network at all, where the system allows that."""
    probe = ["unshare", "--net", "--map-root-user", "true"]
    if shutil.which("unshare") and subprocess.run(probe, capture_output=True).returncode == 0:
        return probe[:-1]
    return []


@pytest.fixture(scope="module")
def traveled(tmp_path_factory):
    """The journey as a user runs it, on fewer images, as a process without a network."""
    folder = tmp_path_factory.mktemp("journey")
    command = [sys.executable, "-c", BLOCKED, "journey", "mobilenet_v3_small"]
    command += ["--images", "4", "--json", "-o", str(folder)]
    done = subprocess.run([*without_network(), *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), folder, done.stderr


@pytest.mark.htp
@pytest.mark.slow
def test_it_ends_in_the_ladder(traveled):
    made, folder, _ = traveled
    rows = {row["stage"]: row for row in made["ladder"]["rows"]}
    assert list(rows) == STAGES
    for name in ("patched", "ONNX", "HTP fp16"):
        assert rows[name]["agreement"] == 1.0
    with (folder / "ladder.csv").open(encoding="utf-8") as file:
        written = list(csv.DictReader(file))
    assert [row["stage"] for row in written] == STAGES
    assert all(row["runtime"].startswith("DLC on HTP simulator") for row in written[4:])


@pytest.mark.htp
@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES[2:])
def test_every_row_is_what_its_own_file_computes(stage, traveled):
    made, folder, _ = traveled
    rows = {row["stage"]: row for row in made["ladder"]["rows"]}
    row, others = rows[stage], [r["file"] for r in rows.values() if r["stage"] != stage]
    assert row["file"] not in others
    model = zoo.load("mobilenet_v3_small")
    images = data.load("val", row["n"], 128)
    inputs = model.preprocessing(np.asarray(images.images))
    with runtime.connect(model.module) as original, runtime.connect(folder / row["file"]) as own:
        found = compare.parity(original.run(inputs), own.run(inputs))
    assert found.cosine_mean == pytest.approx(row["cosine_mean"], abs=1e-6)
    assert found.agreement.value == row["agreement"]


@pytest.mark.htp
@pytest.mark.slow
def test_every_artifact_has_a_true_manifest(traveled):
    made, folder, _ = traveled
    artifacts = [Path(path) for name, path in made["artifacts"].items() if name != "ladder.csv"]
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
    _, _, story = traveled
    assert "opset 13 stops at HardSigmoid in features.0.2" in story
    assert "opset 17 stops at HardSwish in features.0.2" in story
    assert "9 hardsigmoid, 19 hardswish" in story


@pytest.fixture(scope="module")
def without_wheel(tmp_path_factory):
    """A journey where Qualcomm's wheel cannot be had: (what it made, folder)."""
    folder = tmp_path_factory.mktemp("without")
    absent = qnn.Availability(False, "There is no wheel for this machine.", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qnn, "probe", lambda: absent)
        patch.setattr(journey, "CPU_IMAGES", 2)
        patch.setattr(steps, "CALIBRATION_IMAGES", 16)
        made = journey.run(
            "mobilenet_v3_small", size=64, images=2, folder=folder, listener=Listener()
        )
    return made, folder


def test_without_qualcomms_wheel_it_ends_after_the_quantized_files(without_wheel):
    made, folder = without_wheel
    assert [row.name for row in made.ladder.rows] == STAGES[:4]
    assert any("There is no wheel" in note for note in made.notes)
    assert not list(folder.glob("*.dlc"))


def test_the_notebooks_make_the_same_files_by_the_same_steps(without_wheel, monkeypatch):
    """And take the journey's only where it was calibrated on as many images, by their recipe."""
    monkeypatch.setattr(steps, "CALIBRATION_IMAGES", 16)
    monkeypatch.setenv("LABUTILS_GENERATED", str(without_wheel[1]))
    model = zoo.load("mobilenet_v3_small", size=64)
    made = {name: artifacts.path_of(name, model) for name in artifacts.FILES}
    assert "calibrated on 16 images, not 128" in artifacts.problem(made["int8"], model)
    monkeypatch.setattr(artifacts, "CALIBRATION_IMAGES", 16)
    assert "by another recipe (" in artifacts.problem(made["int8"], model)  # theirs is int8@1
    monkeypatch.setitem(artifacts.QUANTIZED, "int8", "int8")
    assert {artifacts.problem(path, model) for path in made.values()} == {""}
    for name, path in made.items():
        before = path.read_bytes()
        path.unlink()
        artifacts.load_or_make(name, model, lambda line: None)
        assert path.read_bytes() == before, name


@pytest.mark.htp
@pytest.mark.slow
def test_a_failed_gate_is_a_row_and_not_the_end(tmp_path, lab, monkeypatch):
    """Random weights of a timm network, one channel of them wide: eight bits cannot hold it."""
    name = "timm:mobilenetv3_small_050"
    monkeypatch.setattr(journey, "CPU_IMAGES", 16)
    monkeypatch.setattr(steps, "CALIBRATION_IMAGES", 32)
    state = zoo.load(name, "random", 32).module.state_dict()
    state["bn1.weight"][0] *= 300
    state["blocks.0.0.conv_dw.weight"][0] /= 300
    safetensors.torch.save_file(state, tmp_path / "wide.safetensors")
    asked = ("journey", name, "--weights", tmp_path / "wide.safetensors", "--size", 32)
    code, out, err = lab(*asked, "--images", 4, "--json", "-o", tmp_path / "out")
    made = json.loads(out)
    assert code == 1 and made["ok"] is False, err
    assert [row["stage"] for row in made["ladder"]["rows"]][-1].startswith("HTP a16w8")
    failed = [Path(made["artifacts"][name]) for name in made["failed"]]
    assert "HTP int8 FAILED" in [row["stage"] for row in made["ladder"]["rows"]]
    assert any(file.name.endswith("_int8.failed.dlc") for file in failed)
    for file in failed:
        assert manifests.read(file)["gate"]["passed"] is False
    assert any("FAILED the parity gate" in note for note in made["notes"])


@pytest.mark.parametrize("name", ["x.onnx", "x.dlc"])
def test_a_file_is_refused_as_the_help_says(tmp_path, name, small_onnx):
    shutil.copy(small_onnx(17), tmp_path / "x.onnx")
    with zipfile.ZipFile(tmp_path / "x.dlc", "w") as archive:
        archive.writestr("model", b"")
    with pytest.raises(UsageError, match="is a file; the journey begins with a network"):
        journey.run(str(tmp_path / name), folder=tmp_path / "out", listener=Listener())


def test_a_model_without_these_activations_is_told(tmp_path):
    with pytest.raises(SurgeryError, match="hard-swish and hard-sigmoid"):
        journey.run(
            "tv:resnet18", "random", size=32, folder=tmp_path, images=2, listener=Listener()
        )


def test_without_labels_that_count_accuracy_is_unknown(tmp_path, monkeypatch):
    monkeypatch.delenv("LABUTILS_PHOTOGRAPHS", raising=False)
    monkeypatch.setattr(gallery.photographs, "imagenette", lambda: None)
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    model = zoo.Model("m", module, data.Preprocessing(32), ("r", "g", "b"), "mine", "", True)
    made = journey.Journey()
    stages = [compare.Stage(name, runtime.connect(module), n=4) for name in ("a", "b")]
    log = journey._Log(made, lambda line: None)
    _, load = journey._pictures(model, None, Listener())
    trip = journey._Trip(model, tmp_path, 4, qnn.soc("SM8550"), log, Listener(), load)
    journey._run_ladder(trip, stages)
    assert [row.top1 for row in made.ladder.rows] == [None, None]
    assert made.ladder["b"].parity.agreement.value == 1
    assert "LABUTILS_PHOTOGRAPHS" in made.notes[0]
    assert json.loads(json.dumps(made.ladder.to_dict()))["rows"][1]["top1"] is None
