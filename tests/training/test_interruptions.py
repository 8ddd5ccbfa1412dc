"""train, as a user types it, and whatever interrupts it: signals, full disks, damaged files."""

from __future__ import annotations

import contextlib
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import saved_steps
from disks import mount_disk
from quickstart_runs import QuickstartRuns, assert_same_run, wait_for_step

from distill_sbs import evaluate, infer
from distill_sbs.checkpoint import steps


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> QuickstartRuns:
    return QuickstartRuns(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def undisturbed(runs: QuickstartRuns, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that nothing interrupted."""
    model_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    done = runs.finish(model_dir)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "test accuracy" in done.stdout
    return model_dir


@pytest.mark.campaign
@pytest.mark.slow
def test_checkpoints_are_usable_alone(
    undisturbed: pathlib.Path, runs: QuickstartRuns, tmp_path: pathlib.Path
) -> None:
    """Evaluate gives results.json's accuracy; infer answers; on one device, from a bare copy."""
    results = json.loads((undisturbed / "results.json").read_text())
    copy = tmp_path / "copied"
    (undisturbed / "checkpoints" / str(results["best_step"])).rename(copy)
    copy_back = undisturbed / "checkpoints" / str(results["best_step"])
    try:
        evaluated = evaluate.evaluate(
            str(copy), data_dir=runs.environment["DISTILL_SBS_DATA_DIR"], split="test"
        )
        assert evaluated["accuracy"] == pytest.approx(results["test"]["accuracy"])
        assert evaluated["examples"] == 400
        questions = tmp_path / "in.jsonl"
        questions.write_text('{"id": "1", "input": "Anna has 3 apples and 4 pears."}\n')
        for task in ("label", "rationale"):
            answers = tmp_path / f"{task}.jsonl"
            arguments = [f"--checkpoint={copy}", f"--input={questions}", f"--output={answers}"]
            assert infer.main(["infer", *arguments, f"--task={task}"]) == 0
            (row,) = (json.loads(line) for line in answers.read_text().splitlines())
            assert row["id"] == "1"
            assert isinstance(row["prediction"], str)
    finally:
        copy.rename(copy_back)


@pytest.mark.campaign
@pytest.mark.slow
def test_killed_three_times_ends_the_same(
    undisturbed: pathlib.Path, runs: QuickstartRuns, tmp_path: pathlib.Path
) -> None:
    """SIGKILL at three random moments after training began; then the same command to its end."""
    model_dir = tmp_path / "run"
    moments = random.Random(0)
    for _ in range(3):
        process = runs.start(model_dir)
        wait_for_step(process)
        time.sleep(moments.uniform(0.0, 1.0))
        process.kill()
        process.communicate()
    done = runs.finish(model_dir)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(undisturbed, model_dir)
    lines = (model_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(5, 41, 5))


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name", "status"),
    [(signal.SIGTERM, "SIGTERM", 143), (signal.SIGINT, "Ctrl-C", 130)],
)
def test_a_signal_saves_first(
    undisturbed: pathlib.Path,
    runs: QuickstartRuns,
    tmp_path: pathlib.Path,
    number: signal.Signals,
    name: str,
    status: int,
) -> None:
    model_dir = tmp_path / "run"
    process = runs.start(model_dir, "CHECKPOINT_PERIOD=40", "EVAL_PERIOD=20")
    wait_for_step(process)
    process.send_signal(number)
    _, rest = process.communicate(timeout=300)
    assert process.returncode == status
    *meanwhile, told = (line for line in rest.splitlines() if not line.startswith("step "))
    assert told.startswith(f"{name}: saved step ")
    # A person who waits is told what for.
    assert [line for line in meanwhile if "this step is saved first" not in line] == []
    done = runs.finish(model_dir)
    assert "continuing" in done.stderr
    assert_same_run(undisturbed, model_dir)


@pytest.mark.campaign
@pytest.mark.slow
def test_a_second_start_is_refused_and_a_killed_one_blocks_nobody(
    undisturbed: pathlib.Path, runs: QuickstartRuns, tmp_path: pathlib.Path
) -> None:
    model_dir = tmp_path / "run"
    first = runs.start(model_dir)
    wait_for_step(first)
    first.send_signal(signal.SIGSTOP)  # so that it is surely there while the second one starts
    before = {path: path.read_bytes() for path in model_dir.rglob("*") if path.is_file()}
    second = runs.finish(model_dir)
    assert second.returncode == 2
    (line,) = second.stderr.splitlines()
    assert f"error: {model_dir} is in use: process {first.pid} on " in line
    assert line.endswith("wait for it, end it, or choose another folder")
    assert {path: path.read_bytes() for path in before} == before
    first.kill()
    first.communicate()
    done = runs.finish(model_dir)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(undisturbed, model_dir)
    assert not (model_dir / ".lock").exists()


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("damage", ["one byte of the arrays", "an empty folder", "no progress"])
def test_a_damaged_newest_step_and_a_torn_log(
    undisturbed: pathlib.Path, runs: QuickstartRuns, tmp_path: pathlib.Path, damage: str
) -> None:
    """The run goes on from the step before, and ends as it did."""
    model_dir = pathlib.Path(shutil.copytree(undisturbed, tmp_path / "run"))
    saved_steps.DAMAGES[damage](model_dir / "checkpoints/40")
    with open(model_dir / "metrics.jsonl", "ab") as file:
        file.write(b'\xff\xfe\n5\n{"step": 41, "lo')
    done = runs.finish(model_dir)
    assert done.returncode == 0, done.stderr[-3000:]
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert f"warning: step 40 of {model_dir} is damaged (" in warnings[0]
    assert warnings[0].endswith(
        f"it was moved to {model_dir}/damaged/40, and training goes on from step 35"
    )
    assert (
        "metrics.jsonl: dropped what is no line of a run (line 9: UTF-16, not UTF-8" in warnings[1]
    )
    assert "continuing" in done.stderr
    assert (model_dir / "damaged/40").exists()
    assert_same_run(undisturbed, model_dir)
    lines = (model_dir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(5, 41, 5))


@pytest.mark.campaign
@pytest.mark.slow
def test_a_damaged_step_is_refused_by_what_only_reads(
    undisturbed: pathlib.Path, runs: QuickstartRuns, tmp_path: pathlib.Path
) -> None:
    step = pathlib.Path(shutil.copytree(undisturbed / "checkpoints", tmp_path / "steps")) / "40"
    saved_steps.flip_byte(saved_steps.files_of(step)[-2])
    (tmp_path / "in.jsonl").write_text('{"id": "1", "input": "a"}\n')
    for arguments in (
        [f"evaluate --checkpoint={step}"],
        [f"infer --checkpoint={step}", f"--input={tmp_path}/in.jsonl", f"--output={tmp_path}/out"],
        [f"convert --to=hf --input={step}", f"--output={tmp_path}/hf"],
        ["train", f"--gin.INITIAL_CHECKPOINT_PATH='{step}'", f"--gin.MODEL_DIR='{tmp_path}/new'"],
    ):
        program, *flags = " ".join(arguments).split()
        command = [sys.executable, "-m", f"distill_sbs.{program}", *flags]
        if program == "train":
            command.append("--gin_file=gin/experiments/quickstart.gin")
        done = subprocess.run(
            command,
            env=runs.environment,
            cwd=str(pathlib.Path(__file__).parent.parent.parent),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2, done.stderr
        (line,) = done.stderr.splitlines()
        assert f"{step} cannot be read (" in line
        assert "its checksum differs" in line
    assert not (tmp_path / "new").exists()


KEEP_ALL = "KEEP_CHECKPOINTS=8"
FULL = ": No space left on device; make room on that disk"


def assert_told(done: subprocess.CompletedProcess[str], message: str) -> None:
    """One line of an error, after the one that describes the data, and status 2."""
    told = [line for line in done.stderr.splitlines() if not line.startswith("step ")]
    assert done.returncode == 2, done.stderr
    assert told[-1].startswith("error: ") and told[-1].endswith(message), done.stderr
    assert len(told) <= 2, done.stderr
    assert not any("Error" in line for line in told[:-1]), done.stderr


def assert_goes_on(
    undisturbed: pathlib.Path, runs: QuickstartRuns, disk: pathlib.Path, *bindings: str
) -> None:
    """With room on the disk the same command ends as if nothing had been."""
    subprocess.run(["mount", "-o", "remount,size=60m", str(disk)], check=True)
    (disk / "filler").unlink(missing_ok=True)
    done = runs.finish(disk / "run", *bindings)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(undisturbed, disk / "run")


# A step takes 1.2 MB or more once written, and up to 3 MB, by how it is scheduled, meanwhile.
@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "is_any_saved"),
    [("16k", False), ("600k", False), ("1100k", False), ("4m", True), ("9m", True)],
)
def test_a_full_disk_loses_nothing(
    undisturbed: pathlib.Path,
    runs: QuickstartRuns,
    tmp_path: pathlib.Path,
    size: str,
    is_any_saved: bool,
) -> None:
    """Full before the first save, in it, and in later ones."""
    with mount_disk(tmp_path / "disk", size) as disk:
        assert_told(runs.finish(disk / "run", KEEP_ALL), FULL)
        assert bool(steps.list_steps(str(disk / "run"))) == is_any_saved
        assert_goes_on(undisturbed, runs, disk, KEEP_ALL)


