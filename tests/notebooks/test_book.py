"""The reader's edition: solved, executed, readable without a kernel and without a network."""

import html
import re
from importlib import util

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from labutils import paths
from labutils.errors import LabError, MissingToolError, UsageError
from labutils.lab import book, exercises, notebooks

MISSING = [name for name in book.TOOLS if util.find_spec(name) is None]
needs_tools = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install -e '.[html]'"
)
STILL = """
class Slider:
    def _repr_mimebundle_(self, **_):
        view = {"model_id": "0", "version_major": 2, "version_minor": 0}
        still = "<p>a still picture</p>"
        return {"application/vnd.jupyter.widget-view+json": view, "text/html": still}

Slider()
"""


def write(path, *cells):
    notebook = new_notebook(cells=list(cells))
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    nbformat.write(notebook, path)
    return path


def first(path):
    exercise = exercises.find("03.2")
    return write(
        path,
        new_markdown_cell(
            "# 03 First steps\n\nYou will take a step.\n\n| Time | 1 minute |\n|---|---|"
        ),
        new_markdown_cell(f"## 1. One\n\n### Exercise 03.2: {exercise.title}\n\nA task."),
        new_code_cell(exercise.stub, metadata={"tags": ["exercise"]}),
        new_code_cell("print(f'largest {float(largest_error):.4f}')"),
        new_markdown_cell("<details><summary>Hint 1</summary>\n\nA *hint*.\n\n</details>"),
        new_markdown_cell("## Next\n\n[the second](04_second.ipynb), [SQNR](glossary.md#sqnr)"),
    )


def entries():
    """(page, anchor) of every entry that a message or a word has."""
    for page in ("troubleshooting.md", "glossary.md"):
        text = (notebooks.SOURCE / page).read_text("utf-8")
        yield from ((page, anchor) for anchor in re.findall(r'<a id="([^"]+)">', text))


