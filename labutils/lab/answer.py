"""Reading a learner's answer: calling it, and taking what it gives for a number, names or an array.

Whatever is wrong with an answer becomes `NotYet`, a sentence for the learner. Their function is
called with a limit on its time, and must leave what it is given as it was.
"""

from __future__ import annotations

import _thread
import contextlib
import decimal
import itertools
import math
import numbers
import reprlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

LIMIT_S = 30.0
"""Seconds that a learner's function may take; the checks themselves need less than one."""


class NotYet(Exception):  # noqa: N818 - an outcome that travels from a grader, not an error
    """What is wrong with an answer, a sentence for the learner; raised inside graders only."""


class StillTodo(Exception):  # noqa: N818 - an outcome as well; learners see the name
    """The learner's code still holds the stub's TODO."""


def _open(*_: Any, **__: Any) -> Any:
    raise StillTodo("TODO is still here: replace it with your own code, then run the cell again.")


class _Todo:
    """The placeholder in a stub; whatever is computed with it is not attempted yet."""

    __array_ufunc__ = None  # numpy hands `array * TODO` over to `__rmul__`
    __getitem__ = __len__ = __iter__ = __float__ = __index__ = _open
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __pow__ = __rpow__ = _open
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = _open
    __matmul__ = __rmatmul__ = __neg__ = __abs__ = __lt__ = __le__ = __gt__ = __ge__ = _open

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what Python and Jupyter ask any object for
            raise AttributeError(name)
        return _open()

    def __repr__(self) -> str:
        return "TODO"


TODO = _Todo()


# --- calling and reading -------------------------------------------------------------------------


def _placeholder(value: Any) -> bool:
    return isinstance(value, _Todo) or value is Ellipsis


def refuse_placeholders(answer: Any) -> None:
    """Raise `StillTodo` where an answer is TODO, `NotYet` where a part of it is."""
    parts = list(answer) if type(answer) in (tuple, list) else [answer]
    open_ = [_placeholder(part) for part in parts]
    if parts and all(open_):
        raise StillTodo
    if any(open_):
        raise NotYet(f"part {open_.index(True) + 1} of your answer is still TODO.")


def shown(value: Any) -> str:
    """Return a short text for any value, however broken its own repr is."""
    try:
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple) and shape:
            return f"a {type(value).__name__} of shape {tuple(shape)}"
        return reprlib.repr(value)
    except BaseException:  # whatever their own repr does
        return f"a {type(value).__name__}"


def in_words(error: BaseException) -> str:
    """Return an exception's type and its words, on one line."""
    try:
        words = " ".join(str(error).split())
    except BaseException:
        words = ""
    return f"{type(error).__name__}: {words[:300]}" if words else type(error).__name__


def call(function: Any, *arguments: Any, what: str = "your function") -> Any:
    """Call the learner's code; what it raises becomes `NotYet`, with its words.

    So does an endless loop, and a change of the arguments (arrays, tensors, lists, dicts and
    protobuf messages; a module is one's own business).
    """
    if not callable(function):
        raise NotYet(f"a function is expected, but this is {shown(function)}.")
    before = [_snapshot(argument) for argument in arguments]
    try:
        with _default_dtype_kept():
            result = _within_time(function, arguments, what)
    except (NotYet, StillTodo):  # from a call within this call
        raise
    except NotImplementedError:
        raise StillTodo from None
    except RecursionError:
        raise NotYet(f"{what} calls itself endlessly.") from None
    except KeyboardInterrupt:  # the interrupt key
        raise
    except BaseException as error:
        if isinstance(error, TypeError) and _Todo.__name__ in in_words(error):
            raise StillTodo from None  # a library was handed TODO, and names its type
        raise NotYet(f"{what} raised {in_words(error)}") from None
    refuse_placeholders(result)
    for argument, was in zip(arguments, before, strict=True):
        if _snapshot(argument) != was:
            raise NotYet(
                f"{what} writes into its input; everything else that reads that "
                f"{_kind(argument)} gets wrong values."
            )
    return result


@contextlib.contextmanager
def _default_dtype_kept() -> Iterator[None]:
    """Undo a change of torch's default dtype: every later cell would compute in another one."""
    torch = sys.modules.get("torch")
    before = torch.get_default_dtype() if torch else None
    try:
        yield
    finally:
        if torch:
            torch.set_default_dtype(before)


