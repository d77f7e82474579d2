"""A name becomes a model: architecture, weights, preprocessing and class names.

Names are ``mobilenet_v3_large``, ``mobilenet_v3_small``, ``efficientnet_lite0``, ``fbnet_a``,
``tv:NAME`` (torchvision), ``timm:NAME``, or a file (``.onnx``, ``.pt2``, ``.dlc``,
``.tflite``).
"""

from __future__ import annotations

import types
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import paths, provenance
from ..errors import (
    ModelFileError,
    UnknownNameError,
    UsageError,
    counted,
)
from ..images import data, things
from ..onnxfile.file import OnnxFile
from ..onnxfile.wall import reason_of
from ..runtime import outputs
from ..runtime.outputs import ONLY
from . import adapt, architectures, artifacts, checkpoint, ends, random_weights, timm_twins
from .artifacts import MAX_SIZE, file_model, refuse_weights
from .model import Model
from .modes import evaluating

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

WEIGHTS = ("auto", "imagenet", *data.DRAWN, "random")

MIN_SIZE = things.MIN_SIZE
_DRAWN_SIZE = 128  # pixels; what the shipped checkpoints were trained and validated at
_SEED = 0
_CALIBRATION_IMAGES = 32


def load(
    name: str | Path,
    weights: str | Path = "auto",
    size: data.Size | None = None,
    output: str | None = None,
) -> Model:
    """Return the model that `name` and `weights` stand for.

    Parameters
    ----------
    name
        ``mobilenet_v3_large``, ``mobilenet_v3_small``, ``efficientnet_lite0``, ``fbnet_a``,
        ``tv:NAME``, ``timm:NAME``, or the path of an ``.onnx``, ``.pt2``, ``.dlc`` or ``.tflite``
        file.
    weights
        ``imagenet``: the published weights, downloaded if needed (for ``mobilenet_v3_large``
        torchvision's V1, the file of the vendor case study; ``efficientnet_lite0`` has them from
        the extra ``imagenet``, without a download). ``things16``, ``marked-things``: the checkpoint
        shipped with the lab that learned this set; timm's ``mobilenetv3_large_100`` and
        ``mobilenetv3_small_100`` carry it as well. ``random``: seeded, conditioned such that
        float16 can hold them (see `random_weights`), with BatchNorm statistics measured on
        Things-16, so that activations have a realistic scale. A path: your ``.safetensors`` or
        ``.pth``. ``auto``: ImageNet weights when they are in the cache already, else a shipped
        checkpoint (Things-16's first), else random; it never downloads.
    size
        Image side in pixels, or (height, width); default is what the weights were made for.
    output
        Of a file: which output has the classifier's scores; or, in an ``.onnx``, a tensor inside,
        and then the network ends there. By default the output whose shape and name say so.

    Raises
    ------
    UnknownNameError
        No such model, kind of weights or output; the message suggests the nearest.
    FetchError
        ``weights="imagenet"`` and the download failed.
    MissingToolError
        ``efficientnet_lite0`` with ``weights="imagenet"``, and the extra is not installed.
    ModelFileError
        A file is missing, damaged, unsafe to read, or of another architecture; or the model card or
        the manifest beside it is damaged.
    UsageError
        A size out of range, or weights that do not go with the model.

    Examples
    --------
    >>> from labutils.models import zoo
    >>> model = zoo.load("mobilenet_v3_small", "things16")
    >>> model.input_shape, model.classes[:3]
    ((1, 3, 128, 128), ('mug', 'teapot', 'fish'))
    >>> zoo.load("mobilenet_v3_smal")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    labutils.errors.UnknownNameError: There is no model named 'mobilenet_v3_smal'. ...
    """
    if size is not None and not all(MIN_SIZE <= n <= MAX_SIZE for n in data.sides(size)):
        raise UsageError(f"size={size}: images of {MIN_SIZE} to {MAX_SIZE} px are supported.")
    if Path(name).suffix in _FILES:
        return _FILES[Path(name).suffix](Path(name), str(weights), size, output)
    if output not in (None, ONLY):
        raise UsageError(
            f"{name} has one output, {ONLY!r}. To end it at a tensor inside, export it first "
            "(labutils export), and pass the file."
        )
    arch = architectures.find(str(name))
    chosen, why = _choose(arch) if weights == "auto" else (weights, "as asked")
    if chosen == "imagenet":
        found = arch.imagenet()
    elif chosen in data.DRAWN:
        found = _shipped(arch, str(chosen))
    elif chosen == "random":
        found = _random(arch, size)
    else:
        found = _own(arch, chosen)
    preprocessing = found.preprocessing
    if size is not None:
        preprocessing = replace(preprocessing, size=size)
    return Model(
        name=str(name),
        module=_ready(found.module),
        preprocessing=preprocessing,
        classes=found.classes,
        weights=found.weights,
        note=f"{found.what} ({why})",
        trained=found.trained,
        input_shape=(1, *preprocessing.shape),
        sha256=_sha256(found),
    )


