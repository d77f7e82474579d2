"""The widgets, moved by plain Python: every control has an effect, every error is in words."""

import base64
import dataclasses
import html
import io
import json
import re
from datetime import UTC, datetime

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from labutils import compare, metrics, paths, quantize, runtime, targets
from labutils.errors import UnknownNameError, UsageError
from labutils.images import data, own_image, things
from labutils.models import zoo
from labutils.quantize import mixed
from labutils.show.widgets import (
    ClippingSlider,
    ImageEditor,
    LadderPicker,
    ParetoFront,
    ReplacementBoard,
    StageExplorer,
    WidthSlider,
    own_picture,
)
from labutils.show.widgets.clipping import kept_range


def plain(markup):
    """What is read: where a name may break, or may not, is no space."""
    whole = re.sub(r"<wbr>|</?span[^>]*>|</?bdi>", "", markup)
    return html.unescape(re.sub(r"(<[^>]*>)+", " ", whole))


def words(widget):
    return plain(widget.value)


def kind(panel):
    return re.search(r'data-kind="(\w+)"', panel.status.value).group(1)


def ready(panel):
    return not any(button.disabled for button in panel.buttons)


# --- what all share -----------------------------------------------------------------------------


def test_a_viewer_without_a_kernel_gets_the_picture_and_the_words():
    slider = ClippingSlider({"features.3": np.linspace(-1, 2, 500)})
    bundle = slider._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    shown = bundle["text/html"]
    assert 'src="data:image/png;base64,' in shown
    assert re.search(r'<img alt="features\.3: 8 bits over', shown)
    assert "Layer: features.3" in shown and "Bits: 8" in shown
    assert words(slider.status).strip(" i") in plain(shown)
    assert bundle["text/plain"] == "Bits and clipping of a layer"


def test_buttons_are_off_while_working_and_on_after_any_error():
    board_like = ClippingSlider({"a": np.ones(3)})
    import ipywidgets

    button = ipywidgets.Button()
    board_like.buttons = (button,)
    with board_like.working("Working ..."):
        assert button.disabled
        assert "Working" in words(board_like.status) and kind(board_like) == "busy"
        raise ZeroDivisionError("no <way>")
    assert not button.disabled
    assert kind(board_like) == "bad"
    assert "ZeroDivisionError: no <way>" in words(board_like.status)
    assert "<way>" not in board_like.status.value  # escaped
    assert board_like.picture.value == ""  # what was there is of something else


def test_progress_shows_the_bar_only_while_it_moves():
    panel = ClippingSlider({"a": np.ones(3)})
    seen = []
    with panel.working("Working ..."):
        for item in panel.progress(range(3), "HTP int8"):
            seen.append((item, panel.bar.value, panel.bar.layout.display, words(panel.status)))
    assert [(item, bar) for item, bar, *_ in seen] == [(0, 0), (1, 1), (2, 2)]
    assert all(display is None for *_, display, _ in seen)
    assert "HTP int8 ... 2 of 3" in seen[1][3]
    assert panel.bar.layout.display == "none"


# --- clipping -----------------------------------------------------------------------------------


@pytest.fixture
def slider():
    r = np.random.default_rng(0)
    heavy = np.concatenate([r.standard_normal(20_000), [40.0, -35.0]])
    return ClippingSlider({"normal": heavy, "zeros": np.zeros(8), "positive": np.arange(10.0)})


def sqnr(slider):
    return float(re.search(r"SQNR (-?[\d.]+) dB", words(slider.status)).group(1))


def test_every_control_of_the_slider_moves_the_figures(slider):
    first, picture = sqnr(slider), slider.picture.value
    assert "Nothing is clipped: this is min-max" in words(slider.status)
    slider.bits.value = 4
    assert sqnr(slider) < first - 12  # 6 dB a bit, where nothing is clipped
    assert slider.picture.value != picture
    wide = sqnr(slider)
    slider.kept.value = 99.5
    assert "0.5 % of 20,002 values clipped" in words(slider.status)
    assert f"Min-max with the same bits: {wide:.1f} dB, so clipping here is" in words(slider.status)
    slider.layer.value = "positive"
    assert "[0, " in words(slider.status)


def test_the_slider_says_that_clipping_helps_where_it_does():
    r = np.random.default_rng(1)
    values = np.concatenate([r.uniform(-1, 1, 10_000), [1.5] * 5])
    slider = ClippingSlider({"a": values}, bits=8)
    slider.kept.value = 99.0
    assert "clipping here is" in words(slider.status)
    expected = metrics.sqnr_db(values, np.clip(values, *kept_range(values, 0.99)))
    assert sqnr(slider) <= expected + 0.1  # clipping alone bounds it


