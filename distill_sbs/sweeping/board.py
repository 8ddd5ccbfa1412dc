"""What a sweep shows while it works: a live table on a terminal, plain lines elsewhere.

Enters: runs as they begin, move and end. Leaves: lines on standard output; on a terminal below them
a table of what is done, running and left, how long it will take, and the best run so far.
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.live import Live
from rich.table import Table

from distill_sbs import json_lines
from distill_sbs.cli import terminal
from distill_sbs.sweeping.plan import Run
from distill_sbs.training.metrics_file import METRICS_FILE

_MOST_ROWS = 12
# The last lines of `metrics.jsonl` lie in as many bytes.
_TAIL_BYTES = 8192


@dataclasses.dataclass
class Progress:
    """How far a run is.

    Attributes:
      step: the last that it has logged.
      began_at: the step at which it was when this sweep began it.
      accuracy: the last on validation, 0 to 1; None: none yet.
      since: when it was begun, of the monotonic clock.
    """

    step: int
    began_at: int
    accuracy: float | None
    since: float


class Board:
    """The state of a sweep, as it is shown.

    Args:
      runs: all runs of the sweep.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        self._runs = {run.name: run for run in runs}
        self._finished = {run.name: run.results for run in runs if run.results is not None}
        self._to_do = len(runs) - len(self._finished)
        self._ended = 0
        self._failed = 0
        self._running: dict[str, Progress] = {}
        self._work_done = 0.0
        self._since = time.monotonic()
        self._console = terminal.make_console()
        self._live: Live | None = None

    def __enter__(self) -> Board:
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, message: str) -> None:
        """Prints a line, above the table where there is one."""
        self._console.print(terminal.clean(message), soft_wrap=True)

    def begin(self, run: Run) -> None:
        """A run has got a worker."""
        step, accuracy = _read_progress(run)
        self._running[run.name] = Progress(step, step, accuracy, time.monotonic())
        if self._live is None:
            more = f", from step {step}" if step else ""
            self.say(f"begun: {run.folder}{more}")

    def end(self, run: Run, told: str, failed: bool) -> None:
        """A run has ended; `told` says how."""
        progress = self._running.pop(run.name, None)
        self._ended += 1
        self._failed += failed
        took = ""
        if progress is not None:
            steps = _steps_of(run) if run.results is not None else progress.step
            self._work_done += _work_of(run, max(0, steps - progress.began_at))
            took = f", {_tell_time(time.monotonic() - progress.since)}"
        if run.results is not None:
            self._finished[run.name] = run.results
            self._runs[run.name] = run
        self.say(f"[{self._ended}/{self._to_do}] {run.folder}: {told}{took}")

    def is_shown(self, run: Run) -> bool:
        """Whether a run stands in the table as running."""
        return run.name in self._running

    def refresh(self) -> None:
        """Looks how far the runs are, and draws the table anew; does nothing off a terminal."""
        if self._live is None:
            return
        for name, progress in self._running.items():
            progress.step, progress.accuracy = _read_progress(self._runs[name])
        self._live.update(self._draw(), refresh=True)

    def _draw(self) -> Group:
        left = len(self._runs) - len(self._finished) - len(self._running) - self._failed
        table = terminal.make_table("running", "step", "validation", "for", right_from=1)
        for name, progress in list(self._running.items())[:_MOST_ROWS]:
            accuracy = "" if progress.accuracy is None else f"{progress.accuracy:.1%}"
            step = f"{progress.step}/{_steps_of(self._runs[name])}"
            age = _tell_time(time.monotonic() - progress.since)
            terminal.add_row(table, name, step, accuracy, age)
        if len(self._running) > _MOST_ROWS:
            terminal.add_row(table, f"… {len(self._running) - _MOST_ROWS} more", "", "", "")
        counts = terminal.make_table(
            "done", "running", "left", "failed", "time left", "best so far"
        )
        terminal.add_row(
            counts,
            str(len(self._finished)),
            str(len(self._running)),
            str(max(0, left)),
            str(self._failed),
            self._tell_time_left(),
            self.tell_best(),
        )
        parts: list[Table] = [counts]
        if self._running:
            parts.append(table)
        return Group(*parts)

    def tell_best(self) -> str:
        """The finished run that is right most often on test, in words; empty where none is."""
        scores = {
            name: result.test_accuracy
            for name, result in self._finished.items()
            if result.test_accuracy is not None
        }
        if not scores:
            return ""
        best = max(scores, key=lambda name: scores[name])
        return f"{scores[best]:.1%} {best}"

    def _tell_time_left(self) -> str:
        """By the pace of this sweep so far, in sequences."""
        running = sum(
            _work_of(self._runs[name], progress.step - progress.began_at)
            for name, progress in self._running.items()
        )
        done = self._work_done + running
        if done <= 0:
            return "?"
        left = -running
        for name, run in self._runs.items():
            if name not in self._finished:
                progress = self._running.get(name)
                left += _work_of(run, _steps_of(run) - (progress.began_at if progress else 0))
        return _tell_time(max(0.0, left) * (time.monotonic() - self._since) / done)


def _steps_of(run: Run) -> int:
    return run.config.run.train_steps if run.config is not None else 0


def _work_of(run: Run, steps: int) -> float:
    """Sequences in so many steps."""
    return float(steps * run.config.batch.batch_size) if run.config is not None else 0.0


def _read_progress(run: Run) -> tuple[int, float | None]:
    """The last step that a run has logged, and its last accuracy on validation."""
    step, accuracy = 0, None
    for line in _read_last_lines(run):
        number, validation = line.get("step"), line.get("validation_accuracy")
        if isinstance(number, int):
            step = number
        if isinstance(validation, int | float):
            accuracy = float(validation)
    return step, accuracy


def _read_last_lines(run: Run) -> list[Mapping[str, object]]:
    try:
        with open(f"{run.folder}/{METRICS_FILE}", "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            content = file.read()
    except OSError:
        return []
    lines = []
    for line in content.split(b"\n"):
        try:
            lines.append(json_lines.parse_object(line.decode(), METRICS_FILE))
        except ValueError:  # begun before the tail, or not written whole yet
            continue
    return [line for line in lines if isinstance(line, dict)]


def _tell_time(seconds: float) -> str:
    return str(datetime.timedelta(seconds=round(seconds)))
