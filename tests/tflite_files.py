"""Tiny ``.tflite`` files, written by the schema in Google's wheel: no converter is needed.

`Writer` takes one operator after the other, as a converter would write them; `network` writes a
small MobileNet of them, right or with one of the mistakes that conversions are known for.
"""

import numpy as np


class Writer:
    """One ``.tflite``, operator by operator; `add` returns the number of the tensor written."""

    def __init__(self, shape, kind=np.float32):
        from ai_edge_litert import schema_py_generated as schema

        self.schema = schema
        self.model = schema.ModelT()
        self.model.version, self.model.description = 3, b"a test"
        self.model.buffers, self.model.operatorCodes = [schema.BufferT()], []
        self.graph = schema.SubGraphT()
        self.graph.tensors, self.graph.operators, self.graph.name = [], [], b"main"
        self.codes = {}
        self.input = self.tensor(shape, kind, name="x")

    def tensor(self, shape, kind=np.float32, values=None, name=None, scale=None, zero=0):
        tensor = self.schema.TensorT()
        tensor.name = (name or f"t{len(self.graph.tensors)}").encode()
        tensor.shape = list(shape)
        kinds = {"float32": "FLOAT32", "int32": "INT32", "int8": "INT8", "uint8": "UINT8"}
        tensor.type = getattr(self.schema.TensorType, kinds[np.dtype(kind).name])
        tensor.buffer = 0
        if values is not None:
            buffer = self.schema.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(values, kind).tobytes(), np.uint8)
            tensor.buffer = len(self.model.buffers)
            self.model.buffers.append(buffer)
        if scale is not None:
            tensor.quantization = self.schema.QuantizationParametersT()
            tensor.quantization.scale = [scale]
            tensor.quantization.zeroPoint = [zero]
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def constant(self, values, kind=np.float32):
        values = np.asarray(values, kind)
        return self.tensor(values.shape, kind, values)

    def add(self, op, inputs, shape, options=None, kind=np.float32, **quantized):
        out = self.tensor(shape, kind, **quantized)
        operator = self.schema.OperatorT()
        operator.opcodeIndex = self._code(op)
        operator.inputs, operator.outputs = list(inputs), [out]
        if options:
            named, values = options
            made = getattr(self.schema, f"{named}T")()
            for name, value in values.items():
                setattr(made, name, value)
            operator.builtinOptions = made
            operator.builtinOptionsType = getattr(self.schema.BuiltinOptions, named)
        self.graph.operators.append(operator)
        return out

    def _code(self, op):
        if op not in self.codes:
            code = self.schema.OperatorCodeT()
            number = getattr(self.schema.BuiltinOperator, op)
            code.builtinCode, code.deprecatedBuiltinCode = number, min(number, 127)
            code.version = 1
            self.codes[op] = len(self.model.operatorCodes)
            self.model.operatorCodes.append(code)
        return self.codes[op]

    def write(self, path, *outputs):
        self.graph.inputs, self.graph.outputs = [self.input], list(outputs)
        self.model.subgraphs = [self.graph]
        import flatbuffers

        builder = flatbuffers.Builder(1 << 16)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return path

    # --- operators ---

    def conv(self, x, kernel, bias, size, stride=1, padding="VALID", depthwise=False):
        """`kernel` is OIHW, as PyTorch has it."""
        order = (1, 2, 3, 0) if depthwise else (0, 2, 3, 1)
        named = "DepthwiseConv2D" if depthwise else "Conv2D"
        values = {"strideH": stride, "strideW": stride, "dilationHFactor": 1}
        values |= {"dilationWFactor": 1, "padding": getattr(self.schema.Padding, padding)}
        values |= {"depthMultiplier": 1} if depthwise else {}
        op = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        inputs = [x, self.constant(kernel.transpose(order)), self.constant(bias)]
        shape = (1, size, size, len(bias))
        return self.add(op, inputs, shape, (f"{named}Options", values))

    def pad(self, x, size, channels, around=1):
        pairs = self.constant([(0, 0), (around,) * 2, (around,) * 2, (0, 0)], np.int32)
        shape = (1, size + 2 * around, size + 2 * around, channels)
        return self.add("PAD", [x, pairs], shape, ("PadOptions", {}))

    def mean(self, x, channels):
        axes = self.constant([1, 2], np.int32)
        return self.add("MEAN", [x, axes], (1, channels), ("ReducerOptions", {"keepDims": False}))

    def linear(self, x, weight, bias):
        inputs = [x, self.constant(weight), self.constant(bias)]
        return self.add("FULLY_CONNECTED", inputs, (1, len(bias)), ("FullyConnectedOptions", {}))


MISTAKES = {
    "padding": "Conv", "layout": "Conv", "epsilon": "Conv", "depthwise order": "Conv",
    "kernel order": "Conv", "softmax axis": "Softmax", "resize": "Resize",
    "activation": "HardSwish", "pooling": "ReduceMean",
}  # fmt: skip
"""What a conversion may get wrong without any error, each a variant of `network` -> the operator of
the ONNX file whose tensor is the first that departs."""


