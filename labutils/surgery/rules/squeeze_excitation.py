"""The rule that takes squeeze-excitation out of a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..forms import GraphForm, Leave, ModuleForm, OnnxForm
from ..rule import Rule

if TYPE_CHECKING:
    from ..torch_level.graph_match import Found

SE_CLASSES = (
    "torchvision.ops.misc.SqueezeExcitation",
    "timm.layers.squeeze_excite.SEModule",
    "timm.layers.squeeze_excite.EffectiveSEModule",
    "timm.layers.squeeze_excite.SqueezeExciteCl",
    "timm.models._efficientnet_blocks.SqueezeExcite",
    "timm.models.senet.SEModule",
)
_PATTERNS = "labutils.surgery.torch_level.patterns"


def _take_input(x: Any) -> Any:
    return x


def _graph_form(act: str, gate: str) -> GraphForm:
    """Return squeeze-excitation as written in a forward, with layers as attributes of a model."""
    inner = f"{act.lower()}(conv(mean(x)))" if act else "mean(x)"
    return GraphForm(
        label=f"x * {gate.lower()}(conv({inner}))",
        pattern=f"{_PATTERNS}.{act}{gate}",
        replacement=_take_input,
        check=_check_kernels,
    )


def _check_kernels(found: Found) -> Leave | None:
    wide = any(size != (1, 1) for size in found.kernel_sizes())
    return Leave("the convolutions in it are not 1x1") if wide else None


def _onnx_form(gate: str, pool: str, act: str) -> OnnxForm:
    def pattern(op: Any, x: Any) -> Any:
        if pool == "ReduceMean":
            squeezed = op.ReduceMean(x, _allow_other_attributes=True, _allow_other_inputs=True)
        else:
            squeezed = op.GlobalAveragePool(x)
        kwargs = {"_allow_other_attributes": True, "_allow_other_inputs": True}
        reduced = op.Conv(squeezed, **kwargs)
        if not act:
            return op.Mul(
                x, getattr(op, gate)(reduced, _allow_other_attributes=True, _outputs=["y"])
            )
        if act == "Silu":
            active = op.Mul(reduced, op.Sigmoid(reduced))
        else:
            active = getattr(op, act)(reduced)
        wide = op.Conv(active, **kwargs)
        gated = getattr(op, gate)(wide, _allow_other_attributes=True, _outputs=["y"])
        return op.Mul(x, gated)

    ops = (gate, "Mul", "Conv", pool, *([act, "Conv"] if act else []))
    parts = ", ".join(filter(None, (pool, act, gate)))
    return OnnxForm(f"squeeze-excitation ({parts})", ops, pattern,
                    lambda g, x, node: g.op("Identity", x))  # fmt: skip


SE_TO_IDENTITY = Rule(
    name="se-to-identity",
    exact=False,
    error="the channels are no longer weighted; parameters shrink; retrain",
    source="TI's lite models (edgeai-modeloptimization); Hu et al. 2018, Squeeze-and-Excitation "
    "Networks",
    keeps="names, hooks, train/eval state; the block's weights are gone",
    needs_training=True,
    modules=(
        ModuleForm(
            SE_CLASSES,
            replacement="torch.nn.Identity",
            recognizes="labutils.surgery.torch_level.gates.is_squeeze_excitation",
        ),
    ),
    graph=tuple(
        _graph_form(act, gate)
        for act in ("Relu", "Silu", "Hardswish", "")
        for gate in ("Sigmoid", "Hardsigmoid")
    ),
    onnx=tuple(
        _onnx_form(gate, pool, act)
        for gate in ("Sigmoid", "HardSigmoid")
        for pool in ("GlobalAveragePool", "ReduceMean")
        for act in ("Relu", "Silu", "HardSwish", "")
    ),
)

RULES = (SE_TO_IDENTITY,)
