"""Files and folders that appear whole or not at all.

Enters: a path, local or gs://, and what is to stand there. Leaves: that, or after a failure what
stood there before. Nobody who looks meanwhile sees a half.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import IO, Any, Literal, overload

from etils import epath
from etils.epath import gpath


def write_file(path: epath.PathLike, content: str) -> None:
    """Writes a small file all at once, as UTF-8; its folder is made where it is missing."""
    with open_replacement(path) as file:
        file.write(content)


@overload
def open_replacement(
    path: epath.PathLike, mode: Literal["w"] = "w"
) -> AbstractContextManager[IO[str]]: ...


@overload
def open_replacement(
    path: epath.PathLike, mode: Literal["wb"]
) -> AbstractContextManager[IO[bytes]]: ...


@contextlib.contextmanager
def open_replacement(path: epath.PathLike, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write to that takes the place of `path` if the block succeeds.

    A link stays a link: what it points to is replaced, and keeps its mode. What is no file, such as
    `/dev/stdout`, `/dev/null` or a pipe, is written to as it is.

    Args:
      path: local or gs://; its folder is made where it is missing.
      mode: 'w' (UTF-8, line feeds as they are) or 'wb'.
    """
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    if "://" in str(path):  # an object of a bucket appears when it is closed
        with epath.Path(path).open(mode) as file:
            yield file
        return
    if _is_device(path):
        with open(path, mode, **text) as file:  # type: ignore[call-overload]
            yield file
        return
    target = _resolve(path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with _partial_file(target) as partial:
        with open(partial, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileNotFoundError):
            os.chmod(partial, stat.S_IMODE(os.stat(target).st_mode))
        os.replace(partial, target)


def check_writable(path: epath.PathLike) -> None:
    """Finds out before long work whether a file can be written; leaves everything as it is.

    A bucket is not asked: it would have to be written to.

    Raises:
      OSError: it cannot, as writing it would say (`errors.describe_disk_error` tells it).
    """
    if "://" in str(path):
        return
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if _is_device(path):
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return
    target = _resolve(path)
    folder = os.path.dirname(target)
    missing = []
    while not os.path.lexists(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    try:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with _partial_file(target) as partial, open(partial, "wb") as file:
            file.write(b"\0")
    finally:
        for made in missing:
            with contextlib.suppress(OSError):
                os.rmdir(made)


def _resolve(path: epath.PathLike) -> str:
    """The path behind all links; a name too long, or a file in a folder's place, is an OSError."""
    target: str = os.path.realpath(path)
    with contextlib.suppress(FileNotFoundError):
        os.lstat(target)
    return target


@contextlib.contextmanager
def _partial_file(target: str) -> Iterator[str]:
    """A path beside the target, gone after the block; errors speak of the target.

    Its name is short: the target's own may be as long as the disk allows.
    """
    partial = os.path.join(os.path.dirname(target), f".partial-{uuid.uuid4().hex[:8]}")
    try:
        yield partial
    except OSError as error:
        if error.filename == partial:
            error.filename, error.filename2 = target, None
        raise
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)


def _is_device(path: epath.PathLike) -> bool:
    """Whether something stands there that is neither file nor folder, or belongs to the system."""
    with contextlib.suppress(OSError):
        mode = os.stat(path).st_mode
        is_of_the_system = os.path.abspath(path).startswith(("/dev/", "/proc/"))
        return is_of_the_system or not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
    return False


@contextlib.contextmanager
def replace_folder(path: epath.PathLike) -> Iterator[epath.Path]:
    """An empty sibling folder to write to that takes the place of `path` if the block succeeds.

    The old folder can be read until then. After a failure the sibling is removed and `path` is as
    it was. In a bucket a folder is renamed object by object, so there it is not done in one step.
    """
    # A link stays a link.
    folder = epath.Path(path if "://" in str(path) else os.path.realpath(path))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(
            errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder.parent)
        ) from error
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    mark = uuid.uuid4().hex[:8]
    partial = folder.parent / f".{folder.name}.partial-{mark}"
    previous = folder.parent / f".{folder.name}.previous-{mark}"
    try:
        partial.mkdir()
        yield partial
        if folder.exists():
            folder.rename(previous)
        partial.rename(folder)
    except BaseException:
        if previous.exists() and not folder.exists():
            previous.rename(folder)
        raise
    finally:
        for leftover in (partial, previous):
            if leftover.exists():
                leftover.rmtree()


# ---------------------------------- names --------------------------------------

_glob_of_etils = gpath.PosixGPath.glob


def _glob_in_folder(folder: gpath.PosixGPath, pattern: str) -> Iterator[gpath.PosixGPath]:
    """Finds files by a pattern in a folder whose own name is taken as it is."""
    if "://" in str(folder):
        yield from _glob_of_etils(folder, pattern)
        return
    for name in glob.glob(pattern, root_dir=folder):
        yield folder / name


# etils takes `[`, `?` and `*` in the folder's name for a pattern too: orbax then finds nothing of
# what it has just written to `runs/[a]/checkpoints`, and leaves a step without its arrays. This is
# the one patch of a library's function; nothing in `runs/a` is found otherwise than before.
gpath.PosixGPath.glob = _glob_in_folder
