"""An ONNX file as one object: parsed, checked and shape-inferred at most once, and handed on.

Functions that need an ONNX file take an `OnnxFile`, or a path, which `OnnxFile.of` opens at the
door. What makes a file gets its object from `OnnxFile.write`, which parses nothing.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from .. import paths
from . import graph

if TYPE_CHECKING:
    import onnx

Stats = tuple[tuple[int, int, int] | None, ...]


class OnnxFile:
    """An ONNX file, read when something is asked of it.

    The protos that it hands out are shared by everybody who has the object, so they are read and
    never changed: `copy` returns one that may be. Each keeps the model's weights in memory as long
    as the object lives: once, and once more when shapes were asked for. The object stands for the
    file as it was when it was read; `of` opens a file again that has been rewritten since. It can
    be passed wherever a path can.

    Parameters
    ----------
    path
        The file. Nothing is read yet.

    Attributes
    ----------
    path
        As given.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._stats: Stats | None = None  # of the file and the weights beside it, when read

    @classmethod
    def of(cls, file: OnnxFile | str | os.PathLike[str]) -> OnnxFile:
        """Return `file` opened: the object that it is already, unless its file was rewritten."""
        if not isinstance(file, OnnxFile):
            return cls(file)
        return file if file.current else cls(file.path)

    @classmethod
    def write(
        cls,
        path: str | os.PathLike[str],
        model: onnx.ModelProto,
        *,
        checked: bool = False,
    ) -> OnnxFile:
        """Write a model, all of it or nothing, and return its file opened; nothing is parsed.

        Parameters
        ----------
        path
            Where it goes.
        model
            With its weights. The file's object keeps it: do not change it afterwards.
        checked
            Whether ONNX's checker has passed it already.
        """
        with paths.atomic(Path(path)) as temporary:
            temporary.write_bytes(graph.serialized(model, Path(path).name))
        return cls.written(path, model, checked=checked)

    @classmethod
    def written(
        cls, path: str | os.PathLike[str], model: onnx.ModelProto, *, checked: bool = False
    ) -> OnnxFile:
        """Return the file that `model` has just been written to, opened; as for `write`."""
        made = cls(path)
        made.__dict__["proto"] = model
        made._stats = made._now()
        if checked:
            made.__dict__["_valid"] = True
        return made

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return str(self.path)

    def __repr__(self) -> str:
        return f"OnnxFile({str(self.path)!r})"

    @property
    def name(self) -> str:
        """The file's name, without its folder."""
        return self.path.name

    @property
    def current(self) -> bool:
        """Whether time, size and inode of the file, and of weights beside it, are as when read."""
        return self._stats is None or self._stats == self._now()

    @cached_property
    def proto(self) -> onnx.ModelProto:
        """The model as the file has it, without external data. Read only.

        Raises
        ------
        ModelFileError
            The file is missing, empty, truncated, or not an ONNX model.
        """
        before = _stat(self.path)
        model = self.__dict__["proto"] = graph.read(self.path)
        # a file that is rewritten while it is read counts as rewritten
        self._stats = (before, *self._now()[1:])
        return model

    @cached_property
    def whole(self) -> onnx.ModelProto:
        """The model with its external data; `proto` where it has none. Read only.

        Raises
        ------
        ModelFileError
            As for `proto`, or the other files are missing, too short or outside the file's folder.
        """
        if not graph.has_external_data(self.proto.graph):
            return self.proto
        model = type(self.proto)()
        model.CopyFrom(self.proto)
        graph.load_weights_(model, self.path)
        return model

    @cached_property
    def shaped(self) -> onnx.ModelProto:
        """`whole` with inferred types and shapes, or as it is where inference fails. Read only."""
        return graph.with_shapes(self.whole, data_prop=True)

    def copy(self, shaped: bool = False) -> onnx.ModelProto:
        """Return a copy of `whole`, or of `shaped`, to be changed."""
        made = type(self.proto)()
        made.CopyFrom(self.shaped if shaped else self.whole)
        return made

    def require_valid(self) -> None:
        """Refuse a file that breaks ONNX's own rules; see `graph.require_valid`."""
        _ = self._valid

    @cached_property
    def _valid(self) -> bool:
        graph.require_valid(self.path, self.proto)
        return True

    @property
    def opset(self) -> int:
        """Version of the standard operator set that the file imports; 0 where it names none."""
        return graph.opset(self.proto)

    @property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        """The inputs that are not weights."""
        return graph.inputs(self.proto)

    @property
    def outputs(self) -> list[onnx.ValueInfoProto]:
        """The outputs."""
        return list(self.proto.graph.output)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of the file; of the file and its weights beside it where there are such.

        Raises
        ------
        ModelFileError
            As for `proto`.
        """
        _ = self.proto  # it says which files there are
        return graph.joined_sha256(self._files())

    def _files(self) -> list[Path]:
        beside = graph.files_beside(self.proto) if "proto" in self.__dict__ else []
        return [self.path, *(self.path.parent / name for name in beside)]

    def _now(self) -> Stats:
        return tuple(map(_stat, self._files()))


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
