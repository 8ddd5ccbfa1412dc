r"""A response without what its model thought aloud before the answer.

Enters: a response as the endpoint gave it. Leaves: its final part, what follows the last thinking
part; or why it has none.

Known are tags round a word for thinking, whatever the capitals: `<think>`, `<thinking>`,
`<reasoning>`, `<thought>`, `<seed:think>`, `<ThoughtProcess>` and their kin, `[THINK]`, `◁think▷`,
`<|begin_of_thought|>…<|end_of_thought|>`, `<|START_THINKING|>…<|END_THINKING|>`,
`<|channel>thought…<channel|>`, `<unused94>…<unused95>`, `<details type="reasoning">`, also with
brackets that only look like these or stand as HTML or JSON writes them; a first block fenced as
```` ```thinking ````; Harmony's channels, of which `final` is kept, with their tokens and without
(`analysis…assistantfinal…`); and Granite's and Apriel's sentences. A closing tag without an opening
one ends a thinking part that the chat template began. Tags of the prompt's own layout are no
thinking.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Set

UNFINISHED = "cut off while thinking"
NOTHING_ELSE = "nothing but thinking"

# Wherever they stand in a name; and words that have other meanings as parts of longer ones.
_THINKING_STEMS = re.compile(
    "think|thought|reason|reflect|scratchpad|deliberat|monologue|ponder|brainstorm|ruminat"
)
_THINKING_WORDS = frozenset("analysis analyze cot working internal inner plan planning".split())
# In other brackets other words are headings, "[Reasoning] It adds up.", unless they are closed too.
_BRACKETED_WORDS = frozenset(("think", "thinking", "thought"))
_CLOSING_WORDS = frozenset(("end", "close", "stop"))
_OPENS_ANOTHER = re.compile(r"no|without|disable")  # `<no_think>`, a switch
_ANSWER_WORDS = frozenset(("answer", "response", "solution", "final", "output"))

# Bounded repetitions only: a start costs a constant.
_TAG = re.compile(
    r"(?P<bracket><%?|&lt;|&#60;|&#x3c;|\\u003c|\[{1,2}|\{{1,2}|◁)(?P<bar>[|｜]?) ?"
    r"(?P<slash>[/\\]{0,2}) ?(?P<name>[\w:▁-]{1,40})"
    r"(?P<attributes>\s[^<>\[\]{}◁▷]{0,2000})?(?P<empty>/?)"
    r"(?P<last_bar>[|｜]?)(?:%?>|&gt;|&#62;|&#x3e;|\\u003e|\]{1,2}|\}{1,2}|▷)",
    re.IGNORECASE,
)
# Character for character, so that what stands where does not change.
_LOOKALIKES = str.maketrans(
    "＜⟨〈《‹«＞⟩〉》›»【】［］／｜\u200b\u200c\u200d\u2060\ufeff", "<<<<<<>>>>>>[][]/|     "
)
_WORD_BREAK = re.compile(r"[_▁:-]")
_CHANNEL_TOKEN = re.compile(
    r"< ?[|｜] ?(start|end|message|channel|return|call|constrain) ?[|｜] ?>", re.IGNORECASE
)
_CHANNELS_WITHOUT_TOKENS = re.compile(r"(?:analysis|commentary)(?=[A-Za-z\"'(0-9])(?!'s\b)")
_CHANNELS_SPACED = re.compile(r"(?:analysis|commentary)\s")
_FINAL_WITHOUT_TOKENS = "assistantfinal"
_FINAL_SPACED = re.compile(r"\bassistant\s{1,2}final\b")
_FENCE = re.compile(r"```+[ \t]{0,9}(?P<name>[\w-]{1,40})[ \t]{0,9}\n")
_SUMMARY_OF_THOUGHTS = re.compile(r"\s{0,20}<summary>[^<]{0,80}?(?:think|thought|reason)", re.I)
_APRIELS_RESPONSE = re.compile(r"\[BEGIN FINAL RESPONSE\]")
_APRIELS_END = "[END FINAL RESPONSE]"
_THOUGHT_SENTENCE = re.compile(r"here(?: is|'s|’s) my thought process:", re.I)
_RESPONSE_SENTENCE = re.compile(r"here(?: is|'s|’s) my response:", re.I)


@dataclasses.dataclass(frozen=True)
class FinalPart:
    """What is left of a response.

    Attributes:
      text: the final part; '' where `problem` says why there is none.
      had_thinking: whether a thinking part was left out.
      problem: why there is no final part, in words.
    """

    text: str
    had_thinking: bool = False
    problem: str | None = None


def find_final_part(response: str, layout: str = "") -> FinalPart:
    """What a response says after thinking.

    Args:
      response: the text.
      layout: the prompt's `answer`; tags that stand in it belong to answers.
    """
    text, had_thinking = response, False
    for find in (_after_channels, _after_sentences, _after_fence):
        rest = find(text)
        if rest is not None:
            if rest.problem:
                return rest
            text, had_thinking = rest.text, had_thinking or rest.had_thinking
    rest = _after_tags(text, _names_in(layout))
    if rest is None:
        rest = FinalPart(text, had_thinking)
    if rest.problem or not rest.had_thinking:
        return rest
    if not rest.text.strip():
        return FinalPart("", True, NOTHING_ELSE)
    return FinalPart(_without_wrapper(rest.text), True)


@functools.lru_cache
def _names_in(layout: str) -> frozenset[str]:
    """The names of a layout's tags; it is the same for half a million responses."""
    return frozenset(_name_of(tag) for tag in _TAG.finditer(layout))


