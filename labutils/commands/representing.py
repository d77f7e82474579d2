"""The command that turns a network into text and text into a network: represent."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ParityError, UsageError, counted
from .options import NAME_HELP, WEIGHTS_HELP, command, emit, say, size_argument

if TYPE_CHECKING:
    from ..representation import Description

_PICTURES = 2  # random ones, on which both networks must give the same bits; a .pt2 may take one


def add(commands: Any) -> None:
    """Add the parser of this command."""
    text = "Write a network as YAML of few kinds of layers, or build what such a file describes."
    parser = command(commands, "represent", _represent, text)
    where = f"{NAME_HELP}; or a .yaml that this command wrote, possibly changed by hand"
    parser.add_argument("model", metavar="MODEL", help=where)
    parser.add_argument("--weights", default="auto", help=WEIGHTS_HELP)
    size_argument(parser)
    written = "of a network: the .yaml to write; its weights lie beside it as .safetensors"
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=written)


@dataclass(frozen=True)
class Represented:
    """What was written or built.

    Attributes
    ----------
    name, layers, kinds
        The network, the number of its layers, and how many there are of each kind.
    bytes
        Of the text.
    parameters
        In all weights, statistics of BatchNorm included.
    file
        The text.
    weights
        Of the built network: the file that they came from; empty where they are PyTorch's initial
        ones.
    """

    name: str
    layers: int
    kinds: dict[str, int]
    bytes: int
    parameters: int
    file: str
    weights: str

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain values, for ``--json``."""
        return asdict(self)

    def __str__(self) -> str:
        kinds = ", ".join(f"{n} {kind}" for kind, n in self.kinds.items())
        weights = f"weights from {self.weights}" if self.weights else "initial weights"
        return (
            f"{self.name}: {counted(self.layers, 'layer')} of {counted(len(self.kinds), 'kind')} "
            f"({kinds}); {self.parameters:,} values, {weights}; {self.file}, {self.bytes:,} bytes"
        )


def _represent(chosen: argparse.Namespace) -> int:
    described = Path(chosen.model).suffix in (".yaml", ".yml")
    if described and (chosen.output or chosen.size or chosen.weights != "auto"):
        raise UsageError(f"{chosen.model} says all that is built: leave out -o, --size, --weights.")
    if not described and (chosen.output is None or chosen.output.suffix != ".yaml"):
        raise UsageError("Pass -o FILE.yaml.")
    emit(chosen, _built(chosen) if described else _written(chosen))
    return 0


def _written(chosen: argparse.Namespace) -> Represented:
    """Describe a network, build it again, and write both files when the two are bit-equal."""
    import torch
    from safetensors.torch import save

    from .. import paths, representation
    from ..models import zoo

    model = zoo.load(chosen.model, chosen.weights, chosen.size)
    if model.module is None or model.input_shape is None:
        raise UsageError(
            f"{model.name}: represent takes a network of PyTorch, by name or as a .pt2."
        )
    paths.refuse_unwritable(chosen.output)
    _, _, height, width = model.input_shape
    description, weights = representation.import_torch(model.module, (height, width), model.name)
    again = representation.emit_torch(representation.read(description.to_yaml()), weights)
    number = 1 if model.file else _PICTURES
    pictures = torch.rand(number, *description.input, generator=torch.manual_seed(0))
    if not representation.bit_equal(again, model.module, pictures):
        raise ParityError(
            f"{model.name} and what its description builds differ. Nothing was written: it is "
            "not described by these kinds of layers. Use ONNX or .pt2 for it."
        )
    say(chosen, f"bit-equal to PyTorch on {counted(number, 'random picture')}")
    file = _weights_file(chosen.output)
    paths.write_bytes(file, save({name: value.clone() for name, value in weights.items()}))
    description.save(chosen.output)
    return _said(description, chosen.output, sum(v.numel() for v in weights.values()), file)


def _built(chosen: argparse.Namespace) -> Represented:
    """Build what a text describes, with the weights beside it where there are any."""
    from .. import representation
    from ..models import checkpoint

    file = Path(chosen.model)
    description = representation.load(file)
    beside = _weights_file(file)
    weights = checkpoint.state_dict(beside) if beside.is_file() else None
    made = representation.emit_torch(description, weights)
    values = sum(v.numel() for n, v in made.state_dict().items() if "num_batches" not in n)
    return _said(description, file, values, beside if weights is not None else None)


def _weights_file(file: Path) -> Path:
    return file.with_suffix(".safetensors")


def _said(description: Description, file: Path, values: int, weights: Path | None) -> Represented:
    kinds = Counter(layer.operator.kind for layer in description.layers)
    return Represented(
        description.name, len(description.layers), dict(kinds.most_common()),
        file.stat().st_size, values, str(file), str(weights or ""),
    )  # fmt: skip
