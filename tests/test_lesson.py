"""What a notebook imports: starting, checking, settling, wanted failures."""

import os
import subprocess
import sys

import pytest

from labutils import paths
from labutils.errors import LabError, TranslationError, UnknownNameError, UsageError
from labutils.images import own_image
from labutils.lab import artifacts, exercise, exercises, lesson, recorded
from labutils.lab.exercise import PASSED, TODO, UnsolvedError
from labutils.lab.lesson import ExpectationError, check, expect_failure, given, hint, settle
from labutils.machine import doctor
from labutils.models import zoo

OPSET = exercises.find("02.2")
RIGHT = OPSET.value(OPSET.reference)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """Progress of tests is nobody's; the images stay cached where they are."""
    file = tmp_path / "progress" / "ann.jsonl"
    monkeypatch.setattr(exercise, "progress_file", lambda: file)
    monkeypatch.setattr(lesson, "_passed", {})


def test_check_settle_with_ones_own_answer(capsys):
    assert check("02.2", RIGHT).passed
    assert settle("02.2") is RIGHT
    assert "your own" in capsys.readouterr().out


def test_a_check_speaks_wherever_it_stands(capsys):
    check("02.2", lambda _: 17)
    assert capsys.readouterr().out.startswith("02.2 NOT YET: your function gives 17 for every")
    code = (
        "from IPython.testing.globalipapp import start_ipython\n"
        "shell = start_ipython()\n"
        "shell.run_cell(\"from labutils.lab.lesson import TODO, check\\ncheck('02.2', TODO)\")"
    )
    environment = {**os.environ, "LABUTILS_PROGRESS": os.devnull}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.count("NOT ATTEMPTED") == 1, done.stdout  # once, though it ends the cell


def test_the_reference_can_be_read_and_that_is_noted():
    shown = lesson.Lesson("02").solution("02.2")
    assert OPSET.value(shown)("HardSwish") == 14
    records, _ = exercise.recall(exercise.progress_file())
    assert records["02.2"].settled


def test_settle_says_when_it_takes_the_reference(capsys):
    check("02.2", TODO)
    assert settle("02.2")("HardSwish") == 14
    assert "reference solution, not with yours" in capsys.readouterr().out
    check("02.2", RIGHT)
    check("02.2", lambda _: 14)  # made worse again
    settle("02.2")
    assert "reference" in capsys.readouterr().out


@pytest.mark.parametrize("answer", [TODO, 14, "thirteen"])
def test_strict_means_everything_unsolved_is_red(monkeypatch, answer):
    monkeypatch.setenv("LABUTILS_STRICT", "1")
    with pytest.raises(UnsolvedError, match=r"02\.2"):
        check("02.2", answer)
    with pytest.raises(UnsolvedError, match="no answer has passed"):
        settle("02.2")
    assert check("02.2", RIGHT).outcome == PASSED
    assert settle("02.2") is RIGHT
    assert issubclass(UnsolvedError, LabError)


def test_hints():
    assert str(hint("02.2", 1)).startswith("02.2, hint 1 of 3: ")
    assert hint("02.2", 1).text != hint("02.2", 3).text
    with pytest.raises(UsageError, match="1 to 3"):
        hint("02.2", 4)


def test_given_is_what_is_graded():
    log = given("02.1")
    assert check("02.1", next(i for i, line in enumerate(log) if "ERROR" in line)).passed
    with pytest.raises(UsageError, match="nothing out"):
        given("02.2")
    with pytest.raises(UnknownNameError):
        given("99.1")


def test_progress_lists_what_was_shown():
    check("02.2", RIGHT)
    check("02.1", 0)
    hint("02.1", 2)
    settle("02.1")
    shown = lesson.show_progress("02")
    assert shown.shown == ("tell which editions of ONNX know an operator",)
    assert "NOT YET (1 attempt, hint 2, reference taken)" in str(shown)
    assert "1 of 4 exercises passed." in str(shown)
    assert "1 of 4 exercises passed." in shown._repr_html_()
    assert len(lesson.show_progress().rows) > len(shown.rows)
    with pytest.raises(UnknownNameError):
        lesson.show_progress("2")


def test_unsaved_progress_is_said(monkeypatch):
    monkeypatch.setattr(exercise, "remember", lambda *_, **__: False)
    result = check("02.2", RIGHT)
    assert result.passed
    assert "could not be saved" in result.message


def test_a_wanted_failure_is_green_and_told(capsys):
    with expect_failure(contains="No translation registered") as failure:
        raise TranslationError("No translation registered for onnx_hardswish.\nmore", node="n")
    assert failure.text.startswith("TranslationError: No translation")
    assert failure.error.node == "n"
    out = capsys.readouterr().out
    assert " ".join(out.split()) == (
        "Failed, as expected: TranslationError: No translation registered for onnx_hardswish."
    )
    assert max(map(len, out.splitlines())) <= 80  # a narrow JupyterLab breaks inside words


def test_success_is_red():
    wanted = pytest.raises(ExpectationError, match="expected to fail with 'disk full'")
    with wanted, expect_failure(contains="disk full"):
        pass


def test_another_failure_is_red_and_keeps_its_own_type():
    with pytest.raises(ZeroDivisionError) as caught, expect_failure(contains="disk full"):
        1 / 0  # noqa: B018
    assert "disk full" in caught.value.__notes__[0]


