"""Asks the teacher about every input that has no answer yet, many at a time.

Enters: inputs, a prompt, an endpoint, an output file. Leaves: a line in the file for every answer,
and for every input that failed for good; and an `Outcome`, which says why the run ended.

A failure is the example's own only if others were answered meanwhile. While the endpoint answers
nobody, nothing is written off: the run waits, and after `outage_seconds` it ends, to be continued.
"""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from distill_sbs.data.dataset import Example
from distill_sbs.data.readers import responses
from distill_sbs.data.readers.responses import ResponseRow
from distill_sbs.errors import UserError
from distill_sbs.teacher import parsing
from distill_sbs.teacher.budget import CHARACTERS_PER_TOKEN, Budget
from distill_sbs.teacher.client import Endpoint, RequestParameters
from distill_sbs.teacher.completions import Response
from distill_sbs.teacher.failures import EndpointUnusable, PermanentFailure, TemporaryFailure
from distill_sbs.teacher.journal import Journal
from distill_sbs.teacher.pacing import Pacer, Stopped
from distill_sbs.teacher.prompts import Prompt

# So many inputs failed before the first answer: it is the request, not the inputs.
FAILED_BEFORE_ANY_ANSWER = 5

# So many after the last one, each with responses that are none: it is the endpoint.
FAILED_SINCE_THE_LAST_ANSWER = 20

# An empty response comes again and again from a model that is sure of it, and a response that is no
# completion from an endpoint that is.
ATTEMPTS_AT_AN_EMPTY_RESPONSE = 3
ATTEMPTS_AT_AN_UNUSABLE_RESPONSE = 4

# Nobody answered for so long: the user hears of it, though the run goes on.
SECONDS_OF_SILENCE = 15.0

# Reasons are counted apart up to this number: an endpoint may word each of its errors anew.
MOST_REASONS = 40


@dataclasses.dataclass(frozen=True)
class Settings:
    """How a run goes about it; none of these changes an answer.

    Attributes:
      samples: responses to each input.
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


def _is_loop_running() -> bool:
    """Whether this thread runs an event loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


