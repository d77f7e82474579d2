"""What the subfolders of a folder of pictures mean: parts, and the classes of a network.

A label is never guessed. A subfolder is the class that is called exactly so; failing that, the one
class that is called so but for case, ``_`` and ``-``; failing that, the class of that number, where
no class has a number for its name. What could be two classes, and two folders that would be one
class, are refused by their names.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from ..errors import UnknownNameError, UsageError

_CALLED = {"train": "train", "training": "train", "val": "val", "valid": "val",
           "validation": "val", "test": "test", "testing": "test"}  # fmt: skip
_TRAINED_ELSEWHERE = "If weights of yours know these classes, name their file: --weights FILE."
_WORDNET = re.compile(r"n\d{8}")


def are_parts(names: Iterable[str], root: Path) -> bool:
    """Return whether all folders at the top are parts: one for training, or with classes inside.

    Raises
    ------
    UsageError
        Some are called like parts and have classes inside, and others lie beside them or around
        them: then nobody says which folders are the classes.
    """
    folders = [Path(name).parts[:-1] for name in names if "/" in name]
    called = {_part_called(parts[0]) for parts in folders}
    inside = all(len(parts) > 1 for parts in folders)
    if called and "" not in called and ("train" in called or inside):
        return True
    _refuse_parts_among_others(folders, root)
    _refuse_parts_inside(folders, root)
    return False


def _part_called(folder: str) -> str:
    return _CALLED.get(folder.casefold(), "")


def _refuse_parts_among_others(folders: list[tuple[str, ...]], root: Path) -> None:
    parts = {path[0] for path in folders if _part_called(path[0]) and len(path) > 1}
    others = {path[0] for path in folders if not _part_called(path[0])}
    if parts and others:
        raise UsageError(
            f"{root}: {_listed(parts)} with folders of pictures inside would be parts, but "
            f"{_listed(others)} beside them would not. Call each of them train, val or test, or "
            f"move it away. If {_listed(parts)} are classes, put their pictures directly into them."
        )


def _refuse_parts_inside(folders: list[tuple[str, ...]], root: Path) -> None:
    inside = defaultdict(set)
    for path in folders:
        if len(path) > 1:
            inside[path[0]].add(_part_called(path[1]))
    for around, parts in sorted(inside.items()):
        if "train" in parts and parts & {"val", "test"}:
            raise UsageError(
                f"{root}: {around}/ has parts inside ({_listed(parts - {''})}), which are looked "
                f"for at the top only. Name {root / around} if it is the folder of pictures, or "
                f"move the pictures: train/{around}/, and so on."
            )


def _listed(folders: Collection[str]) -> str:
    first = sorted(folders)[:4]
    return ", ".join(f"{name}/" for name in first) + (", ..." if len(folders) > len(first) else "")


def place(name: str, divided: bool) -> tuple[str, str]:
    """Return the part and the class that a file's folders name; "" where they do not."""
    folders = Path(name).parts[:-1]
    part = _part_called(folders[0]) if divided and folders else ""
    rest = folders[1:] if divided else folders
    return part, rest[0] if rest else ""


def numbers(names: Sequence[str], classes: Sequence[str] | None, root: Path) -> dict[str, int]:
    """Return the label of each subfolder.

    Parameters
    ----------
    names
        The subfolders' names, sorted.
    classes
        Names of a model's classes, by number; None where the subfolders are the classes.
    root
        For messages.

    Raises
    ------
    UnknownNameError
        A subfolder is not a class of the model.
    UsageError
        Two subfolders would be one class, or one could be two.
    """
    known = tuple(map(in_words, names)) if classes is None else tuple(classes)
    found: dict[str, int] = {}
    first: dict[int, str] = {}
    for name in names:
        number = _number(name, known, root)
        if number in first:
            raise UsageError(
                f"{root}: the folders {first[number]} and {name} would both be the class "
                f"{known[number]!r}. Put their pictures into one, or call the other as its class "
                "is called."
            )
        found[name], first[number] = number, name
    return found


def _number(name: str, classes: tuple[str, ...], root: Path) -> int:
    called, near = in_words(name), _loosely(classes)
    for matches in (
        [i for i in near.get(_plain(name), ()) if classes[i] == name],
        [i for i in near.get(_plain(called), ()) if classes[i] == called],
        near.get(_plain(called), []),
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            which = ", ".join(f"{classes[i]!r} (number {i})" for i in matches[:4])
            raise UsageError(
                f"{root}: the folder {name} could be more than one class of this model: {which}. "
                "Call it exactly as its class, or by its number."
            )
    numbered = not any(known.strip().isdecimal() for known in classes)
    if numbered and name.isdecimal() and int(name) < len(classes):
        return int(name)
    kind = f"class of this model (a subfolder of {root})"
    raise UnknownNameError(kind, name, classes, _TRAINED_ELSEWHERE)


def in_words(name: str) -> str:
    """Return what a subfolder's class is called: Imagenette's are called by WordNet's ids."""
    return _wordnet().get(name, name) if _WORDNET.fullmatch(name) else name


@functools.lru_cache(8)
def _loosely(classes: tuple[str, ...]) -> dict[str, list[int]]:
    found = defaultdict(list)
    for number, known in enumerate(classes):
        found[_plain(known)].append(number)
    return dict(found)


def _plain(name: str) -> str:
    composed = unicodedata.normalize("NFC", name)  # macOS takes letters and their accents apart
    return composed.replace("_", " ").replace("-", " ").casefold().strip()


@functools.cache
def _wordnet() -> dict[str, str]:
    from .. import _torchvision

    imagenette = _torchvision.load().datasets.Imagenette
    return {wnid: names[0] for wnid, names in imagenette._WNID_TO_CLASS.items()}
