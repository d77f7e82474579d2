"""What training in float and training for a recipe share: who works, with what, on what."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import ModelFileError, UsageError, some
from .options import progress_bar, say

if TYPE_CHECKING:
    from torch import nn

    from ..images import data
    from ..images.folder import ImageFolder
    from ..models import zoo
    from ..tracking import Progress
    from ..train import FineTuningConfig, Ranks, Resumable

T = TypeVar("T")

_STEPS = 300
_SIDED = re.compile(r"(?<![a-z])(left|right)(?![a-z])", re.IGNORECASE)


@contextlib.contextmanager
def joined(prepare: Callable[[], T]) -> Iterator[tuple[T, Ranks]]:
    """Yield what `prepare` returns, and the processes that torchrun started with this one.

    On each machine one process prepares before the others, which find what it has cached.
    """
    from ..train import ranks as processes

    made = [prepare()] if processes.local_rank() == 0 else []
    with processes.joined() as ranks:
        yield (made or [prepare()])[0], ranks


def tell(chosen: argparse.Namespace, line: object) -> None:
    """Print a line of the story, in the first process alone."""
    from ..train import ranks

    if ranks.is_first_process():
        say(chosen, line)


def progress_of_first() -> Progress | None:
    """Return the progress bar of the first process; the others draw none."""
    from ..train import ranks

    return progress_bar if ranks.is_first_process() else None


def config_of(chosen: argparse.Namespace, base: FineTuningConfig) -> FineTuningConfig:
    """Return what the file and the options say, and for the rest `base`."""
    from .. import train

    config = train.read_fine_tuning_config(chosen.config, base) if chosen.config else base
    options = {"steps": chosen.steps, "size": chosen.size, "images": chosen.images}
    config = config.replaced(**{name: v for name, v in options.items() if v is not None})
    return config if config.steps or config.seconds else config.replaced(steps=_STEPS)


def fitted_config(
    chosen: argparse.Namespace, config: FineTuningConfig, source: data.ImageSource, ranks: Ranks
) -> FineTuningConfig:
    """Return a smaller batch where a folder has fewer pictures than one; note what may harm."""
    from ..images import data
    from ..images.folder import ImageFolder

    sided = [name for name in data.classes_of(source) if _SIDED.search(name)]
    if sided and config.augmentation.flip:
        tell(
            chosen,
            f"Note: half of the batches are mirrored, and {' and '.join(sided[:2])} may then show "
            "another class. To leave that out, write augmentation: {flip: false} into a file for "
            "--config.",
        )
    if isinstance(source, ImageFolder):
        there = min(len(source.part("train")), config.images)
        if there < config.batch_size:
            fitted = there // ranks.size * ranks.size
            tell(
                chosen,
                f"Note: batches of {fitted} pictures, not of {config.batch_size}: there are "
                f"{there} to train on.",
            )
            return config.replaced(batch_size=fitted)
    return config


def refuse_unwritable(output: Path) -> None:
    """Refuse, before any work, a place where the result or its card cannot be written."""
    from .. import paths
    from ..train import ranks

    if ranks.is_first_process():
        paths.refuse_unwritable(output)
        if output.suffix == ".safetensors":
            paths.refuse_unwritable(output.with_suffix(".json"))


def state_of(chosen: argparse.Namespace, config: FineTuningConfig) -> Resumable | None:
    """Return where the run is kept, one file per run; a run by the clock cannot be resumed."""
    from .. import paths, train

    if config.seconds is not None:
        return None
    return train.Resumable(paths.folder(paths.cache() / "training"), chosen.save_every)


def held_out_pictures(source: data.ImageSource, n: int, size: data.Size) -> data.ImageSet:
    """Return what accuracy is measured on: `n` drawn images, or a folder's part for it."""
    from ..images import data
    from ..images.folder import ImageFolder

    if isinstance(source, ImageFolder):
        return source.load(source.evaluation, None, size)
    return data.load("val", n, size, source)


def learned_pictures(chosen: argparse.Namespace, model: zoo.Model) -> data.ImageSource:
    """Return what is learned: the folder of ``--data``, the set that was named, or the model's own.

    Raises
    ------
    UnknownNameError
        A subfolder is not a class of the model.
    """
    from ..images import data
    from ..models import gallery

    if not chosen.data:
        return chosen.image_set or data.set_for(model.classes)
    found = gallery.in_folder(model, chosen.data, progress_of_first())[1]
    tell(chosen, found)
    named = gallery.names_classes(model)
    if not found.labelled and not named:
        raise UsageError(
            f"{model.name} ({model.weights}) has {len(model.classes)} outputs without names, and "
            f"{found.root} another number of classes, or none."
        )
    require_labels(found)
    if not named:
        refuse_lost_classes(found)
    if unseen := _unseen(found):
        tell(chosen, f"No pictures of {some(unseen)}: kept as outputs, and not learned.")
    return found


def _unseen(found: ImageFolder) -> list[str]:
    """Return the network's classes that no picture shows."""
    shown = {used.label for used in found.files}
    return [name for label, name in enumerate(found.classes) if label not in shown]


def refuse_lost_classes(found: ImageFolder) -> None:
    """Refuse a folder that decides the classes, and has one whose pictures are all left out."""
    lost = [name for name, pictures in found.unusable.items() if pictures]
    if lost:
        raise UsageError(
            f"{found.root}: none of the pictures of {', '.join(lost[:4])} can be used, so the "
            f"network would not have {'this class' if len(lost) == 1 else 'these classes'}. "
            f"{next(why for name, why in found.left_out.items() if lost[0] in name)}. Repair the "
            "pictures, or take the folder away."
        )


def require_labels(found: ImageFolder) -> None:
    """Refuse a folder that names no classes."""
    if not found.labelled:
        raise UsageError(
            f"{found.root} has no subfolders with the names of classes, so nobody says what its "
            "pictures show. Put those of each class into one."
        )
    shown = {used.label for used in found.files}
    if len(shown) < 2:
        raise UsageError(
            f"{found.root} shows one class only, {found.classes[shown.pop()]!r}: there is nothing "
            "to tell apart. Add a folder with pictures of something else."
        )


def load_network(chosen: argparse.Namespace) -> tuple[zoo.Model, nn.Module]:
    """Return the model that was named, and its network."""
    from ..models import zoo

    model = zoo.load(chosen.model, chosen.weights)
    if model.file is not None or model.module is None:
        raise ModelFileError(f"{model.name} is a file: only networks by name are trained.")
    return model, model.module


def draw_once(source: data.ImageSource, config: FineTuningConfig) -> None:
    """Have the images of a drawn set in the cache: not every process is to draw them."""
    from ..images import data
    from ..train import fine_tuning

    if isinstance(source, str):
        data.load("train", config.images, max(fine_tuning.SOURCE_SIZE, config.size), source)
