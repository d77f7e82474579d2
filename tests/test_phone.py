"""The way to a phone, against a fake adb: a folder is the phone, and a real shell splits the words.

No phone was ever attached. What is real here: the commands, their quoting (`sh` takes them apart),
the raw files, and the arithmetic (the fake runner runs the ONNX file that the fake binary names).
"""

import json
import os
import stat
import sys
import textwrap

import numpy as np
import onnx
import pytest

from labutils import compare, runtime
from labutils.errors import MissingToolError, ModelFileError, UsageError
from labutils.runtime import adb, phone

SERIAL = "R5CT 1"  # adb's serials have no blanks; ours has one, so that a split word shows

ADB = """
import json, os, pathlib, shutil, subprocess, sys
home = pathlib.Path(os.environ["FAKE_PHONE"])
args = sys.argv[1:]
with open(home / "log.jsonl", "a") as log:
    log.write(json.dumps(args) + "\\n")
facts = json.loads((home / "facts.json").read_text())
if args == ["devices"]:
    print("List of devices attached")
    for serial, state in facts["devices"].items():
        print(f"{serial}\\t{state}")
    sys.exit()
if args[:1] == ["-s"]:
    args = args[2:]
verb, *words = args
local = lambda path: path.replace("/data/local/tmp", str(home / "tmp"))
if verb == "shell":  # adb joins the words with blanks, the phone's shell splits them again
    line = local(" ".join(words))
    env = {**os.environ, "PATH": str(home / "bin") + ":/usr/bin:/bin"}
    sys.exit(subprocess.run(["sh", "-c", line], env=env).returncode)
source, target = (words[0], local(words[1])) if verb == "push" else (local(words[0]), words[1])
copied = pathlib.Path(target)
if copied.is_dir() or target.endswith("/"):
    copied = copied / pathlib.Path(source).name
if pathlib.Path(source).is_dir():
    shutil.copytree(source, copied, dirs_exist_ok=True)
else:
    copied.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, copied)  # without its mode, as old versions do
"""

RUNNER = """
import json, os, pathlib, sys
import numpy as np, onnxruntime
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
here = pathlib.Path(os.environ["LD_LIBRARY_PATH"])
for need in ("libQnnHtp.so", "libQnnHtpV73Stub.so", "libQnnSystem.so"):
    assert (here / need).is_file(), need
assert (pathlib.Path(os.environ["ADSP_LIBRARY_PATH"]) / "libQnnHtpV73Skel.so").is_file()
assert options["--backend"] == "libQnnHtp.so"
faults = json.loads((pathlib.Path(os.environ["FAKE_PHONE"]) / "facts.json").read_text())
if faults.get("crash"):
    print("[ERROR] Could not create context from binary", file=sys.stderr)
    sys.exit(faults["crash"])
model = pathlib.Path(options["--retrieve_context"]).read_text()
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
kind = np.float16 if faults.get("short") else np.float32
for i, line in enumerate(pathlib.Path(options["--input_list"]).read_text().split()):
    if i == faults.get("stops_at"):
        break
    name, path = line.split(":=")
    entry = next(e for e in session.get_inputs() if e.name == name)
    image = np.fromfile(path, np.float32).reshape(entry.shape)
    folder = pathlib.Path(options["--output_dir"], f"Result_{i}")
    folder.mkdir(parents=True)
    for output, values in zip(session.get_outputs(), session.run(None, {name: image})):
        values.astype(kind).tofile(folder / f"{output.name}.raw")
"""


