"""A dataset of TFDS, prepared from rows in a few lines, with TFDS's own serialiser and metadata."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

# What e-SNLI looks like in TFDS, and a few kinds of columns more.
FEATURES = {
    "premise": tfds.features.Text(),
    "hypothesis": tfds.features.Text(),
    "label": tfds.features.ClassLabel(names=["entailment", "neutral", "contradiction"]),
    "explanation_1": tfds.features.Text(),
    "explanation_2": tfds.features.Text(),
    "sure": np.bool_,
    "meta": {"doc": np.int64, "reasons": tfds.features.Sequence(tfds.features.Text())},
}


def make_row(number: int, **changes: object) -> dict[str, object]:
    return {
        "premise": f"p {number}",
        "hypothesis": f"h {number}",
        "label": number % 3,
        "explanation_1": f"one {number}",
        "explanation_2": "",
        "sure": number % 2 == 0,
        "meta": {"doc": number, "reasons": ["r", "s"]},
        **changes,
    }


def write_tfds(
    data_dir: pathlib.Path, path: str, splits: Mapping[str, Sequence[dict[str, object]]]
) -> pathlib.Path:
    """Writes `data_dir/path`, such as 'mynli/plain/1.0.0'; returns it."""
    folder = data_dir / path
    folder.mkdir(parents=True)
    name = path.split("/")[0]
    features = tfds.features.FeaturesDict(FEATURES)
    infos = []
    for split, rows in splits.items():
        template = tfds.core.ShardedFileTemplate(
            dataset_name=name, data_dir=folder, filetype_suffix="tfrecord", split=split
        )
        with tf.io.TFRecordWriter(str(folder / f"{name}-{split}.tfrecord-00000-of-00001")) as file:
            for row in rows:
                file.write(features.serialize_example(features.encode_example(row)))
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[len(rows)], num_bytes=0, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(data_dir=folder, features=features, split_infos=infos)
    return folder
