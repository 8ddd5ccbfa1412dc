"""Readers of the published raw data: the layout of `datasets.zip`, and ASDiv's XML.

Enters: a folder with `{dataset}/{dataset}_{train,valid,test}.json` (JSON Lines) and PaLM's raw
outputs `{dataset}/llm/{split}_CoT_{k}.json` (lists of texts; the lists, in the order of k, go with
the inputs by position), and `asdiv/ASDiv.xml`. Leaves: `RawSplit`s with parsed teacher outputs.

Inputs and splits are those of the published implementation (google-research/
distilling-step-by-step, data_utils.py and run.py). A reader checks every file of its split before
it hands the split over, so that a broken one is found before any long work begins.
"""

from __future__ import annotations

import abc
import dataclasses
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from etils import epath

from distill_sbs import json_lines
from distill_sbs.data import metrics
from distill_sbs.data.dataset import Example, RawSplit, SourceError, TeacherOutput
from distill_sbs.data.jsonl import check_file, read_rows, text_field
from distill_sbs.data.readers import palm_outputs
from distill_sbs.json_lines import JsonObject

TEACHER = "palm"

# The text of T5's end-of-sequence token, which the published implementation puts between premise
# and hypothesis. It stays text in the records; the vocabulary turns it into the token.
END_OF_SEQUENCE = "</s>"

_PUBLISHED_NAMES = {"train": "train", "validation": "valid", "test": "test"}
_CHUNK_NUMBER = re.compile(r"_CoT_([0-9]+)\.json$")

# (row of the inputs file, its place for errors) -> (input, gold label).
_RowText = Callable[[JsonObject, str], tuple[str, str | None]]
_OutputParser = Callable[[str], TeacherOutput]


@dataclasses.dataclass(frozen=True)
class PublishedReader(abc.ABC):
    """A `Reader` of the published layout; the datasets' own readers derive from it.

    Attributes:
      dataset: the dataset's name, that of its folder.
      teacher: what to call the teacher whose outputs lie in `llm/`; None leaves them out.
    """

    dataset: str
    teacher: str | None = dataclasses.field(default=TEACHER, kw_only=True)

    def with_teacher(self, teacher: str | None) -> PublishedReader:
        """The same reader for another teacher's outputs in the same files, or for none."""
        return dataclasses.replace(self, teacher=teacher)

    @abc.abstractmethod
    def __call__(self, source_dir: epath.Path, split: str) -> RawSplit:
        """Checks every file of the split, then hands it over; raises SourceError."""

    def _join(
        self,
        rows: Iterator[Example],
        chunks: Sequence[epath.Path] | None,
        parse_output: _OutputParser,
    ) -> Iterator[Example]:
        """The rows with the teacher's output of the same position; None are no outputs."""
        if chunks is None or self.teacher is None:
            yield from rows
            return
        for row, raw in zip(rows, _outputs(chunks), strict=True):
            parsed = parse_output(raw)
            if parsed.label is None:
                parsed = dataclasses.replace(parsed, raw=raw)
            yield dataclasses.replace(row, teacher_outputs={self.teacher: parsed})


