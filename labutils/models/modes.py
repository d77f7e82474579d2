"""Training and evaluation mode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[nn.Module]:
    """Put `module` in evaluation mode for a while, then every part back as it was.

    Flags are set one by one, because an exported program's module refuses ``eval()``.
    """
    before = {part: part.training for part in module.modules()}
    try:
        for part in before:
            part.training = False
        yield module
    finally:
        for part, training in before.items():
            part.training = training
