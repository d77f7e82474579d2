"""The rules for Hardsigmoid and Hardswish, the two activations of MobileNetV3."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..forms import FunctionForm, Leave, ModuleForm, OnnxForm
from ..naming import activation_names
from ..rule import Rule

if TYPE_CHECKING:
    import onnx_ir as ir

    from ..onnx_level.builder import Builder

_VENDOR_SLOPE = 0.167  # of labutils.layers, which imports torch
HARDSIGMOID_CLASSES = (
    "torch.nn.modules.activation.Hardsigmoid",
    "timm.layers.activations.HardSigmoid",
    "timm.layers.activations_me.HardSigmoidMe",
)
HARDSWISH_CLASSES = (
    "torch.nn.modules.activation.Hardswish",
    "timm.layers.activations.HardSwish",
    "timm.layers.activations_me.HardSwishMe",
)


def _attributes(node: ir.Node) -> tuple[float, float]:
    """Return alpha and beta of a HardSigmoid node; ONNX's default alpha is 0.2, not 1/6."""
    return node.attributes.get_float("alpha", 0.2), node.attributes.get_float("beta", 0.5)


def _is_torch_hardsigmoid(node: ir.Node) -> bool:
    alpha, beta = _attributes(node)
    return abs(alpha - 1 / 6) < 1e-6 and abs(beta - 0.5) < 1e-6


def _check_gate(node: ir.Node, active: frozenset[str]) -> Leave | None:
    """Leave ``x * HardSigmoid(x)`` alone: it is a Hardswish, which has its own rule."""
    if "hardswish" in active or not _is_torch_hardsigmoid(node):
        return None
    x = node.inputs[0]
    products = [use.node for use in node.outputs[0].uses() if use.node.op_type == "Mul"]
    if any(x in product.inputs for product in products):
        return Leave("part of x * HardSigmoid(x), which is a Hardswish: add the rule 'hardswish'")
    return None


def _check_slope_and_gate(node: ir.Node, active: frozenset[str]) -> Leave | None:
    if not _is_torch_hardsigmoid(node):
        alpha, beta = _attributes(node)
        return Leave(f"alpha {alpha:.6g} and beta {beta:.6g} are not 1/6 and 0.5")
    return _check_gate(node, active)


def _check_hardswish(node: ir.Node, _: frozenset[str]) -> Leave | None:
    if _is_torch_hardsigmoid(node):
        return None
    alpha, beta = _attributes(node)
    return Leave(f"not a Hardswish: alpha {alpha:.6g} and beta {beta:.6g} are not 1/6 and 0.5")


