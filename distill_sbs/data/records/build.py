"""From raw data to prepared records: read, count, write, and put in place all at once.

Enters: a `DatasetSpec`, the folder of its raw data, a teacher's output files. Leaves:
`DATA_DIR/{dataset}`, what its `info.json` says, and warnings about what looks wrong.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

from etils import epath

from distill_sbs.cli import terminal
from distill_sbs.cli.progress import show_progress
from distill_sbs.data.dataset import SPLITS, DatasetSpec, Example, RawSplit, SourceError
from distill_sbs.data.readers.published import PublishedReader
from distill_sbs.data.records import counts, joining, tfrecords
from distill_sbs.data.unknown_pieces import ExamplePieces, PieceCounter
from distill_sbs.errors import UserError, did_you_mean

# Is told a line: "warning: …" or "note: …".
Tell = Callable[[str], None]


def _tell_on_stderr(line: str) -> None:
    terminal.say(line, stderr=True)


def prepare_dataset(
    spec: DatasetSpec,
    source_dir: epath.PathLike | None,
    data_dir: epath.PathLike,
    splits: Sequence[str] | None = None,
    tell: Tell = _tell_on_stderr,
    vocabulary_file: str | None = None,
) -> counts.Info:
    """Writes the records of `splits` (None: all that exist) and returns the whole `info.json`.

    Every split is checked before the first one is written. Splits prepared earlier and not named
    stay; nothing changes in `data_dir` unless all of it succeeds. A progress bar shows on a
    terminal (stderr), and nothing elsewhere; `tell` is told what looks wrong, and what is unknown
    to a vocabulary, where one is named.

    Raises:
      SourceError: raw data that is missing or malformed.
      UserError: a split that the dataset does not have.
    """
    splits = check_splits(spec, splits)
    counter = PieceCounter(vocabulary_file) if vocabulary_file else None
    raw_splits = _open_splits(spec, source_dir, splits)
    for warning in dict.fromkeys(
        line for raw_split in raw_splits.values() for line in raw_split.warnings
    ):
        tell(f"warning: {warning}")
    for note in dict.fromkeys(
        line for raw_split in raw_splits.values() for line in raw_split.notes
    ):
        tell(f"note: {note}")
    counted: dict[str, counts.SplitCounts] = {}
    with tfrecords.replace_records(data_dir, spec.name) as partial:
        entries = _copy_kept_splits(spec.name, data_dir, partial, splits)
        for split in list(entries):
            counted[split] = _count_inputs(data_dir, spec.name, split)
        for split, raw_split in raw_splits.items():
            counted[split] = counts.SplitCounts()
            pieces = ExamplePieces(counter) if counter else None
            with show_progress(f"{spec.name} {split}", raw_split.size) as advance:
                entries[split] = tfrecords.write_split(
                    partial,
                    split,
                    _advance_with(raw_split, advance, pieces),
                    raw_split.size,
                    spec.teachers,
                    spec.is_correct,
                    counted[split],
                )
            for line in pieces.warn(f"{spec.name} {split}") if pieces else ():
                tell(line)
        ordered = {split: entries[split] for split in SPLITS if split in entries}
        info = tfrecords.write_info(partial, spec.name, ordered)
    for warning in counts.warn_of_leaks(counted):
        tell(f"warning: {spec.name}: {warning}")
    by_teacher = {split: counted[split].teachers for split in raw_splits}
    _tell_of_outputs(spec.name, info, by_teacher, tell)
    return info


def join_teacher(
    spec: DatasetSpec,
    source_dir: epath.PathLike | None,
    data_dir: epath.PathLike,
    teacher: str,
    output_files: Sequence[str],
    splits: Sequence[str] | None = None,
    tell: Tell = _tell_on_stderr,
) -> counts.Info:
    """Joins a teacher's output files with the records of a dataset; returns the `info.json`.

    Splits that are prepared are taken as they are, whatever they were made from; the others are
    prepared first.

    Raises:
      SourceError: see `prepare_dataset` and `joining.join_extracted`.
      UserError: the name cannot be a teacher's, or a split does not exist.
    """
    joining.check_teacher_name(spec, teacher)
    splits = check_splits(spec, splits)
    if missing := _find_unprepared(spec, data_dir, splits):
        prepare_dataset(spec, source_dir, data_dir, missing, tell)
    sizes = tfrecords.read_info(data_dir, spec.name)["splits"]
    total = sum(entry["examples"] for entry in sizes.values())
    total += sum(sizes[split]["examples"] for split in splits)

    def join(advance: joining.Advance, counted: dict[str, counts.TeacherCounts]) -> counts.Info:
        return joining.join_extracted(
            spec, data_dir, teacher, output_files, splits, advance, counted
        )

    return _join_and_tell(spec, teacher, total, join, tell)


def join_published_teacher(
    spec: DatasetSpec,
    source_dir: epath.PathLike | None,
    data_dir: epath.PathLike,
    teacher: str,
    splits: Sequence[str] | None = None,
    tell: Tell = _tell_on_stderr,
) -> counts.Info:
    """Joins `{source_dir}/{dataset}/llm/{split}_CoT_{k}.json` under a name of one's own.

    For the published layout with another teacher's outputs in the place of PaLM's. Splits that are
    prepared keep the teachers that they have; the others are prepared with this one alone.

    Raises:
      SourceError: raw data that is missing or malformed, or the outputs of a teacher whom the
        records hold already.
      UserError: the dataset is not of the published layout, the name cannot be a teacher's, or a
        split does not exist.
    """
    joining.check_teacher_name(spec, teacher)
    splits = check_splits(spec, splits)
    if not isinstance(spec.reader, PublishedReader):
        raise UserError(f"{spec.name} is not read from the published layout")
    inputs = dataclasses.replace(spec, reader=spec.reader.with_teacher(None), teachers=())
    outputs = dataclasses.replace(spec, reader=spec.reader.with_teacher(teacher))
    raw_splits = _open_splits(outputs, source_dir, splits)  # checked before anything is written
    if missing := _find_unprepared(spec, data_dir, splits):
        prepare_dataset(inputs, source_dir, data_dir, missing, tell)
    total = sum(raw_split.size for raw_split in raw_splits.values())

    def join(advance: joining.Advance, counted: dict[str, counts.TeacherCounts]) -> counts.Info:
        return joining.join_published(spec, data_dir, teacher, raw_splits, advance, counted)

    return _join_and_tell(spec, teacher, total, join, tell)


def tell_of_joined_pieces(
    info: counts.Info,
    data_dir: epath.PathLike,
    teacher: str,
    vocabulary_file: str,
    splits: Sequence[str] | None = None,
    tell: Tell = _tell_on_stderr,
) -> None:
    """Warns of what is unknown to a vocabulary in the outputs of a teacher that was joined."""
    counter = PieceCounter(vocabulary_file)
    for split, entry in info["splits"].items():
        if teacher in entry["teachers"] and (not splits or split in splits):
            pieces = ExamplePieces(counter)
            for example in joining.read_examples(data_dir, info["dataset"], split, teacher):
                pieces.add_outputs(example)
            for line in pieces.warn(f"{info['dataset']} {split}"):
                tell(line)


def _join_and_tell(
    spec: DatasetSpec,
    teacher: str,
    total: int,
    join: Callable[[joining.Advance, dict[str, counts.TeacherCounts]], counts.Info],
    tell: Tell,
) -> counts.Info:
    """Joins under a progress bar of `total` records, and tells what the counts say."""
    counted: dict[str, counts.TeacherCounts] = {}
    with show_progress(f"{spec.name}: joining {teacher}", total) as advance:
        info = join(advance, counted)
    _tell_of_outputs(
        spec.name, info, {split: {teacher: count} for split, count in counted.items()}, tell
    )
    return info


def join_shuffled_teacher(
    spec: DatasetSpec,
    data_dir: epath.PathLike,
    teacher: str,
    original: str,
    splits: Sequence[str] | None = None,
    tell: Tell = _tell_on_stderr,
) -> counts.Info:
    """Joins the control: another teacher's labels, and its rationales each at another example.

    Nothing is prepared: the records hold the original's outputs already. Without `splits` all that
    hold them take part.

    Raises:
      SourceError: a split has fewer than two rationales of the original.
      UserError: see `check_shuffle`.
    """
    splits = check_shuffle(spec, data_dir, teacher, original, splits)
    entries = tfrecords.read_info(data_dir, spec.name)["splits"]
    total = 2 * sum(entries[split]["examples"] for split in splits)

    def join(advance: joining.Advance, counted: dict[str, counts.TeacherCounts]) -> counts.Info:
        return joining.join_shuffled(spec, data_dir, teacher, original, splits, advance, counted)

    return _join_and_tell(spec, teacher, total, join, tell)


def check_shuffle(
    spec: DatasetSpec,
    data_dir: epath.PathLike,
    teacher: str,
    original: str,
    splits: Sequence[str] | None = None,
) -> tuple[str, ...]:
    """The splits in which `original` can be shuffled under the name `teacher`; reads `info.json`.

    Raises:
      UserError: the name cannot be a teacher's, a split does not exist, is not prepared, or holds
        no outputs of the original.
    """
    joining.check_teacher_name(spec, teacher)
    named = check_splits(spec, splits) if splits else None
    return joining.find_splits_of(spec, data_dir, original, named)


def has_published_outputs(spec: DatasetSpec, source_dir: epath.PathLike | None) -> bool:
    """Whether the source folder holds outputs in the published layout, for a dataset of it."""
    if source_dir is None or not isinstance(spec.reader, PublishedReader):
        return False
    folder = epath.Path(source_dir) / spec.reader.dataset / "llm"
    return folder.is_dir() and any("_CoT_" in path.name for path in folder.iterdir())


def check_splits(spec: DatasetSpec, splits: Sequence[str] | None) -> tuple[str, ...]:
    """`splits`, or all of the dataset's; a name that it does not have is a UserError."""
    if not splits:
        return spec.splits
    for split in splits:
        if split not in spec.splits:
            raise UserError(
                f"{spec.name} has no split {split!r}, only {', '.join(spec.splits)}"
                f"{did_you_mean(split, spec.splits)}"
            )
    return tuple(dict.fromkeys(splits))


