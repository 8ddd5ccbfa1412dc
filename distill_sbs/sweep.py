r"""`python -m distill_sbs.sweep`: the same experiment over mixtures, data fractions and seeds.

    python -m distill_sbs.sweep --gin_file=gin/experiments/quickstart.gin --output=runs/sweep \
      --mixtures=wordproblems_finetune,wordproblems_dss_template --data_fractions=0.25,1 --seeds=0,1

Enters: gin files and bindings, given to `python -m distill_sbs.train` once a combination. Leaves:
one MODEL_DIR a run under `--output`, `summary.json`, and a table of mean ± standard error over the
seeds. Runs that have finished are not run again, so the same command continues a sweep.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypedDict, TypeVar, cast

from absl import flags

from distill_sbs import files, json_lines
from distill_sbs.cli import command_line, terminal
from distill_sbs.cli.run_main import run_main
from distill_sbs.errors import UserError
from distill_sbs.training.metrics_file import RunResults

T = TypeVar("T")

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


class SweepRow(TypedDict):
    """What `summary.json` says of one mixture at one data fraction; accuracies are 0 to 1."""

    mixture: str
    data_fraction: float
    seeds: list[int]
    test_accuracies: list[float]
    mean: float
    standard_error: float


def summarise(results: Sequence[RunResults]) -> list[SweepRow]:
    """Test accuracies by mixture and data fraction: mean, standard error, and the values."""
    groups: dict[tuple[str, float], list[RunResults]] = {}
    for result in results:
        groups.setdefault((result["mixture"], result["data_fraction"]), []).append(result)
    rows: list[SweepRow] = []
    for (mixture, fraction), group in groups.items():
        group = sorted(group, key=lambda result: result["seed"])
        tested = (result["test"]["accuracy"] for result in group)
        values = [accuracy for accuracy in tested if accuracy is not None]
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


def table(rows: Sequence[SweepRow]) -> str:
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


class Children:
    """The runs under way: a signal to the sweep is passed on to them, and they are waited for.

    Each is in a session of its own, so that a Ctrl-C typed in the terminal reaches it once, through
    the sweep. `train` saves a checkpoint when it is told to stop; a second signal ends it at once.
    """

    def __init__(self) -> None:
        self.stopped_by: int | None = None
        self._lock = threading.RLock()  # the handler may come while this thread holds it
        self._running: set[subprocess.Popen[bytes]] = set()

    def run(self, command: list[str], model_dir: pathlib.Path, environment: dict[str, str]) -> int:
        """Runs a command whose output is appended to the log in `model_dir`; its exit status."""
        model_dir.mkdir(parents=True, exist_ok=True)
        with (model_dir / LOG_FILE).open("a") as log:
            with self._lock:
                if self.stopped_by is not None:
                    return 128 + self.stopped_by
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,
                )
                self._running.add(child)
            status = child.wait()
        with self._lock:
            self._running.discard(child)
        return status

    def stop(self, number: int, _: object = None) -> None:
        """Passes a signal on; no further run begins."""
        with self._lock:
            passed_on = number if self.stopped_by is None else signal.SIGKILL
            if self.stopped_by is None:
                terminal.say("stopping: waiting for the runs to save …", stderr=True)
            self.stopped_by = self.stopped_by or number
            for child in self._running:
                with contextlib.suppress(ProcessLookupError):
                    child.send_signal(passed_on)

    @contextlib.contextmanager
    def listen(self) -> Iterator[None]:
        """Inside, SIGTERM, SIGINT and SIGHUP go to the children."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        before = {number: signal.signal(number, self.stop) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _reason(log: str) -> str:
    """What a run says of its end: its last line that begins with `error:`, or its last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it printed nothing"])[-1]


def _check_cells(cells: Mapping[str, list[str]], environment: dict[str, str]) -> None:
    """Asks `train --dry_run` about one run of every mixture, before any begins.

    Raises:
      UserError: what `train` says.
    """
    for mixture, command in cells.items():
        done = subprocess.run(
            [*command, "--dry_run"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        if done.returncode != 0:
            raise UserError(f"{mixture}: {_reason(done.stderr)}; nothing was started")


def _gin_arguments(values: flags.FlagValues) -> list[str]:
    """What every run is given as it was typed: gin files, bindings, registration files."""
    given = [f"--gin_file={path}" for path in values.gin_file]
    given += [f"--gin_bindings={binding}" for binding in values.gin_bindings]
    given += [f"--task_file={path}" for path in values.task_file]
    if values.gin_search_paths:
        given.append(f"--gin_search_paths={','.join(values.gin_search_paths)}")
    return given


def _numbers(texts: Sequence[str], flag: str, kind: Callable[[str], T]) -> list[T]:
    try:
        return [kind(text) for text in texts]
    except ValueError:
        example = "0,1,2" if kind is int else "0.25,1"
        raise UserError(f"--{flag}={','.join(texts)}: expected numbers, {example}") from None


def _read_results(model_dir: pathlib.Path) -> RunResults:
    return cast(RunResults, json_lines.read_json(model_dir / "results.json"))  # a run wrote it


def _accuracy(model_dir: pathlib.Path) -> float | None:
    return _read_results(model_dir)["test"]["accuracy"]


def sweep(
    arguments: Sequence[str],
    output: pathlib.Path,
    mixtures: Sequence[str],
    data_fractions: Sequence[float] = (1.0,),
    seeds: Sequence[int] = (0,),
    *,
    parallel: int = 1,
    dry_run: bool = False,
) -> list[SweepRow]:
    """Runs what is missing, and returns the summary; nothing where it only looks (`dry_run`).

    Args:
      arguments: of `python -m distill_sbs.train`, the same for every run.
      output: the folder of all runs.
      mixtures: MIXTURE_OR_TASK_NAMEs.
      data_fractions: DATA_FRACTIONs.
      seeds: RANDOM_SEEDs.
      parallel: runs at a time.
      dry_run: checks one run of each mixture, lists what is missing, starts nothing.

    Raises:
      UserError: a run cannot begin, or failed; the message gives its reason and its log.
      SystemExit: a signal came; the runs were told, and have ended.
    """
    environment = dict(os.environ)
    environment.setdefault(
        "JAX_COMPILATION_CACHE_DIR", str((output / "compilation_cache").absolute())
    )
    if parallel > 1:
        environment["XLA_FLAGS"] = (
            environment.get("XLA_FLAGS", "")
            + " --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        )
        environment.setdefault("OMP_NUM_THREADS", "1")

    runs: dict[pathlib.Path, list[str]] = {}
    cells: dict[str, list[str]] = {}
    # Seeds outermost: an interrupted sweep has all methods at the seeds that it has.
    for seed, fraction, mixture in itertools.product(seeds, data_fractions, mixtures):
        model_dir = output / mixture / f"fraction_{fraction:.4g}" / f"seed_{seed}"
        runs[model_dir] = [
            sys.executable,
            "-m",
            "distill_sbs.train",
            *arguments,
            f"--gin_bindings=MIXTURE_OR_TASK_NAME = {mixture!r}",
            f"--gin_bindings=DATA_FRACTION = {fraction}",
            f"--gin_bindings=RANDOM_SEED = {seed}",
            f"--gin_bindings=MODEL_DIR = {str(model_dir)!r}",
        ]
    missing = {path: run for path, run in runs.items() if not (path / "results.json").exists()}
    for path, command in missing.items():
        cells.setdefault(str(path.relative_to(output)).split("/fraction_")[0], command)
    _check_cells(cells, environment)
    terminal.say(f"{len(runs)} runs, {len(missing)} to do, {parallel} at a time")
    if dry_run:
        for path in missing:
            terminal.say(str(path))
        return []
    children = Children()
    with children.listen(), concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        futures = {
            pool.submit(children.run, command, path, environment): path
            for path, command in missing.items()
        }
        for number, future in enumerate(concurrent.futures.as_completed(futures), start=1):
            path = futures[future]
            if children.stopped_by is not None:
                continue
            if future.result() != 0:
                pool.shutdown(wait=False, cancel_futures=True)
                reason = _reason((path / LOG_FILE).read_text(encoding="utf-8", errors="replace"))
                raise UserError(f"a run failed: {reason}; its log is {path / LOG_FILE}")
            accuracy = _accuracy(path)
            shown = "no test split" if accuracy is None else f"test {accuracy:.1%}"
            terminal.say(f"[{number}/{len(missing)}] {path}: {shown}")
    if children.stopped_by is not None:
        terminal.say("stopped: the same command goes on with what is left", stderr=True)
        raise SystemExit(128 + children.stopped_by)
    rows = summarise([_read_results(path) for path in runs if _accuracy(path) is not None])
    files.write_file(output / SUMMARY_FILE, json.dumps(rows, indent=2) + "\n")
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    """Sweeps what the command line asks for; returns the exit status."""
    return run_main(
        lambda: _work(sys.argv if argv is None else argv),
        "the same command goes on with what is left",
    )


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, _define_flags, DESCRIPTION)
    rows = sweep(
        _gin_arguments(values),
        pathlib.Path(values.output),
        values.mixtures,
        _numbers(values.data_fractions, "data_fractions", float),
        _numbers(values.seeds, "seeds", int),
        parallel=values.parallel,
        dry_run=values.dry_run,
    )
    if not values.dry_run:
        terminal.say(table(rows))
    return None


if __name__ == "__main__":
    sys.exit(main())
