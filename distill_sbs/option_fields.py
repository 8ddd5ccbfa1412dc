"""What an option is: a field of a frozen dataclass, whose values are of its type and in its range.

Enters: the fields that `config` and its kin declare with `option`. Leaves: dataclasses that check
what they are made of, and know their options by name.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import typing
from collections.abc import Iterator, Mapping
from typing import Self, TypeVar

from distill_sbs import option_kinds as kinds
from distill_sbs.errors import UserError, did_you_mean

REQUIRED = dataclasses.MISSING

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
