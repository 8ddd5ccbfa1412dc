"""program: the step as it is lowered, constraints on activations and parameters in it."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import subprocess
import sys
import textwrap

import jax
import numpy as np
import optax
import pytest
from model_examples import SMALL

from distill_sbs.config import ObjectiveConfig
from distill_sbs.data.batches import layout
from distill_sbs.distributed import sharding
from distill_sbs.training.program import TrainingProgram, build_training_program
from distill_sbs.training.train_step import Objective, initial_state, make_train_step

LOWERED = """
    from distill_sbs.config import OptimizerConfig
    from distill_sbs.distributed import sharding
    from distill_sbs.data.batches import layout
    from distill_sbs.model.config import named_config
    from distill_sbs.training.optimizer import make_optimizer
    from distill_sbs.training.program import build_training_program

    config = named_config("t5_1_1_tiny", vocab_size=512, scan_layers=True)
    update = make_optimizer(OptimizerConfig(learning_rate=1e-3), 10)
    program = build_training_program(config, update, sharding.make_mesh(2), fsdp=True)
    batch = layout.empty_batch(layout.BatchShape(16, 64, 32))
    places = dict.fromkeys(batch, sharding.batch_sharding(program.mesh))
    with sharding.rules(program.mesh):
        print(program.step.lower(program.state, sharding.add_shardings(batch, places)).as_text())
"""


@pytest.mark.slow
def test_constraints_reach_the_compiler() -> None:
    """Flax drops them without a word where it finds no mesh; XLA then guesses, badly under FSDP."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LOWERED)],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        },
        cwd=pathlib.Path(__file__).parent.parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    constraints = [line for line in done.stdout.splitlines() if "sdy.sharding_constraint" in line]
    # The encoder's states: rows over the data axis.
    rows = '[{"slice", "data"}, {}, {}]> : tensor<16x64x128xf32>'
    assert any(rows in line for line in constraints)
    # A feed-forward kernel in use, whole but for the model axis, though it is stored in shards.
    assert any('[{}, {"model"}]> : tensor<128x256xf32>' in line for line in constraints)
    # Its gradient, summed into the shards of both axes (two layers, stacked).
    stored = '[{}, {"data"}, {"model"}]> : tensor<2x128x256xf32>'
    assert any(stored in line for line in constraints)


# ---------------------------------- seeds ------------------------------------

STUDENT = dataclasses.replace(SMALL, dropout_rate=0.3, num_encoder_layers=1, num_decoder_layers=1)
UPDATE = optax.sgd(1e-2)
TOKENS = np.arange(2, 12, dtype=np.int32)
BATCH = layout.fill(
    [layout.Sequence2Sequence(TOKENS, TOKENS, np.ones(10, np.int32))] * 2,
    layout.Layout(layout.BatchShape(2, 16, 12), layout.BatchShape(2, 16, 12)),
)


def make_program(seed: int) -> TrainingProgram:
    return build_training_program(STUDENT, UPDATE, sharding.make_mesh(1), seed=seed)


def take_step(program: TrainingProgram) -> list[np.ndarray]:
    with sharding.rules(program.mesh):
        state, _ = program.step(program.make_state(), sharding.put_batch(BATCH, program.mesh))
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


@pytest.mark.slow
def test_a_seed_that_is_an_argument_gives_the_bits_of_one_that_is_a_constant() -> None:
    seed = 2**32 - 3
    program = make_program(seed)
    rate = ObjectiveConfig().rationale_rate
    step = make_train_step(program.model, UPDATE, Objective(rate), seed)
    state = jax.jit(lambda: initial_state(program.model, UPDATE, seed))()
    expected, _ = jax.jit(step)(state, BATCH)
    for ours, theirs in zip(take_step(program), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_runs_that_differ_in_their_seed_alone_are_one_program() -> None:
    texts = set()
    for seed in (0, 1):
        program = make_program(seed)
        with sharding.rules(program.mesh):
            lowered = program.step.lower(program.state, sharding.put_batch(BATCH, program.mesh))
        texts.add(lowered.as_text() + program.make_state.lower().as_text())
    assert len(texts) == 1
    assert any(
        (one != other).any()
        for one, other in zip(take_step(make_program(0)), take_step(make_program(1)), strict=True)
    )


# ---------------------------------- ahead ------------------------------------


@pytest.mark.slow
def test_what_is_compiled_ahead_is_what_runs_and_gives_the_same_bits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = take_step(make_program(0))
    program = make_program(0)
    program.compile_step_ahead(BATCH)
    with jax.log_compiles(), caplog.at_level("WARNING"):
        for ours, theirs in zip(take_step(program), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    started = [line for line in caplog.messages if line.startswith("Compiling")]
    assert any("make_state" in line for line in started)
    assert not any("(step)" in line for line in started), started
    # Another shape is compiled when it comes.
    with sharding.rules(program.mesh):
        one = {key: value[:1] for key, value in BATCH.items()}
        program.step(program.make_state(), sharding.put_batch(one, program.mesh))


def test_what_does_not_compile_ahead_is_told_when_it_is_needed() -> None:
    def fail() -> jax.stages.Compiled:
        raise MemoryError("too large a batch")

    program = make_program(0)
    program.step.expect((program.state, BATCH), fail)
    with pytest.raises(MemoryError, match="too large a batch"):
        program.step(program.state, BATCH)


@pytest.mark.slow
def test_the_hardware_s_generator_draws_every_mask() -> None:
    program = build_training_program(STUDENT, UPDATE, sharding.make_mesh(1), use_hardware_rng=True)
    with sharding.rules(program.mesh):
        text = program.step.lower(program.state, sharding.put_batch(BATCH, program.mesh)).as_text()
    assert "rng_bit_generator" in text
    assert "threefry" not in text
