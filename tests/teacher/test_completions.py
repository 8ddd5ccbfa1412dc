"""completions, failures: every body is an answer, a failure with its reason, or an error."""

from __future__ import annotations

import json

import hostile_answers
import pytest

from distill_sbs.teacher import parsing, prompts
from distill_sbs.teacher.completions import ErrorInBody, join_blocks, read_completion
from distill_sbs.teacher.failures import (
    EndpointUnusable,
    ErrorDetails,
    PermanentFailure,
    TemporaryFailure,
    judge_status,
    read_error,
)

CHAT = {
    "id": "1",
    "model": "m",
    "choices": [
        {"index": 0, "finish_reason": "stop", "message": {"content": "Both. The answer is ( 1 )."}}
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3},
}


def read(form: str):
    _, head, content = hostile_answers.ALL[form](CHAT)
    return read_completion(content, head[0].removeprefix("Content-Type: "), is_chat=True)


ODD_BODIES = hostile_answers.ANSWERS.keys() - hostile_answers.TEXTS.keys() - {"gzip"}


@pytest.mark.parametrize("form", sorted(ODD_BODIES))
def test_an_odd_body_with_an_answer_is_an_answer(form: str) -> None:
    response = read(form)
    assert response.text == "Both. The answer is ( 1 )."
    if form.startswith("usage"):
        assert response.prompt_tokens is None and response.completion_tokens is None
    assert response.finish_reason in ("stop", None)
    assert response.model in ("m", None, hostile_answers.KEY)


@pytest.mark.parametrize("form", sorted(hostile_answers.TEXTS))
def test_an_answer_with_something_round_it_is_an_answer(form: str) -> None:
    response = read(form)
    answer = parsing.parse(prompts.load("svamp"), "x", response.text, response.finish_reason)
    assert answer.label == "( 1 )" and answer.rationale is not None
    assert answer.rationale.endswith("Both.") and hostile_answers.THOUGHT not in answer.rationale


@pytest.mark.parametrize("form", sorted(hostile_answers.UNPARSED))
def test_a_response_without_an_answer_gives_none(form: str) -> None:
    response = read(form)
    answer = parsing.parse(prompts.load("svamp"), "x", response.text, response.finish_reason)
    assert (answer.label, answer.rationale) == (None, None) and answer.problem


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking_blocks"])
def test_thinking_alone_is_told(field: str) -> None:
    body = {"choices": [{"finish_reason": "stop", "message": {"content": None, field: "Hm."}}]}
    with pytest.raises(TemporaryFailure, match="finish reason stop, thinking only"):
        read_completion(json.dumps(body).encode(), "application/json", True)


@pytest.mark.parametrize(
    "reason",
    ["content_filter", "CONTENT_FILTER", "content-filtered", "SAFETY", "RECITATION", "sensitive",
     "PROHIBITED_CONTENT", "guardrail_intervened", "refusal"],
)  # fmt: skip
def test_an_answer_that_was_taken_back_is_none(reason: str) -> None:
    body = {"choices": [{"finish_reason": reason, "message": {"content": "The answer is ( 1 )."}}]}
    with pytest.raises(PermanentFailure, match="withheld by the endpoint's content filter"):
        read_completion(json.dumps(body).encode(), "application/json", True)


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ("lone surrogate", "half of a character"),
        ("surrogate in a key", "half of a character"),
        ("200,000 brackets", "nested too deeply"),
        ("nested in the answer", "nested too deeply"),
        ("5,000 digits", "too long to be read"),
        ("content a number", "no text but a number"),
        ("content true", "no text but true or false"),
        ("unknown block", "a block of type 'image_url'"),
        ("content filter", "content filter"),
        ("refusal", "refused: I cannot help"),
        ("refusal block", "refused: No."),
    ],
)
def test_what_no_answer_is_fails_its_example(form: str, reason: str) -> None:
    with pytest.raises(PermanentFailure, match=reason):
        read(form)


@pytest.mark.parametrize(
    ("form", "reason", "detail"),
    [
        ("event stream", "no completion but text/event-stream", 'data: {"choices"'),
        ("login page", "no completion but text/html", "Sign in"),
        ("plain text", "no completion but text/plain", "upstream connect error"),
        ("empty body", "an empty response", ""),
        ("no choices", "no choices", '"choices": []'),
        ("choices null", "no choices", '"choices": null'),
        ("choices an object", "no choices", '"0"'),
        ("message null", "no message", ""),
        ("only thoughts", r"empty answer \(finish reason stop\)", ""),
        ("no UTF-8", "malformed response", "not UTF-8"),
        ("JSON of its own", "no completion but application/json", '["ok"]'),
        ("JSON null", "no completion but application/json", "null"),
        ("JSON cut over lines", "malformed response", "broken JSON"),
        ("content missing", r"empty answer \(finish reason None\)", ""),
        ("tool call alone", "a tool was called", ""),
    ],
)
def test_what_may_come_out_better_is_asked_again(form: str, reason: str, detail: str) -> None:
    with pytest.raises(TemporaryFailure, match=reason) as raised:
        read(form)
    assert detail in raised.value.detail
    is_empty = reason.startswith(("empty answer", "a tool"))
    assert (raised.value.answered, raised.value.unusable) == (is_empty, not is_empty)


