"""The official route: torchao's pt2e (prepare, calibrate, convert), with the recipes of the lab.

Same recipe in, a QDQ file out that goes through the same gates. Places, bits and symmetry are the
recipe's; the observers, the rounding and the rewriting are torchao's. What torchao cannot do is
said in the report: it stores 4-bit weights in 8-bit containers, and leaves biases in float (they
are rounded to 32 bits here, as devices want them).
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .. import export, paths, train
from ..errors import MissingToolError, UsageError
from ..images import data
from ..onnxfile.edit import producers, remove_unused_
from ..onnxfile.graph import serialized
from ..onnxfile.wall import wall
from . import presets
from .recipe import Calibration, Qat, Recipe
from .training import globs, tracing
from .training.node_names import scope_of
from .training.qat import Schedule, training_config
from .training.qdq_export import QdqReport, compared

if TYPE_CHECKING:
    import onnx
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

_aten = torch.ops.aten
_CARRIERS = {_aten.conv2d.default, _aten.conv1d.default, _aten.linear.default}
_COMPUTE = {
    _aten.add.Tensor, _aten.add_.Tensor, _aten.mul.Tensor, _aten.hardswish.default,
    _aten.hardswish_.default, _aten.hardsigmoid.default, _aten.hardsigmoid_.default,
    _aten.relu.default, _aten.relu_.default, _aten.adaptive_avg_pool2d.default, _aten.mean.dim,
    _aten.clamp.default, _aten.div.Tensor, _aten.sigmoid.default, _aten.silu.default,
    _aten.hardtanh.default,
}  # fmt: skip
_UNSET = {
    _aten.matmul.default, _aten.bmm.default, _aten.softmax.int, _aten.layer_norm.default,
    _aten.gelu.default, _aten.scaled_dot_product_attention.default,
}  # fmt: skip
_MOVE = {_aten.flatten.using_ints, _aten.view.default, _aten.reshape.default}
_RECTIFY = {_aten.relu.default, _aten.relu_.default}
_OP_TYPES = {
    "conv2d": "Conv", "linear": "Gemm", "add": "Add", "mul": "Mul", "hardswish": "HardSwish",
    "hardsigmoid": "HardSigmoid", "relu": "Relu", "adaptive_avg_pool2d": "GlobalAveragePool",
    "flatten": "Flatten",
}  # fmt: skip


def write_qdq(
    model: nn.Module,
    path: str | Path,
    calibration: np.ndarray,
    recipe: str | Recipe = "int8",
    *,
    teacher: nn.Module | None = None,
    preprocessing: data.Preprocessing | None = None,
    **settings: Any,
) -> QdqReport:
    """Quantize a network with torchao and write it as a QDQ file of opset 21.

    Parameters
    ----------
    model
        A float network that `torch.fx` traces; it is left as it is.
    path
        The ``.onnx`` file.
    calibration
        (n, 3, size, size) float32, normalized.
    recipe
        As for `qat.prepare`. With `Recipe.qat` the network is trained in between.
    teacher
        The float network, for training.
    preprocessing
        Recorded in the file.
    **settings
        For `train.fine_tune`.

    Returns
    -------
    QdqReport
        It compares ONNX Runtime with torchao's converted graph, after two changes of that graph:
        its biases are rounded to 32 bits, as devices want them and the file has them, and it
        divides by scales, as ONNX does, where torchao multiplies by the reciprocal.

    Raises
    ------
    MissingToolError
        torchao is not installed.
    UsageError
        No calibration images, or a recipe that pt2e cannot express (16-bit weights).
    UnknownNameError
        A glob of the recipe that no node matches.
    LabError
        The file does not compute what torchao's graph computes, as in `qat.to_qdq`.
    """
    path, recipe = Path(path), presets.load(recipe)
    if not len(calibration):
        raise UsageError("Calibration needs images; there were none.")
    if recipe.weights.bits not in (4, 8) or not recipe.weights.symmetric:
        raise UsageError("pt2e is set up for symmetric weights of 4 or 8 bits.")
    example = torch.from_numpy(np.ascontiguousarray(calibration[:2]))
    batches = torch.from_numpy(np.ascontiguousarray(calibration)).split(32)
    with _quiet():
        prepared = prepare(model, presets.with_gates_as_they_are(recipe), example)
        with torch.no_grad():
            for batch in batches:
                prepared(batch)
        if recipe.qat is not None:
            _fit(prepared, recipe, teacher, settings)
        converted = _convert(prepared)
        plain = Plain(converted)
        graph = export.unchecked(plain, example[:1], 21, "dynamo", preprocessing)
    counts = _finish_(graph, plain)
    images = calibration[:16]
    with paths.atomic(path) as temporary:
        temporary.write_bytes(serialized(graph, path.name))
        found = compared(_Dividing(plain), temporary, images, path.name)
    return QdqReport(
        path, 21, counts["activations"], counts["weights"], counts["biases"],
        path.stat().st_size, **found, n=len(images), size=data.square(images.shape[2:]),
        ignored=_ignored(recipe),
    )  # fmt: skip


def _ignored(recipe: Recipe) -> tuple[str, ...]:
    """Return what a recipe asks for and torchao's observers do not do."""
    plain, asked = Calibration(), recipe.calibration
    fixed = (recipe.activations.range or recipe.weights.limit) is not None or any(
        (o.range or o.weight_range) is not None for o in recipe.overrides
    )
    said = {
        f"calibration by {asked.method} (min-max instead)": asked.method != plain.method,
        f"leaving out {100 * asked.outliers:g} % of the images": asked.outliers != plain.outliers,
        f"leaving out {100 * (asked.vector_outliers or 0):g} % of the images for vectors": (
            asked.vector_outliers is not None
        ),
        f"ranges {asked.room:g} times as long": asked.room != plain.room,
        "fixed ranges and limits of weights": fixed,
        "equalization": recipe.equalize,
        "equalized channels before gates": recipe.equalize_gates,
        "ranges that end where activations are flat": recipe.flat_ends,
        "corrected biases": recipe.correct_bias,
        f"{recipe.rounding} rounding": recipe.rounding != "nearest",
        "integer input or output": "quantized" in (recipe.input, recipe.output),
    }
    return tuple(words for words, wanted in said.items() if wanted)