_UNFINISHED = FinalPart("", True, UNFINISHED)


def _after_channels(text: str) -> FinalPart | None:
    """The last message in Harmony's channel `final`; None where there are no channels."""
    before, token, after = text.rpartition(_FINAL_WITHOUT_TOKENS)
    if token:
        return FinalPart(after, True)
    start = text.lstrip()
    if _CHANNELS_WITHOUT_TOKENS.match(start):
        return _UNFINISHED
    if _CHANNELS_SPACED.match(start) and len(parts := _FINAL_SPACED.split(text)) > 1:
        return FinalPart(parts[-1], True)
    pieces = _CHANNEL_TOKEN.split(text)
    tokens, contents = [token.lower() for token in pieces[1::2]], pieces[2::2]
    if "channel" not in tokens:
        messages = [
            content for token, content in zip(tokens, contents, strict=True) if token == "message"
        ]
        return FinalPart(messages[-1]) if messages else None
    is_final, final = False, None
    for token, content in zip(tokens, contents, strict=True):
        if token == "channel":
            name, _, rest = content.strip().partition("\n")
            is_final = name.lower().startswith("final")
            if is_final and rest.strip():  # the message's own token is missing
                final = rest
        elif token == "message" and is_final:
            final = content
        elif token in ("start", "end", "return", "call"):
            is_final = False
    return _UNFINISHED if final is None else FinalPart(final, True)


def _after_sentences(text: str) -> FinalPart | None:
    """What follows "Here is my response:", where "Here is my thought process:" came first."""
    if len(parts := _APRIELS_RESPONSE.split(text)) > 1:
        return FinalPart(parts[-1].partition(_APRIELS_END)[0], True)
    if not _THOUGHT_SENTENCE.match(text.lstrip()):
        return None
    parts = _RESPONSE_SENTENCE.split(text)
    return FinalPart(parts[-1], True) if len(parts) > 1 else _UNFINISHED


def _after_fence(text: str) -> FinalPart | None:
    """What follows a first fenced block of thoughts; None where there is no such block."""
    fence = _FENCE.match(text.lstrip())
    if fence is None or not _is_about_thinking(fence["name"].lower()):
        return None
    _, end, after = text.lstrip()[fence.end() :].partition("\n```")
    return FinalPart(after.lstrip("`"), True) if end else _UNFINISHED


