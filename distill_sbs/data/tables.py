"""CSV, TSV, Parquet and JSON Lines, compressed or not, as a dataset of ours.

Enters: files of rows. Leaves: `TableReader`, and the rows of any such file. All of it streams: at
no time is more than a piece of a file in memory.

CSV is read by Python's own module and not by Arrow's: it keeps every cell the text that it is
("007" stays "007"), and knows on which line a row begins, also where cells hold line breaks.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import gzip
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO

from etils import epath

from distill_sbs import json_lines
from distill_sbs.data.columns import ColumnReader, Row, RowSource, choose_held_out
from distill_sbs.data.dataset import SourceError
from distill_sbs.data.jsonl import check_file
from distill_sbs.errors import UserError

# By the end of a name, without that of the compression.
FORMATS = {".csv": ",", ".tsv": "\t", ".jsonl": "", ".parquet": ""}
COMPRESSIONS = (".gz", ".zst")
# Python's module refuses longer cells, so that a quote without an end swallows no whole file.
_LONGEST_CELL = 16 * 1024 * 1024
_ROWS_AT_ONCE = 1024


@dataclasses.dataclass(frozen=True)
class TableReader(ColumnReader):
    """Reads rows from files; an instance is the `reader` of a `DatasetSpec`.

    A file is known by its name: `.csv` and `.tsv` (a header first, UTF-8), `.jsonl`, each of them
    also as `….gz` or `….zst`, and `.parquet`. A name with `*` stands for all files of that pattern,
    in the order of their names, as one table. In CSV and TSV every cell is a text, and an empty one
    a null.

    Attributes:
      train: the training file, relative to the source folder (or an absolute path).
      validation: the validation file; None holds out a tenth of the training file.
      test: the test file; None holds out a tenth of the training file.
      quote: what encloses cells that hold a separator or a line break; None: quotes mean nothing,
        as in many TSV files.

    The other fields are `ColumnReader`'s.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    quote: str | None = dataclasses.field(default='"', kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in filter(None, (self.train, self.validation, self.test)):
            find_format(name)
        if self.quote is not None and len(self.quote) != 1:
            raise UserError(f"TableReader(quote={self.quote!r}): expected one character, or None")

    def _open(self, source_dir: epath.Path, split: str) -> tuple[RowSource, Sequence[str]]:
        files = {"train": self.train, "validation": self.validation, "test": self.test}
        held_out = choose_held_out([name for name, file in files.items() if file])
        own = files[split] is not None and (split != "train" or not held_out)
        name = files[split] or self.train
        paths = list_files(source_dir, name)

        def stream() -> Iterator[tuple[str, int, Row]]:
            for path in paths:
                for number, row in read_table(path, self.quote):
                    yield str(path), number, row

        where = str(source_dir / name)
        unit = name_unit(name)
        names = _read_class_names(paths[0]) if unit == "row" else {}
        source = RowSource(where, stream, unit, names, split if own else "train")
        return source, [] if own else held_out


def find_format(name: str) -> tuple[str, str]:
    """The format and the compression that a file's name ends in, such as ('.csv', '.gz').

    Raises:
      UserError: another ending.
    """
    lowered = name.lower()
    compression = next((end for end in COMPRESSIONS if lowered.endswith(end)), "")
    bare = lowered.removesuffix(compression)
    found = next((end for end in FORMATS if bare.endswith(end)), None)
    if found is None or (found == ".parquet" and compression):
        raise UserError(
            f"{name}: no known kind of table; expected a name in {', '.join(FORMATS)}, and but for "
            f"the last also with {' or '.join(COMPRESSIONS)} behind it"
        )
    return found, compression


def name_unit(name: str) -> str:
    """What `read_table` numbers in a file of that name: 'line', or 'row' where there are none."""
    return "row" if find_format(name)[0] == ".parquet" else "line"


def list_files(folder: epath.Path, name: str) -> list[epath.Path]:
    """The file of that name, or those of a pattern with `*`, in order.

    Raises:
      SourceError: there is none.
    """
    if "*" not in name:
        check_file(folder / name)
        return [folder / name]
    pattern = epath.Path(name)
    base = folder if not pattern.is_absolute() else epath.Path(pattern.anchor)
    relative = str(pattern.relative_to(pattern.anchor)) if pattern.is_absolute() else name
    found = sorted(path for path in base.glob(relative) if path.is_file())
    if not found:
        raise SourceError(f"{folder / name}: no file of that pattern; correct it, or --source_dir")
    return found


def read_table(path: epath.Path, quote: str | None = '"') -> Iterator[tuple[int, Row]]:
    """Streams (line or row number from 1, row) of a file.

    Raises:
      SourceError: the file is missing, or cannot be read as what its name says; with the line.
    """
    check_file(path)
    kind, compression = find_format(str(path))
    if kind == ".parquet":
        yield from _read_parquet(path)
        return
    with _open_bytes(path, compression) as lines:
        if kind == ".jsonl":
            for number, text in _decode(lines, path):
                if text.strip():
                    yield number, json_lines.parse_object(text, f"{path}, line {number}")
        else:
            yield from _read_cells(_decode(lines, path), path, FORMATS[kind], quote)


