"""Every exercise: the reference passes, others pass, wrong answers get their own message."""

import inspect
import re

import numpy as np
import pytest
from answers import catalogue, leaks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labutils import paths
from labutils.errors import UnknownNameError
from labutils.lab import exercise, exercises
from labutils.lab.exercise import NOT_ATTEMPTED, NOT_YET, PASSED, TODO

ALL = exercises.everything()
each = pytest.mark.parametrize("chosen", ALL, ids=[e.id for e in ALL])
RIGHT, WRONG = catalogue.right_cases(), catalogue.wrong_cases()


def test_every_notebook_has_its_exercises_of_rising_difficulty():
    for notebook in exercises.NOTEBOOKS:
        found = exercises.of(notebook)
        warm_up = notebook < "02"
        assert len(found) >= (1 if warm_up else 3)
        assert [e.id for e in found] == [f"{notebook}.{n}" for n in range(1, len(found) + 1)]
        ranks = [exercise.DIFFICULTIES.index(e.difficulty) for e in found]
        assert ranks == sorted(ranks)
        assert [e.difficulty for e in found].count("stretch") == (not warm_up)
    assert exercises.of("99") == ()


def test_an_unknown_exercise_gets_a_suggestion():
    with pytest.raises(UnknownNameError, match=r"03\.1"):
        exercises.find("03.11")


@each
def test_the_reference_passes(chosen):
    result = chosen.grade(chosen.value(chosen.reference))
    assert (result.outcome, result.message) == (PASSED, chosen.praise)


@each
def test_the_stub_is_not_attempted(chosen):
    assert chosen.grade(chosen.value(chosen.stub)).outcome == NOT_ATTEMPTED
    assert chosen.grade(TODO).outcome == NOT_ATTEMPTED
    assert chosen.grade(...).outcome == NOT_ATTEMPTED


@each
def test_stub_and_reference_take_the_same_arguments(chosen):
    stub, reference = chosen.value(chosen.stub), chosen.value(chosen.reference)
    assert callable(stub) <= callable(reference)
    if callable(stub):
        assert inspect.signature(stub) == inspect.signature(reference)


@pytest.mark.parametrize("case", RIGHT, ids=[case.id for case in RIGHT])
def test_other_right_answers_pass(case):
    result = exercises.find(case.id).grade(case.answer())
    assert result.passed, result.message


@pytest.mark.parametrize("case", WRONG, ids=[case.id for case in WRONG])
def test_a_wrong_answer_gets_its_sentence(case):
    result = exercises.find(case.id).grade(case.answer())
    assert (result.outcome, result.message) == (NOT_YET, case.sentence)


@each
def test_the_catalogue_is_complete(chosen):
    right = [case.source for case in catalogue.right_cases(chosen.id)]
    assert len(set(right)) == len(right) >= 2
    sentences = [case.sentence for case in catalogue.wrong_cases(chosen.id)]
    assert len(sentences) == len(set(sentences)) >= 3
    assert len(set(chosen.hints)) == 3
    assert "TODO" in chosen.stub
    assert "TODO" not in chosen.reference


@each
def test_no_message_gives_the_answer_away(chosen):
    for case in catalogue.wrong_cases(chosen.id):
        assert leaks(chosen, case.sentence, case.source) == []
    assert leaks(chosen, str(chosen.grade("something else"))) == []
    assert leaks(chosen, str(chosen.grade(-1))) == []


def test_the_leak_test_can_see_a_leak():
    assert leaks(exercises.find("02.1"), "it is line 15, of course")
    assert leaks(exercises.find("04.2"), "otter.dlc passes")
    assert leaks(exercises.find("03.1"), "write return (x + 3).clamp(0, 6) / 6")


def test_the_instructors_page_quotes_what_the_checks_say():
    page = (paths.ROOT / "notebooks/INSTRUCTOR.md").read_text(encoding="utf-8")
    rows = re.findall(r'^\| (\d\d\.\d) \| (\d+) \| "([^|]+)" \|', page, re.MULTILINE)
    assert len(rows) >= len(ALL) - 2
    for id, minutes, quoted in rows:
        chosen = exercises.find(id)
        assert int(minutes) == chosen.minutes
        assert any(quoted in case.sentence for case in catalogue.wrong_cases(id)), (id, quoted)


@pytest.mark.parametrize("off", [1e-5, -1e-5])
def test_a_small_error_is_an_error(off):
    chosen = exercises.find("03.1")
    assert chosen.grade(lambda x: (x + 3).clamp(0, 6) / 6 + off).outcome == NOT_YET
    assert exercises.find("03.2").grade(9.98e-4 * (1 + 5e3 * off)).outcome == NOT_YET


def test_a_learner_who_changes_pytorch_does_not_harm_the_others():
    import torch

    before = torch.nn.Hardswish.forward, torch.nn.functional.hardswish
    cases = catalogue.wrong_cases("03.4")
    harmful = next(case for case in cases if "nn.Hardswish.forward" in case.source)
    assert exercises.find("03.4").grade(harmful.answer()).outcome == NOT_YET
    assert (torch.nn.Hardswish.forward, torch.nn.functional.hardswish) == before


def test_what_is_handed_out_is_the_same_every_time():
    for chosen in ALL:
        if chosen.given is not None:
            assert repr(chosen.given()) == repr(chosen.given())


class Hostile:
    """Raises whatever is asked of it."""

    def _no(self, *_, **__):
        raise RuntimeError("no")

    __repr__ = __str__ = __eq__ = __len__ = __iter__ = __float__ = __bool__ = __array__ = _no
    __call__ = __lt__ = __index__ = __getitem__ = __neg__ = __hash__ = _no

    @property
    def shape(self):
        raise KeyError("shape")

    @property
    def item(self):
        raise ValueError("item")


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("nothing to say")


def _raising(error):
    def function(*_):
        raise error

    return function


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(),
    st.complex_numbers(), st.lists(st.integers(), max_size=3), st.tuples(st.floats(), st.text()),
    st.dictionaries(st.text(max_size=3), st.none(), max_size=2), st.sets(st.integers(), max_size=3),
    st.builds(Hostile), st.just(Hostile), st.builds(lambda: np.array([None, "x"], object)),
    st.just(np.array(3)), st.just(np.zeros((0,))), st.just(np.full(4, np.nan)), st.just(10**400),
    st.builds(lambda: iter([TODO])), st.just([TODO, 3]), st.just((1, ...)), st.just(range(3)),
)  # fmt: skip
ERRORS = (KeyError("k"), SystemExit(3), Unspeakable(), RecursionError("deep"), StopIteration())
ANSWERS = st.one_of(
    VALUES,
    VALUES.map(lambda value: lambda *_: value),
    st.sampled_from([_raising(error) for error in ERRORS]),
    st.sampled_from([len, int, print, lambda: 3, lambda x: x, lambda a, b: a]),
)


@each
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(answer=ANSWERS)
def test_no_answer_makes_a_check_raise(chosen, answer):
    result = chosen.grade(answer)
    assert result.outcome in exercise.OUTCOMES
    assert result.message
    assert str(result) and result._repr_html_()
