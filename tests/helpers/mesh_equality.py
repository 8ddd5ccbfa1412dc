"""Eight simulated devices against one: the program that tests/distributed/test_sharding.py starts.

Enters: a folder for a checkpoint, and `t5gemma` where the student is one. Leaves: on standard
output the table of losses and parameters on every mesh, with and without FSDP; an AssertionError
where they are not those of a single device.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import numpy as np
import saved_steps
from jax.sharding import Mesh

from distill_sbs.checkpoint import checkpointer as checkpoint
from distill_sbs.checkpoint import steps
from distill_sbs.config import OptimizerConfig
from distill_sbs.distributed import sharding
from distill_sbs.model.config import named_config
from distill_sbs.model.network import Transformer
from distill_sbs.training.optimizer import make_optimizer
from distill_sbs.training.train_step import Objective, TrainState, initial_state, make_train_step

STEPS = 10
TOLERANCE = 1e-5
# Dropout on: its masks are drawn for the global batch too.
SIZES: dict[str, Any] = dict(
    vocab_size=64,
    num_heads=8,
    head_dim=4,
    emb_dim=32,
    mlp_dim=64,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dropout_rate=0.1,
)
IS_T5GEMMA = "t5gemma" in sys.argv[2:]
# Keys and values of two heads, on up to eight partitions.
OF_T5GEMMA = SIZES | dict(num_kv_heads=2, sliding_window=4, query_scale_dim=4)
MODEL = Transformer(
    named_config("t5gemma2_270m", **OF_T5GEMMA)
    if IS_T5GEMMA
    else named_config("t5_1_1_tiny", **SIZES)
)
UPDATE = make_optimizer(OptimizerConfig(learning_rate=1e-3), 100)
ATTENTION = "grouped_attention" if IS_T5GEMMA else "attention"
QUERY = ("encoder", "layers_0", ATTENTION, "query", "kernel")


def make_batches() -> list[dict[str, np.ndarray]]:
    """Sixteen rows a step, labels and rationales."""
    random = np.random.default_rng(0)

    def tokens() -> np.ndarray:
        return random.integers(2, 64, (16, 12)).astype(np.int32)

    batches = []
    for _ in range(STEPS):
        target = tokens()
        batches.append(
            {
                "encoder_input_tokens": tokens(),
                "decoder_target_tokens": target,
                "decoder_input_tokens": np.pad(target, ((0, 0), (1, 0)))[:, :-1],
                "decoder_task_ids": random.integers(1, 3, (16, 1)).repeat(12, 1).astype(np.int32),
            }
        )
    return batches


BATCHES = make_batches()


def places_on(mesh: Mesh, fsdp: bool) -> tuple[Any, Any]:
    """Shapes of the state, and where it lies."""
    shapes = jax.eval_shape(lambda: initial_state(MODEL, UPDATE, 0))
    return shapes, sharding.state_shardings(mesh, UPDATE, shapes, fsdp)


def take_steps(
    mesh: Mesh, fsdp: bool, state: TrainState, batches: list[dict[str, np.ndarray]]
) -> tuple[TrainState, np.ndarray]:
    """Trains; returns the state and the loss of every step."""
    _, places = places_on(mesh, fsdp)
    step = jax.jit(
        make_train_step(MODEL, UPDATE, Objective(0.5), 0, 1, places.params),
        in_shardings=(places, sharding.batch_sharding(mesh)),
        out_shardings=(places, sharding.replicated(mesh)),
        donate_argnums=0,
    )
    losses = []
    with sharding.rules(mesh):
        for batch in batches:
            state, metrics = step(state, sharding.put_batch(batch, mesh))
            losses.append(float(metrics["loss"]))
    return state, np.array(losses)


def start(mesh: Mesh, fsdp: bool) -> TrainState:
    """The initial state, made in shards."""
    _, places = places_on(mesh, fsdp)
    return jax.jit(lambda: initial_state(MODEL, UPDATE, 0), out_shardings=places)()


def kernel(tree: Any) -> jax.Array:
    """The first query kernel, [32, 32], of parameters or moments."""
    for name in QUERY:
        tree = tree[name]
    return tree


def worst_difference(one: TrainState, other: TrainState) -> float:
    """The largest difference of any parameter, as a share of its tensor's norm."""
    pairs = zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True)
    return max(
        float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(a)))
        for a, b in pairs
    )


def check(name: str, state: TrainState, losses: np.ndarray, reference: Any) -> None:
    """Prints a line of the table, and compares with the single device."""
    one, expected = reference
    loss = float(np.max(np.abs(losses - expected) / expected))
    parameters = worst_difference(one, state)
    shard = kernel(state.params).sharding.shard_shape((32, 32))
    print(f"{name:<28} {loss:>13.1e} {parameters:>17.1e}   {shard[0]} × {shard[1]}")
    assert loss <= TOLERANCE
    assert parameters <= TOLERANCE
    moments = kernel(state.optimizer_state[1][0].mu)
    assert moments.sharding == kernel(state.params).sharding


def main(folder: str) -> None:
    """Prints the table."""
    jax.config.update("jax_default_matmul_precision", "highest")
    assert len(jax.devices()) == 8
    single = sharding.make_mesh(1, jax.devices()[:1])
    begin = jax.tree.map(np.asarray, start(single, False))
    reference = take_steps(single, False, jax.device_put(begin, single.devices.flat[0]), BATCHES)
    print(f"{STEPS} steps, float32, against one device: largest relative difference of")
    print(f"{'mesh (data × model)':<28} {'loss':>13} {'any parameter':>17}   shard of a 32 × 32")
    for fsdp in (False, True):
        for partitions in (1, 2, 4, 8):
            mesh = sharding.make_mesh(partitions)
            _, places = places_on(mesh, fsdp)
            # Made in shards on two of them; elsewhere the same numbers, to compile less.
            made = partitions == 2
            state = start(mesh, fsdp) if made else jax.device_put(begin, places)
            state, losses = take_steps(mesh, fsdp, state, BATCHES)
            name = f"{8 // partitions} × {partitions}{', FSDP' if fsdp else ''}"
            check(name, state, losses, reference)
            expected = (32 // (8 // partitions) if fsdp else 32, 32 // partitions)
            assert kernel(state.params).sharding.shard_shape((32, 32)) == expected

    # Two slices, joined by a slower network: parameters are split inside each, not over both.
    mesh = sharding.make_mesh(2, num_slices=2)
    _, places = places_on(mesh, True)
    state, losses = take_steps(mesh, True, jax.device_put(begin, places), BATCHES)
    check("2 slices of 2 × 2, FSDP", state, losses, reference)
    assert kernel(state.params).sharding.shard_shape((32, 32)) == (16, 16)

    # Half the steps on 4 × 2 with FSDP, a checkpoint, and the other half on four devices, 1 × 4.
    mesh = sharding.make_mesh(2)
    state, first = take_steps(mesh, True, start(mesh, True), BATCHES[:5])
    checkpointer = checkpoint.Checkpointer(folder)
    checkpointer.save(5, state, steps.Progress({}), saved_steps.DESCRIPTION)
    checkpointer.wait()
    fewer = sharding.make_mesh(4, jax.devices()[:4])
    state, _ = checkpointer.restore(5, sharding.add_shardings(*places_on(fewer, False)))
    checkpointer.close()
    assert kernel(state.params).sharding.shard_shape((32, 32)) == (32, 8)
    state, second = take_steps(fewer, False, state, BATCHES[5:])
    check("4 × 2, FSDP, then 1 × 4", state, np.concatenate([first, second]), reference)


if __name__ == "__main__":
    main(sys.argv[1])
