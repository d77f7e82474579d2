"""The lab as an installed package: what its wheel holds, and that it needs no checkout."""

import contextlib
import email
import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import sysconfig
import tarfile
import time
import urllib.error
import urllib.request
import venv
import zipfile
from pathlib import Path

import psutil
import pytest

from labutils import paths

BACKEND = (
    "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])('dist'))"
)
# what lies about in a checkout, and is not the lab's
LITTER = (
    "build/lib/labutils/stale.py", "build/lib/labutils/shipped/data/stale.yaml",
    "data/checkpoints/mine.safetensors", "generated_models/x.dlc", "labutils/__pycache__/x.pyc",
    "notebooks/.ipynb_checkpoints/00_start_here.ipynb", "notebooks/my/00_start_here.ipynb",
    "notebooks/scratch.ipynb", "notebooks/scratch.py", ".venv/x.py",
)  # fmt: skip
BESIDE = ("data/", "notebooks/", "benchmarks/results/")
ALSO = ("requirements.txt", "constraints.txt", "benchmarks/ten_families.txt")
# Runs first in every Python of the new environment: notes what of the checkout is opened.
WATCH = """
import os, sys
def note(event, given):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(given[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(given[0]))
        if path.startswith({checkout!r}) and not path.startswith({ours!r}):
            with open({noted!r}, "a") as file:
                print(event, path, file=file)
sys.addaudithook(note)
"""
# The command line, call by call in one process, with few images, and maybe without a package.
PROGRAM = """
import json, sys
from importlib.machinery import PathFinder
found = PathFinder.find_spec
def seen(name, path=None, target=None):
    return None if name.partition(".")[0] == sys.argv[2] else found(name, path, target)
PathFinder.find_spec = staticmethod(seen)
from labutils import __main__
from labutils.pipeline import journey, steps
journey.CPU_IMAGES, steps.GATE_IMAGES, steps.CALIBRATION_IMAGES = 4, 2, 16
print(json.dumps([__main__.main(words) for words in json.loads(sys.argv[1])]))
"""
# Leaves something everywhere that the lab keeps something.
USE = """
from labutils.images import data
from labutils.lab import exercise
from labutils import paths
data.load("val", 1, 32)
assert exercise.remember("check", "00.1", outcome="passed")
with paths.locked(paths.generated()), paths.scratch():
    paths.write_text(paths.generated() / "x.txt", "an artifact")
"""


def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=paths.ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [n for n in listed.stdout.split("\0") if n and Path(paths.ROOT, n).is_file()]


