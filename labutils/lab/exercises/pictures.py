"""Judging what is done with a folder's pictures: copies in two parts, and numbers of classes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..answer import NotYet, array, call, names

Pictures = dict[str, np.ndarray]

# --- 09.1: a leak ---------------------------------------------------------------------------------


def _picture(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def _divided() -> dict[str, tuple[Pictures, Pictures, set[str]]]:
    """Return kind -> calibration, validation, and the names of what is in both."""
    calibration = {f"bolt/{i:02}.png": _picture(i) for i in range(6)}
    others = {f"bolt/{i:02}.png": _picture(100 + i) for i in range(2, 6)}  # names that occur twice
    others["nut/z.png"] = _picture(300)
    nearly = calibration["bolt/01.png"].copy()
    nearly[3, 4, 1] ^= 1
    plain = np.full((6, 8, 3), 128, np.uint8)
    return {
        "copies": (
            calibration,
            {**others, "nut/a.bmp": _picture(3), "nut/b.png": _picture(0)},
            {"nut/a.bmp", "nut/b.png"},
        ),
        "twice": (
            calibration,
            {"nut/a.bmp": _picture(3), **others, "nut/c.png": _picture(3)},
            {"nut/a.bmp", "nut/c.png"},
        ),
        "mirrored": (
            calibration,
            {"nut/m.png": _picture(2)[:, ::-1].copy(), "nut/a.png": _picture(5)},
            {"nut/a.png"},
        ),
        "nearly": (calibration, {"nut/n.png": nearly, "nut/a.png": _picture(4)}, {"nut/a.png"}),
        "plain": (
            {**calibration, "bolt/gray.png": plain},
            {"nut/g.png": plain.reshape(8, 6, 3).copy(), "nut/a.png": _picture(1)},
            {"nut/a.png"},
        ),
        "none": (calibration, {f"nut/{i}.png": _picture(200 + i) for i in range(3)}, set()),
    }


def judge_leaks(find_leaks: Any) -> None:
    """Judge which pictures of the one part are said to be in the other as well."""
    for kind, (calibration, validation, leaked) in _divided().items():
        given = [{name: x.copy() for name, x in part.items()} for part in (calibration, validation)]
        found = names(call(find_leaks, *given), "a set of file names")
        if found != leaked:
            raise NotYet(_explain_leaks(kind, found, leaked, calibration, validation))


def _explain_leaks(
    kind: str, found: set[str], leaked: set[str], calibration: Pictures, validation: Pictures
) -> str:
    if unknown := sorted(found - set(validation)):
        where = "a name in calibration" if unknown[0] in calibration else "in neither part"
        return f"{unknown[0]} is {where}; name what must leave validation."
    if leaked and found == set(validation) - leaked:
        return "you name those that are fine, and not those that leak."
    if found and found == set(calibration) & set(validation):
        return (
            "you compare file names. A copy has another name, and two cameras use the "
            "same names for different pictures."
        )
    reason = {
        "mirrored": "a mirror image has the same values as the picture, in other places.",
        "nearly": "one value differs by 1: that is a different picture, however similar.",
        "plain": "two plain gray pictures have the same values; one is wide, the other high.",
    }
    if kind in reason and found - leaked:
        return f"{min(found - leaked)} is not in calibration: {reason[kind]}"
    if kind == "twice" and len(found) == 1:
        return "one picture of calibration is in validation twice, and you name it once."
    if missed := sorted(leaked - found):
        return (
            f"{missed[0]} shows what a picture of calibration shows, to the last value, and you do "
            "not name it. It is in another position and has another name."
        )
    return f"{min(found)} is not in calibration, and you name it."


# --- 09.2: numbers of classes ---------------------------------------------------------------------

_ORDERS = (  # the folder's names, sorted; the model's, in the order of its outputs
    (("gear", "nut"), ("washer", "nut", "screw", "bolt", "gear")),
    (("bolt", "gear", "nut", "washer"), ("nut", "bolt", "gear", "washer")),
    (("bolt", "gear", "nut", "washer"), ("washer", "nut", "bolt", "gear")),
    (("bolt", "bracket", "gear", "nut"), ("nut", "gear", "bolt")),
)


def judge_numbers(renumber: Any) -> None:
    """Judge the model's class numbers for pictures that are labelled as their folder counts."""
    for at, (folder, model) in enumerate(_ORDERS):
        labels = np.random.default_rng(at).permutation(np.arange(12) % len(folder))
        found = call(renumber, labels.copy(), list(folder), list(model))
        _refuse_names(found)
        numbers = array(found, labels.shape)
        table = np.array([model.index(name) if name in model else -1 for name in folder])
        if not np.array_equal(numbers, table[labels]):
            raise NotYet(_explain_numbers(numbers, labels, folder, model))


def _refuse_names(found: Any) -> None:
    if isinstance(found, list | tuple) and found and isinstance(found[0], str):
        raise NotYet("numbers are expected, as the model's outputs count, not the names.")


def _explain_numbers(
    numbers: np.ndarray, labels: np.ndarray, folder: tuple[str, ...], model: tuple[str, ...]
) -> str:
    known = np.array([name in model for name in folder])[labels]
    table = np.array([model.index(name) if name in model else -1 for name in folder])
    if np.array_equal(numbers, labels):
        return "the labels are as they were: the folder's own numbers."
    if not known.all() and np.array_equal(numbers[known], table[labels][known]):
        stray = folder[int(labels[~known][0])]
        said = numbers[~known][0]
        return (
            f"the model has no class {stray}, and you number it {said:g}: no answer can be right "
            "there."
        )
    ordered = sorted(model)
    alphabetic = [ordered.index(name) if name in model else -1 for name in folder]
    if np.array_equal(numbers, np.array(alphabetic)[labels]):
        return "you sort the model's names. Its outputs have their own order: keep it."
    back = np.array([folder.index(name) if name in folder else -1 for name in model])
    if labels.max() < len(back) and np.array_equal(numbers, back[labels]):
        return (
            "you go the other way: from the model's numbers to the folder's. With two classes "
            "exchanged that is the same, with three in a circle it is not."
        )
    wrong = int(np.flatnonzero(numbers != table[labels])[0])
    name = folder[int(labels[wrong])]
    return f"for a {name}, output {numbers[wrong]:g} of the model {list(model)} is the wrong one."
