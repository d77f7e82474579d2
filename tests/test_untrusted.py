"""Limits of every reader: bytes, depth, aliases, and what an archive unpacks to."""

import ast
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from bad_files import classifier, external
from hypothesis import given
from hypothesis import strategies as st

from labutils import manifests, paths, provenance, quantize, surgery, untrusted
from labutils.commands import options
from labutils.dlc import writing
from labutils.errors import LabError, LimitError, ModelFileError, UsageError
from labutils.lab import notebooks
from labutils.models import checkpoint, zoo
from labutils.onnxfile import graph
from labutils.onnxfile.file import OnnxFile
from labutils.pipeline import batch
from labutils.runtime.qnn import dlc_file
from labutils.targets import schema
from labutils.train.config import read_config

# 10 to the power of 10 values in 400 bytes
BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{name}: &{name} [{','.join(['*' + before] * 10)}]\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
YAML_READERS = {
    "quantization recipe": (quantize.load_recipe, "name"),
    "surgery edits": (surgery.Edits.from_yaml, "format"),
    "operator table": (lambda text: schema.parse(text, "table"), "name"),
}
HOSTILE_YAML = {
    "aliases": BOMB + "{key}: *j\n",
    "merged": BOMB.replace("[1,1,1,1,1,1,1,1,1,1]", "{{k: 1}}").replace("[", "{{<<: [").replace(
        "]", "]}}"
    ) + "{key}: *j\n",
    "itself": "{key}: &a [*a]\n",
    "nested": "{key}: " + "[" * 100_000 + "\n",
    "nested and closed": "{key}: " + "[" * 200 + "]" * 200 + "\n",
    "indented": "".join(" " * i + "a:\n" for i in range(500)),
    "endless": "{key}: " + "x" * 5_000_000 + "\n",
    "many": "{key}:\n" + "  - 1\n" * 100_000,
    "an integer of many digits": "{key}: " + "9" * 10_000 + "\n",
    "an integer in base 16": "{key}: 0x" + "f" * 10_000 + "\n",
    "a date that is none": "{key}: 2001-02-31\n",
    "a float that is none": "{key}: !!float x\n",
    "a long key": "x" * 100_000 + ": 1\n",
}  # fmt: skip


@pytest.mark.parametrize("reader", YAML_READERS)
@pytest.mark.parametrize("kind", HOSTILE_YAML)
def test_hostile_yaml_ends_in_one_short_error(kind, reader):
    read, key = YAML_READERS[reader]
    text = HOSTILE_YAML[kind].replace("{{", "{").replace("}}", "}").replace("{key}", key)
    with pytest.raises(LabError) as caught:
        read(text)
    assert len(str(caught.value)) < 2000


def test_settings_of_other_tools_have_the_same_limits(tmp_path):
    file = tmp_path / "settings.yaml"
    file.write_text(BOMB + "model_parameters: *j\n")
    with pytest.raises(UsageError, match="aliases stand for"):
        quantize.imported(file)


@pytest.mark.parametrize(
    "value",
    ["{a: [1, 2, {b: [3]}]}", "[" + "1, " * 5000 + "1]", "'" + "x" * 3000 + "'", "1" * 4000],
)
def test_a_message_shows_a_value_in_short(value):
    with pytest.raises(UsageError) as caught:
        quantize.load_recipe(f"activations: {{bits: {value}}}\n")
    assert len(str(caught.value)) < 500 and "line 1" in str(caught.value)


@given(
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_is_shown_of_a_value_is_short(value):
    assert len(untrusted.shown(value)) < 2000
    assert (
        len(value) > 6 or untrusted.shown(value) == repr(value) if isinstance(value, str) else True
    )


@pytest.mark.parametrize("depth", [1, untrusted.MAX_DEPTH, untrusted.MAX_DEPTH + 1, 900, 100_000])
def test_json_has_a_depth(depth):
    text = "[" * depth + "]" * depth
    if depth <= untrusted.MAX_DEPTH:
        assert untrusted.json_value(text) == json.loads(text)
    else:
        with pytest.raises(LimitError, match="nested"):
            untrusted.json_value(text)


def sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)
    return path


