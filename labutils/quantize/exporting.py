"""The lab's recipes in another tool's words: D-Robotics' hb_mapper YAML."""

from __future__ import annotations

from dataclasses import dataclass

from .. import typesetting
from ..errors import UsageError
from ..images import data
from ..onnxfile.file import OnnxFile
from ..rdk import hb_mapper, hb_mapper_writing
from .recipe import Recipe

_METHODS = {"minmax": "max", "percentile": "max", "entropy": "kl", "mse": "default"}
_WIDE = ("Conv", "Gemm", "MatMul", "Add", "Sub", "Mul", "Clip", "Relu", "HardSigmoid", "Sigmoid",
         "GlobalAveragePool", "AveragePool", "MaxPool", "Concat", "ReduceMean")  # fmt: skip


@dataclass(frozen=True, repr=False)
class Exported(typesetting.Shown):
    """An hb_mapper YAML, and what of the recipe it cannot say.

    Attributes
    ----------
    text
        The YAML.
    int16, cpu
        Names of the nodes with 16-bit activations, and of those that stay in float.
    lost
        (what the recipe says, why the YAML does not).
    """

    text: str
    int16: tuple[str, ...]
    cpu: tuple[str, ...]
    lost: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        rows = [f"{len(self.int16)} nodes in int16, {len(self.cpu)} on the CPU"]
        return "\n".join([*rows, *(f"NOT SAID {what}: {why}" for what, why in self.lost)])


def for_hb_mapper(
    recipe: Recipe,
    model: OnnxFile,
    preprocessing: data.Preprocessing,
    *,
    prefix: str,
    folder: str = "calibration_rgb_f32",
    kind: str = "video",
) -> Exported:
    """Return a recipe as an hb_mapper YAML.

    Parameters
    ----------
    recipe
        Its overrides with 16-bit activations become ``node_info``, its exclusions nodes on the CPU.
    model
        The float network whose nodes they name.
    preprocessing
        Of its input.
    prefix
        Of the files that the tool will write.
    folder
        Of calibration, as the YAML names it.
    kind
        Range of the NV12 bytes that the board will feed: ``video`` or ``full``.

    Raises
    ------
    UsageError
        An exception of the recipe names no node of the network.
    """
    nodes: dict[str, hb_mapper.Node] = {}
    named = [(node.name, node.op_type) for node in model.proto.graph.node if node.name]
    for pattern in [*recipe.exclude, *(o.node for o in recipe.overrides)]:
        if not any(Recipe(exclude=(pattern,)).excluded(name) for name, _ in named):
            raise UsageError(
                f"{pattern} names no node of {model.name}: the YAML would say nothing."
            )
    for name, op_type in named:
        if recipe.excluded(name):
            nodes[name] = hb_mapper.Node("CPU")
            continue
        said = recipe.setting(name, op_type, "activations")
        bits = said or (recipe.activations.bits if op_type in _WIDE else 8)
        if bits == 16:
            nodes[name] = hb_mapper.Node("BPU", 16, 16)
    method = recipe.calibration.method
    share = recipe.calibration.percentile / 100 if method == "percentile" else None
    plan = hb_mapper_writing.Plan(
        model.name, prefix, preprocessing, nodes, _METHODS[method], max_percentile=share,
        input_space_and_range="bt601_video" if kind == "video" else "regular",
        cal_data_dir=folder,
    )  # fmt: skip
    int16 = tuple(name for name, node in nodes.items() if node.on == "BPU")
    cpu = tuple(name for name, node in nodes.items() if node.on == "CPU")
    return Exported(plan.text(), int16, cpu, tuple(_lost(recipe)))


def _lost(recipe: Recipe) -> list[tuple[str, str]]:
    """Return what a recipe says and the YAML cannot."""
    found = []
    weights, activations, calibration = recipe.weights, recipe.activations, recipe.calibration
    if weights.bits != 8:
        found.append((f"weights.bits {weights.bits}", "the BPU's weights have 8 bits"))
    if not weights.per_channel:
        found.append(("weights.per_channel false", "the tool chooses the scales of weights"))
    if any(o.weights not in (None, 8) for o in recipe.overrides):
        found.append(("weights of single nodes", "the BPU's weights have 8 bits"))
    if activations.power_of_two or weights.power_of_two:
        found.append(("power_of_two", "the tool chooses its scales"))
    if calibration.outliers:
        found.append((f"calibration.outliers {calibration.outliers:g}", "the tool has no such"))
    if calibration.vector_outliers is not None:
        found.append(("calibration.vector_outliers", "the tool has no such"))
    if recipe.flat_ends:
        found.append(("flat_ends", "the tool has no such"))
    if calibration.method == "mse":
        found.append(("calibration.method mse", "written as default, the tool's own search"))
    changes = {
        "equalize": recipe.equalize, "correct_bias": recipe.correct_bias,
        "equalize_gates": recipe.equalize_gates,
        "rounding adaptive": recipe.rounding == "adaptive", "qat": recipe.qat is not None,
    }  # fmt: skip
    found += [(name, "it changes weights: export the changed network") for name, on in
              changes.items() if on]  # fmt: skip
    return found
