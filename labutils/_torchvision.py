"""Import torchvision beside a torch build of another variant.

PyPI's Linux torchvision is built against CUDA. Beside a CPU build of torch its compiled library
does not load, and ``import torchvision`` ends in ``RuntimeError: operator torchvision::nms does
not exist``. The lab needs none of those compiled operators, so they are declared, without an
implementation, before the import: everything but non-maximum suppression and its like works.
"""

from __future__ import annotations

import functools
import warnings
from types import ModuleType

import torch

_SIGNATURES = dict.fromkeys(
    ("nms", "qnms"), "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
)

_DECLARED: list[torch.library.Library] = []


@functools.cache
def load() -> ModuleType:
    """Return the torchvision module, with its missing operators declared first."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        try:
            import torchvision
        except RuntimeError as error:
            if "torchvision::nms does not exist" not in str(error):
                raise
            torchvision = _import_with_declared_operators()
        import torchvision.models
    return torchvision


def _import_with_declared_operators() -> ModuleType:
    import sys

    for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, signature in _SIGNATURES.items():
        library.define(name + signature)
    _DECLARED.append(library)  # the declarations live as long as this object
    import torchvision

    return torchvision