def test_a_layer_of_zeros_is_explained_and_the_next_one_works(slider):
    slider.layer.value = "zeros"
    assert kind(slider) == "bad" and "only 0" in words(slider.status)
    assert slider.picture.value == ""
    slider.layer.value = "normal"
    assert kind(slider) == "note" and slider.picture.value


def test_the_range_keeps_the_share_and_zero():
    values = np.arange(1, 1001.0)
    assert kept_range(values, 1.0) == (0.0, 1000.0)
    low, high = kept_range(values, 0.9)
    assert low == 0.0 and 949 < high < 952


@pytest.mark.parametrize("values", [{}, {"a": []}, {"a": [np.nan]}, {"a": [np.inf, 1]}])
def test_the_slider_refuses_what_has_no_values(values):
    with pytest.raises(UsageError):
        ClippingSlider(values)


# --- my own image -------------------------------------------------------------------------------


def model_of(module, **changes):
    facts = {
        "name": "small", "module": module, "preprocessing": data.Preprocessing(64),
        "classes": things.CLASSES, "weights": "random", "note": "of a test", "trained": True,
    }  # fmt: skip
    return zoo.Model(**{**facts, **changes})


@pytest.fixture
def editor(small):
    return ImageEditor(model_of(small))


def encoded(picture, suffix, **settings):
    buffer = io.BytesIO()
    picture.save(buffer, suffix, **settings)
    return buffer.getvalue()


def photo(mode="RGB", size=(90, 60)):
    r = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(r).convert(mode)


def stored():
    facts = json.loads((paths.generated() / "my_image.json").read_text(encoding="utf-8"))
    with Image.open(paths.generated() / "my_image.png") as picture:
        return facts, picture.mode, np.asarray(picture)


@pytest.mark.parametrize(
    ("control", "value", "said"),
    [
        ("kind", "fish", "kind fish"),
        ("hue", 0.1, "hue 0.1"),
        ("size", 0.4, "size 0.4"),
        ("clutter", 0.9, "clutter 0.9"),
        ("seed", 7, "seed 7"),
    ],
)
def test_every_control_of_the_editor_changes_the_picture(editor, control, value, said):
    before = editor.pixels
    getattr(editor, control).value = value
    assert said in editor.source
    assert not np.array_equal(editor.pixels, before)
    assert "Not stored yet" in words(editor.status)


def test_the_answer_is_the_models(editor, small):
    scene = things.custom_scene("mug", hue=0.6, size=0.75, clutter=0.3, seed=0)
    pixels = things.render(scene, 64)
    assert np.array_equal(editor.pixels, pixels)
    with runtime.connect(small) as runner:
        logits = runner.run(data.Preprocessing(64)(pixels[None]))
    best = things.CLASSES[int(logits.argmax())]
    share = metrics.softmax(logits).max()
    assert f"The best guess is {best} with {100 * share:.1f} %" in words(editor.status)


def test_the_picture_is_stored_and_read_back(editor):
    editor.kind.value = "clock"
    own_image.forget()
    editor.use.click()
    assert kind(editor) == "good" and "my_image.png" in words(editor.status)
    facts, mode, pixels = stored()
    assert (facts["class"], mode) == ("clock", "RGB")
    assert np.array_equal(pixels, editor.pixels)
    kept = own_image.read(64, things.CLASSES)
    assert np.array_equal(kept.images[0], data.fitted(editor.pixels, 64))
    assert kept.labels.tolist() == [things.CLASSES.index("clock")]


