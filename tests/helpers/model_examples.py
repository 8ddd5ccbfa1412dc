"""Small students and batches that the tests of the model share."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from distill_sbs.data.batches.layout import Sequence2Sequence
from distill_sbs.model import config as configs
from distill_sbs.model import network

SMALL = configs.T5Config(
    vocab_size=48,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.0,
)

# Seven layers, of which the sixth sees all; a window of four, shorter than the batches below.
SMALL_T5GEMMA = configs.T5GemmaConfig(
    vocab_size=64,
    emb_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=24,
    num_encoder_layers=7,
    num_decoder_layers=7,
    dropout_rate=0.0,
    sliding_window=4,
    query_scale_dim=8,
    end_of_image_id=60,
)

# STUDENT_OVERRIDES of whole runs, beside a vocabulary's size: quick to compile.
ONE_LAYER = {
    "emb_dim": 16,
    "num_heads": 2,
    "head_dim": 8,
    "mlp_dim": 32,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
}


def draw_sequence(random: np.random.Generator, task: int, vocab_size: int) -> Sequence2Sequence:
    """A label of two tokens (task 1) or a rationale of 4 to 8 (task 2), of 4 to 8 input tokens."""
    sizes = (int(random.integers(4, 9)), 2 if task == 1 else int(random.integers(4, 9)))
    inputs, targets = (np.append(random.integers(2, vocab_size, size - 1), 1) for size in sizes)
    task_ids = np.full(sizes[1], task, np.int32)
    return Sequence2Sequence(inputs.astype(np.int32), targets.astype(np.int32), task_ids)


@functools.cache
def shapes_of(config: configs.T5Config) -> Any:
    """The tree of a student's parameters, as shapes; tracing the network takes a second."""
    return jax.eval_shape(lambda: network.initial_parameters(config, jax.random.key(0)))


def student(seed: int = 0, **changes: Any) -> tuple[network.Transformer, dict[str, Any]]:
    """A small student and random parameters of about the initial size, all of them random."""
    return _draw(dataclasses.replace(SMALL, **changes), seed)


def t5gemma(seed: int = 0, **changes: Any) -> tuple[network.Transformer, dict[str, Any]]:
    """As `student`, a T5Gemma."""
    return _draw(dataclasses.replace(SMALL_T5GEMMA, **changes), seed)


def _draw(config: configs.T5Config, seed: int) -> tuple[network.Transformer, dict[str, Any]]:
    tree = shapes_of(config)
    one = 0 if isinstance(config, configs.T5GemmaConfig) else 1  # T5Gemma adds it to a scale
    generator = np.random.default_rng(seed)

    def draw(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = generator.normal(size=leaf.shape).astype(np.float32)
        if path[-1].key == "scale":
            return one + np.float32(0.3) * noise
        return noise / np.float32(leaf.shape[-2] ** 0.5 if path[-1].key == "kernel" else 1)

    return network.Transformer(config), jax.tree_util.tree_map_with_path(draw, tree)


def batch(
    rows: int = 3, inputs: int = 9, targets: int = 6, seed: int = 0, vocab_size: int = 48
) -> dict[str, np.ndarray]:
    """Model features of `rows` sequences of mixed lengths, padded; task ids 1 and 2 in turn."""
    generator = np.random.default_rng(seed)

    def tokens(width: int) -> np.ndarray:
        values = generator.integers(2, vocab_size, (rows, width))
        lengths = generator.integers(2, width + 1, rows)
        lengths[0] = width
        values[np.arange(width) >= lengths[:, None]] = 0
        values[np.arange(rows), lengths - 1] = 1
        return values.astype(np.int32)

    target_tokens = tokens(targets)
    task = np.arange(rows)[:, None] % 2 + 1
    return {
        "encoder_input_tokens": tokens(inputs),
        "decoder_input_tokens": shift_right(target_tokens),
        "decoder_target_tokens": target_tokens,
        "decoder_task_ids": np.where(target_tokens > 0, task, 0).astype(np.int32),
    }


def shift_right(tokens: np.ndarray) -> np.ndarray:
    """Decoder inputs of targets [B, T]: 0, then all but the last."""
    return np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]


def packed(examples: dict[str, np.ndarray], width: int, target_width: int) -> dict[str, np.ndarray]:
    """The sequences of a batch in one row, one after another, with segment ids."""
    names = (
        "encoder_input_tokens",
        "decoder_input_tokens",
        "decoder_target_tokens",
        "decoder_task_ids",
    )
    row: dict[str, list[int]] = {name: [] for name in names}
    row["encoder_segment_ids"], row["decoder_segment_ids"] = [], []
    for index in range(len(examples[names[0]])):
        length = int((examples["encoder_input_tokens"][index] > 0).sum())
        target_length = int((examples["decoder_target_tokens"][index] > 0).sum())
        for name in names:
            end = length if name == names[0] else target_length
            row[name] += examples[name][index, :end].tolist()
        row["encoder_segment_ids"] += [index + 1] * length
        row["decoder_segment_ids"] += [index + 1] * target_length
    widths = {name: width if name.startswith("encoder") else target_width for name in row}
    return {
        name: np.array([values + [0] * (widths[name] - len(values))], np.int32)
        for name, values in row.items()
    }
