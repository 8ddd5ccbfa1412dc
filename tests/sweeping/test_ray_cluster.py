"""sweep on a real Ray cluster of two nodes on this machine, one of which is killed midway."""

from __future__ import annotations

import contextlib
import os
import pathlib
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
from quickstart_runs import assert_same_run
from sweeps import ROOT, count_lines, find_processes, make_command, read_summary, wait_until

GRID = [
    "--mixtures=comparisons_finetune,comparisons_dss_template",
    "--seeds=0,1",
    "--gin.CHECKPOINT_PERIOD=2",
]
RUNS = [
    pathlib.Path("sweep", mixture, "fraction_1", f"seed_{seed}")
    for mixture in ("comparisons_finetune", "comparisons_dss_template")
    for seed in (0, 1)
]


def test_without_ray_it_says_what_to_install(tmp_path: pathlib.Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "ray.py").write_text("raise ImportError('No module named ray')\n")
    environment = {**os.environ, "PYTHONPATH": f"{hidden}:{ROOT}"}
    program = (
        "from distill_sbs.sweeping import ray_cluster, options\n"
        "from distill_sbs.errors import UserError\n"
        "try: ray_cluster.RayCluster(options.SweepConfig(sweep_dir='s'), {})\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stdout == (
        "EXECUTOR='ray' needs Ray (No module named ray); "
        "install it: pip install 'distill_sbs[ray]'\n"
    ), done.stderr


# ---------------------------------- a cluster --------------------------------


def find_free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


class Cluster:
    """A head and further nodes, each of one core, all on this machine."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self.address = f"127.0.0.1:{find_free_port()}"
        self._nodes: list[subprocess.Popen[bytes]] = []
        # A cluster that asks who comes, with a token that lives as long as it.
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), **token}

    def add(self, name: str) -> subprocess.Popen[bytes]:
        """Starts a node, and waits until the cluster has it; the first is the head."""
        port = self.address.rpartition(":")[2]
        head = ["--head", f"--port={port}", "--include-dashboard=false"]
        role = [f"--address={self.address}"] if self._nodes else head
        environment = {**self.environment, "SWEEP_TEST_NODE": name}
        with (self._folder / f"{name}.log").open("wb") as log:
            node = subprocess.Popen(
                # Not `ray start`: its console script may stand in another environment.
                [sys.executable, "-m", "ray.scripts.scripts", "start", *role, "--num-cpus=1"]
                + ["--node-ip-address=127.0.0.1", "--block"]
                + ["--object-store-memory=100000000", "--disable-usage-stats"],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._nodes.append(node)
        wait_until(
            lambda: (
                b"Ray runtime started" in (self._folder / f"{name}.log").read_bytes()
                or node.poll() is not None
            ),
            f"node {name}",
        )
        assert node.poll() is None, (self._folder / f"{name}.log").read_text()
        return node

    def close(self) -> None:
        for node in self._nodes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(node.pid, signal.SIGTERM)
        for node in self._nodes:
            node.wait(timeout=120)


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> Iterator[Cluster]:
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.close()


def run(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_lost_workers_run_goes_on_elsewhere_and_all_comes_out_the_same(
    cluster: Cluster, tmp_path: pathlib.Path
) -> None:
    data = tmp_path / "data"
    run(make_command(tmp_path / "local", *GRID, "--parallel=1", data=data, steps=40))
    cluster.add("head")
    cluster.add("victim")
    folder = tmp_path / "ray"
    folder.mkdir()
    command = make_command(
        folder,
        *GRID,
        "--gin.EXECUTOR='ray'",
        f"--gin.RAY_ADDRESS='{cluster.address}'",
        data=data,
        steps=40,
    )
    log = folder / "printed.txt"
    with log.open("wb") as file:
        sweep = subprocess.Popen(
            command, cwd=ROOT, env=cluster.environment, stdout=file, stderr=subprocess.STDOUT
        )

    def find_lost() -> list[pathlib.Path]:
        """Runs under way on the node that is about to be killed, which have logged a step."""
        return [
            folder / each
            for each in RUNS
            if count_lines(folder / each / "metrics.jsonl")
            and set(find_processes("SWEEP_TEST_NODE=victim")) & find_holders(folder / each)
        ]

    wait_until(lambda: find_lost() or sweep.poll() is not None, "a run on the second node")
    assert sweep.poll() is None, log.read_text()
    (lost,) = find_lost()
    for number in find_processes("SWEEP_TEST_NODE=victim"):  # all at once, as a machine is lost
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    assert sweep.wait(timeout=3000) == 0, log.read_text()
    printed = log.read_text()
    assert "on Ray: 1 cores a run" in printed and "Traceback" not in printed
    assert f"{lost.relative_to(folder / 'sweep')}: test " in printed
    assert (lost / "log.txt").read_text().count("a step lays") == 2, "begun here, gone on there"
    assert read_summary(folder) == read_summary(tmp_path / "local")
    for each in RUNS:
        assert_same_run(folder / each, tmp_path / "local" / each)


def find_holders(folder: pathlib.Path) -> set[int]:
    """Numbers of processes that have a file of a folder open."""
    found = set()
    for path in pathlib.Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(path).startswith(str(folder) + "/"):
                found.add(int(path.parts[2]))
    return found


@pytest.mark.slow
def test_sigterm_stops_the_runs_of_a_cluster(cluster: Cluster, tmp_path: pathlib.Path) -> None:
    cluster.add("head")
    command = make_command(
        tmp_path,
        "--mixtures=comparisons_finetune",
        "--seeds=0,1",
        "--gin.EXECUTOR='ray'",
        f"--gin.RAY_ADDRESS='{cluster.address}'",
        steps=100_000,
    )
    log = tmp_path / "printed.txt"
    with log.open("wb") as file:
        sweep = subprocess.Popen(
            command, cwd=ROOT, env=cluster.environment, stdout=file, stderr=subprocess.STDOUT
        )
    folder = tmp_path / "sweep" / "comparisons_finetune" / "fraction_1" / "seed_0"
    wait_until(lambda: count_lines(folder / "metrics.jsonl") or sweep.poll() is not None, "a step")
    sweep.send_signal(signal.SIGTERM)
    assert sweep.wait(timeout=600) == 128 + signal.SIGTERM, log.read_text()
    assert "the same command goes on" in log.read_text()
    assert list((folder / "checkpoints").glob("[0-9]*")), "train saved before it ended"
    assert find_holders(folder) == set()


@pytest.mark.slow
def test_an_address_where_nobody_answers(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
    address = f"127.0.0.1:{find_free_port()}"
    more = ["--gin.EXECUTOR='ray'", f"--gin.RAY_ADDRESS='{address}'"]
    command = make_command(tmp_path, "--mixtures=comparisons_finetune", *more)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"RAY_ADDRESS='{address}': no Ray cluster answers there" in done.stderr
    assert "Traceback" not in done.stderr
