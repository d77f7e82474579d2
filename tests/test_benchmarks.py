"""Benchmarks: one command makes every row, and what is kept is found by its content alone."""

import csv
import re
import shutil
import sys
from dataclasses import dataclass, fields

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from labutils import paths, runtime
from labutils.images import data

sys.path.insert(0, str(paths.ROOT / "benchmarks"))

import content_cache
import ladder
import quantization
import quantization_rows as rows
import quantization_table as table
import results
from quantization_inputs import Inputs

RESULTS = sorted(path.name for path in results.FOLDER.iterdir())
TABLE = (paths.ROOT / "benchmarks" / "README.md").read_text("utf-8")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- which command makes which file ---------------------------------------------------------------


def made_by():
    """File in results -> the command of the table."""
    lines = re.findall(r"^\| (`.+?`) \| `([^|]+)` \|", TABLE, re.M)
    return {name: command for names, command in lines for name in re.findall(r"`(.+?)`", names)}


@pytest.mark.parametrize("name", RESULTS)
def test_every_result_is_listed_with_a_command_that_exists(name):
    program, first = re.match(r"(python|labutils) (\S+)", made_by()[name]).groups()
    assert program == "labutils" or (paths.ROOT / first).is_file()


@pytest.mark.parametrize("name", [n for n in RESULTS if n.endswith(".txt")])
def test_the_head_of_a_result_says_when_and_how_it_was_made(name):
    first = (results.FOLDER / name).read_text("utf-8").splitlines()[0]
    assert re.match(
        r"(# r|R)ecorded 20\d\d-\d\d-\d\d with: (python benchmarks/|labutils )\w", first
    )


CHOSEN_ON_VAL = {"quantization_things16.txt", "quantization_things16.csv", "gate.txt"}


@pytest.mark.parametrize("name", sorted(CHOSEN_ON_VAL & set(RESULTS)))
def test_results_say_that_their_recipes_were_chosen_on_these_images(name):
    head = (results.FOLDER / name).read_text("utf-8")[:800]
    assert "split val" in head and results.DEVELOPED in head


def test_a_head_of_other_images_does_not_say_so():
    told = results.head("python x", "split test, 4 images", "numpy", developed=False)
    assert results.DEVELOPED not in told
    assert results.DEVELOPED in results.head("python x", "split val", "numpy", developed=True)
    assert f"numpy {np.__version__}" in told[-1]


def test_a_smaller_run_does_not_replace_the_recorded_results(tmp_path):
    assert results.place(None, whole=False) is None
    assert results.place(tmp_path, whole=False) == tmp_path
    assert results.place(None, whole=True) == results.FOLDER
    for program in (quantization, ladder):
        with pytest.raises(SystemExit):
            program.main(["--images", "4"])
    for images in ("20000", "0"):  # as many as are recorded of another set, and none
        with pytest.raises(SystemExit):
            ladder.main(["--set", "things16", "--images", images])


# --- rows that are kept ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Kept:
    model: str
    part: int = 0
    reason: str = ""


def test_what_is_kept_is_not_made_again(tmp_path, capsys):
    made = []

    def make(name):
        made.append(name)
        if name == "stops":
            raise KeyboardInterrupt
        return [Kept(name, part, "x" if name == "b" else "") for part in (0, 1)]

    def parts(name):
        return [(name, 0), (name, 1)]

    def rows(again=lambda row: False):
        return results.KeptRows(tmp_path / "k.jsonl", Kept, lambda r: (r.model, r.part), again)

    with pytest.raises(KeyboardInterrupt):
        rows().complete(["a", "b", "stops"], make, parts)
    assert sorted(rows().complete(["a", "b", "c"], make, parts)) == [
        *parts("a"), *parts("b"), *parts("c"),
    ]  # fmt: skip
    assert made == ["a", "b", "stops", "c"] and "[3/3] c ..." in capsys.readouterr().out
    rows(lambda row: row.reason == "x").complete(["a", "b"], make, parts)
    assert made[4:] == ["b"]


@pytest.mark.parametrize(
    ("program", "timeout", "rows", "why"),
    [
        ("print('words'); print(json.dumps({'model': sys.argv[2], 'part': 3}))",
         300, [Kept("one", 3)], "exit code 0: "),
        ("print('last words', file=sys.stderr, flush=True); os.abort()",
         300, [], "exit code -6: last words"),
        ("time.sleep(600)", 2, [], "no end after 2 s: "),
    ],
)  # fmt: skip
def test_a_crash_or_a_hang_of_a_process_is_told(tmp_path, program, timeout, rows, why):
    file = tmp_path / "program.py"
    file.write_text(f"import json, os, sys, time\n{program}")
    assert results.rows_of_a_process(str(file), "one", Kept, timeout) == (rows, why)


