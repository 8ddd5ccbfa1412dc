"""sweep for real: runs that train, fail, are stopped and killed, on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pty
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator

import pytest
from quickstart_runs import assert_same_run
from sweeps import (
    ROOT,
    count_lines,
    find_marked,
    make_arguments,
    make_command,
    mark,
    read_summary,
    wait_until,
)

from distill_sbs import sweep

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


@pytest.mark.campaign
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


def test_finished_runs_stay(whole: pathlib.Path, data: pathlib.Path, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.glob("sweep/*/*/*.json*")}
    summary = read_summary(whole)
    assert sweep.main(make_arguments(whole, *GRID, data=data)) == 0
    assert "4 runs, 0 to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in whole.glob("sweep/*/*/*.json*")} == before
    assert read_summary(whole) == summary


def test_another_option_is_refused(whole: pathlib.Path, data: pathlib.Path, capsys) -> None:
    assert sweep.main(make_arguments(whole, *GRID, "--gin.LEARNING_RATE=0.5", data=data)) == 2
    said = capsys.readouterr().err
    assert "holds the results of another run (LEARNING_RATE: 0.001 there, 0.5 now)" in said


@pytest.mark.campaign
def test_a_run_that_fails_is_told_and_stops_no_other(
    tmp_path: pathlib.Path, data: pathlib.Path, capsys
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
    assert sweep.main(command[2:]) == 5
    assert "2 runs, 1 to do" in capsys.readouterr().out


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.campaign)]
)
def test_a_signal_is_passed_on_and_nothing_is_orphaned(
    tmp_path: pathlib.Path, data: pathlib.Path, number: signal.Signals, capsys
) -> None:
    """And meanwhile a second sweep in the same folder is refused."""
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
    assert sweep.main(command[2:]) == 2
    refused = capsys.readouterr().err
    assert "a sweep" in refused and str(running.pid) in refused
    running.send_signal(number)
    assert running.wait(timeout=600) == 128 + number, log.read_text()
    printed = log.read_text()
    assert "the same command goes on" in printed and "Traceback" not in printed
    assert find_marked(tmp_path) == {}
    for seed in (0, 1):
        saved = list((runs / f"seed_{seed}" / "checkpoints").glob("[0-9]*"))
        assert saved, "train saved before it ended"
    assert not (runs / "seed_2").exists(), "no run begins after a signal"


@pytest.mark.campaign
def test_killed_and_begun_again_it_comes_to_the_same_table(
    whole: pathlib.Path, tmp_path: pathlib.Path, data: pathlib.Path
) -> None:
    """Its worker first, then the sweep itself."""
    command = make_command(tmp_path, *GRID, "--parallel=1", "--gin.CHECKPOINT_PERIOD=2", data=data)
    log = tmp_path / "printed.txt"
    runs = tmp_path / "sweep" / "comparisons_dss_template"

    def start_until(run_of_it: str) -> subprocess.Popen[bytes]:
        running = start(command, tmp_path)
        metrics = runs / run_of_it / "metrics.jsonl"
        wait_until(lambda: count_lines(metrics) or running.poll() is not None, "the run's step")
        assert running.poll() is None, log.read_text()
        return running

    running = start_until("seed_0")
    (worker,) = [each for each, told in find_marked(tmp_path).items() if WORKER in told]
    os.kill(worker, signal.SIGKILL)
    assert running.wait(timeout=1800) == 5
    assert "its process was ended by SIGKILL; was there too little memory?" in log.read_text()
    assert find_marked(tmp_path) == {}
    shutil.rmtree(runs / "seed_1", ignore_errors=True)

    running = start_until("seed_1")
    running.kill()
    running.wait()
    wait_until(lambda: not find_marked(tmp_path), "its worker, which saves and ends")

    done = run(command)
    assert "4 runs, 4 to do" not in done.stdout
    assert read_summary(tmp_path) == read_summary(whole)
    for mixture in ("comparisons_finetune", "comparisons_dss_template"):
        for seed in ("seed_0", "seed_1"):
            assert_same_run(tmp_path / "sweep" / mixture / seed, whole / "sweep" / mixture / seed)


@pytest.mark.campaign
def test_a_cell_alone_is_the_same_run(
    whole: pathlib.Path, tmp_path: pathlib.Path, data: pathlib.Path, capsys
) -> None:
    """As a SLURM array starts them: --cell=$SLURM_ARRAY_TASK_ID."""
    command = make_command(tmp_path, *GRID, "--cell=1", data=data)
    run(["taskset", "-c", "0", *command])
    cell = pathlib.Path("sweep", "comparisons_dss_template", "seed_0")
    assert_same_run(tmp_path / cell, whole / cell)
    assert sweep.main(command[2:]) == 0
    assert "has finished" in capsys.readouterr().out
    assert [path.parent.name for path in (tmp_path / "sweep").rglob("results.json")] == ["seed_0"]


@pytest.mark.campaign
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
