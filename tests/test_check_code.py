"""show_check: the code that judges, readable, whole lines of the source, in words and in colors."""

import ast
import inspect

import pytest

from labutils.errors import UnknownNameError
from labutils.lab import check_code, exercise, exercises, lesson

ALL = exercises.everything()
each = pytest.mark.parametrize("chosen", ALL, ids=[e.id for e in ALL])
MOST_LINES = 30  # of a judge: a screen, with room for its cases
MOST_PARTS = 4  # functions that it hands parts of the judging to


def functions(code):
    return [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]


@each
def test_a_judge_reads_like_a_test(chosen):
    source = inspect.getsource(chosen.judge)
    assert len(source.splitlines()) <= MOST_LINES
    assert chosen.judge.__name__.startswith("judge_")
    assert inspect.getdoc(chosen.judge)
    code = str(check_code.of(chosen))
    names = functions(code)
    assert names[0] == chosen.judge.__name__ and len(names) <= 1 + MOST_PARTS
    assert all(name.lstrip("_").startswith("judge_") for name in names)
    assert source.strip() in code
    assert "raise NotYet(" in code
    assert max(map(len, code.splitlines())) <= 100


@each
def test_whole_leaves_nothing_out(chosen):
    shown = functions(str(check_code.of(chosen, whole=True)))
    listed = [
        name.strip(" #,:")
        for line in str(check_code.of(chosen)).partition("# Not shown here")[2].splitlines()[1:]
        for name in line.partition(":")[0].split(",")
    ]
    for name in listed:
        assert not name.startswith("_explain") or name in shown
    assert set(functions(str(check_code.of(chosen)))) <= set(shown)
    assert "Not shown" not in str(check_code.of(chosen, whole=True))


def test_constants_that_a_judge_reads_come_with_it():
    code = str(check_code.of(exercises.find("05.1")))
    assert "_RANGES = (" in code and "(-310.0, 99.0)" in code


def test_show_check_prints_where_no_notebook_is(capsys):
    assert lesson.show_check("03.1") is None
    printed = capsys.readouterr().out
    assert "# 03.1 Write hard-sigmoid" in printed
    assert printed.count("def judge_") == 4  # the judge; values, export, gradient
    assert "def _explain" not in printed
    lesson.show_check("03.1", whole=True)
    assert "def _explain_curve" in capsys.readouterr().out


def test_a_notebook_shows_it_in_colors(monkeypatch):
    import IPython
    import IPython.display

    seen = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: True)
    monkeypatch.setattr(IPython.display, "display", lambda *given, **_: seen.extend(given))
    lesson.show_check("00.1")
    exercise.Result("00.1", exercise.PASSED, "good").say()
    assert seen[0]["text/markdown"].startswith("```python\n# 00.1 ")
    assert seen[0]["text/markdown"].endswith("\n```")
    assert seen[0]["text/plain"] in seen[0]["text/markdown"]
    assert "<strong>" in seen[1]["text/html"] and "PASSED" in seen[1]["text/plain"]


@pytest.mark.parametrize("id", ["3.1", "03.11", "03,1", 3.1])
def test_an_unknown_number_gets_the_nearest(id):
    with pytest.raises(UnknownNameError, match=r"no exercise named .* Did you mean 03\.1 "):
        lesson.show_check(id)
