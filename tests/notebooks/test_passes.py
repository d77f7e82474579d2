"""Every notebook, twice: as a learner walks through it, and without Qualcomm's wheel and tools.

The walk runs each exercise as shipped, and then once more with its answer; the pass without the
wheel answers nothing. Both go from notebook to notebook, as a learner does, and each notebook finds
what the one before it left; the two passes run side by side. A notebook that makes no use of the
wheel is walked without it, and the second pass runs only its exercises, unless it calls a tool:
what is installed of `labutils tools` is there for the walk, and hidden from the other pass. Both
judge on fewer pictures and train for fewer steps than a reader: what a cell does is the same, and
no kept output depends on it.
"""

import copy
import datetime
import re
from concurrent.futures import ThreadPoolExecutor

import nbformat
import pytest
from nbformat.v4 import new_code_cell
from nbval_run import run

from labutils.lab import exercises, notebooks
from labutils.lab.exercise import PASSED

pytestmark = pytest.mark.slow

SKIPPED = {}
"""(notebook, cell id) -> (reason, last day), of the cells tagged nbval-skip."""

WHEEL = "onnxruntime_qnn"
NEEDS_WHEEL = re.compile(r"\b(on_htp|qnn)\b|\bimport\b.*\bdlc\b")

RESTS = {"08co05x", "08co16x", "08co61x", "08co86h"}
"""Cells that the wheel changes, and what they rest on, of a notebook that computes for minutes."""

FEWER = {
    "066237ee": [("lesson.model, 160", "lesson.model, 32")],
    "a6644677": [("model, 4", "model, 2")],
    "775258b7": [("model, 160", "model, 64")],
    "f607df53": [("model, 128", "model, 48")],
    "826f0814": [("model, 32", "model, 8")],
    "a050a3ad": [('"fp16": 8, "int8": 16, "a16w8": 16', '"fp16": 2, "int8": 4, "a16w8": 4')],
    "07co47x": [("small, 320", "small, 64")],
    "07co49x": [("steps=60", "steps=12"), ("images=1280", "images=256")],
    "08co05x": [("small, 128", "small, 64")],
    "08co16x": [("small, 320", "small, 64")],
    "08co37x": [("(8, 4)", "(4,)")],
    "08co40x": [("inputs[:16]", "inputs[:4], worst=5")],
    "08co52x": [("big, 128", "big, 32"), ("big, 160", "big, 3"), ("(8, 16)", "(8,)")],
    "08co55x": [("source, inputs", "source, inputs[:8]"), ("judged=64", "judged=8")],
    "08co74x": [("small96, 128", "small96, 64"), ("small96, 640", "small96, 64")],
    "08co79x": [("seconds=30", "seconds=5"), ("images=1280", "images=256")],
    "09co26x": [("(60, 1e-2", "(15, 1e-2"), ("(120, 1e-3", "(30, 1e-3")],
    "09co53x": [("STEPS = 60", "STEPS = 15")],
    "10co11x": [('"val", 200', '"val", 64')],
    "10co40x": [('"steps": 70', '"steps": 20'), ('"images": 1600', '"images": 320')],
    "10co60x": [("images[:32]", "images[:4]")],
    "11co61x": [('"val", 320', '"val", 64')],
}
"""Cell id -> what a reader's cell says and what it says under test: pictures, steps, seconds."""

NOTEBOOKS = pytest.mark.parametrize("path", notebooks.find(), ids=lambda path: path.stem)


def with_fewer(notebook):
    """A copy whose cells look at fewer pictures, and train for fewer steps."""
    copied = copy.deepcopy(notebook)
    for cell in copied.cells:
        for readers, ours in FEWER.get(cell.id, ()):
            assert cell.source.count(readers) == 1, f"{cell.id} does not say {readers} once"
            cell.source = cell.source.replace(readers, ours)
    return copied


def answered(notebook):
    """A copy in which each exercise, once judged as shipped, is answered and judged again.

    Like the others it keeps its outputs, which a learner's copy does not have: nbval compares
    nothing where a cell has no count.
    """
    walk = copy.deepcopy(notebook)
    answers = {cell.id: exercises.find(id) for id, cell in notebooks.exercise_cells(notebook)}
    walk.cells, asked = [], None
    for cell in copy.deepcopy(notebook.cells):
        walk.cells.append(cell)
        asked = answers.get(cell.id, asked)
        if "check" in notebooks.tags(cell):
            walk.cells += [new_code_cell(asked.reference), new_code_cell(cell.source)]
    return walk


