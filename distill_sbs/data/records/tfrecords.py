"""Prepared records: TFRecord shards and `info.json`, the one form that every dataset takes.

Enters: a stream of `Example`s (writing); `DATA_DIR/{dataset}` (reading). Leaves: files
`{split}.tfrecord-00000-of-0000N` and `info.json`; parsed records and shard names.

A record is a `tf.train.Example`: bytes `id`, int64 `index` (its position in the split), bytes
`input`, bytes `label` ('' where there is no gold label), and for each teacher bytes
`{teacher}_label` and `{teacher}_rationale` ('' where its output could not be parsed or is absent);
further rationales for the label are the values of `{teacher}_more_rationales`.
`info.json` is `{"dataset": …, "format_version": 1, "splits": {split: {"examples": N, "teachers":
{teacher: {"unparsed": …, "label_accuracy": …, "mean_rationale_words": …}}}}}`; a teacher that was
joined later (`joining`) has `unanswered` besides, and a control `rationales_of`: whose rationales
it has shuffled.

Paths may be `gs://`: everything goes through etils' epath and `tf.io`.
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from typing import TypeAlias, cast

import numpy as np
import tensorflow as tf
from etils import epath

from distill_sbs import constants, files, json_lines
from distill_sbs.data.dataset import AnswerCheck, Example, SourceError, TeacherOutput
from distill_sbs.data.records.counts import Info, SplitCounts, SplitInfo, TeacherCounts
from distill_sbs.data.selection import Selection
from distill_sbs.errors import UserError

FORMAT_VERSION = 1
INFO_FILE = "info.json"

# About 8 MB of NLI pairs a shard: enough shards to spread e-SNLI over hosts, few for the others.
EXAMPLES_PER_SHARD = 16384


# The fields of a record by name, as protobuf hands them over.
FeatureMap: TypeAlias = MutableMapping[str, tf.train.Feature]


class UnpreparedDataError(UserError):
    """The records asked for are not there; the message holds the command that makes them."""


def _make_unprepared_error(
    dataset: str, data_dir: epath.PathLike, problem: str, split: str | None = None
) -> UnpreparedDataError:
    command = f"python -m distill_sbs.prepare --dataset={dataset} " + shlex.quote(
        f"--data_dir={data_dir}"
    )
    if split:
        command += f" --splits={split}"
    return UnpreparedDataError(
        f"{problem} Prepare the data first:\n  {command}\n"
        "(with --source_dir=FOLDER for raw data that DISTILL_SBS_SOURCE_DIR does not point to)"
    )


def label_key(teacher: str) -> str:
    """The record field of a teacher's label."""
    return f"{teacher}_label"


def rationale_key(teacher: str) -> str:
    """The record field of a teacher's rationale."""
    return f"{teacher}_rationale"


def more_rationales_key(teacher: str) -> str:
    """The record field of a teacher's further rationales."""
    return f"{teacher}_more_rationales"


def _bytes_feature(*texts: str) -> tf.train.Feature:
    values = [text.encode("utf-8") for text in texts]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _serialize(example: Example, index: int, teachers: Sequence[str]) -> bytes:
    features = {
        constants.ID: _bytes_feature(example.id),
        constants.INDEX: tf.train.Feature(int64_list=tf.train.Int64List(value=[index])),
        constants.INPUT: _bytes_feature(example.input),
        constants.LABEL: _bytes_feature(example.label or ""),
    }
    record = tf.train.Example(features=tf.train.Features(feature=features))
    for teacher in teachers:
        set_output(record.features.feature, teacher, example.teacher_outputs.get(teacher))
    serialized: bytes = record.SerializeToString()
    return serialized


def _check_texts(example: Example, place: str) -> None:
    """Refuses what a reader of somebody's own may give and no record can hold."""
    texts = {"id": example.id, "input": example.input, "label": example.label}
    for teacher, output in example.teacher_outputs.items():
        texts[f"label of {teacher}"] = output.label
        texts[f"rationale of {teacher}"] = output.rationale
        for number, rationale in enumerate(output.more_rationales, start=2):
            texts[f"rationale {number} of {teacher}"] = rationale
    for name, text in texts.items():
        if text is None and name not in ("id", "input"):
            continue
        if not isinstance(text, str):
            raise SourceError(
                f"{place} (id {json_lines.show_value(example.id)}): its {name} is "
                f"{json_lines.show_value(text)}, expected a text"
            )
        if (found := json_lines.find_surrogate(text)) is not None:
            raise SourceError(
                f"{place} (id {json_lines.show_value(example.id)}): its {name} holds {found!r}, "
                "half of a character (a lone surrogate), which cannot be written as UTF-8"
            )