def test_a_dropped_file_is_classified_named_and_stored(editor):
    content = encoded(photo(), "JPEG")
    dropped = {"name": "holiday.jpg", "type": "image/jpeg", "size": len(content),
               "content": memoryview(content), "last_modified": datetime.now(UTC)}  # fmt: skip
    editor.upload.set_trait("value", (dropped,))
    assert editor.upload.value == ()  # ready for the same file once more
    assert editor.pixels.shape == (60, 90, 3)
    assert not editor.truth.disabled
    editor.use.click()
    assert stored()[0]["class"] is None
    assert "file holiday.jpg" in words(editor.status)
    editor.truth.value = "umbrella"
    editor.use.click()
    assert stored()[0]["class"] == "umbrella"
    editor.seed.value = 3  # back to drawing
    assert editor.truth.disabled and editor.pixels.shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.png", b"", "is empty"),
        ("text.jpg", b"hello", "is not a PNG, JPEG or WebP picture"),
        ("gif.png", encoded(photo(), "GIF"), "PNG, JPEG or WebP"),
        ("cut.png", encoded(photo(), "PNG")[:2000], "damaged or cut short"),
        ("cut.jpg", encoded(photo(), "JPEG")[:1500], "damaged or cut short"),
        ("dot.png", encoded(photo(size=(1, 1)), "PNG"), "too few"),
        ("vast.png", encoded(Image.new("1", (9000, 9000)), "PNG"), "9000 x 9000 pixels"),
        ("bomb.png", encoded(Image.new("1", (20000, 20000)), "PNG"), "too large"),
        ("heavy.png", bytes(own_picture.MAX_BYTES + 1), "Save a smaller copy"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_what_is_no_picture_is_refused_in_words(editor, name, content, said):
    editor.read(name, content)
    assert kind(editor) == "bad" and name in words(editor.status) and said in words(editor.status)
    assert editor.pixels is None and editor.picture.value == ""
    assert ready(editor)
    before = paths.generated() / "my_image.png"
    stamp = before.stat().st_mtime_ns if before.exists() else None
    editor.use.click()
    assert "no picture to use" in words(editor.status)
    assert (before.stat().st_mtime_ns if before.exists() else None) == stamp
    editor.read("good.webp", encoded(photo(), "WEBP"))
    assert kind(editor) == "note" and editor.pixels is not None


def test_every_kind_of_picture_becomes_rgb_and_the_changes_are_told():
    plain, notes = own_picture.decode(encoded(photo(), "PNG"))
    assert np.array_equal(plain, np.asarray(photo())) and not notes
    for mode, suffix, said in [
        ("CMYK", "JPEG", "CMYK"), ("RGBA", "PNG", ""), ("LA", "PNG", "white"), ("P", "PNG", ""),
        ("L", "JPEG", ""), ("1", "PNG", ""),
    ]:  # fmt: skip
        pixels, notes = own_picture.decode(encoded(photo(mode), suffix))
        assert pixels.shape == (60, 90, 3) and pixels.dtype == np.uint8 and said in notes
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    pixels, notes = own_picture.decode(encoded(clear, "PNG"))
    assert (pixels == 255).all() and "laid on white" in notes
    deep = Image.fromarray(np.full((20, 20), 40_000, np.uint16))
    pixels, notes = own_picture.decode(encoded(deep, "PNG"))
    assert (pixels == 155).all() and "16 bits" in notes


def test_a_turned_photograph_is_set_upright_and_a_large_one_reduced():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    pixels, notes = own_picture.decode(encoded(photo(), "JPEG", exif=exif))
    assert pixels.shape == (90, 60, 3) and "upright" in notes
    pixels, notes = own_picture.decode(encoded(photo(size=(3000, 1500)), "PNG"))
    assert pixels.shape == (512, 1024, 3) and "reduced to 1024 x 512" in notes


def test_a_class_that_the_model_lacks_is_said(small):
    names = tuple(f"class {i}" for i in range(16))
    editor = ImageEditor(model_of(small, classes=names, trained=False))
    assert "mug is not a class of this model" in words(editor.status)
    assert "random" in words(editor.status)


def test_a_model_that_fails_is_explained_inside(editor):
    editor.runner.run = lambda batch: 1 / 0
    editor.seed.value = 9
    assert "ZeroDivisionError" in words(editor.status) and ready(editor)
    assert editor.pixels is None


# --- the replacement board ----------------------------------------------------------------------


@pytest.fixture
def board(small_onnx):
    return ReplacementBoard({"opset 17": small_onnx(17), "opset 13": small_onnx(13)})


def lines_of_rules(board):
    lines = [line.children for line in board.rules.children if hasattr(line, "children")]
    return "\n".join(f"{box.description}: {words(promise)}" for box, promise in lines)


def test_the_board_diagnoses_repairs_and_turns_green(board, small_onnx):
    original = paths.sha256(small_onnx(17))
    assert 'data-kind="bad"' in board.verdict.value
    assert "would stop at HardSwish in features.0.2" in words(board.verdict)
    assert "unsupported" in words(board.operators)
    assert 'src="data:image/svg+xml' in board.graph.value
    drawn = board.graph.value
    ticked = {name: box.value for name, box in board.boxes.items()}
    assert {name for name, value in ticked.items() if value} == {"hardsigmoid", "hardswish"}
    assert "hardsigmoid-0.167" in ticked
    board.repair_button.click()
    assert 'data-kind="good"' in board.verdict.value and kind(board) == "good"
    assert "Accepted" in words(board.verdict)
    assert "0 after" in words(board.account) and "max error" in words(board.account)
    assert board.report.check.rounding
    assert board.graph.value != drawn and "+ new" not in words(board.verdict)
    copies = list(paths.generated().glob("board_*snpe-2.7.onnx"))
    assert copies and targets.check(copies[0], "snpe-2.7").ok
    assert paths.sha256(small_onnx(17)) == original
    assert ready(board)


def test_one_rule_alone_meets_the_error_once_again(board):
    board.boxes["hardsigmoid"].value = False
    board.repair_button.click()
    assert "error once again" in words(board.status) and kind(board) == "warn"
    assert 'data-kind="bad"' in board.verdict.value
    assert "would stop at HardSigmoid" in words(board.verdict)
    board.boxes["hardsigmoid"].value = True
    board.repair_button.click()
    assert 'data-kind="good"' in board.verdict.value


def test_an_approximate_rule_is_labelled_and_its_error_shown(board):
    board.boxes["hardsigmoid"].value = False
    board.boxes["hardsigmoid-0.167"].value = True
    assert "approximate" in lines_of_rules(board)
    board.repair_button.click()
    assert 'data-kind="good"' in board.verdict.value
    assert "DIFFERENT" in words(board.account) and "approximate rule" in words(board.account)
    assert kind(board) == "warn" and "not the same function" in words(board.status)


def test_rules_that_exclude_each_other_are_explained_and_the_diagnosis_stays(board):
    seen = board.verdict.value
    board.boxes["hardsigmoid-0.167"].value = True
    board.repair_button.click()
    assert kind(board) == "bad" and "both replace" in words(board.status)
    assert board.verdict.value == seen and board.account.value == "" and ready(board)
    for box in board.boxes.values():
        box.value = False
    assert board.repair_button.disabled
    board.repair_button.click()
    assert "No rule is ticked" in words(board.status)


def test_lite_rules_stand_apart_say_that_they_need_training_and_are_off(board):
    labels = [w.value for w in board.rules.children if not hasattr(w, "children")
              and hasattr(w, "value")]  # fmt: skip
    assert any("to be trained again" in label for label in labels)
    assert not board.boxes["hardswish-to-relu"].value and not board.boxes["se-to-identity"].value
    assert "hardsigmoid-to-relu" not in board.boxes  # every one is a gate here
    line = next(x for x in lines_of_rules(board).splitlines() if x.startswith("hardswish-to-relu"))
    assert "approximate" in line and "needs training" in line
    board.boxes["hardswish"].value = False
    board.boxes["hardswish-to-relu"].value = True
    board.repair_button.click()
    assert 'data-kind="good"' in board.verdict.value
    assert "DIFFERENT" in words(board.account) and "retraining" in words(board.account)


def test_a_lite_rule_beside_the_exact_one_for_the_same_layer_is_refused(board):
    board.boxes["hardswish-to-relu"].value = True
    board.repair_button.click()
    assert kind(board) == "bad" and "both replace" in words(board.status)


def test_another_file_and_another_target_get_another_verdict(board):
    first = words(board.verdict)
    board.file.value = "opset 13"
    assert board.verdict.value == "" and "Press Diagnose" in words(board.status)
    board.repair_button.click()
    assert "Press Diagnose first" in words(board.status)
    board.diagnose_button.click()
    second = words(board.verdict)
    assert "would stop at HardSigmoid in features.0.2" in second and second != first
    board.target.value = "qnn"
    board.diagnose_button.click()  # QNN fuses HardSigmoid and Mul into another function
    assert 'data-kind="bad"' in board.verdict.value and "HardSigmoid" in words(board.verdict)
    board.file.value = "opset 17"
    board.diagnose_button.click()
    assert 'data-kind="good"' in board.verdict.value and "for qnn" in words(board.verdict)


@pytest.mark.parametrize("target", targets.TARGETS)
def test_every_target_gives_a_verdict(board, target):
    board.target.value = target
    board.diagnose_button.click()
    check = targets.check(board.source, target)
    assert ('data-kind="bad"' in board.verdict.value) == (not check.ok)
    assert f"for {target}" in words(board.verdict)
    assert kind(board) != "bad"


def test_an_older_opset_comes_last_when_what_it_does_not_know_is_gone(board):
    board.target.value = "rdk-x5"
    board.diagnose()
    assert "The file as a whole is refused" in words(board.verdict)
    assert "supported" not in words(board.verdict).replace("unsupported", "")
    assert board.graph.value == ""  # the reason stands above, once
    assert board.boxes["opset-11"].value and board.boxes["hardswish"].value
    board.repair()
    assert kind(board) == "good", words(board.status)
    assert {"opset-11", "hardswish"} <= {name for name, n in board.report.counts.items() if n}
    assert board.report.check.rounding


def test_an_opset_that_no_rule_changes_is_named(board, monkeypatch):
    from labutils import surgery

    monkeypatch.delitem(surgery.RULES, "opset-11")
    board.target.value = "rdk-x5"
    board.diagnose()
    board.repair()
    assert "no exact rule removes opset 17" in words(board.status)


def chain(path, *ops):
    """A chain of nameless nodes over 4 values; unknown operators are allowed."""
    names = ["x", *(f"t{i}" for i in range(len(ops)))]
    nodes = [helper.make_node(op, [names[i]], [names[i + 1]]) for i, op in enumerate(ops)]
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4])
        for name in (names[0], names[-1])
    )
    model = helper.make_model(
        helper.make_graph(nodes, "chain", [x], [y]), opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )  # fmt: skip
    onnx.save(model, path)
    return path


