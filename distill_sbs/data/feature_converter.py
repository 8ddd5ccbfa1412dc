"""From the tokens of a task to the features of the model, a task id beside every target token.

Enters: a SeqIO dataset of {inputs [S], targets [T], task_ids [T]}. Leaves: T5X's encoder-decoder
features and `decoder_task_ids` [T], padded, or packed by SeqIO. T5X takes this converter as it is;
our own pipeline lays whole batches out itself (`layout.py`), with the same features.
"""

from __future__ import annotations

from collections.abc import Mapping

import seqio
import tensorflow as tf

from distill_sbs import constants

_INT32 = seqio.FeatureConverter.FeatureSpec(dtype=tf.int32)


class StepByStepFeatureConverter(seqio.EncDecFeatureConverter):
    """`seqio.EncDecFeatureConverter` that carries int32 task ids through packing.

    Ids, not weights: SeqIO packing casts features to int32 and drops zeros, so a weight of 0.5
    would vanish. The loss looks its weight up by id.
    """

    TASK_FEATURES = {**seqio.EncDecFeatureConverter.TASK_FEATURES, constants.TASK_IDS: _INT32}
    MODEL_FEATURES = {
        **seqio.EncDecFeatureConverter.MODEL_FEATURES,
        constants.DECODER_TASK_IDS: _INT32,
    }

    def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        converted = dict(super()._convert_example(features))
        converted[constants.DECODER_TASK_IDS] = features[constants.TASK_IDS]
        return converted

    def get_model_feature_lengths(
        self, task_feature_lengths: Mapping[str, int]
    ) -> Mapping[str, int]:
        """Lengths of the model features [S] and [T]; see `seqio.FeatureConverter`."""
        lengths = dict(super().get_model_feature_lengths(task_feature_lengths))
        lengths[constants.DECODER_TASK_IDS] = task_feature_lengths[constants.TASK_IDS]
        return lengths
