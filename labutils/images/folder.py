"""A reader's own pictures: a folder with one subfolder per class, in parts that share no picture.

The parts are ``train/``, ``val/`` and ``test/`` where the folder has them (each with the classes
inside). Otherwise a picture's part follows from the SHA-256 of its pixels: what is added later
moves no picture to another part, and copies of one picture, in whatever file, stay together.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from .. import paths, typesetting
from ..errors import UnknownNameError, UsageError, counted, some
from ..tracking import Progress
from . import data, folder_classes, photographs, picture_files
from .picture_files import PictureFile

PARTS = ("train", "val", "test")
CALIBRATION = "calib"
"""What calibrates a quantizer: pictures of ``train``, so none that accuracy is measured on."""

_SHARES = {"val": 0.2, "test": 0.2}  # of a folder without parts; the rest is for training


@dataclass(frozen=True)
class LabelledFile:
    """A picture of the folder that is used: its file, its class number, its part."""

    file: PictureFile
    label: int
    part: str


@dataclass(frozen=True, repr=False)
class ImageFolder(typesetting.Shown):
    """The pictures of a folder, and what was left out.

    Attributes
    ----------
    root
        The folder.
    classes
        Names, by label: the subfolders, sorted; or those of the model.
    files
        What is used.
    left_out
        File -> why: unreadable, a copy of another, without a class.
    labelled
        Whether there are classes; otherwise every label is `data.NO_LABEL`.
    divided
        Whether the folder itself has parts.
    unusable
        The folder's classes without a picture that is used -> how many were left out.
    only_judged
        The folder's classes that no picture for training shows.
    others
        How many files are not called like pictures, by suffix.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[LabelledFile, ...]
    left_out: dict[str, str]
    labelled: bool
    divided: bool
    unusable: dict[str, int] = field(default_factory=dict)
    only_judged: tuple[str, ...] = ()
    others: dict[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What it is called in a text: the folder's name."""
        return self.root.name

    def __str__(self) -> str:
        return "\n".join([self._head(), *self._parts(), *self._lacking(), *self._omitted()])

    def _head(self) -> str:
        how = "as its folders say" if self.divided else "divided by the SHA-256 of their pixels"
        present = len(self._present())
        classes = f"{present} class{'es' * (present != 1)}" if self.labelled else "no classes"
        return f"{self.root}: {counted(len(self.files), 'picture')}, {classes}, {how}"

    def _present(self) -> set[int]:
        return {used.label for used in self.files}

    def _parts(self) -> list[str]:
        counts = Counter(used.part for used in self.files)
        traits = Counter(trait for used in self.files for trait in used.file.traits)
        lines = [f"  {part:<5} {counts[part]:>6}" for part in PARTS if counts[part]]
        if traits:
            listed = ", ".join(f"{count} {trait}" for trait, count in sorted(traits.items()))
            lines.append(f"  of them {listed}")
        return lines

    def _lacking(self) -> list[str]:
        """Return what nobody would miss before it is too late."""
        lines = []
        if self.unusable:
            lines.append(f"  classes without a picture that can be used: {some(self.unusable)}")
        if self.only_judged:
            lines.append(f"  classes without a picture for training: {some(self.only_judged)}")
        if self.others:
            kinds = some([f"{count} {suffix}" for suffix, count in self.others.items()])
            lines.append(f"  not called like pictures, and not looked at: {kinds}")
        return lines

    def _omitted(self) -> list[str]:
        if not self.left_out:
            return []
        shown = [f"    {name}: {why}" for name, why in itertools.islice(self.left_out.items(), 5)]
        more = len(self.left_out) - len(shown)
        tail = [f"    and {more} more"] if more else []
        return [f"  left out: {len(self.left_out)}", *shown, *tail]

    def to_dict(self) -> dict[str, object]:
        """Return what was found, for ``--json`` and manifests."""
        counts = Counter(used.part for used in self.files)
        return {
            "folder": str(self.root), "classes": list(self.classes), "labelled": self.labelled,
            "divided": self.divided, "pictures": dict(sorted(counts.items())),
            "left_out": self.left_out, "unusable": self.unusable,
            "only_judged": list(self.only_judged), "others": self.others,
        }  # fmt: skip

    def unlabelled(self) -> ImageFolder:
        """Return the same pictures without labels, for a network of other classes."""
        files = tuple(replace(used, label=data.NO_LABEL) for used in self.files)
        return replace(self, classes=(), files=files, labelled=False, unusable={}, only_judged=())

    @property
    def evaluation(self) -> str:
        """The part that accuracy is measured on: ``val``, or ``test`` where there is no other."""
        return "val" if any(used.part == "val" for used in self.files) else "test"

    def part(self, name: str) -> list[LabelledFile]:
        """Return a part in the order in which it is used: classes take turns.

        Within a class the SHA-256 of the pixels decides, so that the first `n` are a fair sample.

        Raises
        ------
        UnknownNameError
            There is no such part.
        UsageError
            The folder has no pictures for it.
        """
        if name not in (*PARTS, CALIBRATION):
            raise UnknownNameError("part of a folder", name, (*PARTS, CALIBRATION))
        wanted = "train" if name == CALIBRATION else name
        columns = defaultdict(list)
        for used in self.files:
            if used.part == wanted:
                columns[used.label].append(used)
        if not columns:
            raise UsageError(self._without(name, wanted))
        ordered = [sorted(columns[label], key=lambda u: u.file.pixels) for label in sorted(columns)]
        turns = itertools.zip_longest(*ordered)
        return [used for turn in turns for used in turn if used is not None]

    def _without(self, name: str, wanted: str) -> str:
        if self.divided:
            return (
                f"{self.root} has no pictures in {wanted}/, which {_purpose(name)} needs. Move "
                "some of the others there: a picture must not serve both."
            )
        return (
            f"{self.root} has too few pictures for {_purpose(name)}: with {len(self.files)} of "
            f"them, none came into the part {wanted}. Add more, or divide them yourself into "
            "train/ and val/."
        )

    def digest(self, name: str) -> str:
        """Return the SHA-256 of a part: of its pictures' pixels and labels, in order."""
        listed = "\n".join(f"{used.file.pixels} {used.label}" for used in self.part(name))
        return hashlib.sha256(listed.encode()).hexdigest()

    def load(
        self,
        part: str,
        n: int | None = None,
        size: data.Size = 128,
        crop: float = 1.0,
        resampling: data.Resampling = "bilinear",
    ) -> data.ImageSet:
        """Return the first `n` pictures of a part, all of them without `n`.

        Parameters
        ----------
        part
            ``train``, ``val``, ``test``, or ``calib``: pictures of ``train``.
        n
            How many; there may be fewer.
        size
            Side in pixels, or (height, width).
        crop
            Share of the shorter side that the centre cut keeps.
        resampling
            How they are scaled.
        """
        used = self.part(part)[:n]
        with ThreadPoolExecutor() as pool:
            read = functools.partial(_fitted, self.root, how=(size, crop, resampling))
            images = np.stack(list(pool.map(read, used)))
        return data.ImageSet(
            images=images,
            labels=np.array([entry.label for entry in used], np.int64),
            classes=self.classes,
            source=f"{self.title} {part}, {counted(len(used), 'picture')} at {data.shown(size)}",
            skipped=tuple(f"{name}: {why}" for name, why in self.left_out.items()),
            names=tuple(entry.file.name for entry in used),
        )


def _fitted(
    root: Path, used: LabelledFile, how: tuple[data.Size, float, data.Resampling]
) -> np.ndarray:
    pixels, _ = picture_files.upright(root / used.file.name)
    return data.fitted(pixels, *how)


def _purpose(part: str) -> str:
    return {"train": "training", CALIBRATION: "calibration"}.get(part, "measuring accuracy")


def read(
    root: str | Path, classes: Sequence[str] | None = None, progress: Progress | None = None
) -> ImageFolder:
    """Read a folder of pictures: find classes and parts, and leave out what must not count.

    Parameters
    ----------
    root
        Its subfolders are classes, or ``train/``, ``val/`` and ``test/`` with classes inside. One
        without subfolders is not labelled. Or the name of a published set that was fetched
        (`photographs.SETS`), where no folder is called so.
    classes
        The class names of a model, by number: subfolders are called like them, or by their number,
        or (Imagenette) by their WordNet id. None takes the subfolders as the classes, sorted.
    progress
        Follows the pictures that are decoded for the first time.

    Raises
    ------
    UsageError
        There is no such folder, or no picture that can be read; or nobody says which folders are
        classes, or which class one is (`folder_classes`).
    UnknownNameError
        A subfolder is not a class of the model; the message suggests the nearest.
    """
    root = located(root)
    scan = picture_files.scan(root, progress)
    if not scan.files and not scan.closed:
        listed = ", ".join(sorted(picture_files.SUFFIXES))
        raise UsageError(f"{root} has no pictures: no file ends in {listed}.")
    left_out = scan.closed | {file.name: file.problem for file in scan.files if file.problem}
    good = [file for file in scan.files if not file.problem]
    divided = folder_classes.are_parts((file.name for file in good), root)
    placed = [_Placed(file, *folder_classes.place(file.name, divided)) for file in good]
    labelled = any(entry.class_name for entry in placed)
    placed, beside = _with_a_place(placed, divided, labelled)
    names = sorted({entry.class_name for entry in placed}) if labelled else []
    numbers = folder_classes.numbers(names, classes, root) if labelled else {"": data.NO_LABEL}
    kept, copies = _without_copies(placed, numbers)
    left_out |= beside | copies
    if not kept:
        first = next(iter(left_out.items()), ("", ""))
        raise UsageError(f"No picture in {root} can be used. {first[0]}: {first[1]}")
    files = tuple(
        LabelledFile(e.file, numbers[e.class_name], e.part or _part(e.file.pixels)) for e in kept
    )
    known = tuple(classes if classes is not None else map(folder_classes.in_words, names))
    return ImageFolder(
        root, known, files, dict(sorted(left_out.items())), labelled, divided,
        unusable=_unusable(scan, divided, kept, left_out) if labelled else {},
        only_judged=_only_judged(files, known) if labelled else (),
        others=scan.others,
    )  # fmt: skip


def _unusable(
    scan: picture_files.Scan, divided: bool, kept: list[_Placed], left_out: Iterable[str]
) -> dict[str, int]:
    """Return the folders of classes without a picture that is used -> how many were left out."""
    folders = Counter(_class(f"{name}/", divided) for name in scan.folders)
    closed = Counter(_class(f"{name}/", divided) for name in scan.closed)
    lost = closed + Counter(_class(name, divided) for name in left_out if name not in scan.closed)
    used = {"", *(entry.class_name for entry in kept)}
    return {name: lost[name] for name in sorted({*folders, *lost} - used)}


def _class(name: str, divided: bool) -> str:
    """Return the class of a file's name, or of a folder's that ends in ``/``."""
    return folder_classes.place(f"{name}x" if name.endswith("/") else name, divided)[1]


def _only_judged(files: Sequence[LabelledFile], classes: Sequence[str]) -> tuple[str, ...]:
    """Return the classes that pictures show, but none for training."""
    learned = {used.label for used in files if used.part == "train"}
    judged = {used.label for used in files} - learned
    return tuple(classes[label] for label in sorted(judged))


def located(root: str | Path) -> Path:
    """Return the folder of a path, or of a published set of photographs.

    Raises
    ------
    UsageError
        There is none.
    """
    folder = paths.expanded(root)
    if folder.is_dir():
        return folder
    if str(root) in photographs.SETS:
        return photographs.in_cache(str(root))
    raise UsageError(f"There is no folder {folder}.")


@dataclass(frozen=True)
class _Placed:
    """A readable file with the part and the class that its folders name; "" where they do not."""

    file: PictureFile
    part: str
    class_name: str


def _with_a_place(
    placed: list[_Placed], divided: bool, labelled: bool
) -> tuple[list[_Placed], dict[str, str]]:
    """Return what has a part and a class where the others have, and why the rest is left out."""
    kept, left_out = [], {}
    for entry in placed:
        if divided and not entry.part:
            left_out[entry.file.name] = "beside the parts, not in one"
        elif labelled and not entry.class_name:
            left_out[entry.file.name] = "not in the folder of a class"
        else:
            kept.append(entry)
    return kept, left_out


def _without_copies(
    placed: list[_Placed], numbers: dict[str, int]
) -> tuple[list[_Placed], dict[str, str]]:
    """Keep one of the files with the same pixels; none, where they are said to be two classes.

    Of copies in two parts the one that accuracy is measured on stays.
    """
    groups = defaultdict(list)
    for entry in placed:
        groups[entry.file.pixels].append(entry)
    kept, left_out = [], {}
    for group in groups.values():
        first, *others = sorted(group, key=lambda e: (-_rank(e.part), e.file.name))
        for entry in group:
            of_another = [e for e in group if numbers[e.class_name] != numbers[entry.class_name]]
            if of_another:
                other = of_another[0].file.name
                left_out[entry.file.name] = f"the same picture has another class: {other}"
        if first.file.name in left_out:
            continue
        kept.append(first)
        for entry in others:
            leak = ", which is in another part" if entry.part != first.part else ""
            left_out[entry.file.name] = f"the same picture as {first.file.name}{leak}"
    return kept, left_out


def _rank(part: str) -> int:
    return PARTS.index(part) if part else 0


def _part(pixels: str) -> str:
    """Return the part of a picture by its SHA-256, the same whatever else is in the folder."""
    share = int(pixels[:8], 16) / 2**32
    for part, size in _SHARES.items():
        if share < size:
            return part
        share -= size
    return "train"
