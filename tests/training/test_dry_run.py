"""--dry_run: refuses what the run would refuse, in the same words, and writes nothing."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from typing import Any

import jax
import model_examples
import numpy as np
import pytest

from distill_sbs import train
from distill_sbs.checkpoint import steps
from distill_sbs.checkpoint.checkpointer import Checkpointer
from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.cli import command_line
from distill_sbs.config import TrainConfig
from distill_sbs.data import sentencepiece_model
from distill_sbs.distributed import processes
from distill_sbs.errors import UserError
from distill_sbs.model.network import initial_parameters

ROOT = pathlib.Path(__file__).parent.parent.parent
OVERRIDES = {"vocab_size": 640, **model_examples.ONE_LAYER}


@pytest.fixture
def dry_run(tiny_data: pathlib.Path, tmp_path: pathlib.Path):
    """The lines of a dry run, by macros as a user types them; keyword arguments change them."""

    def run(*flags: str, **changes: Any) -> list[str]:
        macros: dict[str, Any] = {
            "MODEL_DIR": str(tmp_path / "run"),
            "MIXTURE_OR_TASK_NAME": "tiny_dss_gpt",
            "TASK_FEATURE_LENGTHS": {"inputs": 32, "targets": 16},
            "TRAIN_STEPS": 2,
            "BATCH_SIZE": 8,
            "INITIAL_CHECKPOINT_PATH": None,
            "VOCABULARY_FILE": "bytes",
            "DATA_DIR": str(tiny_data),
            "STUDENT": "t5_1_1_tiny",
            "STUDENT_OVERRIDES": OVERRIDES,
            "EVAL_EXAMPLES": 1,
            "MAX_DECODE_TOKENS": 1,
            **changes,
        }
        arguments = [f"--gin.{name}={value!r}" for name, value in macros.items()]
        configuration = command_line.parse(
            ["program", "--dry_run", *arguments, *flags],
            TrainConfig,
            "runs/train.gin",
            define=processes.define_flags,
        )
        return list(train.dry_run(configuration))

    return run


def test_says_what_it_looked_at(dry_run, tiny_data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    lines = dry_run()
    assert lines[0] == f"tiny: prepared in {tiny_data}"
    assert "not looked at: devices" in lines[-1]
    assert list(tmp_path.iterdir()) == []


def test_data_that_the_run_would_prepare_are_left_to_it(dry_run, tmp_path: pathlib.Path) -> None:
    lines = dry_run(DATA_DIR=str(tmp_path / "data"), MIXTURE_OR_TASK_NAME="wordproblems_finetune")
    assert lines[0] == f"wordproblems: not prepared in {tmp_path}/data yet; the run prepares it"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MIXTURE_OR_TASK_NAME": "tiny_dss_gtp"}, "did you mean: tiny_dss_gpt"),
        ({"MIXTURE_OR_TASK_NAME": "cqa_dss_palm"}, "python -m distill_sbs.prepare --dataset=cqa"),
        ({"VOCABULARY_FILE": "/nowhere.model"}, "VOCABULARY_FILE='/nowhere.model': no such file"),
        ({"VOCABULARY_FILE": __file__}, "is no SentencePiece model"),
        ({"STUDENT_OVERRIDES": {"vocab_size": 8}}, "the student t5_1_1_tiny embeds 8"),
        ({"INITIAL_CHECKPOINT_PATH": "/nowhere"}, "INITIAL_CHECKPOINT_PATH: /nowhere: no such"),
        ({"INITIAL_CHECKPOINT_PATH": __file__}, "INITIAL_CHECKPOINT_PATH: "),
        ({"INITIAL_CHECKPOINT_PATH": str(ROOT / "gin")}, "no checkpoint of a known form"),
        ({"MODEL_DIR": __file__}, "is a file; expected a folder"),
        ({"BATCH_SIZE": "64"}, "BATCH_SIZE='64' is text"),
        ({"TRAIN_STEPS": 1e2}, "TRAIN_STEPS=100.0 is a float"),
        ({"WARMUP_STEPS": 2}, "WARMUP_STEPS=2 is not below TRAIN_STEPS=2"),
        (
            {"MUTUAL_INFORMATION_WEIGHT": 0.1, "MIXTURE_OR_TASK_NAME": "tiny_finetune"},
            "'tiny_finetune' does not pair them (its tasks: tiny_label); train on tiny_dss_TEACHER "
            "or tiny_dss_distill_TEACHER, or set MUTUAL_INFORMATION_WEIGHT = 0",
        ),
        (
            {"MUTUAL_INFORMATION_WEIGHT": 0.1, "RATIONALE_RATE": 0.5},
            "RATIONALE_RATE=0.5: with MUTUAL_INFORMATION_WEIGHT=0.1 every example comes once with",
        ),
        (
            {"MUTUAL_INFORMATION_WEIGHT": 0.1, "BATCH_SIZE": 7},
            "BATCH_SIZE=7 is odd: with MUTUAL_INFORMATION_WEIGHT above 0 a batch is made of pairs",
        ),
        (
            {"SHARED_ENCODER": True, "MIXTURE_OR_TASK_NAME": "tiny_joint_gpt"},
            "SHARED_ENCODER = True encodes an example once, for its label and its rationale, and "
            "MIXTURE_OR_TASK_NAME='tiny_joint_gpt' does not pair them",
        ),
        ({"SHARED_ENCODER": True, "RATIONALE_RATE": 0.0}, "at RATIONALE_RATE=0 there are labels"),
        ({"SHARED_ENCODER": True, "BATCH_SIZE": 7}, "BATCH_SIZE=7 is odd: with SHARED_ENCODER a"),
        ({"MUTUAL_INFORMATION_WEIGHT": -0.1}, "MUTUAL_INFORMATION_WEIGHT=-0.1; expected a number"),
    ],
)
def test_refuses_what_the_run_refuses(
    dry_run, tmp_path: pathlib.Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        dry_run(**changes)
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_task_file_that_does_not_run(dry_run, tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine.py").write_text("raise ValueError('nope')\n")
    with pytest.raises(UserError, match=r"mine\.py.*nope"):
        dry_run(f"--task_file={tmp_path / 'mine.py'}")


def test_a_checkpoint_to_start_from_and_a_run_to_continue(
    dry_run, tiny_data: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    config = TrainConfig.from_options(
        model_dir=str(tmp_path / "first"),
        mixture_or_task_name="tiny_dss_gpt",
        task_feature_lengths={"inputs": 32, "targets": 16},
        train_steps=1,
        batch_size=8,
        initial_checkpoint_path=None,
        vocabulary_file="bytes",
        data_dir=str(tiny_data),
        student="t5_1_1_tiny",
        student_overrides=OVERRIDES,
        eval_examples=1,
        max_decode_tokens=1,
    )
    architecture = config.student.architecture()
    shapes = jax.eval_shape(lambda: initial_parameters(architecture, jax.random.key(0)))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    checkpointer = Checkpointer(config.run.model_dir)
    saved = RunDescription.of_run(config, sentencepiece_model.describe("bytes"))
    checkpointer.save(1, {"step": np.int32(1), "params": params}, steps.Progress({}), saved)
    checkpointer.close()
    first = str(tmp_path / "first")
    assert f"INITIAL_CHECKPOINT_PATH={first} fits the student" in dry_run(
        INITIAL_CHECKPOINT_PATH=first
    )
    with pytest.raises(UserError, match="INITIAL_CHECKPOINT_PATH: .* has shape"):
        dry_run(INITIAL_CHECKPOINT_PATH=first, STUDENT_OVERRIDES={**OVERRIDES, "mlp_dim": 48})
    assert f"MODEL_DIR={first} holds this run, which would go on from step 1" in dry_run(
        MODEL_DIR=first, TRAIN_STEPS=1
    )
    for change in ({"LEARNING_RATE": 1e-3}, {"TRAIN_STEPS": 2}):
        # The same words from the run.
        with pytest.raises(UserError) as dry:
            dry_run(**{"MODEL_DIR": first, "TRAIN_STEPS": 1, **change})
        with pytest.raises(UserError) as real:
            train.train(config.change(**{name.lower(): value for name, value in change.items()}))
        assert str(dry.value) == str(real.value)
        assert f"{next(iter(change))}: " in str(dry.value)


@pytest.mark.slow
def test_as_a_user_types_it(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "distill_sbs.train",
            "--gin_file=gin/experiments/quickstart.gin",
            "--dry_run",
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DISTILL_SBS_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    # What is printed is a gin file.
    (tmp_path / "config.gin").write_text(done.stdout)
    configs = [
        command_line.parse(["program", f"--gin_file={name}"], TrainConfig, "runs/train.gin").config
        for name in (str(tmp_path / "config.gin"), "gin/experiments/quickstart.gin")
    ]
    assert configs[0] == configs[1]
    assert "wordproblems: not prepared" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.gin"]
