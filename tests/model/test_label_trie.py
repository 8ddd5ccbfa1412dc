"""label_trie: greedy decoding that can say the labels alone, against decoding by hand."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import model_examples
import numpy as np
import pytest

from distill_sbs.model import label_trie, losses, scoring
from distill_sbs.model.network import Transformer, output_weights, vocabulary_logits
from distill_sbs.model.parameters import Params

# Three part at once, two of them again after 9, and two more a step later.
LABELS = [
    np.array(each, np.int32)
    for each in ([5, 9, 1], [7, 1], [5, 8, 6, 4, 1], [30, 2, 1], [5, 8, 6, 3, 1])
]
INPUTS = np.random.default_rng(0).integers(2, 48, (24, 6)).astype(np.int32)


def test_nodes_by_hand() -> None:
    trie = label_trie.build_trie(LABELS)
    known = [0, 3, 4, 5, 6, 7, 8, 9, 30]  # what follows a choice that is made is not there
    assert trie.vocabulary.tolist() == [*known, *[0] * (128 - len(known))]
    # Root: 5, 7, 30. Behind 5: 8, 9. Behind 5 8: 6. Behind 5 8 6: 3, 4.
    assert trie.tokens.tolist() == [
        [3, 5, 8],
        [6, 7, 0],
        [0, 0, 0],
        [0, 0, 0],
        [4, 0, 0],
        [0, 0, 0],
        [1, 2, 0],
        [0, 0, 0],
        [0, 0, 0],
    ]
    assert trie.children.tolist() == [
        [1, 2, 3],
        [4, 5, -1],
        [-1, -1, -1],
        [-1, -1, -1],
        [6, -1, -1],
        [-1, -1, -1],
        [7, 8, -1],
        [-1, -1, -1],
        [-1, -1, -1],
    ]
    assert trie.labels.tolist() == [-1, -1, 1, 3, -1, 0, -1, 4, 2]
    assert trie.depth == 4


def test_labels_that_part_at_once_take_one_step() -> None:
    trie = label_trie.build_trie([np.array([4, 9, 9, 1]), np.array([3, 1]), np.array([7, 6, 1])])
    assert trie.depth == 1
    assert trie.labels.tolist() == [-1, 1, 0, 2]
    one = label_trie.build_trie([np.array([4, 9, 1])])
    assert (one.depth, one.labels.tolist()) == (0, [0])


def test_labels_that_are_none() -> None:
    for wrong in ([], [np.array([], np.int32)]):
        with pytest.raises(ValueError, match="labels: expected some, each of a token or more"):
            label_trie.build_trie(wrong)
    same = [np.array([5, 1]), np.array([4, 1]), np.array([5, 1])]
    with pytest.raises(label_trie.IndistinctLabelsError, match="label 2 has the tokens of label 0"):
        label_trie.build_trie(same)
    with pytest.raises(label_trie.IndistinctLabelsError) as caught:
        label_trie.build_trie([np.array([5, 6, 1]), np.array([5, 6])])
    assert caught.value.places == (1, 0)


@functools.partial(jax.jit, static_argnums=(0, 3))
def all_logits(
    model: Transformer, params: Params, targets: jax.Array, start_id: int = 0
) -> jax.Array:
    """Logits [B, T, V] where every target is preceded by the others, by the network's usual way."""
    batch = {
        "encoder_input_tokens": INPUTS,
        "decoder_input_tokens": jnp.pad(
            targets[:, :-1], [(0, 0), (1, 0)], constant_values=start_id
        ),
        "decoder_target_tokens": targets,
    }
    hidden = losses.decoder_states(model, params, batch)
    return vocabulary_logits(hidden, output_weights(params, model.config), model.config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "fields", "start_id"),
    [
        (model_examples.student, {}, 0),
        (model_examples.student, {"scan_layers": True}, 45),
        (model_examples.student, {"logits_via_embedding": True}, 6),
        (model_examples.t5gemma, {}, 2),
    ],
)
def test_every_choice_is_the_likeliest_of_what_goes_on(
    make: Callable[..., tuple[Transformer, Params]], fields: dict[str, object], start_id: int
) -> None:
    model, params = make(3, **fields)
    trie = label_trie.build_trie(LABELS, start_id)
    assert trie.vocabulary[trie.start] == start_id
    decode = jax.jit(lambda params, tokens: label_trie.decode_labels(model, params, tokens, trie))
    said = np.asarray(decode(params, INPUTS)).tolist()
    longest = max(map(len, LABELS))
    logits = np.stack(
        [
            all_logits(
                model,
                params,
                np.broadcast_to(np.pad(e, (0, longest - len(e))), (24, longest)),
                start_id,
            )
            for e in LABELS
        ]
    )  # [K, B, T, V]
    for row, found in enumerate(said):
        left, position = list(range(len(LABELS))), 0
        while len(left) > 1:
            offered = {int(LABELS[each][position]) for each in left}
            likeliest = max(offered, key=lambda token: logits[left[0], row, position, token])
            left = [each for each in left if LABELS[each][position] == likeliest]
            position += 1
        assert [found] == left, row
    assert len(set(said)) >= 2  # the student says different things


