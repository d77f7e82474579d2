"""The page about a training loop of one's own: its program runs as it stands there."""

import os
import re
import subprocess
import sys

import forked
import pytest
import torch
from PIL import Image
from pruned_networks import SIDE, Mobile, made
from torch import nn

from labutils import paths, prune, train
from labutils.images import data
from labutils.quantize.training import qat

PAGE = (paths.ROOT / "notebooks" / "own_training_loop.md").read_text("utf-8")
NAMES = ("mug", "teapot", "fish", "leaf")


def blocks(kind):
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)


def program(sections):
    return "\n".join(blocks("python")[:sections])


def patched(text, diff):
    """Apply what a diff says: each hunk's old lines give way to its new ones."""
    for hunk in re.split(r"^@@.*\n", diff, flags=re.MULTILINE)[1:]:
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line[0] in " -")
        new = "".join(line[1:] for line in lines if line[0] in " +")
        assert text.count(old) == 1, f"the page changes what its program does not have: {old}"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with 160 drawn pictures in four classes."""
    root = tmp_path_factory.mktemp("loop")
    drawn = data.load("test", 640, 64)
    for i, label in enumerate(drawn.labels):
        if (name := drawn.classes[label]) in NAMES:
            folder = root / "pictures" / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawn.images[i]).save(folder / f"{i}.png")
    return root


def started(text, folder, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", text],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process):
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def accuracies(output):
    """Top-1 of the rows of the ladder, in percent."""
    rows = re.findall(r"^(?:float|own\.onnx) +\d+ +([\d.]+) \[", output, re.MULTILINE)
    return [float(share) for share in rows]


ENDING = """
assert again.state_dict().keys() == quantized.state_dict().keys()
x = preprocessing(held_out.images[:4])
with torch.no_grad():
    assert torch.equal(again.eval()(torch.from_numpy(x)), quantized.eval()(torch.from_numpy(x)))
assert schedule.done == 0 and len(optimizer.param_groups) == 2
"""


@pytest.mark.slow
def test_the_program_of_the_page_trains_quantizes_and_judges(place):
    text = program(5)
    assert "raise" not in text and len(blocks("python")) == 5
    output = said(started(text + ENDING, place))
    known, exported = accuracies(output)
    assert known > 50 and exported > known - 15, output  # four classes: chance is 25 %
    assert {"own.onnx", "average.onnx", "stopped.pt"} <= {file.name for file in place.iterdir()}


def test_its_loop_has_twenty_lines_and_no_trainer_of_ours():
    loop = blocks("python")[1]
    assert sum(bool(line.strip()) for line in loop.splitlines()) <= 20
    assert "fine_tune" not in program(5) and "fit_" not in program(5)


def _run(text, folder):
    os.chdir(folder)
    exec(text, {"__name__": "__main__"})


@pytest.mark.slow
def test_the_changed_program_trains_under_two_processes(place, tmp_path):
    (tmp_path / "pictures").symlink_to(place / "pictures")
    text = patched(program(3), blocks("diff")[0])
    text = text.replace("SIZE, EPOCHS = 96, 10", "SIZE, EPOCHS = 64, 1").partition("held_out =")[0]
    codes, outputs = forked.two(_run, (text, tmp_path), tmp_path)
    assert codes == [0, 0], outputs
    for output in outputs:  # no warning among the two epochs that they speak of
        assert re.fullmatch(r"(epoch 1 of 1: loss \d\.\d\d\n){2}", output)
    assert [file.name for file in tmp_path.glob("*.onnx")] == ["own.onnx"]


def test_channels_go_in_the_changed_loop():
    """Its train function, on a small network."""
    loop = patched(blocks("python")[1], blocks("diff")[1]).partition("\nsurgery.replace_")[0]
    batch = (torch.randn(16, 3, SIDE, SIDE), torch.randint(0, 10, (16,)))
    names = {"torch": torch, "F": nn.functional, "qat": qat, "prune": prune, "SIZE": SIDE}
    names["loader"] = [batch] * 4
    exec(loop, names)
    trained = names["train"](made(Mobile), 2, 1e-3)
    removal = prune.removed(trained, size=SIDE)
    assert removal.after.total()[0] < 0.7 * removal.before.total()[0]


def test_the_settings_on_the_page_are_read(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(blocks("yaml")[0])
    config = train.read_fine_tuning_config(file)
    assert config.steps == 600 and not config.augmentation.flip
    assert config == train.FineTuningConfig(
        steps=600, batch_size=32, learning_rate=3e-4, label_smoothing=0.1, weight_decay=0.01,
        freeze_batch_norm_at=0.75, augmentation=train.Augmentation(0.5, False, 0.1, 10),
    )  # fmt: skip
