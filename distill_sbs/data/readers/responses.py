"""A teacher's outputs as `extract` writes them: JSON Lines, found by id, whatever their order.

Enters: files of `{"id", "raw", "rationale", "label", "sample", "input_hash", …}`, one line an
answer, and beside each a `.settings.json`. Leaves: the answers of one example, and the one that is
kept of several. Half a million lines take some 70 bytes of memory each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Required, TypedDict, cast

from distill_sbs import json_lines
from distill_sbs.data import metrics
from distill_sbs.data.dataset import SourceError, TeacherOutput
from distill_sbs.data.readers import request_description

KEEP = ("all", "parsed", "agreeing")
RATIONALES = ("one", "all")

# `--samples` is a small number; a larger one in a file is not ours.
_MOST_SAMPLES = 1_000_000


class ResponseRow(TypedDict, total=False):
    """One line of an output file of `extract`; others of its fields are passed on as they are.

    Attributes:
      id: of the example.
      label: None where the response holds none, or nothing came.
      rationale: likewise.
      raw: the response as it came; None where none came.
      error: why the example failed for good.
      sample: which of an example's answers it is, counted from 0.
      input_hash: `input_hash` of the text that was asked about.
      finish_reason: why the response ended, in the endpoint's words.
      usage: what it cost, in tokens.
      model: who gave it, in the endpoint's words.
    """

    id: Required[str]
    label: Required[str | None]
    rationale: Required[str | None]
    raw: str | None
    error: str | None
    sample: int
    input_hash: str
    finish_reason: str | None
    usage: object
    model: str | None


def input_hash(text: str) -> str:
    """16 hexadecimal digits of an input's text: an answer belongs to the input it was given to."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest()


def hash_text(text: str) -> int:
    """64 bits that stand for a text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def default_folder(data_dir: str, dataset: str, teacher: str) -> pathlib.Path:
    """Where `extract --teacher` writes, and `prepare --teacher` looks, if no file is named."""
    return pathlib.Path(data_dir) / "teachers" / dataset / teacher


def default_files(data_dir: str, dataset: str, teacher: str) -> list[str]:
    """The output files in `default_folder`; the files of what was kept are copies of lines."""
    folder = default_folder(data_dir, dataset, teacher)
    files = sorted(folder.glob("*.jsonl"))
    return [str(path) for path in files if not path.name.endswith(".kept.jsonl")]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which of an example's answers are kept.

    Attributes:
      keep: "all", "parsed" (those that have a label and a rationale), "agreeing" (whose label is
        the gold one; where there is no gold label, as "parsed").
      rationales: "one" of the samples that voted for the label, or "all" of them.
      equations: whether labels are compared by value.
    """

    keep: str = "all"
    rationales: str = "one"
    equations: bool = False

    @classmethod
    def of(cls, output: str) -> Selection:
        """The selection that an output file's settings ask for."""
        asked = request_description.read(output) or request_description.RequestDescription()
        return cls(asked.keep, asked.rationales, asked.answers == "equation")

    def is_correct(self, gold: str, label: str) -> bool:
        """Whether two labels are the same."""
        check = metrics.equations_match if self.equations else metrics.answers_match
        return check(gold, label)

    def choose(self, rows: Sequence[ResponseRow], gold: str | None) -> list[ResponseRow]:
        """The kept ones of an example's answers, the one to learn from first.

        The labels are voted on (self-consistency); of equal numbers the label that came first
        in the order of samples wins. Without any label the first answer stands for all, unless
        only parsed ones are kept.
        """
        labelled = [(label, row) for row in rows if (label := row.get("label")) is not None]
        if not labelled:
            return list(rows[:1]) if self.keep == "all" else []
        groups: list[tuple[str, list[ResponseRow]]] = []  # each by its first label
        for label, row in labelled:
            for first, group in groups:
                if first == label or self.is_correct(first, label):
                    group.append(row)
                    break
            else:
                groups.append((label, [row]))
        winner, winners = max(groups, key=lambda each: len(each[1]))
        disagrees = gold is not None and not self.is_correct(gold, winner)
        if self.keep == "agreeing" and disagrees:
            return []
        return winners if self.rationales == "all" else winners[:1]


def read_lines(path: str) -> Iterator[tuple[int, ResponseRow]]:
    """Streams (offset in bytes, row) of an output file; a torn last line is passed over.

    Raises:
      SourceError: the file is missing, or a line before the last is broken.
    """
    if not pathlib.Path(path).is_file():
        raise SourceError(f"{path} is missing; expected a JSONL file that extract wrote")
    with open(path, "rb") as file:
        offset = 0
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield offset, _parse_row(line, f"{path}, line {number}")
                except SourceError as error:
                    if not line.endswith(b"\n"):
                        return  # torn: its answer was not there yet
                    raise SourceError(
                        f"{error}. Remove the line: the same extract command asks for its answer "
                        "again"
                    ) from None
            offset += len(line)


