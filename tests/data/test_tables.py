"""tables: CSV, TSV, Parquet and compressed JSON Lines, and errors that name file and line."""

from __future__ import annotations

import gzip
import pathlib

import pyarrow
import pytest
from etils import epath
from pyarrow import parquet

from distill_sbs.data.dataset import Example, SourceError, TeacherOutput
from distill_sbs.data.tables import TableReader, read_table
from distill_sbs.errors import UserError

CSV = 'key,text,y,why\n007,"a, ""b""\nc",1,r\n8,d,2,\n\n9,e,,s\n'


def compress(content: bytes, ending: str) -> bytes:
    if ending == ".gz":
        return gzip.compress(content, mtime=0)  # no time of day in a test's name
    if ending == ".zst":
        return pyarrow.Codec("zstd").compress(content, asbytes=True)
    return content


def read(folder: pathlib.Path, name: str, split: str = "train", **columns) -> list[Example]:
    whole = {"validation": name, "test": name}
    raw_split = TableReader(name, **{**whole, **columns})(epath.Path(folder), split)
    examples = list(raw_split.examples())
    assert len(examples) == raw_split.size
    return examples


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_csv(tmp_path: pathlib.Path, ending: str) -> None:
    (tmp_path / f"a.csv{ending}").write_bytes(compress(b"\xef\xbb\xbf" + CSV.encode(), ending))
    columns = {"id": "key", "input": "text", "label": "y", "rationale": "why", "teacher": "t"}
    first, second, third = read(tmp_path, f"a.csv{ending}", **columns)
    # Cells are texts: 007 stays 007.
    assert (first.id, first.input, first.label) == ("007", 'a, "b"\nc', "1")
    assert first.teacher_outputs == {"t": TeacherOutput("1", "r")}
    assert second.teacher_outputs == {"t": TeacherOutput(None, None)}
    assert third.label is None
    assert [number for number, _ in read_table(epath.Path(tmp_path / f"a.csv{ending}"))] == [
        2,
        4,
        6,
    ]
    without_ids = read(tmp_path, f"a.csv{ending}", "test", input="text", label="y")
    assert [each.id for each in without_ids] == ["test-0", "test-1", "test-2"]


def test_tsv_with_quotes_that_mean_nothing(tmp_path: pathlib.Path) -> None:
    (tmp_path / "a.tsv").write_text('input\tlabel\n"half\tx\nb\ty\n')
    assert [each.input for each in read(tmp_path, "a.tsv", quote=None)] == ['"half', "b"]
    with pytest.raises(SourceError, match=r"a.tsv, line 2: .*TableReader\(quote=None\)"):
        read(tmp_path, "a.tsv")


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_json_lines_with_nested_fields(tmp_path: pathlib.Path, ending: str) -> None:
    content = (
        b'{"q": {"text": "a"}, "answers": [{"why": "r"}, {"why": "s"}, {"why": "r"}], "y": true}\n'
        b'\n{"q": {"text": "b"}, "answers": [], "y": null}\n'
    )
    (tmp_path / f"a.jsonl{ending}").write_bytes(compress(content, ending))
    columns = {"input": "q.text", "rationale": "answers.why", "label": "y", "teacher": "t"}
    first, second = read(tmp_path, f"a.jsonl{ending}", **columns)
    assert (first.input, first.label) == ("a", "true")
    assert first.teacher_outputs == {"t": TeacherOutput("true", "r", ("s",))}
    assert (second.label, second.teacher_outputs["t"].rationale) == (None, None)
    assert read(tmp_path, f"a.jsonl{ending}", input="q.text", label=None)[0].label is None
    with pytest.raises(SourceError, match="line 3: .*a list of 0 has no position 1"):
        read(tmp_path, f"a.jsonl{ending}", input="q.text", label="answers.1.why")


def write_parquet(path: pathlib.Path, **columns: list) -> None:
    parquet.write_table(pyarrow.table(columns), path)


