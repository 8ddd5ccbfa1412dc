"""What a client asks, checked: the body of a request becomes texts, or one sentence of refusal.

Enters: bytes from anywhere. Leaves: a `Question`; or a `Refusal`, a status of HTTP and why.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

from distill_sbs import json_lines
from distill_sbs.errors import SourceError, did_you_mean
from distill_sbs.json_lines import JsonValue

# What is read of a body that is too long, so that the client, which is still sending, gets to read
# why it is refused.
_READ_ON = 16

_EXAMPLE = '{"inputs": ["Anna has 3 apples …"]}'
_KEYS = ("input", "inputs", "rationale")


class Refusal(Exception):
    """A request that is not answered; its message is one sentence for the client.

    Args:
      status: of HTTP.
      message: what was got, what was expected.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Question(NamedTuple):
    """What a client asks.

    Attributes:
      inputs: texts without prefix; one at least.
      with_rationale: whether rationales are wanted beside the labels.
    """

    inputs: list[str]
    with_rationale: bool


async def read_body(chunks: AsyncIterator[bytes], most: int, seconds: float) -> bytes:
    """The body of a request.

    Raises:
      Refusal: 413, it is longer than `most` bytes; 408, it did not come within `seconds`.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in chunks:
                size += len(chunk)
                if size <= most:
                    parts.append(chunk)
                elif size > _READ_ON * most:
                    break
    except TimeoutError:
        raise Refusal(
            408, f"the body did not come within {seconds:g} seconds; send it faster, or in parts"
        ) from None
    if size > most:
        raise Refusal(
            413, f"the body is longer than {most:,} bytes; ask about fewer inputs at a time"
        )
    return b"".join(parts)


def check_type(content_type: str | None) -> None:
    """A page of another site cannot make a browser send JSON's type unasked.

    Raises:
      Refusal: 415, the body is said to be something else than JSON.
    """
    name = (content_type or "").partition(";")[0].strip().lower()
    if name != "application/json":
        raise Refusal(
            415,
            f"the body is of type {_show(name) if name else 'unknown'}, expected application/json; "
            "send the header Content-Type: application/json",
        )


def parse_question(body: bytes, most_inputs: int, with_rationale: bool) -> Question:
    """The question in a body.

    Args:
      body: JSON, {"inputs": [text, …]} or {"input": text}, with "rationale" true or false.
      most_inputs: how many inputs there may be.
      with_rationale: the default of "rationale".

    Raises:
      Refusal: 400, it is something else; 413, there are too many inputs.
    """
    try:
        value = json_lines.parse_json(body, "the body")
    except SourceError as error:
        raise Refusal(400, str(error)) from None
    if not isinstance(value, dict):
        raise _refuse("the body", value, "an object")
    for key in value:
        if key not in _KEYS:
            near = did_you_mean(key[:80], _KEYS)
            raise Refusal(
                400, f"the body has {_show(key)}, expected some of {', '.join(_KEYS)}{near}"
            )
    if ("input" in value) == ("inputs" in value):
        raise Refusal(400, f'expected either "input" or "inputs" in the body: {_EXAMPLE}')
    inputs: JsonValue = value["inputs"] if "inputs" in value else [value["input"]]
    if not isinstance(inputs, list):
        raise _refuse('"inputs"', inputs, "a list of texts")
    if not inputs:
        raise Refusal(400, f'"inputs" is empty, expected one text at least: {_EXAMPLE}')
    if len(inputs) > most_inputs:
        raise Refusal(
            413,
            f"{len(inputs):,} inputs, expected at most {most_inputs:,}; ask several times",
        )
    texts = []
    for number, text in enumerate(inputs, start=1):
        name = f"input {number}" if "inputs" in value else '"input"'
        if not isinstance(text, str):
            raise _refuse(name, text, "a text")
        if not text.strip():
            raise Refusal(400, f"{name} is blank, expected a text to answer")
        texts.append(text)
    wanted = value.get("rationale", with_rationale)
    if not isinstance(wanted, bool):
        raise _refuse('"rationale"', wanted, "true or false")
    return Question(texts, wanted)


def _refuse(name: str, value: JsonValue, expected: str) -> Refusal:
    found = json_lines.name_kind(value)
    return Refusal(400, f"{name} is {found}, expected {expected}: {_EXAMPLE}")


def _show(text: str) -> str:
    return json_lines.show_value(text)
