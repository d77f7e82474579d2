"""Rules of style, safety and size of a notebook: functions notebook -> problems, in words."""

from __future__ import annotations

import ast
import json
import re

import nbformat
from notebook_rules import LINK, tagged, words

from labutils.lab import notebooks, recorded

TAGS = {
    "setup", "exercise", "check", "settle", "widget", "demo",
    "nbval-check-output", "nbval-ignore-output", "nbval-skip",
}  # fmt: skip
MAX_NOTEBOOK, MAX_OUTPUT = 200_000, 50_000  # bytes
MIN_CODE_CELLS = 8  # fewer, and a notebook shows nothing
MIN_CODE_CELLS_00 = 2
METADATA = {"kernelspec", "language_info"}

_IMAGE = re.compile(r"<img\b[^>]*>")
PERSONAL = re.compile(
    r"/home/|/root\b|/Users/|(?<!/data/local)/tmp/|/work/|\b[A-Z]:\\\\|0x[0-9a-f]{6,}"
)
_FIGURE = re.compile(r"\d\s?(%|per cent\b|percent\b|ms\b|milliseconds?\b|µs\b|microseconds?\b)")
_NO_CLAIM = re.compile(r"`[^`]*`|\"[^\"]*\"|95 %\s+(confidence\s+)?interval")
"""What is quoted, and the usual interval, states nothing about this lab."""
_SOURCE = re.compile(r"(?<!!)\[[^\]]*\]\(https?://|benchmarks/results/\w")
"""A page elsewhere, or a result of this repository; a link into the glossary is no source."""
_TIME = re.compile(r"\d\s?(s|ms|µs|seconds?|minutes?)\b")
_LONG_FLOAT = re.compile(r"\d\.\d{4,}")
_PLACEHOLDER_ALT = re.compile(r"(image|figure|picture|screenshot|plot)?[\s\d.-]*|.*\.(png|svg|jpg)")


# --- code ---------------------------------------------------------------------------------------


def plain_python(notebook):
    """No shell, magic, pip, IPython tricks, matplotlib; every cell parses."""
    for cell in notebook.code:
        if re.search(r"^\s*[!%]", cell.source, re.MULTILINE):
            yield f"cell {cell.id} uses the shell or a magic"
            continue
        try:
            tree = ast.parse(cell.source)
        except SyntaxError as error:
            yield f"cell {cell.id} is no Python: {error}"
            continue
        for module in imported(tree):
            if module.split(".")[0] in {"matplotlib", "pylab", "subprocess", "pip", "os"}:
                yield f"cell {cell.id} imports {module}"
        for name in called(tree):
            if name in {"get_ipython", "Output", "interact", "interactive", "system"}:
                yield f"cell {cell.id} calls {name}"


