"""signals: handlers that are set for a while, and put back whatever set others meanwhile."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator

import pytest

from distill_sbs.cli import signals
from distill_sbs.sweeping.running import StopSignals


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def in_a_thread(act: Callable[[], None]) -> None:
    """Runs it outside the main thread, and raises here what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def test_handlers_are_put_back_whoever_set_others() -> None:
    ours, theirs = (lambda *_: None), (lambda *_: None)
    signal.signal(signal.SIGTERM, ours)
    with signals.keep_handlers():
        signal.signal(signal.SIGTERM, theirs)
    assert signal.getsignal(signal.SIGTERM) is ours
    with pytest.raises(KeyError), signals.keep_handlers():
        signal.signal(signal.SIGTERM, theirs)
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is ours


@pytest.mark.parametrize("number", signals.ENDING)
def test_what_is_ignored_stays_ignored(number: signal.Signals) -> None:
    """`nohup` ignores SIGHUP; a shell ignores SIGINT for what it starts in the background."""
    signal.signal(number, signal.SIG_IGN)
    with signals.keep_handlers() as numbers:
        assert number not in numbers and len(numbers) == 2
    with StopSignals().listen():
        assert signal.getsignal(number) is signal.SIG_IGN
    assert signal.getsignal(number) is signal.SIG_IGN


def test_outside_the_main_thread_nothing_is_set() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def act() -> None:
        with signals.keep_handlers() as numbers:
            assert numbers == []
        with StopSignals().listen() as stop:
            assert signal.getsignal(signal.SIGTERM) is before
            assert stop.first is None

    in_a_thread(act)


def test_the_first_signal_and_how_many_came() -> None:
    with StopSignals().listen() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert (stop.first, stop.count) == (signal.SIGTERM, 2)
