"""The command line as a user meets it: exit codes, messages, JSON, files."""

import json
import re
import subprocess
import sys
from pathlib import Path

import mutations
import numpy as np
import onnx
import pytest
from PIL import Image

from labutils import __main__, surgery
from labutils.commands import options
from labutils.errors import LabError

ERRORS = ("UsageError", "UnknownNameError", "ModelFileError", "TranslationError", "ParityError")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["diagnose", "mobilenet_v3_larg", "--weights", "random"], "Did you mean"),
        (["diagnose", "m.onnx"], "no model file"),
        (["diagnose", "mobilenet_v3_small", "--target", "snpe-2"], "Did you mean snpe-2.7"),
        (["convert", "mobilenet_v3_small", "--target", "tidl-11", "-o", "x.dlc"], "on PyPI"),
        (["convert", "m.onnx", "--target", "qnn", "-o", "x.bin"], "the output is a .dlc"),
        (["convert", "m.onnx", "--target", "qnn", "-o", "x.dlc", "--soc", "SM855"], "SM8550"),
        (["run", "m.dlc"], "no model file"),
        (["journey", "--images", "0"], "at least one image"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else "",
)
def test_a_wrong_call_exits_2_with_one_sentence(arguments, words, lab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = lab(*arguments)
    assert code == 2
    assert words in err
    assert err.split(":")[0] in ERRORS
    assert "Traceback" not in err
    assert not out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "hint"),
    [("diagnos", "Did you mean diagnose?"), ("qwertz", "Choose from diagnose, ")],
)
def test_a_command_that_is_not_known_gets_the_nearest(words, hint, capsys):
    with pytest.raises(SystemExit) as ended:
        __main__.main([words])
    assert ended.value.code == 2 and hint in capsys.readouterr().err


def test_without_a_command_the_help_is_shown(capsys):
    assert __main__.main([]) == 2
    assert "convert" in capsys.readouterr().err


def test_the_recipe_of_a_repair_is_told_from_a_quantization_recipe(capsys):
    assert __main__.main(["repair", "x.onnx", "--recipe", "int8", "-o", "y.onnx"]) == 2
    assert "convert --quantize int8" in capsys.readouterr().err


def test_a_file_that_is_no_dlc_is_named(lab, tmp_path):
    (tmp_path / "x.dlc").write_bytes(bytes(range(256)) * 12)
    code, _, err = lab("run", tmp_path / "x.dlc", "--mean", 0, 0, 0, "--std", 1, 1, 1)
    assert code == 2
    assert "is not a DLC" in err


def test_an_output_that_cannot_be_written_is_refused_before_the_work(lab, tmp_path):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "x.dlc"
    code, _, err = lab("convert", "mobilenet_v3_small", "--target", "qnn", "-o", out)
    assert code == 2
    assert "Cannot write" in err


@pytest.mark.parametrize(
    ("command", "option", "ending"),
    [("repair", "-o", ".onnx"), ("quantize", "-o", ".onnx"), ("diagnose", "--html", ".html")],
)
def test_an_output_never_replaces_what_it_is_made_from(
    command, option, ending, lab, small_onnx, tmp_path
):
    model = tmp_path / "m.onnx"
    model.write_bytes(small_onnx(17).read_bytes())
    stated = ["--mean", 0, 0, 0, "--std", 1, 1, 1] if command == "quantize" else []
    target = [] if command == "quantize" else ["--target", "snpe-2.7"]
    (tmp_path / f"folder{ending}").mkdir()
    for output in (model, tmp_path / f"folder{ending}", tmp_path / "x.txt"):
        code, _, err = lab(command, model, *target, *stated, option, output)
        assert code == 2 and str(output) in err
    assert model.read_bytes() == small_onnx(17).read_bytes()
    assert len(list(tmp_path.iterdir())) == 2