def test_parquet_parts_as_one_table(tmp_path: pathlib.Path) -> None:
    write_parquet(tmp_path / "p-1.parquet", input=["c"], label=[2.5])
    write_parquet(tmp_path / "p-0.parquet", input=["a", "b"], label=[1.0, None])
    examples = read(tmp_path, "p-*.parquet")
    assert [(each.id, each.input, each.label) for each in examples] == [
        ("train-0", "a", "1"),
        ("train-1", "b", None),
        ("train-2", "c", "2.5"),
    ]
    raw_split = TableReader("p-*.parquet", "p-*.parquet", "p-*.parquet")(
        epath.Path(tmp_path), "train"
    )
    assert raw_split.notes == (
        f"{tmp_path}/p-*.parquet: of \"label\" as a label 1 is '1', 2.5 is '2.5'",
    )
    with pytest.raises(SourceError, match="no file of that pattern"):
        read(tmp_path, "q-*.parquet")
    write_parquet(tmp_path / "p-2.parquet", input=["d"], label=["x"], id=[5])
    with pytest.raises(SourceError, match='p-0.parquet, row 1: no "id" among'):
        read(tmp_path, "p-*.parquet", id="id")


def test_held_out_by_groups(tmp_path: pathlib.Path) -> None:
    rows = "".join(f"in {number},yes,doc{number // 2}\n" for number in range(40))
    (tmp_path / "a.csv").write_text("input,label,doc\n" + rows)
    columns = {"validation": None, "test": None, "group": "doc"}
    parts = {
        split: {each.id for each in read(tmp_path, "a.csv", split, **columns)}
        for split in ("train", "validation", "test")
    }
    assert {split: len(ids) for split, ids in parts.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    assert set().union(*parts.values()) == {f"train-{number}" for number in range(40)}
    for ids in parts.values():
        numbers = {int(each.removeprefix("train-")) for each in ids}
        assert numbers == {number ^ 1 for number in numbers}  # both of each document


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"input,label\na,b\nc\n", "a.csv, line 3: 1 cells, and the header has 2"),
        ("a.csv", b'input,label\n"a\nb,c\n', "line 2: the row that begins here is no row of cells"),
        ("a.csv", b"input;label\na;b\n", "line 1: one column, 'input;label'; expected ','"),
        ("a.csv", b"input,input\na,b\n", "line 1: two columns are called 'input'"),
        ("a.csv", b"", "holds no header"),
        ("a.csv", b"input,label\n", "holds no rows"),
        ("a.csv", b"input,label\na,b\n\xff,c\n", r"line 3: not UTF-8 \(invalid start byte, byte 1"),
        ("a.csv", b"PK\x03\x04\xff", "line 1: a ZIP archive; unpack it first"),
        ("a.csv", b"inputs,label\na,b\n", 'line 2: no "input" among .*did you mean inputs'),
        ("a.csv", b"input,label\n,b\n", "line 2: the input is None, expected a text"),
        ("a.csv.gz", b"input,label\na,b\n", "a.csv.gz is damaged, or not compressed as its name"),
        ("a.csv.zst", b"input,label\na,b\n", "a.csv.zst is damaged, or not compressed as its"),
        (
            "a.csv.gz",
            compress(b"input\n" + b"abc\n" * 9, ".gz")[:-12],
            "damaged, or not compressed",
        ),
        ("a.jsonl.gz", compress(b'{"input": "a", "label": "b"}\n{', ".gz"), "line 2: broken JSON"),
        ("a.parquet", b"PAR1 no", "a.parquet: no Parquet, or damaged, behind row 0"),
    ],
)
def test_bad_files(tmp_path: pathlib.Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=told):
        read(tmp_path, name)


def test_truncated_zstd(tmp_path: pathlib.Path) -> None:
    content = b"input,label\n" + b"".join(b"%d,b\n" % number for number in range(30_000))
    (tmp_path / "a.csv.zst").write_bytes(compress(content, ".zst"))
    assert len(read(tmp_path, "a.csv.zst")) == 30_000
    (tmp_path / "a.csv.zst").write_bytes(compress(content, ".zst")[:-2_000])
    with pytest.raises(SourceError, match="a.csv.zst.* (damaged|cells)"):
        read(tmp_path, "a.csv.zst")


def test_files_that_are_not_there_and_kinds_that_are_none(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SourceError, match="a.csv is missing"):
        read(tmp_path, "a.csv")
    with pytest.raises(UserError, match="a.xlsx: no known kind of table"):
        TableReader("a.xlsx")
    with pytest.raises(UserError, match="expected one character"):
        TableReader("a.csv", quote="''")


def test_duplicate_ids_in_two_files(tmp_path: pathlib.Path) -> None:
    for name in ("a1.csv", "a2.csv"):
        (tmp_path / name).write_text("id,input,label\n5,x,y\n")
    with pytest.raises(SourceError, match="a2.csv, line 2: id '5' stands on line 2 of .*a1.csv"):
        read(tmp_path, "a*.csv", id="id")
