"""Joins a teacher's outputs with prepared records: by id, by position, or another's, shuffled.

Enters: `DATA_DIR/{dataset}` and a teacher's outputs. Leaves: the same records with
`{teacher}_label` and `{teacher}_rationale`, and the teacher in `info.json`; other teachers stay.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import tensorflow as tf
from etils import epath

from distill_sbs import constants
from distill_sbs.data.dataset import (
    SPLITS,
    DatasetSpec,
    Example,
    RawSplit,
    SourceError,
    TeacherOutput,
)
from distill_sbs.data.readers import responses, shuffled_rationales
from distill_sbs.data.records import tfrecords
from distill_sbs.data.records.counts import Info, State, TeacherCounts
from distill_sbs.errors import UserError, did_you_mean

# Of the cycle in which rationales go round.
_SHUFFLE_SEED = 0
_RECORDS_AT_ONCE = 512

# (rows done): moves a progress bar.
Advance = Callable[[int], None]
# The teacher's output for an example, and what became of the question.
_Found = tuple[TeacherOutput, State]
_Find = Callable[[Example], _Found]


def check_teacher_name(spec: DatasetSpec, teacher: str) -> None:
    """Refuses a name that cannot stand in the names of tasks.

    Raises:
      UserError: it is no such name, or that of a teacher in the dataset's raw data.
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
            "yours another name, or take it out of DatasetSpec(teachers=…) if the raw data holds "
            "nothing of it"
        )


def read_examples(
    data_dir: epath.PathLike, dataset: str, split: str, teacher: str | None = None
) -> Iterator[Example]:
    """The prepared inputs of a split in order, with gold labels; with a teacher's outputs if named.

    Raises:
      tfrecords.UnpreparedDataError: the split has not been prepared.
    """
    for record in _records(data_dir, dataset, split):
        yield _read_example(record.features.feature, [] if teacher is None else [teacher])


def read_all(
    data_dir: epath.PathLike, dataset: str, split: str, teachers: Sequence[str]
) -> Iterator[Example]:
    """As `read_examples`, with the outputs of all teachers that are named.

    Raises:
      tfrecords.UnpreparedDataError: the split has not been prepared.
    """
    for record in _records(data_dir, dataset, split):
        yield _read_example(record.features.feature, teachers)


def _read_example(feature: tfrecords.FeatureMap, teachers: Sequence[str]) -> Example:
    """What the feature map of a record holds."""
    return Example(
        id=_text(feature, constants.ID) or "",
        input=_text(feature, constants.INPUT) or "",
        label=_text(feature, constants.LABEL) or None,
        teacher_outputs={
            teacher: TeacherOutput(
                _text(feature, tfrecords.label_key(teacher)) or None,
                _text(feature, tfrecords.rationale_key(teacher)) or None,
                tuple(_texts(feature, tfrecords.more_rationales_key(teacher))),
            )
            for teacher in teachers
        },
    )


def _records(data_dir: epath.PathLike, dataset: str, split: str) -> Iterator[tf.train.Example]:
    return _read_files(tfrecords.split_files(data_dir, dataset, split))


def _read_files(files: Sequence[str]) -> Iterator[tf.train.Example]:
    # One by one, each costs more than it takes to parse it.
    for batch in tf.data.TFRecordDataset(files).batch(_RECORDS_AT_ONCE).as_numpy_iterator():
        yield from map(tf.train.Example.FromString, batch)


def _text(feature: tfrecords.FeatureMap, key: str) -> str | None:
    return next(_texts(feature, key), None)


def _texts(feature: tfrecords.FeatureMap, key: str) -> Iterator[str]:
    for value in feature[key].bytes_list.value if key in feature else ():
        yield value.decode("utf-8")


