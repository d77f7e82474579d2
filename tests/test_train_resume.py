"""A fine-tuning that was stopped resumes to the same weights; settings come as a file."""

import copy
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from labutils import __main__, paths, train
from labutils.errors import LabError, ModelFileError, UnknownNameError, UsageError
from labutils.images import data
from labutils.quantize.presets import PRESETS
from labutils.quantize.recipe import Qat
from labutils.quantize.training import qat
from labutils.train import run_state

HOW = {"steps": 5, "size": 32, "batch_size": 8, "images": 32}
NAMES = ("left_mug", "teapot", "fish", "leaf")


class StoppedError(Exception):
    pass


def stop_at(last):
    def look(step, steps, model):
        if step == last:
            raise StoppedError

    return look


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(v, b[name]) for name, v in a.items())


# ---------------------------------------------------------------- fine_tune and fit_


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_stopped_fine_tuning_resumes_to_the_same_weights(small, tmp_path, stop):
    whole, part, again = (copy.deepcopy(small) for _ in range(3))
    expected = train.fine_tune(whole, **HOW)
    state = train.Resumable(tmp_path / "run.pt", every=2)
    with pytest.raises(StoppedError):
        train.fine_tune(part, state=state, on_step=stop_at(stop), **HOW)
    assert (tmp_path / "run.pt").exists() == (stop > 2)
    report = train.fine_tune(again, state=state, **HOW)
    assert report.resumed_at == stop // 2 * 2 and report.losses == expected.losses
    assert ("resumed at step" in str(report)) == (stop > 2)
    assert same(whole.state_dict(), again.state_dict())
    state.remove()
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_over_is_not_run_again(small, tmp_path):
    models = [copy.deepcopy(small) for _ in range(2)]
    first = train.fine_tune(models[0], state=tmp_path / "run.pt", **HOW)
    second = train.fine_tune(models[1], state=tmp_path / "run.pt", on_step=stop_at(1), **HOW)
    assert second.losses == first.losses and second.resumed_at == 5
    assert same(models[0].state_dict(), models[1].state_dict())


def test_an_average_of_the_weights_resumes_too(small, tmp_path):
    how = HOW | {"state": train.Resumable(tmp_path / "run.pt", every=1)}
    twins = [copy.deepcopy(small) for _ in range(2)]
    whole, update = train.averaged(twins[0], 0.9)
    train.fine_tune(twins[0], on_step=update, **HOW)

    average, update = train.averaged(twins[1], 0.9)

    class Stopping:
        state_dict, load_state_dict = update.state_dict, update.load_state_dict

        def __call__(self, step, steps, model):
            update(step, steps, model)
            if step == 3:
                raise StoppedError

    with pytest.raises(StoppedError):
        train.fine_tune(twins[1], on_step=Stopping(), **how)
    twin = copy.deepcopy(small)
    average, update = train.averaged(twin, 0.9)
    train.fine_tune(twin, on_step=update, **how)
    assert average.n_averaged == 5 and same(whole.state_dict(), average.state_dict())


@pytest.mark.parametrize("scales", ["learned", "observed"])
def test_a_stopped_quantized_training_resumes_to_the_same_weights(small, tmp_path, scales):
    recipe = PRESETS["int8"].replaced(qat=Qat(scales=scales, freeze_at=0.5))
    images = data.load("calib", 16, 32)
    models = []
    for _ in range(3):
        models.append(qat.prepare(small, recipe, size=32))
        qat.calibrate_(models[-1], images, data.Preprocessing(32))
    qat.fit_(models[0], teacher=small, **HOW)
    state = train.Resumable(tmp_path / "run.pt", every=2)
    with pytest.raises(StoppedError):
        qat.fit_(models[1], teacher=small, state=state, on_step=stop_at(5), **HOW)
    assert qat.fit_(models[2], teacher=small, state=state, **HOW).resumed_at == 4
    assert same(models[0].state_dict(), models[2].state_dict())