def second(path):
    return write(
        path,
        new_markdown_cell("# 04 Second steps\n\nYou will take another."),
        new_markdown_cell("\n".join(f"- [{a}]({page}#{a})" for page, a in entries())),
        new_code_cell(STILL.strip(), metadata={"tags": ["widget"]}),
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("book")
    files = [first(folder / "03_first.ipynb"), second(folder / "04_second.ipynb")]
    return book.build(folder / "html", files, rooms=["compare", "metrics"]).parent


@needs_tools
def test_the_notebooks_are_solved_and_run(built):
    page = (built / "notebooks" / "03_first.html").read_text("utf-8")
    assert "largest 0.0010" in page and "TODO" not in page
    assert re.search(r"<details[^>]*hide[\s\S]*?A solution[\s\S]*?linspace", page)
    assert "<details><summary>Hint 1</summary>" in page and "<em>hint</em>" in page


@needs_tools
def test_a_link_to_an_entry_leads_to_its_heading(built):
    """Sphinx refuses one that leads nowhere; what an entry is called need not be its heading."""
    page = (built / "notebooks" / "04_second.html").read_text("utf-8")
    links = re.findall(r'href="(troubleshooting|glossary)\.html#([^"]+)"', page)
    assert len(links) >= len([*entries()]) > 200
    for name in ("troubleshooting", "glossary"):
        there = (built / "notebooks" / f"{name}.html").read_text("utf-8")
        assert {a for page, a in links if page == name} <= set(re.findall(r'id="([^"]+)"', there))


@needs_tools
def test_widgets_are_still(built):
    page = (built / "notebooks" / "04_second.html").read_text("utf-8")
    assert "a still picture" in page and f'type="{book.WIDGET}"' not in page


@needs_tools
def test_the_index_has_the_map_and_the_pages(built):
    page = (built / "index.html").read_text("utf-8")
    for words in ("First steps", "You will take another.", "Glossary", "Troubleshooting"):
        assert words in page
    assert 'href="notebooks/04_second.html"' in page


@needs_tools
def test_the_reference_says_what_the_docstrings_say(built):
    page = (built / "api" / "compare.html").read_text("utf-8")
    words = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", page)))
    for said in (
        "labutils.compare.gate(",  # the name by which it is imported
        "Run both on the same images and refuse the candidate",
        "min_cosine – Another threshold",
        "ParityError – The candidate fails",
        '>>> report = compare.gate(ours, theirs, images, kind="ort_fp32")',
    ):
        assert said in words, said
    assert 'href="compare.html"' in (built / "api" / "index.html").read_text("utf-8")
    assert 'href="api/index.html"' in (built / "index.html").read_text("utf-8")


@needs_tools
@pytest.mark.slow
def test_every_room_has_its_page_in_the_reference(tmp_path):
    index = book.build(tmp_path / "html", [])  # a warning of Sphinx would be an error
    pages = {file.stem for file in (index.parent / "api").glob("*.html")}
    folders = {file.stem for file in (paths.ROOT / "labutils").iterdir()}
    rooms = {name for name in folders if not name.startswith((".", "_")) and name != "README"}
    assert rooms - pages == {"commands", "shipped"} & rooms


@needs_tools
def test_nothing_is_loaded_from_elsewhere(built):
    """Links for the reader to click are fine; what a browser fetches by itself is not."""
    loaded = r"<(?:script|img|iframe|source)[^>]*\ssrc=\"([^\"]+)|<link[^>]*\shref=\"([^\"]+)"
    pages = list(built.rglob("*.html"))
    assert len(pages) > 5
    for page in pages:
        found = [a or b for a, b in re.findall(loaded, page.read_text("utf-8"))]
        assert found and not [url for url in found if re.match(r"(?:https?:)?//", url)], page
    for style in built.rglob("*.css"):
        text = style.read_text("utf-8")
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import ['\"]http", text), style


@needs_tools
def test_a_link_that_leads_nowhere_is_an_error(tmp_path):
    broken = write(tmp_path / "05_x.ipynb", new_markdown_cell("# 05 X\n\n[y](06_not_there.ipynb)"))
    with pytest.raises(LabError, match="Sphinx"):
        book.build(tmp_path / "html", [broken], rooms=[])
    assert not (tmp_path / "html").exists()


@needs_tools
def test_a_failing_cell_is_an_error(tmp_path):
    broken = write(tmp_path / "05_x.ipynb", new_code_cell("1 / 0"))
    with pytest.raises(LabError, match="ZeroDivisionError"):
        book.build(tmp_path / "html", [broken], rooms=[])


@needs_tools
def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="not a book"):
        book.build(tmp_path, [])
    assert (tmp_path / "thesis.txt").exists()


def test_without_sphinx_the_cure_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(book, "TOOLS", ("sphinx_that_is_not_there",))
    with pytest.raises(MissingToolError, match="make html"):
        book.build(tmp_path / "html", [])


def test_live_frames_give_way_to_a_sentence():
    frame = '<div><iframe class="lab-netron" src="/proxy/1/secret/"></iframe></div>'
    data = {"text/html": frame, "text/plain": "<Netron: a.onnx>", book.WIDGET: {}}
    cell = new_code_cell("panes(a)", outputs=[new_output("display_data", data)])
    book.for_reading(new_notebook(cells=[cell]))
    shown = cell.outputs[0].data
    assert "secret" not in str(shown) and "&lt;Netron: a.onnx&gt;" in shown["text/html"]
    assert book.WIDGET not in shown and shown["text/plain"] == "<Netron: a.onnx>"


def test_only_exercises_are_folded():
    cells = [new_code_cell("1", metadata={"tags": tags}) for tags in ([], ["exercise"], ["check"])]
    book.for_reading(new_notebook(cells=cells))
    assert ["hide-input" in notebooks.tags(cell) for cell in cells] == [False, True, False]