def fill(disk: pathlib.Path) -> None:
    """Leaves not a byte."""
    with open(disk / "filler", "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 4096)


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("moment", ["metrics", "results"])
def test_a_disk_that_others_fill_meanwhile(
    undisturbed: pathlib.Path, runs: QuickstartRuns, tmp_path: pathlib.Path, moment: str
) -> None:
    """Full while metrics.jsonl grows, and after the last save, before results.json."""
    bindings = [KEEP_ALL, "EVAL_PERIOD=20"]
    bindings += ["LOG_PERIOD=1", "CHECKPOINT_PERIOD=40"] if moment == "metrics" else []
    with mount_disk(tmp_path / "disk", "60m") as disk:
        process = runs.start(disk / "run", *bindings)
        if moment == "metrics":
            wait_for_step(process)
        else:
            while process.poll() is None and not (disk / "run/checkpoints/40").exists():
                time.sleep(0.01)
        fill(disk)
        _, rest = process.communicate()
        assert_told(subprocess.CompletedProcess([], process.returncode, "", rest), FULL)
        assert not (disk / "run/results.json").exists()
        assert_goes_on(undisturbed, runs, disk, *bindings)


@pytest.mark.campaign
@pytest.mark.slow
def test_a_disk_that_can_only_be_read(
    undisturbed: pathlib.Path, runs: QuickstartRuns, tmp_path: pathlib.Path
) -> None:
    """A folder that is not there yet, and one with the whole run in it."""
    with mount_disk(tmp_path / "disk", "60m") as disk:
        shutil.copytree(undisturbed, disk / "run")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        for name in ("new", "run"):
            done = runs.finish(disk / name)
            assert_told(
                done,
                ": Read-only file system; that disk can only be read; choose a folder on another",
            )
            assert len(done.stderr.splitlines()) == 1, done.stderr
