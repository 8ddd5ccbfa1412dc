"""batch_decoder: which inputs are decoded beside which, and how wide."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from distill_sbs.distributed import sharding
from distill_sbs.inference.batch_decoder import Decoder, plan_batches, shrink_batch
from distill_sbs.model.config import named_config
from distill_sbs.model.network import Transformer, initial_parameters


def test_inputs_of_like_lengths_go_together() -> None:
    assert plan_batches([3, 40, 17, 5, 20], 2) == [([1, 4], 48), ([2, 3], 32), ([0], 16)]
    assert plan_batches([], 2) == []
    assert plan_batches([16, 16, 17], 8) == [([2, 0, 1], 32)]
    assert plan_batches([0], 1) == [([0], 16)]


def test_widths_are_few_and_those_are_widened_that_cost_least() -> None:
    # Of 64, 48, 32 and 16 the one batch of 48 is widened: 16 positions; of 16 there are two.
    lengths = [64, 48, 32, 32, 16, 16]
    assert [width for _, width in plan_batches(lengths, 1)] == [64, 64, 32, 32, 16, 16]
    # Of 96, 80, 64 and 16 that of 80, once, not that of 64, three times.
    lengths = [96, 80, 64, 64, 64, 16, 16, 16]
    assert [width for _, width in plan_batches(lengths, 1)] == [96, 96, 64, 64, 64, 16, 16, 16]
    # 32 to 48, and both to 64.
    lengths = [*[96] * 3, *[64] * 3, 48, 32, *[16] * 9]
    widths = [width for _, width in plan_batches(lengths, 1)]
    assert widths == [*[96] * 3, *[64] * 5, *[16] * 9]


def test_every_input_is_in_one_batch_that_holds_it() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 1000).tolist()
    plan = plan_batches(lengths, 32)
    assert sorted(place for places, _ in plan for place in places) == list(range(1000))
    assert all(lengths[place] <= width for places, width in plan for place in places)
    assert len({width for _, width in plan}) <= 3
    widest = -(-max(lengths) // 16) * 16
    assert sum(len(places) * width for places, width in plan) < 0.75 * 1000 * widest


def test_few_inputs_take_few_rows() -> None:
    assert [shrink_batch(128, inputs, 1) for inputs in (0, 1, 2, 3, 8, 9, 32, 33, 128, 500)] == [
        1, 1, 2, 8, 8, 32, 32, 128, 128, 128
    ]  # fmt: skip
    assert [shrink_batch(128, inputs, 8) for inputs in (1, 8, 9, 32, 33)] == [8, 8, 32, 32, 128]
    assert [shrink_batch(6, inputs, 3) for inputs in (1, 3, 4)] == [3, 3, 6]


@pytest.mark.slow
def test_the_order_is_restored_and_the_answers_are_those_of_each_alone() -> None:
    config = named_config(
        "t5_1_1_tiny", vocab_size=64, emb_dim=32, num_heads=2, head_dim=16, mlp_dim=32
    )
    params = initial_parameters(config, jax.random.key(0))
    mesh = sharding.make_mesh(1)
    draws = np.random.default_rng(1)
    inputs = [
        np.array([*draws.integers(3, 64, length - 1), 1], np.int32)
        for length in (5, 60, 20, 33, 7, 48, 2)
    ]
    done: list[int] = []
    together = Decoder(Transformer(config), mesh, 6, batch_size=2)(params, inputs, done.append)
    alone = Decoder(Transformer(config), mesh, 6, batch_size=1)
    assert sum(done) == len(inputs)
    for each, output in zip(inputs, together, strict=True):
        assert output.tolist() == alone(params, [each])[0].tolist()
    assert len({tuple(output) for output in together}) > 1  # they are not all alike
    assert alone(params, []) == []
