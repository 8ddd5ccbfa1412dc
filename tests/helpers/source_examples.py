"""Small checkpoints of every form that the tests of conversion share."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import weakref
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pytest
from flax import traverse_util
from layer_stacking import unstack_layers
from model_examples import student, t5gemma
from parity_state import state_of_tree
from safetensors import numpy as safetensors

from distill_sbs import constants
from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.convert import source as sources
from distill_sbs.convert.huggingface import settings
from distill_sbs.convert.open import open_source
from distill_sbs.errors import UserError
from distill_sbs.model.config import T5Config
from distill_sbs.model.parameters import list_parameters

BYTES = {"kind": "bytes", "size": 259}  # data.vocabulary.describe("bytes")
# 48 rows do not hold the 259 ids of bytes.
BYTE_SIZED = {"vocab_size": 260}

V1_0 = {"mlp_activations": ("relu",), "logits_via_embedding": True}
UNEQUAL = {"num_decoder_layers": 3}


class Memory(sources.ParameterSource):
    """Random parameters; counts how many of the arrays that it gave are alive at once."""

    location = "memory"

    def __init__(self, make: Any = student, **changes: Any) -> None:
        model, params = make(**changes)
        self.config = model.config
        self.values = traverse_util.flatten_dict(unstack_layers(params), sep="/")
        self.alive = self.most_alive = self.reads = 0
        self.fails_at: int | None = None

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {path: array.shape for path, array in self.values.items()}

    def _read(self, path: str, index: sources.Index | None) -> np.ndarray:
        self.reads += 1
        if self.reads == self.fails_at:
            raise OSError("the disk is gone")
        given = np.array(self.values[path] if index is None else self.values[path][index])
        self.alive += 1
        self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(given, self._gone)
        return given

    def _gone(self) -> None:
        self.alive -= 1


def t5gemma_memory(**changes: Any) -> Memory:
    """Random parameters of a T5Gemma."""
    return Memory(t5gemma, **changes)


class Drawn(sources.ParameterSource):
    """Random parameters of any size, drawn when they are read."""

    location = "random"

    def __init__(self, config: T5Config) -> None:
        self.config = config

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {each.path: each.shape for each in list_parameters(self.config)}

    def _read(self, path: str, index: sources.Index | None) -> np.ndarray:
        generator = np.random.default_rng(zlib.crc32(path.encode()))
        value = generator.standard_normal(self.shapes()[path], np.float32)
        return value if index is None else value[index]


def assert_same_values(found: sources.ParameterSource, expected: sources.ParameterSource) -> None:
    """The same parameters to the bit, whole and in parts."""
    found.check(expected.config)
    for path, shape in expected.shapes().items():
        array = expected.read(path)
        np.testing.assert_array_equal(found.read(path), array, err_msg=path, strict=True)
        index = tuple(slice(size // 3, None if size < 9 else size - 2) for size in shape)
        part = found.read(path, index)
        np.testing.assert_array_equal(part, array[index], err_msg=path, strict=True)


def stacked_like(source: sources.ParameterSource) -> Any:
    """The tree of `source.config` as shapes on the one device."""
    from distill_sbs.model import network

    tree = jax.eval_shape(lambda: network.initial_parameters(source.config, jax.random.key(0)))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree
    )


def state_of(source: Memory) -> dict[str, np.ndarray]:
    """HuggingFace's tensors of a source, made by the conversion of whole trees."""
    tree = traverse_util.unflatten_dict(source.values, sep="/")
    config = dataclasses.replace(source.config, scan_layers=False)
    return state_of_tree(tree, config)


def published_values(config: T5Config, **changes: Any) -> dict[str, Any]:
    """What `config.json` said before transformers 5: T5 1.0 nothing of tying, v1.1 that it is not.

    A value of None takes the field out.
    """
    values = settings.make_settings(config)
    if config.logits_via_embedding:
        del values["tie_word_embeddings"]
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


def write_folder(
    folder: pathlib.Path, source: Memory, shards: int = 1, dtype: Any = np.float32, **changes: Any
) -> pathlib.Path:
    """A folder of HuggingFace's, written by safetensors itself; `changes` are of `config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: array.astype(dtype) for name, array in state_of(source).items()}
    values = published_values(source.config, **changes)
    (folder / "config.json").write_text(json.dumps(values))
    return write_state(folder, state, shards)


def write_state(
    folder: pathlib.Path, state: Mapping[str, np.ndarray], shards: int = 1
) -> pathlib.Path:
    """Tensors in one file, or dealt out to several with an index."""
    if shards == 1:
        safetensors.save_file(dict(state), folder / "model.safetensors")
        return folder
    places = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        names = sorted(state)[shard::shards]
        safetensors.save_file({name: state[name] for name in names}, folder / file)
        places.update(dict.fromkeys(names, file))
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def description_of(config: T5Config) -> RunDescription:
    """What a run of ours would say of itself."""
    return RunDescription(
        student=config,
        vocabulary=BYTES,
        mixture="tiny_dss_gpt",
        task_feature_lengths={
            constants.INPUTS: 32,
            constants.TARGETS: 16,
            constants.TASK_IDS: 16,
        },
        max_decode_tokens=8,
    )


def refusal(folder: pathlib.Path) -> str:
    """What opening and checking a checkpoint says, which is one line of bounded length."""
    with pytest.raises(UserError) as error:
        source = open_source(str(folder))
        source.check(source.config)
        for path in source.shapes():
            source.read(path)
    message = str(error.value)
    assert "\n" not in message and len(message) < 1000, message
    return message
