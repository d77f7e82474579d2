"""What a search for mixed precision found is a recipe that training takes, node by node."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from small_networks import SIDE, crossing, inputs, vision_transformer
from torch.fx.passes.shape_prop import ShapeProp

from labutils import dlc, export, manifests, quantize, runtime
from labutils.errors import UnknownNameError, UsageError
from labutils.images import data
from labutils.models import zoo
from labutils.onnxfile.file import OnnxFile
from labutils.quantize import mixed, presets
from labutils.quantize import recipe as recipes
from labutils.quantize.mixed_report import mixed_recipe
from labutils.quantize.prepare import prepared
from labutils.quantize.presets import PRESETS
from labutils.quantize.recipe import Override, Recipe
from labutils.quantize.training import graph as qat_graph
from labutils.quantize.training import lowering, node_names, qat, tracing

SHIPPED = 128  # px
MAKE = {"crossing": crossing, "vit": vision_transformer}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Name -> the float ONNX file of a small network."""
    folder = tmp_path_factory.mktemp("float")
    for name, make in MAKE.items():
        export.to_onnx(make(), folder / f"{name}.onnx", size=SIDE)
    return {name: folder / f"{name}.onnx" for name in MAKE}


def named(module, size):
    """(name, operator) of the nodes that a traced network says it has in ONNX."""
    example = torch.zeros(1, 3, size, size)
    graph = tracing.trace(module, example)
    ShapeProp(graph).propagate(example)
    lowering.write_out_calls_(graph)
    ShapeProp(graph).propagate(example)
    found = node_names.node_names(graph).values()
    return {(name.name, name.op_type) for name in found if name.op_type}


@pytest.mark.parametrize("name", MAKE)
def test_a_traced_network_knows_the_names_of_its_onnx_nodes(name, files):
    graph = prepared(OnnxFile(files[name])).graph
    assert named(MAKE[name](), SIDE) == {(node.name, node.op_type) for node in graph.node} | (
        {("/Expand", "Expand")} if name == "vit" else set()  # of a constant: it was folded
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["tv:resnet18", "tv:mobilenet_v2", "tv:efficientnet_b0", "timm:mobilenetv3_small_100",
     "timm:efficientnet_lite0"],
)  # fmt: skip
def test_names_of_known_networks_are_those_of_their_files(name, tmp_path):
    model = zoo.load(name, weights="random", size=32)
    export.to_onnx(model.module, tmp_path / "float.onnx", size=32)
    graph = prepared(OnnxFile(tmp_path / "float.onnx")).graph
    assert named(model.module, 32) == {(node.name, node.op_type) for node in graph.node}


def rounded(path):
    """Tensor -> type of its codes; what only converts one width into another is left out."""
    model = onnx.load(path)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    return {
        node.input[0]: kinds[node.input[2]]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear"
        and not node.input[0].endswith(
            ("_DequantizeLinear_Output", "_convert_QuantizeLinear_Input")
        )
    }


@pytest.mark.parametrize(("name", "seed"), [("crossing", 0), ("crossing", 1), ("vit", 1)])
def test_a_mixed_recipe_rounds_the_same_tensors_to_the_same_width(name, seed, files):
    source = files[name]
    nodes = [node.name for node in prepared(OnnxFile(source)).graph.node]
    drawn = np.random.default_rng(seed).random(len(nodes)) < 0.4
    wide = [node for node, chosen in zip(nodes, drawn, strict=True) if chosen]
    recipe = mixed_recipe(PRESETS["int8"], wide, (), "drawn")
    static, trained = (source.with_name(f"{name}.{how}.onnx") for how in ("static", "trained"))
    quantize.static(source, static, inputs(), recipe)
    model = qat.prepare(MAKE[name](), recipe, size=SIDE)
    qat.calibrate_(model, inputs())
    report = qat.to_qdq(model, trained, size=SIDE, images=inputs())
    assert report.bit_equal > report.n / 2, str(report)
    ours, theirs = rounded(trained), rounded(static)
    assert {t: ours[t] for t in ours if t in theirs} == {t: theirs[t] for t in theirs if t in ours}
    # a Relu before a conversion keeps a rounding in front of it there, and none here
    assert set(ours) <= set(theirs)
    assert TensorProto.UINT16 in ours.values()


def test_what_a_search_found_is_trained_and_written_as_it_was_trained(files, tmp_path):
    found = mixed.search(files["crossing"], inputs(), mixed.Budget(mac_share=0.5), judged=8)
    saved = found.recipe.save(tmp_path / "mixed.yaml")
    recipe, preset = presets.for_training(presets.load(saved))
    assert (preset, recipe.qat) == ("int8_qat", PRESETS["int8_qat"].qat)
    assert recipe.overrides == found.recipe.overrides and recipe.kind == "mixed"
    model = qat.prepare(crossing(), recipe, size=SIDE)
    before = qat.calibrate_(model, inputs(32))
    assert before.activations[16] and before.activations[8]
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model.train()
    for step in range(3):
        loss = model(torch.from_numpy(inputs(8, seed=step))).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    moved = [n for n, p in model.named_parameters() if not torch.equal(start[n], p)]
    assert any("16bit" in name or "exponent" in name for name in moved)
    report = qat.to_qdq(model, tmp_path / "trained.onnx", size=SIDE, images=inputs(16))
    assert report.bit_equal > report.n / 2 and report.activations["uint16"]