class _Dividing(nn.Module):
    """A network whose quantizers divide by the scale, as QuantizeLinear does."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with _Divides():
            return self.network(x)


class _Divides(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001
        if func.overloadpacket is not torch.ops.quantized_decomposed.quantize_per_tensor:
            return func(*args, **(kwargs or {}))
        x, scale, zero_point, low, high, dtype = args
        return torch.clamp(torch.round(x / scale) + zero_point, low, high).to(dtype)


def prepare(model: nn.Module, recipe: str | Recipe, example: torch.Tensor) -> fx.GraphModule:
    """Return the exported network with torchao's observers (with `Recipe.qat`: fake quantizers).

    Parameters
    ----------
    model
        A float network; BatchNorm is folded first.
    recipe
        Bits, symmetry, granularity, and overrides.
    example
        (2 or more, 3, size, size) float32.
    """
    try:
        from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e, prepare_qat_pt2e
    except ImportError as error:
        raise MissingToolError(
            f"torchao cannot be imported ({error}): pip install torchao, as in requirements.txt."
        ) from None
    recipe = presets.load(recipe)
    graph = tracing.trace(model, example[:1])
    # the batch, and the sides: training may be at another size than calibration
    dynamic = (dict.fromkeys((0, 2, 3), torch.export.Dim.AUTO),)
    make = prepare_pt2e if recipe.qat is None else prepare_qat_pt2e
    advice = "Quantize its ONNX file instead: quantize.static."
    with wall("torch.export or torchao refuses", type(model).__name__, advice=advice):
        program: Any = torch.export.export(graph, (example,), dynamic_shapes=dynamic).module()
        _refuse_attention(program, type(model).__name__)
        globs.check(recipe, [_names(n) for n in program.graph.nodes if n.op == "call_function"])
        return make(program, _annotator(recipe))


def _refuse_attention(program: fx.GraphModule, network: str) -> None:
    """Refuse what would stay in float between roundings, though the lab's route rounds it."""
    for node in program.graph.nodes:
        if node.target in _UNSET:
            kind = node.target.overloadpacket.__name__
            raise UsageError(
                f"pt2e is set up for convolutional networks, and {network} has a {kind} "
                f"('{node.name}'), which it would leave in float. Train it by the lab's own route "
                "(qat.prepare, or `labutils train --route lab`), which rounds there."
            )


