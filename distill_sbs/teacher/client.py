"""One call of an OpenAI-compatible endpoint: the answer, or what its failure means.

Enters: chat messages or completion text. Leaves: a `Reply`; or `Retry` (ask again), `Hopeless`
(this input will never be answered), `EndpointUnusable` (no input will). Any server will do that
speaks `/v1/chat/completions` or `/v1/completions`: hosted ones, vLLM, JetStream, llama.cpp, Ollama,
`transformers serve`.

The `openai` package does the HTTP; its own retries are off, since ours share what one call learns
of the endpoint's load among all calls. The key is read from the environment, and no message that
leaves this module holds it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import email.utils
import logging
import os
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

from distill_sbs.errors import UserError

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
DEFAULT_URL = "https://api.openai.com/v1"

# 408, 409, 425 and 5xx pass; 429, 503 and 529 say that the endpoint has too much to do.
_PASSING = (408, 409, 425)
_OVERLOADED = (429, 503, 529)
# Parameters that some models refuse: they are left out, and the run goes on.
_OPTIONAL_PARAMETERS = ("stop", "temperature", "seed")
_MOST_OF_A_MESSAGE = 300


@dataclasses.dataclass(frozen=True)
class Asking:
    """How the teacher is asked; everything that changes its answers besides the prompt.

    Attributes:
      model: the endpoint's name of the model.
      max_tokens: the longest answer.
      temperature: 0 is greedy.
      stop: stop sequences.
      completion: whether prompts are plain text, not chats.
      seed: sample k of an example is asked for with seed + k; None leaves it to the endpoint.
      extra_body: further fields of the request, the endpoint's own.
    """

    model: str
    max_tokens: int
    temperature: float = 0.0
    stop: tuple[str, ...] = ()
    completion: bool = False
    seed: int | None = None
    extra_body: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Reply:
    """What the teacher said; token counts are None where the endpoint gives none."""

    text: str
    finish_reason: str | None
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None


class Retry(Exception):
    """The call failed, the next one may not.

    Attributes:
      reason: what happened, a few words that many failures share.
      overloaded: whether the endpoint should be asked less.
      retry_after_seconds: how long the endpoint says to wait.
      counts: whether it is an attempt at this input; being told to wait is none.
    """

    def __init__(
        self,
        reason: str,
        *,
        overloaded: bool = False,
        retry_after_seconds: float | None = None,
        counts: bool = True,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.overloaded = overloaded
        self.retry_after_seconds = retry_after_seconds
        self.counts = counts


class Hopeless(Exception):
    """However often it is asked, this input gets no answer; the message is the reason."""


class EndpointUnusable(UserError):
    """No input will get an answer: a wrong key, model or URL, or a quota that is used up."""


class Endpoint:
    """An OpenAI-compatible endpoint.

    Args:
      base_url: with `/v1` at its end; None: `$OPENAI_BASE_URL`, else OpenAI's.
      asking: how the teacher is asked.
      timeout_seconds: the longest that a call may take.

    Raises:
      UserError: the URL is none, or a hosted endpoint is asked without a key.
    """

    def __init__(self, base_url: str | None, asking: Asking, timeout_seconds: float) -> None:
        url = base_url or os.environ.get(URL_VARIABLE) or DEFAULT_URL
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(
                f"--base_url={_without_password(url)} is no http:// or https:// address; local "
                "servers are mostly http://localhost:8000/v1"
            )
        key = os.environ.get(KEY_VARIABLE, "")
        if not key and parts.hostname == "api.openai.com":
            raise UserError(
                f"{KEY_VARIABLE} is not set, and {parts.hostname} asks for a key; set it, or give "
                "--base_url for a server of your own"
            )
        import openai

        # The client's log would name every request; ours says what matters.
        for name in ("openai", "httpx2", "httpcore2", "httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._errors = openai
        self._asking = asking
        self._timeout_seconds = timeout_seconds
        self._secrets = [each for each in (key, parts.password) if each]
        self._left_out: set[str] = set()
        self._length_name = "max_tokens"
        self.notes: list[str] = []
        self._client = openai.AsyncOpenAI(
            base_url=url,
            api_key=key or "none",  # the client wants one, local servers do not
            max_retries=0,
            timeout=timeout_seconds,
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    def redacted(self, text: str) -> str:
        """`text` without the key, and no longer than a message should be."""
        for secret in self._secrets:
            text = text.replace(secret, "[key]")
        text = " ".join(text.split())
        return text if len(text) <= _MOST_OF_A_MESSAGE else text[:_MOST_OF_A_MESSAGE] + " …"

    async def ask(self, prompt: str | Sequence[Mapping[str, str]], sample: int = 0) -> Reply:
        """Asks once.

        Raises:
          Retry, Hopeless, EndpointUnusable: see there.
        """
        for _ in range(1 + len(_OPTIONAL_PARAMETERS) + 1):
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    return self._reply(await self._call(prompt, sample))
            except TimeoutError:
                raise self._timed_out() from None
            except self._errors.APITimeoutError:
                raise self._timed_out() from None
            except self._errors.APIConnectionError as error:
                cause = type(error.__cause__ or error).__name__
                raise Retry(f"connection failed ({cause})") from None
            except self._errors.APIStatusError as error:
                if not self._adapt(error):
                    raise self._judge(error) from None
            except (self._errors.APIError, ValueError, TypeError, AttributeError, KeyError):
                # A body that is cut short or no JSON, or JSON that is no answer.
                raise Retry("malformed response") from None
        raise Hopeless("refused whatever is left out of the request")

    def _timed_out(self) -> Retry:
        return Retry(f"no answer within {self._timeout_seconds:g} s", overloaded=True)

    async def _call(self, prompt: str | Sequence[Mapping[str, str]], sample: int) -> Any:
        asking = self._asking
        optional: dict[str, Any] = {"temperature": asking.temperature}
        if asking.stop:
            optional["stop"] = list(asking.stop)
        if asking.seed is not None:
            optional["seed"] = asking.seed + sample
        arguments: dict[str, Any] = {
            "model": asking.model,
            self._length_name: asking.max_tokens,
            **{name: value for name, value in optional.items() if name not in self._left_out},
        }
        extra_body = dict(asking.extra_body or {})
        if asking.completion:
            return await self._client.completions.create(
                prompt=prompt, extra_body=extra_body, **arguments
            )
        # As extra fields, messages go out as they are. The client would go through each of them for
        # names to translate, of which there are none: with ten demonstrations that is two thirds
        # of a call's CPU time (measured: 127 answers a second with it, 169 without).
        extra_body["messages"] = prompt
        return await self._client.chat.completions.create(
            messages=[], extra_body=extra_body, **arguments
        )

    def _reply(self, response: Any) -> Reply:
        choices = getattr(response, "choices", None)
        if not choices:
            raise Retry("malformed response")
        choice = choices[0]
        text = choice.text if self._asking.completion else choice.message.content
        if choice.finish_reason == "content_filter":
            raise Hopeless("withheld by the endpoint's content filter")
        if text is not None and not isinstance(text, str):
            raise Retry("malformed response")
        if text is None or not text.strip():
            refusal = None if self._asking.completion else getattr(choice.message, "refusal", None)
            if refusal:
                raise Hopeless(self.redacted(f"refused: {refusal}"))
            raise Retry(f"empty answer (finish reason {choice.finish_reason})")
        usage = response.usage
        return Reply(
            text,
            choice.finish_reason,
            response.model or self._asking.model,
            getattr(usage, "prompt_tokens", None),
            getattr(usage, "completion_tokens", None),
        )

    def _adapt(self, error: Any) -> bool:
        """Whether the request was refused for one parameter, which is now asked for otherwise."""
        if error.status_code not in (400, 422):
            return False
        message = str(error.message).lower()
        if "max_completion_tokens" in message and self._length_name == "max_tokens":
            self._length_name = "max_completion_tokens"
            return True
        if "support" not in message and "unrecognized" not in message:
            return False
        for name in _OPTIONAL_PARAMETERS:
            named = error.param == name or f"'{name}'" in message
            if named and name not in self._left_out:
                self._left_out.add(name)
                self.notes.append(f"the endpoint does not take {name}: asked without it")
                return True
            if named:
                return True  # another call in flight has found the same
        return False

    def _judge(self, error: Any) -> Exception:
        """What an error status means."""
        status = error.status_code
        message = self.redacted(str(error.message))
        if status in (401, 403):
            return EndpointUnusable(
                f"the endpoint refuses the key in {KEY_VARIABLE}, or it is not set (status "
                f"{status}): {message}"
            )
        if status == 404:
            return EndpointUnusable(
                f"the endpoint knows no such address or model (status 404): {message}; --model is "
                f"{self._asking.model!r}, and --base_url mostly ends in /v1"
            )
        if error.code == "insufficient_quota" or status == 402:
            return EndpointUnusable(f"the endpoint's quota is used up: {message}")
        if status in _OVERLOADED:
            return Retry(
                f"status {status}",
                overloaded=True,
                retry_after_seconds=retry_after_seconds(error.response.headers),
                counts=status != 429,
            )
        if status in _PASSING or status >= 500:
            return Retry(f"status {status}")
        return Hopeless(f"refused with status {status}: {message}")


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` (seconds or a date) or `retry-after-ms` says; None if neither does."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) * unit)
        except ValueError:
            pass
        try:
            return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
        except (TypeError, ValueError):
            continue
    return None


def _without_password(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return url.replace(f"{parts.netloc}", parts.hostname or "") if parts.password else url