def test_a_small_file_of_nameless_nodes_goes_through(tmp_path):
    board = ReplacementBoard({"tiny": chain(tmp_path / "tiny.onnx", "Relu", "HardSwish", "Relu")})
    assert "would stop at HardSwish" in words(board.verdict)
    board.repair()
    assert 'data-kind="good"' in board.verdict.value
    assert "data:image/svg+xml" in board.graph.value


def test_files_that_no_rule_mends_or_that_cannot_be_read_are_explained(tmp_path, small_onnx):
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    board = ReplacementBoard(
        {
            "bad": tmp_path / "bad.onnx",
            "gone": tmp_path / "gone.onnx",
            "odd": chain(tmp_path / "odd.onnx", "Relu", "Erf"),
            "good": small_onnx(17),
        }
    )
    assert kind(board) == "bad" and board.verdict.value == "" and not board.boxes
    board.file.value = "gone"
    board.diagnose_button.click()
    assert kind(board) == "bad" and "gone.onnx" in words(board.status) and ready(board)
    board.file.value = "odd"
    board.diagnose_button.click()
    assert not board.boxes and board.verdict.value
    board.file.value = "good"
    board.diagnose_button.click()
    assert board.boxes


def test_a_rule_that_is_new_in_the_rule_book_appears_by_itself(board, monkeypatch):
    import dataclasses

    from labutils import surgery

    later = dataclasses.replace(surgery.RULES["hardswish"], name="later", error="none at all")
    monkeypatch.setitem(surgery.RULES, "later", later)
    board.diagnose()
    assert "later" in board.boxes and "none at all" in lines_of_rules(board)


