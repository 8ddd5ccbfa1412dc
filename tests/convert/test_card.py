"""card: what stands beside an export, read again by HuggingFace's own reader."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import huggingface_hub
import pytest
from source_examples import BYTE_SIZED, Memory

from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.convert.huggingface.card import write_card


def make_source(tmp_path: pathlib.Path, **fields: object) -> Memory:
    """A student as a run leaves it: step 40 was the best."""
    source = Memory(**BYTE_SIZED)
    step = tmp_path / "run" / "checkpoints" / "40"
    step.mkdir(parents=True)
    results = {"best_step": 40, "validation": {"accuracy": 0.5}, "test": {"accuracy": 0.4375}}
    (tmp_path / "run" / "results.json").write_text(json.dumps(results))
    description = RunDescription(
        student=source.config,
        vocabulary={"kind": "bytes", "size": 384},
        mixture="cqa_dss_palm",
        task_feature_lengths={"inputs": 64, "targets": 32},
        max_decode_tokens=16,
        options={
            "STUDENT": "t5_1_1_tiny",
            "MIXTURE_OR_TASK_NAME": "cqa_dss_palm",
            "DATA_FRACTION": 0.25,
            "RATIONALE_RATE": 1.0,
            "TRAIN_STEPS": 100,
            "INITIAL_CHECKPOINT_PATH": None,
        },
    )
    source.location = str(step)
    source.description = dataclasses.replace(description, **fields)
    return source


def test_a_run_of_ours(tmp_path: pathlib.Path) -> None:
    text = write_card(make_source(tmp_path), "cc-by-4.0")
    card = huggingface_hub.ModelCard(text)
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "transformers"
    found = {each.dataset_split: each.metric_value for each in card.data.eval_results}
    assert found == {"validation": 0.5, "test": 0.4375}
    for line in (
        "# t5_1_1_tiny on cqa_dss_palm",
        "| trained on (data, method, teacher) | cqa_dss_palm |",
        "| share of the training examples | 0.25 |",
        "| rationale rate λ | 1.0 |",
        "| started from | random parameters |",
        "| step | 40 of 100 |",
        "| accuracy on test | 43.75% |",
        'tokens = tokenizer("predict: " + text, return_tensors="pt")',
        "MIXTURE_OR_TASK_NAME = 'cqa_dss_palm'",
    ):
        assert line in text.replace("`cqa_dss_palm`", "cqa_dss_palm").splitlines() or line in text


def test_results_of_another_step_are_not_told(tmp_path: pathlib.Path) -> None:
    source = make_source(tmp_path)
    (tmp_path / "run" / "results.json").write_text('{"best_step": 80, "test": {"accuracy": 1.0}}')
    text = write_card(source)
    assert "accuracy on" not in text
    assert huggingface_hub.ModelCard(text).data.license == "other"
    assert "Not stated." in text
    for broken in ("{", "[]", '{"best_step": 40, "test": {"accuracy": "high"}}'):
        (tmp_path / "run" / "results.json").write_text(broken)
        assert write_card(source) == text


def test_a_checkpoint_of_elsewhere(tmp_path: pathlib.Path) -> None:
    source = Memory(**BYTE_SIZED)
    source.location = str(tmp_path / "checkpoint_1000000")
    text = write_card(source)
    assert "A T5, converted by" in text
    assert "How it was trained" not in text
    assert 'tokenizer("" + text' in text
    huggingface_hub.ModelCard(text)


@pytest.mark.parametrize("hostile", ["a|b", "```\n# Title", "<script>x</script>", "x" * 10_000])
def test_what_a_checkpoint_says_stays_text(tmp_path: pathlib.Path, hostile: str) -> None:
    source = make_source(
        tmp_path,
        mixture=hostile,
        options={"STUDENT": hostile, "INITIAL_CHECKPOINT_PATH": hostile},
        prefixes={"label": hostile},
    )
    text = write_card(source)
    outside = "".join(text.split("```")[::2])  # inside a block nothing is read as a mark
    assert "<script>" not in outside
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(line.replace("\\|", "").count("|") == 3 for line in rows)
    assert text.count("```") == 4  # two blocks
    assert "\n# Title" not in text
    assert huggingface_hub.ModelCard(text).data.library_name == "transformers"
