"""metrics: the equation parser, answer comparison, metric functions."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from distill_sbs.data import metrics


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("( 10.0 - ( 6.0 + 3.0 ) )", 1.0),
        ("(10 - (3 + 6))", 1.0),
        ("7 + 2 * 3", 13.0),
        ("20 - 5 - 3", 12.0),
        ("24 / 4 / 3", 2.0),
        ("-3 + 5", 2.0),
        ("2 * -(3 - 7)", 8.0),
        ("- - 4", 4.0),
        ("1,250 + 2", 1252.0),
        ("1,234,567.5", 1234567.5),
        (".5 + 2.", 2.5),
        ("3 × 4 ÷ 6 − 1", 1.0),
        ("3x4", 12.0),
        ("3 x (4 + 1)", 15.0),
        ("  42 ", 42.0),
        ("007", 7.0),
    ],
)
def test_equation_value(text: str, value: float) -> None:
    assert metrics.equation_value(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "7 + 2 = 9",
        "2 * x",
        "2x + 4",
        "x + 3",
        "3 x - 2",
        "(some - 8)",
        "(14, 21)",
        "1,25 + 1",
        "3 4",
        "3 (4)",
        "2 ** 3",
        "7 // 2",
        "7 % 2",
        "(3 + 4",
        "3 + 4)",
        "()",
        "+",
        "5 -",
        "1 / 0",
        "1 / (3 - 3.0)",
        "1.2.3",
        "1e5",
        "5 apples",
        "True",
        "__import__('os').system('true')",
        "٣ + ١",
        "nan",
        "inf",
    ],
)
def test_no_arithmetic_is_nan(text: str) -> None:
    assert math.isnan(metrics.equation_value(text))


@pytest.mark.parametrize(
    "text",
    [
        "(" * 10**6,
        "(" * 400 + "1" + ")" * 400,
        "-" * 900 + "1" + "*" * 900,
        "9" * 10**6,
        "9" * 900,
        "*".join(["9" * 300] * 3),
        "1" + " " * 10**6,
    ],
)
def test_hostile_text_is_nan(text: str) -> None:
    assert math.isnan(metrics.equation_value(text))


def test_deep_but_reasonable_nesting() -> None:
    assert metrics.equation_value("(" * 40 + "1" + ")" * 40) == 1.0
    assert metrics.equation_value("-" * 900 + "1") == 1.0


def test_equations_match_by_value() -> None:
    assert metrics.equations_match("( 10.0 * 45.0 )", "(45 * 10)")
    assert metrics.equations_match("0.1 + 0.2", "0.3")
    assert not metrics.equations_match("1 / 3", "0.333")
    assert not metrics.equations_match("7 - 7", "0.000001")
    assert not metrics.equations_match("2 * x", "2 * x")


def test_answers_match_is_exact_but_for_outer_spaces() -> None:
    assert metrics.answers_match("go downtown", " go downtown\n")
    assert not metrics.answers_match("go downtown", "Go downtown")
    assert not metrics.answers_match("go downtown", "go  downtown")


def test_metric_functions_are_fractions() -> None:
    assert metrics.label_accuracy(["a", "b", "c", "d"], ["a", "b", "c", "x"]) == {"accuracy": 0.75}
    assert metrics.equation_accuracy(["1 + 1", "3"], ["2", "x"]) == {"accuracy": 0.5}


def test_word_overlap() -> None:
    # 2 words shared of 3 and 5: F1 = 2 * 2 / (3 + 5).
    assert metrics.word_overlap("The dog runs.", "the old dog sat down") == 0.5
    assert metrics.word_overlap("so so", "so") == pytest.approx(2 / 3)
    assert metrics.word_overlap("", "") == 1.0
    assert metrics.word_overlap("word", "") == 0.0
    overlap = metrics.rationale_overlap(["a b", "c"], ["a b", "d"])
    assert overlap == {"rationale_overlap": 0.5}


@pytest.mark.parametrize(
    "metric", [metrics.label_accuracy, metrics.equation_accuracy, metrics.rationale_overlap]
)
def test_metric_functions_reject_unpaired_texts(metric) -> None:
    with pytest.raises(ValueError, match="1 predictions for 2 targets"):
        metric(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="no example"):
        metric([], [])


def test_imports_no_tensorflow() -> None:
    code = (
        "import sys, distill_sbs.data.metrics\n"
        "assert not {'tensorflow', 'seqio', 'jax'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
