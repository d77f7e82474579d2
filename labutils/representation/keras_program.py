"""What `labutils.tools` calls in the environment of Keras: descriptions as Keras models.

with calling.opened("keras", Path(keras_program.__file__)) as tool:
    tool.ask("run", text=description.to_yaml(), images=images, **weights)
"""

from __future__ import annotations

import runpy
from typing import Any

import numpy as np

from labutils import representation


def run(
    text: str, images: np.ndarray, kinds: str = "", **weights: np.ndarray
) -> dict[str, np.ndarray]:
    """Return logits (n, classes) of a description in Keras for pictures (n, channels, h, w).

    `kinds` is a Python file that registers more kinds of layers, or others, for this call.
    """
    model = _model(text, kinds, weights)
    found = model.predict(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), verbose=0)
    return {"logits": np.asarray(found)}


def save(text: str, file: str, kinds: str = "", **weights: np.ndarray) -> None:
    """Write a description as a ``.keras`` file; `kinds` as for `run`."""
    _model(text, kinds, weights).save(file)


def _model(text: str, kinds: str, weights: dict[str, np.ndarray]) -> Any:
    before = dict(representation.KINDS)
    try:
        if kinds:
            runpy.run_path(kinds)
        return representation.emit_keras(representation.read(text), weights)
    finally:  # the next call may have other kinds
        representation.KINDS.clear()
        representation.KINDS.update(before)
