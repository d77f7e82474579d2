"""Troubleshooting and glossary: messages that exist, anchors that resolve, the right order."""

import ast
import functools
import re

import nbformat
import pytest
import yaml
from answers import catalogue

from labutils import errors, paths
from labutils.lab import exercise, exercises, lesson
from labutils.runtime import phone

NOTEBOOKS = paths.ROOT / "notebooks"
OTHERS = {"Jupyter", "JupyterLab", "ONNX Runtime", "PyTorch", "Python", "QNN", "adb", "pip"}
OTHERS |= {"torchvision", "tqdm", "a terminal"}
VARIABLE = r"[\s\S]{0,150}?"  # what a placeholder may stand for
WORDS = 20  # letters of a message that must be the source's own


def page(name):
    return (NOTEBOOKS / name).read_text(encoding="utf-8")


def slug(heading):
    """As GitHub makes them."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def entries(name):
    """(anchor, heading, body) of a page that has an anchor before every entry."""
    pattern = r'<a id="([^"]+)"></a>\n\n##+ (.+)\n([\s\S]*?)(?=\n<a id=|\n## |\Z)'
    return re.findall(pattern, page(name))


# --- messages -----------------------------------------------------------------------------------


def said():
    """(anchor, message, who says it); messages in a row share the line that says who."""
    for anchor, _, body in entries("troubleshooting.md"):
        waiting = []
        for message, source in re.findall(r"```text\n([\s\S]*?)\n```|^From: (.+)$", body, re.M):
            if message:
                waiting.append(message)
            else:
                yield from ((anchor, text, source) for text in waiting)
                waiting = []
        assert not waiting, f"{anchor}: nobody says this"


def pieces(node):
    """Return the fixed parts of a string of the source, None for another node."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return (node.value,)
    if isinstance(node, ast.JoinedStr):
        return split(
            "".join(
                getattr(v, "value", "\0") if isinstance(v, ast.Constant) else "\0"
                for v in node.values
            ),
            "\0",
        )
    return None


def split(text, placeholder):
    return tuple(re.split(placeholder, text))


