r"""`python -m distill_sbs.sweep`: one experiment over a grid, and its table.

    python -m distill_sbs.sweep --gin_file=gin/sweeps/quickstart.gin

Enters: a gin file that sets GRID and SWEEP_DIR besides the macros of a run (`sweeping.options`).
Leaves: a folder a run under SWEEP_DIR, each as `python -m distill_sbs.train` leaves it, with the
command that it is in `command.txt` and what it printed in `log.txt`; `summary.json`; and a table of
mean ± standard error over the seeds. The same command again goes on: what has finished stays, what
was stopped or killed continues, what failed is tried again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence

from absl import flags
from etils import epath

from distill_sbs import files
from distill_sbs.cli import (
    command_line,
    compiled_programs,
    flag_groups,
    gin_files,
    quiet_tensorflow,
    signals,
    terminal,
)
from distill_sbs.cli.run_main import run_main
from distill_sbs.distributed import processes
from distill_sbs.errors import UserError
from distill_sbs.folder_lock import FolderLock
from distill_sbs.sweeping import fairness, plan, ray_cluster, running, this_machine
from distill_sbs.sweeping.board import Board
from distill_sbs.sweeping.grid import FRACTION, MIXTURE, NAME_PARTS, SEED
from distill_sbs.sweeping.options import SweepConfig
from distill_sbs.sweeping.plan import Run
from distill_sbs.sweeping.summary import make_table, summarise
from distill_sbs.train import dry_run as check_run

DESCRIPTION = "Trains one experiment over a grid of settings; prints the table."
SUMMARY_FILE = "summary.json"
SOME_FAILED_STATUS = 5

_GOES_ON = "the same command goes on with what is left"

# Flags that stand for an axis: its macro, and the kind of its values.
_AXIS_FLAGS: Mapping[str, tuple[str, type]] = {
    "mixtures": (MIXTURE, str),
    "data_fractions": (FRACTION, float),
    "seeds": (SEED, int),
}


def _define_flags(values: flags.FlagValues) -> None:
    with flag_groups.group(values, "The grid"):
        flags.DEFINE_multi_string(
            "axis",
            [],
            "'NAME = [values]': an axis of GRID, added or replaced; repeatable.",
            flag_values=values,
        )
        for name, (macro, _) in _AXIS_FLAGS.items():
            more = "; with it the others are 1.0 and 0 where nobody states them" * (
                macro == MIXTURE
            )
            flags.DEFINE_list(
                name, None, f"The axis {macro}, with commas{more}.", flag_values=values
            )
    flags.DEFINE_string("output", None, "The same as SWEEP_DIR.", flag_values=values)
    flags.DEFINE_integer(
        "parallel", None, "The same as WORKERS.", flag_values=values, lower_bound=1
    )
    flags.DEFINE_integer(
        "cell",
        None,
        "Trains this one run, by its number in --dry_run, in this process, as `train` does: for"
        " schedulers that start many jobs. The flags of several processes go on to it.",
        flag_values=values,
        lower_bound=0,
    )
    processes.define_flags(values)


def _parse(argv: Sequence[str]) -> command_line.Configuration[SweepConfig]:
    """The sweep's options; flags that stand for macros and axes are among them."""

    def define(values: flags.FlagValues) -> None:
        command_line.define_gin_flags(values)
        _define_flags(values)

    more = []
    if not any(argument in ("-h", "-help", "--help", "--helpfull") for argument in argv[1:]):
        values = command_line.parse_flags(argv, define)
        if values.output is not None:
            more.append(f"--gin_bindings=SWEEP_DIR = {values.output!r}")
        if values.parallel is not None:
            more.append(f"--gin_bindings=WORKERS = {values.parallel}")
    configuration = command_line.parse(
        [*argv, *more], SweepConfig, "runs/sweep.gin", DESCRIPTION, _define_flags
    )
    grid = {**configuration.config.grid, **_read_axes(configuration.flags)}
    if configuration.flags["mixtures"] is not None:
        grid = {name: values for name, values in grid.items() if name not in NAME_PARTS}
        grid.setdefault(FRACTION, [1.0])
        grid.setdefault(SEED, [0])
    config = configuration.config.change(grid=grid)
    given = plan.Given.of_flags(configuration.flags)
    typed = {gin_files.read_binding(text).target for text in given.bindings}
    for cell in config.cells()[:1]:
        for macro in typed & set(cell.settings):
            raise UserError(
                f"--gin.{macro} is given, and {macro} is an axis of GRID; change the axis: "
                f'--axis="{macro} = […]"'
            )
    return dataclasses.replace(configuration, config=config)