def test_rows_of_accuracy_are_written_as_they_are_recorded():
    import lite

    told = (results.FOLDER / "lite.csv").read_text("utf-8").splitlines()
    recorded = next(csv.DictReader(line for line in told if not line.startswith("#")))
    assert list(recorded) == [field.name for field in fields(lite.Row)]
    right = np.arange(8) > 0
    row = results.Judged("s", *results.judged(right, np.ones(8, bool)))
    assert (row.top1, row.difference, row.n) == (7 / 8, -12.5, 8)
    assert row.low < row.top1 < row.high and row.difference_low < -12.5 < row.difference_high
    assert row.cells[0] == "87.50 %" and row.cells[2].startswith("-12.50 [")


# --- the plan -------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["untrained", "trained", "simulated"])
def test_the_plan_has_every_recorded_row_in_its_order(part):
    name = quantization.PARTS[part]
    told = (results.FOLDER / f"{name}.csv").read_text("utf-8").splitlines()
    recorded = list(csv.DictReader(line for line in told if not line.startswith("#")))
    lines = quantization.parted(quantization.parser().parse_args(["--part", part]))[name]
    planned = [(x.architecture, x.row.group, x.row.by, x.row.name, x.runtime) for x in lines]
    columns = ("model", "group", "by", "what", "runtime")
    assert planned == [tuple(row[c] for c in columns) for row in recorded]


def test_no_two_rows_share_a_file():
    files = [row.file(name, Inputs()) for row in rows.ROWS for name in rows.ARCHITECTURES]
    assert len(set(files)) == len(files)


def test_a_row_that_cannot_be_made_is_listed_with_its_reason(cache):
    def fails(architecture, file, inputs):
        raise ValueError("no such\n  operator")

    row = rows.peer("int8", "broken", fails)
    line = quantization.measured(rows.Line("mobilenet_v3_small", row, "ORT"), Inputs(images=4))
    told = table.cells(line)
    assert told[5] == "not made: ValueError: no such operator"
    assert len(told) == len(table.COLUMNS)
    text = table.write([line], ["Recorded"], 0.0, paths.folder(cache))
    assert "broken" in text and "not made: ValueError" in (cache / "quantization.csv").read_text()


def test_without_the_wheel_a_simulated_row_says_why(cache, monkeypatch):
    from labutils.runtime import qnn

    gone = qnn.Availability(False, "onnxruntime-qnn is not installed.", {})
    monkeypatch.setattr(qnn, "probe", lambda: gone)
    line = next(line for line in rows.plan() if line.runtime == "HTP simulator")
    assert "not installed" in quantization.measured(line, Inputs(images=4))["note"]


# --- keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", rows.ROWS, ids=lambda row: f"{row.group}, {row.name}")
def test_another_checkpoint_is_another_file(row, tmp_path, monkeypatch):
    before = row.file("mobilenet_v3_small", Inputs())
    folder = shutil.copytree(paths.CHECKPOINTS, tmp_path / "checkpoints")
    name = data.checkpoint_name("mobilenet_v3_small", Inputs().image_set)
    weights = folder / f"{name}.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1  # one bit of one weight
    weights.write_bytes(changed)
    monkeypatch.setattr(paths, "CHECKPOINTS", folder)
    assert row.file("mobilenet_v3_small", Inputs()) != before


def test_another_recipe_is_another_file():
    one = rows.ours("g", "n", rows.TRIM)
    for other in (
        rows.ours("g", "n", rows.TRIM.replaced(equalize=True)),
        rows.ours("g", "n", "w4a8"),
    ):
        assert one.file("mobilenet_v3_small", Inputs()) != other.file(
            "mobilenet_v3_small", Inputs()
        )
    two = [rows.ti("n", ratio=ratio) for ratio in (16.0, 32.0)]
    assert two[0].file("mobilenet_v3_small", Inputs()) != two[1].file(
        "mobilenet_v3_small", Inputs()
    )


def test_other_inputs_are_another_file_where_they_are_used():
    static, trained = rows.ours("g", "n", "int8"), rows.ours("g", "n", "int8_qat")

    def same(row, inputs):
        return row.file("mobilenet_v3_small", inputs) == row.file("mobilenet_v3_small", Inputs())

    assert not same(static, Inputs(calibration=255))
    assert not same(trained, Inputs(training=7999)) and not same(trained, Inputs(steps=2))
    assert same(static, Inputs(training=7999))
    assert same(static, Inputs(split="test", images=4, htp_images=2))  # answers, not files


def test_another_version_of_a_tool_is_another_file(monkeypatch):
    before = rows.ROWS[1].file("mobilenet_v3_small", Inputs())
    found = paths.versions
    monkeypatch.setattr(
        paths, "versions", lambda *names: found(*names) | dict.fromkeys(names, "0.0.1")
    )
    assert rows.ROWS[1].file("mobilenet_v3_small", Inputs()) != before