def _convert(prepared: fx.GraphModule) -> fx.GraphModule:
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

    move_exported_model_to_eval(prepared)
    return convert_pt2e(prepared)


def _fit(
    prepared: fx.GraphModule, recipe: Recipe, teacher: nn.Module | None, settings: dict[str, Any]
) -> None:
    from torchao.quantization import pt2e

    def freeze(step: int, last: int, trained: nn.Module) -> None:
        schedule.reach(step, last)

    share = (recipe.qat or Qat()).freeze_at
    schedule = Schedule(prepared, 1, freeze_observers_at=share, freeze_batch_norm_at=None)
    pt2e.allow_exported_model_train_eval(prepared)
    options = {"config": training_config(recipe), **settings}
    train.fine_tune(prepared, teacher=teacher, on_step=freeze, **options)


class Plain(nn.Module):
    """A plain module around a graph, for the exporter; its modes are the graph's own business."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.graph_module = graph

    def train(self, mode: bool = True) -> Any:
        """Leave the graph as it is: it knows one mode."""
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the graph."""
        return self.graph_module(x)


def _spec(
    bits: int, *, signed: bool, symmetric: bool, axis: int | None, pow2: bool, qat: bool
) -> QuantizationSpec:
    """Return torchao's words for one of our grids."""
    from torchao.quantization.pt2e import (
        FakeQuantize,
        MinMaxObserver,
        MovingAverageMinMaxObserver,
        PerChannelMinMaxObserver,
    )  # fmt: skip
    from torchao.quantization.pt2e.quantizer import QuantizationSpec

    def rounded_up(observer: type) -> type:
        class Observer(observer):
            def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
                scale, point = super().calculate_qparams()
                return torch.exp2(torch.ceil(torch.log2(scale))), point

        return Observer

    high = (1 << bits - 1) - 1 if signed else (1 << bits) - 1
    kind = {(4, True): torch.int8, (8, True): torch.int8, (8, False): torch.uint8}
    observer: Any = PerChannelMinMaxObserver if axis is not None else MinMaxObserver
    if qat and not signed:
        observer = MovingAverageMinMaxObserver
    observer = rounded_up(observer) if pow2 else observer
    quantizer: Any = FakeQuantize
    scheme = "channel" if axis is not None else "tensor"
    form = "symmetric" if symmetric else "affine"
    return QuantizationSpec(
        dtype=kind.get((bits, signed), torch.uint16), quant_min=-high if signed else 0,
        quant_max=high, qscheme=getattr(torch, f"per_{scheme}_{form}"), ch_axis=axis,
        is_dynamic=False,
        observer_or_fake_quant_ctr=(
            quantizer.with_args(observer=observer) if qat else observer.with_args(eps=2**-24)
        ),
    )  # fmt: skip


