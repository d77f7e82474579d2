"""What artifacts are called, on every system, and what their manifests say."""

import ast
import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labutils import __version__, manifests, paths, quantize
from labutils.errors import DamagedManifestError, ModelFileError, UnknownNameError

REFUSED = re.compile(r'[<>:"/\\|?*\x00-\x1f]')  # by Windows, whose list is the longest


@given(st.text(max_size=60))
def test_any_model_s_name_becomes_a_file_name_on_every_system(name):
    stem = manifests.stem_of(name)
    assert stem and not REFUSED.search(stem)
    assert stem not in (".", "..") and stem == stem.strip(". ")


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("mobilenet_v3_small", "mobilenet_v3_small"),
        ("timm:mobilenetv3_small_100.lamb_in1k", "timm_mobilenetv3_small_100.lamb_in1k"),
        ("timm:mobilenetv3_small_100", "timm_mobilenetv3_small_100"),
        ("tv:resnet18", "tv_resnet18"),
        ("my net.v2.onnx", "my net.v2"),
        ("models/mine.pt2", "models_mine"),
        (r"C:\nets\mine.dlc", "C__nets_mine"),
        ("..", "model"),
        ("NUL", "_NUL"),
        ("con.onnx", "_con"),
        ("com1.v2", "_com1.v2"),
        ("console", "console"),
    ],
)
def test_a_model_s_tag_is_in_its_files_names(name, stem):
    assert manifests.stem_of(name) == stem


@given(st.text("aé漢😀.", min_size=60, max_size=300))
def test_a_long_name_is_cut_and_stays_another_than_its_neighbour(name):
    stem = manifests.stem_of(name)
    assert len(stem.encode()) <= 100
    assert len({stem, manifests.stem_of(name + "b"), manifests.stem_of("x" + name)}) == 3


@given(st.sampled_from(sorted(manifests.FILES)), st.text(max_size=300), st.text(max_size=300))
def test_no_name_or_detail_makes_a_folder_or_a_name_that_a_system_refuses(stage, model, detail):
    """A detail may be the name of a recipe, which its author chose."""
    name = manifests.file_name(model, stage, detail)
    assert not REFUSED.search(name) and len(name.encode("utf-8", "surrogatepass")) <= 255


def test_two_checkpoints_of_one_architecture_have_files_of_their_own():
    names = [f"timm:mobilenetv3_small_100{tag}" for tag in ("", ".lamb_in1k", ".ra_in1k")]
    for stage in manifests.FILES:
        assert len({manifests.file_name(name, stage, "int8") for name in names}) == 3


def test_a_stage_that_makes_no_files_is_told():
    with pytest.raises(UnknownNameError, match="Did you mean quantize"):
        manifests.file_name("m", "quantise", "int8")


def test_every_place_that_names_a_file_after_a_model_asks_one_function():
    """No f-string of the package or of a notebook puts a model's own name into a file's."""
    named = re.compile(r"\{(self\.|lesson\.)?_?model\.name\}[^\"']*\.(onnx|dlc|bin|csv|html|json)")
    numbered = re.compile(r"f[\"']0[1-6]_\{")
    places = [*sorted((paths.ROOT / "labutils").rglob("*.py"))]
    for file in [*places, *sorted((paths.ROOT / "notebooks").glob("*.ipynb"))]:
        assert not named.search(file.read_text("utf-8")), file.name
    for file in places:
        assert not numbered.search(file.read_text("utf-8")), file.name


def test_nothing_but_this_module_writes_or_reads_a_manifest():
    for file in sorted((paths.ROOT / "labutils").rglob("*.py")):
        text = file.read_text("utf-8")
        if file.name not in ("manifests.py", "paths.py"):
            assert "manifest.json" not in "".join(
                node.value
                for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.Constant) and isinstance(node.value, str)
                and "\n" not in node.value  # docstrings speak of it
            ), file  # fmt: skip


# --- what a manifest says -------------------------------------------------------------------------


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"made")
    return path


def test_a_manifest_has_a_format_number_and_the_versions_of_the_tools(artifact):
    manifests.write(artifact, {"opset": 17})
    entry = manifests.read(artifact)
    assert entry["format"] == manifests.FORMAT == 1
    assert entry["versions"]["labutils"] == __version__
    assert {"torch", "onnx", "onnxruntime", "python"} <= entry["versions"].keys()
    assert manifests.age_note(entry) == ""


def test_a_recipe_is_stored_with_the_values_that_are_at_their_defaults(artifact):
    recipe = quantize.load_recipe("int8")
    manifests.write(artifact, {"quantization": recipe})
    stored = manifests.read(artifact)["quantization"]
    assert stored == manifests.as_stored(recipe)
    for part in (recipe, recipe.weights, recipe.activations, recipe.calibration):
        names = {field.name for field in dataclasses.fields(part)}
        level = stored if part is recipe else next(
            stored[name] for name in ("weights", "activations", "calibration")
            if getattr(recipe, name) is part
        )  # fmt: skip
        assert level.keys() == names
    assert stored["weights"]["mse"] is False  # a default, and stated


def change(path, **facts):
    entry = json.loads(paths.manifest(path).read_text("utf-8"))
    entry = {key: value for key, value in (entry | facts).items() if value is not None}
    paths.manifest(path).write_text(json.dumps(entry), "utf-8")


def test_a_manifest_from_before_the_number_is_read_and_one_line_says_so(artifact):
    manifests.write(artifact, {"opset": 17})
    change(artifact, format=None)
    entry = manifests.read(artifact)
    assert entry["opset"] == 17
    assert "before manifests had a format number" in manifests.age_note(entry)
    assert "\n" not in manifests.age_note(entry)


@pytest.mark.parametrize("number", ["1", 1.5, True, -1, [1]])
def test_a_number_that_is_none_is_damage(artifact, number):
    manifests.write(artifact, {})
    change(artifact, format=number)
    with pytest.raises(DamagedManifestError, match="is damaged"):
        manifests.read(artifact)


def test_a_newer_format_is_refused_with_what_to_do(artifact):
    manifests.write(artifact, {})
    change(artifact, format=manifests.FORMAT + 1)
    with pytest.raises(ModelFileError, match=r"has format 2.*Update labutils"):
        manifests.read(artifact)
