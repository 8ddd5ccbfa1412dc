"""sharding: meshes, batch sizes that fit them, and where arrays lie. Eight simulated devices."""

from __future__ import annotations

import pathlib
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from distill_sbs import sharding
from distill_sbs.errors import UserError


def mesh_of(data: int, model: int) -> Mesh:
    """A mesh of one device repeated: enough to ask for sizes and specs."""
    return Mesh(
        np.array([jax.devices()[0]] * data * model).reshape(1, data, model),
        ("slice", "data", "model"),
    )


@pytest.mark.parametrize(("partitions", "shape"), [(1, (8, 1)), (2, (4, 2)), (8, (1, 8))])
def test_mesh_shapes(partitions: int, shape: tuple[int, int]) -> None:
    mesh = sharding.make_mesh(partitions, [jax.devices()[0]] * 8)
    assert (mesh.shape["data"], mesh.shape["model"]) == shape


def test_partitions_must_divide_the_devices() -> None:
    with pytest.raises(UserError, match=r"=3 does not divide 8 devices; use one of \[1, 2, 4, 8\]"):
        sharding.make_mesh(3, [jax.devices()[0]] * 8)


def test_batch_size_must_fit() -> None:
    sharding.check_batch_size(16, 1, mesh_of(8, 1))
    with pytest.raises(UserError, match="BATCH_SIZE=10 is not a multiple of 8 devices; use 16"):
        sharding.check_batch_size(10, 1, mesh_of(8, 1))
    with pytest.raises(UserError, match="8 devices × 4 microbatches; use 32"):
        sharding.check_batch_size(16, 4, mesh_of(8, 1))


SAME_ON_EVERY_MESH = """
    import jax, numpy as np, jax.numpy as jnp
    from distill_sbs import sharding
    from distill_sbs.model.config import named_config
    from distill_sbs.model.network import Transformer
    from distill_sbs.optimizer import linear_decay, make_optimizer
    from distill_sbs.train_step import Objective, initial_state, make_train_step

    jax.config.update("jax_default_matmul_precision", "highest")
    model = Transformer(named_config("t5_1_1_tiny", vocab_size=64, num_heads=8, head_dim=4,
                                     emb_dim=32, mlp_dim=64, dropout_rate=0.1))
    update = make_optimizer("adamw", linear_decay(1e-3, 100))
    random = np.random.default_rng(0)
    tokens = lambda: random.integers(2, 64, (16, 12)).astype(np.int32)
    batches = []
    for _ in range(3):
        target = tokens()
        batches.append({
            "encoder_input_tokens": tokens(),
            "decoder_target_tokens": target,
            "decoder_input_tokens": np.pad(target, ((0, 0), (1, 0)))[:, :-1],
            "decoder_task_ids": random.integers(1, 3, (16, 1)).repeat(12, 1).astype(np.int32),
        })

    def run(devices, partitions, microbatches=1):
        mesh = sharding.make_mesh(partitions, jax.devices()[:devices])
        abstract = jax.eval_shape(lambda: initial_state(model, update, 0))
        places = sharding.state_shardings(mesh, update, abstract)
        with sharding.rules(mesh):
            state = jax.jit(lambda: initial_state(model, update, 0), out_shardings=places)()
            step = jax.jit(make_train_step(model, update, Objective(0.5), 0, microbatches),
                           in_shardings=(places, sharding.batch_sharding(mesh)),
                           out_shardings=(places, sharding.replicated(mesh)), donate_argnums=0)
            for batch in batches:
                state, metrics = step(state, sharding.put_batch(batch, mesh))
        return state, float(metrics["loss"])

    assert len(jax.devices()) == 8
    reference, loss = run(1, 1)
    for partitions in (1, 2, 4, 8):
        state, other = run(8, partitions)
        assert abs(other - loss) <= 1e-5 * loss, (partitions, other, loss)
        for one, two in zip(jax.tree.leaves(reference.params), jax.tree.leaves(state.params)):
            one, two = np.asarray(one), np.asarray(two)
            assert np.linalg.norm(one - two) <= 1e-5 * np.linalg.norm(one), partitions
        print(8 // partitions, "x", partitions, "loss", other, "of one device", loss)
    query = state.params["encoder"]["layers_0"]["attention"]["query"]["kernel"]
    moments = state.optimizer_state[1][0].mu["encoder"]["layers_0"]["attention"]["query"]["kernel"]
    assert query.sharding.shard_shape(query.shape) == (32, 4)
    assert moments.sharding == query.sharding
"""


def test_every_mesh_gives_one_devices_parameters() -> None:
    """8×1, 4×2, 2×4 and 1×8, dropout on: loss and parameters of a single device."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SAME_ON_EVERY_MESH)],
        env={
            **__import__("os").environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
        },
        cwd=pathlib.Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
