"""The table of what a notebook measured."""

import re

import numpy as np

from labutils.lab import recorded
from labutils.lab.measurement_table import measurements

ROWS = [
    ("top-1", 0.98437, "share", 32),
    ("parameters", np.int64(5483032), "", 1600),
    ("cosine <int8>", None, "", 8),
    ("equal", np.bool_(True), "", 8),
]


def test_text():
    assert str(measurements(ROWS)).splitlines() == [
        "what                  value  unit       n",
        "-----------------------------------------",
        "top-1                0.9844  share     32",
        "parameters        5,483,032         1,600",
        "cosine <int8>  not run here             8",
        "equal                  True             8",
        f"Measured on this machine: {recorded.machine()}.",
    ]


def test_html_says_the_same_and_names_a_simulation():
    table = measurements(ROWS, simulated=True)
    shown = re.sub(' style="[^"]*"|<wbr>|</?span[^>]*>', "", table._repr_html_())
    assert "cosine &lt;int8&gt;" in shown
    for row in table.rows:
        assert f"<td>{row[1]}</td><td>{row[2]}</td><td>{row[3]}</td>" in shown
    assert "simulated" in table.caption
    assert "simulated" not in measurements(ROWS).caption
    assert table.caption in shown
