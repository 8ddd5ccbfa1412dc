"""A teacher that is asked while a run goes: within its budget, nothing twice, the same again."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest
import teacher_server
from quickstart_runs import assert_same_parameters

from distill_sbs.allocate import allocate, check_allocation
from distill_sbs.allocating.history import HISTORY_FILE, read_history
from distill_sbs.data.dataset import Example
from distill_sbs.distributed.stop_request import StopRequest
from distill_sbs.errors import UserError
from distill_sbs.teacher.live import LiveTeacher

ANSWERS = "teacher/tiny_train.jsonl"
LIVE = {
    "capabilities": {"label": "tiny_label", "rationale": "tiny_rationale_asked"},
    "live_teacher": "asked",
    "teacher_model": "m",
    "teacher_prompt": "wordproblems",
    "generation_tokens": 300,
}

RATIONALES = {**LIVE, "capabilities": {"rationale": "tiny_rationale_asked"}, "budget_tokens": 1800}


def answer(split: str, i: int) -> str:
    return "I have no idea." if i % 10 == 9 else f"It is {split} {i}. The answer is ( {i} + 1 )."


@pytest.fixture
def served(tmp_path: pathlib.Path, monkeypatch) -> Iterator[teacher_server.Server]:
    """A teacher that answers every question of `tiny`, and logs whom it answered."""
    rows = [
        {"input": f"question {i}", "answer": answer("train", i), "hopeless": i == 3}
        for i in range(40)
    ]
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with teacher_server.running(path, f"--log={tmp_path / 'served.jsonl'}") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        yield server


@pytest.mark.slow
def test_asked_within_the_budget_and_once(
    make_config: Any, tmp_path: pathlib.Path, served: teacher_server.Server
) -> None:
    summary = allocate(make_config(**RATIONALES))
    answered = teacher_server.read_rows(tmp_path / "served.jsonl")
    of_training = teacher_server.read_rows(tmp_path / "run" / ANSWERS)
    of_validation = teacher_server.read_rows(tmp_path / "run" / "teacher/tiny_validation.jsonl")
    assert len(of_validation) == 4  # PROBES
    failed = [row for row in of_training + of_validation if row.get("error")]
    assert len(answered) == len(of_training) + len(of_validation) - len(failed)
    # Every answer was paid for: a rationale as bytes and an end, an unparsed one whole, a cut one
    # as far as it is kept.
    paid = sum(
        min(len(row["rationale"] or row["raw"]) + 1, 16) for row in of_training if row["raw"]
    )
    assert summary["used"] == {"generation": paid, "training": summary["used"]["training"]}
    assert 100 < paid <= 300
    history = read_history(str(tmp_path / "run" / HISTORY_FILE))
    assert sum(each.generated for each in history.intervals) == paid


@pytest.mark.campaign
@pytest.mark.slow
def test_with_its_answers_at_hand_a_run_needs_no_teacher_and_is_the_same(
    make_config: Any, tmp_path: pathlib.Path, served: teacher_server.Server, monkeypatch
) -> None:
    summary = allocate(make_config(**RATIONALES))
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")  # nobody listens
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "run" / "teacher", again / "teacher")
    assert allocate(make_config(**RATIONALES, model_dir=str(again))) == summary
    assert (again / HISTORY_FILE).read_bytes() == (tmp_path / "run" / HISTORY_FILE).read_bytes()
    assert_same_parameters(tmp_path / "run", again)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teacher_model": None}, "LIVE_TEACHER is given and TEACHER_MODEL is not"),
        ({"capabilities": {"a": "tiny_label"}}, "writes nothing of CAPABILITIES; name a task such"),
        ({"capabilities": {"a": "tiny_pinto_asked"}}, "rationales in its inputs"),
        (
            {"live_teacher": "gpt", "capabilities": {"a": "tiny_rationale_gpt"}},
            "LIVE_TEACHER='gpt': the records of tiny hold outputs of that teacher",
        ),
        ({"teacher_prompt": "wordproblem"}, "TEACHER_PROMPT=wordproblem is no prompt of ours"),
        ({"teacher_prompt": "FOLDER"}, "has a parser.py, which is code"),
        ({"model_dir": "gs://bucket/run"}, "which a bucket does not allow; give a local one"),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_told_of_before_anything_starts(
    make_config: Any, tmp_path: pathlib.Path, changes: dict[str, Any], told: str
) -> None:
    (tmp_path / "prompt.toml").write_text("")
    (tmp_path / "parser.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    if changes.get("teacher_prompt") == "FOLDER":
        changes = {"teacher_prompt": str(tmp_path)}
    with pytest.raises(UserError) as error:
        check_allocation(make_config(**{**LIVE, **changes}))
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "run").exists() and not (tmp_path / "ran").exists()


def test_a_file_of_other_answers_is_left_alone(
    tmp_path: pathlib.Path, served: teacher_server.Server
) -> None:
    teacher = LiveTeacher("asked", "m", "wordproblems", 64, 0.2, str(tmp_path))
    first = Example("a", "question 0", None, {})
    assert teacher.ask("tiny", "train", [first])["a"].rationale == "It is train 0."
    before = (tmp_path / ANSWERS).read_bytes()
    hotter = LiveTeacher("asked", "m", "wordproblems", 64, 0.9, str(tmp_path))
    with pytest.raises(UserError, match="temperature: 0.2 there, 0.9 now.* another MODEL_DIR"):
        hotter.ask("tiny", "train", [first])
    assert (tmp_path / ANSWERS).read_bytes() == before


def test_signals_are_heard_after_the_teacher_was_asked(
    tmp_path: pathlib.Path, served: teacher_server.Server
) -> None:
    stop = StopRequest()
    try:
        teacher = LiveTeacher("asked", "m", "wordproblems", 64, 0.2, str(tmp_path))
        teacher.ask("tiny", "train", [Example("a", "question 0", None, {})])
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.before_end_of(1) and stop.exit_status == 143
    finally:
        stop.restore()
