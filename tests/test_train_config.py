"""config: every option's type and range, one clear line for what cannot be, and gin text of it."""

from __future__ import annotations

import math
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from distill_sbs import config as configs
from distill_sbs.config import PrecompileConfig, TrainConfig
from distill_sbs.errors import UserError
from distill_sbs.option_fields import OptionError, Options

MINIMAL: dict[str, Any] = {
    "model_dir": "runs/mine",
    "train_steps": 100,
    "initial_checkpoint_path": None,
    "mixture_or_task_name": "cqa_dss_palm",
    "vocabulary_file": "bytes",
    "task_feature_lengths": {"inputs": 32, "targets": 16},
    "batch_size": 8,
}


def make(**changes: Any) -> TrainConfig:
    return TrainConfig.from_options(**{**MINIMAL, **changes})


def message(**changes: Any) -> str:
    with pytest.raises(UserError) as error:
        make(**changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_defaults_are_the_reference_s() -> None:
    config = make()
    assert config.optimizer == configs.OptimizerConfig(
        name="adamw",
        learning_rate=5e-5,
        warmup_steps=0,
        weight_decay=0.0,
        gradient_clip_norm=1.0,
    )
    assert config.objective.rationale_rate == 1.0
    assert config.student.architecture().dropout_rate == 0.1


def test_options_are_built_part_by_part_or_by_name() -> None:
    parts = TrainConfig(
        run=configs.RunConfig(model_dir="runs/mine", train_steps=100, initial_checkpoint_path=None),
        data=configs.DataConfig(mixture_or_task_name="cqa_dss_palm", vocabulary_file="bytes"),
        batch=configs.BatchConfig(
            task_feature_lengths={"inputs": 32, "targets": 16, "task_ids": 16}, batch_size=8
        ),
    )
    assert parts == make()


def test_task_ids_are_as_long_as_targets() -> None:
    lengths = make().batch.task_feature_lengths
    assert lengths == {"inputs": 32, "targets": 16, "task_ids": 16}


def test_whole_numbers_become_floats_where_floats_are_meant() -> None:
    rate = make(learning_rate=1).optimizer.learning_rate
    assert (type(rate), rate) == (float, 1.0)


@pytest.mark.parametrize("config_class", [TrainConfig, PrecompileConfig])
def test_every_option_says_what_it_is(config_class: type[Options]) -> None:
    options = list(config_class.options())
    assert len({option.macro for option in options}) == len(options)
    for option in options:
        assert option.macro == option.macro.upper()
        assert option.help and "\n" not in option.help
        if not option.is_required:
            assert option.convert(option.default) == option.default


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"batch_size": "64"},
            "BATCH_SIZE='64' is text; expected a whole number ≥ 1: --gin.BATCH_SIZE=64",
        ),
        (
            {"train_steps": 1e2},
            "TRAIN_STEPS=100.0 is a float; expected a whole number ≥ 1: --gin.TRAIN_STEPS=100",
        ),
        ({"train_steps": True}, "TRAIN_STEPS=True is a boolean"),
        ({"train_steps": 0}, "TRAIN_STEPS=0; expected a whole number ≥ 1"),
        ({"batch_size": -8}, "BATCH_SIZE=-8;"),
        ({"batch_size": None}, "BATCH_SIZE=None is nothing"),
        ({"batch_size": b"64"}, "BATCH_SIZE=b'64' is a bytes"),
        ({"batch_size": 10**5000}, "a number of thousands of digits is too large"),
        ({"train_steps": 2**31}, "TRAIN_STEPS=2147483648 is too large"),
        ({"batch_size": -(10**5000)}, "a number of thousands of digits"),
        ({"random_seed": -1}, "RANDOM_SEED=-1"),
        ({"random_seed": 2**32}, "0 to 4294967295"),
        ({"fraction_seed": 0.5}, "FRACTION_SEED=0.5 is a float"),
        ({"learning_rate": math.nan}, "LEARNING_RATE=nan is not finite"),
        ({"learning_rate": math.inf}, "LEARNING_RATE=inf is not finite"),
        ({"learning_rate": -1e-4}, "LEARNING_RATE=-0.0001; expected a number ≥ 0"),
        ({"learning_rate": "1e-4"}, "--gin.LEARNING_RATE=0.0001"),
        ({"learning_rate": 10**400}, "is too large"),
        ({"learning_rate": True}, "LEARNING_RATE=True is a boolean"),
        ({"weight_decay": -1}, "WEIGHT_DECAY=-1"),
        ({"gradient_clip_norm": 0.0}, "GRADIENT_CLIP_NORM=0.0; expected a number > 0, or None"),
        ({"label_smoothing": 1.0}, "LABEL_SMOOTHING=1.0; expected a number ≥ 0 and < 1"),
        ({"z_loss": "none"}, "Z_LOSS='none' is text"),
        ({"dropout_rate": 1.0}, "DROPOUT_RATE=1.0"),
        ({"data_fraction": 0}, "DATA_FRACTION=0; expected a number > 0 and ≤ 1"),
        ({"data_fraction": 1.5}, "DATA_FRACTION=1.5"),
        ({"rationale_rate": -1}, "RATIONALE_RATE=-1"),
        ({"optimizer": "adam"}, "OPTIMIZER='adam' is unknown; did you mean adamw?"),
        ({"optimizer": 3}, "OPTIMIZER=3 is a whole number; expected one of adamw, adafactor"),
        ({"student": "t5_1_1_bsae"}, "did you mean t5_1_1_base?"),
        ({"student_overrides": {"emb_dims": 8}}, "did you mean 'emb_dim'"),
        ({"student_overrides": {"name": "x"}}, "T5Config has no field 'name'"),
        ({"student_overrides": {"emb_dim": "8"}}, "T5Config.emb_dim='8'"),
        ({"student_overrides": {"num_encoder_layers": 10**9}}, "num_encoder_layers=1000000000"),
        ({"student_overrides": {"scan_layers": 1}}, "T5Config.scan_layers=1: expected True"),
        ({"student_overrides": {"mlp_activations": "relu"}}, "expected one name, or two"),
        ({"student_overrides": {"dropout_rate": 0.5}}, "--gin.DROPOUT_RATE=0.5"),
        ({"student_overrides": {3: 4}}, "STUDENT_OVERRIDES={3: 4} has the key 3"),
        ({"student_overrides": [1]}, "STUDENT_OVERRIDES=[1] is a list"),
        ({"task_feature_lengths": {"inputs": 32}}, "does not name 'targets'"),
        ({"task_feature_lengths": {"input": 3, "targets": 4}}, "did you mean inputs?"),
        (
            {"task_feature_lengths": {"inputs": 32, "targets": 16, "task_ids": 8}},
            "'task_ids' differs from 'targets'",
        ),
        ({"task_feature_lengths": {"inputs": 32.5, "targets": 16}}, "'inputs' is 32.5"),
        ({"task_feature_lengths": {"inputs": 32, "targets": 1}}, "'targets' is 1"),
        ({"task_feature_lengths": 32}, "TASK_FEATURE_LENGTHS=32 is a whole number"),
        ({"pack": 1}, "PACK=1 is a whole number; expected True or False"),
        ({"fsdp": "yes"}, "FSDP='yes' is text; expected True or False, or None"),
        ({"eval_period": 0}, "EVAL_PERIOD=0"),
        ({"checkpoint_period": 0}, "CHECKPOINT_PERIOD=0"),
        ({"eval_examples": 0}, "EVAL_EXAMPLES=0"),
        ({"keep_checkpoints": 0}, "KEEP_CHECKPOINTS=0"),
        ({"model_dir": ""}, "MODEL_DIR='' is empty"),
        ({"model_dir": "a\0b"}, "characters in it that nobody can type"),
        ({"model_dir": "a\ud800b"}, "characters in it that nobody can type"),
        ({"model_dir": pathlib.PurePath("x")}, "MODEL_DIR=PurePosixPath('x') is a Pure"),
        ({"vocabulary_file": None}, "VOCABULARY_FILE=None is nothing; expected text in quotes"),
        ({"warmup_steps": 100}, "WARMUP_STEPS=100 is not below TRAIN_STEPS=100"),
        ({"batch_size": 9, "num_microbatches": 2}, "NUM_MICROBATCHES=2; use 10"),
        ({"batchsize": 9}, "unknown option batchsize; did you mean batch_size?"),
    ],
)
def test_what_cannot_be_is_one_line(changes: dict[str, Any], expected: str) -> None:
    assert expected in message(**changes)


def test_every_option_refuses_every_other_type() -> None:
    """An object of no type that anybody means; a new option cannot be forgotten."""
    for option in TrainConfig.options():
        with pytest.raises(OptionError, match=option.macro):
            option.convert(object())


def test_missing_options_are_named() -> None:
    with pytest.raises(UserError, match="required, and not given: .*train_steps, .*batch_size"):
        TrainConfig.from_options(model_dir="x")


def test_change_keeps_the_rest() -> None:
    config = make(learning_rate=1e-3)
    changed = config.change(batch_size=16, student="t5_1_1_tiny")
    assert (changed.batch.batch_size, changed.student.name) == (16, "t5_1_1_tiny")
    assert changed.optimizer.learning_rate == 1e-3
    assert changed.change(batch_size=8, student="t5_1_1_base") == config


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from distill_sbs import config\n"
        "print(sorted({'jax', 'tensorflow', 'gin', 'absl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
