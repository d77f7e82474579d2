"""The API pages of the reader's edition: what each room offers, from its docstrings.

A room that exports names (``__all__``) shows those; one that does not shows its modules. Sphinx's
own autodoc and napoleon do the rest, so a page says what ``help()`` says.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import labutils

from .. import paths

FOLDER = "api"
EXTENSIONS = ("sphinx.ext.autodoc", "sphinx.ext.napoleon")
_NOT_FOR_USERS = {"labutils.commands", "labutils.lab.exercises"}
# Rooms export what everybody needs; these modules are for those who go further.
_ALSO = (
    "labutils.quantize.mixed",
    "labutils.quantize.training.qat",
    "labutils.runtime.phone",
    "labutils.train.norms",
)

CONFIG: dict[str, Any] = {
    "default_role": "code",  # `name` in a docstring
    "autodoc_typehints": "signature",
    "autodoc_typehints_format": "short",
    "python_use_unqualified_type_names": True,
    "maximum_signature_line_length": 70,  # a longer one gets a line for each parameter
    "napoleon_google_docstring": False,
    "napoleon_custom_sections": [("Attributes", "params_style")],
    "napoleon_use_rtype": False,
    "suppress_warnings": [
        "ref.python",  # `bytes` is also what some class calls its size
        # a second book in one process: Sphinx's own nodes are registered already
        "app.add_node",
        "app.add_directive",
        "app.add_role",
    ],
}
"""Sphinx's settings for pages made of docstrings."""

INDEX = """# Reference

What each room of `labutils` offers to code of yours, from its docstrings. The examples are run by
the lab's tests as they stand here.

| room | what is in it |
|---|---|
{rows}

```{{toctree}}
:hidden:

{pages}
```
"""


def write(source: Path, rooms: Sequence[str] | None = None) -> str:
    """Write one page per room below ``source/api``, and return the index's name for a toctree.

    Parameters
    ----------
    source
        The folder of Sphinx's sources.
    rooms
        Names such as ``compare``; all by default.
    """
    folder = paths.folder(source / FOLDER)
    rows, pages = [], []
    for name in _rooms() if rooms is None else rooms:
        room = importlib.import_module(f"labutils.{name}")
        sections = list(_sections(room, set()))
        if not sections:
            continue
        paths.write_text(folder / f"{name}.md", _page(name, room, sections))
        rows.append(f"| [{name}]({name}.md) | {_first_line(room)} |")
        pages.append(name)
    text = INDEX.format(rows="\n".join(rows), pages="\n".join(pages))
    paths.write_text(folder / "index.md", text)
    return f"{FOLDER}/index"


def _rooms() -> Iterator[str]:
    for found in pkgutil.iter_modules(labutils.__path__, "labutils."):
        if _is_public(found.name):
            yield found.name.removeprefix("labutils.")


def _is_public(name: str) -> bool:
    return name not in _NOT_FOR_USERS and not name.rpartition(".")[2].startswith("_")


def _sections(module: ModuleType, shown: set[Any]) -> Iterator[tuple[ModuleType, list[str]]]:
    """Yield the modules of a room, each with the names of its functions and classes, but once."""
    names = [name for name in _names(module) if getattr(module, name) not in shown]
    shown |= {getattr(module, name) for name in names}
    if names:
        yield module, names
    for found in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{module.__name__}."):
        if not _is_public(found.name):
            continue
        further = found.ispkg or not hasattr(module, "__all__") or found.name in _ALSO
        if further and not found.name.endswith(".__main__"):
            yield from _sections(importlib.import_module(found.name), shown)


def _names(module: ModuleType) -> Iterator[str]:
    """Yield functions and classes with a docstring: those exported, else those defined there."""
    listed = getattr(module, "__all__", None)
    for name in listed if listed is not None else vars(module):
        member = getattr(module, name)
        here = listed is not None or getattr(member, "__module__", "") == module.__name__
        if name.startswith("_") or not here or not inspect.getdoc(member):
            continue
        if inspect.isclass(member) or inspect.isfunction(member):
            yield name


def _page(name: str, room: ModuleType, sections: list[tuple[ModuleType, list[str]]]) -> str:
    parts = [f"# {name}\n\n{_directive('automodule', room.__name__)}"]
    for module, names in sections:
        if module is not room:
            title = module.__name__.removeprefix("labutils.")
            parts.append(f"## {title}\n\n{_directive('automodule', module.__name__)}")
        for entry in sorted(names, key=lambda entry: inspect.isclass(getattr(module, entry))):
            member = getattr(module, entry)
            kind = "autoclass" if inspect.isclass(member) else "autofunction"
            methods = ", ".join(_methods(member)) if inspect.isclass(member) else ""
            options = (f"members: {methods}",) if methods else ()
            parts.append(_directive(kind, f"{module.__name__}.{entry}", *options))
    return "\n\n".join(parts) + "\n"


def _methods(kind: type) -> list[str]:
    """Return what a class says of itself, without what its library's base class brings along."""
    found = []
    for name, member in vars(kind).items():
        function = getattr(member, "fget", getattr(member, "__func__", member))
        own = getattr(function, "__module__", "").startswith("labutils")
        if not name.startswith("_") and own and inspect.getdoc(member):
            found.append(name)
    return found


def _directive(kind: str, what: str, *options: str) -> str:
    lines = [f".. {kind}:: {what}", *(f"   :{option}" for option in options)]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def _first_line(module: ModuleType) -> str:
    return (inspect.getdoc(module) or "").split("\n\n")[0].replace("\n", " ").replace("|", "\\|")