@dataclasses.dataclass(frozen=True)
class _Layout(PublishedReader):
    """Where the files of one published dataset lie, and how its rows read."""

    row_text: _RowText
    parse_output: _OutputParser
    id_key: str | None = None
    held_out_validation: bool = False

    def __call__(self, source_dir: epath.Path, split: str) -> RawSplit:
        held_out = self.held_out_validation and split in ("train", "validation")
        published_split = "train" if held_out else _PUBLISHED_NAMES[split]
        folder = epath.Path(source_dir) / self.dataset
        inputs = folder / f"{self.dataset}_{published_split}.json"
        size, ids_are_unique = self._check_inputs(inputs)
        chunks = None
        if self.teacher is not None:
            chunks = _output_chunks(folder / "llm", published_split)
            _check_count(inputs, size, folder / "llm", published_split, chunks)

        def examples() -> Iterator[Example]:
            rows = self._rows(inputs, published_split, ids_are_unique)
            return self._join(rows, chunks, self.parse_output)

        if not held_out:
            return RawSplit(size, examples)
        # Permuted order needs every row at hand; the two datasets split like this are small.
        chosen = held_out_positions(size)[split]

        def chosen_examples() -> Iterator[Example]:
            rows = list(examples())
            return (rows[position] for position in chosen)

        return RawSplit(len(chosen), chosen_examples)

    def read_inputs(self, path: epath.Path) -> RawSplit:
        """One inputs file alone, `{dataset}_{split}.json`: the ids are those of the records.

        Raises:
          SourceError: a missing or malformed file.
        """
        size, ids_are_unique = self._check_inputs(path)
        split = path.stem.removeprefix(f"{self.dataset}_")
        return RawSplit(size, lambda: self._rows(path, split, ids_are_unique))

    def _rows(self, path: epath.Path, split: str, ids_are_unique: bool) -> Iterator[Example]:
        """The rows of an inputs file, without teacher outputs."""
        for position, (number, row) in enumerate(read_rows(path)):
            text, label = self.row_text(row, f"{path}, line {number}")
            own_id = row[self.id_key] if self.id_key and ids_are_unique else None
            yield Example(
                id=f"{self.dataset}-{split}-{position}" if own_id is None else str(own_id),
                input=text,
                label=label,
            )

    def _check_inputs(self, path: epath.Path) -> tuple[int, bool]:
        """Reads every row once; returns their number and whether the ids in them are unique."""
        size, ids = 0, set()
        for number, row in read_rows(path):
            place = f"{path}, line {number}"
            self.row_text(row, place)
            if self.id_key:
                ids.add(text_field(row, self.id_key, place))
            size += 1
        if not size:
            raise SourceError(f"{path} holds no rows; expected at least one")
        return size, len(ids) == size


def held_out_positions(size: int) -> dict[str, Sequence[int]]:
    """Positions of the training rows that make `train` and `validation`, in order.

    What HuggingFace datasets' `train_test_split(test_size=0.1, seed=0)` does: of the permutation
    by `numpy.random.default_rng(0)`, the first ⌈size / 10⌉ are validation, the others are train.
    """
    permuted = np.random.default_rng(0).permutation(size).tolist()
    count = math.ceil(size * 0.1)
    return {"validation": permuted[:count], "train": permuted[count:]}


def _output_chunks(folder: epath.Path, split: str) -> list[epath.Path]:
    """The teacher's files of a split in the order of their numbers, which start at 0."""
    numbered = {}
    if folder.exists():
        for path in folder.iterdir():
            match = _CHUNK_NUMBER.search(path.name)
            if match and path.name.startswith(f"{split}_CoT_"):
                numbered[int(match[1])] = path
    if not numbered:
        raise SourceError(
            f"{folder}/{split}_CoT_0.json is missing: there are no teacher outputs for the "
            f"published split {split!r}; unpack the whole of datasets.zip, or prepare other splits "
            "with --splits"
        )
    missing = sorted(set(range(max(numbered) + 1)) - set(numbered))
    if missing:
        raise SourceError(
            f"{folder}/{split}_CoT_{missing[0]}.json is missing though "
            f"{split}_CoT_{max(numbered)}.json is there; the files go with the inputs by position, "
            "so every one is needed"
        )
    return [numbered[number] for number in sorted(numbered)]


def _chunk_texts(path: epath.Path) -> list[str]:
    check_file(path)
    texts = json_lines.read_json(path)
    if not isinstance(texts, list):
        raise SourceError(
            f"{path}: expected a JSON list of texts, one an input, got {type(texts).__name__}"
        )
    checked = []
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise SourceError(
                f"{path}: expected a JSON list of texts, one an input; number {position + 1} is "
                f"{json_lines.show_value(text)}"
            )
        checked.append(text)
    return checked


def _outputs(chunks: Sequence[epath.Path]) -> Iterator[str]:
    """The teacher's texts in order, one file in memory at a time."""
    for path in chunks:
        yield from _chunk_texts(path)


def _check_count(
    inputs: epath.Path, size: int, folder: epath.Path, split: str, chunks: Sequence[epath.Path]
) -> None:
    count = sum(1 for _ in _outputs(chunks))
    if count != size:
        raise SourceError(
            f"{inputs} holds {size} rows, but the {len(chunks)} files {folder}/{split}_CoT_*.json "
            f"hold {count} teacher outputs; they go together by position, so the numbers must be "
            "equal: take both from the same release"
        )


def _cqa_text(row: JsonObject, place: str) -> tuple[str, str]:
    choices = row.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, str) for choice in choices):
        shown = json_lines.show_value(choices)
        raise SourceError(f'{place}: "choices" is {shown}, expected a list of texts')
    lettered = [f"({chr(ord('a') + i)}) {choice}" for i, choice in enumerate(choices)]
    lines = [text_field(row, "question", place), "Answer Choices:", *lettered]
    return "\n".join(lines), text_field(row, "answer", place)


