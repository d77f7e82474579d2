"""The notebooks as files: solved, refreshed, handed out, put back."""

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from labutils import __main__, paths
from labutils.errors import LabError, UnknownNameError, UsageError
from labutils.lab import exercises, notebooks


def write(path, *cells):
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A folder with two notebooks and a page, in place of the lab's own."""
    folder = tmp_path / "notebooks"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(b"picture")
    (folder / "glossary.md").write_text("terms")
    (folder / "INSTRUCTOR.md").write_text("not for learners")
    write(folder / "02_read.ipynb", new_code_cell("1"))
    write(folder / "03_swap.ipynb", new_code_cell("2"))
    monkeypatch.setattr(notebooks, "SOURCE", folder)
    return folder


def test_found_and_named(source):
    assert [path.name for path in notebooks.find()] == ["02_read.ipynb", "03_swap.ipynb"]


def test_unknown_and_damaged(tmp_path):
    with pytest.raises(UnknownNameError):
        notebooks.named("99")
    with pytest.raises(UsageError, match="no notebook"):
        notebooks.read(tmp_path / "none.ipynb")
    (tmp_path / "bad.ipynb").write_text("{")
    with pytest.raises(UsageError, match=r"bad\.ipynb is not a notebook"):
        notebooks.read(tmp_path / "bad.ipynb")


def test_solving_replaces_exercises_and_nothing_else():
    exercise = exercises.find("02.2")
    heading = new_markdown_cell(f"### Exercise 02.2: {exercise.title}")
    stub = new_code_cell(exercise.stub, metadata={"tags": ["exercise"]})
    other = new_code_cell("x = 1")
    notebook = new_notebook(cells=[other, heading, stub])
    solved = notebooks.solve(notebook)
    assert [cell.source for cell in solved.cells] == ["x = 1", heading.source, exercise.reference]
    assert notebook.cells[2].source == exercise.stub
    with pytest.raises(UsageError, match="no heading says which"):
        notebooks.solve(new_notebook(cells=[stub, heading]))


@pytest.mark.slow
def test_refreshing_keeps_the_text_of_tagged_cells_only(tmp_path):
    rich = (
        "class R:\n    def _repr_html_(self): return '<b>'\n    def __repr__(self): return 'r'\nR()"
    )
    path = write(
        tmp_path / "03_x.ipynb",
        new_code_cell("print('said')\nimport sys; print('warned', file=sys.stderr)"),
        new_code_cell(rich, metadata={"tags": [notebooks.KEPT]}),
        new_markdown_cell("text"),
        new_code_cell("print('a'); print('b')", metadata={"tags": [notebooks.KEPT]}),
        new_code_cell("import os; assert os.environ['LABUTILS_STRICT'] == '0'"),
    )
    ids = [cell.id for cell in notebooks.read(path).cells]
    notebooks.refresh(path)
    first = path.read_bytes()
    cells = notebooks.read(path).cells
    assert [cell.id for cell in cells] == ids
    assert cells[0].outputs == []
    assert cells[0].execution_count is None
    assert cells[1].outputs[0].data == {"text/plain": "r"}
    assert (cells[1].execution_count, cells[3].execution_count) == (2, 3)
    assert cells[3].outputs[0].text == "a\nb\n"
    assert all(set(cell.metadata) <= {"tags"} for cell in cells)
    notebooks.refresh(path)
    assert path.read_bytes() == first


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "words"),
    [("1/0", "ZeroDivisionError"), ("import sys; sys.stderr.write('w')", "stderr")],
)
def test_a_failed_refresh_changes_nothing(tmp_path, source, words):
    cell = new_code_cell(source, metadata={"tags": [notebooks.KEPT]})
    path = write(tmp_path / "03_x.ipynb", cell)
    before = path.read_bytes()
    with pytest.raises(LabError, match=words):
        notebooks.refresh(path)
    assert path.read_bytes() == before


# --- the learner's copy -------------------------------------------------------------------------


def test_a_checkout_brings_notebooks_and_pages(source, tmp_path):
    mine = tmp_path / "my"
    done = notebooks.checkout(mine)
    assert done.copied == ("02_read.ipynb", "03_swap.ipynb")
    assert (mine / "glossary.md").read_text() == "terms"
    assert (mine / "images" / "a.png").is_file()
    assert not (mine / "INSTRUCTOR.md").exists()


def test_a_copy_gives_no_answer_away(source, tmp_path):
    cell = new_code_cell("1 + 1", metadata={"tags": [notebooks.KEPT]})
    cell.outputs = [new_output("stream", text="the answer")]
    cell.execution_count = 3
    write(source / "02_read.ipynb", cell)
    done = notebooks.checkout(tmp_path / "my")
    copied = notebooks.read(tmp_path / "my" / "02_read.ipynb").cells[0]
    assert (copied.outputs, copied.execution_count) == ([], None)
    assert "2 as the lab made them; 0 that you have changed" in str(done)
    assert notebooks.untouched("02", tmp_path / "my")
    assert notebooks.reset("02", tmp_path / "my") is None
    write(tmp_path / "my" / "02_read.ipynb", new_code_cell("my work"))
    assert not notebooks.untouched("02", tmp_path / "my")


