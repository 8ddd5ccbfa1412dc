"""Every option of a run, once: its name, type, default, unit and help, and what may change later.

Enters: values from Python, or from gin files and the command line (`cli.command_line`). Leaves:
frozen dataclasses whose every value is of its type and in its range, or an `OptionError` that names
the option's macro.

An option's macro is its field's name in capitals, where the field does not say another. What has no
`may_change` belongs to the run's identity: a run continues only with the value that it began with
(`checkpoint.description`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from distill_sbs import constants
from distill_sbs import option_kinds as kinds
from distill_sbs.model.config import (
    CONFIG_NAMES,
    RESIDUAL_DROPOUT_SCHEDULES,
    T5Config,
    named_config,
)
from distill_sbs.option_fields import OptionError, Options, option

OPTIMIZERS = ("adamw", "adafactor")
# Fields of T5Config that are options by themselves, under the same names.
DROPOUT_OPTIONS = ("dropout_rate", "residual_dropout_rate", "residual_dropout_schedule")

# ---------------------------------- parts ------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Options):
    """One run: where it lies, how long it is, what it starts from."""

    model_dir: str = option(
        kinds.text("'runs/mine'"),
        "folder of this run: checkpoints, metrics, results.json",
        may_change="the folder may have moved",
    )
    train_steps: int = option(
        kinds.whole(1, example="10000"), "our own steps, pretraining not counted", unit="steps"
    )
    initial_checkpoint_path: str | None = option(
        kinds.optional(kinds.text("'gs://bucket/checkpoint_1000000'")),
        "what the parameters start from, of HuggingFace, T5X or ours; None: random initialisation",
    )
    random_seed: int = option(
        kinds.whole(0, 2**32 - 1), "of the order, of dropout and of random parameters", default=0
    )
    checkpoint_period: int | None = option(
        kinds.optional(kinds.whole(1)),
        "steps between checkpoints; None: EVAL_PERIOD",
        default=None,
        unit="steps",
        may_change="saving changes nothing that is computed",
    )
    keep_checkpoints: int = option(
        kinds.whole(1),
        "how many of the newest stay; the best one stays besides",
        default=2,
        may_change="keeping changes nothing that is computed",
    )
    log_period: int = option(
        kinds.whole(1),
        "steps between log lines",
        default=50,
        unit="steps",
        may_change="logging changes nothing that is computed",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Options):
    """What is trained on."""

    mixture_or_task_name: str = option(
        kinds.text("'cqa_dss_palm'"), "what to train on, such as 'cqa_dss_palm'"
    )
    vocabulary_file: str = option(
        kinds.text("'embedded'"),
        "a SentencePiece model, a trimmed student's vocabulary.json, 'bytes' or 'embedded'; a run "
        "is known by its content",
    )
    data_dir: str | None = option(
        kinds.optional(kinds.text("'/data/prepared'")),
        "prepared records; None: $DISTILL_SBS_DATA_DIR, or else ~/.cache/distill_sbs",
        default=None,
        may_change="the folder may have moved",
    )
    text_dir: str | None = option(
        kinds.optional(kinds.text("'/data/text'")),
        "text files that text_pretrain reads; None: DATA_DIR/text",
        default=None,
        may_change="the folder may have moved",
    )
    data_fraction: float = option(
        kinds.number(above=0.0, most=1.0), "share of the training examples", default=1.0
    )
    fraction_seed: int = option(
        kinds.whole(0, 2**32 - 1), "which examples a fraction keeps", default=0
    )
    selection: str | None = option(
        kinds.optional(kinds.text("'cqa_1000.json'")),
        "the training examples that curate chose, of which DATA_FRACTION is a share; None: all. A "
        "run is known by what is chosen",
        default=None,
    )
    rationale_filter: str = option(
        kinds.choice(constants.RATIONALE_FILTERS), "or those of right teacher labels", default="all"
    )
    rationales_per_example: int = option(
        kinds.whole(1), "how many of an example's take turns, another one each epoch", default=1
    )
    contrast_rate: float = option(
        kinds.number(above=0.0),
        "of D_contrast_label_NAME: rollouts drawn for a label row",
        default=3.0,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchConfig(Options):
    """What one step sees."""

    task_feature_lengths: Mapping[str, int] = option(
        kinds.feature_lengths(),
        "{'inputs': …, 'targets': …}; longer ones are cut. 'task_ids' is as 'targets'",
        unit="tokens",
    )
    batch_size: int = option(
        kinds.whole(1, example="64"),
        "sequences a step: label rows and rationale rows together",
        unit="sequences",
    )
    pack: bool = option(
        kinds.boolean(),
        "layout only: which sequences a step sees does not depend on it",
        default=True,
    )
    shared_encoder: bool = option(
        kinds.boolean(),
        "an example's label and rationale share one encoder pass; the decoder's first token tells "
        "them apart, no prefix does",
        default=False,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig(Options):
    """The network."""

    name: str = option(
        kinds.choice(CONFIG_NAMES), "a size by name", default="t5_1_1_base", macro="STUDENT"
    )
    overrides: Mapping[str, object] = option(
        kinds.mapping("{'scan_layers': True}"),
        "fields of T5Config; 'remat_policy' may change when the run continues",
        default={},
        macro="STUDENT_OVERRIDES",
    )
    dropout_rate: float = option(
        kinds.number(least=0.0, below=1.0), "probability of dropping", default=0.1
    )

    residual_dropout_rate: float | None = option(
        kinds.optional(kinds.number(least=0.0, below=1.0)),
        "of what a layer adds to the residual stream, in the highest layer; None: DROPOUT_RATE",
        default=None,
    )
    residual_dropout_schedule: str = option(
        kinds.choice(RESIDUAL_DROPOUT_SCHEDULES),
        "'linear' rises with depth from 0, 'constant' does not",
        default="linear",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in DROPOUT_OPTIONS:
            if name in self.overrides:
                raise OptionError(
                    "STUDENT_OVERRIDES",
                    f"STUDENT_OVERRIDES has {name!r}, which is an option of its own: "
                    f"--gin.{name.upper()}={kinds.show(self.overrides[name])}",
                )
        self.architecture()

    def architecture(self) -> T5Config:
        """The student's `T5Config`."""
        try:
            dropout = {name: getattr(self, name) for name in DROPOUT_OPTIONS}
            return named_config(self.name, **dropout, **self.overrides)
        except ValueError as error:
            raise OptionError("STUDENT_OVERRIDES", f"STUDENT_OVERRIDES: {error}") from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Options):
    """What is minimised: Eq. 3 of arXiv 2305.02301."""

    rationale_rate: float = option(
        kinds.number(least=0.0),
        "λ of Eq. 3: mixing rate and loss weight of the rationale task; 0 trains on labels alone",
        default=1.0,
    )
    label_smoothing: float = option(
        kinds.number(least=0.0, below=1.0), "probability spread over the other tokens", default=0.0
    )
    z_loss: float = option(
        kinds.number(least=0.0), "weight of log(Z)², Z the logits' normaliser", default=0.0
    )
    mutual_information_weight: float = option(
        kinds.number(least=0.0),
        "β of arXiv 2403.03348: labels and rationales of an example go in pairs; 0: they do not",
        default=0.0,
    )

    @property
    def in_pairs(self) -> bool:
        """Whether every example comes with its label and its rationale, in one batch."""
        return self.mutual_information_weight > 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.in_pairs and self.rationale_rate != 1.0:
            raise OptionError(
                "RATIONALE_RATE",
                f"RATIONALE_RATE={self.rationale_rate:g}: with MUTUAL_INFORMATION_WEIGHT="
                f"{self.mutual_information_weight:g} every example comes once with its label and "
                "once with its rationale, which is RATIONALE_RATE = 1.0; set it, or "
                "MUTUAL_INFORMATION_WEIGHT = 0.0",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Options):
    """The optimizer; defaults are the published implementation's."""

    name: str = option(
        kinds.choice(OPTIMIZERS), "'adamw' or 'adafactor'", default="adamw", macro="OPTIMIZER"
    )
    learning_rate: float = option(
        kinds.number(least=0.0),
        "falls linearly to FINAL_LEARNING_RATE at TRAIN_STEPS",
        default=5e-5,
    )
    final_learning_rate: float = option(kinds.number(least=0.0), "at TRAIN_STEPS", default=0.0)
    warmup_steps: int = option(
        kinds.whole(0), "over which the learning rate rises from 0", default=0, unit="steps"
    )
    weight_decay: float = option(
        kinds.number(least=0.0), "of all parameters but those of layer norms", default=0.0
    )
    adam_b2: float = option(
        kinds.number(least=0.0, below=1.0),
        "share of AdamW's second moment that stays from step to step",
        default=0.999,
    )
    gradient_clip_norm: float | None = option(
        kinds.optional(kinds.number(above=0.0)),
        "global norm that gradients are cut to; None: they are not",
        default=1.0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.final_learning_rate > self.learning_rate:
            raise OptionError(
                "FINAL_LEARNING_RATE",
                f"FINAL_LEARNING_RATE={self.final_learning_rate:g} is above LEARNING_RATE="
                f"{self.learning_rate:g}, from which it falls; use "
                f"{self.learning_rate / 10:g}, say",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig(Options):
    """How devices share the work."""

    _SAME_MEANS: ClassVar[str] = "no mean and no parameter's shape depends on the devices"

    num_model_partitions: int = option(
        kinds.whole(1),
        "devices that share one copy of the parameters (tensor parallelism)",
        default=1,
        unit="devices",
        may_change=_SAME_MEANS,
    )
    num_slices: int | None = option(
        kinds.optional(kinds.whole(1)),
        "groups joined by a slower network; None: as the devices report",
        default=None,
        may_change=_SAME_MEANS,
    )
    fsdp: bool | None = option(
        kinds.optional(kinds.boolean()),
        "True: parameters and optimizer state are split over the data axis too; None: where they "
        "would take more than 4 GiB of a device",
        default=None,
        may_change=_SAME_MEANS,
    )
    num_microbatches: int = option(
        kinds.whole(1),
        "parts of a batch, one after the other; the mean is over the batch",
        default=1,
        may_change="means are over the whole batch",
    )
    use_hardware_rng: bool = option(
        kinds.boolean(),
        "dropout's masks from the devices' own generator: compiles sooner, and another mesh drops "
        "other values",
        default=False,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig(Options):
    """How accuracy on validation and test is found."""

    eval_period: int = option(
        kinds.whole(1),
        "steps between evaluations on validation",
        default=250,
        unit="steps",
        may_change="evaluating changes no parameter",
    )
    eval_batch_size: int = option(
        kinds.whole(1),
        "sequences decoded at a time",
        default=128,
        unit="sequences",
        may_change="an answer does not depend on what is decoded beside it",
    )
    eval_examples: int | None = option(
        kinds.optional(kinds.whole(1)),
        "of validation, the first ones; None: all. The best step is chosen on them",
        default=None,
        unit="examples",
    )
    max_decode_tokens: int = option(kinds.whole(1), "longest answer", default=64, unit="tokens")
    first_best_step: int = option(
        kinds.whole(1), "earlier steps are not chosen as the best", default=1, unit="steps"
    )
    last_best_step: int | None = option(
        kinds.optional(kinds.whole(1)),
        "later steps are not chosen as the best; None: TRAIN_STEPS",
        default=None,
        unit="steps",
    )
    validation_loss: bool = option(
        kinds.boolean(),
        "log the loss and perplexity of validation's targets beside its accuracy",
        default=False,
        may_change="logging changes nothing that is computed",
    )


# ---------------------------------- entry points -----------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Options):
    """All options of `python -m distill_sbs.train`.

    Raises:
      OptionError: a value of another type than its option's, or out of range, or two that do not go
        together; in one line, in the names of the macros.
    """

    run: RunConfig
    data: DataConfig
    batch: BatchConfig
    student: StudentConfig = dataclasses.field(default_factory=StudentConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_warmup(self.optimizer, self.run.train_steps)
        _check_best_steps(self.evaluation, self.run.train_steps)
        _check_batch(self.batch, self.mesh, self.objective)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrecompileConfig(Options):
    """All options of `python -m distill_sbs.precompile`: those of a run that shape its programs."""

    topology: str | None = option(
        kinds.optional(kinds.text("'v5e:2x4'")),
        "a slice to compile for: 'v5e:16x16', 'v4:4x4x4', 'v5p:2x2x1', …; None: the devices here",
        default=None,
    )
    batch: BatchConfig
    student: StudentConfig = dataclasses.field(default_factory=StudentConfig)
    objective: ObjectiveConfig = dataclasses.field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_batch(self.batch, self.mesh, self.objective)


def _check_best_steps(evaluation: EvaluationConfig, train_steps: int) -> None:
    first, last = evaluation.first_best_step, evaluation.last_best_step or train_steps
    evaluated = {*range(evaluation.eval_period, train_steps, evaluation.eval_period), train_steps}
    if not any(first <= step <= last for step in evaluated):
        raise OptionError(
            "FIRST_BEST_STEP",
            f"no evaluation falls between FIRST_BEST_STEP={first} and LAST_BEST_STEP={last}: they "
            f"are at every EVAL_PERIOD={evaluation.eval_period} steps and at "
            f"TRAIN_STEPS={train_steps}; widen the range, or set EVAL_PERIOD = "
            f"{max(1, min(first, train_steps))}",
        )


def check_warmup(optimizer: OptimizerConfig, train_steps: int) -> None:
    """Raises OptionError where the learning rate would never fall."""
    if optimizer.warmup_steps >= train_steps:
        raise OptionError(
            "WARMUP_STEPS",
            f"WARMUP_STEPS={optimizer.warmup_steps} is not below TRAIN_STEPS={train_steps}; "
            f"use {train_steps // 10}, say",
        )


def _check_batch(batch: BatchConfig, mesh: MeshConfig, objective: ObjectiveConfig) -> None:
    size, parts = batch.batch_size, mesh.num_microbatches
    if size % parts:
        raise OptionError(
            "BATCH_SIZE",
            f"BATCH_SIZE={size} is not a multiple of NUM_MICROBATCHES={parts}; "
            f"use {-(-size // parts) * parts}",
        )
    if batch.shared_encoder and objective.rationale_rate == 0.0:
        raise OptionError(
            "SHARED_ENCODER",
            "SHARED_ENCODER=True: at RATIONALE_RATE=0 there are labels alone, and no second target "
            "to share an encoder pass with; set SHARED_ENCODER = False, or RATIONALE_RATE = 1.0",
        )
    if size % 2 and (objective.in_pairs or batch.shared_encoder):
        why = "SHARED_ENCODER" if batch.shared_encoder else "MUTUAL_INFORMATION_WEIGHT above 0"
        raise OptionError(
            "BATCH_SIZE",
            f"BATCH_SIZE={size} is odd: with {why} a batch is made of "
            f"pairs, a label and a rationale each; use {size + 1}",
        )
