"""What a training step takes by the rows it is laid into, and by what becomes of freed memory.

    python benchmarks/step_rows.py [--mixture=comparisons_dss_template] [--rounds=5]
    … --mixture=cqa_dss_palm --vocabulary_file=spiece.model --batch_size=32 --rows=4,8 --cores=2

Enters: nothing, where the mixture is generated; else prepared records and a SentencePiece model.
Leaves: for numbers of rows into which the same batch is laid, what `choose_layout` takes their cost
for, in GFLOP, and what a step took: milliseconds and page faults, with freed memory kept
(`cli.freed_memory`) and as the C library has it, a process each. Processes and rows take turns;
medians over all rounds. The student is the quickstart's of width 64; with a vocabulary file that
of `reference.py`.
"""

from __future__ import annotations

import collections
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import small_student
from absl import flags

from distill_sbs.cli import command_line, terminal
from distill_sbs.cli.freed_memory import keep_freed_memory
from distill_sbs.cli.run_main import run_main

STEPS = 10
STUDENT = {
    "vocab_size": 512, "emb_dim": 64, "num_heads": 4, "head_dim": 16, "mlp_dim": 256,
    "logits_via_embedding": True,
}  # fmt: skip


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "mixture", "comparisons_dss_template", "What is trained on.", flag_values=values
    )
    flags.DEFINE_string("vocabulary_file", None, "Else our own.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Of its records.", flag_values=values)
    flags.DEFINE_integer("batch_size", 128, "Sequences a step.", flag_values=values)
    flags.DEFINE_integer("cores", 1, "That a process may use.", flag_values=values)
    flags.DEFINE_integer("rounds", 5, "Processes of each kind.", flag_values=values)
    flags.DEFINE_list("rows", ["128", "64", "32", "22", "16"], "To try.", flag_values=values)
    flags.DEFINE_boolean("kept", None, "Measures in this process.", flag_values=values)


def measure(values: flags.FlagValues) -> dict[str, list[float]]:
    """By rows: milliseconds and page faults of a step."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: values.cores])
    if values.kept:
        keep_freed_memory()
    from distill_sbs.cli import quiet_tensorflow

    quiet_tensorflow.import_tensorflow()
    import jax
    import numpy as np

    from distill_sbs.config import OptimizerConfig, StudentConfig
    from distill_sbs.data import registration, settings
    from distill_sbs.data.batches import input_pipeline, layout
    from distill_sbs.model import flops
    from distill_sbs.model.network import Transformer
    from distill_sbs.training.optimizer import make_optimizer
    from distill_sbs.training.train_step import Objective, initial_state, make_train_step

    vocabulary_file = values.vocabulary_file or "embedded"
    settings.use(settings.DataSettings(values.data_dir, vocabulary_file=vocabulary_file))
    registration.load_task_files(())
    found = registration.get_mixture_or_task(values.mixture)
    registration.prepare_missing(found)
    if values.vocabulary_file:
        config = small_student.make_config(dropout_rate=0.0)
    else:
        own = StudentConfig(name="t5_1_1_tiny", overrides=STUDENT, dropout_rate=0.0)
        config = own.architecture()
    model, update = Transformer(config), make_optimizer(OptimizerConfig(), 1000)
    step = jax.jit(make_train_step(model, update, Objective(), 0), donate_argnums=0)
    cost = functools.partial(flops.step_cost, config)
    data = input_pipeline.load_training_data(
        found, small_student.LENGTHS, values.batch_size, 0, step_cost=cost
    )
    sequences, _ = data.sampler.draw(data.sampler.start(), values.batch_size)
    lengths = layout.measure(sequences)
    batches, states = {}, {}
    for number in map(int, values.rows):
        for slack in np.linspace(1.0, 3.0, 41):
            sizes = np.maximum(np.ceil(lengths.sum(axis=0) * slack / number), lengths.max(axis=0))
            shape = layout.BatchShape(number, int(sizes[0]), int(sizes[1]))
            if layout.assign_rows(lengths, shape) is not None:
                break
        chosen = ", chosen" if number == data.batch_layout.usual.rows else ""
        name = (
            f"{number} of {shape.input_tokens} + {shape.target_tokens}{chosen} "
            f"| {shape.cost(cost) / 1e9:,.1f}"
        )
        batches[name] = layout.fill(sequences, layout.Layout(shape, shape))
        states[name], metrics = step(initial_state(model, update, 0), batches[name])
        jax.block_until_ready(metrics)
    taken: dict[str, list[tuple[float, int]]] = collections.defaultdict(list)
    for _ in range(STEPS):
        for name, batch in batches.items():
            faults, since = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.monotonic()
            states[name], metrics = step(states[name], batch)
            jax.block_until_ready(metrics)
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            taken[name].append((1e3 * (time.monotonic() - since), faults))
    return {
        name: [statistics.median(column) for column in zip(*each, strict=True)]
        for name, each in taken.items()
    }


def compare(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Prints a table."""
    results: dict[tuple[str, bool], list[list[float]]] = collections.defaultdict(list)
    for _ in range(values.rounds):
        for kept in (False, True):
            command = [sys.executable, __file__, *arguments, f"--kept={kept}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            for name, taken in json.loads(done.stdout).items():
                results[name, kept].append(taken)
    terminal.say(
        "| rows of input + target tokens | GFLOP | kept: ms a step | faults | else | faults |"
    )
    terminal.say("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in dict.fromkeys(name for name, _ in results):
        cells = []
        for kept in (True, False):
            times, faults = zip(*results[name, kept], strict=True)
            cells.append(f"{statistics.median(times):.0f} ({min(times):.0f} to {max(times):.0f})")
            cells.append(f"{statistics.median(faults):,.0f}")
        terminal.say(f"| {name} | {' | '.join(cells)} |")


def main(argv: Sequence[str]) -> int:
    """Measures what the command line asks for."""
    values = command_line.parse_flags(argv, _define_flags, str(__doc__))
    if values.kept is not None:
        print(json.dumps(measure(values)))
        return 0
    return run_main(lambda: compare(values, argv[1:]))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
