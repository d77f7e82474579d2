"""Rules of a notebook's anatomy and exercises: functions notebook -> problems, in words."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from labutils.lab import exercises, notebooks

TABLE = ("Time", "Needs", "Comes after", "Produces")
ENDING = (
    "What you measured",
    "Check yourself",
    "When something goes wrong",
    "You can now",
    "Next",
)
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^(#{1,6}) +(.+?) *$", re.MULTILINE)
_BULLET = re.compile(r"^[-*] +(.+)$", re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)[^)]*\)")


@dataclass(frozen=True)
class Notebook:
    """A notebook under test: its path, its cells."""

    path: Path
    node: object

    @property
    def number(self):
        return self.path.name[:2]

    @cached_property
    def cells(self):
        return self.node.cells

    @cached_property
    def code(self):
        return [cell for cell in self.cells if cell.cell_type == "code"]

    @cached_property
    def markdown(self):
        return [cell for cell in self.cells if cell.cell_type == "markdown"]

    @cached_property
    def headings(self):
        """(level, text, number of the cell), outside code fences."""
        return [
            (len(marks), text, i)
            for i, cell in enumerate(self.cells)
            if cell.cell_type == "markdown"
            for marks, text in _HEADING.findall(_FENCE.sub("", cell.source))
        ]

    @cached_property
    def sections(self):
        """{H2: its cells, the one with the heading first}; {} where a cell has two of them."""
        found, current = {}, None
        for i, cell in enumerate(self.cells):
            titles = [text for level, text, at in self.headings if level == 2 and at == i]
            if titles:
                current = found.setdefault(titles[-1], [])
            if current is not None:
                current.append(cell)
        return found

    def section(self, title):
        return self.sections.get(title, [])


def words(cells):
    return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def bullets(cells):
    return _BULLET.findall(words(cells))


def tagged(notebook, tag):
    return [cell for cell in notebook.code if tag in notebooks.tags(cell)]


def flat(text):
    return " ".join(text.split())


# --- anatomy ------------------------------------------------------------------------------------


def title(notebook):
    """First cell: `# NN Title`, one sentence of promise, a table with four rows."""
    cell = notebook.cells[0]
    if not re.match(rf"# {notebook.number} \S", cell.source) or cell.cell_type != "markdown":
        yield f"the first cell begins with '# {notebook.number} Title'"
        return
    rest = cell.source.partition("\n")[2]
    promise = next((block for block in rest.split("\n\n") if block.strip()), "")
    if "|" in promise or not re.search(r"[a-z][.!]\*?$", promise.strip()):
        yield "a sentence of promise follows the title"
    rows = [line.strip("| ").split("|")[0].strip(" *") for line in rest.splitlines() if "|" in line]
    if len(rows) < 2 or not set(rows[1]) <= set("-: ") or tuple(rows[2:]) != TABLE:
        yield f"a table with a header row and the rows {', '.join(TABLE)} follows; found {rows}"


def headings_in_order(notebook):
    """One H1, and no level is skipped."""
    levels = [level for level, _, _ in notebook.headings]
    if levels.count(1) != 1:
        yield f"there is one H1, not {levels.count(1)}"
    for (before, _, _), (level, text, _) in zip(
        notebook.headings, notebook.headings[1:], strict=False
    ):
        if level > before + 1:
            yield f"'{text}' is H{level}, right after H{before}"


def promises(notebook):
    """Second cell: 3 to 5 verbs, and the end meets each of them again."""
    first = notebook.cells[1].source if len(notebook.cells) > 1 else ""
    if not first.startswith("## You will be able to"):
        yield "the second cell is '## You will be able to'"
        return
    begun = bullets([notebook.cells[1]])
    if not 3 <= len(begun) <= 5:
        yield f"3 to 5 bullets are promised, not {len(begun)}"
    for bullet in begun:
        if re.match(r"(?i)(the|a|an|how|what|why|you|that|to)\b", bullet):
            yield f"a promise begins with a verb: '{bullet}'"
    verb = lambda bullet: bullet.split()[0].lower().strip("*_.,")  # noqa: E731
    ended = {verb(bullet) for bullet in bullets(notebook.section("You can now"))}
    for missing in sorted({verb(bullet) for bullet in begun} - ended):
        yield f"'You can now' does not meet the verb '{missing}' of the beginning"


def setup(notebook):
    """Third cell, and only that: tag `setup`, with `start` of the right number."""
    cell = notebook.cells[2] if len(notebook.cells) > 2 else None
    if cell is None or cell.cell_type != "code" or notebooks.tags(cell) != ["setup"]:
        yield "the third cell is code with the tag setup"
    elif not re.search(rf'\bstart\("{notebook.number}"[,)]', cell.source):
        yield f'the setup cell calls start("{notebook.number}")'
    if len(tagged(notebook, "setup")) > 1:
        yield "only one cell has the tag setup"


def numbered_sections(notebook):
    """Sections are numbered from 1; each says what one should see, and most ask before."""
    titles = [t for t in notebook.sections if re.match(r"\d", t)]
    numbers = [int(re.match(r"\d+", title)[0]) for title in titles]
    if numbers != list(range(1, len(numbers) + 1)) or len(numbers) < 2:
        yield f"sections are '## 1. ...', '## 2. ...', at least two; found {titles}"
    for name in titles:
        cells = notebook.section(name)
        ran = [cell for cell in cells if cell.cell_type == "code"]
        plain = [cell for cell in ran if not {"exercise", "check"} & set(notebooks.tags(cell))]
        if plain and "**You should see**" not in words(cells):
            yield f"section '{name}' does not say **You should see**"
    asked = len(re.findall(r"^\*\*Predict\.\*\*", words(notebook.cells), re.MULTILINE))
    if notebook.number != "00" and asked < 3:
        yield f"at least 3 lines begin with '**Predict.**', not {asked}"


def ending(notebook):
    """The last sections, in order, with what belongs into each."""
    wanted = ENDING if notebook.number != "00" else ENDING[2:]
    found = [name for name in notebook.sections if name in ENDING]
    if found != list(wanted) or list(notebook.sections)[-len(wanted) :] != list(wanted):
        yield f"the last sections are {', '.join(wanted)}; found {', '.join(found)}"
    source = lambda name: "\n".join(c.source for c in notebook.section(name))  # noqa: E731
    if "What you measured" in wanted and "measurements(" not in source("What you measured"):
        yield "'What you measured' calls measurements(...)"
    if "show_progress(" not in source("You can now"):
        yield "'You can now' calls show_progress(...)"
    if not LINK.search(source("Next")):
        yield "'Next' links to what comes next"
    trouble = source("When something goes wrong")
    for page in ("troubleshooting.md", "glossary.md"):
        if page not in trouble:
            yield f"'When something goes wrong' links to {page}"
    messages = re.findall(r"^(?:[-*|#]|\d\.).*`[^`\n]+`", trouble, re.MULTILINE)
    if not 2 <= len(messages) <= 5:
        yield f"'When something goes wrong' has 2 to 5 messages in `code`, not {len(messages)}"


def quiz(notebook):
    """`**1. Question**`, then a <details> per choice: the choice as summary, the reason inside."""
    if notebook.number == "00":
        return
    text = words(notebook.section("Check yourself"))
    questions = re.split(r"^\*\*\d\. ", text, flags=re.MULTILINE)[1:]
    if len(questions) != 3:
        yield f"there are 3 questions that begin with '**1. ', not {len(questions)}"
    for number, question in enumerate(questions, 1):
        choices = re.findall(r"<summary>(.*?)</summary>(.*?)</details>", question, re.DOTALL)
        if len(choices) < 3:
            yield f"question {number} has at least 3 choices, each in <details>, not {len(choices)}"
        for choice, reason in choices:
            if not choice.strip() or len(reason.split()) < 3:
                yield f"question {number}: the choice '{choice}' is not explained"


# --- exercises ----------------------------------------------------------------------------------


def exercise_parts(notebook):
    """Heading, minutes, stub, check, hints and settle of every exercise, in this order."""
    expected = [exercise.id for exercise in exercises.of(notebook.number)]
    heads = [text for level, text, _ in notebook.headings if text.startswith("Exercise")]
    wanted = [f"Exercise {e.id}: {e.title}" for e in exercises.of(notebook.number)]
    if heads != wanted:
        yield f"the exercise headings are {wanted}; found {heads}"
        return
    found = [id for id, _ in notebooks.exercise_cells(notebook.node)]
    if found != expected:
        yield f"one cell tagged exercise for each of {expected}; found {found}"
    for id in expected:
        yield from (f"exercise {id}: {problem}" for problem in _exercise(notebook, id))


def enough_exercises(notebook):
    """At least 3 from notebook 02 on, one of them a stretch."""
    if notebook.number < "02":
        return
    levels = [exercise.difficulty for exercise in exercises.of(notebook.number)]
    if len(levels) < 3 or "stretch" not in levels:
        yield f"at least 3 exercises, one a stretch; found {levels}"


def _exercise(notebook, id):
    exercise = exercises.find(id)
    cells = _cells_of(notebook, id)
    text = words(cells[:1])
    if f"*{exercise.minutes} minutes, {exercise.difficulty}.*" not in text:
        yield f"the line '*{exercise.minutes} minutes, {exercise.difficulty}.*' follows the heading"
    code = [
        (tag, cell)
        for cell in cells
        for tag in notebooks.tags(cell)
        if tag in ("exercise", "check", "settle")
    ]
    if [tag for tag, _ in code] != ["exercise", "check", "settle"]:
        yield f"cells tagged exercise, check, settle follow; found {[tag for tag, _ in code]}"
        return
    stub, check, settle = (cell.source for _, cell in code)
    if tokens(stub) != tokens(exercise.stub):
        yield "the stub differs from the exercise's stub"
    if tokens(check) != tokens(f'check("{id}", {exercise.answer})'):
        yield f'the check cell is: check("{id}", {exercise.answer})'
    if tokens(settle) != tokens(f'{exercise.answer} = settle("{id}")'):
        yield f'the settle cell is: {exercise.answer} = settle("{id}")'
    between = cells[cells.index(code[1][1]) : cells.index(code[2][1])]
    if hints(words(between)) != [flat(hint) for hint in exercise.hints]:
        yield "the hints between check and settle differ from the exercise's"


def _cells_of(notebook, id):
    """The cells from an exercise's heading to the next heading of its level or above."""
    starts = [i for level, _, i in notebook.headings if level <= 3]
    begin = next(i for _, text, i in notebook.headings if text.startswith(f"Exercise {id}:"))
    return notebook.cells[begin : next((i for i in starts if i > begin), None)]


def hints(text):
    """The texts of the folded hints, in order."""
    found = re.findall(
        r"<details>\s*<summary>Hint (\d)</summary>(.*?)</details>", text, flags=re.DOTALL
    )
    return [flat(hint) for number, hint in sorted(found)]


def tokens(source):
    """A cell's tokens; quotes, blank lines and line breaks in brackets do not count."""
    try:
        read = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError):
        return [source]
    kept = [t for t in read if t.type not in (tokenize.NL, tokenize.NEWLINE, tokenize.ENDMARKER)]
    return [
        repr(ast.literal_eval(t.string)) if t.type == tokenize.STRING else t.string.strip()
        for t in kept
    ]
