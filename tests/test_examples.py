"""The examples in docstrings: every verb that a user meets has one, and each runs as written."""

from __future__ import annotations

import doctest
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import labutils

VERBS = {
    "labutils.models.zoo.load",
    "labutils.export.to_onnx",
    "labutils.surgery.replacing.preview",
    "labutils.surgery.replacing.replace_",
    "labutils.targets.table.check",
    "labutils.pipeline.planning.suggest",
    "labutils.quantize.ptq.static",
    "labutils.dlc.conversion.convert",
    "labutils.compare.gating.gate",
    "labutils.runtime.runners.connect",
    "labutils.metrics.accuracy",
    "labutils.metrics.cosine",
    "labutils.metrics.paired_difference",
    "labutils.metrics.sqnr_db",
    "labutils.measure.complexity.count",
    "labutils.fetch.weights",
}
NEED_QNN = {"labutils.dlc.conversion.convert"}


def _examples():
    """Return the name and the examples of every docstring of the package that has some."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in pkgutil.walk_packages(labutils.__path__, "labutils."):
        if module.name.endswith("__main__"):
            continue
        source = Path(importlib.util.find_spec(module.name).origin)
        if ">>>" not in source.read_text("utf-8"):
            continue  # not imported for nothing
        for test in finder.find(importlib.import_module(module.name)):
            if test.examples:
                marks = [pytest.mark.htp] if test.name in NEED_QNN else []
                yield pytest.param(test, id=test.name, marks=marks)


EXAMPLES = list(_examples())


def test_every_verb_that_a_user_meets_has_an_example():
    assert set() == VERBS - {example.id for example in EXAMPLES}


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs_as_it_is_written(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))
    said = []
    failed, tried = doctest.DocTestRunner().run(example, out=said.append)
    assert tried and not failed, "".join(said)
