"""Replace what the rules know: in PyTorch models, traced graphs, ONNX graphs and files."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import NothingMatchedError, UnknownNameError, UsageError
from ..onnxfile.file import OnnxFile
from .edits import edits_of, outline, record_edits_
from .report import Report
from .rule import Rule
from .rules.book import DEFAULT, select

if TYPE_CHECKING:
    import onnx
    from torch import nn
    from torch.export import ExportedProgram

LEVELS = ("auto", "module", "function", "graph", "onnx")
Rules = str | Rule | Mapping | Iterable["str | Rule | Mapping"]


def replace_(
    target: nn.Module | ExportedProgram | onnx.ModelProto,
    rules: Rules = DEFAULT,
    level: str = "auto",
    example_inputs: Any = None,
) -> Report:
    """Replace, in place, what the rules know, and report it.

    Parameters
    ----------
    target
        A PyTorch model, a graph of `torch.fx` or `torch.export`, or an ONNX model. It is changed
        in place, and left as it was when an error is raised. A model remains the same object of
        the same class: its layers are replaced, and where a forward itself must change, the
        instance gets a new ``forward`` (`restore_` undoes that).
    rules
        Names in `RULES` or `SETS` (``"exact"``, ``"lite"``), `Rule` objects, or a dict:
        ``{nn.GELU: nn.ReLU}``, ``{F.gelu: F.relu}``, ``{predicate: function of the module}``.
    level
        ``"module"`` replaces submodules; ``"function"`` bakes a function mode into the model's
        forward (needs `example_inputs`, to prove that it matched); ``"graph"`` traces the model
        and edits what its forward does; ``"onnx"`` rewrites an ONNX graph. ``"auto"`` takes the
        least invasive level that reaches every occurrence: for a PyTorch model modules, then
        traced patterns where a rule has some and they occur, then functions where the example
        inputs show that some are left; the report's notes say which and why.
    example_inputs
        For a PyTorch model a tensor or a tuple of arguments; for an ONNX model an array, a tuple
        or a dict by input name. With them the outputs before and after are compared, in eval mode.
        An ONNX model without them is compared on seeded random inputs.

    Returns
    -------
    Report
        What matched where, what was left and why, the numeric check.

    Raises
    ------
    SurgeryError
        Nothing matched (the message says what the model has instead), the outputs' shapes
        changed, or the model cannot be changed.
    UnknownNameError
        A rule or a level that does not exist.

    Examples
    --------
    >>> from labutils import surgery
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Hardswish(), nn.Flatten())
    >>> report = surgery.replace_(net, "exact")
    >>> [(match.where, match.rule) for match in report.matches]
    [('1', 'hardswish')]
    >>> net[1]
    CustomHardswish()
    """
    if level not in LEVELS:
        raise UnknownNameError("surgery level", level, LEVELS)
    report = _replace_(target, select(rules), level, example_inputs)
    for reports in _COLLECTING:
        reports.append(report)
    return report


def _replace_(target: Any, rules: tuple[Rule, ...], level: str, example_inputs: Any) -> Report:
    onnx, torch = sys.modules.get("onnx"), sys.modules.get("torch")
    if onnx is not None and isinstance(target, onnx.ModelProto):
        from .onnx_level import graph as onnx_graph

        if level not in ("auto", "onnx"):
            raise UsageError(f"Level {level!r} is for PyTorch models; an ONNX graph has 'onnx'.")
        before = outline(target)
        report = onnx_graph.replace_nodes_(target, rules, example_inputs)
        return replace(report, outline=before)
    if torch is not None and isinstance(target, torch.nn.Module):
        from .torch_level import torch_model

        if level == "onnx":
            raise UsageError("Level 'onnx' is for ONNX models: export the PyTorch model first.")
        before = outline(target)
        report = torch_model.replace_in_module_(target, rules, level, example_inputs)
        return replace(report, outline=before)
    if torch is not None and isinstance(target, torch.export.ExportedProgram):
        from .torch_level import torch_model

        if level not in ("auto", "graph"):
            raise UsageError(f"An exported program is a graph: level {level!r} is for modules.")
        return torch_model.replace_in_program_(target, rules, example_inputs)
    raise UsageError(
        f"replace_ takes a torch.nn.Module, an ExportedProgram or an onnx.ModelProto, not "
        f"{type(target).__name__}. For a file, call replace_file(source, destination)."
    )


_COLLECTING: list[list[Report]] = []  # one list per open `collect_reports`


@contextlib.contextmanager
def collect_reports() -> Iterator[list[Report]]:
    """Collect the report of every replacement made inside the ``with`` block, in any thread.

    Replacements that raise have no report. `replace_file`, `replay_` and `preview` count too.

    Examples
    --------
    >>> from torch import nn
    >>> with collect_reports() as reports:
    ...     _ = replace_(nn.Sequential(nn.Hardswish()), level="module")
    >>> [report.counts["hardswish"] for report in reports]
    [1]
    """
    reports: list[Report] = []
    _COLLECTING.append(reports)
    try:
        yield reports
    finally:
        _COLLECTING[:] = [other for other in _COLLECTING if other is not reports]


def replace_file(
    source: OnnxFile | str | Path,
    destination: str | Path,
    rules: Rules = DEFAULT,
    example_inputs: Any = None,
) -> Report:
    """Read an ONNX file, replace what the rules know, and write the result to another file.

    The destination is written in one step, and only when something was replaced. Its metadata says
    what was, and whether the rules were exact.

    Raises
    ------
    ModelFileError
        The source is missing or is not an ONNX model.
    SurgeryError
        As in `replace_`.
    """
    source = OnnxFile.of(source)
    model = source.copy()
    report = replace_(model, rules, "onnx", example_inputs)
    record_edits_(model, edits_of(report, model=source.path.stem))
    OnnxFile.write(destination, model)
    return report


def preview(
    target: nn.Module | onnx.ModelProto | OnnxFile | str | Path,
    rules: Rules = "exact",
    level: str = "auto",
    example_inputs: Any = None,
) -> dict[str, int]:
    """Return how often each rule would replace something; the model itself is not changed.

    The rules are tried on a copy of a PyTorch model; with `example_inputs` the copy is also run and
    compared.

    Parameters
    ----------
    target
        As in `replace_`, or an ONNX file.
    rules, level, example_inputs
        As in `replace_`.

    Raises
    ------
    SurgeryError
        As in `replace_`, except that rules that match nothing are counted as zero.
    UnknownNameError
        A rule or a level that does not exist.

    Examples
    --------
    >>> from labutils import surgery
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Hardswish(), nn.Flatten())
    >>> found = surgery.preview(net)
    >>> {rule: places for rule, places in found.items() if places}
    {'hardswish': 1}
    """
    import copy

    chosen = select(rules)
    if isinstance(target, str | Path | OnnxFile):
        target = OnnxFile.of(target).proto
    onnx = sys.modules.get("onnx")
    if onnx is not None and isinstance(target, onnx.ModelProto):
        from .onnx_level import graph as onnx_graph

        return onnx_graph.count_matches(target, chosen)
    try:
        return replace_(copy.deepcopy(target), chosen, level, example_inputs).counts
    except NothingMatchedError:
        return {rule.name: 0 for rule in chosen}


def restore_(model: nn.Module) -> bool:
    """Undo the function level: the model gets its original forward back.

    Returns False when no functions were replaced in it. Replaced modules stay replaced.
    """
    from .torch_level import functions

    return functions.restore_(model)
