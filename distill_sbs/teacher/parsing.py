"""A teacher's response, taken apart into rationale and label by the layout of its prompt.

Enters: one response, run-on text included, why it ended, and the input that it answers. Leaves: a
`ParsedAnswer`, with the problem in words where no answer can be read. A response without a label or
without a rationale gives neither.

Published outputs keep the published rules (`distill_sbs.data.readers.palm_outputs`). The rules
here are for responses that come now, from any model: a chat model's markdown and its thinking
(`distill_sbs.data.readers.thinking`) are passed over, and a label is brought into the form of the
closed set that it belongs to.

**Cut responses.** A response that a limit, a filter or a fault ended (`is_cut`) may break off
inside the label: `The answer is 3 + 4` may be the beginning of `3 + 45`. Such a label counts only
where what follows it shows that it had ended:

- a line feed, the start of an invented next question, or the marker once more, for every form;
- a closing quote, bracket or markdown mark whose partner stands before the label, for every form;
- a punctuation mark, for labels of a closed set and for choices, unless another member of the set
  begins with what stands there (`washington d.` may become `washington d.c.`);
- an equals sign, for equations; after a closing parenthesis also anything that does not go on with
  the expression. A period after a digit is none of these: `3 + 4.` may become `3 + 4.5`;
- the layout's own ending, for open labels, if it is more than punctuation.

A `parser.py` of the user's must read the same from the response without its last line.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable

from distill_sbs.data import metrics
from distill_sbs.data.readers import palm_outputs, thinking
from distill_sbs.data.readers.responses import ResponseRow
from distill_sbs.teacher.prompts import OwnParser, Prompt, lettered_choices

CUT_OFF = "cut off before the answer was whole"

# Why a response ended that is whole, in the words of the endpoints there are. Whatever else a
# server reports (length, max_tokens, content_filter, abort, …) may have cut it.
_WHOLE_RESPONSES = frozenset(
    "stop stop_sequence stop_token end end_turn end_of_turn end_of_text eos eos_token "
    "complete completed done finish finished tool_calls function_call".split()
)

_AROUND_LABELS = " \t*_`\"'“”‘’:.,;!"
_PUNCTUATION = ".:,;!?"
_CLOSED_BY = {**{mark: mark for mark in "*_`$\"'"}, "“": "”", "‘": "’", "[": "]"}
_CLOSING_MARKS = "".join(_CLOSED_BY.values())
_LETTER = re.compile(r"^\(?(\w)\)(?!\w)|^(\w)[.):]?$")
_ANY_LETTER = re.compile(r"\((\w)\)")
# What goes on with an expression after a closing parenthesis.
_GOING_ON = re.compile(r"[-+*/×÷−^%,)(xX\d]|and\b|or\b|an?$|o$")


@dataclasses.dataclass(frozen=True)
class ParsedAnswer:
    """Label and rationale, or why there are none; and whether a thinking part was left out."""

    label: str | None
    rationale: str | None
    problem: str | None = None
    had_thinking: bool = False


def _problem(text: str) -> ParsedAnswer:
    return ParsedAnswer(None, None, text)


def is_cut(finish_reason: str | None) -> bool:
    """Whether a response ended for another reason than that the teacher had finished.

    An endpoint that gives no reason is taken to have finished: see `known_finish_reason`.
    """
    return bool(finish_reason) and str(finish_reason).lower() not in _WHOLE_RESPONSES


def known_finish_reason(
    reported: str | None, completion_tokens: int | None, max_tokens: int
) -> str | None:
    """The reported reason; without one, "length" where the token limit was reached."""
    if not reported and completion_tokens is not None and completion_tokens >= max_tokens:
        return "length"
    return reported


def parse(
    prompt: Prompt, text: str, response: str, finish_reason: str | None = None
) -> ParsedAnswer:
    """Reads the answer to the input `text` from a response that ended for `finish_reason`."""
    final = thinking.find_final_part(response, prompt.answer)
    if final.problem is not None:
        return ParsedAnswer(None, None, final.problem, final.had_thinking)
    cut = is_cut(finish_reason)
    if prompt.own_parser is not None:
        answer = _parse_with(prompt.own_parser, text, final.text, cut)
    else:
        answer = _parse_layout(prompt, text, final.text, cut)
    return dataclasses.replace(answer, had_thinking=final.had_thinking)


def text_to_publish(row: ResponseRow) -> str:
    """What stands for a stored response in the published layout, which has no room for more.

    Its readers know nothing of finish reasons: a cut response without an answer is '', lest they
    read one from it. Thinking is left out, unless the prompt's layout made it the rationale.
    """
    response, rationale = row.get("raw") or "", row.get("rationale")
    if row.get("label") is None and is_cut(row.get("finish_reason")):
        return ""
    final = thinking.find_final_part(response)
    return response if rationale and rationale not in final.text else final.text


def _parse_with(own_parser: OwnParser, text: str, said: str, cut: bool) -> ParsedAnswer:
    """What a user's `parser.py` makes of a response; see the module's words on cut ones."""
    answer = _call_parser(own_parser, text, said)
    if cut and (
        answer.label is None or _call_parser(own_parser, text, said.rpartition("\n")[0]) != answer
    ):
        return _problem(CUT_OFF)
    return answer


def _call_parser(own_parser: OwnParser, text: str, said: str) -> ParsedAnswer:
    """What the user's function returns; what it raises is a problem, not a crash."""
    try:
        pair = own_parser(said, text)
        if pair is None:
            return _problem("parser.py gives none")
        label, rationale = pair
        if not isinstance(label, str) or not isinstance(rationale, str):
            return _problem("parser.py gives no two texts")
    except Exception as error:  # it runs once for every response of a long run
        return _problem(f"parser.py raises {type(error).__name__}")
    if not label.strip() or not rationale.strip():
        return _problem("parser.py gives a blank text")
    return ParsedAnswer(label.strip(), rationale.strip())


