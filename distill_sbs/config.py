"""Every option of a run, once: its name, type, default, unit and help, and what may change later.

Enters: values from Python, or from gin files and the command line (`cli.command_line`). Leaves:
frozen dataclasses whose every value is of its type and in its range, or an `OptionError` that names
the option's macro.

An option's macro is its field's name in capitals, where the field does not say another. What has no
`may_change` belongs to the run's identity: a run continues only with the value that it began with
(`checkpoint.description`).
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import typing
from collections.abc import Iterator, Mapping
from typing import ClassVar, Self, TypeVar

from distill_sbs import option_kinds as kinds
from distill_sbs.errors import UserError, did_you_mean
from distill_sbs.model.config import CONFIG_NAMES, T5Config, named_config

REQUIRED = dataclasses.MISSING
OPTIMIZERS = ("adamw", "adafactor")

T = TypeVar("T")


class OptionError(UserError):
    """A value that an option cannot have.

    Attributes:
      macro: the option's macro, such as 'BATCH_SIZE'.
    """

    def __init__(self, macro: str, message: str) -> None:
        super().__init__(message)
        self.macro = macro


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known of one option.

    Attributes:
      macro: its name in gin files.
      kind: its type and range.
      help: one line.
      unit: what a number counts; empty where it counts nothing.
      default: its value where nobody sets it; `REQUIRED` where somebody must.
      may_change: why another value may continue a run; empty where it may not.
      path: the fields that lead to it, such as ('optimizer', 'learning_rate').
    """

    macro: str
    kind: kinds.Kind[object]
    help: str
    unit: str
    default: object
    may_change: str
    path: tuple[str, ...]

    @property
    def is_required(self) -> bool:
        """Whether somebody must set it."""
        return self.default is REQUIRED

    def convert(self, value: object) -> object:
        """The value in the option's own type.

        Raises:
          OptionError: it is of another type, or out of range.
        """
        try:
            return self.kind.convert(value)
        except kinds.WrongValue as error:
            raise OptionError(
                self.macro,
                f"{self.macro}={kinds.show(value)}{error}; expected {self.kind.words}: "
                f"{self.kind.format_flag(self.macro, value)}",
            ) from None


def option(
    kind: kinds.Kind[T],
    help: str,
    *,
    default: T | dataclasses._MISSING_TYPE = REQUIRED,
    unit: str = "",
    macro: str = "",
    may_change: str = "",
) -> T:
    """A dataclass field that is an option; see `Option`. Its type is that of the kind's values."""
    described = dict(kind=kind, help=help, unit=unit, macro=macro, may_change=may_change)
    if default is REQUIRED:
        required: T = dataclasses.field(metadata=described)
        return required
    if isinstance(default, dict):  # every config has one of its own
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=described)
    return dataclasses.field(default=default, metadata=described)


def _as_option(field: dataclasses.Field[object], path: tuple[str, ...]) -> Option:
    described = dict(field.metadata)
    described["macro"] = described["macro"] or field.name.upper()
    made = field.default_factory
    default = field.default if made is dataclasses.MISSING else made()
    return Option(**described, default=default, path=(*path, field.name))


def _parts_of(cls: type) -> dict[str, type[Options]]:
    """The fields that are no options, but parts with options, and their classes."""
    hints = typing.get_type_hints(cls).items()
    classes = {name: kind for name, kind in hints if isinstance(kind, type)}
    return {name: kind for name, kind in classes.items() if issubclass(kind, Options)}


