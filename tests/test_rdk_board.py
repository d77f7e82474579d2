"""A .bin on the board over its interfaces, stand-ins here; described, fetched, and the demo."""

import hashlib
import http.server
import json
import sys
import threading
import types

import colour_network
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from labutils import fetch, provenance
from labutils.errors import (
    FetchError,
    MissingToolError,
    ModelFileError,
    ToolError,
    UnknownNameError,
    UsageError,
)
from labutils.images import nv12
from labutils.onnxfile.file import OnnxFile
from labutils.onnxfile.session import Session
from labutils.rdk import board, compiled_file, demo, nv12_input

PRE = colour_network.preprocessing()
PICTURES = colour_network.pictures(12)
HEIGHT = WIDTH = 32


def network_of_bytes(packed, file):
    """The scores that a board would give: checks the bytes, decodes them, runs the network."""
    if not isinstance(packed, np.ndarray) or packed.dtype != np.uint8:
        raise TypeError(f"dtype {getattr(packed, 'dtype', type(packed))}, not uint8")
    if packed.shape != (3 * HEIGHT * WIDTH // 2,) or not packed.flags.c_contiguous:
        raise ValueError(f"shape {packed.shape}, not packed NV12 of {HEIGHT} x {WIDTH}")
    y = packed[: HEIGHT * WIDTH].reshape(HEIGHT, WIDTH).astype(float)
    u, v = packed[HEIGHT * WIDTH :].reshape(HEIGHT // 2, WIDTH // 2, 2).astype(float).T
    u, v = (c.T.repeat(2, 0).repeat(2, 1) - 128 for c in (u, v))
    y, u, v = (y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
    rgb = np.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], -1)
    pixels = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
    return Session(OnnxFile(file)).run({"data": PRE(pixels[None])})[0]


def hbm_runtime():
    """``hbm_runtime``, as rdk_doc describes it; its output is 32-bit integers with a scale."""

    class HB_HBMRuntime:
        def __init__(self, file):
            self.file = file
            self.model_names, self.input_names = ["m"], {"m": ["data"]}
            self.output_names = {"m": ["output"]}
            self.input_shapes = {"m": {"data": [1, 3, HEIGHT, WIDTH]}}
            kind = types.SimpleNamespace(name="SCALE")
            quant = types.SimpleNamespace(
                scale=np.array([0.001]), zero_point=np.array([]), quant_type=kind
            )
            self.output_quants = {"m": {"output": quant}}

        def run(self, inputs):
            ((name, entries),) = inputs.items()
            ((key, packed),) = entries.items()
            assert (name, key) == ("m", "data")
            scores = network_of_bytes(packed, self.file)
            return {"m": {"output": np.rint(scores / 0.001).astype(np.int32)}}

    return {"hbm_runtime": types.SimpleNamespace(HB_HBMRuntime=HB_HBMRuntime)}


def pyeasy_dnn():
    class Model:
        def __init__(self, file):
            shape = types.SimpleNamespace(shape=(1, HEIGHT, WIDTH, 3), layout="NHWC")
            self.file, self.inputs = file, [types.SimpleNamespace(properties=shape)]

        def forward(self, packed):
            return [types.SimpleNamespace(buffer=network_of_bytes(packed, self.file))]

    module = types.SimpleNamespace(load=lambda file: [Model(file)])
    return {
        "hobot_dnn": types.SimpleNamespace(pyeasy_dnn=module), "hobot_dnn.pyeasy_dnn": module,
    }  # fmt: skip


def bpu_infer_lib():
    class Infer:
        def __init__(self, debug):
            assert debug is False

        def load_model(self, file):
            self.file = file

        def read_input(self, packed, index):
            assert index == 0
            self.packed = packed

        def forward(self):
            self.found = network_of_bytes(self.packed, self.file)

        def get_output(self):
            self.outputs = [types.SimpleNamespace(data=self.found.reshape(-1))]

    return {"bpu_infer_lib": types.SimpleNamespace(Infer=Infer)}


STAND_INS = {
    "hbm_runtime": hbm_runtime, "hobot_dnn.pyeasy_dnn": pyeasy_dnn, "bpu_infer_lib": bpu_infer_lib,
}  # fmt: skip


@pytest.fixture
def compiled(tmp_path):
    """The file that the stand-ins run: the network itself, under a board's ending."""
    return colour_network.saved(tmp_path / "colours.bin")


@pytest.fixture(params=STAND_INS)
def interface(request, monkeypatch):
    for name, module in STAND_INS[request.param]().items():
        monkeypatch.setitem(sys.modules, name, module)
    return request.param


# ---------------------------------------------------------------- the runner


def test_the_board_is_used_where_its_interface_can_be_imported(interface, compiled):
    assert board.available() == [interface]
    with board.BoardRunner(compiled, PRE) as runner:
        assert interface in runner.runtime and "have not run" in runner.runtime
        scores = runner.scores(PICTURES.images)
        assert scores.shape == (12, 6) and scores.dtype == np.float32
        assert (scores.argmax(1) == PICTURES.labels).all()
        np.testing.assert_array_equal(runner.run(PRE(PICTURES.images)), scores)


def test_what_the_interface_refuses_is_one_error(interface, compiled, monkeypatch):
    encode = nv12.encode
    with board.BoardRunner(compiled, PRE) as runner:
        for wrong in (lambda x, k: x, lambda x, k: encode(x, k).astype(np.int16)):
            monkeypatch.setattr(nv12, "encode", wrong)
            with pytest.raises(ToolError, match=r"refuses the picture: (Type|Value)Error"):
                runner.scores(PICTURES.images[:1])


def test_swapped_chroma_gives_other_answers(interface, compiled, monkeypatch):
    """The stand-in reads the bytes: NV21 is not taken for NV12."""
    encode = nv12.encode
    with board.BoardRunner(compiled, PRE) as runner:
        monkeypatch.setattr(nv12, "encode", lambda x, kind: encode(x, kind, "nv21"))
        found = runner.scores(PICTURES.images).argmax(1)
    assert (found == PICTURES.labels).mean() < 0.6


def test_the_newest_interface_comes_first(compiled, monkeypatch):
    for stand_in in STAND_INS.values():
        for name, module in stand_in().items():
            monkeypatch.setitem(sys.modules, name, module)
    assert board.available() == list(STAND_INS)
    assert board.BoardRunner(compiled, PRE).interface.name == "hbm_runtime"
    assert board.BoardRunner(compiled, PRE, interface="bpu_infer_lib").interface.name.startswith(
        "bpu"
    )


def test_away_from_the_board_and_with_another_size(compiled, monkeypatch):
    with pytest.raises(MissingToolError, match=r"runs on an RDK X5.*hbm_runtime.*\.onnx"):
        board.BoardRunner(compiled, PRE)
    for name, module in hbm_runtime().items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(UsageError, match=r"32 x 32, not 64 x 64. Pass --size 32 32"):
        board.BoardRunner(compiled, colour_network.preprocessing(64))
    with pytest.raises(UsageError, match="even"):
        board.BoardRunner(compiled, colour_network.preprocessing(31))


def test_what_the_interface_does_not_load_is_one_error(interface, compiled, tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("load model failed, -6000001")

    module = sys.modules[interface]
    name = {
        "hbm_runtime": "HB_HBMRuntime",
        "hobot_dnn.pyeasy_dnn": "load",
        "bpu_infer_lib": "Infer",
    }
    monkeypatch.setattr(module, name[interface], broken)
    with pytest.raises(ToolError, match=r"does not load colours\.bin: RuntimeError: load model"):
        board.BoardRunner(compiled, PRE)
    with pytest.raises(ModelFileError, match="There is no file"):
        board.BoardRunner(tmp_path / "gone.bin", PRE)
    with pytest.raises(UnknownNameError, match="no interface of the board named 'json'"):
        board.BoardRunner(compiled, PRE, interface="json")


# ---------------------------------------------------------------- what a .bin is


def hybrid(path, kind="HzBpuHBM"):
    nodes = [
        helper.make_node("HzQuantize", ["data"], ["q"], "quantize", domain="horizon"),
        helper.make_node(kind, ["q"], ["s"], "subgraph_0", domain="horizon", code=bytes(5000)),
        helper.make_node("HzDequantize", ["s"], ["d"], "dequantize", domain="horizon"),
        helper.make_node("Flatten", ["d"], ["output"], "reshape"),
    ]
    ends = [helper.make_tensor_value_info("data", TensorProto.FLOAT, [1, 3, 32, 32]),
            helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 6])]  # fmt: skip
    model = helper.make_model(helper.make_graph(nodes, "h", ends[:1], ends[1:]))
    onnx.save(model, path)
    return path


