"""Answers outside the exercises' own catalogues, drawn from a seed.

For every exercise one generator of right answers, written differently from the reference, and one
of wrong answers: mutations of the reference, each named for its mistake. A generator takes a seeded
`random.Random`. Right ones come as (name, answer), wrong ones as (name, answer, words that the
message must hold; "" where any refusal will do).
"""

import importlib
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

from labutils.lab.exercises import NOTEBOOKS

Right = tuple[str, Any]
Wrong = tuple[str, Any, str]
_RIGHT: dict[str, Callable[[random.Random], Iterator[Right]]] = {}
_WRONG: dict[str, Callable[[random.Random], Iterator[Wrong]]] = {}

DECISIVE = {
    "00.1": ("right / n",),
    "01.1": ("inputs // groups", "kernel**2"),
    "02.1": (" - ERROR - ",),
    "02.2": ("onnx.defs.has",),
    "02.3": (".blockers", "startswith", "part + '.'"),
    "02.4": ("ERROR - Node", "split('onnx_')"),
    "03.1": ("clamp(0, 6)", "x + 3", "/ 6"),
    "03.2": ("9.98", "0.000998"),
    "03.3": ("clamp(0, 6)", "x + 3", "/ 6"),
    "03.4": ("set_submodule", "._modules", "setattr(parent"),
    "04.1": ("domain in", "domain == ''", "empty domain"),
    "04.2": ("cosines.min()", "cosines.mean()"),
    "04.3": ("not cosine", "isnan", "isfinite"),
    "05.1": ("/ 255", "min(low", "-low / scale"),
    "05.2": ("np.round", "np.clip", "code - zero_point"),
    "05.3": ("sqnr_db", "sorted("),
    "06.1": (".fp16",),
    "06.2": ("Wilson", "Proportion", "0.8928"),
    "06.3": ("paired_difference", "McNemar"),
    "07.1": ("nn.SiLU: nn.Hardswish",),
    "07.2": ("nn.Dropout(old.p",),
    "07.3": ("output[0] in", "not in user.input"),
    "07.4": ("torch.relu(x)", "pattern_rule(pattern"),
    "08.1": ("x.size", "squared[outside]"),
    "08.2": ("np.sqrt", "own / theirs"),
    "08.3": ("int8_trim", "features.0/"),
    "08.4": (".detach()", "codes.round()"),
    "09.1": (".tobytes()", "x.shape"),
    "09.2": (".get(", "[labels]", "enumerate"),
    "09.3": ("steps - 1", "0.75", "0.5 *"),
    "10.1": ("argsort", "np.abs"),
    "10.2": ("lost[", "/ saved"),
    "10.3": ("i > 0", "< last", "kernel**2"),
    "10.4": ("put_along_axis", "reshape("),
    "11.1": ("(2, 3, 0, 1)", "(2, 3, 1, 0)"),
    "11.2": ("- 1) * stride", "max(", "// 2"),
    "11.3": ("np.sqrt", "+ epsilon"),
    "11.4": ("self.negative_slope", "negative_slope:"),
    "12.1": ("np.stack", "axis=-1"),
    "12.2": ("[..., ::-1]", ".sum()"),
    "12.3": ("0.95 *", "min("),
    "12.4": ("itertools", "combinations"),
}
"""What decides in the reference solution, and must be in no message."""


def right(id: str) -> Callable:
    """Register the generator of right answers to an exercise."""
    return lambda generator: _RIGHT.setdefault(id, generator)


def wrong(id: str) -> Callable:
    """Register the generator of wrong answers to an exercise."""
    return lambda generator: _WRONG.setdefault(id, generator)


def right_answers(id: str, seed: int = 0) -> list[Right]:
    """Draw the right answers to an exercise."""
    importlib.import_module(f"answers.ex{id[:2]}")
    return list(_RIGHT[id](random.Random(f"{id} right {seed}")))


def wrong_answers(id: str, seed: int = 0) -> list[Wrong]:
    """Draw the wrong answers to an exercise."""
    importlib.import_module(f"answers.ex{id[:2]}")
    return list(_WRONG[id](random.Random(f"{id} wrong {seed}")))


def covered() -> set[str]:
    """Name the exercises that have both generators."""
    for notebook in NOTEBOOKS:
        importlib.import_module(f"answers.ex{notebook}")
    return set(_RIGHT) & set(_WRONG)


def leaks(chosen: Any, message: str, cell: str = "") -> list[str]:
    """Find what of the reference a message gives away: a line, the value, or what decides in it."""
    lines = {line.strip() for line in chosen.reference.splitlines()}
    lines -= {line.strip() for line in chosen.stub.splitlines()}
    found = [line for line in lines if len(line) > 8 and line in message]
    found += [part for part in DECISIVE[chosen.id] if part in message and part not in cell]
    value = chosen.value(chosen.reference)
    if isinstance(value, set):
        found += [name for name in value if name in message and name not in cell]
    elif isinstance(value, int | float):
        found += re.findall(rf"(?<![\d.]){re.escape(str(value))}(?![\d.]\d)", message)
    return found
