"""What a step takes where label and rationale share one encoder pass, and where they do not.

    python benchmarks/shared_encoder.py [--rounds=10] [--steps=4]

Enters: nothing; `wordproblems` is generated, and of CommonsenseQA only the lengths are taken, drawn
at random. Leaves: a table. Both programs train the quickstart's student on the same examples, each
in the rows that the layout chooser gives it, on one core, in turns: a round takes the same batches
of both. What counts is the processor's time of a step, the median over rounds with the least and
the most; wall-clock time depends on what else runs.
"""

from __future__ import annotations

import collections
import functools
import os
import statistics
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from distill_sbs.cli import command_line, terminal
from distill_sbs.cli.freed_memory import keep_freed_memory
from distill_sbs.cli.run_main import run_main

if TYPE_CHECKING:
    from distill_sbs.data.batches.sampler import TokenisedTask

LENGTHS = {"inputs": 128, "targets": 128, "task_ids": 128}
# The quickstart's.
STUDENT = {
    "vocab_size": 512, "emb_dim": 96, "num_heads": 4, "head_dim": 16, "mlp_dim": 192,
    "logits_via_embedding": True,
}  # fmt: skip
WORDPROBLEMS, LIKE_CQA = "wordproblems", "lengths as CQA's"
# Tokens of CQA's inputs, labels and rationales: mean and standard deviation; a prefix has 3.
CQA_LENGTHS = ((45, 9), (4, 1), (31, 7))
PREFIX_TOKENS = 3
CQA_EXAMPLES = 4000


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("rounds", 10, "How often both take their turn.", flag_values=values)
    flags.DEFINE_integer("steps", 4, "Batches in a turn.", flag_values=values)
    flags.DEFINE_integer("batch_size", 128, "Labels and rationales a step.", flag_values=values)


def make_tasks(data: str, shared: bool) -> tuple[TokenisedTask, TokenisedTask]:
    """Labels and rationales, of inputs with a prefix, or without where the encoder is shared."""
    import numpy as np

    from distill_sbs.data import registration, settings
    from distill_sbs.data.batches import input_pipeline
    from distill_sbs.data.batches.layout import Sequence2Sequence
    from distill_sbs.data.batches.sampler import TokenisedTask

    if data == WORDPROBLEMS:
        settings.use(settings.DataSettings(vocabulary_file="embedded", shared_encoder=shared))
        found = registration.get_mixture_or_task("wordproblems_dss_template")
        registration.prepare_missing(found)
        labels, rationales = (
            input_pipeline.tokenise(task, "train", LENGTHS, keep_texts=False)
            for task in registration.tasks_of(found)
        )
        return labels, rationales
    random = np.random.default_rng(0)
    tasks: list[list[Sequence2Sequence]] = [[], []]
    for _ in range(CQA_EXAMPLES):
        sizes = [max(2, round(random.normal(*size))) for size in CQA_LENGTHS]
        text, label, rationale = (random.integers(2, 512, size).astype(np.int32) for size in sizes)
        for number, targets in enumerate((label, rationale)):
            prefix = np.full(0 if shared else PREFIX_TOKENS, 2 + number, np.int32)
            start = number if shared else 0
            ids = np.full(len(targets), 1 + number, np.int32)
            inputs = np.concatenate([prefix, text])
            tasks[number].append(Sequence2Sequence(inputs, targets, ids, start=start))
    indices = np.arange(CQA_EXAMPLES)
    labels, rationales = (
        TokenisedTask(name, sequences, [], [], 0.0, 0.0, indices=indices)
        for name, sequences in zip(("label", "rationale"), tasks, strict=True)
    )
    return labels, rationales


