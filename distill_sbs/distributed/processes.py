"""Several processes as one run: how they find each other, share the data, and stop together.

Enters: the flags `--multiprocess`, `--coordinator_address`, `--process_count`, `--process_index`
(T5X's names), or what SLURM, Open MPI or a TPU's metadata server say. Leaves: `jax.devices()` of
all processes, and this process's share of the work.

The same program runs everywhere, with the same arguments; MODEL_DIR is one folder that all
processes see (`gs://`, a network file system). What is computed does not depend on the number of
processes, only on the mesh:

- **Which sequences a step sees** is a function of seed and position
  (`data.batches.sampler`), so every process knows it without asking.
- **Reading and tokenising** is shared: a process reads 1/N of each split, and their tokens are
  exchanged once, at the start (`exchange`). After that a process holds the tokens of the whole
  split, as a single process does, and lays out the rows of its own devices. The alternatives were
  an exchange in every step, which would have to be ordered against the step's own collectives, and
  records read at random from a bucket; both save memory that these data do not take: e-SNLI,
  549,367 examples with rationales, is 0.2 GB of tokens.
- **Results**: decoded tokens are gathered, every process scores all examples, each once, and all
  agree on the best step. Only process 0 prints and writes; orbax writes each array's shards from
  the process that has them.
- **SIGTERM** to any process is made known to all by JAX's preemption service, which names a step
  that none has begun: there all save and stop. It costs a step nothing.
- **A process that dies or is stopped** is noticed by the others (`lifeline`).
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from absl import flags

from distill_sbs.cli import flag_groups, terminal
from distill_sbs.distributed import lifeline as lifelines
from distill_sbs.errors import UserError, describe_disk_error

# Flags by name, as absl gives them; of what types they are only absl knows.
Flags: TypeAlias = Mapping[str, Any]

# JAX gives a process up after this: the second line, behind `lifeline`.
HEARTBEAT_TIMEOUT_SECONDS = 100

# How long processes wait for one another at the start, when machines may still be booting.
START_TIMEOUT_SECONDS = 300

# How long a process that loses its connections waits to be told whose end it was.
_NEWS_SECONDS = 3.0

# What an exchange may take of a device at a time, all processes' parts together.
_EXCHANGED_BYTES = 64 * 2**20


def define_flags(flag_values: flags.FlagValues) -> None:
    """Defines the flags of entry points that several processes may run."""
    with flag_groups.group(flag_values, "Several processes"):
        flags.DEFINE_bool(
            "multiprocess",
            False,
            "One of several processes of a run, all started with the same arguments. On TPUs, under"
            " SLURM and Open MPI nothing else is needed; elsewhere give the three flags below.",
            flag_values=flag_values,
        )
        flags.DEFINE_alias("multiprocess_gpu", "multiprocess", flag_values=flag_values)
        flags.DEFINE_string(
            "coordinator_address", None, "Process 0's HOST:PORT.", flag_values=flag_values
        )
        flags.DEFINE_integer(
            "process_count", None, "Number of processes.", flag_values=flag_values, lower_bound=1
        )
        flags.DEFINE_integer(
            "process_index",
            None,
            "This process's number, from 0.",
            flag_values=flag_values,
            lower_bound=0,
        )
        flags.DEFINE_integer(
            "start_timeout_seconds",
            START_TIMEOUT_SECONDS,
            "How long processes wait for one another at the start.",
            flag_values=flag_values,
            lower_bound=1,
        )


def list_settings(values: Flags) -> str:
    """The flags that all processes must have in common, one a line, for `join_processes`."""
    return "\n".join(
        f"--{name}={value}" for name, value in sorted(values.items()) if name != "process_index"
    )


def check_flags(values: Flags) -> bool:
    """Whether the flags ask for several processes.

    Raises:
      UserError: they contradict one another; the message says how to type them.
    """
    given = {
        name: values[name]
        for name in ("coordinator_address", "process_count", "process_index")
        if values[name] is not None
    }
    form = "--multiprocess --coordinator_address=HOST:PORT --process_count=4 --process_index=0"
    if given and not values["multiprocess"]:
        raise UserError(f"--{next(iter(given))} was given without --multiprocess; type {form}")
    if given and len(given) < 3:
        raise UserError(
            f"only {', '.join(f'--{name}' for name in given)} given; type {form} (or none of the "
            "three on TPUs and under SLURM)"
        )
    if given:
        host, _, port = given["coordinator_address"].rpartition(":")
        if not host or not port.isdigit():
            raise UserError(
                f"--coordinator_address={given['coordinator_address']}: expected HOST:PORT of "
                "process 0, such as 10.0.0.1:8476"
            )
        if given["process_index"] >= given["process_count"]:
            raise UserError(
                f"--process_index={given['process_index']} with "
                f"--process_count={given['process_count']}: processes are numbered from 0 to "
                f"{given['process_count'] - 1}"
            )
    return bool(values["multiprocess"])


@contextlib.contextmanager
def join_processes(values: Flags, settings: str = "", preemptible: bool = False) -> Iterator[None]:
    """Inside, this process is one of those that the flags speak of; without them nothing happens.

    Call it before anything asks JAX for its devices. What is raised inside ends this process, and
    the others with it.

    Args:
      values: the flags, by name.
      settings: what all processes must have in common, one setting a line.
      preemptible: whether the work inside asks `StopRequest`; otherwise SIGTERM ends the process.

    Raises:
      UserError: contradicting flags; the others have other settings.
      SystemExit: status 2: not all others came in time.
    """
    if not check_flags(values):
        yield
        return
    lifeline = _join(values, preemptible)
    try:
        _check_same_settings(settings)
        yield
    except (Exception, KeyboardInterrupt) as error:
        _give_up(error, lifeline)
    finally:
        # Also on the way out with SystemExit, which all take together.
        _leave(lifeline)


def check_joined() -> None:
    """Raises UserError on a TPU slice of several hosts whose processes were not told to join."""
    import jax

    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise UserError(
            f"this is one of {jax.process_count()} hosts of a TPU slice; start the command on all "
            "of them with --multiprocess"
        )


def _join(values: Flags, preemptible: bool) -> lifelines.Lifeline:
    import jax
    from jax._src import distributed  # orbax takes the key-value store from here too

    jax.config.update("jax_enable_preemption_service", preemptible)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    timeout_seconds = values["start_timeout_seconds"]
    missing = (
        f"error: the processes did not all come within {timeout_seconds} s; start every one with "
        f"the same --coordinator_address, that of process 0 ({values['coordinator_address']} "
        "here), --process_count, and a --process_index of its own"
    )
    # JAX's own timeout aborts the process with a stack trace, so it comes second.
    alarm = threading.Timer(
        timeout_seconds, lifelines.stop_process, (missing, lifelines.USER_ERROR_EXIT_STATUS)
    )
    alarm.daemon = True
    alarm.start()
    try:
        jax.distributed.initialize(
            values["coordinator_address"],
            values["process_count"],
            values["process_index"],
            initialization_timeout=timeout_seconds + 60,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_SECONDS,
        )
    except ValueError as error:
        raise UserError(
            f"--multiprocess: neither TPU, SLURM nor Open MPI was found ({error}); give "
            "--coordinator_address=HOST:PORT --process_count=N --process_index=I"
        ) from error
    finally:
        alarm.cancel()
    if jax.default_backend() == "cpu":
        _silence_gloo()
    index, count = jax.process_index(), jax.process_count()
    store, coordinator = (
        distributed.global_state.client,
        distributed.global_state.coordinator_address,
    )
    assert store is not None and coordinator is not None
    if index == 0:
        lifeline, port, token = lifelines.Lifeline.listen(count)
        store.key_value_set("distill_sbs/lifeline", f"{port} {token}")
        return lifeline
    port, token = store.blocking_key_value_get("distill_sbs/lifeline", 60_000).split()
    host = coordinator.rpartition(":")[0].strip("[]")
    try:
        return lifelines.Lifeline.connect(index, count, host, int(port), token)
    except OSError as error:
        terminal.say(
            f"warning: no connection to {host}:{port} ({error}); should another process die, this "
            f"one stops only after {HEARTBEAT_TIMEOUT_SECONDS} s",
            stderr=True,
        )
        return lifelines.Lifeline(index, count)


def _silence_gloo() -> None:
    """Gloo prints a line for every group of devices to standard output, where results belong."""
    sys.stdout.flush()
    results = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout = io.TextIOWrapper(
        os.fdopen(results, "wb"), encoding=sys.stdout.encoding, line_buffering=True
    )


def _check_same_settings(settings: str) -> None:
    import jax

    lines = [part.tobytes().decode().splitlines() for part in exchange(_bytes_of(settings))]
    first, here = lines[0], lines[jax.process_index()]
    differences = sorted(set(first) ^ set(here))
    if differences:
        raise UserError(
            f"process {jax.process_index()} was started with other settings than process 0: "
            f"{'; '.join(differences)}; start all processes with the same command"
        )


def _bytes_of(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), np.uint8)


def _give_up(error: BaseException, lifeline: lifelines.Lifeline) -> None:
    """Reports what was raised, here and to the others, and ends this process."""
    told = str(error) if isinstance(error, UserError) else describe_disk_error(error)
    if told is not None:
        status, reason = lifelines.USER_ERROR_EXIT_STATUS, told
        message = f"error: {told}"
    elif isinstance(error, KeyboardInterrupt):
        status, reason = lifelines.INTERRUPTED_EXIT_STATUS, "interrupted (Ctrl-C)"
        message = "interrupted: the same command on every host continues"
    else:
        status, reason = 1, f"{type(error).__name__}: {error}".splitlines()[0]
        message = traceback.format_exc().rstrip()
        if type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError"):
            # Most likely what a collective says when its other end is gone; the lifeline knows.
            time.sleep(_NEWS_SECONDS)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    terminal.say(message, stderr=True)
    lifeline.fail(reason, status)
    os._exit(status)  # JAX's own end would wait minutes for the others


def _leave(lifeline: lifelines.Lifeline) -> None:
    import jax

    lifeline.finish()
    jax.distributed.shutdown()


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    import jax

    return jax.process_index() == 0


def exchange(array: np.ndarray) -> list[np.ndarray]:
    """Gives every process the array [n] of each, in order; lengths may differ, the dtype not."""
    import jax
    from jax.experimental import multihost_utils

    count = jax.process_count()
    if count == 1:
        return [array]
    content = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    # As bytes, since JAX cuts int64 to int32.
    size = np.array([content.size], np.int64).view(np.uint8)
    sizes = multihost_utils.process_allgather(size).reshape(-1).view(np.int64)
    gathered: list[list[np.ndarray]] = [[] for _ in range(count)]
    piece = _EXCHANGED_BYTES // count
    for start in range(0, int(sizes.max()), piece):
        width = min(piece, int(sizes.max()) - start)
        padded = np.zeros(width, np.uint8)
        own = content[start : start + width]
        padded[: len(own)] = own
        for process, part in enumerate(multihost_utils.process_allgather(padded)):
            gathered[process].append(part[: max(0, int(sizes[process]) - start)])
    return [np.concatenate([*parts, np.zeros(0, np.uint8)]).view(array.dtype) for parts in gathered]


def wait_for_all(name: str) -> None:
    """Returns when every process has come here."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def run_first_then_others(work: Callable[[], None]) -> None:
    """Runs `work` in process 0, then in all others: what it makes is made once."""
    if is_first():
        work()
    wait_for_all("run_first_then_others")
    if not is_first():
        work()


def check_shared(folder: str) -> None:
    """Raises UserError where `folder` is not one and the same for all processes."""
    import jax
    from etils import epath

    if jax.process_count() == 1:
        return
    mark = epath.Path(folder) / ".seen_by_all_processes"
    if is_first():
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.write_text("")
    wait_for_all("marked")
    sees = exchange(np.array([mark.exists()]))
    if is_first():
        mark.unlink()
    blind = [str(index) for index, (seen,) in enumerate(sees) if not seen]
    if blind:
        raise UserError(
            f"MODEL_DIR={folder} of process 0 is not that of process {', '.join(blind)}; use a "
            "folder that all hosts share: gs://, or a network file system"
        )
