"""What endpoints send in place of a plain completion, each form by its name.

Enters: the body that a good endpoint would send. Leaves: status, headers and bytes of a bad one,
and what a client should make of it: the answer all the same, a failed example, an answer when it
asks again, or the end of the run.
"""

from __future__ import annotations

import copy
import functools
import gzip
import json
import random
import zlib
from collections.abc import Callable
from typing import Any

Sent = tuple[int, list[str], bytes]
Form = Callable[[dict[str, Any]], Sent]

JSON = "Content-Type: application/json"
KEY = "sk-a-key-that-nobody-may-see"  # of the campaign, which a server may echo
BIG = 20 * 2**20


def as_json(value: Any, status: int = 200) -> Sent:
    return status, [JSON], json.dumps(value).encode()


def text_of(body: dict[str, Any]) -> str:
    choice = body["choices"][0]
    return choice["message"]["content"] if "message" in choice else choice["text"]


def changed(body: dict[str, Any], **changes: Any) -> Sent:
    return as_json({**body, **changes})


def with_content(body: dict[str, Any], content: Any, **message: Any) -> Sent:
    body = copy.deepcopy(body)
    choice = body["choices"][0]
    if "message" in choice:
        choice["message"] = {"role": "assistant", "content": content, **message}
    else:
        choice["text"] = content
    return as_json(body)


def with_usage(usage: Any) -> Form:
    return lambda body: changed(body, usage=usage)


def raw(content: bytes, kind: str = "application/json", status: int = 200, *headers: str) -> Form:
    return lambda body: (status, [f"Content-Type: {kind}", *headers], content)


def error(code: Any, message: str, status: int = 200) -> Form:
    return lambda body: as_json({"error": {"code": code, "message": message}}, status)


def without_id(body: dict[str, Any]) -> Sent:
    return as_json({"choices": body["choices"], "model": 7, "created": "yesterday"})


def odd_finish(body: dict[str, Any]) -> Sent:
    body = copy.deepcopy(body)
    body["choices"][0]["finish_reason"] = {"type": "stop"}
    return as_json(body)


def packed(body: dict[str, Any]) -> Sent:
    return 200, [JSON, "Content-Encoding: gzip"], gzip.compress(json.dumps(body).encode())


def duplicate_keys(body: dict[str, Any]) -> Sent:
    text = json.dumps(body)
    return 200, [JSON], f'{{"choices": null, "usage": 5, {text[1:]}'.encode()


def filtered(body: dict[str, Any]) -> Sent:
    body = copy.deepcopy(body)
    body["choices"][0]["finish_reason"] = "content_filter"
    return as_json(body)


@functools.cache
def make_gzip_bomb() -> bytes:
    """200 MiB of blanks in 200 kB."""
    packer = zlib.compressobj(9, wbits=31)
    parts = [packer.compress(b" " * 2**20) for _ in range(200)]
    return b"".join(parts) + packer.flush()


def blocks(body: dict[str, Any]) -> Sent:
    half = len(text_of(body)) // 2
    parts = [
        {"type": "text", "text": part} for part in (text_of(body)[:half], text_of(body)[half:])
    ]
    return with_content(body, parts)


def thoughts(body: dict[str, Any]) -> Sent:
    thinking = {"type": "thinking", "thinking": "The answer is ( 0 + 0 ).", "signature": "s"}
    said = {"type": "text", "text": text_of(body)}
    return with_content(body, [thinking, said], reasoning_content="Hm. The answer is ( 9 ).")


THOUGHT = "Hm. The answer is ( 9 - 9 )."


def with_text(form: str, finish_reason: str = "stop") -> Form:
    """The text in a form that names `{said}` and `{thought}`."""

    def make(body: dict[str, Any]) -> Sent:
        body = copy.deepcopy(body)
        body["choices"][0]["finish_reason"] = finish_reason
        said = form.replace("{said}", text_of(body)).replace("{thought}", THOUGHT)
        return with_content(body, said)

    return make


def cut(body: dict[str, Any]) -> Sent:
    """A limit ends the answer in its label: `( 3 + 4` of `( 3 + 45 )`."""
    body = copy.deepcopy(body)
    body["choices"][0]["finish_reason"] = "length"
    return with_content(body, text_of(body).rstrip(" .)")[:-1])


def without_content(**message: Any) -> Form:
    return lambda body: with_content(body, None, **message)


