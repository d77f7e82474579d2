"""Kills and crowds: no file is left half-written, nobody survives, the next run is right."""

import sys

import pytest
from faults import Ground, everything_is_described

linux = pytest.mark.skipif(sys.platform != "linux", reason="finds processes as Linux shows them")
pytestmark = [pytest.mark.htp, pytest.mark.slow, linux]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    made = Ground(tmp_path_factory.mktemp("ground"))
    made.first = made.complete("journey", "journey")
    made.complete("convert")
    return made


def test_two_journeys_at_once_take_turns_and_finish(ground):
    assert sum("Another journey is writing into" in said for said in ground.first) == 1
    assert not ground.lost()
    assert everything_is_described(ground.artifacts)


@pytest.mark.parametrize(
    ("command", "how"),
    [
        ("journey", "kill"),
        ("journey", "kill a worker"),
        ("journey", "terminate"),
        ("convert", "kill"),
    ],
)
def test_a_struck_run_loses_nothing(command, how, ground):
    struck = ground.strike(command, how)
    assert not struck.lost
    assert not struck.survivors


def test_the_next_run_completes_and_clears_up(ground):
    ground.complete("journey", "convert")
    assert not ground.lost()
    assert not ground.unfinished()
    assert not ground.survivors()
    assert everything_is_described(ground.artifacts)


@pytest.mark.sweep
def test_fifty_points(ground):
    for _ in range(50):
        struck = ground.strike(ground.chance.choice(["journey", "convert"]))
        assert not struck.lost
        assert not struck.survivors
    ground.complete("journey", "convert")
    assert not ground.lost() + ground.unfinished()
    assert everything_is_described(ground.artifacts)
