"""From a prepared record to the tokens of one task.

Enters: records {id, index, input, label, <teacher>_label, <teacher>_rationale, is_train}.
Leaves: int32 inputs [S], targets [T] (ending in the end token) and task_ids [T].

Every method of the paper is one function from record to (inputs text, targets text).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import seqio
import tensorflow as tf

from distill_sbs import constants
from distill_sbs.data import settings, vocabulary
from distill_sbs.data.dataset import AnswerCheck
from distill_sbs.data.records import tfrecords

# Between rationale and label in a joint target (the published outputs' own words).
ANSWER_MARKER = "So the answer is"

# Kept beside the texts of a row, to compare them.
_GOLD_LABEL, _TEACHER_LABEL = "gold_label", "teacher_label"

Record = Mapping[str, tf.Tensor]
TextPair = tuple[tf.Tensor, tf.Tensor]


def _prefix(prefix: str) -> str:
    """What stands before an input: nothing where the encoder is shared (`SHARED_ENCODER`)."""
    return "" if settings.current().shared_encoder else prefix


def _training_label(record: Record, teacher: str | None) -> tf.Tensor:
    """The teacher's label in training, the gold label in evaluation, whatever the teacher."""
    gold = record[constants.LABEL]
    if teacher is None:
        return gold
    return tf.where(record["is_train"], record[f"{teacher}_label"], gold)


def label_task(teacher: str | None) -> Callable[[Record], TextPair]:
    """`predict: x` → y (Eq. 1); y is gold, or in training the teacher's where one is named.

    With `SHARED_ENCODER` no task has a prefix.
    """

    def convert(record: Record) -> TextPair:
        inputs = _prefix(constants.LABEL_PREFIX) + record[constants.INPUT]
        return inputs, _training_label(record, teacher)

    return convert


def rationale_task(teacher: str) -> Callable[[Record], TextPair]:
    """`explain: x` → r̂ (Eq. 4)."""

    def convert(record: Record) -> TextPair:
        inputs = _prefix(constants.RATIONALE_PREFIX) + record[constants.INPUT]
        return inputs, record[f"{teacher}_rationale"]

    return convert


def joint_task(teacher: str) -> Callable[[Record], TextPair]:
    """x → `r̂ So the answer is y` (Eq. 5, single-task training), y gold."""

    def convert(record: Record) -> TextPair:
        rationale = record[f"{teacher}_rationale"]
        joined = tf.strings.join([rationale, record[constants.LABEL]], f" {ANSWER_MARKER} ")
        complete = (tf.strings.length(rationale) > 0) | ~record["is_train"]
        targets = tf.where(complete & (tf.strings.length(record[constants.LABEL]) > 0), joined, "")
        return _prefix(constants.LABEL_PREFIX) + record[constants.INPUT], targets

    return convert


def pinto_task(teacher: str) -> Callable[[Record], TextPair]:
    """`x </s> r̂` → y (Eq. 2): needs the teacher at test time too."""

    def convert(record: Record) -> TextPair:
        rationale = record[f"{teacher}_rationale"]
        inputs = _prefix(constants.LABEL_PREFIX) + tf.strings.join(
            [record[constants.INPUT], rationale], vocabulary.SEPARATOR
        )
        complete = (tf.strings.length(rationale) > 0) | ~record["is_train"]
        return inputs, tf.where(complete, record[constants.LABEL], "")

    return convert


