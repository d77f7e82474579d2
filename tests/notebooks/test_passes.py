"""Every notebook, three times: as shipped, without Qualcomm's wheel, and solved.

The first two passes go from notebook to notebook, as a learner does, and each finds what the one
before it left; they run side by side. The third starts from the files of the first, two at a time.
"""

import datetime
import shutil
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
from nbval_run import run

from labutils.lab import notebooks

pytestmark = pytest.mark.slow

SKIPPED = {}
"""(notebook, cell id) -> (reason, last day), of the cells tagged nbval-skip."""

NOTEBOOKS = pytest.mark.parametrize("path", notebooks.find(), ids=lambda path: path.stem)


def edition(path, solved):
    """A notebook as it is run: with its kept outputs, which a learner's copy does not have.

    nbval compares nothing where a cell has no count.
    """
    original = notebooks.read(path)
    return notebooks.solve(original) if solved else original


@pytest.fixture(scope="module")
def start(request, tmp_path_factory):
    """A function that starts a pass for the notebooks chosen, and returns {path: future}."""
    pools = []

    def start_pass(test, generated, *, workers=1, solved=False, **options):
        pools.append(ThreadPoolExecutor(workers))
        chosen = [i for i in request.session.items if getattr(i, "originalname", "") == test]
        jobs = {}
        for path in (item.callspec.params["path"] for item in chosen):
            copy = notebooks.checkout(tmp_path_factory.mktemp("my")).folder / path.name
            nbformat.write(edition(path, solved), copy)
            jobs[path] = pools[-1].submit(run, copy, generated(), **options)
        return jobs

    yield start_pass
    for pool in pools:
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """Where the notebooks of the first pass leave their files; empty at its start."""
    return tmp_path_factory.mktemp("generated_models")


@pytest.fixture(scope="module")
def as_shipped(start, generated):
    return start("test_as_shipped", lambda: generated)


@pytest.fixture(scope="module")
def without_the_wheel(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("generated_models")
    return start("test_without_the_wheel", lambda: folder, hidden="onnxruntime_qnn")


@pytest.fixture(scope="module")
def solved(start, generated, tmp_path_factory):
    def copied():
        folder = tmp_path_factory.mktemp("generated_models")
        for file in generated.glob("0*.onnx*"):  # with their manifests
            shutil.copy(file, folder)
        return folder

    return start("test_solved", copied, workers=2, solved=True, strict=True)


@NOTEBOOKS
def test_as_shipped(path, as_shipped, without_the_wheel):
    outcome = as_shipped[path].result()
    assert outcome.ok, outcome
    code = [cell for cell in notebooks.read(path).cells if cell.cell_type == "code"]
    assert len(outcome.passed + outcome.skipped) == len(code), outcome


@NOTEBOOKS
def test_without_the_wheel(path, without_the_wheel):
    outcome = without_the_wheel[path].result()
    assert outcome.ok, outcome


@NOTEBOOKS
def test_solved(path, solved):
    outcome = solved[path].result()
    assert outcome.ok, outcome


@NOTEBOOKS
def test_every_pass_has_outputs_to_compare(path):
    for solved in (False, True):
        cells = edition(path, solved).cells
        kept = [cell for cell in cells if notebooks.KEPT in notebooks.tags(cell)]
        assert kept and all(cell.execution_count and cell.outputs for cell in kept)


def test_skipped_cells_have_a_reason_and_an_end():
    tagged = {
        (path.stem, cell.id)
        for path in notebooks.find()
        for cell in notebooks.read(path).cells
        if "nbval-skip" in notebooks.tags(cell)
    }
    assert tagged == set(SKIPPED)
    for cell, (reason, last) in SKIPPED.items():
        assert len(reason) > 15, cell
        assert datetime.date.today() <= last, f"{cell}: mend it, or give it another day"
