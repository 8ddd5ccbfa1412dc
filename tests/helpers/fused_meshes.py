"""Fused attention on eight simulated devices: what tests/model/test_fused_attention.py starts.

Enters: nothing. Leaves: the meshes' names on standard output, and `same` where two steps on each
have the losses and gradients' norms of one device; an AssertionError otherwise.
"""

from __future__ import annotations

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import numpy as np
from model_examples import SMALL, batch

from distill_sbs.config import OptimizerConfig
from distill_sbs.distributed import sharding
from distill_sbs.training.optimizer import make_optimizer
from distill_sbs.training.program import build_training_program


def losses_on(devices: int, partitions: int) -> list[float]:
    """Loss and gradient norm of two steps."""
    config = type(SMALL).from_dict(
        SMALL.to_dict() | {"attention": "fused", "scan_layers": True, "num_encoder_layers": 1}
    )
    mesh = sharding.make_mesh(partitions, jax.devices()[:devices])
    update = make_optimizer(OptimizerConfig(learning_rate=1e-2), 100)
    program = build_training_program(config, update, mesh)
    state, found = program.make_state(), []
    for seed in (0, 1):
        with sharding.rules(mesh):
            features = sharding.put_batch(batch(rows=8, seed=seed), mesh)
            state, metrics = program.step(state, features)
        found += [float(metrics["loss"]), float(metrics["gradient_norm"])]
    return found


def main() -> None:
    """Compares two meshes with one device."""
    expected = losses_on(1, 1)
    for partitions in (1, 2):
        np.testing.assert_allclose(losses_on(8, partitions), expected, rtol=1e-5)
        print(f"{8 // partitions}x{partitions}")
    print("same")


if __name__ == "__main__":
    main()
