"""What a network gives, by name: which output holds the scores of a classifier, and matching two.

An output counts as scores where it has one row of at least two float values per image: (n, C), or
the same values as (n, C, 1, 1), (n, 1, 1, C) or (n, 1, C), which are flattened exactly.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UnknownNameError
from ..onnxfile.edit import producers

if TYPE_CHECKING:
    import onnx

ONLY = "logits"
"""What the one output of a PyTorch module is called, as the lab's export calls it."""

LABELLING = ("ArgMax", "ArgMin", "TopK", "NonMaxSuppression")
"""Operators that choose: what they give are positions, or the few values at them."""

_CALLED_SCORES = re.compile(r"logit|score|prob|class|softmax|pred", re.IGNORECASE)
# These hand on what they read: in another type or shape, or under another name.
_HANDING_ON = (
    "Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose",
    "QuantizeLinear", "DequantizeLinear",
)  # fmt: skip


@dataclass(frozen=True)
class Output:
    """One output: its name, its shape (None or text where a size is open), whether it is float."""

    name: str
    shape: tuple[Any, ...]
    is_float: bool = True

    @property
    def has_scores(self) -> bool:
        """Whether its shape is that of a classifier's scores."""
        inner = self.shape[1:]
        at = {1: (0,), 2: (1,), 3: (0, 2)}.get(len(inner), ())  # where C may be; all else is 1
        for place in at:
            wide = not isinstance(inner[place], int) or inner[place] > 1
            if wide and all(size == 1 for i, size in enumerate(inner) if i != place):
                return self.is_float
        return False


def listed(entries: Iterable[Sequence[Any]]) -> tuple[Output, ...]:
    """Return outputs from ``(name, shape, type)``, as a session of ONNX Runtime says them."""
    floats = ("tensor(float)", "tensor(float16)", "tensor(double)")
    return tuple(Output(name, tuple(shape), kind in floats) for name, shape, kind in entries)


def of_arrays(arrays: Mapping[str, np.ndarray]) -> tuple[Output, ...]:
    """Return the outputs that these arrays are, images along the first axis."""
    return tuple(Output(n, a.shape, a.dtype.kind == "f") for n, a in arrays.items())


def scores_of(
    outputs: Sequence[Output],
    wanted: str | None = None,
    owner: str = "the network",
    model: onnx.ModelProto | None = None,
) -> str:
    """Return the name of the output that holds a classifier's scores, "" where there is none.

    Parameters
    ----------
    outputs
        All of them, in order.
    wanted
        The user's choice.
    owner
        What an error calls the network.
    model
        Its graph, where there is one: scores that another output is computed from are features,
        and what ArgMax or TopK gives is not scores.

    Raises
    ------
    UnknownNameError
        No output has that name; the message suggests the nearest.
    """
    if wanted:
        name = found_name(wanted, [output.name for output in outputs], owner)
        return name if next(o for o in outputs if o.name == name).has_scores else ""
    found = [output.name for output in outputs if output.has_scores]
    if model is not None:
        found = [name for name in found if labelling(model, name) is None]
        last = [name for name in found if not _is_read(model, name)]
        found = last or found
    called = [name for name in found if _CALLED_SCORES.search(name)]
    return next(iter(called or found), "")


def found_name(wanted: str, names: Iterable[str], owner: str) -> str:
    """Return the output that `wanted` means; UnknownNameError suggests the nearest."""
    known = list(names)
    name = wanted if wanted in known else _by_plain_name(known).get(plain_name(wanted))
    if name is None:
        raise UnknownNameError(f"output of {owner}", wanted, known)
    return name


def labelling(model: onnx.ModelProto, name: str) -> onnx.NodeProto | None:
    """Return the ArgMax, TopK or the like that a tensor comes from; None where it does not."""
    made = producers(model.graph.node)
    node = made.get(name)
    while node is not None and node.op_type in _HANDING_ON:
        node = made.get(node.input[0])
    return node if node is not None and node.op_type in LABELLING else None


def _is_read(model: onnx.ModelProto, name: str) -> bool:
    return any(name in node.input and node.op_type not in LABELLING for node in model.graph.node)


def as_scores(values: np.ndarray) -> np.ndarray:
    """Return scores as (n, classes): (n, C, 1, 1), (n, 1, 1, C) and (n, 1, C) hold the same."""
    return values.reshape(len(values), -1)


def named(given: Any, names: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a PyTorch module gives, by name.

    Parameters
    ----------
    given
        A tensor is `ONLY`; the keys of a dict and the fields of a named tuple are names; the
        entries of a list are ``output_0``, ``output_1``, ... Nested ones are joined by a dot.
    names
        Others, in order.

    Raises
    ------
    TypeError
        Something in it is not a tensor.
    """
    found = dict(_flat(given, ""))
    if names and len(names) != len(found):
        raise TypeError(f"{len(found)} outputs, {len(names)} names for them")
    return dict(zip(names, found.values(), strict=True)) if names else found


def _flat(given: Any, place: str) -> Iterable[tuple[str, Any]]:
    import torch

    if isinstance(given, torch.Tensor):
        yield place or ONLY, given
        return
    if isinstance(given, Mapping):
        entries = [(str(key), value) for key, value in given.items()]
    elif isinstance(given, list | tuple):
        fields = getattr(given, "_fields", None) or range(len(given))
        entries = [
            (f"output_{f}" if isinstance(f, int) and not place else str(f), value)
            for f, value in zip(fields, given, strict=True)
        ]
    else:
        raise TypeError(f"a {type(given).__name__}")
    for name, value in entries:
        yield from _flat(value, f"{place}.{name}" if place else name)


def matched(
    ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]
) -> tuple[dict[str, str], list[str]]:
    """Match two networks' outputs by name.

    Returns
    -------
    tuple
        The reference's name -> the candidate's; the reference's names that the candidate lacks. A
        single output is matched with a single output, whatever they are called.
    """
    if len(ours) == len(theirs) == 1:
        return dict(zip(ours, theirs, strict=True)), []
    plain = _by_plain_name(theirs)
    pairs = {}
    for name in ours:
        other = name if name in theirs else plain.get(plain_name(name))
        if other is not None:
            pairs[name] = other
    return pairs, [name for name in ours if name not in pairs]


def _by_plain_name(names: Iterable[str]) -> dict[str, str]:
    """Return the names by how QNN writes them; those that become one name are left out."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(plain_name(name), []).append(name)
    return {plain: same[0] for plain, same in found.items() if len(same) == 1}


def plain_name(name: str) -> str:
    """Return a name as QNN writes it: ASCII letters, digits and _, and no digit first.

    Every other byte of its UTF-8 is one _.

    Examples
    --------
    >>> plain_name("größe"), plain_name("2/a")
    ('gr____e', '_2_a')
    """
    return re.sub(rb"^(?=\d)", b"_", re.sub(rb"\W", b"_", name.encode())).decode()
