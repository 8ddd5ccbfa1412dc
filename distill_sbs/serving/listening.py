"""A server's life, on uvicorn: it listens, answers, and ends when all is answered.

Enters: an application of ASGI. Leaves: the number of the signal that ended it.

After SIGTERM or Ctrl-C no connection is taken any more. What stands in a connection that was taken
is answered, and the connection closed behind it; for half a second those that are idle stay open,
for their clients may just be sending. A second Ctrl-C ends at once.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import socket
from types import FrameType

import uvicorn

from distill_sbs.cli import signals, terminal
from distill_sbs.errors import UserError
from distill_sbs.serving.application import Application
from distill_sbs.serving.options import ServeConfig

_DRAIN_SECONDS = 0.5
_BACKLOG = 2048

_REMEDIES = {
    errno.EADDRINUSE: "another program listens there; choose another --port, or 0 for a free one",
    errno.EACCES: "ports below 1024 are the system's; choose another --port",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another --host",
}


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
      UserError: it cannot.
    """
    place = f"--host={host} --port={port}"
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG)
    except socket.gaierror as error:
        raise UserError(
            f"{place}: no such address ({error.strerror}); give this machine's"
        ) from None
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "choose another address")
        words = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"{place} cannot be listened on ({words}); {remedy}") from None


class _Log(logging.Handler):
    """uvicorn's warnings, as lines of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        terminal.say(f"warning: {record.getMessage()}".partition("\n")[0], stderr=True)


def serve(application: Application, config: ServeConfig, listener: socket.socket) -> int:
    """Answers until a signal comes.

    Args:
      application: what answers.
      config: how.
      listener: from `open_socket`; it is closed.

    Returns:
      The signal's number.
    """
    log = logging.getLogger("uvicorn.error")
    log.handlers, log.propagate = [_Log(logging.WARNING)], False
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            limit_concurrency=config.max_connections,
            timeout_graceful_shutdown=max(1, round(config.grace_seconds)),
        )
    )
    ending = _Ending(server, application)
    # uvicorn sets what is here as the handler of both signals, and would else raise them again.
    server.handle_exit = ending.note
    with signals.keep_handlers((signal.SIGTERM, signal.SIGINT)):
        asyncio.run(server.serve(sockets=[listener]))
    return ending.number


class _Ending:
    """Ends a server in order.

    Attributes:
      number: of the signal that asked for it; SIGTERM where none did.
    """

    def __init__(self, server: uvicorn.Server, application: Application) -> None:
        self._server = server
        self._application = application
        self.number = int(signal.SIGTERM)

    def note(self, number: int, _: FrameType | None = None) -> None:
        """Handles a signal."""
        if self._application.is_ending:
            self._server.should_exit = True
            self._server.force_exit = number == signal.SIGINT
            return
        self.number = number
        self._application.is_ending = True
        asyncio.get_running_loop().call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        for listener in self._server.servers:
            listener.close()  # who comes now is refused by the system: nothing was taken of it
        loop = asyncio.get_running_loop()
        loop.call_later(_DRAIN_SECONDS, setattr, self._server, "should_exit", True)
