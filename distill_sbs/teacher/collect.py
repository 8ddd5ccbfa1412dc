"""Asks the teacher about every input that has no answer yet, many at a time.

Enters: inputs, a prompt, an endpoint, an output file. Leaves: a line in the file for every answer,
and for every input that failed for good; and an `Outcome`, which says why the run ended.

A failure is the example's own only if others were answered meanwhile. While the endpoint answers
nobody, nothing is written off: the run waits, and after `outage_seconds` it ends, to be continued.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from distill_sbs.data.dataset import Example
from distill_sbs.data.readers import responses
from distill_sbs.errors import UserError
from distill_sbs.teacher import parsing
from distill_sbs.teacher.budget import CHARACTERS_PER_TOKEN, Budget
from distill_sbs.teacher.client import Asking, Endpoint, EndpointUnusable, Hopeless, Reply, Retry
from distill_sbs.teacher.journal import Journal
from distill_sbs.teacher.pacing import Pacer, Stopped
from distill_sbs.teacher.prompts import Prompt

# So many inputs refused before the first answer: it is the request, not the inputs.
HOPELESS_AT_FIRST = 5

# An empty answer, or one that is no JSON, comes again and again from a model that is sure of it.
ATTEMPTS_AT_AN_EMPTY_ANSWER = 3


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a run goes about it; none of these changes an answer.

    Attributes:
      samples: answers to each input.
      rationalise: whether the gold label is given away in the question.
      max_in_flight: the most calls at a time.
      max_attempts: calls about one input before it failed for good.
      outage_seconds: how long an endpoint may answer nobody before the run ends.
    """

    samples: int = 1
    rationalise: bool = False
    max_in_flight: int = 32
    max_attempts: int = 6
    outage_seconds: float = 600.0


@dataclasses.dataclass
class Outcome:
    """How a run went.

    Attributes:
      stopped: why it ended before the last input; None: it did not.
      exit_status: 0; 3: budget; 4: the endpoint answers nobody; 128 + signal.
      calls: requests made.
      answered: answers written by this run.
      retries: how often each reason made a call be repeated.
      seconds: how long it took.
    """

    stopped: str | None = None
    exit_status: int = 0
    calls: int = 0
    answered: int = 0
    retries: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    seconds: float = 0.0


