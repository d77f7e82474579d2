"""What benchmarks keep between runs: found again only by the content of all that it depends on.

A file's name ends in a key made of the checkpoint's bytes, the recipe, the inputs (split, number,
size), the code that makes it and the versions of the packages it calls. What changes any of these
changes the name, so nothing old is found under it. Answers are kept by the bytes of the file that
gave them and of the images, batch by batch: a run that was stopped resumes where it was.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from labutils import paths
from labutils.images import (
    data,
    marked_things,
    markings,
    rendering,
    scene,
    sketches,
    strokes,
    textures,
    things,
)
from labutils.runtime import Runner


def folder(program: str) -> Path:
    """Return where a benchmark keeps what it made."""
    return paths.folder(paths.cache() / "benchmarks" / program)


def forget(program: str) -> None:
    """Delete all that a benchmark kept."""
    shutil.rmtree(folder(program))


def key(**content: Any) -> str:
    """Return 12 hexadecimal digits for plain values; TypeError for what has no stable form."""
    words = json.dumps(content, sort_keys=True, allow_nan=False)
    return hashlib.sha256(words.encode()).hexdigest()[:12]


@functools.cache
def code(*modules: ModuleType | Path) -> str:
    """Return a digest of modules, of packages with all that is in them, and of programs.

    Comments, docstrings and layout do not count: what computes the same has the same digest.
    """
    digest = hashlib.sha256()
    for module in modules:
        place = module if isinstance(module, Path) else Path(module.__file__ or "")
        files = sorted(place.parent.rglob("*.py")) if place.name == "__init__.py" else [place]
        for file in files:
            digest.update(statements(file.read_text(encoding="utf-8")).encode())
    return digest.hexdigest()[:12]


def statements(source: str) -> str:
    """Return the syntax tree of a program, without docstrings, as text."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            said = node.body and isinstance(node.body[0], ast.Expr)
            if said and isinstance(getattr(node.body[0].value, "value", None), str):
                del node.body[0]
    return ast.dump(tree)


def drawn() -> str:
    """Return the digest of what draws the sets: an image is a function of its number."""
    sets, parts = (things, marked_things), (scene, sketches, strokes, markings, textures)
    return code(*sets, *parts, rendering, data)


def checkpoint(architecture: str) -> str:
    """Return the digest of a shipped checkpoint's bytes."""
    return paths.sha256(paths.CHECKPOINTS / f"{architecture}.safetensors")


class Remembered:
    """A runner that keeps its answers, and is only started for those that it has not given yet.

    Parameters
    ----------
    file
        The artifact whose answers these are.
    connect
        Starts the runner; for the HTP simulator that takes seconds.
    program
        The benchmark that keeps them.
    runtime
        What runs the file, as text for a table.
    versions
        Of the packages that run it: another version is asked again.
    """

    def __init__(
        self,
        file: Path,
        connect: Callable[[], Runner],
        program: str,
        runtime: str,
        versions: dict[str, str],
    ) -> None:
        self.file, self.name, self.runtime = file, file.name, runtime
        self._connect, self._runner, self._folder = connect, None, folder(program)
        self._content = {"file": paths.sha256(file), "runtime": runtime, "versions": versions}

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return logits, float32 (n, classes), for images, float32 (n, 3, size, size)."""
        images = hashlib.sha256(np.ascontiguousarray(batch).tobytes()).hexdigest()
        kept = self._folder / f"answers_{key(images=images, **self._content)}.npy"
        if not kept.exists():
            if self._runner is None:
                self._runner = self._connect()
            with paths.atomic(kept) as temporary:
                np.save(temporary, self._runner.run(batch))
        return np.load(kept)

    def close(self) -> None:
        """Free the runner, if it was started."""
        if self._runner is not None:
            self._runner.close()
            self._runner = None

    def __enter__(self) -> Remembered:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
