"""The few data settings that a run chooses: where records lie, how many to use, λ, the vocabulary.

Enters: values from an entry point (or from gin, through `provide`). Leaves: `current()`, which
SeqIO tasks read when their data is asked for, never at import; so registering a task does no I/O.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from distill_sbs import constants
from distill_sbs.data.selection import Selection, read_selection
from distill_sbs.errors import UserError

if TYPE_CHECKING:
    import seqio

    from distill_sbs.config import TrainConfig

DATA_DIR_VARIABLE = "DISTILL_SBS_DATA_DIR"
VOCABULARY_VARIABLE = "DISTILL_SBS_VOCABULARY_FILE"


def default_data_dir() -> str:
    """Returns `$DISTILL_SBS_DATA_DIR`, or `~/.cache/distill_sbs` where it is unset."""
    return os.environ.get(DATA_DIR_VARIABLE) or os.path.expanduser("~/.cache/distill_sbs")


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """What a run chooses about its data.

    Attributes:
      data_dir: folder of prepared records; None is `default_data_dir()`.
      data_fraction: share in (0, 1] of the training examples that is used.
      fraction_seed: seed of the permutation that chooses them.
      rationale_rate: λ, the mixing rate of the rationale task (label task: 1).
      vocabulary_file: a SentencePiece model, or 'bytes' (ByT5), or 'embedded' (of the embedded
        datasets). The default is `$DISTILL_SBS_VOCABULARY_FILE`, for programs that know no macros.
      vocabulary: a loaded SeqIO vocabulary, such as a checkpoint's own, in the file's place.
      rationale_filter: 'all' rationales are trained on, or the 'agreeing' ones: those of examples
        where the teacher's label is right.
      contrast_rate: how often a contrast's rollout is drawn for a label row.
      rationales_per_example: how many of a training example's rationales take turns.
      text_dir: folder of the text files that `text_pretrain` reads; None is `{folder}/text`.
      selection: the training examples that may be used; None: all. `data_fraction` is of these.
      shared_encoder: no prefix tells labels from rationales, the decoder's start does; both of an
        example are drawn together.

    Raises:
      UserError: a value is out of range.
    """

    data_dir: str | None = None
    data_fraction: float = 1.0
    fraction_seed: int = 0
    rationale_rate: float = 1.0
    vocabulary_file: str | None = dataclasses.field(
        default_factory=lambda: os.environ.get(VOCABULARY_VARIABLE)
    )
    vocabulary: seqio.Vocabulary | None = None
    text_dir: str | None = None
    rationale_filter: str = "all"
    rationales_per_example: int = 1
    selection: Selection | None = None
    contrast_rate: float = 3.0
    shared_encoder: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.data_fraction <= 1.0:
            raise UserError(
                f"DATA_FRACTION={self.data_fraction} is not in (0, 1]; "
                "1.0 is the whole training set, 0.125 an eighth of it"
            )
        if self.rationale_filter not in constants.RATIONALE_FILTERS:
            raise UserError(
                f"RATIONALE_FILTER={self.rationale_filter!r} is unknown; known: "
                f"{', '.join(map(repr, constants.RATIONALE_FILTERS))}"
            )
        if not (math.isfinite(self.rationale_rate) and self.rationale_rate >= 0.0):
            raise UserError(
                f"RATIONALE_RATE={self.rationale_rate} is not a finite number ≥ 0; "
                "0 trains on labels alone, 1 is the paper's λ"
            )

    @classmethod
    def of_run(cls, config: TrainConfig) -> DataSettings:
        """What the options of a run say of its data; `SELECTION` is read here.

        Raises:
          UserError: it is no selection.
        """
        data = config.data
        return cls(
            data.data_dir,
            data.data_fraction,
            data.fraction_seed,
            config.objective.rationale_rate,
            data.vocabulary_file,
            text_dir=data.text_dir,
            rationale_filter=data.rationale_filter,
            rationales_per_example=data.rationales_per_example,
            contrast_rate=data.contrast_rate,
            selection=None if data.selection is None else read_selection(data.selection),
            shared_encoder=config.batch.shared_encoder,
        )

    def starts(self) -> Mapping[str, int]:
        """The decoder's first input token, by task ('label', 'rationale')."""
        return constants.SHARED_DECODER_STARTS if self.shared_encoder else constants.DECODER_STARTS

    @property
    def folder(self) -> str:
        """The folder of prepared records."""
        return self.data_dir or default_data_dir()

    @property
    def text_folder(self) -> str:
        """The folder of text files."""
        return self.text_dir or os.path.join(self.folder, "text")


_provider: Callable[[], DataSettings] = DataSettings


def provide(provider: Callable[[], DataSettings]) -> None:
    """Sets where `current()` gets its answer, for example a gin-configurable `DataSettings`."""
    global _provider
    _provider = provider


def use(settings: DataSettings) -> None:
    """Makes `settings` the current ones."""
    provide(lambda: settings)


def current() -> DataSettings:
    """Returns the settings in force."""
    return _provider()