class Extraction:
    """One run; `run` does it."""

    def __init__(
        self,
        prompt: Prompt,
        asking: Asking,
        endpoint: Endpoint,
        journal: Journal,
        budget: Budget,
        settings: Settings,
        on_change: Callable[[Extraction], None] = lambda _: None,
    ) -> None:
        self.outcome = Outcome()
        self.pacer = Pacer(settings.max_in_flight)
        self.journal = journal
        self.endpoint = endpoint
        self._prompt = prompt
        self._asking = asking
        self._budget = budget
        self._settings = settings
        self._on_change = on_change
        self._last_answer = -1.0  # when the endpoint last answered anybody
        self._hopeless_at_first: list[dict[str, Any]] = []
        self._error: BaseException | None = None

    def run(self, examples: Iterator[Example]) -> Outcome:
        """Asks about `examples`, except those whose answers are there.

        Raises:
          UserError: the endpoint cannot be used at all, or an input does not fit the prompt.
        """
        started = time.monotonic()
        try:
            asyncio.run(self._run(self._pending(examples)))
        finally:
            self.outcome.seconds = time.monotonic() - started
        if self._error is not None:
            raise self._error
        return self.outcome

    def _pending(self, examples: Iterator[Example]) -> Iterator[tuple[Example, int]]:
        for example in examples:
            if self._settings.rationalise and example.label is None:
                continue
            for sample in range(self._settings.samples):
                if not self.journal.has(example.id, sample, example.input):
                    yield example, sample

    # ---------------------------------- running ---------------------------------

    async def _run(self, pending: Iterator[tuple[Example, int]]) -> None:
        self._since = time.monotonic()
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self._on_signal, number)
        self._workers = [
            asyncio.create_task(self._work(pending)) for _ in range(self._settings.max_in_flight)
        ]
        try:
            await asyncio.gather(*self._workers, return_exceptions=True)
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
            await self.endpoint.close()
        if self._hopeless_at_first and self._error is None and self.outcome.stopped is None:
            self._fail(self._nothing_but_refusals())

    def _on_signal(self, number: int) -> None:
        if self.pacer.stopped:  # the second time: do not wait for the calls in flight either
            for worker in self._workers:
                worker.cancel()
            return
        name = "interrupted" if number == signal.SIGINT else "SIGTERM"
        self._stop(f"{name}: waited for the calls in flight", 128 + number)

    def _stop(self, why: str, exit_status: int) -> None:
        if self.outcome.stopped is None:
            self.outcome.stopped = why
            self.outcome.exit_status = exit_status
        self.pacer.stop()

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self.pacer.stop()

    async def _work(self, pending: Iterator[tuple[Example, int]]) -> None:
        try:
            while not self.pacer.stopped:
                question = next(pending, None)
                if question is None:
                    return
                await self._settle(*question)
        except Stopped:
            return
        except Exception as error:  # a mistake of ours must end the run, not one worker of many
            self._fail(error)

    async def _settle(self, example: Example, sample: int) -> None:
        """Asks about one input until it is answered or failed for good."""
        gold = example.label if self._settings.rationalise else None
        prompt: Any
        if self._asking.completion:
            prompt = self._prompt.completion_text(example.input, gold)
            characters = len(prompt)
        else:
            prompt = self._prompt.messages(example.input, gold)
            characters = sum(len(message["content"]) for message in prompt)
        if self._budget.limited and not self.journal.totals.answered:
            self._budget.expect(characters, self._asking.max_tokens)
        attempts = failures = 0
        first_asked = time.monotonic()
        while True:
            started = await self.pacer.acquire()
            try:
                over = self._budget.exceeded(self.pacer.in_flight - 1)
                if over is not None:
                    self._stop(f"the budget ends here: {over}", 3)
                    raise Stopped
                self.outcome.calls += 1
                reply = await self.endpoint.ask(prompt, sample)
            except Retry as retry:
                failures += 1
                attempts += retry.counts
                self.outcome.retries[retry.reason] += 1
                if retry.overloaded:
                    self.pacer.overloaded(started, retry.retry_after_seconds)
                self._check_outage(retry)
                if self._is_its_own_fault(retry, attempts, first_asked):
                    self._write_failure(example, sample, f"{retry.reason}, {attempts} times")
                    return
            except Hopeless as hopeless:
                self._write_failure(example, sample, str(hopeless))
                return
            except EndpointUnusable as error:
                self._fail(error)
                raise Stopped from None
            else:
                self.pacer.answered()
                self._last_answer = time.monotonic()
                self._write_answer(example, sample, reply, characters)
                return
            finally:
                self.pacer.release()
            await self.pacer.pause(self.pacer.delay(failures))

    # ---------------------------------- failures --------------------------------

    def _is_its_own_fault(self, retry: Retry, attempts: int, first_asked: float) -> bool:
        """Whether an input failed for good: asked often enough, while others were answered."""
        most = self._settings.max_attempts
        if retry.reason.startswith("empty"):
            # The endpoint did answer; that it said nothing is about this input.
            self._last_answer = time.monotonic()
            return attempts >= min(most, ATTEMPTS_AT_AN_EMPTY_ANSWER)
        return attempts >= most and self._last_answer > first_asked

    def _check_outage(self, retry: Retry) -> None:
        """Ends the run when nobody has been answered for long, or is not going to be."""
        longest = self._settings.outage_seconds
        waits = retry.retry_after_seconds or 0.0
        if waits > longest:
            self._stop(
                f"the endpoint asks to wait for {waits:,.0f} s, which is more than "
                f"--outage_seconds={longest:g}",
                4,
            )
            raise Stopped
        silent = time.monotonic() - max(self._last_answer, self._since)
        # Time that the endpoint asked us to wait is no silence.
        if silent > longest and time.monotonic() > self.pacer.resume_at:
            self._stop(f"the endpoint answered nobody for {silent:,.0f} s: {retry.reason}", 4)
            raise Stopped

    def _write_failure(self, example: Example, sample: int, reason: str) -> None:
        row = {
            **self._row(example, sample, None),
            "error": self.endpoint.redacted(reason),
        }
        if not self.outcome.answered and not self.journal.totals.answered:
            # Not written before somebody was answered: a request that is refused for all inputs
            # would otherwise mark them all as failed.
            self._hopeless_at_first.append(row)
            if len(self._hopeless_at_first) >= HOPELESS_AT_FIRST:
                self._fail(self._nothing_but_refusals())
                raise Stopped
            return
        self.journal.write(row)
        self._on_change(self)

    def _nothing_but_refusals(self) -> UserError:
        count, reason = len(self._hopeless_at_first), self._hopeless_at_first[0]["error"]
        return UserError(
            f"the first {count} input(s) failed and none was answered; nothing was written. "
            f"The first failure: {reason}"
        )

    # ---------------------------------- answers ---------------------------------

    def _row(self, example: Example, sample: int, reply: Reply | None) -> dict[str, Any]:
        return {
            "id": example.id,
            "raw": None if reply is None else reply.text,
            "rationale": None,
            "label": None,
            "sample": sample,
            "model": self._asking.model if reply is None else reply.model,
            "usage": None,
            "finish_reason": None if reply is None else reply.finish_reason,
            "input_hash": responses.input_hash(example.input),
        }

    def _write_answer(
        self, example: Example, sample: int, reply: Reply, prompt_characters: int
    ) -> None:
        parsed = parsing.parse(self._prompt, example.input, reply.text)
        row = self._row(example, sample, reply)
        row.update(rationale=parsed.rationale, label=parsed.label)
        prompt_tokens, completion_tokens = reply.prompt_tokens, reply.completion_tokens
        usage: dict[str, Any] = {}
        if prompt_tokens is None or completion_tokens is None:
            usage["estimated"] = True
            prompt_tokens = prompt_characters // CHARACTERS_PER_TOKEN
            completion_tokens = len(reply.text) // CHARACTERS_PER_TOKEN
        usage.update(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        row["usage"] = usage
        self.journal.write(row)
        self.outcome.answered += 1
        waiting, self._hopeless_at_first = self._hopeless_at_first, []
        for failure in waiting:
            self.journal.write(failure)
        self._on_change(self)