def _read_axes(values: Mapping[str, object]) -> dict[str, object]:
    """The axes that flags state.

    Raises:
      UserError: a value is of another kind.
    """
    axes: dict[str, object] = {}
    texts = values["axis"]
    assert isinstance(texts, list)
    for text in texts:
        binding = gin_files.read_binding(text)
        if any(True for _ in gin_files.references(binding.value)):
            raise UserError(f"--axis={text!r}: expected values, and no %MACRO")
        axes[binding.target] = binding.value
    for flag, (macro, kind) in _AXIS_FLAGS.items():
        given = values[flag]
        if isinstance(given, list):
            try:
                axes[macro] = [kind(text) for text in given]
            except ValueError:
                example = "0,1,2" if kind is int else "0.25,1"
                raise UserError(
                    f"--{flag}={','.join(given)}: expected numbers, {example}"
                ) from None
    return axes


def sweep(config: SweepConfig, given: plan.Given, *, dry_run: bool = False) -> int:
    """Trains what is missing, and prints the table; returns the exit status.

    Args:
      config: the sweep's options.
      given: what the user typed that every run is given too.
      dry_run: checks every run that is missing, lists all, starts nothing.

    Returns:
      0; `SOME_FAILED_STATUS` where a run failed, which stopped no other.

    Raises:
      UserError: a run cannot begin, or another sweep works in SWEEP_DIR; nothing was started.
      SystemExit: a signal came; the runs were told, and have ended.
    """
    with _end_at_sigterm():
        runs = plan.Planner(config, given).plan()
        missing = [run for run in runs if run.results is None]
        terminal.say(f"{len(runs)} runs, {len(missing)} to do")
        for line in fairness.describe(runs):
            terminal.say(line)
        _check(missing)
    if dry_run:
        for run in runs:
            state = "done" if run.results is not None else "to do"
            terminal.say(f"cell {run.cell.index}: {run.folder} ({state})")
            if run.results is None:
                terminal.say(f"  {run.make_command()}")
        return 0
    if not missing:
        return _finish(config, running.Outcome({run.name: run for run in runs}))
    if "://" in config.sweep_dir:
        raise UserError(
            f"SWEEP_DIR={config.sweep_dir}: runs are watched in a local or shared folder; in a "
            "bucket each is started by itself, with --cell"
        )
    stop = running.StopSignals()
    with FolderLock(config.sweep_dir, "a sweep") as lock, stop.listen():
        lock.take()
        plan.prepare_data(missing, given.task_files)
        running.wait_for_others(missing, stop)
        outcome = _run(config, runs, missing, stop)
        _finish(config, outcome, stopped=stop.first is not None)
    if stop.first is not None:
        terminal.say(f"stopped: {_GOES_ON}", stderr=True)
        raise SystemExit(128 + stop.first)
    return SOME_FAILED_STATUS if outcome.failures else 0


def _run(
    config: SweepConfig, runs: Sequence[Run], missing: Sequence[Run], stop: running.StopSignals
) -> running.Outcome:
    environment = _cache_variables(config)
    executor: running.Executor
    if config.executor == "ray":
        executor = ray_cluster.RayCluster(config, environment)
        terminal.say(f"on Ray: {config.cpus_per_run} cores a run")
    else:
        shares = this_machine.share_out(config, len(missing))
        executor = this_machine.ThisMachine(shares, {**os.environ, **environment})
        terminal.say(f"on this machine: {len(shares)} at a time, {_tell_share(shares[0])} each")
    try:
        with Board(runs) as board:
            return running.run_all(runs, executor, board, stop)
    finally:
        executor.close()


def _tell_share(share: this_machine.Share) -> str:
    cores = f"{len(share.cores)} core{'s' if len(share.cores) > 1 else ''}"
    return ", ".join([cores, *(f"{name}={value}" for name, value in share.variables.items())])


def _check(missing: Sequence[Run]) -> None:
    """Asks `train --dry_run` about every run, before any begins.

    Raises:
      UserError: what `train` would say.
    """
    warned: set[str] = set()
    for run in missing:
        try:
            for line in check_run(plan.parse_arguments(run.arguments, processes.define_flags)):
                if line.startswith("warning: ") and line not in warned:
                    warned.add(line)
                    terminal.say(line, stderr=True)
        except UserError as error:
            raise UserError(f"{run.name}: {error}; nothing was started") from error


