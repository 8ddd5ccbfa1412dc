r"""A response without what its model thought aloud before the answer.

Enters: a response as the endpoint gave it. Leaves: its final part, what follows the last thinking
part; or why it has none.

Known are tags round a word for thinking, whatever the capitals: `<think>`, `<thinking>`,
`<reasoning>`, `<thought>`, `<seed:think>` and their kin, `[THINK]`, `◁think▷`,
`<|begin_of_thought|>…<|end_of_thought|>`, `<|START_THINKING|>…<|END_THINKING|>`,
`<|channel>thought…<channel|>`, `<unused94>…<unused95>`, `<details type="reasoning">`; Harmony's
channels, of which `final` is kept, with their tokens and without (`analysis…assistantfinal…`); and
Granite's sentences. A closing tag without an opening one ends a thinking part that the chat
template began. Tags of the prompt's own layout are no thinking.
"""

from __future__ import annotations

import dataclasses
import re

UNFINISHED = "cut off while thinking"
NOTHING_ELSE = "nothing but thinking"

_THINKING_WORDS = frozenset(
    "think thinking antthinking thought thoughts reason reasoning reflect reflection reflections "
    "analysis analyze scratchpad deliberation deliberate monologue cot working".split()
)
# In square brackets other words are headings: "[Reasoning] It adds up."
_BRACKETED_WORDS = frozenset(("think", "thinking", "thought"))
_CLOSING_WORDS = frozenset(("end", "close", "stop"))
_ANSWER_WORDS = frozenset(("answer", "response", "solution", "final", "output"))

# Bounded repetitions only: a start costs a constant.
_TAG = re.compile(
    r"(?P<bracket><|&lt;|\[|◁)(?P<bar>[|｜]?) ?(?P<slash>/?) ?(?P<name>[\w:▁-]{1,40})"
    r"(?P<attributes>[ \t][^<>\[\]◁▷]{0,200})?(?P<empty>/?)(?P<last_bar>[|｜]?)(?:>|&gt;|\]|▷)"
)
_WORD_BREAK = re.compile(r"[_▁:-]")
_CHANNEL_TOKEN = re.compile(r"<[|｜](start|end|message|channel|return|call|constrain)[|｜]>", re.I)
_CHANNELS_WITHOUT_TOKENS = re.compile(r"(?:analysis|commentary)(?=[A-Z\"'(0-9])")
_FINAL_WITHOUT_TOKENS = "assistantfinal"
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
    for find in (_after_channels, _after_sentences):
        rest = find(text)
        if rest is not None:
            if rest.problem:
                return rest
            text, had_thinking = rest.text, True
    rest = _after_tags(text, {_name_of(tag) for tag in _TAG.finditer(layout)})
    if rest is None:
        rest = FinalPart(text, had_thinking)
    if rest.problem or not rest.had_thinking:
        return rest
    if not rest.text.strip():
        return FinalPart("", True, NOTHING_ELSE)
    return FinalPart(_without_wrapper(rest.text), True)


def _unfinished() -> FinalPart:
    return FinalPart("", True, UNFINISHED)


def _after_channels(text: str) -> FinalPart | None:
    """The last message in Harmony's channel `final`; None where there are no channels."""
    before, token, after = text.rpartition(_FINAL_WITHOUT_TOKENS)
    if token:
        return FinalPart(after, True)
    if _CHANNELS_WITHOUT_TOKENS.match(text.lstrip()):
        return _unfinished()
    pieces = _CHANNEL_TOKEN.split(text)
    tokens, contents = [token.lower() for token in pieces[1::2]], pieces[2::2]
    if "channel" not in tokens:
        return None
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
    return _unfinished() if final is None else FinalPart(final, True)


def _after_sentences(text: str) -> FinalPart | None:
    """What follows "Here is my response:", where "Here is my thought process:" came first."""
    if not _THOUGHT_SENTENCE.match(text.lstrip()):
        return None
    parts = _RESPONSE_SENTENCE.split(text)
    return FinalPart(parts[-1], True) if len(parts) > 1 else _unfinished()


def _after_tags(text: str, of_layout: set[str]) -> FinalPart | None:
    """What follows the last thinking part that tags mark; None where there is none."""
    opened: list[str] = []
    final_start = -1
    last_opening_end = -1
    for tag in _TAG.finditer(text):
        kind, name = _kind_of(tag), _name_of(tag)
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
        return _unfinished()
    return FinalPart(text[final_start:], True) if final_start >= 0 else None


def _name_of(tag: re.Match[str]) -> str:
    """The thinking word of a tag, so that `begin_of_thought` and `end_of_thought` are one."""
    name = tag["name"].lower()
    words = [word for word in _WORD_BREAK.split(name) if word in _THINKING_WORDS]
    return words[-1] if words else name.strip("0123456789")


def _kind_of(tag: re.Match[str]) -> str | None:
    """'opening', 'closing' or 'empty' (`<think/>`); None: the tag is about something else."""
    name = tag["name"].lower()
    words = set(_WORD_BREAK.split(name))
    if name == "channel" and bool(tag["bar"]) != bool(tag["last_bar"]):
        return "opening" if tag["bar"] else "closing"
    if name in ("unused94", "unused95"):
        return "opening" if name == "unused94" else "closing"
    if name == "details":
        if tag["slash"]:
            return "closing"
        return "opening" if "reasoning" in (tag["attributes"] or "").lower() else None
    if tag["bracket"] == "[":
        if name not in _BRACKETED_WORDS:
            return None
    elif not words & _THINKING_WORDS or words & {"no", "answer"}:
        return None
    if tag["slash"] or words & _CLOSING_WORDS:
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
