"""Where an operator of a converted ``.tflite`` came from: module paths, read from tensor names."""

from __future__ import annotations

import re

# What `converter` hands over is unflattened: each module on the way is an InterpreterModule, and
# litert-torch adds an underscore and the last part of its path.
_PART = re.compile(r"InterpreterModule_([^/;]+)")


def places(tensor: str) -> tuple[str, ...]:
    """Return the paths of the modules that a tensor of a converted file was computed in.

    Operators that were fused have several.

    Examples
    --------
    >>> end = "torch.export.unflatten.InterpreterModule"
    >>> places(f"Root/{end}_network/{end}_features/{end}_0;Root/{end}_network/{end}_act;")
    ('features.0', 'act')
    """
    found: dict[str, None] = {}
    for location in tensor.split(";"):
        parts = _PART.findall(location)[1:]  # the first is `fed.Fed`'s own
        if parts:
            found[".".join(parts)] = None
    return tuple(found)