@contextlib.contextmanager
def _end_at_sigterm() -> Iterator[None]:
    """Inside nothing runs yet: SIGTERM and SIGHUP end the process at once, with their status."""

    def end(number: int, _: object) -> None:
        with contextlib.suppress(OSError):
            os.write(2, b"stopped: nothing was started\n")
        os._exit(128 + number)

    with signals.keep_handlers((signal.SIGTERM, signal.SIGHUP)) as numbers:
        for number in numbers:
            if signal.getsignal(number) == signal.SIG_DFL:
                signal.signal(number, end)
        yield


def _cache_variables(config: SweepConfig) -> dict[str, str]:
    """One cache of compiled programs for all runs, by machine: a program fits its processor."""
    processor = compiled_programs.name_processor()
    folder = os.path.abspath(os.path.join(config.sweep_dir, "compilation_cache", processor))
    wanted = {
        compiled_programs.FOLDER_VARIABLE: folder,
        compiled_programs.LEAST_SECONDS_VARIABLE: compiled_programs.LEAST_SECONDS,
    }
    return {name: os.environ.get(name, value) for name, value in wanted.items()}


def _finish(config: SweepConfig, outcome: running.Outcome, stopped: bool = False) -> int:
    """Writes the summary, prints the table, and names what failed."""
    results = [run.results for run in outcome.runs.values() if run.results is not None]
    rows = summarise(results)
    content = json.dumps([row.to_json() for row in rows], indent=2) + "\n"
    files.write_file(epath.Path(config.sweep_dir) / SUMMARY_FILE, content)
    if rows and not stopped:
        seeds = max(len(row.seeds) for row in rows)
        terminal.say(
            f"test accuracy in %, a column a data fraction; mean ± standard error over {seeds} "
            f"seed{'s' if seeds > 1 else ''}"
        )
        terminal.say(make_table(rows))
    for failure in outcome.failures:
        terminal.say(
            f"failed: {failure.run.folder}, status {failure.status}; the end of its log:\n"
            + "\n".join(f"  {line}" for line in failure.lines),
            stderr=True,
        )
    if outcome.failures and not stopped:
        terminal.say(
            f"{len(outcome.failures)} of {len(outcome.runs)} runs failed; the same command tries "
            "them again",
            stderr=True,
        )
    return SOME_FAILED_STATUS if outcome.failures else 0


def run_cell(config: SweepConfig, given: plan.Given, index: int, more: Sequence[str] = ()) -> int:
    """Becomes the `train` of one run; returns 0 at once where it has finished.

    Args:
      config: the sweep's options.
      given: what the user typed that every run is given too.
      index: the run's number.
      more: further flags of `train`, of a run of several processes.

    Raises:
      UserError: there is no such run, or its options cannot be.
    """
    cells = config.cells()
    if index >= len(cells):
        raise UserError(f"--cell={index}: the sweep has {len(cells)} cells, 0 to {len(cells) - 1}")
    (run,) = plan.Planner(config, given).plan([cells[index]])
    if run.results is not None:
        terminal.say(f"cell {index}: {run.folder} has finished")
        return 0
    running.write_command(run)
    terminal.say(f"cell {index}: {run.make_command()}", stderr=True)
    os.environ.update(_cache_variables(config) if "://" not in config.sweep_dir else {})
    program = [sys.executable, "-m", "distill_sbs.train", *run.arguments, *more]
    terminal.find_stream().flush()
    os.execv(sys.executable, program)


def main(argv: Sequence[str] | None = None) -> int:
    """Sweeps what the command line asks for; returns the exit status."""
    return run_main(lambda: _work(sys.argv if argv is None else argv), _GOES_ON)


def _work(argv: Sequence[str]) -> int:
    configuration = _parse(argv)
    for note in configuration.notes:
        terminal.say(f"note: {note}", stderr=True)
    quiet_tensorflow.import_tensorflow()
    given = plan.Given.of_flags(configuration.flags)
    index = configuration.flags["cell"]
    if index is not None and not configuration.dry_run:
        return run_cell(configuration.config, given, index, _tell_processes(configuration.flags))
    return sweep(configuration.config, given, dry_run=configuration.dry_run)


def _tell_processes(values: Mapping[str, object]) -> list[str]:
    """The flags of a run of several processes, as they were typed."""
    several = ["--multiprocess"] if values["multiprocess"] else []
    for name in ("coordinator_address", "process_count", "process_index"):
        if values[name] is not None:
            several.append(f"--{name}={values[name]}")
    return several


if __name__ == "__main__":
    sys.exit(main())