def test_a_bin_is_opened_and_described(lab, tmp_path):
    file = hybrid(tmp_path / "m.bin")
    found = compiled_file.describe(file)
    assert found.inputs == (("data", "float", (1, 3, 32, 32)),) and found.on_cpu == 3
    ((name, size),) = found.compiled
    assert name == "subgraph_0" and 5000 <= size < 5100
    assert found.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    code, said, _ = lab("rdk", "describe", file)
    assert code == 0 and "subgraph_0" in said and "1 HzQuantize, 1 HzDequantize, 1 Flatten" in said
    code, said, _ = lab("rdk", "describe", file, "--json")
    assert code == 0 and json.loads(said)["compiled"] == [[name, size]]


def test_ends_of_open_sizes_and_unknown_types_are_described(lab, tmp_path):
    model = onnx.load(hybrid(tmp_path / "m.bin"))
    sizes = model.graph.output[0].type.tensor_type.shape.dim
    sizes[0].dim_param = "n"
    sizes[1].Clear()
    model.graph.input[0].type.tensor_type.elem_type = 99
    onnx.save(model, tmp_path / "m.bin")
    code, said, _ = lab("rdk", "describe", tmp_path / "m.bin")
    assert code == 0 and "output: float n x ?" in said and "data: type 99, which ONNX" in said


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"", "is empty"), (b"\x00HBRT packed" * 40, "hrt_model_exec model_info"), (None, "no file")],
)
def test_what_is_not_such_a_bin_is_refused(tmp_path, content, words):
    file = tmp_path / "m.bin"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ModelFileError, match=words):
        compiled_file.describe(file)


