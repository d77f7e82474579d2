"""The child process with LiteRT's interpreter: ``python -m labutils.runtime.litert.worker``.

`labutils.processes.child` is its end of the wire.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np

from ...processes import child

Arrays = dict[str, np.ndarray]
Answer = tuple[dict[str, Any], Arrays]


def main() -> None:
    """Serve the parent until it closes our standard input."""
    child.serve(Server().serve, int(sys.argv[1]) if len(sys.argv) > 1 else None)


class Server:
    """One interpreter at a time, and the calls that the parent may make."""

    def __init__(self) -> None:
        self.asked: tuple[Any, ...] = ()
        self.interpreter: Any = None

    def serve(self, message: dict[str, Any], arrays: Arrays) -> Answer:
        """Answer one message; a Python error becomes an answer, too."""
        try:
            return getattr(self, "call_" + message["call"])(message, arrays)
        except MemoryError as error:
            return {"no_memory": str(error)}, {}
        except ImportError as error:
            return {"missing": str(error)}, {}
        except (RuntimeError, ValueError) as error:  # LiteRT's own words about the file
            return {"refused": " ".join(str(error).split())}, {}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}, {}

    def call_hello(self, message: dict[str, Any], arrays: Arrays) -> Answer:
        """Load the runtime."""
        from ai_edge_litert import interpreter

        return {"interpreter": interpreter.__name__}, {}

    def call_open(self, message: dict[str, Any], arrays: Arrays) -> Answer:
        """Open a file, and say what it takes and gives."""
        model = self._opened(message)
        ends = [model.get_input_details(), model.get_output_details()]
        inputs, outputs = ([_described(entry) for entry in end] for end in ends)
        signatures = model.get_signature_list() or {}
        return {"inputs": inputs, "outputs": outputs, "signatures": signatures}, {}

    def call_run(self, message: dict[str, Any], arrays: Arrays) -> Answer:
        """Run images one after the other, or as a batch where the file takes any.

        ``tensors`` lists the numbers of those to return; ``seconds`` is what each run took.
        """
        model = self._opened(message)
        entry = model.get_input_details()[0]
        parts: dict[int, list[np.ndarray]] = {number: [] for number in message["tensors"]}
        seconds = []
        for image in arrays["batch"]:
            model.set_tensor(entry["index"], image)
            start = time.perf_counter()
            model.invoke()
            seconds.append(time.perf_counter() - start)
            for number, values in parts.items():
                values.append(np.array(model.get_tensor(number)))
        return {"seconds": seconds}, {str(number): np.stack(v) for number, v in parts.items()}

    def _opened(self, message: dict[str, Any]) -> Any:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        asked = tuple(message[key] for key in ("model", "threads", "inner", "shape"))
        if asked != self.asked:
            file, threads, inner, shape = asked
            settings: dict[str, Any] = {"num_threads": threads} if threads else {}
            if inner:  # XNNPACK computes what it takes as one; then there are no tensors inside
                settings["experimental_preserve_all_tensors"] = True
                settings["experimental_op_resolver_type"] = (
                    OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
                )
            self.interpreter, self.asked = None, ()
            model = Interpreter(file, **settings)
            if shape:
                model.resize_tensor_input(model.get_input_details()[0]["index"], list(shape))
            model.allocate_tensors()
            self.interpreter, self.asked = model, asked
        return self.interpreter


def _described(entry: dict[str, Any]) -> dict[str, Any]:
    """Return name, number, shape, type and quantization of an input or output."""
    quantization = entry["quantization_parameters"]
    return {
        "name": entry["name"],
        "index": int(entry["index"]),
        "shape": [int(size) for size in entry["shape"]],
        "signature": [int(size) for size in entry.get("shape_signature", entry["shape"])],
        "type": np.dtype(entry["dtype"]).name,
        "scales": [float(scale) for scale in quantization["scales"]],
        "zeros": [int(zero) for zero in quantization["zero_points"]],
    }


if __name__ == "__main__":
    main()