def imported(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def called(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "attr", getattr(node.func, "id", ""))


def no_personal_paths(notebook):
    """No absolute path, address or user's folder, in cells and outputs."""
    for cell in notebook.cells:
        text = cell.source + json.dumps(cell.get("outputs", []))
        if found := PERSONAL.search(text):
            yield f"cell {cell.id} holds {found[0]!r}: no absolute paths and addresses"


def allowed_tags(notebook):
    """Only the tags that mean something here; a kept output is not one that exercises change."""
    for cell in notebook.cells:
        tags = set(notebooks.tags(cell))
        for tag in sorted(tags - TAGS):
            yield f"cell {cell.id} has the unknown tag {tag!r}"
        if notebooks.KEPT in tags and tags & {"check", "settle", "exercise"}:
            yield f"cell {cell.id} keeps an output that depends on the learner's answer"


def widgets_after_plain_calls(notebook):
    """Before a widget or a Netron pane, the same section shows it plainly."""
    for cells in notebook.sections.values():
        plain = False
        for cell in cells:
            if cell.cell_type != "code":
                continue
            netron = "netron" in cell.source
            if netron and "nbval-ignore-output" not in notebooks.tags(cell):
                yield f"cell {cell.id} shows Netron and is not tagged nbval-ignore-output"
            if (netron or "widget" in notebooks.tags(cell)) and not plain:
                yield f"cell {cell.id}: a plain call comes before a widget or Netron"
            plain = plain or not (netron or set(notebooks.tags(cell)) & {"widget", "setup"})


def enough_cells(notebook):
    """A notebook that skips everything would be green."""
    skipped = {cell.id for cell in tagged(notebook, "nbval-skip")}
    count = sum(1 for cell in notebook.code if cell.source.strip() and cell.id not in skipped)
    least = MIN_CODE_CELLS_00 if notebook.number == "00" else MIN_CODE_CELLS
    if count < least:
        yield f"only {count} code cells are run; at least {least}"


def steps_are_recorded(notebook):
    """Keys of on_htp and on_tools begin with the notebook's number, occur once, have a record."""
    seen = set()
    for cell in notebook.code:
        for key in re.findall(r"on_(?:htp|tools)\(\s*[\"']([^\"']*)", cell.source):
            if not key.startswith(f"{notebook.number}."):
                yield f"the step {key!r} is named after another notebook"
            if key in seen:
                yield f"the step {key!r} occurs twice"
            seen.add(key)
            if not recorded.file_of(key).is_file():
                yield f"the step {key!r} has no record: make notebooks (LABUTILS_RECORD=1)"


# --- text ---------------------------------------------------------------------------------------


def alternative_text(notebook):
    """Every picture in Markdown has a sentence for those who do not see it."""
    for cell in notebook.markdown:
        alts = [alt for mark, alt, _ in LINK.findall(cell.source) if mark]
        for image in _IMAGE.findall(cell.source):
            found = re.search(r"alt=[\"']([^\"']*)", image)
            alts.append(found[1] if found else "")
        for alt in alts:
            if len(alt) < 15 or _PLACEHOLDER_ALT.fullmatch(alt.lower()):
                yield f"cell {cell.id}: a picture's alt text {alt!r} says nothing"


def cited_figures(notebook):
    """A percentage or a time in Markdown has its source in the same sentence (or table)."""
    for cell in notebook.markdown:
        for block in re.split(r"\n\s*\n", cell.source):
            table = block.lstrip().startswith("|")
            for sentence in [block] if table else re.split(r"(?<=[.!?:])\s+", block):
                found = _FIGURE.search(_NO_CLAIM.sub("", sentence))
                if found and not _SOURCE.search(sentence):
                    said = sentence.strip()[:60]
                    yield f"cell {cell.id}: '{found[0]}' without a source: '{said}'"


def links_resolve(notebook):
    """Relative links lead to files beside the notebook, and to headings in them."""
    for cell in notebook.markdown:
        for _, _, target in LINK.findall(cell.source):
            if re.match(r"https?://|attachment:|#", target):
                continue
            name, _, anchor = target.partition("#")
            path = notebook.path.parent / name
            if name.startswith(("/", "..")) or not path.is_file():
                yield f"cell {cell.id}: the link {target} leads nowhere"
            elif anchor and path.suffix == ".md" and anchor not in anchors(path):
                yield f"cell {cell.id}: {name} has no heading #{anchor}"


def anchors(path):
    """The anchors of a Markdown file: of its headings, and those set by hand."""
    text = path.read_text(encoding="utf-8")
    headings = re.findall(r"^#{1,6} +(.+?) *$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r"<a (?:id|name)=[\"']([^\"']+)", text))


def plain_markdown(notebook):
    """What JupyterLab would show raw is not used; details are closed, and have a summary."""
    for cell in notebook.markdown:
        if re.search(r"^(> \[!|:::|!!! )", cell.source, re.MULTILINE):
            yield f"cell {cell.id} uses an admonition syntax that JupyterLab shows raw"
        opened, closed = cell.source.count("<details>"), cell.source.count("</details>")
        if opened != closed or opened != cell.source.count("<summary>"):
            yield f"cell {cell.id}: every <details> has a <summary> and is closed in its cell"
        for inner in re.findall(r"</summary>(.*)$", cell.source, re.MULTILINE):
            if "<" not in inner and inner.strip():
                yield f"cell {cell.id}: text right after </summary> is not read as Markdown"
        if re.search(r"</summary>\n[^\n]", cell.source):
            yield f"cell {cell.id}: an empty line after </summary>, or Markdown stays raw"


def predictions_are_answered(notebook):
    """After each question of a section comes its answer: folded, or as what one should see."""
    for name, cells in notebook.sections.items():
        for asked in re.split(r"^\*\*Predict\.\*\*", words(cells), flags=re.MULTILINE)[1:]:
            if "<details>" not in asked and "**You should see**" not in asked:
                yield f"section '{name}': no answer to '{' '.join(asked.split())[:60]}'"


# --- the file -----------------------------------------------------------------------------------


def well_formed(notebook):
    """Valid, ids unique, no metadata but tags, nothing of a run."""
    try:
        nbformat.validate(nbformat.from_dict(notebook.node))
    except nbformat.ValidationError as error:
        yield f"not a valid notebook: {error.message[:200]}"
    ids = [cell.get("id") for cell in notebook.cells]
    for id in sorted({id for id in ids if ids.count(id) > 1}, key=str):
        yield f"the cell id {id} occurs {ids.count(id)} times"
    for key in sorted(set(notebook.node.metadata) - METADATA):
        yield f"the notebook's metadata hold {key!r}"
    for cell in notebook.cells:
        for key in sorted(set(cell.metadata) - {"tags"}):
            yield f"cell {cell.id}: the metadata hold {key!r}"


def kept_outputs(notebook):
    """1 to 5 cells keep a small text that is the same everywhere; the others keep nothing."""
    kept = tagged(notebook, notebooks.KEPT)
    if not 1 <= len(kept) <= 5:
        yield f"1 to 5 cells are tagged {notebooks.KEPT}, not {len(kept)}"
    for cell in notebook.code:
        if cell not in kept:
            if cell.outputs or cell.execution_count is not None:
                yield f"cell {cell.id} holds an output or a count, and is not tagged to keep it"
            continue
        if not cell.outputs or cell.execution_count is None:
            yield f"cell {cell.id} is to keep its output and has none: make notebooks"
        for output in cell.outputs:
            yield from (f"cell {cell.id}: {problem}" for problem in _unstable(output))


def _unstable(output):
    texts = [output.text] if "text" in output else list(output.get("data", {}).values())
    if set(output.get("data", {})) - {"text/plain"} or output.get("name") == "stderr":
        yield "a kept output is text on stdout, or a value"
    for text in map(str, texts):
        for pattern, what in ((_TIME, "a time"), (_LONG_FLOAT, "more than 3 decimals")):
            if found := pattern.search(text):
                yield f"a kept output holds {what}: {found[0]!r}"


def sizes(notebook):
    """At most 200 KB a notebook and 50 KB an output."""
    size = len(nbformat.writes(notebook.node).encode())
    if size > MAX_NOTEBOOK:
        yield f"the notebook has {size:,} bytes; {MAX_NOTEBOOK:,} are the most"
    for cell in notebook.code:
        for output in cell.outputs:
            if (size := len(json.dumps(output).encode())) > MAX_OUTPUT:
                yield f"cell {cell.id}: an output has {size:,} bytes; {MAX_OUTPUT:,} are the most"