def _parse_layout(prompt: Prompt, text: str, final: str, cut: bool) -> ParsedAnswer:
    said, is_followed = _first_block(prompt, final)
    if not said.strip():
        return _problem("empty")
    parts = _marker(prompt).split(said)
    if len(parts) == 1:
        is_open = cut and not is_followed
        return _problem(CUT_OFF if is_open else f"no {prompt.answer_marker!r}")
    rationale = parts[0].strip().rstrip("*_,").rstrip()
    if not rationale:
        return _problem("no rationale before the answer")
    reader = _LabelReader(prompt, text)
    lines = [part.lstrip().partition("\n") for part in parts[1:]]
    label, is_ended = reader.read(lines[-1][0].strip())
    if cut and not (is_followed or lines[-1][1] or is_ended):
        return _problem(CUT_OFF)
    labels = {label, *(reader.read(line.strip())[0] for line, _, _ in lines[:-1])}
    if len(labels) > 1:
        return _problem("several answers")
    if label is None:
        return _problem(reader.problem)
    return ParsedAnswer(label, rationale)


def _first_block(prompt: Prompt, said: str) -> tuple[str, bool]:
    """A response without its prefix and an invented next question; and whether there was one."""
    said = said.lstrip()
    if prompt.answer_prefix and said.startswith(prompt.answer_prefix):
        said = said[len(prompt.answer_prefix) :]
    if not prompt.next_block:
        return said, False
    block, next_start, _ = f"\n{said}".partition(f"\n{prompt.next_block}")
    return block.removeprefix("\n"), bool(next_start)


def _marker(prompt: Prompt) -> re.Pattern[str]:
    """The marker, whatever its capitals and blanks."""
    return re.compile(_marker_pattern(prompt.answer_marker), re.IGNORECASE)


def _marker_pattern(marker: str) -> str:
    start = r"(?<!\w)" if marker[0].isalnum() else ""
    end = r"(?!\w)" if marker[-1].isalnum() else ""
    return start + r"\s++".join(re.escape(word) for word in marker.split()) + end


def _fold(text: str) -> str:
    return text.strip(_AROUND_LABELS).casefold()


def _is_enclosed(line: str) -> bool:
    """Whether a mark that opens before the first letter is closed after the last one."""
    start = next((position for position, each in enumerate(line) if each.isalnum()), len(line))
    last = next((end for end in range(len(line), 0, -1) if line[end - 1].isalnum()), 0)
    closing = line[last:] if last > start else ""
    return any(_CLOSED_BY.get(mark, "\n") in closing for mark in line[:start])


