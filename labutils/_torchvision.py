"""Import torchvision beside a torch build of another variant.

PyPI's Linux torchvision is built against CUDA. Beside a CPU build of torch its compiled library
does not load, and ``import torchvision`` ends in ``RuntimeError: operator torchvision::nms does
not exist``. The lab needs none of those compiled operators, so they are declared, without an
implementation, before the import: everything but non-maximum suppression and its like works.

torchvision also imports all of ``torch._dynamo``, for one question that only its RoI align asks
while it runs. That import costs two seconds of processor time, in each kernel and each command, so
the question is answered by a stand-in that imports `torch._dynamo` when it is asked.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_SIGNATURES = dict.fromkeys(
    ("nms", "qnms"), "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
)

_DECLARED: list[torch.library.Library] = []


@functools.cache
def load() -> ModuleType:
    """Return the torchvision module, with its missing operators declared first."""
    with warnings.catch_warnings(), _dynamo_when_asked():
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        try:
            import torchvision
        except RuntimeError as error:
            if "torchvision::nms does not exist" not in str(error):
                raise
            torchvision = _import_with_declared_operators()
        import torchvision.models
    return torchvision


@contextmanager
def _dynamo_when_asked() -> Iterator[None]:
    """While torchvision is imported, let `torch._dynamo.utils` be its one function used there."""
    package, utils = "torch._dynamo", "torch._dynamo.utils"
    if package in sys.modules:
        yield
        return
    stand_ins = {name: ModuleType(name) for name in (package, utils)}
    stand_ins[utils].__dict__["is_compile_supported"] = _is_compile_supported
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _is_compile_supported(device_type: Any) -> Any:
    from torch._dynamo.utils import is_compile_supported

    return is_compile_supported(device_type)


def _import_with_declared_operators() -> ModuleType:
    import torch

    for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, signature in _SIGNATURES.items():
        library.define(name + signature)
    _DECLARED.append(library)  # the declarations live as long as this object
    import torchvision

    return torchvision
