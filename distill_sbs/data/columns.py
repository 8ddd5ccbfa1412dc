"""Columns of whatever table as examples: which holds the input, the label, the rationales.

Enters: rows, as mappings of column names to values, nested ones too. Leaves: `ColumnReader`, what
`TableReader`, `TfdsReader` and `HuggingFaceReader` have in common.
"""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from etils import epath

from distill_sbs import json_lines
from distill_sbs.data.dataset import SPLITS, Example, RawSplit, SourceError, TeacherOutput
from distill_sbs.data.readers.rows import PlacedExample, make_split
from distill_sbs.errors import UserError, did_you_mean

Row: TypeAlias = Mapping[str, object]
# A column's name, the path of a nested field ("answer.text"), or code of the task file.
Field: TypeAlias = str | Callable[[Row], object]
# Value as it stands in the rows -> label.
LabelNames: TypeAlias = Mapping[object, str] | Sequence[str]

# More different values than these are no classes: some are told.
_MOST_TOLD = 8
_NO_CLASS = -1  # TFDS and HuggingFace write it where a row has no gold label
_shorten = reprlib.Repr()
_shorten.maxlist = 24
_shorten.maxstring = 40


@dataclasses.dataclass(frozen=True)
class RowSource:
    """The rows of one split as they are stored.

    Attributes:
      where: what holds them, for messages.
      stream: streams (file, number from 1, row); can be called again.
      unit: what the number counts: 'line' or 'row'.
      class_names: the names of class ids, by column, where the source knows them.
      split: what the ids of rows begin with that have no column of ids.
    """

    where: str
    stream: Callable[[], Iterator[tuple[str, int, Row]]]
    unit: str = "row"
    class_names: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    split: str = "train"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnReader:
    """What the readers of tables share: which column is what. None of its fields is positional.

    A column is given by its name; a nested field by its path, `"answer.text"` or `"answers.0"`, and
    a list on the way is gone through; anything else by a function of your task file that takes the
    row (a mapping) and returns the value: `input=lambda row: f"{row['premise']} </s>
    {row['hypothesis']}"`. An error in it is told by type, file and line.

    Labels need not be texts. Class ids become the names that the source has for them, and none for
    -1; truth values become `true` and `false`, numbers their digits; `prepare` tells the mapping.
    An empty cell, a null and a blank text are no label, or no rationale.

    Splits without rows of their own are held out of the training rows, as `JsonlReader` says.

    Attributes:
      input: the text that the student is given.
      label: the gold label; None: there is none.
      id: unique in its split; None: made of the row's position, such as `train-0`.
      rationale: the teacher's; a list in it, or several columns, are several rationales of the
        example, of which `RATIONALES_PER_EXAMPLE` are trained on. By default `"rationale"`, where
        a teacher is named.
      teacher_label: the label that the teacher gave; None: the gold one.
      group: rows of one group stay in one split.
      teacher: name of the teacher whose rationales these are; also in the spec's `teachers`.
      label_names: names of the labels, by value (`{0: "no", 1: "yes"}`) or in order (`["no",
        "yes"]`), in place of those that the source has.
      seed: of the held-out tenths.
    """

    input: Field = "input"
    label: Field | None = "label"
    id: Field | None = None
    rationale: Field | Sequence[Field] | None = None
    teacher_label: Field | None = None
    group: Field | None = None
    teacher: str | None = None
    label_names: LabelNames | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.teacher is None and (self.rationale or self.teacher_label):
            given = "rationale" if self.rationale else "teacher_label"
            raise UserError(
                f"{type(self).__name__}({given}=…) names no teacher; add teacher='NAME', and the "
                "name to the teachers of the DatasetSpec"
            )

    def __call__(self, source_dir: epath.Path, split: str) -> RawSplit:
        """Checks every row of the split, then hands it over.

        Raises:
          SourceError: data that is missing or cannot be read; a missing column, a value of the
            wrong kind, a duplicate id, each with file and row.
        """
        source, held_out = self._open(epath.Path(source_dir), split)
        labels = _Labels(self.label_names, self._find_class_names(source))

        def stream() -> Iterator[PlacedExample]:
            for position, (file, number, row) in enumerate(source.stream()):
                place = f"{file}, {source.unit} {number}"
                default_id = f"{source.split}-{position}"
                example = self._make_example(row, place, split, default_id, labels)
                group = None
                if self.group is not None:
                    value = take(row, self.group, place)
                    group = None if value is None else _make_key(value, "group", place)
                yield PlacedExample(example, group, file, number)

        def tell() -> Sequence[str]:
            return labels.tell(source.where, self.label if isinstance(self.label, str) else "label")

        return make_split(stream, source.where, split, held_out, self.seed, source.unit, tell)

    def _open(self, source_dir: epath.Path, split: str) -> tuple[RowSource, Sequence[str]]:
        """The rows that hold a split, and which splits are held out of them."""
        raise NotImplementedError

    def _find_class_names(self, source: RowSource) -> Sequence[str]:
        return source.class_names.get(self.label, ()) if isinstance(self.label, str) else ()

    def _make_example(
        self, row: Row, place: str, split: str, default_id: str, labels: _Labels
    ) -> Example:
        example_id = default_id
        if self.id is not None:
            example_id = _make_key(take(row, self.id, place), "id", place)
        text = take(row, self.input, place)
        if not isinstance(text, str) or not text.strip():
            raise _make_kind_error("input", text, place, "a text that is not blank")
        label = None if self.label is None else labels.name(take(row, self.label, place), place)
        outputs = {}
        if self.teacher is not None:
            rationales = self._take_rationales(row, place, split)
            if rationales is not None:
                outputs[self.teacher] = self._make_output(row, place, label, rationales, labels)
        return Example(example_id, text, label, outputs)

    def _take_rationales(self, row: Row, place: str, split: str) -> list[str] | None:
        """The rationales of a row; None where its split has no column of them, as test may not."""
        given = self.rationale or "rationale"
        fields = [given] if isinstance(given, str) or callable(given) else list(given)
        names = [name for name in fields if isinstance(name, str)]
        if split != "train" and names and not any(_holds(row, name) for name in names):
            return None
        found: list[str] = []
        for field in fields:
            value = take(row, field, place)
            for each in value if isinstance(value, list) else [value]:
                if each is None or (isinstance(each, str) and not each.strip()):
                    continue
                if not isinstance(each, str):
                    raise _make_kind_error("rationale", each, place, "a text, or a list of texts")
                found.append(each)
        return list(dict.fromkeys(found))

    def _make_output(
        self, row: Row, place: str, gold: str | None, rationales: list[str], labels: _Labels
    ) -> TeacherOutput:
        own = None
        if self.teacher_label is not None:
            own = labels.name(take(row, self.teacher_label, place), place)
        if not rationales:
            return TeacherOutput(None, None)
        label = gold if own is None else own
        first, *more = rationales
        return TeacherOutput(label, first, tuple(more), label_is_gold=own is None)