def _open_splits(
    spec: DatasetSpec, source_dir: epath.PathLike | None, splits: Sequence[str]
) -> dict[str, RawSplit]:
    """The raw splits, every file of theirs checked."""
    if source_dir is None and spec.needs_source_dir:
        raise SourceError(
            "its raw data is needed and no folder was given; "
            "pass --source_dir or set DISTILL_SBS_SOURCE_DIR"
        )
    source_dir = epath.Path(source_dir or ".")
    if spec.needs_source_dir and not source_dir.exists():
        raise SourceError(f"source folder {source_dir} does not exist; correct --source_dir")
    raw_splits = {}
    for split in splits:
        with show_progress(f"checking {spec.name} {split}", None):
            raw_splits[split] = spec.reader(source_dir, split)
    return raw_splits


def _find_unprepared(
    spec: DatasetSpec, data_dir: epath.PathLike, splits: Sequence[str]
) -> list[str]:
    missing = []
    for split in splits:
        try:
            tfrecords.split_files(data_dir, spec.name, split)
        except tfrecords.UnpreparedDataError:
            missing.append(split)
    return missing


def _copy_kept_splits(
    dataset: str, data_dir: epath.PathLike, partial: epath.Path, replaced: Sequence[str]
) -> dict[str, counts.SplitInfo]:
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
            shards = tfrecords.split_files(data_dir, dataset, split)
        except tfrecords.UnpreparedDataError:
            continue  # incomplete: not worth keeping, and reading it would have failed
        for shard in shards:
            path = epath.Path(shard)
            path.copy(partial / path.name)
        kept[split] = entry
    return kept


