"""What each run of a sweep is: its flags, and a batch that follows its method."""

from __future__ import annotations

import json
import pathlib
import re
import shlex

import pytest

from distill_sbs.cli import shell_words
from distill_sbs.errors import UserError
from distill_sbs.sweeping import fairness, plan
from distill_sbs.sweeping.options import SweepConfig

METHODS = {"dataset": ["comparisons"], "method": ["finetune", "dss"], "teacher": ["template"]}


def make_plan(folder: pathlib.Path, *bindings: str, **options: object) -> tuple[plan.Run, ...]:
    config = SweepConfig(**{"sweep_dir": str(folder), "grid": METHODS, **options})
    given = plan.Given(("gin/methods/comparisons.gin",), bindings, (), ())
    return plan.Planner(config, given).plan()


def batches(runs: tuple[plan.Run, ...]) -> dict[str, int]:
    assert all(run.config is not None for run in runs)
    return {run.name: run.config.batch.batch_size for run in runs if run.config}


def test_a_batch_follows_its_method(tmp_path: pathlib.Path) -> None:
    runs = make_plan(tmp_path, examples_per_step=64)
    assert batches(runs) == {"comparisons_finetune": 64, "comparisons_dss_template": 128}
    each = "64 examples a step, 600 steps; 1 run"
    assert list(fairness.describe(runs)) == [
        f"  comparisons_finetune (labels): BATCH_SIZE = 64, {each}",
        f"  comparisons_dss_template (λ = 1): BATCH_SIZE = 128, {each}",
        "equal for all: 64 examples a step, 600 steps, 38,400 examples",
    ]


def test_a_batch_follows_lambda(tmp_path: pathlib.Path) -> None:
    runs = make_plan(
        tmp_path,
        "MIXTURE_OR_TASK_NAME = 'comparisons_dss_template'",
        grid={"RATIONALE_RATE": [0, 0.5, 2.0]},
        examples_per_step=64,
    )
    assert list(batches(runs).values()) == [64, 96, 192]


def test_a_batch_of_the_file_is_meant_for_the_mixture_of_the_file(tmp_path: pathlib.Path) -> None:
    """BATCH_SIZE = 128 beside a dss mixture is 64 examples, which finetuning has as 64."""
    runs = make_plan(
        tmp_path, "MIXTURE_OR_TASK_NAME = 'comparisons_dss_template'", "BATCH_SIZE = 128"
    )
    assert batches(runs) == {"comparisons_finetune": 64, "comparisons_dss_template": 128}


def test_an_axis_that_sets_the_batch_keeps_it_and_the_difference_is_told(
    tmp_path: pathlib.Path,
) -> None:
    grid = {**METHODS, "BATCH_SIZE": [32]}
    runs = make_plan(tmp_path, grid=grid, examples_per_step=64)
    assert list(batches(runs).values()) == [32, 32]
    assert list(fairness.describe(runs))[-1] == "not equal: 16 and 32 examples a step"


def test_steps_that_differ_are_told(tmp_path: pathlib.Path) -> None:
    runs = make_plan(tmp_path, grid={**METHODS, "TRAIN_STEPS": [10, 20]}, examples_per_step=8)
    assert list(fairness.describe(runs))[-1] == "not equal: 10 and 20 steps"


def test_joint_training_is_decoded_to_its_end(tmp_path: pathlib.Path) -> None:
    grid = {**METHODS, "method": ["finetune", "joint"]}
    finetune, joint = make_plan(tmp_path, grid=grid, examples_per_step=8)
    assert finetune.config and finetune.config.evaluation.max_decode_tokens == 8
    assert joint.config and joint.config.evaluation.max_decode_tokens == 48  # the target's length


def test_a_command_is_what_a_user_types(tmp_path: pathlib.Path) -> None:
    run, _ = make_plan(tmp_path, "DROPOUT_RATE = 0.1", examples_per_step=64)
    command = run.make_command()
    assert command == (
        "python -m distill_sbs.train --gin_file=gin/methods/comparisons.gin "
        "--gin.DROPOUT_RATE=0.1 --gin.MIXTURE_OR_TASK_NAME=\"'comparisons_finetune'\" "
        f"--gin.BATCH_SIZE=64 --gin.MODEL_DIR=\"'{tmp_path}/comparisons_finetune'\""
    )
    assert tuple(shlex.split(command)[3:]) == run.arguments


