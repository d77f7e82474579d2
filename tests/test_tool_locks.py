"""Lock files of tools: what is committed, and what is refused."""

import re
from importlib import metadata

import pytest
import tiny_tool
from packaging.requirements import Requirement

from labutils.errors import TableError
from labutils.tools import lock


@pytest.fixture
def place(tmp_path):
    with tiny_tool.own_place(tmp_path) as folder:
        yield folder


@pytest.mark.parametrize("name", lock.names())
def test_a_committed_lock_says_all_that_an_installation_needs(name):
    found = lock.find(name)
    text = (lock.FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert "://" not in text and found.name == name and found.licence
    assert len(set(found.requirements)) == len(found.requirements)
    free = any(word in found.licence for word in ("Apache", "BSD", "MIT"))
    assert bool(found.accepted_by) == (not free)
    shared = of_the_lab()
    if found.on_lab:  # what the lab has in the same version comes from there
        assert not {word.lower() for word in found.requirements} & shared


def of_the_lab():
    """What an installation of the lab without extras has, as ``name==version``."""
    waiting, found = ["mobilenetv3-edge-lab"], {}
    while waiting:
        name = re.sub(r"[_.]", "-", waiting.pop().lower())
        if name in found:
            continue
        there = metadata.distribution(name)
        found[name] = there.version
        for words in there.requires or ():
            needed = Requirement(words)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                waiting.append(needed.name)
    return {f"{name}=={version}" for name, version in found.items()}


@pytest.mark.parametrize(
    "change, line, words",
    [
        (("tinytool==1.0", "tinytool>=1.0"), 7, "exact version"),
        (("tinytool==1.0", "--index-url=x"), 7, "exact version"),
        (('"3.', '"v3.'), 5, "a version of Python"),
        (("megabytes: 30", "megabytes: 30\nlicense: MIT"), 5, "unknown key; did you mean licence"),
        (("megabytes: 30", "megabytes: 0"), 4, "is below 1"),
        (("format: 1", "name: x"), 1, "unknown key"),
        (("format: 1", "format: 9"), 1, "newer version"),
    ],
)
def test_a_mistake_in_a_lock_is_named_with_its_line(place, change, line, words):
    (lock.FOLDER / "tiny.yaml").write_text(tiny_tool.LOCK.replace(*change), encoding="utf-8")
    with pytest.raises(TableError, match=rf"tiny\.yaml, line {line}: .*{words}"):
        lock.find("tiny")


def test_the_digest_of_a_lock_changes_with_what_is_installed_only(place):
    before = lock.find("tiny").digest
    for change, same in (
        (("a tool of nobody", "another title"), True),
        (("tinytool==1.0", "tinytool==1.1"), False),
        (("modules:", "on_lab: true\nmodules:"), False),
        (("packages:", "dependencies: [a==1]\npackages:"), False),
    ):
        (lock.FOLDER / "tiny.yaml").write_text(tiny_tool.LOCK.replace(*change), encoding="utf-8")
        assert (lock.find("tiny").digest == before) == same
