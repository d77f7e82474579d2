"""Static graphs: what they show, that they are well-formed, safe and the same every time."""

import xml.etree.ElementTree as ET

import numpy as np
import onnx
import pytest
import tflite_files
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from labutils import export, surgery, targets
from labutils.errors import ModelFileError, UnknownNameError, UsageError
from labutils.onnxfile import graph
from labutils.show import before_after, subgraph
from labutils.show.graphs.graph_layout import Extent, arrange

NS = "{http://www.w3.org/2000/svg}"


def texts(svg):
    return [node.text for node in ET.fromstring(svg.data).iter(f"{NS}text")]


def rects(svg):
    """(x, y, width, height) of all boxes: the rectangles with a border, the ground left out."""
    found = [r.attrib for r in ET.fromstring(svg.data).iter(f"{NS}rect") if "stroke" in r.attrib]
    return [tuple(float(r[k]) for k in ("x", "y", "width", "height")) for r in found[1:]]


def tiny(names=("conv", "swish", "add"), channel=4):
    """A residual block: Conv, HardSwish, Add, with a weight from a Constant node."""
    weight = numpy_helper.from_array(np.ones((channel, channel, 3, 3), np.float32), "w")
    three = numpy_helper.from_array(np.float32(3.0), "three")
    nodes = [
        helper.make_node("Constant", [], ["c"], "const", value=three),
        helper.make_node("Conv", ["x", "w"], ["a"], names[0], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("HardSwish", ["a"], ["b"], names[1]),
        helper.make_node("Add", ["b", "x"], ["d"], names[2]),
        helper.make_node("Mul", ["d", "c"], ["y"], "last"),
    ]
    shape = [1, channel, 8, 8]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "xy"]
    made = helper.make_graph(nodes, "g", value[:1], value[1:], [weight])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])


def foreign(op_type):
    """An operator that ONNX does not know, between two tensors with long names."""
    names = "x" * 80, "y.z" * 30
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, "h"]) for n in names]
    node = helper.make_node(op_type, [names[0]], [names[1]], "n", domain="my.own.operators")
    made = helper.make_graph([node], "g", value[:1], value[1:])
    ids = [helper.make_opsetid("", 17), helper.make_opsetid("my.own.operators", 1)]
    return helper.make_model(made, opset_imports=ids)


def test_a_foreign_operator_says_whose_it_is():
    assert "of my.own.operators" in texts(subgraph(foreign("Gizmo")))
    assert not [t for t in texts(subgraph(tiny())) if t.startswith("of ")]


@pytest.fixture(scope="module")
def repaired(tmp_path_factory):
    """A tiny file, and the same with its activation replaced."""
    folder = tmp_path_factory.mktemp("graphs")
    before, after = folder / "before.onnx", folder / "after.onnx"
    model = tiny(("/block/block.0/Conv", "/block/block.1/HardSwish", "/block/Add"))
    onnx.save(model, str(before))
    surgery.replace_(model)
    onnx.save(model, str(after))
    return before, after


def test_a_module_of_a_real_network(small_onnx):
    svg = subgraph(small_onnx(), "features.1.block.1")
    shown = texts(svg)
    for words in ("GlobalAveragePool", "HardSigmoid", "alpha = 0.166667", "W: 8×16×1×1", "Mul"):
        assert words in shown
    assert "1×16×1×1" in shown  # the shape between pooling and fc1
    assert "features.1.block.1.fc1" in shown
    assert "HardSigmoid" in svg.alt and "features.1.block.1" in svg.alt


def test_depthwise_and_stride_are_told(small_onnx):
    shown = texts(subgraph(small_onnx(), "features.1.block.0", 0))
    assert "3×3, stride 2, 16 groups (depthwise)" in shown


def test_radius_adds_neighbours():
    none, one, two = (subgraph(tiny(), "swish", radius) for radius in (0, 1, 2))
    assert "HardSwish" in texts(none) and "Conv" not in texts(none)
    assert "… Conv" in texts(none) and "Add …" in texts(none)
    assert {"Conv", "Add"} <= set(texts(one)) and "Mul" not in texts(one)
    assert "Mul" in texts(two)


def test_a_tensor_names_its_maker():
    assert subgraph(tiny(), "b", 0).data.count("HardSwish</text>") == 1


def test_constants_are_told_in_the_node_that_reads_them():
    shown = texts(subgraph(tiny()))
    assert "B = 3" in shown and "W: 4×4×3×3" in shown
    assert "Constant" not in shown


