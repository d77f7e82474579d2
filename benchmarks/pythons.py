"""Run the tests on this Python, and keep a line on what was run: ``results/pythons.txt``.

``python benchmarks/pythons.py [pytest's arguments]``, in an environment of each Python.
"""

import datetime
import platform
import re
import shlex
import subprocess
import sys

import torch

from labutils import paths

RECORD = paths.ROOT / "benchmarks" / "results" / "pythons.txt"


def run(arguments: list[str]) -> tuple[int, str]:
    """Run pytest, passing its output on; return its exit code and its last line."""
    command = [sys.executable, "-m", "pytest", *arguments]
    process = subprocess.Popen(command, cwd=paths.ROOT, stdout=subprocess.PIPE, text=True)
    last = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip() or last
    return process.wait(), re.sub(r"\x1b\[\d*m|=+", "", last).strip()


def commit() -> str:
    """Return which state of the repository this is."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True).stdout.strip()


def main(arguments: list[str]) -> int:
    status, summary = run(arguments)
    if not re.search(r"\d+ (passed|failed)", summary):
        return status  # such as --help: no test was run
    day = datetime.datetime.now(datetime.UTC).date()
    lines = [
        f"Python {platform.python_version()}, torch {torch.__version__}, {day}, {commit()}",
        f"  pytest {shlex.join(arguments)}",
        f"  {summary}",
    ]
    RECORD.parent.mkdir(exist_ok=True)
    with RECORD.open("a", encoding="utf-8") as record:
        record.write("\n".join(lines) + "\n\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
