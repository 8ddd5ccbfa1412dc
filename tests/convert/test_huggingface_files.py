"""HuggingFace's folders, without transformers; tests/convert/test_convert_transformers.py asks
it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re
import sys
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors import numpy as safetensors_numpy
from source_examples import (
    BYTES,
    UNEQUAL,
    V1_0,
    Memory,
    assert_same_values,
    published_values,
    state_of,
    write_folder,
    write_state,
)

from distill_sbs.convert.huggingface import tokenizer, weights
from distill_sbs.convert.huggingface.files import HuggingFaceSource, write_huggingface
from distill_sbs.errors import UserError

NAME = "encoder.block.1.layer.1.DenseReluDense.wo.weight"  # [16, 24]: out, in
PATH = "encoder/layers_1/mlp/wo/kernel"  # [24, 16]
HEAD = "lm_head.weight"


# ---------------------------------- reading ----------------------------------


@pytest.mark.parametrize("changes", [{}, V1_0, UNEQUAL], ids=["v1.1", "1.0", "unequal"])
@pytest.mark.parametrize("shards", [1, 3])
def test_reads_values_whole_and_in_parts(
    tmp_path: pathlib.Path, changes: dict[str, Any], shards: int
) -> None:
    memory = Memory(**changes)
    source = HuggingFaceSource(str(write_folder(tmp_path, memory, shards)))
    assert source.config == dataclasses.replace(memory.config, dropout_rate=0.0)
    assert source.shapes() == dict(memory.shapes())
    assert_same_values(source, memory)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_smaller_types_become_float32_exactly(tmp_path: pathlib.Path, dtype: Any) -> None:
    memory = Memory()
    memory.values = {
        path: array.astype(dtype).astype(np.float32) for path, array in memory.values.items()
    }
    assert_same_values(HuggingFaceSource(str(write_folder(tmp_path, memory, dtype=dtype))), memory)


def test_linear_layers_are_transposed(tmp_path: pathlib.Path) -> None:
    memory = Memory()
    source = HuggingFaceSource(str(write_folder(tmp_path, memory)))
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        theirs = file.get_tensor(NAME)
    assert theirs.shape == (16, 24)
    np.testing.assert_array_equal(source.read(PATH), theirs.T)
    np.testing.assert_array_equal(
        source.read(PATH, (slice(3, 7), slice(None))), theirs[:, 3:7].T, strict=True
    )


# As the files of these repositories on the hub say it.
PUBLISHED = {
    "t5-base": ({"n_positions": 512}, True, ("relu",)),
    "google/t5-v1_1-base": (
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "model_type": "t5"},
        False,
        ("gelu", "linear"),
    ),
    "google/flan-t5-base": (
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "n_positions": 512},
        False,
        ("gelu", "linear"),
    ),
    "google/byt5-small": (
        {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, "vocab_size": 48},
        False,
        ("gelu", "linear"),
    ),
    "google/mt5-base": (
        {"model_type": "mt5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
        False,
        ("gelu", "linear"),
    ),
    "mT5 of transformers 5": (
        {"model_type": "mt5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": True},
        False,
        ("gelu", "linear"),
    ),
    "v1.1 of transformers 5": (
        {
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": True,
            "scale_decoder_outputs": False,
        },
        False,
        ("gelu", "linear"),
    ),
    "1.0 of transformers 5": (
        {
            "feed_forward_proj": "relu",
            "tie_word_embeddings": True,
            "scale_decoder_outputs": True,
        },
        True,
        ("relu",),
    ),
    "another spelling": (
        {"feed_forward_proj": "gated-gelu_new", "tie_word_embeddings": False},
        False,
        ("gelu", "linear"),
    ),
}


@pytest.mark.parametrize(("values", "tied", "activations"), PUBLISHED.values(), ids=PUBLISHED)
def test_configurations_of_published_models(
    tmp_path: pathlib.Path, values: dict[str, Any], tied: bool, activations: tuple[str, ...]
) -> None:
    memory = Memory(logits_via_embedding=tied, mlp_activations=activations)
    plain = {"feed_forward_proj": None, "tie_word_embeddings": None, "model_type": None}
    source = HuggingFaceSource(str(write_folder(tmp_path, memory, **(plain | values))))
    assert source.config.logits_via_embedding == tied
    assert source.config.mlp_activations == activations
    assert_same_values(source, memory)


def test_a_head_that_differs_is_one_where_the_configuration_does_not_tell(
    tmp_path: pathlib.Path,
) -> None:
    memory = Memory()
    write_folder(tmp_path, memory, tie_word_embeddings=True)
    assert_same_values(HuggingFaceSource(str(tmp_path)), memory)
    write_folder(tmp_path, memory, tie_word_embeddings=True, scale_decoder_outputs=True)
    with pytest.raises(UserError, match=r"lm_head.weight differs.*scale_decoder_outputs=true"):
        HuggingFaceSource(str(tmp_path))


def test_a_head_that_is_left_out_is_the_embedding(tmp_path: pathlib.Path) -> None:
    memory = Memory()
    state = state_of(memory)
    del state[HEAD]
    # As transformers 5 writes it of a v1.1.
    write_folder(tmp_path, memory, tie_word_embeddings=True, scale_decoder_outputs=False)
    source = HuggingFaceSource(str(write_state(tmp_path, state)))
    source.check(memory.config)
    embedding = source.read("token_embedder/embedding")
    np.testing.assert_array_equal(source.read("decoder/logits_dense/kernel"), embedding.T)


def test_copies_and_the_table_that_nobody_reads(tmp_path: pathlib.Path) -> None:
    memory = Memory(**V1_0)
    state = state_of(memory)
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", HEAD):
        state[name] = state["shared.weight"]
    unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    state[unused] = np.zeros((32, 2), np.float32)
    write_folder(tmp_path, memory)
    source = HuggingFaceSource(str(write_state(tmp_path, state)))
    assert_same_values(source, memory)
    del state["shared.weight"]
    assert_same_values(HuggingFaceSource(str(write_state(tmp_path, state))), memory)
    state["encoder.embed_tokens.weight"] = state["encoder.embed_tokens.weight"] + 1
    state["shared.weight"] = state[HEAD]
    source = HuggingFaceSource(str(write_state(tmp_path, state)))
    with pytest.raises(UserError, match=r"encoder.embed_tokens.weight of shape \(48, 16\) differs"):
        source.check(memory.config)


# ---------------------------------- refusals ---------------------------------


def changed(folder: pathlib.Path, change: Any) -> HuggingFaceSource:
    """The folder's source after `change(state)`."""
    state = safetensors_numpy.load_file(folder / "model.safetensors")
    change(state)
    return HuggingFaceSource(str(write_state(folder, state)))