def test_a_board_needs_files_and_a_target_that_exists(small_onnx):
    with pytest.raises(UsageError, match="at least one"):
        ReplacementBoard({})
    with pytest.raises(UnknownNameError, match=r"snpe-2\.7"):
        ReplacementBoard({"a": small_onnx(17)}, target="snpe-27")


# --- stages -------------------------------------------------------------------------------------


class Scripted:
    """A runner with given logits, that counts what it is asked."""

    def __init__(self, logits, runtime="HTP simulator (a stand-in of a test)"):
        self.table, self.runtime, self.name, self.file, self.asked = logits, runtime, "s", None, 0

    def run(self, batch):
        self.asked += len(batch)
        keys = (batch[:, 0, 0, 0] * 1000).round().astype(int)
        return np.stack([self.table[key] for key in keys])

    def close(self):
        pass


@pytest.fixture
def scripted():
    """Six gray images of three classes, a right stage, one that errs on image 4, one absent."""
    classes = ("cat", "dog", "cow")
    pixels = np.stack([np.full((32, 32, 3), 10 * i + 5, np.uint8) for i in range(6)])
    labels = np.arange(6) % 3
    images = data.ImageSet(pixels, labels, classes, "drawn by a test")
    preprocessing = data.Preprocessing(32, mean=(0, 0, 0), std=(1, 1, 1))
    keys = (preprocessing(pixels)[:, 0, 0, 0] * 1000).round().astype(int)
    right = {
        k: np.eye(3, dtype=np.float32)[label] * 4 for k, label in zip(keys, labels, strict=True)
    }
    wrong = {**right, keys[4]: np.array([3, 1, 0], np.float32)}
    stages = [
        compare.Stage("PyTorch", Scripted(right, "PyTorch")),
        compare.Stage("int8", Scripted(wrong)),
        compare.Stage("HTP int8", None),
    ]
    return stages, images, preprocessing


def test_the_explorer_says_whether_the_answers_are_the_same(scripted):
    explorer = StageExplorer(*scripted)
    assert explorer.stage.value == "int8"
    assert "Same best class" in words(explorer.status) and kind(explorer) == "good"
    picture = explorer.picture.value
    explorer.image.value = 4
    assert "ANOTHER best class" in words(explorer.status) and kind(explorer) == "warn"
    assert "PyTorch: dog" in words(explorer.status) and "int8: cat" in words(explorer.status)
    assert "Truth: dog" in words(explorer.status)
    assert explorer.picture.value != picture
    assert "HTP simulator (a stand-in of a test)" in words(explorer.status)
    explorer.stage.value = "PyTorch"
    assert "ANOTHER" not in words(explorer.status) and kind(explorer) == "note"


