"""A user's ONNX file beside the copy of it that the lab works on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from .. import paths, targets
from ..onnxfile import constants
from ..onnxfile.canonical_form import canonicalize_, is_canonical
from ..onnxfile.file import OnnxFile


def canonical(source: OnnxFile, folder: Path) -> OnnxFile:
    """Return a file in canonical form: itself, or a copy in `folder`; a file of `zoo.load` is."""
    if is_canonical(source.proto):
        return source
    model = source.copy()
    if not canonicalize_(model):
        return source
    return OnnxFile.write(paths.folder(folder / "canonical") / source.path.name, model)


def refused_as_brought(
    file: OnnxFile | str | Path, check: targets.CheckReport
) -> list[targets.NodeVerdict]:
    """Return what blocks a user's file on a target, and no longer blocks its adapted copy.

    Parameters
    ----------
    file
        The user's file.
    check
        Of the adapted copy.
    """
    with constants.quiet():
        found = targets.check(OnnxFile.of(file), check.target).blockers
    kept = Counter(node.op_type for node in check.blockers)
    gone = []
    for node in found:
        kept[node.op_type] -= 1
        if kept[node.op_type] < 0:
            gone.append(node)
    return gone
