"""train: the whole run, in this process, and what it refuses; `test_interruptions` has others."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from quickstart_runs import STUDENT, assert_same_run, read_parameters

from distill_sbs.checkpoint import steps
from distill_sbs.config import TrainConfig
from distill_sbs.errors import UserError
from distill_sbs.inference.student import Student
from distill_sbs.train import train
from distill_sbs.training import run_log


def train_tiny(data_dir: pathlib.Path, model_dir: pathlib.Path, **changes: Any) -> dict[str, Any]:
    """Trains a very small student on `tiny`; keyword arguments change the run.

    What a program is compiled for (TRAIN_STEPS among it: the learning rate's schedule) is best left
    alone where a test does not need another: runs that are alike are compiled once.
    """
    arguments = {
        "model_dir": str(model_dir),
        "mixture_or_task_name": "tiny_dss_gpt",
        "task_feature_lengths": {"inputs": 32, "targets": 16, "task_ids": 16},
        "train_steps": 4,
        "batch_size": 8,
        "initial_checkpoint_path": None,
        "vocabulary_file": "bytes",
        "data_dir": str(data_dir),
        "student": "t5_1_1_tiny",
        "student_overrides": STUDENT,
        "learning_rate": 1e-2,
        "eval_period": 2,
        "log_period": 1,
        "max_decode_tokens": 8,
    }
    return train(TrainConfig.from_options(**{**arguments, **changes}))


@pytest.fixture
def tiny_run(tiny_data: pathlib.Path, tmp_path: pathlib.Path):
    """Trains in the test's own folder `run`."""

    def run(**changes: Any) -> dict[str, Any]:
        return train_tiny(tiny_data, **{"model_dir": tmp_path / "run", **changes})

    return run


@pytest.fixture(scope="module")
def finished(tiny_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that has ended, for tests that only read it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    train_tiny(tiny_data, folder)
    return folder


@pytest.fixture
def finished_here(finished: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """The same run, where `tiny_run` trains."""
    return pathlib.Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_leaves_its_files(finished: pathlib.Path) -> None:
    folder = finished
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {
        "mixture",
        "data_fraction",
        "rationale_rate",
        "seed",
        "train_steps",
        "best_step",
        "validation",
        "test",
    }
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"loss", "label_loss", "rationale_loss", "examples_per_second"} <= set(lines[0])
    assert "validation_accuracy" in lines[1]
    assert "\nTRAIN_STEPS = 4\n" in (folder / "config.gin").read_text()
    assert list(folder.glob("events.out.tfevents.*"))
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["2", "4"]


def test_the_best_step_is_the_earliest_of_the_most_accurate() -> None:
    progress = steps.Progress({})
    for step, accuracy in [(2, 0.0), (4, 0.5), (6, 0.5), (8, 0.25)]:
        progress.add_evaluation(step, {"accuracy": accuracy})
    assert progress.best_step == 4


def test_the_best_step_lies_in_its_range_and_perplexity_never_chooses() -> None:
    """specs/lima.md, 6.4: perplexity rises from epoch 1 on, answers are best at 7; equals: 7."""
    accuracies = [0.9, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 0.8, 0.7, 0.8, 0.95]
    progress = steps.Progress({})
    for epoch, accuracy in enumerate(accuracies, start=1):
        found = {"accuracy": accuracy, "loss": 1.8 + epoch / 10, "perplexity": 6.0 + epoch}
        progress.add_evaluation(epoch, found, first=5, last=10)
        if epoch < 5:
            assert progress.best_step is None
    assert progress.best_step == 7
    assert steps.Progress.from_json(json.loads(json.dumps(progress.to_json()))) == progress


def test_a_range_without_an_evaluation_is_refused(tiny_data: pathlib.Path) -> None:
    for changes in ({"first_best_step": 5}, {"first_best_step": 3, "last_best_step": 3}):
        with pytest.raises(UserError, match="no evaluation falls between FIRST_BEST_STEP=.* and"):
            train_tiny(tiny_data, tiny_data / "nowhere", **changes)


@pytest.mark.slow
def test_limas_recipe_on_a_selection(tiny_run, tmp_path: pathlib.Path) -> None:
    chosen = tmp_path / "chosen.json"
    chosen.write_text(json.dumps({"examples": {"tiny": [f"train-{n}" for n in range(0, 12, 2)]}}))
    recipe = {
        "selection": str(chosen),
        "residual_dropout_rate": 0.3,
        "final_learning_rate": 1e-3,
        "validation_loss": True,
        "first_best_step": 3,
        "eval_examples": 5,
    }
    results = tiny_run(**recipe)
    assert results["best_step"] == 4  # of 2 and 4, both of which are never right
    assert set(results["validation"]) == {"accuracy", "examples", "loss", "perplexity"}
    assert (results["validation"]["examples"], results["test"]["examples"]) == (5, 8)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["validation_loss"] == results["validation"]["loss"]
    assert json.loads(lines[-1])["learning_rate"] == pytest.approx(1e-2 - 9e-3 * 3 / 4)
    # The same choice in another file is the same run, another choice in the same file is not.
    (tmp_path / "copy.json").write_text(chosen.read_text())
    tiny_run(**{**recipe, "selection": str(tmp_path / "copy.json")})
    chosen.write_text(json.dumps({"examples": {"tiny": ["train-1"]}}))
    with pytest.raises(UserError, match=r"SELECTION: '.*' \(sha256 \w{8}…\) there, '.*' \(sha256"):
        tiny_run(**recipe)
    with pytest.raises(UserError, match=r"SELECTION: '.*' \(sha256 \w{8}…\) there, None now"):
        tiny_run(**{**recipe, "selection": None})


@pytest.mark.slow
def test_the_best_checkpoint_is_kept(tiny_run, tmp_path: pathlib.Path) -> None:
    """Nothing is ever right here, so the first evaluation stays the best."""
    results = tiny_run(eval_period=1, keep_checkpoints=2)
    kept = sorted(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == [results["best_step"], 3, 4] == [1, 3, 4]
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results


@pytest.mark.slow
def test_the_same_command_again_trains_no_further(tiny_run, finished_here: pathlib.Path) -> None:
    before = read_parameters(finished_here)
    assert tiny_run() == json.loads((finished_here / "results.json").read_text())
    for one, other in zip(before, read_parameters(finished_here), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_rate_zero_is_finetuning_to_the_bit(tiny_run, tmp_path: pathlib.Path) -> None:
    """λ = 0 of the mixture and the finetuning mixture: same batches, same parameters."""
    tiny_run(model_dir=str(tmp_path / "zero"), rationale_rate=0.0)
    tiny_run(model_dir=str(tmp_path / "finetune"), mixture_or_task_name="tiny_finetune")
    pairs = zip(
        read_parameters(tmp_path / "zero"), read_parameters(tmp_path / "finetune"), strict=True
    )
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_run_starts_from_another_runs_parameters(
    tiny_run, finished: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    tiny_run(
        initial_checkpoint_path=str(finished / "checkpoints" / "4"),
        learning_rate=0.0,
        train_steps=1,
    )
    pairs = zip(read_parameters(finished), read_parameters(tmp_path / "run"), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_checkpoint_is_found_by_a_relative_path(
    tiny_run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_run(model_dir="run")
    assert len(Student.load("run").answer(["question 1"])) == 1


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run(tiny_run, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"the loss of step \d+ is (nan|inf).*LEARNING_RATE"):
        tiny_run(learning_rate=1e30, gradient_clip_norm=None, train_steps=8, eval_period=8)
    assert not (tmp_path / "run" / "results.json").exists()
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.campaign
@pytest.mark.slow
def test_label_smoothing_z_loss_and_adafactor_train(tiny_run) -> None:
    results = tiny_run(label_smoothing=0.1, z_loss=1e-4, optimizer="adafactor", num_microbatches=2)
    assert results["train_steps"] == 4


@pytest.mark.slow
def test_the_mutual_information_loss_trains_and_goes_on_to_the_bit(
    tiny_run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beta = {"mutual_information_weight": 0.1, "dropout_rate": 0.1, "eval_period": 4}
    whole = tiny_run(model_dir=tmp_path / "whole", **beta)
    lines = [
        json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()
    ]
    for line in lines:
        means = line["label_loss"] + line["rationale_loss"] + 0.1 * line["mutual_information"]
        assert line["loss"] == pytest.approx(means, rel=1e-5)
    events = tf.data.TFRecordDataset([str(path) for path in (tmp_path / "whole").glob("events.*")])
    assert any(b"mutual_information" in event for event in events.as_numpy_iterator())

    write = run_log.RunLog.write

    def write_and_signal(self: run_log.RunLog, step: int, values: dict[str, float]) -> None:
        write(self, step, values)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run_log.RunLog, "write", write_and_signal)
        with pytest.raises(SystemExit):
            tiny_run(**beta)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]
    with pytest.raises(UserError, match="MUTUAL_INFORMATION_WEIGHT: 0.1 there, 0.2 now"):
        tiny_run(**{**beta, "mutual_information_weight": 0.2})
    assert tiny_run(**beta) == whole
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("mixture", ["tiny_joint_gpt", "tiny_pinto_gpt", "tiny_dss_distill_gpt"])
def test_every_method_trains(tiny_run, mixture: str) -> None:
    assert tiny_run(mixture_or_task_name=mixture)["mixture"] == mixture


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture_or_task_name": "tiny_dss_gtp"}, "did you mean: tiny_dss_gpt"),
        ({"mixture_or_task_name": "cqa_dss_palm"}, "python -m distill_sbs.prepare --dataset=cqa"),
        ({"task_feature_lengths": {"inputs": 32}}, "TASK_FEATURE_LENGTHS"),
        ({"train_steps": 0}, "TRAIN_STEPS=0; expected a whole number ≥ 1"),
        ({"batch_size": 9, "num_microbatches": 2}, "BATCH_SIZE=9 is not a multiple of NUM_MICRO"),
        ({"num_model_partitions": 3}, "NUM_MODEL_PARTITIONS=3 does not divide"),
        ({"data_fraction": 0.0}, "DATA_FRACTION=0.0"),
        ({"rationale_rate": -1.0}, "RATIONALE_RATE=-1.0"),
        ({"vocabulary_file": "/nowhere.model"}, "VOCABULARY_FILE='/nowhere.model': no such file"),
        ({"student": "t5_1_1_bsae"}, "t5_1_1_base"),
        ({"student_overrides": {"emb_dims": 8}}, "emb_dim"),
        ({"student_overrides": {"vocab_size": 8}}, "the student t5_1_1_tiny embeds 8"),
        ({"dropout_rate": 2.0}, "DROPOUT_RATE=2.0"),
        ({"optimizer": "adam"}, "OPTIMIZER='adam' is unknown"),
        ({"keep_checkpoints": 0}, "KEEP_CHECKPOINTS=0"),
        ({"initial_checkpoint_path": "/nowhere"}, "/nowhere"),
    ],
)
def test_refuses_before_anything_is_written(
    tiny_run, tmp_path: pathlib.Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as error:
        tiny_run(**changes)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"mixture_or_task_name": "tiny_finetune"}, "MIXTURE_OR_TASK_NAME: 'tiny_dss_gpt' there"),
        (
            {"student_overrides": {**STUDENT, "emb_dim": 24}},
            "STUDENT_OVERRIDES['emb_dim']: 16 there",
        ),
        ({"random_seed": 7}, "RANDOM_SEED: 0 there, 7 now"),
    ],
)
def test_a_folder_with_another_run_is_left_alone(
    tiny_run, finished_here: pathlib.Path, changes: dict[str, Any], difference: str
) -> None:
    first = (finished_here / "config.gin").read_text()
    with pytest.raises(UserError) as error:
        tiny_run(**changes)
    assert difference in str(error.value)
    assert (finished_here / "config.gin").read_text() == first


@pytest.mark.slow
def test_a_signal_while_a_step_is_logged_is_acted_on_in_the_next(
    tiny_run, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = run_log.RunLog.write

    def write_and_signal(self: run_log.RunLog, step: int, values: dict[str, float]) -> None:
        write(self, step, values)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run_log.RunLog, "write", write_and_signal)
    with pytest.raises(SystemExit) as stopped:
        tiny_run(eval_period=4)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]


@pytest.mark.slow
def test_a_t5gemma_trains_and_answers(tiny_run, tmp_path: pathlib.Path) -> None:
    of_t5gemma = {"num_kv_heads": 1, "query_scale_dim": 8, "sliding_window": 4}
    tiny_run(student="t5gemma2_270m", student_overrides={**STUDENT, **of_t5gemma})
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
        if "loss" in json.loads(line)
    ]
    assert len(losses) == 4 and losses[-1] < losses[0]
    student = Student.load(str(tmp_path / "run"))
    assert student.description.student.num_kv_heads == 1
    assert len(student.answer(["question 1", "question 2"])) == 2