def test_nothing_to_repair_is_a_success(lab, small_onnx, tmp_path):
    surgery.replace_file(small_onnx(17), tmp_path / "clean.onnx")
    asked = ("repair", tmp_path / "clean.onnx", "--target", "snpe-2.7")
    code, out, err = lab(*asked, "-o", tmp_path / "x.onnx")
    assert code == 0 and "Nothing blocks" in out + err and "No file was written" in out + err
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("name", ["folder", "text.md"])
def test_a_path_that_is_not_a_model_is_told_what_it_is(name, lab, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.md").write_text("# words")
    code, _, err = lab("diagnose", tmp_path / name)
    assert code == 2 and "A model file is" in err and "timm:" not in err


def test_a_chip_is_checked_even_where_it_is_not_simulated(lab, small_onnx):
    code, _, err = lab("run", small_onnx(17), "--soc", "SM9999")
    assert code == 2
    assert "SM8550" in err


def test_the_help_lists_the_targets_there_are():
    from labutils import targets

    assert tuple(targets.TARGETS) == options.TARGET_NAMES


def test_errors_are_json_too(lab):
    code, out, _ = lab("diagnose", "nothing.onnx", "--json")
    assert code == 2
    assert json.loads(out)["error"] == "ModelFileError"


def test_diagnose_names_nodes_and_rules_and_exits_1(lab, small_onnx):
    code, out, _ = lab("diagnose", small_onnx(17), "--target", "snpe-2.7")
    assert code == 1
    assert re.search(r"HardSwish\s+unsupported\s+19\s+features.0.2", out)
    assert "rule 'hardswish' would repair 19 nodes" in out


def test_diagnose_of_a_clean_model_exits_0(lab, small_onnx, tmp_path):
    surgery.replace_file(small_onnx(17), tmp_path / "clean.onnx")
    code, out, _ = lab("diagnose", tmp_path / "clean.onnx", "--json")
    assert code == 0
    facts = json.loads(out)
    assert facts["counts"]["unsupported"] == 0
    assert facts["repair"] == {"rules": {}, "unrepairable": []}


@pytest.mark.htp
def test_convert_without_repair_writes_nothing(lab, small_onnx, tmp_path):
    stated = ["--mean", 0, 0, 0, "--std", 1, 1, 1]
    wanted = ["--target", "snpe-2.7", "-o", tmp_path / "x.dlc"]
    code, _, err = lab("convert", small_onnx(17), *stated, *wanted)
    assert code == 1
    assert "features.0.2" in err
    assert "rule 'hardsigmoid'" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.htp
@pytest.mark.slow
def test_the_readmes_timm_example(lab, tmp_path):
    """`labutils convert timm:... --repair` works, and the DLC runs afterwards."""
    model = ("timm:mobilenetv3_small_100", "--weights", "random", "--size", "64")
    dlc = tmp_path / "x.dlc"
    code, out, _ = lab("convert", *model, "--target", "snpe-2.7", "--repair", "-o", dlc)
    assert code == 0
    assert "REPLICA" in out
    assert "Parity gate (htp_fp16): passed" in out
    assert "not tested on an SNPE 2.7 runtime" in out
    assert "mean (0.485, 0.456, 0.406)" in out
    code, out, _ = lab("run", dlc, "--images", "2", "--json")
    assert code == 0
    answer = json.loads(out)
    assert "HTP simulator" in answer["runtime"]
    assert len(answer["rows"]) == 2


def test_run_on_picture_files_of_any_mode(lab, small_onnx, tmp_path):
    for mode in ("RGB", "L", "RGBA", "P", "CMYK"):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (90, 70)).save(tmp_path / f"{mode}.{suffix}")
    pictures = sorted(tmp_path.iterdir())
    stated = ["--mean", 0, 0, 0, "--std", 1, 1, 1]
    code, out, _ = lab("run", small_onnx(17), *stated, "--json", "--images", *pictures)
    assert code == 0
    rows = json.loads(out)["rows"]
    assert [row["image"] for row in rows] == [str(picture) for picture in pictures]


def test_run_says_where_its_input_comes_from(lab, small_onnx, tmp_path):
    code, out, _ = lab("run", small_onnx(17), "--mean", 0, 0, 0, "--std", 1, 1, 1, "--images", 2)
    assert code == 0
    assert "NCHW float32, 64x64" in out
    assert "as given on the command line" in out


def test_a_broken_picture_is_named(lab, small_onnx, tmp_path):
    (tmp_path / "x.png").write_bytes(b"not a picture")
    stated = ["--mean", 0, 0, 0, "--std", 1, 1, 1]
    code, _, err = lab("run", small_onnx(17), *stated, "--images", tmp_path / "x.png")
    assert code == 2
    assert "x.png is not a picture" in err


def test_a_broken_picture_among_others_is_left_out_and_named(lab, small_onnx, tmp_path):
    (tmp_path / "x.png").write_bytes(b"not a picture")
    Image.new("RGB", (90, 70)).save(tmp_path / "good.png")
    stated = ["--mean", 0, 0, 0, "--std", 1, 1, 1]
    files = [tmp_path / name for name in ("good.png", "x.png", "gone.png", "good.png")]
    code, out, err = lab("run", small_onnx(17), *stated, "--json", "--images", *files)
    assert code == 1  # the answers are there, and not all that was asked for
    assert [row["image"] for row in json.loads(out)["rows"]] == [str(tmp_path / "good.png")] * 2
    assert "left out: " in err and "x.png is not a picture" in err and "no picture" in err
    code, _, err = lab("run", small_onnx(17), *stated, "--images", *files[1:3])
    assert code == 2 and "None of the 2 pictures could be read" in err


