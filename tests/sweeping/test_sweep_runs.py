"""sweep for real: runs that train, fail, are stopped and killed, on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest
from quickstart_runs import assert_same_run
from sweeps import ROOT, count_lines, find_marked, make_command, mark, read_summary, wait_until

pytestmark = pytest.mark.slow

WORKER = "distill_sbs.sweeping.worker"

# Two methods, two seeds, and a cell that nothing is wrong with before it starts.
GRID = [
    "--axis=dataset=['comparisons']",
    "--axis=method=['finetune', 'dss']",
    "--axis=teacher=['template']",
    "--axis=RANDOM_SEED=[0, 1]",
]
TOO_MANY = "--axis=mesh={'one': {'NUM_MODEL_PARTITIONS': 1}, 'many': {'NUM_MODEL_PARTITIONS': 64}}"


def run(command: list[str], status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done


def start(command: list[str], folder: pathlib.Path) -> subprocess.Popen[bytes]:
    """What it prints goes to `printed.txt` in the folder, which marks all that it starts."""
    with (folder / "printed.txt").open("wb") as file:
        return subprocess.Popen(
            command, cwd=ROOT, env=mark(folder), stdout=file, stderr=subprocess.STDOUT
        )


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: pathlib.Path) -> Iterator[None]:
    """Ends what a test that failed has left."""
    yield
    for number in find_marked(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Prepared by the first sweep that finds nothing there."""
    return tmp_path_factory.mktemp("sweeps") / "data"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: pathlib.Path) -> pathlib.Path:
    """A sweep that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    done = run(make_command(folder, *GRID, "--parallel=2", data=data))
    assert "4 runs, 4 to do" in done.stdout
    assert "equal for all: 8 examples a step, 6 steps, 48 examples" in done.stdout
    assert len(re.findall(r"^\[\d/4\] .*: test \d+\.\d%, 0:", done.stdout, re.MULTILINE)) == 4
    assert "| comparisons_dss_template | " in done.stdout
    return folder


def test_each_run_is_the_train_that_its_command_says(
    whole: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The last run of a worker that had trained another before: the same bits as alone."""
    folder = whole / "sweep" / "comparisons_dss_template" / "seed_1"
    command = (folder / "command.txt").read_text()
    assert (
        command.startswith("python -m distill_sbs.train --gin_file=") and "\n" not in command[:-1]
    )
    moved = command.replace(str(folder), str(tmp_path / "alone")).strip()
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "python").write_text(f'#!/bin/sh\nexec {os.sys.executable} "$@"\n')
    (programs / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    # A worker has one core, which sets the order of sums.
    subprocess.run(
        ["bash", "-c", f"taskset -c 0 {moved}"],
        cwd=ROOT,
        env=environment,
        check=True,
        capture_output=True,
    )
    assert_same_run(folder, tmp_path / "alone")


def test_finished_runs_stay(whole: pathlib.Path, data: pathlib.Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("sweep/*/*/*.json*")}
    summary = read_summary(whole)
    done = run(make_command(whole, *GRID, data=data))
    assert "4 runs, 0 to do" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in whole.glob("sweep/*/*/*.json*")} == before
    assert read_summary(whole) == summary


def test_another_option_is_refused(whole: pathlib.Path, data: pathlib.Path) -> None:
    done = run(make_command(whole, *GRID, "--gin.LEARNING_RATE=0.5", data=data), status=2)
    assert "holds the results of another run (LEARNING_RATE: 0.001 there, 0.5 now)" in done.stderr


def test_a_run_that_fails_is_told_and_stops_no_other(
    tmp_path: pathlib.Path, data: pathlib.Path
) -> None:
    command = make_command(tmp_path, "--mixtures=comparisons_finetune", TOO_MANY, data=data)
    done = run(command, status=5)
    failed = tmp_path / "sweep" / "comparisons_finetune" / "fraction_1" / "mesh_many" / "seed_0"
    assert f"failed: {failed}, status 2; the end of its log:\n  error: NUM_MODEL_PARTITIONS" in (
        done.stderr
    ), done.stderr
    assert "1 of 2 runs failed; the same command tries them again" in done.stderr
    assert "mesh_one/seed_0: test " in done.stdout
    assert "| comparisons_finetune | one | " in done.stdout
    assert "NUM_MODEL_PARTITIONS" in (failed / "log.txt").read_text()
    assert (failed / "command.txt").exists()
    again = run(command, status=5)
    assert "2 runs, 1 to do" in again.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_nothing_is_orphaned(
    tmp_path: pathlib.Path, data: pathlib.Path, number: signal.Signals
) -> None:
    command = make_command(
        tmp_path, "--mixtures=comparisons_finetune", "--seeds=0,1,2", "--parallel=2", data=data,
        steps=100_000,
    )  # fmt: skip
    log = tmp_path / "printed.txt"
    running = start(command, tmp_path)
    runs = tmp_path / "sweep" / "comparisons_finetune" / "fraction_1"
    files = [runs / f"seed_{seed}" / "metrics.jsonl" for seed in (0, 1)]
    wait_until(
        lambda: all(map(count_lines, files)) or running.poll() is not None, "a step of each run"
    )
    assert sum(WORKER in command for command in find_marked(tmp_path).values()) == 2
    running.send_signal(number)
    assert running.wait(timeout=600) == 128 + number, log.read_text()
    printed = log.read_text()
    assert "the same command goes on" in printed and "Traceback" not in printed
    assert find_marked(tmp_path) == {}
    for seed in (0, 1):
        saved = list((runs / f"seed_{seed}" / "checkpoints").glob("[0-9]*"))
        assert saved, "train saved before it ended"
    assert not (runs / "seed_2").exists(), "no run begins after a signal"


