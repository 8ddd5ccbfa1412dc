"""Runs the policies on the made-up skills of `allocation_skills.py`, seed by seed.

    python benchmarks/allocation_skills_run.py --folder=build/skills --seeds=0,1,2

Enters: the folder, with prepared records in it. Leaves: a run for each seed and policy in it, and a
line of JSON for each on standard output. Runs that are done are read, not run again.
"""

from __future__ import annotations

import pathlib
import sys

from absl import flags

from distill_sbs.allocate import allocate
from distill_sbs.allocating.options import AllocateConfig
from distill_sbs.cli import command_line, terminal
from distill_sbs.cli.run_main import run_main

POLICIES = ("linucb", "uniform", "proportional", "single")
TASK_FILE = str(pathlib.Path(__file__).parent / "allocation_skills_tasks.py")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags."""
    flags.DEFINE_string("folder", "build/skills", "Of the skills.", flag_values=values)
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Which.", flag_values=values)
    flags.DEFINE_list("policies", list(POLICIES), "Which.", flag_values=values)
    flags.DEFINE_integer("interval_tokens", 10_000, "Of 12 intervals.", flag_values=values)


def main(argv: list[str]) -> None:
    """Runs them."""
    given = command_line.parse_flags(argv, define_flags, __doc__ or "")
    for seed in given.seeds:
        for policy in given.policies:
            arguments = [
                "allocate",
                f"--gin_file={given.folder}/allocate.gin",
                f"--gin.POLICY='{policy}'",
                f"--gin.RANDOM_SEED={seed}",
                f"--gin.MODEL_DIR='{given.folder}/runs/{policy}_{seed}_{given.interval_tokens}'",
                f"--gin.BUDGET_TOKENS={12 * given.interval_tokens}",
                f"--gin.INTERVAL_TOKENS={given.interval_tokens}",
            ]
            config = command_line.parse(arguments, AllocateConfig, "runs/allocate.gin").config
            found = allocate(config, task_files=[TASK_FILE])
            kept = ("policy", "seed", "used", "trained_tokens", "spill", "last_validation")
            terminal.say_json({name: found[name] for name in kept})


if __name__ == "__main__":
    raise SystemExit(run_main(lambda: main(sys.argv), "the same command continues"))
