"""Whatever accident a file meets, reading it ends well or in a typed error."""

import random

import bad_files
import mutations
import numpy as np
import onnx
import pytest
from cases.draft import Draft

from labutils import dlc

SUFFIXES = (".yaml", ".txt", ".safetensors", ".pth", ".pt2", ".json", ".png", ".npz")


def wrong(folder, suffix, content, read, count, seed=0):
    """Read `count` damaged copies of a file; return what did not end as it should."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        end = ".dlc.manifest.json" if suffix == ".json" else suffix
        path = folder / f"{number}{end}"
        path.write_bytes(mutations.damaged(content, chance))
        found.append(mutations.outcome(read, path))
    return [words for words in found if words not in ("read", "refused")]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file_is_read_or_refused(suffix, tmp_path):
    content, read = mutations.readers()[suffix]
    (tmp_path / f"good{'.dlc.manifest.json' if suffix == '.json' else suffix}").write_bytes(content)
    read(next(tmp_path.iterdir()))  # it was fine
    assert not wrong(tmp_path, suffix, content, read, 40 if suffix == ".yaml" else 150)


@pytest.mark.htp
def test_a_damaged_dlc_is_read_or_refused(tmp_path):
    onnx.save(mutations.good_model(), tmp_path / "good.onnx")
    dlc.write(tmp_path / "good.onnx", tmp_path / "good.dlc")
    content = (tmp_path / "good.dlc").read_bytes()
    assert not wrong(tmp_path, ".dlc", content, dlc.info, 300)


def judged(folder, count, seed):
    found = bad_files.run(folder, mutations.build(folder, count, seed))
    assert len(found) == 4 * count
    return {name: o for name, o in found.items() if not bad_files.well_told(o)}


NAMES = [b"graph_name", b"tensor_w", b"node_name", b"node_op", b"image_in", b"pads", b"high_n"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_not_text_is_refused(name, lab, tmp_path):
    draft = Draft()
    x = draft.node("LeakyRelu", [draft.stem()], "y")
    draft.nodes[-1].name = "node_name"
    x = draft.node("Pad", [x, draft.weight("tensor_w", np.int64([0] * 8))], "pads_out")
    x = draft.node("Clip", [x, "", draft.weight("high_n", np.float32(6))], "clipped")
    draft.head(x)
    model = draft.finish()
    model.graph.name = "graph_name"
    content = model.SerializeToString().replace(b"LeakyRelu", b"node_op__")
    broken = content.replace(name[:5], b"\x8d" + name[1:5])
    assert broken != content
    (tmp_path / "net.onnx").write_bytes(broken)
    code, _, err = lab("diagnose", tmp_path / "net.onnx")
    assert code == 2 and "not UTF-8" in err


@pytest.mark.slow
def test_a_damaged_model_is_diagnosed_and_run_or_refused(tmp_path):
    assert not judged(tmp_path, 50, seed=0)


@pytest.mark.sweep
@pytest.mark.parametrize("seed", range(1, 6))
def test_thousands_of_damaged_models(seed, tmp_path):
    assert not judged(tmp_path, 500, seed)