def _count_inputs(data_dir: epath.PathLike, dataset: str, split: str) -> counts.SplitCounts:
    """The inputs of a split that was prepared earlier, for comparison with the new ones."""
    counted = counts.SplitCounts()
    for example in joining.read_examples(data_dir, dataset, split):
        counted.inputs.append(hash(example.input))
    return counted


def _tell_of_outputs(
    dataset: str,
    info: counts.Info,
    by_split: Mapping[str, Mapping[str, counts.TeacherCounts]],
    tell: Tell,
) -> None:
    """Tells what looks wrong in the outputs that were just written, and shows an unparsed one."""
    shown = set()
    for split, by_teacher in by_split.items():
        for teacher, counted in by_teacher.items():
            for warning in counts.warn_of_outputs(split, teacher, counted):
                tell(f"warning: {dataset} {warning}")
            if teacher not in shown and (note := counts.describe_unparsed(split, teacher, counted)):
                tell(f"note: {dataset} {note}")
                shown.add(teacher)
    for warning in counts.warn_of_differences(info):
        tell(f"warning: {dataset}: {warning}")
    written = {(split, teacher) for split, by_teacher in by_split.items() for teacher in by_teacher}
    for split, entry in info["splits"].items():
        for teacher, figures in entry["teachers"].items():
            if (split, original := figures.get("rationales_of")) in written:
                tell(
                    f"note: {dataset} {split}: {teacher} is still {original} as it was before; "
                    f"--teacher={teacher} --shuffle_rationales_of={original} shuffles it anew"
                )


def _advance_with(
    raw_split: RawSplit, advance: Callable[[int], None], pieces: ExamplePieces | None
) -> Iterator[Example]:
    for example in raw_split.examples():
        if pieces is not None:
            pieces.add(example)
        yield example
        advance(1)
