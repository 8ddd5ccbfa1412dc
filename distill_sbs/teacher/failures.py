"""What a failed call means: ask again, give this input up, or end the run.

Enters: an HTTP status, or the error object of a body, however an endpoint words it. Leaves: one of
three exceptions, each with its reason in words.
"""

from __future__ import annotations

import contextlib
import dataclasses
import email.utils
import re
import time
from collections.abc import Mapping

from distill_sbs import json_lines
from distill_sbs.errors import SourceError, UserError

# 408, 409, 425 and 5xx pass; 429, 503 and 529 say that the endpoint has too much to do.
_PASSING = (408, 409, 425)
_OVERLOADED = (429, 503, 529)

# What endpoints call errors in words, where they give no status.
_STATUS_OF_WORDS = {
    "invalid_api_key": 401,
    "authentication_error": 401,
    "unauthenticated": 401,
    "unauthorized": 401,
    "insufficient_quota": 402,
    "insufficient_credits": 402,
    "billing_error": 402,
    "payment_required": 402,
    "permission_error": 403,
    "permission_denied": 403,
    "forbidden": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "not_found": 404,
    "notfounderror": 404,
    "rate_limit_exceeded": 429,
    "rate_limit_error": 429,
    "too_many_requests": 429,
    "resource_exhausted": 429,
    "server_error": 500,
    "internal_error": 500,
    "internal_server_error": 500,
    "internalservererror": 500,
    "api_error": 500,
    "internal": 500,
    "unavailable": 503,
    "service_unavailable": 503,
    "overloaded_error": 529,
    "overloaded": 529,
    "engine_overloaded": 529,
    "timeout": 504,
    "deadline_exceeded": 504,
}


