"""What an export for serving says of itself: all that a server needs beside the network.

Enters: what `convert --to=ctranslate2` or `--to=onnx` knows of a student; or such a folder. Leaves:
`student.json` in it; or a `ServedStudent`, of the types that its fields say.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping

from distill_sbs import files, json_lines
from distill_sbs.data.sentencepiece_model import BYTES, VocabularyDescription, check_absent_ids
from distill_sbs.errors import DamagedError, UserError
from distill_sbs.json_lines import JsonObject, JsonValue

STUDENT_FILE = "student.json"
CTRANSLATE2, ONNX = "ctranslate2", "onnx"
FORMS = (CTRANSLATE2, ONNX)
FLOAT32, INT8 = "float32", "int8"
QUANTIZATIONS = (FLOAT32, INT8)
# The files of each form beside student.json.
NETWORK_FILES = {
    CTRANSLATE2: ("model.bin", "config.json", "shared_vocabulary.json"),
    ONNX: ("encoder.onnx", "decoder.onnx"),
}

_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ServedStudent:
    """A student's export.

    Attributes:
      name: for people.
      mixture: what it was trained on; None where nothing is known of it.
      form: of `FORMS`.
      quantization: of `QUANTIZATIONS`; how the weights are stored.
      prefixes: what stands before an input, by task ('label', 'rationale').
      max_input_tokens: an input is cut behind so many tokens, prefix and end token among them.
      max_decode_tokens: the longest answer, end token included.
      vocab_size: rows of the embedding, V.
      vocabulary: the whole vocabulary.
      written_by: the program and its version.
      absent_ids: ids that it must not say, for it was trained without them.
    """

    name: str
    mixture: str | None
    form: str
    quantization: str
    prefixes: Mapping[str, str]
    max_input_tokens: int
    max_decode_tokens: int
    vocab_size: int
    vocabulary: VocabularyDescription
    written_by: str
    absent_ids: tuple[int, ...] = ()


def write_student(folder: str | os.PathLike[str], student: ServedStudent) -> None:
    """Writes `student.json`."""
    values = {"format_version": _VERSION, **dataclasses.asdict(student)}
    text = json.dumps(values, indent=2, ensure_ascii=False)
    files.write_file(pathlib.Path(folder) / STUDENT_FILE, text + "\n")


def read_student(location: str) -> ServedStudent:
    """Reads a folder's `student.json`, and sees to it that the network's files are there.

    Raises:
      UserError: no such folder, or one of another kind; another version wrote it.
      DamagedError: it does not hold what it should, or a file is missing.
    """
    folder = pathlib.Path(location)
    path = folder / STUDENT_FILE
    if not folder.is_dir():
        raise UserError(
            f"--model={location}: no such folder; python -m distill_sbs.convert --to=ctranslate2 "
            "makes one of a run"
        )
    if not path.is_file():
        raise UserError(
            f"--model={location} has no {STUDENT_FILE}, expected a folder that python -m "
            "distill_sbs.convert --to=ctranslate2 (or onnx) wrote; a run or a folder of "
            "HuggingFace's becomes one by it"
        )
    values = json_lines.read_json(path)
    if not isinstance(values, dict):
        raise DamagedError(path, "it is no JSON object")
    if values.get("format_version") != _VERSION:
        raise UserError(
            f"{path} has format {values.get('format_version')!r:.40}, expected {_VERSION}; "
            "convert the run again, with this version of distill_sbs"
        )
    try:
        student = _take(values)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(path, f"it does not hold what it should: {error}") from None
    for name in NETWORK_FILES[student.form]:
        if not (folder / name).is_file():
            raise DamagedError(folder / name, "it is missing")
    return student


def _take(values: JsonObject) -> ServedStudent:
    """The fields, each of its type; KeyError, TypeError or ValueError where one is not."""
    mixture = values["mixture"]
    if mixture is not None and not isinstance(mixture, str):
        raise TypeError("mixture is no text")
    prefixes, rows = _object(values, "prefixes"), _whole(values, "vocab_size", least=3)
    student = ServedStudent(
        name=_text(values, "name"),
        mixture=mixture,
        form=_text(values, "form"),
        quantization=_text(values, "quantization"),
        prefixes={task: _text(prefixes, task) for task in ("label", "rationale")},
        max_input_tokens=_whole(values, "max_input_tokens", least=2),
        max_decode_tokens=_whole(values, "max_decode_tokens", least=1),
        vocab_size=rows,
        vocabulary=_vocabulary(_object(values, "vocabulary")),
        written_by=_text(values, "written_by"),
        absent_ids=_absent_ids(values, rows),
    )
    if student.form not in FORMS:
        raise ValueError(f"form is {student.form!r:.40}, expected one of {', '.join(FORMS)}")
    if student.vocabulary["size"] > student.vocab_size:
        raise ValueError("the vocabulary is larger than the embedding")
    return student


def _vocabulary(values: JsonObject) -> VocabularyDescription:
    kind = _text(values, "kind")
    found: VocabularyDescription = {"kind": kind, "size": _whole(values, "size", least=1)}
    if kind != BYTES:
        found["sha256"] = _text(values, "sha256")
        found["model_base64"] = _text(values, "model_base64")
    return found


def _absent_ids(values: JsonObject, rows: int) -> tuple[int, ...]:
    """Earlier versions wrote none."""
    try:
        return check_absent_ids(values.get("absent_ids", []), rows)
    except ValueError as error:
        raise ValueError(f"absent_ids: {error}") from None


def _text(values: Mapping[str, JsonValue], name: str) -> str:
    value = values[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is no text")
    return value


def _whole(values: JsonObject, name: str, *, least: int) -> int:
    value = values[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is no whole number of at least {least}")
    return value


def _object(values: JsonObject, name: str) -> JsonObject:
    value = values[name]
    if not isinstance(value, dict):
        raise TypeError(f"{name} is no object")
    return value
