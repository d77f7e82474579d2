"""Answers outside the catalogues: every right one passes, every wrong one is told what is wrong."""

import re
import threading
import time

import pytest

import answers
from labutils import answer, exercises
from labutils.exercise import NOT_YET

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
