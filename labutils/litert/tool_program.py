"""Runs in the environment of the tool ``litert``: converts, measures ranges, quantizes.

`labutils.tools.calling` calls the functions; `converter` and `quantization` are the other end.
"""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "n"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

if TYPE_CHECKING:
    import numpy as np

BINS = 2048  # as in quantize/ranges.py, which this environment cannot import without all of the lab


def convert(program: str, file: str) -> None:
    """Write a ``.tflite`` of an exported program, whose inputs and outputs stay as they are.

    The program is unflattened, so that the names of tensors hold the modules' paths.
    """
    import litert_torch
    import torch

    exported = torch.export.load(program)
    given = [n for n in exported.graph.nodes if n.op == "placeholder"]
    names = set(exported.graph_signature.user_inputs)
    shapes = [n.meta["val"].shape for n in given if n.name in names]
    inputs = tuple(torch.zeros(tuple(shape)) for shape in shapes)
    torch.set_num_threads(1)
    try:
        module = torch.export.unflatten(exported)
        litert_torch.convert(module.eval(), inputs).export(file)
    except Exception:
        _flat(exported, inputs, file)


def _flat(exported: Any, inputs: tuple[Any, ...], file: str) -> None:
    """Convert without the hierarchy of modules: not every program can be unflattened."""
    import litert_torch

    litert_torch.convert(exported.module(), inputs).export(file)


def measure(file: str, recipe: list[dict[str, Any]], images: np.ndarray, bins: bool) -> dict:
    """Return what calibration sees of every tensor that a recipe quantizes.

    Parameters
    ----------
    file, recipe
        A float ``.tflite``; rules of ai-edge-quantizer.
    images
        As the file takes them, one run after the other along the first axis.
    bins
        Whether values are counted, too.

    Returns
    -------
    dict
        ``names``; ``low`` and ``high``, (images, tensors) float32; ``counts``, (tensors, bins).
    """
    import numpy as np

    interpreter = _interpreter(file)
    numbers = _wanted(file, _rules(recipe), interpreter, images[0])
    low, high = [], []
    for image in images:
        seen = _seen(interpreter, image, numbers)
        low.append([values.min() for values in seen])
        high.append([values.max() for values in seen])
    lows, highs = np.array(low, np.float32), np.array(high, np.float32)
    found = {"names": list(numbers), "low": lows, "high": highs}
    if bins:
        counts = np.zeros((len(numbers), BINS), np.int64)
        ends = [_ends(lows[:, i].min(), highs[:, i].max()) for i in range(len(numbers))]
        for image in images:
            for i, values in enumerate(_seen(interpreter, image, numbers)):
                counts[i] += np.histogram(values, BINS, ends[i])[0]
        found["counts"] = counts
    return found


def _ends(low: float, high: float) -> tuple[float, float]:
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    return low, high if high > low else low + 1e-6


def _interpreter(file: str) -> Any:
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    made = Interpreter(
        file, num_threads=1, experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )  # fmt: skip
    made.allocate_tensors()
    return made


def _seen(interpreter: Any, image: np.ndarray, numbers: dict[str, int]) -> list[np.ndarray]:
    entry = interpreter.get_input_details()[0]
    interpreter.set_tensor(entry["index"], image)
    interpreter.invoke()
    return [_finite(interpreter.get_tensor(number)) for number in numbers.values()]


def _finite(values: np.ndarray) -> np.ndarray:
    """Return the values without infinities: a max-pool is padded with minus infinity."""
    import numpy as np

    found = values[np.isfinite(values)]
    return found if found.size else np.zeros(1, values.dtype)


def _rules(recipe: list[dict[str, Any]] | str) -> list[dict[str, Any]]:
    """Return a recipe, or the one that its name stands for."""
    from ai_edge_quantizer import recipe as own

    if isinstance(recipe, str):
        return getattr(own, recipe)()
    return recipe


def _calibrated(file: str, rules: list[dict[str, Any]], image: np.ndarray) -> dict[str, Any]:
    """Return what the quantizer itself finds on one image: which tensors it asks for, and how."""
    from ai_edge_quantizer import quantizer

    work = quantizer.Quantizer(file, rules)
    if not work.need_calibration:
        return {}
    signature, key = _signature(file)
    return work.calibrate({signature: [{key: image}]}, num_threads=1)


def _signature(file: str) -> tuple[str, str]:
    from ai_edge_litert.interpreter import Interpreter

    signature, ends = next(iter(Interpreter(file).get_signature_list().items()))
    return signature, ends["inputs"][0]


def _wanted(
    file: str, rules: list[dict[str, Any]], interpreter: Any, image: np.ndarray
) -> dict[str, int]:
    """Return name -> number of the tensors that flow and that the quantizer asks for."""
    asked = _calibrated(file, rules, image)
    numbers = {d["name"]: d["index"] for d in interpreter.get_tensor_details() if d["name"]}
    made = {n for o in interpreter._get_ops_details() for n in o["outputs"]}
    made |= {d["index"] for d in interpreter.get_input_details()}
    return {
        name: numbers[name] for name, found in asked.items() if found and numbers.get(name) in made
    }


def quantize(
    file: str,
    made: str,
    recipe: list[dict[str, Any]],
    names: list[str],
    example: np.ndarray,
    ranges: np.ndarray,
) -> None:
    """Write a quantized ``.tflite``.

    Parameters
    ----------
    file, made
        The float file, and the one to write.
    recipe
        Rules of ai-edge-quantizer, or the name of a recipe that comes with it.
    names, ranges
        Tensors, and their (low, high): (n, 2) float32. What is not named gets what is stored.
    example
        One image, for the constants that calibration looks at as well.
    """
    import numpy as np
    from ai_edge_quantizer import quantizer

    rules = _rules(recipe)
    found = _calibrated(file, rules, example)
    for name, (low, high) in zip(names, ranges, strict=True):
        entry = found[name]
        for key, value in (("min", low), ("max", high)):
            entry[key] = np.full_like(np.asarray(entry[key], np.float32), value)
    work = quantizer.Quantizer(file, rules)
    done = work.quantize(found or None, enable_progress_report=False)
    Path(made).unlink(missing_ok=True)
    done.export_model(made)


def quantize_plainly(file: str, made: str, recipe: str, images: np.ndarray) -> None:
    """Write a quantized ``.tflite`` by a recipe of ai-edge-quantizer, which calibrates itself."""
    from ai_edge_quantizer import quantizer

    work = quantizer.Quantizer(file, _rules(recipe))
    found = None
    if work.need_calibration:
        signature, key = _signature(file)
        found = work.calibrate({signature: [{key: x} for x in images]}, num_threads=1)
    done = work.quantize(found, enable_progress_report=False)
    Path(made).unlink(missing_ok=True)
    done.export_model(made)


def halve(file: str, made: str) -> None:
    """Write a ``.tflite`` whose weights are float16; it computes in float32."""
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    work = quantizer.Quantizer(file)
    work.add_weight_only_config(".*", "*", num_bits=16, algorithm_key=AlgorithmName.FLOAT_CASTING)
    Path(made).unlink(missing_ok=True)
    work.quantize(enable_progress_report=False).export_model(made)
