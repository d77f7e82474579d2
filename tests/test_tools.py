"""Other vendors' tools in separate environments: a tiny one is built, installed and called."""

import ast
import contextlib
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_tool

from labutils import paths, tools
from labutils.errors import (
    LabError,
    MissingToolError,
    ToolError,
    UnknownNameError,
    UsageError,
    WorkerError,
)
from labutils.machine import doctor
from labutils.tools import calling, environment, lock, program, writing

PROGRAM = """
import os, sys, tempfile, time
import tinytool

def doubled(x, times):
    print("this must not reach the wire", flush=True)
    return {"answer": tinytool.WORD, "sum": [v * times for v in x]}

def refused():
    raise tinytool.BackendError("ReduceMean version 18 is not implemented.")

def leave():
    sys.exit("no such operator")

def die():
    os.kill(os.getpid(), 11)

def sleep():
    time.sleep(60)

def seen():
    return {"path": sys.path, "labutils": "labutils" in sys.modules}

def kept(file):
    handle, name = tempfile.mkstemp()
    return {"file": file, "temporary": name}
"""


@pytest.fixture
def place(tmp_path):
    with tiny_tool.own_place(tmp_path) as folder:
        yield folder


@pytest.fixture(scope="module")
def installation(tmp_path_factory):
    """The tiny tool, installed once for this file."""
    folder = tmp_path_factory.mktemp("tools")
    tiny_tool.wheel(folder / "wheels")
    with tiny_tool.own_place(folder):
        said = []
        made = environment.install("tiny", echo=said.append)
        assert made.state == "installed" and said
    return folder


@pytest.fixture
def installed(installation):
    with tiny_tool.own_place(installation) as folder:
        yield folder


@pytest.fixture
def tool(installed, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    with calling.opened("tiny", tmp_path / "program.py") as opened:
        yield opened


# --- before anything is installed -------------------------------------------------------------


def test_a_proprietary_tool_is_never_installed_unasked(place, lab, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("something was started"))
    text = tiny_tool.LOCK.replace("licence: MIT", "licence: TINY 1\naccepted_by: who installs it")
    (lock.FOLDER / "tiny.yaml").write_text(text, encoding="utf-8")
    code, _, said = lab("tools", "install", "tiny")
    assert code == 2 and "proprietary (TINY 1): who installs it" in said
    assert "--accept-licence to install tinytool==1.0" in said
    assert not environment.place().exists()
    assert "TINY 1; Python" in lab("tools", "list")[1]


def test_a_tool_for_another_python_says_which(place, monkeypatch):
    monkeypatch.setenv("PATH", str(place))
    other = tiny_tool.LOCK.replace(f'"{tiny_tool.HERE}"', '"3.2"')
    (lock.FOLDER / "tiny.yaml").write_text(other, encoding="utf-8")
    with pytest.raises(MissingToolError, match=r"python3\.2 is on PATH"):
        environment.install("tiny")
    shared = other.replace("modules:", "on_lab: true\nmodules:")
    (lock.FOLDER / "tiny.yaml").write_text(shared, encoding="utf-8")
    with pytest.raises(MissingToolError, match=r"install the lab with Python 3\.2"):
        environment.install("tiny")


def test_a_tool_that_is_not_installed_names_the_command(place):
    with pytest.raises(MissingToolError, match=r"`labutils tools install tiny` .30 MB"):
        calling.Tool("tiny")
    with pytest.raises(UnknownNameError, match="tiny"):
        environment.survey("tyni")
    assert "not installed" in calling.probe("tiny").problem
    assert environment.remove("tiny") == 0


def test_a_folder_of_tools_can_be_named(place, tmp_path, monkeypatch):
    monkeypatch.setenv(environment.PLACE, str(tmp_path / "shared"))
    assert environment.place() == tmp_path / "shared"
    assert environment.survey("tiny").state == "absent"
    monkeypatch.setenv(environment.PLACE, "")
    assert environment.place() == tmp_path / "cache" / "tools"


def add_one(x):
    y = x + 1

    return {"answer": y}


def test_functions_become_a_program(tmp_path):
    def twice(x):
        return add_one(add_one(x)["answer"])

    file = writing.write_program(tmp_path / "mine.py", "import math\n", add_one, twice)
    made = program.Program(str(file)).answer({"call": "twice", "arguments": {"x": 3}}, {})
    assert made == ({"values": {"answer": 5}}, {})
    assert writing.count_lines(add_one, twice) == 5
    made = {}
    exec("def nowhere():\n    pass", made)
    with pytest.raises(UsageError, match="The text of nowhere is not known"):
        writing.write_program(tmp_path / "x.py", "", made["nowhere"])


def test_modules_for_other_pythons_are_written_for_them():
    files = [Path(tools.__file__), Path(program.__file__), paths.PACKAGE / "__init__.py"]
    files += [
        paths.PACKAGE / "processes" / f"{name}.py" for name in ("__init__", "child", "channel")
    ]
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 10))
        tops = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {
            alias.name.partition(".")[0] if isinstance(node, ast.Import) else node.module or ""
            for node in tops if not getattr(node, "level", 0) for alias in node.names
        }  # fmt: skip
        foreign = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
        assert not foreign, f"{file} imports {foreign}"


