"""One network in many spellings: adapted, it computes the same, and it can be quantized."""

from collections import Counter

import numpy as np
import onnx
import pytest
import random_graphs
import spellings
from cases.draft import SIDE, Draft
from onnx import helper, numpy_helper

from labutils import metrics, pipeline, quantize
from labutils.errors import ModelFileError
from labutils.models import adapt
from labutils.onnxfile import canonical_form, constants, gemm_factors
from labutils.onnxfile.edit import nodes_within
from labutils.onnxfile.session import Session
from labutils.quantize import name_clashes
from labutils.quantize.prepare import prepared

IMAGES = np.random.default_rng(1).standard_normal((8, 3, SIDE, SIDE)).astype(np.float32)
MOST = {"float16": 1e-2}  # of the largest output; half precision rounds between the nodes
LEAST_SQNR_DB = 30  # of a16w8; a lost factor of a Gemm leaves less than 10


def computed(model, images=IMAGES[:1], optimize="all"):
    """Return every output by name, for each image."""
    session = Session(model, optimize=optimize)
    name, _, kind = session.inputs[0]
    kind = np.float16 if kind == "tensor(float16)" else np.float32
    names = [name for name, _, _ in session.outputs]
    rows = [session.run({name: image[None].astype(kind)}) for image in images]
    return {n: np.stack([row[i] for row in rows]) for i, n in enumerate(names)}


def assert_same(found, expected, most):
    assert list(found) == list(expected), "the names of the outputs stay"
    for name, values in expected.items():
        peak = np.abs(values.astype(np.float32)).max()
        np.testing.assert_allclose(found[name], values, rtol=0, atol=most * peak)


@pytest.fixture(params=spellings.SPELLINGS)
def spelled(request, tmp_path):
    file = tmp_path / f"{request.param}.onnx"
    onnx.save(spellings.SPELLINGS[request.param](), file)
    return file


def test_every_spelling_is_adapted_and_quantized(spelled, tmp_path):
    most = MOST.get(spelled.stem.split("_")[0], 1e-5)
    before, made = spelled.read_bytes(), adapt.adapted(spelled)
    assert spelled.read_bytes() == before
    onnx.checker.check_model(made.onnx.whole, full_check=True)
    assert canonical_form.canonicalize_(made.onnx.copy()) == []
    ready = prepared(spelled)
    onnx.checker.check_model(ready, full_check=True)
    found = computed(made.onnx)
    if spelled.stem.startswith("bfloat16"):  # which ONNX Runtime does not run
        assert any("NOT compared" in change for change in made.changes)
    else:
        assert_same(found, computed(spelled), most)
    assert_same(computed(ready), found, 1e-5)
    quantize.static(spelled, tmp_path / "q.onnx", IMAGES, "a16w8")
    shown = computed(made.onnx, IMAGES), computed(tmp_path / "q.onnx", IMAGES)
    assert list(shown[0]) == list(shown[1])
    assert metrics.sqnr_db(*(out["scores"].reshape(8, -1) for out in shown)) > LEAST_SQNR_DB


@pytest.mark.parametrize("op", spellings.STAY)
def test_a_branch_that_stays_is_refused_by_its_name(op, tmp_path):
    file = tmp_path / "stays.onnx"
    onnx.save(spellings.STAY[op](), file)
    made = adapt.adapted(file)
    assert_same(computed(made.onnx or file), computed(file), 1e-5)
    node = next(node for node in onnx.load(file).graph.node if node.op_type == op)
    with pytest.raises(ModelFileError, match=f"stays.onnx .*: {op} '{node.name}'"):
        quantize.static(file, tmp_path / "q.onnx", IMAGES, "int8")
    assert not (tmp_path / "q.onnx").exists()


def test_what_a_branch_reads_keeps_its_name(tmp_path):
    model = spellings.decided_while_it_runs()
    assert canonical_form.canonicalize_(model)
    onnx.checker.check_model(model, full_check=True)
    made = {name for node in model.graph.node for name in node.output}
    branch = next(
        a.g for node in model.graph.node for a in node.attribute if a.name == "else_branch"
    )
    assert branch.node[0].input[0] == "stem_act"
    assert "stem_act" in made


