"""program: the step as it is lowered, constraints on activations and parameters in it."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import textwrap

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
