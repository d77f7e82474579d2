"""The published architectures, torchvision's and timm's, seen in one way."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .. import fetch
from ..errors import FetchError, UnknownNameError, UsageError
from ..images import data, things
from . import checkpoint, efficientnet_lite

if TYPE_CHECKING:
    from torch import nn

FBNET_A = "fbnet_a"
LAB_MODELS = ("mobilenet_v3_large", "mobilenet_v3_small")  # torchvision's, without a prefix


@dataclass(frozen=True)
class Architecture:
    """What torchvision and timm have in common, seen from here.

    `build` takes the number of classes, or None for the published head; `imagenet` downloads if
    needed; `imagenet_cached` never does.
    """

    name: str
    build: Callable[[int | None], nn.Module]
    imagenet: Callable[[], Weighted]
    imagenet_cached: Callable[[], bool]
    preprocessing: data.Preprocessing


@dataclass(frozen=True)
class Weighted:
    """A network with its weights, and what these say about its input and output."""

    module: nn.Module
    preprocessing: data.Preprocessing
    classes: tuple[str, ...]
    weights: str
    what: str
    trained: bool = True
    file: Path | None = None  # that the weights came from


def find(name: str) -> Architecture:
    """Return the architecture that a zoo name stands for.

    Raises
    ------
    UnknownNameError
        Neither torchvision nor timm has it.
    UsageError
        It is a folder, or a file that is not a model.
    """
    library, _, rest = name.rpartition(":")
    if library == "timm":
        return _timm_architecture(rest)
    if library == "tv" or name in LAB_MODELS:
        return _tv_architecture(rest)
    if name == efficientnet_lite.NAME:
        return _packaged_architecture()
    if name == FBNET_A:
        return _fbnet_architecture()
    if Path(name).exists():
        what = "a folder" if Path(name).is_dir() else "a file of another kind"
        raise UsageError(f"{name} is {what}. A model file is an .onnx, a .pt2 or, to run, a .dlc.")
    models = _models()
    known = [*LAB_MODELS, efficientnet_lite.NAME, FBNET_A]
    known += [f"tv:{n}" for n in models.list_models(module=models)]
    known += [f"timm:{n}" for n in _timm().list_models()]
    raise UnknownNameError("model", name, known)


def _models() -> ModuleType:
    from .. import _torchvision

    return _torchvision.load().models


def _tv_architecture(name: str) -> Architecture:
    models = _models()
    known = models.list_models(module=models)  # the classifiers
    if name not in known:
        raise UnknownNameError("torchvision model", name, known)
    entry = models.get_model_weights(name)
    # The vendor case study's file for the large model; elsewhere torchvision's own choice.
    entry = entry.IMAGENET1K_V1 if name == "mobilenet_v3_large" else entry.DEFAULT
    transforms = entry.transforms()
    preprocessing = data.Preprocessing(
        transforms.crop_size[0],
        tuple(transforms.mean),
        tuple(transforms.std),
        f"torchvision {entry}",
    )
    # torchvision sets this beside the published weights of these two, and only then.
    published = {"transform_input": True} if name in ("googlenet", "inception_v3") else {}

    def build(classes: int | None, **options: bool) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # googlenet, about its initial weights
            outputs = {} if classes is None else {"num_classes": classes}
            return models.get_model(name, weights=None, **options, **outputs)

    def imagenet() -> Weighted:
        path = fetch.weights(entry.url)
        module = build(None, **published)
        checkpoint.load_into_(module, checkpoint.state_dict(path), str(path))
        classes = tuple(entry.meta["categories"])
        what = f"ImageNet {path.name}"
        return Weighted(module, preprocessing, classes, "imagenet", what, file=Path(path))

    return Architecture(
        name, build, imagenet, lambda: fetch.cached(entry.url) is not None, preprocessing
    )


def _timm() -> ModuleType:
    _models()  # timm imports torchvision
    import timm

    return timm


def _timm_architecture(name: str) -> Architecture:
    timm = _timm()
    if name.partition(".")[0] not in (known := timm.list_models()):
        raise UnknownNameError("timm model", name, known)
    if "." in name and name not in (known := timm.list_pretrained(f"{name.partition('.')[0]}.*")):
        raise UnknownNameError("timm model", name, known)
    config = timm.get_pretrained_cfg(name)
    channels, *_, size = config.input_size
    if channels != 3:
        raise UsageError(f"timm:{name} takes {channels} channels; the lab's images have 3 (RGB).")
    preprocessing = data.Preprocessing(
        size, tuple(config.mean), tuple(config.std), f"timm {name} data config"
    )

    def build(classes: int | None) -> nn.Module:
        return timm.create_model(name, **({} if classes is None else {"num_classes": classes}))

    def imagenet() -> Weighted:
        module = _timm_pretrained(name, config)
        classes = class_names(outputs_of(module))
        what, cached = f"timm {config.hf_hub_id}", _timm_cached(config)
        file = Path(cached) if cached else None
        return Weighted(module, preprocessing, classes, "imagenet", what, file=file)

    return Architecture(
        name, build, imagenet, lambda: _timm_cached(config) is not None, preprocessing
    )


def _packaged_architecture() -> Architecture:
    """Return EfficientNet-Lite0, whose ImageNet weights a package brings (the extra imagenet)."""
    preprocessing = efficientnet_lite.PREPROCESSING

    def build(classes: int | None) -> nn.Module:
        outputs = {} if classes is None else {"num_classes": classes}
        return _timm().create_model(efficientnet_lite.TIMM, **outputs)

    def imagenet() -> Weighted:
        module = build(None)
        file = efficientnet_lite.load_into_(module)
        what = f"ImageNet {file.name}"
        return Weighted(module, preprocessing, class_names(1000), "imagenet", what, file=file)

    return Architecture(
        efficientnet_lite.NAME, build, imagenet,
        lambda: efficientnet_lite.weights_file() is not None, preprocessing,
    )  # fmt: skip


def _fbnet_architecture() -> Architecture:
    """Return FBNet-A, which the lab writes itself; its published weights are not the lab's."""
    from . import fbnet

    def build(classes: int | None) -> nn.Module:
        return fbnet.FBNet() if classes is None else fbnet.FBNet(classes)

    def imagenet() -> Weighted:
        raise UsageError(
            f"The lab has no ImageNet weights of {FBNET_A}. Use weights='random' and train it "
            f"(labutils train {FBNET_A}), or pass weights=PATH with a checkpoint of it."
        )

    return Architecture(FBNET_A, build, imagenet, lambda: False, fbnet.PREPROCESSING)


