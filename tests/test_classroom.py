"""The progress of a room: every learner on one line, whatever their files hold."""

import json
import re

import pytest

from labutils import classroom, exercise, exercises
from labutils.errors import UsageError

PASSED = {"event": "check", "exercise": "03.1", "outcome": "PASSED"}
FAILED = {"event": "check", "exercise": "03.1", "outcome": "NOT YET"}
TAKEN = {"event": "settle", "exercise": "03.1"}


def written(folder, **files):
    for name, events in files.items():
        file = folder / f"{name.replace('__', '/')}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = (event if isinstance(event, str) else json.dumps(event) for event in events)
        file.write_text("\n".join(lines))
    return classroom.read_room(folder)


@pytest.mark.parametrize(
    ("events", "sign"),
    [
        ([PASSED], "P"),
        ([FAILED, PASSED, TAKEN], "P"),  # settle() goes on with one's own answer
        ([FAILED] * 3, "3"),
        ([FAILED] * 12, "9"),
        ([FAILED, TAKEN], "R"),
        ([{**FAILED, "outcome": "NOT ATTEMPTED"}], "-"),
        ([], "-"),
    ],
)
def test_one_character_says_how_far_a_learner_is(tmp_path, events, sign):
    room = written(tmp_path, ann=events)
    assert room.signs("ann")[room.exercises.index("03.1")] == sign
    assert set(room.signs("ann")) <= {sign, "-"}


def test_every_learner_has_one_line_on_80_columns(tmp_path):
    everything = [{**PASSED, "exercise": one.id} for one in exercises.everything()]
    room = written(tmp_path, ann=[FAILED, "broken"], a_name_that_is_very_long=everything)
    first, *lines = str(room).splitlines()
    assert first.split() == [f"{number:02}" for number in range(9)]
    assert all(len(line) <= 80 for line in [first, *lines])
    names, (*_, legend, damaged) = [line.split()[:2] for line in lines[:3]], lines
    assert names == [["learner", "passed"], ["…_is_very_long", str(len(everything))], ["ann", "0"]]
    assert legend == classroom.LEGEND and damaged == "Damaged lines, left out: ann 1."
    assert "".join(lines[1].split()[2:]) == "P" * len(everything)
    column = str(room).splitlines()[3].index("1", 10)  # below notebook 03, exercise 1
    assert first[column : column + 2] == "03" and lines[0][column] == "1"


def test_the_same_name_twice_is_told_apart_by_its_folder(tmp_path):
    room = written(tmp_path, ann=[PASSED], x__eve=[PASSED], y__eve=[])
    assert {name: room.passed(name) for name in room.learners} == {"ann": 1, "x/eve": 1, "y/eve": 0}


def test_html_escapes_and_says_the_same(tmp_path):
    shown = written(tmp_path, **{"<b>": [PASSED, {**PASSED, "exercise": "09.1"}]})._repr_html_()
    assert "&lt;b&gt;" in shown and "<b>" not in shown
    assert (
        len(re.findall("<td[^>]*>P</td>", shown)) == 2
        and "09.1" in shown
        and classroom.LEGEND in shown
    )


def test_json_keeps_what_one_character_cannot_say(tmp_path):
    room = written(
        tmp_path, ann=[FAILED, {"event": "hint", "exercise": "03.1", "number": 2}, TAKEN]
    )
    assert json.loads(json.dumps(room.to_dict())) == {
        "ann": {
            "passed": 0,
            "damaged lines": 0,
            "03.1": {"attempts": 1, "outcome": "NOT YET", "hints": 2, "settled": True},
        }
    }


def test_a_room_without_files_says_what_to_do(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="collect them"):
            classroom.read_room(folder)


def test_a_room_may_share_one_progress_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_PROGRESS", str(tmp_path / "room"))
    for name in ("ann", "bo"):
        monkeypatch.setenv("LABUTILS_LEARNER", name)
        assert exercise.remember("check", "02.2", outcome=exercise.PASSED)
    assert list(classroom.read_room(tmp_path / "room").learners) == ["ann", "bo"]