class Options:
    """What every dataclass of options can do; its fields are options, or parts with options."""

    def __post_init__(self) -> None:
        """Checks every value, and gives it the option's own type."""
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  # subclasses are
            value = getattr(self, field.name)
            if field.metadata:
                value = _as_option(field, ()).convert(value)
                object.__setattr__(self, field.name, value)
            elif not isinstance(value, Options):
                raise UserError(
                    f"{type(self).__name__}.{field.name}={kinds.show(value)}: expected a "
                    f"{field.name.capitalize()}Config"
                )

    @classmethod
    def options(cls) -> Iterator[Option]:
        """Every option, those of parts among them, in the order of the text."""
        yield from cls._options(())

    @classmethod
    def _options(cls, path: tuple[str, ...]) -> Iterator[Option]:
        parts = _parts_of(cls)
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.metadata:
                yield _as_option(field, path)
            else:
                yield from parts[field.name]._options((*path, field.name))

    @classmethod
    def from_options(cls, **values: object) -> Self:
        """Builds it of options by the names of their macros in small letters.

        `TrainConfig.from_options(model_dir="runs/mine", train_steps=100, student="t5_1_1_tiny", …)`

        Raises:
          UserError: an unknown name, a required one that is missing, or a value that cannot be.
        """
        known = {each.macro.lower() for each in cls.options()}
        for name in values:
            if name not in known:
                raise UserError(f"unknown option {name}{did_you_mean(name, known)}")
        missing = [
            each.macro.lower()
            for each in cls.options()
            if each.is_required and each.macro.lower() not in values
        ]
        if missing:
            raise UserError(f"{cls.__name__}: required, and not given: {', '.join(missing)}")
        return cls._build(values)

    @classmethod
    def _build(cls, values: Mapping[str, object]) -> Self:
        parts = _parts_of(cls)
        arguments: dict[str, object] = {}
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            if field.metadata:
                macro = _as_option(field, ()).macro.lower()
                if macro in values:
                    arguments[field.name] = values[macro]
            else:
                arguments[field.name] = parts[field.name]._build(values)
        return cls(**arguments)

    def values(self) -> dict[str, object]:
        """Macro → value, of every option."""
        return {
            each.macro: functools.reduce(getattr, each.path, self) for each in type(self).options()
        }

    def change(self, **values: object) -> Self:
        """A copy in which options, named as in `from_options`, have other values."""
        before = {macro.lower(): value for macro, value in self.values().items()}
        return type(self).from_options(**{**before, **values})

    def to_gin(self) -> str:
        """The options as a gin file, which gives them again; it sets macros only."""
        return "".join(f"{macro} = {value!r}\n" for macro, value in self.values().items())


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
        "a SentencePiece model, 'bytes' or 'embedded'; a run is known by its content",
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if "dropout_rate" in self.overrides:
            raise OptionError(
                "STUDENT_OVERRIDES",
                "STUDENT_OVERRIDES has 'dropout_rate', which is an option of its own: "
                f"--gin.DROPOUT_RATE={kinds.show(self.overrides['dropout_rate'])}",
            )
        self.architecture()

    def architecture(self) -> T5Config:
        """The student's `T5Config`."""
        try:
            return named_config(self.name, dropout_rate=self.dropout_rate, **self.overrides)
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
        kinds.number(least=0.0, below=1.0),
        "probability spread over the other tokens",
        default=0.0,
    )
    z_loss: float = option(
        kinds.number(least=0.0), "weight of log(Z)², Z the logits' normaliser", default=0.0
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Options):
    """The optimizer; defaults are the published implementation's."""

    name: str = option(
        kinds.choice(OPTIMIZERS), "'adamw' or 'adafactor'", default="adamw", macro="OPTIMIZER"
    )
    learning_rate: float = option(
        kinds.number(least=0.0), "falls linearly to 0 at TRAIN_STEPS", default=5e-5
    )
    warmup_steps: int = option(
        kinds.whole(0), "over which the learning rate rises from 0", default=0, unit="steps"
    )
    weight_decay: float = option(
        kinds.number(least=0.0), "of all parameters but those of layer norms", default=0.0
    )
    gradient_clip_norm: float | None = option(
        kinds.optional(kinds.number(above=0.0)),
        "global norm that gradients are cut to; None: they are not",
        default=1.0,
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
        _check_microbatches(self.batch, self.mesh)


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
        _check_microbatches(self.batch, self.mesh)


def check_warmup(optimizer: OptimizerConfig, train_steps: int) -> None:
    """Raises OptionError where the learning rate would never fall."""
    if optimizer.warmup_steps >= train_steps:
        raise OptionError(
            "WARMUP_STEPS",
            f"WARMUP_STEPS={optimizer.warmup_steps} is not below TRAIN_STEPS={train_steps}; "
            f"use {train_steps // 10}, say",
        )


def _check_microbatches(batch: BatchConfig, mesh: MeshConfig) -> None:
    size, parts = batch.batch_size, mesh.num_microbatches
    if size % parts:
        raise OptionError(
            "BATCH_SIZE",
            f"BATCH_SIZE={size} is not a multiple of NUM_MICROBATCHES={parts}; "
            f"use {-(-size // parts) * parts}",
        )
