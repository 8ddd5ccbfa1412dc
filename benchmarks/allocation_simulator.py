"""How much adaptivity pays in a toy world: every policy over the same worlds, in seconds.

    OPENBLAS_NUM_THREADS=1 python benchmarks/allocation_simulator.py --worlds=40

Enters: how many worlds, policies by name. Leaves: a table of gains and spills on standard output,
the means over worlds. The ensemble takes minutes, so it is measured where it is named.
"""

from __future__ import annotations

import sys

import numpy as np
from absl import flags

from distill_sbs.allocating.policies import make_policy
from distill_sbs.allocating.simulator import Outcome, World, run_world
from distill_sbs.cli import command_line, terminal
from distill_sbs.cli.run_main import run_main

POLICIES = ("uniform", "random", "single", "proportional", "linucb", "thompson", "oracle")


def run_worlds(
    name: str, worlds: int, kappa: float | None, beta: float, intervals: int
) -> list[Outcome]:
    """A policy's outcome in each world."""
    return [
        run_world(
            World.draw(seed),
            None if name == "oracle" else make_policy(name, seed, kappa),
            seed,
            intervals=intervals,
            spill_weight=beta,
        )
        for seed in range(worlds)
    ]


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_integer("worlds", 40, "How many.", flag_values=values, lower_bound=1)
    flags.DEFINE_list("policies", list(POLICIES), "Which.", flag_values=values)
    flags.DEFINE_list("kappas", [], "κ of bandits; none: their own.", flag_values=values)
    flags.DEFINE_list("betas", ["0.5"], "β.", flag_values=values)
    flags.DEFINE_integer("intervals", 40, "Of a run.", flag_values=values, lower_bound=1)


def main(argv: list[str]) -> None:
    """Prints the table."""
    given = command_line.parse_flags(argv, define_flags, __doc__ or "")
    table = terminal.make_table("policy", "κ", "β", "gain", "spill", "better", right_from=1)
    proportional: dict[str, np.ndarray] = {}
    for beta in given.betas:
        outcomes = run_worlds("proportional", given.worlds, None, float(beta), given.intervals)
        proportional[beta] = np.array([each.gain for each in outcomes])
    for name in given.policies:
        for kappa in given.kappas or [None]:
            for beta in given.betas:
                value = None if kappa is None else float(kappa)
                found = run_worlds(name, given.worlds, value, float(beta), given.intervals)
                gains = np.array([each.gain for each in found])
                spill = np.mean([each.spill for each in found])
                better = (gains > proportional[beta]).mean()
                cells = (f"{gains.mean():.3f}", f"{spill:.3f}", f"{better:.0%}")
                terminal.add_row(table, name, kappa or "", beta, *cells)
    terminal.make_console().print(table)
    terminal.say("better: the share of worlds in which it gains more than proportional does")


if __name__ == "__main__":
    raise SystemExit(run_main(lambda: main(sys.argv), "nothing was written"))