def test_what_needs_no_change_is_handed_on_untouched(tmp_path):
    draft = Draft()
    draft.constant("low", value=numpy_helper.from_array(np.float32(0)))
    draft.head(draft.node("Clip", [draft.stem(), "low"], "clip"))
    file = tmp_path / "plain.onnx"
    onnx.save(draft.finish(), file)
    made = adapt.adapted(file)
    assert (made.file, made.changes) == (file, ())


def resized(opset, mode, scales):
    """Return a network that gives what an old Upsample or Resize makes of its first layer."""
    draft = Draft(opset=opset)
    op, inputs = ("Resize" if opset == 10 else "Upsample"), [draft.stem()]
    given = {"scales": scales} if opset < 9 else {}
    if opset >= 9:
        inputs.append(draft.weight("scales", np.float32(scales)))
    draft.node(op, inputs, "resized", mode=mode, **given)
    return draft.finish([("resized", (1, 8, *(int(SIDE / 2 * scale) for scale in scales[2:])))])


@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(
    "factors", [(2, 2), (1.5, 3), (0.5, 0.5), (0.75, 0.6), (2, 0.5), (1, 1 / 3)]
)
def test_a_resize_of_before_opset_11_computes_what_it_did(mode, factors, tmp_path):
    for opset in (10,) if min(factors) < 1 else (7, 8, 9, 10):
        file = tmp_path / f"{opset}.onnx"
        onnx.save(resized(opset, mode, [1.0, 1.0, *map(float, factors)]), file)
        made = adapt.adapted(file)
        assert_same(computed(made.onnx), computed(file), 1e-5)
        ready = prepared(made.onnx)
        assert_same(computed(ready), computed(file), 1e-5)
        node = next(node for node in ready.graph.node if node.op_type == "Resize")
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        assert given["coordinate_transformation_mode"] == b"asymmetric"


def test_an_output_that_nothing_computes_is_left_out_by_name(tmp_path):
    file = tmp_path / "idle.onnx"
    onnx.save(spellings.idle_outputs(), file)
    made = adapt.adapted(file)
    said = " ".join(made.changes)
    for name in ("again", "anchors", "strides", "total", "sizes"):
        assert f"output '{name}' left out: it is a constant" in said
    for name in ("image", "same"):
        assert f"output '{name}' left out: it is the input itself" in said
    assert "equal to the original" in said
    expected = computed(file)
    assert_same(computed(made.onnx), {"scores": expected["scores"]}, 1e-5)
    quantize.static(file, tmp_path / "q.onnx", IMAGES, "int8")
    assert list(computed(tmp_path / "q.onnx")) == ["scores"]


def test_a_network_that_computes_nothing_is_refused_by_name(tmp_path):
    draft = Draft()
    draft.node("Identity", ["image"], "same")
    file = tmp_path / "idle.onnx"
    onnx.save(draft.finish([("same", draft.shape)]), file)
    with pytest.raises(ModelFileError, match="'same' is the input itself"):
        adapt.adapted(file)


def trained(op, shape=(1, 3, SIDE, SIDE)):
    draft = Draft(shape=shape)
    flag = draft.weight("training", np.array(True))
    if op == "Dropout":
        x = draft.node("Dropout", [draft.stem(), draft.weight("ratio", np.float32(0.5)), flag], "x")
    else:
        given = [draft.weight(name, np.ones(8, np.float32)) for name in "gbmv"]
        made = ["x", "mean", "variance"]
        x = draft.node("BatchNormalization", [draft.stem(), *given], made, training_mode=1)
    draft.head(x)
    return draft.finish([("scores", (shape[0], 16))])


def test_a_network_in_training_mode_is_refused_by_its_node(tmp_path):
    file = tmp_path / "trained.onnx"
    for op, shape in (("Dropout", (1, 3, SIDE, SIDE)), ("BatchNormalization", (2, 3, SIDE, SIDE))):
        onnx.save(trained(op, shape), file)
        with pytest.raises(ModelFileError, match=rf"{op} '/{op}_x' .* model\.eval\(\)"):
            adapt.adapted(file)


def test_an_open_batch_is_fixed_before_what_depends_on_it(tmp_path):
    """A normalization that sees one image, and a branch decided by a size, need a static batch."""
    for model in (trained("BatchNormalization"), spellings.squeeze_decided_by_a_size()):
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "n"
        file = tmp_path / "open.onnx"
        onnx.save(model, file)
        made = adapt.adapted(file)
        assert not {"BatchNormalization", "If"} & {n.op_type for n in made.onnx.proto.graph.node}
        assert_same(computed(made.onnx), computed(file, optimize="none"), 1e-5)


