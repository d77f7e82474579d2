"""From PyTorch to a float ``.tflite``, by Google's litert-torch in its own environment."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from .. import paths
from ..errors import ConvertError, ExportError, ToolError, TranslationError
from ..tools import calling
from .layout import Layout

if TYPE_CHECKING:
    from torch import nn

TOOL = "litert"
TOOL_PROGRAM = Path(__file__).with_name("tool_program.py")
"""What `labutils.tools.calling` opens in the environment of the tool."""
_UNKNOWN = re.compile(r"Lowering not found: (\S+)")
_LONGEST = 300  # characters of a reason


@contextlib.contextmanager
def opened() -> Iterator[calling.Tool]:
    """Yield the tool, whose process ends with the block.

    Raises
    ------
    MissingToolError
        It is not installed; the message says how it is.
    """
    with calling.opened(TOOL, TOOL_PROGRAM) as tool:
        yield tool


def convert(
    tool: calling.Tool,
    network: nn.Module,
    shape: tuple[int, ...],
    file: Path,
    layout: Layout = "nhwc",
    name: str = "",
) -> None:
    """Write a network as a float ``.tflite``.

    Parameters
    ----------
    tool
        From `opened`.
    network
        It takes one image (1, channels, height, width).
    shape
        Of that image.
    file
        The ``.tflite`` to write.
    layout
        Of the image that the file takes: channels last is usual, and spares a transpose.
    name
        What messages call the network.

    Raises
    ------
    ExportError
        torch.export cannot take the network.
    TranslationError
        litert-torch has no translation for an operator; with its name.
    ConvertError
        It fails otherwise; in its own words.
    """
    name = name or type(network).__name__
    with paths.scratch() as folder:
        program = folder / "network.pt2"
        _export(network, shape, layout, program, name)
        try:
            tool.ask("convert", program=program, file=file)
        except ToolError as error:
            raise _refused(error, name) from error


def _export(
    network: nn.Module, shape: tuple[int, ...], layout: Layout, program: Path, name: str
) -> None:
    import torch

    from .fed import Fed

    n, channels, height, width = shape
    example = torch.zeros((n, height, width, channels) if layout == "nhwc" else shape)
    try:
        with torch.no_grad():
            exported = torch.export.export(Fed(network, layout).eval(), (example,))
        torch.export.save(exported, program)
    except TranslationError:  # of an ONNX file that is computed as a network: it names the node
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"torch.export cannot take {name}: {reason[:_LONGEST]}") from error


def _refused(error: ToolError, name: str) -> TranslationError | ConvertError:
    """Return the error for what litert-torch said."""
    unknown = _UNKNOWN.search(error.reason)
    if unknown:
        operator = unknown.group(1)
        return TranslationError(
            f"{name}: litert-torch has no translation for {operator}. Replace that operator in the "
            "network (`labutils diagnose` lists its modules), and convert it again.",
            op_type=operator,
        )
    first = next(iter(error.reason.splitlines()), error.kind)[:_LONGEST]
    return ConvertError(f"litert-torch cannot convert {name}: {error.kind}: {first}")


Echo = Callable[[object], object]
