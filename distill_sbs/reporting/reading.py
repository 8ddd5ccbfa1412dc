"""Finds and reads the runs below a folder, whatever state they are in.

Enters: RUNS_DIR, a tree of folders in which some are runs: they hold a `results.json`, a
`config.gin` or a `metrics.jsonl`. Leaves: `Run`s in a fixed order, and one line for every file that
could not be read and was passed over.

`train` leaves all three files, `sweep` a `command.txt` as well. A folder that has no results yet
gives a run that has not finished, where its `config.gin` says what it was meant to be.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Iterator, Mapping

from distill_sbs import json_lines
from distill_sbs.cli import gin_files
from distill_sbs.errors import SourceError, UserError
from distill_sbs.reporting import options as run_options
from distill_sbs.reporting import words
from distill_sbs.reporting.results_form import MOST_TEXT, read_results
from distill_sbs.reporting.run import Curve, Run
from distill_sbs.training.metrics_file import METRICS_FILE, read_metrics

RESULTS_FILE, CONFIG_FILE, COMMAND_FILE = "results.json", "config.gin", "command.txt"

# What a folder is told by to be a run's.
_OF_EVERY_RUN = {RESULTS_FILE, CONFIG_FILE, METRICS_FILE}
_FILES = {*_OF_EVERY_RUN, COMMAND_FILE}

# More runs than this are no experiment, and no page of them could be opened.
MOST_RUNS = 10_000
_MOST_FOLDERS = 1_000_000
# What is longer was not written by a run.
_MOST_RESULTS_BYTES = 16 * 2**20
_MOST_METRICS_BYTES = 64 * 2**20

# Points of a curve that are kept, evenly spread: more cannot be told apart in a figure.
_MOST_POINTS = 400
# Curves that are kept: the loss of every task, and this; no more than so many.
_ACCURACY_CURVE = "validation_accuracy"
_MOST_CURVES = 6

# Folders of a run, in which nothing is looked for.
_OF_A_RUN = ("checkpoints", "damaged")


@dataclasses.dataclass(frozen=True)
class Found:
    """What lies below RUNS_DIR.

    Attributes:
      runs: in order.
      problems: a line for everything that was passed over, in order.
    """

    runs: tuple[Run, ...]
    problems: tuple[str, ...]


def read_runs(runs_dir: str) -> Found:
    """Reads every run below a folder.

    Raises:
      UserError: no such folder, nothing of a run in it, or more runs than `MOST_RUNS`.
    """
    if "://" in runs_dir:
        raise UserError(
            f"RUNS_DIR={runs_dir}: expected a local folder; copy the runs' small files first: "
            f"gcloud storage rsync --recursive --exclude='.*checkpoints/.*' {runs_dir} runs"
        )
    if not os.path.isdir(runs_dir):
        what = "is a file" if os.path.exists(runs_dir) else "does not exist"
        raise UserError(f"RUNS_DIR={runs_dir} {what}; expected a folder in which runs lie")
    runs: list[Run] = []
    problems: list[str] = []
    was_any = False
    for folder, names in _walk(runs_dir, problems):
        was_any = True
        reader = _FolderReader(runs_dir, folder, names, problems)
        runs += reader.read()
        if len(runs) > MOST_RUNS:
            raise UserError(
                f"RUNS_DIR={runs_dir} holds more than {MOST_RUNS:,} runs; give a folder with fewer"
            )
    if not was_any and not problems:
        raise UserError(
            f"RUNS_DIR={runs_dir} holds no run: neither {RESULTS_FILE} nor {CONFIG_FILE} nor "
            f"{METRICS_FILE} in it or below; `train` leaves them in MODEL_DIR, `sweep` below "
            "--output"
        )
    runs.sort(key=_order)
    return Found(tuple(runs), tuple(problems))


def _order(run: Run) -> tuple[object, ...]:
    model = run.model
    return (
        run.dataset,
        (model.parameters or 0, model.name, model.changes) if model else (0, "", ""),
        words.rank_method(run.method),
        run.teacher or "",
        run.rate or 0.0,
        run.fraction or 0.0,
        sorted(run.settings.items()),
        (run.seed or 0, run.fraction_seed or 0),
        run.folder,
    )


def _walk(runs_dir: str, problems: list[str]) -> Iterator[tuple[str, set[str]]]:
    """Folders that hold something of a run, and the names in them; links are followed once."""
    pending = [runs_dir]
    seen: set[tuple[int, int]] = set()
    while pending:
        folder = pending.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                found = sorted((entry.name, entry.is_dir()) for entry in entries)
        except OSError as error:
            problems.append(_tell(runs_dir, folder, error.strerror or str(error)))
            continue
        if len(seen) > _MOST_FOLDERS:
            raise UserError(
                f"RUNS_DIR={runs_dir} holds more than {_MOST_FOLDERS:,} folders; give one with "
                "fewer"
            )
        # A folder in the place of one of the files is told when it is read.
        names = {name for name, is_folder in found if not is_folder or name in _FILES}
        is_run = bool(names & _OF_EVERY_RUN)
        if is_run:
            yield folder, names
        passed = {*_FILES, *_OF_A_RUN} if is_run else set()
        for name, is_folder in reversed(found):
            if is_folder and not name.startswith(".") and name not in passed:
                pending.append(os.path.join(folder, name))


def _tell(runs_dir: str, path: str, reason: str) -> str:
    """A problem's line: the path inside RUNS_DIR, and what is the matter."""
    shown = os.path.relpath(path, runs_dir)
    return words.join_lines(f"{shown}: {reason}")