# --- installing -------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_installed_tool_is_installed_once(installed, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("installed again"))
    found = environment.install("tiny")
    assert found.state == "installed" and found.bytes > 1e6
    assert len(environment._folders("tiny")) == 1
    assert "tiny" in doctor._other_tools().found and doctor._other_tools().present


@pytest.mark.slow
def test_what_cannot_be_installed_leaves_nothing(installed):
    """Neither a missing package nor one that cannot be imported; a working one stays."""
    before = environment.survey("tiny").folder
    for version, code, words in (
        ("2.0", None, r"tinytool==2\.0"),
        ("3.0", "import not_there_at_all\n", "not_there_at_all"),
    ):
        if code:
            tiny_tool.wheel(installed / "wheels", version, code)
        text = tiny_tool.LOCK.replace("tinytool==1.0", f"tinytool=={version}")
        (lock.FOLDER / "tiny.yaml").write_text(text, encoding="utf-8")
        assert environment.survey("tiny").state == "outdated"
        with pytest.raises(MissingToolError, match="another lock file"):
            calling.Tool("tiny")
        with pytest.raises(LabError, match=words):
            environment.install("tiny")
        assert [before] == environment._folders("tiny")
    (lock.FOLDER / "tiny.yaml").write_text(tiny_tool.LOCK, encoding="utf-8")
    assert environment.survey("tiny").state == "installed"


@pytest.mark.slow
def test_a_tool_on_the_labs_packages_sees_those_of_the_lab_that_calls(
    installed, tmp_path, monkeypatch
):
    """Two labs may share its environment, which need not be writable; torchvision is imported."""
    tiny_tool.wheel(installed / "wheels", "4.0", "import torchvision\n")
    text = tiny_tool.LOCK.replace("==1.0", "==4.0").replace("modules:", "on_lab: true\nmodules:")
    try:
        (lock.FOLDER / "tiny.yaml").write_text(text, encoding="utf-8")
        made = environment.install("tiny")
        assert made.state == "installed"
        before = files_of(made.folder)
        for lab in (Path(np.__file__).parents[1], tmp_path / "another lab"):
            monkeypatch.setattr(environment, "shared_packages", lambda lock, lab=lab: str(lab))
            with calling.opened("tiny") as tool:
                if lab.exists():
                    assert tool.versions() == {"tinytool": "4.0"}
                else:
                    with pytest.raises(ToolError, match="No module named 'torchvision'"):
                        tool.versions()
        assert files_of(made.folder) == before
    finally:
        (lock.FOLDER / "tiny.yaml").write_text(tiny_tool.LOCK, encoding="utf-8")
        environment.install("tiny")


