"""Bad input ends in one typed error, exit code 1 or 2, in little time and memory, and no file."""

import re

import bad_files
import pytest

TIME_LIMIT_S, MEMORY_LIMIT_MIB = 60, 2048  # of processor time; idle, none takes 10
# Well-formed ONNX that a table can judge: nothing about them is an error before they run.
JUDGED = {
    "opset 6", "unknown domain", "domain not imported", "unknown operator", "two inputs",
    "input without a shape", "dynamic side", "five axes", "four channels", "oblong input",
    "zero side", "negative side", "string input", "double input", "int64 input", "NaN weights",
    "infinite weights", "zero weights", "weight of another shape", "double weights", "bad reshape",
    "no inputs",
    "sequence output", "script in a name", "line break in a name", "deep chain",
}  # fmt: skip
RUNS = {
    "opset 6", "zero weights", "script in a name", "line break in a name", "oblong input",
    "deep chain", "double input", "double weights",  # float64 is computed in float32, and said
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Name -> what the call ended in; a call that kills the process is an outcome as well."""
    folder = tmp_path_factory.mktemp("bad")
    calls = bad_files.build(folder)
    before = {path for path in folder.rglob("*") if path.is_file()} | {folder / "calls.json"}
    found = bad_files.run(folder, calls)
    made = {path for path in folder.rglob("*") if path.is_file()} - before
    return found, made


def judged(name):
    what, _, call = name.partition(": ")
    return (call == "diagnose" and what in JUDGED) or (
        call in ("run", "convert", "quantize")
        and what in RUNS
        and (what != "opset 6" or call == "run")
    )


@pytest.mark.slow
@pytest.mark.htp
def test_every_bad_input_is_one_typed_error(outcomes):
    found, _ = outcomes
    assert len(found) > 200
    wrong = {}
    for name, outcome in found.items():
        allowed = (0, 1, 2) if judged(name) else (1, 2)
        if outcome["code"] not in allowed or not bad_files.well_told(outcome):
            wrong[name] = (outcome["code"], outcome["said"][:300])
    assert not wrong


@pytest.mark.slow
@pytest.mark.htp
def test_none_takes_long_or_much(outcomes):
    found, _ = outcomes
    assert {n: o["seconds"] for n, o in found.items() if o["seconds"] > TIME_LIMIT_S} == {}
    assert max(outcome["peak_mib"] for outcome in found.values()) < MEMORY_LIMIT_MIB


@pytest.mark.slow
@pytest.mark.htp
def test_nothing_is_left_half_written(outcomes):
    _, made = outcomes
    whole = re.compile(
        r"(zero weights|oblong input|deep chain|double \w+)\.dlc(\.json|\.manifest\.json)?|.*\.npy"
        r"|(zero weights|oblong input|deep chain|double \w+|.* in a name)\.onnx"
        r"(\.manifest\.json|\.quantization\.yaml)?"
    )
    assert [str(path) for path in made if not whole.fullmatch(path.name)] == []