def test_the_state_of_another_run_is_refused_and_the_difference_named(small, tmp_path):
    file = tmp_path / "run.pt"
    train.fine_tune(copy.deepcopy(small), state=file, **HOW | {"steps": 1})
    kept = file.read_bytes()
    for change, words in [
        ({"steps": 2}, r"steps \(1 there, 2 here\)"),
        ({"augmentation": train.Augmentation(flip=False)}, "'flip': False"),
        ({"images": 16}, "images .*, the pictures"),
        ({"teacher": copy.deepcopy(small)}, "the teacher"),
        ({"image_set": "marked-things"}, "the pictures"),
    ]:
        with pytest.raises(ModelFileError, match=f"differs in .*{words}"):
            train.fine_tune(copy.deepcopy(small), state=file, **HOW | {"steps": 1} | change)
    other = copy.deepcopy(small)
    other.classifier[3].bias.data[0] += 1
    with pytest.raises(ModelFileError, match="the weights that it began with"):
        train.fine_tune(other, state=file, **HOW | {"steps": 1})
    assert file.read_bytes() == kept


@pytest.mark.parametrize(
    "content",
    [b"", b"junk", b"PK\x03\x04 cut off", b"text", b"\x80\x04\x95\x00", "another checkpoint"],
    ids=["empty", "junk", "cut", "text", "pickle", "checkpoint"],
)
def test_what_is_not_a_state_is_refused(small, tmp_path, content):
    file = tmp_path / "run.pt"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(small.state_dict(), file)
    before = file.read_bytes()
    with pytest.raises(ModelFileError, match=r"run\.pt is (damaged|not the state)"):
        train.fine_tune(small, state=file, **HOW)
    assert file.read_bytes() == before


def test_one_folder_keeps_the_states_of_many_runs(small, tmp_path):
    kept = [train.Resumable(tmp_path) for _ in range(2)]
    for state, seed in zip(kept, (0, 1), strict=True):
        train.fine_tune(copy.deepcopy(small), state=state, seed=seed, **HOW | {"steps": 1})
    assert len({state.file for state in kept}) == 2
    kept[0].remove()
    assert list(tmp_path.iterdir()) == [kept[1].file]


def test_equal_runs_at_once_are_refused_and_the_first_goes_on(small, tmp_path):
    how, refused = HOW | {"steps": 2, "state": train.Resumable(tmp_path, every=1)}, []

    def start_another(step, steps, model):
        with pytest.raises(UsageError, match="Another process trains the same") as error:
            train.fine_tune(copy.deepcopy(small), on_step=lambda *_: None, **how)
        refused.append(error)

    assert train.fine_tune(copy.deepcopy(small), on_step=start_another, **how).steps == 2
    assert len(refused) == 2


def test_what_another_process_is_writing_is_not_removed(tmp_path):
    state = train.Resumable(tmp_path / "run.pt")
    state.file = state.path
    mark = paths._owner().rpartition("-")[0]
    alive = tmp_path / f".run.{mark}-{os.getpid()}-00000000.tmp.pt"
    dead = tmp_path / f".run.{mark}-4194305-00000000.tmp.pt"  # above every process's number
    for file in (state.file, alive, dead):
        file.write_bytes(b"")
    state.remove()
    assert list(tmp_path.iterdir()) == [alive]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("numbers", [10, 300_000])
def test_a_disk_that_gets_full_is_told_under_pytorchs_writer(numbers, tmp_path, monkeypatch):
    run = train.run_state.Run(torch.nn.Linear(1, numbers), torch.optim.SGD([torch.ones(1)]), None)
    state = train.run_state.RunState(train.Resumable(tmp_path / "run.pt"), {}, train.Ranks())
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *how: real(Path("/dev/full"), *how))
    with pytest.raises(LabError, match=rf"The disk of {tmp_path} is full"):
        state.save(run)
    assert not list(tmp_path.iterdir())


def test_a_place_that_takes_no_state_is_told_before_the_first_step(small, tmp_path):
    (tmp_path / "file").write_text("")
    for state in ("/proc/state", tmp_path / "file" / "below", tmp_path / ("x" * 300)):
        with pytest.raises(UsageError, match=r"^Cannot write "):
            train.fine_tune(small, state=state, on_step=stop_at(1), **HOW | {"steps": 1})


def test_a_run_by_the_clock_is_not_resumed(small, tmp_path):
    with pytest.raises(UsageError, match="Pass steps instead"):
        train.fine_tune(small, seconds=1, state=tmp_path / "run.pt")
    with pytest.raises(UsageError, match="every 0 steps"):
        train.Resumable(tmp_path, every=0)


# ---------------------------------------------------------------- settings


def test_an_unknown_setting_is_named_with_the_nearest(small):
    with pytest.raises(UnknownNameError, match="Did you mean learning_rate"):
        train.fine_tune(small, steps=1, learning_rat=1e-3)


