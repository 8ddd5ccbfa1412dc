"""lifeline: a process that is gone is known to the others, with its reason. Real sockets."""

from __future__ import annotations

import contextlib
import queue
import signal
import socket
import subprocess
import sys
import time

import pytest

from distill_sbs.distributed import lifeline as lifeline_module
from distill_sbs.distributed.lifeline import PEER_LOST_EXIT_STATUS, Lifeline, _Connection


class Ends(queue.Queue):
    """Notes what would end a process, instead of ending this one."""

    def __call__(self, message: str, status: int) -> None:
        self.put((message, status))


def three() -> tuple[list[Lifeline], list[Ends]]:
    ends = [Ends() for _ in range(3)]
    first, port, token = Lifeline.listen(3, stop=ends[0])
    others = [
        Lifeline.connect(index, 3, "localhost", port, token, stop=ends[index]) for index in (1, 2)
    ]
    while len(first._snapshot()) < 2:
        time.sleep(0.01)
    return [first, *others], ends


def hang_up(lifeline: Lifeline) -> None:
    """What the operating system does for a process that dies."""
    connections = lifeline._snapshot()
    with lifeline._lock:  # all at once: its own thread, which lives on here, is told of nothing
        for connection in connections:
            with contextlib.suppress(OSError):  # the other end may have gone before
                connection.socket.shutdown(socket.SHUT_RDWR)


def test_a_dead_process_ends_the_others() -> None:
    lifelines, ends = three()
    hang_up(lifelines[1])
    for survivor in (0, 2):
        message, status = ends[survivor].get(timeout=5)
        assert status == PEER_LOST_EXIT_STATUS == 75
        assert message == (
            "error: process 1 of 3 died, or the connection to it broke. "
            f"Process {survivor} stops too; start all of them again with the same command, and "
            "training continues from its last checkpoint"
        )


def test_the_death_of_process_0_ends_the_others() -> None:
    lifelines, ends = three()
    hang_up(lifelines[0])
    for survivor in (1, 2):
        message, status = ends[survivor].get(timeout=5)
        assert "process 0 of 3 died" in message
        assert status == 75


@pytest.mark.parametrize("index", [0, 2])
def test_a_process_that_fails_says_why(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline_module, "_LINGER_SECONDS", 0.2)
    lifelines, ends = three()
    lifelines[index].fail("BATCH_SIZE=10 is not a multiple of 8 devices; use 16", 2)
    for survivor in {0, 1, 2} - {index}:
        message, status = ends[survivor].get(timeout=5)
        assert f"process {index} of 3 stopped: BATCH_SIZE=10 is not a multiple" in message
        # To be mended by the user: a scheduler need not start it again.
        assert status == 2
        assert "start all of them again" not in message


def test_a_process_that_is_done_may_go() -> None:
    lifelines, ends = three()
    for lifeline in lifelines:
        lifeline.finish()
    time.sleep(0.2)
    for lifeline in reversed(lifelines):
        hang_up(lifeline)
    time.sleep(0.5)
    assert [end.qsize() for end in ends] == [0, 0, 0]


def test_one_that_dies_after_others_are_done_is_noticed() -> None:
    lifelines, ends = three()
    for lifeline in lifelines[:2]:
        lifeline.finish()
    time.sleep(0.2)
    hang_up(lifelines[2])
    assert "process 2 of 3 died" in ends[0].get(timeout=5)[0]
    assert "process 2 of 3 died" in ends[1].get(timeout=5)[0]


def test_a_stranger_is_not_listened_to() -> None:
    end = Ends()
    first, port, _ = Lifeline.listen(2, stop=end)
    for token in ("wrong", 7, None):
        stranger = _Connection(socket.create_connection(("localhost", port)))
        stranger.send(process=1, token=token)
        stranger.send(failed=1, reason="mischief", status=2)
        assert stranger.receive() is None
    with socket.create_connection(("localhost", port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
    time.sleep(0.2)
    assert end.qsize() == 0
    assert first._snapshot() == []


STOPPED = """
import sys, time
from distill_sbs.distributed import lifeline
lifeline._SAY_SECONDS = 0.1
if sys.argv[1:]:
    lifeline.Lifeline.connect(1, 2, "localhost", int(sys.argv[1]), sys.argv[2])
    print("connected", flush=True)
else:
    _, port, token = lifeline.Lifeline.listen(2)
    print(port, token, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_is_given_up(victim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP closes no connection. One that goes on saying something is not given up."""
    monkeypatch.setattr(lifeline_module, "SILENCE_SECONDS", 2.0)
    monkeypatch.setattr(lifeline_module, "_SAY_SECONDS", 0.1)
    end = Ends()
    arguments: list[str] = []
    if victim == 1:
        _, port, token = Lifeline.listen(2, stop=end)
        arguments = [str(port), token]
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, *arguments], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    words = process.stdout.readline().split()
    if victim == 0:
        Lifeline.connect(1, 2, "localhost", int(words[0]), words[1], stop=end)
    time.sleep(4.0)
    assert end.qsize() == 0
    process.send_signal(signal.SIGSTOP)
    message, status = end.get(timeout=30)
    process.kill()
    process.communicate()
    assert status == PEER_LOST_EXIT_STATUS
    assert message == (
        f"error: process {victim} of 2 has said nothing for 2 s: it is stopped, or its machine or "
        f"network is gone. Process {1 - victim} stops too; start all of them again with the same "
        "command, and training continues from its last checkpoint"
    )


def test_the_process_really_ends() -> None:
    """Though its main thread hangs."""
    program = (
        "import sys, time\n"
        "from distill_sbs.distributed.lifeline import Lifeline\n"
        "lifeline, port, token = Lifeline.listen(2)\n"
        "print(port, token, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    port, token = process.stdout.readline().split()
    other = Lifeline.connect(1, 2, "localhost", int(port), token, stop=Ends())
    hang_up(other)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == 75
    assert "process 1 of 2 died" in errors
