"""The table of quantizers: its groups, its figures, and the environments of the peers."""

import sys

import numpy as np
import onnx
import onnx.parser
import pytest
import tiny_tool
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from labutils import metrics, paths
from labutils.errors import LabError
from labutils.images import data

sys.path.insert(0, str(paths.ROOT / "benchmarks"))

import content_cache
import peer_environments
import quantization
import quantization_figures as figures
import quantization_peers as peers
import quantization_rows as rows
import quantization_table as table
from quantization_inputs import Inputs, usual


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LABUTILS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- groups ---------------------------------------------------------------------------------------


def test_a_group_has_our_preset_and_peers_of_two_tools():
    assert set(rows.CHOSEN) < {row.group for row in rows.ROWS}
    for group, name in rows.CHOSEN.items():
        in_group = [row for row in rows.ROWS if row.group == group]
        assert [row.by for row in in_group if row.name == name] == ["ours"]
        assert len({table.tool(row.name) for row in in_group if row.by == "peer"}) >= 2


def test_some_rows_can_be_asked_for():
    few = list(rows.plan("*SMALL*aimet*"))
    assert few and all("AIMET" in line.row.name for line in few)
    assert {line.architecture for line in few} == {"mobilenet_v3_small"}
    with pytest.raises(SystemExit):
        quantization.main(["--only", "*AIMET*"])  # some rows do not replace the recorded ones
    with pytest.raises(SystemExit):
        quantization.main(["--only", "no such row", "-o", "."])


def test_the_whole_table_has_its_numbers_of_images():
    def asked(*words):
        return quantization.asked(quantization.parser().parse_args(words))

    assert asked() == usual() and (asked().images, asked().htp_images) == (11_200, 11_200)
    test = asked("--split", "test")
    assert test == usual("test") and (test.images, test.htp_images) == (20_000, 10_000)
    assert asked("--set", "things16").images == data.validation_images("things16") == 1600
    assert asked("--images", "4").htp_images == 4 != asked("--htp-images", "4").images


def test_another_set_is_another_network(monkeypatch):
    """No checkpoint of Marked Things is needed to see that its own would be read."""
    asked = []
    monkeypatch.setattr(content_cache, "checkpoint", lambda name: asked.append(name) or name)
    static = rows.ours("g", "n", "int8")
    files = [static.file("mobilenet_v3_small", Inputs(image_set=name)) for name in data.DRAWN]
    assert len(set(files)) == 2
    assert asked == ["mobilenet_v3_small", "mobilenet_v3_small-marked-things"]


def test_trained_rows_are_trained_alike():
    """Ours, the peers' and the original of a group get the same arguments, but for the rounding."""
    from quantization_training import schedule

    inputs = Inputs(training=64, steps=2)
    trained = [row for row in rows.ROWS if row.trains]
    assert {row.by for row in trained} == {"", "ours", "peer"}
    for group, recipe in ((rows.TRAINED8, rows.QAT8), (rows.TRAINED4, rows.QAT4)):
        assert all(row.recipe == recipe for row in trained if row.group == group)
        told = schedule(recipe, inputs)
        assert (told["steps"], told["images"]) == (2, 64)
        assert told["distillation_weight"] == recipe.qat.distillation > 0
        assert told["learning_rate"] == recipe.qat.learning_rate


def test_a_trained_row_is_compared_with_the_original_that_was_trained_as_long(monkeypatch):
    monkeypatch.setattr(quantization, "made", lambda line, inputs: (line.row.name, 0.0, False))

    def compared(name):
        row = next(row for row in rows.ROWS if row.name == name)
        line = rows.Line("mobilenet_v3_small", row, "ORT")
        return quantization.references(line, Inputs())

    assert compared("PTQ int8") == compared("fp32") == ["fp32"]
    assert compared("fp32, trained as long as QAT int8") == ["fp32"]
    assert compared("QAT int8") == ["fp32", "fp32, trained as long as QAT int8"]
    assert compared("QAT w4a8") == ["fp32", "fp32, trained as long as QAT w4a8"]


# --- figures --------------------------------------------------------------------------------------


flags = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=300)


@given(flags)
@settings(deadline=None, max_examples=50)
def test_the_half_width_is_that_of_the_issue(pairs):
    one, other = np.array(pairs).T
    d, n = np.mean(one ^ other), len(pairs)
    assert figures.half_width(one, other) == pytest.approx(196 * (d / n) ** 0.5)
    assert figures.half_width(one, one) == 0.0


@given(flags)
@settings(deadline=None, max_examples=50)
def test_points_are_lost_against_the_better_of_the_references(pairs):
    right = np.zeros(len(pairs), bool)
    found = figures.compared(right, list(np.array(pairs).T))["difference"].value
    each = [metrics.paired_difference(right, was).value for was in np.array(pairs).T]
    assert found == min(each)


def verdict_lines(ours, *peers):
    """Lines of one group, `(name, number of right answers of 400)` each."""

    def line(by, name, hits):
        right = np.arange(400) < hits
        return {
            "model": "m", "group": rows.CHANNEL, "by": by, "what": name, "runtime": "ORT",
            "top1": metrics.Proportion(hits, 400), "sqnr": hits / 10, "right": right,
        }  # fmt: skip

    return [line("ours", *ours), *(line("peer", *peer) for peer in peers)]