def program(path, code, flags="-IS"):
    """Write a Python script as a program; without site-packages it starts at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} {flags}\n{textwrap.dedent(code)}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


class Phone:
    """What is on the other side of the fake adb."""

    def __init__(self, home):
        self.home = home
        self.tell(devices={SERIAL: "device"})
        self.chip("SM8550")

    def tell(self, **facts):
        file = self.home / "facts.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**known, **facts}))

    def chip(self, name):
        program(self.home / "bin" / "getprop", f"print({name!r})")

    @property
    def log(self):
        file = self.home / "log.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def files(self):
        return sorted(p.name for p in (self.home / "tmp").rglob("*") if p.is_file())


@pytest.fixture
def attached(tmp_path, monkeypatch):
    """A phone on the cable, adb on PATH, and an SDK with the files for v73."""
    home = tmp_path / "phone"
    home.mkdir()
    program(tmp_path / "tools" / "adb", ADB)
    monkeypatch.setenv("PATH", f"{tmp_path / 'tools'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_PHONE", str(home))
    monkeypatch.delenv("ANDROID_SERIAL", raising=False)
    sdk = tmp_path / "an sdk"  # with a blank, as people have
    for file in phone.sdk_files("SM8550"):
        program(sdk / file, RUNNER, "-I")
    monkeypatch.setenv("QNN_SDK_ROOT", str(sdk))
    return Phone(home)


@pytest.fixture
def binary(tmp_path, small_onnx):
    """A "context binary" that holds the path of an ONNX file, with its wrapper beside it."""
    source = small_onnx(17)
    folder = tmp_path / "my models"
    folder.mkdir()
    file = folder / "net int8.bin"
    file.write_text(str(source))
    (folder / "net int8.ctx.onnx").write_bytes(source.read_bytes())  # has its inputs and outputs
    return file


# --- the plan -----------------------------------------------------------------------------------


def test_the_plan_needs_no_phone_and_shows_every_command(binary, inputs, monkeypatch):
    monkeypatch.delenv("QNN_SDK_ROOT", raising=False)
    monkeypatch.setenv("PATH", "")
    plan = phone.plan(binary, inputs(2, 64), "SM8550")
    pushed = [c[-2].rsplit("/", 1)[-1] for c in plan.commands if "push" in c]
    assert pushed == [
        "qnn-net-run", "libQnnHtp.so", "libQnnHtpV73Stub.so", "libQnnSystem.so",
        "libQnnHtpV73Skel.so", "net int8.bin", "inputs", "input_list.txt",
    ]  # fmt: skip
    run = next(c for c in plan.commands if "qnn-net-run --backend" in c[-1])
    assert run[:2] == ["adb", "shell"] and len(run) == 3  # one word: adb would join several
    assert f"LD_LIBRARY_PATH={phone.FOLDER} ADSP_LIBRARY_PATH={phone.FOLDER}" in run[2]
    assert "--retrieve_context 'net int8.bin' --input_list input_list.txt" in run[2]
    text, markup = str(plan), plan._repr_html_().replace("<wbr>", "")
    for shown in (text, markup):
        assert "Not run on a phone by us" in shown and "hexagon-v73/unsigned" in shown
        assert str(binary.parent) not in shown
    assert len([line for line in text.splitlines() if line.startswith("adb ")]) == len(plan.steps)
    assert "$QNN_SDK_ROOT/lib/aarch64-android/libQnnHtp.so" in text


def test_the_raw_inputs_are_the_bytes_of_each_image(binary, inputs):
    batch = inputs(3, 64)
    phone.plan(binary, inputs(5, 64))
    plan = phone.plan(binary, batch)  # nothing is left of the larger batch
    raw = sorted((plan.folder / "inputs").iterdir())
    assert len(raw) == 3 and raw[1].stat().st_size == 3 * 64 * 64 * 4
    np.testing.assert_array_equal(np.fromfile(raw[1], "<f4").reshape(3, 64, 64), batch[1])
    lines = (plan.folder / "input_list.txt").read_text().splitlines()
    assert lines[2] == "input:=inputs/0002.raw"


@pytest.mark.parametrize(("soc", "arch"), [("SM8350", 68), ("SM8650", 75), ("SM8850", 81)])
def test_stub_and_skel_are_those_of_the_chip(binary, inputs, soc, arch):
    text = str(phone.plan(binary, inputs(1, 64), soc))
    assert f"libQnnHtpV{arch}Stub.so" in text
    assert f"lib/hexagon-v{arch}/unsigned/libQnnHtpV{arch}Skel.so" in text


def test_inputs_must_be_what_the_binary_takes(binary, inputs):
    for wrong in (inputs(1, 32), inputs(1, 64).astype(np.float64), inputs(1, 64)[:0]):
        with pytest.raises(UsageError, match=r"takes float32 \(n, 3, 64, 64\)"):
            phone.plan(binary, wrong)


def test_a_binary_without_its_wrapper_or_with_other_types_is_refused(binary, inputs):
    wrapper = binary.with_name("net int8.ctx.onnx")
    model = onnx.load(str(wrapper))
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.UINT8
    onnx.save(model, str(wrapper))
    with pytest.raises(ModelFileError, match="output logits is not float32"):
        phone.plan(binary, inputs(1, 64))
    wrapper.unlink()
    with pytest.raises(ModelFileError, match=r"There is no net int8\.ctx\.onnx"):
        phone.plan(binary, inputs(1, 64))


# --- carrying it out ----------------------------------------------------------------------------


def test_the_phone_computes_and_is_left_clean(attached, binary, inputs, small_onnx):
    batch = inputs(3, 64)
    with runtime.connect(small_onnx(17)) as reference:
        expected = reference.run(batch)
    found = phone.run(phone.plan(binary, batch, "SM8550"))
    assert found.shape == (3, 16) and found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert attached.files() == []
    assert attached.log[0] == ["devices"] and attached.log[-1][-1] == f"rm -rf {phone.FOLDER}"


def test_a_phone_is_a_runner_for_the_gate_and_the_ladder(attached, binary, inputs, small_onnx):
    batch = inputs(4, 64)
    with runtime.connect(small_onnx(17)) as reference, phone.connect(binary) as handset:
        assert isinstance(handset, runtime.Runner) and "phone over adb" in handset.runtime
        report = compare.gate(reference, handset, batch, kind="ort_fp32", locate=False)
        assert report.passed and report.parity.n == 4
        np.testing.assert_allclose(handset.run(batch[:2]), reference.run(batch[:2]), atol=1e-4)
        assert "libQnnHtp.so" in attached.files()
    assert attached.files() == []
    pushed = [c[-2].rsplit("/", 1)[-1] for c in attached.log if "push" in c]
    assert pushed.count("qnn-net-run") == 1 and pushed.count("inputs") == 2
    assert {c[1] for c in attached.log if c[0] == "-s"} == {SERIAL}  # chosen once, then kept


def test_one_of_several_phones_is_named(attached, binary, inputs, monkeypatch):
    attached.tell(devices={SERIAL: "device", "emulator-5554": "device"})
    with pytest.raises(UsageError, match=f"Several phones .* serial= of {SERIAL}, emulator-5554"):
        phone.connect(binary)
    assert phone.connect(binary, serial="emulator-5554").serial == "emulator-5554"
    monkeypatch.setenv("ANDROID_SERIAL", SERIAL)
    assert phone.choose() == SERIAL
    with pytest.raises(phone.DeviceError, match="No phone other is attached"):
        phone.choose("other")


@pytest.mark.parametrize(
    ("devices", "words"),
    [
        ({}, "adb sees no phone"),
        ({SERIAL: "unauthorized"}, "has not allowed this computer"),
        ({SERIAL: "offline"}, "is offline"),
    ],
)
def test_a_phone_that_cannot_be_used_is_named_with_the_cure(attached, binary, devices, words):
    attached.tell(devices=devices)
    with pytest.raises(phone.DeviceError, match=words):
        phone.connect(binary)


def test_another_chip_is_refused_before_anything_is_pushed(attached, binary, inputs):
    attached.chip("SM8650")
    with pytest.raises(phone.DeviceError, match=r"chip is SM8650, and .* compiled for SM8550"):
        phone.run(phone.plan(binary, inputs(1, 64), "SM8550"))
    assert not [c for c in attached.log if "push" in c]
    attached.chip("")  # Android 11 and before do not say
    assert phone.run(phone.plan(binary, inputs(1, 64), "SM8550")).shape == (1, 16)


def test_what_is_missing_is_named(attached, binary, inputs, tmp_path, monkeypatch):
    assert phone.missing() == ()
    skel = tmp_path / "an sdk" / phone.sdk_files("SM8550")[-1]
    skel.unlink()
    with pytest.raises(MissingToolError, match=r"no lib/hexagon-v73/unsigned/libQnnHtpV73Skel\.so"):
        phone.connect(binary)
    monkeypatch.setenv("QNN_SDK_ROOT", str(tmp_path / "gone"))
    assert "no such folder" in phone.missing()[0]
    monkeypatch.delenv("QNN_SDK_ROOT")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert len(phone.missing()) == 2
    with pytest.raises(MissingToolError, match="adb is not on PATH"):
        phone.run(phone.plan(binary, inputs(1, 64)))
    with pytest.raises(MissingToolError, match="adb is not on PATH"):
        phone.devices()


def test_a_runner_that_fails_is_quoted_and_the_phone_cleaned(attached, binary, inputs):
    attached.tell(crash=9)
    with pytest.raises(phone.PhoneRunError, match='Exit code 9 in the step "run"') as caught:
        phone.run(phone.plan(binary, inputs(1, 64)))
    assert "Could not create context from binary" in str(caught.value)
    assert caught.value.command[:2] == ("adb", "shell")
    assert attached.files() == []


def test_missing_and_short_outputs_are_never_filled_up(attached, binary, inputs):
    good = phone.plan(binary, inputs(3, 64))
    phone.run(good)  # leaves outputs on this side that must not be read again
    attached.tell(stops_at=1)
    with pytest.raises(phone.PhoneRunError, match=r"no logits\.raw for image 1 of 3"):
        phone.run(phone.plan(binary, inputs(3, 64)))
    attached.tell(stops_at=None, short=True)
    with pytest.raises(phone.PhoneRunError, match=r"has 32 bytes; 16 float32 values are 64"):
        phone.run(phone.plan(binary, inputs(1, 64)))


def test_a_phone_that_does_not_answer_is_given_up(attached, binary, inputs, monkeypatch, tmp_path):
    program(tmp_path / "tools" / "adb", "import time\ntime.sleep(60)")
    monkeypatch.setattr(adb, "TIMEOUT", 1.0)
    with pytest.raises(phone.PhoneRunError, match="no answer within 1 s from: adb devices"):
        phone.connect(binary)
