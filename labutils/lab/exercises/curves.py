"""Comparing a learner's activation with PyTorch's own, on values, and saying how it differs."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..answer import NotYet, array, call, in_words, shown

if TYPE_CHECKING:
    import torch

_EXACT = 1e-6
_SPOTS = (-4.0, -1.0, 0.0, 1.0, 4.0, 20.0)  # where an error is reported, if there is one
REFUSED = ("hardsigmoid", "hardswish", "hardsigmoid_", "hardswish_")


def _points() -> torch.Tensor:
    """Every part of the curves, the kinks, and both sides of them; four dimensions."""
    import torch

    kinks = torch.tensor([-3.0, 3.0, -2.994, 2.994, -3.01, 3.01, -0.0, -10.0, *_SPOTS])
    return torch.cat([torch.linspace(-8, 8, 146), kinks]).reshape(2, 4, 4, 5)


@contextlib.contextmanager
def watched() -> Iterator[set[str]]:
    """Collect the names of the aten operators that run."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen: set[str] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # noqa: ANN001
            seen.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    with Watch():
        yield seen


def judge_curve(function: Any, exact: Any, what: str) -> None:
    """Compare a layer or function with PyTorch's own, on values; say what kind of wrong it is."""
    import torch

    for x in (_points(), _points().double(), torch.tensor([-1.5])):
        with torch.no_grad(), watched() as operators:
            y = call(function, x.clone(), what=what)
        if not isinstance(y, torch.Tensor):
            raise NotYet(f"{what} must return a tensor, and returned {shown(y)}.")
        found, true = array(y, tuple(x.shape), what), exact(x).double().numpy()
        if not np.abs(found - true).max() <= _EXACT:  # NaN is not, either
            raise NotYet(_explain_curve(found, true, x.double().numpy(), what))
        if operators & set(REFUSED):
            raise NotYet(
                f"right values, but {what} calls the very function that the converter refuses: the "
                "exported graph would have the same node again."
            )
        if y.dtype != x.dtype:
            raise NotYet(
                f"{what} turns {x.dtype} into {y.dtype}; the next layer expects the former."
            )


def judge_gradient(function: Any, exact: Any, what: str) -> None:
    """Compare the gradient with that of PyTorch's own, beside the kinks."""
    import torch

    x = torch.tensor([-20.0, -4.0, -2.5, -1.0, 0.0, 1.0, 2.5, 4.0, 20.0], requires_grad=True)
    y = call(function, x, what=what)
    if not y.requires_grad:
        raise NotYet(
            f"right values, but no gradient comes back through {what}: a network that contains it "
            "cannot be trained further, as notebook 07 does. Something cuts the gradient off."
        )
    (found,) = torch.autograd.grad(y.sum(), x)
    (true,) = torch.autograd.grad(exact(x).sum(), x)
    wrong = torch.nonzero(~torch.isclose(found, true, atol=1e-5)).ravel().tolist()
    if wrong:
        at = 5 if 5 in wrong else wrong[0]
        raise NotYet(
            f"right values, but the gradient is not the original's: at x = {x[at].item():g} it "
            f"is {found[at].item():.4g}. Part of it is cut off."
        )


def judge_export(function: Any, what: str) -> None:
    """Export a layer or function and refuse operators that SNPE 2.7's table does not know."""
    import torch

    from ... import targets

    class Layer(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    with tempfile.TemporaryDirectory(prefix="labutils-") as folder:
        file = Path(folder, "layer.onnx")
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                torch.onnx.export(
                    Layer().eval(), (torch.zeros(1, 2, 4, 4),), file, opset_version=17, dynamo=False
                )
            nodes = targets.check(file, "snpe-2.7").nodes
        except Exception as error:
            raise NotYet(f"{what} cannot be exported: {in_words(error)}") from None
    if all(node.op_type in ("Constant", "Identity") for node in nodes):
        raise NotYet(
            f"right values, but {what} leaves PyTorch on the way: the exported graph does not "
            "depend on x any more."
        )
    foreign = sorted({n.op_type for n in nodes if n.verdict in ("unknown", "unsupported")})
    if foreign:
        raise NotYet(
            f"right values, but {what} exports to {', '.join(foreign)}, which the table of SNPE "
            "2.7 does not list: unknown is not supported. It accepts Add, Mul, Div and Clip."
        )


def _explain_curve(found: np.ndarray, true: np.ndarray, x: np.ndarray, what: str) -> str:
    error = np.abs(found - true)
    worst = float(np.nanmax(error)) if not np.isnan(error).all() else np.inf
    at = float(x.flat[int(np.nanargmax(np.where(np.isnan(error), np.inf, error)))])
    inner = np.abs(x) < 2.9
    if worst < 5e-3 and 2.9 < abs(at) < 3.1:
        return (
            f"nearly: {what} is off by {worst:.1e} at |x| = {abs(at):.3f}. The slope was rounded; "
            "an exact function is expected, and a float has more than three digits."
        )
    if np.allclose(found[inner], true[inner], atol=_EXACT):
        return f"right between -3 and 3, but at x = {at:g} {what} gives {_at(found, x, at)}."
    if np.allclose(found * x, true, atol=_EXACT):
        return f"{what} gives the gate alone: the input itself is not multiplied by it."
    spots = [spot for spot in _SPOTS if not error.flat[_index(x, spot)] <= 1e-3]
    at = spots[0] if spots else at
    return f"at x = {at:g} {what} gives {_at(found, x, at)}: another curve."


def _at(found: np.ndarray, x: np.ndarray, at: float) -> str:
    return f"{float(found.flat[_index(x, at)]):.4g}"


def _index(x: np.ndarray, at: float) -> int:
    return int(np.argmin(np.abs(x - at)))
