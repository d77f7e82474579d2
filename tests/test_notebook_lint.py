"""The notebooks keep the rules, and every rule can fail."""

import copy
import json

import nbformat
import notebook_code
import notebook_rules
import notebook_style
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from notebook_rules import Notebook

from labutils.lab import exercises, notebooks, recorded

RULES = [
    notebook_rules.title,
    notebook_rules.headings_in_order,
    notebook_rules.promises,
    notebook_rules.setup,
    notebook_rules.numbered_sections,
    notebook_rules.ending,
    notebook_rules.quiz,
    notebook_rules.exercise_parts,
    notebook_rules.enough_exercises,
    *notebook_code.RULES,
    notebook_style.plain_python,
    notebook_style.no_personal_paths,
    notebook_style.allowed_tags,
    notebook_style.widgets_after_plain_calls,
    notebook_style.enough_cells,
    notebook_style.steps_are_recorded,
    notebook_style.alternative_text,
    notebook_style.cited_figures,
    notebook_style.links_resolve,
    notebook_style.plain_markdown,
    notebook_style.predictions_are_answered,
    notebook_style.well_formed,
    notebook_style.kept_outputs,
    notebook_style.sizes,
]
BY_NAME = {rule.__name__: rule for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", notebooks.find(), ids=lambda path: path.stem)
def test_notebooks(path, rule):
    problems = list(rule(Notebook(path, notebooks.read(path))))
    assert not problems, f"{rule.__doc__}\n" + "\n".join(problems)


def test_all_notebooks_are_there():
    assert [path.name[:2] for path in notebooks.find()] == [f"{n:02}" for n in range(13)]


def test_each_exercise_is_in_exactly_one_notebook():
    used = [
        id for path in notebooks.find() for id, _ in notebooks.exercise_cells(notebooks.read(path))
    ]
    assert used == [exercise.id for exercise in exercises.everything()]


def test_records_are_small_used_and_of_no_machine():
    steps = "".join(path.read_text(encoding="utf-8") for path in notebooks.find())
    for record in recorded.FOLDER.glob("*.json"):
        text = record.read_text(encoding="utf-8")
        calls = {f'on_htp(\\"{record.stem}', f'on_tools(\\"{record.stem}'}
        assert any(call in steps for call in calls), f"no notebook has the step {record.stem}"
        assert len(text) < notebook_style.MAX_NOTEBOOK, record.name
        assert "<iframe" not in text, record.name
        assert not notebook_style.PERSONAL.search(text), record.name
        keys = {"date", "machine", "model", "sha256", "recipes", "parts"}
        made = {"tools", "facts"} if record.stem.startswith("11") else {"qnn"}
        assert set(json.loads(text)) == keys | made, record.name


# --- a notebook that keeps all rules ------------------------------------------------------------

TITLE = """# 03 Replace layers

You replace a layer and measure what that costs.

| | |
|---|---|
| Time | 20 minutes |
| Needs | no network |
| Comes after | [02](02.ipynb) |
| Produces | a file |
"""
VERBS = "\n- replace a layer\n- measure an error\n- explain a log\n"
SECTION = """## {n}. A claim

The claim, with 98 % of it [measured](https://example.org/table), and [a term](glossary.md#top-1).

**Predict.** What comes out?

<details><summary>Answer</summary>

The answer.

</details>

![A curve that rises from 0 to 1](curve.png)
"""
QUESTION = """**{n}. Which one?**

<details><summary>A. this</summary>

Right, because it is.

</details>
<details><summary>B. that</summary>

Wrong, because it is not.

</details>
<details><summary>C. neither</summary>

Wrong, one of them is.

</details>
"""
TROUBLE = """## When something goes wrong

- `No translation registered`: cause, cure.
- `ParityError`: cause, cure.

More: [troubleshooting](troubleshooting.md), [glossary](glossary.md).
"""


def code(source, *tags):
    return new_code_cell(source, metadata={"tags": list(tags)} if tags else {})


def cells_of(exercise):
    head = f"### Exercise {exercise.id}: {exercise.title}\n\n"
    head += f"*{exercise.minutes} minutes, {exercise.difficulty}.*\n\nThe task."
    folded = "\n\n".join(
        f"<details><summary>Hint {n}</summary>\n\n{hint}\n\n</details>"
        for n, hint in enumerate(exercise.hints, 1)
    )
    return [
        new_markdown_cell(head),
        code(exercise.stub, "exercise"),
        code(f'check("{exercise.id}", {exercise.answer})', "check"),
        new_markdown_cell(folded),
        code(f'{exercise.answer} = settle("{exercise.id}")', "settle"),
    ]


def sections():
    for n in range(1, 4):
        yield new_markdown_cell(SECTION.format(n=n))
        kept = code(f"print({n})", notebooks.KEPT)
        kept.execution_count = n
        kept.outputs = [new_output("stream", text=f"{n} of 3\n")]
        yield kept
        yield new_markdown_cell("**You should see** the number.")
        yield code(f"on_htp('03.step{n}', print, {n})")
        yield code("netron_server.show(path)", "nbval-ignore-output")
        yield code("widgets.explorer()", "widget")


@pytest.fixture
def good(tmp_path, monkeypatch):
    """Notebook 03 as it should be, with the files that it links to."""
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    for n in range(1, 4):
        (tmp_path / f"03.step{n}.json").write_text("{}")
    for name in ("02.ipynb", "04.ipynb", "troubleshooting.md", "curve.png"):
        (tmp_path / name).write_text("# Page\n")
    (tmp_path / "glossary.md").write_text("## Top-1\n")
    cells = [
        new_markdown_cell(TITLE),
        new_markdown_cell("## You will be able to\n" + VERBS),
        code('from labutils.lab.lesson import start\n\nlesson = start("03")', "setup"),
        *sections(),
        *(cell for exercise in exercises.of("03") for cell in cells_of(exercise)),
        new_markdown_cell("## What you measured"),
        code('measurements([("error", 0.1, "", 3)])'),
        new_markdown_cell(
            "## Check yourself\n\n" + "\n".join(QUESTION.format(n=n) for n in (1, 2, 3))
        ),
        new_markdown_cell(TROUBLE),
        new_markdown_cell("## You can now\n" + VERBS),
        code('show_progress("03")'),
        new_markdown_cell("## Next\n\n[04](04.ipynb)"),
    ]
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return Notebook(
        tmp_path / "03_replace_layers.ipynb", new_notebook(cells=cells, metadata=metadata)
    )


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_a_good_notebook_has_no_problem(good, rule):
    assert list(rule(good)) == []


# --- each rule, broken --------------------------------------------------------------------------


def swap(old, new, *, once=False):
    """Replace text in the first cell that has it (or in all)."""

    def change(node):
        holders = [cell for cell in node.cells if old in cell.source]
        assert holders, old
        for cell in holders[:1] if once else holders:
            cell.source = cell.source.replace(old, new)

    return change


def drop(text):
    """Take out the first cell that holds `text`."""

    def change(node):
        node.cells.remove(next(cell for cell in node.cells if text in cell.source))

    return change


def add(cell, after="## 1. A claim"):
    def change(node):
        place = next(i for i, c in enumerate(node.cells) if after in c.source)
        new = copy.deepcopy(cell)
        new.id = "added"
        node.cells.insert(place + 1, new)

    return change


def output(text, **facts):
    def change(node):
        cell = next(cell for cell in node.cells if cell.get("outputs"))
        cell.outputs = [nbformat.from_dict({**new_output("stream", text=text), **facts})]

    return change


def rich(node):
    cell = next(cell for cell in node.cells if cell.get("outputs"))
    data = {"text/plain": "3", "text/html": "<b>3</b>"}
    cell.outputs = [new_output("execute_result", data, execution_count=1)]


def metadata(node):
    node.metadata["widgets"] = {}


def timing(node):
    node.cells[2].metadata["execution"] = {"iopub.status.idle": "2026"}


def twin(node):
    node.cells[3].id = node.cells[4].id


def unkept(node):
    for cell in node.cells:
        cell.metadata.pop("tags", None)


def uncounted(node):
    next(cell for cell in node.cells if cell.get("outputs")).execution_count = None


MARK = "**Predict.** What"
BROKEN = [
    ("title", swap("# 03 Replace", "# 3 Replace"), "begins with '# 03 Title'"),
    ("title", swap("You replace a layer and measure what that costs.", ""), "promise"),
    ("title", swap("| Needs | no network |\n", ""), "Produces"),
    ("headings_in_order", swap("The claim,", "# Another\n\nThe claim,"), "one H1"),
    ("headings_in_order", swap("The claim,", "#### Deep\n\nThe claim,"), "H4, right after H2"),
    ("promises", drop("## You will be able to"), "second cell"),
    ("promises", swap("- explain a log\n", "", once=True), "3 to 5"),
    ("promises", swap("- explain a log", "- the log", once=True), "begins with a verb"),
    ("promises", swap("- explain a log", "- read a log", once=True), "the verb 'read'"),
    ("setup", drop("start("), "third cell"),
    ("setup", swap('start("03")', 'start("04")'), 'start("03")'),
    ("setup", add(code('start("03")', "setup")), "only one cell"),
    ("numbered_sections", swap("## 2. A", "## 5. A"), "## 1. ..."),
    ("numbered_sections", swap("**You should see** the", "The"), "You should see"),
    ("numbered_sections", swap(MARK, "What"), "at least 3 lines"),
    ("ending", drop("## Next"), "the last sections are"),
    ("ending", swap("measurements(", "print("), "measurements"),
    ("ending", swap("show_progress(", "print("), "show_progress"),
    ("ending", swap("[04](04.ipynb)", "04"), "'Next' links"),
    ("ending", swap("[glossary](glossary.md)", "the glossary"), "glossary.md"),
    ("ending", swap("- `ParityError`: cause, cure.\n", ""), "2 to 5 messages"),
    ("quiz", swap("**3. Which one?**", "Which one?"), "3 questions"),
    ("quiz", swap("<summary>C. neither</summary>", ""), "at least 3 choices"),
    ("quiz", swap("Wrong, because it is not.", ""), "'B. that' is not explained"),
    ("exercise_parts", swap("### Exercise 03.2:", "### Exercise 03.9:"), "headings are"),
    ("exercise_parts", swap("*5 minutes,", "*6 minutes,"), "minutes, "),
    ("exercise_parts", swap("return TODO", "return 1"), "the stub differs"),
    ("exercise_parts", swap('check("03.1"', 'check("03.2"'), "the check cell is"),
    ("exercise_parts", swap('settle("03.1"', 'settle("03.2"'), "the settle cell is"),
    ("exercise_parts", swap("The line goes", "The curve goes"), "the hints"),
    ("exercise_parts", drop('settle("03.3")'), "exercise, check, settle"),
    ("short_cells", add(code("x = 1\n" * 26)), "26 lines"),
    ("short_cells", add(code(f"x = '{'y' * 96}'")), "too wide"),
    ("public_names", add(code("import labutils.metrics")), "from labutils import"),
    ("public_names", add(code("from labutils.compare.layerwise import opened")), "not a public"),
    ("public_names", add(code("from labutils.quantize.ptq import static")), "not a public"),
    ("public_names", add(code("from labutils.lab.lesson import _seed")), "not a public"),
    (
        "public_names",
        add(code("from labutils import compare\ncompare.layerwise.cut")),
        "compare.lay",
    ),
    ("public_names", add(code("from labutils import metrics\nmetrics._logits(x)")), "underscore"),
    ("verbs", add(code("def told(x):\n    return x")), "name it by a verb"),
    ("verbs", add(code("def figures_of(x):\n    return x")), "name it by a verb"),
    ("one_thought_a_line", add(code("a, b = 1, 2")), "packs several"),
    ("one_thought_a_line", add(code("a, b = (f(x) for x in y)")), "packs several"),
    ("one_thought_a_line", add(code("a = 1; b = 2")), "two statements"),
    ("one_thought_a_line", add(code("if a: b = 2")), "behind the colon"),
    ("one_thought_a_line", add(code("a(b(c(d(1))))")), "4 calls"),
    ("no_nested_comprehensions", add(code("[[y for y in x] for x in z]")), "within one"),
    ("no_nested_comprehensions", add(code("{y: x for x in z for y in x}")), "within one"),
    ("plain_python", add(code("!ls")), "the shell"),
    ("plain_python", add(code("%matplotlib inline")), "a magic"),
    ("plain_python", add(code("if x:\n    !ls")), "the shell"),
    ("plain_python", add(code("def (")), "no Python"),
    ("plain_python", add(code("import matplotlib.pyplot as plt")), "imports matplotlib"),
    ("plain_python", add(code("from subprocess import run")), "imports subprocess"),
    ("plain_python", add(code("widgets.interact(f, x=3)")), "calls interact"),
    ("plain_python", add(code("out = Output()")), "calls Output"),
    ("no_personal_paths", add(new_markdown_cell("see /home/ann/x")), "/home/"),
    ("no_personal_paths", output("<object at 0x7f00aa11bb22>\n"), "0x7f"),
    ("allowed_tags", add(code("1", "raises-exception")), "unknown tag"),
    ("allowed_tags", add(code("1", "check", notebooks.KEPT)), "learner's answer"),
    ("widgets_after_plain_calls", add(code("explorer()", "widget")), "a plain call comes before"),
    ("widgets_after_plain_calls", add(code("netron_server.show(p)")), "not tagged"),
    ("steps_are_recorded", add(code('on_htp("02.step", f)')), "another notebook"),
    ("steps_are_recorded", add(code('on_htp("03.step1", f)')), "occurs twice"),
    ("steps_are_recorded", add(code('on_htp(\n    "03.new", f)')), "has no record"),
    ("alternative_text", swap("![A curve that rises from 0 to 1]", "![]"), "says nothing"),
    ("alternative_text", swap("![A curve that rises from 0 to 1]", "![figure 1]"), "says nothing"),
    ("alternative_text", add(new_markdown_cell('<img src="curve.png">')), "says nothing"),
    ("cited_figures", add(new_markdown_cell("It is [cited](x.md). It has 97.5 %.")), "97"[1:]),
    ("cited_figures", add(new_markdown_cell("It takes 3 ms there.")), "3 ms"),
    ("cited_figures", add(new_markdown_cell("4 ms on [HTP](glossary.md#htp).")), "4 ms"),
    ("cited_figures", add(new_markdown_cell("| a |\n|---|\n| 3 % |")), "3 %"),
    ("links_resolve", add(new_markdown_cell("[x](missing.md)")), "leads nowhere"),
    ("links_resolve", add(new_markdown_cell("[x](../README.md)")), "leads nowhere"),
    ("links_resolve", swap("glossary.md#top-1", "glossary.md#top-2"), "no heading #top-2"),
    ("plain_markdown", add(new_markdown_cell("> [!TIP]\n> x")), "admonition"),
    ("plain_markdown", add(new_markdown_cell("<details><summary>A</summary>\n\nx")), "closed"),
    ("plain_markdown", add(new_markdown_cell("<details>\n\nx\n\n</details>")), "<summary>"),
    (
        "plain_markdown",
        add(new_markdown_cell("<details><summary>A</summary>\n**x**\n\n</details>")),
        "empty line",
    ),
    (
        "plain_markdown",
        add(new_markdown_cell("<details><summary>A</summary> **x**\n\n</details>")),
        "right after",
    ),
    (
        "predictions_are_answered",
        add(new_markdown_cell("**Predict.** And?"), "You should see"),
        "'And?",
    ),
    ("well_formed", metadata, "'widgets'"),
    ("well_formed", timing, "'execution'"),
    ("well_formed", twin, "occurs 2 times"),
    ("kept_outputs", unkept, "not 0"),
    ("kept_outputs", uncounted, "has none"),
    ("kept_outputs", output("it took 3 s\n"), "a time"),
    ("kept_outputs", output("0.98437\n"), "more than 3 decimals"),
    ("kept_outputs", output("x\n", name="stderr"), "text on stdout"),
    ("kept_outputs", rich, "text on stdout"),
    ("sizes", output("x" * 51_000), "an output has"),
    ("sizes", add(new_markdown_cell("x" * 210_000)), "the notebook has"),
]


@pytest.mark.parametrize(
    ("name", "change", "words"), BROKEN, ids=[f"{n}-{i}" for i, (n, _, _) in enumerate(BROKEN)]
)
def test_a_broken_notebook_is_found(good, name, change, words):
    change(good.node)
    problems = list(BY_NAME[name](Notebook(good.path, good.node)))
    assert any(words in problem for problem in problems), problems


def test_too_few_cells_are_found(good):
    good.node.cells = [*good.node.cells[:6], *good.node.cells[-4:]]
    assert "at least 8" in next(notebook_style.enough_cells(Notebook(good.path, good.node)))


def test_too_few_exercises_are_found(good, monkeypatch):
    assert list(notebook_rules.enough_exercises(good)) == []
    monkeypatch.setattr(exercises, "of", lambda number: ())
    assert "at least 3" in next(notebook_rules.enough_exercises(good))


def test_every_rule_has_been_broken():
    assert {name for name, _, _ in BROKEN} | {"enough_cells", "enough_exercises"} == set(BY_NAME)


def test_quotes_and_line_breaks_do_not_change_a_stub():
    assert notebook_rules.tokens("log = given('02.1')") == notebook_rules.tokens(
        'log = given(\n    "02.1"\n)\n'
    )
    assert notebook_rules.tokens("x = TODO  # a") != notebook_rules.tokens("x = TODO  # b")
