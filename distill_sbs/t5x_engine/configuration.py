"""What the gin files of `gin/t5x/` call: from our macros to T5X's arguments.

Enters: values of macros. Leaves: what T5X's train, eval and infer take for them: names of
registered, prepared tasks, an optimizer, step numbers that count pretraining. What cannot work is
answered here with one line, while T5X evaluates its configuration and before it does any work.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from t5x import adafactor, checkpoints_utils, models, optimizers, state_utils
from tensorflow.io import gfile

from distill_sbs import config, constants
from distill_sbs.data import registration, settings, vocabulary
from distill_sbs.data.selection import read_selection
from distill_sbs.errors import UserError
from distill_sbs.model.parameters import PyTree
from distill_sbs.t5x_engine.messages import drop_expected_warnings, one_line_errors
from distill_sbs.t5x_engine.options import read_options
from distill_sbs.training import optimizer as our_optimizers

# T5X restores folders of this name only, and takes the step from it.
_STEP_FOLDER = re.compile(r"checkpoint_(\d+)")


# The value of %UNSET in gin/t5x/*.gin. gin's own %gin.REQUIRED would stop at a traceback.
UNSET = "required, and not set"


def _check_required(macros: Mapping[str, object]) -> None:
    unset = [name for name, value in macros.items() if value == UNSET]
    if not unset:
        return
    plural = "s" if len(unset) > 1 else ""
    raise UserError(
        f"required macro{plural} not set: {', '.join(unset)}; give --gin.{unset[0]}=… (text in "
        "quotes of its own: \"'…'\"), or an experiment file after gin/t5x/*.gin, such as "
        "--gin_file=gin/experiments/cqa_dss_base.gin"
    )


# ---------------------------------- data -------------------------------------


@one_line_errors
def prepared_mixture(
    name: str,
    task_feature_lengths: Mapping[str, int],
    required: Mapping[str, object],
    data_dir: str | None = None,
    data_fraction: float = 1.0,
    fraction_seed: int = 0,
    rationale_rate: float = 1.0,
    vocabulary_file: str | None = None,
    task_files: Sequence[str] = (),
    module: str | None = None,
    text_dir: str | None = None,
    rationale_filter: str = "all",
    rationales_per_example: int = 1,
    mutual_information_weight: float = 0.0,
    selection: str | None = None,
    shared_encoder: bool = False,
) -> str:
    """Puts the data settings into force, registers all tasks, and returns the mixture's `name`.

    Args:
      name: MIXTURE_OR_TASK_NAME.
      task_feature_lengths: TASK_FEATURE_LENGTHS, checked.
      required: macros that must be set, by name.
      data_dir: see `settings.DataSettings`, as for the next four.
      data_fraction: share of the training examples.
      fraction_seed: which ones.
      rationale_rate: λ.
      vocabulary_file: VOCABULARY_FILE, checked.
      task_files: a user's registration files.
      module: a module that registers tasks when imported.
      text_dir: TEXT_DIR.
      rationale_filter: RATIONALE_FILTER, checked.
      rationales_per_example: RATIONALES_PER_EXAMPLE; T5X, which knows no epochs, takes 1 alone.
      mutual_information_weight: MUTUAL_INFORMATION_WEIGHT; T5X, which pairs nothing, takes 0 alone.
      selection: SELECTION, checked.
      shared_encoder: SHARED_ENCODER; T5X, which packs an input with one target, takes False alone.

    Raises:
      UserError: a macro is unset or out of range, the mixture unknown or not prepared; one line.
    """
    drop_expected_warnings()
    _check_required(required)
    if rationales_per_example != 1:
        raise UserError(
            f"RATIONALES_PER_EXAMPLE={rationales_per_example}: T5X's data have no epochs in which "
            "rationales could take turns; use 1, or python -m distill_sbs.train"
        )
    if mutual_information_weight != 0:
        raise UserError(
            f"MUTUAL_INFORMATION_WEIGHT={mutual_information_weight}: T5X draws labels and "
            "rationales apart, so no batch has those of an example together; use 0.0, or "
            "python -m distill_sbs.train"
        )
    if shared_encoder:
        raise UserError(
            f"SHARED_ENCODER={shared_encoder}: T5X lays every target beside an input of its own, "
            "and its decoder starts from one token; use False, or python -m distill_sbs.train"
        )
    settings.use(
        settings.DataSettings(
            data_dir,
            data_fraction,
            fraction_seed,
            rationale_rate,
            vocabulary_file,
            text_dir=text_dir,
            rationale_filter=rationale_filter,
            selection=None if selection is None else read_selection(selection),
        )
    )
    feature_lengths(task_feature_lengths)
    for file in task_files:
        if not os.path.isfile(file):
            raise UserError(f"TASK_FILES: {file!r}: no such file")
    registration.load_task_files(task_files)
    if module:
        importlib.import_module(module)
    mixture = registration.get_mixture_or_task(name)
    registration.check_selection(mixture)
    if any(registration.find_manifest(task) for task in registration.tasks_of(mixture)):
        raise UserError(
            f"MIXTURE_OR_TASK_NAME={name!r}: T5X knows no soft labels; train on a contrast with "
            "python -m distill_sbs.train"
        )
    registration.prepare_missing(mixture)
    if vocabulary.find_trimmed(vocabulary.load(vocabulary_file)) is not None:
        raise UserError(
            f"VOCABULARY_FILE={vocabulary_file!r} is trimmed, and T5X does not refuse texts that "
            "it does not cover; give the whole SentencePiece model, or train with python -m "
            "distill_sbs.train"
        )
    return name


@one_line_errors
def feature_lengths(task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
    """TASK_FEATURE_LENGTHS, checked, with the length of `task_ids`, which may be left out.

    Raises:
      UserError: a feature that is unknown or missing, or a length that is none; one line.
    """
    batch = config.BatchConfig(task_feature_lengths=task_feature_lengths, batch_size=1)
    return dict(batch.task_feature_lengths)


def evaluation_task(mixture: str) -> str:
    """The name of the task whose decoded answers are scored: of a DSS mixture, the label task."""
    return registration.evaluation_task(registration.get_mixture_or_task(mixture)).name


def decoding_lengths(
    task_feature_lengths: Mapping[str, int], max_decode_tokens: int
) -> dict[str, int]:
    """Feature lengths for decoding: T5X decodes as many tokens as targets have."""
    return {
        constants.INPUTS: feature_lengths(task_feature_lengths)[constants.INPUTS],
        constants.TARGETS: max_decode_tokens,
        constants.TASK_IDS: max_decode_tokens,
    }


def data_seed(random_seed: int | None, model_dir: str) -> int | None:
    """Seed of the training order: another one after every restart from another step.

    With one seed T5X would begin the same order again after a restart; with none, its own choice,
    no run can be repeated.
    """
    if random_seed is None:
        return None
    step = checkpoints_utils.latest_step(model_dir) or 0
    return int(np.random.SeedSequence([random_seed, step]).generate_state(1)[0] % 2**31)


@one_line_errors
def training_batch_size(batch_size: int, num_microbatches: int) -> int:
    """BATCH_SIZE, checked: T5X would stop at it by an assertion, after loading everything.

    Raises:
      UserError: it does not split into microbatches; one line.
    """
    if batch_size % num_microbatches:
        raise UserError(
            f"BATCH_SIZE={batch_size} is not a multiple of NUM_MICROBATCHES={num_microbatches}; "
            f"use {-(-batch_size // num_microbatches) * num_microbatches}"
        )
    return batch_size


# ---------------------------------- checkpoints ------------------------------


def absolute_path(path: str) -> str:
    """MODEL_DIR where it is relative to the working directory: T5X saves to absolute paths only."""
    return path if "://" in path else os.path.abspath(path)


@one_line_errors
def checkpoint_period(checkpoint_period: int | None, eval_period: int) -> int:
    """CHECKPOINT_PERIOD, or EVAL_PERIOD where it is None.

    Raises:
      UserError: neither is a multiple of the other, which T5X's loop demands; one line.
    """
    chosen = checkpoint_period or eval_period
    if chosen % eval_period and eval_period % chosen:
        raise UserError(
            f"CHECKPOINT_PERIOD={chosen} and EVAL_PERIOD={eval_period}: T5X wants one to be a "
            f"multiple of the other; use CHECKPOINT_PERIOD={eval_period}"
        )
    return chosen


@one_line_errors
def step_folder(path: str | None, macro: str) -> str | None:
    """A checkpoint's path as T5X takes it: None, or the folder of one step.

    Args:
      path: such a folder, or a MODEL_DIR of T5X (its newest step).
      macro: the name of the macro that it comes from, for messages.

    Raises:
      UserError: there is no T5X checkpoint; one line.
    """
    if path is None:
        return None
    path = absolute_path(path.rstrip("/"))
    if gfile.exists(path + ".index"):
        raise UserError(
            f"{macro}={path!r} is a TensorFlow checkpoint; convert it with T5X's "
            "t5x/scripts/convert_tf_checkpoint.py first"
        )
    newest = checkpoints_utils.latest_step(path)
    if newest is not None:
        path = os.path.join(path, f"checkpoint_{newest}")
    if not gfile.isdir(path):
        raise UserError(f"{macro}={path!r}: no such folder")
    # The older layout has a file `checkpoint`, the newer one a folder `state`.
    holds_one = any(gfile.exists(os.path.join(path, part)) for part in ("checkpoint", "state"))
    if not holds_one or _STEP_FOLDER.fullmatch(os.path.basename(path)) is None:
        raise UserError(
            f"{macro}={path!r} is no checkpoint of T5X (a folder checkpoint_STEP); "
            "T5X restores its own only: python -m distill_sbs.convert --to=t5x makes one of a "
            "HuggingFace folder or of a checkpoint of ours"
        )
    return path


def _initial_step(initial_checkpoint: str | None) -> int:
    if initial_checkpoint is None:
        return 0
    match = _STEP_FOLDER.fullmatch(os.path.basename(initial_checkpoint))
    assert match, initial_checkpoint
    return int(match[1])


def total_steps(train_steps: int, initial_checkpoint: str | None) -> int:
    """TRAIN_STEPS counts our own steps; T5X goes on counting from the checkpoint it starts from.

    Not T5X's `relative_steps`: these count from whatever is restored, so a run that was
    interrupted would begin its TRAIN_STEPS anew.
    """
    return _initial_step(initial_checkpoint) + train_steps


@one_line_errors
def parameters_only(
    saved: Mapping[str, PyTree], wanted: Mapping[str, PyTree], *, is_resuming: bool = False
) -> Mapping[str, PyTree]:
    """T5X's `state_transformation_fns`: the optimizer begins anew, as in our own trainer.

    Args:
      saved: the checkpoint's state dictionary.
      wanted: that of the run.
      is_resuming: an interrupted run goes on with its own optimizer state.

    Raises:
      UserError: a parameter is missing in the checkpoint, or unknown to the network; one line.
        (T5X would initialise a missing one at random.)
    """
    if is_resuming:
        return saved
    there = set(state_utils.flatten_state_dict(saved["target"]))
    here = set(state_utils.flatten_state_dict(wanted["target"]))
    if there != here:
        name = min(there ^ here)
        where = "not in the checkpoint" if name in here else "in the checkpoint only"
        raise UserError(
            f"INITIAL_CHECKPOINT_PATH: {len(there ^ here)} parameters do not fit, {name} is {where}"
            "; give T5X's model file that belongs to the checkpoint, such as "
            "--gin_file=t5x/examples/t5/t5_1_1/base.gin"
        )
    return {"target": saved["target"], "state": {"step": saved["state"]["step"]}}


# ---------------------------------- model ------------------------------------


@one_line_errors
def stock_model(build: Callable[[], models.EncoderDecoderModel]) -> models.EncoderDecoderModel:
    """T5X's own model as its model file configures it, which must have been given.

    Args:
      build: `@models.EncoderDecoderModel`.

    Raises:
      UserError: nobody has said which network it has; one line.
    """
    try:
        return build()
    except TypeError as error:
        if "'module'" not in str(error):
            raise
        raise UserError(
            "no network is configured: give T5X's model file before this project's, such as "
            "--gin_file=t5x/examples/t5/t5_1_1/base.gin"
        ) from error


# ---------------------------------- optimizer --------------------------------


@one_line_errors
def learning_rate(
    train_steps: int, initial_checkpoint: str | None = None, **options: object
) -> Callable[[jax.Array], jax.Array]:
    """Our schedule as a function of T5X's step number, which counts pretraining.

    Args:
      train_steps: TRAIN_STEPS.
      initial_checkpoint: the step's folder that the run starts from.
      **options: of `config.OptimizerConfig`, in the place of their macros.
    """
    # Whatever updates the parameters, T5X's own optimizers too, the schedule is ours.
    chosen = read_options(config.OptimizerConfig, **{"optimizer": "adamw", **options})
    schedule = our_optimizers.make_schedule(chosen, train_steps)
    first_step = _initial_step(initial_checkpoint)
    return lambda step: jnp.asarray(schedule(step - first_step), jnp.float32)


@one_line_errors
def optimizer(
    name: str | optimizers.OptimizerDef,
    train_steps: int,
    initial_checkpoint: str | None = None,
    **options: object,
) -> optimizers.OptimizerDef:
    """OPTIMIZER for T5X: 'adamw' is our own trainer's, step for step; 'adafactor' is T5X's.

    An optimizer of T5X (`--gin.OPTIMIZER=@adafactor.Adafactor()`) is passed on as it is; its
    learning rate is `learning_rate`'s.

    Args:
      name: OPTIMIZER.
      train_steps: TRAIN_STEPS.
      initial_checkpoint: the step's folder that the run starts from.
      **options: of `config.OptimizerConfig`, in the place of their macros.

    Raises:
      UserError: an unknown name, or a setting that T5X's Adafactor does not have; one line.
    """
    if isinstance(name, optimizers.OptimizerDef):
        return name
    chosen = read_options(config.OptimizerConfig, optimizer=name, **options)
    if chosen.name != "adafactor":
        return optimizers.OptaxWrapper(our_optimizers.make_optimizer(chosen, train_steps))
    if chosen.weight_decay:
        raise UserError(
            f"WEIGHT_DECAY={chosen.weight_decay} with OPTIMIZER='adafactor': T5X's Adafactor "
            "decays weights by another rule; use 'adamw', or set WEIGHT_DECAY = 0.0"
        )
    return adafactor.Adafactor(
        step_offset=_initial_step(initial_checkpoint),
        logical_factor_rules=adafactor.standard_logical_factor_rules(),
        global_norm_clip_threshold=chosen.gradient_clip_norm,
    )
