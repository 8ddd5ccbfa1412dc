"""Files and folders that appear whole or not at all, and locks on folders.

Enters: a path, local or gs://, and what is to stand there. Leaves: that, or after a failure what
stood there before. Nobody who looks meanwhile sees a half.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from typing import IO, Any

from etils import epath


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