def test_each_stage_sees_each_image_once(scripted):
    explorer = StageExplorer(*scripted)
    for index in (1, 0, 1, 0):
        explorer.image.value = index
    assert scripted[0][1].runner.asked == 2


def test_a_stage_that_is_not_here_leaves_the_first_ones_answer(scripted):
    explorer = StageExplorer(*scripted)
    assert ("HTP int8 (not here)", "HTP int8") in explorer.stage.options
    explorer.stage.value = "HTP int8"
    assert kind(explorer) == "warn" and explorer.picture.value
    assert "HTP int8 does not run on this machine: only PyTorch" in words(explorer.status)


def test_no_stage_at_all_is_said_in_words(scripted):
    stages = [compare.Stage("fp16", None), compare.Stage("int8", None)]
    explorer = StageExplorer(stages, *scripted[1:])
    assert "None of these stages runs" in words(explorer.status)
    picker = LadderPicker(stages, *scripted[1:])
    assert "fp16 and int8 cannot be asked" in words(picker.status)


def test_an_unlabelled_image_and_a_wrong_number_of_classes(scripted):
    stages, images, preprocessing = scripted
    alone = data.ImageSet(images.images[:1], np.array([-1]), images.classes, "my own image")
    explorer = StageExplorer(stages, alone, preprocessing)
    assert explorer.image.options[0][0] == "1: ?" and "Truth" not in words(explorer.status)
    explorer = StageExplorer(stages, images, preprocessing, classes=["a", "b"])
    assert "gives logits of shape" in words(explorer.status) and kind(explorer) == "bad"


def test_the_explorer_with_real_stages(small, small_onnx, images):
    runners = runtime.connect(small), runtime.connect(small_onnx(17))
    stages = [compare.Stage("PyTorch", runners[0]), compare.Stage("ONNX", runners[1])]
    explorer = StageExplorer(stages, data.load("val", 3, 64), data.Preprocessing(64))
    assert "Same best class" in words(explorer.status)
    assert "ONNX Runtime" in words(explorer.status)


def test_the_picker_gives_the_paired_difference_and_the_images(scripted):
    stages, images, preprocessing = scripted
    picker = LadderPicker(stages, images, preprocessing)
    expected = metrics.paired_difference([True] * 4 + [False, True], [True] * 6)
    assert f"int8 minus PyTorch: {expected.value:+.1f} points" in words(picker.status)
    low, high = expected.interval
    assert f"[{low:+.1f}, {high:+.1f}], paired: the interval contains 0" in words(picker.status)
    assert "Only int8 is right on 0, only PyTorch on 1" in words(picker.status)
    assert "same class on 5 of 6" in words(picker.status) and kind(picker) == "warn"
    alt = re.search(r'alt="([^"]*)"', picker.picture.value).group(1)
    assert "1 of 6 images" in alt and "image 5 (dog): PyTorch: dog" in alt and "int8: cat" in alt
    assert "5 of 6" in words(picker.rows) and "6 of 6" in words(picker.rows)


def test_chosen_images_are_counted_and_get_no_interval(scripted):
    picker = LadderPicker(*scripted, why="chosen because int8 differs")
    assert "chosen because int8 differs" in words(picker.status)
    assert "Only int8 is right on 0, only PyTorch on 1" in words(picker.status)
    assert "interval" not in words(picker.status)


def test_the_picker_swaps_and_refuses_the_same_stage_twice(scripted):
    picker = LadderPicker(*scripted)
    picker.first.value = "int8"
    assert "same stage twice" in words(picker.status) and picker.picture.value == ""
    picker.second.value = "PyTorch"
    assert "PyTorch minus int8: +16.7 points" in words(picker.status)


def test_a_measured_ladder_supplies_the_rows_of_absent_stages(scripted):
    stages, images, preprocessing = scripted
    runs = [stages[0], compare.Stage("HTP int8", stages[1].runner)]
    ladder = compare.ladder(runs, images, preprocessing)
    picker = LadderPicker(stages, images, preprocessing, ladder=ladder)
    picker.second.value = "HTP int8"
    assert "HTP int8 cannot be asked on this machine" in words(picker.status)
    assert "HTP simulator (a stand-in of a test)" in words(picker.rows)
    assert "83.3 %" in words(picker.rows)
    without = LadderPicker(stages, images, preprocessing)
    without.second.value = "HTP int8"
    assert "not run here" in words(without.rows)


def test_labels_of_other_classes_prove_nothing_about_accuracy(scripted):
    stages, images, preprocessing = scripted
    picker = LadderPicker(stages, images, preprocessing, classes=("x", "y", "z"))
    assert "points" not in words(picker.status)
    assert "same class on 5 of 6" in words(picker.status)
    assert "not about this model's classes" in words(picker.status)