def test_the_interrupt_key_is_no_expected_failure():
    with pytest.raises(KeyboardInterrupt), expect_failure(contains="Key"):
        raise KeyboardInterrupt("Key")


@pytest.mark.parametrize("nothing", ["", "  ", None])
def test_expecting_nothing_in_particular_is_refused(nothing):
    with pytest.raises(UsageError, match="words to look for"):
        expect_failure(contains=nothing)


def test_importing_is_light():
    heavy = "{'torch', 'torchvision', 'onnx', 'onnxruntime', 'matplotlib', 'pandas'}"
    code = f"import sys, labutils.lab.lesson; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_notebook():
    with pytest.raises(UnknownNameError):
        lesson.start("3")


def begin(monkeypatch, notebook, **options):
    """Start at 64 px with the small network; the probe of the machine has its own tests."""
    finding = doctor.Finding("adb", False, "not on PATH", "Optional.")
    monkeypatch.setattr(doctor, "examine", lambda: doctor.Diagnosis((finding,)))
    said = []
    settings = {"model": "mobilenet_v3_small", "weights": "random", "size": 64, **options}
    return lesson.start(notebook, echo=said.append, **settings), "\n".join(said)


@pytest.mark.slow
def test_start_makes_what_is_missing_and_loads_it_the_next_time(monkeypatch, tmp_path):
    import random

    monkeypatch.setenv("LABUTILS_GENERATED", str(tmp_path))
    lesson._passed["04.1"] = "of an earlier run"
    begun, said = begin(monkeypatch, "05")
    first = random.random()
    patched = begun.files["patched"]
    assert "Making 03_mobilenet_v3_small_patched.onnx (it is not there)" in said
    assert "absent    adb" in said
    assert patched.is_file()
    begun, said = begin(monkeypatch, "04")
    assert "Loaded 03_mobilenet_v3_small_patched.onnx" in said
    assert "Making 01_mobilenet_v3_small_opset13.onnx" in said
    assert random.random() == first
    assert lesson._passed == {}
    patched.write_bytes(patched.read_bytes() + b" ")
    assert "was changed" in artifacts.problem(patched, begun.model)
    begun.keep("patched", opset=17)
    assert artifacts.problem(patched, begun.model) == ""
    paths.write_text(patched.with_name(patched.name + ".manifest.json"), "{")
    assert "damaged manifest" in artifacts.problem(patched, begun.model)


def test_notebook_00_needs_no_model(monkeypatch):
    begun, said = begin(monkeypatch, "00")
    assert begun.model is None
    assert repr(begun) == "Lesson 00: no files"
    assert "seed 0" in said
    with pytest.raises(UsageError, match="without a model"):
        begun.path("int8")


def test_the_capability_table_has_three_states(monkeypatch):
    findings = (
        doctor.Finding("Python", True, "3.11"),
        doctor.Finding("Qualcomm QNN", False, "no wheel", "Everything else works."),
        doctor.Finding("adb", False, "not on PATH", "Optional."),
    )
    monkeypatch.setattr(doctor, "examine", lambda: doctor.Diagnosis(findings))
    monkeypatch.setattr(recorded, "at_hand", lambda: True)
    said = []
    lesson._say_capabilities(said.append, fully=True)
    assert said == [
        "Python        present   3.11",
        "Qualcomm QNN  recorded  no wheel. Everything else works.",
        "adb           absent    not on PATH. Optional.",
    ]
    said.clear()
    lesson._say_capabilities(said.append, fully=False)
    assert said == ["  present   Python", "  recorded  Qualcomm QNN", "  absent    adb"]


def test_artifacts_of_other_weights_are_made_again(monkeypatch, tmp_path):
    monkeypatch.setenv("LABUTILS_GENERATED", str(tmp_path))
    _, said = begin(monkeypatch, "02")
    assert "Making 01_mobilenet_v3_small_opset13.onnx (it is not there)" in said
    _, said = begin(monkeypatch, "02", weights="things16")
    assert "opset13.onnx (the one there belongs to another network, SHA-256" in said
    _, said = begin(monkeypatch, "02", weights="things16")
    assert "Making" not in said


def test_own_image_follows_the_model(monkeypatch, tmp_path):
    monkeypatch.setenv("LABUTILS_GENERATED", str(tmp_path))
    begun, _ = begin(monkeypatch, "01")
    image = begun.own_image()
    assert image.images.shape == (1, 64, 64, 3)
    assert own_image.DEFAULT in image.source
    assert image.classes == begun.model.classes


def test_on_htp_says_which_weights_were_at_work(monkeypatch, tmp_path):
    begin(monkeypatch, "01")
    asked = {}
    monkeypatch.setattr(recorded, "run", lambda key, step, *args, **said: asked.update(said))
    lesson.on_htp("01.step", len, "x")
    assert asked["network"].words == "mobilenet_v3_small, weights random (no checkpoint)"
    assert asked["network"].recipes == {}
    another = zoo.load("mobilenet_v3_small", "things16")
    lesson.on_htp("01.step", len, "x", model=another)
    assert asked["network"].words == "mobilenet_v3_small, weights things16"
    assert asked["network"].sha256 == another.sha256
