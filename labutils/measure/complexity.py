"""Parameters and multiply-accumulates (MACs) of a module or an ONNX file, and what was left out.

One MAC is one multiplication and one addition. Counted are convolutions and matrix products,
without bias additions; everything else (activations, pooling, normalisation, scaling) is listed,
not counted. Tools differ in exactly this, which is why published figures for one network differ.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import typesetting
from ..errors import ModelFileError, UnknownNameError, UsageError
from ..models import modes, zoo
from ..onnxfile.file import OnnxFile
from ..onnxfile.graph import inputs, with_shapes
from ..onnxfile.wall import wall

if TYPE_CHECKING:
    import onnx
    from torch import nn

# The paper's own networks, known here by the parameters of torchvision's module. Howard et al.,
# "Searching for MobileNetV3" (ICCV 2019), table 3, at 224 px and 1,000 classes.
PAPER = {
    5_483_032: "219 M multiply-adds and 5.4 M parameters for V3-Large",
    2_542_856: "56 M multiply-adds and 2.5 M parameters for V3-Small",
}

DEFAULT_SHAPE = (1, 3, 128, 128)
_SHOWN_ROWS = 12


@dataclass(frozen=True)
class Row:
    """One module or one ONNX node; `parameters` and `macs` are its own, without its children."""

    name: str
    op: str
    parameters: int
    macs: int


@dataclass(frozen=True, repr=False)
class Complexity(typesetting.Shown):
    """What a network weighs.

    Attributes
    ----------
    source
        The module's class, or the file's name.
    input_shape
        NCHW.
    parameters
        Elements of weight tensors. In an ONNX file those of folded BatchNorms are gone.
    macs
        Multiply-accumulates of convolutions and matrix products, for this input.
    rows
        Every module or node that holds parameters or MACs; their sums are the totals.
    not_counted
        How often each other operation occurs.
    """

    source: str
    input_shape: tuple[int, ...]
    parameters: int
    macs: int
    rows: tuple[Row, ...]
    not_counted: Counter[str]

    def __getitem__(self, name: str) -> Row:
        """Return the row of a module or node."""
        for row in self.rows:
            if row.name == name:
                return row
        raise UnknownNameError("row", name, [row.name for row in self.rows])

    def __str__(self) -> str:
        shape = "x".join(map(str, self.input_shape))
        return "\n".join(
            [
                f"{self.source} at {shape}: {self.parameters:,} parameters, "
                f"{self.macs / 1e6:.2f} M MACs (convolutions and matrix products)",
                *(f"  {_columns(row)}" for row in self._largest()),
                *self._remarks(),
            ]
        )

    def _repr_html_(self) -> str:
        title, *_ = str(self).splitlines()
        head = ("name", "operation", "parameters", "MACs")
        rows = [(r.name, r.op, f"{r.parameters:,}", f"{r.macs:,}") for r in self._largest()]
        remarks = "".join(typesetting.paragraph(line.strip()) for line in self._remarks())
        return f"{typesetting.paragraph(title)}{typesetting.table(head, rows)}{remarks}"

    def _largest(self) -> list[Row]:
        return sorted(self.rows, key=lambda row: -row.macs)[:_SHOWN_ROWS]

    def _remarks(self) -> list[str]:
        rest = len(self.rows) - _SHOWN_ROWS
        lines = [f"  ... and {rest} more rows"] if rest > 0 else []
        if self.not_counted:
            listed = ", ".join(f"{op} {n}" for op, n in self.not_counted.most_common())
            lines.append(f"  Not counted as MACs: {listed}.")
        if self.parameters in PAPER and self.input_shape[1:] == (3, 224, 224):
            lines.append(
                f"  The paper states {PAPER[self.parameters]} (Howard et al. 2019, table 3), and "
                "not which operations it counts."
            )
        return lines


def count(
    model: nn.Module | zoo.Model | OnnxFile | str | Path, input_shape: Sequence[int] | None = None
) -> Complexity:
    """Count the parameters and MACs of a module or an ONNX file.

    Parameters
    ----------
    model
        A module, a zoo model, or an ``.onnx`` file.
    input_shape
        NCHW. By default a file's or a zoo model's own; `DEFAULT_SHAPE` for a bare module, and for
        the sizes that a file leaves open. A file's static sizes must agree with it.

    Returns
    -------
    Complexity
        Totals, one row per module or node, and what was not counted. In ONNX, weights in
        Constant nodes count as well; scales, zero points, shapes and lone numbers do not.

    Raises
    ------
    ModelFileError
        The file is missing or not ONNX.
    UsageError
        The shape does not fit the model.

    Examples
    --------
    >>> from labutils.measure import complexity
    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.Hardswish(), nn.Flatten())
    >>> found = complexity.count(net, (1, 3, 32, 32))
    >>> found.parameters, found.macs
    (224, 48600)
    """
    shape = tuple(input_shape) if input_shape is not None else None
    if isinstance(model, zoo.Model):
        shape = shape or model.input_shape
    network = (model.module or model.onnx or model.file) if isinstance(model, zoo.Model) else model
    if isinstance(network, OnnxFile | str | Path):
        return _count_onnx(OnnxFile.of(network), shape)
    assert network is not None  # a `zoo.Model` has a module or a file
    return _count_module(network, shape or DEFAULT_SHAPE)


@contextlib.contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """Count the MACs of whatever runs in the context, module or not.

    Yields
    ------
    Callable
        Returns the MACs so far, of convolutions and matrix products.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # Attention in one fused operation would hide its matrix products.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
            yield lambda: counter.get_total_flops() // 2  # a FLOP is half a MAC
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _columns(row: Row) -> str:
    return f"{row.name:<56} {row.op:<18} {row.parameters:>10,} {row.macs:>13,}"


