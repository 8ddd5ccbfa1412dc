"""tpu_scripts/: shellcheck, help, the commands of dry runs, docs/tpu.md; SLURM and SkyPilot."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tpu_cloud import PROJECT, ROOT, Cloud, make_cloud

SCRIPTS = sorted((ROOT / "tpu_scripts").glob("*.sh"))
SHELL_FILES = sorted(
    path for path in (ROOT / "tpu_scripts").iterdir() if path.suffix in (".sh", ".bash", ".sbatch")
)
DRY_RUNS = (pathlib.Path(__file__).parent / "dry_run.txt").read_text()
RUN = "--experiment=cqa_dss_base"


@pytest.fixture
def cloud(tmp_path: pathlib.Path) -> Iterator[Cloud]:
    yield from make_cloud(tmp_path)


# ---------------------------------- texts ------------------------------------


def shellcheck(*arguments: str, text: str | None = None) -> None:
    program = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}") or (
        "shellcheck"
    )
    done = subprocess.run(
        [program, *arguments], cwd=ROOT, input=text, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", SHELL_FILES, ids=lambda path: path.name)
def test_scripts_are_short_strict_and_runnable(path: pathlib.Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 260
    assert max(len(line) for line in text.splitlines()) <= 100
    if path.name != "settings.bash":  # sourced
        assert text.startswith("#!/usr/bin/env bash\n")
        assert "\nset -euo pipefail\n" in text
    assert os.access(path, os.X_OK) == (path.suffix == ".sh")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_help_names_every_flag(cloud: Cloud, path: pathlib.Path) -> None:
    text = cloud.run(path.stem, "--help")
    assert f"tpu_scripts/{path.name}" in text
    for flag in re.findall(r"^ +(--\w+)(?:=\*)?\) ", path.read_text(), re.MULTILINE):
        assert flag in text
    assert "DISTILL_SBS_PROJECT" in text
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("create --nmae=x", "unknown flag --nmae=x"),
        ("create extra", "unknown flag extra"),
        ("create --project=", "--project is not set; pass --project=… or set DISTILL_SBS_PROJECT"),
        ("create --zone=us-west4", "--zone=us-west4: expected a zone such as us-west4-a"),
        ("create --name=a.*b", "--name=a.*b: expected a lower-case letter"),
        ("create --provisioning=cheap", "expected on_demand, spot, preemptible or reserved"),
        ("create --queued --provisioning=preemptible", "--provisioning=spot, not preemptible"),
        ("create --accelerator_type=v9-8", "not known here; name its --runtime_version"),
        ("prepare --dataset=cqa --bucket=my-bucket", "--bucket=my-bucket: expected gs://NAME"),
        ("prepare", "--dataset=: expected a dataset such as cqa"),
        ("prepare --dataset=esnli --source_dir=datasets", "datasets has no folder esnli"),
        ("train", "--experiment is not set"),
        ("train --experiment=cqa_dss_bsae", "gin/experiments/ has no cqa_dss_bsae.gin"),
        (f"train {RUN} --run=a//b", "--run=a//b: expected letters"),
        (f"resume {RUN} --every=1m", "--every=1m: expected seconds"),
        (f"sweep {RUN}", "--mixtures=: expected names with commas"),
        (f"sweep {RUN} --mixtures=a --data_fractions=1/2", "--data_fractions=1/2: expected"),
        ("watch --worker=all", "--worker=all: expected a number"),
    ],
)
def test_bad_input_is_refused_before_anything_changes(
    cloud: Cloud, command: str, message: str
) -> None:
    script, *flags = command.split()
    text = cloud.run(script, *flags, status=2)
    assert text.startswith("error: ") and message in text
    assert len(text.splitlines()) == 1
    assert cloud.changes() == []


# ---------------------------------- dry runs ---------------------------------


def dry_runs() -> list[tuple[str, str]]:
    """(command line, what it prints) of tests/tpu_scripts/dry_run.txt."""
    parts = re.split(r"^\$ (.*)\n", DRY_RUNS, flags=re.MULTILINE)
    return list(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(("command", "expected"), dry_runs(), ids=[c for c, _ in dry_runs()])
def test_dry_run(cloud: Cloud, command: str, expected: str) -> None:
    program, *flags = shlex.split(command)
    del cloud.environment["PYTHON"]
    printed = cloud.run(pathlib.Path(program).stem, *flags)
    assert printed.replace(str(cloud.checkout), "/CHECKOUT") == expected
    assert cloud.calls() == []
    assert not (cloud.checkout / "build").exists()


def test_every_script_has_its_dry_run_above() -> None:
    commands = " ".join(command for command, _ in dry_runs())
    for path in SCRIPTS:
        assert f"tpu_scripts/{path.name} --dry_run" in commands


def gcloud_lines(text: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("gcloud ")]


@pytest.mark.slow
def test_what_runs_is_what_the_dry_run_printed(cloud: Cloud) -> None:
    """Word for word, where the slice is not there yet (created, used) and then is (deleted)."""
    for script, *flags in (
        ["create", "--provisioning=spot"],
        ["install"],
        ["prepare", "--dataset=cqa", "--source_dir=datasets"],
        ["train", RUN],
        ["watch"],
    ):
        printed = gcloud_lines(cloud.run(script, *flags, "--dry_run"))
        cloud.run(script, *flags)
        assert cloud.calls() == printed
    printed = gcloud_lines(cloud.run("delete", "--dry_run"))
    cloud.run("delete")
    assert cloud.calls() == [
        line for line in printed if line[2:4] != ["queued-resources", "delete"]
    ]


def static_completion_tree() -> dict[str, Any]:
    """gcloud's own table of its commands and flags; skips where there is no gcloud."""
    program = shutil.which("gcloud")
    path = program and pathlib.Path(program).resolve().parent.parent / "data" / "cli"
    if not path or not (path / "gcloud_completions.py").exists():
        pytest.skip("gcloud is not installed")
    names: dict[str, Any] = {}
    exec((path / "gcloud_completions.py").read_text(), names)
    return names["STATIC_COMPLETION_CLI_TREE"]


