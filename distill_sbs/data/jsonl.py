"""JSON Lines: reading them with errors that name file and line, and a user's own dataset in them.

Enters: JSONL files. Leaves: their rows, and `JsonlReader`, the reader of rows shaped
`{"id": "7", "input": "…", "label": "…", "rationale": "…"}`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from etils import epath

from distill_sbs import json_lines
from distill_sbs.data.dataset import Example, RawSplit, SourceError, TeacherOutput
from distill_sbs.json_lines import JsonObject

# One group of ids in this many is held out where validation, or test, has no file of its own.
HELD_OUT_ONE_IN = 10


def read_rows(path: epath.Path) -> Iterator[tuple[int, JsonObject]]:
    """Streams (line number from 1, object) of a JSON Lines file; blank lines are passed over.

    Raises:
      SourceError: the file is missing, is not UTF-8, or a line holds no JSON object.
    """
    check_file(path)
    yield from json_lines.read_json_lines(path)


def check_file(path: epath.Path) -> None:
    """Refuses what is no file of raw data.

    Raises:
      SourceError: it is missing, or a folder.
    """
    if not path.exists():
        raise SourceError(
            f"{path} is missing; put the file there, correct --source_dir, or name other --splits"
        )
    if path.is_dir():
        raise SourceError(f"{path} is a folder, expected a file; correct --source_dir")


def text_field(row: JsonObject, key: str, place: str) -> str:
    """`row[key]` as a text that is not blank.

    Raises:
      SourceError: the key is missing, or holds something else; `place` (file, line) is named.
    """
    if key not in row:
        names = json_lines.show_value(sorted(row))
        raise SourceError(f'{place}: no "{key}" among {names}; every row needs one')
    text = row[key]
    if not isinstance(text, str) or not text.strip():
        shown = json_lines.show_value(text)
        raise SourceError(f'{place}: "{key}" is {shown}, expected a text that is not blank')
    return text


def _whole_or_text(row: JsonObject, key: str, place: str) -> str:
    """`row[key]` as a text; a whole number is taken as its digits."""
    if isinstance(row.get(key), int) and not isinstance(row[key], bool):
        return str(row[key])
    return text_field(row, key, place)


class _Groups:
    """Ids of which some must stay together: those that share a key, over however many steps."""

    def __init__(self) -> None:
        self._first_of: dict[int, str] = {}  # hash of a key -> the first id that had it
        self._above: dict[str, str | None] = {}  # id -> another of its group, None at the top

    def __len__(self) -> int:
        return len(self._above)

    def add(self, example_id: str, key: tuple[str, str]) -> None:
        """Puts an id into the group of all others that had this key."""
        self._above.setdefault(example_id, None)
        first = self._find_top(self._first_of.setdefault(hash(key), example_id))
        own = self._find_top(example_id)
        if own != first:
            self._above[own] = first

    def _find_top(self, example_id: str) -> str:
        path = []
        while (above := self._above[example_id]) is not None:
            path.append(example_id)
            example_id = above
        for passed in path:
            self._above[passed] = example_id
        return example_id

    def list_groups(self) -> dict[str, list[str]]:
        """The ids of each group, by the first of them in sorted order."""
        by_top: dict[str, list[str]] = {}
        for example_id in self._above:
            by_top.setdefault(self._find_top(example_id), []).append(example_id)
        return {min(ids): ids for ids in by_top.values()}


@dataclasses.dataclass(frozen=True)
class JsonlReader:
    """Reads a user's own data; an instance is the `reader` of a `DatasetSpec`.

    A row is `{"id", "input", "label", "rationale"}`. `id` (text or whole number) is unique in its
    file. `label` is the gold label, or null where there is none. `rationale` is the teacher's, or
    null where it gave none; rows for validation and test may leave it out. `teacher_label`
    (optional) is the label the teacher gave, where it differs from `label`.

    Splits without a file of their own are held out of the training file, 10 % of its ids each: of
    the sorted ids, permuted with `seed`, the first tenth is test, the next is validation. The
    choice depends on the set of ids alone, not on the order of rows. Rows of one input text, and
    rows of one `group` (optional, text or whole number: a document, an author), stay in one split;
    the first of their sorted ids stands for all of them then.

    Attributes:
      teacher: name of the teacher whose rationales these are; also in the spec's `teachers`. None
        where the rows hold none; `prepare --teacher` joins a teacher's outputs later.
      train: the training file, relative to the source folder (or an absolute path).
      validation: the validation file; None holds out a tenth of the training file.
      test: the test file; None holds out a tenth of the training file.
      seed: of the held-out tenths.
    """

    train: str
    validation: str | None = None
    test: str | None = None
    seed: int = 0
    teacher: str | None = None

    def __call__(self, source_dir: epath.Path, split: str) -> RawSplit:
        """Checks every row of the split's file, then hands over the split.

        Raises:
          SourceError: a missing file, broken JSON, a missing key, a duplicate id.
        """
        file = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        path = epath.Path(source_dir) / (file or self.train)
        ids, repeated = self._check_rows(path, split)
        if not len(ids):
            raise SourceError(f"{path} holds no rows; expected at least one")
        chosen = None if self._whole(split) else self._ids_of_split(ids, split, path)
        warnings = []
        if repeated:
            warnings.append(
                f"{path}: {repeated:,} of {len(ids):,} rows repeat the input text of an earlier "
                "row; they stay in one split, and count as examples of their own (several "
                "rationales of one input: prepare --teacher_outputs, see docs/data.md)"
            )

        def examples() -> Iterator[Example]:
            for number, row in read_rows(path):
                example = self._example(row, f"{path}, line {number}", split)
                if chosen is None or example.id in chosen:
                    yield example

        size = len(ids) if chosen is None else len(chosen)
        return RawSplit(size, examples, tuple(warnings))

    def _whole(self, split: str) -> bool:
        """Whether the split's file belongs to it alone."""
        if split == "train":
            return self.validation is not None and self.test is not None
        return {"validation": self.validation, "test": self.test}[split] is not None

    def _check_rows(self, path: epath.Path, split: str) -> tuple[_Groups, int]:
        """Checks every row; returns what must stay together, and how many rows repeat an input."""
        lines: dict[str, int] = {}
        groups = _Groups()
        inputs: set[int] = set()
        for number, row in read_rows(path):
            place = f"{path}, line {number}"
            example = self._example(row, place, split)
            if example.id in lines:
                raise SourceError(
                    f"{place}: id {example.id!r} stands on line {lines[example.id]} "
                    "too; ids choose the training subset, so each may stand once"
                )
            lines[example.id] = number
            inputs.add(hash(example.input))
            groups.add(example.id, ("input", example.input))
            if row.get("group") is not None:
                groups.add(example.id, ("group", _whole_or_text(row, "group", place)))
        return groups, len(lines) - len(inputs)

    def _ids_of_split(self, ids: _Groups, split: str, path: epath.Path) -> set[str]:
        held_out = [name for name in ("test", "validation") if getattr(self, name) is None]
        groups = ids.list_groups()
        count = max(1, len(groups) // HELD_OUT_ONE_IN)
        if len(groups) <= count * len(held_out):
            different = "" if len(groups) == len(ids) else f" in {len(groups)} groups"
            raise SourceError(
                f"{path} holds {len(ids)} rows{different}, too few to hold out "
                f"{' and '.join(held_out)}; "
                f"give more rows, or a file for {' and '.join(held_out)}"
            )
        in_order = sorted(groups)
        permuted = [in_order[i] for i in np.random.default_rng(self.seed).permutation(len(groups))]
        if split == "train":
            chosen = permuted[count * len(held_out) :]
        else:
            start = count * held_out.index(split)
            chosen = permuted[start : start + count]
        return {example_id for first in chosen for example_id in groups[first]}

    def _example(self, row: JsonObject, place: str, split: str) -> Example:
        example_id = _whole_or_text(row, "id", place)
        label = None if row.get("label", "") is None else text_field(row, "label", place)
        outputs: dict[str, TeacherOutput] = {}
        if self.teacher is not None and ("rationale" in row or split == "train"):
            if row.get("rationale", "") is None:
                outputs[self.teacher] = TeacherOutput(label=None, rationale=None)
            else:
                teacher_label = (
                    label
                    if row.get("teacher_label") is None
                    else text_field(row, "teacher_label", place)
                )
                outputs[self.teacher] = TeacherOutput(
                    label=teacher_label,
                    rationale=text_field(row, "rationale", place),
                    label_is_gold=row.get("teacher_label") is None,
                )
        return Example(
            id=example_id,
            input=text_field(row, "input", place),
            label=label,
            teacher_outputs=outputs,
        )
