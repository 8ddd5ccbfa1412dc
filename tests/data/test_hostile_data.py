"""prepare on data from strangers: accepted as it is meant, or one line with file and line."""

from __future__ import annotations

import gzip
import json
import pathlib
import subprocess

import pytest
import tensorflow as tf
from etils import epath

from distill_sbs import prepare
from distill_sbs.data import metrics, registration
from distill_sbs.data.dataset import DatasetSpec, Example, RawSplit, SourceError, TeacherOutput
from distill_sbs.data.jsonl import JsonlReader
from distill_sbs.data.readers import published
from distill_sbs.data.records import build, tfrecords

NAME = "hostile"
NLI = {"uid": "u", "premise": "A man sleeps.", "hypothesis": "He is awake.", "label": 2}


@pytest.fixture(autouse=True)
def registered() -> None:
    if NAME not in registration.DATASETS:
        reader = JsonlReader(teacher="gpt", train="t.jsonl", validation="v.jsonl", test="v.jsonl")
        spec = DatasetSpec(NAME, reader, metrics.answers_match, teachers=("gpt",))
        registration.register_dataset(spec)


def row(number: int, **changes: object) -> dict:
    fields = {"id": f"q{number}", "input": f"in {number}", "label": "yes", "rationale": "why"}
    return {**fields, **changes}


def encode(*rows: object) -> bytes:
    return b"".join(
        (each if isinstance(each, bytes) else json.dumps(each).encode()) + b"\n" for each in rows
    )


def write_nli(folder: pathlib.Path, name: str, content: bytes) -> None:
    """The published layout of one row; `name` has another content."""
    contents = {"esnli_test.json": encode(NLI), "llm/test_CoT_0.json": b'["No. Answer: neutral"]'}
    for file, bytes_of_it in {**contents, name: content}.items():
        path = folder / "esnli" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes_of_it)


def run(folder: pathlib.Path, *arguments: str) -> int:
    places = [f"--source_dir={folder}", f"--data_dir={folder / 'data'}"]
    return prepare.main(["prepare", *places, *arguments])


