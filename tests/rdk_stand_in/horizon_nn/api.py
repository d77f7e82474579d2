"""``build_onnx`` and ``ORTExecutor``; see the package."""

import json
import logging
import re
from collections import Counter

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

_YUV = ("YUV_BT601_VIDEO_RANGE", "YUV_BT601_FULL_RANGE")
_WIDTHS = ("int8", "int16")
_ENTRY = re.compile(r"ON|InputType\d*|OutputType")


def build_onnx(
    onnx_file, march, name_prefix="", input_dict=None, cali_dict=None, hbdk_dict=None,
    output_nodes=None, node_dict=None, save_model=True,
):  # fmt: skip
    """Check everything, round the weights, log a table and an estimate, return the hybrid model."""
    model = onnx.load(onnx_file)
    _check_model(model, march)
    ((name, entry),) = input_dict.items()
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    if name != model.graph.input[0].name or list(entry["input_shape"]) != shape:
        raise ValueError(f"input_dict is of {name} {entry['input_shape']}, the model of {shape}")
    if entry["original_input_layout"] != "NCHW":
        raise ValueError(f"layout {entry['original_input_layout']}")
    nv12 = entry.get("expected_input_type")
    if nv12 not in (None, *_YUV):
        raise ValueError(f"expected_input_type {nv12}")
    if bool(nv12) != ("input-source" in hbdk_dict):
        raise ValueError("NV12 comes from the pyramid, and floats from memory")
    _check_calibration(cali_dict, name, shape, pixels=bool(nv12))
    _check_nodes(model, node_dict)
    _round_weights(model, node_dict)
    for step in ("optimize", "calibrate", "quantize", "compile"):
        logging.info("[Sun Nov 29 2026] Start to %s the model.", step)
    _log_table(model, node_dict)
    if save_model:
        onnx.save(_packed(model, entry, "HzSQuantizedConv"), f"{name_prefix}_quantized_model.onnx")
    print("FPS=1267.23, latency = 789.1 us, DDR = 4830528 bytes", flush=True)
    return _packed(model, entry, "HzBpuHBM")


def _check_model(model, march):
    if march != "bayes-e":
        raise ValueError(f"march {march} is not of this stand-in")
    opset = next(e.version for e in model.opset_import if e.domain in ("", "ai.onnx"))
    if opset > 11:
        raise ValueError(
            f"The opset version of the model is {opset}, the maximum supported version is 11."
        )
    if model.ir_version > 9:
        raise ValueError(
            f"The ir version of the model is {model.ir_version}, which is greater than the maximum "
            "supported ir version of 9."
        )
    if any(node.domain not in ("", "ai.onnx") for node in model.graph.node):
        raise ValueError("unsupported domain detected in model")


def _check_calibration(cali_dict, name, shape, pixels):
    if cali_dict["calibration_type"] not in ("default", "mix", "kl", "max"):
        raise ValueError(f"calibration_type {cali_dict['calibration_type']}")
    samples = cali_dict["calibration_data"][name]
    for sample in samples:
        _check_array(sample, "<f4", shape)
        values = sample if pixels else (sample - sample.min()) * 50
        if pixels and (sample.min() < 0 or sample.max() > 255 or sample.max() <= 1.5):
            raise ValueError("calibration pictures are pixels from 0 to 255")
        if _is_interleaved(values):
            raise ValueError("the calibration data look like NHWC bytes in an NCHW shape")


def _check_array(array, kind, shape):
    if array.dtype.str != kind:
        raise TypeError(f"dtype {array.dtype.str}, not {kind}")
    if list(array.shape) != list(shape):
        raise ValueError(f"shape {list(array.shape)}, not {list(shape)}")
    if not array.flags.c_contiguous:
        raise ValueError("the array is not contiguous")


def _is_interleaved(array):
    """Whether neighbours three bytes apart are more alike than direct ones."""
    flat = array.ravel().astype(np.float64)
    return np.abs(flat[3:] - flat[:-3]).mean() < 0.8 * np.abs(flat[1:] - flat[:-1]).mean()


