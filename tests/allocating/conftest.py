"""Options of allocations on `tiny`."""

from __future__ import annotations

import pathlib
from typing import Any

import model_examples
import pytest

from distill_sbs.allocating.options import AllocateConfig


@pytest.fixture
def make_config(tiny_data: pathlib.Path, tmp_path: pathlib.Path):
    """Options of a run on `tiny`; keyword arguments change them."""

    def make(**changes: Any) -> AllocateConfig:
        values: dict[str, Any] = {
            "model_dir": str(tmp_path / "run"),
            "mixture_or_task_name": "tiny_label",
            "capabilities": {"label": "tiny_label", "rationale": "tiny_rationale_gpt"},
            "budget_tokens": 8000,
            "interval_tokens": 1000,
            "policy": "linucb",
            "warmup_intervals": 1,
            "token_cost": 0.0,
            "probes": 4,
            "evaluation_share": 0.3,
            "task_feature_lengths": {"inputs": 32, "targets": 16},
            "train_steps": 1000,
            "batch_size": 8,
            "initial_checkpoint_path": None,
            "vocabulary_file": "bytes",
            "data_dir": str(tiny_data),
            "student": "t5_1_1_tiny",
            "student_overrides": {"vocab_size": 384, **model_examples.ONE_LAYER},
            "dropout_rate": 0.1,
            "log_period": 1,
            "eval_examples": 2,
            "eval_batch_size": 8,
            "max_decode_tokens": 2,
            **changes,
        }
        return AllocateConfig.from_options(**values)

    return make
