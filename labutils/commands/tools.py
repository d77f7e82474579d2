"""The command that looks after other vendors' tools: list, install, remove, probe."""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .options import command, emit, say

if TYPE_CHECKING:
    from ..tools import calling, environment

_USE = "labutils tools list | install NAME | remove NAME | probe [NAME ...]"


def add(commands: Any) -> None:
    """Add the parser of this command."""
    text = "Environments of other vendors' tools, whose pins conflict with the lab's."
    parser = command(commands, "tools", _tools, text)
    actions = ("list", "install", "remove", "probe")
    what = "list: what there is; install, remove: one tool; probe: start what is installed"
    parser.add_argument("action", choices=actions, help=what)
    parser.add_argument("names", metavar="NAME", nargs="*", help="as `labutils tools list` says")
    accept = "of a proprietary tool, which is never installed without it"
    parser.add_argument(
        "--accept-licence", action="store_true", help=f"accept the licence {accept}"
    )


@dataclass(frozen=True)
class Listing:
    """All tools, and their state on this machine."""

    tools: tuple[environment.Environment, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for ``--json``."""
        return {"tools": [tool.to_dict() for tool in self.tools]}

    def __str__(self) -> str:
        rows = [(tool.lock.name, tool.state, _megabytes(tool), _said(tool)) for tool in self.tools]
        name, state, size = (max(len(row[i]) for row in rows) for i in range(3))
        lines = [f"{a:<{name}}  {b:<{state}}  {c:>{size}}  {d}" for a, b, c, d in rows]
        return "\n".join([*lines, "Sizes in parentheses: what an installation takes."])


def _said(tool: environment.Environment) -> str:
    needs = f"{tool.lock.licence}; Python {' or '.join(tool.lock.python)}"
    asked = "; asks for --accept-licence" if tool.lock.accepted_by else ""
    return f"{tool.lock.title} [{needs}{asked}]"


def _megabytes(tool: environment.Environment) -> str:
    size = f"{tool.bytes / 1e6:,.0f} MB"
    return size if tool.bytes else f"({tool.lock.megabytes:,} MB)"


@dataclass(frozen=True)
class Probes:
    """What the tools answered that were started."""

    tools: tuple[calling.Probe, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for ``--json``."""
        return {"tools": [asdict(tool) for tool in self.tools]}

    def __str__(self) -> str:
        lines = [
            f"{tool.name}: "
            + (tool.problem or "works: " + ", ".join(f"{n} {v}" for n, v in tool.versions.items()))
            for tool in self.tools
        ]
        return "\n".join(
            lines or ["No tool is installed: `labutils tools list` says what there is."]
        )


@dataclass(frozen=True)
class Removed:
    """What `labutils tools remove` freed."""

    name: str
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for ``--json``."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.bytes:
            return f"{self.name} was not installed."
        return f"{self.name} was removed: {self.bytes / 1e6:,.0f} MB."


def _tools(chosen: argparse.Namespace) -> int:
    if chosen.action in ("install", "remove") and len(chosen.names) != 1:
        raise UsageError(f"Name one tool to {chosen.action}. {_USE}")
    if chosen.action == "list" and chosen.names:
        raise UsageError(_USE)
    if chosen.accept_licence and chosen.action != "install":
        raise UsageError("--accept-licence goes with `labutils tools install NAME`.")
    return _ACTIONS[chosen.action](chosen)


def _list(chosen: argparse.Namespace) -> int:
    from ..tools import environment, lock

    emit(chosen, Listing(tuple(map(environment.survey, lock.names()))))
    return 0


def _install(chosen: argparse.Namespace) -> int:
    from ..tools import environment

    (name,) = chosen.names
    there = environment.survey(name).state == "installed"
    made = environment.install(
        name, accept=chosen.accept_licence, echo=lambda line: say(chosen, line)
    )
    if chosen.json:
        emit(chosen, made)
        return 0
    word = "is installed already" if there else "is installed"
    print(f"{name} {word}: {made.bytes / 1e6:,.0f} MB in {made.folder}.")
    return 0


def _remove(chosen: argparse.Namespace) -> int:
    from ..tools import environment

    (name,) = chosen.names
    emit(chosen, Removed(name, environment.remove(name)))
    return 0


def _probe(chosen: argparse.Namespace) -> int:
    from ..tools import calling, environment, lock

    names = chosen.names or [
        name for name in lock.names() if environment.survey(name).state != "absent"
    ]
    found = Probes(tuple(map(calling.probe, names)))
    emit(chosen, found)
    return 1 if any(tool.problem for tool in found.tools) else 0


_ACTIONS = {"list": _list, "install": _install, "remove": _remove, "probe": _probe}
