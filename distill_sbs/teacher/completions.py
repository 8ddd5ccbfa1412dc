"""What stands in the body of a response: the teacher's text, or why there is none.

Enters: the bytes of a response with status 200. Leaves: a `Response`, whose texts can be written
as UTF-8 and whose token counts can be counted with; or a failure that names what was found.
"""

from __future__ import annotations

import dataclasses
import re

from distill_sbs import json_lines
from distill_sbs.errors import SourceError
from distill_sbs.json_lines import JsonObject
from distill_sbs.teacher.budget import check_token_count
from distill_sbs.teacher.failures import (
    ErrorDetails,
    PermanentFailure,
    TemporaryFailure,
    find_error,
)

# Blocks of a content list that are the response, and those that are thoughts on the way to it.
_TEXT_BLOCKS = ("text", "output_text")
_THINKING_BLOCKS = re.compile(r"think|thought|reason|summary_text")
# Where else endpoints put thoughts.
_THINKING_FIELDS = (
    "reasoning_content",
    "reasoning",
    "reasoning_details",
    "thinking",
    "thinking_blocks",
)

# Finish reasons of answers that were taken back, in the words of the endpoints there are.
_WITHHELD = re.compile(
    r"content.?filter|safety|recitation|blocklist|prohibited|spii|sensitive|guardrail|moderat|"
    r"refusal",
    re.IGNORECASE,
)

_START_OF_BODY = 2_000
_REMEDY = "; save it as UTF-8"  # of files


@dataclasses.dataclass(frozen=True)
class Response:
    """What the teacher said; token counts are None where the endpoint gives none that can be."""

    text: str
    finish_reason: str | None
    model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None


class ErrorInBody(Exception):
    """The body of a response with status 200 holds an error."""

    def __init__(self, details: ErrorDetails) -> None:
        super().__init__(details.message)
        self.details = details


def read_completion(body: bytes, media_type: str, is_chat: bool) -> Response:
    """Reads a completion, of a chat or a plain one.

    Args:
      body: as it came, unpacked.
      media_type: what the response says it is.
      is_chat: whether a message is expected, not a text.

    Raises:
      ErrorInBody: it holds an error in place of a completion.
      TemporaryFailure: it is no completion, or an empty one; asked again it may be one.
      PermanentFailure: it holds something else than text, or was refused or withheld.
    """
    try:
        value = json_lines.parse_json(body, "the response")
    except SourceError as error:
        raise _unreadable(body, media_type, error) from None
    if (details := find_error(value)) is not None:
        raise ErrorInBody(details)
    if not isinstance(value, dict) or "choices" not in value:
        raise _no_completion(body, media_type)
    choices = value["choices"]
    if not choices or not isinstance(choices, list) or not isinstance(choices[0], dict):
        raise TemporaryFailure("no choices in the response", _start(body), unusable=True)
    choice = choices[0]
    if (details := find_error({"error": choice.get("error")})) is not None:
        raise ErrorInBody(details)
    usage = value.get("usage")
    if not isinstance(usage, dict):
        usage = {}
    prompt_tokens = check_token_count(usage.get("prompt_tokens"))
    completion_tokens = check_token_count(usage.get("completion_tokens"))
    finish_reason = choice.get("finish_reason")
    try:
        text = _read_text(choice, finish_reason, is_chat)
    except (TemporaryFailure, PermanentFailure) as failure:
        failure.tokens = (prompt_tokens or 0, completion_tokens or 0)
        raise
    model = value.get("model")
    return Response(
        text,
        finish_reason if isinstance(finish_reason, str) else None,
        model if isinstance(model, str) and model else None,
        prompt_tokens,
        completion_tokens,
    )


def _read_text(choice: JsonObject, finish_reason: object, is_chat: bool) -> str:
    if isinstance(finish_reason, str) and _WITHHELD.search(finish_reason):
        shown = (
            "" if finish_reason == "content_filter" else f" (finish reason {finish_reason[:40]})"
        )
        raise PermanentFailure(f"withheld by the endpoint's content filter{shown}")
    holder = choice.get("message") if is_chat else choice
    if not isinstance(holder, dict):
        raise TemporaryFailure("no message in the response", unusable=True)
    text = join_blocks(holder.get("content" if is_chat else "text"))
    if text.strip():
        return text
    refusal = holder.get("refusal")
    if refusal:
        raise PermanentFailure(f"refused: {refusal}")
    shown = f"finish reason {str(finish_reason)[:40]}"
    if any(holder.get(field) for field in _THINKING_FIELDS):
        shown += ", thinking only"
    elif holder.get("tool_calls") or holder.get("function_call"):
        shown += ", a tool was called"
    raise TemporaryFailure(f"empty answer ({shown})", answered=True)


def join_blocks(content: object) -> str:
    """The text of a message's content: a text, or a list of blocks, thoughts left out.

    Raises:
      PermanentFailure: it is, or holds, something else.
    """
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise PermanentFailure(f"the content is no text but {_kind(content)}")
    texts = []
    for block in content:
        if isinstance(block, str):
            texts.append(block)
            continue
        kind = block.get("type", "text") if isinstance(block, dict) else None
        if not isinstance(kind, str):
            raise PermanentFailure(f"the content holds {_kind(block)} in place of a block")
        if _THINKING_BLOCKS.search(kind.lower()) or block.get("thought") is True:
            continue
        if kind.lower() == "refusal":
            raise PermanentFailure(f"refused: {block.get('refusal')}")
        text = block.get("text")
        if isinstance(text, dict):
            text = text.get("value")
        if kind.lower() not in _TEXT_BLOCKS or not isinstance(text, str):
            raise PermanentFailure(f"the content holds a block of type {kind[:40]!r}")
        texts.append(text)
    return "".join(texts)


def _kind(value: object) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, dict) else "nothing")


def _unreadable(body: bytes, media_type: str, error: SourceError) -> Exception:
    """What a body is that is no JSON, or JSON that nothing further on could take."""
    if not body.strip():
        return TemporaryFailure("an empty response", unusable=True)
    said = re.sub(r"^the response(, line \d+)?: ", "", str(error)).removesuffix(_REMEDY)
    if not said.startswith(("broken JSON", "not UTF-8")):
        return PermanentFailure(f"the response cannot be read: {said}")
    if body.lstrip()[:1] in b"{[" and "json" in media_type:
        return TemporaryFailure("malformed response", f"{said}, {_start(body)}", unusable=True)
    return _no_completion(body, media_type)


def _no_completion(body: bytes, media_type: str) -> TemporaryFailure:
    shown = media_type or "no Content-Type"
    return TemporaryFailure(
        f"the response is no completion but {shown}", _start(body), unusable=True
    )


def _start(body: bytes) -> str:
    """How a body begins, ending with a whole word: half a key would not be known as one."""
    words = body[:_START_OF_BODY].decode("utf-8", "replace").split()
    if len(body) > _START_OF_BODY and len(words) > 1:
        words.pop()
    return repr(" ".join(words))
