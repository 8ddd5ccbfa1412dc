"""JSON Lines: reading them with errors that name file and line, and a user's own dataset in them.

Enters: JSONL files. Leaves: their rows, and `JsonlReader`, the reader of rows shaped
`{"id": "7", "input": "…", "label": "…", "rationale": "…"}`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from etils import epath

from distill_sbs import json_lines
from distill_sbs.data.dataset import Example, RawSplit, SourceError, TeacherOutput
from distill_sbs.data.readers.rows import PlacedExample, make_split
from distill_sbs.json_lines import JsonObject


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
        named = ("test", "validation")
        held_out = [] if self._whole(split) else [n for n in named if getattr(self, n) is None]

        def stream() -> Iterator[PlacedExample]:
            for number, row in read_rows(path):
                place = f"{path}, line {number}"
                example = self._example(row, place, split)
                has_group = row.get("group") is not None
                group = _whole_or_text(row, "group", place) if has_group else None
                yield PlacedExample(example, group, str(path), number)

        return make_split(stream, str(path), split, held_out, self.seed)

    def _whole(self, split: str) -> bool:
        """Whether the split's file belongs to it alone."""
        if split == "train":
            return self.validation is not None and self.test is not None
        return {"validation": self.validation, "test": self.test}[split] is not None

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
