"""A .tflite on a phone, against the fake adb of test_phone: benchmark_model is a stand-in, too."""

import os

import pytest
import tflite_files
from test_phone import ADB, SERIAL, Phone, program

from labutils.errors import MissingToolError, ModelFileError, UsageError
from labutils.runtime.adb import DeviceError, PhoneRunError
from labutils.runtime.litert import phone

pytestmark = pytest.mark.litert
BENCHMARK = """
import json, os, pathlib, sys
options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
facts = json.loads((pathlib.Path(os.environ["FAKE_PHONE"]) / "facts.json").read_text())
assert pathlib.Path(options["graph"]).read_bytes()[4:8] == b"TFL3"
assert options["warmup_runs"] == "5"
if facts.get("crash"):
    print("ERROR: Failed to apply GPU delegate.", file=sys.stderr)
    sys.exit(1)
if "use_gpu" in options:
    print("INFO: Explicitly applied GPU delegate, and the model graph will be partially executed")
if not facts.get("silent"):
    each = 4000 / int(options["num_threads"])
    print(f"INFO: Inference timings in us: Init: 9, Inference (avg): {each:g}")
"""


@pytest.fixture
def attached(tmp_path, monkeypatch):
    home = tmp_path / "phone"
    home.mkdir()
    program(tmp_path / "tools" / "adb", ADB)
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_PHONE", str(home))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    return Phone(home)


@pytest.fixture
def benchmark_model(tmp_path):
    file = tmp_path / "from google" / "benchmark model"
    program(file, BENCHMARK)
    return file


@pytest.fixture
def file(tmp_path):
    return tflite_files.network(tmp_path / "my net.tflite", tflite_files.small_network())


def test_the_plan_needs_neither_phone_nor_file_and_shows_every_command(monkeypatch):
    monkeypatch.setenv("PATH", "")
    made = phone.plan("later.tflite", "benchmark_model", threads=4, delegate="gpu")
    text, markup = str(made), made._repr_html_()
    assert "Not run on a phone by us" in text and "Not run on a phone by us" in markup
    assert text.count("\nadb ") == len(made.steps) == 6
    assert "adb push later.tflite /data/local/tmp/" in text
    assert "--num_threads=4" in text and "--use_gpu=true" in text
    assert len(made.measure.command) == 3  # one word: adb would join several


def test_it_is_pushed_measured_and_cleaned_up(file, benchmark_model, attached):
    found = phone.run(phone.plan(file, benchmark_model, threads=2, serial=SERIAL))
    assert found == phone.Measured(2.0, "cpu")
    assert attached.files() == []
    found = phone.run(phone.plan(file, benchmark_model, delegate="gpu"))
    assert found == phone.Measured(4.0, "gpu", "partially")


@pytest.mark.parametrize(
    ("facts", "error", "words"),
    [
        ({"silent": True}, PhoneRunError, "told no time for my net.tflite"),
        ({"crash": 1}, PhoneRunError, "Exit code 1"),
        ({"devices": {}}, DeviceError, "adb sees no phone"),
    ],
)
def test_what_goes_wrong_is_said_and_nothing_stays(
    facts, error, words, file, benchmark_model, attached
):
    attached.tell(**facts)
    with pytest.raises(error, match=words):
        phone.run(phone.plan(file, benchmark_model))
    assert not (attached.home / "tmp").exists() or attached.files() == []


def test_what_cannot_be_measured_is_refused_before(file, tmp_path, attached):
    with pytest.raises(MissingToolError, match="Get benchmark_model"):
        phone.run(phone.plan(file, tmp_path / "nothing"))
    with pytest.raises(UsageError, match="choose one of cpu, gpu, nnapi"):
        phone.plan(file, tmp_path / "b", delegate="dsp")
    with pytest.raises(UsageError, match="at least one"):
        phone.plan(file, tmp_path / "b", threads=0)
    (tmp_path / "no.tflite").write_bytes(b"no")
    with pytest.raises(ModelFileError, match=r"not a \.tflite"):
        phone.run(phone.plan(tmp_path / "no.tflite", tmp_path / "b"))
