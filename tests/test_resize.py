"""Resize on the HTP: what it reads was measured; what differs is diagnosed, and repaired."""

import itertools

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from labutils import dlc, quantize, runtime, surgery, targets
from labutils.errors import SurgeryError, TranslationError
from labutils.onnxfile.file import OnnxFile
from labutils.onnxfile.session import Session
from labutils.targets import resampling

SIDE = 6
NEAREST = list(itertools.product(resampling.COORDINATES[:5], resampling.ROUNDINGS))
OTHERS = [(mode, c) for mode in ("linear", "cubic")
          for c in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")]  # fmt: skip
FACTORS = [(2, 2), (3, 2), (1.5, 1.5), (0.5, 0.5), (1.3, 0.7)]


def resize(path, factors, mode="nearest", opset=19, sized=False, side=SIDE, **settings):
    """Write Relu -> Resize of a (1, 3, side, side) input; opset 11 takes no absent inputs."""
    wanted = [1, 3, *(int(np.float32(f) * side) for f in factors)]
    absent = "none" if opset < 13 else ""
    constants = {"none": np.zeros(0, np.float32), "sizes": np.array(wanted),
                 "scales": np.array([1, 1, *factors], np.float32)}  # fmt: skip
    inputs = ["x", absent, absent, "sizes"] if sized else ["x", absent, "scales"]
    nodes = [
        helper.make_node("Relu", ["input"], ["x"], name="/relu"),
        helper.make_node("Resize", inputs, ["y"], name="/up/Resize", mode=mode, **settings),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
            for name, shape in (("input", [1, 3, side, side]), ("y", wanted))]  # fmt: skip
    used = [numpy_helper.from_array(v, n) for n, v in constants.items() if n in inputs]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], used)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def ramp(side=SIDE):
    """Every element another number, which float16 holds."""
    return np.arange(3 * side * side, dtype=np.float32).reshape(1, 3, side, side)


def blocks(path):
    return [n.op_type for n in targets.check(path, "qnn").blockers]


def repaired(path):
    """Apply the rule to the file, where it means the node; return the operators after."""
    model = onnx.load(path)
    try:
        surgery.replace_(model, "nearest-resize")
    except SurgeryError as error:
        assert "matched nothing" in str(error)
    else:
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
    return [node.op_type for node in model.graph.node]


def on_the_dlc(path):
    """Return what the HTP makes of the file's DLC."""
    made = dlc.write(path, path.with_suffix(".dlc"))
    with runtime.connect(made.file) as itself:
        return itself.run(ramp())


@settings(max_examples=60, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    way=st.sampled_from(NEAREST),
    factors=st.tuples(*[st.floats(0.3, 4).map(lambda f: round(f, 2))] * 2)
    | st.sampled_from(FACTORS),
    sized=st.booleans(),
    opset=st.sampled_from([11, 13, 17, 19]),
    side=st.integers(4, 9),
)
def test_the_rule_keeps_the_function_and_leaves_what_the_htp_has(
    way, factors, sized, opset, side, tmp_path
):
    coordinates, rounding = way
    if coordinates == "half_pixel_symmetric":
        opset = 19
    path = resize(tmp_path / "r.onnx", factors, opset=opset, sized=sized, side=side,
                  coordinate_transformation_mode=coordinates, nearest_mode=rounding)  # fmt: skip
    before = Session(path).run({"input": ramp(side)})[0]
    repaired(path)
    np.testing.assert_array_equal(Session(path).run({"input": ramp(side)})[0], before)
    assert blocks(path) == []


@pytest.mark.parametrize("by", [1, 4, 5, 12, 3.5, 0.45])
@pytest.mark.parametrize(("coordinates", "rounding"), NEAREST)
def test_what_is_read_along_one_axis_is_what_onnx_runtime_reads(by, coordinates, rounding):
    sized = isinstance(by, int)
    (axis,) = resampling.axes([7], *((None, np.array([by])) if sized else (np.array([by]), None)))
    inputs = {"roi": np.zeros(0, np.float32), "scales": np.zeros(0, np.float32)}
    inputs |= {"sizes": np.array([by])} if sized else {"scales": np.array([by], np.float32)}
    node = helper.make_node("Resize", ["x", *inputs], ["y"], mode="nearest", nearest_mode=rounding,
                            coordinate_transformation_mode=coordinates)  # fmt: skip
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [s])
            for n, s in (("x", 7), ("y", axis.resized))]  # fmt: skip
    tensors = [numpy_helper.from_array(value, name) for name, value in inputs.items()]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    (expected,) = Session(model).run({"x": np.arange(7, dtype=np.float32)})
    assert list(resampling.nearest(axis, coordinates, rounding)) == expected.tolist()


