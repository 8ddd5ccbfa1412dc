"""How answers are scored: by text, by the value of an equation, by the words of a rationale.

Enters: pairs of texts, the expected one first. Leaves: bools, floats, and the dictionaries that
SeqIO metric functions return. Every accuracy is a fraction between 0 and 1.

It imports neither TensorFlow nor SeqIO: the teacher's side scores labels with it too.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Sequence

# An equation longer or deeper than these is no answer to a word problem (the longest label in
# SVAMP has 19 tokens); the limits keep hostile model output from costing time or stack.
MAX_EQUATION_CHARACTERS = 1000
MAX_EQUATION_DEPTH = 50

# Values closer than this are equal: it absorbs the rounding of one order of operations against
# another ((0.1 + 0.2) against 0.3), and nothing more; an answer rounded by hand is wrong.
EQUATION_TOLERANCE = 1e-9

_TOKEN = re.compile(
    r"\s*(?:(?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
    r"|(?P<symbol>[-+*/()]))"
)
# A letter x multiplies only where it cannot be an unknown: "3x4" and "3 x (4 + 1)", never "2x + 4".
_LETTER_TIMES = re.compile(r"(?<=[0-9])[xX](?=[0-9])|(?<=[0-9)])\s+[xX]\s+(?=[0-9(.])")
_SYMBOLS = str.maketrans({"×": "*", "÷": "/", "−": "-"})
_WORD = re.compile(r"\w+")


class _NotArithmetic(Exception):
    """The text is no arithmetic expression."""


class _EquationParser:
    """Recursive descent over the tokens of one expression.

    sum = product (("+" | "-") product)*;  product = signed (("*" | "/") signed)*;
    signed = ("+" | "-")* atom;  atom = number | "(" sum ")".
    """

    def __init__(self, tokens: list[str]):
        self._tokens = tokens
        self._next = 0
        self._depth = 0

    def parse(self) -> float:
        value = self._sum()
        if self._next != len(self._tokens):
            raise _NotArithmetic
        return value

    def _take(self, symbols: str) -> str:
        """The next token if it is one of `symbols`, else an empty string."""
        if self._next < len(self._tokens) and self._tokens[self._next] in symbols:
            self._next += 1
            return self._tokens[self._next - 1]
        return ""

    def _sum(self) -> float:
        value = self._product()
        while symbol := self._take("+-"):
            operand = self._product()
            value = value + operand if symbol == "+" else value - operand
        return value

    def _product(self) -> float:
        value = self._signed()
        while symbol := self._take("*/"):
            operand = self._signed()
            if symbol == "/" and operand == 0.0:
                raise _NotArithmetic
            value = value * operand if symbol == "*" else value / operand
        return value

    def _signed(self) -> float:
        sign = 1.0
        while symbol := self._take("+-"):
            sign = -sign if symbol == "-" else sign
        return sign * self._atom()

    def _atom(self) -> float:
        if self._take("("):
            self._depth += 1
            if self._depth > MAX_EQUATION_DEPTH:
                raise _NotArithmetic
            value = self._sum()
            self._depth -= 1
            if not self._take(")"):
                raise _NotArithmetic
            return value
        if self._next == len(self._tokens) or self._tokens[self._next] in "+-*/()":
            raise _NotArithmetic
        self._next += 1
        return float(self._tokens[self._next - 1].replace(",", ""))


def equation_value(text: str) -> float:
    """The value of an arithmetic expression, or NaN where `text` is none.

    Understood: + - * / and parentheses, signs, decimals, thousands commas ("1,250"), "×", "÷"
    and "−", and the letter x between two operands. Not understood, so NaN: unknowns ("2 * x"),
    equations ("7 + 2 = 9": a label is one side only), powers, units, tuples, an empty text.
    NaN too: division by zero, a value beyond float64, a text longer than
    `MAX_EQUATION_CHARACTERS` or nested deeper than `MAX_EQUATION_DEPTH`.

    The reference implementation calls Python's `eval` here, on whatever the model wrote; this is
    a parser, and raises nothing.
    """
    if len(text) > MAX_EQUATION_CHARACTERS:
        return math.nan
    text = _LETTER_TIMES.sub("*", text.translate(_SYMBOLS).strip())
    tokens: list[str] = []
    position = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            return math.nan
        tokens.append(match["number"] or match["symbol"])
        position = match.end()
    try:
        value = _EquationParser(tokens).parse()
    except _NotArithmetic:
        return math.nan
    return value if math.isfinite(value) else math.nan


def answers_match(gold: str, predicted: str) -> bool:
    """Exact string match, spaces around the answer aside (the reference's accuracy)."""
    return gold.strip() == predicted.strip()


def equations_match(gold: str, predicted: str) -> bool:
    """Whether two expressions have the same value, to `EQUATION_TOLERANCE` (relative, absolute).

    A text that is no arithmetic equals nothing, not even itself.
    """
    gold_value, predicted_value = equation_value(gold), equation_value(predicted)
    return math.isclose(
        gold_value, predicted_value, rel_tol=EQUATION_TOLERANCE, abs_tol=EQUATION_TOLERANCE
    )


def _check_pairs(targets: Sequence[str], predictions: Sequence[str]) -> None:
    if len(targets) != len(predictions):
        raise ValueError(
            f"{len(predictions)} predictions for {len(targets)} targets; "
            "scoring needs one prediction a target"
        )
    if not len(targets):
        raise ValueError("no example to score; evaluate on a split that holds at least one")


def label_accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """SeqIO metric: `{"accuracy": fraction of 0..1}` of exact string matches.

    Raises:
      ValueError: the lengths differ, or there is nothing to score.
    """
    _check_pairs(targets, predictions)
    right = sum(map(answers_match, targets, predictions))
    return {"accuracy": right / len(targets)}


def equation_accuracy(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """SeqIO metric: `{"accuracy": fraction of 0..1}` of equations with the target's value.

    Raises:
      ValueError: the lengths differ, or there is nothing to score.
    """
    _check_pairs(targets, predictions)
    right = sum(map(equations_match, targets, predictions))
    return {"accuracy": right / len(targets)}


def word_overlap(target: str, prediction: str) -> float:
    """F1 (0..1) of the words two texts share, each as often as it stands in both.

    Case and punctuation do not count. Two texts without words overlap fully.
    """
    target_words = collections.Counter(_WORD.findall(target.lower()))
    predicted_words = collections.Counter(_WORD.findall(prediction.lower()))
    total = target_words.total() + predicted_words.total()
    if not total:
        return 1.0
    return 2 * (target_words & predicted_words).total() / total


def rationale_overlap(targets: Sequence[str], predictions: Sequence[str]) -> dict[str, float]:
    """SeqIO metric: `{"rationale_overlap": mean word-level F1, 0..1}`.

    Exact match says nothing about free text; this says how much of the teacher's wording the
    student reproduces, which is no measure of whether its reasoning is right.

    Raises:
      ValueError: the lengths differ, or there is nothing to score.
    """
    _check_pairs(targets, predictions)
    return {"rationale_overlap": sum(map(word_overlap, targets, predictions)) / len(targets)}
