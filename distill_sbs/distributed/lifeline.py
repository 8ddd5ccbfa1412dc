"""Tells the processes of a run when one of them is gone, so that none waits for it for ever.

Enters: this process's number, and for all but process 0 the address where process 0 listens.
Leaves: nothing while all are well; when one is not, one line on standard error that says which and
why, and the end of this process.

Every process keeps a TCP connection to process 0. The operating system closes the connections of a
process that dies, however it dies, so the others know at once; one that fails says its reason
first. One that is stopped (SIGSTOP), or whose machine loses power or network, closes nothing: it is
given up when it has said nothing for `SILENCE_SECONDS`, though all say every few seconds that they
are there.

Why not JAX's own coordination service: with `heartbeat_timeout_seconds=10`, jax 0.10.2, two
processes on one machine that exchange an array twenty times a second, the other one ended

| what happened | to process 0 | to process 1 |
| --- | --- | --- |
| SIGKILL | after 0.2 s | after 10.7 s |
| SIGSTOP | after 10.6 s | after 10.3 s |

which is soon enough, but each time by SIGABRT (status 134 in a shell) with 12 to 48 lines of C++ or
of a traceback on standard error, none of which says which process it was or what to do; and the
callback that could say it is not open to callers of `jax.distributed`. It stays as the second line,
at 100 s, should the connection here not come about.

No JAX: it must work when JAX does not.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TypedDict, Unpack

from distill_sbs.cli import terminal

# Exit status of a process that stops because another one did: "temporary failure, try again"
# (EX_TEMPFAIL of sysexits.h), so that a scheduler starts it again.
PEER_LOST_EXIT_STATUS = 75
# Exit status of the entry points after a UserError.
USER_ERROR_EXIT_STATUS = 2
# Exit status after Ctrl-C.
INTERRUPTED_EXIT_STATUS = 130

_CONNECT_TIMEOUT_SECONDS = 60.0

# A process that says nothing for so long is given up; compiling and loading data do not keep its
# thread here from saying something.
SILENCE_SECONDS = 30.0
_SAY_SECONDS = 5.0
# How long process 0, which fails, waits for the others to read why.
_LINGER_SECONDS = 5.0


def stop_process(message: str, status: int) -> None:
    """Ends this process now: its main thread may hang where no exception reaches it."""
    message = terminal.clean(message)
    with contextlib.suppress(Exception):
        if sys.stderr.isatty():
            message = f"\x1b[?25h{message}"  # a progress bar may have hidden the cursor
        sys.stdout.flush()
    with contextlib.suppress(OSError):  # nobody reads it any more
        os.write(2, f"{message}\n".encode())
    os._exit(status)


# The reason that is passed on for a process that says nothing.
_SILENT = "silent"


class _Message(TypedDict, total=False):
    """What one process tells another: who it is, that it lives, that it has finished or failed."""

    process: int
    token: str
    alive: int
    finished: int
    failed: int
    reason: str | None
    status: int


class _Connection:
    """Lines of JSON over a socket."""

    def __init__(self, link: socket.socket) -> None:
        self.socket = link
        # A machine that vanished without closing is noticed at last.
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._received = b""
        self._heard_at = time.monotonic()

    @property
    def is_silent(self) -> bool:
        """Whether nothing has come for `SILENCE_SECONDS`, and nothing waits to be read."""
        if time.monotonic() - self._heard_at < SILENCE_SECONDS:
            return False
        # This process may have been the stopped one: what the other said then waits here.
        readable, _, _ = select.select([self.socket], [], [], 0)
        return not readable

    def send(self, **message: Unpack[_Message]) -> None:
        # The other end may be gone: that is what its own end of the story says.
        with contextlib.suppress(OSError):
            self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[_Message] | None:
        """The whole lines that have come; None at the end of the connection."""
        try:
            data = self.socket.recv(65536)
        except OSError:
            data = b""
        self._heard_at = time.monotonic()
        if not data:
            return None
        *lines, self._received = (self._received + data).split(b"\n")
        return [json.loads(line) for line in lines]


class Lifeline:
    """One process's end; made by `listen` in process 0, by `connect` in the others.

    Args:
      index: this process's number.
      count: how many processes there are.
      stop: what ends this process, given a message and an exit status.
    """

    def __init__(
        self, index: int, count: int, stop: Callable[[str, int], None] = stop_process
    ) -> None:
        self._index, self._count, self._stop = index, count, stop
        self._finished: set[int] = set()
        self._connections: dict[int, _Connection] = {}
        self._lock = threading.Lock()
        self._server: socket.socket | None = None
        self._token = ""
        self._failing = False

    @classmethod
    def listen(
        cls, count: int, stop: Callable[[str, int], None] = stop_process
    ) -> tuple[Lifeline, int, str]:
        """Process 0's end: returns it, the port that it listens on, and the others' token."""
        lifeline = cls(0, count, stop)
        both = socket.has_dualstack_ipv6()
        lifeline._server = socket.create_server(
            ("", 0),
            family=socket.AF_INET6 if both else socket.AF_INET,
            dualstack_ipv6=both,
            backlog=max(count, 128),
        )
        lifeline._token = secrets.token_hex(16)
        threading.Thread(target=lifeline._watch_all, daemon=True).start()
        return lifeline, lifeline._server.getsockname()[1], lifeline._token

    @classmethod
    def connect(
        cls,
        index: int,
        count: int,
        host: str,
        port: int,
        token: str,
        stop: Callable[[str, int], None] = stop_process,
    ) -> Lifeline:
        """Another process's end.

        Raises:
          OSError: process 0 cannot be reached there.
        """
        link = socket.create_connection((host, port), timeout=_CONNECT_TIMEOUT_SECONDS)
        link.settimeout(None)
        lifeline = cls(index, count, stop)
        connection = lifeline._connections[0] = _Connection(link)
        connection.send(process=index, token=token)
        threading.Thread(target=lifeline._watch_first, args=(connection,), daemon=True).start()
        return lifeline

    def finish(self) -> None:
        """Says that this process is done: that its connection ends from now on means nothing."""
        for connection in self._snapshot():
            connection.send(finished=self._index)

    def fail(self, reason: str, status: int) -> None:
        """Says why this process is about to stop, and with which exit status."""
        self._failing = True
        for connection in self._snapshot():
            connection.send(failed=self._index, reason=reason, status=status)
        # Process 0 also holds JAX's coordination service: with it the others would be aborted.
        deadline = time.monotonic() + _LINGER_SECONDS
        while self._index == 0 and self._snapshot() and time.monotonic() < deadline:
            time.sleep(0.05)

    def _snapshot(self) -> list[_Connection]:
        with self._lock:
            return list(self._connections.values())

    def _stop_for_loss(self, process: int, reason: str | None, status: int) -> None:
        what = f"stopped: {reason}" if reason else "died, or the connection to it broke"
        if reason == _SILENT:
            what = (
                f"has said nothing for {SILENCE_SECONDS:.0f} s: it is stopped, or its machine or "
                "network is gone"
            )
        message = f"error: process {process} of {self._count} {what}. Process {self._index} stops"
        # To start again, unchanged, would end the same, or is not wanted.
        if status in (USER_ERROR_EXIT_STATUS, INTERRUPTED_EXIT_STATUS):
            self._stop(f"{message} too", status)
        else:
            self._stop(
                f"{message} too; start all of them again with the same command, and training "
                "continues from its last checkpoint",
                PEER_LOST_EXIT_STATUS,
            )

    # ---------------------------------- process 0 --------------------------------

    def _watch_all(self) -> None:
        assert self._server is not None
        selector = selectors.DefaultSelector()
        selector.register(self._server, selectors.EVENT_READ)
        unknown: dict[int, _Connection] = {}  # connected, not yet introduced
        processes: dict[int, int] = {}
        told_at = time.monotonic()
        while True:
            for key, _ in selector.select(timeout=_SAY_SECONDS):
                if key.fileobj is self._server:
                    link, _ = self._server.accept()
                    selector.register(link, selectors.EVENT_READ)
                    unknown[link.fileno()] = _Connection(link)
                    continue
                number = key.fd
                if number in unknown:
                    connection = unknown[number]
                    messages = self._read_introduction(connection)
                    if messages == []:
                        continue  # half a line as yet
                    del unknown[number]
                    if messages is None:
                        selector.unregister(connection.socket)
                        connection.socket.close()
                        continue
                    processes[number] = messages[0]["process"]
                    with self._lock:
                        self._connections[processes[number]] = connection
                    messages = messages[1:]
                else:
                    connection = self._connections[processes[number]]
                    messages = connection.receive()
                self._handle_messages(processes[number], messages)
                if messages is None:
                    selector.unregister(connection.socket)
                    with self._lock:
                        del self._connections[processes.pop(number)]
                    connection.socket.close()
            if time.monotonic() - told_at >= _SAY_SECONDS:
                told_at = time.monotonic()
                with self._lock:
                    connections = dict(self._connections)
                for process, connection in connections.items():
                    connection.send(alive=0)
                    if connection.is_silent and process not in self._finished:
                        self._pass_on(process, _SILENT, PEER_LOST_EXIT_STATUS)

    def _read_introduction(self, connection: _Connection) -> list[_Message] | None:
        """The messages of a new connection; None where it is not one of ours."""
        try:
            messages = connection.receive()
            if not messages or secrets.compare_digest(messages[0]["token"], self._token):
                return messages
            return None
        except (ValueError, KeyError, TypeError):
            return None

    def _handle_messages(self, process: int, messages: list[_Message] | None) -> None:
        if messages is None:
            if process not in self._finished:
                self._pass_on(process, None, PEER_LOST_EXIT_STATUS)
            return
        for message in messages:
            if "finished" in message:
                self._finished.add(process)
            elif "failed" in message:
                self._finished.add(process)
                self._pass_on(process, message["reason"], message["status"])

    def _pass_on(self, process: int, reason: str | None, status: int) -> None:
        if self._failing:
            return  # this process's own end is known; the others go because of it
        with self._lock:
            others = [each for number, each in self._connections.items() if number != process]
        for connection in others:
            connection.send(failed=process, reason=reason, status=status)
        time.sleep(0.2)  # for the others to read it before this process's end aborts them
        self._stop_for_loss(process, reason, status)

    # ---------------------------------- the others -------------------------------

    def _say_alive(self, connection: _Connection) -> None:
        while True:
            time.sleep(_SAY_SECONDS)
            connection.send(alive=self._index)
            if connection.is_silent and 0 not in self._finished:
                self._stop_for_loss(0, _SILENT, PEER_LOST_EXIT_STATUS)

    def _watch_first(self, connection: _Connection) -> None:
        threading.Thread(target=self._say_alive, args=(connection,), daemon=True).start()
        while (messages := connection.receive()) is not None:
            for message in messages:
                if "finished" in message:
                    self._finished.add(0)
                elif "failed" in message:
                    self._stop_for_loss(message["failed"], message["reason"], message["status"])
                    return
        if 0 not in self._finished:
            self._stop_for_loss(0, None, PEER_LOST_EXIT_STATUS)