JSON_FILES = {
    "nested": lambda path: path.write_text("[" * 100_000),
    "huge": lambda path: sparse(path, 10**12),
    "text": lambda path: path.write_text("{"),
    "a list": lambda path: path.write_text("[]"),
}


@pytest.mark.parametrize("kind", JSON_FILES)
def test_json_files_that_cannot_be_read_end_in_one_error(kind, tmp_path):
    JSON_FILES[kind](tmp_path / "r.json")
    with pytest.raises(UsageError):
        read_config(tmp_path / "r.json")
    zipfile.ZipFile(tmp_path / "m.dlc", "w").writestr("model", b"")
    JSON_FILES[kind](tmp_path / "m.dlc.manifest.json")
    with pytest.raises(ModelFileError, match="manifest"):
        zoo.load(tmp_path / "m.dlc")


PIPED = {
    "manifest": ("m.dlc.manifest.json", lambda path: manifests.read(path.with_name("m.dlc"))),
    "model card": ("m.json", lambda path: provenance.card_classes(path.with_name("m.pth"), 3)),
    "summary": ("m.dlc.json", lambda path: writing._notes(path.with_name("m.dlc"))),
    "ONNX": ("m.onnx", graph.read),
    "external data": ("weights.bin", lambda path: OnnxFile(path.with_name("m.onnx")).whole),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with a name")
@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("kind", PIPED)
def test_a_pipe_that_lies_where_a_file_is_read_stops_nobody(kind, linked, tmp_path):
    name, read = PIPED[kind]
    (tmp_path / "m.dlc").write_bytes(b"made")
    onnx.save(external("weights.bin"), tmp_path / "m.onnx")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / ("pipe" if linked else name))
    if linked:
        (tmp_path / name).symlink_to("pipe")
    with pytest.raises(ModelFileError):
        read(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with a name")
def test_the_list_of_originals_as_a_pipe_is_none(tmp_path):
    os.mkfifo(tmp_path / ".originals.json")
    assert notebooks._origins(tmp_path) == {}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with a name")
def test_a_pipe_that_a_user_names_is_read(tmp_path):
    os.mkfifo(tmp_path / "p")
    with subprocess.Popen([sys.executable, "-c", "import sys; open(sys.argv[1], 'w').write('é')",
                           tmp_path / "p"]):  # fmt: skip
        assert untrusted.text(tmp_path / "p") == "é"


def bomb(path, *names, size=300_000_000):
    """A small archive that unpacks to so many bytes of zeros in each member."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name in names:
            with archive.open(name, "w") as member:
                for _ in range(size // 10**6):
                    member.write(bytes(10**6))
    return path


READ_ARCHIVES = {
    "m.dlc": (dlc_file.read, ["model.params.bin", "model", "model.params"]),
    "m.pt2": (checkpoint.exported_program, ["m/data/weights/weight_0"]),
    "m.pth": (checkpoint.state_dict, ["m/data.pkl"]),
    "m.npz": (options.stored_inputs, ["inputs.npy"]),
}


@pytest.mark.parametrize("name", READ_ARCHIVES)
def test_an_archive_is_refused_before_it_unpacks_to_too_much(name, tmp_path):
    read, members = READ_ARCHIVES[name]
    path = bomb(tmp_path / name, *members[:1])
    assert path.stat().st_size < 2_000_000
    with pytest.raises(UsageError, match=r"unpacks to [\d,]+ bytes"):
        read(path)


@pytest.mark.skipif(sys.platform != "linux", reason="limits its own memory")
def test_a_member_gives_no_more_than_it_says(tmp_path):
    path = bomb(tmp_path / "lie.dlc", "model")
    content = bytearray(path.read_bytes())
    said = struct.pack("<I", 300_000_000)
    for place in (content.rfind(said), content.find(said)):
        if place >= 0:
            content[place : place + 4] = struct.pack("<I", 1000)
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        untrusted.refuse_bomb(path, archive)
        assert len(untrusted.member(archive, archive.infolist()[0], checked=False)) == 1000
    with pytest.raises(ModelFileError):
        dlc_file.read(path)


def test_members_that_share_their_bytes_are_counted_each(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model", bytes(20_000_000))
        for number in range(20):  # twenty names for one place
            twin = zipfile.ZipInfo(f"model{number}")
            first = archive.filelist[0]
            for field in ("file_size", "compress_size", "CRC", "header_offset", "compress_type"):
                setattr(twin, field, getattr(first, field))
            archive.filelist.append(twin)
    (tmp_path / "m.dlc").write_bytes(stream.getvalue())
    with pytest.raises(ModelFileError, match="unpacks to"):
        dlc_file.read(tmp_path / "m.dlc")


def test_tables_of_a_dlc_that_share_their_contents_are_refused():
    # a root whose vector of 250,000 tables points at itself again and again
    count = 250_000
    table = struct.pack("<HHHi", 6, 8, 4, 6) + struct.pack("<I", 4)
    data = dlc_file._Buffer(table + struct.pack("<I", count) + bytes(4 * count))
    data.left = 8 * len(data)
    root = dlc_file._Table(data, 6)
    assert len(root.numbers(0)) == count
    with pytest.raises(ValueError, match="share their contents"):
        for _ in range(100):
            root.numbers(0)


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors", ".pth", ".yaml", ".txt"])
def test_a_file_of_terabytes_is_refused_unread(suffix, tmp_path):
    path = sparse(tmp_path / f"m{suffix}", 10**12)
    readers = {".onnx": graph.read, ".yaml": quantize.load_recipe, ".txt": batch._read_list}
    with pytest.raises(UsageError, match="more than"):
        readers.get(suffix, checkpoint.state_dict)(path)


@pytest.mark.parametrize("length", [None, 10**12])
def test_external_data_of_terabytes_is_refused_unread(length, tmp_path):
    model = external("weights.bin", length)
    if length is None:
        del model.graph.initializer[0].external_data[2]
    sparse(tmp_path / "weights.bin", 10**12)
    onnx.save(model, tmp_path / "m.onnx")
    for read in (graph.read, lambda path: OnnxFile(path).whole, zoo.load):
        with pytest.raises(ModelFileError, match="weights in other"):
            read(tmp_path / "m.onnx")


def test_external_data_of_a_usual_size_is_read(tmp_path):
    onnx.save(external("weights.bin"), tmp_path / "m.onnx")
    (tmp_path / "weights.bin").write_bytes(np.ones((3, 4), np.float32).tobytes())
    found = OnnxFile(tmp_path / "m.onnx").whole
    assert found.graph.initializer[0].raw_data == classifier().graph.initializer[0].raw_data


def test_an_array_whose_shape_is_a_lie_is_an_error(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (2**20, 3, 2**12, 2**12)}
    )
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("inputs.npy", header.getvalue() + bytes(64))
    with pytest.raises(UsageError, match=r"m\.npz"):
        options.stored_inputs(tmp_path / "m.npz")


def test_text_of_a_usual_size_is_read_as_python_reads_it(tmp_path):
    (tmp_path / "m.txt").write_bytes("a\r\nb\rc\né".encode())
    assert untrusted.text(tmp_path / "m.txt") == (tmp_path / "m.txt").read_text(encoding="utf-8")


# What reads files or wires that are ours: written by this process, or shipped with the lab.
OURS = {"labutils/untrusted.py", "labutils/processes/channel.py", "labutils/lab/recorded.py"}
OURS |= {"labutils/pipeline/batch.py", "labutils/measure/latency.py", "labutils/surgery/edits.py"}
UNLIMITED = {("json", "load"), ("json", "loads"), ("yaml", "load"), ("yaml", "safe_load")}


def test_no_other_reader_is_without_limits():
    found = set()
    for file in (paths.ROOT / "labutils").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
            if named and (node.value.id, node.attr) in UNLIMITED:
                found.add(Path(file).relative_to(paths.ROOT).as_posix())
    assert found <= OURS
