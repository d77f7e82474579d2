"""The operator tables themselves, and how a malformed one is refused."""

from __future__ import annotations

import re
import string

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from labutils import paths
from labutils.dlc import conversion
from labutils.errors import LabError, TableError, UnknownNameError, UsageError
from labutils.targets import schema, table

FILES = sorted(paths.OPERATOR_TABLES.glob("*.yaml"))


def test_every_target_has_its_table_and_every_table_its_target():
    assert {t.table for t in table.TARGETS.values()} == {file.stem for file in FILES}
    for name, target in table.TARGETS.items():
        loaded = table.load(name)
        assert (loaded.target, loaded.name) == (name, target.table)


@pytest.mark.parametrize("name", table.TARGETS)
def test_table_holds_together(name):
    loaded = table.load(name)
    assert loaded.sources and loaded.ops and loaded.messages
    cited = {s for part in (loaded.ops, loaded.messages) for o in part.values() for s in o.source}
    assert cited <= set(loaded.sources)
    for message in loaded.messages.values():
        fields = [f for _, f, _, _ in string.Formatter().parse(message.template) if f is not None]
        values = dict.fromkeys(fields, 7)
        assert "7" in message.template.format(**values) or not fields


@pytest.mark.parametrize("name", table.TARGETS)
def test_a_target_that_is_only_checked_says_what_its_tool_is_and_how_one_gets_it(name):
    loaded, converts = table.load(name), bool(table.TARGETS[name].convert)
    assert bool(loaded.availability) != converts
    if converts:
        return
    assert ("by pip" in loaded.availability) or ("not on PyPI" in loaded.availability)
    with pytest.raises(UsageError, match=re.escape(loaded.availability)) as caught:
        conversion.refuse_impossible(name, paths.ROOT / "x.dlc")
    assert "documented operators only" in str(caught.value)


@pytest.mark.parametrize("name", ["onnx-tf-1.10", "rknn-2.3"])
def test_what_pip_has_is_not_said_to_be_out_of_its_reach(name):
    assert re.search(r"comes by pip.*Python 3\.\d+", table.load(name).availability)


def test_tables_name_no_private_place():
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"reference/|exp/|prototypes|/work|seeds|\bmine\b|\bmy\b", text), file


def test_known_facts_survived_the_conversion():
    verdict = {
        (name, op): table.load(name).ops[op].verdict
        for name in table.TARGETS
        for op in ("HardSwish", "HardSigmoid")
    }
    refused = {key for key, value in verdict.items() if value == "unsupported"}
    assert refused == {
        ("snpe-2.7", "HardSwish"),
        ("snpe-2.7", "HardSigmoid"),
        ("rdk-x5", "HardSwish"),
    }
    assert table.load("onnx-tf-1.10").ops["ReduceMean"].op_versions == (1, 11, 13)
    assert table.load("rdk-x5").opset_range.max == 11
    assert "Concat" not in table.load("snpe-2.7").ops  # no document says


def test_unknown_target_suggests_the_nearest():
    with pytest.raises(UnknownNameError, match=r"Did you mean snpe-2\.7"):
        table.load("snpe-2.8")


def _minimal() -> dict:
    op = {"verdict": "supported", "evidence": "documented", "source": ["doc"], "confidence": "high"}
    message = {"template": "no {op}", "verbatim": True, "evidence": "observed", "source": ["doc"]}
    return {
        **dict.fromkeys(("name", "target", "vendor", "toolchain", "version", "about"), "x"),
        "kind": "converter",
        "retrieved": "2026-11-20",
        "opset_range": {"min": 7, "max": None, "below": "warn", "above": "unknown", "note": "n"},
        "on_unsupported": "abort",
        "on_limit_missed": "unsupported",
        "on_other_version": "warn",
        "sources": {"doc": {"url": "https://example.org", "kind": "docs"}},
        "notes": ["n"],
        "messages": {"refused": message},
        "ops": {
            "Relu": op,
            "Conv": {
                **op,
                "verdict": "constrained",
                "constraints": [{"text": "t", "check": {"input_rank": {"max": 4}}}],
            },
        },
    }


def _parse(data: dict) -> schema.Table:
    return schema.parse(yaml.safe_dump(data, sort_keys=False), "some.yaml")


