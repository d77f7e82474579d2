"""Execute the graph inside a DLC file on the HTP simulator, through QNN's own C interface.

The wheel has no ``qnn-net-run``, but its libraries can compose a DLC's graph (`libQnnSystem`) on a
backend (`libQnnHtp`). Only a worker process does this: a wrong guess about the C interface ends in
a crash, so the layout below is used with the one interface version that it was checked against.
The functions have no exported names; they stand in two tables, in the order of QnnInterface.h and
QnnSystemInterface.h.
"""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, byref, c_char_p, c_uint8, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from ..outputs import plain_name
from . import dlc_file, refusal

KNOWN_INTERFACE = (2, 40)  # QNN core API of QNN 2.51 (onnxruntime-qnn 2.7.0)
# Positions in the two function tables.
_BACKEND_CREATE, _CONTEXT_CREATE, _CONTEXT_FREE, _DEVICE_CREATE = 1, 9, 14, 40
_GRAPH_FINALIZE, _GRAPH_RETRIEVE, _GRAPH_EXECUTE, _ERROR_MESSAGE = 19, 20, 21, 48
_LOG_CREATE, _LOG_ERRORS = 25, 1  # without a callback it prints, and our log file gets it
_DLC_OPEN, _DLC_COMPOSE, _DLC_FREE = 8, 10, 12
_DTYPES: dict[int, type[np.generic]] = {
    0x232: np.float32, 0x216: np.float16, 0x408: np.uint8, 0x416: np.uint16,
    0x08: np.int8, 0x16: np.int16, 0x32: np.int32, 0x64: np.int64,
    0x108: np.uint8, 0x116: np.uint16, 0x132: np.uint32, 0x164: np.uint64, 0x508: np.bool_,
}  # fmt: skip


class _Interface(ctypes.Structure):
    """QnnInterface_t: passed by value, so its size must be exact."""

    _fields_ = [
        ("backend", c_uint32),
        ("provider", c_char_p),
        ("core", c_uint32 * 3),
        ("specific", c_uint32 * 3),
        ("table", c_void_p * 75),
    ]


class _SystemInterface(ctypes.Structure):
    """The head of QnnSystemInterface_t, as far as the DLC functions."""

    _fields_ = [
        ("backend", c_uint32),
        ("provider", c_char_p),
        ("version", c_uint32 * 3),
        ("table", c_void_p * 13),
    ]


class _Tensor(ctypes.Structure):
    """Qnn_Tensor_t, versions 1 and 2."""

    _fields_ = [
        ("version", c_uint32),
        ("padding", c_uint32),
        ("id", c_uint32),
        ("name", c_char_p),
        ("type", c_uint32),
        ("format", c_uint32),
        ("dtype", c_uint32),
        ("quantization", c_uint64 * 5),
        ("rank", c_uint32),
        ("dimensions", POINTER(c_uint32)),
        ("memory", c_uint32),
        ("data", c_void_p),
        ("size", c_uint32),
        ("dynamic", c_void_p),
        ("sparse", c_uint32 * 3),
        ("produced", c_uint8),
    ]

    @property
    def shape(self) -> list[int]:
        return [self.dimensions[axis] for axis in range(self.rank)]


class _GraphInfo(ctypes.Structure):
    """QnnSystemContext_GraphInfo_t, version 1."""

    _fields_ = [
        ("version", c_uint32),
        ("name", c_char_p),
        ("input_count", c_uint32),
        ("inputs", POINTER(_Tensor)),
        ("output_count", c_uint32),
        ("outputs", POINTER(_Tensor)),
    ]


class _Config(ctypes.Structure):
    """QnnDevice_Config_t with its custom part."""

    _fields_ = [("option", c_uint32), ("custom", c_void_p)]


class _HtpDevice(ctypes.Structure):
    """QnnHtpDevice_CustomConfig_t, option 0: the chip."""

    _fields_ = [("option", c_uint32), ("padding", c_uint32), ("soc_model", c_uint64)]