def test_weights_behind_dequantization_are_folded():
    weight = numpy_helper.from_array(np.ones((4, 4, 1, 1), np.int8), "q")
    scale = numpy_helper.from_array(np.float32(0.5), "s")
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s"], ["w"], "dq"),
        helper.make_node("Conv", ["x", "w"], ["y"], "conv"),
    ]
    value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 4, 8, 8]) for n in "xy"]
    made = helper.make_graph(nodes, "g", value[:1], value[1:], [weight, scale])
    shown = texts(subgraph(helper.make_model(made)))
    assert "W: 4×4×1×1 int8" in shown and "DequantizeLinear" not in shown


def test_bytes_are_equal_for_equal_graphs(repaired, tmp_path):
    report = targets.check(repaired[0], "snpe-2.7")
    one, two = (subgraph(repaired[0], report=report) for _ in "ab")
    assert one.data == two.data
    saved = one.save(tmp_path / "a.svg")
    assert saved.read_bytes() == two.data.encode()
    with pytest.raises(UsageError, match=r"\.svg"):
        one.save(tmp_path / "a.png")


def test_it_stands_alone(repaired):
    data = subgraph(repaired[0], report=targets.check(repaired[0], "snpe-2.7")).data
    for outside in ("<script", "href", "@import", "url(http", "<image", "<foreignObject", " on"):
        assert outside not in data
    root = ET.fromstring(data)
    ids = [e.attrib["id"] for e in root.iter() if "id" in e.attrib]
    assert len(ids) == len(set(ids))
    assert root.attrib["role"] == "img"
    assert set(root.attrib["aria-labelledby"].split()) <= set(ids)
    assert root.find(f"{NS}title").text and root.find(f"{NS}desc").text
    assert root.find(f"{NS}rect").attrib["fill"] == "#ffffff"  # its own ground


def test_html_is_an_image_with_the_sentence():
    svg = subgraph(tiny(('"><script>alert(1)</script>', "s", "a")))
    html = svg._repr_html_()
    assert "<img alt=" in html and "base64," in html and "<script" not in html
    assert svg._repr_svg_() == svg.data and str(svg) == svg.alt


@pytest.mark.parametrize("name", ["<b>&'\"", "]]>", "a\x00b\x1b[31m", "日本 ‮ \ufffe", "x" * 500])
def test_any_name_gives_a_well_formed_picture(name):
    model = tiny((name, "swish", "add"))
    svg = subgraph(model)
    root = ET.fromstring(svg.data)
    tips = [t.text for t in root.iter(f"{NS}title")]
    clean = "".join(c if c >= " " and c != "\ufffe" else "\ufffd" for c in name)
    assert clean in tips
    assert max(len(text or "") for text in texts(svg)) <= 60


def test_verdicts_have_a_word_a_symbol_and_a_border(repaired):
    before = repaired[0]
    report = targets.check(before, "snpe-2.7")
    svg = subgraph(before, report=report)
    shown = texts(svg)
    assert shown.count("unsupported") == 1 and "unsupported: 1 node" in shown
    assert "Operator table of snpe-2.7" in shown
    assert any("is not run here" in text for text in shown)
    assert "unsupported: HardSwish (/block/block.1/HardSwish)" in svg.alt
    borders = {r.get("stroke"): r for r in ET.fromstring(svg.data).iter(f"{NS}rect")}
    assert borders["#9c3800"].attrib["stroke-width"] == "3.5"
    assert "url(#h" in svg.data  # hatched
    plain = subgraph(before)
    assert "supported" not in plain.data and "url(#h" not in plain.data


def test_the_four_verdicts_differ_without_colour():
    from labutils.show.graphs.svg import STYLES

    assert list(STYLES) == ["supported", "constrained", "unsupported", "unknown"]
    assert len({(width, dash) for _, _, width, dash, _ in STYLES.values()}) == 4
    assert len({path for *_, path in STYLES.values()}) == 4


@pytest.mark.parametrize("dark", ["supported", "constrained", "unsupported", "unknown"])
def test_text_of_verdicts_is_legible(dark):
    from labutils.show.graphs.svg import STYLES

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert 1.05 / (luminance(STYLES[dark][0]) + 0.05) > 5


def test_a_report_about_another_file_is_refused(repaired, small_onnx):
    report = targets.check(repaired[0], "snpe-2.7")
    with pytest.raises(UsageError, match="no verdict on node"):
        subgraph(small_onnx(), "features.0", report=report)


