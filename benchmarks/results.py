"""Where the benchmarks' results lie, and the lines that begin each of them.

A head says which command made the file and when, from which images, and with which versions. It
says nothing of a commit: what the figures depend on is in the versions and in the command.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from labutils import paths

FOLDER = paths.ROOT / "benchmarks" / "results"

DEVELOPED = (
    "The recipes were developed while looking at these val images; the tables will be made on test."
)


def command(program: str, arguments: list[str] | None = None) -> str:
    """Return the command line that makes a file, as it is typed in the repository's root."""
    given = sys.argv[1:] if arguments is None else arguments
    return " ".join(["python", f"benchmarks/{program}", *given])


def head(made_by: str, images: str, *packages: str, developed: bool) -> list[str]:
    """Return the first lines of a results file.

    Parameters
    ----------
    made_by
        From `command`.
    images
        Split, number and size: ``"split val, 1600 images at 128 px"``.
    *packages
        Whose versions the figures depend on.
    developed
        Whether what is measured was chosen by looking at these images.
    """
    versions = paths.versions(*packages)
    return [
        f"Recorded {time.strftime('%Y-%m-%d', time.gmtime())} with: {made_by}",
        f"Images: {images}.",
        *([DEVELOPED] if developed else []),
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()),
    ]


def commented(lines: list[str]) -> str:
    """Return a head as comments, for a CSV."""
    return "".join(f"# {line}\n" for line in lines)


def place(wanted: Path | None, whole: bool) -> Path | None:
    """Return where results go: a smaller run never overwrites the recorded ones."""
    if wanted is not None:
        return paths.folder(wanted)
    return FOLDER if whole else None
