"""A checkout, a fake gcloud and two workers, for the tests of tpu_scripts/.

The fake (tests/helpers/fake_gcloud.py) runs what goes over ssh for real, so worker.bash is tested
with its locks and signals; what is fake on a worker is pip, uv and the Python that trains.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent.parent
PROJECT = {
    "DISTILL_SBS_PROJECT": "my-project",
    "DISTILL_SBS_ZONE": "us-west4-a",
    "DISTILL_SBS_BUCKET": "gs://my-bucket",
}

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
    "gcloud": f'exec {sys.executable} -I -S {ROOT}/tests/helpers/fake_gcloud.py "$@"\n',
    "sleep": "exec /bin/sleep 0.05\n",
    # `python3 -m pip install --target=uv …` on a worker.
    "python3": 'mkdir -p uv/bin && cp "$(dirname "$0")/uv" uv/bin/uv\n',
    "uv": """echo "$*" >>"$FAKE_GCLOUD/uv_calls"
case "$1 $2" in
  "venv "*) mkdir -p venv/bin && cp "$FAKE_GCLOUD/worker_python" venv/bin/python ;;
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
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited 60 s in vain"
        time.sleep(0.05)


def is_locked(path: pathlib.Path) -> bool:
    return path.exists() and subprocess.run(["flock", "-n", path, "true"]).returncode != 0


def make_cloud(tmp_path: pathlib.Path) -> Iterator[Cloud]:
    """For a fixture: what still trains when the test ends is stopped."""
    made = Cloud(tmp_path)
    yield made
    made.set_training("ends")
    for worker in (0, 1):
        wait_for(lambda worker=worker: not is_locked(made.worker_file("train.lock", worker)))
