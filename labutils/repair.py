"""Where targets and surgery meet: which rules would mend what a target refuses, and doing it.

Only exact rules are offered: the repaired model computes what the original computes, and is
compared with it all the same.
"""

from __future__ import annotations

import html
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import data, export, paths, quantize, runtime, surgery, targets, zoo
from .errors import SurgeryError, TranslationError, UsageError

GATE_IMAGES = 32
CALIBRATION_IMAGES = 256

_WRAPPED = 'style="white-space:pre-wrap;word-break:normal"'  # JupyterLab breaks within words


@dataclass(frozen=True)
class Plan:
    """What blocks a model on a target, and what would mend it.

    Attributes
    ----------
    check
        The model against the target's table.
    rules
        Rule name -> number of blocking nodes that it removes.
    unrepairable
        Blocking nodes that no exact rule removes.
    """

    check: targets.CheckReport
    rules: dict[str, int]
    unrepairable: tuple[targets.NodeVerdict, ...]

    @property
    def needed(self) -> bool:
        """Whether anything blocks."""
        return bool(self.check.blockers)

    @property
    def complete(self) -> bool:
        """Whether the rules remove every blocker."""
        return not self.unrepairable

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return {
            "rules": self.rules,
            "unrepairable": [f"{n.op_type} {n.node}" for n in self.unrepairable],
        }

    def __str__(self) -> str:
        target = self.check.target
        if not self.needed:
            return f"Nothing blocks this model on {target}: no repair is needed."
        lines = []
        for name, nodes in self.rules.items():
            rule = surgery.RULES[name]
            lines.append(
                f"  rule {name!r} would repair {nodes} node(s); same function, error: {rule.error}"
            )
        for op, count in Counter(node.op_type for node in self.unrepairable).items():
            first = next(node for node in self.unrepairable if node.op_type == op)
            place = first.module or first.node or "the file"
            lines.append(f"  no rule repairs {count} x {op}, first in {place}: {first.evidence}")
        head = f"Repair for {target}: {len(self.check.blockers)} blocking node(s)."
        cure = f"  Apply: labutils convert MODEL --target {target} --repair -o FILE.dlc"
        able = self.rules and self.complete and targets.TARGETS[target].convert
        return "\n".join([head, *lines, cure] if able else [head, *lines])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre {_WRAPPED}>{html.escape(str(self))}</pre>"


@dataclass(frozen=True)
class Repair:
    """A repaired file.

    Attributes
    ----------
    file
        The repaired ONNX file.
    plan
        What blocked before.
    surgery
        What was replaced, with the numeric check.
    check
        The repaired file against the same table.
    """

    file: Path
    plan: Plan
    surgery: surgery.Report
    check: targets.CheckReport

    def __str__(self) -> str:
        before, after = len(self.plan.check.blockers), len(self.check.blockers)
        head = f"Repaired for {self.check.target}: {before} blocking nodes -> {after}"
        return f"{head}\n{self.surgery}"

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre {_WRAPPED}>{html.escape(str(self))}</pre>"


def suggest(onnx_path: str | Path, target: str) -> Plan:
    """Check a model against a target, and name the exact rules that remove what blocks.

    The rules are tried on a copy, so the plan says what they do to this model, not what they might.

    Raises
    ------
    UnknownNameError, ModelFileError
        No such target; no such model.
    """
    check = targets.check(onnx_path, target)
    blocking = {node.op_type for node in check.blockers}
    rules = tuple(name for name in surgery.EXACT if surgery.RULES[name].ops & blocking)
    if not rules:
        return Plan(check, {}, tuple(check.blockers))
    with tempfile.TemporaryDirectory(prefix="labutils-repair-") as folder:
        copy = Path(folder, Path(onnx_path).name)
        try:
            report = surgery.replace_file(onnx_path, copy, rules)
        except SurgeryError:
            return Plan(check, {}, tuple(check.blockers))
        after = targets.check(copy, target)
    return Plan(check, {n: k for n, k in report.counts.items() if k}, tuple(after.blockers))


def apply(
    source: str | Path, target: str, destination: str | Path, inputs: np.ndarray | None = None
) -> Repair:
    """Write a copy of an ONNX file in which the target's blockers are replaced, and re-check it.

    Parameters
    ----------
    source, destination
        ONNX files; the source is not changed.
    target
        A name in ``targets.TARGETS``.
    inputs
        One input, float32, for the numeric check; seeded random numbers by default.

    Raises
    ------
    SurgeryError
        Nothing blocks, or no exact rule removes all that does. Nothing is written then.
    """
    plan = suggest(source, target)
    if not plan.needed:
        raise SurgeryError(f"{plan} Convert the file as it is.")
    if not plan.complete:
        raise SurgeryError(f"{Path(source).name} cannot be repaired in full.\n{plan}")
    report = surgery.replace_file(source, destination, tuple(plan.rules), inputs)
    return Repair(Path(destination), plan, report, targets.check(destination, target))


def refused(plan: Plan) -> TranslationError:
    """Return the error of a target that stops, with the nodes and the rules that would help."""
    first = plan.check.first_blocker
    nodes = [f"  {n.op_type:<14} {n.node}  (module {n.module or '-'})" for n in plan.check.blockers]
    shown = nodes[:12] + ([f"  ... and {len(nodes) - 12} more"] if len(nodes) > 12 else [])
    listed = "\n".join(shown)
    return TranslationError(
        f"{plan.check.file} does not translate for {plan.check.target}:\n{listed}\n{plan}",
        node=first.node,
        op_type=first.op_type,
        module=first.module,
    )