def test_an_onnx_file_without_compiled_parts_is_named(tmp_path):
    with pytest.raises(ModelFileError, match="without HzBpuHBM nodes"):
        compiled_file.describe(hybrid(tmp_path / "m.bin", "HzSQuantizedConv"))


# ---------------------------------------------------------------- download


BODY = bytes(range(256)) * 64
SHA = hashlib.sha256(BODY).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_):
        pass


@pytest.fixture
def url(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("LABUTILS_MIRROR", f"http://127.0.0.1:{server.server_port}")
        yield "https://origin.invalid/models/m.bin"
        server.shutdown()


def test_a_download_is_verified_by_the_users_hash_or_said_not_to_be(lab, url, tmp_path):
    code, said, _ = lab("rdk", "fetch", url, "-o", tmp_path / "a.bin", "--sha256", SHA.upper())
    assert code == 0 and f"{SHA}, verified" in said and (tmp_path / "a.bin").read_bytes() == BODY
    code, said, _ = lab("rdk", "fetch", url, "-o", tmp_path / "b.bin")
    assert code == 0 and "UNVERIFIED" in said and f"--sha256 {SHA}" in said
    code, _, problem = lab("rdk", "fetch", url, "-o", tmp_path / "c.bin", "--sha256", "0" * 64)
    assert code == 1 and f"SHA-256 {SHA}, expected 000" in problem and "weights" not in problem
    code, _, problem = lab("rdk", "fetch", url, "-o", tmp_path / "c.bin", "--sha256", "12")
    assert code == 2 and "64 hexadecimal digits" in problem
    code, _, problem = lab("rdk", "fetch", url, "-o", tmp_path / "a.bin")
    assert code == 2 and "exists" in problem
    assert {file.name for file in tmp_path.iterdir()} == {"a.bin", "b.bin"}


def test_a_download_without_https_is_refused(tmp_path, monkeypatch):
    monkeypatch.delenv("LABUTILS_MIRROR", raising=False)
    with pytest.raises(FetchError, match="only https"):
        fetch.file("http://127.0.0.1:9/m.bin", tmp_path / "m.bin")


# ---------------------------------------------------------------- the demo


LABELS = list(PICTURES.classes)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (json.dumps(LABELS), LABELS),
        (json.dumps({str(i): word for i, word in enumerate(LABELS)}), LABELS),
        ("{0: 'tench, Tinca tinca',\n 1: 'goldfish'}", ["tench, Tinca tinca", "goldfish"]),
        (json.dumps({"0": ["n01440764", "tench"]}), ["tench"]),
        ("tench\ngoldfish\n\n", ["tench", "goldfish"]),
    ],
)
def test_labels_are_read_in_the_ways_that_they_are_kept(tmp_path, text, found):
    (tmp_path / "l.txt").write_text(text)
    assert demo.labels(tmp_path / "l.txt") == tuple(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "0 labels"), ("{0: a, 2: b}", "no label for class 1"), ("{a: b}", "class numbers"),
     ("[1, ", "line")],
)  # fmt: skip
def test_wrong_labels_say_what_is_missing(tmp_path, text, words):
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(UsageError, match=words):
        demo.labels(tmp_path / "l.txt")


def test_the_five_best_are_ranked_by_softmax():
    scores = np.array([1.0, 3.0, 1000.0, 2.0, -5.0, 0.0])
    found = demo.answer(scores, tuple(LABELS), "p.png", "here")
    assert [n for n, *_ in found.ranked] == [2, 1, 3, 0, 5] and found.ranked[0][2] == 1.0
    with pytest.raises(UsageError, match="6 scores, and the file has 2 labels"):
        demo.answer(scores, ("a", "b"), "p.png", "here")