def test_a_configuration_and_its_fields_are_the_same(small):
    models = [copy.deepcopy(small) for _ in range(2)]
    config = train.FineTuningConfig(size=32, batch_size=8, images=32)
    train.fine_tune(models[0], config=config, steps=2)
    train.fine_tune(models[1], **HOW | {"steps": 2})
    assert same(models[0].state_dict(), models[1].state_dict())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("format: 1\nbatch_sise: 8", "line 2: batch_sise: unknown key; did you mean batch_size?"),
        (
            "augmentation:\n  flipp: no",
            "line 2: augmentation.flipp: unknown key; did you mean flip",
        ),
        ("augmentation:\n  flip: 1", "line 2: augmentation.flip: expected true or false"),
        ("augmentation:\n  smallest_crop: 0", "smallest_crop: 0 must be above 0"),
        ("augmentation:\n  smallest_crop: 1.5", "smallest_crop: 1.5 is above 1"),
        ("augmentation: [1]", "line 1: augmentation: expected a mapping, found a list"),
        ("\nsize: 8", "line 2: size: 8 is below 16"),
        ("steps: many", "steps: expected a whole number or nothing, found 'many'"),
        ("freeze_batch_norm_at: 2", "freeze_batch_norm_at: 2 is above 1"),
        ("learning_rate: -1", "learning_rate: -1 is below 0"),
        ("format: 2", "format 2 was written by a newer version"),
        ("seed: 1\nseed: 2", "'seed' is given twice"),
        ("- 1", "write fields and values"),
        ("", "write fields and values"),
        ("{", "not readable as a training configuration"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path, text, words):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=re.escape(words)):
        train.read_fine_tuning_config(file)


def test_what_a_file_leaves_out_is_what_it_is_read_on_top_of(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("format: 1\naugmentation: {flip: false}\nsteps: 7")
    base = qat.training_config("int8_qat")
    found = train.read_fine_tuning_config(file, base)
    expected = dataclasses.replace(base, steps=7, augmentation=train.Augmentation(flip=False))
    assert found == expected and found.learning_rate == 1e-4


def batches(**augmentation):
    ramp = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None] * 8, (8, 32, 32, 3))
    images = data.ImageSet(ramp.copy(), np.zeros(8, np.int64), (), "a ramp from left to right")
    return train.Batches(images, 4, augmentation=train.Augmentation(**augmentation))


def is_mirrored(step, found):
    inputs, _ = found.at(step, 32)
    return bool((inputs[:, :, :, -1] < inputs[:, :, :, 0]).all())


def test_flips_are_left_out_where_they_must_be_and_nothing_else_changes():
    ramp = batches()
    ramp.train.images[:] = np.arange(32, dtype=np.uint8)[None, None, :, None] * 8
    other = dataclasses.replace(ramp, augmentation=train.Augmentation(flip=False))
    mirrored = [is_mirrored(step, ramp) for step in range(20)]
    assert 4 < sum(mirrored) < 16
    assert not any(is_mirrored(step, other) for step in range(20))
    for step in range(20):
        here, there = ramp.at(step, 32)[0], other.at(step, 32)[0]
        assert torch.equal(here.flip(3) if mirrored[step] else here, there)


def test_augmentation_can_be_left_out_altogether():
    plain = batches(smallest_crop=1.0, flip=False, tint=0.0, brightness=0.0)
    inputs, _ = plain.at(0, 32)
    chosen = plain.train.images[plain.indices(0)]
    expected = torch.from_numpy(data.Preprocessing(32)(chosen))
    torch.testing.assert_close(inputs.contiguous(), expected, rtol=0, atol=1e-5)


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """80 drawn pictures in four classes, one of which is named after a side."""
    root = tmp_path_factory.mktemp("own") / "pictures"
    pictures = data.load("test", 320, 64)
    known = {name.removeprefix("left_"): name for name in NAMES}
    for i, label in enumerate(pictures.labels):
        if (name := pictures.classes[label]) in known:
            (root / known[name]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pictures.images[i]).save(root / known[name] / f"{i}.png")
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path / "cache" / "training"


