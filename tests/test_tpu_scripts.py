"""tpu_scripts/: shellcheck, the commands of dry runs, and whole runs against a fake gcloud.

The fake (tests/fake_gcloud.py) runs what goes over ssh for real, so worker.bash is tested with its
locks and signals; what is fake on a worker is pip, uv and the Python that trains.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "tpu_scripts").glob("*.sh"))
SHELL_FILES = sorted(
    path for path in (ROOT / "tpu_scripts").iterdir() if path.suffix in (".sh", ".bash", ".sbatch")
)
DRY_RUNS = (pathlib.Path(__file__).parent / "tpu_scripts_dry_run.txt").read_text()
PROJECT = {
    "DISTILL_SBS_PROJECT": "my-project",
    "DISTILL_SBS_ZONE": "us-west4-a",
    "DISTILL_SBS_BUCKET": "gs://my-bucket",
}
OURS = {"created-by": "distill-sbs"}
RUN = "--experiment=cqa_dss_base"

# What stands for the interpreter on a worker. $FAKE_GCLOUD/training says how training goes.
WORKER_PYTHON = """#!/usr/bin/env bash
echo "$*" >>"$FAKE_GCLOUD/python_calls"
value_of() { for flag; do case "$flag" in "$name"=*) echo "${flag#*=}" | tr -d "'" ;; esac; done; }
local_path() { echo "$FAKE_GCLOUD/buckets/${1#gs://}"; }
case "$2" in
  distill_sbs.prepare)
    folder="$(local_path "$(name=--data_dir value_of "$@")")/$(name=--dataset value_of "$@")"
    mkdir -p "$folder" && echo '{}' >"$folder/info.json" ;;
  distill_sbs.train)
    case "$(cat "$FAKE_GCLOUD/training")" in
      finishes)
        folder="$(local_path "$(name=--gin.MODEL_DIR value_of "$@")")"
        mkdir -p "$folder"
        printf '{"mixture": "%s", "data_fraction": %s, "seed": %s, "test": {"accuracy": 0.5}}\\n' \\
          "$(name=--gin.MIXTURE_OR_TASK_NAME value_of "$@")" \\
          "$(name=--gin.DATA_FRACTION value_of "$@")" \\
          "$(name=--gin.RANDOM_SEED value_of "$@")" >"$folder/results.json" ;;
      refuses) echo 'error: BATCH_SIZE=10 is not a multiple of 8 devices' >&2; exit 2 ;;
      crashes) exit 1 ;;
      lasts)
        trap 'exit 143' TERM
        while [ "$(cat "$FAKE_GCLOUD/training" 2>/dev/null)" = lasts ]; do /bin/sleep 0.05; done ;;
    esac ;;
esac
"""
PROGRAMS = {
    "gcloud": f'exec {sys.executable} -I -S {ROOT}/tests/fake_gcloud.py "$@"\n',
    "sleep": "exec /bin/sleep 0.05\n",
    # `python3 -m pip install --target=uv …` on a worker.
    "python3": 'mkdir -p uv/bin && cp "$(dirname "$0")/uv" uv/bin/uv\n',
    "uv": """echo "$*" >>"$FAKE_GCLOUD/uv_calls"
case "$1 $2" in
  "venv "*) mkdir -p venv/bin && cp "$(dirname "$FAKE_GCLOUD/x")/worker_python" venv/bin/python ;;
  "pip install") test -d source/distill_sbs ;;
  "pip list") printf 'jax 0.10.2\\nlibtpu 0.0.51\\n' ;;
