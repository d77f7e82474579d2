"""The SNPE 2.7 replica on real exports, and the real tool's place taken by a fake executable."""

from __future__ import annotations

import re
import stat
import sys
from collections import Counter
from datetime import datetime, timedelta

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from labutils.errors import ConvertError, ModelFileError, TranslationError
from labutils.targets import snpe, table

START = datetime(2023, 4, 16, 19, 1, 3, 227_000)


def ticking():
    """A clock that starts at START and moves on by a second per look."""
    looks = iter(range(10**6))
    return lambda: START + timedelta(seconds=next(looks))


def run(path, dlc="x.dlc", **options):
    """Translate; return (echoed lines, transcript or None, error or None)."""
    lines = []
    try:
        done = snpe.translate(path, dlc, clock=ticking(), echo=lines.append, **options)
    except TranslationError as error:
        return lines, None, error
    return lines, done, None


@pytest.fixture(autouse=True)
def _without_the_real_tool(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nothing here"))


def _swap(model, kinds):
    """Replace nn.Hardsigmoid and nn.Hardswish, by name, with what the vendor's case writes."""
    import torch

    class Sigmoid(torch.nn.Module):
        def forward(self, x):
            return torch.clamp(x / 6 + 0.5, 0, 1)

    class Swish(torch.nn.Module):
        def forward(self, x):
            return x * torch.clamp(x + 3, 0, 6) / 6

    replacement = {"Hardsigmoid": Sigmoid, "Hardswish": Swish}
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__ in kinds:
                setattr(module, name, replacement[type(child).__name__]())
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function (opset, replaced kinds) -> ONNX file of mobilenet_v3_large, 64 px."""
    import torch

    from labutils import _torchvision

    folder, made = tmp_path_factory.mktemp("exports"), {}

    def network():
        torch.manual_seed(0)
        model = _torchvision.load().models.mobilenet_v3_large(num_classes=16)
        for tensor in model.state_dict().values():
            if tensor.dtype == torch.float32:  # equal ones would be merged by Identity nodes
                tensor.add_(torch.rand_like(tensor), alpha=0.01)
        return model.eval()

    def export(opset, kinds=()):
        key = (opset, tuple(kinds))
        if key not in made:
            path = folder / f"{opset}_{'_'.join(kinds)}.onnx"
            torch.onnx.export(
                _swap(network(), kinds),
                (torch.zeros(1, 3, 64, 64),),
                path,
                dynamo=False,
                opset_version=opset,
            )
            made[key] = path
        return made[key]

    return export


FIRST = "/features/features.0/features.0.2"
GATE = "/features/features.4/block/block.2/scale_activation/HardSigmoid"
SWISH = ("HardSwish", f"{FIRST}/HardSwish", "features.0.2")
# at opset 13 this HardSigmoid is half of the decomposed Hardswish
HALF = ("HardSigmoid", f"{FIRST}/HardSigmoid", "features.0.2")
GATED = ("HardSigmoid", GATE, "features.4.block.2.scale_activation")
CASES = [
    (17, (), SWISH),
    (17, ("Hardsigmoid",), SWISH),
    (17, ("Hardswish",), GATED),
    (17, ("Hardsigmoid", "Hardswish"), None),
    (13, (), HALF),
    (13, ("Hardsigmoid",), HALF),
    (13, ("Hardswish",), GATED),
    (13, ("Hardsigmoid", "Hardswish"), None),
]


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "kinds", "stop"), CASES)
def test_what_stops_first(exported, opset, kinds, stop):
    path = exported(opset, kinds)
    lines, done, error = run(path)
    report = table.check(path, "snpe-2.7")
    if stop is None:
        assert error is None and not done.real and done.lines == tuple(lines)
        assert lines[-1].endswith("INFO_CONVERSION_SUCCESS: Conversion completed successfully")
        assert report.ok and not report.unknown
        return
    op_type, node, module = stop
    assert (error.op_type, error.node, error.module) == (op_type, node, module)
    assert re.fullmatch(
        rf"2023-04-16 19:01:\d\d,227 - 209 - ERROR - Node {node}: "
        rf"'No translation registered for op type onnx_{op_type.lower()}\.'",
        lines[-1],
    )
    assert report.first_blocker.node == node
    assert "No translation registered" in str(error) and "replica" in str(error)


@pytest.mark.slow
def test_success_log_is_counted_from_the_graph(exported):
    path = exported(17, ("Hardsigmoid", "Hardswish"))
    lines, _, _ = run(path)
    ops = Counter(node.op_type for node in onnx.load(path).graph.node)
    assert sum("WARNING_GEMM" in line for line in lines) == ops["Gemm"] == 2
    version = "Operation Constant Not Supported. Expected operator version: [1, 9], instead got"
    assert sum(f"{version} version: [13]" in line for line in lines) == ops["Constant"] > 0
    own = [line for line in lines if line.startswith("#")]
    tool = [line for line in lines if not line.startswith("#")]
    assert len(own) == 3 and "REPLICA" in lines[0] and "not Qualcomm's tool" in lines[0]
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - \d+ - (INFO|WARNING) - "
    assert all(re.match(stamp, line) for line in tool)


@pytest.mark.slow
def test_message_follows_the_names_of_a_renamed_graph(exported, tmp_path):
    model = onnx.load(exported(17))
    for index, node in enumerate(model.graph.node):
        node.name = f"scrambled_{index * 7919 % 10007}"
    first = next(node.name for node in model.graph.node if node.op_type == "HardSwish")
    onnx.save(model, tmp_path / "renamed.onnx")
    lines, _, error = run(tmp_path / "renamed.onnx")
    assert error.node == first and error.module == ""
    assert f"Node {first}: 'No translation" in lines[-1]
    assert not any("features" in line for line in lines)


def _graph(*nodes, weights=None, opset=17):
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, name=name, **kw) for op, ins, outs, name, kw in nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.fixture
def saved(tmp_path):
    def save(model):
        onnx.save(model, tmp_path / "m.onnx")
        return tmp_path / "m.onnx"

    return save


INSERTED = (
    ("Relu", ["x"], ["a"], "stem", {}),
    ("Mul", ["a", "a"], ["b"], "square", {}),
    ("HardSwish", ["b"], ["c"], "/head/act/HardSwish", {}),
    ("HardSigmoid", ["c"], ["y"], "tail", {}),
)


@pytest.mark.parametrize("stored", [(0, 1, 2, 3), (3, 2, 1, 0), (3, 0, 2, 1)])
def test_hardswish_elsewhere_in_any_stored_order(saved, stored):
    path = saved(_graph(*(INSERTED[i] for i in stored)))
    lines, _, error = run(path)
    assert (error.node, error.op_type, error.module) == (
        "/head/act/HardSwish",
        "HardSwish",
        "head.act",
    )
    assert lines[-2:] == [
        "KeyError: 'No translation registered for op type onnx_hardswish.'",
        "2023-04-16 19:01:05,227 - 209 - ERROR - Node /head/act/HardSwish: "
        "'No translation registered for op type onnx_hardswish.'",
    ]
    assert lines[3] == "Traceback (most recent call last):"


def test_unknown_operators_are_named_once_and_do_not_abort(saved):
    path = saved(
        _graph(
            ("Selu", ["x"], ["a"], "one", {}),
            ("Selu", ["a"], ["b"], "two", {}),
            ("Softmax", ["b"], ["y"], "three", {}),
        )
    )
    lines, done, error = run(path)
    assert error is None and not done.real
    said = [line for line in lines if line.startswith("# unknown")]
    assert [line.split()[2] for line in said] == ["Selu,", "Softmax,"]
    assert "first at one" in said[0]


def test_a_missed_limit_stops_without_words_the_tool_is_not_known_to_say(saved):
    path = saved(
        _graph(
            ("Gemm", ["x", "w"], ["y"], "fc", {"transB": 0}),
            weights={"w": np.zeros((8, 4), np.float32)},
        )
    )
    lines, _, error = run(path)
    assert error.node == "fc" and "transB = 1" in str(error)
    assert "No translation registered" not in "\n".join(lines) + str(error)
    assert lines[-1].startswith("# stopped at fc")


def test_writing_is_reported_only_after_it_was_done(saved):
    path = saved(_graph(("Relu", ["x"], ["y"], "r", {})))
    seen = []
    lines, _, _ = run(path, write=lambda: seen.append("written"))
    assert seen == ["written"] and lines[-1].endswith("INFO_WRITE_SUCCESS: ")

    def fail():
        raise ConvertError("the writer refused")

    lines = []
    with pytest.raises(ConvertError, match="refused"):
        snpe.translate(path, "x.dlc", echo=lines.append, write=fail)
    assert not any("WRITE_SUCCESS" in line for line in lines)
    bad = saved(_graph(("HardSwish", ["x"], ["y"], "h", {})))
    run(bad, write=lambda: seen.append("again"))
    assert seen == ["written"]


def test_bad_model_file(tmp_path):
    with pytest.raises(ModelFileError):
        snpe.translate(tmp_path / "none.onnx", "x.dlc", echo=lambda line: None)


FAKE = """#!{python}
import sys
flags, values = sys.argv[1::2], sys.argv[2::2]
assert flags == ["--input_network", "--output_path"], sys.argv
network, output = values
assert network == {network!r} and open(network, "rb").read(), network
assert output.endswith(".dlc"), output
print("2023-04-14 15:49:20,001 - 219 - WARNING - fake tool at work", flush=True)
{action}
"""
WRITES = """
open(output, "w").write("a DLC")
print("2023-04-14 15:49:24,356 - 214 - INFO - INFO_WRITE_SUCCESS: ", file=sys.stderr)
"""
REFUSES = """
open(output, "w").write("half a DLC")
print("KeyError: 'No translation registered for op type onnx_hardswish.'")
print("2023-04-14 15:49:24,356 - 209 - ERROR - Node /head/act/HardSwish: "
      "'No translation registered for op type onnx_hardswish.'")
sys.exit({code})
"""


@pytest.fixture
def fake(tmp_path, saved, monkeypatch):
    """Put an executable called snpe-onnx-to-dlc on PATH; return the model for it."""

    def make(action):
        path = saved(_graph(*INSERTED))
        folder = tmp_path / "bin with spaces"
        folder.mkdir(exist_ok=True)
        script = folder / snpe.EXECUTABLE
        text = FAKE.format(python=sys.executable, network=str(path), action=action)
        script.write_text(text, encoding="utf-8")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(folder))
        return path

    return make


def test_the_real_tool_runs_when_it_is_on_path(fake, tmp_path):
    dlc = tmp_path / "my model; rm -rf.dlc"
    lines, done, error = run(fake(WRITES), dlc, write=lambda: pytest.fail("it writes itself"))
    assert error is None and done.real and done.tool.endswith(snpe.EXECUTABLE)
    assert dlc.read_text() == "a DLC"
    assert done.lines == tuple(lines) and len(lines) == 2
    assert "fake tool at work" in lines[0] and "INFO_WRITE_SUCCESS" in lines[1]
    assert not any("REPLICA" in line for line in lines)


@pytest.mark.parametrize("code", [0, 1])
def test_the_real_tools_refusal_becomes_the_typed_error(fake, tmp_path, code):
    dlc = tmp_path / "x.dlc"
    lines, _, error = run(fake(REFUSES.format(code=code)), dlc)
    assert (error.node, error.op_type, error.module) == (
        "/head/act/HardSwish",
        "HardSwish",
        "head.act",
    )
    assert "replica" not in str(error) and len(lines) == 3
    assert [p.name for p in tmp_path.glob("*.dlc")] == [], "nothing half-made stays"


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        ("print('licence expired'); sys.exit(3)", r"exit code 3(.|\n)*licence expired"),
        ("print('fine')", "it wrote no DLC"),
        ("sys.stdout.buffer.write(b'not \\xff UTF-8\\n'); sys.exit(1)", "not . UTF-8"),
    ],
)
def test_other_failures_of_the_real_tool(fake, tmp_path, action, problem):
    path = fake(action)
    with pytest.raises(ConvertError, match=problem):
        snpe.translate(path, tmp_path / "x.dlc", echo=lambda line: None)
    assert not (tmp_path / "x.dlc").exists()


def test_a_tool_that_cannot_start(fake, tmp_path):
    path = fake(WRITES)
    script = tmp_path / "bin with spaces" / snpe.EXECUTABLE
    script.write_text("#!/no/such/interpreter\n")
    with pytest.raises(ConvertError, match="Cannot start"):
        snpe.translate(path, tmp_path / "x.dlc", echo=lambda line: None)


def test_the_log_of_a_file_that_is_refused_or_not(small_onnx, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = snpe.log_of(small_onnx(17))
    assert any("No translation registered for op type onnx_hardswish" in line for line in refused)
    node = helper.make_node("Relu", ["x"], ["y"], name="act")
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3]) for n in "xy"]
    taken = helper.make_model(
        helper.make_graph([node], "g", values[:1], values[1:]),
        opset_imports=[helper.make_opsetid("", 13)],
    )
    onnx.save(taken, tmp_path / "relu.onnx")
    lines = snpe.log_of(tmp_path / "relu.onnx")
    assert lines and not any("ERROR" in line for line in lines)
    assert [file.name for file in tmp_path.iterdir()] == ["relu.onnx"]


def test_a_transcript_reads_as_its_log():
    found = snpe.Transcript(("first", "# second"), False, "replica")
    assert str(found) == repr(found) == "first\n# second"
