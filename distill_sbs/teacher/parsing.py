"""What the teacher said, taken apart into rationale and label by the layout of its prompt.

Enters: one answer, run-on text included, and the input that it answers. Leaves: a `ParsedAnswer`,
with the problem in words where the answer cannot be read. An answer without a label or without
a rationale gives neither.

Published outputs keep the published rules (`distill_sbs.data.readers.palm_outputs`). The rules
here are for answers that come now, from any model: a chat model's markdown and `<think>` part are
passed over, and a label is brought into the form of the closed set that it belongs to.
"""

from __future__ import annotations

import dataclasses
import math
import re

from distill_sbs.data import metrics
from distill_sbs.data.readers import palm_outputs
from distill_sbs.teacher.prompts import OwnParser, Prompt, lettered_choices

_AROUND_LABELS = " \t*_`\"'“”‘’:.,;!"
_LETTER = re.compile(r"^\(?(\w)\)(?!\w)|^(\w)[.):]?$")

_ANY_LETTER = re.compile(r"\((\w)\)")


@dataclasses.dataclass(frozen=True)
class ParsedAnswer:
    """Label and rationale, or why there are none."""

    label: str | None
    rationale: str | None
    problem: str | None = None


def _problem(text: str) -> ParsedAnswer:
    return ParsedAnswer(None, None, text)


def parse(prompt: Prompt, text: str, raw: str) -> ParsedAnswer:
    """Reads the answer `raw` to the input `text`."""
    if prompt.own_parser is not None:
        return _parse_with(prompt.own_parser, text, raw)
    said = raw.rpartition("</think>")[2]
    if "<think>" in said:
        return _problem("cut off while thinking")
    said = _first_block(prompt, said).strip()
    if not said:
        return _problem("empty")
    parts = _marker(prompt).split(said)
    if len(parts) == 1:
        return _problem(f"no {prompt.answer_marker!r}")
    rationale = parts[0].strip().rstrip("*_,").rstrip()
    if not rationale:
        return _problem("no rationale before the answer")
    labels = {_label(prompt, text, part) for part in parts[1:]}
    if len(labels) > 1:
        return _problem("several answers")
    label = labels.pop()
    if label is None:
        return _problem(_label_problem(prompt))
    return ParsedAnswer(label, rationale)


def _parse_with(own_parser: OwnParser, text: str, raw: str) -> ParsedAnswer:
    """What a user's `parser.py` makes of an answer; what it raises is a problem, not a crash."""
    try:
        pair = own_parser(raw, text)
        if pair is None:
            return _problem("parser.py gives none")
        label, rationale = pair
        if not isinstance(label, str) or not isinstance(rationale, str):
            return _problem("parser.py gives no two texts")
    except Exception as error:  # it runs once for every answer of a long run
        return _problem(f"parser.py raises {type(error).__name__}")
    if not label.strip() or not rationale.strip():
        return _problem("parser.py gives a blank text")
    return ParsedAnswer(label.strip(), rationale.strip())


def _first_block(prompt: Prompt, said: str) -> str:
    """The answer without its prefix and without an invented next question."""
    said = said.lstrip()
    if prompt.answer_prefix and said.startswith(prompt.answer_prefix):
        said = said[len(prompt.answer_prefix) :]
    if prompt.next_block:
        said = re.split(rf"^{re.escape(prompt.next_block)}", said, maxsplit=1, flags=re.MULTILINE)[
            0
        ]
    return said


def _marker(prompt: Prompt) -> re.Pattern[str]:
    """The marker, whatever its capitals and blanks."""
    marker = prompt.answer_marker
    start = r"(?<!\w)" if marker[0].isalnum() else ""
    end = r"(?!\w)" if marker[-1].isalnum() else ""
    words = r"\s+".join(re.escape(word) for word in marker.split())
    return re.compile(start + words + end, re.IGNORECASE)


def _label(prompt: Prompt, text: str, said: str) -> str | None:
    """The label in what follows the marker; only its first line counts."""
    line = said.strip().partition("\n")[0].strip()
    if prompt.answers == "equation":
        return _equation(line)
    if prompt.answers == "choice":
        return _choice(line, text)
    if prompt.labels:
        return _member(line, prompt.labels)
    return line.removesuffix(prompt.answer_suffix).strip("*_` \t") or None


def _label_problem(prompt: Prompt) -> str:
    if prompt.answers == "equation":
        return "the answer is no arithmetic"
    if prompt.answers == "choice":
        return "the answer is none of the choices"
    return "the answer is none of the labels" if prompt.labels else "nothing after the marker"


def _equation(line: str) -> str | None:
    """The parenthesised expression, else the line itself, else its side before an equals sign."""
    clean = line.strip(" \t*_`$")
    candidates = [palm_outputs.expression(line), clean.rstrip(".,;"), clean.partition("=")[0]]
    for candidate in candidates:
        if candidate is not None and not math.isnan(metrics.equation_value(candidate)):
            return candidate.strip()
    return None


def _folded(text: str) -> str:
    return text.strip(_AROUND_LABELS).casefold()


def _choice(line: str, text: str) -> str | None:
    """The choice that is named by its words, or else by its letter; "(a) x or (b) y" is none."""
    choices = lettered_choices(text)
    clean = line.strip(_AROUND_LABELS)
    letter = _LETTER.match(clean)
    words = clean[letter.end() :] if letter and letter[1] else clean
    for _, choice in choices:
        if _folded(choice) == _folded(words):
            return choice
    if letter and len(set(_ANY_LETTER.findall(clean))) < 2:
        named = (letter[1] or letter[2]).casefold()
        return next((choice for each, choice in choices if each.casefold() == named), None)
    return None


def _member(line: str, labels: tuple[str, ...]) -> str | None:
    """The label that the line is, or that it starts with before it goes on."""
    said = _folded(line)
    for label in labels:
        if said == _folded(label):
            return label
    for label in sorted(labels, key=len, reverse=True):
        if re.match(re.escape(_folded(label)) + r"[^\w\s]", said):
            return label
    return None
