"""The edits of a surgery: what was replaced, as YAML, to replay it on other weights.

Edits name rules, not code, and carry the outline of the network that they were made for: its
layers (or nodes) with the shapes of their weights. `replay_` refuses another network and names the
first difference.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import MinLen

from .. import located_yaml, paths, typesetting, untrusted, validation
from ..errors import EarlierFormatWarning, UsageError, worded
from ..provenance import EDITS_KEY, edits_in
from .report import Report

if TYPE_CHECKING:
    import onnx
    from torch import nn


FORMAT = 1
"""Of the YAML; a newer one is refused."""

"""In an ONNX file's metadata_props: the edits that it went through, as JSON."""


@dataclass(frozen=True)
class Edit:
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
class Edits:
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

    steps: Annotated[tuple[Edit, ...], MinLen(1)]
    outline: tuple[str, ...] = field(repr=False)
    exact: bool = True
    made_for: str = ""
    model: str = ""

    def to_yaml(self) -> str:
        """Return the edits as YAML, every value of them, which `Edits.from_yaml` reads back."""
        head = (
            "# What surgery replaced, to replay it on other weights of the same network:\n"
            "# labutils repair MODEL --replay THIS.yaml -o FILE.onnx, or surgery.replay_.\n"
        )
        facts = self.to_dict()
        order = ("format", "model", "made_for", "exact", "steps")
        entries = {key: facts[key] for key in order} | {"outline": list(self.outline)}
        return head + located_yaml.written(entries)

    @classmethod
    def from_yaml(cls, text: str, source: str = "the edits") -> Edits:
        """Read edits.

        Raises
        ------
        UsageError
            Not the edits of a surgery; the message names the line.
        """
        what = "the edits of a surgery"
        return validation.read_as(cls, text, source, what, UsageError, newest=FORMAT, note=True)[0]

    @classmethod
    def read(cls, path: str | Path) -> Edits:
        """Read a file of edits; see `from_yaml`."""
        try:
            text = untrusted.text(path)
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read as edits: {worded(error)}.") from None
        edits = cls.from_yaml(text, str(path))
        if str(path).endswith(paths.EARLIER_EDITS):
            warnings.warn(
                f"{path} has the name of an earlier version, which called edits a recipe; it was "
                "read as edits.",
                EarlierFormatWarning,
                stacklevel=2,
            )
        return edits

    def write(self, path: str | Path) -> Path:
        """Write the edits as a YAML file."""
        paths.write_text(path, self.to_yaml())
        return Path(path)

    def __str__(self) -> str:
        kind = "exact" if self.exact else "APPROXIMATE"
        goal = f" for {self.made_for}" if self.made_for else ""
        name = self.model or "a network"
        lines = [f"Edits ({kind}){goal}, made with {name} of {len(self.outline)} layers or nodes:"]
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
        """Return the format and all values but the outline, for JSON."""
        facts = {"format": FORMAT} | asdict(self)
        facts.pop("outline")
        return json.loads(json.dumps(facts))


def outline(model: nn.Module | onnx.ModelProto) -> tuple[str, ...]:
    """Return one line per layer or node, with the shapes of its weights: what edits fit.

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


def edits_of(
    reports: Report | Sequence[Report],
    outline: Sequence[str] = (),
    *,
    made_for: str = "",
    model: str = "",
) -> Edits:
    """Return the edits of one surgery or several, done one after the other.

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
        Edit(
            rules=tuple(rule.name for rule in report.rules),
            level=report.level if "+" not in report.level else "auto",
            only={rule.name: list(rule.include) for rule in report.rules if rule.include},
            without={rule.name: list(rule.exclude) for rule in report.rules if rule.exclude},
            replaced={name: n for name, n in report.counts.items() if n},
        )
        for report in reports
    )
    exact = all(report.exact for report in reports)
    return Edits(steps, tuple(outline), exact, made_for, model)


def record_edits_(model: onnx.ModelProto, edits: Edits) -> None:
    """Write the edits into an ONNX model's metadata, in place, after earlier ones."""
    earlier = edits_in(model)
    kept = [entry for entry in model.metadata_props if entry.key != EDITS_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    value = json.dumps([*earlier, edits.to_dict()])
    model.metadata_props.add(key=EDITS_KEY, value=value)
