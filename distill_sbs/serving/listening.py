"""A server's life, on uvicorn: it listens, answers, and ends when all is answered.

Enters: an application of ASGI. Leaves: the number of the signal that ended it.

After SIGTERM or Ctrl-C the system lets no new connection in, those that wait to be taken are taken,
and each is closed behind its next answer. When none is left, or after three seconds, in which an
idle client may have sent something, the rest is closed, and the server ends when what it was asked
is answered. A second Ctrl-C ends at once.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import logging
import os
import signal
import socket
import struct
import time
from types import FrameType

import uvicorn

from distill_sbs.cli import signals, terminal
from distill_sbs.errors import UserError
from distill_sbs.serving.application import Application
from distill_sbs.serving.options import ServeConfig

# Connections that are being made when the signal comes have so long to be there.
_LEAST_SECONDS = 0.2
_MOST_SECONDS = 3.0
_LOOK_SECONDS = 0.02

# As the kernel has them (linux/filter.h); Python's socket names neither.
_SO_ATTACH_FILTER = 26
# Load the byte of a TCP header's flags; if SYN is among them drop the packet, else let it through.
_REFUSE_NEWCOMERS = (
    (0x30, 0, 0, 13),
    (0x45, 0, 1, 0x02),
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
)
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
    ending = _Ending(server, application, listener)
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

    def __init__(
        self, server: uvicorn.Server, application: Application, listener: socket.socket
    ) -> None:
        self._listener = listener
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
        if not self._server.started:  # clients may be waiting already: they are answered first
            asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._begin)
            return
        if not refuse_newcomers(self._listener):
            for each in self._server.servers:
                each.close()
        self._wait_until_idle(time.monotonic())

    def _wait_until_idle(self, since: float) -> None:
        seconds = time.monotonic() - since
        is_idle = seconds > _LEAST_SECONDS and not self._server.server_state.connections
        if is_idle or seconds > _MOST_SECONDS:
            self._server.should_exit = True
        else:
            loop = asyncio.get_running_loop()
            loop.call_later(_LOOK_SECONDS, self._wait_until_idle, since)


def refuse_newcomers(listener: socket.socket) -> bool:
    """The system lets nobody new in; whoever waits to be taken can be taken yet.

    To close a listener instead resets who waits: he may have sent a request already, and is not
    told whether it was answered.

    Returns:
      Whether the system can do that; Linux can.
    """
    instructions = b"".join(struct.pack("HBBI", *each) for each in _REFUSE_NEWCOMERS)
    buffer = ctypes.create_string_buffer(instructions)
    program = struct.pack("HL", len(_REFUSE_NEWCOMERS), ctypes.addressof(buffer))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
    except OSError:
        return False
    return True
