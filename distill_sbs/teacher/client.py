"""One call of an OpenAI-compatible endpoint: the response, or what its failure means.

Enters: chat messages or completion text. Leaves: a `Response`; or one of the exceptions of
`teacher.failures`. Any server will do that speaks `/v1/chat/completions` or `/v1/completions`:
hosted ones, Azure's, vLLM, JetStream, llama.cpp, Ollama, `transformers serve`.

The `openai` package does the HTTP; its own retries are off, since ours share what one call learns
of the endpoint's load among all calls, and bodies are read by our own rules, since an endpoint may
send anything. The key is read from the environment, and no text that leaves this module holds it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from distill_sbs.errors import UserError
from distill_sbs.teacher import completions, failures, transport
from distill_sbs.teacher.address import Address, parse_address
from distill_sbs.teacher.completions import Response
from distill_sbs.teacher.failures import ErrorDetails, PermanentFailure, TemporaryFailure
from distill_sbs.teacher.redaction import Redactor

if TYPE_CHECKING:
    import httpx2
    import openai

KEY_VARIABLE = "OPENAI_API_KEY"
URL_VARIABLE = "OPENAI_BASE_URL"
DEFAULT_URL = "https://api.openai.com/v1"
# `openai`'s Azure client reads these where KEY_VARIABLE is not set.
_AZURE_KEY_VARIABLES = ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN")

# Parameters that some models refuse: they are left out, and the run goes on.
_OPTIONAL_PARAMETERS = ("stop", "temperature", "seed")
_REFUSES = re.compile(
    r"support|unrecogni[sz]ed|unknown|unexpected|not (?:permitted|allowed|accept)|extra (?:inputs|"
    r"fields)|invalid (?:argument|parameter|field|property)"
)


@dataclasses.dataclass(frozen=True)
class RequestParameters:
    """How the teacher is asked; everything that changes its responses besides the prompt.

    Attributes:
      model: the endpoint's name of the model.
      max_tokens: of the longest response.
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
    extra_body: Mapping[str, object] | None = None


