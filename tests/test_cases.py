"""Files as people have them: each kind goes through the commands that it failed in.

A mark `xfail(strict=True)` says what comes today in place of what must come; the fix removes it.
"""

import re

import cases
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from labutils import metrics, surgery
from labutils.images import data

STATED = ["--mean", "0.5", "0.5", "0.5", "--std", "0.5", "0.5", "0.5"]
GRAY = ["--mean", "0.5", "--std", "0.5"]
FEW = ["--images", "8", "--held-out", "16"]
OURS = re.compile(r"\.labutils\.|/made/|Traceback|cannot be found in any scope")
# Rounding leaves 35 dB and more to a16w8 here; a lost beta of 0.8 leaves 9 dB.
LEAST_SQNR_DB = {"int8": 5, "a16w8": 25}

# (what is done, kind) -> what comes today.
TODAY = {}


def marked(doing, kinds):
    """Return the kinds as parameters; what fails today is marked, with what comes."""
    rows = []
    for kind in kinds:
        reason = TODAY.get((doing, kind))
        mark = [pytest.mark.xfail(strict=True, reason=f"today: {reason}")] if reason else []
        rows.append(pytest.param(kind, marks=mark))
    return pytest.mark.parametrize("kind", rows)


def another(test):
    """Give a test two members of each kind that hypothesis draws, the same ones each time."""
    drawn = given(chosen=st.data())(test)
    return settings(
        max_examples=2, derandomize=True, database=None, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )(drawn)  # fmt: skip


def stated(kind):
    return GRAY if kind == "gray" else STATED


def done(lab, *arguments):
    """Run a command that must succeed, without a word about our own files."""
    code, out, err = lab(*arguments)
    assert code == 0, f"exit {code}\n{out}\n{err}"
    assert not OURS.search(out + err), OURS.search(out + err)
    return out


def refused(lab, *arguments):
    """Run a command that must be refused in words; return them."""
    code, out, err = lab(*arguments)
    assert code in (1, 2), f"exit {code}\n{out}\n{err}"
    assert re.match(r"\w+Error: ", err), err
    assert not OURS.search(out + err), OURS.search(out + err)
    return out, err


def images(file, n=8):
    """Return `n` of the images that `quantize` calibrates with, as the file takes them."""
    _, channels, side, _ = [
        d.dim_value for d in onnx.load(file).graph.input[0].type.tensor_type.shape.dim
    ]
    found = data.Preprocessing(side, (0.5,) * 3, (0.5,) * 3)(data.calibration(n, side).images)
    return found if channels == 3 else found.mean(1, keepdims=True)