def test_what_the_learner_changed_is_never_overwritten(source, tmp_path):
    mine = tmp_path / "my"
    notebooks.checkout(mine)
    write(mine / "03_swap.ipynb", new_code_cell("my work"))
    changed = (mine / "03_swap.ipynb").read_bytes()
    assert notebooks.checkout(mine).kept == ("03_swap.ipynb",)
    write(source / "02_read.ipynb", new_code_cell("newer"))
    write(source / "03_swap.ipynb", new_code_cell("newer"))
    (source / "glossary.md").write_text("more terms")
    done = notebooks.checkout(mine)
    assert done.copied == ("02_read.ipynb",)
    assert done.outdated == ("03_swap.ipynb",)
    assert "labutils reset 03" in str(done)
    assert (mine / "03_swap.ipynb").read_bytes() == changed
    assert (mine / "02_read.ipynb").read_bytes() == (source / "02_read.ipynb").read_bytes()
    assert (mine / "glossary.md").read_text() == "more terms"


def test_a_page_of_the_learners_own_is_left_and_named(source, tmp_path):
    mine = paths.folder(tmp_path / "my")
    (mine / "glossary.md").write_text("my own words")
    done = notebooks.checkout(mine)
    assert done.pages == ("glossary.md",) and "glossary.md is not as the lab" in str(done)
    assert (mine / "glossary.md").read_text() == "my own words"
    (mine / "images" / "a.png").write_bytes(b"drawn on")
    assert notebooks.checkout(mine).pages == ("glossary.md", "images/a.png")
    assert (mine / "images" / "a.png").read_bytes() == b"drawn on"


def test_nothing_is_written_through_a_link(source, tmp_path):
    mine, outside = paths.folder(tmp_path / "my"), paths.folder(tmp_path / "outside")
    texts = {"glossary.md": b"terms", "03_swap.ipynb": b"{}", ".originals.json": b"{}"}
    for name, text in texts.items():
        (outside / name).write_bytes(text)
        (mine / name).symlink_to(outside / name)
    (mine / "02_read.ipynb").symlink_to(outside / "new.ipynb")
    (mine / "images").symlink_to(outside)
    notebooks.checkout(mine)
    (source / "glossary.md").write_text("more terms")
    assert notebooks.checkout(mine).pages == ("images/a.png",)
    notebooks.reset("03", mine)
    assert (mine / "glossary.md").read_text() == "more terms"
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == texts


@pytest.mark.parametrize("name", ["02_read.ipynb", "glossary.md", ".originals.json"])
def test_a_folder_with_the_name_of_a_copy_is_said(name, source, tmp_path):
    (tmp_path / "my" / name).mkdir(parents=True)
    with pytest.raises(UsageError, match=name):
        notebooks.checkout(tmp_path / "my")
    if name != "glossary.md":
        with pytest.raises(UsageError, match=name):
            notebooks.reset("02", tmp_path / "my")


@pytest.mark.parametrize("port", [-1, 0, 65536, 70000])
def test_a_port_that_does_not_exist_is_refused_before_anything_is_copied(
    port, source, tmp_path, capsys
):
    assert __main__.main(["lab", str(tmp_path / "my"), "--port", str(port)]) == 2
    assert f"{port} is not a port" in capsys.readouterr().err
    assert not (tmp_path / "my").exists()


@pytest.mark.parametrize("damage", ["", "[1]", "{"])
def test_with_the_list_of_originals_gone_every_copy_is_the_learners(source, tmp_path, damage):
    mine = tmp_path / "my"
    notebooks.checkout(mine)
    (mine / notebooks._ORIGINALS).write_text(damage)
    write(source / "02_read.ipynb", new_code_cell("newer"))
    assert notebooks.checkout(mine).copied == ()


def test_reset_puts_the_original_back_and_keeps_every_backup(source, tmp_path):
    mine = tmp_path / "my"
    assert notebooks.reset("03", mine) is None  # nothing there to keep
    original = (source / "03_swap.ipynb").read_bytes()
    for n in (1, 2):
        work = write(mine / "03_swap.ipynb", new_code_cell(f"work {n}")).read_bytes()
        backup = notebooks.reset("03", mine)
        assert backup.name == f"backup-{n}_of_03_swap.ipynb"
        assert backup.read_bytes() == work
        assert (mine / "03_swap.ipynb").read_bytes() == original
    assert notebooks.reset("03", mine) is None  # as the original: no backup
    write(source / "03_swap.ipynb", new_code_cell("newer"))
    assert "03_swap.ipynb" in notebooks.checkout(mine).copied
    with pytest.raises(UnknownNameError):
        notebooks.reset("3", mine)


def test_the_makefiles_verbs(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "MINE", tmp_path / "my")
    ran = []
    monkeypatch.setattr(notebooks, "refresh", lambda path, record: ran.append((path.name, record)))
    assert notebooks.main(["refresh", "03"]) == 0
    assert notebooks.main(["refresh"]) == 0
    assert ran == [("03_swap.ipynb", True), ("02_read.ipynb", True), ("03_swap.ipynb", True)]
    assert notebooks.main(["refresh", "09"]) == 2
    assert notebooks.main(["run"]) == 2
    assert "checkout" in capsys.readouterr().err
    assert notebooks.main(["checkout"]) == 0
    assert (tmp_path / "my" / "02_read.ipynb").is_file()
    assert notebooks.main(["checkout", str(tmp_path / "ann")]) == 0
    assert (tmp_path / "ann" / "02_read.ipynb").is_file()


def test_the_learners_folder_is_not_in_git():
    ignored = (paths.ROOT / ".gitignore").read_text().split()
    assert "notebooks/my/" in ignored
