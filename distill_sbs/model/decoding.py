"""Greedy and beam decoding with a key/value cache, stopping when every row has ended.

In: a student and its parameters, encoder tokens int32 [B, S] (0: padding).
Out: tokens int32 [B, L], without the start token, padding after each row's end token.

Both are pure functions of arrays and may be jitted over a mesh. The encoder's keys and values
are computed once, the beams of a row share them. Decoding starts from token 0, as T5 does, unless
another start is asked for: where the encoder is shared, that of the task.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_sbs import constants
from distill_sbs.model import attention
from distill_sbs.model.config import T5Config
from distill_sbs.model.network import KeysAndValues, Transformer, make_empty_past
from distill_sbs.model.parameters import Params, PyTree, find_axes

# What is added to the log-probability of a hypothesis that must not be chosen (transformers).
EXCLUDED = -1e9


class Encoded(NamedTuple):
    """What a step needs and no step changes."""

    params: Params
    cross: KeysAndValues  # of the encoder
    cross_mask: jax.Array  # bool [B, 1, 1, S]


def _gather_once(params: Params, config: T5Config) -> Params:
    """The decoder's kernels as every step uses them, so that FSDP gathers them before the loop.

    That takes memory for one copy of them in the dtype of the products, and spares gathering them
    for every token.
    """

    def gather(path: tuple[jax.tree_util.DictKey, ...], leaf: jax.Array) -> jax.Array:
        if path[-1].key != "kernel":
            return leaf
        name = "/".join(["decoder", *(each.key for each in path)])
        axes = find_axes(name, leaf.ndim)
        return attention.gather_parameter(leaf.astype(config.dtype), axes)

    decoder = jax.tree_util.tree_map_with_path(gather, params["decoder"])
    return {**params, "decoder": decoder}


def _prepare(
    model: Transformer, params: Params, tokens: jax.Array, hypotheses: int, length: int
) -> tuple[Encoded, KeysAndValues]:
    """Runs the encoder; returns what steps need, and an empty past of `length` positions."""
    encoded: PyTree = model.apply({"params": params}, tokens, method="encode")
    return prepare_decoder(model, params, encoded, tokens, hypotheses, length)


def prepare_decoder(
    model: Transformer,
    params: Params,
    encoded: jax.Array,
    tokens: jax.Array,
    hypotheses: int,
    length: int,
) -> tuple[Encoded, KeysAndValues]:
    """What `take_step` needs, and an empty past of `length` positions.

    Args:
      model: the student; of its parameters the decoder's, embedding and head are used.
      params: its parameters.
      encoded: encoder states [B, S, D].
      tokens: the encoder's, int32 [B, S], which say where it is padding.
      hypotheses: of each row, G.
      length: of the longest output, L.
    """
    params = _gather_once(params, model.config)
    cross = model.apply({"params": params}, encoded, method="project_encoded")
    past = make_empty_past(model.config, tokens.shape[0] * hypotheses, length)
    return Encoded(params, cross, (tokens > 0)[:, None, None, :]), past


def take_step(
    model: Transformer,
    encoded: Encoded,
    past: KeysAndValues,
    tokens: jax.Array,
    position: jax.Array,
    length: int,
) -> tuple[jax.Array, KeysAndValues]:
    """Tokens [B, G] at `position` -> logits float32 [B, G, V] of the next, and the past."""
    variables, arguments = {"params": encoded.params}, (past, encoded.cross, position, length)
    return model.apply(variables, tokens, *arguments, encoded.cross_mask, method="decode_step")


def find_likeliest(logits: jax.Array) -> jax.Array:
    """The token of the highest logit, the first of equal ones: float [B, V] -> int32 [B].

    As `jnp.argmax`, where a NaN is the highest. On CPUs XLA makes a loop out of that which looks at
    one logit at a time, a fifth of a small student's step; two passes over vectors are quicker.
    """

    def in_two_passes(logits: jax.Array) -> jax.Array:
        size = logits.shape[-1]
        highest = jnp.max(logits, axis=-1, keepdims=True)
        places = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
        is_highest = (logits == highest) | jnp.isnan(logits)
        return jnp.min(jnp.where(is_highest, places, size), axis=-1)

    def in_one(logits: jax.Array) -> jax.Array:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    return jax.lax.platform_dependent(logits, cpu=in_two_passes, default=in_one)


def _check_length(max_decode_tokens: int) -> None:
    if max_decode_tokens < 1:
        raise ValueError(f"max_decode_tokens={max_decode_tokens}: expected at least 1")


def greedy_decode(
    model: Transformer,
    params: Params,
    encoder_input_tokens: jax.Array,
    max_decode_tokens: int,
    eos_id: int = constants.EOS_ID,
    pad_id: int = constants.PAD_ID,
    start_id: int = constants.PAD_ID,
) -> jax.Array:
    """The likeliest token at every position, until `eos_id`.

    Args:
      model: `Transformer(config)`, scanned or not.
      params: its parameters.
      encoder_input_tokens: int32 [B, S], 0 is padding.
      max_decode_tokens: L, the most tokens of an output, its end token included.
      eos_id: ends a row.
      pad_id: stands after it.
      start_id: starts every row, and is not part of the output.

    Returns:
      int32 [B, L]. A row that reached L without its end token has none.

    Raises:
      ValueError: max_decode_tokens below 1.
    """
    _check_length(max_decode_tokens)
    rows = encoder_input_tokens.shape[0]
    encoded, past = _prepare(model, params, encoder_input_tokens, 1, max_decode_tokens)

    class State(NamedTuple):
        position: jax.Array
        last: jax.Array  # [B]
        ended: jax.Array  # [B]
        output: jax.Array  # [B, L]
        past: KeysAndValues

    def unfinished(state: State) -> jax.Array:
        return (state.position < max_decode_tokens) & ~jnp.all(state.ended)

    def advance(state: State) -> State:
        logits, past = take_step(
            model,
            encoded,
            state.past,
            state.last[:, None],
            state.position,
            max_decode_tokens,
        )
        token = find_likeliest(logits[:, 0])
        token = jnp.where(state.ended, pad_id, token)
        output = jax.lax.dynamic_update_slice_in_dim(
            state.output, token[:, None], state.position, axis=1
        )
        ended = state.ended | (token == eos_id)
        return State(state.position + 1, token, ended, output, past)

    # A row of padding has no input to answer: it ends at once, and keeps nobody waiting.
    start = State(
        position=jnp.int32(0),
        last=jnp.full(rows, start_id, jnp.int32),
        ended=~jnp.any(encoder_input_tokens > 0, axis=1),
        output=jnp.full((rows, max_decode_tokens), pad_id, jnp.int32),
        past=past,
    )
    return jax.lax.while_loop(unfinished, advance, start).output


class _Beams(NamedTuple):
    """A row's hypotheses, best first: G that run and G that have ended."""

    position: jax.Array
    running: jax.Array  # int32 [B, G, L]
    running_scores: jax.Array  # [B, G], sums of log-probabilities
    ended: jax.Array  # int32 [B, G, L]
    ended_scores: jax.Array  # [B, G], divided by length ** length_penalty
    is_ended: jax.Array  # bool [B, G], whether `ended` holds a hypothesis there
    open: jax.Array  # bool [B], whether running ones may still improve the ended
    past: KeysAndValues


