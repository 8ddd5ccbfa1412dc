"""One run, as a report knows it.

Enters: nothing; `reading` fills it in. Leaves: frozen values, texts as they were read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

SPLITS = ("test", "validation")

# One value of `metrics.jsonl` over a run: (step, value), in order.
Curve = tuple[tuple[int, float], ...]


@dataclasses.dataclass(frozen=True)
class Scores:
    """What was measured on a split.

    Attributes:
      accuracy: share of right labels, 0 to 1.
      examples: how many there were; None where nobody noted it.
      decoded_tokens: mean length of an output, in tokens; likewise.
    """

    accuracy: float
    examples: int | None = None
    decoded_tokens: float | None = None


@dataclasses.dataclass(frozen=True)
class Model:
    """A student.

    Attributes:
      name: of its size.
      parameters: how many it has; None where that is not known.
      changes: what differs from that size, as text; empty if nothing.
    """

    name: str
    parameters: int | None = None
    changes: str = ""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an answer and the training cost.

    Attributes:
      most_decoded_tokens: the longest output that is allowed.
      answer_flops: of one answer, at most.
      train_flops: of the whole training, at most.
    """

    most_decoded_tokens: int | None = None
    answer_flops: float | None = None
    train_flops: float | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """One training, or one line of somebody's table.

    Attributes:
      folder: where it lies inside RUNS_DIR, for people; with '#2' behind it the second of a list.
      dataset: its name.
      method: its name, one of `words.METHODS` or another.
      teacher: whose labels or rationales; None if nobody's.
      model: the student; None for a teacher's own line.
      fraction: of the training data, 0 to 1; None for a teacher's own line.
      rate: λ; None where it means nothing to the method.
      seed: RANDOM_SEED.
      fraction_seed: FRACTION_SEED; None where it is not known.
      seeds: runs that `scores` are the mean of; 1 for a run of ours.
      standard_error: of that mean, where it was given.
      scores: by split; none for a run that has not finished, or that was pretrained.
      validation_loss: nats a token; None where it was not measured.
      teacher_accuracy: what the results say of the teacher's accuracy on test.
      train_steps: steps in all.
      last_step: the last step that was logged.
      cost: of an answer and of the training.
      settings: what else makes it what it is, macro → value as text.
      state: 'finished', or why it is not.
      command: what reproduces it.
      source: where a number comes from that is not of a run.
      curves: by name, such as 'label_loss'.
    """

    folder: str
    dataset: str
    method: str
    teacher: str | None = None
    model: Model | None = None
    fraction: float | None = None
    rate: float | None = None
    seed: int | None = None
    fraction_seed: int | None = None
    seeds: int = 1
    standard_error: float | None = None
    scores: Mapping[str, Scores] = dataclasses.field(default_factory=dict)
    validation_loss: float | None = None
    teacher_accuracy: float | None = None
    train_steps: int | None = None
    last_step: int | None = None
    cost: Cost = Cost()
    settings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    state: str = "finished"
    command: str | None = None
    source: str | None = None
    curves: Mapping[str, Curve] = dataclasses.field(default_factory=dict)

    @property
    def is_finished(self) -> bool:
        """Whether it has results."""
        return self.state == "finished"


def list_commands(runs: Iterable[Run]) -> tuple[str, ...]:
    """What reproduces them, each once: commands, or comments that say where a number is from."""
    found = [run.command or (f"# {run.source}" if run.source else "") for run in runs]
    return tuple(dict.fromkeys(each for each in found if each))
