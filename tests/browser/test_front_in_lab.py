"""The front of mixed recipes in JupyterLab: a click on the picture, the keyboard, a measurement."""

import re

import nbformat
import pytest
from jupyterlab import PATIENCE
from playwright.sync_api import expect

from labutils import quantize

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LONG = PATIENCE * 1000  # milliseconds
SOURCE = """
import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from labutils.quantize import mixed
from labutils.show.widgets import ParetoFront

r, nodes, weights = np.random.default_rng(0), [], []
for i in range(6):
    weight = r.normal(size=(8 if i < 5 else 4, 8 if i else 3, 1, 1)).astype(np.float32)
    weights.append(numpy_helper.from_array(weight / 3, f"w{i}"))
    nodes.append(helper.make_node("Conv", [f"t{i}", f"w{i}"], [f"t{i + 1}"], name=f"conv{i}"))
nodes.append(helper.make_node("GlobalAveragePool", ["t6"], ["p"], name="pool"))
nodes.append(helper.make_node("Flatten", ["p"], ["logits"], name="flat"))
ends = [helper.make_tensor_value_info(*e) for e in
        [("t0", TensorProto.FLOAT, (1, 3, 6, 6)), ("logits", TensorProto.FLOAT, (1, 4))]]
graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
opset = [helper.make_opsetid("", 17)]
save(helper.make_model(graph, opset_imports=opset, ir_version=8), "chain.onnx")
images = r.normal(size=(32, 3, 6, 6)).astype(np.float32)
ParetoFront(mixed.search("chain.onnx", images, mixed.Budget(sqnr_db=20), "int8_minmax"))
"""


def test_a_point_is_clicked_measured_and_saved(lab, opened, shoot):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SOURCE.strip())])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, lab.folder / "front.ipynb")
    notebook = opened(lab, "front.ipynb")
    notebook.run_all()
    assert notebook.errors() == []
    panel = notebook.cell(0).locator(".lab-panel")
    status, picture = panel.locator(".lab-status"), panel.locator("img")
    expect(status).to_contain_text("chosen by the budget")
    spots = panel.locator(".lab-spot")
    last = spots.nth(spots.count() - 1)  # not the chosen one: that comes first
    index = int(re.match(r"point (\d+):", last.get_attribute("title"))[1])
    frame, spot = picture.bounding_box(), last.bounding_box()
    inside = (spot["x"] - frame["x"]) / frame["width"], (spot["y"] - frame["y"]) / frame["height"]
    assert all(0 < share < 1 for share in inside)
    # where a hand would click: on the picture, with nothing said about a button
    notebook.page.mouse.click(spot["x"] + 8, spot["y"] + 8)
    expect(status).to_contain_text(f"Point {index},", timeout=LONG)
    slider = panel.get_by_role("slider")
    expect(slider).to_have_attribute("aria-valuenow", re.compile(rf"^{index}(\.0)?$"))
    slider.focus()
    slider.press("ArrowLeft")
    expect(status).to_contain_text(f"Point {index - 1},", timeout=LONG)
    slider.press("ArrowRight")
    expect(status).to_contain_text(f"Point {index},", timeout=LONG)
    if "not measured" in status.inner_text():
        panel.get_by_role("button", name="Measure this point").click()
    expect(status).to_contain_text("for choosing only", timeout=LONG)
    panel.get_by_role("button", name="Save recipe").click()
    expect(status).to_contain_text(f"Wrote chain_point{index}.yaml", timeout=LONG)
    saved = lab.scratch / "generated" / f"chain_point{index}.yaml"
    # the file has all values, the panel those that are not at their default
    assert str(quantize.load_recipe(saved)) == panel.locator("pre").inner_text().strip()
    shoot(notebook, "front", 0)