def build(folder, what):
    """Run the build backend as pip does, and return the file."""
    call = [sys.executable, "-c", BACKEND, what]
    done = subprocess.run(call, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder / "dist" / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the tracked files, with `LITTER` between them."""
    folder = tmp_path_factory.mktemp("source")
    names = tracked()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(paths.ROOT / name, folder / name)
    for name in set(LITTER) - set(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("litter")
    return folder


@pytest.fixture(scope="module")
def wheel(source):
    return build(source, "build_wheel")


def shipped():
    names = [n for n in tracked() if n.startswith(BESIDE) or n in ALSO]
    assert len(names) > 50
    return names


def test_the_wheel_holds_what_git_knows_and_nothing_else(wheel):
    held = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    modules = {n for n in tracked() if re.match(r"labutils/.*\.py$", n)}
    assert held == modules | {f"labutils/shipped/{name}" for name in shipped()}
    assert wheel.stat().st_size < 60e6


def test_the_source_distribution_can_build_the_same_wheel(source):
    with tarfile.open(build(source, "build_sdist")) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    assert held >= {*shipped(), "setup.py", "pyproject.toml", "LICENSE"}
    assert not held & set(LITTER)


def test_the_wheel_asks_for_what_was_tested(wheel):
    archive = zipfile.ZipFile(wheel)
    name = next(n for n in archive.namelist() if n.endswith("METADATA"))
    facts = email.message_from_bytes(archive.read(name))
    asked = facts.get_all("Requires-Dist")
    lines = (paths.ROOT / "requirements.txt").read_text("utf-8").splitlines()
    pins = {line.partition("#")[0].strip() for line in lines} - {""}
    assert {line for line in asked if "extra ==" not in line} == pins
    assert all("==" in pin for pin in pins)
    qnn = re.search(r"^QNN\s*:=\s*(\S+)$", (paths.ROOT / "Makefile").read_text("utf-8"), re.M)[1]
    assert f'{qnn}; extra == "qnn"' in asked


# --- installed ----------------------------------------------------------------------------------


class Installed:
    """An environment with the package, a home, and an empty folder to work in."""

    def __init__(self, folder, *what, tools=None):
        self.env, self.work = folder / "env", folder / "work"
        self.home, self.scratch, self.noted = folder / "home", folder / "tmp", folder / "noted.txt"
        for made in (self.work, self.home, self.scratch):
            made.mkdir()
        self.pip_here = importlib.util.find_spec("pip") is not None
        venv.create(self.env, symlinks=os.name != "nt", with_pip=not self.pip_here)
        self.bin = self.env / ("Scripts" if os.name == "nt" else "bin")
        self.site = Path(sysconfig.get_path("purelib", vars={"base": str(self.env)}))
        if tools and not self.pip_here:  # Python 3.11 brings an old one beside its pip
            self.pip("uninstall", "-y", "setuptools")
        if tools:
            (self.site / "tools.pth").write_text(f"{tools}\n")
        self.pip("install", "--no-deps", "--no-index", *what)
        assert (self.site / "labutils" / "shipped").is_dir()
        # its dependencies are ours; an editable installation's finder does not come along
        (self.site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        checkout, ours = (os.path.join(os.path.realpath(p), "") for p in (paths.ROOT, sys.prefix))  # noqa: PTH118
        watch = WATCH.format(checkout=checkout, ours=ours, noted=str(self.noted))
        (self.site / "sitecustomize.py").write_text(watch)

    def pip(self, *words):
        python = str(self.bin / "python")
        start = [sys.executable, "-m", "pip", "--python", python]
        start = start if self.pip_here else [python, "-m", "pip"]
        call = [*start, "--disable-pip-version-check", *words]
        done = subprocess.run(call, capture_output=True, text=True, env=self.environment())
        assert done.returncode == 0, done.stderr[-2000:]

    def environment(self):
        """Nothing of this machine's settings of Python, Jupyter, or the lab."""
        away = ("PYTHON", "PIP_", "JUPYTER", "JPY_", "LABUTILS_", "XDG_", "VIRTUAL_ENV", "IPYTHON")
        kept = {k: v for k, v in os.environ.items() if not k.startswith(away)}
        home, scratch = str(self.home), str(self.scratch)
        return kept | {"HOME": home, "USERPROFILE": home, "TMPDIR": scratch, "TEMP": scratch}

    def run(self, *words, program=None):
        """Run `labutils`, or a program with the environment's Python, in the empty folder."""
        start = [self.bin / "labutils"] if program is None else [self.bin / "python", "-c", program]
        return subprocess.run(
            [*start, *words], cwd=self.work, env=self.environment(), capture_output=True,
            text=True, encoding="utf-8", stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def opened(self):
        """What of the checkout was opened."""
        return self.noted.read_text().splitlines() if self.noted.exists() else []


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    return Installed(tmp_path_factory.mktemp("installed"), str(wheel))


def test_the_package_is_the_installed_one_and_the_guard_sees(installed):
    told = installed.run(program="import labutils; print(labutils.__file__)").stdout.strip()
    assert Path(told).is_relative_to(installed.site)
    file = paths.ROOT / "pyproject.toml"
    installed.run(program=f"open({str(file)!r}).close()")
    assert installed.opened() == [f"open {os.path.realpath(file)}"]
    installed.noted.unlink()


def test_an_installed_package_hands_out_the_notebooks(installed):
    program = "from labutils.lab import notebooks; print(notebooks.main(['checkout', 'handed']))"
    done = installed.run(program=program)
    assert done.stdout.splitlines()[-1] == "0", done.stderr
    names = {p.relative_to(installed.work / "handed").as_posix() for p in
             (installed.work / "handed").rglob("*") if p.is_file()}  # fmt: skip
    originals = {p.name for p in (paths.ROOT / "notebooks").glob("*.ipynb")}
    assert originals | {"glossary.md", "troubleshooting.md"} < names
    assert any(name.startswith("images/") for name in names)
    shutil.rmtree(installed.work / "handed")
    assert installed.run("lab", "--help").returncode == 0
    assert not list(installed.work.iterdir())
    assert installed.opened() == []


def test_what_belongs_into_a_checkout_says_so(installed):
    program = "from labutils.lab import notebooks; print(notebooks.main(['refresh']))"
    done = installed.run(program=program)
    assert done.stdout == "2\n"
    assert "in a checkout" in done.stderr


@pytest.mark.slow
def test_an_installed_package_probes_the_machine_and_leaves_nothing(installed):
    """The QNN worker is a process of its own, and must find the package as well."""
    done = installed.run("doctor")
    assert done.returncode == 0, done.stderr
    assert f"installed in {installed.site}" in done.stdout
    assert f"go to {installed.work / 'generated_models'}" in done.stdout
    ours = importlib.util.find_spec("onnxruntime_qnn") is not None
    assert ("simulator answer" in done.stdout) == ours
    assert not list(installed.work.iterdir())
    assert installed.opened() == []


@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param("onnxruntime_qnn", marks=pytest.mark.slow),
        pytest.param("nothing", marks=[pytest.mark.sweep, pytest.mark.htp]),
    ],
)
def test_an_installed_package_works_in_an_empty_folder(hidden, installed):
    small = ["mobilenet_v3_small", "--weights", "things16", "--size", "32"]
    calls = [
        ["diagnose", *small, "--target", "snpe-2.7"],
        ["recipe", "list"],
        ["journey", *small, "--images", "1"],
        ["reset", "03"],
    ]
    done = installed.run(json.dumps(calls), hidden, program=PROGRAM)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == [1, 0, 0, 0]
    generated = installed.work / "generated_models"
    assert list(generated.glob("*.dlc")) if hidden == "nothing" else "No DLC" in done.stdout
    assert (generated / "ladder.csv").is_file()
    assert {p.name for p in installed.work.iterdir()} == {"generated_models", "edge_lab"}
    assert [p.name[:2] for p in (installed.work / "edge_lab").glob("*.ipynb")] == ["03"]
    shutil.rmtree(generated)
    shutil.rmtree(installed.work / "edge_lab")
    assert installed.opened() == []


