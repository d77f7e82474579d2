"""Notebooks run to their end in JupyterLab, and their widgets do what a click promises."""

import base64
import io
import re

import numpy as np
import pytest
from jupyterlab import PATIENCE
from matplotlib import pyplot as plt
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LONG = PATIENCE * 1000  # milliseconds


def ran_to_its_end(notebook):
    notebook.run_all()
    assert notebook.errors() == []
    code = [cell for cell in notebook.cells() if cell["type"] == "code"]
    assert len(code) > 15 and all(cell["count"] for cell in code)


def shown(picture):
    """The bytes of a picture, as its data URL."""
    return picture.get_attribute("src")


def below_the_title(source):
    """The pixels of a data URL's picture, without the rows of its title."""
    pixels = plt.imread(io.BytesIO(base64.b64decode(source.partition(",")[2])))
    return pixels[30:]


def test_notebook_02_runs_to_its_end(lab, opened, shoot):
    notebook = opened(lab, "02_reproduce_converter_errors.ipynb")
    ran_to_its_end(notebook)
    shoot(notebook, "02_graphs", notebook.where(contains="before_after(old, new")[0], window=True)


def test_notebook_05_runs_to_its_slider_which_moves_the_plot(lab, opened, shoot):
    notebook = opened(lab, "05_quantize.ipynb")
    (index,) = notebook.where(tag="widget", contains="ClippingSlider")
    before = notebook.cells()[:index]
    notebook.run(*(i for i, cell in enumerate(before) if cell["type"] == "code"), index)
    assert notebook.errors() == []
    widget = notebook.cell(index).locator(".lab-panel")
    status, picture = widget.locator(".lab-status"), widget.locator("img")
    expect(status).to_contain_text("8 bits over")
    said, seen = status.inner_text(), shown(picture)
    bits = widget.locator(".widget-slider", has_text="Bits").get_by_role("slider")
    bits.focus()
    for _ in range(4):
        bits.press("ArrowLeft")
    expect(status).to_contain_text("4 bits over", timeout=LONG)
    expect(picture).not_to_have_attribute("src", seen, timeout=LONG)
    assert sqnr(status) < float(re.search(r"SQNR ([\d.]+) dB", said)[1])
    assert not np.array_equal(*map(below_the_title, (seen, shown(picture))))
    seen = shown(picture)
    kept = widget.locator(".widget-slider", has_text="Values kept").locator(".widget-readout")
    kept.click()
    kept.fill("99")
    kept.press("Enter")
    expect(status).to_contain_text("so clipping here is", timeout=LONG)
    expect(picture).not_to_have_attribute("src", seen, timeout=LONG)
    shoot(notebook, "05_slider", index)


def sqnr(status):
    return float(re.search(r"SQNR ([\d.]+) dB", status.inner_text())[1])


def test_the_board_is_clicked_through_to_green(lab, opened, shoot):
    notebook = opened(lab, "03_replace_layers.ipynb")
    (index,) = notebook.where(tag="widget", contains="ReplacementBoard")
    notebook.run(*notebook.where(tag="setup"), index)  # the notebook can be joined here
    assert notebook.errors() == []
    board = notebook.cell(index).locator(".lab-panel")
    verdict, status = board.locator(".lab-verdict"), board.locator(".lab-status")
    file = board.get_by_role("combobox", name="File")
    choose(file, "opset17")
    board.get_by_role("button", name="Diagnose").click()
    expect(verdict).to_contain_text("Blocked", timeout=LONG)
    expect(verdict).to_contain_text("HardSwish")
    board.get_by_role("checkbox", name=re.compile("^hardsigmoid repairs")).uncheck()
    board.get_by_role("button", name="Repair").click()
    expect(status).to_contain_text("error once again!", timeout=LONG)
    expect(verdict).to_contain_text("HardSigmoid")
    shoot(notebook, "03_board_once_again", index)
    board.get_by_role("checkbox", name=re.compile("^hardsigmoid repairs")).check()
    board.get_by_role("button", name="Repair").click()
    expect(verdict).to_contain_text("Accepted", timeout=LONG)
    expect(verdict.locator("[data-kind=good]")).to_have_count(1)
    drawn = board.get_by_role("img", name=re.compile("Two graphs side by side .*new: Add, Clip"))
    expect(drawn).to_be_visible()
    shoot(notebook, "03_board", index)
    shoot(notebook, "03_board_window", index, window=True)
    choose(file, "opset13")
    board.get_by_role("button", name="Diagnose").click()
    expect(verdict).to_contain_text("HardSigmoid", timeout=LONG)
    expect(verdict).to_contain_text("Blocked")


def choose(box, name):
    (label,) = [text for text in box.locator("option").all_inner_texts() if f"{name}:" in text]
    box.select_option(label=label)


def test_a_term_opens_the_glossary_at_its_entry(lab, opened):
    """Rendered, not as source: learners click on terms all the time."""
    notebook = opened(lab, "02_reproduce_converter_errors.ipynb")
    notebook.panel.locator("a[href*='glossary.md'][href$='#opset']").first.click()
    page = notebook.page.locator(".jp-MarkdownViewer")
    expect(page.get_by_role("heading", name="opset")).to_be_in_viewport(timeout=LONG)
