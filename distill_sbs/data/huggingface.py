"""A dataset of HuggingFace's hub, or a folder in one of its layouts, as a dataset of ours.

Enters: what `datasets.load_dataset` takes (extra `hf`). Leaves: `HuggingFaceReader`. Rows lie in
Arrow files in the library's cache and are mapped, not held, in memory. No code of a dataset runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from etils import epath

from distill_sbs.data.columns import (
    ColumnReader,
    Row,
    RowSource,
    check_split_names,
    choose_held_out,
)
from distill_sbs.data.dataset import SPLITS, SourceError
from distill_sbs.errors import UserError

if TYPE_CHECKING:
    import datasets

_CONNECT_SECONDS = 5.0


@dataclasses.dataclass(frozen=True)
class HuggingFaceReader(ColumnReader):
    """Reads a dataset with HuggingFace's library; an instance is the `reader` of a `DatasetSpec`.

    The spec may have `needs_source_dir=False`, where `name` is one of the hub.

    Attributes:
      name: `"org/name"` on the hub; or a local folder, relative to the source folder or absolute,
        that `save_to_disk` wrote, or of Parquet, CSV or JSON files; or one such file.
      config: the configuration, where there are several.
      splits: ours → the library's, `{"train": "train[:90%]", "validation": "train[90%:]"}`; those
        that are not named are held out of `train`. By default the three names, as far as they are
        there.
      revision: a commit of the hub; None: the newest.

    The other fields are `ColumnReader`'s.
    """

    name: str
    config: str | None = None
    splits: Mapping[str, str] | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.splits is not None:
            check_split_names(self.splits, f"HuggingFaceReader({self.name!r})")

    def _open(self, source_dir: epath.Path, split: str) -> tuple[RowSource, Sequence[str]]:
        library = _import_library()
        path = source_dir / self.name
        local = str(path) if path.exists() else None
        if local is None:
            _go_offline_without_a_hub(library)
        with self._explain(local, library):
            there = self._list_splits(local, library)
        splits = self.splits or {each: each for each in SPLITS if each in there}
        if "train" not in splits:
            raise SourceError(
                f"{local or self.name} has the splits {', '.join(there) or '(none)'}; say which is "
                "what: HuggingFaceReader(…, splits={'train': …})"
            )
        held_out = choose_held_out(list(splits))
        own = split in splits and (split != "train" or not held_out)
        part = splits.get(split, splits["train"])
        where = f"{local or self.name} {part}"
        with self._explain(local, library):
            rows = self._load(part, local, library)
        names = {
            path: feature.names
            for path, feature in (rows.features or {}).items()
            if isinstance(feature, library.ClassLabel)
        }

        def stream() -> Iterator[tuple[str, int, Row]]:
            for number, row in enumerate(rows, start=1):
                yield where, number, row

        source = RowSource(where, stream, "row", names, split if own else "train")
        return source, [] if own else held_out

    def _list_splits(self, local: str | None, library: _Library) -> list[str]:
        if local is not None and _is_saved(local):
            saved = library.load_from_disk(local)
            return list(saved) if isinstance(saved, library.DatasetDict) else ["train"]
        if local is not None and os.path.isfile(local):
            return ["train"]
        given = {} if local else {"revision": self.revision}
        return list(library.get_dataset_split_names(local or self.name, self.config, **given))

    def _load(self, part: str, local: str | None, library: _Library) -> datasets.Dataset:
        if local is not None and _is_saved(local):
            saved = library.load_from_disk(local)
            name, bracket, rest = part.partition("[")
            one = saved[name] if isinstance(saved, library.DatasetDict) else saved
            return _take_part(one, bracket + rest, library)
        if local is not None and os.path.isfile(local):
            kind = _name_builder(local)
            return library.load_dataset(kind, data_files={"train": local}, split=part)
        given = {} if local else {"revision": self.revision}
        return library.load_dataset(local or self.name, self.config, split=part, **given)

    @contextlib.contextmanager
    def _explain(self, local: str | None, library: _Library) -> Iterator[None]:
        """Tells in one line what the library says of a dataset that it cannot read.

        Raises:
          SourceError: in the place of such an error.
        """
        try:
            yield
        except (SourceError, UserError):
            raise
        except Exception as error:
            told = " ".join(str(error).split())[:300]
            cache = os.fspath(library.config.HF_DATASETS_CACHE)
            if local is not None:
                raise SourceError(
                    f"{local} cannot be read by datasets ({type(error).__name__}: {told}); "
                    "expected a folder that save_to_disk wrote, or Parquet, CSV or JSON files"
                ) from error
            raise SourceError(
                f"{self.name} is no local folder or file (looked in the source folder), is not in "
                f"the cache {cache}, and the hub {library.config.HF_ENDPOINT} did not give it "
                f"({type(error).__name__}: {told}); correct the name, fetch it where there is a "
                f"network with datasets.load_dataset({self.name!r}), or log in if it is private"
            ) from error


class _Library:
    """What is used of `datasets`, which need not be installed."""

    def __init__(self) -> None:
        import datasets
        from huggingface_hub import constants

        self.constants = constants
        self.load_dataset = datasets.load_dataset
        self.load_from_disk = datasets.load_from_disk
        self.get_dataset_split_names = datasets.get_dataset_split_names
        self.concatenate = datasets.concatenate_datasets
        self.read_instruction = datasets.ReadInstruction
        self.DatasetDict = datasets.DatasetDict
        self.ClassLabel = datasets.ClassLabel
        self.config = datasets.config


def _import_library() -> _Library:
    # Bars and lines of its own have no place among ours; it reads these as it is imported.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        return _Library()
    except ImportError as error:
        raise UserError(
            f"HuggingFaceReader needs the library datasets, which cannot be imported ({error}); "
            "pip install 'distill_sbs[hf]'"
        ) from error


def _go_offline_without_a_hub(library: _Library) -> None:
    """Lets the library use its cache alone where no hub can be reached.

    It would try five times, half a minute in all, before it says so.
    """
    hub = urllib.parse.urlsplit(library.config.HF_ENDPOINT)
    if library.constants.HF_HUB_OFFLINE or urllib.request.getproxies() or hub.hostname is None:
        return
    try:
        socket.create_connection((hub.hostname, hub.port or 443), _CONNECT_SECONDS).close()
    except OSError:
        for module in (library.constants, library.config):
            vars(module)["HF_HUB_OFFLINE"] = True


def _is_saved(folder: str) -> bool:
    """Whether `save_to_disk` wrote it."""
    return any(
        os.path.isfile(os.path.join(folder, name)) for name in ("state.json", "dataset_dict.json")
    )


def _name_builder(file: str) -> str:
    """The library's name for a kind of file."""
    name = file.lower().removesuffix(".gz").removesuffix(".zst")
    for builder, ends in (("parquet", (".parquet",)), ("csv", (".csv",))):
        if name.endswith(ends):
            return builder
    if name.endswith((".json", ".jsonl")):
        return "json"
    raise UserError(f"{file}: expected .parquet, .csv, .json or .jsonl, or a folder")


def _take_part(rows: datasets.Dataset, part: str, library: _Library) -> datasets.Dataset:
    """The slice `[10%:]` of a dataset on disk; all of it where none is asked for."""
    if not part:
        return rows
    instruction = library.read_instruction.from_spec(f"train{part}")
    (piece,) = instruction.to_absolute({"train": len(rows)})
    return rows.select(range(piece.from_ or 0, len(rows) if piece.to is None else piece.to))
