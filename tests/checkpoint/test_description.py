"""description: what a checkpoint says of itself, and which other options may continue a run."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import model_examples
import numpy as np
import pytest

from distill_sbs.checkpoint import checkpointer, description, steps
from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.config import TrainConfig
from distill_sbs.data import sentencepiece_model
from distill_sbs.errors import UserError
from distill_sbs.option_fields import Option, OptionError
from distill_sbs.train import check_run

CONFIG = TrainConfig.from_options(
    model_dir="runs/mine",
    train_steps=100,
    initial_checkpoint_path="gs://bucket/checkpoint_1000000",
    mixture_or_task_name="tiny_dss_gpt",
    vocabulary_file="bytes",
    task_feature_lengths={"inputs": 32, "targets": 16},
    batch_size=8,
    student="t5_1_1_tiny",
    student_overrides={"vocab_size": 640, **model_examples.ONE_LAYER},
)

# Values to change an option to: of each the first that it takes.
OTHER_VALUES: tuple[Any, ...] = (
    "tiny_finetune",
    "embedded",
    "t5_1_0_small",
    "adafactor",
    "agreeing",
    {**CONFIG.student.overrides, "emb_dim": 24},
    {"inputs": 64, "targets": 16},
    4,
    0.5,
    True,
    False,
    100,
    5e-6,
    "constant",
)


def change(option: Option, config: TrainConfig = CONFIG) -> TrainConfig:
    """The configuration with another value of that option alone."""
    if option.macro == "VOCABULARY_FILE":
        return config.change(vocabulary_file="embedded")
    for value in OTHER_VALUES:
        try:
            changed = config.change(**{option.macro.lower(): value})
        except OptionError:
            continue
        if changed != config:
            return changed
    raise AssertionError(f"add a value for {option.macro} to OTHER_VALUES")


def describe(config: TrainConfig) -> RunDescription:
    # A selection is known by its hash; here any text is one.
    vocabulary = sentencepiece_model.describe(config.data.vocabulary_file)
    return RunDescription.of_run(config, vocabulary, config.data.selection)


def as_saved(config: TrainConfig) -> RunDescription:
    """As a checkpoint gives it back."""
    return RunDescription.from_json(json.loads(json.dumps(describe(config).to_json())), "here")


OPTIONS = list(TrainConfig.options())


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.macro)
def test_every_option_is_identity_or_says_why_not(option: Option) -> None:
    changed = describe(change(option))
    if option.may_change:
        description.check_same_run("runs/mine", as_saved(CONFIG), changed)
        return
    with pytest.raises(UserError) as error:
        description.check_same_run("runs/mine", as_saved(CONFIG), changed)
    told = str(error.value)
    assert "MODEL_DIR=runs/mine holds a different run" in told
    assert f"{option.macro}: " in told or f"{option.macro}[" in told
    assert " there, " in told and " now" in told


def test_what_may_change_is_this_and_no_more() -> None:
    assert {option.macro for option in OPTIONS if option.may_change} == {
        "MODEL_DIR",
        "DATA_DIR",
        "TEXT_DIR",
        "CHECKPOINT_PERIOD",
        "KEEP_CHECKPOINTS",
        "LOG_PERIOD",
        "EVAL_PERIOD",
        "EVAL_BATCH_SIZE",
        "VALIDATION_LOSS",
        "NUM_MODEL_PARTITIONS",
        "NUM_SLICES",
        "FSDP",
        "NUM_MICROBATCHES",
    }


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.macro)
def test_a_run_in_model_dir_is_compared(
    option: Option, tiny_data: pathlib.Path, saved_run: TrainConfig, tmp_path: pathlib.Path
) -> None:
    """The same over a real checkpoint, by the function that train and --dry_run ask."""
    changed = change(option, saved_run)
    if option.macro == "SELECTION":
        chosen = tmp_path / "chosen.json"
        chosen.write_text('{"examples": {"tiny": ["train-1"]}}')
        changed = saved_run.change(selection=str(chosen))
    if option.macro in ("MODEL_DIR", "DATA_DIR"):  # another run; data are not looked at here
        return
    if option.may_change:
        assert check_run(changed).continues_from == 3
        return
    with pytest.raises(UserError, match="holds a different run"):
        check_run(changed)


@pytest.fixture(scope="module")
def saved_run(tiny_data: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run whose MODEL_DIR holds a checkpoint."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    config = CONFIG.change(
        model_dir=str(folder), data_dir=str(tiny_data), initial_checkpoint_path=None
    )
    manager = checkpointer.Checkpointer(str(folder))
    manager.save(3, {"step": np.int32(3)}, steps.Progress({}), describe(config))
    manager.close()
    return config


def test_old_and_new_values_are_told() -> None:
    with pytest.raises(UserError, match="LEARNING_RATE: 5e-05 there, 0.001 now"):
        description.check_same_run(
            "x", as_saved(CONFIG), describe(CONFIG.change(learning_rate=1e-3))
        )
    with pytest.raises(UserError, match="TRAIN_STEPS: 100 there, 200 now.*INITIAL_CHECKPOINT_PATH"):
        description.check_same_run("x", as_saved(CONFIG), describe(CONFIG.change(train_steps=200)))


@pytest.mark.parametrize(
    "same",
    [
        {"student_overrides": {**CONFIG.student.overrides, "remat_policy": "full"}},
        {"initial_checkpoint_path": "gs://bucket/checkpoint_1000000/"},
        {"student_overrides": {**CONFIG.student.overrides, "mlp_activations": ["gelu", "linear"]}},
        {"task_feature_lengths": {"inputs": 32, "targets": 16, "task_ids": 16}},
        {"learning_rate": 0.00005},
    ],
    ids=lambda same: next(iter(same)),
)
def test_other_words_for_the_same_continue(same: dict[str, Any]) -> None:
    description.check_same_run("x", as_saved(CONFIG), describe(CONFIG.change(**same)))


def test_the_vocabulary_is_known_by_its_content(tmp_path: pathlib.Path) -> None:
    from distill_sbs import resources

    copy = tmp_path / "copy.model"
    copy.write_bytes(resources.embedded_vocabulary().read_bytes())
    before = CONFIG.change(vocabulary_file="embedded")
    after = CONFIG.change(vocabulary_file=str(copy))
    description.check_same_run("x", as_saved(before), describe(after))
    with pytest.raises(UserError, match="VOCABULARY_FILE: 'embedded' .* there, 'bytes'"):
        description.check_same_run("x", as_saved(before), describe(CONFIG))


def test_round_trip_through_json() -> None:
    again = as_saved(CONFIG)
    assert again == describe(CONFIG)
    assert again.options["LEARNING_RATE"] == 5e-5
    assert again.unknown_options() == []


# As distill_sbs 0.1 wrote it.
FORMAT_1: dict[str, Any] = {
    "format_version": 1,
    "student": CONFIG.student.architecture().to_dict(),
    "vocabulary": {"kind": "bytes", "size": 259},
    "prefixes": {"label": "predict: ", "rationale": "explain: "},
    "mixture": "tiny_dss_gpt",
    "task_feature_lengths": {"inputs": 32, "targets": 16, "task_ids": 16},
    "max_decode_tokens": 64,
    "run": {
        "data_fraction": 1.0,
        "fraction_seed": 0,
        "rationale_rate": 1.0,
        "batch_size": 8,
        "num_microbatches": 1,
        "pack": True,
        "optimizer": "adamw",
        "random_seed": 0,
        "initial_checkpoint_path": "gs://bucket/checkpoint_1000000",
    },
}


def test_checkpoints_of_the_first_version_continue() -> None:
    saved = RunDescription.from_json(FORMAT_1, "here")
    description.check_same_run("x", saved, describe(CONFIG))
    for changes in ({"batch_size": 16}, {"max_decode_tokens": 8}, {"dropout_rate": 0.0}):
        with pytest.raises(UserError, match=next(iter(changes)).upper()):
            description.check_same_run("x", saved, describe(CONFIG.change(**changes)))
    unknown = saved.unknown_options()
    # Options of later versions may join them.
    assert {
        "TRAIN_STEPS",
        "LABEL_SMOOTHING",
        "Z_LOSS",
        "LEARNING_RATE",
        "WARMUP_STEPS",
        "WEIGHT_DECAY",
        "GRADIENT_CLIP_NORM",
        "EVAL_EXAMPLES",
    } <= set(unknown)
    assert not {"BATCH_SIZE", "RANDOM_SEED", "DROPOUT_RATE", "MAX_DECODE_TOKENS"} & set(unknown)


def test_an_option_newer_than_the_run_had_its_default() -> None:
    saved = describe(CONFIG).to_json()
    del saved["options"]["WEIGHT_DECAY"]
    before = RunDescription.from_json(saved, "here")
    description.check_same_run("x", before, describe(CONFIG))
    with pytest.raises(UserError, match="WEIGHT_DECAY: 0.0 there, 0.1 now"):
        description.check_same_run("x", before, describe(CONFIG.change(weight_decay=0.1)))


def test_converted_checkpoints_of_the_first_version() -> None:
    converted = {**FORMAT_1, "mixture": None, "run": {"converted_from": "t5_base"}}
    saved = RunDescription.from_json(converted, "here")
    assert (saved.mixture, saved.converted_from, saved.options) == (None, "t5_base", {})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 4}, "here has checkpoint format 4, expected one of"),
        ({"format_version": None}, "here has checkpoint format None"),
        ({"student": {"emb_dims": 3}}, "emb_dim"),
        ({"student": {"num_encoder_layers": 10**9}}, "num_encoder_layers"),
        ({"student": 3}, "does not hold what it should"),
        ({"vocabulary": None}, "does not hold what it should"),
        ({"task_feature_lengths": [1]}, "does not hold what it should"),
        ({"run": "x"}, "does not hold what it should"),
    ],
)
def test_what_is_no_description_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunDescription.from_json({**FORMAT_1, **changes}, "here")
