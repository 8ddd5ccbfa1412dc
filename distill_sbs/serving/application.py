"""The HTTP interface, on Starlette: routes, refusals, headers.

Enters: requests. Leaves: JSON, two pages, counters. Whatever a request holds, the answer is an
answer or a status of HTTP with one sentence, never a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from distill_sbs import __version__
from distill_sbs.cli import terminal
from distill_sbs.serving import interface, measures, web_page
from distill_sbs.serving.answering import LABEL, RATIONALE, Answerer
from distill_sbs.serving.batcher import Batcher
from distill_sbs.serving.options import ServeConfig
from distill_sbs.serving.questions import Refusal, check_type, parse_question, read_body

# As ASGI has them.
Message = MutableMapping[str, object]
Scope = MutableMapping[str, object]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_OTHER_PATH = "other"
_CLOSED_BY_CLIENT = 499  # what others call a client that did not wait; nobody reads it
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}


class Application:
    """A student behind HTTP, as ASGI wants it.

    Args:
      answerer: the student.
      config: what clients may ask.
      announce: called when requests are about to be answered; signals are handled by then.

    Attributes:
      is_ending: set when the server is about to end: connections are closed behind each answer,
        and `/healthz` says so.
      requests: how many were answered, refusals among them.
    """

    def __init__(
        self,
        answerer: Answerer,
        config: ServeConfig,
        announce: Callable[[], None] = lambda: None,
    ) -> None:
        self.is_ending = False
        self._announce = announce
        self.requests = 0
        self._config = config
        self._measures = measures.Measures()
        self._batcher = Batcher(
            answerer.answer, config.batch_size, config.max_waiting, self._measures.note_batch
        )
        self._measures.watch_waiting(lambda: self._batcher.waiting)
        described = interface.describe(config, answerer.student, __version__)
        page = web_page.write_page(answerer.student)
        documentation = web_page.write_interface(answerer.student, described)
        policy = {"content-security-policy": web_page.POLICY}
        routes = {
            "/": self._give(lambda: HTMLResponse(page, headers=policy)),
            "/docs": self._give(lambda: HTMLResponse(documentation, headers=policy)),
            "/openapi.json": self._give(lambda: JSONResponse(described)),
            "/healthz": self._give(self._tell_health),
            "/metrics": self._give(
                lambda: Response(self._measures.write(), media_type=measures.CONTENT_TYPE)
            ),
        }
        self._paths = {*routes, "/answer", "/explain"}
        self._starlette = Starlette(
            routes=[
                *(Route(path, handle, methods=["GET"]) for path, handle in routes.items()),
                Route("/answer", self._answer, methods=["POST"]),
                Route("/explain", self._explain, methods=["POST"]),
            ],
            exception_handlers={HTTPException: _refuse_http, Refusal: _refuse},
            lifespan=self._live,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, and counts it."""
        if scope["type"] != "http":
            await self._starlette(scope, receive, send)
            return
        path = str(scope["path"])
        started, status = time.monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(str(message["status"]))
                headers = message["headers"]
                assert isinstance(headers, list)
                headers.extend(_HEADERS.items())
                if self.is_ending:
                    headers.append((b"connection", b"close"))
            await send(message)

        try:
            await self._starlette(scope, receive, send_with_headers)
        except ClientDisconnect:
            status = _CLOSED_BY_CLIENT
        except Exception as error:  # ours, or of a library; the client is told no more than that
            terminal.say(f"error: {path}: {type(error).__name__}: {error}", stderr=True)
            if status == 0:
                response = _say(500, "this server has failed; its log says why")
                await response(scope, receive, send_with_headers)
        finally:
            self.requests += 1
            known = path if path in self._paths else _OTHER_PATH
            self._measures.note_request(known, status, time.monotonic() - started)

    @contextlib.asynccontextmanager
    async def _live(self, _: Starlette) -> AsyncIterator[None]:
        """While the server lives, batches are decoded."""
        worker = asyncio.create_task(self._batcher.run())
        self._announce()
        try:
            yield
        finally:
            worker.cancel()

    def _give(self, make: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
        """A handler that asks nothing of its request."""

        async def handle(_: Request) -> Response:
            return make()

        return handle

    def _tell_health(self) -> Response:
        if self.is_ending:
            return JSONResponse({"status": "ending"}, 503)
        return JSONResponse({"status": "ok"})

    async def _answer(self, request: Request) -> Response:
        return await self._ask(request, with_rationale=False)

    async def _explain(self, request: Request) -> Response:
        return await self._ask(request, with_rationale=True)

    async def _ask(self, request: Request, with_rationale: bool) -> Response:
        config = self._config
        check_type(request.headers.get("content-type"))
        body = await read_body(request.stream(), config.max_body_bytes, config.body_seconds)
        question = parse_question(body, config.max_inputs, with_rationale)
        tasks = [LABEL, RATIONALE] if question.with_rationale else [LABEL]
        said = await self._batcher.answer(question.inputs, tasks)
        answers: list[dict[str, object]] = []
        for of_input in zip(*said, strict=True):
            answer: dict[str, object] = {
                task: each.text for task, each in zip(tasks, of_input, strict=True)
            }
            answer["input_cut"] = any(each.input_cut for each in of_input)
            answer["output_cut"] = any(each.output_cut for each in of_input)
            answers.append(answer)
        self._measures.note_cut(sum(bool(answer["input_cut"]) for answer in answers))
        return JSONResponse({"answers": answers})


async def _refuse_http(_: Request, error: Exception) -> Response:
    """Paths and methods that there are not."""
    assert isinstance(error, HTTPException)
    sentence = {
        404: "no such page; there are /, /answer, /explain, /healthz, /metrics, /docs",
        405: "another method is expected here: POST for /answer and /explain, GET for all else",
    }.get(error.status_code, str(error.detail))
    return _say(error.status_code, sentence, dict(error.headers or {}))


async def _refuse(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _say(error.status, str(error), {"retry-after": "1"} if error.status == 503 else {})


def _say(status: int, sentence: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)
