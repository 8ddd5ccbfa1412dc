"""How bytes come back from an endpoint: no redirects, no more than a response can be.

Enters: requests that `openai` builds. Leaves: responses that were read whole and unpacked, or
`ResponseTooLarge`, `ResponseUnreadable`. Whatever the endpoint sends, memory stays bounded: by
`MAX_RESPONSE_BYTES` a call, before and after decompression.
"""

from __future__ import annotations

import socket
import ssl
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx2

# The longest responses of today's models are some hundred kilobytes.
MAX_RESPONSE_BYTES = 4 * 2**20

# Of an event stream, which may never end, the beginning is enough to say what it is.
_MOST_OF_A_STREAM = 2_048
_EVENT_STREAM = "text/event-stream"
_GZIP_OR_ZLIB = 47  # zlib's number for: see which of the two it is
# They tell how the body was sent; it is handed on unpacked.
_OF_THE_BODY = ("content-encoding", "content-length", "transfer-encoding", "content-type")


class ResponseTooLarge(Exception):
    """A response is larger than any that a teacher gives."""


class ResponseUnreadable(Exception):
    """A response cannot be unpacked; the message says why."""


def make_http_client(timeout_seconds: float) -> httpx2.AsyncClient:
    """An HTTP client for `openai` that follows no redirect and reads no more than the limit."""
    import openai

    class BoundedClient(openai.DefaultAsyncHttpxClient):
        """See `make_http_client`; proxies come from the environment as always."""

        async def send(
            self, request: httpx2.Request, *, stream: bool = False, **options: Any
        ) -> httpx2.Response:
            """Sends a request, and reads its response."""
            options["follow_redirects"] = False
            response: httpx2.Response = await super().send(request, stream=True, **options)
            try:
                body = await _read_body(response)
            finally:
                await response.aclose()
            headers = [
                (name, value)
                for name, value in response.headers.multi_items()
                if name.lower() not in _OF_THE_BODY
            ]
            # Without its character set: JSON is UTF-8, and Python knows "sets" that are none.
            headers.append(("content-type", media_type(response)))
            kind = type(response)
            return kind(response.status_code, headers=headers, content=body, request=request)

    return BoundedClient(timeout=timeout_seconds, headers={"Accept-Encoding": "gzip, deflate"})


def media_type(response: httpx2.Response) -> str:
    """What a response says that it is, such as 'application/json'; '' where it does not."""
    named = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return "".join(letter for letter in named if letter.isprintable() and letter.isascii())[:60]


async def _read_body(response: httpx2.Response) -> bytes:
    unpack = _make_unpacker(response.headers.get("content-encoding", ""))
    streams = media_type(response) == _EVENT_STREAM
    body = bytearray()
    received = 0
    async for chunk in response.aiter_raw():
        received += len(chunk)
        body += unpack(chunk)
        if max(received, len(body)) > MAX_RESPONSE_BYTES:
            raise ResponseTooLarge
        if streams and (len(body) > _MOST_OF_A_STREAM or b"\n\n" in body):
            break
    return bytes(body)


def _make_unpacker(encodings: str) -> Callable[[bytes], bytes]:
    """A function that unpacks chunk after chunk, no further than the limit.

    Raises:
      ResponseUnreadable: the response is packed in a way that was not asked for, or more than once.
    """
    names = [name for each in encodings.split(",") if (name := each.strip().lower())]
    names = [name for name in names if name != "identity"]
    if not names:
        return bytes
    if len(names) > 1 or names[0] not in ("gzip", "x-gzip", "deflate"):
        raise ResponseUnreadable(f"Content-Encoding {encodings[:40]!r} was not asked for")
    decoder = zlib.decompressobj(_GZIP_OR_ZLIB)

    def unpack(chunk: bytes) -> bytes:
        try:
            return decoder.decompress(chunk, MAX_RESPONSE_BYTES + 1)
        except zlib.error:
            raise ResponseUnreadable(f"a broken {names[0]} body") from None

    return unpack


def describe_connection_error(error: BaseException) -> str:
    """Why no connection came about, or broke, in words that many such errors share."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"TLS: {cause.verify_message or 'the certificate cannot be trusted'}"
        if isinstance(cause, ssl.SSLError):
            said = (cause.reason or "the handshake failed").replace("_", " ").lower()
            return f"TLS: {said}; is it an https:// server?"
        if isinstance(cause, socket.gaierror):
            return f"no such host: {cause.strerror}"
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused: nothing listens there"
        if isinstance(cause, ConnectionResetError):
            return "connection reset"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if type(cause).__name__ == "RemoteProtocolError":
            return f"it broke off, or is no HTTP: {cause}"
    last = list(_causes(error))[-1]
    return type(last).__name__


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and all that led to it."""
    pending, seen = [error], set[int]()
    while pending:
        each = pending.pop(0)
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        pending += [cause for cause in (each.__cause__, each.__context__) if cause is not None]
        if isinstance(each, BaseExceptionGroup):
            pending += each.exceptions