def test_a_stage_that_breaks_down_is_explained_and_can_be_left(scripted):
    stages, images, preprocessing = scripted
    stages[1].runner.run = lambda batch: np.full((len(batch), 3), np.nan, np.float32)
    picker = LadderPicker(stages, images, preprocessing)
    assert kind(picker) == "bad" and "not finite" in words(picker.status)
    assert picker.rows.value == ""
    with pytest.raises(UsageError, match="Two stages"):
        LadderPicker(stages[:1], images, preprocessing)


@pytest.mark.htp
@pytest.mark.slow
def test_the_stages_may_run_on_the_htp_simulator(small, small_onnx):
    with runtime.connect(small) as first, runtime.connect(small_onnx(17), "htp") as chip:
        stages = [compare.Stage("PyTorch", first), compare.Stage("HTP fp16", chip)]
        images, preprocessing = data.load("val", 10, 64), data.Preprocessing(64)
        explorer = StageExplorer(stages, images, preprocessing)
        assert "HTP simulator" in words(explorer.status) and kind(explorer) != "bad"
        picker = LadderPicker(stages, images, preprocessing, n=10)
        assert "of 10 images" in words(picker.status) and "HTP simulator" in words(picker.rows)


# --- the front of mixed recipes ----------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Four layers, the second with a wide channel: a front of a few points, searched for real."""
    r = np.random.default_rng(0)
    nodes, weights, last = [], [], "input"
    for i, (cin, cout) in enumerate([(3, 8), (8, 8), (8, 8), (8, 4)]):
        weight = (r.normal(size=(cout, cin, 1, 1)) / np.sqrt(cin)).astype(np.float32)
        weight[0] *= 1 + 39 * (i == 1)
        weights.append(onnx.numpy_helper.from_array(weight, f"w{i}"))
        name = f"/features/features.{i}/features.{i}.0/Conv"
        nodes.append(helper.make_node("Conv", [last, f"w{i}"], [f"c{i}"], name=name))
        last = f"c{i}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["p"], name="/avgpool/Pool"))
    nodes.append(helper.make_node("Flatten", ["p"], ["logits"], name="/Flatten"))
    graph = helper.make_graph(
        nodes, "chain",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, (1, 3, 6, 6))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 4))], weights,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("front") / "chain.onnx"
    onnx.save(model, path)
    images = r.normal(size=(32, 3, 6, 6)).astype(np.float32)
    return mixed.search(path, images, mixed.Budget(mac_share=0.6), "int8_minmax", judged=32)


@pytest.fixture
def pareto(searched):
    return ParetoFront(searched)


def unmeasured(report):
    return next(i for i, point in enumerate(report.front) if point.measured is None)


def test_the_front_begins_with_the_chosen_point(pareto, searched):
    said = words(pareto.status)
    assert pareto.point.value == searched.chosen and kind(pareto) == "good"
    assert "chosen by the budget" in said
    assert f"{len(searched.point.wide)} of {len(searched.nodes)} nodes at 16 bits" in said
    assert f"measured {searched.point.measured.sqnr_db:.1f} dB" in said
    assert f"predicted {searched.point.predicted_db:.1f} dB" in said
    assert pareto.measure_button.disabled  # it is measured already
    shown = pareto.static_html()
    assert re.search(r'<img alt="Front of mixed recipes for chain\.onnx', shown)
    assert "activations: 16" in shown and f"Point: {searched.chosen}" in shown


def test_a_budget_that_was_not_reached_and_narrow_weights_are_said(searched):
    missed = dataclasses.replace(searched, reached=False, narrow=searched.nodes[:2])
    pareto = ParetoFront(missed)
    assert "nearest to the budget" in words(pareto.status) and kind(pareto) == "note"
    assert "2 layers with 4 bits" in words(pareto.status)


def test_a_click_on_a_point_and_the_slider_do_the_same(pareto, searched):
    index, spot = next((i, s) for i, s in pareto.spots if i != searched.chosen)
    spot.click()
    assert pareto.point.value == index
    said, drawn = words(pareto.status), pareto.picture.value
    assert f"Point {index}," in said and "chosen" not in said
    pareto.point.value = searched.chosen
    assert pareto.picture.value != drawn
    pareto.point.value = index
    assert (words(pareto.status), pareto.picture.value) == (said, drawn)


