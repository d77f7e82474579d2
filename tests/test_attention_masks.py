"""A mask of attention holds -inf, which no scale holds: a finite number masks as well."""

import numpy as np
import onnx
import pytest
from cases.draft import CLASSES, Draft

from labutils import quantize
from labutils.errors import LabError, ModelFileError
from labutils.onnxfile.session import Session

IMAGES = np.random.default_rng(1).standard_normal((8, 3, 16, 16)).astype(np.float32)
INFINITY = np.where(np.arange(CLASSES) % 3 == 0, -np.inf, 0).astype(np.float32)


def masked(file, op, last="Softmax", shift=0.0, between=()):
    """Write a classifier whose scores are masked before its Softmax."""
    draft = Draft(shape=(1, 3, 16, 16))
    draft.head(draft.stem(), output="raw")
    x = draft.node("Add", ["raw", draft.weight("shift", np.float32(shift))], "shifted")
    if op == "Where":
        bare = draft.weight("bare", np.isinf(INFINITY)), draft.weight("mask", np.float32(-np.inf))
        x = draft.node("Where", [bare[0], bare[1], x], "masked")
    else:
        x = draft.node("Add", [x, draft.weight("mask", INFINITY)], "masked")
    for index, more in enumerate(between):
        shape = draft.weight(f"shape{index}", np.array([1, CLASSES]))
        x = draft.node(more, [x, shape] if more == "Reshape" else [x], f"more{index}")
    draft.node(last, [x], "scores", axis=1)
    onnx.save(draft.finish(), file)
    return file


def scores(file):
    session = Session(file)
    return np.stack([session.run({"image": image[None]})[0][0] for image in IMAGES])


@pytest.mark.parametrize("between", [(), ("Reshape",)])
@pytest.mark.parametrize("op", ["Add", "Where"])
def test_a_mask_of_infinity_is_quantized_as_a_finite_one(op, between, tmp_path):
    file = masked(tmp_path / "m.onnx", op, between=between)
    report = quantize.static(file, tmp_path / "q.onnx", IMAGES, "a16w8")
    assert "-inf in 1 mask written as -100" in report.repairs
    expected, found = scores(file), scores(tmp_path / "q.onnx")
    assert not found[:, np.isinf(INFINITY)].any()
    np.testing.assert_allclose(found, expected, atol=0.05)


def test_a_mask_that_would_count_for_more_than_the_scores_is_found(tmp_path):
    file = masked(tmp_path / "m.onnx", "Where", shift=-300.0)
    with pytest.raises(LabError, match="does not compute what its source computes"):
        quantize.static(file, tmp_path / "q.onnx", IMAGES, "a16w8")
    assert not (tmp_path / "q.onnx").exists()


@pytest.mark.parametrize(("last", "between"), [("LogSoftmax", ()), ("Softmax", ("Relu",))])
def test_infinity_that_is_no_mask_is_refused_by_its_reader(last, between, tmp_path):
    file = masked(tmp_path / "m.onnx", "Add", last, between=between)
    words = "Weight 'mask' of m.onnx, read by Add '/Add_masked', holds infinity.*finite number"
    with pytest.raises(ModelFileError, match=words):
        quantize.static(file, tmp_path / "q.onnx", IMAGES, "int8")
