"""What the end of a run tells to do next: commands that work on it."""

from __future__ import annotations

import pytest

from distill_sbs.training.metrics_file import RunResults
from distill_sbs.training.run_log import print_summary

NONE: dict[str, float | None] = {"accuracy": None}


def list_next(
    capsys: pytest.CaptureFixture[str],
    validation: dict[str, float | None],
    test: dict[str, float | None],
    data_dir: str | None = None,
) -> list[str]:
    """The commands below 'next:', without what they have in common."""
    results: RunResults = {
        "mixture": "tiny_dss_gpt",
        "data_fraction": 1.0,
        "rationale_rate": 1.0,
        "seed": 0,
        "train_steps": 2,
        "best_step": 2,
        "validation": validation,
        "test": test,
    }
    print_summary(results, [], "my runs/one", None, data_dir, ["tiny.py"])
    said = capsys.readouterr().out
    assert "written to my runs/one\nnext:\n" in said
    lines = said.partition("next:\n")[2].splitlines()
    start = "  python -m distill_sbs."
    assert all(line.startswith(start) for line in lines)
    return [line.removeprefix(start) for line in lines]


@pytest.mark.parametrize(
    ("validation", "test", "split"),
    [
        ({"accuracy": 0.5}, {"accuracy": 0.25}, "test"),
        ({"accuracy": 0.5}, NONE, "validation"),
        ({"accuracy": 0.5, "loss": 1.5, "perplexity": 4.5}, {"accuracy": 0.25}, "test"),
        ({"accuracy": 0.5, "loss": 1.5, "perplexity": 4.5}, NONE, "validation"),
        (NONE, {"accuracy": 0.25}, "test"),
        (NONE, NONE, None),
    ],
)
def test_a_split_that_is_there_is_evaluated(
    capsys: pytest.CaptureFixture[str],
    validation: dict[str, float | None],
    test: dict[str, float | None],
    split: str | None,
) -> None:
    commands = list_next(capsys, validation, test, "prepared")
    of_split = f'evaluate --checkpoint="my runs/one" --split={split} --output=answers.jsonl'
    expected = [f"{of_split} --task_file=tiny.py --data_dir=prepared"] if split else []
    assert commands == [
        *expected,
        'infer --checkpoint="my runs/one" --input=in.jsonl --output=out.jsonl',
        'convert --input="my runs/one" --output="my runs/one/huggingface" --to=hf',
        "report 'my runs/one' --output=\"my runs/one/report\"",
    ]


def test_what_was_pretrained_is_trained_on_and_not_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = {"loss": 2.0, "perplexity": 7.4}
    first, second, *others = list_next(capsys, {**found}, {"loss": None}, "prepared")
    where = '--checkpoint="my runs/one" --split=validation --task_file=tiny.py'
    assert first == f"evaluate {where} --data_dir=prepared"
    assert second == (
        "train --gin_file=EXPERIMENT.gin "
        """--gin.INITIAL_CHECKPOINT_PATH="'my runs/one'" """
        """--gin.DATA_DIR="'prepared'" --task_file=tiny.py"""
    )
    assert [command.split()[0] for command in others] == ["convert", "report"]