def _changed(path: tuple, value: object) -> dict:
    data = yaml.safe_load(yaml.safe_dump(_minimal()))
    inner = data
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return data


def test_the_minimal_table_is_fine():
    assert _parse(_minimal()).ops["Conv"].constraints[0].check == {"input_rank": {"max": 4}}


BROKEN = [
    (("ops",), None, "key 'ops' is missing"),
    (("ops", "Relu", "verdict"), None, "ops.Relu: the key 'verdict' is missing"),
    (("ops", "Relu", "verdict"), "probably", "'probably' is not one of supported"),
    (("ops", "Relu", "confidence"), "certain", "'certain' is not one of high"),
    (("ops", "Relu", "evidence"), "hearsay", "starts with none of documented"),
    (("ops", "Relu", "source"), ["rumour"], "no source 'rumour'"),
    (("ops", "Relu", "source"), [], "names no source"),
    (("ops", "Relu", "source"), "doc", "source: expected a list, found 'doc'"),
    (
        ("ops", "Relu", "op_versions"),
        ["six"],
        "op_versions.0: expected a whole number",
    ),
    (("ops", "Relu", "colour"), "red", "unknown key"),
    (("ops", "Relu", "constraints"), [{"text": "t"}], "exactly the constrained"),
    (("ops", "Relu"), "supported", "expected a mapping, found 'supported'"),
    (("ops", "Conv", "constraints"), None, "exactly the constrained"),
    (("ops", "Conv", "constraints", 0, "check"), {"vibes": 1}, "expected exactly one of"),
    (("ops", "Conv", "constraints", 0, "text"), None, "the key 'text' is missing"),
    (("on_unsupported",), "shrug", "'shrug' is not one of abort"),
    (
        ("opset_range", "max"),
        "17",
        "opset_range.max: expected a whole number or nothing",
    ),
    (("opset_range", "min"), True, "expected a whole number or nothing, found True"),
    (("opset_range", "message"), "gone", "there is no message 'gone'"),
    (("messages", "refused", "template"), "no {op", "not a format template"),
    (("messages", "refused", "verbatim"), "yes", "expected true or false, found 'yes'"),
    (("sources", "doc", "kind"), None, "sources.doc: the key 'kind' is missing"),
    (("notes",), [7], "notes.0: expected text, found 7"),
    (("unknown",), {"Relu": "?"}, "also has a verdict"),
]


@pytest.mark.parametrize(("path", "value", "problem"), BROKEN, ids=[case[2] for case in BROKEN])
def test_malformed_table_names_file_line_and_key(path, value, problem):
    with pytest.raises(TableError) as caught:
        _parse(_changed(path, value))
    message = str(caught.value)
    assert problem in message
    assert re.match(r"some\.yaml, line \d+: ", message)


def test_line_number_is_the_line_of_the_key():
    text = yaml.safe_dump(_changed(("ops", "Relu", "verdict"), "perhaps"), sort_keys=False)
    line = 1 + [row.strip() for row in text.splitlines()].index("verdict: perhaps")
    with pytest.raises(TableError, match=rf"line {line}: ops\.Relu\.verdict"):
        schema.parse(text, "some.yaml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("ops: [unclosed", r"some\.yaml, line 1: not readable"),
        ("a: 1\nops:\n  Relu: {}\n  Relu: {}\n", r"line 4: .*'Relu' is given twice"),
        ("? [a, b]\n: 1\n", "not readable as a table"),
        ("just words", "expected a mapping, found 'just words'"),
        ("", "expected a mapping, found nothing"),
        ("- a\n- b\n", "expected a mapping, found a list"),
        ("!!python/object/apply:os.system [ls]", "not readable as a table"),
    ],
)
def test_text_that_is_no_table(text, problem):
    with pytest.raises(TableError, match=problem):
        schema.parse(text, "some.yaml")


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@given(key=st.sampled_from(sorted(_minimal())), value=_ANY)
def test_any_value_under_any_key_is_a_table_or_a_table_error(key, value):
    data = {**_minimal(), key: value}
    try:
        assert isinstance(_parse(data), schema.Table)
    except LabError as error:
        assert isinstance(error, TableError)
