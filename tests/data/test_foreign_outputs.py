"""foreign_outputs: what distilabel, EasyDistill and batch APIs write, joined like extract's."""

from __future__ import annotations

import json
import pathlib

import pyarrow
import pytest
from pyarrow import parquet

from distill_sbs import prepare
from distill_sbs.data import metrics
from distill_sbs.data.dataset import DatasetSpec, SourceError
from distill_sbs.data.jsonl import JsonlReader
from distill_sbs.data.readers import foreign_outputs
from distill_sbs.data.records import build, joining
from distill_sbs.errors import UserError

PARSER = """
def parse(response, input):
    rationale, marker, label = response.partition(" So: ")
    return (label, rationale) if marker else None
"""


def write(path: pathlib.Path, rows: list) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def spec(tmp_path: pathlib.Path) -> DatasetSpec:
    write(
        tmp_path / "mine.jsonl",
        [{"id": f"q{number}", "input": f"in {number}", "label": "yes"} for number in range(3)],
    )
    files = dict.fromkeys(("validation", "test"), "mine.jsonl")
    reader = JsonlReader(train="mine.jsonl", **files)
    spec = DatasetSpec("mine", reader, metrics.answers_match, splits=("train",))
    build.prepare_dataset(spec, tmp_path, tmp_path / "data")
    return spec


def join(spec: DatasetSpec, folder: pathlib.Path, rows: list, columns: list, parser: str = ""):
    """What the training records hold of the teacher: (label, rationale, more) by id."""
    path = write(folder / "outputs.jsonl", rows)
    parser_path = None
    if parser:
        (folder / "parser.py").write_text(parser)
        parser_path = str(folder / "parser.py")
    prepare._join_foreign(spec, str(folder / "data"), None, "t", [path], columns, parser_path)
    found = joining.read_examples(folder / "data", "mine", "train", "t")
    outputs = {example.id: example.teacher_outputs["t"] for example in found}
    return {name: (o.label, o.rationale, o.more_rationales) for name, o in outputs.items()}


def test_batch_api_with_several_choices(tmp_path: pathlib.Path, spec: DatasetSpec) -> None:
    def row(example_id: str, *texts: str) -> dict:
        choices = [{"message": {"content": text}} for text in texts]
        return {"custom_id": example_id, "response": {"body": {"choices": choices}}}

    failed = {"custom_id": "q2", "response": None}
    rows = [row("q1", "a So: no", "b So: yes", "c So: yes"), row("q0", "none"), failed]
    columns = ["id:custom_id", "response:response.body.choices.message.content"]
    assert join(spec, tmp_path, rows, columns, PARSER) == {
        "q0": (None, None, ()),
        "q1": ("yes", "b", ("c",)),  # two of three voted for it
        "q2": (None, None, ()),
    }


def test_found_by_input_with_lists(tmp_path: pathlib.Path, spec: DatasetSpec) -> None:
    rows = [
        {"instruction": " in 0\n", "generations": ["r", "s"], "answer": "yes"},
        {"instruction": "in 1", "generations": ["u"], "answer": "no"},
        {"instruction": "in 1", "generations": ["v"], "answer": "no"},
    ]
    columns = ["input:instruction", "rationale:generations", "label:answer"]
    assert join(spec, tmp_path, rows, columns) == {
        "q0": ("yes", "r", ("s",)),
        "q1": ("no", "u", ("v",)),
        "q2": (None, None, ()),
    }


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"i": "other", "r": "x"}, "line 1: no prepared example has the input 'other'"),
        ({"r": "x"}, 'line 1: no "i" among'),
        (
            {"i": "in 0", "r": "boom"},
            r"line 1: parse raises ZeroDivisionError: .*parser.py, line 3",
        ),
        ({"i": "in 0", "r": "bad"}, "line 1: parse returns 'bad', expected"),
    ],
)
def test_bad_rows(tmp_path: pathlib.Path, spec: DatasetSpec, row: dict, told: str) -> None:
    parser = "def parse(response, input):\n    if response == 'boom':\n        1 / 0\n"
    parser += "    return response\n"
    with pytest.raises(SourceError, match=told):
        join(spec, tmp_path, [row], ["input:i", "response:r"], parser)


def test_a_row_of_parquet_is_called_a_row(tmp_path: pathlib.Path, spec: DatasetSpec) -> None:
    path = tmp_path / "outputs.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"i": "in 0", "r": "x"}, {"i": "?"}]), path)
    with pytest.raises(SourceError, match="outputs.parquet, row 2: no prepared example has"):
        prepare._join_foreign(
            spec,
            str(tmp_path / "data"),
            None,
            "t",
            [str(path)],
            ["input:i", "rationale:r", "label:i"],
            None,
        )


@pytest.mark.parametrize(
    ("columns", "has_parser", "told"),
    [
        (["ids:x"], False, "'ids:x', expected NAME:COLUMN .*did you mean id"),
        (["label:x", "rationale:y"], False, "neither id nor input"),
        (["id:x", "response:y"], False, "go together"),
        (["id:x", "label:y"], False, "no label and rationale"),
    ],
)
def test_bad_columns(columns: list, has_parser: bool, told: str) -> None:
    with pytest.raises(UserError, match=told):
        foreign_outputs.parse_columns(columns, has_parser)