def _call(interface: ctypes.Structure, position: int, *arguments: tuple[Any, Any]) -> int:
    kinds = [kind for kind, _ in arguments]
    function = ctypes.CFUNCTYPE(c_uint64, *kinds)(interface.table[position])
    return function(*[value for _, value in arguments])


@functools.cache
def _libraries() -> tuple[_Interface, _SystemInterface, c_void_p]:
    """Return both interfaces and the one backend of this process."""
    import onnxruntime_qnn

    htp_path = Path(onnxruntime_qnn.get_qnn_htp_path())
    htp = ctypes.CDLL(str(htp_path))
    system = ctypes.CDLL(str(htp_path.with_name(htp_path.name.replace("QnnHtp", "QnnSystem"))))
    qnn = _provider(htp.QnnInterface_getProviders, _Interface)
    found = tuple(qnn.core[:2])
    if found != KNOWN_INTERFACE:
        raise NotImplementedError(
            f"executing a DLC needs QNN's C interface {KNOWN_INTERFACE}, and this wheel "
            f"has {found}: run the ONNX file on the HTP simulator instead"
        )
    logger, backend = c_void_p(), c_void_p()
    handle = (POINTER(c_void_p), byref(logger))
    _call(qnn, _LOG_CREATE, (c_void_p, None), (c_uint32, _LOG_ERRORS), handle)
    code = _call(
        qnn,
        _BACKEND_CREATE,
        (c_void_p, None),  # given the logger, it would keep its reasons to itself
        (c_void_p, None),
        (POINTER(c_void_p), byref(backend)),
    )
    _expect(qnn, code, "create the HTP backend")
    return qnn, _provider(system.QnnSystemInterface_getProviders, _SystemInterface), backend


def _provider(function: Any, kind: type) -> Any:
    providers: Any = POINTER(POINTER(kind))()
    count = c_uint32()
    if function(byref(providers), byref(count)) or not count.value:
        raise RuntimeError(f"QNN offers no {kind.__name__}")
    return providers[0].contents


def _expect(qnn: _Interface, code: int, doing: str) -> None:
    if code:
        text = c_char_p()
        _call(qnn, _ERROR_MESSAGE, (c_uint64, code), (POINTER(c_char_p), byref(text)))
        why = (text.value or b"no message").decode(errors="replace")
        error = f"Failed to {doing}. Error: {why}, Code: {code}"
        raise refusal.Refused({"error": error, "nodes": [], "notes": []})


