"""Run tests in forked processes: which test executes which line, and which one kills a mutant.

The parent imports the large libraries once and the product never; a child starts in no time, and
imports the product through a loader that changes one module in memory.
"""

from __future__ import annotations

import gc
import hashlib
import importlib.machinery
import importlib.util
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import coverage as coveragepy
import pytest

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".pytest_cache/mutants"  # git ignores it, `make clean` removes it
TESTS = "metrics table quantize* pt2e precision qat compare* onnx_rules recipe surgery*"
TESTS += " target_data onnx_parts dlc snpe"  # the tests of `PARTS`, command lines apart
HEAVY = ["torch", "onnx", "onnxruntime", "onnxscript", "hypothesis", "pandas"]
MARKS = "not slow and not browser and not sweep"
BUDGET = 20.0  # seconds of this process for the tests of one mutant, as measured without it
EXTRA = 8.0  # seconds of other quick tests of the same module
TIERS = (0.2, 1.0, 5.0, 20.0)  # seconds; within a tier a file's tests stay together


def preload() -> None:
    """Import what every child needs, on one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["LABUTILS_WORKERS"] = "1"
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    for name in HEAVY:
        importlib.import_module(name)
    from labutils import _torchvision  # the only part of the product here: it is not mutated

    _torchvision.load()
    logging.disable()
    importlib.import_module("torchao.quantization.pt2e.quantize_pt2e")
    logging.disable(logging.NOTSET)
    gc.collect()
    gc.freeze()  # a child's collections would go through all of it


class Recorder:
    """Plugin: the lines that each test executes, shared fixtures included, and its seconds."""

    def __init__(self, sources: list[Path]) -> None:
        self.coverage = coveragepy.Coverage(data_file=None, include=[str(s) for s in sources])
        self.context, self.since = "", time.process_time()
        self.seconds: dict[str, float] = defaultdict(float)
        self.fixtures: dict[str, list[str]] = {}
        self.failed: set[str] = set()
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        """Let the lines from here on be this test's."""
        self.fixtures[item.nodeid] = list(item.fixturenames)
        return (yield from self._within(item.nodeid))

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef):
        """Let the lines of a shared fixture be those of all tests that ask for it."""
        if fixturedef.scope == "function":
            return (yield)
        return (yield from self._within(fixturedef.argname))

    def _within(self, context):
        outer = self.context
        self._switch(context)
        answer = yield
        self._switch(outer)
        return answer

    def _switch(self, context):
        self.seconds[self.context] += time.process_time() - self.since
        self.context, self.since = context, time.process_time()
        self.coverage.switch_context(context)

    def pytest_runtest_logreport(self, report):
        """Remember what does not pass as it is: it can tell nothing."""
        if report.outcome != "passed":
            self.failed.add(report.nodeid)

    def result(self) -> dict:
        """Return test -> seconds, and file -> line -> tests."""
        self.coverage.stop()
        shared = defaultdict(list)
        for test, names in self.fixtures.items():
            for name in names:
                shared[name].append(test)
        good = set(self.fixtures) - self.failed
        lines = {}
        data = self.coverage.get_data()
        for file in data.measured_files():
            lines[file] = {
                line: sorted(good & {t for c in contexts for t in [c, *shared.get(c, [])]})
                for line, contexts in data.contexts_by_lineno(file).items()
            }
        seconds = {
            test: sum(self.seconds[part] for part in [test, *self.fixtures[test]]) for test in good
        }
        return {"seconds": seconds, "lines": lines}


def record(file: Path, sources: list[Path]) -> dict:
    """Run one test file; return what `Recorder` found, and of which state of the sources."""
    recorder = Recorder(sources)
    _pytest([file], recorder)
    found = recorder.result()
    read = [str(file), str(ROOT / "tests/conftest.py"), *found["lines"]]
    return {**found, "digests": {name: _digest(name) for name in read}}


def _digest(file: str) -> str:
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if Path(file).exists() else ""


