"""A teacher that is asked while a run goes: about the inputs that the run wants next.

Enters: examples of a split. Leaves: the teacher's output for each of them, in memory and in a file
of the run's, `MODEL_DIR/teacher/{dataset}_{split}.jsonl`, as `extract` writes it. What the file
holds is never asked again, whenever the run was killed. The endpoint is `$OPENAI_BASE_URL`, never
an option: gin files come from strangers, and its key goes where the URL says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence

from distill_sbs.cli import signals
from distill_sbs.data.dataset import Example, TeacherOutput
from distill_sbs.data.readers import responses
from distill_sbs.data.readers.request_description import RequestDescription
from distill_sbs.errors import UserError
from distill_sbs.teacher import prompts
from distill_sbs.teacher.budget import Budget, Prices
from distill_sbs.teacher.client import Endpoint, RequestParameters
from distill_sbs.teacher.collect import Extraction, Settings
from distill_sbs.teacher.journal import Journal

FOLDER = "teacher"
TIMEOUT_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class LiveTeacher:
    """Whom a run asks, and how.

    Attributes:
      name: the teacher's, in the names of tasks.
      model: the endpoint's name of it.
      prompt: one of ours, or a TOML file; None: the dataset's.
      max_tokens: of the longest response.
      temperature: 0 is greedy.
      folder: MODEL_DIR.
    """

    name: str
    model: str
    prompt: str | None
    max_tokens: int
    temperature: float
    folder: str

    def check(self, dataset: str, first: Example | None = None) -> None:
        """Finds out before any call whether the teacher can be asked about a dataset.

        Args:
          dataset: its name.
          first: an input, which is to fit the prompt; None: it is not known yet.

        Raises:
          UserError: no such prompt, or one with code; no URL or key.
        """
        prompt = self._load_prompt(dataset)
        Endpoint(None, self._parameters(prompt), TIMEOUT_SECONDS)
        if first is not None:
            prompt.question_text(first.input)

    def ask(
        self,
        dataset: str,
        split: str,
        examples: Sequence[Example],
        tell: Callable[[str], None] = lambda _: None,
    ) -> dict[str, TeacherOutput]:
        """What the teacher says of examples, by id; of those that are known it is read.

        An output without a rationale is that of a response that could not be parsed (`raw` has it),
        or of an input that failed for good.

        Args:
          dataset: whose examples they are.
          split: which of its splits.
          examples: the inputs.
              tell: is told how many were answered, and of an endpoint that answers nobody.

        Raises:
          UserError: the endpoint cannot be used, or the file was asked for with other settings.
          SystemExit: SIGTERM (143) or Ctrl-C (130) came, or the endpoint answers nobody (4); all
            that was answered is in the file.
        """
        prompt = self._load_prompt(dataset)
        parameters = self._parameters(prompt)
        endpoint = Endpoint(None, parameters, TIMEOUT_SECONDS, tell)
        path = os.path.join(self.folder, FOLDER, f"{dataset}_{split}.jsonl")
        asked = RequestDescription(
            task=prompt.name,
            prompt_sha256=prompt.digest,
            model=self.model,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            task_path=self.prompt or prompt.name,
            teacher=self.name,
            answers=prompt.answers,
        )
        with _in_words_of_a_run():
            journal = Journal(path, asked)
        wanted = [each for each in examples if not journal.has(each.id, 0, each.input)]
        budget = Budget(journal.totals, Prices(), None, None)

        outcome = None
        try:
            if wanted:
                with signals.keep_handlers((signal.SIGINT, signal.SIGTERM)), _keep_wakeup():
                    outcome = Extraction(
                        prompt, parameters, endpoint, journal, budget, Settings(), on_trouble=tell
                    ).run(iter(wanted))
                tell(f"{self.name} answered {outcome.answered:,} of {len(wanted):,} inputs")
        finally:
            journal.close()
        if outcome is not None and outcome.stopped is not None:
            tell(f"{outcome.stopped}; the same command continues, and asks nothing twice")
            raise SystemExit(outcome.exit_status)
        return _read(path, examples)

    def _load_prompt(self, dataset: str) -> prompts.Prompt:
        named = self.prompt or dataset
        with _in_words_of_a_run():
            if (prompts.find(named).parent / "parser.py").is_file():
                raise UserError(
                    f"TEACHER_PROMPT={named!r} has a parser.py, which is code, and a gin file may "
                    "not name code; give a prompt without one, or run extract, and prepare "
                    "--teacher"
                )
            return prompts.load(named)

    def _parameters(self, prompt: prompts.Prompt) -> RequestParameters:
        return RequestParameters(
            self.model, self.max_tokens, self.temperature, tuple(prompt.stop_sequences)
        )


def _read(path: str, examples: Sequence[Example]) -> dict[str, TeacherOutput]:
    index = responses.AnswerIndex([path])
    try:
        found: Mapping[str, Sequence[responses.ResponseRow]] = {
            each.id: index.answers(each.id) for each in examples
        }
    finally:
        index.close()
    return {
        name: dataclasses.replace(
            responses.output_of(rows), raw=rows[0].get("raw") if rows else None
        )
        for name, rows in found.items()
    }


@contextlib.contextmanager
def _in_words_of_a_run() -> Iterator[None]:
    """Errors name the options of a run, where they would name the flags of `extract`."""
    try:
        yield
    except UserError as error:
        told = str(error).replace("--task=", "TEACHER_PROMPT=").replace("--output", "MODEL_DIR")
        raise UserError(told) from error


@contextlib.contextmanager
def _keep_wakeup() -> Iterator[None]:
    """Whoever signals wake is woken afterwards too: asyncio takes that over for itself."""
    before = signal.set_wakeup_fd(-1)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
