"""parsing: what is read out of what models say, task by task."""

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


@pytest.mark.slow
@pytest.mark.realdata
def test_palms_answers_are_read_as_the_published_rules_read_them(source_dir: pathlib.Path) -> None:
    """Where they differ, counted: closed sets, capitals, ", so the answer is", two answers.

    In ten of svamp the published rules read "(18 - 12)" out of "The answer is (18 - 12) + 8.".
    """
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
    assert different == {"cqa": 46, "svamp": 14, "esnli": 0, "anli1": 9}


# ---------------------------------- cut responses ----------------------------


EQUATION = "They are added. The answer is "
CUT_SHORT = parsing.CUT_OFF


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "content_filter"])
def test_a_cut_label_is_none(reason: str) -> None:
    """`3 + 4` of `3 + 45`: the issue's example."""
    result = parsing.parse(prompts.load("svamp"), "How many?", f"{EQUATION}3 + 4", reason)
    assert (result.label, result.rationale, result.problem) == (None, None, CUT_SHORT)


@pytest.mark.parametrize("reason", ["stop", "STOP", "end_turn", "eos", "stop_sequence", "", None])
def test_a_response_that_ended_by_itself_is_whole(reason: str | None) -> None:
    result = parsing.parse(prompts.load("svamp"), "How many?", f"{EQUATION}3 + 4", reason)
    assert result.label == "3 + 4"


def cut_label(task: str, text: str, raw: str) -> str | None:
    result = parsing.parse(prompts.load(task), text, raw, "length")
    assert (result.label is None) == (result.problem is not None)
    return result.label


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("3 + 4", None),
        ("3 + 4.", None),  # of 3 + 4.5
        ("3 + 4,", None),  # of 3 + 4,500
        ("(3 + 4)", None),  # of (3 + 4) * 2
        ("(3 + 4) *", None),
        ("(3 + 4) and", None),  # two answers: the last one counts
        ("(3 + ", None),
        ("", None),
        ("7", None),
        ("(3 + 4).", "(3 + 4)"),
        ("(3 + 4) = 7", "(3 + 4)"),
        ("3 + 4 = 7", "3 + 4"),
        ("**3 + 4**", "3 + 4"),
        ("**3 + 4", None),
        ("(3 + 4). So the ans", "(3 + 4)"),
        ("3 + 4\n", "3 + 4"),
        ("3 + 4\n\nQ: Anna has", "3 + 4"),
        ("\n3 + 4", None),
        ("(3 + 4). Again, the answer is (3 + 4", None),
        ("(3 + 4). Again, the answer is (3 + 4).", "(3 + 4)"),
    ],
)
def test_cut_equations(answer: str, label: str | None) -> None:
    assert cut_label("svamp", "How many?", EQUATION + answer) == label


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("(a", None),
        ("(a)", None),
        ("a", None),
        ("d.", None),  # of d. bus stop
        ("(a) ban", None),
        ("(a) bank", None),
        ("(d) bus st", None),
        ("(b) washington d", None),
        ("(a) bank.", "bank"),
        ("(c).", "Lake"),
        ("(a) **bank**", "bank"),
        ("(d) bus station. It is", "bus stop"),
        ("(a) bank\nQ: Wh", "bank"),
    ],
)
def test_cut_choices(answer: str, label: str | None) -> None:
    assert cut_label("cqa", CHOICES, f"It is wet. So the answer is {answer}") == label