def test_whole_factors_stay_one_node_and_others_become_gathers(tmp_path):
    torch = {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_floor"}
    assert repaired(resize(tmp_path / "a.onnx", (2, 2), **torch)) == ["Relu", "Resize"]
    floor = torch | {"nearest_mode": "floor"}
    assert repaired(resize(tmp_path / "b.onnx", (2, 2), **floor)) == [
        "Relu", "Reshape", "Gather", "Reshape",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("mode", "opset", "stated", "silent", "why"),
    [
        ("nearest", 11, {"coordinate_transformation_mode": "tf_half_pixel_for_nn"}, False,
         "does not compile"),
        ("linear", 11, {"coordinate_transformation_mode": "tf_half_pixel_for_nn"}, False,
         "coordinate_transformation_mode is"),
        ("linear", 17, {"coordinate_transformation_mode": "tf_crop_and_resize"}, False,
         "coordinate_transformation_mode is"),
        ("linear", 19, {"coordinate_transformation_mode": "half_pixel_symmetric"}, False,
         "coordinate_transformation_mode is"),
        ("linear", 18, {"antialias": 1}, False, "no antialias"),
        ("cubic", 17, {"exclude_outside": 1}, True, "exclude_outside"),
    ],
)  # fmt: skip
def test_a_resize_that_the_htp_does_not_have_is_diagnosed(
    mode, opset, stated, silent, why, tmp_path
):
    path = resize(tmp_path / "r.onnx", (2, 2), mode, opset, **stated)
    (found,) = targets.check(path, "qnn").blockers
    assert (found.node, found.silent) == ("/up/Resize", silent) and why in found.evidence
    assert found.fails == (mode == "nearest")


def named(path, wanted, places, policy, mode="nearest", **settings):
    """Write Relu -> Resize of a (1, 3, 6, 7) input to sizes of the named axes, opset 18."""
    nodes = [
        helper.make_node("Relu", ["input"], ["x"], name="/relu"),
        helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], name="/up/Resize", mode=mode,
                         axes=places, keep_aspect_ratio_policy=policy, **settings),
    ]  # fmt: skip
    ends = [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 6, 7]),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]  # fmt: skip
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:],
                              [numpy_helper.from_array(np.array(wanted), "sizes")])  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(onnx.shape_inference.infer_shapes(model, data_prop=True), path)
    return path


