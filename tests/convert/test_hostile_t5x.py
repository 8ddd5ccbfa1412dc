"""Checkpoints of T5X that lie: one line, before anything is laid out for what they say."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
from flax import serialization, traverse_util
from source_examples import Memory, refusal

from distill_sbs.convert.t5x import files as t5x_files

pytestmark = pytest.mark.slow  # as a whole: many small tests

ARRAY = "target.encoder.layers_1.attention.query.kernel"


@pytest.fixture
def of_t5x(tmp_path: pathlib.Path) -> pathlib.Path:
    t5x_files.write_t5x(Memory(), str(tmp_path / "t5x"))
    return tmp_path / "t5x" / "checkpoint_0"


def nested(depth: int) -> bytes:
    return b"\x81\xa9optimizer\x81\xa6target" + b"\x81\xa1a" * depth + b"\xc0"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        b"\xdf\xff\xff\xff\xff",  # a map of 2**32 - 1
        b"\xdd\xff\xff\xff\xff",  # a list of 2**32 - 1
        b"\xc6\xff\xff\xff\xff",  # bytes, 2**32 - 1 of them
        b"\x91" * 100_000,
        nested(300),
        nested(900),
        nested(5000),
        serialization.msgpack_serialize([1, 2]),
        serialization.msgpack_serialize({"target": 1}),
        serialization.msgpack_serialize({"target": {"a": None}}),
        serialization.msgpack_serialize({"target": {"a": "text"}}),
        serialization.msgpack_serialize({"target": {"a": {"driver": "zarr", "kvstore": 1}}}),
        serialization.msgpack_serialize({"target": {"a": "PLACEHOLDER://.."}}),
        serialization.msgpack_serialize({"target": {"a": "PLACEHOLDER:///etc"}}),
        b"\x81\xa6target\x81\x01\xc0",  # a name that is a number
    ],
)
def test_listings_that_lie(of_t5x: pathlib.Path, content: bytes) -> None:
    (of_t5x / "checkpoint").write_bytes(content)
    refusal(of_t5x)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [10**15, 16]},
        {"shape": [2**62, 2**62]},
        {"shape": [-1, 16]},
        {"shape": "16"},
        {"shape": [16, 16, 16]},
        {"chunks": [10**9, 10**6]},
        {"chunks": [0, 16]},
        {"chunks": [2**62, 2**62]},
        {"dtype": "|O"},
        {"dtype": "<i4"},
        {"dtype": "nothing"},
        {"compressor": {"id": "pickle"}},
        {"compressor": {"id": "blosc", "cname": "nothing"}},
        {"zarr_format": 99},
        {"order": "X"},
    ],
)
def test_arrays_that_lie(of_t5x: pathlib.Path, changes: dict[str, Any]) -> None:
    file = of_t5x / ARRAY / ".zarray"
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, **changes}))
    assert "encoder/layers_1/attention/query/kernel" in refusal(of_t5x)


@pytest.mark.parametrize("content", [b"", b"[" * 200_000, b"\xff\xfe", b"5", b"[]"])
def test_descriptions_of_arrays_that_are_none(of_t5x: pathlib.Path, content: bytes) -> None:
    (of_t5x / ARRAY / ".zarray").write_bytes(content)
    assert "encoder/layers_1/attention/query/kernel cannot be read" in refusal(of_t5x)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("encoder/layers_999999999/attention/query/kernel", (16, 16), "num_encoder_layers=1000000"),
        (f"encoder/layers_{'9' * 5000}/mlp/wo/kernel", (16, 16), "… has more than 500 letters"),
        ("encoder/encoder/mlp/wo/kernel", (24, 5000, 16), "holds 5,000 layers, expected at most"),
        (
            "encoder/encoder/mlp/wo/kernel",
            (24, 2, 16),
            "tensor encoder/layers_0/mlp/wo/kernel twi",
        ),
    ],
)
def test_names_that_lie(
    tmp_path: pathlib.Path, name: str, shape: tuple[int, ...], message: str
) -> None:
    values = {**Memory().values, name: np.ones(shape, np.float32)}
    tree = traverse_util.unflatten_dict(values, sep="/")
    (tmp_path / "checkpoint").write_bytes(serialization.msgpack_serialize({"target": tree}))
    assert message in refusal(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["[" * 200_000, "{}", '{"tree_metadata": 5}', '{"tree_metadata": {"a": {}}}', "\udc80"],
)
def test_metadata_that_lies(tmp_path: pathlib.Path, content: str) -> None:
    state = tmp_path / "checkpoint_5" / "state"
    state.mkdir(parents=True)
    (state / "_METADATA").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert "_METADATA" in refusal(tmp_path)