def test_a_cut_choice_that_another_begins_with() -> None:
    text = "Where?\n(a) washington d\n(b) washington d.c."
    said = "It is big. So the answer is (a) washington d."
    assert cut_label("cqa", text, said) is None
    assert cut_label("cqa", text, said + "\n") == "washington d"
    assert parsed("cqa", text, said)[0] == "washington d"


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("neut", None),
        ("neutral", None),
        ("**neutral", None),
        ("**neutral**", "neutral"),
        ("neutral.", "neutral"),
        ("neutral, since it may", "neutral"),
        ("neutral\n", "neutral"),
        ("neutral\nPremise: anoth", "neutral"),
    ],
)
def test_cut_members_of_closed_sets(answer: str, label: str | None) -> None:
    said = f"A man is a person.\nAnswer: {answer}"
    assert cut_label("esnli", "A man.</s>A person.", said) == label


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("below ze", None),
        ("below zero", None),
        ("3.", None),  # of 3.5
        ("**below zero**.", "below zero"),
        ("below zero.\n", "below zero"),
    ],
)
def test_cut_open_labels(answer: str, label: str | None) -> None:
    said = f"Ice is frozen water. So the answer is {answer}"
    assert cut_label("zero_shot", "How cold?", said) == label


def test_an_open_label_with_an_ending_of_its_own(tmp_path: pathlib.Path) -> None:
    (tmp_path / "own.toml").write_text(
        'question = "{input}"\nanswer = "<why>{rationale}</why><label>{label}</label>"\n'
    )
    prompt = prompts.load(str(tmp_path / "own.toml"))
    said = "<why>It is cold.</why><label>below zero"
    assert parsing.parse(prompt, "x", said, "length").problem == CUT_SHORT
    assert parsing.parse(prompt, "x", said + "</label>", "length").label == "below zero"


def test_a_cut_rationale_is_told_as_such() -> None:
    assert parsing.parse(prompts.load("svamp"), "x", "They are", "length").problem == CUT_SHORT
    assert parsing.parse(prompts.load("svamp"), "x", "They are").problem == "no 'The answer is'"


def test_a_users_parser_must_not_need_the_cut_line(tmp_path: pathlib.Path) -> None:
    (tmp_path / "prompt.toml").write_text(
        'question = "{input}"\nanswer = "{rationale} So: {label}"\n'
    )
    (tmp_path / "parser.py").write_text(
        "def parse(answer, text):\n"
        "    rationale, _, label = answer.partition(' => ')\n"
        "    return label.split('\\n')[0], rationale\n"
    )
    prompt = prompts.load(str(tmp_path))
    whole = parsing.ParsedAnswer("bill", "money")
    assert parsing.parse(prompt, "x", "money => bill") == whole
    assert parsing.parse(prompt, "x", "money => bill", "length").problem == CUT_SHORT
    assert parsing.parse(prompt, "x", "money", "length").problem == CUT_SHORT
    assert parsing.parse(prompt, "x", "money => bill\nNext", "length") == whole
    thought = parsing.parse(prompt, "x", "<think>no => way</think>money => bill")
    assert thought == parsing.ParsedAnswer("bill", "money", had_thinking=True)


def test_no_reason_and_the_limit_reached_is_length() -> None:
    assert parsing.known_finish_reason(None, 256, 256) == "length"
    assert parsing.known_finish_reason(None, 255, 256) is None
    assert parsing.known_finish_reason(None, None, 256) is None
    assert parsing.known_finish_reason("stop", 256, 256) == "stop"


@pytest.mark.parametrize("task", ["svamp", "cqa", "esnli", "anli1"])
def test_what_is_published_of_a_stored_response_reads_the_same(task: str) -> None:
    """The published layout has no finish reasons, and its readers leave no thinking out."""
    ending = {"svamp": "The answer is 3 + 4", "esnli": "\nAnswer: neutral"}.get(
        task, "So the answer is (a) bank" if task == "cqa" else "So the answer is neutral"
    )
    row = {"raw": f"It is so. {ending}", "label": None, "rationale": None}
    assert parsing.text_to_publish({**row, "finish_reason": "length"}) == ""
    assert parsing.text_to_publish({**row, "finish_reason": "stop"}) == row["raw"]
    thought = {**row, "raw": f"<think>Hm. {ending}.</think>{row['raw']}"}
    assert parsing.text_to_publish({**thought, "finish_reason": "stop"}) == row["raw"]
    reasons = {"raw": "<reasoning>Hm.</reasoning> So: 3", "label": "3", "rationale": "Hm."}
    assert parsing.text_to_publish(reasons) == reasons["raw"]  # the layout's own tags
