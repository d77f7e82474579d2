"""Outputs by name: several of them, of any shape, whole numbers, and where the scores are."""

import json
import re
from collections import namedtuple
from pathlib import Path

import cases
import numpy as np
import onnx
import pytest
import torch
from cases.draft import CLASSES, Draft
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from torch import nn

from labutils import compare, export, runtime
from labutils.errors import ExportError, ModelFileError, ParityError, UnknownNameError, UsageError
from labutils.images import data
from labutils.models import zoo
from labutils.onnxfile import parts
from labutils.runtime import outputs

STATED = ["--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5"]


class Detector(nn.Module):
    """Three maps, as detectors have them: no output is a row of scores."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
        self.boxes, self.heat, self.kinds = (nn.Conv2d(16, n, 1) for n in (8, 1, 4))

    def forward(self, x):
        x = torch.relu(self.body(x))
        heat = torch.sigmoid(self.heat(x))
        return {"boxes": self.boxes(x), "heat": heat, "kinds": self.kinds(x)}


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return Detector().eval()


@pytest.fixture
def detector_file(detector, tmp_path):
    return export.to_onnx(detector, tmp_path / "detector.onnx", size=(64, 96)).path


def drafted(folder, *ends, **settings):
    """A small classifier whose graph also has the nodes and outputs in `ends`."""
    draft = Draft(**settings)
    draft.head(draft.stem("HardSwish"), output="logits")
    made = [("logits", (1, CLASSES))]
    for node, entry in ends:
        draft.nodes.append(node)
        made.append(entry)
    model = draft.finish([entry for entry in made if entry])
    file = folder / "net.onnx"
    return file, model


# --- which output has the scores ----------------------------------------------------------------


@given(st.integers(2, 2000), st.sampled_from(["{0}", "{0},1,1", "1,1,{0}", "1,{0}"]))
def test_a_row_of_values_is_scores_whatever_its_rank(classes, pattern):
    shape = (1, *map(int, pattern.format(classes).split(",")))
    entry = outputs.Output("y", shape)
    assert entry.has_scores and outputs.scores_of([entry]) == "y"
    values = np.arange(3 * classes, dtype=np.float32).reshape(3, *shape[1:])
    np.testing.assert_array_equal(outputs.as_scores(values).ravel(), values.ravel())
    assert outputs.as_scores(values).shape == (3, classes)
    assert not outputs.Output("y", shape, is_float=False).has_scores


@pytest.mark.parametrize(
    "shape", [(1,), (1, 1), (1, 8, 22, 189), (1, 1, 40, 60), (1, 84, 8400), (1, 1, 1, 1), (), (5,)]
)
def test_maps_and_single_values_are_not_scores(shape):
    assert outputs.scores_of([outputs.Output("y", shape)]) == ""


@pytest.mark.parametrize("features_first", [False, True])
def test_features_that_the_scores_are_computed_from_are_not_the_scores(features_first, tmp_path):
    model = cases.ends.scores_and_features(features_first=features_first)
    for name, new in (("scores", "a"), ("flat", "b")):  # the names say nothing
        for node in model.graph.node:
            for side in (node.input, node.output):
                side[:] = [new if entry == name else entry for entry in side]
        for value in model.graph.output:
            value.name = new if value.name == name else value.name
    onnx.save(model, tmp_path / "n.onnx")
    assert zoo.load(tmp_path / "n.onnx").output == "a"


def test_names_are_those_of_dicts_named_tuples_and_places():
    one = torch.zeros(1)
    assert list(outputs.named(one)) == ["logits"]
    assert list(outputs.named((one, one))) == ["output_0", "output_1"]
    assert list(outputs.named({"a": one, "b": [one, one]})) == ["a", "b.0", "b.1"]
    assert list(outputs.named(namedtuple("Found", "boxes scores")(one, one))) == ["boxes", "scores"]
    assert list(outputs.named((one, one), ["x", "y"])) == ["x", "y"]
    for wrong in ("text", (one, 3)):
        with pytest.raises(TypeError, match=r"a (str|int)"):
            outputs.named(wrong)


def test_outputs_are_matched_by_name_also_as_qnn_writes_names():
    array = np.zeros((1, 2), np.float32)
    ours = {"/head/scores:0": array, "fe.at": array}
    assert outputs.matched(ours, {"fe_at": array, "_head_scores_0": array}) == (
        {"/head/scores:0": "_head_scores_0", "fe.at": "fe_at"}, [],
    )  # fmt: skip
    assert outputs.matched(ours, {"fe.at": array, "x": array})[1] == ["/head/scores:0"]
    assert outputs.matched({"a": array}, {"b": array}) == ({"a": "b"}, [])
    assert outputs.matched({"a.b": array, "c": array}, {"a_b": array, "a/b": array})[0] == {}


# --- the gate and the ladder --------------------------------------------------------------------


class Given:
    """A runner that gives arrays."""

    def __init__(self, output="", **arrays):
        self.arrays, self.output = arrays, output
        self.name, self.runtime, self.file = "given", "nothing", None

    def tensors(self, batch):
        return self.arrays

    def run(self, batch):
        return next(iter(self.arrays.values()))

    def close(self):
        pass


def maps(seed, *shape):
    return np.random.default_rng(seed).standard_normal((4, *shape)).astype(np.float32)


IMAGES = np.zeros((4, 3, 8, 8), np.float32)


def test_the_worst_output_decides_whatever_its_place():
    a, b = maps(0, 2, 3, 3), maps(1, 5, 2, 2)
    ours = Given(a=a, b=b)
    good = compare.gate(ours, Given(b=b * 1.0001, a=a), IMAGES, kind="htp_fp16")
    assert good.passed and good.output == "b" and not good.is_classifier
    assert good.parity.agreement is None and list(good.others) == ["a"]
    assert "no top-1 is claimed" in str(good) and "worst       output 'b'" in str(good)
    with pytest.raises(ParityError, match="output 'a': cosine") as error:
        compare.gate(ours, Given(a=a + maps(2, 2, 3, 3), b=b), IMAGES, kind="htp_int8")
    assert error.value.report.output == "a"


def test_an_output_beside_the_scores_is_judged_too():
    scores, features = maps(0, 16), maps(1, 8)
    ours = Given("scores", scores=scores, features=features)
    theirs = Given("scores", features=features, scores=scores)
    found = compare.gate(ours, theirs, IMAGES, kind="ort_fp32")
    assert found.output == "scores" and found.is_classifier and found.parity.agreement.value == 1
    assert "classifier  output 'scores'; --output chooses another" in str(found)
    wrong = Given("scores", scores=scores, features=features[::-1])
    with pytest.raises(ParityError, match="output 'features': cosine"):
        compare.gate(ours, wrong, IMAGES, kind="ort_fp32")
    with pytest.raises(ParityError, match="no output 'features'"):
        compare.gate(ours, Given("scores", scores=scores, other=features), IMAGES, kind="ort_fp32")


def test_whole_numbers_are_compared_exactly():
    scores, labels = maps(0, 16), np.arange(4)
    ours = Given("scores", scores=scores, labels=labels)
    same = compare.gate(ours, ours, IMAGES, kind="ort_fp32")
    assert "output labels  equal values: 100.0 %" in str(same)
    with pytest.raises(ParityError, match=r"output 'labels': equal values 0\.0 %"):
        compare.gate(
            ours, Given("scores", scores=scores, labels=labels + 1), IMAGES, kind="ort_fp32"
        )
    with pytest.raises(UsageError, match="labels"):
        compare.gate(Given(labels=labels), Given(labels=labels), IMAGES, kind="ort_fp32")


def test_the_ladder_has_every_output(tmp_path):
    images = data.load("val", 4, 16)
    scores, features = maps(0, 16), maps(1, 8, 2, 2)
    ours = Given("scores", scores=scores, features=features)
    theirs = Given("", features=features, scores=scores[:, ::-1])
    stages = [compare.Stage("a", ours), compare.Stage("b", theirs)]
    found = compare.ladder(stages, images, data.Preprocessing(16))
    assert found["b"].others["features"].cosine_min == 1 and found["b"].parity.cosine_min < 0.99
    assert "b, output features: cosine 1.00000" in str(found)
    maps_only = [compare.Stage(n, Given(x=features)) for n in "ab"]
    found = compare.ladder(maps_only, images, data.Preprocessing(16))
    assert found["b"].top1 is None and found["b"].parity.agreement is None
    assert (
        compare.Ladder.read_csv(found.to_csv(tmp_path / "l.csv"))["b"].parity == found["b"].parity
    )


# --- runners ------------------------------------------------------------------------------------


def test_every_runtime_gives_all_outputs_by_name(detector, detector_file):
    x = np.random.default_rng(0).standard_normal((3, 3, 64, 96), np.float32)
    with runtime.connect(detector) as torch_, runtime.connect(detector_file) as ort:
        ours, theirs = torch_.tensors(x), ort.tensors(x)
    assert list(ours) == list(theirs) == ["boxes", "heat", "kinds"]
    assert torch_.output == ort.output == ""
    for name, values in ours.items():
        np.testing.assert_allclose(theirs[name], values, atol=1e-5)
    with pytest.raises(UnknownNameError, match="Did you mean boxes"):
        runtime.connect(detector_file, output="box")


def test_an_output_without_an_axis_for_images_is_stacked():
    class Anchored(nn.Module):
        def forward(self, x):
            return x.mean((2, 3)), torch.arange(12.0).reshape(6, 2)

    with runtime.connect(Anchored().eval(), names=("scores", "anchors")) as runner:
        found = runner.tensors(np.zeros((5, 3, 8, 8), np.float32))
    assert {name: values.shape for name, values in found.items()} == {
        "scores": (5, 3), "anchors": (5, 6, 2),
    }  # fmt: skip
    assert runner.output == "scores"


@pytest.mark.parametrize(
    ("exporter", "opset"),
    [("torchscript", 17), pytest.param("dynamo", 18, marks=pytest.mark.slow)],
)
def test_both_exporters_name_the_outputs(exporter, opset, detector, tmp_path):
    file = tmp_path / "d.onnx"
    report = export.to_onnx(detector, file, size=(64, 96), opset=opset, exporter=exporter)
    assert [value.name for value in report.onnx.outputs] == ["boxes", "heat", "kinds"]
    assert "64 x 96 px" in report.compared


def test_what_is_not_a_tensor_is_not_exported(tmp_path):
    class Text(nn.Module):
        def forward(self, x):
            return x, "words"

    with pytest.raises(ExportError, match="returns a str, and tensors are needed"):
        export.to_onnx(Text().eval(), tmp_path / "t.onnx", size=32)


# --- whole ways ---------------------------------------------------------------------------------


@pytest.mark.htp
def test_a_detector_becomes_a_dlc_and_a_quantized_file(detector_file, lab, tmp_path):
    made = tmp_path / "d.dlc"
    code, out, err = lab("convert", detector_file, *STATED, "--target", "qnn", "-o", made)
    assert code == 0, out + err
    for name in ("boxes", "heat", "kinds"):
        assert re.search(rf"^  (worst +output '{name}'|output {name}  cosine)", out, re.M), out
    assert "no classifier" in out and "no top-1 is claimed" in out
    code, out, err = lab("run", made, "--images", 1)
    assert code == 0 and "output 'heat' (1, 1, 16, 24)" in out, out + err
    q = tmp_path / "q.onnx"
    code, out, err = lab("quantize", detector_file, *STATED, "--images", 8, "-o", q, "--json")
    facts = json.loads(out)
    assert code in (0, 1), err  # untrained maps may be too far apart in 8 bits
    assert facts["ladder"] is None and facts["gate"]["parity"]["agreement"] is None
    assert {facts["gate"]["output"], *facts["gate"]["others"]} == {"boxes", "heat", "kinds"}
    code, _, err = lab("quantize", detector_file, *STATED, "--agreement", 0.9, "-o", q)
    assert code == 2 and "not a classifier" in err and "--sqnr" in err


@pytest.mark.htp
def test_labels_beside_scores_go_through_the_simulator(lab, tmp_path):
    node = helper.make_node("ArgMax", ["logits"], ["labels"], "/am", axis=1, keepdims=0)
    file, model = drafted(tmp_path)
    model.graph.node.append(node)
    model.graph.output.append(helper.make_tensor_value_info("labels", TensorProto.INT64, (1,)))
    onnx.save(model, file)
    made = tmp_path / "n.dlc"
    code, out, err = lab("convert", file, *STATED, "--target", "qnn", "-o", made)
    assert code == 0, out + err
    assert "classifier  output 'logits'" in out and "output labels  equal values" in out


@pytest.mark.parametrize("end", ["ArgMax", "TopK", "Cast"])
def test_a_network_that_gives_labels_ends_at_its_scores_when_asked(end, lab, tmp_path):
    file = tmp_path / "labels.onnx"
    draft = Draft()
    draft.head(draft.stem("HardSwish"), output="logits")
    kind, shape = TensorProto.INT64, (1,)
    if end == "TopK":
        k = draft.weight("k", np.int64([3]))
        draft.node("TopK", ["logits", k], ["best", "scores"])
        made = [("scores", (1, 3))]
    else:
        draft.node("ArgMax", ["logits"], "place", axis=1, keepdims=0)
        kind = TensorProto.FLOAT if end == "Cast" else kind
        last = draft.node("Cast", ["place"], "scores", to=kind)
        made = [(last, shape)]
    onnx.save(draft.finish(made, kind=kind), file)
    q = tmp_path / "q.onnx"
    command = ["quantize", file, *STATED, "--images", "8", "--held-out", "16", "-o", q]
    code, out, err = lab(*command)
    assert code == 2 and f"ends in {'TopK' if end == 'TopK' else 'ArgMax'}" in err
    assert not out and not q.exists()
    advised = re.search(r"Pass --output (\S+)", err)[1]
    assert advised == "logits"
    code, out, err = lab(*command, "--output", advised)
    assert q.exists() and "it ends at 'logits', as asked" in out, out + err
    assert "top-1 agreement" in out
    code, out, err = lab("run", file, *STATED, "--images", "2", "--output", advised)
    assert code == 0 and out.count("class ") >= 4, out + err
    code, _, err = lab("run", file, *STATED, "--output", "logit")
    assert code == 2 and "Did you mean logits" in err
    with pytest.raises(ModelFileError, match="labels, not scores"):
        from labutils import pipeline

        model = zoo.load(file)
        pipeline.quantize_model(model, q)
    assert zoo.load(file, output="logits").output == "logits"


def test_the_classifier_can_be_chosen(lab, tmp_path):
    file = cases.KINDS["scores_and_features"].write(tmp_path / "two.onnx")
    code, out, _ = lab("run", file, *STATED, "--images", "1")
    assert code == 0 and "scores in output 'scores' (also: 'flat')" in out and "16 classes" in out
    code, out, _ = lab("run", file, *STATED, "--images", "1", "--output", "flat")
    assert code == 0 and "scores in output 'flat' (also: 'scores')" in out and "8 classes" in out
    code, out, err = lab("diagnose", file, "--output", "scors")
    assert code == 2 and "Did you mean scores" in err


@pytest.mark.htp
def test_a_dlc_remembers_which_output_was_chosen(lab, tmp_path):
    file = cases.KINDS["scores_and_features"].write(tmp_path / "two.onnx")
    made = tmp_path / "two.dlc"
    where = ["--target", "qnn", "--output", "flat", "-o", made]
    code, out, err = lab("convert", file, *STATED, *where)
    assert code == 0 and "classifier  output 'flat'" in out, out + err
    code, out, err = lab("run", made, "--images", "1")
    assert (code == 0 and "class 7" in out) or "class" in out, out + err
    assert "scores: output 'flat'" in out


def test_the_former_spelling_of_o_still_names_the_file(lab, tmp_path):
    file = cases.KINDS["logits_nchw"].write(tmp_path / "n.onnx")
    made = tmp_path / "q.onnx"
    code, out, err = lab(
        "quantize", file, *STATED, "--images", 4, "--held-out", 4, "--output", made
    )
    assert made.is_file(), out + err
    assert "The scores, (n, 16, 1, 1), are compared as (n, 16)." in out
    code, _, err = lab("convert", file, *STATED, "--target", "qnn", "--output", "scores")
    assert code == 2 and "Pass -o FILE.dlc" in err


def test_squeezenet_of_onnx_s_own_light_models_runs(lab):
    folder = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
    code, out, err = lab("run", folder / "light_squeezenet.onnx", *STATED, "--images", "1")
    assert code == 0 and "1000 classes" in out, out + err


def test_an_output_that_was_left_out_is_refused_with_the_reason(tmp_path):
    draft = Draft()
    draft.head(draft.stem())
    draft.node("Identity", [draft.weight("anchors", draft.draw(4, 4))], "boxes")
    onnx.save(draft.finish([("scores", (1, 16)), ("boxes", (4, 4))]), tmp_path / "net.onnx")
    words = "Output 'boxes' of net.onnx was left out: it is a constant, .*computed: scores"
    with pytest.raises(UsageError, match=words):
        zoo.load(str(tmp_path / "net.onnx"), output="boxes")


def test_a_network_that_ends_in_a_suppression_is_told_to_be_cut_before_it(lab, tmp_path):
    draft = Draft()
    scores = draft.head(draft.stem(), output="classes")
    shape = draft.weight("shape", np.int64([1, 4, 4]))
    one = draft.node("Reshape", [scores, shape], "by_box")
    boxes = draft.node("Sigmoid", [one], "boxes")
    most = draft.weight("most", np.int64(3))
    draft.node("NonMaxSuppression", [boxes, one, most], "kept")
    model = draft.finish([("kept", (None, 3))], kind=onnx.TensorProto.INT64)
    onnx.save(model, tmp_path / "net.onnx")
    code, _, err = lab(
        "convert", tmp_path / "net.onnx", "--target", "qnn", *STATED, "-o", tmp_path / "n.dlc"
    )
    assert (
        code == 2
        and "inputs=['image'], outputs=['boxes', 'by_box']" in err
        and "--output" not in err
    )
    made = parts.extract(
        tmp_path / "net.onnx", tmp_path / "cut.onnx", inputs=["image"], outputs=["boxes", "by_box"]
    )
    assert [o.name for o in onnx.load(made.file).graph.output] == ["boxes", "by_box"]


@pytest.mark.htp
def test_a_single_number_is_converted(lab, tmp_path):
    draft = Draft()
    draft.head(draft.stem(), output="row")
    draft.node("ReduceSum", ["row"], "age", keepdims=0)
    onnx.save(draft.finish([("age", ())]), tmp_path / "net.onnx")
    code, out, err = lab(
        "convert", tmp_path / "net.onnx", "--target", "qnn", *STATED, "-o", tmp_path / "n.dlc"
    )
    assert code == 0, out + err


def zipped(file):
    """Write a classifier as scikit-learn's converter does: probabilities become maps."""
    labels = [0, 1]
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node(
            "LinearClassifier", ["flat"], ["label", "shares"], domain="ai.onnx.ml",
            post_transform="SOFTMAX", coefficients=[0.1, 0.2] * 768, intercepts=[0.0, 1.0],
            classlabels_ints=labels,
        ),
        helper.make_node(
            "ZipMap", ["shares"], ["maps"], "zip", domain="ai.onnx.ml", classlabels_int64s=labels
        ),
    ]  # fmt: skip
    map_type = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    ends = [
        helper.make_tensor_value_info("label", TensorProto.INT64, [1]),
        helper.make_value_info("maps", helper.make_sequence_type_proto(map_type)),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 1)]
    graph = helper.make_graph(nodes, "zipped", [image], ends)
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=8), file)


