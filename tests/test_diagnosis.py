"""The page of a diagnosis: complete, self-contained, and harmless whatever a file is called."""

import html.parser
import re

import onnx
import pytest
from onnx import helper

from labutils import pipeline
from labutils.show import diagnosis


class Reader(html.parser.HTMLParser):
    """Collects the text, the tags, and every address that a browser would fetch."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "wbr":  # where a name may break: nothing to read
            self.words.append("\0")
        self.addresses += [v for k, v in attributes if k in ("src", "href", "srcset", "action")]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words).replace(" \0 ", ""))


def page(path, target, folder):
    plan = pipeline.suggest(path, target)
    written = diagnosis.write(plan, folder / "report.html", "a model", path)
    return plan, Reader(written.read_text(encoding="utf-8"))


def test_it_says_what_blocks_where_and_what_it_costs(small_onnx, tmp_path):
    plan, read = page(small_onnx(17), "snpe-2.7", tmp_path)
    assert f"{len(plan.check.blockers)} nodes block" in read.text
    assert "remove all of them" in read.text
    for name, nodes in plan.rules.items():
        assert re.search(rf"{name} {nodes} exact; error:", read.text)
    assert "labutils convert MODEL --target snpe-2.7 --repair" in read.text
    assert re.search(r"features\.0 .*?1 x HardSwish", read.text)
    assert "Where the tool stops" in read.text
    assert "onnxruntime" in read.text


def test_modules_add_up_to_the_file(small_onnx):
    check = pipeline.suggest(small_onnx(17), "snpe-2.7").check
    parts = diagnosis.parts(check)
    for word, count in check.counts.items():
        assert sum(part.counts[word] for part in parts) == count
    assert next(part for part in parts if part.module == "features.0").worst == "unsupported"


def test_nothing_is_fetched(small_onnx, tmp_path):
    _, read = page(small_onnx(17), "snpe-2.7", tmp_path)
    assert {"script", "link", "iframe"}.isdisjoint(read.tags)
    assert read.addresses
    assert all(address.startswith("data:") for address in read.addresses)


def test_a_model_without_blockers_is_told_so(small_onnx, tmp_path):
    fixed = pipeline.apply(small_onnx(17), "snpe-2.7", tmp_path / "fixed.onnx")
    _, read = page(fixed.file, "snpe-2.7", tmp_path)
    assert "no repair is needed" in read.text
    assert "--repair" not in read.text


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '" onload="x', "{{ 7 * 7 }}"])
def test_hostile_names_stay_text(name, tmp_path):
    node = helper.make_node("Einsum", ["input"], ["logits"], name=name, equation="ij->ji")
    ends = [helper.make_tensor_value_info(n, 1, [2, 2]) for n in ("input", "logits")]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:])
    path = tmp_path / "odd.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    _, read = page(path, "snpe-2.7", tmp_path)
    assert "script" not in read.tags
    assert name.split()[0] in read.text
