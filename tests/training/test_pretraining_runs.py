"""Pretraining by our trainer: what a run leaves, how it is evaluated, and what starts from it."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest
from quickstart_runs import STUDENT, read_parameters

from distill_sbs.checkpoint import steps
from distill_sbs.config import TrainConfig
from distill_sbs.errors import UserError
from distill_sbs.evaluate import evaluate
from distill_sbs.train import train

pytestmark = pytest.mark.slow

TEXT = "the quick brown fox jumps over the lazy dog and then the dog sleeps again\n"


def train_tiny(data_dir: pathlib.Path, model_dir: pathlib.Path, **changes: Any) -> dict[str, Any]:
    """Pretrains a very small student on the texts below `DATA_DIR/text`."""
    options: dict[str, Any] = {
        "model_dir": str(model_dir),
        "mixture_or_task_name": "text_pretrain",
        "task_feature_lengths": {"inputs": 32, "targets": 16},
        "train_steps": 20,
        "batch_size": 16,
        "initial_checkpoint_path": None,
        "vocabulary_file": "bytes",
        "data_dir": str(data_dir),
        "student": "t5_1_1_tiny",
        "student_overrides": STUDENT,
        "learning_rate": 1e-2,
        "eval_period": 10,
        "log_period": 10,
        "max_decode_tokens": 8,
    }
    return train(TrainConfig.from_options(**{**options, **changes}))


@pytest.fixture(scope="module")
def data_dir(tiny_data: pathlib.Path) -> pathlib.Path:
    """The prepared dataset `tiny`, and text beside it."""
    folder = tiny_data / "text"
    folder.mkdir(exist_ok=True)
    (folder / "dogs.txt").write_text("".join(f"{n}: {TEXT}" for n in range(1_600)))
    return tiny_data


@pytest.fixture(scope="module")
def pretrained(
    data_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[pathlib.Path, dict[str, Any]]:
    """A run that has ended, and its results."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    return folder, train_tiny(data_dir, folder)


def test_validation_is_told_as_loss_and_perplexity(
    pretrained: tuple[pathlib.Path, dict[str, Any]],
) -> None:
    folder, results = pretrained
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines]
    assert len(losses) == 2 and losses[1] < losses[0] < math.log(640) + 0.5
    assert lines[1]["validation_perplexity"] == pytest.approx(math.exp(losses[1]))
    assert "validation_accuracy" not in lines[1]
    assert results["best_step"] == 20
    assert results["validation"] == {
        "loss": losses[1],
        "perplexity": lines[1]["validation_perplexity"],
    }
    assert results["test"] == {"loss": None}  # a folder of text has no test split
    assert json.loads((folder / "results.json").read_text()) == results


def test_evaluate_measures_the_same(
    pretrained: tuple[pathlib.Path, dict[str, Any]], data_dir: pathlib.Path
) -> None:
    folder, results = pretrained
    found = evaluate(str(folder), split="validation", data_dir=str(data_dir))
    assert found["task"] == "text_pretrain"
    assert found["loss"] == pytest.approx(results["validation"]["loss"], rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))


def test_what_has_no_answers_gives_none(
    pretrained: tuple[pathlib.Path, dict[str, Any]], data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder, _ = pretrained
    with pytest.raises(UserError, match="text_pretrain has no right answers"):
        evaluate(
            str(folder),
            split="validation",
            data_dir=str(data_dir),
            output=str(tmp_path / "answers.jsonl"),
        )


def test_finetuning_starts_from_a_pretrained_student(
    pretrained: tuple[pathlib.Path, dict[str, Any]], data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The embedding has rows for the sentinels, so the vocabulary without them fits it."""
    folder, _ = pretrained
    results = train_tiny(
        data_dir,
        tmp_path / "finetuned",
        mixture_or_task_name="tiny_dss_gpt",
        initial_checkpoint_path=str(folder),
        learning_rate=0.0,
        train_steps=1,
        eval_period=1,
    )
    assert set(results["test"]) == {"accuracy", "examples"}
    pairs = zip(read_parameters(folder), read_parameters(tmp_path / "finetuned"), strict=True)
    for one, other in pairs:
        np.testing.assert_array_equal(one, other)


def test_a_datasets_inputs_are_pretrained_on_from_a_pretrained_student(
    pretrained: tuple[pathlib.Path, dict[str, Any]], data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    folder, _ = pretrained
    results = train_tiny(
        data_dir,
        tmp_path / "adapted",
        mixture_or_task_name="tiny_pretrain",
        initial_checkpoint_path=str(folder),
    )
    assert results["test"]["perplexity"] == pytest.approx(math.exp(results["test"]["loss"]))


def test_an_embedding_without_room_for_the_sentinels_is_refused(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UserError) as error:
        train_tiny(data_dir, tmp_path, student_overrides={**STUDENT, "vocab_size": 300})
    assert str(error.value) == (
        "the vocabulary has 259 pieces and 100 sentinels, the student t5_1_1_tiny embeds 300; set "
        "STUDENT_OVERRIDES = {'vocab_size': 384}, or more"
    )


def test_the_best_step_is_the_earliest_of_the_lowest_loss() -> None:
    progress = steps.Progress({})
    for step, loss in [(2, 3.0), (4, 2.5), (6, 2.5), (8, 2.75)]:
        progress.add_evaluation(step, {"loss": loss, "perplexity": math.exp(loss)})
    assert progress.best_step == 4
    assert progress.values_at(8) == {"loss": 2.75, "perplexity": math.exp(2.75)}
    assert progress.values_at(5) is None