def set_output(feature: FeatureMap, teacher: str, output: TeacherOutput | None) -> None:
    """Sets a teacher's fields in the feature map of a record."""
    feature[label_key(teacher)].CopyFrom(_bytes_feature(output and output.label or ""))
    feature[rationale_key(teacher)].CopyFrom(_bytes_feature(output and output.rationale or ""))
    feature.pop(more_rationales_key(teacher), None)
    if output and output.more_rationales:
        feature[more_rationales_key(teacher)].CopyFrom(_bytes_feature(*output.more_rationales))


def write_split(
    folder: epath.Path,
    split: str,
    examples: Iterable[Example],
    size: int,
    teachers: Sequence[str],
    is_correct: AnswerCheck,
    counts: SplitCounts | None = None,
) -> SplitInfo:
    """Writes one split into `folder` as it streams, and returns its entry of `info.json`.

    `counts` takes what is counted on the way.

    In it, `unparsed` counts outputs that gave no label; `label_accuracy` (a fraction of 0..1; None
    without gold labels, or where the rows give no label of the teacher's own) is taken over all
    rows with a gold label, an unparsed one counting as wrong; `mean_rationale_words` is the mean
    over the rows that have a rationale. A teacher that answered no row of the split is left out.

    Raises:
      SourceError: an id stands twice, a field is no text that can be written, or the stream does
        not hold `size` examples.
    """
    shards = max(1, -(-size // EXAMPLES_PER_SHARD))
    counts = SplitCounts() if counts is None else counts
    counts.teachers.update((teacher, TeacherCounts()) for teacher in teachers)
    seen_ids: set[int] = set()  # 64-bit hashes: half a million whole ids are too much to hold
    index = 0
    stream = iter(examples)
    for shard in range(shards):
        path = folder / f"{split}.tfrecord-{shard:05d}-of-{shards:05d}"
        with tf.io.TFRecordWriter(str(path)) as writer:
            while index < min(size, (shard + 1) * EXAMPLES_PER_SHARD):
                example = next(stream, None)
                if example is None:
                    raise SourceError(f"{split} ended after {index} examples, expected {size}")
                if hash(example.id) in seen_ids:
                    raise SourceError(
                        f"{split}: id {example.id!r} (example {index}) stands twice; ids choose "
                        "the training subset, so each may stand once"
                    )
                _check_texts(example, f"{split}, example {index}")
                seen_ids.add(hash(example.id))
                counts.add(example, is_correct)
                writer.write(_serialize(example, index, teachers))
                index += 1
    if next(stream, None) is not None:
        raise SourceError(f"{split} goes on after its {size} examples; correct the reader's size")
    answered = {teacher: count for teacher, count in counts.teachers.items() if count.outputs}
    return {
        "examples": size,
        "teachers": {teacher: count.summary() for teacher, count in answered.items()},
    }


@contextlib.contextmanager
def replace_records(data_dir: epath.PathLike, dataset: str) -> Iterator[epath.Path]:
    """An empty folder that takes the place of `DATA_DIR/{dataset}` if the block succeeds.

    Raises:
      UserError: something stands there that is no prepared record, such as the raw data.
    """
    folder = epath.Path(data_dir) / dataset
    if folder.is_dir():
        for path in folder.iterdir():
            is_ours = path.name == INFO_FILE or ".tfrecord-" in path.name
            if not is_ours and not path.name.startswith("."):
                raise UserError(
                    f"{folder} holds {path.name}, which is no prepared record and would be lost; "
                    "choose another --data_dir (not the folder of the raw data)"
                )
    with files.replace_folder(folder) as partial:
        yield partial


def write_info(folder: epath.Path, dataset: str, splits: dict[str, SplitInfo]) -> Info:
    """Writes `info.json`, and returns what it says."""
    info: Info = {"dataset": dataset, "format_version": FORMAT_VERSION, "splits": splits}
    (folder / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n")
    return info


def read_info(data_dir: epath.PathLike, dataset: str) -> Info:
    """What `info.json` says of a prepared dataset.

    Raises:
      UnpreparedDataError: it is not prepared, or in a format that this version does not read.
    """
    path = epath.Path(data_dir) / dataset / INFO_FILE
    if not path.exists():
        raise _make_unprepared_error(
            dataset, data_dir, f"{dataset} is not prepared: {path} is missing."
        )
    try:
        info = json_lines.read_json(path)
    except SourceError as error:
        raise _make_unprepared_error(dataset, data_dir, f"{path} is broken ({error}).") from error
    if not isinstance(info, dict):
        reason = f"{path} is broken (it holds no JSON object)."
        raise _make_unprepared_error(dataset, data_dir, reason)
    if info.get("format_version") != FORMAT_VERSION:
        raise _make_unprepared_error(
            dataset,
            data_dir,
            f"{path} has format version {info.get('format_version')}, expected {FORMAT_VERSION}.",
        )
    return cast(Info, info)  # `write_info` wrote it


def split_files(data_dir: epath.PathLike, dataset: str, split: str) -> list[str]:
    """The shards of a prepared split, in order.

    Raises:
      UnpreparedDataError: the split is not prepared, or one of its shards is missing.
    """
    info = read_info(data_dir, dataset)
    if split not in info["splits"]:
        raise _make_unprepared_error(
            dataset,
            data_dir,
            f"{dataset} has no prepared {split} split in {data_dir}, only "
            f"{', '.join(info['splits']) or 'none'}.",
            split,
        )
    folder = epath.Path(data_dir) / dataset
    paths = sorted(folder.glob(f"{split}.tfrecord-*-of-*"))
    expected = int(match[1]) if paths and (match := re.search(r"-of-(\d+)$", paths[0].name)) else 1
    if len(paths) != expected:
        problem = f"{folder} holds {len(paths)} of {expected} shards of {split}."
        raise _make_unprepared_error(dataset, data_dir, problem, split)
    return [str(path) for path in paths]


def find_indices(data_dir: epath.PathLike, dataset: str, selection: Selection) -> np.ndarray:
    """Where the examples of a selection stand in the training split, int64 [how many], sorted.

    Raises:
      UserError: the selection has nothing of this dataset, or ids that its training split lacks.
      UnpreparedDataError: the split is not prepared.
    """
    wanted = set(selection.ids_of(dataset))
    records = tf.data.TFRecordDataset(split_files(data_dir, dataset, "train"))
    features = {
        constants.ID: tf.io.FixedLenFeature([], tf.string),
        constants.INDEX: tf.io.FixedLenFeature([], tf.int64),
    }
    found: dict[str, int] = {}
    for serialized in records.batch(4096):
        batch = tf.io.parse_example(serialized, features)
        names, indices = batch[constants.ID].numpy().tolist(), batch[constants.INDEX].numpy()
        found.update(
            (name, int(index))
            for raw, index in zip(names, indices, strict=True)
            if (name := raw.decode()) in wanted
        )
    if missing := sorted(wanted - found.keys()):
        raise UserError(
            f"SELECTION={selection.place!r}: {len(missing):,} of its {len(wanted):,} ids of "
            f"{dataset} are not in the training split of {epath.Path(data_dir) / dataset}, such as "
            f"{missing[0]!r}; it was made of other records: choose anew with curate"
        )
    return np.array(sorted(found.values()), np.int64)


def list_labels(data_dir: epath.PathLike, dataset: str, most: int) -> list[str] | None:
    """The different gold labels of the training split, sorted; None where more than `most`.

    Raises:
      UnpreparedDataError: the split is not prepared.
    """
    records = tf.data.TFRecordDataset(split_files(data_dir, dataset, "train"))
    features = {constants.LABEL: tf.io.FixedLenFeature([], tf.string)}
    found: set[str] = set()
    for serialized in records.batch(4096):
        batch = tf.io.parse_example(serialized, features)
        found.update(raw.decode() for raw in batch[constants.LABEL].numpy() if raw)
        if len(found) > most:
            return None
    return sorted(found)


def parse_record(serialized: tf.Tensor, teachers: Sequence[str]) -> dict[str, tf.Tensor]:
    """A record's fields as scalar tensors, for a tf.data map; absent texts are ''.

    A teacher's further rationales are a string tensor [how many].
    """
    texts = [constants.ID, constants.INPUT, constants.LABEL]
    for teacher in teachers:
        texts += [label_key(teacher), rationale_key(teacher)]
    features: dict[str, tf.io.FixedLenFeature] = {
        name: tf.io.FixedLenFeature([], tf.string, default_value="") for name in texts
    }
    for teacher in teachers:
        features[more_rationales_key(teacher)] = tf.io.RaggedFeature(tf.string)
    features[constants.INDEX] = tf.io.FixedLenFeature([], tf.int64)
    fields: dict[str, tf.Tensor] = tf.io.parse_single_example(serialized, features)
    return fields
