"""Files and folders that appear whole or not at all, and locks on folders.

Enters: a path, local or gs://, and what is to stand there. Leaves: that, or after a failure what
stood there before. Nobody who looks meanwhile sees a half.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterator
from typing import IO, Any

from etils import epath

# What a disk says that is full, read-only or another user's: the user's to mend, no fault of ours.
_REMEDIES = {
    errno.ENOSPC: "make room on that disk",
    errno.EDQUOT: "your quota there is used up; make room",
    errno.EROFS: "that disk can only be read; choose a folder on another",
    errno.EACCES: "you may not write or read there; choose another folder, or change its mode",
    errno.EPERM: "you may not do that there; choose another folder",
    errno.ENOTDIR: "a file stands where a folder is needed; choose another path",
    errno.EISDIR: "a folder stands where a file is needed; choose another path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EFBIG: "the file grew past what that disk or its limits allow",
    errno.EIO: "that disk fails to read or write; look at its health",
}


def write_file(path: epath.PathLike, content: str) -> None:
    """Writes a small file all at once, as UTF-8; its folder is made where it is missing."""
    with open_replacement(path) as file:
        file.write(content)


@contextlib.contextmanager
def open_replacement(path: epath.PathLike, mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write to that takes the place of `path` if the block succeeds.

    Args:
      path: local or gs://; its folder is made where it is missing.
      mode: 'w' (UTF-8, line feeds as they are) or 'wb'.
    """
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if "://" in str(path):  # an object of a bucket appears when it is closed
        with target.open(mode) as file:
            yield file
        return
    partial = f"{target.parent}/.{target.name}.partial-{uuid.uuid4().hex[:8]}"
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(partial, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)


@contextlib.contextmanager
def replace_folder(path: epath.PathLike) -> Iterator[epath.Path]:
    """An empty sibling folder to write to that takes the place of `path` if the block succeeds.

    After a failure the sibling is removed and `path` is as it was. In a bucket nothing can be
    renamed in one step: there the files are written in place, and removed after a failure.
    """
    folder = epath.Path(path)
    if "://" in str(path):
        if folder.exists():
            folder.rmtree()
        try:
            yield folder
        except BaseException:
            if folder.exists():
                folder.rmtree()
            raise
        return
    folder = epath.Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
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


def describe_disk_error(error: BaseException) -> str | None:
    """One line for a full, read-only or forbidden disk, however a library has wrapped its words.

    Returns:
      What was wrong, where, and the remedy; None where `error` is about something else.
    """
    for each in _chain(error):
        if isinstance(each, OSError) and each.errno in _REMEDIES:
            where = f"{os.fsdecode(each.filename)}: " if each.filename else ""
            return f"{where}{os.strerror(each.errno)}; {_REMEDIES[each.errno]}"
    for each in _chain(error):
        for number, remedy in _REMEDIES.items():
            words = os.strerror(number)
            # TensorFlow, tensorstore and others tell the system's words in a text of their own.
            if words in str(each) and number not in (errno.EPERM, errno.EIO):
                path = re.search(r"(?:gs:/)?/[^\s'\"\];,:]+", str(each))
                where = f"{path.group()}: " if path else ""
                return f"{where}{words}; {remedy}"
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, and so on."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
