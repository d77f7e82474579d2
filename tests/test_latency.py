"""Published latencies: every figure has a source that can be opened, and says what it is not."""

import re

import pytest

from labutils import paths
from labutils.errors import TableError
from labutils.measure import latency
from labutils.runtime import qnn


def test_every_figure_is_quoted_with_its_source():
    table = latency.published()
    assert len(table.rows) >= 6 and len(table.sources) >= 2
    for row in table.rows:
        assert 0.05 < row.ms < 100 and row.size == 224 and row.where
        assert row.part in qnn.SOCS or not row.part
        # a file at one commit: what was read can be read again
        assert re.match(r"https://github\.com/\S+/blob/[0-9a-f]{40}/\S+$", row.source.url)
        assert re.fullmatch(r"\d{4}-\d\d-\d\d", row.source.read)
    for shown in (str(table), table._repr_html_()):
        assert "not measured here" in shown
        assert all(source.read in shown for source in table.sources)
    assert all(f'href="{source.url}"' in table._repr_html_() for source in table.sources)


def test_the_figures_of_one_chip():
    assert {row.device for row in latency.published().of("SM8650").rows} == {"Samsung Galaxy S24"}


def test_a_row_without_its_source_is_named(tmp_path, monkeypatch):
    text = (paths.DATA / latency.FILE).read_text("utf-8")
    (tmp_path / latency.FILE).write_text(text.replace("source: rdk,", "source: rdx,"))
    monkeypatch.setattr(paths, "DATA", tmp_path)
    with pytest.raises(TableError, match=r"published_latency\.yaml: 'rdx'"):
        latency.published()
