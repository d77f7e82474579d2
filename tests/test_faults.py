"""Kills and crowds: no file is left half-written, nobody survives, the next run is right."""

import sys

import pytest
from faults import Ground, everything_is_described

linux = pytest.mark.skipif(sys.platform != "linux", reason="finds processes as Linux shows them")
pytestmark = [pytest.mark.htp, pytest.mark.slow, linux]


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    made = Ground(tmp_path_factory.mktemp("ground"))
    made.complete("journey", "convert")
    return made


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


def test_two_journeys_at_once_finish_and_clear_up(ground):
    ground.strike("journey", "kill")
    said = ground.complete("journey", "journey")
    assert sum("Another journey writes into" in text for text in said) == 1
    ground.complete("convert")
    assert not ground.lost()
    assert not ground.unfinished()
    assert not ground.survivors()
    assert everything_is_described(ground.artifacts)
