"""Span corruption: T5's pretraining task, made of tokens alone.

Enters: a dataset of {targets: int32 [N]}, plain texts as tokens without end. Leaves: {inputs [S],
targets [T]}: of every piece of text some spans are missing; a sentinel stands for each in the
inputs, and the targets say what stood there. 15 % of the tokens are taken out, in spans of 3 on
average:

    Thank you for inviting me to your party last week
    inputs:  Thank you <X> me to your party <Y> week
    targets: <X> for inviting <Y> last <Z>

The steps are those of the published preprocessor (Raffel et al. 2019, `span_corruption` in
google-research/text-to-text-transfer-transformer), and so are the random numbers: the same seed
gives the same tokens, which a test shows. Sentinels are the last ids of the vocabulary, downwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import seqio
import tensorflow as tf

from distill_sbs import constants
from distill_sbs.errors import UserError

NOISE_DENSITY = 0.15
MEAN_SPAN_TOKENS = 3.0
SENTINELS = 100  # T5's <extra_id_0> to <extra_id_99>

# Of a longer text one stretch of this length is taken, another one each epoch.
_LONGEST_TEXT = 65_536
# Texts that are joined before they are cut to pieces, so that few pieces are short.
_JOINED_TEXTS = 128


@dataclasses.dataclass(frozen=True)
class PieceLengths:
    """How long a piece of text is, and what becomes of it, in tokens.

    Attributes:
      text: of the piece, before corruption.
      inputs: after it, end token included.
      targets: what they ask for, end token included.
      spans: how many are taken out.
    """

    text: int
    inputs: int
    targets: int
    spans: int

    @classmethod
    def of_text(cls, tokens: int) -> PieceLengths:
        """What a piece of so many tokens becomes."""
        noise = round(tokens * NOISE_DENSITY)
        spans = round(noise / MEAN_SPAN_TOKENS)
        return cls(tokens, tokens - noise + spans + 1, noise + spans + 1, spans)


def choose_piece_lengths(task_feature_lengths: Mapping[str, int]) -> PieceLengths:
    """The longest piece whose inputs fit.

    Args:
      task_feature_lengths: TASK_FEATURE_LENGTHS.

    Raises:
      UserError: its targets do not fit, or it has more spans than there are sentinels.
    """
    longest = task_feature_lengths[constants.INPUTS]
    # Never shorter than its inputs: what is taken out leaves at least a sentinel.
    tokens = longest - 1
    while PieceLengths.of_text(tokens + 1).inputs <= longest:
        tokens += 1
    lengths = PieceLengths.of_text(tokens)
    if tokens < 2:
        raise UserError(
            f"TASK_FEATURE_LENGTHS['inputs']={longest}: span corruption needs 3 tokens at least, "
            "and 512 are usual"
        )
    if lengths.targets > task_feature_lengths[constants.TARGETS]:
        raise UserError(
            f"TASK_FEATURE_LENGTHS['targets']={task_feature_lengths[constants.TARGETS]}: span "
            f"corruption of {longest} input tokens asks for {lengths.targets}; use that, or more"
        )
    if lengths.spans > SENTINELS:
        raise UserError(
            f"TASK_FEATURE_LENGTHS['inputs']={longest}: {lengths.spans} spans would be taken out "
            f"of a piece, and there are {SENTINELS} sentinels; use "
            f"{longest * SENTINELS // lengths.spans}, or fewer"
        )
    return lengths


def corrupt_spans(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, seqio.Feature],
) -> tf.data.Dataset:
    """A SeqIO preprocessor: texts as tokens → corrupted pieces; no end token is added yet.

    Raises:
      UserError: see `choose_piece_lengths`.
    """
    lengths = choose_piece_lengths(sequence_length)
    first_sentinel = output_features[constants.TARGETS].vocabulary.vocab_size - 1
    dataset = dataset.map(lambda example: {constants.TARGETS: example[constants.TARGETS]})
    dataset = _choose_stretch(_without_empty(dataset))
    joined = dataset.ragged_batch(_JOINED_TEXTS).map(
        lambda batch: {constants.TARGETS: batch[constants.TARGETS].flat_values}
    )
    pieces = _skip_seed(_without_empty(joined)).flat_map(
        lambda example: tf.data.Dataset.from_tensor_slices(example).batch(lengths.text)
    )

    @seqio.map_over_dataset(num_seeds=1)
    def corrupt(example: Mapping[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
        tokens = example[constants.TARGETS]
        # Six, of which T5 uses the first two here: the others belong to corruptions of other kinds.
        seeds = tf.random.experimental.stateless_split(seed, 6)
        is_noise = draw_noise(tf.size(tokens), seeds[0], seeds[1])
        return {
            constants.INPUTS: replace_spans(tokens, is_noise, first_sentinel),
            constants.TARGETS: replace_spans(tokens, ~is_noise, first_sentinel),
        }

    return corrupt(pieces)


def draw_noise(length: tf.Tensor, noise_seed: tf.Tensor, kept_seed: tf.Tensor) -> tf.Tensor:
    """Which tokens of a piece are taken out: bool [length].

    Kept and taken spans alternate, a kept one first; how many tokens and spans there are follows
    from the length, all ways to cut them are equally likely.

    Args:
      length: the piece's tokens, an int32 scalar.
      noise_seed: of the lengths of taken spans, int [2].
      kept_seed: of the lengths of kept spans, int [2].
    """
    tokens = tf.maximum(length, 2)
    noise = tf.cast(tf.round(tf.cast(tokens, tf.float32) * NOISE_DENSITY), tf.int32)
    noise = tf.clip_by_value(noise, 1, tokens - 1)
    spans = tf.cast(tf.round(tf.cast(noise, tf.float32) / MEAN_SPAN_TOKENS), tf.int32)
    spans = tf.maximum(spans, 1)
    kept_lengths = _cut_at_random(tokens - noise, spans, kept_seed)
    noise_lengths = _cut_at_random(noise, spans, noise_seed)
    alternating = tf.reshape(tf.stack([kept_lengths, noise_lengths], axis=1), [-1])
    is_noise = tf.repeat(tf.range(2 * spans) % 2 == 1, alternating)
    return is_noise[:length]


def _cut_at_random(tokens: tf.Tensor, parts: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Lengths of `parts` parts, each at least 1, that add up to `tokens`: int32 [parts]."""
    # Of the places between two tokens, `parts` - 1 are cut.
    is_cut = seqio.stateless_shuffle(tf.range(tokens - 1) < parts - 1, seed)
    cuts = tf.cast(tf.where(is_cut)[:, 0], tf.int32) + 1
    bounds = tf.concat([[0], cuts, [tokens]], axis=0)
    return bounds[1:] - bounds[:-1]