esac
""",
}


class Cloud:
    """A checkout, a fake gcloud and two workers, in a folder of the test's."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        self.root = folder / "cloud"
        self.checkout = folder / "checkout"
        shutil.copytree(ROOT / "tpu_scripts", self.checkout / "tpu_scripts")
        for name in ("gin", "tasks"):
            shutil.copytree(ROOT / name, self.checkout / name)
        (self.checkout / "distill_sbs").mkdir()
        for name in ("README.md", "LICENSE", "setup.py", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, self.checkout / name)
        (self.checkout / "datasets" / "cqa").mkdir(parents=True)
        (self.checkout / "datasets" / "cqa" / "cqa_train.json").write_text("{}\n")
        for worker in "01":
            (self.root / "workers" / worker).mkdir(parents=True)
        (self.root / "calls.jsonl").touch()
        self.write(tpus={}, requests={}, buckets={})
        self.set_training("finishes")
        self.programs = folder / "programs"
        self.programs.mkdir()
        for name, text in PROGRAMS.items():
            (self.programs / name).write_text("#!/usr/bin/env bash\n" + text)
            (self.programs / name).chmod(0o755)
        (self.root / "worker_python").write_text(WORKER_PYTHON)
        (self.root / "worker_python").chmod(0o755)
        kept = {name: os.environ[name] for name in os.environ if not name.startswith("DISTILL")}
        self.environment = {
            **kept,
            **PROJECT,
            "FAKE_GCLOUD": str(self.root),
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
        }

    def write(self, **state: Any) -> None:
        path = self.root / "state.json"
        earlier = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps({**earlier, **state}))

    def read(self, name: str) -> Any:
        return json.loads((self.root / "state.json").read_text())[name]

    def set_training(self, how: str) -> None:
        (self.root / "training").write_text(how)

    def start(self, script: str, *flags: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [f"tpu_scripts/{script}.sh", *flags],
            cwd=self.checkout,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, script: str, *flags: str, status: int = 0) -> str:
        """Runs a script, checks its exit status, and returns what it printed."""
        process = self.start(script, *flags)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == status, output + errors
        return output + errors

    def calls(self) -> list[list[str]]:
        """The gcloud commands since the last time, in order."""
        path = self.root / "calls.jsonl"
        calls = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("")
        return calls

    def changes(self) -> list[str]:
        """Those of `calls` that change something, by the words that say what they do."""
        words = [[word for word in call if not word.startswith("--")] for call in self.calls()]
        looks = {"list", "describe", "ls", "cat", "ssh", "scp"}
        return [" ".join(each) for each in words if not looks & set(each)]

    def worker_file(self, name: str, worker: int = 0) -> pathlib.Path:
        return self.root / "workers" / str(worker) / "distill_sbs" / name

    def trained(self) -> list[str]:
        path = self.root / "python_calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if "distill_sbs.train" in line]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited 20 s in vain"
        time.sleep(0.05)


@pytest.fixture
def cloud(tmp_path: pathlib.Path) -> Iterator[Cloud]:
    made = Cloud(tmp_path)
    yield made
    made.set_training("ends")  # what still trains stops by itself
    for worker in (0, 1):
        wait_for(lambda worker=worker: not is_locked(made.worker_file("train.lock", worker)))


def is_locked(path: pathlib.Path) -> bool:
    return path.exists() and subprocess.run(["flock", "-n", path, "true"]).returncode != 0


@pytest.fixture
def installed(cloud: Cloud) -> Cloud:
    """A slice with everything on it, and data."""
    for script, *flags in (["create"], ["install"], ["prepare", "--dataset=cqa"]):
        cloud.run(script, *flags, *(["--source_dir=datasets"] if script == "prepare" else []))
    cloud.calls()
    return cloud


# ---------------------------------- texts ------------------------------------