@contextlib.contextmanager
def _open_bytes(path: epath.Path, compression: str) -> Iterator[Iterable[bytes]]:
    """The lines of a file, unpacked.

    Raises:
      SourceError: it is not compressed so, or cut short.
    """
    with path.open("rb") as packed:
        try:
            if compression == ".gz":
                with gzip.open(packed) as lines:
                    yield lines
            elif compression == ".zst":
                yield _split_lines(_unpack_zstd(packed))
            else:
                yield packed
        except (EOFError, OSError) as error:
            if not compression or getattr(error, "errno", None):
                raise
            raise SourceError(
                f"{path} is damaged, or not compressed as its name says ({error}); copy it anew, "
                f"or unpack it and take {compression} off its name"
            ) from error


def _unpack_zstd(packed: IO[bytes]) -> Iterator[bytes]:
    import pyarrow

    with pyarrow.CompressedInputStream(pyarrow.PythonFile(packed, mode="r"), "zstd") as stream:
        while piece := stream.read(1 << 16):
            yield piece


def _split_lines(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a stream, with their ends."""
    rest: list[bytes] = []
    for piece in pieces:
        *whole, last = piece.split(b"\n")
        for line in whole:
            yield b"".join([*rest, line, b"\n"])
            rest = []
        rest.append(last)
    if tail := b"".join(rest):
        yield tail


def _decode(lines: Iterable[bytes], path: epath.Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(lines, start=1):
        place = f"{path}, line {number}"
        yield number, json_lines.decode_utf8(line, place)


def _read_cells(
    lines: Iterator[tuple[int, str]], path: epath.Path, separator: str, quote: str | None
) -> Iterator[tuple[int, Row]]:
    """Streams (line on which it begins, row) of CSV; empty cells are None.

    Raises:
      SourceError: a row of more or fewer cells than the header, or a quote without an end.
    """
    csv.field_size_limit(_LONGEST_CELL)
    quoting: dict[str, object] = {"quoting": csv.QUOTE_NONE}
    if quote is not None:
        quoting = {"quotechar": quote}
    cells = csv.reader(
        (text for _, text in lines),
        delimiter=separator,
        strict=True,
        **quoting,  # type: ignore[arg-type]
    )
    header: list[str] | None = None
    while True:
        number = cells.line_num + 1
        try:
            row = next(cells, None)
        except csv.Error as error:
            raise SourceError(
                f"{path}, line {number}: the row that begins here is no row of cells ({error}); "
                "mend it, or read the file with TableReader(quote=None) if its quotes mean nothing"
            ) from None
        if row is None:
            break
        if not row:
            continue  # a blank line
        if header is None:
            header = _check_header(row, f"{path}, line {number}", separator)
            continue
        if len(row) != len(header):
            raise SourceError(
                f"{path}, line {number}: {len(row)} cells, and the header has {len(header)}; "
                f"expected {separator!r} between cells, and quotes around those that hold one"
            )
        yield number, {name: cell or None for name, cell in zip(header, row, strict=True)}
    if header is None:
        raise SourceError(f"{path} holds no header; expected the names of the columns first")


def _check_header(names: list[str], place: str, separator: str) -> list[str]:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise SourceError(f"{place}: two columns are called {twice[0]!r}; rename one")
    if len(names) == 1 and any(other in names[0] for other in ";\t,|"):
        raise SourceError(
            f"{place}: one column, {names[0][:60]!r}; expected {separator!r} between the names"
        )
    return names


def _read_parquet(path: epath.Path) -> Iterator[tuple[int, Row]]:
    import pyarrow
    from pyarrow import parquet

    number = 0
    with path.open("rb") as file:
        try:
            for batch in parquet.ParquetFile(file).iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (pyarrow.ArrowException, OSError) as error:
            if getattr(error, "errno", None):
                raise
            told = " ".join(str(error).split())[:200]
            raise SourceError(
                f"{path}: no Parquet, or damaged, behind row {number} ({told}); copy it anew"
            ) from error


def _read_class_names(path: epath.Path) -> Mapping[str, Sequence[str]]:
    """The names of class ids that `datasets` writes into a Parquet file, by column."""
    import pyarrow
    from pyarrow import parquet

    try:
        with path.open("rb") as file:
            metadata = parquet.read_schema(file).metadata or {}
        told = json.loads(metadata.get(b"huggingface", b"{}"))
        features = told["info"]["features"]
        return {
            str(name): [str(each) for each in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and isinstance(feature.get("names"), list)
        }
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # another writer's; what is no Parquet is told when its rows are read
