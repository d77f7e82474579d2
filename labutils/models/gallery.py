"""Labelled pictures that a model can be judged on: drawn ones, or photographs.

The one place where a notebook gets its pictures from, so that the same cells serve both kinds of
weights. Photographs come from the folder that ``LABUTILS_PHOTOGRAPHS`` names (one subfolder per
class), else from Imagenette when it is in the cache, else, without labels, from scikit-image when
that is installed; nothing is downloaded here.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from .. import metrics
from ..errors import UsageError
from ..images import crops, data, photographs
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
        Of Things-16. Of photographs, ``calib`` is one part and all else the other: no picture that
        calibrates a quantizer is ever one that accuracy is measured on.

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
        part = "calib" if split == "calib" else "val"
        return photographs.read(folder, model.classes, size, n, part=part)
    if model.trained and crops.installed() and model.classes == architectures.class_names(1000):
        part = "calib" if split == "calib" else "val"
        return replace(crops.load(part, n, size), classes=model.classes)
    drawn = data.load(split, n, size)
    source = f"{drawn.source}: not what these weights were trained on, {_DRAWN[split == 'calib']}"
    return data.ImageSet(drawn.images, np.full(n, data.NO_LABEL, np.int64), model.classes, source)


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
