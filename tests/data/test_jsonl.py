"""jsonl: a user's own rows, and errors that name file and line."""

from __future__ import annotations

import json
import pathlib

import pytest
from etils import epath

from distill_sbs.data.dataset import SourceError, TeacherOutput
from distill_sbs.data.jsonl import JsonlReader


def row(number: int, **changes) -> dict:
    return {
        "id": f"q{number}",
        "input": f"in {number}",
        "label": "yes",
        "rationale": "why",
        **changes,
    }


def write(path: pathlib.Path, rows: list) -> None:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    path.write_text("\n".join(lines) + "\n")


def read(folder: pathlib.Path, split: str, **files):
    raw_split = JsonlReader(teacher="gpt", **files)(epath.Path(folder), split)
    examples = list(raw_split.examples())
    assert len(examples) == raw_split.size
    return examples


def test_one_file_a_split(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "a.jsonl", [row(1), "", row(2, teacher_label="no"), row(3, rationale=None)])
    write(tmp_path / "b.jsonl", [{"id": 7, "input": "x", "label": None}])
    files = {"train": "a.jsonl", "validation": "b.jsonl", "test": "b.jsonl"}
    first, second, third = read(tmp_path, "train", **files)
    assert (first.id, first.input, first.label) == ("q1", "in 1", "yes")
    assert first.teacher_outputs == {"gpt": TeacherOutput("yes", "why")}
    assert second.teacher_outputs == {"gpt": TeacherOutput("no", "why")}
    assert third.teacher_outputs == {"gpt": TeacherOutput(None, None)}
    (only,) = read(tmp_path, "validation", **files)
    assert (only.id, only.label, only.teacher_outputs) == ("7", None, {})


def test_held_out_tenths(tmp_path: pathlib.Path) -> None:
    rows = [row(number) for number in range(40)]
    write(tmp_path / "a.jsonl", rows)
    splits = {
        split: [example.id for example in read(tmp_path, split, train="a.jsonl")]
        for split in ("train", "validation", "test")
    }
    assert {split: len(ids) for split, ids in splits.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert sorted(sum(splits.values(), [])) == sorted(r["id"] for r in rows)

    write(tmp_path / "a.jsonl", rows[::-1])  # the order of rows does not matter
    for split, ids in splits.items():
        again = [example.id for example in read(tmp_path, split, train="a.jsonl")]
        assert again == ids[::-1]
    other_seed = [example.id for example in read(tmp_path, "test", train="a.jsonl", seed=1)]
    assert set(other_seed) != set(splits["test"])


def test_only_validation_held_out(tmp_path: pathlib.Path) -> None:
    write(tmp_path / "a.jsonl", [row(number) for number in range(20)])
    write(tmp_path / "b.jsonl", [row(1)])
    files = {"train": "a.jsonl", "test": "b.jsonl"}
    assert len(read(tmp_path, "train", **files)) == 18
    assert len(read(tmp_path, "validation", **files)) == 2
    assert len(read(tmp_path, "test", **files)) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row(1), "{"], "a.jsonl, line 2: broken JSON"),
        ([row(1), "[1]"], "line 2: a list found"),
        ([row(1), row(2), row(1)], "line 3: id 'q1' stands on line 1 too"),
        ([{"id": "1", "input": "x", "label": "y"}], 'line 1: no "rationale" among'),
        ([{"id": "1", "input": "x", "rationale": "y"}], 'line 1: no "label" among'),
        ([row(1, label=3)], 'line 1: "label" is 3, expected a text'),
        ([row(1, input=" ")], "line 1: \"input\" is ' '"),
        ([row(1, id=True)], 'line 1: "id" is True'),
        ([], "holds no rows"),
        ([row(1), row(2)], "2 rows, too few to hold out test and validation"),
    ],
)
def test_bad_rows(tmp_path: pathlib.Path, rows: list, message: str) -> None:
    write(tmp_path / "a.jsonl", rows)
    with pytest.raises(SourceError, match=message):
        read(tmp_path, "train", train="a.jsonl")


def test_missing_and_undecodable_files(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SourceError, match="a.jsonl is missing"):
        read(tmp_path, "train", train="a.jsonl")
    (tmp_path / "a.jsonl").write_bytes(b'{"id": "\xff"}\n')
    with pytest.raises(SourceError, match="not UTF-8"):
        read(tmp_path, "train", train="a.jsonl")
