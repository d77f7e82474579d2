"""Where things live, and how files are written.

A file gets its name when it is whole. What is unfinished lies under a hidden name that says which
process is at work on it, so that a later one can take away what a killed one has left.

In a checkout, data and notebooks lie beside the package, and artifacts go to its
``generated_models/``. An installed package brings them in ``labutils/shipped/`` (``setup.py`` puts
them there), and artifacts go to ``generated_models/`` under the current folder.

Environment variables: ``LABUTILS_GENERATED`` moves ``generated_models/``, ``LABUTILS_CACHE`` moves
the cache of rendered images and downloads.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

from .errors import LabError, UsageError, worded

PROJECT = "mobilenetv3-edge-lab"
PACKAGE = Path(__file__).resolve().parent

CACHE_TAG = "CACHEDIR.TAG"
"""Marks a folder as a cache (https://bford.info/cachedir/); programs that make backups omit it."""

LOCKS = ".locks"
"""The folder of locks in the cache."""

_CACHE_TEXT = f"""Signature: 8a477f597d28d172789f06886806bc55
# The cache of {PROJECT}: `labutils cache list` says what lies here.
"""

CHECKOUT = all((PACKAGE.parent / part).exists() for part in ("pyproject.toml", "data/targets"))
"""Whether the package lies in a checkout of the repository, as an editable installation has it."""

ROOT = PACKAGE.parent if CHECKOUT else PACKAGE / "shipped"
"""The folder with ``data/``, ``notebooks/`` and ``benchmarks/results/``."""

DATA = ROOT / "data"
CHECKPOINTS = DATA / "checkpoints"
OPERATOR_TABLES = DATA / "targets"

if not OPERATOR_TABLES.is_dir():
    raise UsageError(
        f"labutils was installed without its data folder (looked for {OPERATOR_TABLES}). "
        "The package was copied without it. Install it with pip or uv, from its wheel or a clone."
    )


def generated() -> Path:
    """Return the folder for artifacts, made if needed."""
    return folder(generated_place())


def generated_place() -> Path:
    """Return where artifacts go; it may not exist yet."""
    place = os.environ.get("LABUTILS_GENERATED")
    return expanded(place or (ROOT if CHECKOUT else here()) / "generated_models")


def expanded(path: str | Path) -> Path:
    """Return `path` with a leading ``~`` as the home folder; UsageError when there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(
            f"{path}: the home folder of that user is not known. Write the path without ~."
        ) from None


def here() -> Path:
    """Return the current folder; UsageError when it was deleted meanwhile."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise UsageError("The current folder was deleted. Change to another one.") from None


def cache() -> Path:
    """Return the folder for rendered images and downloads, made (and marked so) if needed."""
    place = folder(cache_place())
    with contextlib.suppress(OSError):  # one that cannot be written serves, too
        if not any(place.iterdir()):
            write_text(place / CACHE_TAG, _CACHE_TEXT)
    return place


def cache_place() -> Path:
    """Return where the cache is; it may not exist yet."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / PROJECT
    return expanded(os.environ.get("LABUTILS_CACHE") or default)


def folder(path: str | Path) -> Path:
    """Return `path` as a folder, made if needed; UsageError when that cannot be."""
    path = expanded(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UsageError(f"{path} is a file, not a folder: name another folder.") from None
    except OSError as error:
        raise UsageError(f"Cannot make the folder {path}: {worded(error)}.") from None
    return path


def refuse_unwritable(file: str | Path) -> None:
    """Refuse, before any work, the name of a file that cannot be written.

    It is tried, with an unnamed file of no bytes: permissions do not tell of every system's.

    Raises
    ------
    UsageError
        It is a folder, or no name for a file, or the nearest folder above it that exists does not
        take files, or is a file itself.
    """
    path = expanded(file).absolute()
    try:
        if path.is_dir() and not path.is_symlink():
            raise UsageError(f"Cannot write {file}: it is a folder. Name a file.")
        place = next(above for above in path.parents if above.exists())
        if not place.is_dir():
            raise UsageError(f"Cannot write {file}: {place} is a file, not a folder.")
        if not os.access(place, os.W_OK | os.X_OK):
            raise UsageError(f"Cannot write {file}: {place} takes no files. Name another folder.")
        with tempfile.TemporaryFile(dir=place, prefix=f".labutils.{_owner()}-", suffix=".tmp"):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"Cannot write {file}: {reason}. Name another file or folder.") from None


_FULL = (errno.ENOSPC, errno.EDQUOT)
_CLOSED = (errno.EROFS, errno.EACCES, errno.EPERM)


@contextlib.contextmanager
def _room_on_disk(unfinished: Path) -> Iterator[None]:
    """Tell of a disk that gets full, or takes nothing, while our unfinished file is written."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = _of_the_disk(error)
        if cause is not None and cause.errno in _FULL:
            words = f"The disk of {unfinished.parent} is full. Free some room, and try again."
            raise LabError(words) from None
        if cause is not None and cause.errno in _CLOSED and _is_of(cause.filename, unfinished):
            words = f"Cannot write into {unfinished.parent}: {cause.strerror}. Name another place."
            raise UsageError(words) from None
        raise


def _of_the_disk(error: BaseException) -> OSError | None:
    """Return the error of the system, which PyTorch's writer covers with another."""
    found = error if isinstance(error, OSError) else error.__context__
    return found if isinstance(found, OSError) else None


def _is_of(name: object, unfinished: Path) -> bool:
    """Whether a file is the one that we write, or in the folder that we fill."""
    if not isinstance(name, str | os.PathLike):
        return False
    return unfinished in (Path(name), *Path(name).parents)


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` only when the block succeeds.

    The temporary name keeps the suffix, because writers look at it. Manifest and recipes of the
    file that is replaced go with that file. A link is replaced, and not followed.

    Raises
    ------
    UsageError
        `path` is a folder, or its place takes no files.
    LabError
        The disk is full.
    """
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        raise UsageError(f"{path} is a folder, and a file must be written there: move it away.")
    _sweep(folder(path.parent))
    mark = f"{_owner()}-{secrets.token_hex(4)}.tmp"
    temporary = path.with_name(f".{path.stem[:40]}.{mark}{path.suffix}")
    try:
        with _room_on_disk(temporary):
            yield temporary
            for described in (manifest, edits_file, recipe_file, earlier_edits_file):
                described(path).unlink(missing_ok=True)
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):  # on a disk that takes no files nothing was written
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch(place: str | Path | None = None) -> Iterator[Path]:
    """Yield an empty hidden folder for unfinished work, and take it away afterwards.

    It lies in `place`, from where its files can be renamed; without one, where the system keeps
    its temporary files.
    """
    place = folder(place or tempfile.gettempdir())
    _sweep(place)
    made = place / f".labutils.{_owner()}-{secrets.token_hex(4)}.tmp"
    try:
        with _room_on_disk(made):
            made.mkdir(mode=0o700)
            yield made
    finally:
        try:
            shutil.rmtree(made, ignore_errors=True)
        finally:  # the same signal may come again while we clean up
            shutil.rmtree(made, ignore_errors=True)


_UNFINISHED = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)-\w+\.tmp(\.\w+)?")


def _owner() -> str:
    """Return what identifies this process, among all that may write into one folder."""
    return f"{zlib.crc32(platform.node().encode()):08x}-{os.getpid()}"


@functools.lru_cache(64)  # once in the life of a process is enough for a folder
def _sweep(place: Path) -> None:
    sweep(place)


def sweep(place: Path) -> None:
    """Delete the unfinished files and folders of this machine's processes that no longer exist."""
    with os.scandir(place) as entries:
        for entry in entries:
            found = _UNFINISHED.fullmatch(entry.name)
            if found and _owner().startswith(found[1]) and not _alive(int(found[2]), entry):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    with contextlib.suppress(OSError):  # another user's, or gone meanwhile
                        Path(entry.path).unlink()


def _alive(pid: int, entry: os.DirEntry[str]) -> bool:
    """Whether the process `pid` runs that made `entry`, and not a later one of that number."""
    import psutil

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:  # dead; some containers never bury theirs
            return False
        begun: float = process.create_time()
        return begun < entry.stat(follow_symlinks=False).st_ctime + 2  # both are rounded
    except psutil.NoSuchProcess:
        return False
    except (OSError, psutil.Error):
        return True  # gone meanwhile, or another user's


@contextlib.contextmanager
def locked(path: str | Path, waiting: Callable[[], object] = lambda: None) -> Iterator[None]:
    """Let one process at a time of this user work on `path`, a file or folder.

    The system ends the lock with its process, however that dies. `waiting` is called when another
    process holds it.

    Raises
    ------
    UsageError
        There is no place for locks that only this user can write.
    """
    import filelock

    key = hashlib.sha256(os.fsencode(Path(path).resolve())).hexdigest()[:16]
    lock = filelock.FileLock(_locks() / f"{key}.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def lock_places() -> tuple[Path, Path]:
    """Return the folders where this user's locks may lie, in order; they may not exist."""
    user = os.getuid() if hasattr(os, "getuid") else "own"
    return cache_place() / LOCKS, Path(tempfile.gettempdir(), f"labutils-{user}")


def _locks() -> Path:
    """Return the folder of this user's locks: in the cache, else among the temporary files.

    Another user may have taken its name first, to hold our locks or to let us write elsewhere.
    """
    refused = []
    for base, made in zip((cache, tempfile.gettempdir), lock_places(), strict=True):
        try:
            base()  # makes the cache, where there is none yet
            reason = _not_private(made)
        except (UsageError, OSError) as error:
            reason = str(error)
        else:
            if not reason:
                return made
        refused.append(reason)
    raise UsageError(
        f"There is no folder for locks that only you can write: {'; '.join(refused)}. Set "
        "LABUTILS_CACHE to a folder that belongs to you."
    )


def _not_private(path: Path) -> str:
    """Make `path` a folder that only this user can write; say why it is not one, "" when it is."""
    if os.name != "posix":  # cache and temporary files lie in the user's own profile
        path.mkdir(exist_ok=True)
        return ""
    around, own = path.parent.stat(), os.getuid()
    if around.st_uid not in (own, 0) or (around.st_mode & 0o022 and not around.st_mode & 0o1000):
        return f"others can rename what lies in {path.parent}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return f"{path} is a link, not a folder"
    if found.st_uid != own:
        return f"{path} belongs to another user"
    path.chmod(0o700)  # of an earlier version, or of a lenient umask
    return ""


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 `text` to `path`, all of it or nothing."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write bytes to `path`, all of them or nothing."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions(*packages: str) -> dict[str, str]:
    """Return the installed versions of `packages` (and of Python); absent ones are "absent"."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def manifest(artifact: str | Path) -> Path:
    """Return the name of an artifact's manifest, which lies beside it."""
    artifact = Path(artifact)
    return artifact.with_name(artifact.name + ".manifest.json")


EARLIER_EDITS = ".recipe.yaml"
"""How the name of a file of edits ended before; such files are still read."""


def edits_file(artifact: str | Path) -> Path:
    """Return the name of the edits of the surgery that made an artifact, which lie beside it."""
    artifact = Path(artifact)
    return artifact.with_name(artifact.name + ".edits.yaml")


def recipe_file(artifact: str | Path) -> Path:
    """Return the name of the recipe that quantized an artifact, which lies beside it."""
    artifact = Path(artifact)
    return artifact.with_name(artifact.name + ".quantization.yaml")


def earlier_edits_file(artifact: str | Path) -> Path:
    """Return the name under which an earlier version wrote the edits of an artifact."""
    artifact = Path(artifact)
    return artifact.with_name(artifact.name + EARLIER_EDITS)