# Bytes of a bad JSON line, and what is said of it.
BAD_LINES = {
    "lone surrogate": (rb'{"id": "1", "input": "a \ud83d b"}', r"half of a character"),
    "second half alone": (rb'{"id": "1", "input": "\ude00"}', "half of a character"),
    "surrogate in a key": (rb'{"\ud800": 1}', "half of a character"),
    "surrogate deep inside": (rb'{"id": "1", "x": [{"y": "\udfff"}]}', "half of a character"),
    "nested": (b"[" * 200_000, "nested too deeply"),
    "nested objects": (b'{"a":' * 200_000, "nested too deeply"),
    "a long number": (b'{"id": ' + b"9" * 5000 + b"}", "a number that is too long"),
    "Latin-1": ('{"id": "1", "input": "é"}'.encode("latin-1"), "not UTF-8"),
    "a raw NUL": (b'{"id": "1", "input": "a\0b"}', "Invalid control character"),
    "no JSON": (b"hello", "broken JSON"),
    "a number": (b"5", "a number found, expected one JSON object a line"),
    "null": (b"null", "null found"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_one_bad_line_of_jsonl(kind: str, tmp_path: pathlib.Path, capsys) -> None:
    line, message = BAD_LINES[kind]
    (tmp_path / "v.jsonl").write_bytes(encode(row(1)))
    (tmp_path / "t.jsonl").write_bytes(encode(row(1), row(2), line, row(3)))
    assert run(tmp_path, f"--dataset={NAME}") == 2
    error = capsys.readouterr().err
    assert "t.jsonl, line 3: " in error and message in error
    assert error.count("\n") == 1 and len(error) < 400
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("kind", BAD_LINES)
def test_one_bad_line_of_published_inputs(kind: str, tmp_path: pathlib.Path, capsys) -> None:
    line, message = BAD_LINES[kind]
    write_nli(tmp_path, "esnli_test.json", encode(NLI, line))
    assert run(tmp_path, "--dataset=esnli", "--splits=test") == 2
    error = capsys.readouterr().err
    assert "esnli_test.json, line 2: " in error and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (rb'["a \ud83d"]', "half of a character"),
        (b"[" * 200_000, "nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "a number that is too long"),
        ('["é"]'.encode("latin-1"), "not UTF-8"),
        (gzip.compress(b"[]", mtime=0), "compressed (gzip); unpack it first"),
        (b'{"a": "b"}', "expected a JSON list of texts, one an input, got dict"),
        (b'["a", 1]', "number 2 is 1"),
        (b'["a"]\n["b"]', "line 2: broken JSON (Extra data"),
        (b"", "broken JSON"),
        (b"[NaN]", "number 1 is nan"),
    ],
)
def test_published_outputs(content: bytes, message: str, tmp_path: pathlib.Path, capsys) -> None:
    write_nli(tmp_path, "llm/test_CoT_0.json", content)
    assert run(tmp_path, "--dataset=esnli", "--splits=test") == 2
    error = capsys.readouterr().err
    assert "test_CoT_0.json" in error and message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no rows"),
        (b"\n\n \n", "holds no rows"),
        (gzip.compress(encode(row(1)), mtime=0), "line 1: compressed (gzip); unpack it first"),
        (b"PK\x03\x04\xff\xff", "line 1: a ZIP archive; unpack it first"),
        ("\ufeff".encode("utf-16-le") + b"\x85\0", "UTF-16, not UTF-8; save it as UTF-8"),
        (b"\r".join([encode(row(1)).strip(), encode(row(2)).strip()]), "want line feeds"),
        (encode(row(1, label=["x" * 100_000])), '"label" is [\'xxx'),
        (encode(row(1, input={"a": {"b": [1] * 10_000}})), "\"input\" is {'a'"),
    ],
)
def test_files_that_are_no_rows(content: bytes, message: str, tmp_path, capsys) -> None:
    (tmp_path / "v.jsonl").write_bytes(encode(row(1)))
    (tmp_path / "t.jsonl").write_bytes(content)
    assert run(tmp_path, f"--dataset={NAME}") == 2
    error = capsys.readouterr().err
    assert "t.jsonl" in error and message in error and len(error) < 400


def test_a_folder_in_the_place_of_a_file(tmp_path: pathlib.Path, capsys) -> None:
    (tmp_path / "t.jsonl").mkdir()
    assert run(tmp_path, f"--dataset={NAME}") == 2
    assert "t.jsonl is a folder, expected a file" in capsys.readouterr().err
    (tmp_path / "esnli" / "esnli_test.json").mkdir(parents=True)
    assert run(tmp_path, "--dataset=esnli", "--splits=test") == 2
    assert "esnli_test.json is a folder" in capsys.readouterr().err
    (tmp_path / "asdiv" / "ASDiv.xml").mkdir(parents=True)
    assert run(tmp_path, "--dataset=asdiv") == 2
    assert "ASDiv.xml is a folder" in capsys.readouterr().err
    write_nli(tmp_path / "second", "esnli_test.json", encode(NLI))
    (tmp_path / "second" / "esnli" / "llm" / "test_CoT_1.json").mkdir()
    assert run(tmp_path / "second", "--dataset=esnli", "--splits=test") == 2
    assert "test_CoT_1.json is a folder" in capsys.readouterr().err


