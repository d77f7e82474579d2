"""A tool of nobody, with its lock and its wheel: it stands for the tools of vendors."""

import contextlib
import sys
import zipfile

import pytest

from labutils import paths
from labutils.tools import environment, lock

HERE = "{}.{}".format(*sys.version_info[:2])
LOCK = f"""format: 1
title: a tool of nobody
licence: MIT
megabytes: 30
python: ["{HERE}"]
modules: [tinytool]
packages: [tinytool==1.0]
"""


def wheel(folder, version="1.0", code="WORD = 'hello'\nclass BackendError(Exception): pass\n"):
    """Build the wheel of the tiny tool."""
    info = f"tinytool-{version}.dist-info"
    files = {
        "tinytool.py": code,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tinytool\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"tinytool-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return file


@contextlib.contextmanager
def own_place(folder, text=LOCK):
    """Have locks, cache and wheels in a folder of this test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lock, "FOLDER", paths.folder(folder / "locks"))
        patch.setenv("LABUTILS_CACHE", str(folder / "cache"))
        patch.delenv(environment.PLACE, raising=False)
        patch.setenv("PIP_NO_INDEX", "1")
        patch.setenv("PIP_FIND_LINKS", str(folder / "wheels"))
        (lock.FOLDER / "tiny.yaml").write_text(text, encoding="utf-8")
        yield folder
