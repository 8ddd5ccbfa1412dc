"""JSON Lines: reading them with errors that name file and line, and a user's own dataset in them.

Enters: JSONL files. Leaves: their rows, and `JsonlReader`, the reader of rows shaped
`{"id": "7", "input": "…", "label": "…", "rationale": "…"}`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

from distill_sbs import json_lines
from distill_sbs.data.dataset import Example, RawSplit, SourceError, TeacherOutput

# One in this many ids is held out where validation, or test, has no file of its own.
HELD_OUT_ONE_IN = 10


def read_rows(path: epath.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Streams (line number from 1, object) of a JSON Lines file; blank lines are passed over.

    Raises:
      SourceError: the file is missing, is not UTF-8, or a line holds no JSON object.
    """
    if not path.exists():
        raise SourceError(
            f"{path} is missing; put the file there, correct --source_dir, or name other --splits"
        )
    yield from json_lines.read_json_lines(path)


def text_field(row: dict[str, Any], key: str, place: str) -> str:
    """`row[key]` as a text that is not blank.

    Raises:
      SourceError: the key is missing, or holds something else; `place` (file, line) is named.
    """
    if key not in row:
        raise SourceError(f'{place}: no "{key}" among {sorted(row)}; every row needs one')
    if not isinstance(row[key], str) or not row[key].strip():
        raise SourceError(f'{place}: "{key}" is {row[key]!r}, expected a text that is not blank')
    return row[key]


@dataclasses.dataclass(frozen=True)
class JsonlReader:
    """Reads a user's own data; an instance is the `reader` of a `DatasetSpec`.

    A row is `{"id", "input", "label", "rationale"}`. `id` (text or whole number) is unique in its
    file. `label` is the gold label, or null where there is none. `rationale` is the teacher's, or
    null where it gave none; rows for validation and test may leave it out. `teacher_label`
    (optional) is the label the teacher gave, where it differs from `label`.

    Splits without a file of their own are held out of the training file, 10 % of its ids each: of
    the sorted ids, permuted with `seed`, the first tenth is test, the next is validation. The
    choice depends on the set of ids alone, not on the order of rows.

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
        ids = self._checked_ids(path, split)
        if not ids:
            raise SourceError(f"{path} holds no rows; expected at least one")
        chosen = None if self._whole(split) else self._ids_of_split(ids, split, path)

        def examples() -> Iterator[Example]:
            for number, row in read_rows(path):
                example = self._example(row, f"{path}, line {number}", split)
                if chosen is None or example.id in chosen:
                    yield example

        return RawSplit(size=len(ids) if chosen is None else len(chosen), examples=examples)

    def _whole(self, split: str) -> bool:
        """Whether the split's file belongs to it alone."""
        if split == "train":
            return self.validation is not None and self.test is not None
        return {"validation": self.validation, "test": self.test}[split] is not None

    def _checked_ids(self, path: epath.Path, split: str) -> list[str]:
        lines: dict[str, int] = {}
        for number, row in read_rows(path):
            example = self._example(row, f"{path}, line {number}", split)
            if example.id in lines:
                raise SourceError(
                    f"{path}, line {number}: id {example.id!r} stands on line {lines[example.id]} "
                    "too; ids choose the training subset, so each may stand once"
                )
            lines[example.id] = number
        return list(lines)

    def _ids_of_split(self, ids: list[str], split: str, path: epath.Path) -> set[str]:
        held_out = [name for name in ("test", "validation") if getattr(self, name) is None]
        count = max(1, len(ids) // HELD_OUT_ONE_IN)
        if len(ids) <= count * len(held_out):
            raise SourceError(
                f"{path} holds {len(ids)} rows, too few to hold out {' and '.join(held_out)}; "
                f"give more rows, or a file for {' and '.join(held_out)}"
            )
        in_order = sorted(ids)
        permuted = [in_order[i] for i in np.random.default_rng(self.seed).permutation(len(ids))]
        if split == "train":
            return set(permuted[count * len(held_out) :])
        start = count * held_out.index(split)
        return set(permuted[start : start + count])

    def _example(self, row: dict[str, Any], place: str, split: str) -> Example:
        if isinstance(row.get("id"), int) and not isinstance(row["id"], bool):
            row["id"] = str(row["id"])
        example_id = text_field(row, "id", place)
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
                    label=teacher_label, rationale=text_field(row, "rationale", place)
                )
        return Example(
            id=example_id,
            input=text_field(row, "input", place),
            label=label,
            teacher_outputs=outputs,
        )