class TemporaryFailure(Exception):
    """The call failed, the next one may not.

    Attributes:
      reason: what happened, a few words that many failures share.
      detail: what was seen, for one line on the terminal or in the file; may be empty.
      overloaded: whether the endpoint should be asked less.
      retry_after_seconds: how long the endpoint says to wait.
      counts: whether it is an attempt at this input; being told to wait is none.
      answered: whether the endpoint did answer, though with nothing in it.
      unusable: whether a response came that is no completion, and may be so for ever.
      unreachable: whether there was no connection at all.
      tokens: of prompt and answer, where the call was paid for all the same.
    """

    def __init__(
        self,
        reason: str,
        detail: str = "",
        *,
        overloaded: bool = False,
        retry_after_seconds: float | None = None,
        counts: bool = True,
        answered: bool = False,
        unusable: bool = False,
        unreachable: bool = False,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail
        self.overloaded = overloaded
        self.retry_after_seconds = retry_after_seconds
        self.counts = counts
        self.answered = answered
        self.unusable = unusable
        self.unreachable = unreachable
        self.tokens: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


class PermanentFailure(Exception):
    """However often it is asked, this input gets no answer; the message is the reason.

    Attributes:
      tokens: of prompt and answer, where the call was paid for all the same.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.tokens: tuple[int, int] | None = None


class EndpointUnusable(UserError):
    """No input will get an answer: a wrong key, model or URL, or a quota that is used up."""


@dataclasses.dataclass(frozen=True)
class ErrorDetails:
    """An error as an endpoint tells it.

    Attributes:
      message: in its words; the start of the body where it uses none.
      code: its own code in lower case, or ''.
      parameter: the parameter of the request that it is about, or ''.
      status: the HTTP status that the body names, or that its code stands for; None: neither.
    """

    message: str
    code: str = ""
    parameter: str = ""
    status: int | None = None


def read_error(body: bytes) -> ErrorDetails:
    """The error in the body of a response whose status is one; whatever its form."""
    text = body.decode("utf-8", "replace").strip()
    try:
        value = json_lines.parse_json(text, "the body")
    except SourceError:
        return ErrorDetails(_strip_tags(text))
    return find_error(value) or _describe(value) or ErrorDetails(text)


def find_error(value: object) -> ErrorDetails | None:
    """The error object that a JSON body is, or holds; None where it is, or holds, none."""
    if isinstance(value, list) and value:
        return find_error(value[0])
    if not isinstance(value, dict):
        return None
    error = value.get("error")
    if error:
        details = _describe(error) or ErrorDetails(str(error))
        if details.status is None and isinstance(error, str):
            status = _status_of(value.get("code"), value.get("status"))
            details = dataclasses.replace(details, status=status)
        return details
    if value.get("choices"):
        return None
    if value.get("object") == "error" or value.get("type") == "error" or value.get("errors"):
        return _describe(value)
    status = _status_of(value.get("code"), value.get("status"), value.get("status_code"))
    return _describe(value) if status is not None or "detail" in value else None


def _describe(error: object) -> ErrorDetails | None:
    if isinstance(error, str):
        return _describe_text(error) if error.strip() else None
    if isinstance(error, list):
        return _describe(error[0]) if error else None
    if not isinstance(error, dict):
        return None
    for key in ("message", "msg", "detail", "error", "errors", "title", "description"):
        told = error.get(key)
        inner = _describe(told) if told and told is not error else None
        if inner is None:
            continue
        code = error.get("code") or error.get("type") or error.get("status") or inner.code
        where = error.get("param") or error.get("loc") or inner.parameter
        status = _status_of(
            error.get("code"), error.get("status"), error.get("status_code"), error.get("type")
        )
        return ErrorDetails(
            inner.message,
            str(code).lower() if isinstance(code, str | int) else "",
            str(where[-1] if isinstance(where, list) and where else where or ""),
            status if status is not None else inner.status,
        )
    status = _status_of(error.get("code"), error.get("status"), error.get("type"))
    return ErrorDetails(str(error), status=status)


def _describe_text(error: str) -> ErrorDetails:
    """An error that is a text: words, a code, or another endpoint's body that a proxy hands on."""
    if error.lstrip().startswith(("{", "[")):
        with contextlib.suppress(SourceError):
            inner = find_error(json_lines.parse_json(error, "the error"))
            if inner is not None:
                return inner
    return ErrorDetails(error, status=_status_of(error, error.strip()[:3]))


def _status_of(*codes: object) -> int | None:
    for code in codes:
        if isinstance(code, str):
            number = int(code) if re.fullmatch(r"[0-9]{3}", code) else None
            number = number or _STATUS_OF_WORDS.get(code.strip().lower())
        else:
            number = code if isinstance(code, int) else None
        if number is not None and 300 <= number < 600:
            return number
    return None


def _strip_tags(text: str) -> str:
    """The words of an HTML page, if it is one."""
    if not text[:1] == "<":
        return text
    return re.sub(r"<[^<>]*>", " ", text).strip() or text


def judge_status(
    status: int, details: ErrorDetails, message: str, headers: Mapping[str, str], model: str
) -> Exception:
    """What an error status means.

    Args:
      status: of HTTP, or what a body says that it stands for.
      details: of the error.
      message: of the error, fit to be shown.
      headers: of the response.
      model: `--model`.
    """
    if 300 <= status < 400:
        where = message or "nowhere"
        return EndpointUnusable(
            f"the endpoint redirects to {where} (status {status}), and redirects are not followed; "
            "give the address that it should be as --base_url, mostly ending in /v1"
        )
    if details.code == "insufficient_quota" or status == 402:
        return EndpointUnusable(f"the endpoint's quota is used up (status {status}): {message}")
    if status in (401, 403, 407):
        return EndpointUnusable(
            "the endpoint refuses the key in OPENAI_API_KEY, or it is not set (status "
            f"{status}): {message}"
        )
    if status == 404:
        return EndpointUnusable(
            f"the endpoint knows no such address or model (status 404): {message}; --model is "
            f"{model!r}, and --base_url mostly ends in /v1"
        )
    if status in _OVERLOADED:
        return TemporaryFailure(
            f"status {status}",
            message,
            overloaded=True,
            retry_after_seconds=retry_after_seconds(headers),
            counts=status != 429,
        )
    if status in _PASSING or status >= 500:
        return TemporaryFailure(f"status {status}", message)
    return PermanentFailure(f"refused with status {status}: {message}")


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` (seconds or a date) or `retry-after-ms` says; None if neither does."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit
        except ValueError:
            pass
        else:
            if seconds == seconds:  # "nan" is a number to Python
                return max(0.0, seconds)
            continue
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except (TypeError, ValueError, OverflowError):
            continue
    return None
