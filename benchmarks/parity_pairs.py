"""What `parity.py` compares: our T5 and transformers' with the same weights, and batches of text.

Enters: a size and a version of T5; a folder of prepared records and a vocabulary. Leaves: `Pair`s,
`Examples` and the batches made of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import transformers
from parity_state import tree_of_state

from distill_sbs import constants
from distill_sbs.convert.huggingface import settings
from distill_sbs.model import config as configs
from distill_sbs.model import network

EXAMPLES = 64


# ---------------------------------- weights ----------------------------------


def student_config(size: str, version: str) -> configs.T5Config:
    """The student's: Base as published, `shallow` with a quarter of its layers, or `tiny`."""
    name = {"1.0": "t5_1_0_base", "1.1": "t5_1_1_base"}[version]
    changes: dict[str, Any] = {"dropout_rate": 0.0}
    if size == "shallow":
        changes |= dict(num_encoder_layers=3, num_decoder_layers=3)
    elif size == "tiny":
        # No two dimensions are alike, nor are the stacks, so a mix-up has no right shape.
        changes |= dict(emb_dim=64, num_heads=4, head_dim=8, mlp_dim=96)
        changes |= dict(num_encoder_layers=3, num_decoder_layers=2)
    return configs.named_config(name, **changes)


def random_model(config: configs.T5Config, as_drawn: bool = False, seed: int = 0) -> Any:
    """`transformers`' T5 with weights by its own initialiser.

    Unless they are wanted `as_drawn`, some are scaled, so that a mistake has nowhere to hide: as
    drawn, all layer norms are 1, position biases next to nothing, a tied model repeats its last
    token for ever whatever its input, and hardly an output ends. Norms get noise of 0.3; biases
    are scaled to 1, embeddings to 0.3, a tied model's attention to its input by 4, logits to
    about 1 (as by T5's own initialiser; transformers gives v1.1 Base 28), and the end token's
    row so that it is likely now and then.
    """
    values = transformers.T5Config(**settings.make_settings(config))
    # transformers 5 sets it for every T5, and would then draw v1.1 no projection of its own.
    values.tie_word_embeddings = config.logits_via_embedding
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = transformers.T5ForConditionalGeneration(values).eval()
        model.set_input_embeddings(model.shared)
        if as_drawn:
            return model
        for name, parameter in model.named_parameters():
            if "layer_norm" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
            elif "relative_attention_bias" in name:
                parameter.mul_(config.emb_dim**0.5)
            elif config.logits_via_embedding and name.endswith(
                ("EncDecAttention.q.weight", "EncDecAttention.o.weight")
            ):
                parameter.mul_(4.0)
        model.shared.weight.mul_(0.3)
        if config.logits_via_embedding:
            model.decoder.final_layer_norm.weight.mul_(1 / 0.3)
        else:
            model.lm_head.weight.mul_(config.emb_dim**-0.5)
        model.lm_head.weight[constants.EOS_ID].mul_(4.0 if config.logits_via_embedding else 6.0)
    return model


@dataclasses.dataclass
class Pair:
    """The same weights on both sides.

    Attributes:
      theirs: transformers' model.
      ours: ours.
      params: its parameters.
    """

    theirs: Any
    ours: network.Transformer
    params: Any

    @classmethod
    def random(cls, size: str, version: str, as_drawn: bool = False) -> Pair:
        """A pair with the weights of `random_model`."""
        theirs = random_model(student_config(size, version), as_drawn)
        # Read back from transformers' description: that way is compared as well.
        config = settings.read_settings(theirs.config.to_dict()).config
        assert config == student_config(size, version), config
        state = {name: value.detach().numpy() for name, value in theirs.state_dict().items()}
        params = jax.device_put(tree_of_state(state, config))
        return cls(theirs, network.Transformer(config), params)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of `expected`."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def worst(differences: Mapping[str, float]) -> tuple[float, str]:
    """The largest, and its name; NaN is larger than everything."""
    name = max(differences, key=lambda each: np.nan_to_num(differences[each], nan=np.inf))
    return differences[name], name


def worst_tensor(
    found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]
) -> tuple[float, str]:
    """The largest relative difference of a tensor, and its name."""
    assert found.keys() == expected.keys(), found.keys() ^ expected.keys()
    return worst({name: relative(found[name], value) for name, value in expected.items()})


# ---------------------------------- batches ----------------------------------


