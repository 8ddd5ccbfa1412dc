"""From gin's bindings to an entry point's options.

Enters: bindings in order (`gin_files`). Leaves: the options, `%MACRO` replaced by what it stands
for; or a `UserError` that says where the wrong name or value was read.

A macro is an option's name in capitals (`option_fields.Option.macro`), or a helper that other
macros read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePath
from typing import TypeVar

from distill_sbs.allocating.options import AllocationConfig
from distill_sbs.cli.gin_files import (
    REQUIRED_MACRO,
    Binding,
    ConfigurableReference,
    MacroReference,
    references,
)
from distill_sbs.config import PrecompileConfig, TrainConfig
from distill_sbs.errors import UserError, did_you_mean
from distill_sbs.option_fields import OptionError, Options
from distill_sbs.sweeping.options import SweepConfig

Config = TypeVar("Config", bound=Options)

# Macros that our gin files may set though not every entry point reads them.
OUR_MACROS = (
    "PRETRAINED_CHECKPOINT_PATH",
    *(
        option.macro
        for each in (TrainConfig, PrecompileConfig, SweepConfig, AllocationConfig)
        for option in each.options()
    ),
)

# T5X's macros: the files that drive T5X may set them, our entry points leave them alone.
T5X_MACROS = (
    "CHECKPOINT_PATH",
    "EVALUATOR_NUM_EXAMPLES",
    "EVALUATOR_USE_MEMORY_CACHE",
    "EVAL_OUTPUT_DIR",
    "EVAL_STEPS",
    "INFER_OUTPUT_DIR",
    "JSON_WRITE_N_RESULTS",
    "LOSS_NORMALIZING_FACTOR",
    "MIXTURE_OR_TASK_MODULE",
    "MODEL",
    "TRAIN_STEPS_RELATIVE",
    "USE_CACHED_TASKS",
    "VOCABULARY",
)

# Far more than an experiment has.
_MOST_PARTS = 10_000
_MOST_NESTED = 50

_EXAMPLE_FILE = "gin/experiments/quickstart.gin"


def evaluate(bindings: Sequence[Binding], config_class: type[Config], run_file: str) -> Config:
    """The options that the bindings set; a direct binding wins over the option's macro.

    Args:
      bindings: in order; the last one of a name wins.
      config_class: of which options.
      run_file: whose stem is the name by which options are bound directly.

    Raises:
      UserError: an unknown macro or option, a required one that is not set, macros that stand for
        one another, or a value that an option cannot have.
    """
    function = PurePath(run_file).stem
    _reject_unknown_macros(bindings)
    _reject_unknown_targets(bindings, config_class, function)
    last = {binding.target: binding for binding in bindings}
    if f"{function}.config" not in last:
        raise UserError(f"{run_file} does not say {function}.config = @{config_class.__name__}()")
    # What each option is given: directly, or by its macro where that was set.
    given = {
        option.macro: last.get(f"{function}.{option.macro.lower()}") or last.get(option.macro)
        for option in config_class.options()
    }
    macros: dict[str, object] = {
        option.macro: MacroReference(REQUIRED_MACRO) if option.is_required else option.default
        for option in [*TrainConfig.options(), *config_class.options()]
    }
    macros.update({name: each.value for name, each in last.items() if each.is_macro})
    values = {name: binding.value if binding else macros[name] for name, binding in given.items()}
    _reject_unset(values, macros)
    resolver = _Resolver(macros)
    resolved = {name.lower(): resolver.resolve(value) for name, value in values.items()}
    try:
        return config_class.from_options(**resolved)
    except OptionError as error:
        binding = given.get(error.macro)
        if binding is None or binding.place.startswith("--gin"):
            raise
        raise UserError(f"{binding.place}: {error}") from None


def notes(bindings: Iterable[Binding]) -> Iterator[str]:
    """One line for every macro of T5X that is set and has no effect."""
    bindings = list(bindings)
    read = {name for binding in bindings for name in _macro_names(binding.value)}
    for binding in bindings:
        if binding.target in T5X_MACROS and binding.target not in read:
            yield f"{binding.target} ({binding.place}) is T5X's macro and has no effect here"


def _macro_names(value: object) -> list[str]:
    found = [each.name for each in references(value) if isinstance(each, MacroReference)]
    return list(dict.fromkeys(found))


def _reject_unknown_macros(bindings: Sequence[Binding]) -> None:
    """Refuses a macro that nobody reads: a misspelled one would be ignored without a word."""
    known = {*OUR_MACROS, *T5X_MACROS}
    for binding in bindings:
        known.update(_macro_names(binding.value))
    known.discard(REQUIRED_MACRO)
    for binding in bindings:
        if binding.is_macro and binding.target not in known:
            near = did_you_mean(binding.target, known)
            raise UserError(f"{binding.place}: unknown macro {binding.target}{near}")


def _reject_unknown_targets(
    bindings: Sequence[Binding], config_class: type[Options], function: str
) -> None:
    """Refuses bindings of anything but the entry point's own options."""
    names = [option.macro.lower() for option in config_class.options()]
    for binding in bindings:
        if binding.is_macro:
            continue
        owner, _, name = binding.target.rpartition(".")
        if owner != function:
            raise UserError(
                f"{binding.place}: {binding.target}: nothing here is called {owner!r}; experiment "
                f"files set macros only, or options of this entry point, {function}.name = value"
                " (T5X's own files belong to `python -m t5x.train`)"
            )
        whole = binding.value if isinstance(binding.value, ConfigurableReference) else None
        if name == "config" and whole is not None and whole.name == config_class.__name__:
            continue
        if name not in names or whole is not None:
            raise UserError(
                f"{binding.place}: {function} has no option {name}{did_you_mean(name, names)}"
            )