class _Labels:
    """Values as labels, and what was made of which."""

    def __init__(self, given: LabelNames | None, class_names: Sequence[str]) -> None:
        if given is not None and not isinstance(given, Mapping):
            given = dict(enumerate(given))
        self._given = None if given is None else {_write(key): name for key, name in given.items()}
        self._class_names = class_names
        self._made: dict[str, str] = {}  # value as written in the rows -> label

    def name(self, value: object, place: str) -> str | None:
        """The label of a value; None where the row has none."""
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        if not isinstance(value, (str, bool, int, float)):
            raise _make_kind_error("label", value, place, "a text, a number or a truth value")
        written = _write(value)
        if self._given is not None:
            if written not in self._given:
                known = ", ".join(map(repr, self._given))
                raise SourceError(f"{place}: label {written!r} is not in label_names: {known}")
            label = self._given[written]
        elif isinstance(value, str):
            return value
        elif self._class_names and type(value) is int:
            if value == _NO_CLASS:
                return None
            if not 0 <= value < len(self._class_names):
                raise SourceError(
                    f"{place}: class id {value} has no name among {len(self._class_names)}: "
                    f"{_shorten.repr(list(self._class_names))}"
                )
            label = self._class_names[value]
        else:
            label = written
        if len(self._made) <= _MOST_TOLD:
            self._made.setdefault(written, label)
        return label

    def tell(self, where: str, name: str) -> list[str]:
        """One line on what was made of values that are no texts; nothing where all are."""
        if not self._made:
            return []
        told = sorted(self._made.items())[:_MOST_TOLD]
        pairs = ", ".join(f"{value} is {label!r}" for value, label in told)
        more = ", …" if len(self._made) > _MOST_TOLD else ""
        return [f'{where}: of "{name}" as a label {pairs}{more}']