def test_a_refused_opset_is_told_beside_the_nodes(repaired):
    report = targets.check(repaired[0], "rdk-x5")
    assert report.opset_blocker
    svg = subgraph(repaired[0], report=report)
    assert "It refuses opset 17 as such." in texts(svg)
    assert "rdk-x5 refuses opset 17" in svg.alt
    assert "refuses" not in subgraph(repaired[0], report=targets.check(repaired[0], "qnn")).data


def test_words_stay_inside_the_picture(repaired):
    """By the widest letters of DejaVu Sans at this size, as a browser would draw them."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath

    reports = tuple(targets.check(file, "snpe-2.7") for file in repaired)
    for svg in (
        before_after(*repaired, "block", reports=reports),
        subgraph(foreign("ANameThatGoesOnAndOnAndOnAndOnForEver")),
    ):
        root = ET.fromstring(svg.data)
        width, height = float(root.attrib["width"]), float(root.attrib["height"])

        def walk(node, x, y, width=width, height=height):
            shift = node.attrib.get("transform", "")
            if shift.startswith("translate("):
                dx, dy = map(float, shift[10:-1].split())
                x, y = x + dx, y + dy
            if node.tag == f"{NS}text":
                size = float(node.attrib.get("font-size", 12))
                weight = node.attrib.get("font-weight", "normal")
                font = FontProperties(family="DejaVu Sans", weight=weight)
                wide = TextPath((0, 0), node.text, size, prop=font).get_extents().width
                left = x + float(node.attrib["x"])
                left -= wide / 2 if node.attrib.get("text-anchor") == "middle" else 0
                assert left >= 0 and left + wide <= width, node.text
                assert 0 < y + float(node.attrib["y"]) < height, node.text
            for child in node:
                walk(child, x, y)

        walk(root, 0.0, 0.0)


def test_before_and_after_mark_what_changed(repaired):
    reports = tuple(targets.check(file, "snpe-2.7") for file in repaired)
    svg = before_after(*repaired, "block", reports=reports)
    shown = texts(svg)
    assert shown.count("− replaced") == 1
    assert shown.count("+ new") == 4  # Add, Clip, Mul, Div
    assert "Before: before.onnx, opset 17" in shown and "After: after.onnx, opset 17" in shown
    assert "replaced: HardSwish" in svg.alt and "unsupported: HardSwish" in svg.alt
    assert svg.data == before_after(*repaired, "block", reports=reports).data


def test_two_files_of_which_neither_came_first_are_named(repaired):
    svg = before_after(*repaired, "block", titles=("opset 13", "opset 17"))
    shown = texts(svg)
    assert shown.count("≠ only here") == 5  # HardSwish, and the four that stand for it
    assert "opset 13: before.onnx, opset 17" in shown and not any("Before" in t for t in shown)
    assert "only here: HardSwish" in svg.alt
    with pytest.raises(UsageError, match="two titles"):
        before_after(*repaired, "block", titles=("one",))


def test_a_replaced_node_is_found_by_its_tensors(repaired):
    model = graph.read(repaired[1])
    for node in model.graph.node:
        node.name = ""  # neither node nor module can be found by name
    svg = before_after(repaired[0], model, "/block/block.1/HardSwish", 0)
    assert {"HardSwish", "Clip", "Div"} <= set(texts(svg))
    assert "Conv" not in texts(svg)
    # and the other way round, when only the second graph knows the name
    swapped = before_after(model, repaired[0], "/block/block.1/HardSwish", 0)
    assert {"HardSwish", "Clip", "Div"} <= set(texts(swapped))


def test_before_and_after_that_share_nothing_are_refused(repaired, small_onnx):
    with pytest.raises(UsageError, match="no such module"):
        before_after(repaired[0], small_onnx(), "/block/block.1/HardSwish")
    with pytest.raises(UnknownNameError):
        before_after(*repaired, "nowhere")


def test_errors(small_onnx, tmp_path):
    with pytest.raises(UnknownNameError, match=r"features\.4\.block\.2"):
        subgraph(small_onnx(), "features.4.blok.2")
    with pytest.raises(UsageError, match="too many"):
        subgraph(small_onnx())
    with pytest.raises(UsageError, match="radius"):
        subgraph(tiny(), "swish", -1)
    with pytest.raises(ModelFileError):
        subgraph(tmp_path / "absent.onnx")


def test_nodes_may_stand_in_any_order():
    model = tiny()
    nodes = list(model.graph.node)
    model.graph.ClearField("node")
    model.graph.node.extend(reversed(nodes))
    boxes = [text for text in texts(subgraph(model)) if text in ("Conv", "HardSwish", "Add", "Mul")]
    assert boxes == ["Conv", "HardSwish", "Add", "Mul"]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_boxes_never_overlap_and_arrows_point_down(data):
    count = data.draw(st.integers(1, 9))
    extents = [
        Extent(*data.draw(st.tuples(*[st.integers(10, 90)] * 2, st.integers(20, 120))))
        for _ in range(count)
    ]
    pairs = [(a, b) for b in range(count) for a in range(b)]
    edges = data.draw(st.lists(st.sampled_from(pairs), unique=True) if pairs else st.just([]))
    layout = arrange(extents, edges)
    spans = [
        (x - e.left, x + e.right, y, y + e.height)
        for (x, y), e in zip(layout.boxes, extents, strict=True)
    ]
    for i, a in enumerate(spans):
        assert a[0] >= 0 and a[1] <= layout.width + 1 and a[3] <= layout.height
        for b in spans[:i]:
            assert a[0] >= b[1] or b[0] >= a[1] or a[2] >= b[3] or b[2] >= a[3]
    for (source, target), route in zip(edges, layout.routes, strict=True):
        for (x, top), (_, bottom) in zip(route[1:-1:2], route[2:-1:2], strict=True):
            crossed = [s for s in spans if s[0] <= x <= s[1] and s[2] < bottom and top < s[3]]
            assert not crossed  # a long edge runs beside the boxes
        ys = [y for _, y in route]
        assert ys == sorted(ys)
        assert ys[0] == spans[source][3] and ys[-1] == spans[target][2]


# --- a .tflite ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """An ONNX file, and a `.tflite` that goes to and fro between layouts."""
    folder = tmp_path_factory.mktemp("converted")
    module = tflite_files.small_network()
    export.to_onnx(module, folder / "net.onnx", size=module.size)
    tflite_files.network(folder / "net.tflite", module, "softmax axis")
    return folder / "net.onnx", folder / "net.tflite"


@pytest.mark.litert
def test_a_tflite_is_drawn_with_its_operators_shapes_and_constants(converted):
    shown = texts(subgraph(converted[1]))
    assert "net.tflite, LiteRT" in shown
    assert {"CONV_2D", "DEPTHWISE_CONV_2D", "HARD_SWISH", "MEAN", "FULLY_CONNECTED"} <= set(shown)
    assert {"filter: 8×3×3×3", "perm = 0×3×1×2", "1×8×16×16"} <= set(shown)
    assert shown.count("⇄ layout only") == shown.count("TRANSPOSE") == 2


@pytest.mark.litert
def test_beside_the_file_that_it_was_made_of_only_transposes_are_marked(converted):
    svg = before_after(*converted)
    shown = texts(svg)
    assert "Before: net.onnx, opset 17" in shown and "After: net.tflite, LiteRT" in shown
    assert shown.count("⇄ layout only") == 2 and "+ new" not in shown
    assert svg.alt.endswith("layout only: TRANSPOSE.")
    assert svg.data == before_after(*converted).data


@pytest.mark.litert
def test_a_part_of_a_tflite_has_no_counterpart_by_name(converted):
    with pytest.raises(UsageError, match="Name a module that both have"):
        before_after(*converted, "operator 2")
    assert "CONV_2D" in texts(subgraph(converted[1], "operator 1", 0))
    shown = texts(before_after(*converted, ("/stem/Conv", "operator 1"), 0))
    assert "Conv" in shown and "CONV_2D" in shown and "HARD_SWISH" not in shown
    with pytest.raises(UnknownNameError, match="operator 1"):
        before_after(*converted, ("/stem/Conv", "operator 100"))


@pytest.mark.litert
def test_a_tflite_that_was_cut_short_or_gives_a_constant_is_no_traceback(converted, tmp_path):
    short = tmp_path / "short.tflite"
    short.write_bytes(converted[1].read_bytes()[:400])
    with pytest.raises(ModelFileError, match=r"short\.tflite"):
        subgraph(short)
    w = tflite_files.Writer((1, 4, 4, 3))
    turned = w.add("TRANSPOSE", [w.input, w.input], (1, 4, 4, 3))  # an order that is computed
    file = w.write(tmp_path / "odd.tflite", turned, w.constant([1.0, 2.0]))
    assert "TRANSPOSE" in texts(subgraph(file))