def join_extracted(
    spec: DatasetSpec,
    data_dir: epath.PathLike,
    teacher: str,
    output_files: Sequence[str],
    splits: Sequence[str],
    advance: Advance = lambda _: None,
    counts: dict[str, TeacherCounts] | None = None,
) -> Info:
    """Joins `output_files` with those of `splits` that they hold answers for.

    An example without an answer counts as unparsed, and as `unanswered` in `info.json`. Nothing
    changes in `data_dir` unless all of it succeeds. `counts` takes what was counted, by split.

    Returns:
      The whole `info.json`.

    Raises:
      SourceError: a file is missing or broken, none of its ids is in the splits, some of its ids
        are in no prepared split, or an answer belongs to another input text.
      tfrecords.UnpreparedDataError: a split has not been prepared.
    """
    index = responses.AnswerIndex(output_files)
    try:
        info = tfrecords.read_info(data_dir, spec.name)
        answered = _count_answered(index, data_dir, spec.name, list(info["splits"]), advance)
        joined = [split for split in splits if answered[split]]
        _check_ids(index, spec.name, list(splits), joined)
        # All that voted for the label are joined, whatever else was kept: how many of them are
        # trained on is a setting of the run.
        selection = dataclasses.replace(responses.Selection.of(output_files[0]), rationales="all")

        def find(example: Example) -> _Found:
            rows = index.answers(example.id)
            output = responses.output_of(selection.choose(rows, example.label))
            if all(row.get("error") for row in rows):
                return output, State.UNANSWERED
            parsed = any(row["label"] and row["rationale"] for row in rows)
            if output.label is None and parsed:
                return output, State.LEFT_OUT
            raw = None if parsed else rows[0].get("raw")
            return dataclasses.replace(output, raw=raw), State.ANSWERED

        finders = dict.fromkeys(joined, find)
        return _rewrite(spec, data_dir, teacher, finders, advance, counts)
    finally:
        index.close()


def join_published(
    spec: DatasetSpec,
    data_dir: epath.PathLike,
    teacher: str,
    raw_splits: Mapping[str, RawSplit],
    advance: Advance = lambda _: None,
    counts: dict[str, TeacherCounts] | None = None,
) -> Info:
    """Joins outputs that go with the inputs by position, as the published files lay them.

    Args:
      spec: the dataset.
      data_dir: where it is prepared.
      teacher: whose outputs they are.
      raw_splits: the splits as the dataset's reader gives them, with that teacher's outputs.
      advance: told how many more records are done.
      counts: takes what was counted, by split.

    Returns:
      The whole `info.json`.

    Raises:
      SourceError: the records were prepared from other inputs, or the outputs are, one and all,
        those of a teacher whom the records hold already.
    """
    finders = {split: _Positions(spec.name, split, raw) for split, raw in raw_splits.items()}
    return _rewrite(spec, data_dir, teacher, finders, advance, counts)


def join_shuffled(
    spec: DatasetSpec,
    data_dir: epath.PathLike,
    teacher: str,
    original: str,
    splits: Sequence[str],
    advance: Advance = lambda _: None,
    counts: dict[str, TeacherCounts] | None = None,
) -> Info:
    """Joins the control: the labels of a teacher whom the records hold, its rationales shuffled.

    In each split the rationales go round in one seeded cycle among the examples that have one, so
    none stays where it belongs, and what the original left unparsed stays so. The rationales of a
    split are held in memory: of e-SNLI's 549,367 training rows about 130 MB.

    Args:
      spec: the dataset.
      data_dir: where it is prepared.
      teacher: the control's name.
      original: whose outputs are taken.
      splits: see `find_splits_of`.
      advance: told how many more records are done; each is read twice.
      counts: takes what was counted, by split.

    Returns:
      The whole `info.json`.

    Raises:
      SourceError: a split has fewer than two rationales; nothing was written.
      tfrecords.UnpreparedDataError: a split has not been prepared.
    """
    entries = tfrecords.read_info(data_dir, spec.name)["splits"]
    finders = {
        split: _Shuffled(
            spec.name,
            split,
            original,
            read_examples(data_dir, spec.name, split, original),
            labels_are_gold=entries[split]["teachers"][original]["label_accuracy"] is None,
            advance=advance,
        )
        for split in splits
    }
    return _rewrite(spec, data_dir, teacher, finders, advance, counts, original)


def find_splits_of(
    spec: DatasetSpec, data_dir: epath.PathLike, teacher: str, splits: Sequence[str] | None
) -> tuple[str, ...]:
    """The splits that hold a teacher's outputs; where some are named, these, if all of them do.

    Raises:
      UserError: none does, or one that is named does not.
      tfrecords.UnpreparedDataError: the dataset, or a split that is named, is not prepared.
    """
    entries = tfrecords.read_info(data_dir, spec.name)["splits"]
    for split in splits or ():
        tfrecords.split_files(data_dir, spec.name, split)
    looked_at = tuple(splits or entries)
    found = tuple(split for split in looked_at if teacher in entries[split]["teachers"])
    lacking = [split for split in looked_at if split not in found]
    if not found or (splits and lacking):
        known = {name for split in looked_at for name in entries[split]["teachers"]}
        raise UserError(
            f"{epath.Path(data_dir) / spec.name} holds no outputs of a teacher {teacher!r} in "
            f"{', '.join(lacking)}, only {', '.join(sorted(known)) or 'of none'}"
            f"{did_you_mean(teacher, sorted(known))}"
        )
    return found


