"""The inputs that a teacher is asked about, one after the other, never all in memory.

Enters: a JSONL file of `{"id", "input"}` (`"label"` optional), an inputs file of the published
data, or prepared records, for which TensorFlow is imported. Leaves: `Example`s, checked before the
first call is paid for.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator

from etils import epath

from distill_sbs.cli import quiet_tensorflow
from distill_sbs.data.dataset import Example, SourceError
from distill_sbs.data.jsonl import read_rows, text_field
from distill_sbs.data.readers import published
from distill_sbs.errors import UserError
from distill_sbs.json_lines import JsonObject


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The examples to ask about; `examples()` streams, and can be called again.

    Attributes:
      size: how many there are.
      examples: streams them.
      split: the split's name in published file names, such as "train" or "valid".
      described: where they came from, for the settings file.
    """

    size: int
    examples: Callable[[], Iterator[Example]]
    split: str
    described: dict[str, str]

    def part(self, shard: tuple[int, int] | None, limit: int | None) -> Inputs:
        """The first `limit` examples, and of these every n-th from the i-th for a shard (i, n)."""
        kept = self.size if limit is None else min(limit, self.size)
        first, step = shard or (0, 1)

        def examples() -> Iterator[Example]:
            return itertools.islice(self.examples(), first, kept, step)

        return dataclasses.replace(self, size=len(range(first, kept, step)), examples=examples)


def parse_shard(text: str) -> tuple[int, int]:
    """`i/n` as (i, n), 0 ≤ i < n.

    Raises:
      UserError: it is something else.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not int(match[1]) < int(match[2]):
        raise UserError(
            f"--shard={text}: expected i/n, the i-th of n parts counted from 0, such as 0/8 to 7/8"
        )
    return int(match[1]), int(match[2])


def from_file(path: str, task: str) -> Inputs:
    """Inputs in a JSONL file.

    A published inputs file (`cqa_train.json`, …) can be given too where `task` is its dataset; its
    ids are then those of the prepared records.

    Raises:
      SourceError: a missing file, broken JSON, a missing key, an id that stands twice.
    """
    file = epath.Path(path)
    if not file.exists():
        raise SourceError(f"--input={path}: no such file")
    layout = published.LAYOUTS.get(task)
    match = re.fullmatch(rf"{task}_(train|valid|test)\.json", file.name)
    described = {"input": str(pathlib.Path(path).absolute()) if "://" not in path else path}
    if layout is not None and match:
        raw_split = layout.read_inputs(file)
        return Inputs(raw_split.size, raw_split.examples, match[1], described)

    def examples() -> Iterator[Example]:
        return (_example(row, f"{path}, line {number}") for number, row in read_rows(file))

    lines: dict[str, int] = {}
    for number, row in read_rows(file):
        example = _example(row, f"{path}, line {number}")
        if example.id in lines:
            raise SourceError(
                f"{path}: lines {lines[example.id]} and {number} both have the id {example.id!r}; "
                "answers are joined by id, so each may stand once"
            )
        lines[example.id] = number
    if not lines:
        raise SourceError(f"--input={path} holds no rows; expected at least one")
    return Inputs(len(lines), examples, re.sub(r"\W", "_", file.stem), described)


def _example(row: JsonObject, place: str) -> Example:
    if isinstance(row.get("id"), int) and not isinstance(row["id"], bool):
        row["id"] = str(row["id"])
    has_label = row.get("label") not in (None, "")
    return Example(
        id=text_field(row, "id", place),
        input=text_field(row, "input", place),
        label=text_field(row, "label", place) if has_label else None,
    )


def from_records(dataset: str, split: str, data_dir: str, task_files: tuple[str, ...]) -> Inputs:
    """Inputs in prepared records; a dataset that is generated is prepared first where it is not.

    Raises:
      UserError: no such dataset or split, or it is not prepared.
    """
    quiet_tensorflow.import_tensorflow()
    from distill_sbs.data.records import joining, tfrecords

    splits = split.split("+")
    try:
        info = tfrecords.read_info(data_dir, dataset)
    except tfrecords.UnpreparedDataError:
        from distill_sbs.data import registration
        from distill_sbs.data.records import build

        registration.load_task_files(task_files)
        spec = registration.get_dataset(dataset)
        if spec.needs_source_dir:
            raise
        info = build.prepare_dataset(spec, None, data_dir)
    _check_splits(splits, info["splits"], f"{data_dir}/{dataset}")
    for each in splits:
        tfrecords.split_files(data_dir, dataset, each)
    return Inputs(
        sum(info["splits"][each]["examples"] for each in splits),
        lambda: itertools.chain.from_iterable(
            joining.read_examples(data_dir, dataset, each) for each in splits
        ),
        {"validation": "valid"}.get(split, split.replace("+", "_")),
        {"dataset": dataset, "split": split, "data_dir": str(pathlib.Path(data_dir).absolute())},
    )


def read_with_teacher(dataset: str, split: str, data_dir: str, teacher: str) -> Iterator[Example]:
    """Prepared examples with the output of a teacher whose outputs the records hold.

    Raises:
      UserError: the split is not prepared, or holds no outputs of that teacher.
    """
    quiet_tensorflow.import_tensorflow()
    from distill_sbs.data.records import joining, tfrecords

    info = tfrecords.read_info(data_dir, dataset)
    splits = split.split("+")
    _check_splits(splits, info["splits"], f"{data_dir}/{dataset}")
    for each in splits:
        teachers = info["splits"][each]["teachers"]
        if teacher not in teachers:
            raise UserError(
                f"--teacher={teacher}: {data_dir}/{dataset} {each} holds outputs of "
                f"{', '.join(teachers) or 'nobody'}; name an output file with --output"
            )
    return itertools.chain.from_iterable(
        joining.read_examples(data_dir, dataset, each, teacher) for each in splits
    )


def _check_splits(splits: list[str], known: Iterable[str], where: str) -> None:
    for split in splits:
        if split not in known:
            raise UserError(f"--split={split}: {where} holds {', '.join(known)}")