def network(path, module, mistake=""):
    """Write the `.tflite` of a `small_network`, with a mistake or without."""
    size, epsilon = module.size, module.bn.eps
    w = Writer((1, size, size, 3))
    x = w.input
    if mistake == "layout":  # NHWC bytes taken for NCHW ones
        shape = w.constant([1, 3, size, size], np.int32)
        x = w.add("RESHAPE", [x, shape], (1, 3, size, size))
        x = w.add("TRANSPOSE", [x, w.constant([0, 2, 3, 1], np.int32)], (1, size, size, 3))
    scale, shift = folded(module.bn, 1e-3 if mistake == "epsilon" else epsilon)
    stem = module.stem.weight.detach().numpy()
    if mistake == "kernel order":  # rows for columns
        stem = stem.transpose(0, 1, 3, 2)
    half, kernel = size // 2, stem * scale[:, None, None, None]
    if mistake == "padding":  # TensorFlow's "same" is not PyTorch's padding at stride 2
        x = w.conv(x, kernel, shift, half, 2, "SAME")
    else:
        x = w.conv(w.pad(x, size, 3), kernel, shift, half, 2)
    channels = len(shift)
    x = w.add("RELU6" if mistake == "activation" else "HARD_SWISH", [x],
              (1, half, half, channels))  # fmt: skip
    deep = module.depthwise.weight.detach().numpy()
    if mistake == "depthwise order":
        deep = np.ascontiguousarray(deep.reshape(9, channels).T.reshape(channels, 1, 3, 3))
    x = w.pad(x, half, channels)
    x = w.conv(x, deep, module.depthwise.bias.detach().numpy(), half, depthwise=True)
    twice = half * 2
    to = w.constant([twice, twice], np.int32)
    pixels = {"alignCorners": mistake == "resize", "halfPixelCenters": mistake != "resize"}
    x = w.add("RESIZE_BILINEAR", [x, to], (1, twice, twice, channels),
              ("ResizeBilinearOptions", pixels))  # fmt: skip
    if mistake == "softmax axis":
        turned = w.constant([0, 3, 1, 2], np.int32)
        x = w.add("TRANSPOSE", [x, turned], (1, channels, twice, twice))
    x = w.add("SOFTMAX", [x], w.graph.tensors[x].shape, ("SoftmaxOptions", {"beta": 1.0}))
    if mistake == "softmax axis":
        back = w.constant([0, 2, 3, 1], np.int32)
        x = w.add("TRANSPOSE", [x, back], (1, twice, twice, channels))
    if mistake == "pooling":
        axes = w.constant([1, 2], np.int32)
        x = w.add("REDUCE_MAX", [x, axes], (1, channels), ("ReducerOptions", {"keepDims": False}))
    else:
        x = w.mean(x, channels)
    head = module.head
    x = w.linear(x, head.weight.detach().numpy(), head.bias.detach().numpy())
    return w.write(path, x)


def folded(bn, epsilon):
    """Return scale and shift of a BatchNorm."""
    mean, variance = bn.running_mean.numpy(), bn.running_var.numpy()
    scale = bn.weight.detach().numpy() / np.sqrt(variance + epsilon)
    return scale, bn.bias.detach().numpy() - mean * scale


def small_network(size=16, channels=8, classes=5, seed=0):
    """Return the PyTorch network that `network` writes."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.size = size
            self.stem = nn.Conv2d(3, channels, 3, 2, 1, bias=False)
            self.bn = nn.BatchNorm2d(channels)
            self.act = nn.Hardswish()
            self.depthwise = nn.Conv2d(channels, channels, 3, 1, 1, groups=channels)
            self.head = nn.Linear(channels, classes)

        def forward(self, x):
            x = self.depthwise(self.act(self.bn(self.stem(x))))
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            return self.head(torch.softmax(x, dim=1).mean((2, 3)))

    torch.manual_seed(seed)
    made = Small().eval()
    with torch.no_grad():
        made.bn.running_mean.normal_(0, 0.3)
        made.bn.running_var.uniform_(0.001, 0.01)  # small, so that an epsilon matters
        made.head.weight.mul_(20)
    return made


def relu_network(seed=0):
    """Return a network for images of 16 pixels; a quantizer leaves its ReLU to the range."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Hardswish(), nn.Flatten(),
        nn.Linear(144, 5),
    ).eval()  # fmt: skip


def doubled(path, scale=0.05, zero=-3):
    """Write a file with int8 ends that gives its input, doubled by its scales."""
    w = Writer((1, 4, 4, 3), np.int8)
    w.graph.tensors.clear()
    w.input = w.tensor((1, 4, 4, 3), np.int8, name="x", scale=scale, zero=zero)
    floats = w.add("DEQUANTIZE", [w.input], (1, 4, 4, 3))
    twice = w.add("ADD", [floats, floats], (1, 4, 4, 3), ("AddOptions", {}))
    out = w.add("QUANTIZE", [twice], (1, 4, 4, 3), kind=np.int8, scale=2 * scale, zero=zero)
    return w.write(path, out)


def noise(n, size, seed=1):
    """Return images (n, 3, size, size) float32."""
    return np.random.default_rng(seed).normal(size=(n, 3, size, size)).astype(np.float32)