def computed(file, inputs):
    """Return the first output of an ONNX file for each image, one row per image."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    model = onnx.load(file)
    for node in model.graph.node:  # two of one name are refused, and names compute nothing
        node.name = ""
    session = ort.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return np.stack([session.run(None, {name: x[None]})[0].ravel() for x in inputs])


def quantized_well(lab, kind, file, folder):
    """Quantize by both usual recipes; the finer one must leave the function what it was."""
    inputs = images(file)
    expected = computed(file, inputs)
    for recipe, least in LEAST_SQNR_DB.items():
        made = folder / f"{recipe}.onnx"
        made.unlink(missing_ok=True)
        code, out, err = lab("quantize", file, *stated(kind), *FEW, "--recipe", recipe, "-o", made)
        # untrained scores lie close together: a changed top-1 may fail the gate (exit code 1)
        assert (code, err) in ((0, ""), (1, "")), f"exit {code}\n{out}\n{err}"
        assert not OURS.search(out), OURS.search(out)
        assert metrics.sqnr_db(expected, computed(made, inputs)) > least


QUANTIZED = [kind for kind in cases.KINDS if kind != "labels_not_scores"]


@marked("quantize", QUANTIZED)
def test_it_is_quantized(kind, lab, tmp_path):
    file = cases.KINDS[kind].write(tmp_path / f"{kind}.onnx")
    quantized_well(lab, kind, file, tmp_path)


@another
@marked("quantize", QUANTIZED)
def test_another_of_its_kind_is_quantized(kind, lab, tmp_path, chosen):
    parameters = chosen.draw(cases.KINDS[kind].others)
    file = cases.KINDS[kind].write(tmp_path / f"{kind}.onnx", **parameters)
    quantized_well(lab, kind, file, tmp_path)


CONVERTED = [
    "constant_nodes", "bias_in_value_floats", "bias_behind_identity", "torch_legacy_export",
    "names_of_the_quantizer", "grouped_deconvolution", "resize_modes", "resize_as_torch_writes_it",
    "local_functions", "constant_condition", "sparse_weight", "gemm_beta", "gemm_scalar_bias",
    "gray", "logits_nchw", "scores_and_features",
    # found in public trackers; the addresses are in tests/cases
    "nodes_of_one_name", "unsorted_nodes", "input_left_out", "other_name_of_the_domain",
    "stale_shapes", "negative_batch", "tied_weights", "fused_by_onnxruntime",
    "group_normalization", "twin_branches",
]  # fmt: skip
QUANTIZED_DLC = ["old_opset", "paddle", "gemm_scalar_bias", "gemm_bias_of_two_dimensions"]


def converted(lab, kind, folder, *more):
    file = cases.KINDS[kind].write(folder / f"{kind}.onnx")
    made = folder / f"{kind}.dlc"
    done(lab, "convert", file, *stated(kind), *more, "-o", made)
    assert made.is_file()


@pytest.mark.htp
@marked("convert", CONVERTED)
def test_it_is_converted(kind, lab, tmp_path, caplog):
    converted(lab, kind, tmp_path, "--target", "qnn")
    assert not caplog.text, "a library's warnings reach the user"


@pytest.mark.htp
@marked("convert --quantize", QUANTIZED_DLC)
def test_it_becomes_an_integer_dlc(kind, lab, tmp_path):
    converted(lab, kind, tmp_path, "--target", "qnn", "--quantize", "int8")


@pytest.mark.htp
@marked("convert --repair", ["rare_activations", "local_functions", "stale_shapes",
                             "other_name_of_the_domain"])  # fmt: skip
def test_what_qnn_refuses_and_a_rule_repairs_is_repaired(kind, lab, tmp_path):
    """Whatever the table of the target says: the writer takes part in the plan."""
    converted(lab, kind, tmp_path, "--target", "snpe-2.7", "--repair")


def repaired_well(lab, kind, target, folder):
    """Repair; the result is valid ONNX, computes the same, and nothing blocks it any more."""
    file = cases.KINDS[kind].write(folder / f"{kind}.onnx")
    made = folder / "repaired.onnx"
    done(lab, "repair", file, "--target", target, "-o", made)
    if not made.is_file():  # nothing was to be done
        made = file
    onnx.checker.check_model(onnx.load(made), full_check=True)
    inputs = images(file)
    expected, found = computed(file, inputs), computed(made, inputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    done(lab, "diagnose", made, "--target", target)


TIDL = ["constant_nodes", "bias_behind_identity", "torch_legacy_export", "paddle", "gemm_beta",
        "gemm_scalar_bias", "fused_by_onnxruntime"]  # fmt: skip
RDK = ["constant_nodes", "resize_as_torch_writes_it", "local_functions", "old_opset",
       "grouped_deconvolution", "constant_condition"]  # fmt: skip


@marked("repair for tidl-11", TIDL)
def test_it_is_repaired_for_tidl(kind, lab, tmp_path):
    repaired_well(lab, kind, "tidl-11", tmp_path)


@marked("repair for rdk-x5", RDK)
def test_it_is_repaired_for_rdk(kind, lab, tmp_path):
    repaired_well(lab, kind, "rdk-x5", tmp_path)


@marked("quantize --repair-for rdk-x5", ["old_opset", "bias_behind_identity"])
def test_what_is_repaired_to_opset_11_is_quantized(kind, lab, tmp_path):
    file = cases.KINDS[kind].write(tmp_path / f"{kind}.onnx")
    done(
        lab, "quantize", file, *STATED, *FEW, "--repair-for", "rdk-x5", "--recipe", "int8",
        "-o", tmp_path / "q.onnx",
    )  # fmt: skip


def test_what_is_inside_a_function_is_diagnosed(lab, tmp_path):
    file = cases.KINDS["local_functions"].write(tmp_path / "f.onnx")
    code, out, _ = lab("diagnose", file, "--target", "snpe-2.7")
    assert code == 1
    assert "HardSwish" in out


@pytest.mark.htp
@pytest.mark.parametrize(
    "setting", [("half_pixel", "floor"), ("align_corners", "ceil"), ("asymmetric", "ceil")]
)
def test_a_resize_that_qnn_computes_otherwise_is_diagnosed_or_repaired(setting, lab, tmp_path):
    coordinates, rounding = setting
    kind = cases.KINDS["resize_as_torch_writes_it"]
    file = kind.write(tmp_path / "r.onnx", coordinates=coordinates, rounding=rounding)
    code, out, _ = lab("diagnose", file, "--target", "qnn")
    assert code == 1
    assert "Resize" in out


def test_the_objection_of_the_opset_rule_is_told(lab, tmp_path):
    file = cases.KINDS["rare_activations"].write(tmp_path / "rare.onnx")
    code, out, err = lab("repair", file, "--target", "rdk-x5", "-o", tmp_path / "r.onnx")
    assert code in (0, 1)
    assert "no rule repairs 1 x opset 20" not in out + err


@pytest.mark.htp
@pytest.mark.parametrize("command", ["quantize", "convert"])
def test_labels_are_refused_before_any_work(command, lab, tmp_path):
    file = cases.KINDS["labels_not_scores"].write(tmp_path / "labels.onnx")
    where = ["--target", "qnn", "-o", "x.dlc"] if command == "convert" else [*FEW, "-o", "x.onnx"]
    out, err = refused(lab, command, file, *STATED, *where[:-1], tmp_path / where[-1])
    assert "writing" not in out
    assert "ArgMax" in err
    assert "scores" in err


@pytest.mark.htp
@pytest.mark.parametrize("op", ["GRU", "LSTM", "RNN"])
def test_a_recurrent_layer_is_refused_by_name(op, lab, tmp_path):
    """QNN's DLC writer ends its process over one: github.com/onnxruntime/onnxruntime-qnn/pull/498.

    So the table of the target has to say it, before anything is written.
    """
    file = cases.KINDS["recurrent"].write(tmp_path / "r.onnx", op=op)
    _, err = refused(lab, "convert", file, *STATED, "--target", "qnn", "-o", tmp_path / "r.dlc")
    assert op in err
    assert "SIGABRT" not in err


@marked("run", ["gray", "logits_nchw", "scores_and_features"])
def test_it_runs_on_images(kind, lab, tmp_path):
    file = cases.KINDS[kind].write(tmp_path / f"{kind}.onnx")
    out = done(lab, "run", file, *stated(kind), "--images", "2")
    assert "1 classes" not in out


class InPlace(nn.Module):
    """A residual written as ``y = act(x); x + y``, where the activation overwrites x."""

    def __init__(self, activation):
        super().__init__()
        self.act = activation(inplace=True)

    def forward(self, x):
        y = self.act(x)
        return x + y


@pytest.mark.parametrize("activation", [nn.Hardswish, nn.SiLU, nn.Hardsigmoid])
def test_an_activation_in_place_whose_input_is_read_again(activation):
    import torch

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), InPlace(activation), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    image = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(image)
    surgery.replace_(model, "exact", example_inputs=image)
    with torch.no_grad():
        np.testing.assert_allclose(model(image).numpy(), expected.numpy(), atol=1e-5)
