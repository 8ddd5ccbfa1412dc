"""Losses: per-token cross-entropy that spares memory, and the distilling-step-by-step sum of it.

In: decoder states [B, T, D] or a batch of the feature converter; task ids int32 [B, T] (label 1,
rationale 2, padding 0); λ.
Out: float32 cross-entropy [B, T]; a scalar loss; per-task sums and counts.

The objective is Eq. 3 of arXiv 2305.02301, L = L_label + λ · L_rationale, each a mean over the
tokens of its task in the *global* batch. Means of microbatches would not add up to it, so counts
of the whole batch are taken first and given to every part.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn

from distill_sbs import constants
from distill_sbs.model import network
from distill_sbs.model.config import T5Config
from distill_sbs.model.parameters import Params, PyTree


class TokenLosses(NamedTuple):
    """What one pass over the logits yields for every target position.

    Attributes:
      cross_entropy: float32 [B, T], in nats; of padding positions too (mask by task id).
      correct: bool [B, T], whether no token had a higher logit than the target.
    """

    cross_entropy: jax.Array
    correct: jax.Array


def _smoothing_terms(label_smoothing: float, vocab_size: int) -> tuple[float, float, float]:
    """Probability of the target and of every other token, and the entropy of the two."""
    confidence = 1.0 - label_smoothing
    low = label_smoothing / max(vocab_size - 1, 1)
    entropy = -(confidence * math.log(confidence) + (vocab_size - 1) * low * math.log(low + 1e-20))
    return confidence, low, entropy


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _chunk_losses(
    config: T5Config,
    label_smoothing: float,
    z_loss: float,
    recompute_logits: bool,
    hidden: jax.Array,
    weights: jax.Array,
    targets: jax.Array,
) -> TokenLosses:
    """Token losses of a chunk whose logits fit in memory.

    Its derivative is written out below so that one array of logits, or none, is kept for it, and
    so that the sum over positions in the weights' gradient is float32 whatever the compute dtype.
    """
    return _chunk_forward(
        config, label_smoothing, z_loss, recompute_logits, hidden, weights, targets
    )[0]


def chunk_logits(config: T5Config, hidden: jax.Array, weights: jax.Array) -> jax.Array:
    """Logits float32 [B, T, V] of a chunk of positions, rows and vocabulary over their axes."""
    logits = network.vocabulary_logits(hidden, weights, config)
    return nn.with_logical_constraint(logits, ("batch", "length", "vocab"))


def _is_target(targets: jax.Array, vocab_size: int) -> jax.Array:
    # A comparison, not a lookup: it stays local where the vocabulary is sharded.
    return targets[..., None] == jnp.arange(vocab_size, dtype=targets.dtype)


# What the backward pass keeps of the forward one: hidden states, weights, targets, normalisers, and
# the logits, unless they are computed anew.
_Residuals: TypeAlias = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]


def _chunk_forward(
    config: T5Config,
    label_smoothing: float,
    z_loss: float,
    recompute_logits: bool,
    hidden: jax.Array,
    weights: jax.Array,
    targets: jax.Array,
) -> tuple[TokenLosses, _Residuals]:
    logits = chunk_logits(config, hidden, weights)  # [B, T, V]
    highest = jnp.max(logits, axis=-1)
    log_normaliser = highest + jnp.log(jnp.sum(jnp.exp(logits - highest[..., None]), axis=-1))
    target_logit = jnp.sum(jnp.where(_is_target(targets, config.vocab_size), logits, 0.0), axis=-1)
    if label_smoothing:
        confidence, low, entropy = _smoothing_terms(label_smoothing, config.vocab_size)
        # -Σ p log q with p = low everywhere, confidence at the target; less p's own entropy,
        # so that the best possible loss is 0 (T5X).
        loss = log_normaliser - (confidence - low) * target_logit - low * jnp.sum(logits, axis=-1)
        loss = loss - entropy
    else:
        loss = log_normaliser - target_logit
    if z_loss:
        loss = loss + z_loss * jax.lax.square(log_normaliser)
    kept = None if recompute_logits else logits
    losses = TokenLosses(loss, target_logit >= highest)
    return losses, (hidden, weights, targets, log_normaliser, kept)


def logits_backward(
    config: T5Config, hidden: jax.Array, weights: jax.Array, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients of decoder states and weights, of their logits' `gradient` [B, T, V]."""
    names = ("v", "d") if config.logits_via_embedding else ("d", "v")
    if config.logits_via_embedding:
        gradient = gradient * jnp.float32(config.logits_scale)
    gradient = gradient.astype(config.dtype)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    of_hidden = product(f"btv,{''.join(names)}->btd", gradient, weights.astype(config.dtype))
    of_weights = product(f"btd,btv->{''.join(names)}", hidden.astype(config.dtype), gradient)
    return of_hidden.astype(hidden.dtype), of_weights.astype(weights.dtype)


