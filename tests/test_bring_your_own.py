"""What people bring: opset 7 to 21, weights beside the file, open sizes, pixels, NHWC, .pt2.

All are the same small network, so each must answer as the PyTorch module does.
"""

import json
import warnings

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, version_converter
from torch import nn

from labutils import __main__ as cli
from labutils import paths, runtime
from labutils.errors import ModelFileError
from labutils.images import data
from labutils.models import adapt, zoo

SIZE = 32
NORMAL = data.Preprocessing(SIZE)
STATED = ["--mean", "0.485", "0.456", "0.406", "--std", "0.229", "0.224", "0.225"]


class Net(nn.Module):
    """Hard-swish that SNPE refuses, BatchNorm to fold, and a size that is computed."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Hardswish(), nn.AdaptiveAvgPool2d(1)
        )
        self.classifier = nn.Linear(8, 16)

    def forward(self, x):
        x = self.features(x)
        return self.classifier(x.view(x.shape[0], -1))


class Front(nn.Module):
    """The network behind what others put in front of it."""

    def __init__(self, net, *steps):
        super().__init__()
        self.net, self.steps = net, steps

    def forward(self, x):
        for step in self.steps:
            x = step(x)
        return self.net(x)


def normalized(pixels):
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (NORMAL.mean, NORMAL.std))
    return (pixels / 255 - mean) / std


def nchw(x):
    return x.permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net().eval()
    net.features[0].weight.data *= 20  # into the flat parts of hard-swish, where Clip matters
    return net


@pytest.fixture(scope="module")
def brought(net, tmp_path_factory):
    """A function name -> file; each is made as those who bring such make it."""
    folder = tmp_path_factory.mktemp("brought")

    def exported(name, module=net, example=None, opset=13, axes=None):
        path = folder / f"{name}.onnx"
        example = torch.zeros(1, 3, SIZE, SIZE) if example is None else example
        names = {"input_names": ["image"], "output_names": ["scores"]}
        axes = {"image": axes, "scores": {0: "n"}} if axes else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module.eval(), (example,), path, opset_version=opset, dynamo=False,
                dynamic_axes=axes, **names,
            )  # fmt: skip
        return path

    def external(name, source):
        path = folder / f"{name}.onnx"
        onnx.save(
            onnx.load(source), path, save_as_external_data=True, location=f"{name}.bin",
            size_threshold=0,
        )  # fmt: skip
        return path

    def opset_21():
        path = folder / "opset_21.onnx"
        onnx.save(version_converter.convert_version(onnx.load(exported("x", opset=17)), 21), path)
        return path

    def program(name, batch, module=net):
        path = folder / f"{name}.pt2"
        torch.export.save(torch.export.export(module, (torch.zeros(batch, 3, SIZE, SIZE),)), path)
        return path

    last = torch.zeros(1, SIZE, SIZE, 3)
    pixels = (torch.Tensor.float, normalized)
    open_ = {0: "n", 2: "h", 3: "w"}
    makers = {
        **{f"opset_{n}": lambda n=n: exported(f"opset_{n}", opset=n) for n in OPSETS},
        "opset_21": opset_21,
        "external": lambda: external("external", exported("x")),
        "external_old": lambda: external("external_old", exported("x", opset=8, axes={0: "n"})),
        "open_batch": lambda: exported("open_batch", axes={0: "n"}),
        "open_size": lambda: exported("open_size", axes=open_),
        "batch_4": lambda: exported("batch_4", example=torch.zeros(4, 3, SIZE, SIZE)),
        "nhwc": lambda: exported("nhwc", Front(net, nchw), last),
        "nhwc_open": lambda: exported(
            "nhwc_open", Front(net, nchw), last, axes={0: "n", 1: "h", 2: "w"}
        ),
        "pixels": lambda: exported(
            "pixels", Front(net, *pixels), torch.zeros(1, 3, SIZE, SIZE).byte()
        ),
        "pixels_nhwc": lambda: exported("pixels_nhwc", Front(net, nchw, *pixels), last.byte()),
        "pixels_added": lambda: exported(
            "pixels_added",
            Front(net, lambda x: torch.maximum(x, torch.zeros_like(x)).float(), normalized),
            torch.zeros(1, 3, SIZE, SIZE).byte(),
        ),
        "halves": lambda: exported(
            "halves", Front(net, torch.Tensor.float), torch.zeros(1, 3, SIZE, SIZE).half()
        ),
        "program": lambda: program("program", 1),
        "program_4": lambda: program("program_4", 4),
    }
    made = {}

    def make(name):
        if name not in made:
            made[name] = makers[name]()
        return made[name]

    return make


OPSETS = (7, 8, 9, 11, 13, 17, 18)
SAID = {
    "opset_7": "weights that were listed as inputs are constants",
    "opset_8": "its opset 8 was raised to 11",
    "opset_9": "its opset 9 was raised to 11",
    "external_old": "its open batch was fixed to 1",
    "open_batch": "sizes that it computed are constants",
    "open_size": "its open size was fixed to 32 px",
    "nhwc": "its NHWC input takes NCHW, without its first Transpose",
    "nhwc_open": "its open size was fixed to 32 px",
    "pixels": "its uint8 input takes the same pixels as float32",
    "pixels_nhwc": "its NHWC input takes NCHW",
    "pixels_added": "its uint8 input takes float32, followed by a Cast",
    "halves": "its float16 is computed in float32",
}
EVERY = [
    *(f"opset_{n}" for n in (*OPSETS, 21)),
    "external", "external_old", "open_batch", "open_size", "batch_4", "nhwc", "nhwc_open",
    "pixels", "pixels_nhwc", "pixels_added", "halves", "program", "program_4",
]  # fmt: skip


def stated(name):
    """What has to be said with a file that does not say it itself."""
    size = ["--size", str(SIZE)] if name in ("open_size", "nhwc_open") else []
    return size if name.startswith("pixels") else [*size, *STATED]


@pytest.mark.parametrize("name", EVERY)
def test_it_is_loaded_and_answers_as_the_network_does(brought, net, name):
    path = brought(name)
    before = path.read_bytes()
    model = zoo.load(path, size=SIZE if "--size" in stated(name) else None)
    assert model.input_shape[1:] == (3, SIZE, SIZE)
    assert (model.brought == path) == (name in SAID)
    assert SAID.get(name, "") in model.note
    assert "NOT compared" not in model.note
    assert (model.preprocessing is not None) == name.startswith("pixels")
    images = data.load("val", 4, SIZE).images
    artifact = model.module if model.module is not None else model.file
    with runtime.connect(artifact) as runner:
        found = runner.run((model.preprocessing or NORMAL)(images))
    with torch.no_grad():
        expected = net(torch.from_numpy(NORMAL(images))).numpy()
    tolerance = 2e-3 if name == "halves" else 1e-5
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    assert path.read_bytes() == before, "the file that was brought was changed"


@pytest.mark.parametrize("name", EVERY)
def test_diagnose_names_the_repair(brought, capsys, name):
    assert cli.main(["diagnose", str(brought(name)), *stated(name)[: -len(STATED) or None]]) == 1
    printed = capsys.readouterr().out
    assert "rule 'hardswish' would repair 1 node;" in printed
    assert SAID.get(name, "") in printed


@pytest.mark.slow
@pytest.mark.htp
@pytest.mark.parametrize(
    "name", ["opset_7", "opset_21", "external_old", "open_size", "nhwc_open", "pixels", "program_4"]
)
def test_it_is_converted_and_the_dlc_runs(brought, capsys, tmp_path, name):
    path, dlc = brought(name), tmp_path / f"{name}.dlc"
    command = ["convert", str(path), "--target=snpe-2.7", "--repair", "-o", str(dlc)]
    assert cli.main([*command, *stated(name)]) == 0, capsys.readouterr()
    manifest = json.loads((tmp_path / f"{name}.dlc.manifest.json").read_text())
    assert manifest["brought"] == {"file": path.name, "sha256": paths.sha256(path)}
    capsys.readouterr()
    assert cli.main(["run", str(dlc), "--images", "4", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert cli.main(["run", str(path), "--images", "4", "--json", *stated(name)]) == 0
    expected = json.loads(capsys.readouterr().out)["rows"]
    assert [row["top"][0][0] for row in rows] == [row["top"][0][0] for row in expected]


def refusal(capsys, *arguments):
    assert cli.main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_adapted_is_refused_with_the_cure(brought, net, capsys, tmp_path):
    assert "give --size" in refusal(capsys, "run", brought("open_size"), *STATED)
    told = refusal(capsys, "run", brought("pixels"), *STATED)
    assert "leave out --mean and --std" in told

    wide = tmp_path / "wide.pt2"
    torch.export.save(torch.export.export(net, (torch.zeros(1, 3, SIZE, 48),)), wide)
    assert cli.main([str(word) for word in ("run", wide, *STATED, "--images", 1)]) == 0
    assert "32x48 RGB" in capsys.readouterr().out

    lost = tmp_path / "lost.onnx"
    lost.write_bytes(brought("external_old").read_bytes())
    assert "beside it" in refusal(capsys, "diagnose", lost)

    training = tmp_path / "training.pt2"
    program = torch.export.export(Net().train(), (torch.zeros(2, 3, SIZE, SIZE),))
    torch.export.save(program, training)
    assert "model.eval()" in refusal(capsys, "diagnose", training)

    halves = tmp_path / "halves.pt2"
    example = torch.zeros(1, 3, SIZE, SIZE).half()
    torch.export.save(torch.export.export(Front(net, torch.Tensor.float), (example,)), halves)
    assert "one float32 image" in refusal(capsys, "run", halves, *STATED)

    open_ = tmp_path / "open.pt2"
    shapes = ({0: torch.export.Dim("n", min=1, max=8)},)
    example = torch.zeros(2, 3, SIZE, SIZE)
    torch.export.save(torch.export.export(net, (example,), dynamic_shapes=shapes), open_)
    assert "static shapes" in refusal(capsys, "diagnose", open_)


def test_a_copy_that_computes_something_else_is_refused(brought, monkeypatch):
    """The comparison is real: an adaptation that forgets the layout does not get through."""
    real = adapt._Adapting._to_nchw_

    def forgetful(self, image):
        real(self, image)
        for node in self.model.graph.node:
            if node.op_type == "Conv":  # transposed weights: the picture on its side
                weights = next(t for t in self.model.graph.initializer if t.name == node.input[1])
                values = onnx.numpy_helper.to_array(weights).transpose(0, 1, 3, 2).copy()
                weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))

    monkeypatch.setattr(adapt._Adapting, "_to_nchw_", forgetful)
    with pytest.raises(ModelFileError, match="something else"):
        adapt.adapted(brought("nhwc"))


def test_an_operator_of_a_device_is_adapted_but_not_called_equal(tmp_path):
    node = helper.make_node("Magic", ["image"], ["scores"], domain="vendor")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 16])
    graph = helper.make_graph([node], "g", [image], [scores])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("vendor", 1)]
    path = tmp_path / "magic.onnx"
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    changes = adapt.adapted(path).changes
    assert changes[0] == "its open batch was fixed to 1"
    assert "NOT compared" in changes[1]


def test_what_needs_nothing_is_left_alone(brought):
    found = adapt.adapted(brought("opset_13"))
    assert found == adapt.Adapted(brought("opset_13"))