HARMONY = (
    "<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant to=functions.f<|channel|>"
    "commentary <|constrain|>json<|message|>{}<|call|><|start|>assistant<|channel|>final<|message|>"
)

# The answer is there, with something round it, and is taken.
TEXTS: dict[str, Form] = {
    "harmony": with_text(HARMONY + "{said}<|return|>"),
    "harmony without tokens": with_text("analysis{thought}assistantfinal{said}"),
    "think": with_text("<think>{thought}</think>{said}"),
    "Thinking nested": with_text("<Thinking a='1'>x<think>{thought}</think>y</THINKING>{said}"),
    "[THINK]": with_text("[THINK]{thought}[/THINK]{said}"),
    "closing tag alone": with_text("{thought}</think>{said}"),
    "cut after the label": with_text("{said}\n\nAnd so", "length"),
    "key in the answer": with_text(f"{KEY} and {KEY.replace('-', '%2D')} say so. {{said}}"),
}

# The answer is there, in an odd body, and is taken.
ANSWERS: dict[str, Form] = {
    **TEXTS,
    "key as the model": lambda body: changed(body, model=KEY),
    "block in other letters": lambda body: with_content(
        body, [{"type": "Text", "text": {"value": text_of(body)}}]
    ),
    "thought block of Gemini's": lambda body: with_content(
        body, [{"text": THOUGHT, "thought": True}, {"text": text_of(body)}]
    ),
    "blocks": blocks,
    "thoughts": thoughts,
    "usage many": with_usage({"prompt_tokens": "many", "completion_tokens": "more"}),
    "usage a list": with_usage([1, 2]),
    "usage true": with_usage({"prompt_tokens": True, "completion_tokens": None}),
    "usage negative": with_usage({"prompt_tokens": -900, "completion_tokens": -10}),
    "usage NaN": with_usage({"prompt_tokens": float("nan"), "completion_tokens": float("inf")}),
    "usage huge": with_usage({"prompt_tokens": 10**300, "completion_tokens": 1e308}),
    "usage a text": with_usage("none"),
    "usage null": with_usage(None),
    "no id": without_id,
    "finish reason an object": odd_finish,
    "gzip": packed,
    "duplicate keys": duplicate_keys,
    "byte order mark": lambda body: (200, [JSON], b"\xef\xbb\xbf" + json.dumps(body).encode()),
    "odd character set": lambda body: (
        200,
        ["Content-Type: application/json; charset=rot13"],
        json.dumps(body).encode(),
    ),
}

# The answer is there, and no label can be read from it: unparsed.
UNPARSED: dict[str, Form] = {
    "cut in the label": cut,
    "thought without an end": with_text("<think>{thought} {said}", "length"),
    "thought after the answer": with_text("{said}\n<reasoning>{thought}", "max_tokens"),
    "harmony without a final part": with_text(
        "<|channel|>analysis<|message|>{thought}<|end|><|start|>assistant<|channel|>commentary"
        "<|message|>{said}"
    ),
    "nothing but thinking": with_text("<think>{said}</think>"),
}

