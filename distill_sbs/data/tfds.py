"""A dataset of TensorFlow Datasets as a dataset of ours.

Enters: a dataset that TFDS has prepared: a folder of files. Leaves: `TfdsReader`. Nothing is
downloaded unless `download=True` says so, and no bucket is asked.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
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

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

DATA_DIR_VARIABLE = "TFDS_DATA_DIR"


@dataclasses.dataclass(frozen=True)
class TfdsReader(ColumnReader):
    """Reads a dataset that TFDS has prepared; an instance is the `reader` of a `DatasetSpec`.

    The spec may have `needs_source_dir=False`: then `prepare` wants no `--source_dir`, and a run
    prepares the records itself. The files are read without the dataset's code.

    Attributes:
      name: as `tfds.load` takes it: `"name"`, `"name/config"`, `"name/config:1.0.0"`; or the folder
        of a prepared version, relative to the source folder or absolute.
      splits: ours → TFDS's, `{"train": "train[:90%]", "validation": "train[90%:]"}`; those that are
        not named are held out of `train`. By default the three names, as far as TFDS has them.
      data_dir: where TFDS keeps its datasets; by default `$TFDS_DATA_DIR`, or else
        `~/tensorflow_datasets`. A relative one lies in the source folder.
      download: whether TFDS may download and prepare a dataset that is not there.

    The other fields are `ColumnReader`'s.
    """

    name: str
    splits: Mapping[str, str] | None = None
    data_dir: str | None = None
    download: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.splits is not None:
            check_split_names(self.splits, f"TfdsReader({self.name!r})")

    def _open(self, source_dir: epath.Path, split: str) -> tuple[RowSource, Sequence[str]]:
        builder = self._find_builder(source_dir)
        there = list(builder.info.splits)
        splits = self.splits or {each: each for each in SPLITS if each in there}
        if "train" not in splits:
            raise SourceError(
                f"TFDS's {self.name} has the splits {', '.join(there) or '(none)'}; say which is "
                "what: TfdsReader(…, splits={'train': …})"
            )
        held_out = choose_held_out(list(splits))
        own = split in splits and (split != "train" or not held_out)
        part = splits.get(split, splits["train"])
        where = f"TFDS's {builder.info.full_name} {part} in {builder.data_path}"
        with _explain(where):
            builder.info.splits[part]  # noqa: B018  (raises where there is no such part)
        names = {
            path: feature.names
            for path, feature in builder.info.features.items()
            if hasattr(feature, "names") and feature.names
        }
        short = f"TFDS's {builder.info.full_name} {part}"

        def stream() -> Iterator[tuple[str, int, Row]]:
            with _explain(where):
                rows = builder.as_dataset(split=part, shuffle_files=False).as_numpy_iterator()
                for number, row in enumerate(rows, start=1):
                    yield short, number, _make_row(row, where)

        source = RowSource(short, stream, "row", names, split if own else "train")
        return source, [] if own else held_out

    def _find_builder(self, source_dir: epath.Path) -> tfds.core.DatasetBuilder:
        """The prepared dataset.

        Raises:
          SourceError: it is not there; what is missing, and where it was looked for.
        """
        import tensorflow_datasets as tfds  # seconds

        folder = source_dir / self.name
        if (folder / "dataset_info.json").exists():
            with _explain(f"TFDS's folder {folder}"):
                return tfds.builder_from_directory(folder)
        home = self.data_dir or os.environ.get(DATA_DIR_VARIABLE) or "~/tensorflow_datasets"
        data_dir = source_dir / os.path.expanduser(home)
        if self.download:
            with _explain(f"TFDS's {self.name}, to be downloaded to {data_dir}"):
                builder = tfds.builder(self.name, data_dir=data_dir)
                builder.download_and_prepare()
                return builder
        try:
            return tfds.core.read_only_builder.builder_from_files(self.name, data_dir=data_dir)
        except tfds.core.registered.DatasetNotFoundError as error:
            name = self.name.partition(":")[0].partition("/")[0]
            raise SourceError(
                f"TFDS's {self.name} is not prepared: looked in {data_dir}, "
                f"{_list_there(data_dir, name)}. Prepare it where there is a network, with "
                f"tfds.load({self.name!r}, data_dir={str(data_dir)!r}) or download=True in the "
                f"reader; or correct data_dir, or ${DATA_DIR_VARIABLE}"
            ) from error


def _list_there(data_dir: epath.Path, name: str) -> str:
    """What a folder of datasets holds of one, in words."""
    if not data_dir.is_dir():
        return "which does not exist"
    if not (data_dir / name).is_dir():
        others = sorted(path.name for path in data_dir.iterdir() if path.is_dir())
        return f"which holds {', '.join(others[:8]) or 'no dataset'}"
    parts = sorted(path.name for path in (data_dir / name).iterdir() if path.is_dir())
    return f"which holds {', '.join(f'{name}/{part}' for part in parts[:8]) or f'an empty {name}'}"


@contextlib.contextmanager
def _explain(where: str) -> Iterator[None]:
    """Tells in one line what TFDS or TensorFlow says of files that they cannot read.

    Raises:
      SourceError: in the place of such an error.
    """
    try:
        yield
    except (GeneratorExit, SourceError):
        raise
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        known = (ValueError, KeyError, OSError, AssertionError, ImportError)
        if library not in ("tensorflow", "tensorflow_datasets") and not isinstance(error, known):
            raise
        told = " ".join(str(error).split())[:300]
        raise SourceError(
            f"{where} cannot be read ({type(error).__name__}: {told}); prepare it anew with TFDS, "
            "or correct the reader's name and splits"
        ) from error


def _make_row(row: object, where: str) -> Row:
    if isinstance(row, dict):
        return {str(name): _make_plain(value) for name, value in row.items()}
    raise SourceError(f"{where}: its rows are no mappings of names to values")


def _make_plain(value: object) -> object:
    """What TFDS gives as Python's own values: texts, numbers, lists, mappings; others stay."""
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value  # an image, say
    if isinstance(value, dict):
        return {str(name): _make_plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_make_plain(each) for each in value]
    if hasattr(value, "tolist"):  # NumPy's arrays and scalars
        return _make_plain(value.tolist())
    return value