@pytest.mark.parametrize(
    ("ours", "peers", "said"),
    [
        (390, [("AIMET, a", 300), ("NNCF, b", 310)], "ours ahead in top-1, +20.00"),
        (300, [("AIMET, a", 390), ("NNCF, b", 310)], "ours behind in top-1, -22.50"),
        (390, [("AIMET, a", 390), ("NNCF, b", 310)], "ours tied in top-1, +0.00"),
        (390, [("NNCF, a", 300), ("NNCF, b", 310)], "does not count: fewer than two peers ran"),
    ],
)
def test_a_verdict_is_about_our_preset_and_the_best_peer(ours, peers, said):
    lines = verdict_lines((rows.CHOSEN[rows.CHANNEL], ours), *peers)
    better = verdict_lines(("another of ours", 400))
    told = table.verdicts(lines + better)
    assert len(told) == 2 and said in told[0] and "another of ours" not in "".join(told)


def test_a_group_without_our_preset_has_no_verdict():
    assert table.verdicts(verdict_lines(("another of ours", 390), ("NNCF, b", 310))) == []


def test_a_file_tells_what_it_computes_at_which_width(tmp_path):
    """One product at 8 bits, one of three times as many MACs at 16, one left in float."""
    file = tmp_path / "mixed.onnx"
    widths_network(file)
    found = figures.widths(file)
    assert found.floats == 1
    assert found.wide == pytest.approx(3 / (1 + 3 + 3))


def widths_network(path):
    """Write Gemm (8 bits, 4 -> 4), Gemm (16 bits, 4 -> 12) and Gemm (float, 12 -> 4)."""
    made = [helper.make_tensor("s", TensorProto.FLOAT, [], [0.1])]
    made += [helper.make_tensor(f"z{n}", kind, [], [0]) for n, kind in
             ((8, TensorProto.UINT8), (16, TensorProto.UINT16))]  # fmt: skip
    nodes, x = [], "input"
    for i, (bits, n, m) in enumerate(((8, 4, 4), (16, 4, 12), (0, 12, 4))):
        made += [helper.make_tensor(f"w{i}", TensorProto.INT8, [m, n], [1] * n * m)]
        if bits:
            nodes += [
                helper.make_node("QuantizeLinear", [x, "s", f"z{bits}"], [f"q{i}"]),
                helper.make_node("DequantizeLinear", [f"q{i}", "s", f"z{bits}"], [f"d{i}"]),
            ]
            x = f"d{i}"
        nodes += [helper.make_node("DequantizeLinear", [f"w{i}", "s"], [f"f{i}"])]
        nodes += [helper.make_node("Gemm", [x, f"f{i}"], [f"y{i}"], f"gemm{i}", transB=1)]
        x = f"y{i}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in ("input", x)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], made)
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


MEANS = """
<ir_version: 10, opset_import: ["" : 17]>
means (float[1, 3, 8, 8] input) => (float[1, 3] logits) {
    mean = GlobalAveragePool(input)
    logits = Flatten(mean)
}
"""


def test_the_time_of_a_file_is_that_of_another_by_turns(tmp_path):
    file = tmp_path / "a.onnx"
    onnx.save(onnx.parser.parse_model(MEANS), file)
    image = np.zeros((1, 3, 8, 8), np.float32)
    assert 0 < figures.ratio(file, file, image) < 100  # finite, and of the right order


# --- separate environments --------------------------------------------------------------------


def test_environments_are_those_of_tools_with_a_lock(cache):
    found = peer_environments.ENVIRONMENTS
    for name, environment in found.items():
        assert environment.name == name and environment.script.is_file()
        assert all(environment.versions.values()) and str(environment)
    assert found["nncf"].tool == found["nncf_train"].tool


def test_a_program_of_another_environment_is_part_of_the_key(tmp_path, monkeypatch):
    row = next(row for row in rows.ROWS if row.environment)
    before = row.file("mobilenet_v3_small", Inputs())
    changed = tmp_path / row.environment.program
    changed.write_text(row.environment.script.read_text("utf-8") + "\nX = 1\n", "utf-8")
    monkeypatch.setattr(peer_environments.Environment, "script", changed)
    assert row.file("mobilenet_v3_small", Inputs()) != before


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """A tool on the lab's packages, installed for real, and a program that a test writes."""
    tiny_tool.wheel(tmp_path / "wheels")
    made = peer_environments.Environment("tiny", "tiny", "program.py")
    monkeypatch.setattr(peer_environments.Environment, "script", tmp_path / "program.py")
    monkeypatch.setitem(peer_environments.ENVIRONMENTS, "tiny", made)
    with tiny_tool.own_place(tmp_path, tiny_tool.LOCK + "on_lab: true\n"):
        yield made


@pytest.mark.slow
def test_the_last_words_of_a_program_are_the_reason(environment, tmp_path):
    environment.script.write_text(
        "import sys\ndef quantize(folder):\n    print('a')\n    sys.exit('no such operator\\n')\n"
    )
    with pytest.raises(LabError, match="no such operator"):
        environment.ask("quantize", folder=tmp_path)


@pytest.mark.slow
def test_a_program_is_given_the_network_the_images_and_the_schedule(environment, tmp_path):
    file = paths.folder(tmp_path / "made") / "x.onnx"
    environment.script.write_text(
        "import json, pathlib\n"
        "def quantize(folder):\n"
        "    place = pathlib.Path(folder)\n"
        "    told = json.loads((place / 'settings.json').read_text())\n"
        "    assert (place / 'calibration.npy').is_file()\n"
        "    assert told['image_set'] == 'things16' and told['schedule']['steps'] == 2\n"
        "    (place / 'made.onnx').write_bytes((place / 'float.onnx').read_bytes())\n"
        "    (place / 'seconds.txt').write_text(str(told['bits']))\n"
    )
    inputs = Inputs(calibration=2, training=64, steps=2, image_set="things16")
    given = {"tool": "tiny", "recipe": rows.QAT8, "bits": 4}
    assert peers.by_program("mobilenet_v3_small", file, inputs, **given) == 4.0
    assert file.read_bytes() == peers.float_file("mobilenet_v3_small", inputs).read_bytes()