def _count_module(module: nn.Module, shape: tuple[int, ...]) -> Complexity:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    some = next(module.parameters(), torch.empty(0))
    inputs = torch.zeros(shape, device=some.device, dtype=some.dtype)
    counter, others = FlopCounterMode(display=False), _uncounted()
    # Attention in one fused operation would hide its matrix products.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    plain = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    try:
        with modes.evaluating(module), torch.no_grad(), plain, counter, others:
            module(inputs)
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            f"{type(module).__name__} does not run on an input of shape {shape}: "
            f"{str(error).splitlines()[0]}"
        ) from None
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    macs = _own_macs(counter.get_flop_counts())
    rows: list[Row] = []
    seen: set[int] = set()
    for name, part in module.named_modules():
        own = [p for p in part.parameters(recurse=False) if id(p) not in seen]
        seen.update(map(id, own))
        row = Row(name, type(part).__name__, sum(p.numel() for p in own), macs.get(name, 0))
        if row.parameters or row.macs:
            rows.append(row)
    return _complexity(type(module).__name__, shape, rows, others.seen)


def _own_macs(flops: dict[str, dict]) -> dict[str, int]:
    """Return MACs by module name, without children, from the counter's totals with children."""
    totals = {
        name.partition(".")[2]: sum(by_op.values()) // 2  # a FLOP is half a MAC
        for name, by_op in flops.items()
        if name != "Global"
    }
    own = dict(totals)
    for name, total in totals.items():
        if name:
            parent = name.rpartition(".")[0]
            while parent not in own:  # a ModuleList, which is never called itself
                parent = parent.rpartition(".")[0]
            own[parent] -= total
    return own