def _kept(path: Path) -> bool:
    """Whether a record is there and still of the files as they are."""
    if not path.exists():
        return False
    digests = json.loads(path.read_text())["digests"]
    return all(_digest(name) == digest for name, digest in digests.items())


def _pytest(files, plugin, *more) -> None:
    quiet = ["-q", "--tb=no", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # hypothesis's own is enough
    quiet += ["-p", "_hypothesis_pytestplugin", "-p", "xdist"]  # tests ask for a worker's number
    pytest.main([*map(str, files), *quiet, "-m", MARKS, *more], plugins=[plugin])


def coverage(sources: list[Path], jobs: int) -> dict:
    """Return what `Recorder` finds for all test files; kept until what they execute changes."""
    preload()
    CACHE.mkdir(parents=True, exist_ok=True)
    found = [f for name in TESTS.split() for f in sorted(ROOT.glob(f"tests/test_{name}.py"))]
    kept = {file: CACHE / f"{file.stem}.json" for file in dict.fromkeys(found)}
    new = [file for file, path in kept.items() if not _kept(path)]
    tasks = [(file, lambda file=file: record(file, sources), 1200) for file in new]
    for file, answer in _children(tasks, jobs):
        print(f"{file.name}: {len((answer or {}).get('seconds', []))} tests", flush=True)
        kept[file].write_text(json.dumps(answer)) if answer else kept.pop(file)
    whole = {"seconds": {}, "lines": defaultdict(lambda: defaultdict(list))}
    for path in kept.values():
        part = json.loads(path.read_text())
        whole["seconds"] |= part["seconds"]
        for source, lines in part["lines"].items():
            for line, tests in lines.items():
                whole["lines"][source][int(line)] += tests
    return whole


class Killer:
    """Plugin: run the wanted tests only, in their order, and remember the first that fails."""

    def __init__(self, wanted: list[str], state: Path | None = None) -> None:
        self.order = {test: place for place, test in enumerate(wanted)}
        self.failed: list[str] = []
        self.state = state

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        """Keep the wanted tests, in the wanted order."""
        items[:] = sorted(
            (item for item in items if item.nodeid in self.order),
            key=lambda item: self.order[item.nodeid],
        )

    def pytest_runtest_logstart(self, nodeid):
        """Leave a note of what runs, for the one that ends this process."""
        if self.state:
            self.state.write_text(nodeid)

    def pytest_runtest_logreport(self, report):
        """Remember what fails, in set-up and tear-down as well."""
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report):
        """Count a test file that cannot be imported as one that fails."""
        if report.failed:
            self.failed.append(f"{report.nodeid} (cannot be collected)")


class Loader(importlib.machinery.SourceFileLoader):
    """Loads one module of the product from a changed syntax tree."""

    tree = None

    def get_code(self, fullname):
        """Compile the changed tree; no file is read or written."""
        return compile(self.tree, self.path, "exec")


class Finder:
    """Finds that one module before Python's own finders do."""

    def __init__(self, file: str, tree) -> None:
        self.name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        self.loader = Loader(self.name, str(ROOT / file))
        self.loader.tree = tree

    def find_spec(self, name, path=None, target=None):
        """Return the changed module's specification, and none of any other."""
        if name != self.name:
            return None
        return importlib.util.spec_from_file_location(name, self.loader.path, loader=self.loader)


def attempt(file: str, tree, tests: list[str], state: Path | None = None) -> list[str]:
    """Run tests with one changed module; return the first that fails, if one does."""
    sys.meta_path.insert(0, Finder(file, tree))
    killer = Killer(tests, state)
    _pytest(dict.fromkeys(test.split("::")[0] for test in tests), killer, "-x")
    return killer.failed[:1]


