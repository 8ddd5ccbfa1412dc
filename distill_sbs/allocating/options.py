"""Every option of an allocation: its budget, its capabilities, its policy.

Enters: values from Python, or from gin files and the command line. Leaves: an `AllocateConfig`, the
options of a run (`distill_sbs.config`) and these besides.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from distill_sbs import option_kinds as kinds
from distill_sbs.allocating.policies import POLICIES
from distill_sbs.config import TrainConfig
from distill_sbs.option_fields import OptionError, Options, option

GENERATION_SHARE = 0.4
# Up to so many capabilities one alone is a candidate too.
_ONE_HOT_UP_TO = 5


def _capabilities() -> kinds.Kind[dict[str, object]]:
    """Names and tasks, one of each at least."""
    plain = kinds.mapping("{'label': 'cqa_label', 'rationale': 'cqa_rationale_palm'}")

    def convert(value: object) -> dict[str, object]:
        found = plain.convert(value)
        for name, task in found.items():
            if not isinstance(task, str) or not task or not name:
                raise kinds.WrongValue(f": {name!r} is {kinds.show(task)}")
        if not found:
            raise kinds.WrongValue(" names none")
        return found

    return kinds.Kind("a dict of names and tasks or mixtures", convert, plain.example)


def _fractions() -> kinds.Kind[tuple[float, ...]]:
    """Numbers between 0 and 1."""

    def convert(value: object) -> tuple[float, ...]:
        if isinstance(value, str) or not isinstance(value, Sequence) or not value:
            raise kinds.WrongValue("")
        for each in value:
            is_number = isinstance(each, int | float) and not isinstance(each, bool)
            if not is_number or not math.isfinite(each) or not 0.0 < each < 1.0:
                raise kinds.WrongValue(f": {kinds.show(each)} is in it")
        return tuple(map(float, value))

    return kinds.Kind("numbers above 0 and below 1", convert, "[0.25, 0.5, 0.75]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllocationConfig(Options):
    """What the tokens are spent on, and who decides."""

    capabilities: Mapping[str, object] = option(
        _capabilities(), "name → the task or mixture that is trained on for it"
    )
    budget_tokens: int = option(
        kinds.whole(1, example="1000000"),
        "B: a teacher's tokens and a student's tokens, together",
        unit="tokens",
    )
    generation_tokens: int | None = option(
        kinds.optional(kinds.whole(0)),
        "B_gen: of BUDGET_TOKENS, for what a teacher wrote, charged when first trained on; None: "
        "two fifths where a teacher wrote anything",
        default=None,
        unit="tokens",
    )
    interval_tokens: int = option(
        kinds.whole(1),
        "trained between one choice of a mixture and the next",
        default=50_000,
        unit="tokens",
    )
    task_card: str | None = option(
        kinds.optional(kinds.text("'tasks/card.toml'")),
        "a TOML file that says what the task needs; None: every capability alike",
        default=None,
        may_change="the file may have moved; what it says may not change",
    )
    policy: str = option(
        kinds.choice(POLICIES), "who chooses an interval's mixture", default="ensemble_ucb"
    )
    replay_history: str | None = option(
        kinds.optional(kinds.text("'runs/other/allocation_history.jsonl'")),
        "a history whose mixtures are taken in the place of POLICY's; None: none",
        default=None,
    )
    top_k: int = option(
        kinds.whole(1), "of the capabilities, those that the task needs most take part", default=3
    )
    mixture_grid: Sequence[float] = option(
        _fractions(), "weights of the first of two capabilities", default=(0.25, 0.5, 0.75)
    )
    include_one_hot: bool | None = option(
        kinds.optional(kinds.boolean()),
        "whether one capability alone is a candidate; None: with five or fewer",
        default=None,
    )
    spill_weight: float = option(
        kinds.number(least=0.0), "β: how much a loss costs besides", default=0.5
    )
    token_cost: float = option(
        kinds.number(least=0.0), "λ of the reward, a token; 0 for small students", default=1e-5
    )
    exploration: float | None = option(
        kinds.optional(kinds.number(least=0.0)),
        "κ at the beginning; None: the policy's own (ensemble_ucb 1, others 0.1)",
        default=None,
    )
    exploration_decay: float = option(
        kinds.number(above=0.0, most=1.0),
        "of κ at an evaluation that found nothing better than the one before",
        default=0.7,
    )
    warmup_intervals: int = option(
        kinds.whole(0), "that take a random candidate", default=5, unit="intervals"
    )
    probes: int = option(
        kinds.whole(1),
        "of validation, the first ones of each capability",
        default=32,
        unit="examples",
    )
    evaluation_share: float = option(
        kinds.number(above=0.0, most=1.0), "of BUDGET_TOKENS between evaluations", default=0.1
    )

    difficulty_schedule: bool = option(
        kinds.boolean(),
        "whether the share of harder sequences grows with the share of the budget that is used",
        default=False,
    )
    live_teacher: str | None = option(
        kinds.optional(kinds.text("'gpt'")),
        "whose targets in CAPABILITIES (DATASET_rationale_NAME) are asked for while the run goes, "
        "of $OPENAI_BASE_URL; None: all outputs are in the records",
        default=None,
    )
    teacher_model: str | None = option(
        kinds.optional(kinds.text("'llama-3.3-70b-instruct'")),
        "the endpoint's name of LIVE_TEACHER",
        default=None,
    )
    teacher_prompt: str | None = option(
        kinds.optional(kinds.text("'cqa'")),
        "what LIVE_TEACHER is asked with: a prompt of ours, or a TOML file; None: the dataset's",
        default=None,
    )
    teacher_temperature: float = option(
        kinds.number(least=0.0), "of LIVE_TEACHER's answers; 0 is greedy", default=0.2
    )
    teacher_max_tokens: int = option(
        kinds.whole(1), "of LIVE_TEACHER's longest answer", default=256, unit="tokens"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.live_teacher is None) != (self.teacher_model is None):
            lacking = "LIVE_TEACHER" if self.live_teacher is None else "TEACHER_MODEL"
            other = "TEACHER_MODEL" if self.live_teacher is None else "LIVE_TEACHER"
            raise OptionError(lacking, f"{other} is given and {lacking} is not; give both, or none")

    def uses_one_hot(self) -> bool:
        """Whether one capability alone is a candidate."""
        if self.include_one_hot is None:
            return len(self.capabilities) <= _ONE_HOT_UP_TO
        return self.include_one_hot

    def generation_budget(self, has_teacher: bool) -> int:
        """B_gen."""
        if self.generation_tokens is not None:
            return self.generation_tokens
        return round(GENERATION_SHARE * self.budget_tokens) if has_teacher else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class AllocateConfig(TrainConfig):
    """All options of `python -m distill_sbs.allocate`: those of a run, and of an allocation.

    MIXTURE_OR_TASK_NAME is the task that the budget is spent for; EVAL_PERIOD is not looked at.

    Raises:
      OptionError: see `TrainConfig`.
    """

    allocation: AllocationConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.allocation
        if self.objective.in_pairs:
            raise OptionError(
                "MUTUAL_INFORMATION_WEIGHT",
                "MUTUAL_INFORMATION_WEIGHT above 0 compares labels with their rationales, which an "
                "allocation draws apart; set it to 0.0",
            )
        if self.batch.shared_encoder:
            raise OptionError(
                "SHARED_ENCODER",
                "SHARED_ENCODER=True encodes an example once, for its label and its rationale, "
                "which an allocation draws apart; set it to False",
            )
        generated = given.generation_tokens
        if generated is not None and generated >= given.budget_tokens:
            raise OptionError(
                "GENERATION_TOKENS",
                f"GENERATION_TOKENS={generated} leaves nothing of BUDGET_TOKENS="
                f"{given.budget_tokens} to train with; expected less",
            )
        if given.live_teacher is not None and "://" in self.run.model_dir:
            raise OptionError(
                "MODEL_DIR",
                f"MODEL_DIR={self.run.model_dir!r}: LIVE_TEACHER's answers are appended there as "
                "they arrive, which a bucket does not allow; give a local one",
            )