class Examples(NamedTuple):
    """Sequences with their end tokens, int32 [N, width], 0 after them. Row i is example i."""

    label_inputs: np.ndarray
    labels: np.ndarray
    rationale_inputs: np.ndarray
    rationales: np.ndarray

    def rows(self, start: int, stop: int) -> Examples:
        """Some of the examples, at the same widths."""
        return Examples(*(each[start:stop] for each in self))


def pad(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Lists of tokens as one array, 0 after each."""
    width = max(map(len, rows))
    return np.array([[*row, *[constants.PAD_ID] * (width - len(row))] for row in rows], np.int32)


def random_examples(count: int = EXAMPLES) -> Examples:
    """Random tokens of about CommonsenseQA's lengths, for where its text is not at hand."""
    generator = np.random.default_rng(0)

    def rows(shortest: int, longest: int) -> np.ndarray:
        lengths = generator.integers(shortest, longest + 1, count)
        return pad([[*generator.integers(2, 32000, n - 1), constants.EOS_ID] for n in lengths])

    inputs = rows(30, 62)
    return Examples(inputs, rows(2, 5), inputs, rows(15, 41))


def cqa_examples(data_dir: str | None, vocabulary_file: str, count: int = EXAMPLES) -> Examples:
    """The first training rows of CommonsenseQA, by the project's own SeqIO tasks.

    Args:
      data_dir: folder of prepared records; None is the default one.
      vocabulary_file: T5's SentencePiece model.
      count: examples; those without a rationale are passed over.

    Raises:
      UserError: CommonsenseQA is not prepared, or the vocabulary cannot be read.
    """
    from distill_sbs.data import registration, settings, vocabulary
    from distill_sbs.data.records import tfrecords

    chosen = settings.DataSettings(data_dir=data_dir, vocabulary_file=vocabulary_file)
    tfrecords.split_files(chosen.folder, "cqa", "train")
    vocabulary.load(vocabulary_file)
    registration.load_task_files()
    before = settings.current()
    settings.use(chosen)
    try:
        tasks = {}
        for name in ("cqa_label", "cqa_rationale_palm"):
            # The published implementation's lengths, which no example of CommonsenseQA reaches.
            dataset = registration.get_mixture_or_task(name).get_dataset(
                {"inputs": 1024, "targets": 256, "task_ids": 256}, split="train", shuffle=False
            )
            tasks[name] = {
                int(example[constants.INDEX]): (
                    example[constants.INPUTS].tolist(),
                    example[constants.TARGETS].tolist(),
                )
                for example in dataset.take(count + 10).as_numpy_iterator()
            }
    finally:
        settings.use(before)
    labels, rationales = tasks["cqa_label"], tasks["cqa_rationale_palm"]
    kept = sorted(labels.keys() & rationales.keys())[:count]
    columns = zip(*((*labels[index], *rationales[index]) for index in kept), strict=True)
    return Examples(*map(pad, columns))


def both_tasks(examples: Examples) -> dict[str, np.ndarray]:
    """Label rows, then rationale rows of the same examples, as our model's features."""

    def stack(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        width = max(first.shape[1], second.shape[1])
        return np.concatenate(
            [np.pad(each, ((0, 0), (0, width - each.shape[1]))) for each in (first, second)]
        )

    targets = stack(examples.labels, examples.rationales)
    tasks = (constants.LABEL_TASK_ID, constants.RATIONALE_TASK_ID)
    task_ids = np.repeat(np.array(tasks, np.int32), len(examples.labels))[:, None]
    return {
        constants.ENCODER_INPUT_TOKENS: stack(examples.label_inputs, examples.rationale_inputs),
        constants.DECODER_INPUT_TOKENS: np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        constants.DECODER_TARGET_TOKENS: targets,
        constants.DECODER_TASK_IDS: np.where(targets > 0, task_ids, 0).astype(np.int32),
    }


def torch_inputs(inputs: np.ndarray) -> dict[str, Any]:
    """Tokens [B, S] as transformers' model takes them."""
    tokens = torch.tensor(inputs, dtype=torch.long)
    return {"input_ids": tokens, "attention_mask": (tokens > 0).long()}


def torch_labels(targets: np.ndarray) -> Any:
    """Targets [B, T] as transformers' loss takes them."""
    return torch.tensor(np.where(targets > 0, targets, -100), dtype=torch.long)