def _annotator(recipe: Recipe) -> Any:
    """Return a torchao `Quantizer` that annotates what the recipe says."""
    from torchao.quantization.pt2e.quantizer import (
        QuantizationAnnotation,
        Quantizer,
        SharedQuantizationSpec,
    )  # fmt: skip

    qat = recipe.qat is not None

    def activation(node: fx.Node) -> QuantizationSpec:
        chosen = recipe.activations
        return _spec(
            _setting(recipe, node, "activations") or chosen.bits, signed=False,
            symmetric=chosen.symmetric, axis=None, pow2=chosen.power_of_two, qat=qat,
        )  # fmt: skip

    def weight(node: fx.Node) -> QuantizationSpec:
        per_channel = _setting(recipe, node, "per_channel")
        per_channel = recipe.weights.per_channel if per_channel is None else per_channel
        return _spec(
            _setting(recipe, node, "weights") or recipe.weights.bits, signed=True, symmetric=True,
            axis=0 if per_channel else None, pow2=recipe.weights.power_of_two, qat=qat,
        )  # fmt: skip

    class Annotator(Quantizer):
        def annotate(self, model: fx.GraphModule) -> fx.GraphModule:
            for node in model.graph.nodes:
                if node.op != "call_function" or recipe.excluded(_name(node)):
                    continue
                if node.target in _MOVE:
                    shared = SharedQuantizationSpec((node.args[0], node))
                    inputs, output = {node.args[0]: activation(node)}, shared
                elif node.target in _CARRIERS:
                    inputs = {node.args[0]: activation(node), node.args[1]: weight(node)}
                    output = None if _rectified(node) else activation(node)
                elif node.target in _COMPUTE:
                    tensors = [a for a in node.args if isinstance(a, fx.Node)]
                    fused = node.target in _RECTIFY and _rectified(tensors[0])
                    inputs = {} if fused else {a: activation(node) for a in tensors}
                    output = activation(node)
                else:
                    continue
                node.meta["quantization_annotation"] = QuantizationAnnotation(
                    input_qspec_map=inputs, output_qspec=output, _annotated=True
                )
            return model

        def validate(self, model: fx.GraphModule) -> None:
            pass

    return Annotator()


def _rectified(node: fx.Node) -> bool:
    users = list(node.users)
    return node.target in _CARRIERS and len(users) == 1 and users[0].target in _RECTIFY


def _name(node: fx.Node) -> str:
    """Return the node's name in an export of the float network."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((p for p, _ in reversed(stack.values())), "")
    kind = getattr(node.target, "_opname", str(node.target)).rstrip("_")
    return f"{scope_of(path)}/{_OP_TYPES.get(kind, kind)}"


def _names(node: fx.Node) -> tuple[str, str]:
    """Return the node's name in an export of the float network, and its operator."""
    name = _name(node)
    return name, name.rsplit("/", 1)[1]


def _setting(recipe: Recipe, node: fx.Node, what: str) -> Any:
    return recipe.setting(*_names(node), what)


def _finish_(model: onnx.ModelProto, network: nn.Module) -> dict[str, Any]:
    """Round float biases to 32 bits in a file and its network; return what was counted."""
    from onnx import helper, numpy_helper

    graph = model.graph
    values = {tensor.name: tensor for tensor in graph.initializer}
    maker = producers(graph.node)
    counts: dict[str, Any] = {"activations": Counter(), "weights": Counter(), "biases": 0}
    added = []
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            counts["activations"][numpy_helper.to_array(values[node.input[2]]).dtype.name] += 1
        if node.op_type not in ("Conv", "Gemm") or len(node.input) < 3:
            continue
        entry, weight = (maker.get(name) for name in node.input[:2])
        if entry is None or weight is None:
            continue
        if not entry.op_type == weight.op_type == "DequantizeLinear":
            continue
        counts["weights"][numpy_helper.to_array(values[weight.input[0]]).dtype.name] += 1
        name = node.input[2]
        scales = [numpy_helper.to_array(values[n.input[1]]) for n in (entry, weight)]
        step = (scales[0] * scales[1]).astype(np.float32)
        integers = np.rint(numpy_helper.to_array(values[name]) / step).astype(np.int64)
        integers = np.clip(integers, -(2**31) + 1, 2**31 - 1).astype(np.int32)
        network.get_parameter(name).data = torch.from_numpy(integers * step).float()
        stored = {f"{name}_quantized": integers, f"{name}_scale": step}
        graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in stored.items())
        dq = f"{name}_DequantizeLinear_{counts['biases']}"
        extra: dict[str, Any] = {"axis": 0} if step.ndim else {}
        added.append(helper.make_node("DequantizeLinear", list(stored), [dq], name=dq, **extra))
        node.input[2] = dq
        counts["biases"] += 1
    for node in added:
        graph.node.insert(0, node)
    remove_unused_(model)
    return counts


class _quiet(warnings.catch_warnings):  # noqa: N801
    """Keep torchao's and the exporter's advice off the screen."""

    def __enter__(self) -> None:
        self.level = logging.root.manager.disable
        super().__enter__()
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)

    def __exit__(self, *exception: Any) -> None:
        logging.disable(self.level)
        super().__exit__(*exception)
