"""Checksums of a step's files: written with the step, compared before anything of it is used.

Enters: a step's folder while orbax writes it; later the same folder, or a copy. Leaves:
`verification/process_N.json` in it, the size and CRC-32 of every file; later the first file that is
not as it was written, if there is one.

A flipped byte of an array would otherwise become another parameter without a word: orbax's database
guards its own tables, not the values. Every process of a run sums up what it wrote itself, while
training goes on, and process 0 what is left when all have finished; files are read back for it
(from the page cache; in a bucket over the network). Before a step is used all its files are read
once more, each process of a run a share of them. `commit_success.txt` and `_CHECKPOINT_METADATA`
are written later than the sums, hold times and names of classes, and are never needed to read a
step.
"""

from __future__ import annotations

import concurrent.futures
import errno
import json
import os
import zlib
from collections.abc import Iterable, Iterator

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from distill_sbs import json_lines
from distill_sbs.distributed import processes
from distill_sbs.errors import SourceError

# Orbax finishes a step's items in the order of their names: this one comes after `state`.
FOLDER = "verification"

_TEMPORARY = ".orbax-checkpoint-tmp"
_NOT_SUMMED = ("commit_success.txt", "_CHECKPOINT_METADATA")
_PIECE_BYTES = 2**22
_THREADS = min(8, os.cpu_count() or 1)

# What a file says that is not there, or that is no file: the step is damaged. Whatever else reading
# may say (no permission, a failing disk) is no fault of the step.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


# ---------------------------------- writing ----------------------------------


class ChecksumHandler(ocp.AsyncCheckpointHandler):
    """Orbax's way to let a step have one more item; it must be the last one to be finished."""

    def save(self, directory: epath.Path, args: ChecksumSave) -> None:
        """Nothing to do before the other items are finished."""

    async def async_save(self, directory: epath.Path, args: ChecksumSave) -> list[_OwnFiles]:
        """See `orbax.checkpoint.AsyncCheckpointHandler`; orbax waits for futures in their order."""
        return [_OwnFiles(directory)] if jax.process_count() > 1 else []

    def restore(self, directory: epath.Path, args: object = None) -> dict[str, tuple[int, int]]:
        """The sums of a step, as `find_damage` reads them without orbax: {file: (bytes, CRC-32)}.

        Raises:
          SourceError: a file there holds no sums.
        """
        return _read_all_sums(directory)

    def finalize(self, directory: epath.Path) -> None:
        """Sums up, in process 0, what no process has summed up: all others have finished."""
        step = directory.parent
        unfinished = [
            child.name
            for child in step.iterdir()
            if _TEMPORARY in child.name and child.name != directory.name
        ]
        if unfinished:
            raise RuntimeError(f"checksums were asked for before {unfinished} were finished")
        summed = set().union(*(_read_sums(file) for file in directory.glob("process_*.json")))
        rest = [path for path in _list_files(step) if _name_in(step, path) not in summed]
        _write_sums(directory / "shared.json", step, rest)


@ocp.args.register_with_handler(ChecksumHandler, for_save=True, for_restore=True)
class ChecksumSave(ocp.args.CheckpointArgs):
    """What `Checkpointer` passes for the item `FOLDER`; there is nothing to say."""


class _OwnFiles:
    """Orbax's future of a process's own sums; waited for when its own arrays are written."""

    def __init__(self, directory: epath.Path) -> None:
        self._directory = directory

    def result(self, timeout: float | None = None) -> None:
        step = self._directory.parent
        number = jax.process_index()
        folders = [
            child / f"ocdbt.process_{number}"
            for child in step.iterdir()
            if child.name.startswith("state")
        ]
        files = [path for folder in folders if folder.exists() for path in _list_files(folder)]
        _write_sums(self._directory / f"process_{number}.json", step, files)


def _write_sums(target: epath.Path, step: epath.Path, files: Iterable[epath.Path]) -> None:
    files = sorted(files)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        sums = list(pool.map(_sum_up, files))
    named = {_name_in(step, path): list(each) for path, each in zip(files, sums, strict=True)}
    target.write_text(json.dumps(named, indent=0))


def _list_files(folder: epath.Path) -> Iterator[epath.Path]:
    for child in folder.iterdir():
        if child.is_dir():
            if not child.name.startswith(FOLDER):
                yield from _list_files(child)
        elif child.name not in _NOT_SUMMED:
            yield child


def _name_in(step: epath.Path, path: epath.Path) -> str:
    """Of a file, as it will be called when its item has been renamed into place."""
    item, *rest = path.relative_to(step).parts
    return "/".join([item.partition(_TEMPORARY)[0], *rest])


def _sum_up(path: epath.Path) -> tuple[int, int]:
    """Size in bytes, and CRC-32; a few megabytes are in memory at a time."""
    size = total = 0
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            size += len(piece)
            total = zlib.crc32(piece, total)
    return size, total


# ---------------------------------- comparing --------------------------------


def has_checksums(step_folder: epath.Path) -> bool:
    """Whether sums were written with the step; steps of before have none."""
    return bool((step_folder / FOLDER).exists())


def find_damage(step_folder: epath.Path, only: str = "") -> str | None:
    """The first file of a step that is not as it was written, and how; None where all are.

    With several processes all must call it, and all get the same answer.

    Args:
      step_folder: with checksums.
      only: look at files whose path in the step begins so; each process looks at all of those.

    Raises:
      OSError: something else than damage: no permission, a failing disk.
    """
    together = jax.distributed.is_initialized() and not only
    index, count = (jax.process_index(), jax.process_count()) if together else (0, 1)
    try:
        found = _find_damage(step_folder, only, index, count)
    except SourceError as error:
        found = str(error)
    if count == 1:
        return found
    told = processes.exchange(np.frombuffer((found or "").encode(), np.uint8))
    return next((text for each in told if (text := each.tobytes().decode())), None)


def _find_damage(step_folder: epath.Path, only: str, index: int, count: int) -> str | None:
    sums = _read_all_sums(step_folder / FOLDER)
    if not any(name.startswith("state/") for name in sums):
        return f"{FOLDER}/ lists no files"
    # The largest first, dealt out in turn, so that processes and threads end together.
    names = sorted((name for name in sums if name.startswith(only)), key=lambda n: -sums[n][0])
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        results = pool.map(lambda n: _compare(step_folder, n, *sums[n]), names[index::count])
        return next(filter(None, results), None)


def _compare(step_folder: epath.Path, name: str, bytes_then: int, sum_then: int) -> str | None:
    try:
        size, total = _sum_up(step_folder / name)
    except OSError as error:
        if error.errno in _NOT_THERE:
            return f"{name} is missing"
        raise
    if size != bytes_then:
        return f"{name} has {size:,} bytes, {bytes_then:,} were written"
    return None if total == sum_then else f"{name} has changed: its checksum differs"


def _read_all_sums(folder: epath.Path) -> dict[str, tuple[int, int]]:
    sums: dict[str, tuple[int, int]] = {}
    for file in sorted(folder.glob("*.json")):
        sums.update(_read_sums(file))
    return sums


def _read_sums(file: epath.Path) -> dict[str, tuple[int, int]]:
    sums = json_lines.read_json(file)
    if not isinstance(sums, dict):
        raise SourceError(f"{file} holds no checksums")
    checked = {}
    for name, each in sums.items():
        size, total = each if isinstance(each, list) and len(each) == 2 else (None, None)
        if type(size) is not int or type(total) is not int:
            raise SourceError(f"{file}: no checksum for {name}, but {each!r}"[:200])
        checked[name] = (size, total)
    return checked