def _write(value: object) -> str:
    """A label's value as a text: `true`, `3` (3.0 as well), `0.5`, or the text itself."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _make_key(value: object, what: str, place: str) -> str:
    """A value as an id, or as a group: a text that is not blank, or a whole number's digits."""
    if type(value) is int or (isinstance(value, str) and value.strip()):
        return str(value)
    raise _make_kind_error(what, value, place, "a text that is not blank, or a whole number")


def _make_kind_error(what: str, value: object, place: str, expected: str) -> SourceError:
    shown = json_lines.show_value(value)
    return SourceError(f"{place}: the {what} is {shown}, expected {expected}")


def take(row: Row, field: Field, place: str) -> object:
    """The value of a column, of a nested field, or of a function.

    Raises:
      SourceError: there is no such column or field.
    """
    if isinstance(field, str):
        return look_up(row, field, place)
    try:
        return field(row)
    except UserError:
        raise
    except Exception as error:
        error.add_note(place)  # task_files.tell_errors tells it with file and line
        raise


def look_up(row: Row, path: str, place: str) -> object:
    """The value at `path`: a column's name, or names and positions with dots between them.

    A list is gone through where a name follows it: `choices.message.content` of a list of choices
    is a list of texts. A null on the way is a null.

    Raises:
      SourceError: there is no such column or field.
    """
    if path in row:
        return row[path]
    found = _follow(row, path.split("."), path, place, row)
    return found


def _follow(value: object, parts: Sequence[str], path: str, place: str, row: Row) -> object:
    if not parts or value is None:
        return value
    name, rest = parts[0], parts[1:]
    if isinstance(value, Mapping) and name in value:
        return _follow(value[name], rest, path, place, row)
    if isinstance(value, list):
        if not name.isdecimal():
            found = [_follow(each, parts, path, place, row) for each in value]
            return [part for each in found for part in (each if isinstance(each, list) else [each])]
        if int(name) < len(value):
            return _follow(value[int(name)], rest, path, place, row)
        raise SourceError(f'{place}: "{path}": a list of {len(value)} has no position {name}')
    names = sorted(map(str, value)) if isinstance(value, Mapping) else sorted(map(str, row))
    raise SourceError(
        f'{place}: no "{path}" among {_shorten.repr(names)}; every row needs one'
        f"{did_you_mean(name, names)}"
    )


def _holds(row: Row, path: str) -> bool:
    return path in row or path.split(".")[0] in row


def choose_held_out(known: Sequence[str]) -> list[str]:
    """The splits that have no rows of their own, in the order in which they are held out."""
    return [split for split in ("test", "validation") if split not in known]


def check_split_names(splits: Mapping[str, object], what: str) -> None:
    """Refuses names of splits that are not ours, and the lack of one to train on.

    Raises:
      UserError: it says which.
    """
    for split in splits:
        if split not in SPLITS:
            raise UserError(
                f"{what}: splits has {split!r}, expected the names {', '.join(SPLITS)}"
                f"{did_you_mean(split, SPLITS)}"
            )
    if "train" not in splits:
        raise UserError(f"{what}: splits names no 'train', only {', '.join(splits) or 'nothing'}")