@pytest.fixture
def picture(tmp_path):
    pixels = PICTURES.images[2].repeat(4, 0).repeat(4, 1)  # blue
    Image.fromarray(pixels).save(tmp_path / "blue.png")
    return tmp_path / "blue.png"


def test_the_demo_draws_the_label_of_every_kind_of_file(lab, tmp_path, picture, monkeypatch):
    (tmp_path / "l.json").write_text(json.dumps(LABELS))
    plain = colour_network.saved(tmp_path / "f.onnx")
    nv12_input.prepend(plain, tmp_path / "n.onnx", PRE)
    for name, module in hbm_runtime().items():
        monkeypatch.setitem(sys.modules, name, module)
    compiled = colour_network.saved(tmp_path / "m.bin")
    norm = ["--mean", *map(str, colour_network.MEAN), "--std", *map(str, colour_network.STD)]
    before = np.asarray(Image.open(picture))
    for model, more in ((plain, norm), (tmp_path / "n.onnx", []), (compiled, ["--size", "32"])):
        code, said, problem = lab(
            "rdk", "demo", model, picture, "--labels", tmp_path / "l.json",
            "-o", tmp_path / "o.png", *more,
        )  # fmt: skip
        assert code == 0, problem
        rows = [line.split()[-1] for line in said.splitlines() if "%" in line]
        assert rows[0] == "blue" and len(rows) == 5
        drawn = np.asarray(Image.open(tmp_path / "o.png"))
        assert drawn.shape == before.shape
        strip = drawn[:12].reshape(-1, 3)
        assert (strip == 0).all(1).mean() > 0.3 and (strip > 180).all(1).any()
        np.testing.assert_array_equal(drawn[20:], before[20:])
        (tmp_path / "o.png").unlink()


@pytest.fixture
def bytes_file(lab, tmp_path):
    """What `rdk nv12` writes of a file that says its classes, as the lab's exports do."""
    plain, norm = colour_network.saved(tmp_path / "f.onnx"), []
    model = onnx.load(plain)
    model.metadata_props.add(key=provenance.MODEL_KEY, value=json.dumps({"classes": LABELS}))
    onnx.save(model, plain)
    for name, values in (("--mean", colour_network.MEAN), ("--std", colour_network.STD)):
        norm += [name, *map(str, values)]
    code, _, problem = lab(
        "rdk", "nv12", plain, *norm, "--images", 2, "-o", tmp_path / "n.onnx"
    )  # fmt: skip
    assert code == 0, problem
    return tmp_path / "n.onnx"


def test_the_demo_takes_the_classes_and_the_scores_of_a_file_of_bytes(lab, bytes_file, picture):
    model = onnx.load(bytes_file)
    model.graph.output.insert(0, helper.make_tensor_value_info("x", 1, [1, 3, HEIGHT, WIDTH]))
    onnx.save(model, bytes_file.with_name("two.onnx"))
    for file in (bytes_file, bytes_file.with_name("two.onnx")):
        code, said, problem = lab("rdk", "demo", file, picture)
        assert code == 0, problem
        assert said.splitlines()[1].split()[-1] == "blue"


@pytest.mark.parametrize(
    ("more", "words"),
    [(("--range", "full"), "decodes its bytes in the video range"),
     (("--mean", "0", "0", "0"), "normalises them itself")],
)  # fmt: skip
def test_the_demo_refuses_what_a_file_of_bytes_decides_itself(
    lab, bytes_file, picture, more, words
):
    code, _, problem = lab("rdk", "demo", bytes_file, picture, *more)
    assert code == 2 and words in problem
    plain = bytes_file.with_name("f.onnx")
    code, _, problem = lab("rdk", "demo", plain, picture, "--range", "video")
    assert code == 2 and "does not take NV12 bytes" in problem


def test_another_label_is_another_drawing(tmp_path):
    drawn = []
    for word in ("tench", "goldfish"):
        found = demo.Answer("p.png", ((0, word, 0.5),), "here")
        file = demo.draw(np.full((64, 160, 3), 90, np.uint8), found, tmp_path / f"{word}.png")
        drawn.append(np.asarray(Image.open(file)))
    assert (drawn[0] != drawn[1]).any() and (drawn[0][20:] == drawn[1][20:]).all()
    with pytest.raises(UsageError, match=r"\.png or \.jpg"):
        demo.draw(drawn[0], found, tmp_path / "x.gif")


def test_a_bin_away_from_the_board_says_what_runs_here(lab, compiled, picture, tmp_path):
    code, _, problem = lab("rdk", "demo", compiled, picture, "--size", "32")
    assert code != 0 and "runs on an RDK X5" in problem
    code, _, problem = lab("rdk", "demo", compiled, picture, "--std", "1", "1", "1")
    assert code == 2 and "normalises them itself" in problem
