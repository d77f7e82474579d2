"""The numeric check of ONNX surgery: the graph before and after, run in ONNX Runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import ModelFileError, SurgeryError, UsageError
from ...onnxfile.session import Session
from ..report import Check, check_outputs

if TYPE_CHECKING:
    import onnx

_SEED = 0


def compare_outputs(
    before: onnx.ModelProto, after: onnx.ModelProto, example_inputs: Any
) -> tuple[Check | None, tuple[str, ...]]:
    """Run two models on the same inputs, unoptimized, and compare their outputs.

    Parameters
    ----------
    example_inputs
        An array, a tuple of arrays, a dict by input name; None: seeded random inputs.

    Returns
    -------
    tuple
        The check, or None with a note that says why there is none.

    Raises
    ------
    SurgeryError
        The model ran before and does not run now, or its outputs changed shape.
    """
    try:
        feeds, words = _feeds(before, example_inputs)
    except (KeyError, ValueError, TypeError, MemoryError) as error:
        return None, (f"outputs not compared: no input can be made ({error})",)
    try:
        expected = _run(before, feeds, "the original")
    except ModelFileError as error:
        return None, (f"outputs not compared: {error}",)
    try:
        got = _run(after, feeds, "the rewritten graph")
    except ModelFileError as error:
        raise SurgeryError(f"{error}. The model was left as it was.") from None
    check = check_outputs(expected, got, words)
    return check, () if check else ("outputs not compared: they are not finite",)


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray], name: str) -> list[np.ndarray]:
    # one thread: the sums of a convolution keep their order
    return Session(model, optimize="none", threads=1, name=name).run(feeds)


def _feeds(model: onnx.ModelProto, given: Any) -> tuple[dict[str, np.ndarray], str]:
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if given is None:
        rng = np.random.default_rng(_SEED)
        return {v.name: _random(v, rng) for v in inputs}, f"random inputs, seed {_SEED}"
    if not isinstance(given, dict):
        given = given if isinstance(given, tuple | list) else (given,)
        if len(given) != len(inputs):
            raise UsageError(f"The graph has {len(inputs)} inputs, example_inputs {len(given)}.")
        given = {value.name: array for value, array in zip(inputs, given, strict=True)}
    return {name: np.asarray(array) for name, array in given.items()}, "the example inputs"


def _random(value: onnx.ValueInfoProto, rng: np.random.Generator) -> np.ndarray:
    """Return standard normal values (integers: zeros); an unknown dimension is 1."""
    from onnx import helper

    tensor = value.type.tensor_type
    shape = [d.dim_value or 1 for d in tensor.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if not np.issubdtype(dtype, np.floating):
        return np.zeros(shape, dtype)
    return rng.standard_normal(shape).astype(dtype)