def _parse_row(line: bytes, place: str) -> ResponseRow:
    row = json_lines.parse_json(line, place)
    if isinstance(row, dict) and isinstance(row.get("id"), str):
        texts = [row.get(key) for key in ("label", "rationale", "raw", "error")]
        sample = row.get("sample") or 0
        is_whole = isinstance(sample, int) and 0 <= sample < _MOST_SAMPLES
        if {"label", "rationale"} <= set(row) and is_whole and all(map(_is_optional_text, texts)):
            return cast(ResponseRow, row)  # which was checked just above
    raise SourceError(
        f'{place}: {line[:80]!r} is no output of extract; expected objects with "id", "rationale" '
        'and "label"'
    )


def _is_optional_text(value: object) -> bool:
    return value is None or isinstance(value, str)


class AnswerIndex:
    """The answers in some output files, by id: a table in memory of where each line stands.

    Args:
      paths: output files of the same teacher, shards for example.
      on_row: is called with every row as the files are read; False leaves the row out.

    Raises:
      SourceError: a file is missing or broken.
    """

    def __init__(
        self, paths: Sequence[str], on_row: Callable[[ResponseRow], bool] | None = None
    ) -> None:
        self.paths = list(paths)
        self._files: list[BinaryIO] = []
        # One thread at a time asks it; in a notebook that is not the one that made it.
        self._table = sqlite3.connect(":memory:", check_same_thread=False)
        self._table.execute("CREATE TABLE answers (id, sample, file, offset, input_hash)")
        self._table.executemany("INSERT INTO answers VALUES (?, ?, ?, ?, ?)", self._rows(on_row))
        self._table.execute("CREATE INDEX by_id ON answers (id)")
        self._size: int = self._table.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
        self._asked = bytearray(self._size + 1)  # by row number, which SQLite counts from 1

    def _rows(
        self, on_row: Callable[[ResponseRow], bool] | None
    ) -> Iterator[tuple[str, int, int, int, str]]:
        for number, path in enumerate(self.paths):
            for offset, row in read_lines(path):
                if on_row is None or on_row(row):
                    sample = row.get("sample") or 0
                    yield row["id"], sample, number, offset, _optional_hash(row)
            self._files.append(open(path, "rb"))  # noqa: SIM115  (closed in `close`)

    def __len__(self) -> int:
        return self._size

    def close(self) -> None:
        """Closes the files and forgets the table."""
        self._table.close()
        for file in self._files:
            file.close()

    def ids(self) -> Iterator[str]:
        """The ids, once each, in the order of their first answers."""
        query = "SELECT id FROM answers GROUP BY id ORDER BY MIN(rowid)"
        return (example_id for (example_id,) in self._table.execute(query))

    def input_hash_of(self, example_id: str, sample: int) -> str | None:
        """`input_hash` of the text that an answer was given to; '' where its line does not say.

        None: there is no such answer.
        """
        query = "SELECT input_hash FROM answers WHERE id = ? AND sample = ?"
        found = self._table.execute(query, (example_id, sample)).fetchone()
        return None if found is None else found[0]

    def answers(self, example_id: str) -> list[ResponseRow]:
        """An example's answers in the order of samples; a later success replaces a failure."""
        by_sample: dict[int, ResponseRow] = {}
        query = "SELECT rowid, file, offset FROM answers WHERE id = ? ORDER BY rowid"
        for number, file, offset in self._table.execute(query, (example_id,)).fetchall():
            self._asked[number] = True
            row = self._read(file, offset)
            sample = row.get("sample") or 0
            if sample not in by_sample or by_sample[sample].get("error"):
                by_sample[sample] = row
        return [by_sample[sample] for sample in sorted(by_sample)]

    def never_asked_for(self, most: int = 3) -> tuple[int, list[str]]:
        """How many answers have an id that `answers` was not asked for, and some such ids."""
        numbers = [number for number in range(1, self._size + 1) if not self._asked[number]]
        query = "SELECT id FROM answers WHERE rowid = ?"
        some = [self._table.execute(query, (number,)).fetchone()[0] for number in numbers[:most]]
        return len(numbers), some

    def _read(self, file_number: int, offset: int) -> ResponseRow:
        file = self._files[file_number]
        file.seek(offset)
        row: ResponseRow = json.loads(file.readline())
        return row


def _optional_hash(row: ResponseRow) -> str:
    found = row.get("input_hash")
    return found if isinstance(found, str) else ""


def check_same_input(row: ResponseRow, text: str, path: str) -> None:
    """Refuses an answer that was given to another text under the same id.

    Raises:
      SourceError: the hash of that text is another.
    """
    if row.get("input_hash") not in (None, input_hash(text)):
        raise SourceError(
            f"{path}: id {row['id']!r} was answered for another input text than {text[:60]!r}; "
            "the ids belong to another dataset, or the inputs have changed since"
        )


def output_of(rows: Sequence[ResponseRow]) -> TeacherOutput:
    """What is trained on of the answers that `Selection.choose` kept."""
    if not rows or rows[0]["label"] is None or rows[0]["rationale"] is None:
        return TeacherOutput(None, None)
    others = dict.fromkeys(row["rationale"] for row in rows[1:] if row["rationale"])
    others.pop(rows[0]["rationale"], None)
    return TeacherOutput(rows[0]["label"], rows[0]["rationale"], tuple(others))
