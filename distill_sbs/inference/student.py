"""A student with all it needs: configuration, vocabulary, prefixes, parameters.

Enters: any checkpoint folder. Leaves: a `Student` that answers texts, by what the checkpoint says
of itself.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from distill_sbs import constants
from distill_sbs.checkpoint import orbax_adapter, steps
from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.data import tokenizer as tokenizers
from distill_sbs.distributed import processes, sharding
from distill_sbs.errors import UserError
from distill_sbs.inference import batch_decoder
from distill_sbs.model import label_trie, scoring
from distill_sbs.model.config import T5GemmaConfig
from distill_sbs.model.network import Transformer, initial_parameters
from distill_sbs.model.parameters import Params


@dataclasses.dataclass(frozen=True)
class Student:
    """A trained student, ready to answer.

    Attributes:
      description: what its checkpoint says of it.
      model: the network.
      params: its parameters, on `mesh`.
      tokenizer: tokens from and to text.
      mesh: the devices.
      step_folder: where it came from.
    """

    description: RunDescription
    model: Transformer
    params: Params
    tokenizer: tokenizers.Tokenizer
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

        Raises:
          DamagedError: a file of the step is not as it was written.
          UserError: there is no checkpoint.
        """
        step_folder = steps.find_step_folder(checkpoint_path)
        steps.check_step(step_folder)
        description = steps.read_description(step_folder)
        config = description.student
        loaded = tokenizers.from_description(description.vocabulary)
        processes.check_joined()
        mesh = sharding.make_mesh(num_model_partitions)
        shapes = jax.eval_shape(lambda: initial_parameters(config, jax.random.key(0)))
        abstract = sharding.abstract_parameters(mesh, shapes, fsdp)
        params = orbax_adapter.restore_parameters(step_folder, abstract)
        if jax.default_backend() != "tpu":
            # Parameters are the same, and the kernel would be interpreted here.
            config = dataclasses.replace(config, attention="xla")
        return cls(description, Transformer(config), params, loaded, mesh, str(step_folder))

    def decoder(
        self, batch_size: int = 128, beam_size: int = 1, task: str = "label"
    ) -> batch_decoder.Decoder:
        """A decoder for this student; keep it, for it holds what was compiled.

        Args:
          batch_size: inputs at a time.
          beam_size: 1 is greedy.
          task: 'label' or 'rationale', which may be longer.
        """
        limit = self.description.longest_output(task)
        return batch_decoder.Decoder(self.model, self.mesh, limit, batch_size, beam_size)

    def score(
        self,
        inputs: Sequence[np.ndarray],
        labels: Sequence[str],
        batch_size: int = 128,
        advance: Callable[[int], None] = lambda _: None,
    ) -> np.ndarray:
        """How likely each label is as the answer to each input: float32 [inputs, labels].

        Args:
          inputs: token ids, as `tokens` gives them.
          labels: the candidates; each is compared whole, its end token included.
          batch_size: inputs at a time.
          advance: told how many more inputs are done.
        """
        devices = sharding.data_parallelism(self.mesh)
        packed = scoring.pack_labels(
            [self._label_tokens(label) for label in labels],
            self.description.decoder_starts["label"],
        )
        run = jax.jit(
            lambda params, tokens: scoring.score_labels(self.model, params, tokens, packed),
            out_shardings=sharding.replicated(self.mesh),
        )
        rows = batch_decoder.map_batches(
            functools.partial(run, self.params),
            inputs,
            -(-batch_size // devices) * devices,
            self.mesh,
            advance,
        )
        return np.array(rows).reshape(-1, packed.labels)

    def choose(
        self,
        inputs: Sequence[np.ndarray],
        labels: Sequence[str],
        batch_size: int = 128,
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[str]:
        """The label that greedy decoding says where it can say nothing else, for each input.

        Args:
          inputs: token ids, as `tokens` gives them.
          labels: the candidates.
          batch_size: inputs at a time.
          advance: told how many more inputs are done.

        Raises:
          UserError: two labels are the same to the vocabulary.
        """
        devices = sharding.data_parallelism(self.mesh)
        try:
            tokens = [self._label_tokens(label) for label in labels]
            trie = label_trie.build_trie(tokens, self._label_start())
        except label_trie.IndistinctLabelsError as error:
            first, second = (labels[place] for place in error.places)
            raise UserError(
                f"labels {first!r} and {second!r} are the same tokens to the student, or one "
                "begins with the other and its end, expected labels that differ; leave one out"
            ) from None
        run = jax.jit(
            lambda params, tokens: label_trie.decode_labels(self.model, params, tokens, trie),
            out_shardings=sharding.replicated(self.mesh),
        )
        places = batch_decoder.map_batches(
            functools.partial(run, self.params),
            inputs,
            -(-batch_size // devices) * devices,
            self.mesh,
            advance,
        )
        return [labels[int(place)] for place in places]

    def _label_start(self) -> int:
        """The token that the decoder starts a label from, as the student embeds it."""
        start = self.description.decoder_starts["label"]
        config = self.model.config
        if start == constants.PAD_ID and isinstance(config, T5GemmaConfig):
            return config.start_id  # token 0 stands for it in batches
        return start

    def _label_tokens(self, label: str) -> np.ndarray:
        ids = tokenizers.encode_text(self.tokenizer, label)
        return np.array([*ids, constants.EOS_ID], np.int32)

    def tokens(self, text: str, task: str) -> np.ndarray:
        """Token ids [S] of a text without prefix, for task 'label' or 'rationale'."""
        prefixed = self.description.prefixes[task] + text
        limit = self.description.task_feature_lengths[constants.INPUTS]
        ids = tokenizers.encode_text(self.tokenizer, prefixed)[: limit - 1]
        return np.array([*ids, constants.EOS_ID], np.int32)

    def text(self, tokens: np.ndarray) -> str:
        """The text of output tokens [L], up to the end token."""
        return self.tokenizer.decode(tokens.tolist())

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
          decoder: from `decoder()`, for this task; a new one where none is given.
          advance: told how many more are done.
        """
        return [self.text(output) for output in self.decode(texts, task, decoder, advance)]

    def decode(
        self,
        texts: Sequence[str],
        task: str = "label",
        decoder: batch_decoder.Decoder | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[np.ndarray]:
        """The tokens [L] of every answer, with the end token where it ended; as `answer`."""
        inputs = [self.tokens(text, task) for text in texts]
        start = self.description.decoder_starts[task]
        return (decoder or self.decoder(task=task))(self.params, inputs, advance, start)

    def explain(
        self,
        texts: Sequence[str],
        decoder: batch_decoder.Decoder | None = None,
        advance: Callable[[int], None] = lambda _: None,
    ) -> list[str]:
        """Explains texts without prefixes: a rationale for each, as `answer` with 'rationale'."""
        return self.answer(texts, "rationale", decoder, advance)