def to_text_pair(
    dataset: tf.data.Dataset, convert: Callable[[Record], TextPair], teacher: str | None = None
) -> tf.data.Dataset:
    """Applies `convert` and drops the rows that it leaves without a target.

    Such rows have no gold label, or an output of the teacher that could not be parsed. Both labels
    stay beside the texts where a `teacher` is named, for `keep_agreeing`.
    """

    def apply(record: Record) -> dict[str, tf.Tensor]:
        inputs, targets = convert(record)
        pair = {
            constants.INPUTS: inputs,
            constants.TARGETS: targets,
            constants.INDEX: record[constants.INDEX],
            # A number, not a truth value: SeqIO's cache cannot write those.
            "is_train": tf.cast(record["is_train"], tf.int32),
        }
        if teacher is not None:
            pair[_GOLD_LABEL] = record[constants.LABEL]
            pair[_TEACHER_LABEL] = record[f"{teacher}_label"]
        return pair

    dataset = dataset.map(apply, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.filter(lambda example: tf.strings.length(example[constants.TARGETS]) > 0)


def tokenize(
    dataset: tf.data.Dataset, output_features: Mapping[str, seqio.Feature]
) -> tf.data.Dataset:
    """Turns the two texts into ids, and keeps the texts as `*_pretokenized`."""

    def apply(example: Record) -> dict[str, tf.Tensor]:
        tokens = dict(example)
        for key in (constants.INPUTS, constants.TARGETS):
            tokens[f"{key}_pretokenized"] = example[key]
            tokens[key] = vocabulary.encode_text_tf(output_features[key].vocabulary, example[key])
        return tokens

    return dataset.map(apply, num_parallel_calls=tf.data.AUTOTUNE)


def count_kept(examples: int, data_fraction: float) -> int:
    """⌈f · N⌉, robust to f being a float: 0.1 of 30 is 3, not 4."""
    return math.ceil(round(data_fraction * examples, 9))


def rank_examples(examples: int, seed: int) -> np.ndarray:
    """Each example's rank in the seeded permutation, int32 [N]: those below ⌈f·N⌉ are kept.

    One permutation for all fractions, so the sets are nested, and for all tasks of a dataset, so
    labels and rationales keep the same examples.
    """
    ranks: np.ndarray = np.empty(examples, np.int32)
    ranks[np.random.default_rng(seed).permutation(examples)] = np.arange(examples, dtype=np.int32)
    return ranks


def rank_selected(ranks: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """The ranks of selected examples among themselves, int32 [N]; all others come behind them.

    So a fraction of a selection is ⌈f·n⌉ of it, and those of a smaller fraction are among them.
    """
    among: np.ndarray = np.full(len(ranks), len(ranks), np.int32)
    among[selected[np.argsort(ranks[selected])]] = np.arange(len(selected), dtype=np.int32)
    return among


def keep_fraction(dataset: tf.data.Dataset, dataset_name: str) -> tf.data.Dataset:
    """Keeps `DATA_FRACTION` of the training examples that `SELECTION` names, or of all.

    Validation and test stay whole.
    """
    chosen = settings.current()
    if chosen.data_fraction == 1.0 and chosen.selection is None:
        return dataset
    examples = tfrecords.read_info(chosen.folder, dataset_name)["splits"]["train"]["examples"]
    ranks = rank_examples(examples, chosen.fraction_seed)
    if chosen.selection is not None:
        indices = tfrecords.find_indices(chosen.folder, dataset_name, chosen.selection)
        ranks = rank_selected(ranks, indices)
        examples = len(indices)
    kept = count_kept(examples, chosen.data_fraction)
    table = tf.constant(ranks)

    def keep(example: Record) -> tf.Tensor:
        # Only a training index is looked up: other splits may be longer than the table.
        return tf.cond(
            tf.cast(example["is_train"], tf.bool),
            lambda: table[example[constants.INDEX]] < kept,
            lambda: True,
        )

    return dataset.filter(keep)


def take_several_rationales(dataset: tf.data.Dataset, teacher: str) -> tf.data.Dataset:
    """With `RATIONALES_PER_EXAMPLE` above 1, a training record becomes a row for each rationale.

    They stand side by side, the first one first, and share an index; the trainer draws one of them
    an epoch (`batches.input_pipeline`).
    """
    most = settings.current().rationales_per_example
    if most == 1:
        return dataset
    first, more = f"{teacher}_rationale", f"{teacher}_more_rationales"

    def spread(record: Record) -> tf.data.Dataset:
        rationales = tf.concat([record[first][tf.newaxis], record[more]], axis=0)
        count = tf.where(record["is_train"], most, 1)
        return tf.data.Dataset.from_tensor_slices(rationales[:count]).map(
            lambda rationale: {**record, first: rationale}
        )

    return dataset.flat_map(spread)


def keep_agreeing(dataset: tf.data.Dataset, is_correct: AnswerCheck) -> tf.data.Dataset:
    """With `RATIONALE_FILTER = 'agreeing'`, keeps training rows whose teacher agrees with gold.

    A wrong label's rationale argues for it. Where there is no gold label, nothing is known against
    the rationale, and it stays; validation and test stay whole.
    """
    if settings.current().rationale_filter == "all":
        return dataset

    def agree(gold: bytes, label: bytes) -> np.bool_:
        return np.bool_(not gold or is_correct(gold.decode(), label.decode()))

    def keep(example: Record) -> tf.Tensor:
        agrees = tf.numpy_function(
            agree, [example[_GOLD_LABEL], example[_TEACHER_LABEL]], tf.bool, stateful=False
        )
        return ~tf.cast(example["is_train"], tf.bool) | tf.ensure_shape(agrees, [])

    return dataset.filter(keep)


def tag_task_ids(dataset: tf.data.Dataset, task_id: int) -> tf.data.Dataset:
    """Puts one int32 task id beside every target token, end token included."""

    def apply(example: Record) -> dict[str, tf.Tensor]:
        ids = tf.fill(tf.shape(example[constants.TARGETS]), task_id)
        return {**example, constants.TASK_IDS: tf.cast(ids, tf.int32)}

    return dataset.map(apply, num_parallel_calls=tf.data.AUTOTUNE)


def answer_after_marker(text: str) -> str:
    """The label in a joint output: what follows the last marker; '' where there is none."""
    _, marker, answer = text.rpartition(ANSWER_MARKER)
    return answer.strip() if marker else ""
