"""What would stop us on Windows, on macOS or in another language, found on any machine."""

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from labutils import paths

PACKAGE = sorted((paths.ROOT / "labutils").rglob("*.py"))
POSIX_ONLY = {"fcntl", "grp", "pty", "pwd", "resource", "termios"}
# Windows has no such names: they may be used only where the code has asked which system it runs on.
POSIX_NAMES = {"killpg", "getuid", "geteuid", "fork", "setsid", "SIGKILL", "SIGSTOP", "SIGHUP"}
RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
ENCODING_WARNS = """
import sys, warnings
warnings.filterwarnings("error", category=EncodingWarning, module=r"labutils(\\.|$)")
from labutils.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def tracked():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=paths.ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name]


def test_every_file_name_is_one_on_windows_too():
    names = tracked()
    assert [n for n in names if re.search(r'[<>:"\\|?*\x00-\x1f]', n)] == []
    parts = {part for name in names for part in name.split("/")}
    assert [p for p in parts if RESERVED.match(p) or p.endswith((".", " "))] == []
    assert max(map(len, names)) < 120  # of the 260 that a whole path may have
    assert [n for n, count in Counter(map(str.lower, names)).items() if count > 1] == []


@pytest.mark.parametrize("file", PACKAGE, ids=lambda f: f.relative_to(paths.ROOT).as_posix())
def test_nothing_of_posix_alone_is_used_unasked(file):
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    imported = {
        name.partition(".")[0]
        for node in tree.body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        )
    }
    assert not imported & POSIX_ONLY
    names = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("os", "signal")
    }
    if names & POSIX_NAMES:
        assert re.search(r"os\.name|sys\.platform|hasattr\(os", text), names & POSIX_NAMES


def labutils(*arguments, code=None, **environment):
    start = ["-m", "labutils"] if code is None else ["-X", "warn_default_encoding", "-c", code]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        env={**os.environ, **environment},
        cwd=paths.ROOT,
        capture_output=True,
        timeout=300,
    )


def test_no_file_is_read_or_written_in_the_machines_own_encoding(small_onnx, tmp_path):
    page = tmp_path / "page.html"
    asked = ("diagnose", small_onnx(17), "--target", "snpe-2.7", "--html", page)
    done = labutils(*asked, code=ENCODING_WARNS)
    assert done.returncode == 1, done.stderr.decode()  # it has what SNPE 2.7 refuses
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "cp932"])
def test_a_terminal_that_cannot_show_a_sign_gets_the_rest(encoding, small_onnx, tmp_path):
    file = tmp_path / "modèle ü 模型.onnx"
    file.write_bytes(small_onnx(17).read_bytes())
    done = labutils("diagnose", file, "--target", "snpe-2.7", PYTHONIOENCODING=encoding)
    assert done.returncode == 1, done.stderr.decode(encoding)
    assert "HardSwish" in done.stdout.decode(encoding)
    assert b"Traceback" not in done.stderr


def test_a_home_with_spaces_and_umlauts_is_a_home(small_onnx, tmp_path):
    home = tmp_path / "Zoë's Bücher" / "generated models"
    done = labutils(
        "diagnose", small_onnx(17), "--html", home / "Bericht ü.html",
        LABUTILS_GENERATED=str(home), LABUTILS_CACHE=str(home / "cache"),
    )  # fmt: skip
    assert done.returncode == 1, done.stderr.decode()
    assert (home / "Bericht ü.html").is_file()


@pytest.mark.htp
def test_the_worker_finds_files_under_such_a_home(small_onnx, inputs, tmp_path):
    home = tmp_path / "Zoë's Bücher"
    home.mkdir()
    file = Path(home, "modèle.onnx")
    file.write_bytes(small_onnx(17).read_bytes())
    np.savez(home / "Bilder ü.npz", inputs(4, 64))
    asked = ("convert", file, "--target", "qnn", "--inputs", home / "Bilder ü.npz")
    asked += ("-o", home / "é.dlc")
    means = ("--mean", 0.5, 0.5, 0.5, "--std", 0.5, 0.5, 0.5)
    done = labutils(*asked, *means)
    assert done.returncode == 0, done.stderr.decode()
    assert (home / "é.dlc").is_file()
