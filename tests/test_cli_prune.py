"""`labutils prune`: the plan, what it refuses, and a file that passed the gate."""

import json

import numpy as np
import onnx
import pytest

from labutils import __main__, manifests, runtime

SMALL = ("mobilenet_v3_small", "--weights", "things16")


@pytest.fixture
def lab(capsys):
    def call(*arguments):
        code = __main__.main(["prune", *(str(argument) for argument in arguments)])
        return code, *capsys.readouterr()

    return call


def test_a_plan_is_printed_and_nothing_is_written(lab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said, err = lab(*SMALL)
    assert code == 0, err
    assert "features.1.block.2.0" in said and "channels" in said and "MACs" in said
    assert "classifier.3: its channels are the network's outputs" in said
    assert not list(tmp_path.iterdir())
    code, said, err = lab(*SMALL, "--method", "2:4", "--exclude", "classifier.*", "--json")
    told = json.loads(said)
    assert code == 0 and told["method"] == "2:4" and told["zeros_share"] == pytest.approx(0.5, 0.01)
    assert not any(row["layer"].startswith("classifier") for row in told["layers"])


@pytest.mark.slow
def test_ratios_by_glob_reach_the_layers(lab):
    code, said, _ = lab(
        *SMALL, "--ratio", "features.12*=0.5", "--ratio", "0.25", "--multiple", "1", "--json"
    )
    kept = {row["group"]: row for row in json.loads(said)["groups"]}
    assert code == 0 and kept["features.12.0"]["kept"] == 288
    assert kept["classifier.0"]["kept"] == 768


@pytest.mark.parametrize(
    ("arguments", "words"),
    (
        (("--method", "chanels"), "channels"),
        (("--method", "4:2"), "n:m"),
        (("--method", "2:4", "--ratio", "0.5"), "leave out --ratio"),
        (("--method", "2:4", "--sensitivity"), "leave out --method"),
        (("--ratio", "half"), "SHARE or GLOB=SHARE"),
        (("--ratio", "1.5"), "below 1"),
        (("--ratio", "0.5", "--budget", "macs=0.5"), "takes the place of --ratio"),
        (("--budget", "flops=0.5"), "macs"),
        (("--schedule", "qubic"), "cubic"),
        (("--criterion", "l3"), "l1"),
        (("--exclude", "nothing*"), "nothing"),
        (("--steps", "-1"), "--steps"),
        (("-o", "net.dlc"), "writes an .onnx"),
        (("--data", "there", "--set", "things16"), "takes the place of --set"),
    ),
)
def test_mistakes_are_explained(lab, arguments, words):
    code, said, err = lab(*SMALL, *arguments)
    assert code == 2 and words in said + err and "Traceback" not in said + err


def test_a_file_cannot_be_pruned(lab, tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"no")
    code, said, err = lab(tmp_path / "net.onnx")
    assert code == 2 and "net.onnx" in said + err


@pytest.mark.slow
def test_a_file_is_written_once_it_passed_the_gate(lab, tmp_path, few_pictures):
    out = tmp_path / "small.onnx"
    code, said, err = lab(
        *SMALL, "--ratio", "0.3", "--steps", "2", "--size", "32", "--images", "64", "-o", out
    )
    assert code == 0, said + err
    assert "Fine-tuned for 2 steps" in said and "Parity gate (ort_fp32): passed" in said
    assert "points" in said and "n=64" in said
    with runtime.connect(out) as runner:
        assert runner.run(np.zeros((1, 3, 128, 128), np.float32)).shape == (1, 16)
    shapes = {w.name: tuple(w.dims) for w in onnx.load(out).graph.initializer}
    assert shapes["classifier.0.weight"] == (720, 400)
    facts = manifests.read(out)
    assert facts["plan"]["macs_left"] < 0.6 * facts["plan"]["macs"]
    assert facts["removal"]["departure"] < 1e-8 and facts["training"]["steps"] == 2


@pytest.mark.slow
def test_a_budget_and_a_folder_of_pictures(lab, tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("mug", "key"):
        (tmp_path / "own" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 255, (40, 40, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "own" / name / f"{i}.png")
    out = tmp_path / "small.onnx"
    code, said, err = lab(
        *SMALL, "--data", tmp_path / "own", "--budget", "macs=0.6", "--criterion", "taylor",
        "--steps", "2", "--size", "32", "-o", out,
    )  # fmt: skip
    assert code == 0, said + err
    assert "within at most 60 % of the MACs" in said and out.exists()