@pytest.mark.parametrize(
    ("recipe", "preset"),
    [
        (Recipe(overrides=(Override("*", weights=4),)), "w4a8_qat"),
        (PRESETS["w4a16"], "w4a8_qat"),
        (PRESETS["pow2_channel"], "pow2_qat"),
        (PRESETS["a16w8"], "int8_qat"),
        (PRESETS["w4a8_qat"], ""),
    ],
)
def test_training_settings_that_a_recipe_lacks_are_of_the_nearest_preset(recipe, preset):
    trained, of = presets.for_training(recipe)
    assert of == preset and trained.qat == presets.load(preset or recipe).qat
    assert trained.replaced(qat=recipe.qat) == recipe


def test_ranges_of_16_bits_reach_over_outliers_as_after_training():
    recipe = Recipe(
        calibration=recipes.Calibration(outliers=0.25),
        overrides=(Override("/stem/*", activations=16),),
    )
    model = qat.prepare(crossing(), recipe, size=SIDE)
    qat.calibrate_(model, inputs(16))
    loud = {}
    for name, quantizer in qat_graph.activations_of(model).items():
        loud[name] = quantizer.high.item() - quantizer.low.item()
    plain = qat.prepare(crossing(), recipe.replaced(calibration=recipes.Calibration()), size=SIDE)
    qat.calibrate_(plain, inputs(16))
    whole = {n: q.high.item() - q.low.item() for n, q in qat_graph.activations_of(plain).items()}
    bits = {n: q.grid.bits for n, q in qat_graph.activations_of(model).items()}
    assert {16, 8} == set(bits.values())
    assert all(loud[n] == pytest.approx(whole[n]) for n in bits if bits[n] == 16)
    assert any(loud[n] < 0.99 * whole[n] for n in bits if bits[n] == 8)


def test_what_a_recipe_cannot_mean_in_training_is_refused():
    with pytest.raises(UsageError, match="overrides with the method mse"):
        qat.prepare(crossing(), Recipe(overrides=(Override("*", method="mse"),)), size=SIDE)
    with pytest.raises(UnknownNameError, match=r"/layer/layer.0/relu_2/Relu"):
        recipe = Recipe(overrides=(Override("/layer/layer.0/relu_2/Relu", activations=16),))
        qat.prepare(crossing(), recipe, size=SIDE)


@pytest.mark.slow
def test_a_searched_recipe_is_trained_by_one_command(lab, tmp_path, few_pictures):
    found, out = tmp_path / "mixed.onnx", tmp_path / "trained.onnx"
    small = ("mobilenet_v3_small", "--weights", "things16")
    code, _, err = lab(
        "quantize", *small, "--mac-share", 0.15, "--images", 16, "--held-out", 32, "-o", found
    )
    assert found.exists(), err
    recipe = tmp_path / "mixed.onnx.quantization.yaml"
    short = ("--steps", 2, "--size", 64, "--images", 64)
    code, said, err = lab("train", *small, "--recipe", recipe, *short, "-o", out)
    assert code == 0, said + err
    assert "has no `qat` part: trained with that of int8_qat" in said + err
    assert "Parity gate (ort_int8): passed" in said
    kinds = set(rounded(out).values())
    assert kinds == {TensorProto.UINT8, TensorProto.UINT16}
    assert manifests.read(out)["quantization"]["overrides"]


@pytest.mark.htp
@pytest.mark.slow
def test_the_htp_runs_a_trained_mixed_network_whole(tmp_path):
    model = zoo.load("mobilenet_v3_small", "things16", size=SHIPPED)
    pictures = model.preprocessing(data.calibration(64, SHIPPED).images)
    source = tmp_path / "float.onnx"
    export.to_onnx(model, source, size=SHIPPED)
    macs = prepared(OnnxFile(source)).graph.node
    wide = [node.name for node in macs if "/features.1" in node.name or "/features.9" in node.name]
    recipe = mixed_recipe(PRESETS["int8"], wide, (), "blocks 1 and 9 to 12")
    student = qat.prepare(model.module, recipe, size=SHIPPED)
    qat.calibrate_(student, pictures)
    qat.to_qdq(student, tmp_path / "q.onnx", size=SHIPPED, images=pictures[:8])
    shown = model.preprocessing(data.load("val", 12, SHIPPED).images)
    with runtime.connect(model.module) as original:
        gate = dlc.Gate(original, shown)
        made = dlc.convert(
            source, "qnn", tmp_path / "q.dlc", gate, dlc.Device(precision="int8"),
            quantized=tmp_path / "q.onnx",
        )  # fmt: skip
    assert made.gate.passed
    assert (tmp_path / "q.dlc").exists()
    json.dumps(made.to_dict())
    assert np.isfinite(made.gate.parity.sqnr_db)
