"""A student with all it needs: configuration, vocabulary, prefixes, parameters.

Enters: a run's settings (when one is trained), or any checkpoint folder (when one is used).
Leaves: the description that a checkpoint carries, and from it a `Student` that answers texts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import seqio
from jax.sharding import Mesh

from distill_sbs import constants
from distill_sbs.checkpoint import checkpointer
from distill_sbs.data import vocabulary
from distill_sbs.distributed import processes, sharding
from distill_sbs.errors import UserError
from distill_sbs.inference import batch_decoder
from distill_sbs.model import config as configs
from distill_sbs.model.network import Transformer, initial_parameters


def student_config(
    name: str, overrides: Mapping[str, Any], loaded_vocabulary: seqio.Vocabulary
) -> configs.T5Config:
    """The student's configuration, checked against the vocabulary.

    Raises:
      UserError: an unknown size or field, or a vocabulary larger than the embedding.
    """
    try:
        config = configs.named_config(name, **overrides)
    except ValueError as error:
        raise UserError(f"STUDENT={name!r}, STUDENT_OVERRIDES: {error}") from error
    if loaded_vocabulary.vocab_size > config.vocab_size:
        raise UserError(
            f"the vocabulary has {loaded_vocabulary.vocab_size} pieces, the student {name} embeds "
            f"{config.vocab_size}; set STUDENT_OVERRIDES = {{'vocab_size': …}} to no less"
        )
    return config


# Settings of the devices that a run happens to have; they change no mean and no parameter's shape.
_MAY_CHANGE = ("run.num_microbatches", "student.remat_policy")


def describe_run(
    config: configs.T5Config,
    vocabulary_file: str,
    mixture: str,
    task_feature_lengths: Mapping[str, int],
    max_decode_tokens: int,
    run: Mapping[str, Any],
) -> dict[str, Any]:
    """What every checkpoint of a run says of itself; JSON-able."""
    return {
        "format_version": checkpointer.FORMAT_VERSION,
        "student": config.to_dict(),
        "vocabulary": vocabulary.describe(vocabulary_file),
        "prefixes": {"label": constants.LABEL_PREFIX, "rationale": constants.RATIONALE_PREFIX},
        "mixture": mixture,
        "task_feature_lengths": dict(task_feature_lengths),
        "max_decode_tokens": max_decode_tokens,
        "run": dict(run),
    }


def check_same_run(model_dir: str, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises UserError, naming each difference, where MODEL_DIR holds another run.

    Mesh, microbatches and remat may change: a run goes on with other devices.
    """

    def identity(description: Mapping[str, Any]) -> dict[str, Any]:
        flat = {"MIXTURE_OR_TASK_NAME": description["mixture"]}
        flat["vocabulary"] = description["vocabulary"].get("sha256", "bytes")[:12]
        for part in ("student", "task_feature_lengths", "run"):
            flat.update({f"{part}.{name}": value for name, value in description[part].items()})
        # JSON has no tuples.
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in flat.items()
        }

    before, after = identity(saved), identity(wanted)
    differences = [
        f"{name}: {before.get(name)!r} there, {after.get(name)!r} now"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and name not in _MAY_CHANGE
    ]
    if differences:
        raise UserError(
            f"MODEL_DIR={model_dir} holds a different run ({'; '.join(differences)}); "
            "choose another MODEL_DIR, or delete that one"
        )


@dataclasses.dataclass(frozen=True)
class Student:
    """A trained student, ready to answer.

    Attributes:
      description: what its checkpoint says of it.
      model: the network.
      params: its parameters, on `mesh`.
      vocabulary: tokens from and to text.
      mesh: the devices.
      step_folder: where it came from.
    """

    description: Mapping[str, Any]
    model: Transformer
    params: Any
    vocabulary: seqio.Vocabulary
    mesh: Mesh
    step_folder: str

    @classmethod
    def load(
        cls, checkpoint_path: str, num_model_partitions: int = 1, fsdp: bool | None = None
    ) -> Student:
        """Loads a student from a MODEL_DIR, its checkpoints folder, or one step's folder.

        Args:
          checkpoint_path: where it is.
          num_model_partitions: devices that share one copy of the parameters.
          fsdp: split them over the other devices too; None: where they are large.
        """
        step_folder = checkpointer.find_step_folder(checkpoint_path)
        description = checkpointer.read_description(step_folder)
        config = configs.T5Config.from_dict(description["student"])
        loaded = vocabulary.load(vocabulary.from_description(description["vocabulary"]))
        processes.check_joined()
        mesh = sharding.make_mesh(num_model_partitions)
        shapes = jax.eval_shape(lambda: initial_parameters(config, jax.random.key(0)))
        abstract = sharding.abstract_parameters(mesh, shapes, fsdp)
        params = checkpointer.restore_parameters(step_folder, abstract)
        return cls(description, Transformer(config), params, loaded, mesh, str(step_folder))

    def decoder(self, batch_size: int = 128, beam_size: int = 1) -> batch_decoder.Decoder:
        """A decoder for this student; keep it, for it holds what was compiled."""
        limit = self.description["max_decode_tokens"]
        return batch_decoder.Decoder(self.model, self.mesh, limit, batch_size, beam_size)

    def tokens(self, text: str, task: str) -> np.ndarray:
        """Token ids [S] of a text without prefix, for task 'label' or 'rationale'."""
        prefixed = self.description["prefixes"][task] + text
        limit = self.description["task_feature_lengths"][constants.INPUTS]
        ids = vocabulary.encode_text(self.vocabulary, prefixed)[: limit - 1]
        return np.array([*ids, constants.EOS_ID], np.int32)

    def text(self, tokens: np.ndarray) -> str:
        """The text of output tokens [L], up to the end token."""
        return self.vocabulary.decode(tokens.tolist())

    def answer(
        self,
        texts: Sequence[str],
        task: str = "label",
        decoder: batch_decoder.Decoder | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[str]:
        """Answers texts without prefixes: labels, or rationales.

        Args:
          texts: the inputs.
          task: 'label' or 'rationale'.
          decoder: from `decoder()`; a new one where none is given.
          advance: told how many more are done.
        """
        inputs = [self.tokens(text, task) for text in texts]
        outputs = (decoder or self.decoder())(self.params, inputs, advance)
        return [self.text(output) for output in outputs]
