"""student.json: read as it was written, or refused by name."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from distill_sbs.data import sentencepiece_model
from distill_sbs.errors import DamagedError, UserError
from distill_sbs.serving.options import ServeConfig
from distill_sbs.serving.served_folder import ServedStudent, read_student, write_student

STUDENT = ServedStudent(
    name="t5_1_1_tiny on cqa_dss_palm",
    mixture=None,
    form="onnx",
    quantization="int8",
    prefixes={"label": "predict: ", "rationale": "explain: "},
    max_input_tokens=64,
    max_decode_tokens=16,
    vocab_size=280,
    vocabulary=sentencepiece_model.describe("bytes"),
    written_by="distill_sbs 0.2.0",
)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    write_student(tmp_path, STUDENT)
    for name in ("encoder.onnx", "decoder.onnx"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def test_read_as_written(folder: pathlib.Path) -> None:
    assert read_student(str(folder)) == STUDENT
    absent = dataclasses.replace(STUDENT, absent_ids=(3, 279))
    write_student(folder, absent)
    assert read_student(str(folder)) == absent


def test_what_an_earlier_version_wrote(folder: pathlib.Path) -> None:
    values = json.loads((folder / "student.json").read_text())
    del values["absent_ids"]
    (folder / "student.json").write_text(json.dumps(values))
    assert read_student(str(folder)) == STUDENT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "has format 2, expected 1; convert the run again"),
        ({"name": 3}, "name is no text"),
        ({"mixture": []}, "mixture is no text"),
        ({"form": "tflite"}, "expected one of ctranslate2, onnx"),
        ({"prefixes": {"label": "a"}}, "'rationale'"),
        ({"max_input_tokens": True}, "max_input_tokens is no whole number of at least 2"),
        ({"max_decode_tokens": 0}, "max_decode_tokens is no whole number of at least 1"),
        ({"vocab_size": 258}, "the vocabulary is larger than the embedding"),
        ({"vocabulary": {"kind": "sentencepiece", "size": 9}}, "'sha256'"),
        ({"absent_ids": [3, 280]}, "absent_ids: 280 among them; expected a list of whole numbers"),
        ({"absent_ids": 3}, "absent_ids: 3; expected a list of whole numbers from 0 to 279"),
        ({"form": "ctranslate2"}, "model.bin cannot be read (it is missing)"),
    ],
)
def test_damaged(folder: pathlib.Path, changes: dict[str, object], message: str) -> None:
    path = folder / "student.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError) as caught:
        read_student(str(folder))
    assert message in str(caught.value)
    assert isinstance(caught.value, DamagedError) == ("format_version" not in changes)


def test_no_json(folder: pathlib.Path) -> None:
    for content in (b"{", b"[]", b"\xff"):
        (folder / "student.json").write_bytes(content)
        with pytest.raises(UserError, match="student.json"):
            read_student(str(folder))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--model is not given"),
        ({"port": 65_536}, "expected a whole number of at least 0 and at most 65535"),
        ({"port": "80"}, "expected a whole number"),
        ({"threads": True}, "expected a whole number"),
        ({"body_seconds": float("nan")}, "expected a number of at least 0.01"),
        ({"host": None}, "expected text"),
    ],
)
def test_options_are_checked(given: dict, message: str) -> None:
    given = {"model": "served", **given} if given else {}
    with pytest.raises(UserError) as caught:
        ServeConfig(**given)
    assert message in str(caught.value)
