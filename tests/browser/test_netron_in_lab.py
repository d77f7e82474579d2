"""Netron panes in JupyterLab draw graphs of each format: at the root, and below a prefix."""

import base64
import json
import zipfile
import zlib

import nbformat
import pytest
import tflite_files
import torch
from jupyterlab import PATIENCE, JupyterLab, outside
from playwright.sync_api import expect

pytestmark = pytest.mark.browser

SOURCE = """
from onnx import TensorProto, helper, save

def write(name, *operators):
    names = [str(i) for i in range(len(operators) + 1)]
    ends = [helper.make_tensor_value_info(names[i], TensorProto.FLOAT, [1, 4]) for i in (0, -1)]
    nodes = [
        helper.make_node(op, [names[i]], [names[i + 1]], f"/{op}") for i, op in enumerate(operators)
    ]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), name)

write("before.onnx", "Relu", "HardSwish")
write("after.onnx", "Relu", "Clip", "Neg")

from labutils.show import panes
panes("before.onnx", "after.onnx", height=300)
"""


def write_notebook(folder, source=SOURCE):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source.strip())])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, folder / "netron.ipynb")


def operators(frame):
    """What Netron has written on the graph's nodes, once it has drawn them."""
    expect(frame.locator("body")).to_have_class("default", timeout=PATIENCE * 1000)
    labels = frame.locator("#canvas .node text")
    return {labels.nth(i).text_content() for i in range(labels.count())}


def drawn_in_both_panes(notebook):
    notebook.run_all()
    assert notebook.errors() == []
    frames = notebook.panel.locator("iframe.lab-netron")
    assert frames.count() == 2
    before, after = (operators(frames.nth(i).content_frame) for i in (0, 1))
    assert {"Relu", "HardSwish"} <= before and not {"Clip", "Neg"} & before
    assert {"Relu", "Clip", "Neg"} <= after and "HardSwish" not in after
    return [frames.nth(i).get_attribute("src") for i in (0, 1)]


def test_two_panes_draw_two_graphs(lab, opened):
    write_notebook(lab.folder)
    sources = drawn_in_both_panes(opened(lab, "netron.ipynb"))
    assert len(set(sources)) == 2


def test_the_panes_work_below_a_prefix_through_the_proxy(opened, tmp_path):
    pytest.importorskip("jupyter_server_proxy")
    with JupyterLab(tmp_path, base="/user/ann/") as hub:
        write_notebook(hub.folder)
        notebook = opened(hub, "netron.ipynb")
        sources = drawn_in_both_panes(notebook)
        notebook.close()
    assert all(source.startswith("/user/ann/proxy/") for source in sources)


KERAS = [
    {"class_name": "InputLayer", "config": {"batch_shape": [None, 8], "name": "input"}},
    {"class_name": "Dense", "config": {"name": "head", "units": 4, "use_bias": False}},
    {"class_name": "ReLU", "config": {"name": "act"}},
]


# an HDF5 file without groups, as h5py writes it: no weights, which Netron need not have
HDF5 = zlib.decompress(
    base64.b85decode(
        "c-rgqaB<`1lHy_j0S*oZ76t(ZWbhvf6qr%@F!=;1%?PDCp!5nRm^dR?P68?}2sIyFT}Y6tE3*0M_Kbp&4Ln>O1"
        "3+{Hl+OXBPcWgXgQdd&D%lGFq@*Z_"
    )
)


@pytest.mark.litert
def test_a_pane_for_each_format_of_notebook_11(lab, opened):
    network = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Hardswish())
    program = torch.export.export(network.eval(), (torch.zeros(1, 8),))
    torch.export.save(program, lab.folder / "a.pt2")
    tflite_files.network(lab.folder / "a.tflite", tflite_files.small_network())
    with zipfile.ZipFile(lab.folder / "a.keras", "w") as archive:
        layers = {"name": "a", "layers": KERAS}
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("model.weights.h5", HDF5)
        archive.writestr("config.json", json.dumps({"class_name": "Sequential", "config": layers}))
    write_notebook(
        lab.folder, "from labutils.show import panes\npanes('a.tflite', 'a.keras', 'a.pt2')"
    )
    notebook = opened(lab, "netron.ipynb")
    notebook.run_all()
    assert notebook.errors() == []
    frames = notebook.panel.locator("iframe.lab-netron")
    tflite, keras, pt2 = (operators(frames.nth(i).content_frame) for i in range(3))
    assert {"Conv2D", "DepthwiseConv2D", "HardSwish", "ResizeBilinear"} <= tflite
    assert {"Dense", "ReLU"} <= keras and {"linear", "hardswish"} <= pt2


@pytest.mark.parametrize(
    ("url", "leaves"),
    [
        ("http://127.0.0.1:8888/lab", False),
        ("ws://127.0.0.1:8888/api", False),
        ("data:text/plain,x", False),
        ("https://127.0.0.1.example.org/", True),
        ("https://example.org/?127.0.0.1", True),
        ("http://localhost:8888/", True),
    ],
)
def test_what_counts_as_leaving(url, leaves):
    assert outside(url) is leaves
