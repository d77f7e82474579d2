"""What the stages of a compression made, found again by the content of all that decides it.

A file's name ends in a key of 12 digits. A run that was stopped finds what it has made; one with
another plan, other weights or other pictures finds nothing of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save
from torch import nn

from ... import __version__, paths, train
from ...errors import ModelFileError

_TOOLS = ("torch", "torchvision", "torch-pruning", "onnx", "onnxruntime")


class Store:
    """The files of one compression, in a folder.

    Parameters
    ----------
    folder
        Made if needed.
    **content
        What every stage depends on, as plain values.
    """

    def __init__(self, folder: Path, **content: Any) -> None:
        self.folder = paths.folder(folder)
        self.content = content | {"labutils": __version__, "tools": paths.versions(*_TOOLS)}

    def place(self, stage: str, suffix: str, **content: Any) -> Path:
        """Return where a stage's file is, or will be."""
        words = json.dumps({"stage": stage, **self.content, **content}, sort_keys=True, default=str)
        key = hashlib.sha256(words.encode()).hexdigest()[:12]
        return self.folder / f"{stage}_{key}{suffix}"

    def make(self, place: Path, maker: Callable[[Path], object]) -> bool:
        """Have a file made, unless it is there; return whether it was made now.

        The maker gets a name in a separate folder: what it leaves appears here once it is done.
        """
        if place.exists():
            return False
        with paths.scratch(self.folder) as folder:
            draft = folder / place.name
            maker(draft)
            for made in sorted(folder.iterdir(), key=lambda file: file == draft):
                made.replace(self.folder / made.name)  # the file itself comes last
        return True

    def training(self, place: Path) -> train.Resumable:
        """Return where the training of a stage's file keeps its state: found by the same content.

        Which channels go is not in what a run knows of itself.
        """
        return train.Resumable(paths.folder(self.folder / "trainings") / f"{place.stem}.pt")


def save_weights(network: nn.Module, place: Path) -> None:
    """Write a network's weights and statistics as ``.safetensors``."""
    state = {name: values.contiguous() for name, values in network.state_dict().items()}
    place.write_bytes(save(state))


def load_weights_(network: nn.Module, place: Path) -> None:
    """Give a network the weights of a file that `save_weights` wrote.

    Raises
    ------
    ModelFileError
        It does not fit: somebody changed it.
    """
    try:
        network.load_state_dict(load_file(place))
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelFileError(
            f"{place} does not hold the weights of this stage ({str(error).splitlines()[0]}). "
            "Remove it, and run the command again."
        ) from None


def save_answers(answers: np.ndarray, place: Path) -> None:
    """Write logits, (n, classes) float32."""
    np.save(place, answers)