def test_the_spots_lie_on_the_points(pareto, searched):
    """Read back from the picture: the colour of a marker is under the spot's centre."""
    drawn = re.search(r"base64,([^\"]+)", pareto.picture.value)[1]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(drawn))).convert("RGB"), int)
    width = pixels.shape[1]
    assert {searched.chosen, len(searched.front) - 1} <= {i for i, _ in pareto.spots}
    for _, spot in pareto.spots:
        y, x = (float(v) / 100 for v in re.findall(r"([\d.]+)%", spot.layout.margin))
        row, column = round(y * width), round(x * width)
        patch = pixels[row - 8 : row + 9, column - 8 : column + 9]
        blue, vermilion = ([0, 114, 178], [213, 94, 0])
        assert min(np.abs(patch - c).sum(axis=2).min() for c in (blue, vermilion)) < 30


def test_each_point_shows_the_recipe_that_makes_it(pareto, searched, tmp_path):
    for index, point in enumerate(searched.front):
        pareto.point.value = index
        shown = html.unescape(re.search(r"<pre[^>]*>(.*)</pre>", pareto.recipe.value, re.S)[1])
        recipe = quantize.recipe.parse(shown)
        wide = {name for name in searched.nodes if recipe.setting(name, "", "activations") == 16}
        assert wide == set(point.wide)
        if point.wide:
            assert "of 1" in words(pareto.facts)
    assert "8 bits everywhere" not in words(pareto.facts)
    pareto.point.value = 0
    assert "8 bits everywhere" in words(pareto.facts)


def test_measuring_a_point_is_real_and_keeps_the_others(pareto, searched):
    index = unmeasured(searched)
    pareto.point.value = index
    assert "not measured yet" in words(pareto.status) and not pareto.measure_button.disabled
    assert sum(i == index for i, _ in pareto.spots) <= 1
    pareto.measure_button.click()
    found = pareto.report.front[index].measured
    assert found.n == 32
    assert found.sqnr_db == pytest.approx(searched.front[index].predicted_db, abs=6)
    assert f"measured {found.sqnr_db:.1f} dB" in words(pareto.status)
    assert "for choosing only" in words(pareto.status)
    assert pareto.measure_button.disabled and pareto.bar.layout.display == "none"
    assert searched.front[index].measured is None  # the report that was given is as it was
    assert pareto.report.point == searched.point


def test_without_its_model_a_report_is_shown_but_not_measured(searched):
    pareto = ParetoFront(dataclasses.replace(searched, judge=None))
    pareto.point.value = unmeasured(searched)
    assert pareto.measure_button.disabled and kind(pareto) == "note"
    pareto.measure()
    assert kind(pareto) == "bad" and "Search again" in words(pareto.status)
    assert pareto.recipe.value  # what there is stays


def test_a_recipe_is_saved_under_the_name_that_is_shown(pareto, searched):
    pareto.point.value = len(searched.front) - 1
    name = f"chain_point{pareto.point.value}.yaml"
    assert pareto.file.value == name
    pareto.save_button.click()
    assert kind(pareto) == "good" and name in words(pareto.status)
    saved = quantize.load_recipe(paths.generated() / name)
    assert saved == searched.recipe_of(len(searched.front) - 1)
    for wrong in ("../x.yaml", "x.txt", ""):
        pareto.file.value = wrong
        pareto.save_button.click()
        assert kind(pareto) == "bad" and "ends in .yaml" in words(pareto.status)
        assert pareto.recipe.value and not pareto.save_button.disabled


# --- widths -------------------------------------------------------------------------------------


def test_dragging_the_budget_shows_the_widths_and_the_cost():
    import types

    from labutils import prune
    from labutils.prune.budget import Point, Step

    steps = tuple(
        Step({"stem": 16 - 4 * i, "last": 64 - 16 * i}, 100 - 30 * i, 1000 - 200 * i, 30.0 - 9 * i)
        for i in range(3)
    )
    whole = Point(100, 1000, 99.0, 1.0, 0.9, None, steps[0].widths)
    chosen = dataclasses.replace(whole, macs=70)
    plan = types.SimpleNamespace(network="Net")
    found = prune.Search(prune.Budget(macs=0.7), 8, whole, (chosen,), 0, plan, None, steps=steps)
    slider = WidthSlider(found)
    assert "60 of 80 channels stay (75.0 %)" in words(slider.status)
    assert "70.0 % of the MACs" in words(slider.status) and "21.0 dB" in words(slider.status)
    before = slider.picture.value
    slider.share.value = 40
    assert "40 of 80" in words(slider.status) and slider.picture.value != before
    assert "stem loses most, 16 to 8" in slider.picture.value
    slider.share.value = 100
    assert "nothing yet" in words(slider.status)
    assert "data:image/png" in slider.static_html() and "still picture" in slider.static_html()
    with pytest.raises(UsageError, match="no steps"):
        WidthSlider(dataclasses.replace(found, steps=()))
