r"""`python -m distill_sbs.sweep`: the same experiment over mixtures, data fractions and seeds.

    python -m distill_sbs.sweep --gin_file=gin/experiments/quickstart.gin --output=runs/sweep \
      --mixtures=wordproblems_finetune,wordproblems_dss_template --data_fractions=0.25,1 --seeds=0,1

Enters: gin files and bindings, given to `python -m distill_sbs.train` once a combination. Leaves:
one MODEL_DIR a run under `--output`, `summary.json`, and a table of mean ± standard error over the
seeds. Runs that have finished are not run again, so the same command continues a sweep.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from distill_sbs.cli import command_line
from distill_sbs.cli.run_main import run_main
from distill_sbs.errors import UserError

DESCRIPTION = "Trains one experiment over mixtures, data fractions and seeds; prints the table."
SUMMARY_FILE = "summary.json"
LOG_FILE = "log.txt"


def _define_flags(values: flags.FlagValues) -> None:
    command_line.define_gin_flags(values)
    flags.DEFINE_list("mixtures", None, "MIXTURE_OR_TASK_NAMEs.", flag_values=values, required=True)
    flags.DEFINE_list("data_fractions", ["1.0"], "DATA_FRACTIONs.", flag_values=values)
    flags.DEFINE_list("seeds", ["0"], "RANDOM_SEEDs.", flag_values=values)
    flags.DEFINE_string(
        "output", None, "Folder of all runs; local.", flag_values=values, required=True
    )
    flags.DEFINE_integer(
        "parallel",
        1,
        "Runs at a time. On a CPU each then has one thread.",
        flag_values=values,
        lower_bound=1,
    )


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean: sample standard deviation / √n; NaN for one value."""
    if len(values) < 2:
        return math.nan
    return statistics.stdev(values) / math.sqrt(len(values))


def summarise(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Test accuracies by mixture and data fraction: mean, standard error, and the values."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault((result["mixture"], result["data_fraction"]), []).append(result)
    rows = []
    for (mixture, fraction), group in groups.items():
        group = sorted(group, key=lambda result: result["seed"])
        values = [result["test"]["accuracy"] for result in group]
        rows.append(
            {
                "mixture": mixture,
                "data_fraction": fraction,
                "seeds": [result["seed"] for result in group],
                "test_accuracies": values,
                "mean": statistics.mean(values),
                "standard_error": standard_error(values),
            }
        )
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A Markdown table, a line a mixture and a column a data fraction; percent."""
    fractions = sorted({row["data_fraction"] for row in rows})
    cells = {(row["mixture"], row["data_fraction"]): row for row in rows}
    lines = [
        "| mixture | " + " | ".join(f"{fraction:.4g}" for fraction in fractions) + " |",
        "| --- |" + " ---: |" * len(fractions),
    ]
    for mixture in dict.fromkeys(row["mixture"] for row in rows):
        line = [mixture]
        for fraction in fractions:
            row = cells.get((mixture, fraction))
            if row is None:
                line.append("–")
                continue
            error = row["standard_error"]
            spread = "" if math.isnan(error) else f" ± {error:.1%}".rstrip("%")
            line.append(f"{row['mean']:.1%}".rstrip("%") + spread)
        lines.append("| " + " | ".join(line) + " |")
    return "\n".join(lines)


def _run_one(command: list[str], model_dir: pathlib.Path, environment: dict[str, str]) -> int:
    model_dir.mkdir(parents=True, exist_ok=True)
    with (model_dir / LOG_FILE).open("a") as log:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        ).returncode


def sweep(values: flags.FlagValues) -> list[dict[str, Any]]:
    """Runs what is missing, and returns the summary.

    Raises:
      UserError: a run failed; the message names its log.
    """
    output = pathlib.Path(values.output)
    given = [f"--gin_file={path}" for path in values.gin_file]
    given += [f"--gin_bindings={binding}" for binding in values.gin_bindings]
    given += [f"--task_file={path}" for path in values.task_file]
    if values.gin_search_paths:
        given.append(f"--gin_search_paths={','.join(values.gin_search_paths)}")
    environment = dict(os.environ)
    environment.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str((output / "compilation_cache").absolute())
    )
    if values.parallel > 1:
        environment["XLA_FLAGS"] = (
            environment.get("XLA_FLAGS", "")
            + " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        )
        environment.setdefault("OMP_NUM_THREADS", "1")

    runs: dict[pathlib.Path, list[str]] = {}
    # Seeds outermost: an interrupted sweep has all methods at the seeds that it has.
    for seed, fraction, mixture in itertools.product(
        values.seeds, values.data_fractions, values.mixtures
    ):
        model_dir = output / mixture / f"fraction_{float(fraction):.4g}" / f"seed_{int(seed)}"
        runs[model_dir] = [
            sys.executable,
            "-m",
            "distill_sbs.train",
            *given,
            f"--gin_bindings=MIXTURE_OR_TASK_NAME = {mixture!r}",
            f"--gin_bindings=DATA_FRACTION = {float(fraction)}",
            f"--gin_bindings=RANDOM_SEED = {int(seed)}",
            f"--gin_bindings=MODEL_DIR = {str(model_dir)!r}",
        ]
    missing = {path: run for path, run in runs.items() if not (path / "results.json").exists()}
    print(f"{len(runs)} runs, {len(missing)} to do, {values.parallel} at a time", flush=True)
    with concurrent.futures.ThreadPoolExecutor(values.parallel) as pool:
        futures = {
            pool.submit(_run_one, command, path, environment): path
            for path, command in missing.items()
        }
        for number, future in enumerate(concurrent.futures.as_completed(futures), start=1):
            path = futures[future]
            if future.result() != 0:
                pool.shutdown(cancel_futures=True)
                raise UserError(f"a run failed; its log is {path / LOG_FILE}")
            accuracy = json.loads((path / "results.json").read_text())["test"]["accuracy"]
            print(f"[{number}/{len(missing)}] {path}: test {accuracy:.1%}", flush=True)
    rows = summarise([json.loads((path / "results.json").read_text()) for path in runs])
    (output / SUMMARY_FILE).write_text(json.dumps(rows, indent=2) + "\n")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Sweeps what the command line asks for; returns the exit status."""
    return run_main(
        lambda: _work(sys.argv if argv is None else argv),
        "the same command goes on with what is left",
    )


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, _define_flags, DESCRIPTION)
    print(table(sweep(values)))
    return None


if __name__ == "__main__":
    sys.exit(main())