def replace_spans(tokens: tf.Tensor, is_replaced: tf.Tensor, first_sentinel: int) -> tf.Tensor:
    """Puts one sentinel in the place of every span.

    Args:
      tokens: int32 [N].
      is_replaced: bool [N]; a span is a run of true ones.
      first_sentinel: the id of the first; the next ones go downwards.
    """
    follows_one = tf.concat([[False], is_replaced[:-1]], axis=0)
    begins = is_replaced & ~follows_one
    number = tf.cumsum(tf.cast(begins, tokens.dtype), exclusive=True)
    marked = tf.where(begins, first_sentinel - number, tokens)
    return tf.boolean_mask(marked, begins | ~is_replaced)


@seqio.map_over_dataset(num_seeds=1)
def _choose_stretch(example: Mapping[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
    """One stretch of a text that is too long to be taken whole."""
    tokens = example[constants.TARGETS]
    stretches = -(-tf.size(tokens) // _LONGEST_TEXT)
    # T5 splits the seed, for a length that may be random too, and draws the place with the second.
    place_seed = tf.random.experimental.stateless_split(seed, 2)[1]
    place = tf.random.stateless_uniform([], place_seed, maxval=stretches, dtype=tf.int32)
    start = place * _LONGEST_TEXT
    return {constants.TARGETS: tokens[start : start + _LONGEST_TEXT]}


@seqio.map_over_dataset(num_seeds=1)
def _skip_seed(example: Mapping[str, tf.Tensor], seed: tf.Tensor) -> Mapping[str, tf.Tensor]:
    """Takes the seed that T5's splitting takes and has no use for: those that follow stay equal."""
    del seed
    return example


def _without_empty(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.filter(lambda example: tf.size(example[constants.TARGETS]) > 0)
