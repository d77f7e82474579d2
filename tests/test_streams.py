"""Commands whose output is closed by its reader, as by ``| head``."""

import os
import subprocess
import sys
from pathlib import Path

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
    assert code == 2  # that of a command without a file, whoever listens


def test_another_pipe_that_breaks_is_an_error_as_ever():
    with pytest.raises(BrokenPipeError, match="not ours"), streams.ending_quietly():
        raise BrokenPipeError("not ours")


def test_what_a_command_returns_and_raises_passes_through():
    with pytest.raises(KeyError), streams.ending_quietly():
        raise KeyError("x")


# --- streams that are not there, or full ---------------------------------------------------------


def in_shell(words, redirected, cwd, *, buffered=True):
    """Run `python -m labutils` with its streams as a shell redirects them."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    command = ["sh", "-c", f'"$0" -m labutils {words} {redirected}', sys.executable]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(os.name != "posix", reason="a POSIX shell")
@pytest.mark.parametrize(
    ("words", "redirected", "code", "said"),
    [
        ("recipe list", ">&-", 0, ""),
        ("recipe list", "<&- >&- 2>&-", 0, ""),
        ("recipe show nosuch", "2>&-", 2, ""),
        ("recipe show nosuch", "<&-", 2, "nosuch"),
    ],
)
def test_a_stream_that_is_closed_from_the_beginning(words, redirected, code, said, tmp_path):
    done = in_shell(words, redirected, tmp_path)
    assert done.returncode == code
    assert said in done.stderr and "Traceback" not in done.stderr
    assert done.stdout == "" or "2>" not in redirected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("words", ["recipe list", "--version", "--help", "cache --help"])
def test_output_that_cannot_be_written_is_one_line_and_a_failure(words, buffered, tmp_path):
    done = in_shell(words, ">/dev/full", tmp_path, buffered=buffered)
    assert done.returncode == 1
    assert done.stderr == "OSError: [Errno 28] No space left on device\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("words", "code"), [("recipe show nosuch", 2), ("recipe show", 2), ("--version", 0)]
)
def test_messages_that_cannot_be_written_do_not_change_the_exit_code(words, code, tmp_path):
    assert in_shell(words, "2>/dev/full", tmp_path).returncode == code