class Executor:
    """A DLC's graph, compiled for a chip, ready to run.

    Parameters
    ----------
    file
        The DLC.
    options
        As of `options.htp`; ``soc_model`` is what counts here.
    """

    def __init__(self, file: str, options: dict[str, str]) -> None:
        self._context, self._graph, self._dlc = c_void_p(), c_void_p(), c_void_p()
        self._qnn, self._system, self._backend = _libraries()
        self._open_context(int(options["soc_model"]))
        self._info = self._compose(file)
        self._names = self._names_in(file)
        name = (c_char_p, self._info.name)
        context, handle = (c_void_p, self._context), (POINTER(c_void_p), byref(self._graph))
        _expect(self._qnn, _call(self._qnn, _GRAPH_RETRIEVE, context, name, handle), "find graph")
        graph, nothing = (c_void_p, self._graph), (c_void_p, None)
        code = _call(self._qnn, _GRAPH_FINALIZE, graph, nothing, nothing)
        _expect(self._qnn, code, "finalize QNN graph")  # the words that refusal knows

    def _open_context(self, soc_model: int) -> None:
        chip = _HtpDevice(0, 0, soc_model)
        config = _Config(0, ctypes.addressof(chip))
        configs = (c_void_p * 2)(ctypes.addressof(config), None)
        device = c_void_p()
        code = _call(
            self._qnn,
            _DEVICE_CREATE,
            (c_void_p, None),
            (c_void_p, ctypes.addressof(configs)),
            (POINTER(c_void_p), byref(device)),
        )
        _expect(self._qnn, code, f"create a device for soc_model {soc_model}")
        code = _call(
            self._qnn,
            _CONTEXT_CREATE,
            (c_void_p, self._backend),
            (c_void_p, device),
            (c_void_p, None),
            (POINTER(c_void_p), byref(self._context)),
        )
        _expect(self._qnn, code, "create a context")

    def _compose(self, file: str) -> _GraphInfo:
        path = (c_char_p, str(file).encode())
        handle = (POINTER(c_void_p), byref(self._dlc))
        code = _call(self._system, _DLC_OPEN, (c_void_p, None), path, handle)
        _expect(self._qnn, code, "open the DLC")
        graphs, count = POINTER(_GraphInfo)(), c_uint32()
        code = _call(
            self._system,
            _DLC_COMPOSE,
            (c_void_p, self._dlc),
            (c_void_p, None),
            (c_uint32, 0),
            (c_void_p, self._backend),
            (c_void_p, self._context),
            (_Interface, self._qnn),
            (c_uint32, 1),
            (POINTER(POINTER(_GraphInfo)), byref(graphs)),
            (POINTER(c_uint32), byref(count)),
        )
        _expect(self._qnn, code, "compose the DLC's graph for the HTP")
        if count.value != 1:
            raise ValueError(f"the DLC holds {count.value} graphs; one is expected")
        return graphs[0]

    def _names_in(self, file: str) -> dict[str, list[str]]:
        """Return the names of inputs and outputs as the file has them, in the graph's order.

        The composed graph's are plain, with a number behind one that another has already.
        """
        info = self._info
        sides = {
            "input": (info.inputs, info.input_count),
            "output": (info.outputs, info.output_count),
        }
        tensors, names = dlc_file.read(file).tensors.values(), {}
        for kind, (composed, count) in sides.items():
            own = [tensor.name for tensor in tensors if tensor.kind == kind]
            plain = [composed[i].name.decode() for i in range(count)]
            same = len(own) == count and all(
                given.startswith(plain_name(name)) for given, name in zip(plain, own, strict=True)
            )
            names[kind] = own if same else plain
        return names

    def describe(self) -> dict[str, Any]:
        """Return inputs and outputs as [name, shape, type], as a session would."""

        def listed(tensors: Any, names: list[str]) -> list:
            return [
                [name, tensors[i].shape, _kind(tensors[i].dtype)] for i, name in enumerate(names)
            ]

        return {
            "inputs": listed(self._info.inputs, self._names["input"]),
            "outputs": listed(self._info.outputs, self._names["output"]),
        }

    def run(self, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the outputs by name for inputs by name."""
        info, held, results = self._info, [], {}
        for i, name in enumerate(self._names["input"]):
            tensor = info.inputs[i]
            held.append(np.ascontiguousarray(arrays[name], _DTYPES[tensor.dtype]))
            if list(held[-1].shape) != tensor.shape:
                raise ValueError(f"{name} is {tensor.shape}, given {held[-1].shape}")
            _attach(tensor, held[-1])
        for i, name in enumerate(self._names["output"]):
            tensor = info.outputs[i]
            results[name] = np.zeros(tensor.shape, _DTYPES[tensor.dtype])
            _attach(tensor, results[name])
        code = _call(
            self._qnn,
            _GRAPH_EXECUTE,
            (c_void_p, self._graph),
            (POINTER(_Tensor), info.inputs),
            (c_uint32, info.input_count),
            (POINTER(_Tensor), info.outputs),
            (c_uint32, info.output_count),
            (c_void_p, None),
            (c_void_p, None),
        )
        _expect(self._qnn, code, "execute the DLC's graph")
        return results

    def __del__(self) -> None:
        """Free the context and the DLC when the worker drops the session."""
        if self._context:
            _call(self._qnn, _CONTEXT_FREE, (c_void_p, self._context), (c_void_p, None))
        if self._dlc:
            _call(self._system, _DLC_FREE, (c_void_p, self._dlc))


def _attach(tensor: _Tensor, array: np.ndarray) -> None:
    tensor.memory, tensor.data, tensor.size = 0, array.ctypes.data, array.nbytes


def _kind(dtype: int) -> str:
    name = np.dtype(_DTYPES[dtype]).name if dtype in _DTYPES else hex(dtype)
    return "tensor(float)" if name == "float32" else f"tensor({name})"