def judge(rows: list[dict], covered: dict, mutated: Callable, jobs: int) -> None:
    """Fill in verdict and killer of every row."""
    with tempfile.TemporaryDirectory(prefix="labutils-mutants-") as folder:
        tasks, states = [], {}
        for number, row in enumerate(rows):
            tests = chosen_tests(row, covered)
            if not tests:
                row.update(verdict="survived", by="no test executes it")
                continue
            states[number] = Path(folder, str(number))
            row["by"] = f"{len(tests)} tests ran"
            run = _task(row, mutated, tests, states[number])
            seconds = sum(covered["seconds"][test] for test in tests)
            tasks.append((number, run, 120 + 10 * seconds))
        for number, failed in _children(tasks, jobs):
            row = rows[number]
            if failed is None:
                late = states[number].read_text() if states[number].exists() else "the import"
                failed = [f"{late} (no end, or a crash)"]
            row["verdict"] = "killed" if failed else "survived"
            row["by"] = failed[0] if failed else row["by"]
            print(f"{row['verdict']:9} {row['file']}:{row['line']} {row['by']}", flush=True)


def _task(row, mutated, tests, state):
    return lambda: attempt(row["file"], mutated(row)[3], tests, state)


def chosen_tests(row: dict, covered: dict) -> list[str]:
    """Return the tests that execute a row's lines, quick ones first, within `BUDGET`."""
    lines = covered["lines"].get(str(ROOT / row["file"]), {})
    wanted = lines if row["lines"] is None else range(row["lines"][0], row["lines"][1] + 1)
    tests = {test for line in wanted for test in lines.get(line, [])}
    seconds = covered["seconds"]
    order = sorted(tests, key=lambda test: (_tier(seconds[test]), test.split("::")[0], test))
    chosen = _affordable(order, seconds, BUDGET)
    # what is computed once and kept is executed by one test and asked for by many
    near = {test for tests in lines.values() for test in tests if seconds[test] < TIERS[1]}
    others = sorted(near - set(chosen), key=lambda test: (test.split("::")[0], test))
    return chosen + _affordable(others, seconds, EXTRA)


def _affordable(tests: list[str], seconds: dict[str, float], budget: float) -> list[str]:
    total, chosen = 0.0, []
    for test in tests:
        total += seconds[test]
        if chosen and total > budget:
            break
        chosen.append(test)
    return chosen


def _tier(seconds: float) -> int:
    return sum(seconds > limit for limit in TIERS)


def control(rows: list[dict], jobs: int) -> int:
    """Run every test that killed on the product as it is; return 1 when one fails there, too."""
    killers = sorted({row["by"].split(" (")[0] for row in rows if row["verdict"] == "killed"})
    found = []
    tasks = []
    for file in sorted({test.split("::")[0] for test in killers}):
        own = [test for test in killers if test.startswith(f"{file}::")]
        tasks.append((file, lambda own=own: attempt("labutils/nothing.py", None, own), 1200))
    for file, failed in _children(tasks, jobs):
        found += [file] if failed is None else failed
    for test in found:
        print(f"CONTROL: {test} fails without a mutant")
    return 1 if found else 0


def _children(tasks: list[tuple], jobs: int):
    """Run functions in forked processes, `jobs` at once: yields (name, answer or None)."""
    waiting, running = list(tasks), {}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="labutils-mutants-") as folder:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    name, function, limit = waiting.pop(0)
                    path = Path(folder, f"{len(waiting)}.json")
                    sys.stdout.flush()
                    process = os.fork() or _child(function, path)
                    running[process] = (name, path, time.monotonic() + limit)
                time.sleep(0.05)
                for process, (name, path, deadline) in list(running.items()):
                    if time.monotonic() > deadline:
                        os.killpg(process, signal.SIGKILL)
                    if os.waitpid(process, os.WNOHANG)[0]:
                        del running[process]
                        yield name, json.loads(path.read_text()) if path.exists() else None
        finally:  # an end by Ctrl-C or kill leaves nothing behind
            for process in running:
                os.killpg(process, signal.SIGKILL)


def _child(function: Callable, path: Path) -> NoReturn:
    """Write what `function` returns to a file, in its own session, which ends with it."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    silence = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(silence, stream)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(path.parent / "hypothesis")
    try:
        unfinished = path.with_suffix(".part")
        unfinished.write_text(json.dumps(function()))
        unfinished.rename(path)
    finally:
        os.killpg(0, signal.SIGKILL)  # with all that the tests started
