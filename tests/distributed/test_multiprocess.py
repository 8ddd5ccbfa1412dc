"""multiprocess: two and four processes over loopback are one run, whatever happens to them.

Each process has simulated devices of its own; the same mesh in one process is the reference.
"""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

import jax
import model_examples
import numpy as np
import pytest
from absl import flags

from distill_sbs.data import metrics
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.jsonl import JsonlReader
from distill_sbs.data.records import build
from distill_sbs.distributed import processes as multiprocess
from distill_sbs.errors import UserError
from distill_sbs.inference.student import Student

ROOT = pathlib.Path(__file__).parent.parent.parent
STUDENT = {"vocab_size": 384, **model_examples.ONE_LAYER}
TASK_FILE = """
from distill_sbs.data import metrics, registration
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.jsonl import JsonlReader

registration.register_dataset(
    DatasetSpec(
        name="tickets",
        reader=JsonlReader(teacher="gpt", train="tickets.jsonl"),
        is_correct=metrics.answers_match,
        teachers=("gpt",),
    )
)
"""
DEVICES = 4
# A guard against hanging for ever, nothing that is measured: a busy machine may take minutes.
PATIENCE_SECONDS = 900.0


class Machines:
    """Starts the processes of a run in one folder, with one compilation cache."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        rows = (
            {"id": str(i), "input": f"ticket {i}", "label": f"yes {i % 3}", "rationale": f"as {i}"}
            for i in range(60)
        )
        (folder / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "tickets.py").write_text(TASK_FILE)
        reader = JsonlReader(teacher="gpt", train="tickets.jsonl")
        spec = DatasetSpec("tickets", reader, metrics.answers_match, ("gpt",))
        build.prepare_dataset(spec, str(folder), str(folder / "prepared"), None)

    def _start(
        self,
        count: int,
        program: str,
        arguments: list[str],
        devices: int = DEVICES,
        last: Sequence[str] = (),
        started: int | None = None,
        last_folder: pathlib.Path | None = None,
    ) -> list[subprocess.Popen]:
        """The first `started` of `count` processes; `last` are flags of the last one alone."""
        with socket.create_server(("localhost", 0)) as free:
            port = free.getsockname()[1]
        environment = {
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // count}",
            "DISTILL_SBS_DATA_DIR": "prepared",
            "JAX_COMPILATION_CACHE_DIR": str(self.folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        }
        processes = []
        for index in range(count if started is None else started):
            together = [
                "--multiprocess",
                f"--coordinator_address=localhost:{port}",
                f"--process_count={count}",
                f"--process_index={index}",
            ]
            command = [
                *(sys.executable, "-m", f"distill_sbs.{program}", "--task_file=tickets.py"),
                *arguments,
                *(together if count > 1 else []),
                *(last if index == count - 1 else []),
            ]
            processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    cwd=last_folder if last_folder and index == count - 1 else self.folder,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        return processes

    def start_training(
        self,
        name: str,
        count: int,
        *flags: str,
        devices: int = DEVICES,
        last_folder: pathlib.Path | None = None,
    ) -> list[subprocess.Popen]:
        """Sixty steps that save at every tenth and evaluate at every thirtieth."""
        return self._start(
            count,
            "train",
            [
                "--gin_file=gin/experiments/quickstart.gin",
                f"--gin.MODEL_DIR='{name}'",
                "--gin.MIXTURE_OR_TASK_NAME='tickets_dss_gpt'",
                "--gin.VOCABULARY_FILE='bytes'",
                f"--gin.STUDENT_OVERRIDES={STUDENT}",
                "--gin.TASK_FEATURE_LENGTHS={'inputs': 24, 'targets': 16, 'task_ids': 16}",
                "--gin.TRAIN_STEPS=60",
                "--gin.EVAL_PERIOD=30",
                "--gin.CHECKPOINT_PERIOD=10",
                "--gin.LOG_PERIOD=5",
                "--gin.BATCH_SIZE=8",
                "--gin.DROPOUT_RATE=0.1",
                "--gin.MAX_DECODE_TOKENS=4",
                "--gin.NUM_MODEL_PARTITIONS=2",
                "--gin.FSDP=True",
                *flags,
            ],
            devices,
            last_folder=last_folder,
        )

    def train(self, name: str, count: int, *flags: str) -> list[str]:
        """A run to its end; what each process wrote to standard error."""
        outputs = finish(self.start_training(name, count, *flags))
        assert all(status == 0 for status, _, _ in outputs), outputs
        return [errors for _, _, errors in outputs]

    def evaluate(self, name: str, count: int) -> tuple[dict, list[dict]]:
        """The accuracy on test that `count` processes find, and what they answered."""
        answers = self.folder / f"answers_{count}.jsonl"
        arguments = [f"--checkpoint={name}", "--batch_size=4", f"--output={answers}"]
        outputs = finish(self._start(count, "evaluate", arguments))
        assert all(status == 0 for status, _, _ in outputs), outputs
        assert [out for _, out, _ in outputs[1:]] == [""] * (count - 1)  # process 0 alone prints
        rows = [json.loads(line) for line in answers.read_text().splitlines()]
        return json.loads(outputs[0][1]), rows

    def parameters(self, name: str) -> dict[str, np.ndarray]:
        """Of the last checkpoint, by name."""
        params = Student.load(str(self.folder / name / "checkpoints" / "60")).params
        return {
            jax.tree_util.keystr(path): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        }

    def assert_same_end(self, one: str, other: str) -> None:
        """Parameters within 1e-5 of each tensor's norm, and the same results."""
        worst = 0.0
        for name, first in self.parameters(one).items():
            second = self.parameters(other)[name]
            worst = max(worst, np.linalg.norm(first - second) / np.linalg.norm(first))
            assert worst <= 1e-5, name
        print(f"{other} against {one}: parameters differ by {worst:.1e} of a tensor's norm")
        results = [
            json.loads((self.folder / name / "results.json").read_text()) for name in (one, other)
        ]
        assert results[0] == results[1]


