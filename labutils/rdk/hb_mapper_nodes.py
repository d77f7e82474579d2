"""What an hb_mapper YAML says of single nodes: where they run, and in how many bits.

``node_info`` says all of it; ``set_node_data_type`` (of outputs), ``run_on_cpu`` and ``run_on_bpu``
are its predecessors (rdk_doc, ptq_process.md at 0e03fc39).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from .. import located_yaml, untrusted

_TYPES = {"int8": 8, "int16": 16}
_TYPED = re.compile(r"InputType(\d*)|OutputType")


@dataclass(frozen=True)
class Node:
    """An entry of ``node_info``: where a node runs, and in how many bits, if that is said.

    Attributes
    ----------
    on
        ``BPU`` or ``CPU``.
    inputs, output
        Bits of all inputs, and of what it writes; None where they are not said.
    each
        (which input, bits) of those inputs that have their own.
    """

    on: str = "BPU"
    inputs: int | None = None
    output: int | None = None
    each: tuple[tuple[int, int], ...] = ()

    @property
    def widths(self) -> set[int]:
        """Every number of bits of what it reads and writes: 8 where none is said."""
        inputs = {bits for _, bits in self.each}
        if self.inputs or not inputs:
            inputs.add(self.inputs or 8)
        return {self.output or 8, *inputs}

    def entry(self) -> dict[str, str]:
        """Return it as ``node_info`` says it."""
        inputs = [("InputType", self.inputs), *((f"InputType{i}", bits) for i, bits in self.each)]
        said = [*inputs, ("OutputType", self.output)]
        return {"ON": self.on} | {key: f"int{bits}" for key, bits in said if bits}


def read_(
    key: str, value: Any, path: tuple[str, str], fail: located_yaml.Fail, found: dict[str, Node]
) -> None:
    """Add what a setting says of single nodes to what others said of them.

    Parameters
    ----------
    key, value
        The setting; of ``node_info``, ``set_node_data_type``, ``run_on_cpu`` and ``run_on_bpu``,
        others say nothing of nodes.
    path, fail
        Where it stands, and what makes the error.
    found
        Name -> node; changed in place.
    """
    if key in ("run_on_cpu", "run_on_bpu"):
        if not isinstance(value, str | int):
            raise fail(path, f"expected names with ; between them, found {type(value).__name__}")
        for name in str(value).split("; "):
            found[name] = replace(found.get(name, Node()), on=key[-3:].upper())
    elif key in ("node_info", "set_node_data_type") and isinstance(value, str):
        for part in value.split("; "):
            name, _, kind = part.rpartition(":")
            if kind not in _TYPES or not name:
                raise fail(path, f"{untrusted.shown(part)} is not NODE:int16")
            before, bits = found.get(name, Node()), _TYPES[kind]
            inputs = bits if key == "node_info" else before.inputs  # the other is of outputs
            found[name] = replace(before, inputs=inputs, output=bits)
    elif key in ("node_info", "set_node_data_type"):
        if not isinstance(value, dict):
            raise fail(path, f"expected a mapping of nodes, found {type(value).__name__}")
        for name, said in value.items():
            before = found.get(str(name), Node())
            found[str(name)] = _node(said, before, (*path, name), fail)


def _node(said: Any, before: Node, path: tuple[Any, ...], fail: located_yaml.Fail) -> Node:
    if not isinstance(said, dict):
        raise fail(path, "expected ON, InputType and OutputType")
    plain = {"ON" if key is True else str(key): value for key, value in said.items()}
    on = plain.pop("ON", before.on)  # an unquoted ON is true in YAML
    if on not in ("BPU", "CPU"):
        raise fail(path, f"ON: {untrusted.shown(on)} is not one of BPU, CPU")
    inputs, output, each = before.inputs, before.output, dict(before.each)
    for key, value in plain.items():
        named = _TYPED.fullmatch(key)
        if named is None:
            raise fail((*path, key), "unknown; known: ON, InputType, InputType0 ..., OutputType")
        if value not in _TYPES:
            raise fail((*path, key), f"{untrusted.shown(value)} is not one of int8, int16")
        if key == "OutputType":
            output = _TYPES[value]
        elif named[1]:
            each[int(named[1])] = _TYPES[value]
        else:
            inputs = _TYPES[value]
    return Node(on, inputs, output, tuple(sorted(each.items())))
