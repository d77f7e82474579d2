"""Pictures of three notebooks for the front page; made only when a folder for them is named."""

import os

import pytest

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.htp,
    pytest.mark.skipif(
        not os.environ.get("LABUTILS_SCREENSHOTS"), reason="LABUTILS_SCREENSHOTS names no folder"
    ),
]


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("04_export_and_convert", ["04.wrong_answer", "04.gate"]),
        ("06_run_on_device", ["ladder_chart(shipped)", "StageExplorer("]),
    ],
)
def test_pictures(lab, opened, shoot, name, cells):
    notebook = opened(lab, f"{name}.ipynb")
    notebook.run_all()
    assert notebook.errors() == []
    for number, source in enumerate(cells):
        found = notebook.where(contains=source)[0]
        shoot(notebook, f"{name[:2]}_{number}", found)
        shoot(notebook, f"{name[:2]}_{number}_window", found - 1, window=True)
