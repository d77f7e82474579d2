"""A network under construction: nodes and seeded weights, one image in, scores out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 16
SIDE = 32


class Draft:
    """Nodes, weights and outputs; `finish` makes a checked model of them."""

    def __init__(self, seed=0, opset=17, shape=(1, 3, SIDE, SIDE)):
        self.random = np.random.default_rng(seed)
        self.opset, self.shape = opset, list(shape)
        self.nodes, self.weights, self.functions = [], {}, []

    def draw(self, *shape, scale=None):
        """Return float32 normal numbers, by default scaled as He initialisation does."""
        fan_in = int(np.prod(shape[1:])) or 1
        drawn = self.random.standard_normal(shape) * (scale or (2 / fan_in) ** 0.5)
        return drawn.astype(np.float32)

    def weight(self, name, array):
        self.weights[name] = np.asarray(array)
        return name

    def node(self, op, inputs, output, **attributes):
        """Add a node; return its (first) output."""
        outputs = [output] if isinstance(output, str) else list(output)
        node = helper.make_node(op, list(inputs), outputs, f"/{op}_{outputs[0]}", **attributes)
        self.nodes.append(node)
        return outputs[0]

    def constant(self, output, **value):
        return self.node("Constant", [], output, **value)

    def tensor_node(self, output, array):
        return self.constant(output, value=numpy_helper.from_array(np.asarray(array), output))

    def convolution(self, x, output, inside=8, channels=8, side=3, **attributes):
        """Add a Conv with drawn weights and bias; the size stays with the default padding."""
        w = self.weight(f"{output}.weight", self.draw(channels, inside, side, side))
        b = self.weight(f"{output}.bias", self.draw(channels, scale=0.1))
        attributes.setdefault("pads", [side // 2] * 4)
        return self.node("Conv", [x, w, b], output, **attributes)

    def stem(self, activation="Relu"):
        """Halve the image into 8 channels; return the tensor."""
        x = self.convolution("image", "stem", self.shape[1], strides=[2, 2])
        return self.node(activation, [x], "stem_act")

    def head(self, x, channels=8, output="scores", **gemm):
        """Pool, flatten and classify; return the tensor."""
        pooled = self.node("GlobalAveragePool", [x], "pooled")
        flat = self.node("Flatten", [pooled], "flat")
        w = self.weight("fc.weight", self.draw(CLASSES, channels))
        if "bias" not in gemm:
            gemm["bias"] = self.draw(CLASSES, scale=1.0)  # scores far apart: top-1 is stable
        b = self.weight("fc.bias", gemm.pop("bias"))
        return self.node("Gemm", [flat, w, b], output, transB=1, **gemm)

    def finish(
        self,
        outputs: Sequence[tuple] = (("scores", (1, CLASSES)),),
        kind: int = TensorProto.FLOAT,
        domains: Sequence[str] = (),
        sparse: Sequence[onnx.SparseTensorProto] = (),
    ) -> onnx.ModelProto:
        """Return the model, checked."""
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, self.shape)
        made = [helper.make_tensor_value_info(name, kind, shape) for name, shape in outputs]
        weights = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(
            self.nodes, "case", [image], made, weights, sparse_initializer=list(sparse)
        )
        if self.opset < 9:  # there a weight has to be listed as an input, too
            graph.input.extend(
                helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in weights
            )
        imports = [helper.make_opsetid("", self.opset)]
        imports += [helper.make_opsetid(domain, 1) for domain in domains]
        version = 3 if self.opset < 9 else 7 if self.opset < 15 else 8 if self.opset < 20 else 9
        model = helper.make_model(
            graph, opset_imports=imports, ir_version=version, functions=self.functions
        )
        onnx.checker.check_model(model, full_check=not sparse)  # shapes of those are not inferred
        return model
