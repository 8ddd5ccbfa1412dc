"""Checkpoints from elsewhere that lie: one line, before anything is laid out for what they say."""

from __future__ import annotations

import json
import pathlib
import pickle
import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as safetensors
from source_examples import (
    BYTE_SIZED,
    Memory,
    published_values,
    refusal,
    state_of,
    write_folder,
    write_state,
)

from distill_sbs.convert import __main__ as command
from distill_sbs.convert.huggingface.files import HuggingFaceSource

SHARED, HEAD = "shared.weight", "lm_head.weight"
OF_ENCODER, OF_DECODER = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
KERNEL = "encoder.block.1.layer.1.DenseReluDense.wo.weight"


# ---------------------------------- config.json ------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_layers": 10**9}, "num_layers=1000000000: expected a whole number >= 1 and <= 1,000"),
        ({"num_decoder_layers": 10**9}, "num_decoder_layers=1000000000: expected"),
        ({"num_layers": 900}, "has no tensor encoder.block.2.*, but 2 layers of the encoder"),
        ({"num_decoder_layers": 3}, "has no tensor decoder.block.2.*, but 2 layers of the decoder"),
        ({"num_decoder_layers": 0}, "num_decoder_layers=0: expected a whole number >= 1"),
        ({"num_layers": 1}, "encoder.block.1.layer"),
        ({"vocab_size": 10**12}, "vocab_size=1000000000000: expected"),
        ({"vocab_size": 2**24}, "shared.weight has shape (48, 16), expected (16777216, 16)"),
        ({"d_model": -16}, "d_model=-16: expected a whole number >= 1"),
        ({"d_ff": 0}, "d_ff=0: expected"),
        ({"d_kv": 8.0}, "d_kv=8.0: expected a whole number"),
        ({"num_heads": "2"}, "num_heads='2': expected a whole number"),
        ({"num_heads": True}, "num_heads=True: expected a whole number"),
        ({"d_ff": [24]}, "d_ff=[24]: expected"),
        ({"d_ff": {"a": 1}}, "d_ff={'a': 1}: expected"),
        ({"relative_attention_num_buckets": 10**9}, "relative_attention_num_buckets=1000000000"),
        ({"relative_attention_num_buckets": 2}, "relative_attention_num_buckets=2: expected"),
        (
            {"relative_attention_max_distance": 8},
            "max_distance=8: expected more than",
        ),
        ({"dropout_rate": "0.1"}, "dropout_rate='0.1': expected 0 <= rate < 1"),
        ({"dropout_rate": float("nan")}, "dropout_rate=nan: expected"),
        ({"dropout_rate": 10**400}, "dropout_rate=1000000"),
        ({"layer_norm_epsilon": float("inf")}, "layer_norm_epsilon=inf: expected"),
        ({"layer_norm_epsilon": True}, "layer_norm_epsilon=True: expected"),
        ({"feed_forward_proj": ["relu"]}, "feed_forward_proj=['relu']; expected one of"),
        ({"feed_forward_proj": "x" * 10**6}, "feed_forward_proj='xxx"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings='false'; expected true or false"),
        ({"tie_word_embeddings": 0}, "tie_word_embeddings=0; expected true or false"),
        ({"scale_decoder_outputs": 1}, "scale_decoder_outputs=1; expected true or false"),
        ({"model_type": ["t5"]}, "is of a ['t5'] model; expected one of 't5', 'mt5'"),
        ({"is_encoder_decoder": False}, "is_encoder_decoder=false; expected a T5 with its decoder"),
        ({"pad_token_id": 1}, "pad_token_id=1; expected 0"),
        ({"eos_token_id": 0}, "eos_token_id=0; expected 1"),
        ({"decoder_start_token_id": 5}, "decoder_start_token_id=5; expected 0"),
    ],
)
def test_values_that_no_t5_has(
    tmp_path: pathlib.Path, changes: dict[str, Any], message: str
) -> None:
    memory = Memory()
    write_folder(tmp_path, memory)
    values = {**published_values(memory.config), **changes}
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    "given", [3, 0, "", False, {}, "all", {"2": 1}, [2, 48], [-1], [True], [2.0], ["2"]]
)
def test_tokens_that_it_must_not_say(tmp_path: pathlib.Path, given: object) -> None:
    write_folder(tmp_path, Memory())
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps({"suppress_tokens": given}))
    assert f"{file}: suppress_tokens: " in (told := refusal(tmp_path))
    assert "expected a list of whole numbers from 0 to 47" in told
    for nothing in ({"suppress_tokens": None}, {"suppress_tokens": []}, {}):
        file.write_text(json.dumps(nothing))
        assert HuggingFaceSource(str(tmp_path)).absent_ids == ()
    file.write_text(json.dumps({"suppress_tokens": [47, 2, 2]}))
    assert HuggingFaceSource(str(tmp_path)).absent_ids == (2, 47)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": ' * 200_000, "nested too deeply"),
        (b'{"num_layers": ' + b"9" * 5000 + b"}", "a number that is too long"),
        ("{}".encode("utf-16"), "not UTF-8"),
        (b'{"model_type": "t\xe9"}', "not UTF-8"),
        (b"[1, 2]", "holds a list; expected a JSON object"),
        (b'"t5"', "holds a str; expected a JSON object"),
        (b"", "broken JSON"),
        (b'{"a": "\\ud83d"}', "half of a character"),
    ],
)
def test_json_that_is_none(tmp_path: pathlib.Path, name: str, content: bytes, message: str) -> None:
    write_folder(tmp_path, Memory(), shards=2)
    (tmp_path / name).write_bytes(content)
    found = refusal(tmp_path)
    assert message in found and name in found


