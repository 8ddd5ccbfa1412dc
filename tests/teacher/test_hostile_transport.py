"""transport, client: responses that no HTTP server should send, byte by byte."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from distill_sbs.teacher.client import Endpoint, RequestParameters
from distill_sbs.teacher.failures import EndpointUnusable, PermanentFailure, TemporaryFailure

pytestmark = pytest.mark.slow  # as a whole: many small tests

KEY = "sk-a-secret-of-the-test"
CHOICE = {"index": 0, "finish_reason": "stop", "message": {"content": "Both. The answer is ( 1 )."}}
BODY = json.dumps({"choices": [CHOICE]}).encode()

# Writes a response, or as much of it as is taken.
Send = Callable[[socket.socket], None]


def http(body: bytes = BODY, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def endless(start: bytes, part: bytes) -> Send:
    def send(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(part)

    return send


@contextlib.contextmanager
def answering(sent: bytes | Send) -> Iterator[str]:
    """A server that answers each connection with these bytes; gives its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the listener is closed at the end
                while True:
                    connection, _ = listener.accept()
                    with connection, contextlib.suppress(OSError):  # the client hung up
                        connection.recv(65_536)
                        if callable(sent):
                            sent(connection)
                        else:
                            connection.sendall(sent)
                        # Closed with something unread, a connection is reset.
                        connection.shutdown(socket.SHUT_WR)
                        while connection.recv(65_536):
                            pass

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def ask(sent: bytes | Send, monkeypatch: pytest.MonkeyPatch, seconds: float = 20) -> str:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with answering(sent) as url:
        endpoint = Endpoint(url, RequestParameters("m", 5), seconds)

        async def call() -> str:
            try:
                return (await endpoint.ask([{"role": "user", "content": "x"}])).text
            finally:
                await endpoint.close()

        return asyncio.run(call())


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
TYPE = "Content-Type: application/json"
PACKED = gzip.compress(BODY, mtime=0)


@pytest.mark.parametrize(
    "sent",
    [
        http(),
        http(BODY, "X-Big: " + "y" * 60_000),
        http(BODY, *(f"Set-Cookie: a{number}=b" for number in range(500))),
        http(PACKED, "Content-Encoding: GZIP"),
        http(BODY, "Content-Type: application/json; charset=utf-16"),
        http(BODY, "Content-Type: image/png"),
        http(BODY, status="206 Partial Content"),
        b"HTTP/1.0 200\r\n\r\n" + BODY,
        CHUNKED + b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    ],
)
def test_odd_http_with_an_answer(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(sent, monkeypatch) == "Both. The answer is ( 1 )."


@pytest.mark.parametrize(
    "sent",
    [
        endless(CHUNKED, b"2000\r\n" + b" " * 0x2000 + b"\r\n"),
        http(b" " * 5 * 2**20),
        http(gzip.compress(b" " * 50 * 2**20, mtime=0), "Content-Encoding: gzip"),
    ],
)
def test_no_body_is_read_past_the_limit(sent: bytes | Send, monkeypatch) -> None:
    with pytest.raises(PermanentFailure, match="larger than 4 MiB"):
        ask(sent, monkeypatch)


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (http(BODY, "X-Big: " + "y" * 10**6), "is no HTTP"),
        (http(BODY, "X" * 10**6 + ": y"), "is no HTTP"),
        (endless(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1_000), "is no HTTP"),
        (endless(CHUNKED + b"0\r\n", b"X: y\r\n" * 1_000), "is no HTTP"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "is no HTTP: "),
        (b"ICY 200 OK\r\n\r\n" + BODY, "is no HTTP: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n" + BODY, "broke off"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + BODY, "is no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n" + BODY, "no HTTP"),
        (CHUNKED + b"zz\r\n", "is no HTTP"),
        (b"", "broke off"),
        (http(PACKED, "Content-Encoding: gzip, gzip"), "'gzip, gzip' was not asked for"),
        (http(BODY, "Content-Encoding: zstd"), "'zstd' was not asked for"),
        (http(PACKED[:-30], TYPE, "Content-Encoding: gzip"), "broken JSON"),
        (http(BODY + BODY, TYPE), "broken JSON"),
        (http(b"", status="205 Reset"), "an empty response"),
        (http(b"data: " + BODY + b"\n\n", "Content-Type: text/event-stream"), "event-stream"),
    ],
)
def test_what_is_no_response_may_come_out_better(
    sent: bytes | Send, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TemporaryFailure) as raised:
        ask(sent, monkeypatch)
    assert words in str(raised.value)


@pytest.mark.parametrize(
    "sent",
    [
        endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        endless(CHUNKED, b""),
    ],
)
def test_a_response_that_never_comes_is_waited_for_no_longer(sent: Send, monkeypatch) -> None:
    with pytest.raises(TemporaryFailure, match=r"no answer within 0\.5 s"):
        ask(sent, monkeypatch, seconds=0.5)


@pytest.mark.parametrize("seconds", ["inf", "1e308", "-5", "soon", "Wed, 21 Oct 99999 07:28 GMT"])
def test_how_long_to_wait(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TemporaryFailure) as raised:
        ask(http(b"{}", f"Retry-After: {seconds}", status="429 Slow"), monkeypatch)
    waits = raised.value.retry_after_seconds
    assert waits is None or waits >= 0


@pytest.mark.parametrize(
    "written",
    [KEY, KEY.replace("-", "%2D"), KEY.upper(), " ".join(KEY), f"{KEY[:12]}\\n{KEY[12:]}"],
)
def test_a_key_that_is_sent_back_is_shown_to_nobody(written: str, monkeypatch) -> None:
    body = b'{"error": {"message": "wrong key %s"}}' % written.encode()
    with pytest.raises(EndpointUnusable, match=r"\(status 401\): wrong key \[key\]$"):
        ask(http(body, status="401 No"), monkeypatch)
    with pytest.raises(EndpointUnusable, match=r"redirects to http://h/\?\[key\] \(status 307\)"):
        ask(http(b"", f"Location: http://h/?{KEY}", status="307 There"), monkeypatch)
