"""A checkpoint of any form as our parameters, one tensor at a time.

Enters: nothing; forms of checkpoints (HuggingFace's, T5X's, ours) are classes derived from
`ParameterSource`. Leaves: for a writer of another form, every parameter in turn; for training, the
shards of a mesh (`convert.mesh_reader`). Nothing is read before it is asked for, and never more
than one tensor of one layer at a time.

Paths are ours with layers one by one, 'encoder/layers_0/attention/query/kernel', whether the form
at hand stacks its layers or not (`model.parameters`).
"""

from __future__ import annotations

import abc
from collections.abc import Mapping

import numpy as np

from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.data.sentencepiece_model import TRIMMED_FILE, VocabularyDescription, is_trimmed
from distill_sbs.errors import UserError
from distill_sbs.model.config import T5Config, T5GemmaConfig
from distill_sbs.model.parameters import list_parameters

Index = tuple[slice, ...]

# What a student computes with its parameters and their shapes do not show.
_COMPUTATION = (
    "mlp_activations",
    "logits_via_embedding",
    "layer_norm_epsilon",
)
_OF_T5 = ("relative_attention_max_distance",)
_OF_T5GEMMA = (
    "num_heads",
    "query_scale_dim",
    "sliding_window",
    "full_attention_period",
    "rope_theta",
    "rope_scaling_factor",
    "sliding_rope_theta",
    "start_id",
    "end_of_image_id",
)


class ParameterSource(abc.ABC):
    """A checkpoint on disk, whatever its form.

    Attributes:
      location: where it lies, for messages.
      config: the student's architecture, as far as the form states it or its shapes show it.
      vocabulary: `data.sentencepiece_model.describe`'s answer where the form carries a vocabulary.
      description: what a checkpoint of ours says of itself; None in other forms.
      decoder_starts: the decoder's first input token by task, of a student of ours in another form
        that shares its encoder; None: a prefix of the input tells the task.
      absent_ids: of a whole vocabulary what the student was trained without, and must not say.
      warnings: what was taken for granted and the user should know, a sentence each.
    """

    location: str
    config: T5Config
    vocabulary: VocabularyDescription | None = None
    description: RunDescription | None = None
    decoder_starts: Mapping[str, int] | None = None
    absent_ids: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()

    @abc.abstractmethod
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Path → shape of every parameter there, without reading one; paths that are not a T5's
        by the names that the form itself uses.
        """

    @abc.abstractmethod
    def _read(self, path: str, index: Index | None) -> np.ndarray:
        """`read`, for one form; whether the values are finite is looked at there."""

    def read(self, path: str, index: Index | None = None) -> np.ndarray:
        """A parameter, or the part of it that `index` names, as float32.

        Raises:
          UserError: the file is truncated or otherwise unreadable, or the values are NaN or
            infinite; names the tensor.
        """
        value = self._read(path, index)
        # The extremes are NaN where any value is; nothing as large as the tensor is made.
        if value.size and not (np.isfinite(value.min()) and np.isfinite(value.max())):
            name, shape = self.stored_as(path, self.shapes().get(path, value.shape))
            raise UserError(
                f"{self.location}: tensor {name} of shape {shape} holds values that are NaN or "
                "infinite, expected finite ones; the training that wrote it diverged, its values "
                "overflowed float16, or the file is damaged: take another checkpoint"
            )
        return value

    def stored_as(self, path: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...]]:
        """What the form itself calls a parameter, and how it writes its shape; for messages."""
        return path, shape

    def check(self, config: T5Config) -> None:
        """Compares every shape with those of a student of `config`, reading no values.

        Raises:
          UserError: a tensor missing, unknown, or of another shape; with what was expected.
        """
        if type(self.config) is not type(config):
            raise UserError(
                f"{self.location} is a {name_kind(self.config)}, expected a {name_kind(config)}; "
                "STUDENT (or --student) names the kind and size"
            )
        found = dict(self.shapes())
        for path, shape, _ in list_parameters(config):
            name, expected = self.stored_as(path, shape)
            if path not in found:
                raise UserError(
                    f"{self.location} has no tensor {name}; expected one of shape {expected}. Is "
                    "it a checkpoint of another model or version, or a part of one?"
                )
            got = found.pop(path)
            if got != shape:
                raise UserError(
                    f"{self.location}: tensor {name} has shape {self.stored_as(path, got)[1]}, "
                    f"expected {expected}; is it a T5 of another size or version?"
                )
        if found:
            path = min(found)
            raise UserError(
                f"{self.location}: tensor {path:.200} of shape {found[path]} has no place in the "
                f"student ({len(found)} such tensors); is it a T5 of another size or version?"
            )


def name_kind(config: T5Config) -> str:
    """What a student is, in words."""
    return "T5Gemma 2" if isinstance(config, T5GemmaConfig) else "T5"


def check_computation(source: ParameterSource, config: T5Config) -> None:
    """Compares what no shape shows, for forms that state it.

    Raises:
      UserError: a student of `config` would compute something else with the parameters.
    """
    of_kind = _OF_T5GEMMA if isinstance(config, T5GemmaConfig) else _OF_T5
    for name in (*_COMPUTATION, *of_kind):
        got, expected = getattr(source.config, name), getattr(config, name)
        if got != expected:
            raise UserError(
                f"{source.location} has {name}={got!r}, expected {expected!r}; is it a T5 of "
                "another version?"
            )


def check_vocabulary(source: ParameterSource, vocabulary: VocabularyDescription) -> None:
    """A vocabulary must fit into the embedding.

    Raises:
      UserError: it has more pieces than the embedding has rows, or is one of a trimmed student of
        another size.
    """
    rows = source.config.vocab_size
    if is_trimmed(vocabulary) and vocabulary["size"] != rows:
        raise UserError(
            f"the vocabulary is trimmed to {vocabulary['size']:,} ids, {source.location} embeds "
            f"{rows:,}; is it another student's? --vocabulary_file names it"
        )
    if vocabulary["size"] > source.config.vocab_size:
        raise UserError(
            f"the vocabulary has {vocabulary['size']} pieces, {source.location} embeds "
            f"{source.config.vocab_size}; is it another model's? --vocabulary_file names it"
        )


def compare_vocabularies(
    source: ParameterSource, vocabulary: VocabularyDescription, vocabulary_file: str
) -> str | None:
    """What a run should know whose vocabulary may be another than that of what it starts from.

    Args:
      source: the checkpoint; it may not say which vocabulary it has.
      vocabulary: the run's.
      vocabulary_file: where the run has it from, for messages.

    Returns:
      A line, or None where they are the same, or where nothing is known.

    Raises:
      UserError: they are not the same, and one of them is trimmed.
    """
    theirs = source.vocabulary
    if theirs is None or theirs.get("sha256") == vocabulary.get("sha256"):
        return None
    other = (
        f"{source.location} comes with another vocabulary than VOCABULARY_FILE={vocabulary_file!r}"
    )
    if is_trimmed(theirs) or is_trimmed(vocabulary):
        raise UserError(
            f"INITIAL_CHECKPOINT_PATH: {other}, and one of them is trimmed: row by row student and "
            "vocabulary are one; set VOCABULARY_FILE to the checkpoint's own (a trimmed one is the "
            f"{TRIMMED_FILE} that convert wrote beside it)"
        )
    return f"{other}; its tokens mean something else"
