"""The wire between parent and worker: one length, one JSON header, then raw array bytes.

Both ends are ours and of one version, so there is no negotiation. Arrays travel as C-ordered
bytes; the header says dtype and shape. No pickle. NumPy is needed only where arrays travel.
"""

from __future__ import annotations

import json
import math
import struct
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import numpy as np

_LENGTH = struct.Struct("<Q")


def send(stream: BinaryIO, message: dict[str, Any], arrays: dict[str, np.ndarray] | None) -> None:
    """Write one message and its named arrays."""
    arrays = arrays or {}
    if arrays:
        import numpy as np

        arrays = {name: np.ascontiguousarray(value) for name, value in arrays.items()}
    layout = [[name, value.dtype.str, list(value.shape)] for name, value in arrays.items()]
    header = json.dumps({"message": message, "arrays": layout}).encode()
    stream.write(_LENGTH.pack(len(header)) + header)
    for value in arrays.values():
        stream.write(value.tobytes())
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read one message and its named arrays; EOFError when the other end is gone."""
    (length,) = _LENGTH.unpack(_exactly(stream, _LENGTH.size))
    header = json.loads(_exactly(stream, length))
    arrays = {name: _array(stream, code, shape) for name, code, shape in header["arrays"]}
    return header["message"], arrays


def _array(stream: BinaryIO, code: str, shape: list[int]) -> np.ndarray:
    import numpy as np

    dtype = np.dtype(code)
    raw = _exactly(stream, math.prod(shape) * dtype.itemsize)
    return np.frombuffer(raw, dtype).reshape(shape).copy()


def _exactly(stream: BinaryIO, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        chunk = stream.read(size - len(parts))
        if not chunk:
            raise EOFError(f"the channel closed after {len(parts)} of {size} bytes")
        parts += chunk
    return bytes(parts)
