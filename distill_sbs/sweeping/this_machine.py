"""Runs on one machine, the one at hand: a worker process for each share of its devices.

Enters: `SweepConfig`, and runs. Leaves: how each ended. Cores, and GPUs or TPU chips where there
are some, are shared out when the sweep begins: a worker has the same ones for all of its runs.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import selectors
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence

from distill_sbs.cli.cores import find_cores
from distill_sbs.errors import UserError
from distill_sbs.sweeping.children import Child, Ended, Task
from distill_sbs.sweeping.options import SweepConfig

# What a run takes at the least: Python, JAX and TensorFlow are 0.7 GiB before the first array.
_RUN_BYTES = 2 * 2**30

# How a process sees 1, 2 or 4 of a host's TPU chips, and no others (libtpu's variables).
_CHIP_BOUNDS = {1: "1,1,1", 2: "1,2,1", 4: "2,2,1"}


@dataclasses.dataclass(frozen=True)
class Share:
    """What one worker has of the machine.

    Attributes:
      cores: processor cores, by number.
      variables: of its environment, by which JAX finds its GPUs or TPU chips.
    """

    cores: frozenset[int]
    variables: Mapping[str, str] = dataclasses.field(default_factory=dict)


class ThisMachine:
    """Runs on this machine, as many at a time as it has shares.

    Args:
      shares: what each worker has.
      environment: of all workers.
    """

    def __init__(self, shares: Sequence[Share], environment: Mapping[str, str]) -> None:
        self._children = [
            Child({**environment, **share.variables}, share.cores) for share in shares
        ]
        self._selector = selectors.DefaultSelector()
        self._killed = False

    def has_room(self) -> bool:
        """Whether a worker is idle."""
        return any(child.task is None for child in self._children)

    def begin(self, task: Task) -> None:
        """Gives an idle worker a run."""
        child = next(child for child in self._children if child.task is None)
        child.begin(task)
        self._selector.register(child.fileno(), selectors.EVENT_READ, child)

    def is_under_way(self, task: Task) -> bool:
        """Whether a run that was begun has a worker: here always."""
        return True

    def wait(self, seconds: float) -> Iterator[Ended]:
        """The runs that have ended; waits for one, `seconds` at the most."""
        for key, _ in self._selector.select(seconds):
            child: Child = key.data
            ended = child.receive()
            if ended is not None:
                self._selector.unregister(key.fd)
                yield ended

    def stop(self) -> None:
        """Asks all runs to save and end; the second time they end at once."""
        for child in self._children:
            if child.task is not None:
                child.send(signal.SIGKILL if self._killed else signal.SIGTERM)
        self._killed = True

    def close(self) -> None:
        """Ends all workers, and waits for them; a run under way saves first."""
        for child in self._children:
            if child.task is not None:
                child.send(signal.SIGTERM)
        for child in self._children:
            child.close()
        self._selector.close()


# ---------------------------------- sharing out ------------------------------


def share_out(config: SweepConfig, runs: int) -> list[Share]:
    """What each worker gets; there are no more workers than runs.

    Raises:
      UserError: the machine has not what a run, or WORKERS, is to have.
    """
    cores = sorted(find_cores())
    gpus, chips = find_gpus(), find_tpu_chips()
    gpus_per_run = config.gpus_per_run
    if gpus_per_run is None:
        gpus_per_run = 1 if gpus else 0
    limits = {
        "cores": _fit("CPUS_PER_RUN", config.cpus_per_run, len(cores), "processor cores"),
        "memory": max(1, _available_bytes() // _RUN_BYTES),
    }
    if gpus_per_run:
        limits["GPUs"] = _fit("GPUS_PER_RUN", gpus_per_run, len(gpus), "GPUs")
    if config.tpus_per_run:
        limits["chips"] = _fit("TPUS_PER_RUN", config.tpus_per_run, len(chips), "TPU chips")
    elif chips and config.tpus_per_run is None:
        limits["chips"] = 1  # all of them
    most = min(limits.values())
    if config.workers is not None:
        scarce = {name: limit for name, limit in limits.items() if name in ("GPUs", "chips")}
        for name, limit in scarce.items():
            if config.workers > limit:
                raise UserError(
                    f"WORKERS={config.workers}: the {name} of this machine are enough for {limit} "
                    f"at a time; give WORKERS={limit}, or fewer to a run"
                )
        most = config.workers
    return [
        Share(
            _cores_of(index, config.cpus_per_run, cores),
            {
                **_gpu_variables(gpus, gpus_per_run, index),
                **_chip_variables(chips, config.tpus_per_run, index),
            },
        )
        for index in range(max(1, min(most, runs)))
    ]


def _fit(macro: str, wanted: int, there: int, what: str) -> int:
    if wanted > there:
        raise UserError(f"{macro}={wanted}, and this machine has {there} {what}; give fewer")
    return there // wanted


def _cores_of(index: int, count: int, cores: Sequence[int]) -> frozenset[int]:
    """The cores of a worker; where WORKERS asks for more than there are, some have the same."""
    first = index * count
    return frozenset(cores[(first + offset) % len(cores)] for offset in range(count))


def _gpu_variables(gpus: Sequence[str], count: int, index: int) -> dict[str, str]:
    if not gpus:
        return {}
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[index * count : (index + 1) * count])}


def _chip_variables(chips: Sequence[str], count: int | None, index: int) -> dict[str, str]:
    if not chips or count is None or count == len(chips):
        return {}
    if count == 0:
        return {"JAX_PLATFORMS": "cpu"}
    if count not in _CHIP_BOUNDS:
        raise UserError(
            f"TPUS_PER_RUN={count}: a host's chips are shared out by 1, 2 or 4, or all to one run"
        )
    return {
        "TPU_VISIBLE_CHIPS": ",".join(chips[index * count : (index + 1) * count]),
        "TPU_CHIPS_PER_PROCESS_BOUNDS": _CHIP_BOUNDS[count],
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }


def find_gpus() -> list[str]:
    """The GPUs that JAX would find, as CUDA_VISIBLE_DEVICES names them; JAX is not asked."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return listed.stdout.split()


def find_tpu_chips() -> list[str]:
    """The TPU chips of this host, by number; JAX is not asked."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if platforms and "tpu" not in platforms.split(","):
        return []
    dev = pathlib.Path("/dev")
    found = [path for path in dev.glob("accel*") if path.name.removeprefix("accel").isdigit()]
    if not found and "TPU_ACCELERATOR_TYPE" in os.environ:
        found = [path for path in dev.glob("vfio/*") if path.name.isdigit()]
    return [str(number) for number in range(len(found))]


def _available_bytes() -> int:
    """Memory that can still be had, in bytes."""
    try:
        for line in pathlib.Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 2**62
