"""Commands whose output is closed by its reader, as by ``| head``."""

import os
import subprocess
import sys

import pytest

from labutils import streams

COMMANDS = [
    ("labutils", "--help"),
    ("labutils", "recipe", "show", "int8"),
    ("labutils", "room", ".", "--json"),
    ("labutils", "run", "no.dlc", "--json"),  # an error, as JSON
    ("labutils.lab.notebooks", "checkout", "mine"),
]


def closed_at_once(command, cwd, *, both=False, buffered=True):
    """Run a command with a pipe that nobody reads; return its exit code and what it still said."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command], cwd=cwd, env=environment, stdout=writing,
            stderr=writing if both else subprocess.PIPE,
        )  # fmt: skip
    finally:
        os.close(writing)
    return done.returncode, done.stderr


@pytest.mark.skipif(os.name != "posix", reason="there is no EPIPE elsewhere")
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_whose_reader_has_left_ends_without_a_word(command, tmp_path):
    assert closed_at_once(command, tmp_path) == (1, b"")


@pytest.mark.skipif(os.name != "posix", reason="there is no EPIPE elsewhere")
def test_a_reader_who_leaves_in_between(tmp_path):
    command = [sys.executable, "-m", "labutils", "recipe", "show", "int8"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.read(4)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (0, 1)  # 0: all of it was in the pipe already


@pytest.mark.skipif(os.name != "posix", reason="there is no EPIPE elsewhere")
def test_output_without_a_buffer(tmp_path):
    command = ("labutils", "recipe", "show", "int8")
    assert closed_at_once(command, tmp_path, buffered=False) == (1, b"")


@pytest.mark.skipif(os.name != "posix", reason="there is no EPIPE elsewhere")
def test_stderr_in_the_same_closed_pipe_is_quiet_too(tmp_path):
    code, _ = closed_at_once(("labutils", "run", "no.dlc"), tmp_path, both=True)
    assert code == 1


def test_another_pipe_that_breaks_is_an_error_as_ever():
    with pytest.raises(BrokenPipeError, match="not ours"), streams.ending_quietly():
        raise BrokenPipeError("not ours")


def test_what_a_command_returns_and_raises_passes_through():
    with pytest.raises(KeyError), streams.ending_quietly():
        raise KeyError("x")