@functools.cache
def sources(source):
    """Every text that this source can say, as tuples of fixed parts."""
    if source == "Makefile":
        lines = (paths.ROOT / "Makefile").read_text("utf-8").splitlines()
        return [split(line, r"%d|\$\(\w+\)") for line in lines]
    folders = {"the tests": ["tests/browser"]}.get(source, ["labutils"])
    found = [
        parts
        for folder in folders
        for file in sorted((paths.ROOT / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if (parts := pieces(node))
    ]
    tables = [
        yaml.safe_load(file.read_text("utf-8")) for file in paths.OPERATOR_TABLES.glob("*.yaml")
    ]
    templates = [m["template"] for table in tables for m in table.get("messages", {}).values()]
    return found + [split(line, r"\{\w+\}") for text in templates for line in text.splitlines()]


def fits(message, parts):
    """Whether the message is a stretch of what these parts, with anything between, can say."""
    last = len(parts) - 1
    for i, first in enumerate(parts):
        if message in first:
            return True
        heads = [k for k in cuts(first, i == 0) if message.startswith(first[len(first) - k :])]
        for j in range(i + 1, len(parts)):
            tails = [k for k in cuts(parts[j], j == last) if message.endswith(parts[j][:k])]
            if any(covers(message, h, parts[i + 1 : j], t) for h in heads for t in tails):
                return True
    return False


def cuts(part, outermost):
    """How much of a fixed part a message may begin or end with: some words, or all of it."""
    return [k for k in range(len(part) + 1) if k >= 3 or (k == len(part) and (k or outermost))]


def covers(message, head, between, tail):
    if head + tail + sum(map(len, between)) < min(WORDS, len(message) / 2):
        return False
    middle = VARIABLE + "".join(re.escape(part) + VARIABLE for part in between)
    return bool(re.fullmatch(middle, message[head : len(message) - tail]))


def known(kind):
    homes = (errors, exercise, lesson, phone)
    return any(hasattr(home, kind) for home in homes)


@pytest.mark.parametrize(("anchor", "message", "source"), said())
def test_every_message_is_one_that_is_said(anchor, message, source):
    who = re.split(r"[;,]", source.rstrip("."))[0]
    if who in OTHERS:
        return
    assert who in ("labutils", "Makefile", "the tests", "snpe-onnx-to-dlc"), source
    kind, text = re.fullmatch(
        r"(?:(\w+Error): |NOT ATTEMPTED: |NOT YET: )?([\s\S]+)", message
    ).groups()
    assert not kind or known(kind) or who == "snpe-onnx-to-dlc", kind
    assert any(fits(text, parts) for parts in sources(who)), f"nobody says: {text}"


def test_a_message_that_nobody_says_is_found_out():
    assert fits("There is no file /x/y.onnx.", ("There is no file ", "."))
    assert not fits("There is no folder /x/y.onnx.", ("There is no file ", "."))
    assert fits("no file", ("There is no file ", "."))
    assert not fits("anything at all", ("", ": ", ""))
    long = ("Asked for opset ", ", and the ", " exporter wrote ", ". Choose it.")
    assert fits("Asked for opset 13, and the new exporter wrote 18. Choose", long)
    assert not fits("Asked for opset 13, and the new exporter wrote 18. Take", long)


def test_every_entry_has_a_cause_and_a_cure():
    found = entries("troubleshooting.md")
    assert len(found) > 40
    for anchor, _, body in found:
        assert "**Cause.** " in body and "**Cure.** " in body, anchor


# --- anchors ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["glossary.md", "troubleshooting.md"])
def test_anchors_are_unique_and_every_heading_has_one(name):
    anchors = [anchor for anchor, _, _ in entries(name)]
    assert len(set(anchors)) == len(anchors)
    level = {"glossary.md": "## ", "troubleshooting.md": "### "}[name]
    assert len(anchors) == len(re.findall(f"^{level}", page(name), re.M))


def test_the_glossary_is_in_order_and_named_as_its_terms():
    found = [(anchor, heading) for anchor, heading, _ in entries("glossary.md")]
    assert [anchor for anchor, _ in found] == [slug(heading) for _, heading in found]
    order = [re.sub(r"\W", "", heading.lower()) for _, heading in found]
    assert order == sorted(order)


def test_the_glossary_is_short():
    for anchor, _, body in entries("glossary.md"):
        assert 30 < len(body.strip()) < 420, anchor


def markdown(file):
    """The Markdown of a page, or of a notebook's cells."""
    if file.suffix == ".md":
        return file.read_text(encoding="utf-8")
    cells = nbformat.read(file, 4).cells
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def pages():
    return sorted([*NOTEBOOKS.glob("*.ipynb"), *NOTEBOOKS.glob("*.md")])


@pytest.mark.parametrize("file", pages(), ids=lambda file: file.name)
def test_links_between_pages_resolve(file):
    """To a file of this repository, and to an anchor of a page that has anchors."""
    text = re.sub(r"```[\s\S]*?```|`[^`\n]*`", "", markdown(file))
    for target in re.findall(r"\]\(([^)\s]+)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        goal = (NOTEBOOKS / path) if path else file
        assert goal.exists(), f"{file.name} links to {target}: there is no such file"
        assert goal.resolve().is_relative_to(paths.ROOT), target
        if anchor and goal.name in ("glossary.md", "troubleshooting.md"):
            known_anchors = {anchor for anchor, _, _ in entries(goal.name)}
            assert anchor in known_anchors, f"{file.name} links to {target}: no such entry"


# --- the instructor's guide ---------------------------------------------------------------------


def guide():
    return page("INSTRUCTOR.md")


def test_timetables_add_up():
    tables = re.findall(r"\| minutes \|[\s\S]*?\n\n(\d+) minutes in all", guide())
    assert len(tables) == 3
    for total, table in zip(
        tables, re.findall(r"\| minutes \| what[\s\S]*?\n\n", guide()), strict=True
    ):
        assert sum(map(int, re.findall(r"^\| (\d+) \|", table, re.M))) == int(total)


def test_the_guide_knows_every_exercise_and_what_its_check_says():
    rows = re.findall(r"^\| (\d\d\.\d) \| (\d+) \| (.+?) \|", guide(), re.M)
    everything = exercises.everything()
    assert [(id, int(minutes)) for id, minutes, _ in rows] == [
        (e.id, e.minutes) for e in everything
    ]
    for found, (_, _, said) in zip(everything, rows, strict=True):
        sentences = [case.sentence for case in catalogue.wrong_cases(found.id)]
        for words in re.findall(r'^"(.+)"$', said):
            assert any(words in sentence for sentence in sentences), (found.id, words)
