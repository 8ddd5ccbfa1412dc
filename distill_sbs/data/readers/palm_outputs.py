"""A published teacher's response, taken apart into rationale and label.

Enters: one response, run-on text included. Leaves: a `TeacherOutput`, both fields None where it
cannot be parsed.

The responses were cut at a fixed length, not at a stop string, so each goes on to invent the
next demonstration; what follows the next block marker (`Q:`, `Premise:`) is dropped. The rules are
those of the published implementation (google-research/distilling-step-by-step, data_utils.py)
with three repairs: an unparsable output is None, never the blank text `' '`; an NLI label is
one of the three words, completed where the length limit cut it short ("entail") and freed of
the cut-off marker that a blank line sets off behind it; and what another teacher than PaLM thought
aloud (`thinking`) is passed over.
"""

from __future__ import annotations

import math
import re

from distill_sbs.data import metrics
from distill_sbs.data.dataset import TeacherOutput
from distill_sbs.data.readers.thinking import find_final_part

NLI_LABELS = ("entailment", "neutral", "contradiction")

UNPARSED = TeacherOutput(label=None, rationale=None)

_CHOICE = re.compile(r"\(.\)")


def split_rationale(text: str, next_block: str, answer_marker: str) -> tuple[str, str] | None:
    """(rationale, text of the answer) of the first block, or None without exactly one answer."""
    parts = find_final_part(text).text.split(next_block)[0].strip().split(answer_marker)
    if len(parts) != 2:
        return None
    rationale, answer = parts
    return rationale.rstrip(), answer.strip()


def _make_output(rationale: str, label: str | None) -> TeacherOutput:
    """An output that lacks either half is unparsed: neither half is trained on."""
    return TeacherOutput(label, rationale) if label and rationale else UNPARSED


def _find_nli_label(answer: str, *, cut_off: bool) -> str | None:
    """The label that `answer` states; if the text was cut off here, its start is enough."""
    if answer in NLI_LABELS:
        return answer
    candidates = [label for label in NLI_LABELS if answer and label.startswith(answer)]
    return candidates[0] if cut_off and len(candidates) == 1 else None


def parse_cqa(text: str) -> TeacherOutput:
    """`<rationale> So the answer is (c) <choice text>.`; the label is the choice's text."""
    parts = split_rationale(text, "Q:", "So the answer is")
    if parts is None:
        return UNPARSED
    rationale, answer = parts
    around_letters = _CHOICE.split(answer)
    if len(around_letters) < 2:
        return UNPARSED
    return _make_output(rationale, around_letters[1].strip().removesuffix("."))


def parse_svamp(text: str) -> TeacherOutput:
    """`<rationale> The answer is (<expression>).`; the label keeps its parentheses.

    The expression need not be arithmetic: PaLM's "(2 * x)" is an answer, and wrong. Where PaLM
    gives two, "((29/2) and (30/2))", the last one counts, as it does in the published
    implementation by way of Python's `and` (it decides two training rows: 73.5 %, not 73.25).
    """
    parts = split_rationale(text, "Q:", "The answer is")
    if parts is None:
        return UNPARSED
    rationale, answer = parts
    return _make_output(rationale, find_expression(answer))


def find_expression(answer: str) -> str | None:
    """The parenthesised expression in the text of an answer; of two, the last (`parse_svamp`)."""
    outermost = _find_parenthesised(answer)
    if outermost is None:
        return None
    last = outermost.rpartition(" and ")[2]
    unopened = last.count(")") - last.count("(")
    at_the_end = len(last) - len(last.rstrip(")"))
    last = last[: len(last) - max(0, min(unopened, at_the_end))]
    is_arithmetic = not math.isnan(metrics.equation_value(last))
    return last if is_arithmetic else outermost


def _find_parenthesised(answer: str) -> str | None:
    """From the first parenthesis that is closed in its line to the last closing one there."""
    for line in answer.split("\n"):
        start, end = line.find("("), line.rfind(")")
        if 0 <= start < end:
            return line[start : end + 1]
    return None


def parse_esnli(text: str) -> TeacherOutput:
    """`<rationale>` newline `Answer: <label>`; the answer ends with its line."""
    rationale, marker, rest = find_final_part(text).text.partition("Answer:")
    if not marker:
        return UNPARSED
    answer, _, run_on = rest.strip().partition("\n")
    return _make_output(rationale.strip(), _find_nli_label(answer.strip(), cut_off=not run_on))


def parse_anli(text: str) -> TeacherOutput:
    """`<rationale> So the answer is <label>.`"""
    parts = split_rationale(text, "Premise:", "So the answer is")
    if parts is None:
        return UNPARSED
    rationale, answer = parts
    return _make_output(
        rationale, _find_nli_label(answer.removesuffix("."), cut_off="Premise:" not in text)
    )
