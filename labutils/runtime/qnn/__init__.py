"""Qualcomm's native code (onnxruntime-qnn), behind child processes that may die or hang alone.

`options` knows the chips and checks what the provider does not; `pool` is the parent's side and
`worker` the child's; `channel` is the wire; `refusal` turns QNN's log into a sentence; `memory`
keeps what was simulated. `dlc_file`
reads a DLC; `dlc_executor` (in the worker) runs one.
"""

from .memory import Memory
from .options import SOCS, Soc, soc
from .pool import Availability, Graph, Pool, probe, require, shared

__all__ = [
    "SOCS",
    "Availability",
    "Graph",
    "Memory",
    "Pool",
    "Soc",
    "probe",
    "require",
    "shared",
    "soc",
]