def test_json_without_end_is_not_read(tmp_path: pathlib.Path) -> None:
    write_folder(tmp_path, Memory())
    with (tmp_path / "config.json").open("r+b") as file:
        file.truncate(10**12)  # takes no room on the disk
    assert "has 1,000,000,000,000 bytes, expected a JSON file of less" in refusal(tmp_path)


def test_a_byte_order_mark_is_passed_over(tmp_path: pathlib.Path) -> None:
    write_folder(tmp_path, Memory())
    file = tmp_path / "config.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    source = HuggingFaceSource(str(tmp_path))
    source.check(source.config)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("../model-00001-of-00002.safetensors", "expected the name of a file in the same folder"),
        ("/etc/passwd", "expected the name of a file in the same folder"),
        (["a"], "expected the name of a file in the same folder"),
        (None, "expected the name of a file in the same folder"),
        ("..", ".. is missing"),
    ],
)
def test_an_index_names_files_of_its_folder_alone(
    tmp_path: pathlib.Path, file: Any, message: str
) -> None:
    write_folder(tmp_path, Memory(), shards=2)
    index = tmp_path / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    values["weight_map"][KERNEL] = file
    index.write_text(json.dumps(values))
    assert message in refusal(tmp_path)


# ---------------------------------- weights ----------------------------------


def safetensors_file(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(start: Any, end: Any, shape: Any = (2,), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors_file({}, length=10**11),
        safetensors_file({}, length=2**64 - 1),
        safetensors_file(b"[" * 200_000),
        safetensors_file(b'{"\xff": 1}'),
        safetensors_file([1]),
        safetensors_file({"a": 1}),
        safetensors_file({"a": {"dtype": "F32"}}),
        safetensors_file({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12)),
        safetensors_file({"a": entry(-8, 0)}, bytes(8)),
        safetensors_file({"a": entry(0, 10**15, [10**9, 250_000])}, bytes(8)),
        safetensors_file({"a": entry(0, 8, [2**32, 2**32])}, bytes(8)),
        safetensors_file({"a": entry(0, 8, [-2])}, bytes(8)),
        safetensors_file({"a": entry(0, 8, "2")}, bytes(8)),
        safetensors_file({"a": entry(0, 8, (2,), "O8")}, bytes(8)),
        safetensors_file({"a": entry("0", "8")}, bytes(8)),
        safetensors_file({"a": entry(0, 8)}, bytes(80)),
    ],
)
def test_headers_that_lie(tmp_path: pathlib.Path, content: bytes) -> None:
    write_folder(tmp_path, Memory())
    (tmp_path / "model.safetensors").write_bytes(content)
    assert "model.safetensors cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("dtype", "told"),
    [(np.float64, "F64"), (np.int32, "I32"), (np.bool_, "BOOL"), (ml_dtypes.float8_e4m3fn, "F8")],
)
def test_types_that_float32_does_not_hold(tmp_path: pathlib.Path, dtype: Any, told: str) -> None:
    state = state_of(Memory())
    state[KERNEL] = state[KERNEL].astype(dtype)
    write_folder(tmp_path, Memory())
    write_state(tmp_path, state)
    assert f"tensor {KERNEL} is of type {told}" in refusal(tmp_path)
    # Before anything is written.
    output = tmp_path.parent / "out"
    arguments = ["--vocabulary_file=bytes", f"--input={tmp_path}", f"--output={output}"]
    assert command.main(["convert", "--to=native", *arguments]) == 2
    assert not output.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path: pathlib.Path, value: float) -> None:
    memory = Memory(**BYTE_SIZED)
    memory.values["encoder/layers_1/mlp/wo/kernel"][3, 5] = value
    folder = write_folder(tmp_path / "given", memory)
    message = f"tensor {KERNEL} of shape (16, 24) holds values that are NaN or infinite"
    assert message in refusal(folder)
    for form in ("native", "t5x", "hf"):
        output = tmp_path / form
        arguments = [f"--to={form}", f"--input={folder}", f"--output={output}"]
        if form != "t5x":
            arguments.append("--vocabulary_file=bytes")
        assert command.main(["convert", *arguments]) == 2
        assert [child.name for child in tmp_path.iterdir()] == ["given"]


