"""How many calls at a time, and when: as many as the endpoint takes, and no more.

Enters: what became of each call. Leaves: permission for the next one.

The number in flight doubles while all goes well, as TCP's slow start does, is cut by 30 % when the
endpoint says that it has too much to do (once for all the calls that were under way then), and
grows by about one for every round of responses afterwards. `Retry-After` holds all calls back.
"""

from __future__ import annotations

import asyncio
import collections
import random
import time

FIRST_DELAY_SECONDS = 0.5
LONGEST_DELAY_SECONDS = 60.0
KEPT_WHEN_OVERLOADED = 0.7


class Stopped(Exception):
    """No further call may start."""


class Pacer:
    """Permissions for calls; see above.

    Args:
      max_in_flight: never more than these.
      seed: of the jitter.
    """

    def __init__(self, max_in_flight: int, seed: int | None = None) -> None:
        self.max_in_flight = max_in_flight
        self.limit = float(min(4, max_in_flight))
        self.in_flight = 0
        self.resume_at = 0.0
        self._random = random.Random(seed)
        self._doubling = True
        self._last_cut = -1.0
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Lets no further call start; whoever waits gets `Stopped`."""
        self._stopped.set()
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stopped.is_set()

    async def acquire(self) -> float:
        """Waits until a call may start; returns the time, for `note_overload`.

        Raises:
          Stopped: it may not.
        """
        while True:
            if self.stopped:
                raise Stopped
            held_back = self.resume_at - time.monotonic()
            if held_back > 0:
                # Not all at the same moment, or they would be refused at the same moment.
                await self.pause(held_back + self._random.uniform(0, min(1.0, held_back)))
                continue
            if self.in_flight < int(self.limit):
                self.in_flight += 1
                return time.monotonic()
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter

    def release(self) -> None:
        """A call is over."""
        self.in_flight -= 1
        self._wake()

    def _wake(self) -> None:
        free = int(self.limit) - self.in_flight
        while free > 0 and self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                free -= 1

    def note_answer(self) -> None:
        """Notes that a call got its response."""
        self.limit += 1.0 if self._doubling else 1.0 / self.limit
        self.limit = min(self.limit, float(self.max_in_flight))

    def note_overload(self, started: float, retry_after_seconds: float | None) -> None:
        """Notes that a call, begun at `started`, found the endpoint overloaded."""
        now = time.monotonic()
        if started > self._last_cut:
            self._last_cut = now
            self._doubling = False
            self.limit = max(1.0, self.limit * KEPT_WHEN_OVERLOADED)
        if retry_after_seconds is not None:
            self.resume_at = max(self.resume_at, now + retry_after_seconds)

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row: exponential, with full jitter."""
        longest = min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2.0 ** min(failures - 1, 20))
        return self._random.uniform(longest / 10, longest)

    async def pause(self, seconds: float) -> None:
        """Sleeps, unless everything stops.

        Raises:
          Stopped: it did.
        """
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except TimeoutError:
            return
        raise Stopped
