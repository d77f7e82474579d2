"""Two real processes train as one: same gradients, one writer, and a killed one costs nothing."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
import torch

from labutils import paths, train
from labutils.errors import EarlierFormatWarning, UnknownNameError, UsageError
from labutils.images import data
from labutils.train.__main__ import main

TINY = {
    "architecture": "mobilenet_v3_small",
    "images": 64,
    "source_size": 48,
    "batch_size": 16,
    "phases": [[32, 20]],
    "warmup_steps": 2,
}


def _rank_of_gradients(config, folder):
    """What one of two processes does."""
    torch.set_num_threads(1)
    config = train.read_config(config)
    with train.joined() as ranks:
        assert ranks.size == 2
        trainer = train.Trainer(config, ranks)
        trainer.averaging.eval()
        batches = train.Batches(data.load("train", config.images, config.source_size), 16)
        loss = ranks.mean(trainer.backward(batches))
        gradients = {name: p.grad for name, p in trainer.model.named_parameters()}
        torch.save(gradients | {"loss": torch.tensor(loss)}, folder / f"{ranks.rank}.pt")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.json"
    path.write_text(json.dumps(TINY))
    data.load("train", TINY["images"], TINY["source_size"])
    return path


def torchrun(*program):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", *map(str, program)]
    return subprocess.Popen(
        command,
        cwd=paths.ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def asked(config, work, *options):
    return ["mobilenet_v3_small", "--config", config, "--work", work, *options]


def _rank_of_training(arguments):
    """What a process of `torchrun` does."""
    torch.set_num_threads(1)
    sys.exit(main([str(argument) for argument in arguments]))


@pytest.mark.slow
def test_gradients_of_two_ranks_are_those_of_one_process(config, tmp_path):
    codes, said = forked.two(_rank_of_gradients, (config, tmp_path), tmp_path)
    assert codes == [0, 0], said

    settings = train.read_config(config)
    alone = train.Trainer(settings)
    alone.model.eval()  # BatchNorm with running statistics, dropout off
    batches = train.Batches(data.load("train", 64, 48), 16)
    loss = alone.backward(batches)
    of_ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert of_ranks[0]["loss"].item() == pytest.approx(loss, rel=1e-6)
    for name, parameter in alone.model.named_parameters():
        peak = parameter.grad.abs().max().item()
        assert peak > 0, name
        assert torch.equal(of_ranks[0][name], of_ranks[1][name]), name
        # an average over two halves rounds otherwise than a sum over all
        torch.testing.assert_close(
            of_ranks[0][name], parameter.grad, rtol=0, atol=2e-5 * peak, msg=name
        )


def weights(work):
    return torch.load(work / "mobilenet_v3_small.resume.pt", weights_only=True)


def ranks_of(process):
    """The rank of every process that torchrun has started, by process number."""
    pids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    found = {}
    for pid in pids:
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
        rank = [v.removeprefix("RANK=") for v in environment if v.startswith("RANK=")]
        found |= {int(rank[0]): int(pid)} if rank else {}
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds ranks in /proc")
def test_a_run_whose_rank_was_killed_goes_on_to_the_same_weights(config, tmp_path):
    whole = asked(config, tmp_path / "whole", "--stop-at", 20)
    codes, said = forked.two(_rank_of_training, (whole,), tmp_path)
    assert codes == [0, 0], said
    assert "".join(said).count('"step": 20') == 1, "only rank 0 logs"

    work = tmp_path / "killed"
    killed = asked(config, work, "--stop-at", 20, "--save-every", 4)
    killed = torchrun("-m", "labutils.train", *killed)
    deadline = time.monotonic() + 200
    while not list(work.glob("*.resume.pt")) and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(ranks_of(killed)[1], signal.SIGKILL)
    output, _ = killed.communicate(timeout=300)
    assert killed.returncode != 0
    assert "SIGKILL" in output or "-9" in output
    reached = weights(work)["step"]
    assert 4 <= reached < 20

    again = asked(config, work, "--stop-at", 20)
    codes, said = forked.two(_rank_of_training, (again,), tmp_path)
    assert codes == [0, 0], said
    # torchrun stops the other rank, which may be writing: what that left is swept by this run
    assert [file.name for file in work.iterdir()] == ["mobilenet_v3_small.resume.pt"]
    one, other = weights(tmp_path / "whole"), weights(work)
    assert one["step"] == other["step"] == 20
    assert one["processes"] == 2
    for part in ("model", "ema"):
        for name, value in one[part].items():
            assert torch.equal(other[part][name], value), (part, name)


def test_parts_are_the_batch_in_order():
    images = data.load("train", 64, 48)
    batches = train.Batches(images, 16)
    inputs, labels = batches.at(3, 32)
    for size in (1, 2, 4):
        parts = [batches.at(3, 32, train.Ranks(r, size).part(16)) for r in range(size)]
        assert torch.equal(torch.cat([x for x, _ in parts]), inputs)
        assert torch.equal(torch.cat([y for _, y in parts]), labels)
    with pytest.raises(UsageError, match="among 3 processes"):
        train.Ranks(0, 3).part(16)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"batch_sise": 8}', "did you mean batch_size?"),
        (
            '{"batch_size": "8"}',
            "line 1: batch_size: expected a whole number, found '8'",
        ),
        ('{"batch_size": 0}', "batch_size: 0 is below 1"),
        ('{"phases": [[64]]}', "side in pixels"),
        ('{"architecture": "resnet18"}', "mobilenet_v3_large"),
        ('{"learning_rate": -1}', "learning_rate: -1 is below 0"),
        ("[1]", "write fields and values"),
        ("{", "not readable as a training configuration"),
        ('{"seed": 1, "seed": 2}', "'seed' is given twice"),
        ('{\n\t"format": 2}', "config.json, line 2: format: format 2 was written by a newer"),
        ('{"config": {\n"seed": -1}}', "config.json, line 2: config.seed: -1 is below 0"),
    ],
)
def test_what_is_not_a_configuration_is_refused(tmp_path, text, reason):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises((UsageError, UnknownNameError), match=re.escape(reason)):
        train.read_config(path)


def test_the_configuration_on_a_card_is_the_one_that_made_it(checkpoints):
    shipped = {name for name in train.CONFIGS if (checkpoints / f"{name}.safetensors").is_file()}
    assert shipped >= {"mobilenet_v3_large", "mobilenet_v3_small"}
    for name in shipped:
        assert train.read_config(checkpoints / f"{name}.json") == train.CONFIGS[name]


def test_a_card_of_an_earlier_version_is_read_with_a_line(tmp_path):
    """It called the configuration a recipe."""
    earlier = tmp_path / "card.json"
    earlier.write_text(json.dumps({"top1": 0.9, "recipe": {"seed": 3, "learning_rate": 5e-05}}))
    with pytest.warns(EarlierFormatWarning, match="called the configuration a recipe"):
        found = train.read_config(earlier)
    assert found == train.TrainConfig(seed=3, learning_rate=5e-05)


def test_the_option_of_before_names_the_new_one(capsys):
    from labutils.train import __main__

    with pytest.raises(SystemExit, match="2"):
        __main__.main(["mobilenet_v3_small", "--recipe", "big.json"])
    assert "--config big.json" in capsys.readouterr().err
