"""Two Netron panes in JupyterLab draw two graphs: at the root, and below a base URL's prefix."""

import nbformat
import pytest
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


def write_notebook(folder):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SOURCE.strip())])
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
