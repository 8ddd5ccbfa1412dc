"""feature_converter: SeqIO packs the task ids with the targets."""

from __future__ import annotations

import pytest
import seqio
import tensorflow as tf

from distill_sbs.data.feature_converter import StepByStepFeatureConverter

EXAMPLES = [
    {"inputs": [7, 8, 5, 1], "targets": [3, 9, 1], "task_ids": [2, 2, 2]},
    {"inputs": [8, 4, 9, 3, 1], "targets": [4, 1], "task_ids": [1, 1]},
]


def convert(pack: bool, lengths: dict[str, int]) -> list[dict]:
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(EXAMPLES),
        output_signature={
            key: tf.TensorSpec([None], tf.int32) for key in ("inputs", "targets", "task_ids")
        },
    )
    converted = StepByStepFeatureConverter(pack=pack)(dataset, lengths)
    return [{key: value.numpy().tolist() for key, value in row.items()} for row in converted]


@pytest.mark.slow
def test_packed() -> None:
    (row,) = convert(True, {"inputs": 10, "targets": 7, "task_ids": 7})
    assert row["decoder_target_tokens"] == [3, 9, 1, 4, 1, 0, 0]
    assert row["decoder_task_ids"] == [2, 2, 2, 1, 1, 0, 0]
    assert row["decoder_segment_ids"] == [1, 1, 1, 2, 2, 0, 0]
    assert row["encoder_segment_ids"] == [1, 1, 1, 1, 2, 2, 2, 2, 2, 0]


@pytest.mark.slow
def test_padded() -> None:
    first, second = convert(False, {"inputs": 6, "targets": 4, "task_ids": 4})
    assert first["decoder_task_ids"] == [2, 2, 2, 0]
    assert second["decoder_task_ids"] == [1, 1, 0, 0]
    assert second["decoder_input_tokens"] == [0, 4, 1, 0]


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_settings")
def test_on_a_mixture() -> None:
    """The whole SeqIO path that T5X takes: mixture, converter, batch."""
    dataset = seqio.get_dataset(
        "tiny_dss_gpt",
        {"inputs": 64, "targets": 32, "task_ids": 32},
        StepByStepFeatureConverter(pack=False),
        "train",
        shuffle=True,
        seed=0,
    )
    ids = {int(row["decoder_task_ids"].numpy().max()) for row in dataset.take(40)}
    assert ids == {1, 2}
