"""A network as text: layers by name, with their hyper-parameters; weights lie beside it by name."""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from .. import paths, untrusted, validation
from ..errors import ModelFileError, worded
from ..located_yaml import Fail
from . import shape_operators, tensor_operators  # noqa: F401 - registers the kinds
from .operator import KINDS, Operator, built

FORMAT = 1
_NAME = re.compile(r"\w+(\.\w+)*")
_OWN = ("name", "op", "from", "weights")
_MODULE = nn.Module()
_MOST_VALUES = 100_000  # in a text: some 6,000 layers


@dataclass(frozen=True)
class Layer:
    """One layer.

    Attributes
    ----------
    name
        Its path in the network: ``features.0.0``.
    operator
        Kind and hyper-parameters.
    inputs
        The names of the layers whose outputs it takes.
    weights
        What its weights are called beside the text: a prefix such as ``features.0.0``, to which
        ``.weight`` is added, or a pattern such as ``attention.in_proj_*``; empty for layers without
        weights, or whose weights have no prefix.
    """

    name: str
    operator: Operator
    inputs: tuple[str, ...]
    weights: str = ""

    def full_name(self, own: str) -> str:
        """Return what one of its weights is called beside the text."""
        if "*" in self.weights:
            return self.weights.replace("*", own)
        return f"{self.weights}.{own}" if self.weights else own


@dataclass(frozen=True)
class Description:
    """A whole network.

    Attributes
    ----------
    name
        What it is called.
    input
        Channels, height and width of a picture.
    layers
        In the order in which they are computed; ``input`` is the name of the picture.
    output
        The name of the layer that makes the logits.
    """

    name: str
    input: tuple[int, ...]
    layers: tuple[Layer, ...]
    output: str

    def to_yaml(self) -> str:
        """Return it as text, a line for each layer; `read` reads it back equal."""
        head = {"format": FORMAT, "name": self.name, "input": list(self.input)}
        text = yaml.safe_dump(head, sort_keys=False, default_flow_style=None)
        lines: list[str] = []
        before = "input"
        for layer in self.layers:
            lines.append("- " + _flow(_written(layer, before)))
            before = layer.name
        output = _flow(self.output)  # quoted where a name is a number: '3' of a plain Sequential
        text += f"output: {output}\nlayers:" + ("" if lines else " []")
        return "\n".join([text, *lines]) + "\n"

    def save(self, file: str | Path) -> None:
        """Write it as a YAML file."""
        paths.write_text(file, self.to_yaml())


def as_written(begin: str) -> str:
    """Return what a layer says of its weights, whose names begin so.

    Examples
    --------
    >>> as_written("features.0."), as_written("attention.in_proj_"), as_written("")
    ('features.0', 'attention.in_proj_*', '')
    """
    return begin.removesuffix(".") if begin.endswith(".") or not begin else f"{begin}*"


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, sort_keys=False, default_flow_style=True, width=10**9)
    return text.strip().removesuffix("\n...")


def _written(layer: Layer, before: str) -> dict[str, Any]:
    """Return a layer as plain values, without what is the default."""
    made: dict[str, Any] = {"name": layer.name, "op": layer.operator.kind}
    if layer.inputs != (before,):
        made["from"] = layer.inputs[0] if len(layer.inputs) == 1 else list(layer.inputs)
    for entry in dataclasses.fields(layer.operator):
        value = getattr(layer.operator, entry.name)
        if value != entry.default:
            made[entry.name] = list(value) if isinstance(value, tuple) else value
    return made | ({"weights": layer.weights} if layer.weights else {})


def load(file: str | Path) -> Description:
    """Return the description in a YAML file.

    Raises
    ------
    ModelFileError
        It cannot be read, or says something that is not a network; with file, line and key.
    """
    try:
        text = untrusted.text(file)
    except (OSError, ValueError) as error:
        raise ModelFileError(f"Cannot read {file}: {worded(error)}.") from None
    return read(text, Path(file).name)


@dataclass(frozen=True)
class _Head:
    name: str
    input: tuple[int, ...]
    output: str


def read(text: str, file: str = "the text") -> Description:
    """Return the description that YAML text holds; raises as `load` does."""
    from .. import located_yaml

    what = "a description of a network"
    data, fail = located_yaml.read(text, file, what, ModelFileError, _MOST_VALUES)
    data = validation.without_format(data, FORMAT, fail)
    if not isinstance(data, dict) or not isinstance(data.get("layers"), list):
        raise fail(("layers",), "expected a list of layers")
    rest = {key: value for key, value in data.items() if key != "layers"}
    head = validation.checked(_Head, rest, fail)
    if len(head.input) != 3 or min(head.input) < 1:
        raise fail(("input",), "expected channels, height and width")
    layers = _layers(data["layers"], fail)
    names = {"input", *(layer.name for layer in layers)}
    if head.output not in names:
        raise fail(
            ("output",), f"there is no layer named {head.output!r}{_near(head.output, names)}"
        )
    return Description(head.name, head.input, layers, head.output)


def _layers(listed: list[Any], fail: Fail) -> tuple[Layer, ...]:
    made: list[Layer] = []
    seen = {"input"}
    for index, values in enumerate(listed):
        layer = _layer(values, made[-1].name if made else "input", ("layers", index), fail)
        if layer.name in seen:
            raise fail(("layers", index, "name"), f"two layers are named {layer.name!r}")
        for name in layer.inputs:
            if name not in seen:
                words = f"there is no layer named {name!r} before this one{_near(name, seen)}"
                raise fail(("layers", index, "from"), words)
        seen.add(layer.name)
        made.append(layer)
    for index, layer in enumerate(made):
        inner = next((name for name in seen if name.startswith(layer.name + ".")), None)
        if inner:
            words = f"{inner} is inside {layer.name}, which is a layer itself"
            raise fail(("layers", index, "name"), words)
    return tuple(made)


def _layer(values: Any, before: str, path: tuple[str | int, ...], fail: Fail) -> Layer:
    if not isinstance(values, dict) or not isinstance(values.get("op"), str):
        raise fail((*path, "op"), "expected a layer with the key op, its kind")
    kind, name = values["op"], values.get("name")
    if kind not in KINDS:
        near = _near(kind, KINDS) or f". Known: {', '.join(KINDS)}"
        raise fail((*path, "op"), f"there is no kind of layers named {untrusted.shown(kind)}{near}")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise fail((*path, "name"), f"expected a name such as features.0, found {name!r}")
    if taken := next((part for part in name.split(".") if hasattr(_MODULE, part)), None):
        raise fail((*path, "name"), f"a module of PyTorch has something named {taken!r} itself")
    given, weights = values.get("from", before), values.get("weights", "")
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(word, str) for word in given):
        raise fail((*path, "from"), "expected the name of a layer, or a list of names")
    if not isinstance(weights, str):
        raise fail((*path, "weights"), "expected what the weights are called")
    rest = {key: value for key, value in values.items() if key not in _OWN}
    made = validation.checked(KINDS[kind], rest, fail, path)
    try:
        built(made)
    except ValueError as error:
        raise fail(path, f"PyTorch does not build it: {error}") from None
    return Layer(name, made, tuple(given), weights)


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""
