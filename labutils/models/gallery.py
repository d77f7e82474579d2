"""Labelled pictures that a model can be judged on: drawn ones, or a folder of the reader's own.

The one place where a notebook gets its pictures from, so that the same cells serve both kinds of
weights. Photographs come from the folder that ``LABUTILS_PHOTOGRAPHS`` names (see
`labutils.images.folder`), else from Imagenette when it is in the cache, else, without labels, from
scikit-image when that is installed; nothing is downloaded here.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .. import metrics
from ..errors import UsageError
from ..images import crops, data, photographs
from ..images import folder as image_folder
from ..images.folder import ImageFolder
from ..tracking import Progress
from . import architectures, zoo

_FOLDER = "let LABUTILS_PHOTOGRAPHS name a folder with one subfolder per class"
_DRAWN = {  # by whether they calibrate
    False: f"so no label counts. To measure their accuracy, {_FOLDER}",
    True: f"so the ranges that photographs need may differ. To calibrate with those, {_FOLDER}",
}


def pictures(model: zoo.Model, n: int, split: str = "val") -> data.ImageSet:
    """Return at most `n` pictures at the model's size, labelled with the model's class numbers.

    Parameters
    ----------
    model
        Its classes decide which pictures it can be judged on, or calibrated with.
    n
        How many; classes take turns. Of photographs there may be fewer.
    split
        ``train``, ``val``, ``calib`` or ``test``. Of a folder, ``calib`` is of the part for
        training: no picture that calibrates a quantizer is ever one that accuracy is measured on.

    Returns
    -------
    data.ImageSet
        ``source`` says which pictures they are. Of ImageNet's classes without labelled photographs,
        crops of scikit-image's, labelled `data.NO_LABEL`. Where there are none for this model,
        Things-16 pictures so labelled, and ``source`` says what to do.

    Raises
    ------
    UsageError
        ``LABUTILS_PHOTOGRAPHS`` names no folder of photographs of these classes.
    """
    size = model.known_preprocessing().size
    if image_set := data.set_of(model.classes):
        return data.load(split, n, size, image_set)
    folder = os.environ.get("LABUTILS_PHOTOGRAPHS") or photographs.imagenette()
    if folder and model.trained:
        return loader(model, image_folder.read(folder, model.classes))(split, n)
    if model.trained and crops.installed() and model.classes == architectures.class_names(1000):
        part = "calib" if split == "calib" else "val"
        return dataclasses.replace(crops.load(part, n, size), classes=model.classes)
    drawn = data.load(split, n, size)
    source = f"{drawn.source}: not what these weights were trained on, {_DRAWN[split == 'calib']}"
    return data.ImageSet(drawn.images, np.full(n, data.NO_LABEL, np.int64), model.classes, source)


def in_folder(
    model: zoo.Model, root: str | Path, progress: Progress | None = None
) -> tuple[zoo.Model, ImageFolder]:
    """Return the pictures of a folder, labelled as the model numbers its classes.

    Parameters
    ----------
    model
        Where it is trained and names its classes, the subfolders are called like those. A file
        that names none, with as many outputs as there are subfolders, has them in their order, as
        torchvision's ``ImageFolder`` numbers them. Otherwise there are no labels: a network with
        random weights knows no class.
    root
        See `labutils.images.folder.read`.
    progress
        Follows the pictures that are decoded for the first time.

    Returns
    -------
    model, folder
        The model, with its classes where the folder gave them their names.

    Raises
    ------
    UsageError
        There is no such folder, or no picture that can be read.
    UnknownNameError
        A subfolder is not a class of the model; the message suggests the nearest.
    """
    if model.trained and names_classes(model):
        return model, image_folder.read(root, model.classes, progress)
    read = image_folder.read(root, None, progress)
    if model.trained and read.labelled and len(read.classes) == len(model.classes):
        return dataclasses.replace(model, classes=read.classes), read
    return model, read.unlabelled()


def names_classes(model: zoo.Model) -> bool:
    """Return whether a network says what its classes are called: a bare file has numbers only."""
    return model.classes not in ((), architectures.numbered(len(model.classes)))


def loader(model: zoo.Model, folder: ImageFolder) -> Callable[[str, int | None], data.ImageSet]:
    """Return ``load(part, n)``: the first `n` pictures of a part as the model sees them.

    ``val`` is the part that accuracy is measured on: ``test`` in a folder that has no other.
    """
    preprocessing, share = model.known_preprocessing(), crop(model)

    def load(part: str, n: int | None) -> data.ImageSet:
        if n is not None and n < 1:
            raise UsageError(f"{n} pictures: at least one is needed.")
        part = folder.evaluation if part == "val" else part
        return folder.load(part, n, preprocessing.size, share, preprocessing.resampling)

    return load


def crop(model: zoo.Model) -> float:
    """Return the share of a picture's shorter side that a network sees: what it was trained for."""
    return photographs.CROP if model.weights == "imagenet" else 1.0


def accuracy(logits: np.ndarray, images: data.ImageSet, k: int = 1) -> metrics.Proportion | None:
    """Return the top-`k` accuracy on the pictures whose label is known; None where none is.

    Parameters
    ----------
    logits
        (n, classes), of `images`.
    images
        From `pictures`.
    k
        How many guesses count.
    """
    if len(logits) != len(images):
        raise UsageError(f"{len(logits)} rows of logits for {len(images)} pictures.")
    known = images.labels != data.NO_LABEL
    return metrics.accuracy(logits[known], images.labels[known], k) if known.any() else None


def truth(images: data.ImageSet, index: int) -> str:
    """Return what picture `index` shows, "" where nobody knows."""
    label = int(images.labels[index])
    return "" if label == data.NO_LABEL else images.classes[label]


def difference(
    logits: np.ndarray, reference: np.ndarray, images: data.ImageSet
) -> metrics.PairedDifference | None:
    """Return the top-1 of `logits` minus that of `reference`; None where no label is known.

    Parameters
    ----------
    logits, reference
        (n, classes), of `images`.
    images
        From `pictures`.
    """
    if not len(logits) == len(reference) == len(images):
        raise UsageError(
            f"{len(logits)} and {len(reference)} rows of logits for {len(images)} pictures."
        )
    known = images.labels != data.NO_LABEL
    if not known.any():
        return None
    labels = images.labels[known]
    right = (metrics.correct(rows[known], labels) for rows in (logits, reference))
    return metrics.paired_difference(*right)
