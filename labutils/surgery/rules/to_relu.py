"""Approximate rules: an activation becomes a ReLU, and the network must be retrained.

A bounded activation that scales another tensor (the gate of a squeeze-excitation, the factor of a
decomposed Hardswish) is never replaced.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..forms import FunctionForm, GraphForm, Leave, ModuleForm, OnnxForm
from ..naming import activation_names
from ..rule import Rule
from .hard_activations import HARDSIGMOID_CLASSES, HARDSWISH_CLASSES
from .smooth_activations import GELU_CLASSES, MISH_CLASSES, SILU_CLASSES

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..onnx_level.builder import Builder

_KEEPS = (
    "names, aliases, hooks, train/eval state; the ReLU works out of place, whatever `inplace` was"
)


def _build_relu(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    return g.op("Relu", x)


_RELU = "labutils.surgery.layers.activations.relu"
_PATTERNS = "labutils.surgery.torch_level.patterns"


def _make_rule(
    name: str,
    classes: tuple[str, ...],
    word: str,
    *,
    functions: tuple[str, ...] = (),
    patterns: Sequence[tuple[str, str]] = (),
    onnx: tuple[OnnxForm, ...] = (),
    leaves_gates: bool = False,
) -> Rule:
    functions = functions or activation_names(name.replace("-", "_"))
    return Rule(
        name=f"{name}-to-relu",
        exact=False,
        error=f"ReLU is not {word}: the network must be trained again",
        source="TI's lite models (edgeai-modeloptimization)",
        keeps=_KEEPS,
        needs_training=True,
        leaves_gates=leaves_gates,
        modules=(ModuleForm(classes, "torch.nn.ReLU"),),
        functions=(FunctionForm(functions, _RELU),),
        graph=tuple(
            GraphForm(label, f"{_PATTERNS}.{pattern}", _RELU) for label, pattern in patterns
        ),
        onnx=onnx,
    )


def _check_factor(node: ir.Node, _: frozenset[str]) -> Leave | None:
    """Leave what is multiplied or divided next: the factor of a decomposed Hardswish, a gate."""
    return Leave("a factor: its output is multiplied or divided") if _is_factor(node) else None


def _is_factor(node: ir.Node) -> bool:
    users = [use.node for use in node.outputs[0].uses()]
    return any(
        user.op_type in ("Mul", "Div") or (user.op_type in _VIEWS and _is_factor(user))
        for user in users
    )


_VIEWS = {"Reshape", "Flatten", "Unsqueeze", "Squeeze", "Expand", "Transpose", "Identity"}


def _clip(op: Any, x: Any) -> Any:
    return op.Clip(x, 0.0, 6.0, _outputs=["y"])


def _clip_by_attributes(op: Any, x: Any) -> Any:
    return op.Clip(x, min=0.0, max=6.0, _outputs=["y"])


def _hardswish_by_gate(op: Any, x: Any) -> Any:
    return op.Mul(x, op.HardSigmoid(x, _allow_other_attributes=True, _outputs=["y"]))


def _silu_by_gate(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Sigmoid(x, _outputs=["y"]))


def _gelu_erf(op: Any, x: Any) -> Any:
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, 2**0.5), _outputs=["y"]), 1.0)), 0.5)


def _gelu_erf_halved(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Mul(op.Add(op.Erf(op.Div(x, 2**0.5), _outputs=["y"]), 1.0), 0.5))


_ERF_OPS = ("Erf", "Div", "Add", "Mul", "Mul")

HARDSWISH_TO_RELU = _make_rule(
    "hardswish",
    HARDSWISH_CLASSES,
    "Hardswish",
    patterns=(
        ("x * relu6(x + 3) / 6", "hardswish_before_division"),
        ("x * (relu6(x + 3) / 6)", "hardswish_after_division"),
        ("x * hardsigmoid(x)", "hardswish_by_gate"),
    ),
    onnx=(
        OnnxForm.of_node("HardSwish", _build_relu),
        OnnxForm("x * HardSigmoid(x)", ("HardSigmoid", "Mul"), _hardswish_by_gate, _build_relu),
    ),
)
HARDSIGMOID_TO_RELU = _make_rule(
    "hardsigmoid",
    HARDSIGMOID_CLASSES,
    "Hardsigmoid, which ends at 1",
    onnx=(OnnxForm.of_node("HardSigmoid", _build_relu, _check_factor),),
    leaves_gates=True,
)
GELU_TO_RELU = _make_rule(
    "gelu",
    GELU_CLASSES,
    "GELU",
    functions=activation_names("gelu")[1:],  # F.gelu is torch._C._nn.gelu itself
    onnx=(
        OnnxForm.of_node("Gelu", _build_relu),
        OnnxForm("x * (1 + erf(x / sqrt(2))) / 2", _ERF_OPS, _gelu_erf, _build_relu),
        OnnxForm("x * ((1 + erf(x / sqrt(2))) / 2)", _ERF_OPS, _gelu_erf_halved, _build_relu),
    ),
)
SILU_TO_RELU = _make_rule(
    "silu",
    SILU_CLASSES,
    "SiLU",
    patterns=(("x * sigmoid(x)", "silu_by_gate"),),
    onnx=(
        OnnxForm("x * Sigmoid(x)", ("Sigmoid", "Mul"), _silu_by_gate, _build_relu),
        OnnxForm.of_node("Swish", _build_relu),
    ),
)
MISH_TO_RELU = _make_rule(
    "mish", MISH_CLASSES, "Mish", onnx=(OnnxForm.of_node("Mish", _build_relu),)
)
RELU6_TO_RELU = _make_rule(
    "relu6",
    ("torch.nn.modules.activation.ReLU6",),
    "ReLU6, which ends at 6",
    functions=(*activation_names("relu6")[:1], *activation_names("relu6")[3:]),
    onnx=(
        OnnxForm("Clip(0, 6)", ("Clip",), _clip, _build_relu, _check_factor),
        OnnxForm("Clip(0, 6)", ("Clip",), _clip_by_attributes, _build_relu, _check_factor),
    ),
    leaves_gates=True,
)
LEAKY_RELU_TO_RELU = _make_rule(
    "leaky-relu",
    ("torch.nn.modules.activation.LeakyReLU",),
    "LeakyReLU",
    functions=(*activation_names("leaky_relu"), "torch.nn.functional.leaky_relu_"),
    onnx=(OnnxForm.of_node("LeakyRelu", _build_relu),),
)

RULES = (
    HARDSWISH_TO_RELU,
    HARDSIGMOID_TO_RELU,
    GELU_TO_RELU,
    SILU_TO_RELU,
    MISH_TO_RELU,
    RELU6_TO_RELU,
    LEAKY_RELU_TO_RELU,
)