def refuse_output(path: str | Path, model: Model, *suffixes: str) -> None:
    """Refuse an output that has no place, has the wrong ending, or would overwrite the model.

    Parameters
    ----------
    path
        Where something made from `model` will be written.
    model
        What it is made from.
    suffixes
        The endings that the output may have, with their dot.

    Raises
    ------
    UsageError
        `path` is a folder or in one that takes no files, has another ending, or is the file that
        the model was read from.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder: name the {suffixes[0]} file to write.")
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"{path}: the output must be {_a(suffixes[0])} file.")
    brought = [file for file in (model.file, model.brought) if file]
    if any(path.resolve() == file.resolve() for file in brought):
        raise UsageError(f"{path} is the model itself: choose another name for the output.")
    paths.refuse_unwritable(path)


def _a(suffix: str) -> str:
    return f"{'an' if suffix[1] in 'aeio' else 'a'} {suffix}"


def _sha256(found: architectures.Weighted) -> str:
    if found.file is not None:
        return paths.sha256(found.file)
    return checkpoint.digest(found.module.state_dict())


def _ready(module: nn.Module) -> nn.Module:
    return module.eval().requires_grad_(False)


def _choose(arch: architectures.Architecture) -> tuple[str, str]:
    """Return what ``auto`` takes for `arch`, and why."""
    if arch.imagenet_cached():
        return "imagenet", "auto: found in the cache"
    for image_set in data.DRAWN:
        if _checkpoint(arch.name, image_set).is_file():
            return image_set, "auto: no ImageNet weights in the cache, the lab's own are shipped"
    return "random", "auto: no ImageNet weights in the cache, and none shipped for this model"


def _checkpoint(architecture: str, image_set: str) -> Path:
    return paths.CHECKPOINTS / f"{data.checkpoint_name(architecture, image_set)}.safetensors"


def _shipped(arch: architectures.Architecture, image_set: str) -> architectures.Weighted:
    title = data.drawn(image_set).TITLE
    twin = timm_twins.TWINS.get(arch.name.partition(".")[0])
    there = arch.name in architectures.LAB_MODELS or _checkpoint(arch.name, image_set).is_file()
    if not there and twin is None:
        end = data.checkpoint_name("", image_set)
        names = sorted(file.stem for file in paths.CHECKPOINTS.glob("*.safetensors"))
        known = [n.removesuffix(end) for n in names if n.endswith(end) and (end or "-" not in n)]
        raise UsageError(
            f"There is no {title} checkpoint of {arch.name}, only of {', '.join(known)}. "
            "Use weights='imagenet', 'random' or a path."
        )
    what = f"{title} checkpoint of the lab"
    if twin is None:
        return replace(_own(arch, _checkpoint(arch.name, image_set)), weights=image_set, what=what)
    source = _own(architectures.find(twin), _checkpoint(twin, image_set))
    module = arch.build(len(source.classes))
    timm_twins.carry_over_(module, source.module)
    return replace(source, module=module, weights=image_set, what=f"{what}, of {twin}")


def _own(arch: architectures.Architecture, path: str | Path) -> architectures.Weighted:
    """Load a checkpoint file; the number of classes is read from it."""
    path = Path(path)
    if not path.is_file() and not path.suffix:
        raise UnknownNameError("kind of weights", str(path), WEIGHTS)
    state = checkpoint.state_dict(path)
    head = f"{architectures.head_name(arch.build(None))}.weight"
    outputs = len(state[head]) if head in state and state[head].ndim else None
    module = arch.build(outputs)
    checkpoint.load_into_(module, state, str(path))
    found = architectures.outputs_of(module)
    classes = provenance.card_classes(path, found) or architectures.class_names(found)
    preprocessing = arch.preprocessing
    if image_set := data.set_of(classes):
        source = f"{data.drawn(image_set).TITLE} training"
        preprocessing = replace(preprocessing, size=_DRAWN_SIZE, source=source)
    elif found_on_card := provenance.card_preprocessing(path):
        preprocessing = replace(found_on_card, source=f"card of {path.name}")
    elif size := provenance.card_size(path):
        preprocessing = replace(preprocessing, size=size, source=f"card of {path.name}")
    what = f"weights from {path.name}"
    return architectures.Weighted(module, preprocessing, classes, str(path), what, file=path)


def _random(arch: architectures.Architecture, size: data.Size | None) -> architectures.Weighted:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        module = arch.build(None)
        random_weights.condition_(module)
        fitted = replace(arch.preprocessing, size=size or arch.preprocessing.size)
        try:
            calibrate_(module, fitted)
        except Exception as error:  # of somebody's forward: any kind
            if size is None:
                raise
            raise UsageError(
                f"{arch.name} takes no images of {data.shown(size)}: {reason_of(error)}. "
                f"Leave out --size: its own is {data.shown(arch.preprocessing.size)}."
            ) from None
    return architectures.Weighted(
        module=module,
        preprocessing=arch.preprocessing,
        classes=architectures.numbered(architectures.outputs_of(module)),
        weights="random",
        what=f"random weights, seed {_SEED}, {random_weights.NOTE}, statistics from Things-16",
        trained=False,
    )


def calibrate_(module: nn.Module, preprocessing: data.Preprocessing) -> None:
    """Measure the BatchNorm statistics of `module` on Things-16 images, in place.

    With the initial statistics (mean 0, variance 1) the activations of an untrained network
    shrink layer by layer, until its logits underflow in half precision.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    norms = [part for part in module.modules() if isinstance(part, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    images = data.calibration(_CALIBRATION_IMAGES, preprocessing.size)
    with evaluating(module), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches
            norm.training = True
        for inputs, _ in images.batches(_CALIBRATION_IMAGES // 2, preprocessing):
            module(torch.from_numpy(inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _from_onnx(path: Path, weights: str, size: data.Size | None, output: str | None) -> Model:
    refuse_weights(path, weights)
    brought = OnnxFile(path)
    if not brought.outputs:
        raise ModelFileError(f"{path} has no outputs: it is cut short, or was never finished.")
    ends.refuse_other_outputs(brought)
    found = adapt.adapted(brought, size)
    model, scores, cut = ends.chosen(found.onnx or OnnxFile(found.file), output, found.changes)
    known = ends.outputs_of(model)
    changes = (*found.changes, *([cut] if cut else []))
    origin, preprocessing = provenance.stored(path, model.proto)
    note = provenance.origin_note(path, origin, model.proto)
    inputs = [_dims(value) for value in model.inputs]
    count = ends.classes_of(known, scores)
    classes = tuple(origin.get("classes", ()))
    classes = classes if scores and (not cut or len(classes) == count) else ()
    return file_model(
        path,
        size,
        module=None,
        shape=inputs[0] if inputs else None,
        preprocessing=preprocessing or found.preprocessing,
        classes=classes or architectures.numbered(count),
        trained=origin.get("trained", True),
        note="; ".join((note, *changes)),
        file=model.path,
        brought=path if changes else None,
        output=scores,
        outputs=tuple(entry.name for entry in known),
        sha256=brought.sha256,
        onnx=model,
    )


def _from_pt2(path: Path, weights: str, size: data.Size | None, output: str | None) -> Model:
    refuse_weights(path, weights)
    program = checkpoint.exported_program(path)
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature = program.graph_signature
    _refuse_training(path, program)
    module: Any = program.module().requires_grad_(False)
    # Its mode is fixed, and its own eval() and train() refuse: here they do nothing.
    module.eval = module.train = types.MethodType(lambda self, mode=False: self, module)
    first_in = signature.user_inputs[0]
    _refuse_input(path, signature.user_inputs, values[first_in])
    known = ends.outputs_of_program(program, values)
    scores = outputs.scores_of(known, output, path.name)
    return file_model(
        path,
        size,
        module=module,
        shape=tuple(values[first_in].shape),
        preprocessing=None,
        classes=architectures.numbered(ends.classes_of(known, scores)),
        trained=True,
        note="an exported program of yours",
        output=scores,
        outputs=tuple(entry.name for entry in known),
    )


def _refuse_training(path: Path, program: torch.export.ExportedProgram) -> None:
    """Refuse a program that drops out, or normalises with statistics of the batch."""
    flags = {"dropout": 2, "batch_norm": 5}  # operator: where its `train` stands
    for node in program.graph.nodes:
        operator = str(node.target).split(".")[1:2]
        at = flags.get(operator[0].rstrip("_")) if operator else None
        if at is not None and len(node.args) > at and node.args[at] is True:
            raise ModelFileError(
                f"{path} was exported in training mode (node {node.name}): it behaves "
                "differently in use. Call model.eval(), then torch.export.export again."
            )


def _refuse_input(path: Path, names: tuple[str, ...], value: Any) -> None:
    """Refuse a program that takes anything but one float32 NCHW image."""
    shape, kind = tuple(value.shape), str(value.dtype).removeprefix("torch.")
    image = len(shape) == 4 and (shape[1] == 3 or shape[3] != 3)
    if len(names) != 1 or kind != "float32" or not image:
        raise ModelFileError(
            f"{path} takes {counted(len(names), 'input')}, the first of them {kind} {shape}; one "
            "float32 image (n, 3, height, width) is needed. Export it without what comes before "
            "that."
        )


def _refuse_checkpoint(
    path: Path, weights: str, size: data.Size | None, output: str | None
) -> Model:
    raise UsageError(
        f"{path} holds weights without an architecture. Name one, and pass the file as its "
        f"weights: zoo.load('mobilenet_v3_large', weights={path.name!r})."
    )


_FILES = {
    ".onnx": _from_onnx,
    ".pt2": _from_pt2,
    ".dlc": artifacts.from_dlc,
    ".tflite": artifacts.from_tflite,
    **dict.fromkeys((".pth", ".pt", ".safetensors"), _refuse_checkpoint),
}


def _dims(value: onnx.ValueInfoProto) -> tuple[int, ...] | None:
    """Return the shape of a graph input or output, None where a size is left open."""
    sizes = tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
    return sizes if sizes and all(size > 0 for size in sizes) else None
