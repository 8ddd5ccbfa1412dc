"""A Ray cluster as an executor: each run is a Ray task that says what it needs.

Enters: `SweepConfig`, and runs. Leaves: how each ended. Ray decides what runs where and when; a run
whose worker or machine is lost is begun again on another, and goes on from its last checkpoint, so
SWEEP_DIR, the gin files and the data lie where all machines see them by the same paths.

A task keeps its worker process (`children`) for the next task that Ray gives to the same process:
small runs do not pay a start-up each here either.
"""

from __future__ import annotations

import importlib
import logging
import os
import selectors
import signal
import socket
import sys
import time
import types
from collections.abc import Iterator, Mapping

from distill_sbs.cli import signals
from distill_sbs.errors import UserError
from distill_sbs.folder_lock import FolderLock
from distill_sbs.sweeping.children import Child, Ended, Task
from distill_sbs.sweeping.options import SweepConfig

_LOOK_SECONDS = 0.3


class RayCluster:
    """Runs on a Ray cluster, as many at a time as it has room for.

    Args:
      config: what each run needs, and which cluster.
      environment: what is set for all workers besides their own environment.

    Raises:
      UserError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, config: SweepConfig, environment: Mapping[str, str]) -> None:
        self._ray = _import_ray()
        self._environment = dict(environment)
        # Tasks ask for `sys.path` of the sweep, not of the folder that Ray was started in.
        self._environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        # Ray counts cores and holds nobody to them. XLA has as many threads as this says, which
        # set the order of sums, too: a run comes out as on as many cores of this machine.
        self._environment["NPROC"] = str(config.cpus_per_run)
        address = config.ray_address or os.environ.get("RAY_ADDRESS")
        try:
            _check_answers(address)
            with signals.keep_handlers():  # Ray puts handlers of its own over ours
                self._ray.init(
                    # Not None: Ray would look for one that was started here, dead or alive.
                    address=address or "local",
                    include_dashboard=None if address else False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    configure_logging=False,
                )
        except Exception as error:  # Ray raises that very class where a node does not start
            told = " ".join(str(error).split())[:200]
            where = f"RAY_ADDRESS={address!r}: no Ray cluster answers there"
            raise UserError(
                f"{where} ({told}); start one with `ray start --head`, and where it asks for a "
                "token, give it in $RAY_AUTH_TOKEN with RAY_AUTH_MODE=token"
                if address
                else f"Ray does not start on this machine ({told})"
            ) from error
        resources = {"TPU": config.tpus_per_run} if config.tpus_per_run else {}
        self._train = self._ray.remote(
            num_cpus=config.cpus_per_run,
            num_gpus=config.gpus_per_run or 0,
            resources=resources,
            max_retries=config.max_retries,
        )(train_here)
        self._under_way: dict[object, Task] = {}
        self._begun_at: dict[str, float] = {}
        self._is_stopping = False

    def has_room(self) -> bool:
        """Ray takes all tasks, and has them wait."""
        return True

    def begin(self, task: Task) -> None:
        """Hands a run to Ray."""
        self._begun_at[task.name] = time.time()
        reference = self._train.remote(
            task.name, task.folder, task.arguments, self._environment, os.getcwd()
        )
        self._under_way[reference] = task

    def is_under_way(self, task: Task) -> bool:
        """Whether a run that was begun has got a worker, as its log tells."""
        try:
            return task.log.stat().st_mtime >= self._begun_at[task.name] - 1
        except OSError:
            return False

    def wait(self, seconds: float) -> Iterator[Ended]:
        """The runs that have ended; waits for one, `seconds` at the most."""
        if not self._under_way:
            time.sleep(seconds)
            return
        done, _ = self._ray.wait(list(self._under_way), num_returns=1, timeout=seconds)
        for reference in done:
            task = self._under_way.pop(reference)
            yield self._tell_end(reference, task)

    def _tell_end(self, reference: object, task: Task) -> Ended:
        errors = self._ray.exceptions
        try:
            status, cause = self._ray.get(reference)
            return Ended(task.name, status, cause)
        except (errors.TaskCancelledError, KeyboardInterrupt):
            return Ended(task.name, 128 + signal.SIGTERM)
        except errors.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            return Ended(task.name, 1, f"Ray: {lines[0] if lines else type(error).__name__}")

    def stop(self) -> None:
        """Asks all runs to save and end; the second time they end at once."""
        for reference in list(self._under_way):
            self._ray.cancel(reference, force=self._is_stopping, recursive=False)
        self._is_stopping = True

    def close(self) -> None:
        """Leaves the cluster; waits until nobody writes to a run's folder any more."""
        tasks = list(self._under_way.values())
        if tasks:
            self.stop()
        self._ray.shutdown()
        for task in tasks:
            wait_until_free(task.folder)


def _check_answers(address: str | None) -> None:
    """Raises OSError where nobody listens at HOST:PORT; Ray would ask for minutes."""
    host, separator, port = (address or "").removeprefix("ray://").rpartition(":")
    if separator and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=20).close()


def _import_ray() -> types.ModuleType:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            f"EXECUTOR='ray' needs Ray ({error}); install it: pip install 'distill_sbs[ray]'"
        ) from error


# ---------------------------------- on the worker ----------------------------

# The child of this Ray process, and the devices that it was started with.
_kept: tuple[Child, Mapping[str, str]] | None = None


def _take_child(environment: Mapping[str, str]) -> Child:
    global _kept
    wanted = {**os.environ, **environment}
    if _kept is not None and _kept[1] != wanted:
        _kept[0].close()
        _kept = None
    if _kept is None:
        _kept = Child(wanted), wanted
    return _kept[0]


def train_here(
    name: str,
    folder: str,
    arguments: tuple[str, ...],
    environment: Mapping[str, str],
    working_folder: str,
) -> tuple[int, str]:
    """The Ray task: trains one run in a worker process; returns its status and what ended it."""
    if os.path.isdir(working_folder):
        os.chdir(working_folder)
    # Of a worker that was lost, its process may be saving still.
    wait_until_free(folder)
    child = _take_child(environment)
    child.begin(Task(name, folder, arguments))
    with selectors.DefaultSelector() as selector:
        selector.register(child.fileno(), selectors.EVENT_READ)
        while True:
            try:
                # Short, for Ray cancels a task between two lines of Python.
                if selector.select(_LOOK_SECONDS) and (ended := child.receive()) is not None:
                    return ended.status, ended.cause
            except KeyboardInterrupt:
                child.send(signal.SIGTERM)


def wait_until_free(folder: str) -> None:
    """Returns when no process holds a run's folder."""
    while FolderLock(folder, "training").find_owner() is not None:
        time.sleep(_LOOK_SECONDS)
