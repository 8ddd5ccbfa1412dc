"""The tasks of contrasts: registered when they are first asked for, as joined teachers are.

Enters: a name such as `wordproblems_contrast_mine`. Leaves: that task, and the mixture
`wordproblems_contrast_label_mine` of it and the label task, in SeqIO's registries.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf

from distill_sbs import constants
from distill_sbs.data import settings
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.records import soft_labels
from distill_sbs.data.tasks import names, preprocessors
from distill_sbs.data.tasks.names import DATASETS, INFO, TaskInfo
from distill_sbs.data.tasks.source import RecordsDataSource
from distill_sbs.errors import UserError

TASK, MIXTURE = "contrast", "contrast_label"


class ContrastDataSource(seqio.DataSource):
    """The records of a contrast; the folder is looked up when data is asked for."""

    def __init__(self, spec: DatasetSpec, name: str) -> None:
        super().__init__(splits=("train",))
        self._spec = spec
        self._name = name

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Every process reads all of them: they are few."""
        return False

    def __repr__(self) -> str:
        return f"ContrastDataSource({self._spec.name}, {self._name})"

    def manifest(self) -> soft_labels.Manifest:
        """What the records say of themselves.

        Raises:
          UserError: there are none.
        """
        folder = soft_labels.find_folder(settings.current().folder, self._spec.name, self._name)
        found = soft_labels.read_manifest(folder)
        if found is None:
            raise UserError(_tell_missing(self._spec.name, self._name))
        return found

    def list_shards(self, split: str) -> Sequence[str]:
        """The record files."""
        folder = soft_labels.find_folder(settings.current().folder, self._spec.name, self._name)
        return soft_labels.list_shards(folder)

    def num_input_examples(self, split: str) -> int:
        """The rollouts."""
        return self.manifest().examples

    def get_dataset(
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: Mapping[str, int] | None = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """The records; see `seqio.DataSource.get_dataset`."""
        dataset = tf.data.TFRecordDataset(self.list_shards(split))
        return dataset.map(soft_labels.parse_record, num_parallel_calls=tf.data.AUTOTUNE)


def find_manifest(task: seqio.Task) -> soft_labels.Manifest | None:
    """What a contrast's records say of themselves; None of a task of another kind.

    Raises:
      UserError: the records are gone, or not as they were written.
    """
    return task.source.manifest() if isinstance(task.source, ContrastDataSource) else None


def read_name(name: str) -> list[TaskInfo]:
    """What a name may stand for, a mixture first: no contrast's name begins with `label_`."""
    readings = []
    for dataset in sorted(DATASETS, key=len, reverse=True):
        for method in (MIXTURE, TASK):
            prefix = f"{dataset}_{method}_"
            if name.startswith(prefix) and len(name) > len(prefix):
                readings.append(TaskInfo(dataset, method, name.removeprefix(prefix)))
    return readings


def register_if_there(name: str, output_features: Mapping[str, seqio.Feature]) -> None:
    """Registers the contrast that a name stands for; nothing where it is no contrast's.

    Raises:
      UserError: it is one's, and `DATA_DIR` does not hold it.
    """
    readings = read_name(name)
    folder = settings.current().folder
    for info in readings:
        assert info.teacher is not None
        if (
            soft_labels.read_manifest(soft_labels.find_folder(folder, info.dataset, info.teacher))
            is not None
        ):
            _register(info.dataset, info.teacher, output_features)
            return
    if readings:
        first = readings[0]
        raise UserError(
            f"MIXTURE_OR_TASK_NAME={name!r}: {_tell_missing(first.dataset, first.teacher or '')}"
        )


def _register(dataset: str, name: str, output_features: Mapping[str, seqio.Feature]) -> None:
    task, mixture = TaskInfo(dataset, TASK, name), TaskInfo(dataset, MIXTURE, name)
    names.check_free([info for info in (task, mixture) if INFO.get(info.name) != info])
    if task.name not in INFO:
        seqio.TaskRegistry.add(
            task.name,
            source=ContrastDataSource(DATASETS[dataset], name),
            preprocessors=[
                # End tokens are there; a rollout that never ended has none.
                functools.partial(preprocessors.tag_task_ids, task_id=constants.CONTRAST_TASK_ID)
            ],
            output_features=output_features,
            metric_fns=[],
        )
        INFO[task.name] = task
    if mixture.name not in INFO:
        label = TaskInfo(dataset, "label").name
        seqio.MixtureRegistry.add(mixture.name, [(label, 1.0), (task.name, _contrast_rate)])
        INFO[mixture.name] = mixture


def _contrast_rate(_: seqio.Task) -> float:
    """How often a rollout is drawn for a label row, read when the mixture is sampled."""
    return settings.current().contrast_rate


def _tell_missing(dataset: str, name: str) -> str:
    folder = soft_labels.find_folder(settings.current().folder, dataset, name)
    return (
        f"{folder} holds no contrast; python -m distill_sbs.contrast --dataset={dataset} "
        f"--name={name} --expert=… --amateur=… makes it"
    )


# ---------------------------------- making one --------------------------------


def check_name(name: str) -> None:
    """Refuses what cannot be a contrast's name.

    Raises:
      UserError: it cannot stand in names of tasks, or would be read as a mixture's.
    """
    names.check_name("contrast", name)
    if name.startswith("label_"):
        raise UserError(
            f"--name={name!r}: DATASET_contrast_label_… are mixtures; choose a name that does not "
            "begin with label_"
        )


def find_teacher(mixture: str | None, dataset: str) -> str | None:
    """The teacher whose rationales of this dataset a mixture holds; None where it names none."""
    if mixture is None:
        return None
    known = [INFO[mixture]] if mixture in INFO else names.read_name(mixture)
    return next((info.teacher for info in known if dataset in names.list_parts(info.dataset)), None)


def read_inputs(spec: DatasetSpec, split: str, count: int) -> list[str]:
    """The first texts of a split, without prefix and without label."""
    dataset = RecordsDataSource(spec, ()).get_dataset(split, shuffle=False).take(count)
    return [record[constants.INPUT].decode() for record in dataset.as_numpy_iterator()]


def read_rationales(
    spec: DatasetSpec, teacher: str, split: str, count: int, longest: int
) -> list[tuple[str, np.ndarray]]:
    """Of the first texts of a split those with a rationale of the teacher, and its tokens.

    Args:
      spec: the dataset.
      teacher: whose.
      split: of which split.
      count: texts that are looked at.
      longest: tokens that a rationale is cut to, end token included.
    """
    vocabulary = settings.current().vocabulary
    assert vocabulary is not None
    dataset = RecordsDataSource(spec, (teacher,)).get_dataset(split, shuffle=False).take(count)
    found = []
    for record in dataset.as_numpy_iterator():
        if rationale := record[f"{teacher}_rationale"].decode():
            tokens = [*vocabulary.encode(rationale)[: longest - 1], constants.EOS_ID]
            found.append((record[constants.INPUT].decode(), np.array(tokens, np.int32)))
    return found
