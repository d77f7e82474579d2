"""Networks whose input or output is not one RGB image and one row of scores."""

from __future__ import annotations

import onnx
from onnx import TensorProto

from .draft import CLASSES, Draft


def labels_not_scores(seed=0, keepdims=0) -> onnx.ModelProto:
    """Return a network that ends in ArgMax."""
    draft = Draft(seed)
    draft.head(draft.stem("HardSwish"), output="logits")
    draft.node("ArgMax", ["logits"], "scores", axis=1, keepdims=keepdims)
    shape = (1, 1) if keepdims else (1,)
    return draft.finish([("scores", shape)], kind=TensorProto.INT64)


def gray(seed=0, side=28) -> onnx.ModelProto:
    """Return a network for images of one channel."""
    draft = Draft(seed, shape=(1, 1, side, side))
    draft.head(draft.stem("HardSwish"))
    return draft.finish()


def logits_nchw(seed=0, classes=CLASSES) -> onnx.ModelProto:
    """Return a fully convolutional classifier: its scores have the shape (1, classes, 1, 1)."""
    draft = Draft(seed)
    x = draft.convolution(draft.stem("HardSwish"), "classifier", channels=classes, side=1)
    draft.node("GlobalAveragePool", [x], "scores")
    return draft.finish([("scores", (1, classes, 1, 1))])


def scores_and_features(seed=0, features_first=False) -> onnx.ModelProto:
    """Return a network with two heads: scores and an embedding."""
    draft = Draft(seed)
    draft.head(draft.stem("HardSwish"))
    outputs = [("scores", (1, CLASSES)), ("flat", (1, 8))]
    return draft.finish(outputs[::-1] if features_first else outputs)