def _check_nodes(model, node_dict):
    names = {node.name for node in model.graph.node}
    for name, said in (node_dict or {}).items():
        if name not in names:
            raise ValueError(f"node_dict names {name}, which the model does not have")
        if said["ON"] not in ("BPU", "CPU") or not all(_ENTRY.fullmatch(key) for key in said):
            raise ValueError(f"node_dict says {said} of {name}")
        if not {said[key] for key in said if key != "ON"} <= set(_WIDTHS):
            raise ValueError(f"node_dict says {said} of {name}")


def _round_weights(model, node_dict):
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in ("Conv", "Gemm") and node.input[1] in stored:
            said = (node_dict or {}).get(node.name, {})
            top = 32767 if said.get("InputType") == "int16" else 127
            tensor = stored[node.input[1]]
            values = numpy_helper.to_array(tensor)
            scale = np.abs(values).max() / top or 1.0
            rounded = (np.rint(values / scale) * scale).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))


def _log_table(model, node_dict):
    logging.info("The quantized model node information:")
    row = "%-30s %-4s %-9s %-18s %-18s %-10s %s"
    logging.info(
        row, "Node", "ON", "Subgraph", "Type", "Cosine Similarity", "Threshold", "DataType"
    )
    logging.info("-" * 100)
    for node in model.graph.node:
        wide = (node_dict or {}).get(node.name, {}).get("InputType", "int8")
        logging.info(row, node.name, "BPU", "id(0)", f"HzS{node.op_type}", "0.999876", "2.51", wide)
    logging.info("done")


def _packed(model, entry, kind):
    """Return a graph of one node of the vendor's domain, that holds the model and its input."""
    nv12 = entry.get("expected_input_type")
    shape = list(entry["input_shape"])
    kept = {"shape": shape, "nv12": nv12 or ""}
    if nv12:
        kept |= {key: np.asarray(entry[key]).tolist() for key in ("means", "scales")}
    taken = [1, *shape[2:], 3] if nv12 else shape
    name, output = model.graph.input[0].name, model.graph.output[0]
    node = helper.make_node(
        kind, [name], [output.name], "bpu", domain="horizon",
        model=model.SerializeToString(), facts=json.dumps(kept),
    )  # fmt: skip
    type_ = TensorProto.INT8 if nv12 else TensorProto.FLOAT
    graph = helper.make_graph(
        [node], "hybrid", [helper.make_tensor_value_info(name, type_, taken)], [output]
    )
    sets = [helper.make_opsetid("", 11), helper.make_opsetid("horizon", 1)]
    return helper.make_model(graph, opset_imports=sets, ir_version=7)


class ORTExecutor:
    """Runs what `build_onnx` made."""

    def __init__(self, model):
        self.node = model.graph.node[0]
        said = {a.name: a.s for a in self.node.attribute}
        self.facts, self.model = json.loads(said["facts"]), said["model"]
        self.counts = Counter()

    def create_session(self):
        self.session = onnxruntime.InferenceSession(self.model)
        print("core[0] open!", flush=True)
        return self

    def inference(self, inputs):
        ((name, array),) = inputs.items()
        shape = self.facts["shape"]
        if not self.facts["nv12"]:
            _check_array(array, "<f4", shape)
            fed = array
        else:
            _check_array(array, "|i1", [1, *shape[2:], 3])
            if not _is_interleaved(array):
                raise ValueError("the picture looks like NCHW bytes in an NHWC shape")
            fed = self._normalised(array)
        names = [output.name for output in self.session.get_outputs()]
        return dict(zip(names, self.session.run(None, {name: fed}), strict=True))

    def _normalised(self, array):
        """Return a YUV picture less 128 as the network wants it; BT.601 in float, of our own."""
        y, u, v = (array[..., i].astype(np.float64) for i in range(3))
        y = y + 128
        if self.facts["nv12"] == "YUV_BT601_VIDEO_RANGE":
            y, u, v = (y - 16) * 255 / 219, u * 255 / 224, v * 255 / 224
        rgb = np.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], axis=1)
        means, scales = (np.asarray(self.facts[key])[:, None, None] for key in ("means", "scales"))
        return ((np.clip(rgb, 0, 255) - means) * scales).astype(np.float32)
