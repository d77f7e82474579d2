"""The progress of a room: every learner on one line, whatever their files hold."""

import json
import os
import re
import socket
import stat
import threading
from pathlib import Path

import pytest

from labutils import __main__
from labutils.errors import UsageError
from labutils.lab import classroom, exercise, exercises, progress

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
    assert first.split() == [f"{number:02}" for number in range(13)]
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


def check(**changes):
    return json.dumps({**PASSED, **changes})


HINT = {"event": "hint", "exercise": "03.1"}
DAMAGED = {
    "infinite": '{"event": "hint", "exercise": "03.1", "number": Infinity}',
    "beyond a float": '{"event": "hint", "exercise": "03.1", "number": 1e999}',
    "not a number": '{"event": "hint", "exercise": "03.1", "number": NaN}',
    "negative": json.dumps({**HINT, "number": -1}),
    "huge": json.dumps({**HINT, "number": 10**30}),
    "digits without end": '{"event": "hint", "exercise": "03.1", "number": ' + "9" * 5000 + "}",
    "a boolean": json.dumps({**HINT, "number": True}),
    "text": json.dumps({**HINT, "number": "2"}),
    "a list": json.dumps({**HINT, "number": [2]}),
    "nothing": json.dumps({**HINT, "number": None}),
    "nested": "[" * 100_000,
    "nested and closed": '{"event": ' + "[" * 500 + "]" * 500 + "}",
    "an outcome of another type": check(outcome=["PASSED"]),
    "an exercise of another type": check(exercise=3.1),
    "an exercise that commands the terminal": check(exercise="\x1b]0;pwned\x07\x1b[2J"),
    "an exercise as long as a book": check(exercise="03." + "1" * 10_000),
    "NUL": "\0\0\0",
    "no object": "[]",
}


@pytest.mark.parametrize("line", DAMAGED.values(), ids=DAMAGED)
def test_whatever_a_line_holds_costs_itself_alone(line, tmp_path):
    room = written(tmp_path, ann=[PASSED], eve=[PASSED, line, {**PASSED, "exercise": "03.2"}])
    assert room.passed("ann") == 1 and room.passed("eve") == 2
    assert room.learners["eve"][1] == 1
    assert room.exercises == tuple(one.id for one in exercises.everything())
    assert "\x1b" not in str(room)


def fifo(path):
    os.mkfifo(path)


def endless(path):
    path.symlink_to("/dev/zero")


def loop(path):
    path.symlink_to(path.name)


def outside(path):
    path.symlink_to(path.parent.parent / "elsewhere.jsonl")


def listening(path):
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path must be short
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(here)


def device(path):
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # zero
    except PermissionError:
        pytest.skip("only root makes devices")


def gigabytes(path):
    with path.open("wb") as file:
        file.truncate(10**12)


def many_lines(path):
    path.write_text("\n" * 100_000)


STRANGE = [fifo, endless, loop, outside, listening, device, gigabytes, many_lines]
posix = pytest.mark.skipif(os.name != "posix", reason="files that only POSIX has")


@posix
@pytest.mark.parametrize("make", [*STRANGE, os.mkdir])
def test_one_bad_file_costs_only_itself_and_is_named(make, tmp_path):
    (tmp_path / "elsewhere.jsonl").write_text(check())
    folder = tmp_path / "room"
    folder.mkdir()
    make(folder / "eve.jsonl")
    room = written(folder, ann=[PASSED], bo=[FAILED])
    assert list(room.learners) == ["ann", "bo"] and room.passed("ann") == 1
    assert list(room.left_out) == ["eve.jsonl"]
    (line,) = [line for line in str(room).splitlines() if line.startswith("Left out: ")]
    assert line.startswith("Left out: eve.jsonl: ") and str(tmp_path) not in line
    assert room.to_dict()["left out"] == room.left_out
    assert "eve.jsonl" in room._repr_html_()


@posix
def test_all_bad_files_at_once_and_the_command_still_shows_the_others(tmp_path, capsys):
    (tmp_path / "elsewhere.jsonl").write_text(check())
    folder = tmp_path / "room"
    folder.mkdir()
    for make in STRANGE:
        make(folder / f"{make.__name__}.jsonl")
    (folder / "\x1b]0;pwned\x07\x1b[2J\u202egnp.jsonl").write_bytes(
        b"\xff\xfe\n" + check().encode()
    )
    (folder / os.fsdecode(b"\xff.jsonl")).write_text(check())
    (folder / "ann.jsonl").write_text(check())
    assert __main__.main(["room", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.count("Left out: ") == len(STRANGE)
    assert not [c for c in said if not c.isprintable() and c != "\n"]
    assert any(line.split()[:2] == ["ann", "1"] for line in said.splitlines())
    assert __main__.main(["room", str(folder), "--json"]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_exercises_that_the_lab_does_not_have_do_not_fill_the_page(tmp_path):
    invented = [{**PASSED, "exercise": f"{i}.{j}"} for i in range(20, 99) for j in range(9)]
    room = written(tmp_path, ann=[PASSED], eve=invented)
    assert len(room.exercises) <= len(exercises.everything()) + 9
    assert "Not shown: 702 exercises that this lab does not have." in str(room)


def test_a_file_that_grows_while_it_is_read_is_read(tmp_path):
    file, stop = tmp_path / "ann.jsonl", threading.Event()
    file.write_text(check())

    def grow():
        while not stop.is_set():
            with file.open("a") as opened:
                opened.write(f"\n{check()}\n{check()[:20]}")

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        rooms = [classroom.read_room(tmp_path) for _ in range(5)]
    finally:
        stop.set()
        writer.join()
    assert all(room.passed("ann") == 1 for room in rooms if room.learners)


@posix
@pytest.mark.parametrize("make", [*STRANGE, os.mkdir])
def test_a_learners_own_progress_survives_any_file_of_that_name(make, tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_PROGRESS", str(tmp_path / "room"))
    monkeypatch.setenv("LABUTILS_LEARNER", "ann")
    (tmp_path / "elsewhere.jsonl").write_text("mine")
    (tmp_path / "room").mkdir()
    make(tmp_path / "room" / "ann.jsonl")
    shown = str(progress.show_progress())
    assert "The progress file was not read: " in shown and "0 of " in shown
    if make not in (gigabytes, many_lines):  # those may still be written to
        assert not exercise.remember("check", "03.1", outcome=exercise.PASSED)
    assert (tmp_path / "elsewhere.jsonl").read_text() == "mine"


def test_a_learners_name_takes_one_line(tmp_path):
    for name in ("a\nb", "a\tb", "\u0663"):
        (tmp_path / f"{name}.jsonl").write_text(
            json.dumps({"exercise": "03.1", "event": "attempt", "outcome": "PASSED"}) + "\n"
        )
    room = classroom.read_room(tmp_path)
    lines = [line for line in str(room).splitlines() if line.startswith("a")]
    assert len(lines) == 2 and not any("\t" in line for line in lines)
