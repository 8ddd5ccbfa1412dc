"""sweep: mean ± standard error, by hand; signals; what it refuses before anything starts."""

from __future__ import annotations

import contextlib
import math
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from distill_sbs import sweep

ROOT = pathlib.Path(__file__).parent.parent.parent


def result(mixture: str, fraction: float, seed: int, accuracy: float) -> dict:
    return {
        "mixture": mixture,
        "data_fraction": fraction,
        "seed": seed,
        "test": {"accuracy": accuracy},
    }


def test_standard_error() -> None:
    # Deviations from 0.5 are ±0.1: variance 0.04 / 3, divided by 4.
    assert sweep.standard_error([0.4, 0.6, 0.4, 0.6]) == pytest.approx(math.sqrt(0.04 / 3 / 4))
    assert math.isnan(sweep.standard_error([0.5]))


def test_table() -> None:
    rows = sweep.summarise(
        [
            result("a", 1.0, 1, 0.6),
            result("a", 1.0, 0, 0.4),
            result("a", 0.25, 0, 0.1),
            result("b", 1.0, 0, 0.9),
        ]
    )
    assert rows[0]["test_accuracies"] == [0.4, 0.6]
    assert sweep.table(rows).splitlines() == [
        "| mixture | 0.25 | 1 |",
        "| --- | ---: | ---: |",
        "| a | 10.0 | 50.0 ± 10.0 |",
        "| b | – | 90.0 |",
    ]


def command(folder: pathlib.Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "distill_sbs.sweep",
        "--gin_file=gin/experiments/quickstart.gin",
        f"--gin.DATA_DIR='{folder / 'data'}'",
        f"--output={folder / 'sweep'}",
        *more,
    ]


def processes_that_name(text: str) -> list[str]:
    """Process numbers whose command line holds a text."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if text.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_nothing_is_orphaned(
    tmp_path: pathlib.Path, number: signal.Signals
) -> None:
    more = ["--mixtures=wordproblems_finetune", "--gin.TRAIN_STEPS=100000", "--gin.LOG_PERIOD=5"]
    running = subprocess.Popen(
        command(tmp_path, *more), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    model_dir = tmp_path / "sweep" / "wordproblems_finetune" / "fraction_1" / "seed_0"
    while (
        not (model_dir / "metrics.jsonl").exists() or not (model_dir / "metrics.jsonl").read_text()
    ):
        assert running.poll() is None, running.communicate()
        time.sleep(0.2)
    running.send_signal(number)
    output, _ = running.communicate(timeout=300)
    assert running.returncode == 128 + number, output
    assert b"the same command goes on" in output and b"Traceback" not in output
    assert processes_that_name(str(model_dir)) == []
    assert list((model_dir / "checkpoints").glob("[0-9]*")), "train saved before it ended"


def test_a_misspelt_mixture_is_told_before_anything_starts(tmp_path: pathlib.Path) -> None:
    mixtures = "--mixtures=wordproblems_finetune,wordproblems_finetun"
    done = subprocess.run(command(tmp_path, mixtures), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "MIXTURE_OR_TASK_NAME='wordproblems_finetun' is no registered task or mixture" in line
    assert "wordproblems_finetune" in line and "nothing was started" in line
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("flag", ["--seeds=0,x", "--data_fractions=abc"])
def test_what_is_no_number(tmp_path: pathlib.Path, flag: str) -> None:
    arguments = command(tmp_path, "--mixtures=wordproblems_finetune", flag)[2:]
    assert sweep.main(arguments) == 2