def _uncounted() -> Any:
    """Return a context that tallies the operations which the FLOP counter has no formula for."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import flop_registry

    class Tally(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: Counter[str] = Counter()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001
            name = func.overloadpacket.__name__.rstrip("_")
            counted = func.overloadpacket in flop_registry
            if not counted and not func.is_view and name not in ("empty", "clone", "_unsafe_view"):
                self.seen[name] += 1
            return func(*args, **(kwargs or {}))

    return Tally()


def _complexity(
    source: str, shape: tuple[int, ...], rows: list[Row], not_counted: Counter[str]
) -> Complexity:
    return Complexity(
        source=source,
        input_shape=shape,
        parameters=sum(row.parameters for row in rows),
        macs=sum(row.macs for row in rows),
        rows=tuple(rows),
        not_counted=not_counted,
    )


# ONNX operators that hold weights, and through which a weight passes unchanged on its way there.
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "PRelu"}
_PASSING = {"DequantizeLinear", "QuantizeLinear", "Identity", "Cast", "Transpose", "Reshape"}
# Inputs that are settings, not weights: scales, zero points, bounds.
_SETTINGS = {"DequantizeLinear", "QuantizeLinear", "Clip", "Resize", "Upsample", "Pad"}
_CODES = ("QuantizeLinear", "DequantizeLinear")
_FREE = {"Constant", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Shape"}


def _count_onnx(file: OnnxFile, shape: tuple[int, ...] | None) -> Complexity:
    model, shape = _with_shapes(file, shape)
    constants = _constants(model.graph)
    sizes = _shapes(model.graph) | {name: dims for name, (dims, _) in constants.items()}
    parameters = _parameters(model.graph, constants)
    rows: list[Row] = []
    others: Counter[str] = Counter()
    for node in model.graph.node:
        macs = _macs(node, sizes)
        row = Row(node.name or node.op_type, node.op_type, parameters[node.output[0]], macs or 0)
        if row.parameters or row.macs:
            rows.append(row)
        if macs is None and node.op_type not in _FREE:
            others[node.op_type] += 1
    return _complexity(file.name, shape, rows, others)


def graph_macs(model: onnx.ModelProto) -> int | None:
    """Return the MACs of an ONNX model in memory; None where its shapes are open.

    Shapes are inferred only where the model does not state those that are needed.
    """
    for stated in (lambda: model, lambda: with_shapes(model)):
        graph = stated().graph
        sizes = _shapes(graph) | {name: dims for name, (dims, _) in _constants(graph).items()}
        with contextlib.suppress(UsageError):
            return sum(_macs(node, sizes) or 0 for node in graph.node)
    return None


def _with_shapes(
    file: OnnxFile, shape: tuple[int, ...] | None
) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """Return the model with all shapes inferred, and the shape of its input."""
    dims = file.inputs[0].type.tensor_type.shape.dim
    shape = shape or _own_shape(file.path, dims)
    fits = len(dims) == len(shape) and all(
        dim.dim_value in (0, n) for dim, n in zip(dims, shape, strict=False)
    )
    if not fits:
        own = tuple(dim.dim_value or dim.dim_param for dim in dims)
        raise UsageError(f"{file} takes an input of shape {own}, not {shape}.")
    narrow = any(node.domain and node.op_type in _CODES for node in file.proto.graph.node)
    if all(dim.dim_value for dim in dims) and not narrow and not file.proto.functions:
        return file.shaped, shape
    return _closed(file, shape), shape


def _closed(file: OnnxFile, shape: tuple[int, ...]) -> onnx.ModelProto:
    """Return the model for inputs of this shape, with shapes that only its copy can have."""
    import onnx.inliner

    model = file.copy()
    if model.functions:
        with wall("onnx cannot inline the functions of", file.name, error=ModelFileError):
            model = onnx.inliner.inline_local_functions(model)
    for dim, n in zip(inputs(model)[0].type.tensor_type.shape.dim, shape, strict=True):
        dim.dim_value = n
    del model.graph.value_info[:]  # stale where a size was left open
    for node in model.graph.node:
        if node.op_type in _CODES:
            node.domain = ""  # ONNX Runtime's own, for 16 bits: no shapes are inferred through it
    return with_shapes(model, data_prop=True)


def _own_shape(path: Path, dims: Sequence[onnx.TensorShapeProto.Dimension]) -> tuple[int, ...]:
    """Return a file's own input shape; what an image input leaves open is as in DEFAULT_SHAPE."""
    own = tuple(dim.dim_value for dim in dims)
    if all(own):
        return own
    if len(own) != len(DEFAULT_SHAPE):
        raise UsageError(f"{path} leaves its input's shape open: pass input_shape.")
    return tuple(n or usual for n, usual in zip(own, DEFAULT_SHAPE, strict=True))


def _constants(graph: onnx.GraphProto) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return (shape, element type) of initializers and Constant nodes, by tensor name."""
    found = {tensor.name: (tuple(tensor.dims), tensor.data_type) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            found[node.output[0]] = (tuple(tensor.dims), tensor.data_type)
    return found


def _shapes(graph: onnx.GraphProto) -> dict[str, tuple[int, ...]]:
    return {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*graph.value_info, *graph.input, *graph.output)
    }


def _parameters(
    graph: onnx.GraphProto, constants: dict[str, tuple[tuple[int, ...], int]]
) -> Counter[str]:
    """Return the parameters of each node, by its first output; a shared tensor counts once."""
    from onnx import TensorProto

    not_weights = (TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING)
    users = {name: node for node in reversed(graph.node) for name in node.input}
    own: Counter[str] = Counter()
    for name, (dims, kind) in constants.items():
        node = users.get(name)
        if node is None or kind in not_weights:
            continue
        if node.op_type in _SETTINGS and name != node.input[0]:
            continue
        while node.op_type in _PASSING and node.output[0] in users:
            node = users[node.output[0]]
        if prod(dims) > 1 or node.op_type in _WEIGHTED:
            own[node.output[0]] += prod(dims)
    return own


def _macs(node: onnx.NodeProto, sizes: dict[str, tuple[int, ...]]) -> int | None:
    """Return the MACs of one node, None for an operator that is not counted."""
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return None
    first, second, out = (sizes.get(n, ()) for n in (*node.input[:2], node.output[0]))
    if not (first and second and out and all((*first, *second, *out))):
        raise UsageError(
            f"The shapes around {node.op_type} node {node.name!r} cannot be inferred, so its MACs "
            "are unknown. Give the file static shapes (onnxsim), or count the module."
        )
    if node.op_type == "Conv":  # weight: (out, in / groups, *kernel)
        return prod(out) * prod(second[1:])
    if node.op_type == "ConvTranspose":  # weight: (in, out / groups, *kernel)
        return prod(first) * prod(second[1:])
    if node.op_type == "MatMul":
        return prod(out) * first[-1]
    transposed = any(a.name == "transA" and a.i for a in node.attribute)
    return prod(out) * first[0 if transposed else 1]
