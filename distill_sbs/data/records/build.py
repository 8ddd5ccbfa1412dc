"""From raw data to prepared records: read, count, write, and put in place all at once.

Enters: a `DatasetSpec`, the folder of its raw data, a teacher's output files. Leaves:
`DATA_DIR/{dataset}` and what its `info.json` says.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

import rich.console
import rich.progress
from etils import epath

from distill_sbs.data.dataset import SPLITS, DatasetSpec, Example, RawSplit, SourceError
from distill_sbs.data.records import joining, tfrecords
from distill_sbs.errors import UserError


def prepare_dataset(
    spec: DatasetSpec,
    source_dir: epath.PathLike | None,
    data_dir: epath.PathLike,
    splits: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Writes the records of `splits` (None: all that exist) and returns the whole `info.json`.

    Every split is checked before the first one is written. Splits prepared earlier and not named
    stay; nothing changes in `data_dir` unless all of it succeeds. A progress bar shows on a
    terminal (stderr), and nothing elsewhere.

    Raises:
      SourceError: raw data that is missing or malformed.
      UserError: a split that the dataset does not have.
    """
    splits = check_splits(spec, splits)
    if source_dir is None and spec.needs_source_dir:
        raise SourceError(
            "its raw data is needed and no folder was given; "
            "pass --source_dir or set DISTILL_SBS_SOURCE_DIR"
        )
    source_dir = epath.Path(source_dir or ".")
    if spec.needs_source_dir and not source_dir.exists():
        raise SourceError(f"source folder {source_dir} does not exist; correct --source_dir")

    console = rich.console.Console(stderr=True)
    raw_splits: dict[str, RawSplit] = {}
    for split in splits:
        with console.status(f"checking {spec.name} {split}"):
            raw_splits[split] = spec.reader(source_dir, split)

    folder = epath.Path(data_dir) / spec.name
    with tfrecords.replaced_folder(folder) as partial:
        entries = _kept_splits(spec.name, data_dir, partial, splits)
        for split, raw_split in raw_splits.items():
            entries[split] = tfrecords.write_split(
                partial,
                split,
                _with_progress(raw_split, f"{spec.name} {split}", console),
                raw_split.size,
                spec.teachers,
                spec.is_correct,
            )
        ordered = {split: entries[split] for split in SPLITS if split in entries}
        return tfrecords.write_info(partial, spec.name, ordered)


def join_teacher(
    spec: DatasetSpec,
    source_dir: epath.PathLike | None,
    data_dir: epath.PathLike,
    teacher: str,
    output_files: Sequence[str],
    splits: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Joins a teacher's output files with the records of a dataset; returns the `info.json`.

    Splits that are prepared are taken as they are, whatever they were made from; the others are
    prepared first.

    Raises:
      SourceError: see `prepare_dataset` and `joining.join_teacher`.
      UserError: the name cannot be a teacher's, or a split does not exist.
    """
    joining.check_teacher_name(spec, teacher)
    splits = check_splits(spec, splits)
    missing = []
    for split in splits:
        try:
            tfrecords.split_files(data_dir, spec.name, split)
        except tfrecords.UnpreparedDataError:
            missing.append(split)
    if missing:
        prepare_dataset(spec, source_dir, data_dir, missing)
    sizes = tfrecords.read_info(data_dir, spec.name)["splits"]
    total = sum(entry["examples"] for entry in sizes.values())
    total += sum(sizes[split]["examples"] for split in splits)
    console = rich.console.Console(stderr=True)
    hidden = not console.is_terminal
    with rich.progress.Progress(*_columns(), console=console, disable=hidden) as progress:
        task = progress.add_task(f"{spec.name}: joining {teacher}", total=total)
        return joining.join_teacher(
            spec, data_dir, teacher, output_files, splits, lambda rows: progress.advance(task, rows)
        )


def check_splits(spec: DatasetSpec, splits: Sequence[str] | None) -> tuple[str, ...]:
    """`splits`, or all of the dataset's; a name that it does not have is a UserError."""
    if not splits:
        return spec.splits
    for split in splits:
        if split not in spec.splits:
            near = difflib.get_close_matches(split, spec.splits, n=1, cutoff=0.3)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UserError(
                f"{spec.name} has no split {split!r}, only {', '.join(spec.splits)}{hint}"
            )
    return tuple(dict.fromkeys(splits))


def _kept_splits(
    dataset: str, data_dir: epath.PathLike, partial: epath.Path, replaced: Sequence[str]
) -> dict[str, Any]:
    """Copies the splits prepared earlier that are not `replaced`; returns their entries."""
    try:
        earlier = tfrecords.read_info(data_dir, dataset)["splits"]
    except tfrecords.UnpreparedDataError:
        return {}
    kept = {}
    for split, entry in earlier.items():
        if split in replaced:
            continue
        try:
            files = tfrecords.split_files(data_dir, dataset, split)
        except tfrecords.UnpreparedDataError:
            continue  # incomplete: not worth keeping, and reading it would have failed
        for file in files:
            path = epath.Path(file)
            path.copy(partial / path.name)
        kept[split] = entry
    return kept


def _columns() -> tuple[rich.progress.ProgressColumn, ...]:
    return (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
    )


def _with_progress(
    raw_split: RawSplit, description: str, console: rich.console.Console
) -> Iterator[Example]:
    hidden = not console.is_terminal
    with rich.progress.Progress(*_columns(), console=console, disable=hidden) as progress:
        yield from progress.track(
            raw_split.examples(), total=raw_split.size, description=description
        )
