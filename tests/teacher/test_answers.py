"""answers: what is read out of what models say, task by task."""

from __future__ import annotations

import json
import pathlib

import pytest

from distill_sbs.data.jsonl import read_rows
from distill_sbs.data.readers import published
from distill_sbs.teacher import parsing, prompts

CHOICES = "Where?\nAnswer Choices:\n(a) bank\n(b) washington d.c.\n(c) Lake\n(d) bus stop\n(e) sky"


def parsed(task: str, text: str, raw: str) -> tuple[str | None, str | None, str | None]:
    result = parsing.parse(prompts.load(task), text, raw)
    return result.label, result.rationale, result.problem


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("(a) bank.", "bank"),
        ("(b) Washington D.C.", "washington d.c."),
        ("(c).", "Lake"),
        ("c", "Lake"),
        ("**(d) bus stop**.", "bus stop"),
        ("(d) bus station.", "bus stop"),  # the letter decides where the words do not
        ("(a) sky.", "sky"),  # and the words where they do
        ("the lake.", None),
        ("(a) bank or (e) sky.", None),
        ("(f) moon.", None),
        ("one of these.", None),
    ],
)
def test_choices(answer: str, label: str | None) -> None:
    problem = None if label else "the answer is none of the choices"
    rationale = "It is wet." if label else None
    raw = f"It is wet. So the answer is {answer}"
    assert parsed("cqa", CHOICES, raw) == (label, rationale, problem)


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("(10 * 45).", "(10 * 45)"),
        ("( ( 12 + 7 ) - 5 ).", "( ( 12 + 7 ) - 5 )"),
        ("10 * 45.", "10 * 45"),
        ("(10 * 45) = 450.", "(10 * 45)"),
        ("10 * 45 = 450", "10 * 45"),
        ("450.", "450"),
        ("**(3 + 4)**", "(3 + 4)"),
        ("(2 * x).", None),
        ("seven.", None),
    ],
)
def test_equations(answer: str, label: str | None) -> None:
    assert parsed("svamp", "How many?", f"They add up. The answer is {answer}")[0] == label


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("neutral", "neutral"),
        (" Entailment.", "entailment"),
        ("**contradiction**", "contradiction"),
        ("neutral, since it may be so", "neutral"),
        ("neutral\nPremise: another", "neutral"),
        ("not neutral", None),
        ("maybe", None),
    ],
)
def test_closed_sets(answer: str, label: str | None) -> None:
    said = f"A man is a person.\nAnswer: {answer}"
    assert parsed("esnli", "A man.</s>A person.", said)[0] == label


def test_run_on_text_and_prefix_are_cut() -> None:
    raw = "A: It adds up. The answer is (1 + 2).\n\nQ: Next?\nA: No. The answer is (5 + 5)."
    assert parsed("svamp", "How many?", raw) == ("(1 + 2)", "It adds up.", None)
    raw = "<think>Let me see. The answer is (9).</think>\n\nIt adds up. The answer is (1 + 2)."
    assert parsed("svamp", "How many?", raw) == ("(1 + 2)", "It adds up.", None)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ("", "empty"),
        ("\n\nQ: Next?", "empty"),
        ("It adds up.", "no 'The answer is'"),
        ("The answer is (1 + 2).", "no rationale before the answer"),
        ("One. The answer is (1). Two. The answer is (2).", "several answers"),
        ("<think>Let me", "cut off while thinking"),
        ("It adds up. The answer is", "the answer is no arithmetic"),
    ],
)
def test_problems(raw: str, problem: str) -> None:
    assert parsed("svamp", "How many?", raw) == (None, None, problem)


def test_the_same_answer_twice_is_one() -> None:
    raw = "Add. The answer is (1 + 2). So the answer is clear: the answer is (1 + 2)."
    assert parsed("svamp", "How many?", raw)[2] == "several answers"
    raw = "Add. The answer is (1 + 2). Again, the answer is (1 + 2)."
    assert parsed("svamp", "How many?", raw)[:2] == ("(1 + 2)", "Add.")


def test_open_labels() -> None:
    raw = "Ice is frozen water. So the answer is **below zero degrees**."
    assert parsed("zero_shot", "How cold?", raw)[:2] == (
        "below zero degrees",
        "Ice is frozen water.",
    )


@pytest.mark.realdata
def test_palms_answers_are_read_as_the_published_rules_read_them(source_dir: pathlib.Path) -> None:
    """Where they differ: closed sets, capitals, ", so the answer is", two answers (counted)."""
    different = {}
    for task, split in [("cqa", "test"), ("svamp", "test"), ("esnli", "valid"), ("anli1", "test")]:
        layout, prompt = published.LAYOUTS[task], prompts.load(task)
        rows = [row for _, row in read_rows(source_dir / task / f"{task}_{split}.json")]
        texts: list[str] = []
        for number in range(len(list((source_dir / task / "llm").glob(f"{split}_CoT_*")))):
            path = source_dir / task / "llm" / f"{split}_CoT_{number}.json"
            texts += json.loads(path.read_text())
        different[task] = sum(
            layout.parse_output(raw).label
            != parsing.parse(prompt, layout.row_text(row, "")[0], raw).label
            for row, raw in zip(rows, texts, strict=True)
        )
    assert different == {"cqa": 46, "svamp": 4, "esnli": 0, "anli1": 9}
