"""Inputs of many requests, decoded together.

Enters: texts, from any number of requests at once. Leaves: what the student says to each. While one
batch is decoded in a thread, the inputs that come meanwhile gather for the next; nobody waits for a
batch to be full.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import time
from collections.abc import Callable, Sequence

from distill_sbs.serving.answering import Answer
from distill_sbs.serving.questions import Refusal

Decode = Callable[[Sequence[str], str, int], Sequence[Answer]]


class Batcher:
    """One decoder for all requests; it is used from one event loop.

    Args:
      decode: texts, task and batch size to answers; called in a thread, one call at a time.
      batch_size: the most texts of one call.
      max_waiting: the most texts that wait.
      note_batch: told the task, the size and the seconds of each call.
    """

    def __init__(
        self,
        decode: Decode,
        batch_size: int,
        max_waiting: int,
        note_batch: Callable[[str, int, float], None] = lambda task, size, seconds: None,
    ) -> None:
        self._decode = decode
        self._batch_size = batch_size
        self._max_waiting = max_waiting
        self._note_batch = note_batch
        # By task: labels are short, and should not wait for rationales to end.
        self._waiting: dict[str, collections.deque[tuple[str, asyncio.Future[Answer]]]] = {}
        self._came = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Texts that no call has taken yet."""
        return sum(map(len, self._waiting.values()))

    async def answer(self, texts: Sequence[str], tasks: Sequence[str]) -> list[list[Answer]]:
        """What the student says to texts without prefixes: a list for each task.

        Raises:
          Refusal: 503, too many wait already; none of these will be answered.
        """
        if self.waiting + len(texts) * len(tasks) > self._max_waiting:
            raise Refusal(
                503, f"{self.waiting:,} inputs wait already; ask again in a second, or ask for less"
            )
        loop = asyncio.get_running_loop()
        futures = [[loop.create_future() for _ in texts] for _ in tasks]
        for task, of_task in zip(tasks, futures, strict=True):
            queue = self._waiting.setdefault(task, collections.deque())
            queue.extend(zip(texts, of_task, strict=True))
        self._came.set()
        await asyncio.gather(*(each for of_task in futures for each in of_task))
        return [[each.result() for each in of_task] for of_task in futures]

    async def run(self) -> None:
        """Decodes until it is cancelled."""
        turn = 0
        while True:
            tasks = [task for task, queue in self._waiting.items() if queue]
            if not tasks:
                self._came.clear()
                await self._came.wait()
                continue
            turn += 1
            task = tasks[turn % len(tasks)]
            queue = self._waiting[task]
            taken = [queue.popleft() for _ in range(min(len(queue), self._batch_size))]
            await self._answer_batch(task, taken)

    async def _answer_batch(
        self, task: str, taken: Sequence[tuple[str, asyncio.Future[Answer]]]
    ) -> None:
        texts = [text for text, _ in taken]
        started = time.monotonic()
        try:
            answers = await asyncio.to_thread(self._decode, texts, task, self._batch_size)
        except Exception as error:  # of the network's library; each who waits is told
            for _, future in taken:
                with contextlib.suppress(asyncio.InvalidStateError):  # nobody waits any more
                    future.set_exception(error)
            return
        self._note_batch(task, len(texts), time.monotonic() - started)
        for (_, future), answer in zip(taken, answers, strict=True):
            with contextlib.suppress(asyncio.InvalidStateError):
                future.set_result(answer)