def shellcheck(*arguments: str, text: str | None = None) -> None:
    program = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}") or (
        "shellcheck"
    )
    done = subprocess.run(
        [program, *arguments], cwd=ROOT, input=text, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_shellcheck_finds_nothing() -> None:
    assert len(SHELL_FILES) >= 11
    shellcheck(*(str(path) for path in SHELL_FILES))


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
    """(command line, what it prints) of tests/tpu_scripts_dry_run.txt."""
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


# ---------------------------------- whole runs -------------------------------


def test_create_twice(cloud: Cloud) -> None:
    cloud.run("create", "--provisioning=spot")
    assert cloud.changes() == ["compute tpus tpu-vm create distill-sbs"]
    assert cloud.read("tpus")["distill-sbs"] == {
        "state": "READY",
        "type": "v5litepod-8",
        "labels": OURS,
    }
    assert "is there already, and READY" in cloud.run("create", "--provisioning=spot")
    assert cloud.changes() == []
    other = cloud.run("create", "--accelerator_type=v4-8", status=2)
    assert "distill-sbs exists and is a v5litepod-8, not a v4-8" in other
    assert cloud.changes() == []


def test_create_queued_waits_and_twice(cloud: Cloud) -> None:
    cloud.run("create", "--queued", "--no_wait")
    assert cloud.changes() == ["compute tpus queued-resources create distill-sbs"]
    assert cloud.read("tpus") == {}
    text = cloud.run("create", "--queued")
    assert "distill-sbs: TPU VM READY" not in text and cloud.changes() == []
    assert cloud.read("tpus")["distill-sbs"]["state"] == "READY"
    cloud.run("create", "--queued", "--name=second")
    assert cloud.read("tpus")["second"]["state"] == "READY"
    assert cloud.changes() == ["compute tpus queued-resources create second"]


def test_what_is_gone_is_not_taken_for_ready(cloud: Cloud) -> None:
    vm = {"type": "v5litepod-8", "labels": OURS, "state": "PREEMPTED"}
    cloud.write(tpus={"distill-sbs": vm})
    assert "is PREEMPTED; resume.sh replaces it" in cloud.run("create", status=2)
    cloud.write(tpus={}, requests={"distill-sbs": {**vm, "state": "SUSPENDED"}})
    assert "is SUSPENDED; resume.sh replaces it" in cloud.run("create", "--queued", status=2)
    assert cloud.changes() == []


@pytest.mark.parametrize("labels", [{}, {"created-by": "somebody-else"}], ids=["none", "other"])
@pytest.mark.parametrize("kind", ["tpus", "requests"])
def test_foreign_resources_are_left_alone(cloud: Cloud, kind: str, labels: dict[str, str]) -> None:
    foreign = {"distill-sbs": {"state": "READY", "type": "v5litepod-8", "labels": labels}}
    cloud.write(**{kind: foreign})
    for script, *flags in (["delete"], ["create"], ["resume", RUN]):
        text = cloud.run(script, *flags, status=2)
        assert "does not carry the label created-by=distill-sbs" in text
    assert cloud.changes() == []
    assert cloud.read(kind) == foreign


def test_nothing_is_deleted_where_one_of_two_is_foreign(cloud: Cloud) -> None:
    ours = {"state": "ACTIVE", "type": "v5litepod-8", "labels": OURS}
    cloud.write(
        requests={"distill-sbs": ours},
        tpus={"distill-sbs": {**ours, "state": "READY", "labels": {}}},
    )
    cloud.run("delete", status=2)
    assert cloud.changes() == []


def test_delete_twice_and_only_that_name(cloud: Cloud) -> None:
    cloud.run("create")
    cloud.run("create", "--name=a-distill-sbs")
    cloud.calls()
    cloud.run("delete")
    assert cloud.changes() == ["compute tpus tpu-vm delete distill-sbs"]
    assert list(cloud.read("tpus")) == ["a-distill-sbs"]
    assert "there is no TPU VM or queued request distill-sbs" in cloud.run("delete")
    assert cloud.changes() == []


def test_delete_takes_the_request_with_its_vm(cloud: Cloud) -> None:
    cloud.run("create", "--queued")
    cloud.calls()
    cloud.run("delete")
    assert cloud.changes() == ["compute tpus queued-resources delete distill-sbs"]
    assert cloud.read("tpus") == cloud.read("requests") == {}


def test_failing_gcloud_is_no_empty_cloud(cloud: Cloud) -> None:
    """What cannot be asked is not taken for absent: nothing is created or deleted."""
    cloud.write(fails=True)
    for script, *flags in (
        ["create"],
        ["delete", "--with_bucket"],
        ["prepare", "--dataset=cqa", "--source_dir=datasets"],
        ["resume", RUN],
    ):
        process = cloud.start(script, *flags)
        _, errors = process.communicate(timeout=60)
        assert process.returncode in (1, 2)
        assert "problem refreshing" in errors
    assert cloud.changes() == []


def test_bucket_is_made_once_and_deleted_only_if_ours(installed: Cloud) -> None:
    assert installed.read("buckets") == {"my-bucket": OURS}
    raw = installed.root / "buckets/my-bucket/raw/cqa/cqa_train.json"
    assert raw.read_text() == "{}\n"
    prepare = ["prepare", "--dataset=cqa", "--source_dir=datasets"]
    assert "--overwrite prepares it again" in installed.run(*prepare)
    assert installed.changes() == []
    installed.run(*prepare, "--overwrite")
    assert installed.changes() == ["storage rsync datasets/cqa gs://my-bucket/raw/cqa"]

    # Something else lies in the bucket: that stays, and so does the bucket.
    stranger = installed.root / "buckets/my-bucket/thesis.tex"
    stranger.write_text("years of work")
    installed.run("delete", "--with_bucket", status=1)
    assert stranger.exists() and not raw.exists()
    stranger.unlink()
    installed.run("delete", "--with_bucket")
    assert installed.read("buckets") == {}
    installed.calls()
    installed.run("delete", "--with_bucket")
    assert installed.changes() == []


def test_bucket_of_the_users_own_is_used_and_never_deleted(cloud: Cloud) -> None:
    cloud.write(buckets={"my-bucket": {}})
    (cloud.root / "buckets/my-bucket").mkdir(parents=True)
    cloud.run("create")
    cloud.run("install")
    cloud.run("prepare", "--dataset=cqa", "--source_dir=datasets", "--bucket=gs://my-bucket/a")
    assert (cloud.root / "buckets/my-bucket/a/data/cqa/info.json").exists()
    assert cloud.read("buckets") == {"my-bucket": {}}
    cloud.calls()
    assert "the bucket gs://my-bucket does not carry" in cloud.run(
        "delete", "--with_bucket", "--bucket=gs://my-bucket/a", status=2
    )
    assert cloud.changes() == []


def test_install_twice(installed: Cloud) -> None:
    calls = (installed.root / "uv_calls").read_text()
    assert calls.count("venv --quiet --python=3.11 venv") == 2  # one for each worker
    stale = installed.worker_file("source/stale.py")
    stale.touch()
    assert "distill_sbs is installed, with jax 0.10.2 libtpu 0.0.51" in installed.run("install")
    calls = (installed.root / "uv_calls").read_text()
    assert calls.count("venv --quiet --python=3.11 venv") == 2
    assert calls.count("--constraint=source/constraints.txt") == 4
    assert not stale.exists()
    for worker in (0, 1):
        assert installed.worker_file("source/gin/experiments/quickstart.gin", worker).exists()


def test_train_twice_stop_and_again(installed: Cloud) -> None:
    installed.set_training("lasts")
    assert installed.run("train", RUN).count("started cqa_dss_base") == 2
    wait_for(lambda: len(installed.trained()) == 2)
    assert installed.trained()[0] == (
        "-m distill_sbs.train --multiprocess --gin_file=gin/experiments/cqa_dss_base.gin"
        " --gin.MODEL_DIR='gs://my-bucket/runs/cqa_dss_base' --gin.DATA_DIR='gs://my-bucket/data'"
    )
    assert installed.run("train", RUN).count("trains cqa_dss_base already, nothing started") == 2
    assert "stop it first, nothing installed" in installed.run("install", status=1)
    assert len(installed.trained()) == 2

    assert installed.run("train", "--stop").count("asked cqa_dss_base to save and stop") == 2
    status = installed.worker_file("logs/cqa_dss_base.status")
    wait_for(status.exists)
    wait_for(status.read_text)
    assert status.read_text() == "143\n"
    assert "cqa_dss_base: exit status 143" in installed.run("watch")
    assert "nothing trains" in installed.run("train", "--stop")

    installed.set_training("finishes")
    installed.run("train", RUN)  # the same command continues: the same MODEL_DIR
    wait_for(lambda: len(installed.trained()) == 4)
    assert len(set(installed.trained())) == 1


def test_flags_reach_training_as_they_were_typed(installed: Cloud) -> None:
    bindings = ["--gin.STUDENT_OVERRIDES={'dtype': \"float32\"}", "--gin.NOTE='it''s $HOME & `x`'"]
    installed.run("train", RUN, "--run=a/b", "--", *bindings)
    wait_for(lambda: len(installed.trained()) == 2)
    assert installed.trained()[0].endswith(" ".join(bindings))
    assert installed.worker_file("logs/a__b.log").exists()


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


def test_resume_from_nothing_to_the_end(cloud: Cloud) -> None:
    """One command does all that is missing, and once more does nothing."""
    cloud.run("resume", RUN, "--provisioning=spot", "--every=1")
    assert cloud.changes() == ["compute tpus tpu-vm create distill-sbs"]
    assert (cloud.root / "buckets/my-bucket/runs/cqa_dss_base/results.json").exists()
    trained = cloud.trained()
    assert "cqa_dss_base has finished" in cloud.run("resume", RUN)
    assert cloud.changes() == [] and cloud.trained() == trained


@pytest.mark.parametrize("queued", [False, True], ids=["at_once", "queued"])
def test_resume_after_preemption(cloud: Cloud, queued: bool) -> None:
    flags = [RUN, "--provisioning=spot", *(["--queued"] if queued else [])]
    kind = "queued-resources" if queued else "tpu-vm"
    cloud.set_training("lasts")
    cloud.run("resume", *flags)
    wait_for(lambda: len(cloud.trained()) == 2)
    assert "running cqa_dss_base" in cloud.run("resume", *flags)
    assert cloud.changes() == [f"compute tpus {kind} create distill-sbs"]

    cloud.set_training("ends")  # the machines go away
    wait_for(cloud.worker_file("logs/cqa_dss_base.status").exists)
    if queued:
        gone = {**cloud.read("requests")["distill-sbs"], "state": "SUSPENDED"}
        cloud.write(requests={"distill-sbs": gone}, tpus={})
    else:
        cloud.write(
            tpus={"distill-sbs": {**cloud.read("tpus")["distill-sbs"], "state": "PREEMPTED"}}
        )
    cloud.set_training("finishes")
    cloud.run("resume", *flags, "--every=1")
    assert cloud.changes() == [
        f"compute tpus {kind} delete distill-sbs",
        f"compute tpus {kind} create distill-sbs",
    ]
    # On fresh disks the same command trained, in the same MODEL_DIR.
    assert len(cloud.trained()) == 4 and len(set(cloud.trained())) == 1


def test_resume_waits_where_there_is_no_capacity(cloud: Cloud) -> None:
    cloud.write(no_capacity=True)
    assert "no more capacity" in cloud.run("resume", RUN, status=1)
    process = cloud.start("resume", RUN, "--every=1")
    wait_for(lambda: (cloud.root / "calls.jsonl").read_text().count('"create"') > 2)
    cloud.write(no_capacity=False)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and "cqa_dss_base has finished" in errors


def test_resume_does_not_repeat_what_cannot_go_well(installed: Cloud) -> None:
    installed.set_training("refuses")
    text = installed.run("resume", RUN, "--every=1", status=2)
    assert "training refused its settings" in text
    assert len(installed.trained()) == 2  # once on each worker
    assert "BATCH_SIZE=10 is not a multiple" in installed.run("watch")
    installed.set_training("crashes")
    text = installed.run("resume", RUN, "--run=b", "--every=1", "--max_restarts=2", status=2)
    assert "training failed 3 times" in text
    assert len(installed.trained()) == 2 + 2 * 3


def test_sweep_and_again(installed: Cloud) -> None:
    sweep = ["sweep", RUN, "--mixtures=cqa_finetune,cqa_dss_palm", "--data_fractions=1.0"]
    text = installed.run(*sweep, "--seeds=0,1")
    assert "4 runs, 0 to do" in text
    assert "| cqa_dss_palm | 50.0 ± 0.0 |" in text
    trained = installed.trained()
    assert len(trained) == 4 * 2  # both workers
    folders = re.findall(r"'gs://my-bucket/runs/sweeps/(\S+)'", "\n".join(trained))
    assert folders[::2] == [
        f"cqa_dss_base/{mixture}/fraction_1/seed_{seed}"
        for seed in (0, 1)
        for mixture in ("cqa_finetune", "cqa_dss_palm")
    ]
    installed.run(*sweep, "--seeds=0,1")
    assert installed.trained() == trained
    output = installed.checkout / "runs/sweeps/cqa_dss_base"
    assert len(json.loads((output / "summary.json").read_text())) == 2


# ---------------------------------- the README -------------------------------


def test_readme_sequence_runs_word_for_word(cloud: Cloud) -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme.split("## On a TPU\n")[1].split("\n## ")[0]
    command = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert command
    for path in SCRIPTS:
        assert f"tpu_scripts/{path.name}" in section
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

    def submit(status: int, *flags: str) -> subprocess.CompletedProcess[str]:
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


def skypilot_task() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "tpu_scripts" / "skypilot.yaml").read_text())


def test_skypilot_scripts_pass_shellcheck() -> None:
    task = skypilot_task()
    for part in ("setup", "run"):
        shellcheck("--shell=bash", "--exclude=SC2154", "-", text=task[part])


@pytest.mark.parametrize(("rank", "gpu"), [(0, False), (0, True), (1, True)])
def test_skypilot_run(cloud: Cloud, rank: int, gpu: bool) -> None:
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
    calls = (cloud.root / "python_calls").read_text().splitlines()
    assert calls == ([train] if rank else [prepare, train])
