"""What to tell TIDL about a QDQ file, written beside it.

TIDL takes the scales of a QDQ file only when it is told that the file is quantized already;
otherwise it calibrates again. Option names and values: TI's edgeai-tidl-tools (options of the
ONNX Runtime provider) and the toolkit's notes on quantized import. Nothing here was run on TIDL.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .. import paths
from ..errors import ModelFileError
from ..onnxfile.edit import producers
from ..onnxfile.file import OnnxFile


def tidl_hints(qdq: OnnxFile | str | Path) -> dict[str, Any]:
    """Return the import options for a QDQ file, and what TIDL will not like about it.

    Parameters
    ----------
    qdq
        A QDQ file, from `quantize.static` or `qat.to_qdq`.

    Returns
    -------
    dict
        ``options``, to be handed to TIDL's provider as they are, and ``warnings``.
    """
    import numpy as np
    from onnx import numpy_helper

    qdq = OnnxFile.of(qdq)
    model = qdq.proto
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    quantize = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    if not quantize:
        raise ModelFileError(f"{qdq.name} holds no QuantizeLinear: there is nothing to tell TIDL.")
    maker = producers(model.graph.node)
    wide = {
        maker[n.input[0]].name
        for n in quantize
        if values[n.input[2]].dtype.itemsize == 2 and n.input[0] in maker
    }
    all_wide = all(values[n.input[2]].dtype.itemsize == 2 for n in quantize)
    options: dict[str, int | str] = {
        "tensor_bits": 16 if all_wide else 8,
        "accuracy_level": 0,
        "advanced_options:prequantized_model": 1,
    }
    if wide and not all_wide:
        options["advanced_options:output_feature_16bit_names_list"] = ", ".join(sorted(wide))
    scales = np.concatenate([values[n.input[1]].ravel() for n in quantize])
    power = bool(np.all(np.frexp(scales)[0] == 0.5))
    warnings = []
    centred = {0, 128, 32768}
    if any(int(values[n.input[2]]) not in centred for n in quantize):
        warnings.append(
            "Activations are asymmetric. AM68PA and TDA4VM take symmetric ones: use a recipe with "
            "activations: {symmetric: true}, e.g. pow2."
        )
    if not power:
        warnings.append(
            "Scales are not powers of two, which the first MMA (TDA4VM) prefers: recipe pow2."
        )
    if any(t.data_type in (21, 22) for t in model.graph.initializer):
        warnings.append("4-bit weights: TIDL's documentation lists tensor_bits 8 and 16 only.")
    gelus = [node.name for node in model.graph.node if node.op_type == "Gelu"]
    if gelus:
        warnings.append(
            f"GELU is one operator here (first {gelus[0]}), which TIDL 11 does not list: it "
            "computes only the pattern with Erf, in a float file that it calibrates itself."
        )
    if any(n.domain == "com.microsoft" for n in quantize):
        warnings.append(
            "The Q and DQ operators are com.microsoft's; write the file with opset 21 to have "
            "ONNX's own."
        )
    return {"file": qdq.name, "options": options, "warnings": warnings, "run_on_tidl": False}


def write_tidl_hints(qdq: OnnxFile | str | Path) -> Path:
    """Write `tidl_hints` beside a QDQ file, as ``<name>.tidl.json``; return the path."""
    path = Path(qdq).with_suffix(".tidl.json")
    paths.write_text(path, json.dumps(tidl_hints(qdq), indent=2) + "\n")
    return path
