"""Pages, reports, pictures and widgets at two widths: nothing cut, broken or overlapping."""

import importlib
import json
import sys
from pathlib import Path

import layout
import nbformat
import pytest
import widget_cells
from jupyterlab import AWAY

from labutils import paths, pipeline
from labutils.show import before_after, diagnosis, subgraph, widgets
from labutils.show.graphs import lab_map

sys.path.insert(0, str(paths.ROOT / "tests"))
import test_escaping as registry

pytestmark = pytest.mark.browser

WIDTHS = (1100, 400)
NAMES = {
    "long": "backbone.encoder.very_long_encoder_name.layers.17.SqueezeAndExcitation.attention_gate",
    "hebrew": "\u05e9\u05db\u05d1\u05d4.\u05e2\u05d1\u05e8\u05d9\u05ea",
}


@pytest.fixture(scope="module", params=NAMES)
def reports(request, tmp_path_factory):
    """Name of a report -> its HTML, with this kind of names in it; the same as are escaped."""
    folder = tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "HOSTILE", NAMES[request.param])
        patch.chdir(folder)
        Path(NAMES[request.param]).write_bytes(b"a file of that name")
        found = {}
        for module, name in registry.reports():
            special = registry.SPECIAL
            make = next((special[k] for k in special if f"{module}.{name}".endswith(f".{k}")), None)
            kind = getattr(importlib.import_module(module), name)
            value = make(folder) if make else registry.filled(kind)
            found[name] = value._repr_html_()
        file = registry.hostile_onnx(folder)
        plan = pipeline.suggest(file, "snpe-2.7")
        page = diagnosis.write(plan, folder / "page.html", NAMES[request.param], file)
        drawn = subgraph(file, plan.check.first_blocker.node, report=plan.check)
        pair = before_after(file, file, plan.check.first_blocker.node)
    return found, page, {"subgraph": drawn, "before_after": pair, "lab_map": lab_map.lab_map()}


@pytest.fixture
def page(browser):
    made = browser.new_page()
    yield made
    made.close()


def measured(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    wider = page.evaluate(layout.WIDER)
    return ([f"wider than its window by {wider} px"] if wider else []) + page.evaluate(
        f"() => ({layout.MEASURE})(document.body)"
    )


def test_the_page_of_a_diagnosis_fits_any_window(reports, page):
    page.goto(reports[1].as_uri())
    assert {width: found for width in WIDTHS if (found := measured(page, width))} == {}


def test_every_report_fits_any_window(reports, page):
    page.set_content("".join(f"<section>{shown}</section>" for shown in reports[0].values()))
    assert {width: found for width in WIDTHS if (found := measured(page, width))} == {}


def test_the_words_of_every_picture_lie_inside_it_and_apart(reports, page):
    for name, svg in reports[2].items():
        page.set_content(svg.data)
        assert page.evaluate(layout.PICTURE) == [], name


@pytest.mark.slow
def test_every_widget_fits_a_wide_and_a_narrow_pane(lab, opened):
    assert set(widget_cells.CELLS) == set(widgets.__all__)
    sources = [widget_cells.CHAIN, *widget_cells.CELLS.values()]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, lab.folder / "widgets.ipynb")
    notebook = opened(lab, "widgets.ipynb")
    notebook.run_all()
    assert notebook.errors() == []
    found = {}
    notebook.page.evaluate(AWAY)  # the side bars: they would take most of a narrow window
    for width in WIDTHS:
        notebook.page.set_viewport_size({"width": width, "height": 1000})
        for number, name in enumerate(widget_cells.CELLS, 1):
            panel = notebook.cell(number).locator(".lab-panel")
            panel.wait_for()
            found[f"{name} at {width}"] = panel.evaluate(layout.MEASURE)
    assert {name: faults for name, faults in found.items() if faults} == {}, json.dumps(found)


@pytest.mark.parametrize(
    ("markup", "fault"),
    [
        ('<p style="width:60px;word-break:break-all">hardsigmoid</p>', None),
        ('<p style="width:110px;word-break:break-all">rule hardsigmoid</p>', "broken inside"),
        ('<div style="width:60px;overflow:hidden">hardsigmoid_of_a_gate</div>', "clipped"),
        ('<div style="width:60px">hardsigmoid_of_a_gate</div>', "sticking out"),
        ('<div class="widget-box" style="width:60px;overflow:auto">hardsigmoid_of_a_gate</div>',
         "scrolls as a whole"),
        ('<b style="position:absolute;top:9px">one</b><i style="position:absolute;top:9px">two</i>',
         "on top of each other"),
    ],
)  # fmt: skip
def test_a_fault_is_found_where_there_is_one(page, markup, fault):
    page.set_content(f"<body style='font:14px DejaVu Sans'>{markup}")
    said = measured(page, 400)
    assert any(fault in words for words in said) if fault else not said
