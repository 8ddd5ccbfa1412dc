"""Span corruption: T5's own numbers, what a piece keeps, and what does not fit."""

from __future__ import annotations

import importlib.util
import os
import pathlib
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import seqio
import tensorflow as tf
from seqio import utils

from distill_sbs.data.tasks import span_corruption
from distill_sbs.errors import UserError

VOCABULARY = seqio.ByteVocabulary(extra_ids=100)  # sentinels 358, 357, …
FEATURES = {name: seqio.Feature(VOCABULARY) for name in ("inputs", "targets")}
LENGTHS = {"inputs": 32, "targets": 16}
TEXTS = [[*range(3, 33)], [*range(40, 50)], [], [*range(100, 130)]]

# What `span_corruption` of google-research/text-to-text-transfer-transformer gave for TEXTS and
# LENGTHS (t5/data/preprocessors.py of 2024, SeqIO 0.0.20): (seed, inputs, targets of each piece).
PUBLISHED = {
    0: [
        ([*range(3, 30), 358, 40, 41, 357], [358, 30, 31, 32, 357, 42, 43]),
        ([*range(44, 50), 100, 101, 358, *range(103, 124), 357], [358, 102, 357, *range(124, 128)]),
        ([128, 358], [358, 129]),
    ],
    42: [
        ([*range(3, 20), 358, *range(21, 33), 357], [358, 20, 357, 40, 41, 42, 43]),
        (
            [*range(44, 50), *range(100, 112), 358, *range(113, 124), 357],
            [358, 112, 357, *range(124, 128)],
        ),
        ([128, 358], [358, 129]),
    ],
}  # fmt: skip

Corrupt = Callable[..., tf.data.Dataset]


def pieces(
    texts: list[list[int]], seed: int, lengths: dict[str, int], corrupt: Corrupt
) -> list[tuple[list[int], list[int]]]:
    """(inputs, targets) of all pieces of some texts."""
    dataset = tf.data.Dataset.from_generator(
        lambda: ({"targets": np.array(text, np.int32)} for text in texts),
        output_signature={"targets": tf.TensorSpec([None], tf.int32)},
    )
    with utils.map_seed_manager(seed):
        corrupted = corrupt(dataset, lengths, FEATURES)
    return [
        (row["inputs"].tolist(), row["targets"].tolist()) for row in corrupted.as_numpy_iterator()
    ]


def restore(inputs: list[int], targets: list[int]) -> list[int]:
    """Puts what the targets say in the place of the sentinels."""
    spans: dict[int, list[int]] = {}
    sentinel = 0
    for token in targets:
        if token > 258:
            sentinel = token
        else:
            spans.setdefault(sentinel, []).append(token)
    return [
        token for place in inputs for token in (spans.get(place, []) if place > 258 else [place])
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", list(PUBLISHED))
def test_tokens_are_those_of_the_published_preprocessor(seed: int) -> None:
    assert pieces(TEXTS, seed, LENGTHS, span_corruption.corrupt_spans) == PUBLISHED[seed]


@pytest.fixture(scope="module")
def published() -> ModuleType:
    """T5's own module, out of a checkout of its repository."""
    checkout = os.environ.get("T5_CHECKOUT")
    if not checkout:
        pytest.skip("T5_CHECKOUT is unset: no text-to-text-transfer-transformer to run beside")
    path = pathlib.Path(checkout) / "t5" / "data" / "preprocessors.py"
    spec = importlib.util.spec_from_file_location("t5_preprocessors", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("inputs", [64, 512])
def test_thousands_of_tokens_are_equal_beside_the_published_one(
    published: ModuleType, inputs: int
) -> None:
    texts = [
        np.random.default_rng(n).integers(3, 259, n).tolist()
        for n in (700, 1, 2, 0, 70_000, *range(3, 130))
    ]
    lengths = {"inputs": inputs, "targets": inputs}
    ours = pieces(texts, 42, lengths, span_corruption.corrupt_spans)
    theirs = pieces(texts, 42, lengths, published.span_corruption)
    print(f"{len(ours)} pieces, {sum(len(each) for each, _ in ours)} input tokens: equal")
    assert ours == theirs


@pytest.mark.slow
def test_nothing_of_a_text_is_lost() -> None:
    texts = [np.random.default_rng(n).integers(3, 259, 50).tolist() for n in range(200)]
    corrupted = pieces(texts, 7, LENGTHS, span_corruption.corrupt_spans)
    restored = [token for piece in corrupted for token in restore(*piece)]
    assert restored == [token for text in texts for token in text]
    hidden = sum(token <= 258 for _, targets in corrupted for token in targets)
    assert abs(hidden / 10_000 - 0.15) < 0.01
    assert all(len(inputs) < 32 and len(targets) < 16 for inputs, targets in corrupted)


@pytest.mark.slow
def test_another_seed_takes_out_others() -> None:
    first, second = (pieces(TEXTS, seed, LENGTHS, span_corruption.corrupt_spans) for seed in (1, 2))
    assert first != second
    assert first == pieces(TEXTS, 1, LENGTHS, span_corruption.corrupt_spans)


@pytest.mark.parametrize(
    ("inputs", "piece", "targets"), [(32, 34, 8), (64, 70, 14), (512, 568, 114), (1024, 1137, 229)]
)
def test_lengths_are_the_published_ones(inputs: int, piece: int, targets: int) -> None:
    """The piece's and its targets' length as T5's `random_spans_helper` gives them."""
    lengths = span_corruption.choose_piece_lengths({"inputs": inputs, "targets": 1024})
    assert (lengths.text, lengths.inputs, lengths.targets) == (piece, inputs, targets)


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (512, 113, "TASK_FEATURE_LENGTHS['targets']=113: span corruption of 512 input tokens asks"),
        (
            2048,
            2048,
            "114 spans would be taken out of a piece, and there are 100 sentinels; use 1796,",
        ),
        (2, 2, "TASK_FEATURE_LENGTHS['inputs']=2: span corruption needs 3 tokens at least"),
    ],
)
def test_what_does_not_fit_is_told(inputs: int, targets: int, message: str) -> None:
    with pytest.raises(UserError) as error:
        span_corruption.choose_piece_lengths({"inputs": inputs, "targets": targets})
    assert message in str(error.value)