def _reject_unset(values: dict[str, object], macros: dict[str, object]) -> None:
    """Refuses macros that are required and unset."""
    pending = [(macro, value) for macro, value in values.items()]
    seen: set[str] = set()
    unset: list[str] = []
    while pending:
        macro, value = pending.pop(0)
        for name in _macro_names(value):
            if name == REQUIRED_MACRO or name not in macros:
                unset.append(macro if name == REQUIRED_MACRO else name)
            elif name not in seen:
                seen.add(name)
                pending.append((name, macros[name]))
    unset = list(dict.fromkeys(unset))
    if not unset:
        return
    remedies = []
    if [name for name in unset if name != "MODEL_DIR"]:
        remedies.append(
            f"an experiment file sets them, such as --gin_file={_EXAMPLE_FILE}, and"
            f" --gin.NAME=value sets one by hand"
        )
    if "MODEL_DIR" in unset:
        remedies.append("MODEL_DIR is yours to choose: --gin.MODEL_DIR=\"'runs/my_run'\"")
    plural = "s" if len(unset) > 1 else ""
    raise UserError(f"required macro{plural} not set: {', '.join(unset)}; {'; '.join(remedies)}")


class _Resolver:
    """Replaces macros by what they stand for."""

    def __init__(self, macros: dict[str, object]) -> None:
        self._macros = macros
        self._left = _MOST_PARTS

    def resolve(self, value: object, within: tuple[str, ...] = ()) -> object:
        """A value without macros; `within` are those that it stands inside of."""
        self._left -= 1
        if self._left < 0 or len(within) > _MOST_NESTED:
            raise UserError(
                f"macros stand for more than {_MOST_PARTS:,} values, or for one another over more "
                f"than {_MOST_NESTED} steps; write the value out"
            )
        if isinstance(value, MacroReference):
            if value.name in within:
                chain = " = %".join([*within[within.index(value.name) :], value.name])
                raise UserError(f"macros stand for one another: {chain}; give one of them a value")
            return self.resolve(self._macros[value.name], (*within, value.name))
        if isinstance(value, dict):
            resolved = {}
            for key, item in value.items():
                key = self.resolve(key, within)
                if isinstance(key, (dict, list, tuple)):
                    raise UserError(f"a dict has the key {key!r}; expected a name in quotes")
                resolved[key] = self.resolve(item, within)
            return resolved
        if isinstance(value, (list, tuple)):
            return type(value)(self.resolve(item, within) for item in value)
        return value