def test_a_command_survives_the_shell() -> None:
    for word in ("--a='b'", "--a=$HOME", "--a={'x': \"y\"}", "--a=`ls`", "a b", "--a=b!c\\"):
        assert shlex.split(shell_words.quote_word(word)) == [word]


def test_what_a_run_refuses_names_the_run(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError) as raised:
        make_plan(tmp_path, "TASK_FEATURE_LENGTHS = {'inputs': 40}", examples_per_step=64)
    assert str(raised.value).startswith("comparisons_finetune: ")
    assert str(raised.value).endswith("; nothing was started")


# ---------------------------------- what is there already --------------------


def finish(run: plan.Run, text: str | None = None, config: str | None = None) -> None:
    """Leaves what a run leaves."""
    folder = pathlib.Path(run.folder)
    folder.mkdir(parents=True)
    results = {"mixture": "m", "data_fraction": 1.0, "seed": 0, "test": {"accuracy": 0.5}}
    (folder / "results.json").write_text(json.dumps(results) if text is None else text)
    if config is not None:
        (folder / "config.gin").write_text(config)


def test_a_finished_run_is_known_by_its_results(tmp_path: pathlib.Path) -> None:
    run, _ = make_plan(tmp_path, examples_per_step=64)
    assert run.config is not None
    finish(run, config=run.config.to_gin())
    again, other = make_plan(tmp_path, examples_per_step=64)
    assert again.results is not None and again.results.test_accuracy == 0.5
    assert other.results is None


WRONG = {"mixture": "m", "data_fraction": 2, "seed": 0, "test": {"accuracy": 0.5}}
BROKEN = ["", "{", "[]", "{}", "3", '{"test": 3}', '{"test": {}}', "\0", json.dumps(WRONG)]


@pytest.mark.parametrize("text", BROKEN)
def test_broken_results_are_none(tmp_path: pathlib.Path, text: str) -> None:
    run, _ = make_plan(tmp_path, examples_per_step=64)
    finish(run, text)
    again, _ = make_plan(tmp_path, examples_per_step=64)
    assert again.results is None


def test_results_of_other_options_are_refused(tmp_path: pathlib.Path) -> None:
    run, _ = make_plan(tmp_path, examples_per_step=64)
    assert run.config is not None
    finish(run, config=run.config.to_gin())
    with pytest.raises(UserError) as raised:
        make_plan(tmp_path, "LEARNING_RATE = 0.5", examples_per_step=64)
    message = str(raised.value)
    assert (
        f"{run.folder} holds the results of another run (LEARNING_RATE: 0.001 there, 0.5" in message
    )
    assert message.endswith("nothing was started")


@pytest.mark.parametrize(
    ("binding", "told"),
    [
        ("DROPOUT_RATE = 0.5", "(DROPOUT_RATE: 0.0 there, 0.5 now)"),
        ("STUDENT = 't5_1_1_small'", "(STUDENT: 't5_1_1_tiny' there, 't5_1_1_small' now)"),
        ("STUDENT_OVERRIDES = {}", "(STUDENT_OVERRIDES['vocab_size']: 512 there, 32128 now)"),
    ],
)
def test_results_of_another_student_are_refused(
    tmp_path: pathlib.Path, binding: str, told: str
) -> None:
    run, _ = make_plan(tmp_path, examples_per_step=64)
    assert run.config is not None
    finish(run, config=run.config.to_gin())
    with pytest.raises(UserError, match=re.escape(told)):
        make_plan(tmp_path, binding, examples_per_step=64)


def test_what_changes_no_parameter_of_the_student_may_change(tmp_path: pathlib.Path) -> None:
    """As `train` has it, which goes on with such a run."""
    run, _ = make_plan(tmp_path, examples_per_step=64)
    assert run.config is not None
    finish(run, config=run.config.to_gin())
    overrides = {**run.config.student.overrides, "remat_policy": "full"}
    again, _ = make_plan(tmp_path, f"STUDENT_OVERRIDES = {overrides}", examples_per_step=64)
    assert again.results is not None


def test_what_may_change_may_change(tmp_path: pathlib.Path) -> None:
    run, _ = make_plan(tmp_path, examples_per_step=64)
    assert run.config is not None
    finish(run, config=run.config.to_gin())
    again, _ = make_plan(tmp_path, "LOG_PERIOD = 7", examples_per_step=64)
    assert again.results is not None
