"""What XLA makes of the optimizer on CPU: loops, arrays that move, and the time of it.

    python benchmarks/optimizer_passes.py [--rows=32128]

Enters: nothing. Leaves: for a T5 v1.1 of width 256 and 4 + 4 layers, its layers apart and stacked:
how many loops the compiled update has for each large parameter and how many arrays they read and
write; the processor's milliseconds of an update on one core; how many of the updated arrays are
to the bit those of the optimizer that `train` uses; the same of an update that was tried, whose
clipped gradients are computed once for each moment, so that no array of them is written; and the
milliseconds of that arithmetic in one pass, written in C and compiled by the machine's `cc`.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from distill_sbs.cli import command_line, terminal
from distill_sbs.cli.freed_memory import keep_freed_memory
from distill_sbs.cli.run_main import run_main

if TYPE_CHECKING:
    from distill_sbs.config import OptimizerConfig

ROUNDS = 15
STEPS = 1000

# Not to the bit what XLA computes; it moves the same arrays, once.
ONE_PASS = r"""
#include <math.h>
#include <stddef.h>
float norm(const float *g, size_t n) {
  float sum = 0;
  for (size_t i = 0; i < n; i++) sum += g[i] * g[i];
  return sum;
}
void update(float *restrict p, float *restrict m, float *restrict v, const float *restrict g,
            size_t n, float scale, float rate) {
  for (size_t i = 0; i < n; i++) {
    float d = g[i] * scale;
    m[i] = 0.9f * m[i] + 0.1f * d;
    v[i] = 0.999f * v[i] + 0.001f * d * d;
    p[i] -= rate * ((m[i] / 0.1f) / (sqrtf(v[i] / 0.001f) + 1e-8f));
  }
}
"""


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("rows", 32128, "Of the embedding.", flag_values=values)


def measure(function: Callable[[], object]) -> str:
    """The median of the processor's milliseconds, and their range; the first run is not counted."""
    function()
    taken = []
    for _ in range(ROUNDS):
        since = time.process_time()
        function()
        taken.append(1e3 * (time.process_time() - since))
    return f"{statistics.median(taken):.1f} ({min(taken):.1f} to {max(taken):.1f})"


def count_loops(text: str, size: int) -> tuple[int, int, int]:
    """Loops over arrays of `size` values in optimised HLO, and how many of those they move.

    Args:
      text: of the compiled program.
      size: values of the array that is looked at.
    """

    def count(shapes: str) -> int:
        found = re.findall(r"f32\[([\d,]+)\]", shapes)
        return sum(int(np.prod([int(each) for each in dims.split(",")])) == size for dims in found)

    entry = text[text.index("\nENTRY ") :]
    shapes = dict(re.findall(r"%?([\w.-]+) = (\([^)]*\)|\S+) ", entry))
    loops = reads = writes = 0
    for line in entry.splitlines():
        match = re.match(r"\s*(?:ROOT )?%?[\w.-]+ = (\([^)]*\)|\S+) (\w[\w-]*)\((.*?)\)", line)
        if match is None or match[2] in ("tuple", "parameter", "get-tuple-element", "bitcast"):
            continue
        read = sum(count(shapes.get(name, "")) for name in re.findall(r"%([\w.-]+)", match[3]))
        written = count(match[1])
        if read or written:
            loops, reads, writes = loops + 1, reads + read, writes + written
    return loops, reads, writes


def make_twice(config: OptimizerConfig) -> Any:
    """AdamW's update behind clipping, with gradients that are clipped once for each moment."""
    import jax
    import jax.numpy as jnp
    import optax

    from distill_sbs.training.optimizer import make_schedule

    schedule = make_schedule(config, STEPS)
    most = config.gradient_clip_norm

    def update(gradients: Any, kept: Any, params: Any) -> Any:
        clipping, (adam, decay, rate) = kept
        norm = optax.tree.norm(gradients)
        # To the compiler another number: it does not share what is divided by it.
        other = jax.lax.optimization_barrier(norm)

        def clip(divisor: Any) -> Any:
            return jax.tree.map(
                lambda leaf: jax.lax.select(norm < most, leaf, (leaf / divisor) * most), gradients
            )

        count = optax.safe_increment(adam.count)
        mean = optax.tree.update_moment(clip(norm), adam.mu, 0.9, 1)
        square = optax.tree.update_moment_per_elem_norm(clip(other), adam.nu, config.adam_b2, 2)
        updates = jax.tree.map(
            lambda m, v: m / (jnp.sqrt(v) + 1e-8),
            optax.tree.bias_correction(mean, 0.9, count),
            optax.tree.bias_correction(square, config.adam_b2, count),
        )
        scale = optax.scale_by_learning_rate(schedule)
        updates, rate = scale.update(updates, rate, params)
        adam = optax.ScaleByAdamState(count, mean, square)
        return updates, (clipping, (adam, decay, rate))

    return update


