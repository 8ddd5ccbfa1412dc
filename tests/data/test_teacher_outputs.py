"""teacher_outputs: the parsing rules, on texts shaped like PaLM's."""

from __future__ import annotations

import pytest

from distill_sbs.data.dataset import TeacherOutput
from distill_sbs.data.readers import palm_outputs
from distill_sbs.data.readers.palm_outputs import UNPARSED


def test_cqa() -> None:
    text = (
        "Of the above choices, only downtown makes sense. So the answer is (a) go downtown.\n\n"
        "Q: What next?\nA: Something. So the answer is (b) other."
    )
    assert palm_outputs.parse_cqa(text) == TeacherOutput(
        label="go downtown", rationale="Of the above choices, only downtown makes sense."
    )


def test_cqa_keeps_inner_periods_and_takes_the_first_choice() -> None:
    text = "It is a state. So the answer is (c) washington d.c. (d) ohio."
    assert palm_outputs.parse_cqa(text).label == "washington d.c"
    assert palm_outputs.parse_cqa("Both. So the answer is (c) u.s. army.").label == "u.s. army"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "No answer is given.\n\nQ: next",
        "All fit. So the answer is one of these four.",
        "One. So the answer is (a) x. So the answer is (b) y.",
        "Cut off. So the answer is (a)",
        "Q: run-on from the start. So the answer is (a) b.",
    ],
)
def test_cqa_unparsed(text: str) -> None:
    assert palm_outputs.parse_cqa(text) == UNPARSED


def test_svamp() -> None:
    text = "He received 10 - (3 + 6) = 1. The answer is (10 - (3 + 6)).\n\nQ: There are 15 trees"
    assert palm_outputs.parse_svamp(text) == TeacherOutput(
        label="(10 - (3 + 6))", rationale="He received 10 - (3 + 6) = 1."
    )


def test_svamp_keeps_what_is_no_arithmetic() -> None:
    assert palm_outputs.parse_svamp("So. The answer is (2 * x).").label == "(2 * x)"


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("((29/2) and (30/2))", "(30/2)"),
        ("(34 + 40) and (62 - 17)", "(62 - 17)"),
        ("(cats and dogs)", "(cats and dogs)"),
    ],
)
def test_svamp_of_two_expressions_takes_the_last(answer: str, label: str) -> None:
    assert palm_outputs.parse_svamp(f"Both. The answer is {answer}.").label == label


@pytest.mark.parametrize(
    "text", ["No end", "Cut. The answer is ((491 - 21", "A. The answer is (1). The answer is (2)."]
)
def test_svamp_unparsed(text: str) -> None:
    assert palm_outputs.parse_svamp(text) == UNPARSED


def test_esnli() -> None:
    text = "An old man is a man.\nAnswer: entailment\n\nPremise: A man\nAnswer: neutral"
    assert palm_outputs.parse_esnli(text) == TeacherOutput(
        label="entailment", rationale="An old man is a man."
    )


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("A man.\nAnswer: neutral\n\nPre", "neutral"),
        ("A man.\nAnswer: entail", "entailment"),
        ("A man.\nAnswer: maybe", None),
        ("A man.\nAnswer: entail\n\nPremise: B", None),
        ("A man.\nAnswer:", None),
        ("A man.\nAnswer", None),
        ("Answer: neutral", None),
    ],
)
def test_esnli_cut_off_or_unknown(text: str, label: str | None) -> None:
    parsed = palm_outputs.parse_esnli(text)
    assert parsed == (TeacherOutput(label, "A man.") if label else UNPARSED)


def test_anli() -> None:
    text = "The premise states X. So the answer is contradiction.\n\nPremise: The 2016"
    assert palm_outputs.parse_anli(text) == TeacherOutput(
        label="contradiction", rationale="The premise states X."
    )
    assert palm_outputs.parse_anli("X. So the answer is contra").label == "contradiction"


@pytest.mark.parametrize(
    "text",
    [
        "X is dry, so the answer is contradiction.\n\nPremise: Y",
        "X. So the answer is unclear.",
        "X. So the answer is .",
    ],
)
def test_anli_unparsed(text: str) -> None:
    assert palm_outputs.parse_anli(text) == UNPARSED
