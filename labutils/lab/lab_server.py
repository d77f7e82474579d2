"""JupyterLab on a learner's copies of the notebooks: on this machine only, with a token."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .. import paths

FIRST = "00_start_here.ipynb"


def serve(folder: Path, port: int | None = None, *, browser: bool = True) -> None:
    """Run JupyterLab on `folder` until it is stopped.

    It listens on loopback and makes up a token, whatever this machine's Jupyter is configured to
    do; that and other Jupyter installations' kernels are left out.

    Parameters
    ----------
    folder
        With the learner's copies, as `notebooks.checkout` makes them.
    port
        The first to be tried; 8888 by default.
    browser
        Whether to open one.
    """
    from jupyterlab.labapp import LabApp

    folder = Path(folder).resolve()
    _prepare(folder)
    LabApp.launch_instance(_options(folder, port, browser))


def _options(folder: Path, port: int | None, browser: bool) -> list[str]:
    """Return Jupyter's options; in a checkout the learner sees all of it."""
    root = paths.ROOT if paths.CHECKOUT and folder.is_relative_to(paths.ROOT) else folder
    options = [
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={root}",
        f"--ServerApp.preferred_dir={folder}",
        f"--LabApp.default_url=/lab/tree/{(folder / FIRST).relative_to(root).as_posix()}",
    ]
    options += [f"--ServerApp.port={port}"] if port else []
    options += [] if browser else ["--no-browser"]
    # Jupyter refuses root otherwise; a container's user often is
    options += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    return options


def _prepare(folder: Path) -> None:
    """Set what the server, its kernels and its terminals inherit."""
    commands = str(Path(sys.executable).parent)  # `labutils` in a terminal, `!labutils` in a cell
    os.environ["PATH"] = commands + os.pathsep + os.environ.get("PATH", os.defpath)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ.pop("JUPYTER_PATH", None)
    # no question about news from the network when JupyterLab opens
    ours = [str(paths.DATA / "jupyter"), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(ours)
    if not paths.CHECKOUT:
        os.environ.setdefault("LABUTILS_GENERATED", str(folder / paths.generated_place().name))
