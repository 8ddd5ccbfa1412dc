"""Eight simulated devices against one, with the mutual-information loss: tests/training starts it.

With the argument `shared` the pairs have their inputs in common.

Leaves: a line for each mesh on standard output; an AssertionError where a step is not that of one
device, or where logits travel between the devices of different rows.
"""

from __future__ import annotations

import dataclasses
import re
import sys

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from distill_sbs.data.batches import layout
from distill_sbs.distributed import sharding
from distill_sbs.model.config import T5Config
from distill_sbs.model.network import Transformer
from distill_sbs.training.train_step import Objective, TrainState, initial_state, make_train_step

MODEL = Transformer(
    T5Config(
        vocab_size=256,
        emb_dim=16,
        num_heads=4,
        head_dim=4,
        mlp_dim=16,
        num_encoder_layers=1,
        num_decoder_layers=1,
        dropout_rate=0.0,
    )
)
SGD = optax.sgd(1.0)
ROWS, TARGETS = 8, 24
SHARED = "shared" in sys.argv[1:]
SHAPE = layout.BatchShape(ROWS, 32, TARGETS, pairs=3, shared_encoder=SHARED)


def make_batch() -> layout.Batch:
    """Sixteen pairs in eight rows, labels of 2 tokens and rationales of 3 to 9."""
    random = np.random.default_rng(0)

    def sequence(task: int) -> layout.Sequence2Sequence:
        length = 2 if task == 1 else int(random.integers(3, 10))
        inputs = random.integers(2, 256, 6)
        return layout.Sequence2Sequence(
            inputs, random.integers(2, 256, length), np.full(length, task)
        )

    members = [sequence(number % 2 + 1) for number in range(32)]
    if SHARED:
        members[1::2] = [
            dataclasses.replace(each, inputs=np.zeros(0, np.int32), start=1)
            for each in members[1::2]
        ]
    return layout.fill(members, layout.Layout(SHAPE, SHAPE))


def take_step(mesh: Mesh, fsdp: bool) -> tuple[list[np.ndarray], dict[str, float], str]:
    """Parameters and sums after a step, and the compiled program's text."""
    shapes = jax.eval_shape(lambda: initial_state(MODEL, SGD, 0))
    places = sharding.state_shardings(mesh, SGD, shapes, fsdp)
    objective = Objective(mutual_information_weight=0.3, logits_chunk_tokens=256)
    step = jax.jit(
        make_train_step(MODEL, SGD, objective, 0, 1, places.params),
        in_shardings=(places, sharding.batch_sharding(mesh)),
        out_shardings=(places, sharding.replicated(mesh)),
    )
    state: TrainState = jax.jit(lambda: initial_state(MODEL, SGD, 0), out_shardings=places)()
    with sharding.rules(mesh):
        batch = sharding.put_batch(make_batch(), mesh)
        compiled = step.lower(state, batch).compile()
        state, metrics = compiled(state, batch)
    values = {
        "loss": float(metrics["loss"]),
        "mutual_information": float(metrics["mutual_information"].total),
        "pairs": float(metrics["mutual_information"].count),
    }
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)], values, compiled.as_text()


def count_gathered(program: str) -> int:
    """Elements of the largest array that is put together of several devices' parts."""
    found = re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-to-all)\(", program)
    return max((int(np.prod([int(size) for size in each.split(",")])) for each in found), default=0)


def main() -> None:
    """Compares."""
    jax.config.update("jax_default_matmul_precision", "highest")
    assert len(jax.devices()) == 8
    params, values, _ = take_step(sharding.make_mesh(1, jax.devices()[:1]), False)
    assert values["pairs"] == 16
    for partitions, fsdp in ((1, False), (2, True)):
        mesh = sharding.make_mesh(partitions)
        found, found_values, program = take_step(mesh, fsdp)
        np.testing.assert_allclose(list(found_values.values()), list(values.values()), rtol=1e-5)
        for one, other in zip(params, found, strict=True):
            assert np.linalg.norm(one - other) <= 1e-5 * np.linalg.norm(one)
        # A chunk's logits have 8 rows × 8 positions × 256 tokens, 16,384 elements; of parameters at
        # most the embedding is gathered, over the data axis.
        gathered = count_gathered(program)
        print(f"{dict(mesh.shape)}: equal; largest array gathered: {gathered} elements")
        assert gathered <= (256 * 16 if fsdp else 0)


if __name__ == "__main__":
    main()
