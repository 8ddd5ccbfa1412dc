"""What each worker of one machine gets: cores, GPUs, TPU chips."""

from __future__ import annotations

import os
import sys

import pytest

from distill_sbs.errors import UserError
from distill_sbs.sweeping import this_machine
from distill_sbs.sweeping.options import SweepConfig


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Says what there is: cores, GPUs, chips, GiB of memory."""

    def set_up(cores: int, gpus: int = 0, chips: int = 0, gib: int = 1000) -> None:
        monkeypatch.setattr(this_machine, "find_cores", lambda: set(range(cores)))
        monkeypatch.setattr(this_machine, "find_gpus", lambda: [str(n) for n in range(gpus)])
        monkeypatch.setattr(this_machine, "find_tpu_chips", lambda: [str(n) for n in range(chips)])
        monkeypatch.setattr(this_machine, "_available_bytes", lambda: gib * 2**30)

    return set_up


def share_out(runs: int = 100, **options: object) -> list[this_machine.Share]:
    return this_machine.share_out(SweepConfig(**{"sweep_dir": "s", **options}), runs)


def cores(shares: list[this_machine.Share]) -> list[list[int]]:
    return [sorted(share.cores) for share in shares]


def test_a_core_each(machine) -> None:
    machine(cores=3)
    assert cores(share_out()) == [[0], [1], [2]]
    assert cores(share_out(cpus_per_run=2)) == [[0, 1]]
    assert cores(share_out(runs=2)) == [[0], [1]]


def test_memory_limits_how_many(machine) -> None:
    machine(cores=8, gib=5)
    assert cores(share_out()) == [[0], [1]]
    machine(cores=8, gib=1)
    assert cores(share_out()) == [[0]]


def test_workers_are_as_many_as_were_asked_for(machine) -> None:
    machine(cores=2)
    assert cores(share_out(workers=3)) == [[0], [1], [0]]
    assert cores(share_out(workers=1)) == [[0]]


def test_gpus_are_shared_out(machine) -> None:
    machine(cores=8, gpus=4)
    visible = [share.variables["CUDA_VISIBLE_DEVICES"] for share in share_out()]
    assert visible == ["0", "1", "2", "3"]
    two = share_out(gpus_per_run=2, cpus_per_run=4)
    assert [share.variables["CUDA_VISIBLE_DEVICES"] for share in two] == ["0,1", "2,3"]
    assert cores(two) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    none = share_out(gpus_per_run=0)
    assert [share.variables["CUDA_VISIBLE_DEVICES"] for share in none] == [""] * 8


def test_tpu_chips_are_shared_out(machine) -> None:
    machine(cores=8, chips=4)
    (all_of_them,) = share_out()
    assert all_of_them.variables == {}
    shares = share_out(tpus_per_run=2)
    assert [share.variables["TPU_VISIBLE_CHIPS"] for share in shares] == ["0,1", "2,3"]
    assert shares[0].variables["TPU_CHIPS_PER_PROCESS_BOUNDS"] == "1,2,1"
    assert share_out(tpus_per_run=0)[0].variables == {"JAX_PLATFORMS": "cpu"}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cpus_per_run": 9}, "CPUS_PER_RUN=9, and this machine has 8 processor cores"),
        ({"gpus_per_run": 3}, "GPUS_PER_RUN=3, and this machine has 2 GPUs"),
        ({"tpus_per_run": 5}, "TPUS_PER_RUN=5, and this machine has 4 TPU chips"),
        ({"tpus_per_run": 3, "gpus_per_run": 0}, "TPUS_PER_RUN=3: a host's chips are shared out"),
        ({"workers": 3}, "WORKERS=3: the GPUs of this machine are enough for 2"),
    ],
)
def test_what_the_machine_has_not(machine, options: dict[str, int], message: str) -> None:
    machine(cores=8, gpus=2, chips=4)
    with pytest.raises(UserError) as raised:
        share_out(**options)
    assert message in str(raised.value)


def test_gpus_are_those_that_jax_would_find(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!{sys.executable}\nprint('0\\n1')\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert this_machine.find_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, 5")
    assert this_machine.find_gpus() == ["3", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert this_machine.find_gpus() == []
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert this_machine.find_gpus() == []