def _gather(values: jax.Array, indices: jax.Array) -> jax.Array:
    """values [B, N, ...] at indices [B, G] -> [B, G, ...]."""
    shape = indices.shape + (1,) * (values.ndim - 2)
    return jnp.take_along_axis(values, indices.reshape(shape), axis=1)


def _reorder_past(past: KeysAndValues, beams: jax.Array, stacked: bool) -> KeysAndValues:
    """Takes the past of hypothesis `beams[b, g]` for hypothesis g of row b."""

    def reorder(leaf: jax.Array) -> jax.Array:
        split = leaf.reshape(*beams.shape, *leaf.shape[1:])
        return _gather(split, beams).reshape(leaf.shape)

    return jax.tree.map(jax.vmap(reorder) if stacked else reorder, past)


def beam_decode(
    model: Transformer,
    params: Params,
    encoder_input_tokens: jax.Array,
    max_decode_tokens: int,
    beam_size: int = 4,
    length_penalty: float = 1.0,
    eos_id: int = constants.EOS_ID,
    pad_id: int = constants.PAD_ID,
    start_id: int = constants.PAD_ID,
) -> jax.Array:
    """The best of `beam_size` hypotheses by log-probability over length ** length_penalty.

    Candidates, ranks and the end follow transformers' `generate(num_beams=beam_size,
    early_stopping=False, length_penalty=length_penalty)`, so that it gives the same tokens: 2 G
    continuations are kept a step; those that end among the first G may join the ended
    hypotheses; a row is closed when its best running hypothesis, at its present length, scores no
    better than its worst ended one; at L all that run count as ended.

    Args:
      model: `Transformer(config)`, scanned or not.
      params: its parameters.
      encoder_input_tokens: int32 [B, S], 0 is padding.
      max_decode_tokens: L, the most tokens of an output, its end token included.
      beam_size: hypotheses a row, G.
      length_penalty: exponent of the length; 0 prefers short outputs, 1 compares means.
      eos_id: ends a hypothesis.
      pad_id: stands after it.
      start_id: starts every hypothesis, and is not part of the output.

    Returns:
      int32 [B, L].

    Raises:
      ValueError: max_decode_tokens or beam_size below 1.
    """
    _check_length(max_decode_tokens)
    if beam_size < 1:
        raise ValueError(f"beam_size={beam_size}: expected at least 1")
    config = model.config
    rows = encoder_input_tokens.shape[0]
    encoded, past = _prepare(model, params, encoder_input_tokens, beam_size, max_decode_tokens)

    def advance(state: _Beams) -> _Beams:
        last = jax.lax.dynamic_index_in_dim(
            state.running, jnp.maximum(state.position - 1, 0), axis=2, keepdims=False
        )
        last = jnp.where(state.position == 0, start_id, last)
        logits, past = take_step(
            model, encoded, state.past, last, state.position, max_decode_tokens
        )
        scores = jax.nn.log_softmax(logits) + state.running_scores[:, :, None]  # [B, G, V]

        # Twice as many as beams: should the first G all end, G remain to go on with.
        top_scores, top = jax.lax.top_k(scores.reshape(rows, -1), 2 * beam_size)
        parents, tokens = top // config.vocab_size, (top % config.vocab_size).astype(jnp.int32)
        candidates = jax.lax.dynamic_update_slice_in_dim(
            _gather(state.running, parents), tokens[:, :, None], state.position, axis=2
        )  # [B, 2 G, L]
        count = state.position + 1
        ends = (tokens == eos_id) | (count >= max_decode_tokens)

        running_scores, chosen = jax.lax.top_k(top_scores + ends * EXCLUDED, beam_size)
        running = _gather(candidates, chosen)
        past = _reorder_past(past, _gather(parents, chosen), config.scan_layers)

        ends_well = ends & (jnp.arange(2 * beam_size) < beam_size)
        length = count.astype(jnp.float32) ** length_penalty
        final = top_scores / length + ~(ends_well & state.open[:, None]) * EXCLUDED
        ended_scores, best = jax.lax.top_k(
            jnp.concatenate([state.ended_scores, final], axis=1), beam_size
        )
        ended = _gather(jnp.concatenate([state.ended, candidates], axis=1), best)
        is_ended = _gather(jnp.concatenate([state.is_ended, ends_well], axis=1), best)

        # An empty slot among the ended scores -1e9, so that any running hypothesis beats it.
        worst = jnp.where(is_ended, jnp.min(ended_scores, axis=1, keepdims=True), EXCLUDED)
        improvable = jnp.any(running_scores[:, :1] / length > worst, axis=1)
        return _Beams(
            count,
            running,
            running_scores,
            ended,
            ended_scores,
            is_ended,
            state.open & improvable,
            past,
        )

    def unfinished(state: _Beams) -> jax.Array:
        return (state.position < max_decode_tokens) & jnp.any(state.open)

    empty = jnp.full((rows, beam_size, max_decode_tokens), pad_id, jnp.int32)
    # Only the first hypothesis runs at first: the others would be copies of it.
    first_only = jnp.where(jnp.arange(beam_size) == 0, 0.0, EXCLUDED)
    none = jnp.full((rows, beam_size), EXCLUDED, jnp.float32)
    start = _Beams(
        position=jnp.int32(0),
        running=empty,
        running_scores=jnp.broadcast_to(first_only, (rows, beam_size)).astype(jnp.float32),
        ended=empty,
        ended_scores=none,
        is_ended=jnp.zeros((rows, beam_size), bool),
        open=jnp.any(encoder_input_tokens > 0, axis=1),
        past=past,
    )
    return jax.lax.while_loop(unfinished, advance, start).ended[:, 0]
