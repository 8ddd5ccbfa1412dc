"""Types and ranges of options, with the words for them.

Enters: a value that somebody typed. Leaves: the same in the option's own type, or `WrongValue`.
Whole numbers are no booleans, and a float is no whole number, even 1e2; not-a-number and infinity
are no numbers.
"""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from distill_sbs import constants
from distill_sbs.errors import did_you_mean

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80
_short.maxdict = _short.maxlist = _short.maxtuple = 8


# What an int32, and JAX, can count.
_MOST = 2**31 - 1


class WrongValue(Exception):
    """A value is not of a kind; the text, ` is …` or empty, goes behind the value."""


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclasses.dataclass(frozen=True)
class Kind(Generic[T_co]):
    """Which values an option takes; `T_co` is the type that they have then.

    Attributes:
      words: what is expected, such as 'a whole number ≥ 1'.
      convert: gives the value in the option's own type; raises `WrongValue`.
      example: a value of the kind, as it is typed in a gin file.
    """

    words: str
    convert: Callable[[object], T_co]
    example: str

    def format_flag(self, macro: str, got: object) -> str:
        """How to type the option on the command line: what was meant where that can be told."""
        value = self.example
        if isinstance(got, str):
            try:
                value = repr(self.convert(int(got)))
            except (ValueError, WrongValue):
                try:
                    value = repr(self.convert(float(got)))
                except (ValueError, WrongValue):
                    value = self.example
        elif isinstance(got, float) and math.isfinite(got) and got.is_integer():
            try:
                value = repr(self.convert(int(got)))
            except WrongValue:
                value = self.example
        quote = '"' if "'" in value else ""
        return f"--gin.{macro}={quote}{value}{quote}"


def show(value: object) -> str:
    """A value as it is typed, cut where it is long."""
    try:
        return _short.repr(value)
    except ValueError:  # more digits than Python writes
        return "a number of thousands of digits"


_NOUNS = {str: "text", bool: "a boolean", float: "a float", int: "a whole number", dict: "a dict"}


def _wrong_type(value: object) -> WrongValue:
    noun = "nothing" if value is None else _NOUNS.get(type(value), f"a {type(value).__name__}")
    return WrongValue(f" is {noun}")


def whole(least: int, most: int | None = None, example: str = "") -> Kind[int]:
    """Whole numbers from `least` to `most`, or to 2³¹ - 1; booleans and floats are none."""

    def convert(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise _wrong_type(value)
        if value > (_MOST if most is None else most):
            raise WrongValue(" is too large")
        if value < least:
            raise WrongValue("")
        return int(value)

    words = f"a whole number ≥ {least}" if most is None else f"a whole number, {least} to {most}"
    return Kind(words, convert, example or str(max(least, 1)))


def number(
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> Kind[float]:
    """Finite numbers in a range; whole ones become floats, booleans are none."""

    def convert(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _wrong_type(value)
        try:
            found = float(value)
        except OverflowError:
            raise WrongValue(" is too large") from None
        if not math.isfinite(found):
            raise WrongValue(" is not finite")
        inside = (
            (least is None or found >= least)
            and (above is None or found > above)
            and (below is None or found < below)
            and (most is None or found <= most)
        )
        if not inside:
            raise WrongValue("")
        return found

    bounds = [(least, "≥"), (above, ">"), (below, "<"), (most, "≤")]
    ranges = [f"{sign} {bound:g}" for bound, sign in bounds if bound is not None]
    return Kind(f"a number {' and '.join(ranges)}", convert, "0.1")


def text(example: str) -> Kind[str]:
    """Text that a path or a name can be: not empty, no control characters."""

    def convert(value: object) -> str:
        if not isinstance(value, str):
            raise _wrong_type(value)
        if not value.strip():
            raise WrongValue(" is empty")
        if any(not character.isprintable() for character in value):
            raise WrongValue(" has characters in it that nobody can type")
        return value

    return Kind("text in quotes", convert, example)


def boolean() -> Kind[bool]:
    """True or False, and nothing that counts as one of them."""

    def convert(value: object) -> bool:
        if not isinstance(value, bool):
            raise _wrong_type(value)
        return value

    return Kind("True or False", convert, "True")


def choice(names: Sequence[str]) -> Kind[str]:
    """One of some names."""

    def convert(value: object) -> str:
        if not isinstance(value, str):
            raise _wrong_type(value)
        if value not in names:
            raise WrongValue(f" is unknown{did_you_mean(value, names)}")
        return value

    return Kind(f"one of {', '.join(names)}", convert, repr(names[0]))


def optional(kind: Kind[T]) -> Kind[T | None]:
    """A kind, or None."""

    def convert(value: object) -> T | None:
        return None if value is None else kind.convert(value)

    return Kind(f"{kind.words}, or None", convert, kind.example)


def mapping(example: str) -> Kind[dict[str, object]]:
    """A dict from names to anything."""

    def convert(value: object) -> dict[str, object]:
        if value is None:
            return {}
        if not isinstance(value, Mapping):
            raise _wrong_type(value)
        for key in value:
            if not isinstance(key, str):
                raise WrongValue(f" has the key {show(key)}, which is no name")
        return dict(value)

    return Kind("a dict of names and values", convert, example)


def feature_lengths() -> Kind[dict[str, int]]:
    """TASK_FEATURE_LENGTHS: lengths of inputs and targets; task ids are as long as targets."""
    expected = (constants.INPUTS, constants.TARGETS, constants.TASK_IDS)
    example = "{'inputs': 128, 'targets': 64}"

    def convert(value: object) -> dict[str, int]:
        if not isinstance(value, Mapping):
            raise _wrong_type(value)
        lengths = {constants.TASK_IDS: value.get(constants.TARGETS), **value}
        if set(lengths) != set(expected):
            unknown = [str(key) for key in lengths if key not in expected]
            lacking = [key for key in expected if key not in lengths]
            if unknown:
                near = did_you_mean(unknown[0], expected)
                raise WrongValue(f" names {unknown[0]!r}, which is no feature{near}")
            raise WrongValue(f" does not name {lacking[0]!r}")
        for name in expected:
            length = lengths[name]
            if length is None:
                raise WrongValue(f" does not name {name!r}")
            if isinstance(length, bool) or not isinstance(length, int) or length < 2:
                raise WrongValue(f": {name!r} is {show(length)}")
        if lengths[constants.TASK_IDS] != lengths[constants.TARGETS]:
            raise WrongValue(": 'task_ids' differs from 'targets', beside which they stand")
        return {name: lengths[name] for name in expected}

    words = "whole numbers of at least 2 tokens for 'inputs' and 'targets'"
    return Kind(words, convert, example)