def test_what_is_unusual_and_right(tmp_path: pathlib.Path) -> None:
    """A byte order mark, line separators, NUL as an escape, CR LF, emoji in halves and whole."""
    texts = ["a\u2028b\u2029c\u0085d", "nul \0 here", "tab\tcr\rff\f", "\ufeffmark", "é 漢 🙂"]
    rows = [row(n, input=text, label=text, rationale=text) for n, text in enumerate(texts)]
    lines = [json.dumps(each, ensure_ascii=False).encode() for each in rows]
    halves = json.dumps(row(9, input="🙂")).encode()
    assert rb"\ud83d\ude42" in halves
    content = b"\xef\xbb\xbf" + b"\r\n".join([*lines, halves]) + b"\r\n\r\n"
    (tmp_path / "t.jsonl").write_bytes(content)
    (tmp_path / "v.jsonl").write_bytes(encode(row(1)))
    assert run(tmp_path, f"--dataset={NAME}") == 0
    files = tfrecords.split_files(tmp_path / "data", NAME, "train")
    records = [tfrecords.parse_record(each, ["gpt"]) for each in tf.data.TFRecordDataset(files)]
    for key in ("input", "label", "gpt_rationale", "gpt_label"):
        assert [record[key].numpy().decode() for record in records[:5]] == texts
    assert records[5]["input"].numpy().decode() == "🙂"


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (Example("1", "a \ud83d", "x"), r"its input holds '\\ud83d', half of a character"),
        (Example("\ud83d", "a", "x"), "its id holds"),
        (Example("1", "a", "\udc00"), "its label holds"),
        (Example("1", "a", "x", {"gpt": TeacherOutput("x", "\udc00")}), "its rationale of gpt"),
        (Example("1", "a", 3), "its label is 3, expected a text"),
        (Example("1", None, "x"), "its input is None, expected a text"),
        (Example(7, "a", "x"), "its id is 7, expected a text"),
    ],
)
def test_what_a_reader_of_ones_own_may_give(example, message: str, tmp_path) -> None:
    def read(_: object, split: str) -> RawSplit:
        return RawSplit(2, lambda: iter([Example("0", "b", "y"), example]))

    spec = DatasetSpec("own", read, metrics.answers_match, ("gpt",), ("train",), False)
    with pytest.raises(SourceError, match=f"train, example 1 .id .*{message}"):
        build.prepare_dataset(spec, None, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


# ---------------------------------- XML ---------------------------------------

PROBLEM = (
    '<Problem ID="{0}"><Body>Seven.</Body><Question>How many?</Question>'
    "<Answer>9 (apples)</Answer><Formula>7+2=9</Formula></Problem>"
)
LAUGHS = (
    "<!DOCTYPE l [<!ENTITY a0 'lol'>"
    + "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 11))
    + "]><a>&a10;</a>"
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'<?xml version="1.0" encoding="foo"?><a/>', "line 1: unknown encoding: foo; save it as"),
        (b'<?xml version="1.0" encoding="euc-jp"?><a/>', "multi-byte encodings are not supported"),
        (b'<?xml version="1.0" encoding="utf-16"?><a/>', "line 1: broken XML"),
        (b"<a>\n\xe9</a>", "line 2: broken XML (not well-formed (invalid token)"),
        (b"<a>&#xD800;</a>", "reference to invalid character number"),
        (b"<a>\0</a>", "line 1: broken XML"),
        (b"", "no element found"),
        (gzip.compress(b"<a/>", mtime=0), "line 1: broken XML"),
        (b"<a/>", "holds no <Problem>"),
        (LAUGHS.encode(), "limit on input amplification factor"),
        (b'<!DOCTYPE l [<!ENTITY a SYSTEM "file:///etc/passwd">]><a>&a;</a>', "undefined entity"),
        (b"<a>" * 100_000 + b"</a>" * 100_000, "holds no <Problem>"),
        (f"<a>{PROBLEM.format(1)}{PROBLEM.format(1)}</a>".encode(), "two problems have the ID '1'"),
    ],
)
def test_asdivs_file(content: bytes, message: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "asdiv").mkdir()
    (tmp_path / "asdiv" / "ASDiv.xml").write_bytes(content)
    with pytest.raises(SourceError) as caught:
        published.read_asdiv(epath.Path(tmp_path), "train")
    assert "ASDiv.xml" in str(caught.value) and message in str(caught.value)


def test_asdivs_file_in_latin_1(tmp_path: pathlib.Path) -> None:
    (tmp_path / "asdiv").mkdir()
    text = f'<?xml version="1.0" encoding="latin-1"?><a>{PROBLEM.format("é")}</a>'
    (tmp_path / "asdiv" / "ASDiv.xml").write_bytes(text.encode("latin-1"))
    (example,) = published.read_asdiv(epath.Path(tmp_path), "train").examples()
    assert example.id == "é" and example.label == "7+2"


# ---------------------------------- a teacher's outputs -----------------------