def test_a_tensor_in_two_files(tmp_path: pathlib.Path) -> None:
    write_folder(tmp_path, Memory(), shards=2)
    first, second = sorted(tmp_path.glob("*.safetensors"))
    state = safetensors.load_file(second)
    name, value = next(iter(safetensors.load_file(first).items()))
    safetensors.save_file({**state, name: value + 1}, second)
    message = f"tensor {name} is in {first} and in {second.name}, expected in one of them"
    assert message in refusal(tmp_path)


class Runs:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, file: pathlib.Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return pathlib.Path.touch, (self.file,)


def test_a_pickle_is_never_run(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    write_folder(tmp_path, Memory())
    (tmp_path / "model.safetensors").unlink()
    ran = tmp_path / "ran"
    content = {KERNEL: torch.zeros(2), "x": Runs(ran)}
    for zipped in (True, False):
        torch.save(content, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
        assert "holds more than tensors, which is never run" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(content["x"]))
    refusal(tmp_path)
    assert not ran.exists()
    pickle.loads(pickle.dumps(content["x"]))  # the trap works
    assert ran.exists()


def test_torch_files_that_are_no_state(tmp_path: pathlib.Path) -> None:
    torch = pytest.importorskip("torch")
    write_folder(tmp_path, Memory())
    (tmp_path / "model.safetensors").unlink()
    state = {name: torch.from_numpy(value) for name, value in state_of(Memory()).items()}
    file = tmp_path / "pytorch_model.bin"
    for content, message in (
        ([1], "holds no state of a model"),
        ({3: torch.zeros(2)}, "holds no state of a model"),
        ({"state_dict": state}, "holds no state of a model"),
        (state | {KERNEL: state[KERNEL].double()}, f"tensor {KERNEL} is of type float64"),
        (state | {KERNEL: state[KERNEL].to_sparse()}, f"tensor {KERNEL} is of type float32 and"),
        (state | {KERNEL: state[KERNEL].to("meta")}, f"tensor {KERNEL} is of type float32 and"),
        (state | {KERNEL: state[KERNEL] * np.nan}, f"tensor {KERNEL} of shape (16, 24) holds val"),
    ):
        torch.save(content, file)
        assert message in refusal(tmp_path)
    torch.save(state, file)
    file.write_bytes(file.read_bytes()[:-500])
    assert "pytorch_model.bin cannot be read" in refusal(tmp_path)


# ---------------------------------- vocabularies -----------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("spiece.model", b"", "spiece.model"),
        ("spiece.model", b"\xff" * 1000, "is no SentencePiece model"),
        ("tokenizer_config.json", b"[" * 200_000, "nested too deeply"),
        ("tokenizer_config.json", b"[]", "holds a list; expected a JSON object"),
        ("tokenizer_config.json", b'{"tokenizer_class": ["ByT5Tokenizer"]}', "no vocabulary"),
        ("tokenizer.json", b"[" * 200_000, "nested too deeply"),
        ("tokenizer.json", b"[]", "kind None, expected 'Unigram'"),
    ],
)
def test_tokenizers_that_are_none(
    tmp_path: pathlib.Path,
    name: str,
    content: bytes,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = write_folder(tmp_path / "given", Memory())
    (folder / name).write_bytes(content)
    for form in ("native", "hf"):
        output = tmp_path / "out"
        arguments = [f"--to={form}", f"--input={folder}", f"--output={output}"]
        assert command.main(["convert", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
        assert not output.exists()


@pytest.mark.parametrize("form", ["native", "hf"])
def test_a_vocabulary_must_fit_the_embedding(
    tmp_path: pathlib.Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_folder(tmp_path / "given", Memory())  # 48 rows
    arguments = [f"--to={form}", f"--input={folder}", f"--output={tmp_path / 'out'}"]
    assert command.main(["convert", *arguments, "--vocabulary_file=bytes"]) == 2
    assert "the vocabulary has 259 pieces" in capsys.readouterr().err
