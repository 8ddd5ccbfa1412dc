"""pacing: how many calls at a time, and when; failures: what Retry-After says."""

from __future__ import annotations

import asyncio
import email.utils
import time

import pytest

from distill_sbs.teacher.failures import retry_after_seconds
from distill_sbs.teacher.pacing import Pacer, Stopped


def test_it_grows_while_all_goes_well_and_shrinks_once_for_a_round() -> None:
    pacer = Pacer(max_in_flight=40)
    for _ in range(6):
        pacer.note_answer()
    assert pacer.limit == 10
    started = time.monotonic()
    pacer.note_overload(started, None)
    assert pacer.limit == pytest.approx(7)
    pacer.note_overload(started, None)  # began before the cut: the same trouble
    assert pacer.limit == pytest.approx(7)
    pacer.note_overload(time.monotonic(), None)
    assert pacer.limit == pytest.approx(4.9)
    pacer.note_answer()
    assert pacer.limit == pytest.approx(4.9 + 1 / 4.9)
    for _ in range(50):
        pacer.note_overload(time.monotonic(), None)
    assert pacer.limit == 1
    for _ in range(2_000):
        pacer.note_answer()
    assert pacer.limit == 40


def test_no_more_than_the_limit_at_a_time() -> None:
    pacer = Pacer(max_in_flight=3)
    most = 0

    async def call() -> None:
        nonlocal most
        await pacer.acquire()
        most = max(most, pacer.in_flight)
        await asyncio.sleep(0.001)
        pacer.release()

    async def calls() -> None:
        await asyncio.gather(*(call() for _ in range(20)))

    asyncio.run(calls())
    assert most == 3 and pacer.in_flight == 0


def test_retry_after_holds_all_calls_back() -> None:
    async def waited() -> float:
        pacer = Pacer(max_in_flight=8)
        started = time.monotonic()
        pacer.note_overload(started, 0.2)
        await asyncio.gather(*(pacer.acquire() for _ in range(2)))
        return time.monotonic() - started

    assert asyncio.run(waited()) >= 0.2


def test_whoever_waits_is_told_to_stop() -> None:
    async def stopped() -> int:
        pacer = Pacer(max_in_flight=1)
        await pacer.acquire()
        waiting = [asyncio.create_task(pacer.acquire()) for _ in range(3)]
        waiting.append(asyncio.create_task(pacer.pause(60)))
        await asyncio.sleep(0.01)
        pacer.stop()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        return sum(isinstance(result, Stopped) for result in results)

    assert asyncio.run(stopped()) == 4


def test_delays_grow_and_are_bounded() -> None:
    pacer = Pacer(max_in_flight=1, seed=0)
    assert all(0.05 <= pacer.delay(1) <= 0.5 for _ in range(100))
    assert all(0.4 <= pacer.delay(4) <= 4 for _ in range(100))
    assert all(6 <= pacer.delay(1_000) <= 60 for _ in range(100))


def test_retry_after() -> None:
    assert retry_after_seconds({}) is None
    assert retry_after_seconds({"retry-after": "20"}) == 20
    assert retry_after_seconds({"retry-after-ms": "250", "retry-after": "1"}) == 0.25
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 28 <= (retry_after_seconds({"retry-after": date}) or 0) <= 30
    assert retry_after_seconds({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after_seconds({"retry-after": "soon"}) is None
    assert retry_after_seconds({"retry-after": "nan"}) is None
    assert retry_after_seconds({"retry-after": "-5"}) == 0
    assert retry_after_seconds({"retry-after": "inf"}) == float("inf")