def write_outputs_file(path: pathlib.Path, *lines: bytes) -> str:
    path.write_bytes(b"\n".join(lines) + b"\n")
    return str(path)


@pytest.mark.parametrize("kind", BAD_LINES)
def test_one_bad_line_of_a_teachers_outputs(kind: str, tmp_path: pathlib.Path, capsys) -> None:
    (tmp_path / "v.jsonl").write_bytes(encode(row(1)))
    (tmp_path / "t.jsonl").write_bytes(encode(row(1), row(2)))
    good = b'{"id": "q1", "label": "yes", "rationale": "so"}'
    outputs = write_outputs_file(tmp_path / "out.jsonl", good, BAD_LINES[kind][0], good)
    assert run(tmp_path, f"--dataset={NAME}") == 0
    before = tfrecords.read_info(tmp_path / "data", NAME)
    capsys.readouterr()
    joined = [f"--dataset={NAME}", "--teacher=late", f"--teacher_outputs={outputs}"]
    assert run(tmp_path, *joined) == 2
    error = capsys.readouterr().err
    assert "out.jsonl, line 2" in error and error.count("\n") == 1
    assert tfrecords.read_info(tmp_path / "data", NAME) == before


# ---------------------------------- disks -------------------------------------


def read_folder(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("joins", [False, True], ids=["prepare", "join"])
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_a_disk_that_takes_nothing(
    small_disk: pathlib.Path, tmp_path: pathlib.Path, kind: str, joins: bool, capsys
) -> None:
    """One line, status 2, and what was prepared before is as it was."""
    rows = [row(number, input=f"in {number} " + "x" * 3000) for number in range(100)]
    (tmp_path / "t.jsonl").write_bytes(encode(*rows))
    (tmp_path / "v.jsonl").write_bytes(encode(row(1)))
    lines = [{"id": f"q{i}", "label": "yes", "rationale": "so"} for i in range(100)]
    outputs = write_outputs_file(tmp_path / "out.jsonl", encode(*lines))
    arguments = ["prepare", f"--source_dir={tmp_path}", f"--data_dir={small_disk}"]
    assert prepare.main([*arguments, f"--dataset={NAME}"]) == 0
    before = read_folder(small_disk)
    assert len(before) == 4
    if kind == "full":
        taken = small_disk / "taken"
        with pytest.raises(OSError, match="No space left"), taken.open("wb", buffering=0) as file:
            while True:
                file.write(b"0" * 4096)
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    capsys.readouterr()
    joined = ["--teacher=late", f"--teacher_outputs={outputs}"] if joins else []
    assert prepare.main([*arguments, f"--dataset={NAME}", *joined]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    told = {"full": "No space left on device; make room", "read-only": "Read-only file system; th"}
    assert told[kind] in error and str(small_disk) in error
    after = read_folder(small_disk)
    after.pop("taken", None)
    assert after == before


def test_a_file_where_the_records_should_lie(tmp_path: pathlib.Path, capsys) -> None:
    (tmp_path / "t.jsonl").write_bytes(encode(row(1), row(2)))
    (tmp_path / "v.jsonl").write_bytes(encode(row(1)))
    for place in (tmp_path / "t.jsonl", tmp_path / "t.jsonl" / "below"):
        arguments = [f"--source_dir={tmp_path}", f"--data_dir={place}"]
        assert prepare.main(["prepare", f"--dataset={NAME}", *arguments]) == 2
        assert "Not a directory; a file stands where a folder" in capsys.readouterr().err


def test_the_raw_data_is_never_replaced(tmp_path: pathlib.Path, capsys) -> None:
    """`--data_dir` is the folder of the raw data: `esnli/` there holds what was downloaded."""
    write_nli(tmp_path, "esnli_test.json", encode(NLI))
    before = read_folder(tmp_path)
    places = [f"--source_dir={tmp_path}", f"--data_dir={tmp_path}"]
    for teacher in ([], ["--teacher=llama3"]):
        arguments = ["prepare", "--dataset=esnli", "--splits=test", *places, *teacher]
        assert prepare.main(arguments) == 2
        assert "which is no prepared record and would be lost" in capsys.readouterr().err
        assert read_folder(tmp_path) == before