def test_code_counts_by_what_it_does(tmp_path):
    def digest(source):
        return content_cache.statements(source)

    plain = "def f(x):\n    return x + 1\n"
    assert digest(plain) == digest('def f(x):\n    """Say."""\n\n    return (x + 1)  # why\n')
    assert digest(plain) != digest("def f(x):\n    return x + 2\n")
    package = paths.folder(tmp_path / "package")
    (package / "__init__.py").write_text("")
    (package / "deep.py").write_text("A = 1\n")
    module = type(sys)("package")
    module.__file__ = str(package / "__init__.py")
    before = content_cache.code.__wrapped__(module)
    (package / "deep.py").write_text("A = 2\n")
    assert content_cache.code.__wrapped__(module) != before


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from("abcd"), plain_values), st.sampled_from("abcd"), st.text())
@settings(deadline=None, max_examples=30)
def test_a_key_changes_with_each_of_its_parts_and_with_nothing_else(content, name, value):
    first = content_cache.key(**content)
    assert first == content_cache.key(**dict(reversed(content.items())))
    assert content_cache.key(**content | {name: {"other": value}}) != first or (
        content.get(name) == {"other": value}
    )


# --- answers --------------------------------------------------------------------------------------


def network(file, weight):
    """Write a network of one channel mean and a factor."""
    tensor = helper.make_tensor("w", TensorProto.FLOAT, [1], [weight])
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Mul", ["flat", "w"], ["logits"]),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("input", ["n", 3, 8, 8]), ("logits", ["n", 3]))
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [tensor])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), file)


def test_answers_are_asked_once_for_the_same_file_and_images(tmp_path, cache):
    file, started = tmp_path / "a.onnx", []
    network(file, 2.0)

    def runner(versions):
        def connect():
            started.append(1)
            return runtime.connect(file)

        return content_cache.Remembered(file, connect, "test", "ORT", versions)

    images = data.Preprocessing(8)(data.load("val", 2, 48).images[:, :8, :8])
    other = images[::-1].copy()
    with runner({"ort": "1"}) as first:
        found = first.run(images)
    np.testing.assert_array_equal(found, runtime.connect(file).run(images))
    with runner({"ort": "1"}) as again:
        np.testing.assert_array_equal(again.run(images), found)
    assert len(started) == 1
    with runner({"ort": "1"}) as others:
        np.testing.assert_array_equal(others.run(other), found[::-1])
    assert len(started) == 2
    runner({"ort": "2"}).run(images)
    assert len(started) == 3
    network(file, 3.0)  # other bytes under the same name
    assert not np.array_equal(runner({"ort": "1"}).run(images), found)
    content_cache.forget("test")
    assert not (cache / "benchmarks" / "test").exists()


@pytest.mark.slow
def test_the_command_makes_its_rows_and_finds_them_again(cache, tmp_path, monkeypatch):
    wanted = ("fp32", "ONNX Runtime, defaults")
    few = [x for x in rows.plan() if x.row.name in wanted and x.architecture.endswith("small")]
    monkeypatch.setattr(quantization, "plan", lambda only: iter(few))
    command = ["--images", "4", "--calibration", "2", "-o", str(tmp_path / "out")]
    made = []
    for _ in range(2):
        assert quantization.main(command) == 0
        text = (tmp_path / "out" / "quantization.txt").read_text("utf-8")
        made.append(int(re.search(r"(\d+) files were made in this run", text)[1]))
        assert all(name in text for name in wanted)
    assert made == [2, 0]


# --- files of packages ----------------------------------------------------------------------------


def test_a_file_of_a_package_is_stated_with_the_sum_that_it_has():
    """The light models come with the installed package; the sums of the others are as long."""
    import importlib.metadata

    import wheels

    names = [file.name for file in wheels.FILES]
    assert len(set(names)) == len(names) > 20
    for file in wheels.FILES:
        assert re.fullmatch("[0-9a-f]{16}", file.sha256)
        if file.package == "onnx":
            place = importlib.metadata.distribution("onnx").locate_file(file.path)
            assert paths.sha256(place).startswith(file.sha256)
        else:
            assert re.fullmatch(r"[a-z-]+==[0-9.]+", file.package)


@pytest.mark.parametrize(
    ("license_", "stated"),
    [("License-Expression: Apache-2.0", "Apache-2.0"), ("License: MIT License", "MIT"),
     ("License: The MIT License (MIT)", "MIT"), ("Author: nobody", "not stated"),
     ("Classifier: License :: OSI Approved :: MIT License", "MIT")],
)  # fmt: skip
def test_the_licence_is_the_one_that_a_package_states(license_, stated):
    from email import message_from_string

    import wheels

    assert wheels.licence(message_from_string(f"Name: x\n{license_}\n")) == stated


