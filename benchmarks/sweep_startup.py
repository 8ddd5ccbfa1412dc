"""What start-up costs small runs: a sweep's worker against a process for each run.

    python benchmarks/sweep_startup.py [--seeds=3] [--train_steps=60]

Enters: nothing; `comparisons` is generated. Leaves: seconds of processor time (user and system,
with all children) and of the clock, for the same runs, one at a time on one core:

- a process a run, without a cache of compiled programs;
- a process a run, with a shared one, which is what a sweep was before it had workers;
- `sweep` as it is: one worker process for all, with a shared cache.

Each begins with an empty cache and prepared data. The results of all three are compared.
"""

from __future__ import annotations

import os
import pathlib
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from absl import flags

from distill_sbs.cli import command_line, terminal
from distill_sbs.cli.run_main import run_main

ROOT = pathlib.Path(__file__).parent.parent


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("seeds", 3, "Seeds of each of two methods.", flag_values=values)
    flags.DEFINE_integer("train_steps", 60, "Steps of each run.", flag_values=values)


def _measure(commands: Sequence[Sequence[str]], **variables: str) -> tuple[float, float]:
    """Seconds of processor time, and of the clock, of commands one after the other."""
    core = str(min(os.sched_getaffinity(0)))
    before, since = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    for command in commands:
        subprocess.run(
            ["taskset", "-c", core, *command],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, time.monotonic() - since


def measure(folder: pathlib.Path, seeds: int, train_steps: int) -> None:
    """Prints what each way took."""
    data = folder / "data"
    prepare = ["-m", "distill_sbs.prepare", "--dataset=comparisons", f"--data_dir={data}"]
    _measure([[sys.executable, *prepare]])
    sweep = [sys.executable, "-m", "distill_sbs.sweep", "--gin_file=gin/sweeps/quickstart.gin"]
    sweep += ["--mixtures=comparisons_finetune,comparisons_dss_template", "--parallel=1"]
    sweep += [f"--gin.TRAIN_STEPS={train_steps}", f"--gin.EVAL_PERIOD={train_steps}"]
    sweep += [f"--gin.DATA_DIR='{data}'", f"--gin.SWEEP_DIR='{folder / 'sweep'}'"]
    sweep += ["--data_fractions=0.25", f"--seeds={','.join(map(str, range(seeds)))}"]
    ways = {"sweep, one worker process": _measure([sweep])}
    files = sorted((folder / "sweep").rglob("command.txt"))
    assert len(files) == 2 * seeds, files
    results = [file.with_name("results.json").read_text() for file in files]
    for way, variables in {
        "a process a run, shared cache": {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")},
        "a process a run, no cache": {},
    }.items():
        own = folder / way.replace(" ", "_").replace(",", "")
        commands = []
        for file in files:
            words = shlex.split(file.read_text().replace(str(folder / "sweep"), str(own)))
            commands.append([sys.executable, *words[1:]])
        ways[way] = _measure(
            commands, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.2", **variables
        )
        found = [path.read_text() for path in sorted(own.rglob("results.json"))]
        assert found == results, f"{way}: other results"
    least, _ = ways["sweep, one worker process"]
    table = terminal.make_table("way", "processor s", "a run", "ratio", "clock s", right_from=1)
    for way, (used, clock) in ways.items():
        each = f"{used / len(files):.1f}"
        terminal.add_row(table, way, f"{used:.0f}", each, f"{used / least:.2f}", f"{clock:.0f}")
    terminal.make_console().print(table)
    terminal.say(f"{len(files)} runs of {train_steps} steps; the results are the same")


def main(argv: Sequence[str] | None = None) -> int:
    """Measures; returns the exit status."""
    return run_main(lambda: _work(sys.argv if argv is None else argv), "nothing was written")


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, _define_flags, (__doc__ or "").splitlines()[0])
    with tempfile.TemporaryDirectory(prefix="sweep_startup_") as folder:
        measure(pathlib.Path(folder), values.seeds, values.train_steps)
    return None


if __name__ == "__main__":
    sys.exit(main())