@pytest.mark.parametrize("command", [
    ("convert", "gone.onnx", "--target", "qnn", "-o", "x.dlc", "--quantize", "int9"),
    ("quantize", "gone.onnx", "-o", "x.onnx", "--recipe", "int9"),
    ("train", "gone.pt", "-o", "x.onnx", "--recipe", "int9_qat"),
])  # fmt: skip
def test_a_misspelt_recipe_is_told_before_any_work(lab, command):
    code, _, err = lab(*command)
    assert code == 2 and "int9" in err and "Did you mean" in err and "gone" not in err


@pytest.mark.parametrize("command", [
    ("convert", "gone.onnx", "--target", "qnn", "-o", "x.dlc"),
    ("quantize", "gone.onnx", "-o", "x.onnx"),
    ("run", "gone.onnx"),
    ("train", "gone.pt", "-o", "x.onnx", "--recipe", "int8_qat"),
])  # fmt: skip
def test_a_misspelt_folder_is_told_before_any_work(lab, command):
    code, _, err = lab(*command, "--data", "no/such/folder")
    assert code == 2 and "There is no folder no/such/folder" in err.replace("\\", "/")


def test_preprocessing_is_asked_for_not_guessed(lab, small_onnx, tmp_path):
    import onnx

    model = onnx.load(small_onnx(17))
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "foreign.onnx")
    code, _, err = lab("run", tmp_path / "foreign.onnx")
    assert code == 2
    assert "--mean R G B" in err
    code, _, err = lab("run", tmp_path / "foreign.onnx", "--mean", 0, 0, 0)
    assert code == 2
    assert "together" in err


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", b"plain text"])
def test_bad_inputs_file(content, lab, small_onnx, tmp_path):
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(LabError, match=r"x\.npz"):
        options.stored_inputs(tmp_path / "x.npz")


def test_stored_inputs(tmp_path):
    good = np.zeros((2, 3, 8, 8), np.float32)
    np.savez(tmp_path / "good.npz", good)
    assert options.stored_inputs(tmp_path / "good.npz").shape == (2, 3, 8, 8)
    np.savez(tmp_path / "two.npz", good, good)
    with pytest.raises(LabError, match="one float32 array"):
        options.stored_inputs(tmp_path / "two.npz")


def test_doctor_probes(lab):
    code, out, _ = lab("doctor", "--json")
    findings = {f["name"]: f for f in json.loads(out)["findings"]}
    assert findings["PyTorch"]["present"]
    assert findings["ONNX Runtime"]["present"]
    assert findings["Things-16 weights"]["present"]
    assert code == 0


def test_doctor_without_the_wheel_says_so(lab, monkeypatch):
    from labutils.runtime import qnn

    absent = qnn.Availability(False, "There is no wheel for this machine", {})
    monkeypatch.setattr(qnn, "probe", lambda: absent)
    code, out, _ = lab("doctor")
    assert code == 0  # everything else works without it
    assert re.search(r"Qualcomm QNN\s+absent\s+There is no wheel for this machine", out)


def test_the_installed_command(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "labutils", "--version"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    assert re.fullmatch(r"labutils \d+\.\d+\.\d+\n", done.stdout)


def test_reset_and_room(lab, tmp_path, monkeypatch):
    code, out, _ = lab("reset", "03", "--folder", tmp_path)
    assert code == 0
    copy = tmp_path / re.match(r"(03_\w+\.ipynb) is as it was made", out)[1]
    copy.write_text("my work")
    code, out, _ = lab("reset", "03", "--folder", tmp_path, "--json")
    assert Path(json.loads(out)["backup"]).read_text() == "my work"
    assert lab("reset", "93", "--folder", tmp_path)[0] == 2

    event = {"event": "check", "exercise": "02.2", "outcome": "PASSED"}
    (tmp_path / "ann.jsonl").write_text(json.dumps(event))
    code, out, _ = lab("room", tmp_path)
    assert code == 0
    assert re.search(r"ann +1 +- +- +-P-", out)
    assert json.loads(lab("room", tmp_path, "--json")[1])["ann"]["passed"] == 1
    code, _, err = lab("room", tmp_path / "empty")
    assert code == 2
    assert "No progress files" in err


@pytest.mark.parametrize("shape", [[1], [1, 32], [1, 3, 32]])
def test_an_input_that_is_no_image_is_told_by_its_shape(shape, tmp_path, lab):
    made = mutations.good_model()
    made.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("input", 1, shape))
    onnx.save(made, tmp_path / "x.onnx")
    code, _, err = lab("run", tmp_path / "x.onnx", "--images", 1)
    assert code == 2 and "(n, channels, height, width)" in err
