"""Chromium, one JupyterLab for all tests, and the rule that no request leaves this machine."""

import os
import shutil
from pathlib import Path

import pytest
from jupyterlab import JupyterLab, Notebook, outside

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
# No name is resolved: what a page asks of the outside fails, as in a room without a network.
ARGUMENTS = (
    "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
)  # fmt: skip

WIDE = {"width": 1400, "height": 1000}
TALL = {"width": 1240, "height": 2200}  # a whole output fits
FRONT = {"width": 1100, "height": 860}


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if not found or not Path(found).exists():
        pytest.skip(f"no Chromium: {found or ', '.join(CHROMIUM)} not found; set CHROMIUM")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def lab(browser, tmp_path_factory):
    with JupyterLab(tmp_path_factory.mktemp("lab")) as running:
        yield running


@pytest.fixture
def context(browser):
    """A fresh browser profile; the test fails when one of its pages asks for anything outside."""
    made = browser.new_context(viewport=WIDE)
    asked = []
    made.on("request", lambda request: asked.append(request.url))
    made.on("page", lambda page: page.on("websocket", lambda socket: asked.append(socket.url)))
    yield made
    made.close()
    assert asked and not [url for url in asked if outside(url)]


@pytest.fixture
def opened(context):
    """A function (server, notebook's name) -> `Notebook`; kernels end with the test."""
    notebooks = []

    def open_(server, name):
        notebooks.append(Notebook(context.new_page(), server, name))
        return notebooks[-1]

    yield open_
    for notebook in notebooks:
        notebook.close()


@pytest.fixture
def shoot():
    """A function (notebook, name, cell): a screenshot in the folder LABUTILS_SCREENSHOTS, if named.

    Of what the cell put out; with ``window=True``, of the window with that cell at its top.
    """

    def take(notebook, name, cell, window=False):
        folder = os.environ.get("LABUTILS_SCREENSHOTS")
        if not folder:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)
        notebook.page.set_viewport_size(FRONT if window else TALL)
        shown = notebook.page if window else notebook.cell(cell).locator(".jp-OutputArea")
        if window:
            notebook.show_at_top(cell)
        shown.screenshot(path=Path(folder, f"{name}.png"))
        notebook.page.set_viewport_size(WIDE)

    return take