def convert_model(
    model: zoo.Model,
    target: str,
    destination: str | Path,
    *,
    repair: bool = False,
    bits: str | None = None,
    precision: str = "fp32",
    opset: int = 17,
    soc: str = "SM8550",
    inputs: np.ndarray | None = None,
    preprocessing: data.Preprocessing | None = None,
    min_cosine: float | None = None,
    echo: Callable[[object], object] = lambda line: None,
    progress: Callable | None = None,
) -> targets.Conversion:
    """Take any zoo model to a verified DLC: export, repair, quantize, convert, compare.

    Parameters
    ----------
    model
        From `zoo.load`.
    target, destination
        A target's name and the ``.dlc`` to write; nothing is written unless the gate passes.
    repair
        Replace what the target refuses (exact rules only); without it a refusal is an error.
    bits
        A quantization recipe for an integer DLC: a preset (``"int8"``, ``"a16w8"``, ...) or a
        YAML file; None keeps floats.
    precision
        Of a float DLC: ``"fp32"`` or ``"fp16"``.
    opset, soc
        For the export; for the compiler and the simulator.
    inputs
        (n, 3, size, size) float32 for the gate; 32 Things-16 images by default.
    preprocessing
        For files that do not say how their input was made.
    min_cosine
        Another threshold for the parity gate.
    echo
        Called with each report and log line as it comes.
    progress
        For calibration.

    Raises
    ------
    TranslationError
        The target refuses the model, and `repair` is off or cannot help.
    ParityError
        The DLC computes something else than `model`.
    """
    preprocessing = preprocessing or model.preprocessing
    if preprocessing is None:
        raise UsageError(
            f"{model.name} does not say how its input is made. Give its mean and std "
            "(--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225); they are never guessed."
        )
    recipe = _runnable(bits) if bits is not None else None
    if inputs is None:
        images = data.load("val", GATE_IMAGES, preprocessing.size)
        inputs = preprocessing(np.asarray(images.images))
    stem = Path(destination).stem
    with tempfile.TemporaryDirectory(prefix="labutils-convert-") as folder:
        original = _as_onnx(model, Path(folder, f"{stem}.onnx"), opset, echo)
        floating, fixed = _translatable(original, target, Path(folder), repair, echo)
        quantized = None
        if bits is not None:
            quantized = Path(folder, f"{stem}.{recipe.name}.onnx")
            precision = "a16w8" if recipe.activations.bits == 16 else "int8"
            calibration = data.calibration(recipe.calibration.images, preprocessing.size)
            settings = {"preprocessing": preprocessing, "progress": progress}
            echo(quantize.static(floating, quantized, calibration, recipe, **settings))
        brought = model.module if model.module is not None else original
        with runtime.connect(brought) as reference:
            return targets.convert(
                floating,
                target,
                destination,
                reference=reference,
                inputs=inputs,
                original=original,
                quantized=quantized,
                precision=precision,
                soc=soc,
                min_cosine=min_cosine,
                check_top1=model.trained,
                facts={
                    **facts(model, preprocessing, fixed),
                    "recipe": recipe.to_dict() if recipe else None,
                },
                echo=echo,
            )


def _runnable(recipe: str | Path) -> quantize.Recipe:
    """Return the recipe, unless the gate could not run what it makes."""
    found = quantize.load_recipe(recipe)
    if (found.input, found.output) != ("float32", "float32"):
        raise UsageError(
            f"Recipe {found.name} makes integer inputs or outputs, which the parity gate cannot "
            "feed or read. Convert with float32 ends; QNN keeps the integers inside."
        )
    return found


def _translatable(
    original: Path, target: str, folder: Path, repair: bool, echo: Callable
) -> tuple[Path, Repair | None]:
    """Return a file that the target's table does not refuse: the original, or a repaired copy."""
    plan = suggest(original, target)
    # "qnn" is judged by QNN itself, at conversion; check-only targets are refused there, too.
    if not plan.needed or target == "qnn" or not targets.TARGETS[target].convert:
        return original, None
    if not repair:
        raise refused(plan)
    fixed = apply(original, target, folder / f"{original.stem}.repaired.onnx")
    echo(fixed)
    return fixed.file, fixed


def _as_onnx(model: zoo.Model, path: Path, opset: int, echo: Callable) -> Path:
    if model.module is None:
        return model.file
    report = export.to_onnx(model, path, opset=opset)
    echo(report)
    return report.path


def facts(
    model: zoo.Model, preprocessing: data.Preprocessing | None = None, fixed: Repair | None = None
) -> dict[str, Any]:
    """Return what a manifest says of the model: where it came from, its input, its classes."""
    preprocessing = preprocessing or model.preprocessing
    return {
        "model": {"name": model.name, "weights": model.weights, "note": model.note},
        "classes": list(model.classes),
        "preprocessing": {
            "size": preprocessing.size,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
            "source": preprocessing.source,
        },
        "brought": {"file": model.file.name, "sha256": paths.sha256(model.file)}
        if model.file
        else None,
        "repair": fixed.surgery.to_dict() if fixed else None,
    }
