"""A teacher's outputs as `extract` writes them: JSON Lines, found by id, whatever their order.

Enters: files of `{"id", "raw", "rationale", "label", "sample", "input_hash", …}`, one line an
answer, and beside each a `.settings.json`. Leaves: the answers of one example, and the one that is
kept of several. Half a million lines take 16 bytes of memory each.
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np

from distill_sbs.data import metrics
from distill_sbs.data.dataset import SourceError, TeacherOutput

SETTINGS_SUFFIX = ".settings.json"
KEEP = ("all", "parsed", "agreeing")
RATIONALES = ("one", "all")

# An answer's place: the number of its file in the upper bits, the offset in the lower ones.
_OFFSET_BITS = 48


def input_hash(text: str) -> str:
    """16 hexadecimal digits of an input's text: an answer belongs to the input it was given to."""
    return hashlib.blake2b(text.encode("utf-8"), digest_size=8).hexdigest()


def number_of(text: str) -> int:
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


def settings_path(output: str) -> pathlib.Path:
    """The file beside an output file that says how it was asked for."""
    return pathlib.Path(output + SETTINGS_SUFFIX)


def read_settings(output: str) -> dict[str, Any]:
    """What the settings file says; {} where there is none.

    Raises:
      SourceError: it is no JSON object.
    """
    path = settings_path(output)
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise SourceError(f"{path} is broken ({error}); restore it, or remove it") from None
    if not isinstance(settings, dict):
        raise SourceError(f"{path}: expected a JSON object; restore it, or remove it")
    return settings


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
        settings = read_settings(output)
        return cls(
            keep=settings.get("keep", "all"),
            rationales=settings.get("rationales", "one"),
            equations=settings.get("answers") == "equation",
        )

    def is_correct(self, gold: str, label: str) -> bool:
        """Whether two labels are the same."""
        check = metrics.equations_match if self.equations else metrics.answers_match
        return check(gold, label)

    def choose(self, rows: Sequence[dict[str, Any]], gold: str | None) -> list[dict[str, Any]]:
        """The kept ones of an example's answers, the one to learn from first.

        The labels are voted on (self-consistency); of equal numbers the label that came first
        in the order of samples wins. Without any label the first answer stands for all, unless
        only parsed ones are kept.
        """
        labelled = [row for row in rows if row.get("label") is not None]
        if not labelled:
            return list(rows[:1]) if self.keep == "all" else []
        camps: list[list[dict[str, Any]]] = []
        for row in labelled:
            for camp in camps:
                if (
                    self.is_correct(camp[0]["label"], row["label"])
                    or camp[0]["label"] == (row["label"])
                ):
                    camp.append(row)
                    break
            else:
                camps.append([row])
        winners = max(camps, key=len)
        disagrees = gold is not None and not self.is_correct(gold, winners[0]["label"])
        if self.keep == "agreeing" and disagrees:
            return []
        return winners if self.rationales == "all" else winners[:1]


def read_lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Streams (offset in bytes, row) of an output file; a torn last line is passed over.

    Raises:
      SourceError: the file is missing, or a line before the last is broken.
    """
    if not pathlib.Path(path).is_file():
        raise SourceError(f"{path} is missing; expected a JSONL file that extract wrote")
    with open(path, "rb") as file:
        offset = 0
        for number, line in enumerate(file, start=1):
            row = _row(line)
            if row is None and not line.endswith(b"\n"):
                return  # torn: its answer was not there yet
            if row is None and line.strip():
                raise SourceError(
                    f"{path}, line {number}: {line[:80]!r} is no output of extract; expected "
                    'objects with "id", "rationale" and "label". Remove the line: the same '
                    "extract command asks for its answer again"
                )
            if row is not None:
                yield offset, row
            offset += len(line)


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    is_output = isinstance(row, dict) and isinstance(row.get("id"), str)
    return row if is_output and {"label", "rationale"} <= set(row) else None


class AnswerIndex:
    """The answers in some output files, by id.

    Args:
      paths: output files of the same teacher, shards for example.
      on_row: is called with every row as the files are read.
    """

    def __init__(
        self, paths: Sequence[str], on_row: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        self.paths = list(paths)
        self._files: list[BinaryIO] = []
        numbers, places = array.array("Q"), array.array("Q")
        for file_number, path in enumerate(self.paths):
            for offset, row in read_lines(path):
                numbers.append(number_of(row["id"]))
                places.append(file_number << _OFFSET_BITS | offset)
                if on_row is not None:
                    on_row(row)
            self._files.append(open(path, "rb"))  # noqa: SIM115  (closed in `close`)
        all_numbers = np.frombuffer(numbers, np.uint64) if numbers else np.zeros(0, np.uint64)
        order = np.argsort(all_numbers, kind="stable")
        self._numbers = all_numbers[order]
        all_places = np.frombuffer(places, np.uint64) if places else np.zeros(0, np.uint64)
        self._places = all_places[order]
        self._asked = np.zeros(len(order), bool)

    def __len__(self) -> int:
        return len(self._numbers)

    def close(self) -> None:
        """Closes the files."""
        for file in self._files:
            file.close()

    def answers(self, example_id: str) -> list[dict[str, Any]]:
        """An example's answers in the order of samples; a later success replaces a failure."""
        number = np.uint64(number_of(example_id))
        first = int(np.searchsorted(self._numbers, number, "left"))
        last = int(np.searchsorted(self._numbers, number, "right"))
        self._asked[first:last] = True
        by_sample: dict[int, dict[str, Any]] = {}
        for place in self._places[first:last]:
            row = self._read(int(place))
            sample = row.get("sample") or 0
            if row["id"] == example_id and (
                sample not in by_sample or by_sample[sample].get("error")
            ):
                by_sample[sample] = row
        return [by_sample[sample] for sample in sorted(by_sample)]

    def never_asked_for(self, most: int = 3) -> tuple[int, list[str]]:
        """How many answers have an id that `answers` was not asked for, and some such ids."""
        places = self._places[~self._asked]
        return len(places), [self._read(int(place))["id"] for place in places[:most]]

    def _read(self, place: int) -> dict[str, Any]:
        file = self._files[place >> _OFFSET_BITS]
        file.seek(place & ((1 << _OFFSET_BITS) - 1))
        return json.loads(file.readline())


def check_same_input(row: dict[str, Any], text: str, path: str) -> None:
    """Refuses an answer that was given to another text under the same id.

    Raises:
      SourceError: as said.
    """
    if row.get("input_hash") not in (None, input_hash(text)):
        raise SourceError(
            f"{path}: id {row['id']!r} was answered for another input text than {text[:60]!r}; "
            "the ids belong to another data set, or the inputs have changed since"
        )


def output_of(rows: Sequence[dict[str, Any]]) -> TeacherOutput:
    """What is trained on of the answers that `Selection.choose` kept."""
    if not rows or rows[0]["label"] is None or rows[0]["rationale"] is None:
        return TeacherOutput(None, None)
    return TeacherOutput(rows[0]["label"], rows[0]["rationale"])