def split_in_two(file):
    """Write a network whose output is a sequence."""
    node = helper.make_node("SplitToSequence", ["image"], ["halves"], "halve", axis=1)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 4])
    ends = [helper.make_tensor_sequence_value_info("halves", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node], "split", [image], ends)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, file)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (zipped, r"Output 'maps' of m.onnx is a sequence of maps, .*ZipMap 'zip'.*\['shares'\]"),
        (split_in_two, r"Output 'halves' of m.onnx is a sequence of tensors, .*'halve'"),
    ],
)
@pytest.mark.parametrize("command", ["run", "quantize", "diagnose"])
def test_an_output_that_is_no_tensor_is_refused_by_its_name(
    write, words, command, lab, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    write(Path("m.onnx"))
    given = {"diagnose": ["--target", "qnn"], "quantize": [*STATED, "-o", "q.onnx"]}
    code, _, err = lab(command, "m.onnx", *given.get(command, STATED))
    assert code == 2
    assert re.search(words, err.replace("\n", " ")), err
    if write is zipped:  # what it says to do gives a network of tensors
        cure = re.search(r"onnx\.utils\.extract_model\(.*\)", err.replace("\n", " "))
        eval(cure.group(), {"onnx": onnx})
        code, _, err = lab("run", "tensors.onnx", *STATED, "--images", "2")
        assert code == 0, err


def test_a_file_optimized_for_one_processor_is_refused_by_the_cause(lab, tmp_path):
    node = helper.make_node(
        "ReorderInput", ["image"], ["wide"], "order", domain="com.microsoft.nchwc"
    )
    back = helper.make_node(
        "ReorderOutput", ["wide"], ["scores"], domain="com.microsoft.nchwc", channels=3
    )
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])
    ends = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 3, 16, 16])]
    domains = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft.nchwc", 1)]
    graph = helper.make_graph([node, back], "g", [image], ends)
    file = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph, opset_imports=domains, ir_version=8), file)
    for command in (["quantize", file, "-o", tmp_path / "q.onnx"],
                    ["convert", file, "--target", "qnn", "-o", tmp_path / "m.dlc"]):  # fmt: skip
        code, _, err = lab(*command, *STATED)
        assert code == 2
        assert "ReorderInput 'order' is of the domain com.microsoft.nchwc" in err
        assert "before the optimization" in err