def _svamp_text(row: JsonObject, place: str) -> tuple[str, str]:
    return text_field(row, "input", place), text_field(row, "label", place)


def _nli_text(row: JsonObject, place: str) -> tuple[str, str]:
    label = row.get("label")
    names = palm_outputs.NLI_LABELS
    if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < len(names):
        known = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
        raise SourceError(
            f"{place}: unknown label {json_lines.show_value(label)}; the labels are {known}"
        )
    pair = (text_field(row, "premise", place), text_field(row, "hypothesis", place))
    return END_OF_SEQUENCE.join(pair), names[label]


# Each is a `Reader`: (source_dir, split) -> RawSplit; raises SourceError.
read_cqa = _Layout("cqa", _cqa_text, palm_outputs.parse_cqa, id_key="id", held_out_validation=True)
read_svamp = _Layout("svamp", _svamp_text, palm_outputs.parse_svamp, held_out_validation=True)
read_esnli = _Layout("esnli", _nli_text, palm_outputs.parse_esnli)
read_anli1 = _Layout("anli1", _nli_text, palm_outputs.parse_anli, id_key="uid")

# By dataset name: `read_inputs` reads an inputs file without outputs, `parse_output` one output.
LAYOUTS = {layout.dataset: layout for layout in (read_cqa, read_svamp, read_esnli, read_anli1)}


def _asdiv_label(formula: str, answer: str) -> str | None:
    """The left side of `formula` where it is arithmetic that gives `answer`, else None.

    Remainders ("810/4=202 r2"), unknowns, LCM and the like have no single expression.
    """
    expression = formula.partition("=")[0].strip()
    stated = answer.split("(")[0].strip()
    return expression if metrics.equations_match(expression, stated) else None


class _AsdivReader(PublishedReader):
    """ASDiv's problems, which augment SVAMP's training set: there is only a train split.

    No teacher outputs were published for it; if `asdiv/llm/train_CoT_*.json` exists (made with
    `extract`, say) it is joined as SVAMP's is.
    """

    def __call__(self, source_dir: epath.Path, split: str) -> RawSplit:
        """Checks the file and hands it over.

        Raises:
          SourceError: another split than train, a missing or malformed file, a count mismatch.
        """
        if split != "train":
            raise SourceError(
                f"asdiv has no {split} split: it augments SVAMP's training set; use --splits=train"
            )
        folder = epath.Path(source_dir) / "asdiv"
        path = folder / "ASDiv.xml"
        rows = _read_problems(path)
        chunks = None
        if (folder / "llm").exists() and self.teacher is not None:
            chunks = _output_chunks(folder / "llm", "train")
            _check_count(path, len(rows), folder / "llm", "train", chunks)
        return RawSplit(len(rows), lambda: self._join(iter(rows), chunks, palm_outputs.parse_svamp))


read_asdiv = _AsdivReader("asdiv")


def _read_problems(path: epath.Path) -> list[Example]:
    """The `<Problem>`s of ASDiv's file; raises SourceError."""
    check_file(path)
    try:
        problems = list(ElementTree.fromstring(path.read_bytes()).iter("Problem"))
    except ElementTree.ParseError as error:
        line, column = error.position
        reason = str(error).partition(": line ")[0]
        raise SourceError(
            f"{path}, line {line}: broken XML ({reason} at column {column})"
        ) from error
    except (LookupError, ValueError) as error:  # of the encoding that the file says it is in
        raise SourceError(f"{path}, line 1: {error}; save it as UTF-8") from error
    if not problems:
        raise SourceError(f"{path} holds no <Problem>; expected ASDiv's 2,305")

    def text_of(problem: ElementTree.Element, tag: str) -> str:
        text = (problem.findtext(tag) or "").strip()
        if not text:
            raise SourceError(f"{path}: problem {problem.get('ID')} has no {tag}")
        return text

    rows = {}
    for position, problem in enumerate(problems):
        example_id = problem.get("ID") or f"asdiv-train-{position}"
        if example_id in rows:
            raise SourceError(f"{path}: two problems have the ID {example_id!r}; expected one each")
        rows[example_id] = Example(
            id=example_id,
            input=f"{text_of(problem, 'Body')}\n{text_of(problem, 'Question')}",
            label=_asdiv_label(text_of(problem, "Formula"), text_of(problem, "Answer")),
        )
    return list(rows.values())
