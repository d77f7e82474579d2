"""Approximate rules: an activation becomes a ReLU, and the network must be trained again.

A bounded activation that scales another tensor (the gate of a squeeze-excitation, the factor of a
decomposed Hardswish) is never replaced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..rule import GraphForm, OnnxForm, Rule, activation_names
from .hard_activations import HARDSIGMOID_CLASSES, HARDSWISH_CLASSES
from .smooth_activations import GELU_CLASSES, MISH_CLASSES, SILU_CLASSES, one_node

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch
    from torch import nn

    from ..onnx_level.builder import Builder

_KEEPS = (
    "names, aliases, hooks, train/eval state; the ReLU works out of place, whatever `inplace` was"
)
_TI = "TI's lite models (edgeai-modeloptimization)"


def _relu_layer(_: nn.Module) -> nn.Module:
    from torch import nn

    return nn.ReLU()


def _relu(input: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    import torch

    return torch.relu(input)


def _build_relu(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    return g.op("Relu", x)


def _relu6_limits(
    input: torch.Tensor, min_val: float = -1.0, max_val: float = 1.0, *_: Any, **__: Any
) -> str:
    return "" if (min_val, max_val) == (0, 6) else f"clips to {min_val} and {max_val}, not 0 and 6"


def _rule(name: str, classes: tuple[str, ...], word: str, **fields: Any) -> Rule:
    return Rule(
        name=f"{name}-to-relu",
        exact=False,
        error=fields.pop("error", f"ReLU is not {word}: the network must be trained again"),
        source=_TI,
        keeps=_KEEPS,
        needs_training=True,
        modules=classes,
        module=_relu_layer,
        functions=fields.pop("functions", activation_names(name.replace("-", "_"))),
        function=_relu,
        **fields,
    )


def _hardswish_in_parts(x: torch.Tensor) -> torch.Tensor:
    import torch.nn.functional as F

    return x * F.relu6(x + 3.0) / 6.0


def _hardswish_in_other_parts(x: torch.Tensor) -> torch.Tensor:
    import torch.nn.functional as F

    return x * (F.relu6(x + 3.0) / 6.0)


def _hardswish_by_gate(x: torch.Tensor) -> torch.Tensor:
    import torch.nn.functional as F

    return x * F.hardsigmoid(x)


def _silu_in_parts(x: torch.Tensor) -> torch.Tensor:
    import torch

    return x * torch.sigmoid(x)


_CLIP = OnnxForm("Clip(0, 6)", ("Clip",), lambda op, x: op.Clip(x, 0.0, 6.0, _outputs=["y"]),
                 _build_relu, lambda node, _: _scaling(node))  # fmt: skip
_OLD_CLIP = OnnxForm(
    "Clip(0, 6)", ("Clip",), lambda op, x: op.Clip(x, min=0.0, max=6.0, _outputs=["y"]),
    _build_relu, lambda node, _: _scaling(node),
)  # fmt: skip


_VIEWS = {"Reshape", "Flatten", "Unsqueeze", "Squeeze", "Expand", "Transpose", "Identity"}


def _scaling(node: ir.Node) -> str:
    """Leave what is multiplied or divided next: the factor of a decomposed Hardswish, a gate."""
    for use in node.outputs[0].uses():
        if use.node.op_type in ("Mul", "Div"):
            return "a factor: its output is multiplied or divided"
        if use.node.op_type in _VIEWS and _scaling(use.node):
            return _scaling(use.node)
    return ""


def _gelu_erf(op: Any, x: Any) -> Any:
    return op.Mul(op.Mul(x, op.Add(op.Erf(op.Div(x, 2**0.5), _outputs=["y"]), 1.0)), 0.5)


def _gelu_erf_halved(op: Any, x: Any) -> Any:
    return op.Mul(x, op.Mul(op.Add(op.Erf(op.Div(x, 2**0.5), _outputs=["y"]), 1.0), 0.5))


HARDSWISH_TO_RELU = _rule(
    "hardswish", HARDSWISH_CLASSES, "Hardswish",
    graph=tuple(
        GraphForm(label, pattern, _relu)
        for label, pattern in (
            ("x * relu6(x + 3) / 6", _hardswish_in_parts),
            ("x * (relu6(x + 3) / 6)", _hardswish_in_other_parts),
            ("x * hardsigmoid(x)", _hardswish_by_gate),
        )
    ),
    onnx=(
        OnnxForm("HardSwish", ("HardSwish",), one_node("HardSwish"), _build_relu),
        OnnxForm("x * HardSigmoid(x)", ("HardSigmoid", "Mul"),
                 lambda op, x: op.Mul(x, op.HardSigmoid(x, _allow_other_attributes=True,
                                                        _outputs=["y"])), _build_relu),
    ),
)  # fmt: skip
HARDSIGMOID_TO_RELU = _rule(
    "hardsigmoid", HARDSIGMOID_CLASSES, "Hardsigmoid, which ends at 1", leaves_gates=True,
    onnx=(OnnxForm("HardSigmoid", ("HardSigmoid",), one_node("HardSigmoid"), _build_relu,
                   lambda node, _: _scaling(node)),),
)  # fmt: skip
GELU_TO_RELU = _rule(
    "gelu", GELU_CLASSES, "GELU", functions=activation_names("gelu")[1:],
    onnx=(
        OnnxForm("Gelu", ("Gelu",), one_node("Gelu"), _build_relu),
        OnnxForm("x * (1 + erf(x / sqrt(2))) / 2", ("Erf", "Div", "Add", "Mul", "Mul"), _gelu_erf,
                 _build_relu),
        OnnxForm("x * ((1 + erf(x / sqrt(2))) / 2)", ("Erf", "Div", "Add", "Mul", "Mul"),
                 _gelu_erf_halved, _build_relu),
    ),
)  # fmt: skip
SILU_TO_RELU = _rule(
    "silu", SILU_CLASSES, "SiLU",
    graph=(GraphForm("x * sigmoid(x)", _silu_in_parts, _relu),),
    onnx=(
        OnnxForm("x * Sigmoid(x)", ("Sigmoid", "Mul"),
                 lambda op, x: op.Mul(x, op.Sigmoid(x, _outputs=["y"])), _build_relu),
        OnnxForm("Swish", ("Swish",), one_node("Swish"), _build_relu),
    ),
)  # fmt: skip
MISH_TO_RELU = _rule(
    "mish", MISH_CLASSES, "Mish",
    onnx=(OnnxForm("Mish", ("Mish",), one_node("Mish"), _build_relu),),
)  # fmt: skip
RELU6_TO_RELU = _rule(
    "relu6", ("torch.nn.modules.activation.ReLU6",), "ReLU6, which ends at 6", leaves_gates=True,
    functions=(*activation_names("relu6")[:1], *activation_names("relu6")[3:]),
    onnx=(_CLIP, _OLD_CLIP),
)  # fmt: skip
LEAKY_RELU_TO_RELU = _rule(
    "leaky-relu", ("torch.nn.modules.activation.LeakyReLU",), "LeakyReLU",
    functions=(*activation_names("leaky_relu"), "torch.nn.functional.leaky_relu_"),
    onnx=(OnnxForm("LeakyRelu", ("LeakyRelu",), one_node("LeakyRelu"), _build_relu),),
)  # fmt: skip

RULES = (
    HARDSWISH_TO_RELU, HARDSIGMOID_TO_RELU, GELU_TO_RELU, SILU_TO_RELU, MISH_TO_RELU, RELU6_TO_RELU,
    LEAKY_RELU_TO_RELU,
)  # fmt: skip
