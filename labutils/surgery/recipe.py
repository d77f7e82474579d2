"""The recipe of a surgery: what was replaced, as YAML, to do it again to other weights.

A recipe names rules, not code, and carries the outline of the network that it was made for: its
layers (or nodes) with the shapes of their weights. `replay_` refuses another network and names the
first difference.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import located_yaml, paths, typesetting, untrusted
from ..errors import UsageError
from .report import Report

if TYPE_CHECKING:
    import onnx
    from torch import nn


FORMAT = 1
METADATA_KEY = "labutils.surgery"
"""In an ONNX file's metadata_props: the steps of the recipe that it went through, as JSON."""


@dataclass(frozen=True)
class Step:
    """One call of `replace_`.

    Attributes
    ----------
    rules
        Names in the rule book, or of the user's own rules.
    level
        As in `replace_`.
    only, without
        Rule name -> globs on module paths, where a rule was limited by them.
    replaced
        Rule name -> places, to be met again.
    """

    rules: tuple[str, ...]
    level: str = "auto"
    only: dict[str, list[str]] = field(default_factory=dict)
    without: dict[str, list[str]] = field(default_factory=dict)
    replaced: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """What was done to a network, and which network that was.

    Attributes
    ----------
    steps
        In order.
    outline
        One line per layer or node of the network before the first step; see `outline`.
    exact
        Whether every rule promises the same result.
    made_for
        A target's name, or "".
    model
        What the network was called.
    """

    steps: tuple[Step, ...]
    outline: tuple[str, ...] = field(repr=False)
    exact: bool = True
    made_for: str = ""
    model: str = ""

    def to_yaml(self) -> str:
        """Return the recipe as YAML, which `Recipe.from_yaml` reads back."""
        import yaml

        facts = asdict(self)
        steps = [{k: _plain(v) for k, v in step.items() if v} for step in facts["steps"]]
        entries = {
            "format": FORMAT,
            "model": self.model,
            "made_for": self.made_for,
            "exact": self.exact,
            "steps": steps,
            "outline": list(self.outline),
        }
        head = (
            "# What surgery replaced, to do it again to other weights of the same network:\n"
            "# labutils repair MODEL --recipe THIS.yaml -o FILE.onnx, or surgery.replay_.\n"
        )
        return head + yaml.safe_dump(entries, sort_keys=False, width=100, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str, source: str = "the recipe") -> Recipe:
        """Read a recipe.

        Raises
        ------
        UsageError
            Not a recipe; the message names the line.
        """
        data, fail = located_yaml.read(text, source, "a recipe", UsageError)
        return _read(data, fail)

    @classmethod
    def read(cls, path: str | Path) -> Recipe:
        """Read a recipe file; see `from_yaml`."""
        try:
            text = untrusted.text(path)
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read as a recipe: {error}.") from None
        return cls.from_yaml(text, str(path))

    def write(self, path: str | Path) -> Path:
        """Write the recipe as a YAML file."""
        paths.write_text(path, self.to_yaml())
        return Path(path)

    def __str__(self) -> str:
        kind = "exact" if self.exact else "APPROXIMATE"
        goal = f" for {self.made_for}" if self.made_for else ""
        name = self.model or "a network"
        lines = [f"Recipe ({kind}){goal}, made with {name} of {len(self.outline)} layers or nodes:"]
        for number, step in enumerate(self.steps, start=1):
            done = ", ".join(f"{n} x {rule}" for rule, n in step.replaced.items() if n)
            places = [place for listed in step.only.values() for place in listed]
            only = f", only in {', '.join(places[:3])}" if places else ""
            more = f" and {len(places) - 3} more" if len(places) > 3 else ""
            lines.append(
                f"  {number}. level {step.level}: {done or ', '.join(step.rules)}{only}{more}"
            )
        return "\n".join(lines)

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return typesetting.listing(str(self))

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the outline as plain values, for JSON."""
        facts = asdict(self)
        facts.pop("outline")
        return json.loads(json.dumps(facts))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def outline(model: nn.Module | onnx.ModelProto) -> tuple[str, ...]:
    """Return one line per layer or node, with the shapes of its weights: what a recipe fits.

    Weights' values do not count. Nor do Identity and Constant nodes, which the exporter writes or
    leaves out by the weights' values, or ONNX nodes' names, which differ between exporters.

    Examples
    --------
    >>> from torch import nn
    >>> outline(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
    ('0 Conv2d 8x3x3x3 8', '1 ReLU')
    """
    onnx = sys.modules.get("onnx")
    if onnx is not None and isinstance(model, onnx.ModelProto):
        return tuple(_node_lines(model))
    lines = []
    for path, module in model.named_modules():
        own = [_shape(p.shape) for p in module.parameters(recurse=False)]
        if own or not next(module.children(), None):
            lines.append(" ".join([path or "(the model)", type(module).__name__, *own]))
    return tuple(lines)


def _node_lines(model: onnx.ModelProto) -> Iterable[str]:
    shapes = {tensor.name: _shape(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            continue
        if node.op_type == "Identity":  # equal weights are stored once
            shapes[node.output[0]] = shapes.get(node.input[0], "")
            continue
        own = [shapes[name] for name in node.input if shapes.get(name)]
        yield " ".join([node.op_type, *own])


def _shape(dims: Iterable[int]) -> str:
    return "x".join(map(str, dims))


def recipe_of(
    reports: Report | Sequence[Report],
    outline: Sequence[str] = (),
    *,
    made_for: str = "",
    model: str = "",
) -> Recipe:
    """Return the recipe of one surgery or several, done one after the other.

    Parameters
    ----------
    reports
        From `replace_`, in order.
    outline
        Of the network before; the first report has it.
    made_for, model
        For a reader.
    """
    reports = [reports] if isinstance(reports, Report) else list(reports)
    outline = outline or reports[0].outline
    steps = tuple(
        Step(
            rules=tuple(rule.name for rule in report.rules),
            level=report.level if "+" not in report.level else "auto",
            only={rule.name: list(rule.include) for rule in report.rules if rule.include},
            without={rule.name: list(rule.exclude) for rule in report.rules if rule.exclude},
            replaced={name: n for name, n in report.counts.items() if n},
        )
        for report in reports
    )
    exact = all(report.exact for report in reports)
    return Recipe(steps, tuple(outline), exact, made_for, model)


def _read(data: Any, fail: located_yaml.Fail) -> Recipe:
    """Check `data` against the fields, and name the line of the first fault."""
    _mapping(data, (), fail, {
        "format": int, "model": str, "made_for": str, "exact": bool, "steps": list, "outline": list,
    }, ("format", "steps", "outline"))  # fmt: skip
    if data["format"] != FORMAT:
        raise fail(
            ("format",), f"format {untrusted.shown(data['format'])}; this lab reads {FORMAT}"
        )
    _texts(data["outline"], ("outline",), fail)
    steps = tuple(_step(step, ("steps", i), fail) for i, step in enumerate(data["steps"]))
    if not steps:
        raise fail(("steps",), "no step")
    known = {"exact": True, "made_for": "", "model": ""}
    rest = {key: data.get(key, default) for key, default in known.items()}
    return Recipe(steps, tuple(data["outline"]), **rest)


def _step(data: Any, path: tuple, fail: located_yaml.Fail) -> Step:
    types = {"rules": list, "level": str, "only": dict, "without": dict, "replaced": dict}
    _mapping(data, path, fail, types, ("rules",))
    _texts(data["rules"], (*path, "rules"), fail)
    for key in ("only", "without"):
        for name, globs in data.get(key, {}).items():
            if not isinstance(globs, list):
                raise fail((*path, key, name), "expected a list of globs")
            _texts(globs, (*path, key, name), fail)
    for name, n in data.get("replaced", {}).items():
        if not isinstance(n, int) or isinstance(n, bool):
            raise fail((*path, "replaced", name), "expected a whole number")
    return Step(**{f.name: _frozen(data[f.name]) for f in fields(Step) if f.name in data})


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _mapping(
    data: Any, path: tuple, fail: located_yaml.Fail, types: dict[str, type], needed: Sequence[str]
) -> None:
    if not isinstance(data, dict):
        raise fail(path, f"expected a mapping, found {type(data).__name__}")
    for key, value in data.items():
        if key not in types:
            raise fail(
                (*path, key), f"unknown key {untrusted.shown(key)}; known: {', '.join(types)}"
            )
        wrong_bool = isinstance(value, bool) and types[key] is not bool
        if not isinstance(value, types[key]) or wrong_bool:
            wanted = types[key].__name__
            raise fail((*path, key), f"expected {wanted}, found {untrusted.shown(value)}")
    for key in needed:
        if key not in data:
            raise fail(path, f"the key {key!r} is missing")


def _texts(values: list, path: tuple, fail: located_yaml.Fail) -> None:
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise fail((*path, index), f"expected text, found {untrusted.shown(value)}")


def describe_(model: onnx.ModelProto, recipe: Recipe) -> None:
    """Write the recipe's steps into an ONNX model's metadata, in place, after earlier ones."""
    earlier = recipes_in(model)
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    value = json.dumps([*earlier, recipe.to_dict()])
    model.metadata_props.add(key=METADATA_KEY, value=value)


def recipes_in(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """Return the recipes that an ONNX model's metadata says it went through, oldest first."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            try:
                return list(untrusted.json_value(entry.value))
            except (ValueError, TypeError):
                return []
    return []
