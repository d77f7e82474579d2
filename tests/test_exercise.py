"""The engine: outcomes, strictness, and a progress file that survives."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from labutils.lab import answer as answers
from labutils.lab import exercise
from labutils.lab.exercise import NOT_ATTEMPTED, NOT_YET, PASSED, Exercise, NotYet, Record, Result


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path))
    monkeypatch.setenv("LABUTILS_LEARNER", "ann")


def make(judge):
    return Exercise(
        "09.1", "t", "v", 1, "easy", "x", "x = TODO", "x = 1", ("a", "b", "c"), judge, "ok"
    )


def test_an_exception_of_the_learner_becomes_words():
    result = make(lambda answer: answers.call(answer, 3)).grade(lambda x: x.nope)
    assert result.outcome == NOT_YET
    assert "AttributeError: 'int' object has no attribute 'nope'" in result.message


def test_untouched_code_is_no_attempt_however_it_says_so():
    def stub(_):
        raise NotImplementedError

    chosen = make(lambda answer: answers.call(answer, 3))
    for answer in (stub, lambda _: answers.TODO, lambda _: ..., (answers.TODO, answers.TODO)):
        assert chosen.grade(answer).outcome == NOT_ATTEMPTED
    assert "part 2" in chosen.grade((1, answers.TODO)).message


@pytest.mark.parametrize(
    "use",
    [
        lambda todo: 3.0 * todo, lambda todo: todo + 1, lambda todo: np.ones(2) * todo,
        lambda todo: torch.ones(2) - todo, lambda todo: torch.clamp(torch.ones(2), todo, 6),
        lambda todo: todo(3), lambda todo: todo.shape, lambda todo: len(todo), lambda todo: todo[0],
    ],
)  # fmt: skip
def test_a_stub_that_was_half_filled_is_no_attempt(use):
    chosen = make(lambda answer: answers.call(answer, 3))
    assert chosen.grade(lambda _: use(answers.TODO)).outcome == NOT_ATTEMPTED
    assert repr(answers.TODO) == "TODO" and not hasattr(answers.TODO, "_repr_html_")


def test_the_interrupt_key_still_interrupts():
    def interrupted(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(lambda answer: answers.call(answer, 3)).grade(interrupted)


def test_text_and_html_say_the_same():
    result = Result("09.1", NOT_YET, "a < b")
    assert str(result) == "09.1 NOT YET: a < b"
    assert "<strong>09.1 NOT YET</strong>: a &lt; b" in result._repr_html_()


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "forgotten return"), ("3", "text"), (True, "True"), (float("nan"), "nan"), ([], "[]")],
)
def test_what_is_no_number_is_named(value, said):
    with pytest.raises(NotYet, match=said.replace("[]", r"\[\]")):
        answers.number(value)


def test_progress_is_remembered():
    for outcome in (NOT_ATTEMPTED, NOT_YET, PASSED, NOT_YET):
        assert exercise.remember("check", "03.1", outcome=outcome)
    exercise.remember("hint", "03.1", number=2)
    exercise.remember("settle", "03.2")
    records, damaged = exercise.recall()
    assert damaged == 0
    assert records["03.1"] == Record(attempts=3, outcome=PASSED, hints=2)
    assert records["03.2"] == Record(settled=True)
    assert exercise.progress_file().name == "ann.jsonl"


@pytest.mark.parametrize(
    "rubbish",
    [b'{"event": "che', b"\xff\xfe\x00", b"[]", b"{}", b"null", b'"x"', b"[" * 100_000,
     b'{"event": "check", "exercise": "03.1", "outcome": "BEST"}',
     b'{"event": "check", "exercise": ["03.1"], "outcome": "PASSED"}',
     b'{"event": "hint", "exercise": "03.1", "number": "x"}'],
)  # fmt: skip
def test_a_damaged_line_costs_itself_alone(rubbish):
    exercise.remember("check", "03.2", outcome=NOT_YET)
    with exercise.progress_file().open("ab") as file:
        file.write(rubbish)  # without an end of line, as an interrupted write leaves it
    exercise.remember("check", "03.1", outcome=PASSED)
    records, damaged = exercise.recall()
    assert damaged == 1
    assert records == {"03.1": Record(1, PASSED), "03.2": Record(1, NOT_YET)}


def test_two_processes_lose_nothing():
    code = (
        "from labutils.lab import exercise\n"
        "for _ in range(200): exercise.remember('check', '03.1', outcome='NOT YET')"
    )
    both = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    records, damaged = exercise.recall()
    assert (records["03.1"].attempts, damaged) == (400, 0)


def test_where_nothing_can_be_written_nothing_breaks(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "file"))
    assert exercise.remember("check", "03.1", outcome=PASSED) is False


def test_a_name_cannot_leave_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_LEARNER", "../../etc/pass wd")
    assert exercise.progress_file().parent == tmp_path / "progress"
    monkeypatch.setenv("LABUTILS_LEARNER", "..")
    assert exercise.progress_file().name == "learner.jsonl"


def test_only_plain_facts_are_stored():
    exercise.remember("check", "03.1", outcome=PASSED)
    entry = json.loads(exercise.progress_file().read_text())
    assert set(entry) == {"event", "exercise", "time", "outcome"}
