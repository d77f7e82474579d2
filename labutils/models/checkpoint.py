"""Read weight files that someone else wrote, without running code that they may carry."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import typesetting, untrusted
from ..errors import LimitError, ModelFileError, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

# What zipfile raises for an archive that is cut, encrypted, or damaged somewhere inside.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError)

# The members of a `torch.export.save` archive that are tensors as raw bytes, or JSON.
_PT2_MEMBERS = re.compile(
    r"data/(weights/(weight_\d+|\w+_weights_config\.json)"
    r"|constants/(tensor_\d+|\w+_constants_config\.json)|sample_inputs/\w+\.pt)"
    r"|models/\w+\.json|archive_format|archive_version|byteorder|\.data/\w+"
)


def state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a state dict from ``.safetensors``, or from ``.pth``/``.pt`` with tensors only.

    A file that wraps it under ``state_dict`` or ``model``, and names that
    `DistributedDataParallel` prefixed with ``module.``, are unwrapped.

    Raises
    ------
    ModelFileError
        The file is missing or damaged, or holds a pickle of anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"There is no checkpoint {path}.")
    try:
        untrusted.refuse_size(path)
    except LimitError as error:
        raise ModelFileError(str(error)) from None
    loaded = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not _is_state_dict(loaded):
        raise ModelFileError(
            f"{path} holds a {type(loaded).__name__}, not a state dict (names with tensors). "
            "Save one with torch.save(model.state_dict(), path)."
        )
    if all(name.startswith("module.") for name in loaded):
        loaded = {name.removeprefix("module."): tensor for name, tensor in loaded.items()}
    return loaded


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of tensors, with their names, types and shapes."""
    import torch

    found = hashlib.sha256()
    for name, tensor in state.items():
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        found.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _is_state_dict(loaded: object) -> bool:
    import torch

    return (
        isinstance(loaded, dict)
        and bool(loaded)
        and all(isinstance(n, str) and isinstance(t, torch.Tensor) for n, t in loaded.items())
    )


def _safetensors(path: Path) -> dict[str, torch.Tensor]:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelFileError(
            f"{path} is not a readable safetensors file ({error}); was it cut short? "
            "Copy or download it again."
        ) from None


def _pickled(path: Path) -> Any:
    import torch

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                untrusted.refuse_bomb(path, archive)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        what = re.search(r"GLOBAL (\S+)|Unsupported (?:global|operand)[^\n]*", str(error))
        raise ModelFileError(
            f"{path} is refused: it is a pickle, and reading it could execute code "
            f"({what.group(0) if what else 'not a tensor file'}). Only tensors are read. Save a "
            "state dict with torch.save(model.state_dict(), path), or use .safetensors."
        ) from None
    except LimitError as error:
        raise ModelFileError(str(error)) from None
    except Exception as error:  # a damaged pickle fails in any of Python's ways
        raise ModelFileError(
            f"{path} is not a readable checkpoint ({_first_line(error)}); was it cut short? "
            "Copy it again, or save a state dict with torch.save(model.state_dict(), path)."
        ) from None


def load_into_(module: nn.Module, state: dict[str, torch.Tensor], source: str) -> None:
    """Copy `state` into `module`, in place; every name and shape must match.

    Half-precision tensors are widened to the module's own dtype.

    Raises
    ------
    ModelFileError
        Names the first keys that are missing, unexpected, or of another shape.
    """
    own = module.state_dict()
    groups = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} where the model has {tuple(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in groups.items()
        if names
    ]
    if problems:
        raise ModelFileError(
            f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}. "
            "Is it a checkpoint of another architecture?"
        )
    module.load_state_dict(state)


@dataclass(frozen=True, repr=False)
class LoadReport(typesetting.Shown):
    """What a partial loading did, tensor by tensor.

    Attributes
    ----------
    source
        Where the weights came from.
    loaded
        Names in the module that got a tensor of the checkpoint.
    renamed
        Of these, those that have another name in the checkpoint: name there -> name here.
    missing
        Names in the module that the checkpoint has nothing for: they keep what they had.
    unexpected
        Names in the checkpoint that the module has no place for.
    other_shape
        Name in the module -> (shape in the checkpoint, shape in the module); not loaded.
    """

    source: str
    loaded: tuple[str, ...]
    renamed: dict[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    other_shape: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {key: list(v) if isinstance(v, tuple) else v for key, v in vars(self).items()}

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing) + len(self.other_shape)
        shapes = [f"{n} {a} for {b}" for n, (a, b) in self.other_shape.items()]
        names = [f"{there} -> {here}" for there, here in self.renamed.items()]
        lines = [f"{self.source}: {len(self.loaded)} of {total} tensors loaded"]
        for what, found in (
            ("renamed", names),
            ("not in the file", self.missing),
            ("of another shape, not taken", shapes),
            ("in the file only", self.unexpected),
        ):
            more = ", ..." if len(found) > 3 else ""
            lines += [f"  {len(found)} {what}: {', '.join(found[:3])}{more}"] if found else []
        return "\n".join(lines)


