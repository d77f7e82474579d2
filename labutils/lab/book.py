"""The reader's edition: every notebook executed, solutions included, and the reference, as a book.

``make html`` runs ``python -m labutils.lab.book``. The pages need no kernel and no network: widgets
show their static picture, and Netron's live panes a sentence.
"""

from __future__ import annotations

import argparse
import functools
import html
import re
import shutil
import sys
import tempfile
from collections.abc import Container, Iterable, Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import paths, streams
from ..errors import LabError, MissingToolError, UsageError
from . import notebooks, reference

if TYPE_CHECKING:
    from nbformat import NotebookNode

TOOLS = ("sphinx", "myst_nb", "furo")
PAGES = ("own_training_loop.md", "INSTRUCTOR.md", "troubleshooting.md", "glossary.md")
WIDGET = "application/vnd.jupyter.widget-view+json"

CONFIG: dict[str, Any] = {
    "project": "MobileNetV3 Edge Lab",
    "extensions": ["myst_nb", *reference.EXTENSIONS],
    "html_theme": "furo",
    "html_title": "MobileNetV3 Edge Lab",
    "html_copy_source": False,
    "html_static_path": ["_static"],
    "html_css_files": ["lab.css"],
    "html_show_copyright": False,
    "html_show_sphinx": False,
    "myst_heading_anchors": 3,
    "nb_execution_mode": "off",  # they come executed
    "nb_merge_streams": True,
    "nb_ipywidgets_js": {},  # the default loads from the network
    "include_patterns": ["index.md", "notebooks/**", f"{reference.FOLDER}/**"],
} | reference.CONFIG
"""Sphinx's settings; with these no page asks for anything outside its own folder."""

INDEX = """# MobileNetV3 Edge Lab, for reading

This is the reader's edition: every notebook was executed, {when}. The exercises are solved; each
solution is folded away, so that you can think first. Widgets are still pictures here.

To do it yourself, run `make lab` in the project's folder. A message that you do not understand is
on the [troubleshooting](notebooks/troubleshooting.md) page, a word in the
[glossary](notebooks/glossary.md). Training with code of your own? See
[your own training loop](notebooks/own_training_loop.md). Writing other code? See the
[reference](api/index.md). Teaching? See the [instructor's guide](notebooks/INSTRUCTOR.md).

{map}

```{{toctree}}
:caption: Notebooks
:hidden:

{notebooks}
```

```{{toctree}}
:caption: Pages
:hidden:

{pages}
```

```{{toctree}}
:caption: Code
:hidden:

{reference}
```
"""

STYLE = """
.highlight-text pre { white-space: pre-wrap; }  /* messages are long lines */
.content { width: 66em; max-width: 100%; box-sizing: border-box; }  /* wide tables of text fit */
.main, .content { min-width: 0; }  /* beside the sidebar, they shrink with the window */
.cell_output pre { white-space: pre-wrap; overflow-x: auto; font-size: 81%; }
.cell_output { overflow-x: auto; }  /* a wide output scrolls in its own box, not the page */
details { margin-bottom: 1rem; }  /* folded answers keep a distance to what follows */
dl.py > dt { overflow-wrap: anywhere; }  /* signatures, on a phone */
.cell_output img { background: white; }  /* figures have black letters */
"""

_FRAME = re.compile(r"<iframe\b.*?</iframe>", re.DOTALL)
_LIVE = "A live view is here when you run the notebook."
_ANCHOR = re.compile(r'^<a id="[^"]+"></a>\n\n(?=##)', re.MULTILINE)
_ENTRY = re.compile(r'^<a id="([^"]+)"></a>\n\n#+ (.+)$', re.MULTILINE)
_ENTRY_LINK = re.compile(r"\]\(([\w-]+\.md)?#([\w-]+)\)")
_LINK = re.compile(r"\]\(([^)\s#:]+)[^)\s:]*\)")
_PROMISE = re.compile(r"^# (?P<title>.+)\n+(?P<promise>[^\n|]+(?:\n[^\n|]+)*)", re.MULTILINE)