def uses_the_wheel(notebook):
    return any(c.cell_type == "code" and NEEDS_WHEEL.search(c.source) for c in notebook.cells)


def calls_tools(notebook):
    return any(c.cell_type == "code" and "on_tools(" in c.source for c in notebook.cells)


def unanswered(notebook):
    """A copy as shipped; where wheel and tools make no difference, its exercises alone."""
    copied = copy.deepcopy(notebook)
    rests = RESTS & {cell.id for cell in copied.cells}
    if rests or not (uses_the_wheel(notebook) or calls_tools(notebook)):
        needed = {"setup", "exercise", "check", "settle"}
        copied.cells = [c for c in copied.cells if needed & {*notebooks.tags(c)} or c.id in rests]
    return copied


@pytest.fixture(scope="module")
def start(request, tmp_path_factory):
    """A function that starts a pass for the notebooks chosen, and returns {path: future}."""
    pools = []

    def start_pass(test, edition, hidden, with_tools):
        pools.append(ThreadPoolExecutor(1))
        generated = tmp_path_factory.mktemp("generated_models")
        chosen = [i for i in request.session.items if getattr(i, "originalname", "") == test]
        jobs = {}
        for path in (item.callspec.params["path"] for item in chosen):
            mine = notebooks.checkout(tmp_path_factory.mktemp("my")).folder / path.name
            original = notebooks.read(path)
            nbformat.write(edition(with_fewer(original)), mine)
            options = {"hidden": hidden(original), "with_tools": with_tools}
            jobs[path] = pools[-1].submit(run, mine, generated, **options)
        return jobs

    yield start_pass
    for pool in pools:
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def walked(start):
    hidden = lambda n: "" if uses_the_wheel(n) else WHEEL  # noqa: E731
    return start("test_walked_through", answered, hidden, with_tools=True)


@pytest.fixture(scope="module")
def without_the_wheel(start):
    return start("test_without_the_wheel", unanswered, lambda n: WHEEL, with_tools=False)


@NOTEBOOKS
def test_walked_through(path, walked, without_the_wheel):
    outcome = walked[path].result()
    assert outcome.ok, str(outcome)
    walk = answered(notebooks.read(path))
    code = [cell for cell in walk.cells if cell.cell_type == "code"]
    assert len(outcome.passed + outcome.skipped) == len(code), str(outcome)
    asked = exercises.of(path.name[:2])
    assert set(outcome.exercises) == {exercise.id for exercise in asked}
    for record in outcome.exercises.values():  # as shipped, and answered
        assert (record.attempts, record.outcome, record.settled) == (1, PASSED, False)


@NOTEBOOKS
def test_without_the_wheel(path, without_the_wheel):
    outcome = without_the_wheel[path].result()
    assert outcome.ok, str(outcome)
    assert set(outcome.exercises) == {exercise.id for exercise in exercises.of(path.name[:2])}
    assert all(record.settled for record in outcome.exercises.values()), "answered by nobody"


@NOTEBOOKS
def test_every_pass_has_outputs_to_compare(path):
    for edition in (copy.deepcopy, answered):
        cells = edition(notebooks.read(path)).cells
        kept = [cell for cell in cells if notebooks.KEPT in notebooks.tags(cell)]
        assert kept and all(cell.execution_count and cell.outputs for cell in kept)


def test_cells_with_fewer_pictures_exist_and_keep_no_output():
    cells = {cell.id: cell for path in notebooks.find() for cell in notebooks.read(path).cells}
    assert set(FEWER) <= set(cells)
    assert not any(notebooks.KEPT in notebooks.tags(cells[id]) for id in FEWER)


def test_notebooks_that_use_the_wheel_are_known():
    """Each runs a step on the simulator; the others run alike without it."""
    users = [path.name[:2] for path in notebooks.find() if uses_the_wheel(notebooks.read(path))]
    assert users == ["02", "04", "05", "06", "08", "09", "10"]


def test_notebooks_that_call_tools_are_known():
    """Each is run with what is installed of them, and from end to end without any."""
    users = [path.name[:2] for path in notebooks.find() if calls_tools(notebooks.read(path))]
    assert users == ["11"]


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
        assert datetime.date.today() <= last, f"{cell}: repair it, or give it another day"