def load_partly_(
    module: nn.Module,
    state: Mapping[str, torch.Tensor],
    source: str = "the checkpoint",
    renames: Mapping[str, str] | None = None,
) -> LoadReport:
    r"""Copy into `module`, in place, the tensors that fit by name and shape, and report the rest.

    Parameters
    ----------
    module
        What gets the weights, e.g. a network with another number of classes.
    state
        From `state_dict`.
    source
        What the report calls it.
    renames
        Regular expression -> replacement, applied in order to the names of `state`, as `re.sub`
        does: ``{r"^backbone\.": ""}``.

    Raises
    ------
    ModelFileError
        Nothing fits, or two tensors get the same name.
    UsageError
        A regular expression is faulty, or changes no name.
    """
    wanted, origin = module.state_dict(), renamed(state, renames or {})
    shapes = {
        name: (tuple(state[there].shape), tuple(wanted[name].shape))
        for name, there in origin.items()
        if name in wanted and state[there].shape != wanted[name].shape
    }
    fitting = [name for name in wanted if name in origin and name not in shapes]
    if not fitting:
        there, here = ", ".join(list(origin)[:3]), ", ".join(list(wanted)[:3])
        raise ModelFileError(
            f"Nothing in {source} fits {type(module).__name__}: it has {there}, ..., and the model "
            f"wants {here}, .... Give renames={{pattern: replacement}}."
        )
    # into a whole state dict: it has what modules note beside their tensors, such as a version
    wanted.update({name: state[origin[name]] for name in fitting})
    module.load_state_dict(wanted)
    return LoadReport(
        source,
        tuple(fitting),
        {origin[name]: name for name in fitting if origin[name] != name},
        tuple(name for name in wanted if name not in origin),
        tuple(there for name, there in origin.items() if name not in wanted),
        shapes,
    )


def renamed(state: Mapping[str, torch.Tensor], renames: Mapping[str, str]) -> dict[str, str]:
    """Return new name -> name in `state`."""
    names = {name: name for name in state}
    for pattern, replacement in renames.items():
        try:
            changed = {there: re.sub(pattern, replacement, now) for there, now in names.items()}
        except re.error as error:
            raise UsageError(
                f"The pattern {pattern!r} is not a valid regular expression: {error}."
            ) from None
        if changed == names:
            raise UsageError(f"The pattern {pattern!r} changes no name of the checkpoint.")
        names = changed
    origin = {now: there for there, now in names.items()}
    if len(origin) < len(names):
        twice = [there for there, now in names.items() if origin[now] != there]
        now = names[twice[0]]
        raise ModelFileError(f"{twice[0]} and {origin[now]} would both be called {now}.")
    return origin


def exported_program(path: str | Path) -> torch.export.ExportedProgram:
    """Load a ``.pt2`` of `torch.export.save`, without running code that it may carry.

    `torch.export.load` unpickles whatever the archive marks as a pickle, and evaluates symbolic
    shapes as Python expressions, so an archive is read only when it has neither.

    Raises
    ------
    ModelFileError
        Not such an archive, or one that holds pickled objects or dynamic shapes.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"There is no file {path}.")
    _inspect_pt2(path)
    log = logging.getLogger("torch.export")  # it shows a traceback; our error says it in a line
    log.disabled, before = True, os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # for the sample inputs in the archive
    try:
        return torch.export.load(path)
    except Exception as error:
        raise ModelFileError(
            f"{path} could not be loaded by torch.export.load ({_first_line(error)}). Save it "
            f"again with this PyTorch ({torch.__version__}): torch.export.save(program, path)."
        ) from None
    finally:
        log.disabled = False
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _inspect_pt2(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            members = {name.partition("/")[2]: name for name in names}
            untrusted.refuse_bomb(path, archive)
            texts = {
                m: untrusted.member(archive, archive.getinfo(n))
                for m, n in members.items()
                if m.endswith(".json")
            }
    except LimitError as error:
        raise ModelFileError(str(error)) from None
    except _UNREADABLE as error:
        raise ModelFileError(f"{path} is not a .pt2 archive ({_first_line(error)}).") from None
    if not any(member.startswith("models/") for member in members):
        raise ModelFileError(
            f"{path} is not an archive of torch.export.save (a torch.jit or torch.save file?). "
            "Export the model: torch.export.save(torch.export.export(model, (x,)), path)."
        )
    # A name that occurs twice could show us one content and torch another.
    strange = [] if len(names) == len(members) else ["a name that occurs twice"]
    strange += [member for member in members if not _PT2_MEMBERS.fullmatch(member)]
    strange += [member for member, text in texts.items() if _carries_code(path, member, text)]
    if strange:
        raise ModelFileError(
            f"{path} is refused: {strange[0]} holds a pickled object or a dynamic shape; reading "
            "it could execute code. Export the model with plain tensors and static shapes."
        )


def _carries_code(path: Path, member: str, text: bytes) -> bool:
    try:
        content = untrusted.json_value(text)
    except ValueError:
        raise ModelFileError(f"{path} is damaged: {member} is not JSON.") from None
    return any(
        (key == "use_pickle" and value) or key == "expr_str" for key, value in _items(content)
    )


def _items(content: object) -> list[tuple[str, Any]]:
    """Return all key-value pairs of nested JSON."""
    pairs: list[tuple[str, Any]] = []
    todo = [content]
    while todo:
        item = todo.pop()
        if isinstance(item, dict):
            pairs.extend(item.items())
            todo.extend(item.values())
        elif isinstance(item, list):
            todo.extend(item)
    return pairs


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
