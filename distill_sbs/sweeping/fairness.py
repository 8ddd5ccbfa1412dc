"""Whether the runs of a sweep are compared fairly: equal examples, equal steps.

Enters: planned runs. Leaves: lines that say what each method sees, and what is not equal.
"""

from __future__ import annotations

import fractions
from collections.abc import Iterator, Sequence

from distill_sbs.sweeping.plan import Run


def describe(runs: Sequence[Run]) -> Iterator[str]:
    """A line a method: its batch in sequences and in examples, its steps; then what differs."""
    seen: dict[tuple[str, str, int, fractions.Fraction, int], int] = {}
    for run in runs:
        examples = run.examples_per_step()
        if run.config is None or examples is None:
            continue
        has_rationales = run.sequences_per_example != 1
        rate = f"λ = {run.config.objective.rationale_rate:g}" if has_rationales else "labels"
        steps = run.config.run.train_steps
        mixture = run.config.data.mixture_or_task_name
        key = (mixture, rate, run.config.batch.batch_size, examples, steps)
        seen[key] = seen.get(key, 0) + 1
    for (mixture, rate, batch, examples, steps), count in seen.items():
        yield (
            f"  {mixture} ({rate}): BATCH_SIZE = {batch}, {_write(examples)} examples a step, "
            f"{steps} steps; {count} run{'s' if count > 1 else ''}"
        )
    if not seen:
        return
    examples_seen = {key[3] for key in seen}
    steps_seen = {key[4] for key in seen}
    if len(examples_seen) == len(steps_seen) == 1:
        (examples,), (steps,) = examples_seen, steps_seen
        total = _write(examples * steps)
        yield f"equal for all: {_write(examples)} examples a step, {steps} steps, {total} examples"
        return
    if len(examples_seen) > 1:
        told = " and ".join(_write(each) for each in sorted(examples_seen))
        yield f"not equal: {told} examples a step"
    if len(steps_seen) > 1:
        yield f"not equal: {' and '.join(str(each) for each in sorted(steps_seen))} steps"


def _write(examples: fractions.Fraction) -> str:
    return f"{float(examples):,.4g}" if examples.denominator > 1 else f"{int(examples):,}"