def test_a_normalization_without_its_other_outputs_is_written_plainly():
    """ONNX Runtime does not load what a cleaner left of it, so its twin is what to expect."""
    model = trained("BatchNormalization")
    expected = computed(model, optimize="none")
    node = next(node for node in model.graph.node if node.op_type == "BatchNormalization")
    del node.output[1:]
    assert any("model.eval()" in change for change in canonical_form.canonicalize_(model))
    assert_same(computed(model), expected, 1e-5)


@pytest.mark.parametrize("kind", [np.float32, np.uint8, np.float16])
def test_the_tensor_behind_an_adapted_input_takes_no_other_ones_name(kind, tmp_path):
    draft = Draft(shape=(1, SIDE, SIDE, 3))
    what = {np.float32: "nhwc"}.get(kind, np.dtype(kind).name)
    x = draft.node("Mul", ["image", draft.weight("image_nhwc_1", np.array(1, kind))], "image_same")
    x = draft.node("Transpose", [x], f"image_{what}", perm=[0, 3, 1, 2])
    x = draft.node("Cast", [x], f"image_{what}_2", to=onnx.TensorProto.FLOAT)
    draft.head(draft.node("Relu", [draft.convolution(x, "c", 3)], "relu"))
    model, file = spellings.unchecked(draft), tmp_path / "clash.onnx"
    number = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    model.graph.input[0].type.tensor_type.elem_type = number
    onnx.save(model, file)
    made = adapt.adapted(file)
    assert made.changes[-1] == "equal to the original on one input"
    onnx.checker.check_model(made.onnx.whole, full_check=True)


def test_a_random_network_needs_one_adaptation():
    """What was brought into canonical form is in it: a second time there is nothing to do."""
    for seed in range(6):
        model, oddities = random_graphs.network(seed)
        canonical_form.unlist_weights_(model)
        canonical_form.canonicalize_(model)
        assert canonical_form.is_canonical(model), oddities
        before = model.SerializeToString()
        assert canonical_form.canonicalize_(model) == []
        assert model.SerializeToString() == before


def test_a_damaged_sparse_weight_is_refused_by_its_name():
    values = numpy_helper.from_array(np.float32([1, 2]), "pruned")
    for places, shape in (([0, 99], [8]), ([0, -1], [8]), ([0, 1], [2**20, 2**20])):
        draft = Draft()
        draft.head(draft.stem())
        model = draft.finish()
        indices = numpy_helper.from_array(np.int64(places), "places")
        model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, shape))
        with pytest.raises(ModelFileError, match="'pruned'"):
            constants.dense_(model)


def test_large_generated_constants_stay_computed():
    draft = Draft()
    shape = draft.weight("shape", np.int64([8, 8, 3, 3]))
    w = draft.node("ConstantOfShape", [shape], "w", value=numpy_helper.from_array(np.float32([1])))
    draft.head(draft.node("Conv", [draft.stem(), w], "c", pads=[1] * 4))
    for most, left in ((575, 1), (576, 0)):
        model = draft.finish()
        canonical_form.canonicalize_(model, most)
        ops = [node.op_type for node in nodes_within(model.graph)]
        assert ops.count("ConstantOfShape") == left


def test_names_come_back_where_they_are_free():
    draft = Draft()
    draft.weight("b", draft.draw(8))
    draft.weight("b_scale", np.float32(0.5))
    x = draft.node("Conv", ["image", draft.weight("w", draft.draw(8, 3, 3, 3)), "b"], "c")
    draft.head(draft.node("Mul", [x, "b_scale"], "m"))
    model = draft.finish()
    tensors, nodes = name_clashes.clashes(model)
    assert (set(tensors), nodes) == ({"b_scale"}, {})
    before = model.SerializeToString(deterministic=True)
    name_clashes.rename_(model, tensors, nodes)
    assert name_clashes.clashes(model) == ({}, {})
    name_clashes.restore_(model, tensors, nodes)
    assert model.SerializeToString(deterministic=True) == before


