"""From GRID to the cells of a sweep: every combination once, each with settings and a folder.

Enters: GRID, a dict of axes. Leaves: cells in the order in which they run, seeds outermost, so that
a sweep that was stopped has all methods at the seeds that it has; or an `OptionError` that says
what an axis should look like. An axis is one of

- a macro and its values: `'DATA_FRACTION': [0.25, 1.0]`;
- `'dataset'`, `'method'`, `'teacher'` and names, which make MIXTURE_OR_TASK_NAME together:
  `'method': ['finetune', 'dss'], 'dataset': ['cqa'], 'teacher': ['palm']`;
- a name of the user's own and labelled settings, macros or gin files:
  `'student': {'small': 'gin/models/t5_1_1_small.gin', 'wide': {'STUDENT_OVERRIDES': {…}}}`.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from distill_sbs import option_kinds as kinds
from distill_sbs.config import TrainConfig
from distill_sbs.errors import did_you_mean
from distill_sbs.option_fields import Option, OptionError

MIXTURE = "MIXTURE_OR_TASK_NAME"
SEED = "RANDOM_SEED"
FRACTION = "DATA_FRACTION"

# What a mixture's name is made of; `registration.TaskInfo` joins them so.
NAME_PARTS = ("dataset", "method", "teacher")
# Methods that read gold labels or plain text alone: no teacher stands in their names.
_WITHOUT_TEACHER = ("finetune", "label", "pretrain")

# In a folder's name; the others are written in small letters.
_SHORT_NAMES = {MIXTURE: "", FRACTION: "fraction", SEED: "seed"}

# Of the sweep, or of where a run lies.
_NO_AXES = {"MODEL_DIR": "SWEEP_DIR says where the runs lie, a folder each"}

_MOST_CELLS = 100_000


@dataclasses.dataclass(frozen=True)
class Choice:
    """One value of an axis.

    Attributes:
      label: its name in folders and tables.
      settings: macro → value, as in a gin file.
      gin_files: gin files, read after those of the sweep.
    """

    label: str
    settings: Mapping[str, object] = dataclasses.field(default_factory=dict)
    gin_files: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Axis:
    """One dimension of the grid."""

    name: str
    choices: tuple[Choice, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of a sweep.

    Attributes:
      index: its number, from 0; `--cell=INDEX` runs it alone.
      labels: axis → the label of its value there.
      settings: macro → value, of all axes.
      gin_files: of all axes.
      name: its folder below SWEEP_DIR.
    """

    index: int
    labels: Mapping[str, str]
    settings: Mapping[str, object]
    gin_files: tuple[str, ...]
    name: str


def make_axes(grid: Mapping[str, object]) -> tuple[Axis, ...]:
    """The axes of GRID, their values checked.

    Raises:
      OptionError: what cannot be an axis.
    """
    axes = [_make_axis(name, values) for name, values in grid.items()]
    for axis in axes:
        _check_distinct(axis)
    parts = [axis.name for axis in axes if axis.name in NAME_PARTS]
    if parts:
        if MIXTURE in grid:
            raise _wrong(f"{MIXTURE} and {parts[0]!r} both choose the mixture; keep one of them")
        if "dataset" not in parts or "method" not in parts:
            raise _wrong(
                f"{' and '.join(map(repr, parts))} alone names no mixture; expected 'dataset' and "
                "'method', and 'teacher' where a method has one"
            )
    owners: dict[str, str] = {}
    for axis in axes:
        for macro in {macro for choice in axis.choices for macro in choice.settings}:
            if macro in owners:
                raise _wrong(f"{owners[macro]} and {axis.name} both set {macro}")
            owners[macro] = axis.name
    return tuple(axes)


def make_cells(axes: Sequence[Axis]) -> tuple[Cell, ...]:
    """Every combination, seeds outermost; combinations that are the same run are one cell.

    Raises:
      OptionError: there are too many, or a method lacks its teacher.
    """
    count = 1
    for axis in axes:
        count *= len(axis.choices)
    if count > _MOST_CELLS:
        raise _wrong(f"{count:,} combinations; expected at most {_MOST_CELLS:,}")
    outermost_first = sorted(axes, key=lambda axis: axis.name != SEED)
    cells: dict[str, Cell] = {}
    for choices in itertools.product(*(axis.choices for axis in outermost_first)):
        chosen = dict(zip((axis.name for axis in outermost_first), choices, strict=True))
        cell = _make_cell(len(cells), {axis.name: chosen[axis.name] for axis in axes})
        cells.setdefault(cell.name, cell)
    return tuple(cells.values())


def _make_cell(index: int, chosen: Mapping[str, Choice]) -> Cell:
    labels: dict[str, str] = {}
    settings: dict[str, object] = {}
    parts = {name: chosen[name].label for name in NAME_PARTS if name in chosen}
    if parts:
        mixture = _join_name(parts)
        labels[MIXTURE], settings[MIXTURE] = mixture, mixture
    for name, choice in chosen.items():
        if name not in NAME_PARTS:
            labels[name] = choice.label
            settings.update(choice.settings)
    order = sorted(labels, key=lambda name: (name != MIXTURE, name != FRACTION, name == SEED))
    folders = []
    for name in order:
        short = _SHORT_NAMES.get(name, name.lower())
        folders.append(f"{short}_{labels[name]}" if short else labels[name])
    gin_files = tuple(file for choice in chosen.values() for file in choice.gin_files)
    return Cell(
        index,
        {name: labels[name] for name in order},
        settings,
        gin_files,
        "/".join(folders) or "run",
    )


