"""Answers outside the catalogues: every right one passes, every wrong one is told what is wrong."""

import re
import signal
import threading

import answers
import numpy as np
import pytest
import torch

from labutils.lab import answer, exercises
from labutils.lab.answer import NotYet
from labutils.lab.exercise import NOT_YET

ALL = exercises.everything()
each = pytest.mark.parametrize("chosen", ALL, ids=[e.id for e in ALL])
EXCEPTION = re.compile(
    r"\b[A-Z]\w+(Error|Exception|Iteration)\b|\braised\b|cannot be used|Traceback"
)


def test_every_exercise_has_both_generators():
    assert answers.covered() == {e.id for e in ALL} == set(answers.DECISIVE)


@each
def test_right_answers_of_another_kind_pass(chosen):
    drawn = answers.right_answers(chosen.id)
    assert len({name for name, _ in drawn}) == len(drawn) >= 3
    refused = {
        name: result.message for name, given in drawn if not (result := chosen.grade(given)).passed
    }
    assert refused == {}


@each
def test_mutations_of_the_reference_are_told_what_is_wrong(chosen):
    drawn = answers.wrong_answers(chosen.id)
    assert len({name for name, *_ in drawn}) == len(drawn) >= 5
    problems = {}
    for name, given, said in drawn:
        result = chosen.grade(given)
        if result.outcome != NOT_YET:
            problems[name] = str(result)
        elif EXCEPTION.search(result.message):
            problems[name] = f"the text of an exception: {result.message}"
        elif said not in result.message:
            problems[name] = f"{said!r} is not in: {result.message}"
        elif found := answers.leaks(chosen, result.message, str(given)):
            problems[name] = f"{found} in: {result.message}"
    assert problems == {}


def test_the_words_of_an_exception_are_seen():
    assert EXCEPTION.search("your function raised KeyError: 'k'")
    assert EXCEPTION.search("your answer cannot be used: AttributeError")
    assert not EXCEPTION.search("an error is a distance: it is not negative.")


def test_another_seed_draws_other_answers():
    names = [{name for name, *_ in answers.wrong_answers("05.1", seed)} for seed in range(6)]
    assert any(names[0] != other for other in names)


def endless():
    while True:
        pass


def test_an_answer_that_never_ends_is_stopped(monkeypatch):
    monkeypatch.setattr(answer, "LIMIT_S", 0.05)
    with pytest.raises(NotYet, match=r"stopped after 0\.05 seconds"):
        answer.call(endless)
    with pytest.raises(NotYet, match="your function was stopped"):  # also within another call
        answer.call(lambda: answer.call(endless))


def test_it_is_stopped_where_the_process_ignores_interrupts_and_that_stays_so(monkeypatch):
    monkeypatch.setattr(answer, "LIMIT_S", 0.05)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell starts a job with &
    try:
        with pytest.raises(NotYet, match="stopped after"):
            answer.call(endless)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_answer_in_time_is_not_stopped_later(monkeypatch):
    monkeypatch.setattr(answer, "LIMIT_S", 1.0)  # a busy machine may take a tenth of a second
    assert answer.call(lambda: 3) == 3
    waited = threading.Event()
    assert not waited.wait(1.5)  # an interrupt would end this


def test_the_learners_own_interrupt_is_theirs():
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer.call(interrupted)


def test_an_answer_that_calls_itself_gets_words():
    def again(x):
        return again(x)

    with pytest.raises(NotYet, match="calls itself"):
        answer.call(again, 3)


def _graph():
    from onnx import helper

    return helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", [], [])


@pytest.mark.parametrize(
    ("given", "change", "word"),
    [
        (np.ones(3), lambda x: x.__setitem__(1, np.nan), "array"),
        (np.ones(4), lambda x: x.resize((2, 2), refcheck=False), "array"),
        (torch.ones(3), lambda x: x.add_(1), "tensor"),
        (torch.ones(3, requires_grad=True) * 1, lambda x: x.mul_(2), "tensor"),
        ([3, 1], lambda x: x.sort(), "list"),
        ([("a", np.ones(2))], lambda x: x[0][1].fill(0), "list"),
        ({"a": 1, "b": 2}, lambda x: x.update(a=x.pop("a")), "dictionary"),
        (_graph(), lambda x: x.node[0].input.append("c"), "graph"),
    ],
)
def test_what_writes_into_its_input_is_told(given, change, word):
    with pytest.raises(
        NotYet, match=f"writes into its input; everything else that reads that {word}"
    ):
        answer.call(lambda x: [change(x), 1][1], given)
    answer.call(lambda x: 1, given)


class Hostile(BaseException):
    def __str__(self):
        raise KeyboardInterrupt


class Unspeakable:
    def __repr__(self):
        raise KeyboardInterrupt


def raises(error):
    raise error


@pytest.mark.parametrize("error", [GeneratorExit(), BaseException(), Hostile(), SystemExit(3)])
def test_whatever_an_answer_raises_is_an_outcome(error):
    result = exercises.find("00.1").grade(lambda *_: raises(error))
    assert result.outcome == NOT_YET and type(error).__name__ in result.message


def test_an_answer_that_cannot_be_shown_is_an_outcome():
    assert exercises.find("00.1").grade(lambda *_: Unspeakable()).outcome == NOT_YET


def test_messages_of_a_check_do_not_command_the_terminal():
    result = exercises.find("00.1").grade(lambda *_: raises(ValueError("\ud800\x1b[2J")))
    assert "\x1b" not in str(result)
    str(result).encode("utf-8")


def test_an_answer_does_not_change_the_default_dtype():
    exercises.find("00.1").grade(lambda *_: torch.set_default_dtype(torch.float64))
    assert torch.get_default_dtype() == torch.float32