def _timm_cached(config: Any) -> str | None:
    """Return timm's own cached weight file, if there is one."""
    import huggingface_hub

    if not config.hf_hub_id:
        return None
    found = huggingface_hub.try_to_load_from_cache(config.hf_hub_id, "model.safetensors")
    return found if isinstance(found, str) else None


def _timm_pretrained(name: str, config: Any) -> nn.Module:
    timm = _timm()
    if not config.has_weights:
        raise UsageError(f"timm has no weights for {name}. Use weights='random' or a path.")
    if cached := _timm_cached(config):  # without asking the hub whether there is a newer one
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": cached})
    import huggingface_hub

    cure = f"Go on with weights='random', or pass weights=PATH with a checkpoint of {name}."
    try:
        fetch.require_reachable(huggingface_hub.constants.ENDPOINT)
        return timm.create_model(name, pretrained=True)
    except FetchError as error:
        raise FetchError(f"{error} {cure}") from None
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise FetchError(f"timm could not fetch the weights of {name}: {reason} {cure}") from None


def class_names(outputs: int) -> tuple[str, ...]:
    """Name the classes by their number: 16 are the lab's, 1,000 are ImageNet's."""
    if outputs == len(things.CLASSES):
        return things.CLASSES
    if outputs == 1000:
        weights = _models().MobileNet_V3_Large_Weights.IMAGENET1K_V1
        return tuple(weights.meta["categories"])
    return numbered(outputs)


def numbered(outputs: int) -> tuple[str, ...]:
    """Return names for classes that have none: ``class 0``, ``class 1``, ..."""
    return tuple(f"class {i}" for i in range(outputs))


def head_name(module: nn.Module) -> str:
    """Return the name of the layer that makes the logits: the last linear or convolution."""
    from torch import nn

    layers = [n for n, m in module.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return layers[-1]


def outputs_of(module: nn.Module) -> int:
    """Return the number of logits of a classifier."""
    head: Any = module.get_submodule(head_name(module))
    return len(head.weight)
