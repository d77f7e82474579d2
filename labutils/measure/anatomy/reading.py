"""What a network is made of: its stages with their parts, and the modules that run in one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ... import typesetting
from ...errors import UnknownNameError
from ...models import zoo
from . import parts, running
from .parts import ACTIVATIONS, Part

if TYPE_CHECKING:
    from torch import nn

    from .running import Call


@dataclass(frozen=True)
class Stage:
    """One stage of a network.

    Attributes
    ----------
    name, kind
        ``features.4``; ``convolution``, ``inverted residual``, ``classifier`` or the class's name.
    kernel, stride
        Of its depthwise convolution, else of its first; 0 where it has none.
    expanded
        Channels in the middle of an inverted residual, 0 elsewhere.
    gated
        Whether it has a squeeze-excitation.
    activation
        ``ReLU``, ``Hardswish``, ...; "" without one. The inner parts of a gate do not count.
    shortcut
        Whether its input is added to its output.
    entered, output
        Shapes of what enters and leaves it, without the batch: (channels, height, width).
    parts
        Its convolutions, linear layers and gates, in the order in which they ran.
    """

    name: str
    kind: str
    kernel: int
    stride: int
    expanded: int
    gated: bool
    activation: str
    shortcut: bool
    entered: tuple[int, ...]
    output: tuple[int, ...]
    parts: tuple[Part, ...]

    def part(self, role: str) -> Part | None:
        """Return the first part with this role."""
        return next((part for part in self.parts if part.role == role), None)


@dataclass(frozen=True, repr=False)
class Anatomy(typesetting.Shown):
    """The stages of a network, for an input of `input_shape` (NCHW)."""

    source: str
    input_shape: tuple[int, ...]
    stages: tuple[Stage, ...]

    def _table(self) -> list[tuple[str, ...]]:
        head = ("stage", "what", "kernel", "stride", "expanded to", "SE", "activation", "output")
        return [head, *(_words(stage) for stage in self.stages)]

    def __str__(self) -> str:
        return f"{self._title()}\n{_aligned(self._table())}"

    def _title(self) -> str:
        return f"{self.source} on an input of {_shape(self.input_shape)}"

    def _repr_html_(self) -> str:
        head, *rows = self._table()
        return typesetting.table(head, rows, self._title())


@dataclass(frozen=True)
class Step:
    """One leaf module at work; shapes are without the batch."""

    name: str
    what: str
    entered: tuple[int, ...]
    left: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class Walk(typesetting.Shown):
    """The modules inside a part of a network, in the order in which they ran.

    Attributes
    ----------
    inside
        The part, ``features.4``.
    steps
        One per call of a module that has no modules inside.
    """

    inside: str
    steps: tuple[Step, ...]

    NOTE = "Only modules are seen: an addition or a product written in forward() is not."

    def _table(self) -> list[tuple[str, ...]]:
        head = ("module", "what it does", "enters", "leaves")
        rows = ((s.name, s.what, _shape(s.entered), _shape(s.left)) for s in self.steps)
        return [head, *rows]

    def __str__(self) -> str:
        return f"Inside {self.inside}\n{_aligned(self._table())}\n{self.NOTE}"

    def _repr_html_(self) -> str:
        head, *rows = self._table()
        table = typesetting.table(head, rows, f"Inside {self.inside}")
        return table + typesetting.paragraph(self.NOTE)


def stages(model: nn.Module | zoo.Model, size: int | None = None) -> Anatomy:
    """Return the stages of a network, read from its modules and from one pass through it.

    Parameters
    ----------
    model
        A zoo model, or a module with ``features``.
    size
        Image side in pixels; default is the model's own.

    Raises
    ------
    UsageError
        The network is not divided into ``features``, or a file was given.
    """
    module, shape = running.taken(model, size)
    named = running.stage_modules(module)
    inner = {name: dict(parts.leaves(name, stage)) for name, stage in named.items()}
    watched = {name: part for group in (named, *inner.values()) for name, part in group.items()}
    calls = running.calls(module, watched, running.noise(module, shape))
    whole = {call.name: call for call in calls if call.name in named}  # a stage may never run
    found = [
        _stage(
            named[name],
            whole[name],
            parts.read([(leaves[call.name], call) for call in calls if call.name in leaves]),
        )
        for name, leaves in inner.items()
        if name in whole
    ]
    return Anatomy(type(module).__name__, shape, tuple(found))


def walk(model: nn.Module | zoo.Model, inside: str, size: int | None = None) -> Walk:
    """Return the modules that run inside `inside`, in order, with the shapes they see.

    Parameters
    ----------
    model, size
        As in `stages`.
    inside
        A module's name, such as ``"features.4"``; "" is the whole network.

    Raises
    ------
    UnknownNameError
        The network has no such module.
    """
    module, shape = running.taken(model, size)
    names = dict(module.named_modules())
    if inside not in names:
        raise UnknownNameError("module", inside, names)
    prefix = f"{inside}." if inside else ""
    leaves = {
        name: part
        for name, part in names.items()
        if (name == inside or name.startswith(prefix)) and not any(part.children())
    }
    steps = (
        Step(name, _deed(leaves[name]), entered, left)
        for name, entered, left in running.calls(module, leaves, running.noise(module, shape))
    )
    return Walk(inside or type(module).__name__, tuple(steps))


def _stage(module: nn.Module, call: Call, found: tuple[Part, ...]) -> Stage:
    own = type(module).__name__
    plain = [part for part in found if part.role != "squeeze-excitation"]
    deep = [part for part in plain if part.role == "depthwise"]
    chief = next((part for part in (*deep, *plain) if part.kernel), None)
    spoken = [part.activation for part in plain] or [own if own in ACTIVATIONS else ""]
    return Stage(
        name=call.name,
        kind=_kind(call.name, module, found),
        kernel=chief.kernel if chief else 0,
        stride=chief.stride if chief else 0,
        expanded=deep[0].channels if deep else 0,
        gated=len(plain) < len(found),
        activation=next(filter(None, spoken), ""),
        shortcut=bool(getattr(module, "use_res_connect", False)),
        entered=call.entered,
        output=call.left,
        parts=found,
    )


def _kind(name: str, module: nn.Module, found: Sequence[Part]) -> str:
    kind = type(module).__name__
    if kind == "InvertedResidual":
        return "inverted residual"
    if name == "classifier":
        return "classifier"
    inside = {type(m).__name__ for m in module.modules()}
    plain = any(part.kernel for part in found) and "InvertedResidual" not in inside
    return "convolution" if plain else kind


def _deed(part: nn.Module) -> str:
    from torch import nn

    kind = type(part).__name__
    if not isinstance(part, nn.Conv2d):
        return kind
    side = part.kernel_size[0]
    how = "depthwise" if parts.depthwise(part) else "pointwise" if side == 1 else "full"
    stride = f", stride {part.stride[0]}" if part.stride[0] > 1 else ""
    return f"Conv2d {side}x{side} {how}{stride}"


def _words(stage: Stage) -> tuple[str, ...]:
    what = stage.kind + (" + shortcut" if stage.shortcut else "")
    numbers = (str(n) if n else "" for n in (stage.kernel, stage.stride, stage.expanded))
    return (
        stage.name,
        what,
        *numbers,
        "SE" if stage.gated else "",
        stage.activation,
        _shape(stage.output),
    )


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _aligned(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