@pytest.mark.slow
def test_where_greedy_is_exact_it_is_the_likeliest_of_all_labels() -> None:
    """Every label is one token: one choice, of which the likeliest is the likeliest label."""
    model, params = model_examples.student(3)
    labels = [np.array([token], np.int32) for token in (3, 9, 17, 30, 41)]
    trie = label_trie.build_trie(labels)
    said = label_trie.decode_labels(model, params, jnp.asarray(INPUTS), trie)
    scores = scoring.score_labels(model, params, INPUTS, scoring.pack_labels(labels))
    assert said.tolist() == np.argmax(scores, axis=1).tolist()
    assert len(set(said.tolist())) >= 3


@pytest.mark.slow
def test_scores_find_the_likeliest_of_all_texts_that_are_labels() -> None:
    """Against brute force: the log-probabilities of all 2-token texts of a few tokens, each alone.

    There greedy decoding is not exact, and finds less likely ones for some inputs.
    """
    model, params = model_examples.student(3)
    texts = list(itertools.product((3, 9, 17), (4, 30, 1)))
    labels = [np.array(each, np.int32) for each in texts]
    brute = np.stack(
        [
            np.take_along_axis(
                np.asarray(
                    jax.nn.log_softmax(all_logits(model, params, np.broadcast_to(each, (24, 2))))
                ),
                np.broadcast_to(each, (24, 2))[..., None],
                axis=-1,
            ).sum(axis=(1, 2))
            for each in labels
        ],
        axis=1,
    )  # [B, K]
    scores = scoring.score_labels(model, params, INPUTS, scoring.pack_labels(labels))
    np.testing.assert_allclose(scores, brute, rtol=0, atol=2e-5)
    best = brute.argmax(axis=1)
    assert np.argmax(scores, axis=1).tolist() == best.tolist()
    trie = label_trie.build_trie(labels)
    greedy = np.asarray(label_trie.decode_labels(model, params, jnp.asarray(INPUTS), trie))
    rows = np.arange(24)
    assert (brute[rows, greedy] <= brute[rows, best] + 1e-6).all()
    assert (greedy != best).any()


@pytest.mark.slow
def test_rows_of_padding_and_the_only_label() -> None:
    model, params = model_examples.student(3)
    inputs = jnp.asarray(np.concatenate([INPUTS[:2], np.zeros((1, 6), np.int32)]))
    several, one = label_trie.build_trie(LABELS), label_trie.build_trie(LABELS[:1])
    alone = label_trie.decode_labels(model, params, inputs, several).tolist()
    assert alone[2] == -1 and min(alone[:2]) >= 0
    assert label_trie.decode_labels(model, params, inputs, one).tolist() == [0, 0, 0]
