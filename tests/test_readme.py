"""The code in the README runs as it stands there, with Qualcomm's wheel and without it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from labutils import paths

BLOCKS = re.findall(
    r"```python\n(.*?)```", (paths.ROOT / "README.md").read_text("utf-8"), re.DOTALL
)
WITHOUT_QNN = """
import sys
sys.modules["onnxruntime_qnn"] = None  # as where it has no wheel: an import fails
from importlib import util
find_spec = util.find_spec
util.find_spec = lambda name, *rest: None if name == "onnxruntime_qnn" else find_spec(name, *rest)
"""


def run(code, folder):
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_has_one_program_of_at_most_150_lines():
    assert len(BLOCKS) == 1 and BLOCKS[0].count("\n") <= 150


@pytest.mark.slow
@pytest.mark.htp
def test_the_program_of_the_readme_writes_a_dlc_that_passes_the_gate(tmp_path):
    said = run(BLOCKS[0], tmp_path)
    assert re.findall(r"Parity gate \((\w+)\): passed", said) == [
        "ort_fp32",
        "ort_int8",
        "htp_int8",
    ]
    assert "'unsupported': 28" in said and "'unsupported': 0" in said
    assert {file.name for file in tmp_path.iterdir()} >= {"int8.onnx", "int8.dlc"}


@pytest.mark.slow
def test_the_program_of_the_readme_ends_before_the_dlc_without_qualcomms_wheel(tmp_path):
    said = run(WITHOUT_QNN + BLOCKS[0], tmp_path)
    assert re.findall(r"Parity gate \((\w+)\): passed", said) == ["ort_fp32", "ort_int8"]
    assert not list(tmp_path.glob("*.dlc"))