def _build_hardsigmoid(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    alpha, beta = _attributes(node)
    return g.clip(g.add(g.mul(x, alpha), beta), 0.0, 1.0)


def _build_vendor_hardsigmoid(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    return g.clip(g.add(g.mul(x, _VENDOR_SLOPE), 0.5), 0.0, 1.0)


def _build_hardswish(g: Builder, x: ir.Value, node: ir.Node) -> ir.Value:
    return g.div(g.mul(x, g.clip(g.add(x, 3.0), 0.0, 6.0)), 6.0)


def _hardsigmoid_node(op: Any, x: Any) -> Any:
    return op.HardSigmoid(x, _allow_other_attributes=True, _outputs=["y"])


def _gate(op: Any, x: Any, clip_attributes: bool) -> Any:
    """Match ``Clip(x + 3, 0, 6)``: bounds are inputs since opset 11, attributes before."""
    if clip_attributes:
        return op.Clip(op.Add(x, 3.0), min=0.0, max=6.0, _outputs=["y"])
    return op.Clip(op.Add(x, 3.0), 0.0, 6.0, _outputs=["y"])


def _plain(label: str, ops: tuple[str, ...], form: Callable[..., Any]) -> tuple[OnnxForm, ...]:
    """Return a form that needs no replacement, for both ways to write a Clip."""

    def pattern_of(attributes: bool) -> Callable[..., Any]:
        return lambda op, x: form(op, x, _gate(op, x, attributes))

    return tuple(OnnxForm(label, ops, pattern_of(attributes)) for attributes in (False, True))


_HARDSIGMOID_NODE = OnnxForm(
    "HardSigmoid", ("HardSigmoid",), _hardsigmoid_node, _build_hardsigmoid, _check_gate
)
_PLAIN_HARDSIGMOID = (
    *_plain("relu6(x + 3) / 6", ("Add", "Clip", "Div"), lambda op, x, gate: op.Div(gate, 6.0)),
    *_plain("relu6(x + 3) * 1/6", ("Add", "Clip", "Mul"), lambda op, x, gate: op.Mul(gate, 1 / 6)),
)
_HARDSWISH_FORMS = (
    OnnxForm("HardSwish", ("HardSwish",), lambda op, x: op.HardSwish(x, _outputs=["y"]),
             _build_hardswish),
    OnnxForm("x * HardSigmoid(x)", ("HardSigmoid", "Mul"),
             lambda op, x: op.Mul(x, _hardsigmoid_node(op, x)), _build_hardswish,
             _check_hardswish),
    *_plain("x * relu6(x + 3) / 6", ("Add", "Clip", "Mul", "Div"),
            lambda op, x, gate: op.Div(op.Mul(x, gate), 6.0)),
    *_plain("x * (relu6(x + 3) / 6)", ("Add", "Clip", "Div", "Mul"),
            lambda op, x, gate: op.Mul(x, op.Div(gate, 6.0))),
    *_plain("x * relu6(x + 3) * 1/6", ("Add", "Clip", "Mul", "Mul"),
            lambda op, x, gate: op.Mul(op.Mul(x, gate), 1 / 6)),
    *_plain("x * (relu6(x + 3) * 1/6)", ("Add", "Clip", "Mul", "Mul"),
            lambda op, x, gate: op.Mul(x, op.Mul(gate, 1 / 6))),
)  # fmt: skip

_LAYERS = "labutils.surgery.layers.activations"
_KEEPS = (
    "names, aliases, hooks, train/eval state; the new layer works out of place, whatever "
    "`inplace` was; there are no weights"
)

HARDSIGMOID = Rule(
    name="hardsigmoid",
    exact=True,
    error="float32: bit-equal, in ONNX (any alpha, beta) within 1.2e-7; float16: 1e-3",
    source="definition: relu6(x + 3) / 6 (Howard et al. 2019, Searching for MobileNetV3, "
    "section 5.2); ONNX operator HardSigmoid: clip(alpha * x + beta, 0, 1)",
    keeps=_KEEPS,
    modules=(ModuleForm(HARDSIGMOID_CLASSES, "labutils.layers.CustomHardsigmoid"),),
    functions=(
        FunctionForm(
            activation_names("hardsigmoid"),
            f"{_LAYERS}.hardsigmoid_by_clamp",
        ),
    ),
    onnx=(_HARDSIGMOID_NODE, *_PLAIN_HARDSIGMOID),
)

HARDSWISH = Rule(
    name="hardswish",
    exact=True,
    error="float32: bit-equal, in ONNX within 5e-7 of |x|; float16: 2e-3 of max(1, |x|)",
    source="definition: x * relu6(x + 3) / 6 (Howard et al. 2019, section 5.2)",
    keeps=_KEEPS,
    modules=(ModuleForm(HARDSWISH_CLASSES, "labutils.layers.CustomHardswish"),),
    functions=(
        FunctionForm(
            activation_names("hardswish"),
            f"{_LAYERS}.hardswish_by_clamp",
        ),
    ),
    onnx=_HARDSWISH_FORMS,
)

VENDOR_HARDSIGMOID = Rule(
    name="hardsigmoid-0.167",
    exact=False,
    error="maximum error 9.98e-4, at x = ±2.994",
    source="Qualcomm's MobileNetV3 example for SNPE 2.7: clamp(0.167 * x + 0.5, 0, 1)",
    keeps=_KEEPS,
    modules=(
        ModuleForm(
            HARDSIGMOID_CLASSES,
            build=f"{_LAYERS}.make_vendor_hardsigmoid",
        ),
    ),
    functions=(
        FunctionForm(
            activation_names("hardsigmoid"),
            f"{_LAYERS}.vendor_hardsigmoid",
        ),
    ),
    onnx=(
        OnnxForm(
            "HardSigmoid",
            ("HardSigmoid",),
            _hardsigmoid_node,
            _build_vendor_hardsigmoid,
            _check_slope_and_gate,
        ),
    ),
)

RULES = (HARDSIGMOID, HARDSWISH, VENDOR_HARDSIGMOID)