def build(
    destination: str | Path | None = None,
    files: Sequence[Path] | None = None,
    environment: Mapping[str, str] | None = None,
    rooms: Sequence[str] | None = None,
) -> Path:
    """Execute notebooks, with solutions, and write them and the pages as a static book.

    Parameters
    ----------
    destination
        The book's folder; what was in it is replaced. ``generated_models/book`` by default.
    files
        Notebooks, in order; all of the lab's by default.
    environment
        Variables for the kernels.
    rooms
        Rooms of the package that the reference shows; all by default.

    Returns
    -------
    pathlib.Path
        ``index.html``.

    Raises
    ------
    MissingToolError
        Sphinx and its companions are not installed.
    LabError
        A cell failed, or a link of a page leads nowhere.
    """
    _require()
    destination = Path(destination or paths.generated() / "book")
    _refuse_other_folders(destination)
    files = list(notebooks.find() if files is None else files)
    with tempfile.TemporaryDirectory(prefix="labutils-book-") as scratch:
        source = Path(scratch, "source")  # laid out as the repository, for the links
        folder = paths.folder(source / notebooks.SOURCE.name)
        made = {"LABUTILS_GENERATED": scratch, "LABUTILS_PROGRESS": scratch}
        made |= {"LABUTILS_STRICT": "1", **(environment or {})}
        chosen = {file.name for file in files}
        for file in files:
            print(f"Running {file.name} ...", flush=True)
            _write_notebook(file, folder, made, chosen)
        _write_pages(folder, chosen)
        paths.write_text(source / "index.md", _index(folder, files, reference.write(source, rooms)))
        paths.write_text(source / "_static" / "lab.css", STYLE)
        written = Path(scratch, "html")
        _sphinx(source, written, Path(scratch, "doctrees"))
        if destination.exists():
            shutil.rmtree(destination)
        shutil.copytree(written, destination, ignore=shutil.ignore_patterns(".buildinfo*"))
    return destination / "index.html"


def _require() -> None:
    missing = [name for name in TOOLS if util.find_spec(name) is None]
    if missing:
        raise MissingToolError(
            f"The reader's edition needs {', '.join(missing)}: "
            f"`make html` installs it, or pip install '{paths.PROJECT}[html]'."
        )


def _refuse_other_folders(destination: Path) -> None:
    """Raise UsageError for a folder that holds something else: it is going to be replaced."""
    full = destination.exists() and any(destination.iterdir())
    if full and not (destination / "searchindex.js").is_file():
        raise UsageError(
            f"{destination} contains something that is not a book; choose another folder."
        )


# --- notebooks ----------------------------------------------------------------------------------


def _write_notebook(
    file: Path, folder: Path, environment: Mapping[str, str], chosen: Container[str]
) -> None:
    import nbformat

    executed = notebooks.execute(notebooks.solve(notebooks.read(file)), environment)
    for cell in for_reading(executed).cells:
        if cell.cell_type == "markdown":
            cell.source = _linked(_to_headings(cell.source), folder, chosen)
    nbformat.write(executed, folder / file.name)


def for_reading(notebook: NotebookNode) -> NotebookNode:
    """Make an executed notebook one that can be read without a kernel, in place.

    Widgets give way to their static form, live frames to a sentence, and solutions are folded.
    """
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        tags = notebooks.tags(cell)
        if "exercise" in tags:
            cell.metadata.tags = [*tags, "hide-input"]
            cell.metadata.mystnb = {"code_prompt_show": "A solution"}
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            data.pop(WIDGET, None)
            for kind in ("text/html", "text/plain"):
                if kind in data:
                    data[kind] = _still(data[kind], data.get("text/plain", ""))
    return notebook


def _still(shown: str, said: str) -> str:
    if not _FRAME.search(shown):
        return shown
    return f"<p>{html.escape(said)}. {_LIVE}</p>"


# --- pages --------------------------------------------------------------------------------------


