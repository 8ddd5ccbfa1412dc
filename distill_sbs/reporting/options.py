"""What a run's options say of it: the student, its cost, and what else makes it what it is.

Enters: the bindings of a `config.gin`. Leaves: the options by macro, of their types and in their
ranges; a `Run` with what follows from them filled in. What the results state themselves wins.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

from distill_sbs.cli.gin_files import Binding, references
from distill_sbs.config import DROPOUT_OPTIONS, StudentConfig, TrainConfig
from distill_sbs.errors import UserError
from distill_sbs.model.config import T5Config
from distill_sbs.model.flops import forward_flops, train_step_flops
from distill_sbs.model.parameters import list_parameters
from distill_sbs.reporting import words
from distill_sbs.reporting.run import Cost, Model, Run

# Options that have a column of their own, or say only where a run lies.
_OWN = {
    "MODEL_DIR",
    "MIXTURE_OR_TASK_NAME",
    "DATA_FRACTION",
    "RATIONALE_RATE",
    "RANDOM_SEED",
    "FRACTION_SEED",
    "STUDENT",
    "STUDENT_OVERRIDES",
}
# Fields of T5Config that change no parameter; a run that differs in them has the same student.
_NO_SHAPE = (
    *("dtype", "scan_layers", "remat_policy", "attention", "float32_attention_logits"),
    *DROPOUT_OPTIONS,
)


def convert(bindings: Iterable[Binding]) -> dict[str, object]:
    """Macro → value of the options that are set; macros of other versions are passed over.

    Raises:
      UserError: a value that its option cannot have.
    """
    known = {each.macro: each for each in TrainConfig.options()}
    found: dict[str, object] = {}
    for binding in bindings:
        value: object = binding.value
        if binding.target not in known or any(references(value)):
            continue
        try:
            found[binding.target] = known[binding.target].convert(value)
        except UserError as error:
            raise UserError(f"{binding.place}: {error}") from None
    return found


def complete(run: Run, options: Mapping[str, object]) -> Run:
    """The run with what its options say where its results say nothing."""
    if not options:
        return run
    student = _read_student(options)
    train_steps = run.train_steps
    if train_steps is None:
        train_steps = _whole(options, "TRAIN_STEPS")
    rate = run.rate
    if rate is None and words.describe_method(run.method).has_rate:
        rate = _number(options, "RATIONALE_RATE")
    is_line = run.method == words.FEW_SHOT
    return dataclasses.replace(
        run,
        model=run.model or (None if is_line else _describe(student, options)),
        fraction=run.fraction or (None if is_line else _number(options, "DATA_FRACTION")),
        rate=rate,
        seed=_whole(options, "RANDOM_SEED") if run.seed is None else run.seed,
        fraction_seed=_whole(options, "FRACTION_SEED"),
        train_steps=train_steps,
        cost=_fill(run.cost, student, options),
        settings=_settings(options),
    )


def _whole(options: Mapping[str, object], macro: str) -> int | None:
    value = options.get(macro)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(options: Mapping[str, object], macro: str) -> float | None:
    value = options.get(macro)
    return float(value) if isinstance(value, int | float) else None


def _read_student(options: Mapping[str, object]) -> T5Config | None:
    """The network; None where the options do not name one."""
    name, overrides = options.get("STUDENT"), options.get("STUDENT_OVERRIDES", {})
    if not isinstance(name, str) or not isinstance(overrides, Mapping):
        return None
    try:
        return StudentConfig(name=name, overrides=dict(overrides)).architecture()
    except (UserError, TypeError):  # a size of another version
        return None


def _describe(student: T5Config | None, options: Mapping[str, object]) -> Model | None:
    name, overrides = options.get("STUDENT"), options.get("STUDENT_OVERRIDES")
    if student is None or not isinstance(name, str):
        return None
    parameters = sum(math.prod(each.shape) for each in list_parameters(student))
    shape = {
        key: value
        for key, value in (overrides if isinstance(overrides, Mapping) else {}).items()
        if key not in _NO_SHAPE
    }
    changes = ", ".join(f"{key}={value}" for key, value in sorted(shape.items()))
    return Model(name, parameters, changes)


def _fill(cost: Cost, student: T5Config | None, options: Mapping[str, object]) -> Cost:
    """The cost by formula, where nothing was measured: every text as long as it may be."""
    most = _whole(options, "MAX_DECODE_TOKENS")
    lengths = options.get("TASK_FEATURE_LENGTHS")
    steps, batch = _whole(options, "TRAIN_STEPS"), _whole(options, "BATCH_SIZE")
    answer, train = cost.answer_flops, cost.train_flops
    if student is not None and isinstance(lengths, Mapping):
        inputs, targets = lengths.get("inputs"), lengths.get("targets")
        try:
            if answer is None and isinstance(inputs, int) and most is not None:
                answer = forward_flops(student, 1, inputs, most)
            if steps is not None and batch is not None and train is None:
                if isinstance(inputs, int) and isinstance(targets, int):
                    share = 2 if options.get("SHARED_ENCODER") is True else 1
                    of_step = train_step_flops(student, batch // share, inputs, targets, share)
                    train = steps * of_step
        except OverflowError:  # numbers that no run could have
            pass
    return Cost(most, answer, train)


def _settings(options: Mapping[str, object]) -> dict[str, str]:
    """What makes a run what it is, besides what has a column of its own; macro → value as text."""
    found = {
        each.macro: str(options[each.macro])
        for each in TrainConfig.options()
        if each.macro in options and not each.may_change and each.macro not in _OWN
    }
    overrides = options.get("STUDENT_OVERRIDES")
    if isinstance(overrides, Mapping):
        for name in _NO_SHAPE:
            if name in overrides and name != "remat_policy":
                found[f"STUDENT_OVERRIDES[{name!r}]"] = str(overrides[name])
    return found
