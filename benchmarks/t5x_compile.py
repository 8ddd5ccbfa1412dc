"""What T5X's own training step takes to compile for a TPU slice, and what its program needs.

    python benchmarks/t5x_compile.py [--topology=v5e:2x4] [--rows_per_chip=16] [--use_hardware_rng]

Enters: nothing; nothing is run. Leaves: a line of JSON, to be read beside that of `python -m
distill_sbs.precompile` of the same shape; FLOPs and bytes by XLA's own count, and by precompile's,
in which the two programs are counted alike.
Wanted: the extra `t5x`, requirements-t5x.txt (docs/t5x.md), and libtpu of the extra `precompile`.

T5X's example network in the size of T5 v1.1 Base, its layers written out, bfloat16, dropout 0.1;
`t5x.trainer.train_with_lr` with AdamW; rows over all chips, parameters on each.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence

from absl import flags

from distill_sbs.cli import command_line, terminal
from distill_sbs.cli.run_main import run_main

GIGA, TERA = 1e9, 1e12
STEPS = 1000


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("topology", "v5e:2x4", "The slice.", flag_values=values)
    flags.DEFINE_integer("rows_per_chip", 16, "Of a batch.", flag_values=values)
    flags.DEFINE_integer("inputs", 512, "Tokens of a row.", flag_values=values)
    flags.DEFINE_integer("targets", 128, "Tokens of a row.", flag_values=values)
    flags.DEFINE_bool("use_hardware_rng", False, "T5X's setting.", flag_values=values)


def compile_step(values: flags.FlagValues) -> None:
    """Compiles, and prints the line."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import seqio
    from jax.sharding import Mesh, NamedSharding, PartitionSpec
    from t5x import models, optimizers, train_state, trainer
    from t5x.examples.t5 import network

    from distill_sbs.config import OptimizerConfig
    from distill_sbs.precompiling import chips, hlo_costs
    from distill_sbs.training import optimizer

    if values.use_hardware_rng:  # as `t5x.train` does it
        jax.config.update("jax_default_prng_impl", "unsafe_rbg")
    devices, _ = chips.slice_devices(values.topology)
    mesh = Mesh(np.array(devices).reshape(-1, 1), ("data", "model"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_row = NamedSharding(mesh, PartitionSpec("data"))
    vocabulary = seqio.ByteVocabulary()
    student = network.T5Config(
        vocab_size=32128,
        dtype=jnp.bfloat16,
        emb_dim=768,
        num_heads=12,
        num_encoder_layers=12,
        num_decoder_layers=12,
        head_dim=64,
        mlp_dim=2048,
        mlp_activations=("gelu", "linear"),
        dropout_rate=0.1,
        logits_via_embedding=False,
    )
    model = models.EncoderDecoderModel(
        network.Transformer(config=student),
        vocabulary,
        vocabulary,
        optimizer_def=optimizers.OptaxWrapper(optimizer.make_optimizer(OptimizerConfig(), STEPS)),
    )
    rows = values.rows_per_chip * len(devices)
    inputs, targets = (rows, values.inputs), (rows, values.targets)
    shapes = {
        "encoder_input_tokens": inputs,
        "encoder_segment_ids": inputs,
        "encoder_positions": inputs,
        "decoder_target_tokens": targets,
        "decoder_input_tokens": targets,
        "decoder_loss_weights": targets,
        "decoder_segment_ids": targets,
        "decoder_positions": targets,
    }

    def make_state() -> object:
        variables = model.get_initial_variables(jax.random.PRNGKey(0), shapes)
        return train_state.FlaxOptimTrainState.create(model.optimizer_def, variables)

    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere),
        jax.eval_shape(make_state),
    )
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=by_row)
        for name, shape in shapes.items()
    }
    shape = jax.eval_shape(lambda: jax.random.PRNGKey(0)).shape
    key = jax.ShapeDtypeStruct(shape, jnp.uint32, sharding=everywhere)
    step = jax.jit(
        lambda state, batch, key: trainer.train_with_lr(
            state, batch, jnp.float32(1e-4), key, model, None
        ),
        donate_argnums=0,
    )
    with mesh:
        since, processor_since = time.monotonic(), time.process_time()
        compiled = step.lower(state, batch, key).compile()
        seconds, processor = time.monotonic() - since, time.process_time() - processor_since
    counted, memory = compiled.cost_analysis(), compiled.memory_analysis()
    ours = hlo_costs.Program(compiled.as_text()).costs()
    found = {
        "topology": values.topology,
        "rows": rows,
        "use_hardware_rng": values.use_hardware_rng,
        "seconds": seconds,
        "processor seconds": processor,
        "TFLOP of a chip": counted["flops"] / TERA,
        "GB accessed": counted["bytes accessed"] / GIGA,
        "as precompile counts: TFLOP of matrix products": ours.matrix_flops / TERA,
        "GB accessed as precompile counts": ours.accessed_bytes / GIGA,
        "… of them in HBM": ours.memory_bytes / GIGA,
        "temporaries, GB": memory.temp_size_in_bytes / GIGA,
    }
    terminal.say(json.dumps(found))


def main(argv: Sequence[str]) -> int:
    """Compiles what the command line asks for."""
    values = command_line.parse_flags(argv, _define_flags, str(__doc__))
    return run_main(lambda: compile_step(values))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
