"""What must turn a notebook red does: each danger is one cell of a tiny notebook."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from nbval_run import run

from labutils.lab import exercises, notebooks

pytestmark = pytest.mark.slow

CONNECT = "import socket; socket.create_connection(('192.0.2.{}', 80), timeout=1)"
LOOPBACK = """import socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(("localhost", server.getsockname()[1])).close()
"""
PRIVATE = """from labutils.lab import exercise\nfrom labutils import paths
assert str(exercise.progress_file()).startswith({0!r})
assert str(paths.generated()) == {0!r}"""
PROBE = "from labutils.runtime import qnn\nassert 'not installed' in qnn.probe().reason"
KEEP = {"tags": [notebooks.KEPT]}


def kept(text):
    cell = new_code_cell("print('29 refused')", metadata=KEEP)
    cell.execution_count, cell.outputs = 1, [new_output("stream", text=text)]
    return cell


def ran(folder, cells, **options):
    """Run a notebook of these cells and return the outcome."""
    path = folder / "03_tiny.ipynb"
    nbformat.write(new_notebook(cells=list(cells)), path)
    return run(path, folder, **options)


@pytest.fixture(scope="module")
def dangers(tmp_path_factory):
    """(names, outcome) of a notebook with one danger in each cell, and two harmless ones."""
    folder = tmp_path_factory.mktemp("dangers")
    command = f"[sys.executable, '-c', {CONNECT.format(5)!r}]"
    cells = {
        "connects": new_code_cell(CONNECT.format(1)),
        "swallows": new_code_cell(f"try:\n    {CONNECT.format(2)}\nexcept OSError:\n    pass"),
        "resolves": new_code_cell("import socket; socket.getaddrinfo('example.org', 80)"),
        "fetches": new_code_cell("import urllib.request as u; u.urlopen('http://192.0.2.4/')"),
        "child": new_code_cell(f"import subprocess, sys; subprocess.run({command}, check=True)"),
        "fails": new_code_cell("raise ValueError('the words of the failure')"),
        "tampered": kept("28 refused\n"),
        "loopback": new_code_cell(LOOPBACK),
        "as kept": kept("29 refused\n"),
        "private": new_code_cell(PRIVATE.format(str(folder))),
    }
    return list(cells), ran(folder, cells.values())


def test_dangers_are_red_and_the_harmless_green(dangers):
    names, outcome = dangers
    passed = {names[number] for number in outcome.passed}
    assert passed == {"swallows", "loopback", "as kept", "private"}, outcome
    assert not outcome.ok
    assert "the words of the failure" in str(outcome)


def test_attempts_to_leave_are_noted_even_if_swallowed(dangers):
    _, outcome = dangers
    asked = [line.split()[1] for line in outcome.outside.splitlines()]
    assert set(asked) == {"192.0.2.1", "192.0.2.2", "example.org", "192.0.2.4", "192.0.2.5"}
    assert "tried to leave this machine" in str(outcome)


def test_an_attempt_alone_makes_the_notebook_red(tmp_path):
    swallow = f"try:\n    {CONNECT.format(2)}\nexcept OSError:\n    pass"
    outcome = ran(tmp_path, [new_code_cell(swallow)])
    assert len(outcome.passed) == 1
    assert not outcome.ok


def test_a_cell_that_hangs_is_red(tmp_path):
    outcome = ran(tmp_path, [new_code_cell("import time; time.sleep(600)")], cell_seconds=2)
    assert not outcome.ok
    assert outcome.passed == ()


def exercise_cells(id, source):
    exercise = exercises.find(id)
    return [
        new_markdown_cell(f"### Exercise {id}: {exercise.title}"),
        new_code_cell(source, metadata={"tags": ["exercise"]}),
        new_code_cell(f"check('{id}', {exercise.answer})"),
        new_code_cell(f"settle('{id}')"),
    ]


def test_strict_and_without_the_wheel(tmp_path):
    cells = [
        new_code_cell("from labutils.lab.lesson import TODO, check, given, settle"),
        *exercise_cells("02.1", exercises.find("02.1").reference),
        *exercise_cells("02.2", exercises.find("02.2").stub),
        new_code_cell(PROBE),
    ]
    outcome = ran(tmp_path, cells, strict=True, hidden="onnxruntime_qnn")
    assert outcome.passed == (0, 1, 2, 3, 4, 7), outcome  # 5, 6: unsolved


@pytest.mark.htp
def test_a_wheel_that_is_not_hidden_is_present(tmp_path):
    unsolved = exercise_cells("02.2", exercises.find("02.2").stub)[1:]
    first = new_code_cell("from labutils.lab.lesson import TODO, check, settle")
    outcome = ran(tmp_path, [first, *unsolved, new_code_cell(PROBE)])
    assert outcome.passed == (0, 1, 2, 3), outcome  # without strict, unsolved is no error
