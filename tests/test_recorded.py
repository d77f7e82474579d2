"""Steps that need Qualcomm's wheel: run, recorded, replayed, and always labelled."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest

from labutils import paths
from labutils.errors import UsageError
from labutils.lab import recorded
from labutils.runtime import qnn
from labutils.tools import environment

HERE = qnn.Availability(True, "answers", {"QNN": "2.99.0"})
GONE = qnn.Availability(False, "onnxruntime-qnn is not installed.", {})


class Table:
    """Something with a text and an HTML form."""

    def __str__(self):
        return "text <of> it"

    def _repr_html_(self):
        return "<table>html of it</table>"


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    monkeypatch.delenv("LABUTILS_RECORD", raising=False)


def on(monkeypatch, availability):
    monkeypatch.setattr(qnn, "probe", lambda: availability)


def test_a_step_that_runs_shows_its_parts(monkeypatch):
    on(monkeypatch, HERE)
    shown = recorded.run("06.ladder", lambda n: (Table(), n), 3)
    assert not shown.recorded
    assert str(shown) == repr(shown) == "text <of> it\n\n3"
    parts = re.sub(' style="[^"]*"', "", shown._repr_html_())
    assert parts == "<div><table>html of it</table></div><div><pre>3</pre></div>"
    assert shown.values[1] == 3
    assert not recorded.file_of("06.ladder").exists()


def test_recorded_then_replayed_with_its_label(monkeypatch):
    on(monkeypatch, HERE)
    monkeypatch.setenv("LABUTILS_RECORD", "1")
    recorded.run("06.ladder", Table, network=recorded.Network("weights things16", "ab" * 32))
    entry = json.loads(recorded.file_of("06.ladder").read_text("utf-8"))
    assert entry["qnn"] == "2.99.0"
    on(monkeypatch, GONE)
    shown = recorded.run("06.ladder", lambda: pytest.fail("it must not run"))
    assert shown.recorded
    assert shown.values is None
    heading, _, body = str(shown).partition("\n\n")
    assert heading == (
        f"Recorded on {entry['date']} with QNN 2.99.0 ({recorded.machine()}, weights things16); "
        "not run here: onnxruntime-qnn is not installed."
    )
    assert body == "text <of> it"
    assert "not run here" in shown._repr_html_()
    assert "<table>html of it</table>" in shown._repr_html_()


class Road(Table):
    def to_dict(self):
        return {"MB": 17.2, "in": f"{paths.cache()}"}


def tool(monkeypatch, state):
    """Pretend that a tool is installed, or not."""
    found = environment.survey("keras")
    folder = None if state == "absent" else Path(sys.prefix)
    monkeypatch.setattr(
        environment, "survey", lambda name: dataclasses.replace(found, state=state, folder=folder)
    )


@pytest.mark.litert
def test_a_step_with_a_tool_is_recorded_with_its_values(monkeypatch):
    monkeypatch.setenv("LABUTILS_RECORD", "1")
    tool(monkeypatch, "installed")
    shown = recorded.run_with(("keras",), "11.road", Road)
    assert not shown.recorded and shown.facts["MB"] == 17.2
    entry = json.loads(recorded.file_of("11.road").read_text("utf-8"))
    assert "qnn" not in entry and entry["tools"].startswith("keras 3.")
    assert entry["facts"] == {"MB": 17.2, "in": "cache"}
    tool(monkeypatch, "absent")
    again = recorded.run_with(("keras",), "11.road", lambda: pytest.fail("it must not run"))
    assert again.recorded and again.values is None and again.facts == entry["facts"]
    heading = str(again).partition("\n\n")[0]
    assert heading.startswith(f"Recorded on {entry['date']} with {entry['tools']} (")
    assert "`labutils tools install keras`" in heading


def test_a_step_whose_tool_is_absent_and_that_was_never_recorded(monkeypatch):
    tool(monkeypatch, "absent")
    shown = recorded.run_with(("keras",), "11.road", Road)
    assert shown.facts == {} and str(shown).startswith("Not run here: The tool keras")
    with pytest.raises(UsageError, match=r"06\.ladder"):
        recorded.run_with(("keras",), "road", Road)


def test_without_a_record_the_notebook_goes_on_and_says_so(monkeypatch):
    on(monkeypatch, GONE)
    shown = recorded.run("06.ladder", Table)
    assert shown.recorded
    assert str(shown) == (
        "Not run here: onnxruntime-qnn is not installed. There is no recorded result of it."
    )


def test_frames_and_folders_of_this_machine_are_not_recorded(monkeypatch):
    on(monkeypatch, HERE)
    monkeypatch.setenv("LABUTILS_RECORD", "1")

    class Frame(Table):
        def _repr_html_(self):
            return "<iframe src='http://127.0.0.1:1/'></iframe>"

    recorded.run("04.both", lambda: (Frame(), f"in {paths.generated()}/a and {paths.ROOT}/b"))
    stored = recorded.file_of("04.both").read_text("utf-8")
    assert "iframe" not in stored
    assert "it is not recorded" in stored
    assert "in generated_models/a and ./b" in stored


def test_an_error_of_the_step_is_not_hidden_by_a_record(monkeypatch):
    on(monkeypatch, HERE)
    monkeypatch.setenv("LABUTILS_RECORD", "1")
    recorded.run("06.ladder", Table)
    with pytest.raises(ZeroDivisionError):
        recorded.run("06.ladder", lambda: 1 / 0)


@pytest.mark.parametrize("key", ["ladder", "6.ladder", "06.", "06.La", "../06.x"])
def test_keys_have_one_form(key):
    with pytest.raises(UsageError, match=r"06\.ladder"):
        recorded.run(key, Table)


def test_at_hand(tmp_path):
    assert not recorded.at_hand()
    (tmp_path / "06.x.json").write_text("{}")
    assert recorded.at_hand()


def test_a_benchmark_is_shown_with_its_date_and_command(tmp_path):
    (tmp_path / "lite.txt").write_text("# recorded 2026-11-25 with: make it\n\na  <b>\n1  2\n")
    found = recorded.benchmark("lite", folder=tmp_path)
    assert str(found) == "Recorded 2026-11-25 with: make it; not run here.\n\na  <b>\n1  2"
    assert "&lt;b&gt;" in found._repr_html_() and "2026-11-25" in found._repr_html_()


@pytest.mark.parametrize("mark", ["# recorded", "Recorded"])
def test_a_benchmark_has_its_rows(tmp_path, mark):
    (tmp_path / "own.txt").write_text(f"{mark} 2026-11-25 with: make it -O 1\nVersions: a 1\n")
    assert recorded.benchmark("own", folder=tmp_path).rows == ()
    (tmp_path / "own.csv").write_text('# recorded\nwhat,"points, lost"\nx,"1 [0, 2]"\n')
    found = recorded.benchmark("own", folder=tmp_path)
    assert found.heading == "Recorded 2026-11-25 with: make it -O 1; not run here."
    assert found.text == "Versions: a 1"
    assert found.rows == ({"what": "x", "points, lost": "1 [0, 2]"},)


def test_a_benchmark_that_is_missing_names_the_command(tmp_path):
    found = str(recorded.benchmark("lite", folder=tmp_path))
    assert "No recorded result" in found and "python benchmarks/lite.py makes it" in found


TABLE = """how it was made

