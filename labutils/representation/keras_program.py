"""What `labutils.tools` calls in the environment of Keras: descriptions as Keras models.

with calling.opened("keras", Path(keras_program.__file__)) as tool:
    tool.ask("run", text=description.to_yaml(), images=images, **weights)
"""

from __future__ import annotations

import numpy as np

from labutils import representation


def run(text: str, images: np.ndarray, **weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return logits (n, classes) of a description in Keras for pictures (n, channels, h, w)."""
    model = representation.emit_keras(representation.read(text), weights)
    found = model.predict(np.ascontiguousarray(images.transpose(0, 2, 3, 1)), verbose=0)
    return {"logits": np.asarray(found)}


def save(text: str, file: str, **weights: np.ndarray) -> None:
    """Write a description as a ``.keras`` file."""
    representation.emit_keras(representation.read(text), weights).save(file)