def _after_tags(text: str, of_layout: Set[str]) -> FinalPart | None:
    """What follows the last thinking part that tags mark; None where there is none."""
    opened: list[str] = []
    final_start = -1
    last_opening_end = -1
    tags = list(_TAG.finditer(text.translate(_LOOKALIKES)))
    closed = {_name_of(tag) for tag in tags if tag["slash"]}
    for tag in tags:
        kind, name = _kind_of(tag, closed), _name_of(tag)
        if kind is None or name in of_layout:
            continue
        if kind == "opening":
            # A model may repeat the tag that its template wrote.
            if not opened or text[last_opening_end : tag.start()].strip():
                opened.append(name)
            last_opening_end = tag.end()
            continue
        if name == "details" and name not in opened:
            continue
        if kind == "closing":
            # Unclosed tags within go with it; one that was never opened was the template's.
            while opened and opened.pop() != name:
                pass
        if not opened:
            final_start = tag.end()
    if opened:
        return _UNFINISHED
    return FinalPart(text[final_start:], True) if final_start >= 0 else None


def _name_of(tag: re.Match[str]) -> str:
    """The thinking word of a tag, so that `begin_of_thought` and `end_of_thought` are one."""
    name = tag["name"].lower()
    words = [word for word in _WORD_BREAK.split(name) if word in _THINKING_WORDS]
    words += _THINKING_STEMS.findall(name)
    return words[-1] if words else name.strip("0123456789")


def _is_about_thinking(name: str) -> bool:
    """Whether a name in lower case is one of a thinking part."""
    if set(_WORD_BREAK.split(name)) & {"answer"}:
        return False
    if (stem := _THINKING_STEMS.search(name)) is not None:
        return not _OPENS_ANOTHER.match(name[: stem.start()])
    return bool(set(_WORD_BREAK.split(name)) & _THINKING_WORDS)


def _kind_of(tag: re.Match[str], closed: Set[str]) -> str | None:
    """'opening', 'closing' or 'empty' (`<think/>`); None: the tag is about something else.

    Args:
      tag: with anything in it.
      closed: the names that a closing tag of the text has.
    """
    name = tag["name"].lower()
    words = set(_WORD_BREAK.split(name))
    if name == "channel" and bool(tag["bar"]) != bool(tag["last_bar"]):
        return "opening" if tag["bar"] else "closing"
    if name in ("unused94", "unused95"):
        return "opening" if name == "unused94" else "closing"
    if name == "details":
        if tag["slash"]:
            return "closing"
        is_thinking = "reasoning" in (tag["attributes"] or "").lower()
        is_thinking |= _SUMMARY_OF_THOUGHTS.match(tag.string, tag.end()) is not None
        return "opening" if is_thinking else None
    if not _is_about_thinking(name):
        return None
    if tag["bracket"][0] in "[{" and name not in _BRACKETED_WORDS and _name_of(tag) not in closed:
        return None
    if tag["slash"] or words & _CLOSING_WORDS or name.startswith(tuple(_CLOSING_WORDS)):
        return "closing"
    is_empty = tag["empty"] or (tag["attributes"] or "").endswith("/")
    return "empty" if is_empty else "opening"


def _without_wrapper(text: str) -> str:
    """What stands inside `<answer>…</answer>` or the like, if the final part begins with it."""
    tag = _TAG.match(text.lstrip())
    if tag is None or tag["slash"] or not _words_of(tag) & _ANSWER_WORDS:
        return text
    inside = text.lstrip()[tag.end() :]
    for later in _TAG.finditer(inside):
        is_closing = later["slash"] or _words_of(later) & _CLOSING_WORDS
        if is_closing and _words_of(later) & _words_of(tag) & _ANSWER_WORDS:
            return inside[: later.start()]
    return inside


def _words_of(tag: re.Match[str]) -> set[str]:
    return set(_WORD_BREAK.split(tag["name"].lower()))