def files_of(folder):
    """Return path -> (size, time of the last change), but for byte code."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".pyc"]
    return {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in files}


START = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from labutils.tools import environment, lock
lock.FOLDER = Path(sys.argv[1])
environment.install("tiny")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_installation_that_is_killed_is_no_installation(place, lab, number):
    with socket.create_server(("127.0.0.1", 0)) as index:  # takes the call and says nothing
        own = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
        own["PIP_INDEX_URL"] = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
        running = subprocess.Popen(
            [sys.executable, "-c", START, str(lock.FOLDER)], env=own, cwd=paths.ROOT,
            start_new_session=True, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        index.settimeout(120)
        caller, _ = index.accept()  # pip is at work
        assert environment.survey("tiny").state == "interrupted"
        with contextlib.closing(caller):
            os.kill(running.pid, number)
            running.wait(300)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)  # pip, which SIGKILL left alone
    state = environment.survey("tiny").state
    assert state == ("absent" if number == signal.SIGINT else "interrupted")
    with pytest.raises(MissingToolError, match="tools install tiny"):
        calling.Tool("tiny")
    finding = doctor._other_tools()
    assert not finding.present
    if state == "interrupted":
        assert "tiny interrupted" in finding.found
        code, out, _ = lab("tools", "list")
        assert code == 0 and "interrupted" in out
        assert environment.remove("tiny") > 0
    assert not environment._folders("tiny")


@pytest.mark.slow
def test_a_damaged_environment_is_not_taken_for_a_working_one(installed, monkeypatch):
    monkeypatch.setattr(environment, "_interpreter", lambda folder: folder / "gone")
    assert environment.survey("tiny").state == "damaged"
    assert "damaged" in calling.probe("tiny").problem


def test_the_state_of_a_tool_is_known_without_looking_at_its_files(place, monkeypatch):
    (environment.place() / "tiny-01234567").mkdir(parents=True)
    (environment.place() / "tiny-01234567" / "file").write_bytes(b"12345")
    with monkeypatch.context() as patch:
        patch.setattr(environment, "_bytes_in", lambda folder: pytest.fail("it was looked at"))
        found = environment.survey("tiny")
        assert found.state == "interrupted"
    assert found.bytes == 5


def test_what_cannot_be_deleted_is_not_told_as_freed(place, lab, monkeypatch):
    (environment.place() / "tiny-01234567").mkdir(parents=True)

    def refuse(folder):
        raise PermissionError(errno.EACCES, "Permission denied", str(folder / "bin"))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", refuse)
        code, _, said = lab("tools", "remove", "tiny")
    assert code == 2 and "tiny cannot be removed" in said and "Permission denied" in said
    assert environment.remove("tiny") == 0 and not environment._folders("tiny")


@pytest.mark.parametrize(
    "record", ["", "[]", "{}", '{"folder": "../..", "lock": "x"}', '{"folder": 3, "lock": 4}']
)
def test_a_record_that_is_not_one_of_ours_counts_for_nothing(place, record):
    paths.folder(environment.place())
    (environment.place() / "tiny.json").write_text(record, encoding="utf-8")
    assert environment.survey("tiny").state == "absent"


# --- calling ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_functions_of_a_program_are_called(tool):
    assert tool.ask("doubled", x=[1, 2.5], times=2) == {"answer": "hello", "sum": [2, 5.0]}
    assert tool.versions() == {"tinytool": "1.0"}


@pytest.mark.slow
def test_an_environment_sees_none_of_the_labs_packages_unless_it_shares_them(tool):
    found = tool.ask("seen")
    assert found["labutils"]
    ours = Path(np.__file__).parents[1]
    assert str(ours) not in found["path"]
    with pytest.raises(WorkerError, match="No module named 'numpy'"):  # no array without it
        tool.ask("doubled", x=np.zeros(2), times=1)


@pytest.mark.slow
def test_what_a_tool_raises_is_told_in_its_words(tool):
    with pytest.raises(
        ToolError, match=r"tiny failed in refused: BackendError: ReduceMean"
    ) as told:
        tool.ask("refused")
    assert told.value.kind == "BackendError"
    assert told.value.reason == "ReduceMean version 18 is not implemented."
    with pytest.raises(ToolError, match="SystemExit: no such operator"):
        tool.ask("leave")
    with pytest.raises(ToolError, match=r"AttributeError.*'nothing'"):
        tool.ask("nothing")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_crash_and_a_hang_are_errors_and_nothing_else(tool):
    with pytest.raises(WorkerError, match=r"The tool tiny died \(signal SIGSEGV\) in die"):
        tool.ask("die")
    with pytest.raises(WorkerError, match=r"gave no answer to sleep within 0\.2 s"):
        tool.ask("sleep", timeout=0.2)
    assert tool.ask("doubled", x=[], times=1)["answer"] == "hello"


@pytest.mark.slow
def test_a_tool_gets_whole_paths_and_a_folder_for_what_it_leaves_behind(
    tool, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    told = tool.ask("kept", file=Path("x.onnx"))
    assert told["file"] == str(tmp_path / "x.onnx")  # the process works in another folder
    left = Path(told["temporary"])
    assert left.is_file() and left.parent.name.startswith(".labutils")
    tool.close()
    assert not left.parent.exists()


def test_a_program_that_cannot_be_imported_says_so_each_time(tmp_path):
    (tmp_path / "p.py").write_text("import not_there_at_all\n")
    asked = program.Program(str(tmp_path / "p.py"))
    for _ in range(2):
        told, _ = asked.answer({"call": "run", "arguments": {}}, {})
        assert told["error"]["kind"] == "ModuleNotFoundError"


def test_arrays_travel_as_they_are(tmp_path):
    """The child's side of a call, without a process."""
    file = tmp_path / "p.py"
    file.write_text("def same(x, n):\n    return {'x': x[:n], 'n': n, 'none': None}\n")
    image = np.arange(6, dtype=np.float32).reshape(3, 2)
    message = {"call": "same", "arguments": {"n": 2}}
    told, arrays = program.Program(str(file)).answer(message, {"x": image})
    assert told == {"values": {"n": 2, "none": None}}
    assert arrays["x"].tobytes() == image[:2].tobytes()


# --- the command line -------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_lists_probes_and_removes(lab, installation, tmp_path):
    shutil.copytree(installation, tmp_path / "copy", symlinks=True)
    with tiny_tool.own_place(tmp_path / "copy"):
        code, out, _ = lab("tools", "list", "--json")
        (found,) = json.loads(out)["tools"]
        assert code == 0 and found["state"] == "installed" and found["bytes"] > 1e6
        assert lab("tools", "list")[1].startswith("tiny  installed")
        assert lab("tools", "probe")[:2] == (0, "tiny: works: tinytool 1.0\n")
        code, out, _ = lab("tools", "install", "tiny")
        assert code == 0 and "installed already" in out
        code, out, _ = lab("tools", "remove", "tiny")
        assert code == 0 and "was removed" in out
        assert not list(environment.place().iterdir())
        assert "was not installed" in lab("tools", "remove", "tiny")[1]
        assert "No tool is installed" in lab("tools", "probe")[1]
        assert lab("tools", "probe", "tiny")[0] == 1


@pytest.mark.parametrize(
    "words",
    [("install",), ("remove", "a", "b"), ("list", "x"), ("probe", "--accept-licence")],
)
def test_calls_of_the_command_that_cannot_be_meant(lab, words):
    assert lab("tools", *words)[0] == UsageError.exit_code