# No answer, however often it is asked for.
FAILURES: dict[str, Form] = {
    "refusal": without_content(refusal="I cannot help with that \x1b[2J."),
    "refusal block": lambda body: with_content(body, [{"type": "refusal", "refusal": "No."}]),
    "safety": with_text("{said}", "SAFETY"),
    "text with status 400": raw(b"Bad request: too odd", "text/plain", 400),
    "a list with status 422": lambda body: as_json([{"msg": "too odd", "loc": ["body"]}], 422),
    "lone surrogate": lambda body: with_content(body, "So \ud83d. The answer is ( 1 + 1 )."),
    "surrogate in a key": lambda body: changed(body, **{"\udc00": 1}),
    "200,000 brackets": raw(b"[" * 200_000),
    "nested in the answer": lambda body: (
        200,
        [JSON],
        b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ),
    "5,000 digits": raw(b'{"choices": [], "created": ' + b"1" * 5_000 + b"}"),
    "20 MB": lambda body: with_content(body, "a " * (BIG // 2)),
    "gzip bomb": lambda body: (
        200,
        [JSON, "Content-Encoding: gzip"],
        make_gzip_bomb(),
    ),
    "content a number": lambda body: with_content(body, 5),
    "content true": lambda body: with_content(body, True),
    "unknown block": lambda body: with_content(body, [{"type": "image_url", "image_url": "x"}]),
    "content filter": filtered,
    "status 413": error(None, "too long", status=413),
}
# Asked again, the endpoint answers.
HICCUPS: dict[str, Form] = {
    "reasoning_content alone": without_content(reasoning_content=THOUGHT),
    "tool call alone": without_content(tool_calls=[{"id": "1", "function": {"name": "f"}}]),
    "content missing": lambda body: as_json({**body, "choices": [{"index": 0, "message": {}}]}),
    "JSON in an error's words": error(None, '{"error": {"code": 503, "message": "no backend"}}'),
    "JSON cut over lines": raw(b'{"choices": [\n{"index": 0,\n'),
    "parameter refused in words": raw(
        b"Argument not supported on this model: stop", "text/plain", 400
    ),
    "1 MB of headers": lambda body: (
        200,
        [JSON, "X-Big: " + "y" * 10**6],
        json.dumps(body).encode(),
    ),
    "length that is none": lambda body: (200, [JSON, "Content-Length: -5"], b"{}"),
    "429 inside 200": error(429, "slow down"),
    "503 inside 200": error("503", "overloaded"),
    "rate limit in words": error("rate_limit_exceeded", "slow down"),
    "error without a code": error(None, "something went wrong"),
    "error a text": lambda body: as_json({"error": "something went wrong"}),
    "detail": lambda body: as_json({"detail": [{"loc": ["body"], "msg": "try again"}]}),
    "event stream": raw(
        b'data: {"choices": [{"delta": {"content": "S"}}]}\n\n', "text/event-stream"
    ),
    "login page": raw(b"<!DOCTYPE html><title>Sign in</title><p>Sign in\x1b[2J", "text/html"),
    "plain text": raw(b"upstream connect error", "text/plain"),
    "empty body": raw(b""),
    "no choices": lambda body: changed(body, choices=[]),
    "choices null": lambda body: changed(body, choices=None),
    "choices an object": lambda body: changed(body, choices={"0": "x"}),
    "message null": lambda body: as_json({**body, "choices": [{"index": 0, "message": None}]}),
    "only thoughts": lambda body: with_content(body, [{"type": "thinking", "thinking": "Hm."}]),
    "no UTF-8": raw(b'{"choices": [{"message": {"content": "caf\xe9"}}]}'),
    "JSON of its own": raw(b'["ok"]'),
    "JSON null": raw(b"null"),
    "broken gzip": raw(b"nothing packed", "application/json", 200, "Content-Encoding: gzip"),
    "brotli": raw(b"nothing packed", "application/json", 200, "Content-Encoding: br"),
    "a list with status 500": lambda body: as_json([{"error": {"message": "oops"}}], 500),
    "text with status 503": raw(b"no backend", "text/plain", 503),
    "Retry-After NaN": raw(b"{}", "application/json", 429, "Retry-After: nan"),
    "status 204": raw(b"", "text/plain", 204),
}

# The run ends at once, and goes on with the same command when that is mended.
STOPS: dict[str, Form] = {
    "402 inside 200": error(402, "no credits are left"),
    "wrong key inside 200": error("invalid_api_key", "this key is gone"),
    "a list with status 403": lambda body: as_json([{"error": {"message": "blocked"}}], 403),
    "redirect": raw(b"", "text/plain", 302, "Location: http://127.0.0.1:9/login?next=[red]"),
}

ALL = {**ANSWERS, **UNPARSED, **FAILURES, **HICCUPS, **STOPS}
MOST_HICCUPS = 2


def choose_form(text: str, share: float, seed: int, names: list[str] | None = None) -> str | None:
    """The form that an input is answered with; the same in the server and in a test."""
    draw = random.Random(f"hostile {seed} {text}")
    if draw.random() >= share:
        return None
    # Those that end the run are rare, or it would not come far.
    usual = [name for name in names or ALL if name not in STOPS]
    stops = [name for name in names or ALL if name in STOPS]
    return draw.choice(stops if stops and (not usual or draw.random() < 0.01) else usual)


def is_sent(name: str, times_before: int, hiccups: int = MOST_HICCUPS) -> bool:
    """Whether a form is sent to an input that was asked about so often before."""
    if name in HICCUPS:
        return times_before < hiccups
    return times_before == 0 if name in STOPS else True