def test_a_plain_gemm_stays_what_it_is():
    draft = Draft()
    draft.head(draft.stem())
    model = draft.finish()
    before = model.SerializeToString()
    assert gemm_factors.plain_gemms_(model) == 0
    assert model.SerializeToString() == before


@pytest.mark.parametrize(("opset", "factors"), [(18, 2), (19, 2), (20, 2), (21, 8)])
def test_a_group_normalization_of_any_opset_is_written_out(opset, factors, tmp_path):
    draft = Draft(opset=21)  # ONNX's checker takes that one only
    pair = [draft.weight(name, draft.draw(factors, scale=1.0)) for name in ("scale", "bias")]
    draft.node("GroupNormalization", [draft.stem(), *pair], "norm", num_groups=2, epsilon=1e-3)
    draft.head("norm")
    file = tmp_path / "norm.onnx"
    model = draft.finish()
    model.opset_import[0].version = opset
    onnx.save(model, file)
    made = adapt.adapted(file)
    assert "1 GroupNormalization written out" in made.changes
    assert "equal to the original on one input" in made.changes
    onnx.checker.check_model(made.onnx.whole, full_check=True)
    assert_same(computed(made.onnx), computed(file), 1e-5)
    assert_same(computed(prepared(made.file)), computed(file), 1e-5)


def weight_only(form, quantized_data=False):
    """Return a network whose Conv reads a weight that is stored as integers."""
    draft = Draft(opset=21 if form == "blocks" else 17)
    x, codes = draft.stem(), np.random.default_rng(2).integers(-7, 7, (8, 8, 3, 3)).astype(np.int8)
    scale = draft.weight("scale", np.full((1, 8, 3, 3) if form == "blocks" else 8, 0.05, "f4"))
    zero, more = [draft.weight("zero", np.zeros(8, np.int8))], {"axis": 0}
    if form == "blocks":
        zero, more = [], {"axis": 0, "block_size": 8}
    if form == "tensor":
        scale, zero, more = draft.weight("scale", np.float32(0.05)), [], {}
    name = draft.weight("codes", codes)
    if form == "rounded":
        real = draft.weight("codes", codes.astype(np.float32) * 0.05)
        name = draft.node("QuantizeLinear", [real, scale, *zero], "rounded", **more)
    w = draft.node("DequantizeLinear", [name, scale, *zero], "w", **more)
    if form == "turned":
        w = draft.node("Transpose", [w], "turned", perm=[1, 0, 2, 3])
    if quantized_data:
        step = draft.weight("step", np.float32(0.02)), draft.weight("none", np.uint8(0))
        x = draft.node("QuantizeLinear", [x, *step], "x_codes")
        x = draft.node("DequantizeLinear", [x, *step], "x_again")
    draft.head(draft.node("Conv", [x, w], "conv"))
    return draft.finish()


@pytest.mark.parametrize("form", ["channels", "tensor", "blocks", "rounded", "turned"])
def test_weights_stored_as_integers_beside_float_data_are_written_in_float(form, tmp_path):
    file = tmp_path / "stored.onnx"
    onnx.save(weight_only(form), file)
    made = adapt.adapted(file)
    assert "1 weight stored as integers written in float" in made.changes
    assert not {"QuantizeLinear", "DequantizeLinear"} & {
        n.op_type for n in made.onnx.proto.graph.node
    }
    assert_same(computed(made.onnx), computed(file), 1e-6)
    assert_same(computed(prepared(made.file)), computed(file), 1e-5)


def test_weights_beside_quantized_data_stay_integers(tmp_path):
    file = tmp_path / "quantized.onnx"
    onnx.save(weight_only("channels", quantized_data=True), file)
    made = adapt.adapted(file)
    assert (made.file, made.changes) == (file, ())


def test_weights_that_a_file_rounds_beside_quantized_data_become_integers(tmp_path):
    """As TensorRT's tools write them: a float weight, QuantizeLinear, DequantizeLinear."""
    file = tmp_path / "rounds.onnx"
    onnx.save(weight_only("rounded", quantized_data=True), file)
    made = adapt.adapted(file)
    assert "1 weight that the file rounds stored as integers" in made.changes
    operators = Counter(node.op_type for node in made.onnx.proto.graph.node)
    assert (operators["QuantizeLinear"], operators["DequantizeLinear"]) == (1, 2)
    assert_same(computed(made.onnx), computed(file), 1e-6)