def test_tensors_that_do_not_fit_are_named_with_both_shapes(tmp_path: pathlib.Path) -> None:
    memory = Memory()
    write_folder(tmp_path, memory)
    source = changed(tmp_path, lambda state: state.update({NAME: np.zeros((16, 8), np.float32)}))
    message = f"{NAME} has shape (16, 8), expected (16, 24)"
    with pytest.raises(UserError, match=re.escape(message)):
        source.check(memory.config)
    source = changed(tmp_path, lambda state: state.pop(NAME))
    message = f"no tensor {NAME}; expected one of shape (16, 24)"
    with pytest.raises(UserError, match=re.escape(message)):
        source.check(memory.config)
    write_folder(tmp_path, memory)
    source = changed(tmp_path, lambda state: state.update(other=np.zeros((2, 3), np.float32)))
    with pytest.raises(UserError, match=r"tensor other of shape \(2, 3\) has no place"):
        source.check(memory.config)
    source = HuggingFaceSource(str(write_folder(tmp_path, memory)))
    with pytest.raises(UserError, match=r"shared.weight has shape \(48, 16\), expected \(50, 16\)"):
        source.check(dataclasses.replace(memory.config, vocab_size=50))
    with pytest.raises(UserError, match=r"max_distance=128, expected 64"):
        source.check(dataclasses.replace(memory.config, relative_attention_max_distance=64))


def test_a_truncated_file_is_named_with_its_tensor(tmp_path: pathlib.Path) -> None:
    file = write_folder(tmp_path, Memory()) / "model.safetensors"
    content = file.read_bytes()
    with safetensors.safe_open(file, "numpy") as opened:
        names = list(opened.keys())
    file.write_bytes(content[:-10])
    with pytest.raises(UserError, match=r"tensor .* of shape \(.*\) is not whole") as error:
        HuggingFaceSource(str(tmp_path))
    assert any(f"tensor {name} of shape" in str(error.value) for name in names)
    for cut in (content[:200], content[:5], b"", b"no safetensors"):
        file.write_bytes(cut)
        with pytest.raises(UserError, match=r"model.safetensors cannot be read.*copy it again"):
            HuggingFaceSource(str(tmp_path))


def test_shards_must_be_those_of_the_index(tmp_path: pathlib.Path) -> None:
    write_folder(tmp_path, Memory(), shards=3)
    index = tmp_path / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": {**places, "x": places[NAME]}}))
    with pytest.raises(UserError, match=f"{places[NAME]} has no tensor x"):
        HuggingFaceSource(str(tmp_path))
    index.write_text(json.dumps({"weight_map": places}))
    (tmp_path / places[NAME]).unlink()
    with pytest.raises(UserError, match=f"{places[NAME]} is missing; .* expects tensor"):
        HuggingFaceSource(str(tmp_path))
    index.write_text("{")
    with pytest.raises(UserError, match=r"index.json cannot be read"):
        HuggingFaceSource(str(tmp_path))


def test_tensors_of_integers_are_refused(tmp_path: pathlib.Path) -> None:
    write_folder(tmp_path, Memory())
    source = changed(tmp_path, lambda state: state.update({NAME: np.zeros((16, 24), np.int8)}))
    with pytest.raises(UserError, match=f"tensor {NAME} is of type I8, expected one of float32"):
        source.check(source.config)  # before anything is written


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "bert"}, "'bert' model; expected one of 't5', 'mt5'"),
        ({"d_kv": None}, "no 'd_kv'"),
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj='gelu'"),
    ],
)
def test_other_models_are_refused(
    tmp_path: pathlib.Path, values: dict[str, Any], message: str
) -> None:
    write_folder(tmp_path, Memory(), **values)
    with pytest.raises(UserError, match=message):
        HuggingFaceSource(str(tmp_path))


