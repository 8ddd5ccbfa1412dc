"""inspect: what it prints of a file and of a dataset, and what it refuses."""

from __future__ import annotations

import json
import pathlib

import pytest

from distill_sbs import inspect

VOCABULARY = "--vocabulary_file=embedded"


def test_a_csv_file(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tickets.csv"
    path.write_text("text,queue\n" + "How many é?,yes\n" + "How many apples?,no\n" * 3)
    columns = ["--input_column=text", "--label_column=queue", "--examples=1", "--target_tokens=2"]
    assert inspect.main(["inspect", str(path), *columns, VOCABULARY]) == 0
    out, err = capsys.readouterr()
    assert f"{path}: 4 examples; ids train-0, …" in out
    assert "gold labels: 2 different" in out
    assert "no 3 75.0%" in " ".join(out.split())
    assert "label: inputs: unknown to embedded are 1 of" in out
    assert "inputs: predict: How many é?" in out
    assert "unpacked: 128 rows of 1024 input and 2 target tokens" in out
    assert "2 of 4 rows repeat the input text" in err
    assert [each.name for each in tmp_path.iterdir()] == ["tickets.csv"]


def test_json_lines_with_rationales(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.jsonl"
    row = {"id": "q7", "input": "How many?", "label": "3", "rationale": "1 + 2 = 3."}
    path.write_text(json.dumps(row) + "\n")
    assert inspect.main(["inspect", str(path), VOCABULARY]) == 0
    out, _ = capsys.readouterr()
    assert "1 examples; ids q7" in out
    assert "rationale of the file, as the student sees it:\n- id q7\n" in out
    assert "  inputs: explain: How many?\n" in out


@pytest.mark.slow
def test_a_dataset_that_is_not_prepared(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["wordproblems", "--split=test", f"--data_dir={tmp_path}", "--examples=1", VOCABULARY]
    assert inspect.main(["inspect", *given]) == 0
    out, _ = capsys.readouterr()
    assert "wordproblems test (raw, not prepared): 400 examples; ids test-0, …" in out
    assert "rationale of template, as the student sees it:" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([VOCABULARY], "nothing is named: inspect DATASET_OR_FILE"),
        (["wordproblem", VOCABULARY], "unknown dataset 'wordproblem'"),
        (["none.csv", VOCABULARY], "none.csv: no such file, and no name of a dataset"),
        (["wordproblems", "--split=dev", VOCABULARY], "wordproblems has no split 'dev'"),
        (["wordproblems", "--vocabulary_file=none.model"], "'none.model': no such file"),
    ],
)
def test_what_is_refused(given: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main(["inspect", *given]) == 2
    assert told in capsys.readouterr().err