class Endpoint:
    """An OpenAI-compatible endpoint.

    Args:
      base_url: with `/v1` at its end; None: `$OPENAI_BASE_URL`, else OpenAI's.
      parameters: how the teacher is asked.
      timeout_seconds: the longest that a call may take.
      on_note: is told once of every parameter that the endpoint does not take.

    Attributes:
      address: where it is.
      redactor: takes the key and other secrets out of texts.

    Raises:
      UserError: the URL or the key is none, or a hosted endpoint is asked without a key.
    """

    def __init__(
        self,
        base_url: str | None,
        parameters: RequestParameters,
        timeout_seconds: float,
        on_note: Callable[[str], None] = lambda _: None,
    ) -> None:
        if base_url:
            self.address = parse_address(base_url)
        else:
            self.address = parse_address(os.environ.get(URL_VARIABLE) or DEFAULT_URL, URL_VARIABLE)
        key = _read_key(self.address)
        self.redactor = Redactor(
            [key, *map(os.environ.get, _AZURE_KEY_VARIABLES), *self.address.secrets]
        )
        self._parameters = parameters
        self._timeout_seconds = timeout_seconds
        self._on_note = on_note
        self._left_out: set[str] = set()
        self._length_name = "max_tokens"
        # The client's log would name every request; ours says what matters.
        for name in ("openai", "httpx2", "httpcore2", "httpx", "httpcore"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._client = _make_client(self.address, key, timeout_seconds)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()

    async def ask(self, prompt: str | Sequence[Mapping[str, str]], sample: int = 0) -> Response:
        """Asks once.

        Raises:
          TemporaryFailure: the same call may be answered later.
          PermanentFailure: this input will never be answered.
          EndpointUnusable: no input will.
        """
        import openai

        for _ in range(1 + len(_OPTIONAL_PARAMETERS) + 1):
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    http = await self._call(prompt, sample)
            except (TimeoutError, openai.APITimeoutError):
                raise TemporaryFailure(
                    f"no answer within {self._timeout_seconds:g} s", overloaded=True
                ) from None
            except openai.APIConnectionError as error:
                raise TemporaryFailure(self._describe_connection(error), unreachable=True) from None
            except openai.APIStatusError as error:
                http = error.response
            except transport.ResponseTooLarge:
                limit = transport.MAX_RESPONSE_BYTES // 2**20
                raise PermanentFailure(f"the response is larger than {limit} MiB") from None
            except transport.ResponseUnreadable as error:
                raise TemporaryFailure(f"malformed response: {error}", unusable=True) from None
            try:
                return self._read(http)
            except _AskOtherwise:
                continue
            except RecursionError:
                raise PermanentFailure("the response is nested too deeply to be read") from None
        raise PermanentFailure("refused whatever is left out of the request")

    async def _call(
        self, prompt: str | Sequence[Mapping[str, str]], sample: int
    ) -> httpx2.Response:
        parameters = self._parameters
        optional: dict[str, object] = {"temperature": parameters.temperature}
        if parameters.stop:
            optional["stop"] = list(parameters.stop)
        if parameters.seed is not None:
            optional["seed"] = parameters.seed + sample
        arguments: dict[str, Any] = {
            "model": parameters.model,
            self._length_name: parameters.max_tokens,
            **{name: value for name, value in optional.items() if name not in self._left_out},
        }
        extra_body = dict(parameters.extra_body or {})
        if parameters.completion:
            arguments["prompt"] = prompt
            raw = await self._client.completions.with_raw_response.create(
                extra_body=extra_body, **arguments
            )
            http: httpx2.Response = raw.http_response
            return http
        # As extra fields, messages go out as they are. The client would go through each of them for
        # names to translate, of which there are none: with ten demonstrations that is two thirds
        # of a call's CPU time (measured: 127 responses a second with it, 169 without).
        extra_body["messages"] = prompt
        raw = await self._client.chat.completions.with_raw_response.create(
            messages=[], extra_body=extra_body, **arguments
        )
        http = raw.http_response
        return http

    def _describe_connection(self, error: BaseException) -> str:
        cause = transport.describe_connection_error(error)
        return self.redactor.shorten(f"no connection to {self.address.host} ({cause})")

    def _read(self, http: httpx2.Response) -> Response:
        """The response in an HTTP response of any status, without secrets.

        Raises:
          _AskOtherwise: one parameter was refused, and is now asked for otherwise.
        """
        status = http.status_code
        if not http.is_success:
            details = failures.read_error(http.content)
            if http.has_redirect_location:
                details = ErrorDetails(str(http.headers.get("location", "")))
            raise self._judge(status, details, http.headers)
        hide = self.redactor.hide
        try:
            response = completions.read_completion(
                http.content, transport.media_type(http), not self._parameters.completion
            )
        except completions.ErrorInBody as error:
            raise self._judge(error.details.status, error.details, http.headers) from None
        except TemporaryFailure as failure:
            failure.reason = self.redactor.shorten(failure.reason)
            failure.detail = self.redactor.shorten(failure.detail)
            raise
        except PermanentFailure as failure:
            failure.args = (self.redactor.shorten(str(failure)),)
            raise
        return dataclasses.replace(
            response,
            text=hide(response.text),
            model=self.redactor.shorten(response.model or self._parameters.model),
            finish_reason=response.finish_reason and self.redactor.shorten(response.finish_reason),
        )

    def _judge(
        self, status: int | None, details: ErrorDetails, headers: Mapping[str, str]
    ) -> Exception:
        if status in (None, 400, 422) and self._adapt(details):
            return _AskOtherwise()
        message = self.redactor.shorten(details.message)
        if status is None:
            return TemporaryFailure("an error in place of an answer", message, unusable=True)
        return failures.judge_status(status, details, message, headers, self._parameters.model)

    def _adapt(self, details: ErrorDetails) -> bool:
        """Whether the request was refused for one parameter, which is now asked for otherwise."""
        message = details.message.lower()
        if "max_completion_tokens" in message and self._length_name == "max_tokens":
            self._length_name = "max_completion_tokens"
            return True
        name = _find_refused_parameter(message, details.parameter)
        if name is None:
            return False
        if name not in self._left_out:  # else another call in flight has found the same
            self._left_out.add(name)
            self._on_note(f"the endpoint does not take {name}: asked without it")
        return True


class _AskOtherwise(Exception):
    """The request goes out once more, in another form."""


def _find_refused_parameter(message: str, parameter: str) -> str | None:
    """The optional parameter that an error is about: named as one, in quotes, or by a word.

    Of several words the one counts that is nearest to those that refuse it.
    """
    refusals = [found.start() for found in _REFUSES.finditer(message[:2_000])]
    if not refusals:
        return None
    for name in _OPTIONAL_PARAMETERS:
        if parameter == name or any(f"{mark}{name}{mark}" in message for mark in "'\"`"):
            return name
    distances = [
        (min(abs(found.start() - refusal) for refusal in refusals), name)
        for name in _OPTIONAL_PARAMETERS
        for found in re.finditer(rf"(?<![\w-]){name}(?![\w-])", message[:2_000])
    ]
    return min(distances)[1] if distances else None


def _read_key(address: Address) -> str:
    """The key of KEY_VARIABLE, '' where it is not set.

    Raises:
      UserError: it cannot stand in a header, is missing where it is needed, or is one key too many.
    """
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not all("!" <= letter <= "~" for letter in key):
        raise UserError(
            f"{KEY_VARIABLE} holds a blank, a line break or a letter that no key has; copy the key "
            "again"
        )
    if not key and address.host == "api.openai.com":
        raise UserError(
            f"{KEY_VARIABLE} is not set, and {address.host} asks for a key; set it, or give "
            "--base_url for a server of your own"
        )
    if key and address.user:
        raise UserError(
            f"--base_url holds a user or password, and {KEY_VARIABLE} is set; a request can carry "
            "one of the two, so leave the other out"
        )
    return key


def _make_client(address: Address, key: str, timeout_seconds: float) -> openai.AsyncOpenAI:
    """A client of `openai`'s for the address."""
    import openai

    http_client = transport.make_http_client(timeout_seconds)
    try:
        if address.is_azure:
            return openai.AsyncAzureOpenAI(
                api_version=address.query["api-version"],
                default_query={
                    name: value for name, value in address.query.items() if name != "api-version"
                },
                api_key=key or None,
                base_url=address.base_url,
                max_retries=0,
                timeout=timeout_seconds,
                http_client=http_client,
            )
        return openai.AsyncOpenAI(
            api_key=key or "none",  # the client wants one, local servers do not
            default_query=address.query,
            base_url=address.base_url,
            max_retries=0,
            timeout=timeout_seconds,
            http_client=http_client,
        )
    except openai.OpenAIError as error:  # Azure without any key
        raise UserError(f"{KEY_VARIABLE} is not set, and Azure asks for a key: {error}") from None
    except Exception as error:
        if type(error).__name__ != "InvalidURL":
            raise
        raise UserError(f"--base_url is no address ({error}); expected http://HOST:PORT/v1") from (
            None
        )
