"""`labutils prune`: the plan, what it refuses, and a file that passed the gate."""

import json
import sys

import forked
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import tiny_network
import torch
from safetensors.torch import save_file

from labutils import __main__, manifests, runtime
from labutils.commands import training_options
from labutils.images import fasteners
from labutils.models import zoo

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
        (("--method", "2:4", "--criterion", "l3"), "--criterion is about channels"),
        (("--method", "unstructured", "--criterion", "taylor"), "--criterion is about channels"),
        (("--method", "unstructured", "--multiple", "0"), "--multiple is about channels"),
        (("--method", "2:4", "--keep-shapes"), "--keep-shapes is about channels"),
        (("--method", "2:4", "--scope", "global"), "leave out --scope"),
        (("--scope", "global", "--budget", "macs=0.5"), "takes the place of --scope"),
        (("--ratio", "0.3", "--ratio", "0.5"), "for all layers was given before"),
        (("--ratio", "a*=0.3", "--ratio", "a*=0.5"), "for a* was given before"),
        (("--budget", "macs=0.9", "--multiple", "0"), "multiples of 1 or more"),
        (("--budget", "macs=0.9", "--exclude", "stme*"), "stme*"),
        (("--save-every", "0"), "--save-every"),
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


# ------------------------------------------------------------ pictures of one's own, with train/


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with train/ and test/, and weights of a tiny network for its classes."""
    place = tmp_path_factory.mktemp("own")
    names = ("dotted nut", "dotted washer", "striped nut", "striped washer")
    for part, n in (("train", 12), ("test", 4)):
        fasteners.write_folder(place / "pictures" / part, n, names, size=tiny_network.SIDE)
    torch.manual_seed(0)
    network = zoo.load(tiny_network.NAME, "random", tiny_network.SIDE).module
    network.fc[-1] = torch.nn.Linear(1024, len(names))
    weights = place / "tiny.safetensors"
    save_file(network.state_dict(), weights)
    told = {"classes": names, "size": tiny_network.SIDE}
    weights.with_suffix(".json").write_text(json.dumps(told))
    return (tiny_network.NAME, "--weights", weights, "--data", place / "pictures")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Where runs keep their states."""
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "training"


SHORT = ("--steps", "4", "--size", "32", "--save-every", "1")


def weights_in(file):
    return {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(file).graph.initializer}


@pytest.mark.slow
def test_a_run_that_was_killed_resumes_and_is_judged_on_the_part_for_it(
    lab, own, kept, tmp_path, monkeypatch
):
    whole, killed = tmp_path / "whole.onnx", tmp_path / "killed.onnx"
    code, said, err = lab(*own, *SHORT, "-o", whole)
    assert code == 0, said + err
    assert "16 pictures" in said and "resumed" not in said  # test/: four of each class

    class KilledError(Exception):
        pass

    def killing(items, description):
        for number, item in enumerate(items):
            if number == 2:
                raise KilledError
            yield item

    with monkeypatch.context() as patched, pytest.raises(KilledError):
        patched.setattr(training_options, "progress_of_first", lambda: killing)
        lab(*own, *SHORT, "-o", killed)
    assert len(list(kept.glob("*/*.pt"))) == 1
    code, said, err = lab(*own, *SHORT, "--ratio", "0.5", "-o", tmp_path / "other.onnx")
    assert code == 0 and "resumed" not in said, said + err  # of another plan
    code, said, err = lab(*own, *SHORT, "-o", killed)
    assert code == 0 and "resumed at step 2" in said, said + err
    ours, theirs = weights_in(whole), weights_in(killed)
    assert ours.keys() == theirs.keys() and all(np.array_equal(ours[n], theirs[n]) for n in ours)
    assert not list(kept.iterdir())


@pytest.mark.slow
def test_all_that_was_found_is_in_the_json(lab, own, tmp_path):
    out = tmp_path / "small.onnx"
    code, said, err = lab(
        *own, "--sensitivity", "--steps", "0", "--keep-shapes", "--json", "-o", out
    )
    told = json.loads(said)
    assert code == 0 and told["gate"]["passed"], err
    assert told["sensitivity"]["readings"] and told["plan"]["groups"] and told["top1"]["n"] == 16
    assert told["removal"] is None and told["training"] is None
    shapes = {name: values.shape for name, values in weights_in(out).items()}
    assert (512, 16) in shapes.values()  # with zeros in place of the channels
    zeros = {name: (values == 0).mean() for name, values in weights_in(out).items()}
    assert sum(share > 0.2 for share in zeros.values()) >= 4
    code, said, err = lab(*own, "--budget", "parameters=0.7", "--steps", "0", "--json", "-o", out)
    assert code == 0 and json.loads(said)["search"]["plan"]["groups"], err
    code, said, err = lab(*own, "--budget", "macs=1", "-o", tmp_path / "as_it_is.onnx")
    assert code == 2 and "keeps to macs=1 as it is" in err and len(list(tmp_path.iterdir())) == 2


def _called(arguments):
    torch.set_num_threads(1)
    sys.exit(__main__.main([str(argument) for argument in arguments]))


@pytest.mark.slow
def test_two_processes_prune_by_one_command_and_one_of_them_talks(own, kept, tmp_path):
    """Also where the widths are measured: both take those of the first."""
    out = tmp_path / "small.onnx"
    arguments = ("prune", *own, "--budget", "latency=0.99,macs=0.9", *SHORT, "-o", out)
    codes, said = forked.two(_called, (arguments,), tmp_path)
    output = "".join(said)
    assert codes == [0, 0], output
    assert output.count("Fine-tuned for 4 steps") == output.count("wrote ") == 1, output
    assert manifests.read(out)["training"]["steps"] == 4
    assert not list(kept.iterdir())