def asked(drawn, out, *more):
    settings = out.with_suffix(".yaml")
    settings.write_text("format: 1\nbatch_size: 16\naugmentation: {flip: false}\n")
    return [
        "train", "mobilenet_v3_small", "--data", drawn, "--size", 32, "--config", settings,
        "--save-every", 1, *more, "-o", out,
    ]  # fmt: skip


def started(*arguments, launcher=()):
    command = [sys.executable, *launcher, "-m", "labutils", *map(str, arguments)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=paths.ROOT
    )


def finished(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def _called(arguments):
    """Call the command line in a process of its own."""
    torch.set_num_threads(1)
    sys.exit(__main__.main([str(argument) for argument in arguments]))


def _struck(arguments):
    """Call the command line, and be killed when the third step has been saved."""
    save = run_state.RunState.save

    def save_and_die(state, run):
        save(state, run)
        if len(run.losses) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    run_state.RunState.save = save_and_die
    _called(arguments)


@pytest.fixture
def one_thread():
    """As in the processes that are started: sums in another order have other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
def test_the_same_command_resumes_after_a_kill(lab, drawn, cache, tmp_path, one_thread):
    outs = [tmp_path / f"{name}.safetensors" for name in ("whole", "killed")]
    code, out, err = lab(*asked(drawn, outs[0], "--steps", 6))
    assert code == 0 and "resumed" not in out and "mirrored" not in out, err
    arguments = (asked(drawn, outs[1], "--steps", 6),)
    struck = forked.start(_struck, arguments, tmp_path / "said.txt", dict(os.environ))
    struck.join(forked.GIVEN_UP_S)
    assert struck.exitcode == -signal.SIGKILL and not outs[1].exists()
    code, out, err = lab(*asked(drawn, outs[1], "--steps", 6))
    assert code == 0 and "resumed at step 3" in out, err
    whole, killed = map(load_file, outs)
    assert same(whole, killed)
    assert not list(cache.iterdir()), "the state is removed when the run is over"
    card = json.loads(outs[1].with_suffix(".json").read_text())
    assert card["config"]["augmentation"]["flip"] is False and card["config"]["batch_size"] == 16
    assert train.read_fine_tuning_config(outs[1].with_suffix(".json")).steps == 6


@pytest.mark.slow
def test_two_processes_train_by_one_command_and_one_of_them_talks(drawn, cache, tmp_path):
    made = tmp_path / "w.safetensors"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    output = finished(started(*asked(drawn, made, "--steps", 2), launcher=launcher))
    assert output.count("Fine-tuned for 2 steps") == output.count("wrote ") == 1
    card = json.loads(made.with_suffix(".json").read_text())
    assert card["processes"] == 2 and len(card["classes"]) == 4

    known = paths.folder(tmp_path / "known")  # classes of the network itself
    for name in NAMES:
        shutil.copytree(drawn / name, known / name.removeprefix("left_"))
    made, more = tmp_path / "q.onnx", ("--recipe", "int8_qat", "--steps", 2)
    codes, said = forked.two(_called, (asked(known, made, *more),), tmp_path)
    output = "".join(said)
    assert codes == [0, 0] and output.count("Fine-tuned for 2 steps") == 1, output
    assert re.search(r"^int8_qat@2 +20 +[\d.]+ \[", output, re.M), output  # of the exported file
    story = json.loads(paths.manifest(made).read_text())
    assert story["training"]["augmentation"]["flip"] is False
    assert [row["n"] for row in story["ladder"]["rows"]] == [card["n"]] * 2
    assert not list(cache.iterdir())


def test_a_class_named_after_a_side_is_pointed_out(lab, drawn, cache, tmp_path):
    few = ("--data", drawn, "--size", 32, "--images", 16, "--steps", 1)
    code, out, err = lab("train", "mobilenet_v3_small", *few, "-o", tmp_path / "w.safetensors")
    assert code == 0, err
    assert "half of the batches are mirrored, and left_mug may then show another class" in out + err


def test_a_mistake_in_the_file_is_refused_before_any_work(lab, drawn, tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text("format: 1\nlearning_rat: 1")
    few = ("--data", drawn, "--config", file, "-o", tmp_path / "w.safetensors")
    code, _, err = lab("train", "mobilenet_v3_small", *few)
    assert code == 2 and "line 2: learning_rat: unknown key; did you mean learning_rate?" in err
    code, _, err = lab("train", "mobilenet_v3_small", *few, "--save-every", 0)
    assert code == 2 and "--save-every must be at least 1" in err