def _write_pages(folder: Path, chosen: Container[str]) -> None:
    for page in PAGES:
        if (original := notebooks.SOURCE / page).is_file():
            # a heading has its anchor from Sphinx
            text = _ANCHOR.sub("", _to_headings(original.read_text("utf-8"), page))
            paths.write_text(folder / page, _linked(text, folder, chosen))


def _to_headings(text: str, page: str = "") -> str:
    """Let links to the entries of a page (this one, where they name none) lead to the headings."""

    def led(link: re.Match[str]) -> str:
        heading = _headings(link[1] or page).get(link[2])
        return f"]({link[1] or ''}#{heading})" if heading else link[0]

    return _ENTRY_LINK.sub(led, text)


@functools.cache
def _headings(page: str) -> dict[str, str]:
    """Return the anchor before each heading of a page -> the one that MyST gives the heading."""
    from mdit_py_plugins.anchors.index import slugify

    if page not in PAGES:
        return {}
    text = (notebooks.SOURCE / page).read_text("utf-8")
    return {anchor: slugify(heading) for anchor, heading in _ENTRY.findall(text)}


def _linked(text: str, folder: Path, chosen: Container[str]) -> str:
    """Bring along the files that a text links to; notebooks that are left out lose their links."""
    for link in set(_LINK.findall(text)):
        original = (notebooks.SOURCE / link).resolve()
        if not original.is_file() or not original.is_relative_to(paths.ROOT):
            continue
        if original.suffix == ".ipynb" and original.name not in chosen:
            text = re.sub(rf"\[([^\]]*)\]\({re.escape(link)}[^)]*\)", r"\1", text)
        elif original.suffix not in (".ipynb", ".md"):
            paths.folder((folder / link).parent)
            shutil.copyfile(original, folder / link)
    return text


def _index(folder: Path, files: Iterable[Path], api: str) -> str:
    name = folder.name
    pages = [page.removesuffix(".md") for page in PAGES if (folder / page).exists()]
    return INDEX.format(
        when=_versions(),
        map=_map(name, files),
        notebooks="\n".join(f"{name}/{file.stem}" for file in files),
        pages="\n".join(f"{name}/{page}" for page in pages),
        reference=api,
    )


def _versions() -> str:
    found = paths.versions("torch", "onnxruntime", "onnxruntime-qnn")
    return "with " + ", ".join(f"{name} {version}" for name, version in found.items())


def _map(folder: str, files: Iterable[Path]) -> str:
    """Return a table of the notebooks with their promises, from their first cells."""
    rows = ["| notebook | what it promises |", "|---|---|"]
    for file in files:
        found = _PROMISE.search(notebooks.read(file).cells[0].source)
        title, promise = (
            (found["title"], " ".join(found["promise"].split())) if found else (file.stem, "")
        )
        rows.append(f"| [{title}]({folder}/{file.name}) | {promise} |")
    return "\n".join(rows)


def _sphinx(source: Path, destination: Path, doctrees: Path) -> None:
    """Run Sphinx; a warning, such as a link that leads nowhere, is an error."""
    from sphinx.application import Sphinx
    from sphinx.errors import SphinxError

    try:
        app = Sphinx(
            source, None, destination, doctrees, "html",
            confoverrides=CONFIG, status=None, warning=sys.stderr, freshenv=True,
            warningiserror=True,
        )  # fmt: skip
        app.build()
    except SphinxError as error:
        raise LabError(f"Sphinx could not write the book: {error}") from None
    if app.statuscode:
        raise LabError("Sphinx warned while it wrote the book; the warnings are above.")


# --- for the Makefile ---------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the book of all notebooks, or of those with the numbers given."""
    parser = argparse.ArgumentParser(prog="python -m labutils.lab.book", description=build.__doc__)
    parser.add_argument("numbers", nargs="*", metavar="NN", help="notebooks (all)")
    parser.add_argument("-o", "--output", type=Path, help="folder (generated_models/book)")
    chosen = parser.parse_args(arguments)
    try:
        with streams.ending_quietly():
            files = [notebooks.named(number) for number in chosen.numbers] or None
            print(f"The book is {build(chosen.output, files)}")
    except LabError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
