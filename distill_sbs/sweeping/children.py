"""The sweep's end of a worker: starts it, gives it runs, hears how they ended, stops it.

Enters: what a run needs, `Task`. Leaves: exit statuses. A worker has a session of its own, so that
a Ctrl-C typed in the terminal reaches it once, through the sweep; it hears of the sweep's death by
the end of its standard input, however the sweep died.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping

LOG_FILE = "log.txt"


@dataclasses.dataclass(frozen=True)
class Task:
    """A run, as a worker is given it.

    Attributes:
      name: the run's name in the sweep.
      folder: its MODEL_DIR; local, or where all machines see it.
      arguments: flags of `python -m distill_sbs.train`.
    """

    name: str
    folder: str
    arguments: tuple[str, ...]

    @property
    def log(self) -> pathlib.Path:
        """Where what it prints goes."""
        return pathlib.Path(self.folder) / LOG_FILE


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
      name: the run's name in the sweep.
      status: its exit status; 0 is done.
      cause: what its log does not say, such as the signal that killed it; or empty.
    """

    name: str
    status: int
    cause: str = ""


class Child:
    """A worker process, started when it is given its first run.

    Args:
      environment: its environment, whole.
      cores: the processor cores that it may use; None: all of this process.
    """

    def __init__(self, environment: Mapping[str, str], cores: frozenset[int] | None = None) -> None:
        self._environment = dict(environment)
        self._cores = cores
        self._process: subprocess.Popen[bytes] | None = None
        self._replies = -1
        self._received = b""
        self._task: Task | None = None

    @property
    def task(self) -> Task | None:
        """The run under way."""
        return self._task

    def fileno(self) -> int:
        """Can be read, by `receive`, when the run has ended."""
        return self._replies

    def begin(self, task: Task) -> None:
        """Gives it a run; a worker that has ended is replaced."""
        task.log.parent.mkdir(parents=True, exist_ok=True)
        if self._process is not None and self._process.poll() is not None:
            self._forget()
        if self._process is None:
            self._start(task)
        assert self._process is not None and self._process.stdin is not None
        self._task = task
        request = {"arguments": list(task.arguments), "log": str(task.log)}
        with contextlib.suppress(BrokenPipeError):  # it has just died; `receive` says so
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()

    def _start(self, task: Task) -> None:
        self._replies, writing = os.pipe()
        command = [sys.executable, "-m", "distill_sbs.sweeping.worker", str(writing)]
        if self._cores is not None:
            command.append(",".join(map(str, sorted(self._cores))))
        try:
            with task.log.open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    env=self._environment,
                    pass_fds=[writing],
                    start_new_session=True,
                )
        finally:
            os.close(writing)

    def receive(self) -> Ended | None:
        """How the run ended, once `fileno` can be read; None: there is more to come."""
        assert self._process is not None
        data = os.read(self._replies, 4096)
        self._received += data
        line, found, rest = self._received.partition(b"\n")
        if not found and data:
            return None
        task, self._task = self._task, None
        status, cause = 1, ""
        if found:
            self._received = rest
            status = json.loads(line)["status"]
        if not found or status != 0:
            status, cause = self._take_leave(status)
        return None if task is None else Ended(task.name, status, cause)

    def _take_leave(self, status: int) -> tuple[int, str]:
        """Waits for a worker that ends after this run; its status, and what killed it."""
        assert self._process is not None
        code = self._process.wait()
        self._forget()
        if code >= 0:
            return code or status, ""
        name = signal.Signals(-code).name
        hint = "; was there too little memory?" if -code == signal.SIGKILL else ""
        return 128 - code, f"its process was ended by {name}{hint}"

    def send(self, number: int) -> None:
        """Sends a signal, to a worker that still is."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def close(self) -> None:
        """Ends a worker that has nothing to do; waits until it is gone."""
        if self._process is not None:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
            self._process.wait()
            self._forget()

    def _forget(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        if self._replies >= 0:
            os.close(self._replies)
        self._process, self._replies, self._received = None, -1, b""
