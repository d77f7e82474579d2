"""A test run that is killed leaves nothing behind: no server, no kernel, no browser."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

TEST = """
import json, time, urllib.request
import psutil

def test_hold(browser, lab):
    browser.new_page()
    asked = urllib.request.Request(
        f"{lab.url}api/kernels?token={lab.token}", data=b"{}", method="POST"
    )
    urllib.request.urlopen(asked, timeout=300).read()
    started = psutil.Process().children(recursive=True)
    with open(OUT + ".part", "w") as file:
        json.dump([[p.pid, " ".join(p.cmdline())] for p in started], file)
    import os
    os.replace(OUT + ".part", OUT)
    time.sleep(600)
"""
CONFTEST = """
import importlib.util, sys

sys.path.insert(0, {here!r})  # not for the server: a module there is called jupyterlab, too
spec = importlib.util.spec_from_file_location("of_the_browser", {here!r} + "/conftest.py")
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)
browser, lab = made.browser, made.lab
"""
PATIENCE = 300  # seconds


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked to see to it")
def test_a_killed_run_takes_its_server_its_kernels_and_its_browser_along(browser, tmp_path):
    here, out = Path(__file__).parent, tmp_path / "started.json"
    (tmp_path / "test_hold.py").write_text(f"OUT = {str(out)!r}\n{TEST}")
    (tmp_path / "conftest.py").write_text(CONFTEST.format(here=str(here)))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull]
    command += ["--rootdir", str(tmp_path), str(tmp_path / "test_hold.py")]
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(command, stdout=log, stderr=log)
    end = time.monotonic() + PATIENCE
    while not out.exists() and run.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert out.exists(), (tmp_path / "log").read_text(errors="replace")
    started = json.loads(out.read_text())
    words = " ".join(command for _, command in started)
    assert "jupyter" in words and "ipykernel" in words and "--headless" in words, words
    while any(map(alive, started)) and time.monotonic() < end:
        time.sleep(0.1)
    left = [command for process in started if alive(process) for command in process[1:]]
    for pid, _ in filter(alive, started):
        psutil.Process(pid).kill()
    assert not left


def alive(process):
    """Whether a process of this number still runs this command."""
    pid, command = process
    try:
        found = psutil.Process(pid)
        return found.status() != psutil.STATUS_ZOMBIE and " ".join(found.cmdline()) == command
    except psutil.NoSuchProcess:
        return False