def compare(rows: int) -> None:
    """Prints a table."""
    import jax
    import jax.numpy as jnp
    import optax

    from distill_sbs.config import OptimizerConfig
    from distill_sbs.model.config import named_config
    from distill_sbs.model.network import initial_parameters
    from distill_sbs.training.optimizer import make_optimizer

    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    chosen = OptimizerConfig(learning_rate=1e-4)
    optimizer = make_optimizer(chosen, STEPS)

    def make_step(update: Any) -> Any:
        def step(gradients: Any, kept: Any, params: Any) -> Any:
            updates, kept = update(gradients, kept, params)
            return kept, optax.apply_updates(params, updates)

        return jax.jit(step, donate_argnums=(1, 2))

    terminal.say("| layers | parameters | loops | reads | writes | ms | equal arrays |")
    terminal.say("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    size, expected = 0, []
    for name, scanned, update in (
        ("stacked", True, optimizer.update),
        ("apart", False, optimizer.update),
        ("apart, clipped twice", False, make_twice(chosen)),
    ):
        sizes = {"emb_dim": 256, "num_heads": 4, "head_dim": 64, "mlp_dim": 512}
        layers = {"num_encoder_layers": 4, "num_decoder_layers": 4, "scan_layers": scanned}
        config = named_config("t5_1_1_small", vocab_size=rows, **sizes, **layers)
        params = jax.jit(lambda c=config: initial_parameters(c, jax.random.key(0)))()
        gradients = jax.tree.map(lambda leaf: leaf * 0.01, params)
        size = sum(leaf.size for leaf in jax.tree.leaves(params))
        kept = optimizer.init(params)
        compiled = make_step(update).lower(gradients, kept, params).compile()
        state = [kept, jax.tree.map(jnp.copy, params)]

        def run(
            state: list[Any] = state, compiled: Any = compiled, gradients: Any = gradients
        ) -> None:
            state[:] = compiled(gradients, *state)
            jax.block_until_ready(state)

        loops, reads, writes = count_loops(compiled.as_text(), rows * 256)
        # The head has as many values, transposed.
        counts = " | ".join(f"{each / 2:g}" for each in (loops, reads, writes))
        taken = measure(run)
        found = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
        if update is optimizer.update:
            expected = found
        equal = sum(np.array_equal(*pair) for pair in zip(found, expected, strict=True))
        told = f"{equal} of {len(found)}"
        terminal.say(f"| {name} | {size:,} | {counts} | {taken} | {told} |")
    with tempfile.TemporaryDirectory() as folder:
        source, library = pathlib.Path(folder) / "one_pass.c", pathlib.Path(folder) / "one_pass.so"
        source.write_text(ONE_PASS)
        command = ["cc", "-O3", "-march=native", "-ffast-math", "-shared", "-fPIC", "-o"]
        subprocess.run([*command, str(library), str(source), "-lm"], check=True)
        one_pass = ctypes.CDLL(str(library))
    arrays = [np.random.default_rng(i).random(size, np.float32) for i in range(4)]
    pointers = [array.ctypes.data_as(ctypes.c_void_p) for array in arrays]
    count, floats = ctypes.c_size_t(size), (ctypes.c_float(0.5), ctypes.c_float(1e-4))
    one_pass.norm.restype = ctypes.c_float
    alone = measure(lambda: one_pass.update(*pointers, count, *floats))
    terminal.say(f"| one pass in C | {size:,} | 1 | 4 | 3 | {alone} | |")
    norm = measure(lambda: one_pass.norm(pointers[3], count))
    terminal.say(f"| the norm in C | {size:,} | 1 | 1 | 0 | {norm} | |")


def _work(argv: Sequence[str]) -> None:
    values = command_line.parse_flags(argv, _define_flags, __doc__ or "")
    keep_freed_memory()
    compare(values.rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Measures what the command line asks for; returns the exit status."""
    return run_main(lambda: _work(sys.argv if argv is None else argv), "nothing was measured")


if __name__ == "__main__":
    sys.exit(main())