def finish(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each."""
    outputs = [process.communicate(timeout=PATIENCE_SECONDS) for process in processes]
    return [
        (process.returncode, *output) for process, output in zip(processes, outputs, strict=True)
    ]


def wait_for_step(process: subprocess.Popen, step: int) -> None:
    """Until process 0 has logged `step`."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if line.startswith(f"step {step}/"):
            return
    raise AssertionError(f"ended before step {step}: {lines}")


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Machines:
    """A folder that all processes see, with the reference run `one` in it."""
    made = Machines(tmp_path_factory.mktemp("machines"))
    made.train("one", 1)
    return made


def kill_and_restart(machines: Machines, name: str, count: int, victim: int) -> None:
    """SIGKILLs one process in mid-run; the others stop; all together, started again, finish."""
    processes = machines.start_training(name, count)
    wait_for_step(processes[0], 25)
    processes[victim].send_signal(signal.SIGKILL)
    outputs = finish(processes)
    print(f"\n{count} processes, process {victim} killed")
    for index, (status, _, errors) in enumerate(outputs):
        if index != victim:
            print(f"  process {index}, exit status {status}: {errors.strip().splitlines()[-1]}")
            assert status == 75, errors
            assert f"process {victim} of {count} died" in errors
            assert "start all of them again with the same command" in errors
    first, *others = machines.train(name, count)
    assert f"continuing {name} from step" in first
    assert others == [""] * (count - 1)
    machines.assert_same_end("one", name)
    lines = (machines.folder / name / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(5, 61, 5))


@pytest.mark.campaign
@pytest.mark.slow
def test_two_processes_killed_and_restarted_end_as_one(machines: Machines) -> None:
    kill_and_restart(machines, "two", 2, victim=1)


@pytest.mark.campaign
@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_of_a_stopped_process_stop(machines: Machines, victim: int) -> None:
    """SIGSTOP: one line and status 75, no stack; the stopped one ends the same when it goes on."""
    processes = machines.start_training(f"stopped_{victim}", 2)
    wait_for_step(processes[0], 25)
    processes[victim].send_signal(signal.SIGSTOP)
    _, errors = processes[1 - victim].communicate(timeout=PATIENCE_SECONDS)
    assert processes[1 - victim].returncode == 75
    last = errors.strip().splitlines()[-1]
    assert f"error: process {victim} of 2 has said nothing for 30 s" in last
    assert "start all of them again with the same command" in last
    assert "Traceback" not in errors
    assert "@ " not in errors  # a frame of C++
    processes[victim].send_signal(signal.SIGCONT)
    _, errors = processes[victim].communicate(timeout=PATIENCE_SECONDS)
    assert processes[victim].returncode == 75, errors
    assert f"error: process {1 - victim} of 2 died" in errors


@pytest.mark.campaign
@pytest.mark.slow
def test_ctrl_c_to_one_process_saves_and_stops_all(machines: Machines) -> None:
    processes = machines.start_training("interrupted", 2)
    wait_for_step(processes[0], 25)
    processes[1].send_signal(signal.SIGINT)
    outputs = finish(processes)
    assert [status for status, _, _ in outputs] == [143, 130], outputs
    assert "saved step" in outputs[0][2]
    assert all("Traceback" not in errors for _, _, errors in outputs)
    machines.train("interrupted", 2)
    machines.assert_same_end("one", "interrupted")


@pytest.mark.campaign
@pytest.mark.slow
def test_four_processes_killed_and_restarted_end_as_one(machines: Machines) -> None:
    """Process 0, which the others depend on most. And evaluation counts every example once."""
    kill_and_restart(machines, "four", 4, victim=0)
    evaluated, answers = machines.evaluate("four", 4)
    assert evaluated["examples"] == len({row["input"] for row in answers}) == len(answers) == 6
    alone, alones_answers = machines.evaluate("four", 1)
    assert evaluated == alone
    assert answers == alones_answers
    results = json.loads((machines.folder / "one" / "results.json").read_text())
    assert evaluated["accuracy"] == pytest.approx(results["test"]["accuracy"])


@pytest.mark.campaign
@pytest.mark.slow
def test_a_signal_to_one_process_saves_for_any_other_mesh(machines: Machines) -> None:
    """Two processes, 2 × 2 with FSDP; then one process alone, eight devices as 2 × 4 without."""
    processes = machines.start_training("moved", 2)
    wait_for_step(processes[0], 25)
    processes[1].send_signal(signal.SIGTERM)
    outputs = finish(processes)
    assert [status for status, _, _ in outputs] == [128 + signal.SIGTERM] * 2, outputs
    saved = max(int(path.name) for path in (machines.folder / "moved/checkpoints").iterdir())
    assert f"SIGTERM: saved step {saved};" in outputs[0][2]
    flags = ["--gin.NUM_MODEL_PARTITIONS=4", "--gin.FSDP=False"]
    ((status, _, errors),) = finish(machines.start_training("moved", 1, *flags, devices=8))
    assert status == 0, errors
    assert f"continuing moved from step {saved}" in errors
    machines.assert_same_end("one", "moved")


@pytest.mark.campaign
@pytest.mark.slow
def test_processes_with_unlike_settings_are_refused(machines: Machines) -> None:
    """The one that differs says how; the other is told, and stops too."""
    arguments = ["--checkpoint=one", "--batch_size=4"]
    processes = machines._start(2, "evaluate", arguments, last=["--split=validation"])
    (_, _, first), (status, _, second) = finish(processes)
    assert status == 2
    assert "process 1 was started with other settings than process 0: --split=" in second
    assert "error: process 1 of 2 stopped: process 1 was started with other settings" in first


@pytest.mark.campaign
@pytest.mark.slow
def test_a_model_dir_that_is_not_shared_is_refused(machines: Machines) -> None:
    """Each process in a folder of its own, as on hosts whose disks are their own."""
    elsewhere = machines.folder / "another_host"
    elsewhere.mkdir()
    for name in ("tickets.jsonl", "tickets.py", "prepared"):
        (elsewhere / name).symlink_to(machines.folder / name)
    processes = machines.start_training("unshared", 2, last_folder=elsewhere)
    (_, _, first), (status, _, second) = finish(processes)
    assert status == 2
    for errors in (first, second):
        assert "MODEL_DIR=unshared of process 0 is not that of process 1" in errors
    assert not list((machines.folder / "unshared").iterdir())


@pytest.mark.campaign
@pytest.mark.slow
def test_one_process_alone_gives_up(machines: Machines) -> None:
    processes = machines._start(
        2, "evaluate", ["--checkpoint=one", "--start_timeout_seconds=3"], started=1
    )
    ((status, _, errors),) = finish(processes)
    assert status == 2
    assert "error: the processes did not all come within 3 s" in errors


# ---------------------------------- in this process ---------------------------

ALONE = {
    "multiprocess": False,
    "coordinator_address": None,
    "process_count": None,
    "process_index": None,
}
TOGETHER = {
    "multiprocess": True,
    "coordinator_address": "10.0.0.1:8476",
    "process_count": 4,
    "process_index": 3,
}


def test_flags_ask_for_several_processes() -> None:
    assert not multiprocess.check_flags(ALONE)
    assert multiprocess.check_flags(TOGETHER)
    assert multiprocess.check_flags({**ALONE, "multiprocess": True})  # TPU, SLURM


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multiprocess": False}, "--coordinator_address was given without --multiprocess"),
        ({"process_index": None}, "only --coordinator_address, --process_count given; type --mu"),
        ({"process_index": 4}, "processes are numbered from 0 to 3"),
        ({"coordinator_address": "10.0.0.1"}, "expected HOST:PORT of process 0"),
        ({"coordinator_address": ":8476"}, "expected HOST:PORT of process 0"),
    ],
)
def test_flags_that_contradict_one_another(changes: dict, message: str) -> None:
    with pytest.raises(UserError) as error:
        multiprocess.check_flags({**TOGETHER, **changes})
    assert message in str(error.value)


def test_t5xs_name_of_the_flag() -> None:
    values = flags.FlagValues()
    multiprocess.define_flags(values)
    values(["train", "--multiprocess_gpu", "--process_index=2"])
    assert values.multiprocess
    assert values.process_index == 2


def test_settings_leave_the_processs_own_number_out() -> None:
    settings = {multiprocess.list_settings({"a": 1, "process_index": index}) for index in (0, 1)}
    assert settings == {"--a=1"}


def test_exchange_alone() -> None:
    (whole,) = multiprocess.exchange(np.arange(3))
    assert whole.tolist() == [0, 1, 2]


def test_what_is_raised_alone_goes_on() -> None:
    with pytest.raises(KeyError), multiprocess.join_processes(ALONE):
        raise KeyError
