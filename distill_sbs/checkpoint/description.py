"""What a checkpoint says of itself, and whether a run may continue from it.

Enters: a run's options, or the JSON that stands in a checkpoint. Leaves: a `RunDescription`, which
`train` and `convert` write and everybody reads; or a `UserError` that names every option whose
value is another than that of the run in MODEL_DIR.

Format 2, or 3 where the encoder is shared or the vocabulary is trimmed, so that no earlier version
takes it for what it is not. Format 1, of distill_sbs 0.1, is read: its student, vocabulary and data
are stated in the same words, of its other options it names nine.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from distill_sbs import constants
from distill_sbs.config import DROPOUT_OPTIONS, TrainConfig
from distill_sbs.data.sentencepiece_model import VocabularyDescription, is_trimmed
from distill_sbs.errors import DamagedError, UserError
from distill_sbs.model.config import T5Config
from distill_sbs.option_fields import Option

FORMAT_VERSION = 2
# Of a student whose decoder's start tells the task, or whose ids are those of a trimmed vocabulary.
LATER_FORMAT_VERSION = 3
READABLE_VERSIONS = (1, 2, 3)

PREFIXES = {"label": constants.LABEL_PREFIX, "rationale": constants.RATIONALE_PREFIX}
_NO_PREFIXES = {"label": "", "rationale": ""}

# Of the student; it changes what is kept in memory, and no parameter.
_STUDENT_MAY_CHANGE = ("remat_policy",)

# Options that are compared by what they stand for, not by how they were typed.
_OF_DROPOUT = {name: name.upper() for name in DROPOUT_OPTIONS}
_STUDENT_OPTIONS = ("STUDENT", "STUDENT_OVERRIDES", *_OF_DROPOUT.values())
_BY_MEANING = (*_STUDENT_OPTIONS, "VOCABULARY_FILE", "SELECTION")

# What else there is to say of an option that changed.
_ADVICE = {
    "TRAIN_STEPS": "the learning rate falls to 0 at TRAIN_STEPS, so the steps that were taken "
    "belong to that number; to train longer give INITIAL_CHECKPOINT_PATH this folder, and another "
    "MODEL_DIR",
    "INITIAL_CHECKPOINT_PATH": "the old path may be given though nothing is there any more: a run "
    "that continues does not read it",
}


@dataclasses.dataclass(frozen=True)
class RunDescription:
    """What every checkpoint says of itself.

    Attributes:
      student: the network.
      vocabulary: as `data.sentencepiece_model.describe` gives it, the whole vocabulary in it.
      mixture: what it was trained on; None where a converted checkpoint names nothing.
      task_feature_lengths: longest inputs and targets, in tokens.
      max_decode_tokens: longest answer.
      options: the run's options, macro → value, as far as they are known.
      selection: the hash of what SELECTION chose; None where it was all.
      converted_from: where its parameters came from, if `convert` wrote it.
      prefixes: what stands before an input, by task ('label', 'rationale').
      decoder_starts: the decoder's first input token, likewise.
    """

    student: T5Config
    vocabulary: VocabularyDescription
    mixture: str | None
    task_feature_lengths: Mapping[str, int]
    max_decode_tokens: int
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    selection: str | None = None
    converted_from: str | None = None
    prefixes: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(PREFIXES))
    decoder_starts: Mapping[str, int] = dataclasses.field(
        default_factory=lambda: dict(constants.DECODER_STARTS)
    )

    @property
    def shares_encoder(self) -> bool:
        """Whether the decoder's start tells a student what to do, and no prefix does."""
        return self.decoder_starts != constants.DECODER_STARTS

    def longest_output(self, task: str) -> int:
        """Tokens, end token included: MAX_DECODE_TOKENS is a label's; a rationale may be as long as
        the targets that the student was trained on.
        """
        if task == "label":
            return self.max_decode_tokens
        return max(self.max_decode_tokens, self.task_feature_lengths.get(constants.TARGETS, 0))

    @classmethod
    def of_run(
        cls,
        config: TrainConfig,
        vocabulary: VocabularyDescription,
        selection: str | None = None,
    ) -> RunDescription:
        """The description of a run of ours; `selection` is the hash of what SELECTION chose.

        Raises:
          UserError: a trimmed vocabulary is another student's.
        """
        student = config.student.architecture()
        if is_trimmed(vocabulary) and vocabulary["size"] != student.vocab_size:
            raise UserError(
                f"VOCABULARY_FILE={config.data.vocabulary_file!r} is trimmed to "
                f"{vocabulary['size']} ids, the student {config.student.name} embeds "
                f"{student.vocab_size}: row by row they are one; set STUDENT_OVERRIDES = "
                f"{{'vocab_size': {vocabulary['size']}}}"
            )
        made = cls(
            student=student,
            vocabulary=vocabulary,
            mixture=config.data.mixture_or_task_name,
            task_feature_lengths=config.batch.task_feature_lengths,
            max_decode_tokens=config.evaluation.max_decode_tokens,
            options=config.values(),
            selection=selection,
        )
        shared = config.batch.shared_encoder
        return made.share_encoder(constants.SHARED_DECODER_STARTS) if shared else made

    def share_encoder(self, starts: Mapping[str, int]) -> RunDescription:
        """The same of a student that is told the task by the decoder's start, not by a prefix."""
        return dataclasses.replace(self, prefixes=dict(_NO_PREFIXES), decoder_starts=dict(starts))

    def to_json(self) -> dict[str, object]:
        """JSON-able, `from_json` reads it back, equal."""
        shared = {"decoder_starts": dict(self.decoder_starts)} if self.shares_encoder else {}
        is_later = bool(shared) or is_trimmed(self.vocabulary)
        return {
            "format_version": LATER_FORMAT_VERSION if is_later else FORMAT_VERSION,
            **shared,
            "student": self.student.to_dict(),
            "vocabulary": dict(self.vocabulary),
            "prefixes": dict(self.prefixes),
            "mixture": self.mixture,
            "task_feature_lengths": dict(self.task_feature_lengths),
            "max_decode_tokens": self.max_decode_tokens,
            "options": _as_json(self.options),
            "selection": self.selection,
            "converted_from": self.converted_from,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], place: str) -> RunDescription:
        """Reads what `to_json`, or distill_sbs 0.1, wrote.

        Args:
          values: the JSON object; what does not fit in it is found as it is read.
          place: where it stands, for messages.

        Raises:
          DamagedError: it does not hold what it should.
          UserError: another version wrote it.
        """
        version = values.get("format_version")
        if version not in READABLE_VERSIONS:
            raise UserError(
                f"{place} has checkpoint format {version}, expected one of {READABLE_VERSIONS}; "
                "use the version of distill_sbs that wrote it"
            )
        try:
            if version == 1:
                run = dict(values["run"])
                converted_from = run.pop("converted_from", None)
                options = {name.upper(): value for name, value in run.items()}
                if converted_from is None:
                    options["MIXTURE_OR_TASK_NAME"] = values["mixture"]
                    options["TASK_FEATURE_LENGTHS"] = values["task_feature_lengths"]
                    options["MAX_DECODE_TOKENS"] = values["max_decode_tokens"]
            else:
                options, converted_from = dict(values["options"]), values["converted_from"]
                if converted_from is None:
                    # An option that is newer than the run: it did what is now the default.
                    for option in TrainConfig.options():
                        if not option.is_required:
                            options.setdefault(option.macro, option.default)
            return cls(
                student=T5Config.from_dict(values["student"]),
                vocabulary=cast(VocabularyDescription, dict(values["vocabulary"])),
                mixture=values["mixture"],
                task_feature_lengths=dict(values["task_feature_lengths"]),
                max_decode_tokens=values["max_decode_tokens"],
                options=dict(options),
                selection=values.get("selection"),
                converted_from=converted_from,
                prefixes=dict(values["prefixes"]),
                decoder_starts=check_starts(
                    values["decoder_starts"], values["student"]["vocab_size"]
                )
                if "decoder_starts" in values
                else dict(constants.DECODER_STARTS),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise DamagedError(
                place, f"its description does not hold what it should: {error!r}"
            ) from None

    def unknown_options(self) -> list[str]:
        """Macros of the run's identity that the description says nothing of."""
        compared = (option for option in TrainConfig.options() if not option.may_change)
        known = {*self.options, *_BY_MEANING}
        return [option.macro for option in compared if option.macro not in known]


def check_starts(given: object, vocab_size: int) -> Mapping[str, int]:
    """Start tokens by task, as they are given from outside.

    Raises:
      ValueError: they are not those of label and rationale, or one is no token of the vocabulary.
    """
    tasks = set(constants.DECODER_STARTS)
    if not isinstance(given, dict) or set(given) != tasks:
        raise ValueError(f"start tokens {given!r:.80}; expected one for each of {sorted(tasks)}")
    for task, start in given.items():
        if type(start) is not int or not 0 <= start < vocab_size:
            raise ValueError(
                f"start token {start!r:.80} of {task}; expected a whole number from 0 to "
                f"{vocab_size - 1}"
            )
    return dict(given)


def _as_json(value: object) -> object:
    """As it comes back from JSON: lists for tuples, and texts for keys."""
    return json.loads(json.dumps(value))


def check_same_run(
    model_dir: str,
    saved: RunDescription,
    wanted: RunDescription,
    config_class: type[TrainConfig] = TrainConfig,
) -> None:
    """Refuses to continue a run with other options than it began with.

    Everything is compared that an option does not say of itself may change (`Option.may_change`):
    where and how a run goes on, not what it computes. The student is compared field by field, the
    vocabulary by its content.

    Args:
      model_dir: where the run lies.
      saved: what its checkpoint says.
      wanted: what it would go on with.
      config_class: the options of the entry point that would go on.

    Raises:
      UserError: MODEL_DIR holds another run; names each difference, by macro, old and new value.
    """
    programs = [f"a run of {_program(each)}" for each in (saved, wanted)]
    if saved.converted_from is None and programs[0] != programs[1]:
        raise UserError(
            f"MODEL_DIR={model_dir} holds {programs[0]}, and this is {programs[1]}; choose another "
            "MODEL_DIR"
        )
    differences = list(_differences(saved, wanted, config_class))
    if not differences:
        return
    told = "; ".join(f"{name}: {before} there, {after} now" for name, before, after in differences)
    advice = [_ADVICE[name] for name, _, _ in differences if _ADVICE.get(name)]
    raise UserError(
        f"MODEL_DIR={model_dir} holds a different run ({told}); choose another MODEL_DIR, or give "
        "the old values to continue it" + "".join(f"; {text}" for text in advice)
    )


def _program(description: RunDescription) -> str:
    """The entry point that made it: only one of them has a budget."""
    return "allocate" if "BUDGET_TOKENS" in description.options else "train"


def _differences(
    saved: RunDescription, wanted: RunDescription, config_class: type[TrainConfig]
) -> Iterator[tuple[str, str, str]]:
    """Name, value there and value now of what differs."""
    yield from compare_options(saved.options, wanted.options, config_class)
    before, after = (_vocabulary_hash(each.vocabulary) for each in (saved, wanted))
    if before != after:
        yield "VOCABULARY_FILE", _vocabulary_words(saved), _vocabulary_words(wanted)
    if saved.selection != wanted.selection:
        yield "SELECTION", _selection_words(saved), _selection_words(wanted)
    sizes = [each.options.get("STUDENT") for each in (saved, wanted)]
    yield from compare_students(saved.student, wanted.student, sizes)


def compare_options(
    saved: Mapping[str, object],
    wanted: Mapping[str, object],
    config_class: type[TrainConfig] = TrainConfig,
) -> Iterator[tuple[str, str, str]]:
    """Macro, value there and value now of the options that differ and may not.

    Of what is compared by what it stands for, the student and the vocabulary, nothing is said here.

    Args:
      saved: macro → value, as far as it is known.
      wanted: macro → value, of every option.
      config_class: which options there are.
    """
    for option in config_class.options():
        by_meaning = option.macro in _BY_MEANING
        if option.may_change or by_meaning or option.macro not in saved:
            continue
        before, after = (_comparable(option, each) for each in (saved, wanted))
        if before != after:
            yield option.macro, repr(before), repr(after)


def compare_students(
    saved: T5Config, wanted: T5Config, sizes: Sequence[object]
) -> Iterator[tuple[str, str, str]]:
    """Macro, value there and value now of what differs between two students and may not.

    Args:
      saved: the one there.
      wanted: the one now.
      sizes: the values of STUDENT of both, None where it is not known.
    """
    before, after = saved.to_dict(), wanted.to_dict()
    differing = [
        name
        for name in {**before, **after}
        if before.get(name) != after.get(name) and name not in _STUDENT_MAY_CHANGE
    ]
    for name in [name for name in differing if name in _OF_DROPOUT]:
        differing.remove(name)
        yield _OF_DROPOUT[name], repr(before[name]), repr(after[name])
    if differing and None not in sizes and sizes[0] != sizes[1]:
        yield "STUDENT", repr(sizes[0]), repr(sizes[1])
        return
    for name in differing:
        yield f"STUDENT_OVERRIDES[{name!r}]", repr(before.get(name)), repr(after.get(name))


def _comparable(option: Option, options: Mapping[str, object]) -> object:
    value = options[option.macro]
    if option.macro == "INITIAL_CHECKPOINT_PATH" and isinstance(value, str):
        return value.rstrip("/")
    return _as_json(value)


def _vocabulary_hash(vocabulary: VocabularyDescription) -> str:
    """Of its content; bytes have none."""
    return str(vocabulary.get("sha256", vocabulary["kind"]))


def _selection_words(description: RunDescription) -> str:
    if description.selection is None:
        return "None"
    return f"{description.options.get('SELECTION')!r} (sha256 {description.selection:.8}…)"


def _vocabulary_words(description: RunDescription) -> str:
    file = description.options.get("VOCABULARY_FILE", "a vocabulary")
    return f"{file!r} ({description.vocabulary['size']} pieces)"
