"""What an allocation tells at its end.

Enters: its history and its evaluations. Leaves: `allocation.json`, and a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distill_sbs.allocating.budget import GENERATION, TRAINING, TokenBudget
from distill_sbs.allocating.history import History
from distill_sbs.cli import terminal

SUMMARY_FILE = "allocation.json"

Metrics = Mapping[str, float]


def summarise(
    history: History,
    budget: TokenBudget,
    best_step: int,
    validation: Metrics,
    last_validation: Metrics,
    test: Metrics | None,
) -> dict[str, object]:
    """The content of `allocation.json`.

    Args:
      history: of the whole run.
      budget: as it was spent.
      best_step: the step of the highest validation.
      validation: at that step.
      last_validation: when the budget was spent.
      test: at the best step; None where there is no test split.
    """
    head, intervals = history.head, history.intervals
    names = list(head.capabilities)
    return {
        "task": head.task,
        "policy": head.options["POLICY"],
        "seed": head.options["RANDOM_SEED"],
        "budget": {
            "total": budget.total,
            GENERATION: budget.generation,
            TRAINING: budget.training,
        },
        "used": dict(budget.used),
        "intervals": len(intervals),
        "steps": intervals[-1].step,
        "requirement": dict(zip(names, head.requirement, strict=True)),
        "trained_tokens": {
            name: sum(each.tokens[number] for each in intervals)
            for number, name in enumerate(names)
        },
        "profile": {
            name: [head.profile[number], intervals[-1].profile[number]]
            for number, name in enumerate(names)
        },
        "spill": sum(each.spill for each in intervals),
        "best_step": best_step,
        "validation": dict(validation),
        "last_validation": dict(last_validation),
        "test": None if test is None else dict(test),
    }


def print_summary(
    history: History,
    budget: TokenBudget,
    evaluations: Sequence[tuple[str, Metrics]],
    model_dir: str,
) -> None:
    """Prints the table at the end, to standard output.

    Args:
      history: of the whole run.
      budget: as it was spent.
      evaluations: what was evaluated, and its metrics.
      model_dir: the run's folder.
    """
    head, intervals = history.head, history.intervals
    table = terminal.make_table(
        "capability",
        "needed",
        "trained tokens",
        "log-probability a token",
        title=f"{head.task}, {head.options['POLICY']}, {len(intervals)} intervals",
        right_from=1,
    )
    for number, name in enumerate(head.capabilities):
        tokens = sum(each.tokens[number] for each in intervals)
        before, after = head.profile[number], intervals[-1].profile[number]
        terminal.add_row(
            table,
            name,
            f"{head.requirement[number]:.3f}",
            f"{tokens:,}",
            f"{before:.3f} → {after:.3f}",
        )
    terminal.make_console().print(table)
    used = budget.used
    terminal.say(
        f"used {used[TRAINING]:,} of {budget.training:,} trained and {used[GENERATION]:,} of "
        f"{budget.generation:,} generated tokens; spill {sum(each.spill for each in intervals):.3f}"
    )
    for what, metrics in evaluations:
        told = ", ".join(
            f"{name.replace('_', ' ')} {value:.3f}"
            for name, value in metrics.items()
            if name != "step"
        )
        terminal.say(f"{what}: {told}")
    terminal.say(f"written to {model_dir}")
