"""Greedy decoding that says one of a few labels: along the trie of their tokens, to a leaf.

In: a student and its parameters, encoder tokens int32 [B, S] (0: padding), and K labels as token
arrays, end token included.
Out: int32 [B], which label each row says.

At every node the likeliest of the tokens that some label goes on with is taken: what
`greedy_decode` would say if it could say nothing else. A row ends as soon as one label alone is
left, for what follows is no choice; labels whose first tokens differ take one step. Only the
vectors of tokens that are in the trie are multiplied with.

It is greedy: a label may begin with a token that is likely only because several labels begin with
it, or go on with unlikely ones. The likeliest label as a whole is what `scoring` finds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_sbs import constants
from distill_sbs.model.config import T5Config, T5GemmaConfig
from distill_sbs.model.decoding import prepare_decoder, take_step
from distill_sbs.model.network import KeysAndValues, Transformer
from distill_sbs.model.parameters import Params, PyTree

# The tokens of the trie are filled up to a multiple of this, which any mesh divides.
_TOKEN_MULTIPLE = 128


class LabelTrie(NamedTuple):
    """Where the labels part; N nodes, of which the first is the root, C tokens at most behind one.

    Attributes:
      vocabulary: int32 [U], the tokens in the trie, ascending, padding first and again at the end.
      tokens: int32 [N, C], places in `vocabulary` of the tokens that go on, ascending.
      children: int32 [N, C], the node behind each; -1 where there are fewer than C.
      labels: int32 [N], the one label that is left there; -1 where there are several.
      depth: the most tokens that are chosen before one label is left.
      start: the place in `vocabulary` of the token that the decoder starts from.
    """

    vocabulary: np.ndarray
    tokens: np.ndarray
    children: np.ndarray
    labels: np.ndarray
    depth: int
    start: int


class IndistinctLabelsError(ValueError):
    """Two labels of which one has the tokens of the other, or begins with them.

    Attributes:
      places: theirs, among the labels.
    """

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"label {second} has the tokens of label {first}, or begins with them")
        self.places = (first, second)


def build_trie(labels: Sequence[np.ndarray], start_id: int = constants.PAD_ID) -> LabelTrie:
    """The trie of labels [L], end tokens included, behind the decoder's start token.

    Raises:
      ValueError: there is none, or one without tokens.
      IndistinctLabelsError: two are the same, or one begins as the other is.
    """
    rows = [tuple(int(token) for token in label) for label in labels]
    if not rows or not all(rows):
        raise ValueError(f"{len(rows)} labels: expected some, each of a token or more")
    nodes: list[dict[int, int]] = [{}]  # token -> node
    among = [list(range(len(rows)))]  # the labels that are left at each
    depths = [0]
    for number, position in enumerate(depths):  # they grow meanwhile
        left = among[number]
        if len(left) == 1:
            continue
        if ended := [each for each in left if len(rows[each]) == position]:
            raise IndistinctLabelsError(ended[0], next(e for e in left if e != ended[0]))
        for token in sorted({rows[each][position] for each in left}):
            nodes[number][token] = len(nodes)
            nodes.append({})
            among.append([each for each in left if rows[each][position] == token])
            depths.append(position + 1)
    known = sorted({constants.PAD_ID, start_id}.union(*nodes))
    vocabulary = np.full(-(-len(known) // _TOKEN_MULTIPLE) * _TOKEN_MULTIPLE, constants.PAD_ID)
    vocabulary[: len(known)] = known
    width = max(1, *map(len, nodes))
    tokens = np.zeros((len(nodes), width), np.int32)
    children = np.full((len(nodes), width), -1, np.int32)
    for number, node in enumerate(nodes):
        tokens[number, : len(node)] = np.searchsorted(known, list(node))
        children[number, : len(node)] = list(node.values())
    left_there = np.array([each[0] if len(each) == 1 else -1 for each in among], np.int32)
    return LabelTrie(
        vocabulary.astype(np.int32),
        tokens,
        children,
        left_there,
        max(depths),
        int(np.searchsorted(known, start_id)),
    )


def _know_tokens(config: T5Config, trie: LabelTrie) -> T5Config:
    """The architecture of a student that knows the tokens of a trie alone, by their places."""
    small = dataclasses.replace(config, vocab_size=len(trie.vocabulary))
    if isinstance(small, T5GemmaConfig):  # no place is an image's end
        return dataclasses.replace(small, start_id=max(trie.start, 1), end_of_image_id=2**24)
    return small


def _keep_tokens(params: Params, config: T5Config, tokens: np.ndarray) -> Params:
    """The parameters of a student that knows these tokens alone, by their places."""
    embedding = params["token_embedder"]["embedding"][tokens]  # [U, D]
    decoder = params["decoder"]
    if not config.logits_via_embedding:
        kernel = decoder["logits_dense"]["kernel"][:, tokens]  # [D, U]
        decoder = {**decoder, "logits_dense": {"kernel": kernel}}
    embedder = {**params["token_embedder"], "embedding": embedding}
    return {**params, "token_embedder": embedder, "decoder": decoder}


def decode_labels(
    model: Transformer, params: Params, encoder_input_tokens: jax.Array, trie: LabelTrie
) -> jax.Array:
    """The label that greedy decoding along the trie says, for every row.

    Args:
      model: `Transformer(config)`, scanned or not.
      params: its parameters.
      encoder_input_tokens: int32 [B, S], 0 is padding.
      trie: from `build_trie`.

    Returns:
      int32 [B], each the place of a label; -1 of rows of padding alone, unless there is one label.
    """
    rows = encoder_input_tokens.shape[0]
    tokens, children, labels = (
        jnp.asarray(each) for each in (trie.tokens, trie.children, trie.labels)
    )
    encoded: PyTree = model.apply({"params": params}, encoder_input_tokens, method="encode")
    small = Transformer(_know_tokens(model.config, trie))
    kept = _keep_tokens(params, model.config, trie.vocabulary)
    needed, past = prepare_decoder(
        small, kept, encoded, encoder_input_tokens, 1, max(trie.depth, 1)
    )

    class State(NamedTuple):
        position: jax.Array
        last: jax.Array  # [B]
        node: jax.Array  # [B]
        past: KeysAndValues

    is_input = jnp.any(encoder_input_tokens > 0, axis=1)

    def unfinished(state: State) -> jax.Array:
        return (state.position < trie.depth) & jnp.any((labels[state.node] < 0) & is_input)

    def advance(state: State) -> State:
        logits, past = take_step(
            small, needed, state.past, state.last[:, None], state.position, max(trie.depth, 1)
        )
        following = children[state.node]  # [B, C]
        places = tokens[state.node]
        offered = jnp.take_along_axis(logits[:, 0], places, axis=-1)
        choice = jnp.argmax(jnp.where(following >= 0, offered, -jnp.inf), axis=-1)[:, None]
        goes_on = (labels[state.node] < 0) & is_input
        node = jnp.take_along_axis(following, choice, axis=-1)[:, 0]
        last = jnp.take_along_axis(places, choice, axis=-1)[:, 0]
        return State(
            state.position + 1,
            jnp.where(goes_on, last, constants.PAD_ID),
            jnp.where(goes_on, node, state.node),
            past,
        )

    root = jnp.zeros(rows, jnp.int32)
    start = State(jnp.int32(0), jnp.full(rows, trie.start, jnp.int32), root, past)
    return labels[jax.lax.while_loop(unfinished, advance, start).node]