def test_gcloud_has_every_command_and_flag() -> None:
    tree = static_completion_tree()
    lines = [line for _, text in dry_runs() for line in gcloud_lines(text)]
    assert len(lines) > 50
    for line in lines:
        node, known = tree, set(tree["flags"])
        words = iter(line)
        for word in words:
            if word not in node["commands"]:
                break
            node = node["commands"][word]
            known |= set(node["flags"])
        assert not node["commands"], line
        for word in words:
            assert not word.startswith("--") or word.partition("=")[0] in known, word


@pytest.mark.slow
def test_training_understands_the_flags() -> None:
    """The real one, but for those of several processes, which it needs machines for."""
    (line,) = gcloud_lines(dict(dry_runs())[f"tpu_scripts/train.sh --dry_run {RUN}"])
    command = line[-1].removeprefix("--command=")
    words = shlex.split(command)
    assert words[:4] == ["bash", "distill_sbs/worker.bash", "start", "cqa_dss_base"]
    assert words[4] == "--multiprocess"
    done = subprocess.run(
        [sys.executable, "-m", "distill_sbs.train", "--dry_run", *words[5:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "MODEL_DIR = 'gs://my-bucket/runs/cqa_dss_base'" in done.stdout
    assert "DATA_DIR = 'gs://my-bucket/data'" in done.stdout


def test_run_in_a_bucket_needs_a_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from distill_sbs.checkpoint import checkpointer
    from distill_sbs.errors import UserError

    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(UserError, match=r"^gs://b/runs/a: .* pip install 'distill_sbs\[gcs\]'$"):
        checkpointer.Checkpointer("gs://b/runs/a")


# ---------------------------------- docs/tpu.md ------------------------------


@pytest.mark.slow
def test_documented_sequence_runs_word_for_word(cloud: Cloud) -> None:
    page = (ROOT / "docs" / "tpu.md").read_text()
    command = re.search(r"```sh\n(.*?)```", page, re.DOTALL)
    assert command
    for path in SCRIPTS:
        assert f"tpu_scripts/{path.name}" in page
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command[1]],
        cwd=cloud.checkout,
        env={k: v for k, v in cloud.environment.items() if k not in PROJECT},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert cloud.changes() == [
        "compute tpus tpu-vm create distill-sbs",
        "storage buckets create gs://my-bucket",
        "storage buckets update gs://my-bucket",
        "storage rsync datasets/cqa gs://my-bucket/raw/cqa",
        "storage rsync gs://my-bucket/runs/sweeps/cqa_dss_base runs/sweeps/cqa_dss_base",
        "compute tpus tpu-vm delete distill-sbs",
    ]
    assert "| cqa_dss_palm | 50.0 ± 0.0 |" in done.stdout
    assert cloud.read("tpus") == cloud.read("requests") == {}


# ---------------------------------- SLURM, SkyPilot --------------------------


def test_slurm(cloud: Cloud) -> None:
    for name, text in {
        "srun": 'echo "srun $*" >>"$FAKE_GCLOUD/slurm"; exit "$STATUS"\n',
        "scontrol": 'echo "scontrol $*" >>"$FAKE_GCLOUD/slurm"\n',
    }.items():
        (cloud.programs / name).write_text("#!/usr/bin/env bash\n" + text)
        (cloud.programs / name).chmod(0o755)
    recorded = cloud.root / "slurm"
    srun = (
        "srun --kill-on-bad-exit=1 python -m distill_sbs.train --multiprocess"
        " --gin_file=gin/experiments/cqa_dss_base.gin --gin.MODEL_DIR='/shared/a run'\n"
    )

    def submit(status: int, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
        recorded.write_text("")
        return subprocess.run(
            ["bash", "tpu_scripts/slurm.sbatch", *flags]
            + ["--gin_file=gin/experiments/cqa_dss_base.gin", "--gin.MODEL_DIR='/shared/a run'"],
            cwd=cloud.checkout,
            env={
                **cloud.environment,
                "PYTHON": "python",
                "SLURM_JOB_ID": "7",
                "STATUS": str(status),
                **variables,
            },
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert submit(0).returncode == 0 and recorded.read_text() == srun
    assert submit(1).returncode == 1 and recorded.read_text() == srun
    assert submit(143).returncode == 143 and recorded.read_text() == srun + "scontrol requeue 7\n"
    dry_run = submit(0, "--dry_run")
    assert " ".join(shlex.split(dry_run.stdout)) == srun.strip() and recorded.read_text() == ""
    # Of an array each job is one run of a sweep.
    of_array = srun.replace("distill_sbs.train", "distill_sbs.sweep --cell=5")
    assert submit(143, SLURM_ARRAY_TASK_ID="5").returncode == 143
    assert recorded.read_text() == of_array + "scontrol requeue 7\n"


def skypilot_task() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "tpu_scripts" / "skypilot.yaml").read_text())


def test_skypilot_scripts_pass_shellcheck() -> None:
    task = skypilot_task()
    for part in ("setup", "run"):
        shellcheck("--shell=bash", "--exclude=SC2154", "-", text=task[part])


@pytest.mark.parametrize(
    ("rank", "gpu", "sweep"),
    [(0, False, ""), (0, True, ""), (1, True, ""), (0, True, "methods")],
)
def test_skypilot_run(cloud: Cloud, rank: int, gpu: bool, sweep: str) -> None:
    home = cloud.root / "workers" / str(rank)
    (home / "venv/bin").mkdir(parents=True)
    python = home / "venv/bin/python"
    # The question whether the data is there: no, until prepare ran; rank 1 finds it there.
    ready = cloud.root / "prepared"
    if rank:
        ready.touch()
    python.write_text(
        "#!/usr/bin/env bash\n"
        f"if [[ $1 == -c ]]; then test -e {ready}; exit; fi\n"
        'echo "$*" >>"$FAKE_GCLOUD/python_calls"\n'
    )
    python.chmod(0o755)
    (cloud.programs / "nvidia-smi").write_text(f"#!/bin/sh\nexit {0 if gpu else 9}\n")
    (cloud.programs / "nvidia-smi").chmod(0o755)
    subprocess.run(
        ["bash", "-c", skypilot_task()["run"]],
        env={
            **cloud.environment,
            "HOME": str(home),
            "BUCKET": "gs://my-bucket",
            "EXPERIMENT": "cqa_dss_base",
            "DATASET": "cqa",
            "FLAGS": "--gin.DATA_FRACTION=0.25",
            "SWEEP": sweep,
            "CELL": "3",
            "SKYPILOT_NODE_RANK": str(rank),
            "SKYPILOT_NUM_NODES": "2",
            "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
        },
        check=True,
        timeout=60,
    )
    several = f" --coordinator_address=10.0.0.1:12321 --process_count=2 --process_index={rank}"
    prepare = (
        f"-m distill_sbs.prepare --dataset=cqa --source_dir={home}/datasets"
        " --data_dir=gs://my-bucket/data"
    )
    train = (
        "-m distill_sbs.train --gin_file=gin/experiments/cqa_dss_base.gin"
        " --gin.MODEL_DIR='gs://my-bucket/runs/cqa_dss_base' --gin.DATA_DIR='gs://my-bucket/data'"
        f" --multiprocess{several if gpu else ''} --gin.DATA_FRACTION=0.25"
    )
    if sweep:
        train = train.replace(
            "distill_sbs.train --gin_file=gin/experiments/cqa_dss_base.gin"
            " --gin.MODEL_DIR='gs://my-bucket/runs/cqa_dss_base'",
            "distill_sbs.sweep --gin_file=gin/sweeps/methods.gin --cell=3"
            " --gin.SWEEP_DIR='gs://my-bucket/runs/sweeps/methods'",
        )
        assert "--cell=3" in train
    calls = (cloud.root / "python_calls").read_text().splitlines()
    assert calls == ([train] if rank else [prepare, train])