class _FolderReader:
    """Reads one folder; what cannot be read becomes a problem's line."""

    def __init__(self, runs_dir: str, folder: str, names: set[str], problems: list[str]) -> None:
        self._runs_dir = runs_dir
        self._folder = folder
        self._names = names
        self._problems = problems
        self._shown = words.join_lines(os.path.relpath(folder, runs_dir))

    def read(self) -> list[Run]:
        """The runs of the folder: one, several of a list, or none."""
        told = len(self._problems)
        results, broken = self._read_results()
        if len(results) > 1 or (results and CONFIG_FILE not in self._names):
            command = self._read_command()
            return [dataclasses.replace(run, command=run.command or command) for run in results]
        options = self._read_options()
        curves, last_step = self._read_curves()
        if results:
            known = results[0]
        else:
            unfinished = self._make_unfinished(options, broken)
            if unfinished is None:
                if len(self._problems) == told:
                    self._tell_unknown()
                return []
            known = unfinished
        run = run_options.complete(known, options)
        command = known.command or self._read_command() or self._make_command()
        return [dataclasses.replace(run, command=command, curves=curves, last_step=last_step)]

    def _problem(self, name: str, reason: str) -> None:
        self._problems.append(_tell(self._runs_dir, os.path.join(self._folder, name), reason))

    def _read_results(self) -> tuple[list[Run], bool]:
        """What `results.json` states, and whether it is there and cannot be read."""
        if RESULTS_FILE not in self._names:
            return [], False
        path = os.path.join(self._folder, RESULTS_FILE)
        shown = self._show_path(RESULTS_FILE)
        try:
            content = _read_bytes(path, shown, _MOST_RESULTS_BYTES)
            value: object = json_lines.parse_json(content, shown)
            return read_results(value, self._shown, shown), False
        except SourceError as error:
            self._problems.append(words.join_lines(str(error)))
        except OSError as error:
            self._problem(RESULTS_FILE, error.strerror or str(error))
        return [], True

    def _show_path(self, name: str) -> str:
        return os.path.join(os.path.relpath(self._folder, self._runs_dir), name).removeprefix("./")

    def _read_options(self) -> Mapping[str, object]:
        """Macro → value of `config.gin`; empty where it is missing or broken."""
        if CONFIG_FILE not in self._names:
            return {}
        path = os.path.join(self._folder, CONFIG_FILE)
        if reason := _find_no_file(path):
            self._problem(CONFIG_FILE, reason)
            return {}
        try:
            bindings = gin_files.read_file(path, gin_files.SearchPath())
            return run_options.convert(bindings)
        except UserError as error:
            first = str(error).splitlines()[0]
            self._problem(CONFIG_FILE, first.removeprefix(f"{path}: ").removeprefix(f"{path}:"))
            return {}

    def _read_curves(self) -> tuple[dict[str, Curve], int | None]:
        """The curves that are drawn, and the last step that was logged."""
        if METRICS_FILE not in self._names:
            return {}, None
        path = os.path.join(self._folder, METRICS_FILE)
        if reason := _find_no_file(path):
            self._problem(METRICS_FILE, reason)
            return {}, None
        try:
            size = os.stat(path).st_size
            if size > _MOST_METRICS_BYTES:
                self._problem(METRICS_FILE, f"{size:,} bytes; {_MOST_METRICS_BYTES:,} are read")
                return {}, None
            lines, wrong = read_metrics(self._folder)
        except OSError as error:
            self._problem(METRICS_FILE, error.strerror or str(error))
            return {}, None
        if wrong:
            rest = "the other lines are read" if lines else "no line could be read"
            self._problem(METRICS_FILE, f"{wrong}; {rest}")
        curves = {}
        logged = sorted({name for line in lines for name in line if name.endswith("_loss")})
        for name in [*logged[:_MOST_CURVES], _ACCURACY_CURVE]:
            points = [(int(line["step"]), float(line[name])) for line in lines if name in line]
            if points:
                curves[name] = _thin(points)
        return curves, int(lines[-1]["step"]) if lines else None

    def _make_unfinished(self, options: Mapping[str, object], broken: bool) -> Run | None:
        """A run without results; None where nothing says what it was meant to be."""
        mixture = options.get("MIXTURE_OR_TASK_NAME")
        if not isinstance(mixture, str):
            return None
        dataset, method, teacher = words.split_mixture(mixture)
        state = f"{RESULTS_FILE} is broken" if broken else "not finished"
        return Run(self._shown, dataset, method, teacher, state=state)

    def _tell_unknown(self) -> None:
        """Names the file that should say of what run the folder is."""
        if CONFIG_FILE in self._names:
            reason = f"it sets no MIXTURE_OR_TASK_NAME, and there is no {RESULTS_FILE}"
            self._problem(CONFIG_FILE, reason)
        else:
            self._problem(METRICS_FILE, f"no {CONFIG_FILE} beside it says of what run it is")

    def _read_command(self) -> str | None:
        """What `sweep` wrote: the command that reproduces the run."""
        if COMMAND_FILE not in self._names:
            return None
        path = os.path.join(self._folder, COMMAND_FILE)
        try:
            content = _read_bytes(path, self._show_path(COMMAND_FILE), MOST_TEXT)
        except SourceError as error:
            self._problems.append(words.join_lines(str(error)))
            return None
        except OSError as error:
            self._problem(COMMAND_FILE, error.strerror or str(error))
            return None
        return content.decode("utf-8", "backslashreplace").strip() or None

    def _make_command(self) -> str | None:
        """The command that trains such a run again, of its own `config.gin`."""
        if CONFIG_FILE not in self._names:
            return None
        path = os.path.join(self._folder, CONFIG_FILE)
        return f"python -m distill_sbs.train --gin_file={shlex.quote(path)}"


def _find_no_file(path: str) -> str | None:
    """Why a path that is there is no file to be read; None where it is one."""
    if os.path.isfile(path):
        return None
    if os.path.isdir(path):
        return "a folder, expected a file"
    if os.path.islink(path) and not os.path.exists(path):
        return "a link to what is not there"
    return "not a file"  # a pipe would be waited for


def _read_bytes(path: str, shown: str, most: int) -> bytes:
    """The bytes of a regular file; `shown` is its name in messages.

    Raises:
      SourceError: it is longer than `most` bytes, or no file.
      OSError: it cannot be read.
    """
    if reason := _find_no_file(path):
        raise SourceError(f"{shown}: {reason}")
    with open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise SourceError(f"{shown}: more than {most:,} bytes")
    return content


def _thin(points: list[tuple[int, float]]) -> Curve:
    """At most `_MOST_POINTS` of the points, the last among them."""
    every = -(-len(points) // _MOST_POINTS)
    return tuple(points[::-1][::every][::-1])