def test_folders_that_are_none(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=r"has no config.json"):
        HuggingFaceSource(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(published_values(Memory().config)))
    with pytest.raises(UserError, match=r"holds no weights; expected model.safetensors"):
        HuggingFaceSource(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        HuggingFaceSource(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="copy the folder here first"):
        HuggingFaceSource("gs://bucket/t5")


def test_a_hub_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"no-such-owner/t5: no such folder here, and Hugging"):
        HuggingFaceSource("no-such-owner/t5")


def test_bin_without_torch(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folder(tmp_path, Memory())
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r"torch, which is not installed.*model.safetensors"):
        HuggingFaceSource(str(tmp_path))


# ---------------------------------- writing ----------------------------------


@pytest.mark.parametrize("changes", [{}, V1_0, UNEQUAL], ids=["v1.1", "1.0", "unequal"])
@pytest.mark.parametrize("shard_bytes", [10**9, 3000])
def test_what_is_written_is_what_safetensors_reads(
    tmp_path: pathlib.Path, changes: dict[str, Any], shard_bytes: int
) -> None:
    memory = Memory(**changes)
    done: list[int] = []
    write_huggingface(
        memory,
        str(tmp_path),
        with_tokenizer=False,
        shard_bytes=shard_bytes,
        advance=done.append,
    )
    files = sorted(tmp_path.glob("*.safetensors"))
    found: dict[str, np.ndarray] = {}
    for file in files:
        found |= safetensors_numpy.load_file(file)
    expected = state_of(memory)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name, strict=True)
    assert sum(done) == sum(array.size for array in expected.values())
    assert memory.most_alive <= 2  # one that is written, one that is read
    if shard_bytes == 3000:
        assert all(
            file.stat().st_size <= 4000 or len(safetensors_numpy.load_file(file)) == 1
            for file in files
        )
        index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == 4 * sum(done)
        assert index["weight_map"].keys() == expected.keys()
        assert set(index["weight_map"].values()) == {file.name for file in files}
    else:
        assert [file.name for file in files] == ["model.safetensors"]
    assert_same_values(HuggingFaceSource(str(tmp_path)), memory)


def test_an_export_in_a_smaller_type_is_rounded(tmp_path: pathlib.Path) -> None:
    memory = Memory()
    write_huggingface(memory, str(tmp_path), with_tokenizer=False, dtype="bfloat16")
    with safetensors.safe_open(tmp_path / "model.safetensors", "numpy") as file:
        assert file.get_slice(NAME).get_dtype() == "BF16"
    rounded = memory.values[PATH].astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(HuggingFaceSource(str(tmp_path)).read(PATH), rounded)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"

    memory.values[PATH][0, 0] = 1e5
    message = rf"tensor {NAME} has values up to 1e\+05, expected at most 6.55e\+04 .*bfloat16"
    with pytest.raises(UserError, match=message):
        write_huggingface(memory, str(tmp_path / "half"), with_tokenizer=False, dtype="float16")


def test_no_vocabulary_no_tokenizer(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="carries no vocabulary; give --vocabulary_file"):
        write_huggingface(Memory(), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_block_that_huggingface_does_not_have(tmp_path: pathlib.Path) -> None:
    memory = Memory(mlp_activations=("relu", "linear"))
    with pytest.raises(UserError, match="no feed-forward block"):
        write_huggingface(memory, str(tmp_path / "new"), with_tokenizer=False)


# ---------------------------------- tokenizers -------------------------------


def test_extra_ids_where_they_fit() -> None:
    def extra_ids(vocab_size: int) -> int:
        files = tokenizer.make_tokenizer_files(BYTES, vocab_size, 512)
        settings = json.loads(files["tokenizer_config.json"])
        assert settings["tokenizer_class"] == "ByT5Tokenizer"
        return settings["extra_ids"]

    assert (extra_ids(384), extra_ids(383)) == (125, 0)


def test_vocabulary_of_a_folder(tmp_path: pathlib.Path) -> None:
    found = tokenizer.find_vocabulary_file
    assert found(tmp_path, 32128) is None
    assert found(tmp_path, 384) == "bytes"
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert found(tmp_path, 1000) == "bytes"
    (tmp_path / "spiece.model").write_bytes(b"")
    assert found(tmp_path, 384) == str(tmp_path / "spiece.model")


def test_shards_have_huggingfaces_names() -> None:
    sizes = {"a": 4, "b": 4, "c": 9, "d": 1}
    assert list(weights.divide_into_files(sizes, 8)) == [
        ("model-00001-of-00003.safetensors", ["a", "b"]),
        ("model-00002-of-00003.safetensors", ["c"]),
        ("model-00003-of-00003.safetensors", ["d"]),
    ]
    assert list(weights.divide_into_files(sizes, 100)) == [("model.safetensors", list("abcd"))]
