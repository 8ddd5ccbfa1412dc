"""Joins a teacher's outputs with prepared records, by id.

Enters: `DATA_DIR/{dataset}` and the output files of `extract`. Leaves: the same records with
`{teacher}_label` and `{teacher}_rationale`, and the teacher in `info.json`; other teachers stay.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf
from etils import epath

from distill_sbs import constants
from distill_sbs.data.dataset import SPLITS, DatasetSpec, Example, SourceError, TeacherOutput
from distill_sbs.data.readers import responses
from distill_sbs.data.records import tfrecords
from distill_sbs.errors import UserError

# (rows done): moves a progress bar.
Advance = Callable[[int], None]


def check_teacher_name(spec: DatasetSpec, teacher: str) -> None:
    """Refuses a name that cannot stand in the names of tasks.

    Raises:
      UserError: it is no identifier in small letters, or begins with `distill_`.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", teacher) or teacher.startswith("distill_"):
        raise UserError(
            f"--teacher={teacher}: expected lower-case letters, digits and underscores, a letter "
            "first (and not 'distill_'), for it becomes part of names such as "
            f"{spec.name}_dss_NAME"
        )
    if teacher in spec.teachers:
        raise UserError(
            f"--teacher={teacher}: {spec.name} has a teacher of that name in its raw data; give "
            "yours another name"
        )


def read_examples(
    data_dir: epath.PathLike, dataset: str, split: str, teacher: str | None = None
) -> Iterator[Example]:
    """The prepared inputs of a split in order, with gold labels; with a teacher's outputs if named.

    Raises:
      records.UnpreparedDataError: the split has not been prepared.
    """
    for record in _records(data_dir, dataset, split):
        feature = record.features.feature
        outputs = {}
        if teacher is not None:
            label = _text(feature, tfrecords.label_key(teacher)) or None
            rationale = _text(feature, tfrecords.rationale_key(teacher)) or None
            outputs[teacher] = TeacherOutput(label, rationale)
        yield Example(
            id=_text(feature, constants.ID) or "",
            input=_text(feature, constants.INPUT) or "",
            label=_text(feature, constants.LABEL) or None,
            teacher_outputs=outputs,
        )


def _records(data_dir: epath.PathLike, dataset: str, split: str) -> Iterator[tf.train.Example]:
    files = tfrecords.split_files(data_dir, dataset, split)
    for serialized in tf.data.TFRecordDataset(files).as_numpy_iterator():
        yield tf.train.Example.FromString(serialized)


def _text(feature: Any, key: str) -> str | None:
    values = feature[key].bytes_list.value if key in feature else ()
    return values[0].decode("utf-8") if values else None


def join_teacher(
    spec: DatasetSpec,
    data_dir: epath.PathLike,
    teacher: str,
    output_files: Sequence[str],
    splits: Sequence[str],
    advance: Advance = lambda _: None,
) -> dict[str, Any]:
    """Joins `output_files` with those of `splits` that they hold answers for.

    An example without an answer counts as unparsed, and as `unanswered` in `info.json`. Nothing
    changes in `data_dir` unless all of it succeeds.

    Returns:
      The whole `info.json`.

    Raises:
      SourceError: a file is missing or broken, none of its ids is in the splits, some of its ids
        are in no prepared split, or an answer belongs to another input text.
      records.UnpreparedDataError: a split has not been prepared.
    """
    index = responses.AnswerIndex(output_files)
    try:
        info = tfrecords.read_info(data_dir, spec.name)
        answered = _answered(index, data_dir, spec.name, list(info["splits"]), advance)
        joined = [split for split in splits if answered[split]]
        _check_ids(index, spec.name, list(splits), joined)
        selection = responses.Selection.of(output_files[0])
        folder = epath.Path(data_dir) / spec.name
        entries = dict(info["splits"])
        with tfrecords.replaced_folder(folder) as partial:
            for split in info["splits"]:
                files = tfrecords.split_files(data_dir, spec.name, split)
                if split not in joined:
                    for file in files:
                        epath.Path(file).copy(partial / epath.Path(file).name)
                    continue
                counts = tfrecords.TeacherCounts()
                unanswered = 0
                for file in files:
                    path = partial / epath.Path(file).name
                    with tf.io.TFRecordWriter(str(path)) as writer:
                        for serialized in tf.data.TFRecordDataset(file).as_numpy_iterator():
                            record = tf.train.Example.FromString(serialized)
                            feature = record.features.feature
                            gold = _text(feature, constants.LABEL) or None
                            rows = index.answers(_text(feature, constants.ID) or "")
                            output = responses.output_of(selection.choose(rows, gold))
                            unanswered += not any(not row.get("error") for row in rows)
                            counts.add(gold, output, spec.is_correct)
                            tfrecords.set_output(feature, teacher, output)
                            writer.write(record.SerializeToString())
                            advance(1)
                teachers = {**entries[split]["teachers"]}
                teachers[teacher] = {**counts.summary(), "unanswered": unanswered}
                entries[split] = {**entries[split], "teachers": teachers}
            ordered = {split: entries[split] for split in SPLITS if split in entries}
            return tfrecords.write_info(partial, spec.name, ordered)
    finally:
        index.close()


def _answered(
    index: responses.AnswerIndex,
    data_dir: epath.PathLike,
    dataset: str,
    splits: Sequence[str],
    advance: Advance,
) -> dict[str, int]:
    """How many examples of each prepared split have an answer; checks that it is to their text."""
    counts = {}
    for split in splits:
        counts[split] = 0
        for example in read_examples(data_dir, dataset, split):
            rows = index.answers(example.id)
            for row in rows:
                responses.check_same_input(row, example.input, ", ".join(index.paths))
            counts[split] += bool(rows)
            advance(1)
    return counts


def _check_ids(
    index: responses.AnswerIndex, dataset: str, splits: list[str], joined: list[str]
) -> None:
    unknown, some = index.never_asked_for()
    where = ", ".join(index.paths)
    if unknown:
        raise SourceError(
            f"{where}: {unknown:,} of {len(index):,} answers have ids that no prepared split of "
            f"{dataset} holds, such as {', '.join(map(repr, some))}; they were extracted for other "
            "inputs, or not all splits are prepared"
        )
    if not joined:
        raise SourceError(f"{where}: no answer for an example of {dataset} {', '.join(splits)}")
