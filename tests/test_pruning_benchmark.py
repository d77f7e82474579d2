"""benchmarks/pruning.py: rows with what they are compared with, TI's tables, cards, the peer."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from labutils import paths, prune
from labutils.images import data
from labutils.models import zoo

sys.path.insert(0, str(paths.ROOT / "benchmarks"))

import pruning
import pruning_rows as rows
import pruning_tables as tables

SHORT = rows.Schedule(steps=2, size=32, judged=32, batch_size=16, images=64)


def test_networks_that_are_trained_here_have_a_smaller_side_everywhere():
    schedules = {row.architecture: rows.Schedule().of(row.architecture) for row in rows.rows()}
    sides = {name: (schedule.size, schedule.judged) for name, schedule in schedules.items()}
    assert sides == {rows.LARGE: (96, 128), rows.SMALL: (96, 128), rows.V2: (96, 128),
                     rows.RESNET: (64, 64)}  # fmt: skip
    bench = pruning.Bench("marked-things", "val", 48, rows.Schedule())
    row = next(row for row in rows.rows() if row.architecture == rows.RESNET)
    assert bench.preprocessing(row).size == bench.schedule_of(row).size == 64
    assert bench.shipped(rows.RESNET) is None and bench.shipped(rows.LARGE) is not None


@pytest.mark.slow
def test_a_row_is_made_with_its_controls_and_has_a_card(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pruning, "gate_word", lambda *_: "0.99999")
    monkeypatch.setattr(pruning, "LATENCY_SIDE", 32)
    monkeypatch.setattr(rows, "RATED_ON", 8)
    bench = pruning.Bench("marked-things", "val", 48, SHORT)
    asked = [row for row in rows.rows() if row.architecture == rows.SMALL]
    original, long, ti30, _ = asked
    measured = {ti30.id: bench.measure(ti30)}
    assert bench.place(long, suffix=".onnx").is_file()  # nobody asked for it
    channels = measured[ti30.id]
    assert channels.macs < 0.6 and channels.side == 32 and 0 <= channels.agreement <= 1
    measured[original.id] = bench.measure(original)
    assert measured[original.id].agreement == 1.0
    chosen = SimpleNamespace(split="val", image_set="marked-things", steps=2)
    cards = {ti30.id: bench.card(ti30)}
    tables.write([*measured.values()], cards, chosen, tmp_path / "out")
    card = json.loads((tmp_path / "out" / "pruned" / "mobilenet_v3_small_ti30.json").read_text())
    assert card["widths"]["classifier.0"] == [1024, 720] and card["figures"]["n"] == 48
    assert card["schedule"]["steps"] == 2 and card["original"]["checkpoint"]
    text = (tmp_path / "out" / "pruning.txt").read_text("utf-8")
    assert "Pruned Model Accuracy" in text and "76.13" in text and "70.37" in text
    assert f"{100 * channels.top1:.2f}" in text and "not made" in text  # of the other networks


@pytest.mark.slow
def test_every_way_of_the_peer_cuts_to_multiples_of_8(monkeypatch):
    monkeypatch.setattr(rows, "RATED_ON", 6)
    network = zoo.load(rows.SMALL, "marked-things").module
    task = rows.Task(network, "marked-things", SHORT, None, print)
    slopes = rows.gradients(task)
    plain = zoo.load(rows.SMALL, "marked-things").module.eval().requires_grad_(True)
    inputs, labels = map(torch.from_numpy, task.rated())
    nn.functional.cross_entropy(plain(inputs), labels).backward()
    for name, parameter in plain.named_parameters():
        assert torch.allclose(slopes["Taylor"][name], parameter.grad, atol=1e-5), name
        assert torch.all(slopes["Hessian"][name] >= slopes["Taylor"][name].square() - 1e-6)
    whole = prune.cost.measured(network, task.shape).total()[0]
    ways = [("Taylor", scope) for scope in rows.PEER_SCOPES]
    for criterion, scope in [*ways, *((name, "global") for name in rows.PEER_CRITERIA)]:
        smaller = rows._cut(task, 0.4, criterion, scope, slopes)
        widths = {len(m.weight) for m in smaller.modules() if isinstance(m, nn.Conv2d)}
        assert all(width % 8 == 0 for width in widths), (criterion, scope)
        assert prune.cost.measured(smaller, task.shape).total()[0] < whole


def test_norms_are_measured_again_after_every_training(monkeypatch):
    """As `prune.recover_` does: ours and the peers' are trained alike."""
    monkeypatch.setattr(rows, "RATED_ON", 8)
    seen = []
    monkeypatch.setattr(rows.prune, "reestimate_", lambda network, batches: seen.append(batches))
    done = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(rows.train, "fine_tune", lambda *_, **__: done)
    task = rows.Task(nn.Linear(1, 1), "marked-things", SHORT, None, seen.append)
    task.train_(nn.Linear(1, 1))
    images = data.load("train", rows.RATED_ON, 32, "marked-things")
    assert np.array_equal(np.concatenate(seen[0]), data.Preprocessing(32)(images.images))
