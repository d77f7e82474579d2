"""Small networks of kinds that people report to fail in converters and quantizers.

Each kind is a function that returns one network; its parameters make other members of the kind.
`KINDS` lists them with a strategy for those parameters and where such files come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx
from hypothesis import strategies as st

from . import constants, ends, flow, layers, loose


@dataclass(frozen=True)
class Kind:
    """One kind of network: how it is built, how it varies, where it comes from."""

    build: Callable[..., onnx.ModelProto]
    others: st.SearchStrategy[dict]
    source: str

    def write(self, path: Path, **parameters: object) -> Path:
        """Write one member to `path`; return it."""
        onnx.save(self.build(**parameters), path)
        return path


def _varied(**parameters: st.SearchStrategy) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries(parameters)


_SEED = st.integers(1, 99)
_SCALE = st.floats(0.25, 2.5, width=32)

KINDS: dict[str, Kind] = {
    "constant_nodes": Kind(
        constants.constant_nodes,
        _varied(seed=_SEED, identities=st.integers(1, 4), factor=_SCALE),
        "Paddle2ONNX and tf2onnx files: weights as Constant nodes, chains of Identity",
    ),
    "bias_in_value_floats": Kind(
        constants.bias_in_value_floats,
        _varied(seed=_SEED, form=st.sampled_from(["value_floats", "value_float"])),
        "onnxscript writes short constants as value_floats",
    ),
    "bias_behind_identity": Kind(
        constants.bias_behind_identity,
        _varied(seed=_SEED, readers=st.integers(2, 4)),
        "torch's legacy exporter writes equal weights once, read through Identity",
    ),
    "torch_legacy_export": Kind(
        constants.torch_legacy_export,
        _varied(seed=_SEED, channels=st.sampled_from([4, 8, 12])),
        "a fresh network exported with torch.onnx.export(dynamo=False)",
    ),
    "sparse_weight": Kind(
        constants.sparse_weight,
        _varied(seed=_SEED, zero_below=st.floats(0.1, 0.4)),
        "a pruned weight as sparse_initializer (legal since IR version 5)",
    ),
    "float16_inside": Kind(
        constants.float16_inside,
        _varied(seed=_SEED, kind=st.sampled_from(["FLOAT16"])),
        "onnxconverter-common with keep_io_types: Cast at both ends",
    ),
    "names_of_the_quantizer": Kind(
        constants.names_of_the_quantizer,
        _varied(seed=_SEED, bias=st.sampled_from(["b", "bias", "layer.bias"])),
        "a file that was quantized and turned back keeps the quantizer's names",
    ),
    "old_opset": Kind(
        constants.old_opset,
        _varied(seed=_SEED, opset=st.integers(7, 12)),
        "most files of model collections are of opset 7 to 12",
    ),
    "paddle": Kind(
        constants.paddle,
        _varied(seed=_SEED, opset=st.sampled_from([11, 12, 13])),
        "Paddle2ONNX: an open batch, weights in Constant nodes, hard-swish taken apart",
    ),
    "gemm_beta": Kind(
        layers.gemm_beta,
        _varied(seed=_SEED, beta=st.floats(0.3, 0.8), alpha=st.just(1.0)),
        "alpha and beta of Gemm, from ridge regression heads and scikit-learn",
    ),
    "gemm_scalar_bias": Kind(
        layers.gemm_scalar_bias, _varied(seed=_SEED, value=_SCALE), "Gemm's C of shape ()"
    ),
    "gemm_bias_of_two_dimensions": Kind(
        layers.gemm_bias_of_two_dimensions,
        _varied(seed=_SEED, shape=st.sampled_from([(1, 16), (1, 1), (1,)])),
        "Gemm's C of shape (1, N): Keras and scikit-learn converters",
    ),
    "grouped_deconvolution": Kind(
        layers.grouped_deconvolution,
        _varied(seed=_SEED, groups=st.sampled_from([2, 4, 8])),
        "github.com/microsoft/onnxruntime/issues/26665 and 11927: ConvTranspose with groups",
    ),
    "resize_modes": Kind(
        layers.resize_modes,
        _varied(seed=_SEED, factor=st.sampled_from([2, 3])),
        "github.com/microsoft/onnxruntime/issues/17641: modes of Resize",
    ),
    "resize_as_torch_writes_it": Kind(
        layers.resize_as_torch_writes_it,
        _varied(seed=_SEED, factor=st.sampled_from([2, 3, 4])),
        "nn.Upsample(scale_factor=2): nearest, asymmetric, floor",
    ),
    "rare_activations": Kind(
        layers.rare_activations,
        _varied(seed=_SEED, slope=_SCALE),
        "Mish, Celu, Gelu, PRelu with slopes of several shapes",
    ),
    "local_functions": Kind(
        flow.local_functions,
        _varied(seed=_SEED, calls=st.integers(1, 3), nested=st.booleans()),
        "modules exported as functions, onnxscript",
    ),
    "constant_condition": Kind(
        flow.constant_condition,
        _varied(seed=_SEED, holds=st.booleans(), as_node=st.booleans()),
        "If with a constant condition, from scripted modules; its branch reads outer tensors",
    ),
    "labels_not_scores": Kind(
        ends.labels_not_scores,
        _varied(seed=_SEED, keepdims=st.sampled_from([0, 1])),
        "a network that ends in ArgMax, for phones",
    ),
    "gray": Kind(
        ends.gray, _varied(seed=_SEED, side=st.sampled_from([28, 32, 40])), "MNIST and OCR"
    ),
    "logits_nchw": Kind(
        ends.logits_nchw,
        _varied(seed=_SEED, classes=st.sampled_from([8, 16, 24])),
        "SqueezeNet and DenseNet of the ONNX model zoo: output (1, classes, 1, 1)",
    ),
    "scores_and_features": Kind(
        ends.scores_and_features,
        _varied(seed=_SEED, features_first=st.booleans()),
        "two heads: logits and embedding",
    ),
    "nodes_of_one_name": Kind(
        loose.nodes_of_one_name,
        _varied(seed=_SEED, names=st.sampled_from([("op", "op"), ("a", "b"), ("/c/Conv", "")])),
        "github.com/microsoft/onnxruntime/issues/8811, github.com/wangzhaode/llm-export/issues/61",
    ),
    "unsorted_nodes": Kind(
        loose.unsorted_nodes,
        _varied(seed=_SEED, moved=st.integers(1, 6)),
        "github.com/onnx/onnx/issues/4070, github.com/ROCm/AMDMIGraphX/pull/4001",
    ),
    "input_left_out": Kind(
        loose.input_left_out,
        _varied(seed=_SEED, op=st.sampled_from(["Conv", "Clip"])),
        "github.com/onnx/onnx/issues/3744, github.com/microsoft/onnxruntime/issues/7075",
    ),
    "other_name_of_the_domain": Kind(
        loose.other_name_of_the_domain,
        _varied(seed=_SEED, nodes=st.booleans()),
        "github.com/onnx/onnx/issues/4215, github.com/sonos/tract/pull/371",
    ),
    "stale_shapes": Kind(
        loose.stale_shapes,
        _varied(seed=_SEED, where=st.sampled_from(["inside", "output"])),
        "github.com/onnx/onnx/issues/3804, github.com/airockchip/rknn-toolkit2/issues/87",
    ),
    "negative_batch": Kind(
        loose.negative_batch,
        _varied(seed=_SEED, batch=st.sampled_from([-1, -2])),
        "Paddle2ONNX: an open batch as -1",
    ),
    "tied_weights": Kind(
        loose.tied_weights,
        _varied(seed=_SEED, mirrored=st.sampled_from(["ConvTranspose", "Conv"])),
        "github.com/microsoft/onnxruntime/issues/21277, "
        "github.com/tensorflow/model-optimization/issues/994",
    ),
    "bias_read_elsewhere": Kind(
        loose.bias_read_elsewhere,
        _varied(seed=_SEED, by=st.sampled_from(["Reshape", "Unsqueeze"])),
        "beside github.com/microsoft/onnxruntime/issues/11530: a quantizer that never ends",
    ),
    "group_normalization": Kind(
        loose.group_normalization,
        _varied(seed=_SEED, groups=st.sampled_from([1, 2, 8]), layers=st.integers(1, 3)),
        "github.com/onnx/onnx/issues/7157, github.com/NVIDIA/TensorRT/issues/4336",
    ),
    "twin_branches": Kind(
        layers.twin_branches,
        _varied(seed=_SEED, branches=st.integers(2, 4), generated=st.booleans()),
        "light_inception_v1.onnx of the onnx package: equal branches, which ONNX Runtime merges",
    ),
    "recurrent": Kind(
        layers.recurrent,
        _varied(seed=_SEED, op=st.sampled_from(["GRU", "LSTM"])),
        "github.com/onnxruntime/onnxruntime-qnn/pull/498: LSTM and GRU end QNN's DLC writer",
    ),
    "fused_by_onnxruntime": Kind(
        loose.fused_by_onnxruntime,
        _varied(seed=_SEED, activation=st.sampled_from(["Relu", "Sigmoid", "LeakyRelu", "Tanh"])),
        "github.com/openvinotoolkit/openvino/issues/13177, github.com/opencv/opencv/issues/23044",
    ),
}
