"""Blocks of drawn networks: a few nodes each, as opsets 7 to 21 write them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

SIDE = 24
CLASSES = 8


class Draw:
    """Nodes and weights as they are drawn, with the shape of every tensor."""

    def __init__(self, seed: int, opset: int) -> None:
        self.chance, self.opset = np.random.default_rng(seed), opset
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"image": (1, 3, SIDE, SIDE)}
        self.count = 0

    def pick(self, options):
        return options[int(self.chance.integers(len(options)))]

    def happens(self, share: float) -> bool:
        return bool(self.chance.random() < share)

    def name(self, what: str) -> str:
        self.count += 1
        return f"{what}_{self.count}"

    def weight(self, array) -> str:
        name = self.name("w")
        self.weights[name] = np.asarray(array)
        return name

    def normal(self, *shape, scale=None):
        fan_in = int(np.prod(shape[1:])) or 1
        drawn = self.chance.standard_normal(shape) * (scale or (2 / fan_in) ** 0.5)
        return drawn.astype(np.float32)

    def node(self, op, inputs, shape, **attributes) -> str:
        out = self.name(op.lower())
        self.nodes.append(helper.make_node(op, list(inputs), [out], f"/{out}", **attributes))
        self.shapes[out] = tuple(shape)
        return out

    def with_list(self, op, inputs, shape, key, values, since, **attributes) -> str:
        """Add a node whose list is an attribute before an opset, and an input from it on."""
        if self.opset < since:
            return self.node(op, inputs, shape, **{key: list(values)}, **attributes)
        listed = self.weight(np.array(values, np.int64))
        return self.node(op, [*inputs, listed], shape, **attributes)


def convolution(d: Draw, x: str) -> str:
    n, c, h, w = d.shapes[x]
    side, groups = d.pick((1, 3, 3)), d.pick((1, 1, 1, c)) if c > 1 else 1
    out = c if groups > 1 else d.pick((4, 6, 8))
    stride = 2 if h > 8 and d.happens(0.2) else 1
    inputs = [x, d.weight(d.normal(out, c // groups, side, side))]
    if d.happens(0.7):
        inputs.append(d.weight(d.normal(out, scale=0.2)))
    size = [(s - 1) // stride + 1 for s in (h, w)]
    pads = {"auto_pad": "SAME_UPPER"} if d.happens(0.15) else {"pads": [side // 2] * 4}
    extra = {"kernel_shape": [side, side]} if d.happens(0.5) else {}
    extra |= {"group": groups, "strides": [stride] * 2, **pads}
    return d.node("Conv", inputs, (n, out, *size), **extra)


def _deconv(d: Draw, x: str) -> str:
    n, c, h, w = d.shapes[x]
    if h > 16:
        return convolution(d, x)
    groups = d.pick((1, 1, 2)) if c % 2 == 0 else 1
    out = 4
    inputs = [x, d.weight(d.normal(c, out // groups, 2, 2, scale=(2 / c) ** 0.5))]
    if d.happens(0.7):
        inputs.append(d.weight(d.normal(out, scale=0.2)))
    return d.node("ConvTranspose", inputs, (n, out, 2 * h, 2 * w), strides=[2, 2], group=groups)


def _norm(d: Draw, x: str) -> str:
    c = d.shapes[x][1]
    values = (np.abs(d.normal(c, scale=0.3)) + 0.7, d.normal(c, scale=0.2),
              d.normal(c, scale=0.2), np.abs(d.normal(c, scale=0.3)) + 0.7)  # fmt: skip
    return d.node("BatchNormalization", [x, *map(d.weight, values)], d.shapes[x])


_PLAIN = ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "HardSigmoid", "Softplus", "Abs"]
_SINCE = {"HardSwish": 14, "Mish": 18, "Gelu": 20}


def _activation(d: Draw, x: str) -> str:
    options = [*_PLAIN, *(op for op, opset in _SINCE.items() if d.opset >= opset)]
    return d.node(d.pick(options), [x], d.shapes[x])


def _relu6(d: Draw, x: str) -> str:
    if d.opset < 11:
        return d.node("Clip", [x], d.shapes[x], min=0.0, max=6.0)
    ends = [d.weight(np.float32(0)), d.weight(np.float32(6))]
    if d.happens(0.2):
        ends[0] = ""
    return d.node("Clip", [x, *ends], d.shapes[x])


def _prelu(d: Draw, x: str) -> str:
    c = d.shapes[x][1]
    shape = d.pick(((c, 1, 1), (1, c, 1, 1), (1,)))
    return d.node("PRelu", [x, d.weight(np.abs(d.normal(*shape, scale=0.2)))], d.shapes[x])


def _hard_swish_apart(d: Draw, x: str) -> str:
    if d.opset >= 11 and d.happens(0.5):
        moved = d.node("Add", [x, d.weight(np.float32(3))], d.shapes[x])
        kept = d.node(
            "Clip", [moved, d.weight(np.float32(0)), d.weight(np.float32(6))], d.shapes[x]
        )
        product = d.node("Mul", [x, kept] if d.happens(0.5) else [kept, x], d.shapes[x])
        return d.node("Div", [product, d.weight(np.float32(6))], d.shapes[x])
    gate = d.node("HardSigmoid", [x], d.shapes[x], alpha=1 / 6, beta=0.5)
    return d.node("Mul", [gate, x], d.shapes[x])  # x, gate is a known fault of QNN


def _scale(d: Draw, x: str) -> str:
    c, op = d.shapes[x][1], d.pick(("Add", "Sub", "Mul", "Div"))
    shape = d.pick(((), (1,), (c, 1, 1), (1, c, 1, 1)))
    array = d.normal(*shape, scale=0.3)
    array = array if op in ("Add", "Sub") else 0.8 + np.abs(array)
    inputs = [x, d.weight(np.asarray(array, np.float32))]
    if op != "Div" and d.happens(0.3):
        inputs.reverse()
    return d.node(op, inputs, d.shapes[x])


def _residual(d: Draw, x: str) -> str:
    c = d.shapes[x][1]
    w = d.weight(d.normal(c, c, 1, 1) * np.float32(0.5))
    inner = d.node("Conv", [x, w], d.shapes[x])
    inner = _activation(d, inner) if d.happens(0.5) else inner
    return d.node("Add", [inner, x] if d.happens(0.5) else [x, inner], d.shapes[x])


def _squeeze_excite(d: Draw, x: str) -> str:
    n, c, h, w = d.shapes[x]
    if d.happens(0.5):
        pooled = d.node("GlobalAveragePool", [x], (n, c, 1, 1))
    else:
        pooled = d.with_list("ReduceMean", [x], (n, c, 1, 1), "axes", [2, 3], 18, keepdims=1)
    weights = [d.weight(d.normal(c, c, 1, 1)), d.weight(d.normal(c, scale=0.2))]
    gate = d.node("Conv", [pooled, *weights], (n, c, 1, 1))
    gate = d.node(d.pick(("Sigmoid", "HardSigmoid")), [gate], (n, c, 1, 1))
    return d.node("Mul", [x, gate] if d.happens(0.5) else [gate, x], (n, c, h, w))


def _concat(d: Draw, x: str) -> str:
    n, c, h, w = d.shapes[x]
    if c > 8:
        return convolution(d, x)
    other = _activation(d, x)
    axis = d.pick((1, -3)) if d.opset >= 11 else 1
    return d.node("Concat", [x, other], (n, 2 * c, h, w), axis=axis)


def _split(d: Draw, x: str) -> str:
    n, c, h, w = d.shapes[x]
    if c % 2:
        return convolution(d, x)
    names = [d.name("part"), d.name("part")]
    inputs, attributes = [x], {"axis": 1}
    if d.opset < 13:
        attributes["split"] = [c // 2] * 2
    else:
        inputs.append(d.weight(np.array([c // 2] * 2, np.int64)))
    d.nodes.append(helper.make_node("Split", inputs, names, f"/{names[0]}", **attributes))
    for name in names:
        d.shapes[name] = (n, c // 2, h, w)
    first = d.node("Relu", names[:1], (n, c // 2, h, w))
    return d.node("Concat", [names[1], first], (n, c, h, w), axis=1)


def _pool(d: Draw, x: str) -> str:
    n, c, h, w = d.shapes[x]
    if h < 8 or h % 2:
        return _activation(d, x)
    op = d.pick(("MaxPool", "AveragePool"))
    return d.node(op, [x], (n, c, h // 2, w // 2), kernel_shape=[2, 2], strides=[2, 2])


def _pad(d: Draw, x: str) -> str:
    n, c, h, w = d.shapes[x]
    pads = [0, 0, 1, 0, 0, 0, 1, 2]
    shape, mode = (n, c, h + 2, w + 2), d.pick(("constant", "reflect", "edge"))
    return d.with_list("Pad", [x], shape, "pads", pads, 11, mode=mode)


def _shuffle(d: Draw, x: str) -> str:
    n, c, h, w = d.shapes[x]
    if c % 2:
        return convolution(d, x)
    wide = d.weight(np.array([0, 2, c // 2, h, w], np.int64))
    y = d.node("Reshape", [x, wide], (n, 2, c // 2, h, w))
    y = d.node("Transpose", [y], (n, c // 2, 2, h, w), perm=[0, 2, 1, 3, 4])
    return d.node("Reshape", [y, d.weight(np.array([0, -1, h, w], np.int64))], (n, c, h, w))


def _upsample(d: Draw, x: str) -> str:
    n, c, h, w = d.shapes[x]
    if h > 12:
        return convolution(d, x)
    if d.opset < 9:  # an attribute still
        return d.node("Upsample", [x], (n, c, 2 * h, 2 * w), scales=[1.0, 1.0, 2.0, 2.0])
    scales = d.weight(np.float32([1, 1, 2, 2]))
    if d.opset < 11:
        op = "Upsample" if d.opset < 10 else "Resize"
        return d.node(op, [x, scales], (n, c, 2 * h, 2 * w), mode="nearest")
    roi = "" if d.opset >= 13 else d.weight(np.zeros(0, np.float32))
    coordinates, rounding = d.pick((("asymmetric", "floor"), ("half_pixel", "round_prefer_floor")))
    return d.node("Resize", [x, roi, scales], (n, c, 2 * h, 2 * w), mode="nearest",
                  coordinate_transformation_mode=coordinates, nearest_mode=rounding)  # fmt: skip


def _last_norm(d: Draw, x: str) -> str:
    n, c, h, w = d.shapes[x]
    if d.opset < 17:
        return _norm(d, x)
    y = d.node("Transpose", [x], (n, h, w, c), perm=[0, 2, 3, 1])
    weights = [d.weight(1 + d.normal(c, scale=0.2)), d.weight(d.normal(c, scale=0.2))]
    y = d.node("LayerNormalization", [y, *weights], (n, h, w, c))
    return d.node("Transpose", [y], (n, c, h, w), perm=[0, 3, 1, 2])


BLOCKS = (
    convolution, convolution, convolution, _deconv, _norm, _activation, _activation, _relu6, _prelu,
    _hard_swish_apart, _scale, _residual, _squeeze_excite, _concat, _split, _pool, _pad, _shuffle,
    _upsample, _last_norm,
)  # fmt: skip


def head(d: Draw, x: str, odd: bool) -> None:
    """Pool, flatten and classify, in one of the usual ways."""
    n, c, _, _ = d.shapes[x]
    if d.happens(0.6):
        pooled = d.node("GlobalAveragePool", [x], (n, c, 1, 1))
        kind = d.pick(("flatten", "reshape", "squeeze"))
        if kind == "flatten":
            flat = d.node("Flatten", [pooled], (n, c))
        elif kind == "reshape":
            flat = d.node("Reshape", [pooled, d.weight(np.array([0, -1], np.int64))], (n, c))
        else:
            flat = d.with_list("Squeeze", [pooled], (n, c), "axes", [2, 3], 13)
    else:
        flat = d.with_list("ReduceMean", [x], (n, c), "axes", [2, 3], 18, keepdims=0)
    weight, bias = d.normal(c, CLASSES, scale=1.0), d.normal(CLASSES, scale=0.5)
    if d.happens(0.3):
        product = d.node("MatMul", [flat, d.weight(weight)], (n, CLASSES))
        last = d.node("Add", [product, d.weight(bias)], (n, CLASSES))
    else:
        attributes = {"transB": 1} if d.happens(0.6) else {}
        if odd and d.happens(0.3):
            attributes |= {"alpha": d.pick((0.5, 2.0)), "beta": d.pick((0.25, 1.0, 1.5))}
        shape = (CLASSES,)
        if odd and d.happens(0.3):
            shape = d.pick(((1, CLASSES), (1, 1), (1,), ()))
        if d.opset < 11 or not d.happens(0.15):
            bias = bias[:1].reshape(shape) if int(np.prod(shape)) == 1 else bias.reshape(shape)
            inputs = [d.weight(weight.T if "transB" in attributes else weight), d.weight(bias)]
        else:
            inputs = [d.weight(weight.T if "transB" in attributes else weight)]
        last = d.node("Gemm", [flat, *inputs], (n, CLASSES), **attributes)
    node = next(node for node in d.nodes if last in node.output)
    node.output[0] = "scores"