@settings(max_examples=30, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(
    way=st.sampled_from([w for w in NEAREST if w[0] != "half_pixel_symmetric"]),
    wanted=st.tuples(st.integers(4, 20), st.integers(4, 20)),
    places=st.sampled_from([[2, 3], [3, 2], [-1, -2]]),
    policy=st.sampled_from(["stretch", "not_larger", "not_smaller"]),
)
@example(way=("half_pixel", "floor"), wanted=(4, 4), places=[-1, -2], policy="not_larger")
def test_axes_that_are_named_and_sides_in_proportion_are_read_as_onnx_runtime_does(
    way, wanted, places, policy, tmp_path
):
    path = named(tmp_path / "r.onnx", list(wanted), places, policy,
                 coordinate_transformation_mode=way[0], nearest_mode=way[1])  # fmt: skip
    images = np.arange(126, dtype=np.float32).reshape(1, 3, 6, 7)
    before = Session(path).run({"input": images})[0]
    lengths = resampling.axes([1, 3, 6, 7], None, np.array(wanted), places, policy)
    if lengths is None:
        assert policy != "stretch" and before.shape == images.shape
    else:
        assert [axis.resized for axis in lengths] == list(before.shape)
    repaired(path)
    np.testing.assert_array_equal(Session(path).run({"input": images})[0], before)
    told = blocks(path)
    assert policy != "stretch" or told == []


def test_a_side_that_is_rounded_up_to_keep_the_ratio_is_told(tmp_path):
    """7 x 1.5 is 11 elements by a factor of 1.5, which the HTP takes for 11 / 7."""
    path = named(tmp_path / "r.onnx", [9, 15], [2, 3], "not_larger", "linear")
    (found,) = targets.check(path, "qnn").blockers
    assert found.silent and "the ratio of the sizes" in found.evidence


def test_what_no_rule_repairs_is_diagnosed(tmp_path):
    path = resize(tmp_path / "r.onnx", (1.3, 1.3), "linear")
    (found,) = targets.check(path, "qnn").blockers
    assert found.silent and "the ratio of the sizes" in found.evidence


@pytest.mark.htp
@pytest.mark.parametrize("bits", [8, 16])
def test_integers_are_gathered_rightly_on_the_htp(bits, tmp_path):
    """Doubling 16 rows by a Gather along the rows is wrong there, so the rule gathers otherwise."""
    path = resize(tmp_path / "r.onnx", (2, 2), side=16, nearest_mode="floor")
    images = np.random.default_rng(0).uniform(-1, 3, (4, 3, 16, 16)).astype(np.float32)
    assert "Gather" in repaired(path)
    quantized = tmp_path / "q.onnx"
    quantize.static(path, quantized, images, "int8" if bits == 8 else "a16w8")
    with runtime.connect(quantized) as ort, runtime.connect(quantized, "htp") as htp:
        error = np.abs(ort.run(images) - htp.run(images)).max()
    assert error < 3 * 3 / (2**bits - 1) + 1e-3  # a step or two of the input; elements differ by 1


@pytest.mark.htp
@pytest.mark.parametrize(
    ("mode", "coordinates", "rounding", "factors"),
    [
        ("nearest", "asymmetric", "floor", (2, 2)),  # the HTP has it
        ("nearest", "half_pixel", "round_prefer_floor", (2, 2)),  # written as another
        ("nearest", "asymmetric", "ceil", (2, 2)),  # refused by QNN, then Gather
        ("nearest", "half_pixel", "floor", (1.5, 0.5)),  # taken for another by the HTP
        ("linear", "half_pixel", "", (2, 2)),
    ],
)
def test_a_repaired_resize_is_right_in_the_dlc(mode, coordinates, rounding, factors, tmp_path):
    right_in_the_dlc(mode, coordinates, rounding, factors, tmp_path / "r.onnx")


@pytest.mark.htp
def test_tf_half_pixel_is_refused_before_it_is_written_and_right_once_repaired(tmp_path):
    path = resize(tmp_path / "r.onnx", (2, 1.5), opset=11, sized=True, nearest_mode="floor",
                  coordinate_transformation_mode="tf_half_pixel_for_nn")  # fmt: skip
    with pytest.raises(TranslationError, match="not write a working DLC for Resize '/up"):
        dlc.refuse_never_written(OnnxFile(path))
    (expected,) = Session(path).run({"input": ramp()})
    repaired(path)
    assert not blocks(path)
    assert np.abs(on_the_dlc(path).reshape(expected.shape) - expected).max() < 0.1


@pytest.mark.sweep
@pytest.mark.htp
@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize(
    ("mode", "coordinates", "rounding"),
    [*(("nearest", *way) for way in NEAREST), *((*way, "") for way in OTHERS)],
)
def test_every_resize_is_right_in_the_dlc_or_diagnosed(
    mode, coordinates, rounding, factors, tmp_path
):
    right_in_the_dlc(mode, coordinates, rounding, factors, tmp_path / "r.onnx")


def right_in_the_dlc(mode, coordinates, rounding, factors, path):
    """The table tells what goes wrong; after the rule, what it does not tell is right."""
    stated = {"coordinate_transformation_mode": coordinates}
    resize(path, factors, mode, **stated, **({"nearest_mode": rounding} if rounding else {}))
    (expected,) = Session(path).run({"input": ramp()})
    repaired(path)
    if blocks(path):
        assert mode != "nearest" and factors == (1.3, 0.7)
        return
    error = np.abs(on_the_dlc(path).reshape(expected.shape) - expected).max()
    assert error < (
        0.1 if mode == "nearest" else 2e-3 * expected.max()
    )  # the next element is 1 away