@pytest.mark.parametrize("recipe", ["int8", "a16w8", "int8_tensor"])
def test_a_gemm_of_a_quantized_file_stays_what_it_is(recipe, tmp_path):
    draft = Draft()
    draft.head(draft.stem())
    file, made = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    onnx.save(draft.finish(), file)
    quantize.static(file, made, IMAGES, recipe)
    adapted = adapt.adapted(made)
    assert (adapted.file, adapted.changes) == (made, ())
    model = onnx.load(made)
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    assert any(gemm.input[2] in node.output for node in model.graph.node)  # its bias is behind a DQ


def test_the_user_is_told_what_a_target_refuses_of_the_file_as_it_is(lab, tmp_path):
    draft = Draft()
    draft.node("Identity", [draft.head(draft.stem(), output="raw")], "scores")
    file, made = tmp_path / "mine.onnx", tmp_path / "repaired.onnx"
    onnx.save(draft.finish(), file)
    code, out, _ = lab("diagnose", file, "--target", "tidl-11")
    assert code == 1
    assert "mine.onnx as it is has 1 x Identity, first /Identity_scores" in out
    code, out, _ = lab("repair", file, "--target", "tidl-11", "-o", made)
    assert code == 0
    assert "1 Identity node taken out" in out
    assert_same(computed(made), computed(file), 1e-5)
    assert lab("diagnose", made, "--target", "tidl-11")[0] == 0


def test_python_repairs_what_the_command_line_repairs(tmp_path):
    """A path that was not adapted before takes the same form first."""
    file = tmp_path / "function.onnx"
    onnx.save(spellings.SPELLINGS["function_of_another_opset"](), file)
    plan = pipeline.suggest(file, "snpe-2.7")
    assert [node.op_type for node in plan.check.blockers] == ["HardSwish"]
    made = pipeline.apply(file, "snpe-2.7", tmp_path / "repaired.onnx")
    assert not made.check.blockers
    assert_same(computed(made.file), computed(file), 1e-5)
    again = pipeline.replay(file, made.edits, tmp_path / "again.onnx")
    assert_same(computed(again.file), computed(file), 1e-5)


def pooled_with_dilations(file, dilations):
    draft = Draft(opset=19)
    window = {"kernel_shape": [2, 2], "dilations": dilations}
    draft.head(draft.node("AveragePool", [draft.stem()], "small", **window))
    onnx.save(draft.finish(), file)
    return file


def test_an_average_whose_dilations_are_idle_is_quantized(tmp_path):
    file = pooled_with_dilations(tmp_path / "m.onnx", [1, 1])
    quantize.static(file, tmp_path / "q.onnx", IMAGES, "int8")
    shown = computed(file, IMAGES)["scores"], computed(tmp_path / "q.onnx", IMAGES)["scores"]
    assert metrics.sqnr_db(*(out.reshape(8, -1) for out in shown)) > 15


def test_a_dilated_average_is_refused_in_8_bits_and_quantized_in_16(tmp_path):
    file = pooled_with_dilations(tmp_path / "m.onnx", [2, 1])
    words = "m.onnx cannot be quantized to 8 bits: AveragePool '/AveragePool_small' has dilations"
    with pytest.raises(ModelFileError, match=words):
        quantize.static(file, tmp_path / "q.onnx", IMAGES, "int8")
    quantize.static(file, tmp_path / "q.onnx", IMAGES, "a16w8")
    shown = computed(file, IMAGES)["scores"], computed(tmp_path / "q.onnx", IMAGES)["scores"]
    assert metrics.sqnr_db(*(out.reshape(8, -1) for out in shown)) > LEAST_SQNR_DB


def test_an_output_that_is_listed_twice_is_listed_once(tmp_path):
    draft, file = Draft(), tmp_path / "twice.onnx"
    draft.head(draft.stem())
    model = draft.finish()
    model.graph.output.append(model.graph.output[0])
    onnx.save(model, file)
    made = adapt.adapted(file)
    assert "1 output that was listed twice is listed once" in made.changes
    assert [output.name for output in made.onnx.outputs] == ["scores"]
    quantize.static(file, tmp_path / "q.onnx", IMAGES, "int8")