class _Shuffled:
    """Finds for the next example its own label and another example's rationale."""

    def __init__(
        self,
        dataset: str,
        split: str,
        original: str,
        examples: Iterator[Example],
        *,
        labels_are_gold: bool,
        advance: Advance,
    ) -> None:
        self._original = original
        self._labels_are_gold = labels_are_gold
        self._rationales: list[tuple[str, tuple[str, ...]]] = []
        for example in examples:
            output = example.teacher_outputs[original]
            if output.rationale is not None:
                self._rationales.append((output.rationale, output.more_rationales))
            advance(1)
        if len(self._rationales) < 2:
            found = "1 rationale" if self._rationales else "no rationale"
            raise SourceError(
                f"{dataset} {split}: {found} of {original}, expected two or more, for each is to "
                "go to another example; name other --splits"
            )
        self._taken = iter(shuffled_rationales.go_round(len(self._rationales), _SHUFFLE_SEED))

    def __call__(self, example: Example) -> _Found:
        own = example.teacher_outputs[self._original]
        own = dataclasses.replace(own, label_is_gold=self._labels_are_gold)
        if own.rationale is None:
            return own, State.ANSWERED if own.label else State.UNANSWERED
        rationale, more = self._rationales[next(self._taken)]
        shuffled = dataclasses.replace(own, rationale=rationale, more_rationales=more)
        return shuffled, State.ANSWERED


class _Positions:
    """Finds the output of the next example, and checks that the example is the same."""

    def __init__(self, dataset: str, split: str, raw_split: RawSplit) -> None:
        self._place = f"{dataset} {split}"
        self._examples = raw_split.examples()

    def __call__(self, example: Example) -> _Found:
        found = next(self._examples, None)
        if found is None or (found.id, found.input) != (example.id, example.input):
            raise SourceError(
                f"{self._place}: the prepared records were made from other inputs (id "
                f"{example.id!r} is not in its place in the source folder); prepare them anew"
            )
        (output,) = found.teacher_outputs.values()
        return output, State.ANSWERED


def _rewrite(
    spec: DatasetSpec,
    data_dir: epath.PathLike,
    teacher: str,
    finders: Mapping[str, _Find],
    advance: Advance,
    counts: dict[str, TeacherCounts] | None,
    rationales_of: str | None = None,
) -> Info:
    """Writes the records again, with a teacher's outputs in the splits that have a finder."""
    info = tfrecords.read_info(data_dir, spec.name)
    entries = dict(info["splits"])
    counts = {} if counts is None else counts
    with tfrecords.replace_records(data_dir, spec.name) as partial:
        for split in info["splits"]:
            shards = tfrecords.split_files(data_dir, spec.name, split)
            if split not in finders:
                for shard in shards:
                    epath.Path(shard).copy(partial / epath.Path(shard).name)
                continue
            count = counts[split] = TeacherCounts()
            others = [name for name in entries[split]["teachers"] if name != teacher]
            same = dict.fromkeys(others, True)
            for shard in shards:
                path = partial / epath.Path(shard).name
                with tf.io.TFRecordWriter(str(path)) as writer:
                    for record in _read_files([shard]):
                        feature = record.features.feature
                        example = _read_example(feature, others)
                        output, state = finders[split](example)
                        count.add(example.label, output, spec.is_correct, example.id, state)
                        for other, theirs in example.teacher_outputs.items():
                            same[other] &= theirs == output
                        tfrecords.set_output(feature, teacher, output)
                        writer.write(record.SerializeToString())
                        advance(1)
            _check_new(finders[split], f"{spec.name} {split}", teacher, same, count)
            teachers = {**entries[split]["teachers"]}
            teachers[teacher] = {**count.summary(), "unanswered": count.unanswered}
            if rationales_of is not None:
                teachers[teacher]["rationales_of"] = rationales_of
            entries[split] = {**entries[split], "teachers": teachers}
        ordered = {split: entries[split] for split in SPLITS if split in entries}
        return tfrecords.write_info(partial, spec.name, ordered)


def _check_new(
    find: _Find, place: str, teacher: str, same: Mapping[str, bool], count: TeacherCounts
) -> None:
    """Refuses the published files of one teacher under the name of another."""
    for other in (name for name, is_same in same.items() if is_same and count.rationales):
        if isinstance(find, _Positions):
            raise SourceError(
                f"{place}: every output in llm/ is the one that the records hold as {other}'s; "
                f"put {teacher}'s outputs there, or name what extract wrote with --teacher_outputs"
            )


def _count_answered(
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
