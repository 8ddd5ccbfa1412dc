"""What a training step takes with a whole vocabulary and with a trimmed one.

    python benchmarks/trimmed_step.py --vocabulary_file=spiece.model --dataset=cqa --teacher=palm

Enters: prepared records of a dataset (--data_dir), a SentencePiece model. Leaves: of a T5 v1.1 of
random parameters, whole and trimmed to the pieces of that dataset: parameters, MiB of parameters
and of what AdamW keeps, and the processor's milliseconds of a step, of its forward and backward
pass and of its optimizer, on one core, with the same batch; medians over all steps, the two taking
turns. And how many target positions of the batches are padding.
"""

from __future__ import annotations

import functools
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import small_student
from absl import flags

from distill_sbs.cli import terminal

if TYPE_CHECKING:
    import numpy as np

    from distill_sbs.data.batches.input_pipeline import TrainingData

BATCHES_LOOKED_AT = 20


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("vocabulary_file", None, "The model.", flag_values=values, required=True)
    flags.DEFINE_string("dataset", "cqa", "What is trained on.", flag_values=values)
    flags.DEFINE_string("teacher", "palm", "Whose rationales.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Of its records.", flag_values=values)
    flags.DEFINE_float("data_fraction", 1.0, "Of the training examples.", flag_values=values)
    flags.DEFINE_integer("batch_size", 64, "Sequences a step.", flag_values=values)
    flags.DEFINE_integer("steps", 8, "Of each student.", flag_values=values)


def load(values: flags.FlagValues, loaded: Any) -> TrainingData:
    """The training data with a vocabulary."""
    from distill_sbs.data import registration, settings
    from distill_sbs.data.batches import input_pipeline
    from distill_sbs.model import flops

    chosen = settings.DataSettings(values.data_dir, values.data_fraction, vocabulary=loaded)
    settings.use(chosen)
    found = registration.get_mixture_or_task(f"{values.dataset}_dss_{values.teacher}")
    cost = functools.partial(flops.step_cost, small_student.make_config())
    return input_pipeline.load_training_data(
        found, small_student.LENGTHS, values.batch_size, 0, step_cost=cost
    )


def count_padding(data: TrainingData) -> tuple[float, float]:
    """The shares of target positions and of all positions that are padding, in some batches."""
    from distill_sbs import constants

    position = data.sampler.start()
    padding, total = {"encoder": 0, "decoder": 0}, {"encoder": 0, "decoder": 0}
    batches = data.batches(position)
    for _ in range(BATCHES_LOOKED_AT):
        batch, _ = next(batches)
        for side, name in (
            ("encoder", constants.ENCODER_INPUT_TOKENS),
            ("decoder", constants.DECODER_TARGET_TOKENS),
        ):
            padding[side] += int((batch[name] == 0).sum())
            total[side] += batch[name].size
    everything = sum(padding.values()) / sum(total.values())
    return padding["decoder"] / total["decoder"], everything


def build(rows: int, batch: dict[str, np.ndarray]) -> dict[str, Callable[[], None]]:
    """By name, functions that each do one thing once, compiled and run before."""
    import jax
    import optax

    from distill_sbs.config import OptimizerConfig
    from distill_sbs.distributed import sharding
    from distill_sbs.training.optimizer import make_optimizer
    from distill_sbs.training.program import build_training_program

    update = make_optimizer(OptimizerConfig(learning_rate=1e-4), 1000)
    mesh = sharding.make_mesh(1)
    program = build_training_program(small_student.make_config(rows), update, mesh)
    on_mesh = sharding.put_batch(batch, mesh)
    state = [program.make_state()]
    gradients = jax.tree.map(lambda leaf: leaf * 0.01, state[0].params)
    optimizer_state = [update.init(state[0].params), jax.tree.map(lambda x: x + 0, gradients)]

    @jax.jit
    def copy(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf + 0, tree)

    def apply(gradients: Any, kept: Any, params: Any) -> Any:
        updates, kept = update.update(gradients, kept, params)
        return kept, optax.apply_updates(params, updates)

    optimize = jax.jit(apply, donate_argnums=(1, 2))
    optimizer_state[1] = copy(state[0].params)

    def step() -> None:
        with sharding.rules(mesh):
            state[0], metrics = program.step(state[0], on_mesh)
        jax.block_until_ready((state[0], metrics))

    def update_alone() -> None:
        optimizer_state[:] = optimize(gradients, *optimizer_state)
        jax.block_until_ready(optimizer_state)

    for each in (step, update_alone):
        each()
    return {"step": step, "optimizer": update_alone}


def compare(values: flags.FlagValues) -> None:
    """Prints a table."""
    import jax
    import numpy as np

    from distill_sbs.data import sentencepiece_model
    from distill_sbs.data import vocabulary as vocabularies
    from distill_sbs.model.network import initial_parameters

    described = sentencepiece_model.describe(values.vocabulary_file)
    occurring, kept = small_student.find_kept(described, values.dataset, values.data_dir)
    terminal.say(f"{occurring:,} pieces occur, {len(kept):,} rows are kept")
    trimmed = sentencepiece_model.trim(described, kept)
    data = load(values, vocabularies.from_description(trimmed))
    terminal.say(data.describe())
    targets, everything = count_padding(data)
    terminal.say(f"padding: {targets:.1%} of target positions, {everything:.1%} of all")
    batch, _ = next(data.batches(data.sampler.start()))
    whole = {
        name: kept[array].astype(np.int32) if name.endswith("_tokens") else array
        for name, array in batch.items()
    }
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    runs = {"whole": build(small_student.ROWS, whole), "trimmed": build(len(kept), batch)}
    taken: dict[tuple[str, str], list[float]] = {}
    for _ in range(values.steps):
        for name, functions in runs.items():
            for what, function in functions.items():
                since = time.process_time()
                function()
                taken.setdefault((name, what), []).append(1e3 * (time.process_time() - since))
    terminal.say("| vocabulary | rows | parameters | MiB | with AdamW's | ms a step | optimizer |")
    terminal.say("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, rows in (("whole", small_student.ROWS), ("trimmed", len(kept))):
        tree = jax.eval_shape(
            lambda r=rows: initial_parameters(small_student.make_config(r), jax.random.key(0))
        )
        count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
        times = [
            f"{statistics.median(taken[name, what]):,.0f} ({min(taken[name, what]):,.0f} to "
            f"{max(taken[name, what]):,.0f})"
            for what in ("step", "optimizer")
        ]
        sizes = f"{4 * count / 2**20:,.1f} | {12 * count / 2**20:,.1f}"
        terminal.say(f"| {name} | {rows:,} | {count:,} | {sizes} | {' | '.join(times)} |")


if __name__ == "__main__":
    sys.exit(small_student.run(compare, _define_flags, __doc__ or "", sys.argv))
