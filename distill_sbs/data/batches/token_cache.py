"""Keeps the tokens of a training split beside its records; a second start need not make them.

Enters: a task, what it was tokenised to. Leaves: `DATA_DIR/{dataset}/.tokens/{task}-{key}.npz`, and
from it the same sequences again. The key is a digest of all that the tokens depend on: records,
settings, lengths, vocabulary, and the code and libraries that make them. A file is numbers alone,
checked when it is read; one that is damaged, or a folder that cannot be written to, costs the
tokenising and nothing else. The newest `MOST_FILES` of a dataset stay.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
import pathlib
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np
import seqio
from etils import epath

from distill_sbs import constants
from distill_sbs.data import sentencepiece_model, settings
from distill_sbs.data.batches.layout import Sequence2Sequence
from distill_sbs.data.batches.sampler import TokenisedTask
from distill_sbs.data.records import tfrecords
from distill_sbs.data.tasks import lookup
from distill_sbs.files import open_replacement

FOLDER = ".tokens"
MOST_FILES = 12
# Fewer sequences are tokenised sooner than anybody waits.
LEAST_SEQUENCES = 5_000
_LIBRARIES = ("seqio", "sentencepiece", "tensorflow", "tensorflow-text")
# What tokens do not depend on, and what the key has in another form.
_NOT_IN_KEY = (
    *("data_dir", "text_dir", "rationale_rate", "contrast_rate"),
    *("vocabulary_file", "vocabulary", "selection"),
)
_FIELDS = (constants.INPUTS, constants.TARGETS, constants.TASK_IDS)


def find_path(task: seqio.Task, lengths: Mapping[str, int]) -> epath.Path | None:
    """Where the tokens of a task's training split are kept; None where none are.

    They are not of tasks that are not ours, and where a function of the user's has a say: what
    agrees with gold is its dataset's own `is_correct`, whose code the key would not hold.
    """
    info = lookup.get_task_info(task)
    chosen = settings.current()
    if info is None or info.method in ("pretrain", "contrast") or chosen.vocabulary is not None:
        return None
    if chosen.rationale_filter != "all":
        return None
    folder = epath.Path(chosen.folder) / info.dataset
    key: dict[str, object] = {
        "task": [info.dataset, info.method, info.teacher],
        "lengths": {name: int(length) for name, length in sorted(lengths.items())},
        "vocabulary": sentencepiece_model.describe(chosen.vocabulary_file),
        "info": (folder / tfrecords.INFO_FILE).read_text(),
        "code": _digest_code(),
    }
    for path in tfrecords.split_files(chosen.folder, info.dataset, "train"):
        found = epath.Path(path).stat()
        key[epath.Path(path).name] = [found.length, found.mtime]
    key["settings"] = {
        field.name: getattr(chosen, field.name)
        for field in dataclasses.fields(chosen)
        if field.name not in _NOT_IN_KEY
    }
    if chosen.selection is not None:
        key["selection"] = sorted(chosen.selection.ids_of(info.dataset))
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    return folder / FOLDER / f"{task.name}-{digest}.npz"


@functools.cache
def _digest_code() -> str:
    """Of everything in `distill_sbs.data` that could make other tokens, and of the libraries."""
    digest = hashlib.sha256()
    for name in _LIBRARIES:
        digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    for path in sorted(pathlib.Path(sentencepiece_model.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def keep(path: epath.Path, tokenised: TokenisedTask) -> None:
    """Writes tokens; where that is not possible nothing happens, and the run goes on."""
    if len(tokenised.sequences) < LEAST_SEQUENCES:
        return
    arrays: dict[str, np.ndarray] = {
        "indices": tokenised.indices,
        "cut": np.array([tokenised.cut_inputs, tokenised.cut_targets]),
    }
    for name in _FIELDS:
        parts = [getattr(each, name) for each in tokenised.sequences]
        arrays[f"{name}_lengths"] = np.array([len(part) for part in parts], np.int32)
        flat = np.concatenate(parts)
        arrays[name] = flat.astype(np.uint16) if flat.max(initial=0) < 2**16 else flat
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_replacement(path, "wb") as file:
            file.write(content.getvalue())
        kept = sorted(path.parent.glob("*.npz"), key=lambda each: each.stat().mtime, reverse=True)
        for old in kept[MOST_FILES:]:
            old.unlink(missing_ok=True)


def read(path: epath.Path, name: str) -> TokenisedTask | None:
    """The tokens in a file of `keep`; None where there is none, or it is damaged.

    Args:
      path: the file.
      name: the task's.
    """
    try:
        content = io.BytesIO(path.read_bytes())
        with zipfile.ZipFile(content) as archive:  # what is packed may be of any size
            if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                return None
        with np.load(content, allow_pickle=False) as arrays:
            return _read(arrays, name)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _read(arrays: Mapping[str, np.ndarray], name: str) -> TokenisedTask:
    """Raises ValueError or KeyError where the arrays are not those of a whole file."""
    indices, (cut_inputs, cut_targets) = arrays["indices"], arrays["cut"].tolist()
    columns: list[Sequence[np.ndarray]] = []
    for field in _FIELDS:
        flat, lengths = arrays[field].astype(np.int32), arrays[f"{field}_lengths"]
        whole = lengths.ndim == flat.ndim == indices.ndim == 1 and len(lengths) == len(indices)
        if not whole or lengths.min(initial=1) < 1 or lengths.sum(dtype=np.int64) != len(flat):
            raise ValueError(f"{field} are not whole")
        ends = np.cumsum(lengths, dtype=np.int64).tolist()
        columns.append([flat[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)])
    sequences = [Sequence2Sequence(*row) for row in zip(*columns, strict=True)]
    return TokenisedTask(
        name, sequences, [], [], float(cut_inputs), float(cut_targets), indices=indices
    )
