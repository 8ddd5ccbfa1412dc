"""journal: torn lines, finished answers, other writers; budget: when to stop."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from distill_sbs.data.readers.request_description import RequestDescription
from distill_sbs.data.readers.responses import input_hash
from distill_sbs.errors import UserError
from distill_sbs.teacher.budget import Budget, Prices
from distill_sbs.teacher.journal import Journal, Totals

SETTINGS = RequestDescription(task="cqa", model="m", keep="all")


def row(example_id: str, sample: int = 0, **changes) -> dict:
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    answer = {"id": example_id, "raw": "ä", "rationale": "r", "label": "l", "sample": sample}
    return {**answer, "usage": usage, "input_hash": input_hash(f"text {example_id}"), **changes}


def written(path: pathlib.Path, *rows: dict) -> str:
    journal = Journal(str(path), SETTINGS)
    for each in rows:
        journal.write(each)
    journal.close()
    return str(path)


def test_answers_are_found_again(tmp_path: pathlib.Path) -> None:
    path = written(tmp_path / "out.jsonl", row("a"), row("b", 1))
    journal = Journal(path, SETTINGS)
    assert journal.finished == 2 and journal.mended is None
    assert journal.has("a", 0, "text a") and journal.has("b", 1, "text b")
    assert not journal.has("a", 1, "text a") and not journal.has("c", 0, "text c")
    assert journal.totals == Totals(2, 2, 0, 20, 10)
    with pytest.raises(UserError, match="to another input text than 'other'"):
        journal.has("a", 0, "other")
    journal.close()


@pytest.mark.parametrize("cut", [1, 2, 20, 100])
def test_a_torn_last_line_is_cut_off(tmp_path: pathlib.Path, cut: int) -> None:
    path = written(tmp_path / "out.jsonl", row("a"), row("b"))
    content = pathlib.Path(path).read_bytes()
    pathlib.Path(path).write_bytes(content[:-cut])
    journal = Journal(path, SETTINGS)
    # Without its newline alone the line is whole.
    assert journal.finished == (2 if cut == 1 else 1)
    assert journal.mended is not None
    journal.write(row("c"))
    journal.close()
    ids = [json.loads(line)["id"] for line in pathlib.Path(path).read_text().splitlines()]
    assert ids == (["a", "b", "c"] if cut == 1 else ["a", "c"])


def test_a_file_that_is_one_long_torn_line(tmp_path: pathlib.Path) -> None:
    path = written(tmp_path / "out.jsonl", row("a"))
    pathlib.Path(path).write_bytes(b'{"id": "' + b"x" * 200_000)
    journal = Journal(path, SETTINGS)
    assert journal.finished == 0 and pathlib.Path(path).read_bytes() == b""
    journal.close()


def test_a_broken_line_in_the_middle_is_named(tmp_path: pathlib.Path) -> None:
    path = written(tmp_path / "out.jsonl", row("a"), row("b"))
    content = pathlib.Path(path).read_text().splitlines()
    pathlib.Path(path).write_text(f"{content[0]}\nnonsense\n{content[1]}\n")
    with pytest.raises(UserError, match="line 2: broken JSON"):
        Journal(path, SETTINGS)


def test_failures_are_finished_unless_they_are_retried(tmp_path: pathlib.Path) -> None:
    failure = row("a", label=None, rationale=None, raw=None, usage=None, error="empty answer")
    path = written(tmp_path / "out.jsonl", failure, row("b"))
    journal = Journal(path, SETTINGS)
    assert journal.has("a", 0, "text a") and journal.totals.failed == 1
    journal.close()
    journal = Journal(path, SETTINGS, retry_failed=True)
    assert not journal.has("a", 0, "text a") and journal.has("b", 0, "text b")
    journal.write(row("a"))
    journal.close()
    journal = Journal(path, SETTINGS, retry_failed=True)
    assert journal.has("a", 0, "text a")
    assert (journal.totals.answered, journal.totals.failed) == (2, 0)
    journal.close()


def test_one_writer_at_a_time(tmp_path: pathlib.Path) -> None:
    journal = Journal(str(tmp_path / "out.jsonl"), SETTINGS)
    with pytest.raises(UserError, match="another process writes to"):
        Journal(str(tmp_path / "out.jsonl"), SETTINGS)
    journal.close()
    Journal(str(tmp_path / "out.jsonl"), SETTINGS).close()


def test_settings_that_change_no_answer_may_change(tmp_path: pathlib.Path) -> None:
    path = written(tmp_path / "out.jsonl", row("a"))
    Journal(path, dataclasses.replace(SETTINGS, keep="parsed")).close()
    assert json.loads(pathlib.Path(path + ".settings.json").read_text())["keep"] == "parsed"
    with pytest.raises(UserError, match="another setting of model: 'm' there, 'n' now"):
        Journal(path, dataclasses.replace(SETTINGS, model="n"))
    with pytest.raises(UserError, match="a bucket does not allow"):
        Journal("gs://bucket/out.jsonl", SETTINGS)


def test_budget_counts_what_is_in_flight() -> None:
    totals = Totals(answered=10, prompt_tokens=900, completion_tokens=100)  # 100 tokens a call
    budget = Budget(totals, Prices(), max_tokens_total=1_500)
    assert budget.find_excess(in_flight=4) is None
    assert budget.find_excess(in_flight=5) == "1,000 of --max_tokens_total=1,500 tokens are used"
    # 900 + 90 a call at 2, 100 + 10 a call at 10, per million: 0.0028 so far, 0.00028 a call.
    budget = Budget(totals, Prices(2.0, 10.0), max_cost=0.0037)
    assert budget.find_excess(in_flight=2) is None
    assert budget.find_excess(in_flight=3) == "0.0028 of --max_cost=0.0037 is spent"


def test_budget_before_the_first_answer() -> None:
    budget = Budget(Totals(), Prices(), max_tokens_total=1_000)
    budget.expect(prompt_characters=2_000, completion_tokens=100)  # 600 tokens
    assert budget.find_excess(0) is None and budget.find_excess(1) is not None
    assert Prices(1.0, None).cost(5, 5) is None