@pytest.mark.parametrize(
    ("code", "printed", "errors", "verdict", "said"),
    [
        (2, '{"error": "UsageError", "message": "no\\n image"}', "", "refused",
         "UsageError: no image"),
        (1, '{"error": "ParityError", "message": "far"}', "", "failed", "ParityError: far"),
        (1, "", "Traceback\nValueError: x\n", "crashed", "exit code 1: ValueError: x"),
        (2, "", "usage: labutils\nlabutils convert: error: no such option", "refused",
         "exit code 2: labutils convert: error: no such option"),
        (-9, "", "", "crashed", "exit code -9: "),
    ],
)  # fmt: skip
def test_what_a_command_says_becomes_a_verdict(code, printed, errors, verdict, said):
    import wheels

    assert wheels.judged(code, printed, errors) == (verdict, said.rstrip())


def test_a_package_that_cannot_be_had_is_a_row_with_its_reason(monkeypatch, tmp_path):
    import wheels

    monkeypatch.setattr(wheels, "installer", lambda: [sys.executable, "-c", "raise SystemExit(1)"])
    file = wheels.wheel_files.File("not-there==1.0", "not_there/x.onnx", "0" * 16)
    row = wheels.made(file, wheels.Packages(tmp_path))
    assert (row.convert, row.version) == ("not made", "1.0")
    assert row.convert_says == "not made: not-there==1.0 cannot be installed here"
    light = next(file for file in wheels.FILES if file.package == "onnx")
    other = wheels.wheel_files.File("onnx", light.path, "0" * 16)
    assert "another SHA-256" in wheels.made(other, wheels.Packages(tmp_path)).convert_says


@pytest.mark.sweep
@pytest.mark.htp
def test_files_of_packages_become_rows(cache, tmp_path, monkeypatch, capsys):
    """One of onnx's light models, of 224 px, which take the simulator a minute each."""
    import wheels

    monkeypatch.setattr(wheels, "IMAGES", 2)
    wheels.main(["--rows", "onnx/light_shufflenet.onnx", "-o", str(tmp_path / "made")])
    told = (tmp_path / "made" / "wheels.csv").read_text("utf-8").splitlines()
    (row,) = csv.DictReader(line for line in told if not line.startswith("#"))
    assert (row["licence"], row["opset"]) == ("Apache-2.0", "9")
    assert row["takes"] == "float32 1x3x224x224"
    assert row["convert"] != "not made" and row["convert_says"]
    text = (tmp_path / "made" / "wheels.txt").read_text("utf-8")
    assert "light_shufflenet.onnx, quantize: " in text and str(tmp_path) not in text
    capsys.readouterr()
    wheels.main(["--rows", "onnx/light_shufflenet.onnx", "-o", str(tmp_path / "again")])
    assert "[1/1]" not in capsys.readouterr().out  # it was kept


@pytest.mark.slow
@pytest.mark.htp
def test_a_file_becomes_a_row_of_what_it_takes_and_what_became_of_it(tmp_path, monkeypatch):
    import wheels

    monkeypatch.setattr(wheels, "IMAGES", 4)
    row = wheels.tried(wheels.Row("small"), small(tmp_path / "small.onnx"), wheels.wheel_files.RGB)
    assert (row.convert, row.takes, row.opset) == ("passed", "float32 1x3x16x16", 17)
    assert row.quantize in ("passed", "failed") and "cosine" in row.quantize_says
    assert "cosine" in row.convert_says

    row = wheels.tried(wheels.Row("sound"), sound(tmp_path / "sound.onnx"), wheels.wheel_files.RGB)
    assert (row.convert, row.quantize) == ("refused", "refused")
    assert row.takes == "float32 ?x576, float32 2x1x128"
    assert not re.search(r"\.labutils\.|Traceback", row.convert_says + row.quantize_says)


def small(path):
    """Write a classifier of one convolution."""
    r = np.random.default_rng(0)
    weights = numpy_helper.from_array(r.normal(size=(8, 3, 3, 3)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["c"], "conv"),
        helper.make_node("GlobalAveragePool", ["c"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["logits"], "flat"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("image", (1, 3, 16, 16)), ("logits", (1, 8)))
    ]
    graph = helper.make_graph(nodes, "small", ends[:1], ends[1:], [weights])
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)
    return path


def sound(path):
    """Write a network that takes a window of sound and a state."""
    window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ("batch", 576))
    state = helper.make_tensor_value_info("state", TensorProto.FLOAT, (2, 1, 128))
    outputs = [helper.make_tensor_value_info("voice", TensorProto.FLOAT, None)]
    nodes = [
        helper.make_node("ReduceMean", ["state"], ["mean"], axes=[0, 2]),
        helper.make_node("Mul", ["window", "mean"], ["voice"]),
    ]
    graph = helper.make_graph(nodes, "sound", [window, state], outputs)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path