class _LabelReader:
    """Reads labels of one prompt, in the responses to one input."""

    def __init__(self, prompt: Prompt, text: str) -> None:
        self._prompt = prompt
        self._members: dict[str, str] = {}
        self._read: Callable[[str], tuple[str | None, bool]] = self._read_open
        self.problem = "nothing after the marker"
        if prompt.answers == "equation":
            self._read = self._read_equation
            self.problem = "the answer is no arithmetic"
        elif prompt.answers == "choice":
            self._read = self._read_choice
            self.problem = "the answer is none of the choices"
            choices = lettered_choices(text)
            self._by_letter = {letter.casefold(): choice for letter, choice in reversed(choices)}
            self._members = {_fold(choice): choice for _, choice in reversed(choices)}
        elif prompt.labels:
            self._read = self._read_member
            self.problem = "the answer is none of the labels"
            self._members = {_fold(label): label for label in reversed(prompt.labels)}
            self._longest_first = sorted(self._members, key=len, reverse=True)

    def read(self, line: str) -> tuple[str | None, bool]:
        """The label in the line behind the marker; and whether it ended, if the line may go on."""
        label, is_ended = self._read(line)
        return label, label is not None and (is_ended or _is_enclosed(line))

    def _read_open(self, line: str) -> tuple[str | None, bool]:
        suffix = self._prompt.answer_suffix
        label = line.removesuffix(suffix).strip("*_` \t") or None
        return label, bool(suffix.strip(_PUNCTUATION)) and line.endswith(suffix)

    def _read_equation(self, line: str) -> tuple[str | None, bool]:
        """The line, else its side before an equals sign, else its parenthesised expression."""
        whole = line.strip(" \t*_`$")
        side, equals_sign, _ = whole.partition("=")
        bare = whole.rstrip(".,;")
        for candidate, rest in ((bare, whole[len(bare) :]), (side, equals_sign)):
            if _is_arithmetic(candidate):
                candidate = candidate.strip()
                is_bracketed = candidate.endswith(")") and bool(rest)
                return candidate, bool(equals_sign) or is_bracketed and "," not in rest
        expression = palm_outputs.find_expression(line)
        if expression is None or not _is_arithmetic(expression):
            return None, False
        rest = line.rpartition(expression)[2].lstrip(" \t*_`$)")
        return expression.strip(), bool(rest) and not _GOING_ON.match(rest)

    def _read_choice(self, line: str) -> tuple[str | None, bool]:
        """The choice that its words name, or else its letter; "(a) x or (b) y" is none."""
        clean = line.strip(_AROUND_LABELS)
        letter = _LETTER.match(clean)
        words = clean[letter.end() :] if letter and letter[1] else clean
        shown = line.lstrip(_AROUND_LABELS)[letter.end() if letter and letter[1] else 0 :]
        if (choice := self._members.get(_fold(words))) is not None:
            return choice, self._has_ended(shown, choice) or _is_enclosed(shown)
        if letter is None or len(set(_ANY_LETTER.findall(clean))) > 1:
            return None, False
        choice = self._by_letter.get((letter[1] or letter[2]).casefold())
        return choice, bool(letter[1]) and self._has_ended(shown, choice)

    def _read_member(self, line: str) -> tuple[str | None, bool]:
        """The label that the line is, or that it starts with before it goes on."""
        said, shown = _fold(line), line.lstrip(_AROUND_LABELS)
        if (label := self._members.get(said)) is not None:
            return label, self._has_ended(shown, label)
        for folded in self._longest_first:
            following = said[len(folded) : len(folded) + 1]
            if said.startswith(folded) and following and not re.match(r"[\w\s]", following):
                label = self._members[folded]
                return label, self._has_ended(shown, label)
        return None, False

    def _has_ended(self, shown: str, label: str | None) -> bool:
        """Whether punctuation ends a member, and no other one begins with what is shown."""
        folded = shown.strip().casefold()
        others = (each for each in self._members.values() if each != label)
        if any(each.casefold().startswith(folded) for each in others):
            return False
        is_sentence = folded.rstrip(_CLOSING_MARKS).endswith(tuple(_PUNCTUATION))
        return is_sentence or any(f"{mark} " in folded for mark in _PUNCTUATION)


def _is_arithmetic(text: str) -> bool:
    return not math.isnan(metrics.equation_value(text))