@pytest.mark.parametrize("victim", ["sweep", "worker"])
def test_killed_and_begun_again_it_comes_to_the_same_table(
    whole: pathlib.Path, tmp_path: pathlib.Path, data: pathlib.Path, victim: str
) -> None:
    command = make_command(tmp_path, *GRID, "--parallel=1", "--gin.CHECKPOINT_PERIOD=2", data=data)
    log = tmp_path / "printed.txt"
    running = start(command, tmp_path)
    second = tmp_path / "sweep" / "comparisons_dss_template" / "seed_0" / "metrics.jsonl"
    wait_until(lambda: count_lines(second) or running.poll() is not None, "the second run's step")
    assert running.poll() is None, log.read_text()
    if victim == "sweep":
        running.kill()
        running.wait()
        wait_until(lambda: not find_marked(tmp_path), "its worker, which saves and ends")
    else:
        (worker,) = [each for each, told in find_marked(tmp_path).items() if WORKER in told]
        os.kill(worker, signal.SIGKILL)
        assert running.wait(timeout=1800) == 5
        assert "its process was ended by SIGKILL; was there too little memory?" in log.read_text()
        assert find_marked(tmp_path) == {}
    done = run(command)
    assert "4 runs, 4 to do" not in done.stdout
    assert read_summary(tmp_path) == read_summary(whole)
    for mixture in ("comparisons_finetune", "comparisons_dss_template"):
        for seed in ("seed_0", "seed_1"):
            assert_same_run(tmp_path / "sweep" / mixture / seed, whole / "sweep" / mixture / seed)


def test_a_cell_alone_is_the_same_run(
    whole: pathlib.Path, tmp_path: pathlib.Path, data: pathlib.Path
) -> None:
    """As a SLURM array starts them: --cell=$SLURM_ARRAY_TASK_ID."""
    command = make_command(tmp_path, *GRID, "--cell=1", data=data)
    run(["taskset", "-c", "0", *command])
    cell = pathlib.Path("sweep", "comparisons_dss_template", "seed_0")
    assert_same_run(tmp_path / cell, whole / cell)
    assert "has finished" in run(command).stdout
    assert [path.parent.name for path in (tmp_path / "sweep").rglob("results.json")] == ["seed_0"]


def test_two_sweeps_do_not_work_in_one_folder(tmp_path: pathlib.Path, data: pathlib.Path) -> None:
    command = make_command(tmp_path, "--mixtures=comparisons_finetune", data=data, steps=100_000)
    running = start(command, tmp_path)
    wait_until(lambda: (tmp_path / "sweep" / ".lock").exists(), "the lock")
    done = run(command, status=2)
    assert "a sweep" in done.stderr and str(running.pid) in done.stderr
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=600) == 128 + signal.SIGTERM


def test_a_terminal_sees_a_live_table(tmp_path: pathlib.Path, data: pathlib.Path) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "140", "LINES": "40"}
    command = make_command(tmp_path, "--mixtures=comparisons_finetune", "--seeds=0,1", data=data)
    process = subprocess.Popen(command, cwd=ROOT, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    parts: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(ours, 65536):
                parts.append(part)
        except OSError:  # how a terminal ends
            return

    reader = threading.Thread(target=read)
    reader.start()
    assert process.wait(timeout=1800) == 0
    reader.join()
    os.close(ours)
    shown = b"".join(parts).decode()
    for word in ("done", "running", "left", "failed", "time left", "best so far", "validation"):
        assert word in shown
    assert re.search(r"\d/6", shown), "steps of a run"
    assert "begun: " not in shown, "lines are for where there is no table"
    assert json.loads((tmp_path / "sweep" / "summary.json").read_text())