def compare(data: str, batch_size: int, rounds: int, steps: int) -> list[str]:
    """The cells of two rows of the table: without, and with a shared encoder."""
    import jax

    from distill_sbs.config import OptimizerConfig, StudentConfig
    from distill_sbs.data.batches import input_pipeline, layout, pairs
    from distill_sbs.data.batches.sampler import MixtureSampler
    from distill_sbs.model import flops
    from distill_sbs.model.network import Transformer
    from distill_sbs.training.optimizer import make_optimizer
    from distill_sbs.training.train_step import Objective, initial_state, make_train_step

    config = StudentConfig(name="t5_1_1_tiny", overrides=STUDENT, dropout_rate=0.0).architecture()
    model, update = Transformer(config), make_optimizer(OptimizerConfig(), 1000)
    step = jax.jit(make_train_step(model, update, Objective(), 0), donate_argnums=0)
    cost = functools.partial(flops.step_cost, config)
    batches: dict[bool, list[layout.Batch]] = {}
    layouts: dict[bool, layout.Layout] = {}
    for shared in (False, True):
        labels, rationales = make_tasks(data, shared)
        join = pairs.share_inputs if shared else pairs.pair_tasks
        paired = join(labels, rationales)
        mixed = [paired] if shared else [labels, rationales]
        chosen = input_pipeline.lay_out_tasks(
            mixed, [1.0] * len(mixed), batch_size, 0, step_cost=cost
        )
        layouts[shared] = chosen.batch_layout
        # The same examples in the same order: both tasks have one name.
        sampler = MixtureSampler([paired], [1.0], seed=0)
        position, batches[shared] = sampler.start(), []
        for _ in range(steps):
            sequences, position = sampler.draw(position, batch_size // 2)
            batches[shared].append(layout.fill(sequences, layouts[shared]))
    states = {shared: initial_state(model, update, 0) for shared in batches}
    for shared, of_both in batches.items():  # compiled, whatever their shapes
        for batch in of_both:
            states[shared], metrics = step(states[shared], batch)
            jax.block_until_ready(metrics)
    taken: dict[bool, list[tuple[float, float]]] = collections.defaultdict(list)
    for number in range(rounds):
        for shared in (False, True) if number % 2 else (True, False):
            since, processor_since = time.monotonic(), time.process_time()
            for batch in batches[shared]:
                states[shared], metrics = step(states[shared], batch)
                jax.block_until_ready(metrics)
            taken[shared].append(
                (
                    1e3 * (time.process_time() - processor_since) / steps,
                    1e3 * (time.monotonic() - since) / steps,
                )
            )
    rows = []
    for shared, name in ((False, "a pass each"), (True, "shared")):
        shape = layouts[shared].usual
        ratios = [
            mine[0] / other[0] for mine, other in zip(taken[shared], taken[False], strict=True)
        ]
        processor, wall = zip(*taken[shared], strict=True)
        of_encoder = [batch["encoder_input_tokens"] for batch in batches[shared]]
        tokens = statistics.mean(int((each > 0).sum()) for each in of_encoder)
        cells = (
            f"{data}: {name}",
            f"{shape.rows} of {shape.input_tokens} + {shape.target_tokens}",
            f"{tokens:,.0f}",
            _spread(processor),
            statistics.median(wall),
            _spread(ratios, ".2f"),
        )
        rows.append("| {} | {} | {} | {} | {:.0f} | {} |".format(*cells))
    return rows


def _spread(values: Sequence[float], form: str = ".0f") -> str:
    """Median (least to most)."""
    median, least, most = (
        format(each, form) for each in (statistics.median(values), min(values), max(values))
    )
    return f"{median} ({least} to {most})"


def measure(batch_size: int, rounds: int, steps: int) -> None:
    """Prints the table."""
    os.sched_setaffinity(0, [max(os.sched_getaffinity(0))])
    keep_freed_memory()
    from distill_sbs.cli import quiet_tensorflow

    quiet_tensorflow.import_tensorflow()
    from distill_sbs.data import registration

    registration.load_task_files(())
    terminal.say(
        "| examples, encoder | rows of input + target tokens | encoder tokens a step | processor "
        "ms a step | wall ms | of a pass each |"
    )
    terminal.say("| --- | --- | ---: | ---: | ---: | ---: |")
    for data in (LIKE_CQA, WORDPROBLEMS):
        for row in compare(data, batch_size, rounds, steps):
            terminal.say(row)


def main(argv: Sequence[str]) -> int:
    """Measures what the command line asks for."""
    values = command_line.parse_flags(argv, _define_flags, str(__doc__))
    return run_main(lambda: measure(values.batch_size, values.rounds, values.steps))


if __name__ == "__main__":
    sys.exit(main(sys.argv))
