"""The loop of a sweep: begins what there is room for, hears how it ended, stops when told to.

Enters: runs that are left, an executor, signals. Leaves: finished runs' results, and those that
failed with the last lines of their log.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from etils import epath

from distill_sbs import files
from distill_sbs.cli import signals, terminal
from distill_sbs.folder_lock import FolderLock
from distill_sbs.sweeping import plan
from distill_sbs.sweeping.board import Board
from distill_sbs.sweeping.children import Ended, Task
from distill_sbs.sweeping.plan import Run

COMMAND_FILE = "command.txt"

# How often it is looked whether a signal came, and how far the runs are.
_LOOK_SECONDS = 0.3
_TOLD_LINES = 5
# The end of a log, which may be long.
_TAIL_BYTES = 16384


class Executor(Protocol):
    """Who trains the runs."""

    def has_room(self) -> bool:
        """Whether it takes another run."""

    def begin(self, task: Task) -> None:
        """Takes a run."""

    def is_under_way(self, task: Task) -> bool:
        """Whether a run that it took has a worker."""

    def wait(self, seconds: float) -> Iterable[Ended]:
        """The runs that have ended; waits for one, `seconds` at the most."""

    def stop(self) -> None:
        """Asks all runs to save and end; the second time they end at once."""

    def close(self) -> None:
        """Lets go of everything; nothing of it goes on afterwards."""


class StopSignals:
    """SIGTERM, Ctrl-C and SIGHUP, counted; whoever looks decides.

    Attributes:
      first: the number of the first one; None: none came.
      count: how many came.
    """

    def __init__(self) -> None:
        self.first: int | None = None
        self.count = 0

    def _note(self, number: int, _: object) -> None:
        self.first = self.first or number
        self.count += 1

    @contextlib.contextmanager
    def listen(self) -> Iterator[StopSignals]:
        """Inside they are counted; outside the main thread nobody can."""
        with signals.keep_handlers() as numbers:
            for number in numbers:
                signal.signal(number, self._note)
            yield self


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that failed.

    Attributes:
      run: which.
      status: its exit status.
      lines: the last lines of its log, and what killed its process where something did.
    """

    run: Run
    status: int
    lines: tuple[str, ...]


@dataclasses.dataclass
class Outcome:
    """What a sweep came to: every run that is done, and those that failed."""

    runs: dict[str, Run]
    failures: list[Failure] = dataclasses.field(default_factory=list)


def run_all(
    runs: Sequence[Run],
    executor: Executor,
    board: Board,
    stop: StopSignals,
) -> Outcome:
    """Trains every run that has not finished, until all have ended or a signal came.

    Args:
      runs: all of the sweep.
      executor: who trains; it is left open.
      board: where it is shown.
      stop: signals.
    """
    outcome = Outcome({run.name: run for run in runs})
    pending = collections.deque(run for run in runs if run.results is None)
    taken: dict[str, Task] = {}
    asked_to_stop = 0
    while pending or taken:
        if stop.count > asked_to_stop:
            if not asked_to_stop:
                board.say("stopping: waiting for the runs to save …")
            asked_to_stop = stop.count
            pending.clear()
            executor.stop()
        while pending and executor.has_room():
            run = pending.popleft()
            write_command(run)
            taken[run.name] = Task(run.name, run.folder, run.arguments)
            executor.begin(taken[run.name])
        for name, task in taken.items():
            if not board.is_shown(outcome.runs[name]) and executor.is_under_way(task):
                board.begin(outcome.runs[name])
        for ended in executor.wait(_LOOK_SECONDS):
            task = taken.pop(ended.name)
            run = outcome.runs[ended.name] = plan.read_again(outcome.runs[ended.name])
            if run.results is not None:
                accuracy = run.results.test_accuracy
                board.end(
                    run, "no test split" if accuracy is None else f"test {accuracy:.1%}", False
                )
            elif asked_to_stop:
                board.end(run, "stopped", False)
            else:
                failure = Failure(run, ended.status, _tell_failure(task, ended))
                outcome.failures.append(failure)
                board.end(run, f"failed with status {ended.status}: {failure.lines[-1]}", True)
        board.refresh()
    return outcome


def write_command(run: Run) -> None:
    """Notes in a run's folder the command that it is."""
    files.write_file(epath.Path(run.folder) / COMMAND_FILE, run.make_command() + "\n")


def wait_for_others(runs: Sequence[Run], stop: StopSignals) -> None:
    """Waits for processes that an earlier sweep, killed since, has left behind: they are saving."""
    for run in runs:
        lock = FolderLock(run.folder, "training")
        owner = lock.find_owner()
        if owner is not None:
            terminal.say(f"waiting: {owner}, and has not ended; it saves and ends by itself")
        event = threading.Event()
        while owner is not None and stop.first is None:
            event.wait(_LOOK_SECONDS)
            owner = lock.find_owner()


def _tell_failure(task: Task, ended: Ended) -> tuple[str, ...]:
    try:
        with task.log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            content = file.read().decode(errors="replace")
    except OSError as error:
        content = f"no log: {error}"
    lines = [line.rstrip() for line in content.splitlines() if line.strip()]
    told = lines[-_TOLD_LINES:]
    if ended.cause:
        told.append(ended.cause)
    return tuple(told or ["it printed nothing"])