def _join_name(parts: Mapping[str, str]) -> str:
    method = parts["method"]
    if method in _WITHOUT_TEACHER:
        return f"{parts['dataset']}_{method}"
    if "teacher" not in parts:
        raise _wrong(
            f"method {method!r} learns from a teacher, and none is named; add 'teacher': "
            "['palm'], say"
        )
    return f"{parts['dataset']}_{method}_{parts['teacher']}"


# ---------------------------------- axes --------------------------------------


def _check_distinct(axis: Axis) -> None:
    """Refuses values that would lie in one folder."""
    seen: dict[str, Choice] = {}
    for choice in axis.choices:
        other = seen.setdefault(choice.label, choice)
        if other is choice:
            continue
        if other == choice:
            raise _wrong(f"{axis.name} has {choice.label!r} twice")
        raise _wrong(
            f"two values of {axis.name} would both lie in a folder {choice.label!r}; give them "
            f"labels: '{axis.name.lower()}': {{'label': {{'{axis.name}': value}}, …}}"
        )


def _wrong(message: str) -> OptionError:
    return OptionError("GRID", f"GRID: {message}")


def _make_axis(name: str, values: object) -> Axis:
    if isinstance(values, Mapping):
        return Axis(name, tuple(_make_labelled(name, values)))
    if not isinstance(values, list | tuple):
        raise _wrong(
            f"{name!r} has {kinds.show(values)}; expected a list of values, such as "
            f"'{name}': [{kinds.show(values)}], or labels and their settings"
        )
    if not values:
        raise _wrong(f"{name!r} has no values")
    if name in NAME_PARTS:
        return Axis(name, tuple(Choice(_check_part(name, value)) for value in values))
    choices = []
    for value in values:
        value = _convert(name, value)
        choices.append(Choice(label_value(name, value), {name: value}))
    return Axis(name, tuple(choices))


def _convert(name: str, value: object) -> object:
    """The value of a macro in its own type."""
    option = _find_option(name)
    try:
        converted: object = option.kind.convert(value)
    except kinds.WrongValue as error:
        raise _wrong(
            f"{name} has {kinds.show(value)}{error}; expected {option.kind.words}"
        ) from None
    return converted


def _find_option(name: str) -> Option:
    options = {option.macro: option for option in TrainConfig.options()}
    if name in _NO_AXES:
        raise _wrong(f"{name} can be no axis: {_NO_AXES[name]}")
    if name not in options:
        near = did_you_mean(name, [*options, *NAME_PARTS])
        raise _wrong(
            f"{name!r} is no macro of a run{near}; a name of your own takes labelled settings: "
            f"'{name}': {{'label': {{'MACRO': value}}}}"
        )
    return options[name]


def _check_part(name: str, value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_.]+", value):
        raise _wrong(f"{name!r} has {kinds.show(value)}; expected names, such as 'cqa' or 'dss'")
    return value


def _make_labelled(name: str, values: Mapping[object, object]) -> Iterator[Choice]:
    if not values:
        raise _wrong(f"{name!r} has no values")
    if name in NAME_PARTS or name.upper() == name:
        raise _wrong(
            f"{name!r} has labels; expected a list of values (labelled settings are an axis of a "
            "name of your own, in small letters: 'student': {'small': …})"
        )
    if not re.fullmatch(r"[A-Za-z0-9_.]+", name):
        raise _wrong(f"{name!r} is part of folders' names; expected letters, digits, underscores")
    for label, settings in values.items():
        if not isinstance(label, str) or not re.fullmatch(r"[A-Za-z0-9_.+-]*[A-Za-z0-9_]", label):
            raise _wrong(
                f"{name!r} has the label {kinds.show(label)}, which is part of a folder's name; "
                "expected letters, digits, underscores"
            )
        if isinstance(settings, str):
            yield Choice(label, gin_files=(settings,))
        elif isinstance(settings, list | tuple) and all(isinstance(x, str) for x in settings):
            yield Choice(label, gin_files=tuple(str(file) for file in settings))
        elif isinstance(settings, Mapping):
            yield Choice(label, _check_settings(settings))
        else:
            raise _wrong(
                f"{name!r}: {label!r} has {kinds.show(settings)}; expected macros and their values "
                "in a dict, or a gin file in quotes"
            )


def _check_settings(settings: Mapping[object, object]) -> dict[str, object]:
    checked: dict[str, object] = {}
    for macro, value in settings.items():
        if not isinstance(macro, str):
            raise _wrong(f"{kinds.show(macro)} is no macro; expected its name in quotes")
        checked[macro] = _convert(macro, value)
    return checked


def label_value(name: str, value: object) -> str:
    """A value as part of a folder's name."""
    if isinstance(value, float):
        short = f"{value:.4g}"
        return short if float(short) == value else repr(value)
    if value is None or isinstance(value, bool | int):
        return str(value).lower()
    if isinstance(value, str):
        label = re.sub(r"[^A-Za-z0-9_.+-]+", "_", value).strip("_.")[-100:]
        if label:
            return label
    raise _wrong(
        f"{name} has {kinds.show(value)}, which makes no folder's name; give it a label: "
        f"'{name.lower()}': {{'label': {{'{name}': {kinds.show(value)}}}}}"
    )
