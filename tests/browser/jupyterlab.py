"""A JupyterLab on loopback over a copy of the notebooks, and one open notebook, for the tests."""

import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from labutils.lab import notebooks
from labutils.pipeline import batch

PATIENCE = 900  # seconds: a busy machine is no reason to fail
SETTINGS = {
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    # every cell stays in the page, however far it is scrolled away
    "notebook-extension/tracker": {"windowingMode": "none"},
}
FINISHED = "() => window.labFinished === true"
RUN_ALL = """() => {
  window.labFinished = false;
  window.jupyterapp.commands.execute('notebook:run-all-cells')
    .finally(() => { window.labFinished = true; });
}"""
RUN_SOME = """async indices => {
  const panel = window.jupyterapp.shell.currentWidget;
  window.labFinished = false;
  for (const index of indices) {
    panel.content.deselectAll();
    panel.content.activeCellIndex = index;
    await window.jupyterapp.commands.execute('notebook:run-cell');
  }
  window.labFinished = true;
}"""
CELLS = """() => window.jupyterapp.shell.currentWidget.content.widgets.map(cell => {
  const made = cell.model.sharedModel.toJSON();
  return {type: made.cell_type, tags: made.metadata.tags || [], outputs: made.outputs || [],
          count: made.execution_count,
          source: Array.isArray(made.source) ? made.source.join('') : made.source};
})"""
AWAY = """async () => {
  const app = window.jupyterapp;
  if (!app.shell.leftCollapsed) await app.commands.execute('application:toggle-left-area');
  if (!app.shell.rightCollapsed) await app.commands.execute('application:toggle-right-area');
  app.shell.currentWidget.content.deselectAll();
}"""
READY = """() => {
  const panel = window.jupyterapp && window.jupyterapp.shell.currentWidget;
  const session = panel && panel.sessionContext && panel.sessionContext.session;
  return panel && panel.sessionContext.isReady && session.kernel.status === 'idle';
}"""


class JupyterLab:
    """A running server: `url` ends with a slash, `folder` holds the notebooks."""

    def __init__(self, scratch, base="/"):
        self.scratch, self.folder = Path(scratch), Path(scratch, "work")
        self.token = secrets.token_hex(16)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}{base}"
        self.command = [
            sys.executable, "-m", "jupyter", "lab", "--no-browser", "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.folder}",
            f"--ServerApp.base_url={base}", "--LabApp.expose_app_in_browser=True",
        ]  # fmt: skip
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            self.command.append("--allow-root")  # Jupyter refuses root otherwise; CI often is

    def __enter__(self):
        notebooks.checkout(self.folder)  # what a learner gets from `make lab`
        for name, values in SETTINGS.items():
            file = self.scratch / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        self.log = (self.scratch / "lab.log").open("wb")
        self.process = subprocess.Popen(
            self.command, stdout=self.log, stderr=subprocess.STDOUT, env=self._environment(),
            cwd=self.folder, **batch.ending_with_us(),  # a test run that is killed leaves no server
        )  # fmt: skip
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()

    def _environment(self):
        """Nothing of this machine's Jupyter, of its learner or of its artifacts."""
        own = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTER_DATA_DIR": "data",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "IPYTHONDIR": "ipython",
            "LABUTILS_GENERATED": "generated",
            "LABUTILS_PROGRESS": "progress",
        }
        made = {name: str(self.scratch / folder) for name, folder in own.items()}
        made |= {"LABUTILS_LEARNER": "browser", "JUPYTER_PREFER_ENV_PATH": "1"}
        hidden = {"JUPYTER_PATH", "JPY_PARENT_PID", "JUPYTERHUB_SERVICE_PREFIX", "LABUTILS_STRICT"}
        return {k: v for k, v in os.environ.items() if k not in hidden} | made

    def _wait(self):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError):
                request = f"{self.url}api/status?token={self.token}"
                return urllib.request.urlopen(request, timeout=5).read()
            time.sleep(0.2)
        raise RuntimeError(f"JupyterLab did not start:\n{self.words()}")

    def words(self):
        """The end of the server's log."""
        return (self.scratch / "lab.log").read_text(errors="replace")[-3000:]


class Notebook:
    """One notebook, open in a page of its own."""

    def __init__(self, page, lab, name):
        self.page = page
        page.set_default_timeout(PATIENCE * 1000)
        page.goto(f"{lab.url}lab/tree/{name}?token={lab.token}&reset")
        page.locator(".jp-NotebookPanel .jp-Notebook").wait_for()
        page.wait_for_function(READY)
        self.panel = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")

    def run_all(self):
        """Run every cell, as the menu does: it stops at the first error."""
        self.page.evaluate(RUN_ALL)
        self.page.wait_for_function(FINISHED)

    def run(self, *indices):
        """Run some cells, one after the other."""
        self.page.evaluate(RUN_SOME, list(indices))
        self.page.wait_for_function(FINISHED)

    def cells(self):
        """All cells as dicts: type, tags, source, outputs."""
        return self.page.evaluate(CELLS)

    def where(self, *, tag=None, contains=""):
        """Indices of the cells with this tag and these words in their source."""
        return [
            i
            for i, cell in enumerate(self.cells())
            if (tag is None or tag in cell["tags"]) and contains in cell["source"]
        ]

    def errors(self):
        """What went wrong, with the cell that it happened in."""
        return [
            f"cell {i}: {out['ename']}: {out['evalue']}"
            for i, cell in enumerate(self.cells())
            for out in cell["outputs"]
            if out["output_type"] == "error"
        ]

    def cell(self, index):
        """A cell in the page, scrolled to."""
        found = self.panel.locator(".jp-Notebook > .jp-WindowedPanel-outer .jp-Cell").nth(index)
        found.scroll_into_view_if_needed()
        return found

    def show_at_top(self, index):
        """Scroll to a cell and put everything away that is not the notebook."""
        self.page.evaluate(AWAY)
        found = self.cell(index)
        found.evaluate("cell => cell.scrollIntoView({block: 'start'})")
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(500)  # milliseconds, for the layout; only for pictures

    def close(self):
        """End the kernel, so that the next notebook has the machine to itself; close the page."""
        if self.page.is_closed():
            return
        self.page.evaluate("() => window.jupyterapp.serviceManager.sessions.shutdownAll()")
        self.page.close()


def outside(url):
    """Whether a request goes to anywhere but this machine."""
    return not re.match(r"(https?|wss?)://127\.0\.0\.1[:/]|data:|blob:|about:", url)