class Extraction:
    """One run; `run` does it.

    Args:
      prompt: what is asked, and how answers are read.
      parameters: how the teacher is asked.
      endpoint: who is asked.
      journal: where answers go, and what is answered already.
      budget: what it may cost.
      settings: how the run goes about it.
      on_change: is called after every line that was written.
      on_trouble: is told, in one line, when the endpoint answers nobody, and when it does again.
    """

    def __init__(
        self,
        prompt: Prompt,
        parameters: RequestParameters,
        endpoint: Endpoint,
        journal: Journal,
        budget: Budget,
        settings: Settings,
        on_change: Callable[[Extraction], None] = lambda _: None,
        on_trouble: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.outcome = Outcome()
        self.pacer = Pacer(settings.max_in_flight)
        self.journal = journal
        self.endpoint = endpoint
        self._prompt = prompt
        self._parameters = parameters
        self._budget = budget
        self._settings = settings
        self._on_change = on_change
        self._on_trouble = on_trouble
        self._last_answer = -1.0  # when the endpoint last answered anybody
        self._told_trouble = False
        self._put_by: list[ResponseRow] = []
        self._error: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, examples: Iterator[Example]) -> Outcome:
        """Asks about `examples`, except those whose answers are there.

        Raises:
          UserError: the endpoint cannot be used at all, or an input does not fit the prompt.
        """
        started = time.monotonic()
        try:
            if _is_loop_running():
                self._run_beside(examples)
            else:
                asyncio.run(self._run(self._pending(examples)))
        finally:
            self.outcome.seconds = time.monotonic() - started
        if self._error is not None:
            raise self._error
        return self.outcome

    def _run_beside(self, examples: Iterator[Example]) -> None:
        """Runs in a thread of its own: in this one another loop runs, as in a notebook."""
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            done = pool.submit(asyncio.run, self._run(self._pending(examples)))
            while True:
                try:
                    done.result()
                    return
                except KeyboardInterrupt:
                    if self._loop is not None:
                        self._loop.call_soon_threadsafe(self._on_signal, signal.SIGINT)

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
        self._loop = loop = asyncio.get_running_loop()
        # Python lets the main thread alone handle signals.
        is_main = threading.current_thread() is threading.main_thread()
        signals = (signal.SIGINT, signal.SIGTERM) if is_main else ()
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
        if self._put_by and self._error is None and self.outcome.stopped is None:
            if self._ever_answered():
                self._write_put_by()
            else:
                self._fail(self._make_first_failures_error())

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
        prompt: str | Sequence[Mapping[str, str]]
        if self._parameters.completion:
            prompt = self._prompt.completion_text(example.input, gold)
            characters = len(prompt)
        else:
            messages = self._prompt.messages(example.input, gold)
            prompt, characters = messages, sum(len(each["content"]) for each in messages)
        if self._budget.is_limited and not self.journal.totals.answered:
            self._budget.expect(characters, self._parameters.max_tokens)
        attempts = failures = useless = 0
        spent = [0, 0]  # tokens of calls that were paid for, though nothing came of them
        first_asked = time.monotonic()
        while True:
            started = await self.pacer.acquire()
            try:
                over = self._budget.find_excess(self.pacer.in_flight - 1)
                if over is not None:
                    self._stop(f"the budget ends here: {over}", 3)
                    raise Stopped
                self.outcome.calls += 1
                response = await self.endpoint.ask(prompt, sample)
            except TemporaryFailure as failure:
                failures += 1
                attempts += failure.counts
                useless += failure.answered or failure.unusable
                self._count_failed_call(failure, spent)
                if failure.overloaded:
                    self.pacer.note_overload(started, failure.retry_after_seconds)
                self._check_outage(failure)
                if self._is_its_own_fault(failure, attempts, useless, first_asked):
                    reason = f"{failure}, {attempts} times"
                    is_sure = not failure.unusable or self._last_answer > first_asked
                    self._write_failure(example, sample, reason, spent, is_sure)
                    return
            except PermanentFailure as failure:
                self._add_tokens(failure.tokens, spent)
                self._write_failure(example, sample, str(failure), spent)
                return
            except EndpointUnusable as error:
                self._fail(error)
                raise Stopped from None
            else:
                self.pacer.note_answer()
                self._note_answer()
                self._write_answer(example, sample, response, characters)
                self.journal.totals.spend(*spent)
                return
            finally:
                self.pacer.release()
            await self.pacer.pause(self.pacer.delay(failures))

    # ---------------------------------- failures --------------------------------

    def _count_failed_call(self, failure: TemporaryFailure, spent: list[int]) -> None:
        self._add_tokens(failure.tokens, spent)
        retries = self.outcome.retries
        is_known = failure.reason in retries or len(retries) < MOST_REASONS
        retries[failure.reason if is_known else "other reasons"] += 1
        if failure.answered:  # that the response was empty is about this input
            self._note_answer()

    @staticmethod
    def _add_tokens(tokens: tuple[int, int] | None, spent: list[int]) -> None:
        for kind, count in enumerate(tokens or ()):
            spent[kind] += count

    def _note_answer(self) -> None:
        self._last_answer = time.monotonic()
        if self._told_trouble:
            self._told_trouble = False
            self._on_trouble("the endpoint answers again")

    def _is_its_own_fault(
        self, failure: TemporaryFailure, attempts: int, useless: int, first_asked: float
    ) -> bool:
        """Whether an input failed for good: asked often enough, while others were answered."""
        most = self._settings.max_attempts
        if failure.answered:
            return useless >= min(most, ATTEMPTS_AT_AN_EMPTY_RESPONSE)
        if failure.unusable:
            return useless >= min(most, ATTEMPTS_AT_AN_UNUSABLE_RESPONSE)
        return attempts >= most and self._last_answer > first_asked

    def _ever_answered(self) -> bool:
        return bool(self.outcome.answered or self.journal.totals.answered)

    def _check_outage(self, failure: TemporaryFailure) -> None:
        """Ends the run when nobody has been answered for long, or is not going to be."""
        longest = self._settings.outage_seconds
        waits = failure.retry_after_seconds or 0.0
        if waits > longest:
            self._stop(
                f"the endpoint asks to wait for {waits:,.0f} s, which is more than "
                f"--outage_seconds={longest:g}",
                4,
            )
            raise Stopped
        silent = time.monotonic() - max(self._last_answer, self._since)
        never_reached = failure.unreachable and self._last_answer < 0
        if not self._told_trouble and (never_reached or silent > SECONDS_OF_SILENCE):
            self._told_trouble = True
            self._on_trouble(f"{failure}; trying again for up to {longest:g} s")
        # Time that the endpoint asked us to wait is no silence.
        if silent > longest and time.monotonic() > self.pacer.resume_at:
            self._stop(f"the endpoint answered nobody for {silent:,.0f} s: {failure}", 4)
            raise Stopped

    def _write_failure(
        self,
        example: Example,
        sample: int,
        reason: str,
        spent: Sequence[int],
        is_sure: bool = True,
    ) -> None:
        """Writes that an input failed for good, or puts that by until somebody is answered.

        A request that is refused for all inputs, or an endpoint that sends a login page from some
        moment on, would otherwise mark them all as failed.
        """
        row: ResponseRow = {**self._make_row(example, sample, None), "error": reason}
        if any(spent):
            row["usage"] = {"prompt_tokens": spent[0], "completion_tokens": spent[1]}
        if is_sure and self._ever_answered():
            self.journal.write(row)
            self._on_change(self)
            return
        self._put_by.append(row)
        if not self._ever_answered():
            if len(self._put_by) >= FAILED_BEFORE_ANY_ANSWER:
                self._fail(self._make_first_failures_error())
                raise Stopped
        elif len(self._put_by) >= FAILED_SINCE_THE_LAST_ANSWER:
            self._stop(
                f"{len(self._put_by)} inputs in a row got responses that are no answers: {reason}",
                4,
            )
            raise Stopped

    def _write_put_by(self) -> None:
        waiting, self._put_by = self._put_by, []
        for row in waiting:
            self.journal.write(row)

    def _make_first_failures_error(self) -> UserError:
        count, reason = len(self._put_by), self._put_by[0]["error"]
        return UserError(
            f"the first {count} input(s) failed and none was answered; nothing was written. "
            f"The first failure: {reason}"
        )

    # ---------------------------------- answers ---------------------------------

    def _make_row(self, example: Example, sample: int, response: Response | None) -> ResponseRow:
        return {
            "id": example.id,
            "raw": None if response is None else response.text,
            "rationale": None,
            "label": None,
            "sample": sample,
            "model": (response and response.model) or self._parameters.model,
            "usage": None,
            "finish_reason": None if response is None else response.finish_reason,
            "input_hash": responses.input_hash(example.input),
        }

    def _write_answer(
        self, example: Example, sample: int, response: Response, prompt_characters: int
    ) -> None:
        row = self._make_row(example, sample, response)
        row["finish_reason"] = parsing.known_finish_reason(
            response.finish_reason, response.completion_tokens, self._parameters.max_tokens
        )
        parsed = parsing.parse(self._prompt, example.input, response.text, row["finish_reason"])
        row["rationale"], row["label"] = parsed.rationale, parsed.label
        prompt_tokens, completion_tokens = response.prompt_tokens, response.completion_tokens
        usage: dict[str, object] = {}
        if prompt_tokens is None or completion_tokens is None:
            usage["estimated"] = True
            prompt_tokens = prompt_characters // CHARACTERS_PER_TOKEN
            completion_tokens = len(response.text) // CHARACTERS_PER_TOKEN
        usage.update(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)
        row["usage"] = usage
        self.journal.write(row)
        self.outcome.answered += 1
        self._write_put_by()
        self._on_change(self)
