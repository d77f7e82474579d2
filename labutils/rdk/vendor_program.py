"""What runs in a user's own environment with D-Robotics' tools: their quantizer and BPU simulator.

It is called through `labutils.tools.calling`, and imports nothing of the lab but the child's log.
The lab neither installs nor brings these packages; what is known of them, and from where:

==================================================  ==============================================
``horizon_nn.api.build_onnx(onnx_file, march,``     Its signature, as the package publishes it;
``name_prefix, input_dict, cali_dict, hbdk_dict,``  run once by us with dg-nn-toolkit 1.0.0 (hmct
``node_dict, save_model)``                          1.1.0) and dgdk 1.0.0, 2026-11-28: opset 11,
                                                    float input, method max, --O2, march bayes-e
``input_dict[name]``: ``input_shape``,              The package's own names; ``means`` and
``original_input_type``, ``means``, ``scales``,     ``scales`` are of pixels 0..255, as the YAML's
``expected_input_type``, ``original_input_layout``  ``mean_value`` and ``scale_value`` (rdk_doc)
``node_dict``, ``hbdk_dict``                        makertbin's logs in rdk_model_zoo (YOLO11 on
                                                    X5, hb_mapper 1.24.3): node_info as it stands
                                                    in the YAML, ``InputType0`` and so on as well
                                                    (rdk_doc); ``hbdk_pass_through_params``, with
                                                    ``--debug`` and ``--jobs`` by another public
                                                    log (2025-02), and ``input-source``
``*_quantized_model.onnx``, the hybrid model        Run by us: what makertbin writes; the hybrid
                                                    model is an ONNX file with HzBpuHBM nodes
``horizon_nn.api.ORTExecutor(model)``               Run by us: it simulates the BPU, bit for bit as
``.create_session().inference({name: array})``      the quantized ONNX
int8 picture less 128, NHWC, of a file that takes   rdk_doc, HB_ONNXRuntime: ``input_offset=128``;
NV12                                                not run by us
==================================================  ==============================================
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_sessions: dict[str, Any] = {}


def build(
    model: str, prefix: str, settings: dict[str, Any], calibration: np.ndarray
) -> dict[str, Any]:
    """Quantize and compile a model, and say which files that made and what was logged.

    Parameters
    ----------
    model
        The ONNX file.
    prefix
        Folder and first part of the name of what is written.
    settings
        ``name`` of the input, ``march``, and the four dicts but for what stands in arrays.
    calibration
        (n, channels, height, width) float32.
    """
    from horizon_nn.api import build_onnx

    from labutils.processes import child

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s", force=True)
    name = settings["name"]
    made = build_onnx(
        onnx_file=model, march=settings["march"], name_prefix=prefix,
        input_dict=_with_arrays(settings["input_dict"]),
        cali_dict={
            **settings["cali_dict"],
            "calibration_data": {name: [item[None] for item in calibration]},
        },
        hbdk_dict=settings["hbdk_dict"], node_dict=settings["node_dict"], save_model=True,
    )  # fmt: skip
    log = child.read_log()
    place = Path(prefix)
    compiled = place.with_name(f"{place.name}.bin")
    if hasattr(made, "SerializeToString") and not compiled.exists():
        compiled.write_bytes(made.SerializeToString())
    if not compiled.exists():
        hybrid = sorted(place.parent.glob(f"{place.name}*hybrid*.onnx"))
        compiled = hybrid[0] if hybrid else compiled
    quantized = place.with_name(f"{place.name}_quantized_model.onnx")
    return {
        "compiled": str(compiled) if compiled.exists() else "",
        "quantized": str(quantized) if quantized.exists() else "",
        "written": sorted(entry.name for entry in place.parent.iterdir()),
        "log": log,
    }


def run(file: str, name: str, inputs: np.ndarray) -> dict[str, Any]:
    """Run a quantized or compiled file on the vendor's executor, one picture at a time."""
    import numpy as np
    import onnx
    from horizon_nn.api import ORTExecutor

    if file not in _sessions:
        _sessions[file] = ORTExecutor(onnx.load(file)).create_session()
    found: dict[str, list[Any]] = {}
    for item in inputs:
        for key, value in _sessions[file].inference({name: item[None]}).items():
            found.setdefault(key, []).append(np.asarray(value))
    return {key: np.concatenate(values) for key, values in found.items()}


def _with_arrays(input_dict: dict[str, Any]) -> dict[str, Any]:
    """Return the dict with means and scales as float32 arrays."""
    import numpy as np

    return {
        name: {
            key: np.asarray(value, np.float32) if key in ("means", "scales") else value
            for key, value in entry.items()
        }
        for name, entry in input_dict.items()
    }
