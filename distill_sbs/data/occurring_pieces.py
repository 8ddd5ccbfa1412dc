"""Which pieces of a vocabulary occur in prepared data.

Enters: names of datasets, tasks or mixtures, and the vocabulary. Leaves: the ids in all that their
tasks say and ask, in every split, whole, however long: a student whose vocabulary is trimmed to
these reads and writes all of it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import seqio
import tensorflow as tf

from distill_sbs import constants
from distill_sbs.data import registration, settings, tokenizer
from distill_sbs.data.sentencepiece_model import VocabularyDescription
from distill_sbs.data.tasks import preprocessors
from distill_sbs.data.tasks.names import DATASETS, TASK_METHODS, TaskInfo, find_joined_teachers
from distill_sbs.errors import UserError

# Of an example: all that there are.
_ALL_RATIONALES = 2**31 - 1
_BATCH = 512


def use_whole_data(data_dir: str | None) -> None:
    """Makes all of the data what tasks read: every example, and every rationale of it."""
    settings.use(settings.DataSettings(data_dir, rationales_per_example=_ALL_RATIONALES))


def find_tasks(names: Sequence[str]) -> list[seqio.Task]:
    """The tasks behind names; of a dataset all that its records have something for.

    Raises:
      tfrecords.UnpreparedDataError: records are missing.
      UserError: a name is that of nothing, or of texts, of which a student reads others each time.
    """
    tasks: dict[str, seqio.Task] = {}
    for name in names:
        for task in _tasks_of(name):
            if preprocessors.tokenize not in task.preprocessors:
                raise UserError(
                    f"--trim_vocabulary={name}: {task.name} has no texts that stay as they are; "
                    "name a dataset, or tasks of labels and rationales"
                )
            tasks[task.name] = task
    return list(tasks.values())


def _tasks_of(name: str) -> list[seqio.Task]:
    if name not in DATASETS:
        found = registration.get_mixture_or_task(name)
        registration.prepare_missing(found)
        return registration.tasks_of(found)
    label = registration.get_mixture_or_task(TaskInfo(name, "label").name)
    registration.prepare_missing(label)
    of_teachers = [
        registration.get_mixture_or_task(TaskInfo(name, method, teacher).name)
        for teacher in sorted(find_joined_teachers(name))
        for method in TASK_METHODS
    ]
    return [label, *of_teachers]


def count_rows(tasks: Sequence[seqio.Task]) -> int | None:
    """The examples that `find_pieces` reads, as far as that is known; for a progress bar."""
    counts = [task.num_input_examples(split) for task in tasks for split in task.splits]
    return None if None in counts else sum(count for count in counts if count is not None)


def find_pieces(
    tasks: Sequence[seqio.Task],
    described: VocabularyDescription,
    advance: Callable[[int], None] = lambda _: None,
) -> set[int]:
    """The ids in the inputs and targets of tasks, and in the prefixes of both kinds of input.

    Args:
      tasks: from `find_tasks`, after `use_whole_data`.
      described: the vocabulary.
      advance: told how many more sequences were read.
    """
    encoder = tokenizer.from_description(described)
    found = {constants.PAD_ID, constants.EOS_ID}
    found.update(encoder.encode(constants.LABEL_PREFIX), encoder.encode(constants.RATIONALE_PREFIX))
    seen: set[int] = set()
    for task in tasks:
        for split in task.splits:
            for batch in _read_texts(task, split).batch(_BATCH):
                for name in (constants.INPUTS, constants.TARGETS):
                    # Tasks of one dataset ask the same; a hash is smaller than a text.
                    for text in batch[name].numpy():
                        if (key := hash(text)) not in seen:
                            seen.add(key)
                            found.update(tokenizer.encode_text(encoder, text.decode()))
                advance(int(batch[constants.INPUTS].shape[0]))
    return found


def _read_texts(task: seqio.Task, split: str) -> tf.data.Dataset:
    """What a task tokenises, before it does: TensorFlow's tokenizer is the slower one."""
    dataset = task.source.get_dataset(split, shuffle=False)
    before = task.preprocessors[: task.preprocessors.index(preprocessors.tokenize)]
    return functools.reduce(lambda texts, step: step(texts), before, dataset)