def _chunk_backward(
    config: T5Config,
    label_smoothing: float,
    z_loss: float,
    recompute_logits: bool,
    residuals: _Residuals,
    cotangents: TokenLosses,
) -> tuple[jax.Array, jax.Array, None]:
    del recompute_logits
    hidden, weights, targets, log_normaliser, logits = residuals
    if logits is None:
        logits = chunk_logits(config, hidden, weights)
    confidence, low, _ = _smoothing_terms(label_smoothing, config.vocab_size)
    of_normaliser = 1.0 + 2.0 * z_loss * log_normaliser
    probabilities = jnp.exp(logits - log_normaliser[..., None])
    wanted = jnp.where(_is_target(targets, config.vocab_size), confidence, low)
    gradient = of_normaliser[..., None] * probabilities - wanted
    gradient = gradient * cotangents.cross_entropy[..., None]  # of the logits, [B, T, V]
    return *logits_backward(config, hidden, weights, gradient), None


_chunk_losses.defvjp(_chunk_forward, _chunk_backward)


def choose_chunk_length(batch: int, length: int, logits_chunk_tokens: int | None) -> int:
    """How many target positions of every row a chunk has; all where they are few enough.

    Raises:
      ValueError: logits_chunk_tokens below 1.
    """
    if logits_chunk_tokens is None:
        return length
    if logits_chunk_tokens < 1:
        raise ValueError(
            f"logits_chunk_tokens={logits_chunk_tokens}: expected at least 1, "
            "or None for all at once"
        )
    chunks = math.ceil(length / max(1, logits_chunk_tokens // batch))
    return math.ceil(length / chunks)


def split_length(array: jax.Array, chunk_length: int) -> jax.Array:
    """[B, T, ...] -> [chunks, B, chunk_length, ...], the last one filled up with zeros."""
    batch, length = array.shape[:2]
    chunks = math.ceil(length / chunk_length)
    excess = chunks * chunk_length - length
    array = jnp.pad(array, [(0, 0), (0, excess)] + [(0, 0)] * (array.ndim - 2))
    array = array.reshape(batch, chunks, chunk_length, *array.shape[2:])
    return jnp.moveaxis(array, 1, 0)


def token_losses(
    hidden: jax.Array,
    weights: jax.Array,
    targets: jax.Array,
    config: T5Config,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logits_chunk_tokens: int | None = None,
) -> TokenLosses:
    """Cross-entropy of every target, with at most a chunk of the logits alive at once.

    The logits of a large batch are its largest array by far (128 x 256 targets of T5's vocabulary
    are 4.2 GB in float32). With `logits_chunk_tokens` the T axis is cut into equal chunks that
    are looped over, and recomputed in the backward pass; B stays whole, so that its sharding
    over devices does too.

    Args:
      hidden: decoder states [B, T, D].
      weights: `network.output_weights(params, config)`, float32.
      targets: int32 [B, T].
      config: the model's.
      label_smoothing: probability spread over the other tokens; the loss is shifted so that
        the best possible is 0 (T5X's `compute_weighted_cross_entropy`).
      z_loss: weight of log(Z)², which keeps the logits' normaliser Z near 1 (T5X).
      logits_chunk_tokens: most target positions (B times a chunk's length, all devices together)
        whose logits may be alive at once; None: all of them, and nothing is recomputed.

    Returns:
      TokenLosses, [B, T].

    Raises:
      ValueError: logits_chunk_tokens below 1, or label_smoothing outside [0, 1).
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing={label_smoothing}: expected 0 <= label_smoothing < 1")
    batch, length = targets.shape
    chunk_length = choose_chunk_length(batch, length, logits_chunk_tokens)
    if chunk_length == length:
        return _chunk_losses(config, label_smoothing, z_loss, False, hidden, weights, targets)

    def body(
        weights: jax.Array, chunk: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, TokenLosses]:
        losses = _chunk_losses(config, label_smoothing, z_loss, True, chunk[0], weights, chunk[1])
        return weights, losses

    chunks = split_length(hidden, chunk_length), split_length(targets, chunk_length)
    _, losses = jax.lax.scan(body, weights, chunks)
    return jax.tree.map(
        lambda array: jnp.moveaxis(array, 0, 1).reshape(batch, -1)[:, :length], losses
    )


def token_cross_entropy(
    hidden: jax.Array,
    weights: jax.Array,
    targets: jax.Array,
    config: T5Config,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logits_chunk_tokens: int | None = None,
) -> jax.Array:
    """The cross-entropy of `token_losses` alone: float32 [B, T]."""
    return token_losses(
        hidden,
        weights,
        targets,
        config,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logits_chunk_tokens=logits_chunk_tokens,
    ).cross_entropy


def decoder_states(
    model: network.Transformer,
    params: Params,
    batch: Mapping[str, jax.Array],
    dropout_rng: jax.Array | None = None,
) -> jax.Array:
    """Runs the student on a batch up to its logits: decoder states [B, T, D].

    Args:
      model: `network.Transformer(config)`.
      params: its parameters.
      batch: model features by the names of `constants`: encoder_input_tokens [B, S],
        decoder_input_tokens and decoder_target_tokens [B, T], and where rows are packed
        encoder_segment_ids and decoder_segment_ids; where targets share an encoder segment,
        decoder_source_segment_ids too. Others are ignored.
      dropout_rng: a key; None: no dropout.
    """
    hidden: PyTree = model.apply(
        {"params": params},
        batch[constants.ENCODER_INPUT_TOKENS],
        batch[constants.DECODER_INPUT_TOKENS],
        batch[constants.DECODER_TARGET_TOKENS],
        batch.get(constants.ENCODER_SEGMENT_IDS),
        batch.get(constants.DECODER_SEGMENT_IDS),
        enable_dropout=dropout_rng is not None,
        decoder_source_segment_ids=batch.get(constants.DECODER_SOURCE_SEGMENT_IDS),
        rngs=None if dropout_rng is None else {"dropout": dropout_rng},
        method="hidden",
    )
    return hidden


def batch_cross_entropy(
    model: network.Transformer,
    params: Params,
    batch: Mapping[str, jax.Array],
    dropout_rng: jax.Array | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    logits_chunk_tokens: int | None = None,
) -> jax.Array:
    """Runs the student on a batch and returns the cross-entropy of its targets, float32 [B, T].

    Args:
      model: see `decoder_states`.
      params: its parameters.
      batch: model features, decoder_target_tokens [B, T] among them.
      dropout_rng: a key; None: no dropout.
      label_smoothing: see `token_losses`.
      z_loss: see `token_losses`.
      logits_chunk_tokens: see `token_losses`.
    """
    return token_losses(
        decoder_states(model, params, batch, dropout_rng),
        network.output_weights(params, model.config),
        batch[constants.DECODER_TARGET_TOKENS],
        model.config,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        logits_chunk_tokens=logits_chunk_tokens,
    ).cross_entropy


class TaskTokenCounts(NamedTuple):
    """Target tokens of each task, int32 scalars."""

    label: jax.Array
    rationale: jax.Array


def task_token_counts(decoder_task_ids: jax.Array) -> TaskTokenCounts:
    """Counts the tokens of each task in int32 task ids of any shape (the whole global batch)."""
    return TaskTokenCounts(
        label=jnp.sum(decoder_task_ids == constants.LABEL_TASK_ID, dtype=jnp.int32),
        rationale=jnp.sum(decoder_task_ids == constants.RATIONALE_TASK_ID, dtype=jnp.int32),
    )


def _task_sum(values: jax.Array, decoder_task_ids: jax.Array, task_id: int) -> jax.Array:
    # `where`, not a product: padding positions hold numbers of no meaning, perhaps not finite.
    return jnp.sum(jnp.where(decoder_task_ids == task_id, values, 0.0), dtype=jnp.float32)


def step_by_step_loss(
    cross_entropy: jax.Array,
    decoder_task_ids: jax.Array,
    rationale_rate: float | jax.Array,
    counts: TaskTokenCounts,
) -> jax.Array:
    """L = mean over label tokens + λ · mean over rationale tokens (arXiv 2305.02301, Eq. 3).

    Args:
      cross_entropy: float32 [B, T], of the whole batch or of one microbatch.
      decoder_task_ids: int32 [B, T], label 1, rationale 2, padding 0.
      rationale_rate: λ >= 0. At 0 this is the mean over label tokens, bit for bit.
      counts: `task_token_counts` of the *global* batch. Losses of microbatches, computed with
        the same counts, then sum to the loss of the whole, and so do their gradients.

    Returns:
      A float32 scalar. A task without tokens contributes 0. At λ = 1, on the same examples, it
      is twice the reference implementation's ½ · label mean + ½ · rationale mean.
    """
    label = _task_sum(cross_entropy, decoder_task_ids, constants.LABEL_TASK_ID)
    label = label / jnp.maximum(counts.label, 1).astype(jnp.float32)
    rate = jnp.asarray(rationale_rate, jnp.float32)
    # Selected away, not multiplied by 0, where λ = 0: 0 * inf is NaN.
    counted = jnp.where(rate > 0, cross_entropy, 0.0)
    rationale = _task_sum(counted, decoder_task_ids, constants.RATIONALE_TASK_ID)
    rationale = rationale / jnp.maximum(counts.rationale, 1).astype(jnp.float32)
    return label + rate * rationale


def token_sum_loss(
    cross_entropy: jax.Array,
    decoder_target_tokens: jax.Array,
    normalizing_factor: float | jax.Array | None = None,
) -> jax.Array:
    """T5X's stock loss: the sum of the cross-entropy over all target tokens.

    It is *not* Eq. 3. Every token weighs the same, so a task's weight is its share of the
    tokens: with label targets of 3 tokens and rationales of 31 (CQA), the rationale task counts
    ten times the label task, and a mixing rate λ scales how often rationales are drawn, not how
    much they weigh. It stays for comparison with T5X.

    Args:
      cross_entropy: float32 [B, T].
      decoder_target_tokens: int32 [B, T], 0 is padding and not counted.
      normalizing_factor: divides the sum (T5X's LOSS_NORMALIZING_FACTOR); None: nothing does.
    """
    loss = jnp.sum(jnp.where(decoder_target_tokens > 0, cross_entropy, 0.0), dtype=jnp.float32)
    return loss if normalizing_factor is None else loss / normalizing_factor


class SumAndCount(NamedTuple):
    """A metric that adds over microbatches and steps; divided only when it is written."""

    total: jax.Array
    count: jax.Array  # type: ignore[assignment]  # a tuple's own method, which nobody calls


def task_metrics(losses: TokenLosses, decoder_task_ids: jax.Array) -> dict[str, SumAndCount]:
    """`{label,rationale}_{loss,token_accuracy}`, each a float32 sum and an int32 token count."""
    counts = task_token_counts(decoder_task_ids)
    metrics = {}
    for name, task_id, count in (
        ("label", constants.LABEL_TASK_ID, counts.label),
        ("rationale", constants.RATIONALE_TASK_ID, counts.rationale),
    ):
        loss = _task_sum(losses.cross_entropy, decoder_task_ids, task_id)
        correct = _task_sum(losses.correct, decoder_task_ids, task_id)
        metrics[f"{name}_loss"] = SumAndCount(loss, count)
        metrics[f"{name}_token_accuracy"] = SumAndCount(correct, count)
    return metrics
