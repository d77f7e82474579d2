"""Shared fixtures: small real models, their ONNX exports, Things-16 images."""

from __future__ import annotations

import copy
import functools
import gc
import html
import os
import re
from pathlib import Path

# Beside another test process, each keeps to one core: threads that wait for a core spin. Said
# outright, because a worker inherits what the process that starts the workers has set here.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
else:
    os.environ.setdefault("OMP_NUM_THREADS", "2")

import file_order
import pytest
from hypothesis import HealthCheck, settings

from labutils import paths

# a busy machine is no reason to fail: no test has a deadline, and slow draws are no bug
# The same examples in every run, so that a red run is red again;
# `--hypothesis-profile=explore` draws new ones.
_PROFILE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("lab", derandomize=True, **_PROFILE)
settings.register_profile("explore", **_PROFILE)
settings.load_profile("lab")


def pytest_addoption(parser):
    parser.addoption(
        "--asks-qnn",
        action="store_true",
        help="only the test files that ask for Qualcomm's wheel: the rest runs alike without it",
    )


@functools.cache
def _asks_qnn(path):
    """Whether a test file asks for Qualcomm's wheel: it has a test marked htp or asks_qnn."""
    text = path.read_text(encoding="utf-8")
    return "mark.htp" in text or "mark.asks_qnn" in text


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    worker = os.environ.get("PYTEST_XDIST_WORKER")  # "gw0"
    if isinstance(collector, pytest.Dir) and report.passed and worker:
        number, workers = int(worker[2:]), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        report.result = file_order.from_another_one_on(list(report.result), number, workers)
    return report


def pytest_collection_finish():
    gc.freeze()  # the garbage collector need not walk through 7000 tests, and torch, ever again


def pytest_collection_modifyitems(config, items):
    file_order.longest_first(items)
    if config.getoption("--asks-qnn"):
        config.hook.pytest_deselected(items=[item for item in items if not _asks_qnn(item.path)])
        items[:] = [item for item in items if _asks_qnn(item.path)]
    _skip_without_litert([item for item in items if item.get_closest_marker("litert")])
    marked = [item for item in items if item.get_closest_marker("htp")]
    if not marked:
        return
    from labutils.runtime import qnn

    availability = qnn.probe()
    if not availability.ok:
        for item in marked:
            item.add_marker(pytest.mark.skip(reason=availability.reason))


def _skip_without_litert(marked):
    if not marked:
        return
    from labutils.runtime import litert

    found = litert.probe()
    for item in [] if found.ok else marked:
        item.add_marker(pytest.mark.skip(reason=found.reason))


@pytest.fixture(scope="session", autouse=True)
def _only_marked_files_ask_for_qnn():
    """What `--asks-qnn` rests on: a file that is left out there never asks for the wheel."""
    from labutils.runtime import qnn

    probe = qnn.probe

    def noted():
        current = os.environ.get("PYTEST_CURRENT_TEST", "")
        file = Path(__file__).parents[1] / current.partition("::")[0]
        assert _asks_qnn(file), f"{current} asks for Qualcomm's wheel: mark it asks_qnn"
        return probe()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qnn, "probe", noted)
        patch.setattr(qnn.pool, "probe", noted)
        yield


@pytest.fixture(scope="session")
def generated_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("generated_models")


@pytest.fixture(autouse=True)
def _own_folder(generated_folder, monkeypatch):
    """Artifacts of tests never land in the learner's generated_models/."""
    monkeypatch.setenv("LABUTILS_GENERATED", str(generated_folder))


def _calibrated(architecture, size):
    """A seeded random network whose BatchNorm statistics were measured on Things-16."""
    import torch

    from labutils import train
    from labutils.images import data

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = train.network(architecture)
    batch = data.load("calib", 32, size)
    inputs = torch.from_numpy(data.Preprocessing(size)(batch.images))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # cumulative average
            module.reset_running_stats()
    with torch.no_grad():
        model.train()(inputs)
    return model.eval()


@pytest.fixture(scope="session")
def _small():
    return _calibrated("mobilenet_v3_small", 64)


@pytest.fixture(scope="session")
def _large():
    return _calibrated("mobilenet_v3_large", 64)


@pytest.fixture
def small(_small):
    """torchvision's mobilenet_v3_small, 16 classes, random weights (a copy: change it freely)."""
    return copy.deepcopy(_small)


@pytest.fixture
def large(_large):
    """torchvision's mobilenet_v3_large, 16 classes, random weights (a copy: change it freely)."""
    return copy.deepcopy(_large)


def _exporter(model, folder, name, size):
    from labutils import export

    def onnx_file(opset=17):
        path = folder / f"{name}_{size}px_op{opset}.onnx"
        if not path.exists():
            export.to_onnx(model, path, size=size, opset=opset)
        return path

    return onnx_file


@pytest.fixture(scope="session")
def small_onnx(_small, tmp_path_factory):
    """A function opset -> ONNX file of `small` at 64 px (made once; do not change it)."""
    return _exporter(_small, tmp_path_factory.mktemp("onnx"), "mobilenet_v3_small", 64)


@pytest.fixture(scope="session")
def large_onnx(_large, tmp_path_factory):
    """A function opset -> ONNX file of `large` at 128 px (made once; do not change it)."""
    return _exporter(_large, tmp_path_factory.mktemp("onnx"), "mobilenet_v3_large", 128)


@pytest.fixture(scope="session")
def images():
    """A function (n, size) -> (n, size, size, 3) uint8 Things-16 images."""
    from labutils.images import data

    def load(n, size):
        return data.load("val", n, size).images

    return load


@pytest.fixture(scope="session")
def inputs():
    """A function (n, size) -> (n, 3, size, size) float32 normalised Things-16 images."""
    from labutils.images import data

    def load(n, size):
        return data.Preprocessing(size)(data.load("val", n, size).images)

    return load


@pytest.fixture
def few_pictures(monkeypatch):
    """Commands that train calibrate and judge on tens of drawn images, not on hundreds."""
    from labutils.commands import quantized_training
    from labutils.images import data

    monkeypatch.setattr(data, "VALIDATION_IMAGES", 64)
    monkeypatch.setattr(quantized_training, "_CALIBRATION", 32)
    monkeypatch.setattr(quantized_training, "_HELD_OUT", 32)


@pytest.fixture(autouse=True)
def _few_at_gates(monkeypatch):
    """A gate asks for 8 images, not 32: the simulator computes for a tenth of a second on each."""
    from labutils.pipeline import steps

    monkeypatch.setattr(steps, "GATE_IMAGES", 8)


@pytest.fixture
def checkpoints():
    return paths.CHECKPOINTS


@pytest.fixture
def read():
    """A function: what a reader sees of markup or text, with single spaces."""

    def text(markup):
        return " ".join(html.unescape(re.sub(r"<[^>]+>", "", markup)).split())

    return text


@pytest.fixture
def lab(capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        from labutils import __main__

        code = __main__.main([str(argument) for argument in arguments])
        out = capsys.readouterr()
        return code, out.out, out.err

    return run
