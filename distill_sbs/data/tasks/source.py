"""Prepared records as a source of SeqIO tasks.

Enters: a `DatasetSpec` and the teachers whose fields a task reads. Leaves: a `seqio.DataSource`,
which looks at the disk when its data is asked for, never before.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from distill_sbs.data import settings
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.records import tfrecords


class RecordsDataSource(seqio.DataSource):
    """Prepared records as a SeqIO source; the folder is looked up when data is asked for."""

    def __init__(self, spec: DatasetSpec, teachers: Sequence[str]) -> None:
        super().__init__(splits=spec.splits)
        self._spec = spec
        self._teachers = tuple(teachers)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Any number of hosts may share a split: by files where there are enough, or by records."""
        return True

    def __repr__(self) -> str:
        return f"RecordsDataSource({self._spec.name})"

    def list_shards(self, split: str) -> Sequence[str]:
        """The record files of a split."""
        return tfrecords.split_files(settings.current().folder, self._spec.name, split)

    def num_input_examples(self, split: str) -> int:
        """The rows of a split, before any method drops some."""
        info = tfrecords.read_info(settings.current().folder, self._spec.name)
        return info["splits"][split]["examples"]

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
        """The records of `split`, each with `is_train`; see `seqio.DataSource.get_dataset`.

        Raises:
          tfrecords.UnpreparedDataError: the split has not been prepared.
        """
        files = self.list_shards(split)
        by_files = shard_info is not None and shard_info.num_shards <= len(files)
        if shard_info and by_files:
            files = files[shard_info.index :: shard_info.num_shards]
        dataset = tf.data.Dataset.from_tensor_slices(files)
        if shuffle:
            dataset = dataset.shuffle(len(files), seed=seed)
        dataset = dataset.interleave(tf.data.TFRecordDataset, cycle_length=8 if shuffle else 1)
        if shard_info and not by_files:
            # Unparsed, and in file order (shuffled files would be others in every process).
            dataset = dataset.shard(shard_info.num_shards, shard_info.index)
        parse = functools.partial(tfrecords.parse_record, teachers=self._teachers)

        def read(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
            return {**parse(serialized), "is_train": tf.constant(split == "train")}

        return dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE)