def listening(runtime):
    """What Jupyter says about its server, once that answers; it says so a moment before."""
    for found in runtime.glob("jpserver-*.json"):
        with contextlib.suppress(OSError, ValueError):
            facts = json.loads(found.read_text())
            socket.create_connection(("127.0.0.1", facts["port"]), timeout=5).close()
            return facts
    return None


@contextlib.contextmanager
def serving(installed, folder):
    """Run `labutils lab FOLDER` and yield (process, what Jupyter says about the server)."""
    call = [installed.bin / "labutils", "lab", folder, "--no-browser"]
    runtime = installed.home / "runtime"
    environment = installed.environment() | {"JUPYTER_RUNTIME_DIR": str(runtime)}
    with (installed.scratch / "lab.log").open("wb") as log:
        process = subprocess.Popen(
            call, cwd=installed.work, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        end = time.monotonic() + 300
        while (facts := listening(runtime)) is None:
            said = (installed.scratch / "lab.log").read_text(errors="replace")
            assert process.poll() is None and time.monotonic() < end, said[-3000:]
            time.sleep(0.1)
        yield process, facts
    finally:
        process.terminate()
        process.wait(60)
        (installed.scratch / "lab.log").unlink()


def answer(facts, path, token=""):
    asked = urllib.request.Request(facts["url"] + path, headers={"Authorization": f"token {token}"})
    try:
        with urllib.request.urlopen(asked, timeout=60) as found:
            return found.status, json.loads(found.read())
    except urllib.error.HTTPError as error:
        return error.code, None


@pytest.mark.slow
def test_labutils_lab_serves_the_copies_to_this_machine_alone(installed):
    with serving(installed, "mine") as (process, facts):
        assert answer(facts, "api/contents")[0] == 403
        code, found = answer(facts, "api/contents", facts["token"])
        assert code == 200
        assert "00_start_here.ipynb" in {item["name"] for item in found["content"]}
        heard = [c for c in psutil.Process(process.pid).net_connections() if c.status == "LISTEN"]
        assert heard and {c.laddr.ip for c in heard} == {"127.0.0.1"}
    shutil.rmtree(installed.work / "mine")
    assert list(installed.work.iterdir()) == []
    assert installed.opened() == []


@pytest.mark.slow
def test_git_can_install_it(source, tmp_path):
    """pip install git+..., where the build tools are in the environment and no index is asked."""
    clone = tmp_path / "repository"
    shutil.copytree(source, clone, ignore=shutil.ignore_patterns("build", "dist", "*.egg-info"))
    who = ["-c", "user.name=Lab", "-c", "user.email=lab@example.org", "-c", "core.excludesFile="]
    for words in (["init", "-q"], ["add", *tracked()], ["commit", "-q", "-m", "All of it"]):
        subprocess.run(["git", *who, *words], cwd=clone, check=True)
    tools = tmp_path / "tools"
    tools.mkdir()
    for part in Path(sysconfig.get_path("purelib")).iterdir():
        if re.match(r"(setuptools|_distutils_hack|wheel|packaging)(-|$)", part.name):
            (tools / part.name).symlink_to(part)
    there = Installed(tmp_path, "--no-build-isolation", f"git+file://{clone}", tools=tools)
    done = there.run("--version")
    assert done.stdout.startswith("labutils "), done.stderr
    assert there.opened() == []


def test_an_uninstall_leaves_nothing_but_what_was_asked_for(wheel, tmp_path):
    there = Installed(tmp_path, str(wheel))
    done = there.run(program=USE)
    assert done.returncode == 0, done.stderr
    assert [*there.scratch.rglob("*.lock"), *there.home.rglob("*.lock")]
    cache = there.home / ".cache" / paths.PROJECT
    assert {p.name for p in cache.iterdir()} >= {paths.CACHE_TAG, "progress", "things16"}
    done = there.run("cache", "clear", "--all", "--yes")
    assert done.returncode == 0, done.stderr
    (there.site / "borrowed.pth").unlink()
    there.pip("uninstall", "-y", paths.PROJECT)
    left = [p for folder in (there.env, there.home, there.scratch) for p in folder.rglob("*")]
    assert [p for p in left if re.search("labutils|edge.?lab", p.name)] == []
    assert list(there.scratch.iterdir()) == []
    others = re.compile(r"matplotlib|\.rustup")  # pip asks rustc for its version
    assert [p for p in there.home.rglob("*") if p.is_file() and not others.search(str(p))] == []
    assert [p.name for p in there.work.rglob("*")] == ["generated_models", "x.txt"]