def _within_time(function: Callable, arguments: tuple[Any, ...], what: str) -> Any:
    """Call, and interrupt after `LIMIT_S`; only the main thread can be interrupted."""
    if threading.current_thread() is not threading.main_thread():
        return function(*arguments)
    lock, finished, struck = threading.Lock(), threading.Event(), threading.Event()

    def strike() -> None:
        with lock:
            if not finished.is_set():
                struck.set()
                _thread.interrupt_main()

    timer = threading.Timer(LIMIT_S, strike)
    timer.daemon = True
    try:
        with _interruptible():
            timer.start()
            try:
                return function(*arguments)
            finally:
                with lock:
                    finished.set()
                timer.cancel()
    except KeyboardInterrupt:
        if not struck.is_set():  # the learner's own interrupt key
            raise
        raise NotYet(
            f"{what} was stopped after {LIMIT_S:g} seconds. Does it loop forever?"
        ) from None


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Let an interrupt be raised, also where the process was started to ignore it (by ``&``)."""
    before = signal.getsignal(signal.SIGINT)
    ignored = before in (signal.SIG_IGN, signal.SIG_DFL)
    if ignored:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ignored:
            signal.signal(signal.SIGINT, before)


def _snapshot(value: Any) -> Any:
    """Return what compares equal as long as nobody has written into `value`."""
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if hasattr(value, "detach"):
        return _snapshot(value.detach().cpu().numpy())
    if isinstance(value, list | tuple):
        return [_snapshot(part) for part in value]
    if isinstance(value, dict):
        return [(key, _snapshot(part)) for key, part in value.items()]
    if hasattr(value, "SerializeToString"):
        return value.SerializeToString()
    return value if isinstance(value, str | int | float) else None


def _kind(value: Any) -> str:
    names = {np.ndarray: "array", list: "list", dict: "dictionary"}
    word = names.get(type(value))
    if word is None:
        word = "tensor" if hasattr(value, "detach") else "graph"
    return word


def number(value: Any, what: str = "a number") -> float:
    """Read a finite number: Python's (fractions, decimals), numpy's, a tensor of one element."""
    _refuse_text(value, what)
    if hasattr(value, "item") and getattr(value, "size", 1) != 0:
        try:
            value = value.item()
        except Exception:
            raise NotYet(f"{what} is expected, but this is {shown(value)}.") from None
    if isinstance(value, bool) or not isinstance(value, numbers.Real | decimal.Decimal):
        raise NotYet(f"{what} is expected, but this is {shown(value)}.")
    try:
        figure = float(value)
    except OverflowError:  # an integer beyond what a float can hold
        figure = math.inf
    if not abs(figure) < 1e300:  # NaN as well
        raise NotYet(f"{what} is expected, but this is {shown(value)}: not finite.")
    return figure


def whole(value: Any, what: str = "a whole number") -> int:
    """Read a whole number; 3.0 counts as one."""
    found = number(value, what)
    if found != int(found):
        raise NotYet(f"{what} is expected, but this is {shown(value)}.")
    return int(found)


def _refuse_text(value: Any, what: str) -> None:
    if value is None:
        raise NotYet(f"{what} is expected, but this is None (a forgotten return?).")
    if isinstance(value, str | bytes):
        raise NotYet(f"{what} is expected, but this is text: {shown(value)}.")


def words(value: Any, what: str = "text") -> str:
    """Read a piece of text."""
    if not isinstance(value, str):
        raise NotYet(f"{what} is expected, but this is {shown(value)}.")
    return value.strip()


def names(value: Any, what: str = "a set of names") -> set[str]:
    """Read several names: a set, list, tuple or array of texts (or the keys of a dict)."""
    if isinstance(value, Iterator):
        raise NotYet(f"this can be read only once, and then it is empty: {what} is expected.")
    if isinstance(value, dict) and value and all(isinstance(v, bool) for v in value.values()):
        raise NotYet(f"{what} is expected, not a yes or no for each: those with yes.")
    if isinstance(value, np.ndarray):
        value = value.ravel().tolist()
    kinds = set | frozenset | list | tuple | dict | type({}.keys()) | type({}.values())
    if not isinstance(value, kinds):
        raise NotYet(f"{what} is expected, but this is {shown(value)}.")
    return {words(name, "a name in it") for name in value}


def pair(value: Any, what: str) -> tuple[Any, Any]:
    """Read two things in order: a tuple, list, array or tensor of two."""
    if hasattr(value, "detach") or isinstance(value, np.ndarray):
        value = list(value) if getattr(value, "shape", ()) == (2,) else value
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise NotYet(f"a pair {what} is expected, but this is {shown(value)}.")
    return value[0], value[1]


def several(value: Any, what: str, most: int = 1000) -> list[Any]:
    """Read what a function gives in some order: a list, tuple, array, or whatever yields them."""
    if isinstance(value, str | bytes | set | frozenset) or not hasattr(value, "__iter__"):
        order = ": a set has no order" if isinstance(value, set | frozenset) else ""
        raise NotYet(f"{what} is expected, but this is {shown(value)}{order}.")
    found = call(lambda: list(itertools.islice(value, most + 1)))
    if len(found) > most:
        raise NotYet(f"{what} is expected, but yours never ends.")
    return found


def array(value: Any, shape: tuple[int, ...], what: str = "your function") -> np.ndarray:
    """Read a tensor, array or nested list of `shape` as float64."""
    if value is None:
        raise NotYet(f"{what} returned None (a forgotten return?).")
    try:
        value = value.detach().cpu().numpy() if hasattr(value, "detach") else value
        found = np.asarray(value, dtype=np.float64)
    except Exception:
        raise NotYet(f"{what} returned {shown(value)}, which is not an array of numbers.") from None
    if found.shape != shape:
        raise NotYet(f"{what} turned the shape {shape} into {found.shape}.")
    return found