Title of the table
model  found
-----  -----
a:one      1
b:two      2
  and more of two
of 2 models 2 found
  something
"""


def test_a_benchmark_can_be_cut_to_some_lines(tmp_path):
    (tmp_path / "x.txt").write_text(f"# recorded 2026-11-25 with: make it\n{TABLE}")
    found = recorded.benchmark("x", folder=tmp_path)
    assert found.only("two", "models").text == (
        "Title of the table\nmodel  found\n-----  -----\nb:two      2\n  and more of two\n"
        "of 2 models 2 found\n  something"
    )
    assert found.only("one").heading == found.heading
    with pytest.raises(UsageError, match="No line of x has three"):
        found.only("three")
    with pytest.raises(UsageError, match="no word"):
        found.only()


def test_a_benchmark_without_a_table_has_no_lines_to_choose(tmp_path):
    assert "makes it" in str(recorded.benchmark("lite", folder=tmp_path).only("x"))
    (tmp_path / "x.txt").write_text("# recorded\nprose\n")
    with pytest.raises(UsageError, match="no table"):
        recorded.benchmark("x", folder=tmp_path).only("prose")


def test_what_a_step_measured_is_read_where_it_ran_and_none_elsewhere(monkeypatch):
    on(monkeypatch, HERE)
    assert recorded.run("06.one", lambda: 3).measured(lambda n: n + 1) == 4
    assert recorded.run("06.two", lambda: (3, "chart")).measured(lambda n, chart: n) == 3
    on(monkeypatch, GONE)
    assert recorded.run("06.one", lambda: 3).measured(lambda n: n + 1) is None


def test_a_benchmark_is_a_table_in_html(tmp_path):
    (tmp_path / "x.txt").write_text(
        "# recorded 2026-11-25 with: make it\nhow it\nwas made\n\n"
        "model   found\n------  -----\na:<o>       1\nb two\nof 2 models 2 were\n  found\n"
    )
    shown = recorded.benchmark("x", folder=tmp_path)._repr_html_()
    shown = re.sub(' style="[^"]*"', "", shown)
    assert "<p>how it<br>was made</p><div><table>" in shown
    assert "<tr><td>a:&lt;o&gt;</td><td>1</td></tr>" in shown
    assert "<tr><td>b two</td><td></td></tr></tbody>" in shown
    assert shown.endswith("</table></div><p>of 2 models 2 were found</p>")
    (tmp_path / "x.txt").write_text("# recorded\na   <b>\n1     2\n")
    assert "a   &lt;b&gt;\n1     2</pre>" in recorded.benchmark("x", folder=tmp_path)._repr_html_()