def test_a_failed_call_that_was_paid_for_says_so() -> None:
    with pytest.raises(TemporaryFailure) as raised:
        read("only thoughts")
    assert raised.value.tokens == (7, 3)


@pytest.mark.parametrize(
    ("form", "status", "message"),
    [
        ("402 inside 200", 402, "no credits are left"),
        ("429 inside 200", 429, "slow down"),
        ("503 inside 200", 503, "overloaded"),
        ("rate limit in words", 429, "slow down"),
        ("wrong key inside 200", 401, "this key is gone"),
        ("error without a code", None, "something went wrong"),
        ("error a text", None, "something went wrong"),
        ("JSON in an error's words", 503, "no backend"),
        ("detail", None, "try again"),
    ],
)
def test_errors_inside_a_success(form: str, status: int | None, message: str) -> None:
    with pytest.raises(ErrorInBody) as raised:
        read(form)
    assert (raised.value.details.status, raised.value.details.message) == (status, message)


def test_an_error_inside_a_choice() -> None:
    body = {"choices": [{"error": {"code": 502, "message": "gone"}, "finish_reason": "error"}]}
    with pytest.raises(ErrorInBody, match="gone"):
        read_completion(json.dumps(body).encode(), "application/json", True)


@pytest.mark.parametrize(
    ("body", "message", "code", "parameter"),
    [
        (b'{"error": {"message": "no", "code": "x", "param": "stop"}}', "no", "x", "stop"),
        (b'[{"error": {"message": "no", "status": "NOT_FOUND"}}]', "no", "not_found", ""),
        (b'["first", "second"]', "first", "", ""),
        (
            b'{"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}]}',
            "Extra inputs",
            "",
            "seed",
        ),
        (b'{"message": "no", "type": "BadRequest", "code": 400}', "no", "400", ""),
        (b"plain words", "plain words", "", ""),
        (
            b'{"error": "{\\"error\\": {\\"message\\": \\"no\\", \\"code\\": 402}}"}',
            "no",
            "402",
            "",
        ),
        (b'{"error": "{broken"}', "{broken", "", ""),
        (b"<html><b>Bad</b> Gateway</html>", "Bad  Gateway", "", ""),
        (b"", "", "", ""),
        (b'"quoted"', "quoted", "", ""),
        (b"17", "17", "", ""),
        (b'{"odd": true}', "{'odd': True}", "", ""),
        (b"\xff\xfe", "��", "", ""),
    ],
)
def test_error_bodies_of_every_form(body: bytes, message: str, code: str, parameter: str) -> None:
    details = read_error(body)
    assert (details.message, details.code, details.parameter) == (message, code, parameter)


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (302, "", EndpointUnusable, "redirects to http://h/ .status 302., and redirects are not"),
        (401, "", EndpointUnusable, "refuses the key in OPENAI_API_KEY"),
        (402, "", EndpointUnusable, "quota is used up"),
        (429, "insufficient_quota", EndpointUnusable, "quota is used up"),
        (404, "", EndpointUnusable, "--model is 'm'"),
        (429, "", TemporaryFailure, "status 429: http://h/"),
        (503, "", TemporaryFailure, "status 503"),
        (409, "", TemporaryFailure, "status 409"),
        (418, "", PermanentFailure, "refused with status 418"),
    ],
)
def test_what_a_status_means(status: int, code: str, kind: type, words: str) -> None:
    error = judge_status(status, ErrorDetails("", code), "http://h/", {}, "m")
    assert type(error) is kind
    with pytest.raises(kind, match=words):
        raise error


def test_blocks() -> None:
    assert join_blocks([{"type": "text", "text": "a"}, "b", {"text": "c"}]) == "abc"
    assert join_blocks({"type": "output_text", "text": "a"}) == "a"
    assert join_blocks([{"type": "redacted_thinking", "data": "x"}]) == join_blocks([]) == ""
    assert join_blocks([{"type": "Text", "text": {"value": "a"}}]) == "a"
    for kind in ("Thinking", "reasoning_text", "summary_text", "thought"):
        assert join_blocks([{"type": kind, "text": "Hm."}, "a"]) == "a"
    assert join_blocks([{"text": "Hm.", "thought": True}, {"text": "a"}]) == "a"
    with pytest.raises(PermanentFailure, match="holds a number in place of a block"):
        join_blocks([5])
    with pytest.raises(PermanentFailure, match="of type 'text'"):
        join_blocks([{"type": "text", "text": None}])
