"""tfds: datasets that TFDS has prepared, read without their code and without a network."""

from __future__ import annotations

import pathlib

import pytest
from etils import epath
from tfds_folders import make_row, write_tfds

from distill_sbs.data import metrics
from distill_sbs.data.dataset import DatasetSpec, Example, SourceError, TeacherOutput
from distill_sbs.data.records import build
from distill_sbs.data.tfds import TfdsReader
from distill_sbs.errors import UserError


def read(reader: TfdsReader, folder: pathlib.Path, split: str) -> list[Example]:
    raw_split = reader(epath.Path(folder), split)
    examples = list(raw_split.examples())
    assert len(examples) == raw_split.size
    return examples


def join_texts(row) -> str:
    return f"{row['premise']} </s> {row['hypothesis']}"


def test_rows_of_esnlis_form(tmp_path: pathlib.Path) -> None:
    rows = [make_row(0, explanation_2="two"), make_row(1, label=-1), make_row(2)]
    write_tfds(tmp_path, "mynli/plain/1.2.0", {"train": rows, "validation": rows, "test": rows})
    reader = TfdsReader(
        "mynli/plain:1.2.0",
        data_dir=".",
        input=join_texts,
        rationale=("explanation_1", "explanation_2"),
        teacher="people",
    )
    first, second, third = read(reader, tmp_path, "train")
    assert (first.id, first.input, first.label) == ("train-0", "p 0 </s> h 0", "entailment")
    assert first.teacher_outputs == {"people": TeacherOutput("entailment", "one 0", ("two",))}
    assert second.label is None  # -1: there is no gold label
    assert third.label == "contradiction"
    assert third.teacher_outputs == {"people": TeacherOutput("contradiction", "one 2")}
    assert read(reader, tmp_path, "test")[1].id == "test-1"
    assert reader(epath.Path(tmp_path), "train").notes == (
        "TFDS's mynli/1.2.0 train: of \"label\" as a label 0 is 'entailment', 2 is 'contradiction'",
    )


def test_kinds_of_columns(tmp_path: pathlib.Path) -> None:
    rows = [make_row(0), make_row(1)]
    write_tfds(tmp_path / "tfds", "mynli/1.0.0", {"train": rows, "other": rows})
    splits = {"train": "train", "validation": "other[:1]", "test": "other[1:]"}
    reader = TfdsReader(
        "mynli",
        data_dir="tfds",
        splits=splits,
        id="meta.doc",
        input="premise",
        label="sure",
        rationale="meta.reasons",
        teacher="gpt",
    )
    first, second = read(reader, tmp_path, "train")
    assert (first.id, first.input, first.label) == ("0", "p 0", "true")
    assert second.label == "false"
    assert first.teacher_outputs["gpt"].more_rationales == ("s",)
    assert [each.id for each in read(reader, tmp_path, "test")] == ["1"]
    (note,) = reader(epath.Path(tmp_path), "train").notes
    assert note.endswith("of \"sure\" as a label false is 'false', true is 'true'")
    named = TfdsReader(
        "mynli", data_dir="tfds", splits=splits, input="premise", label="sure", label_names=["n"]
    )
    with pytest.raises(SourceError, match="train, row 1: label 'true' is not in label_names: '0'"):
        read(named, tmp_path, "train")
    named = TfdsReader(
        "mynli",
        data_dir="tfds",
        splits=splits,
        input="premise",
        label="sure",
        label_names={True: "yes", False: "no"},
    )
    assert [each.label for each in read(named, tmp_path, "train")] == ["yes", "no"]


def test_splits_that_tfds_lacks_are_held_out(tmp_path: pathlib.Path) -> None:
    write_tfds(tmp_path, "mynli/1.0.0", {"train": [make_row(number) for number in range(40)]})
    reader = TfdsReader("mynli", data_dir=".", input="premise")
    parts = {split: read(reader, tmp_path, split) for split in ("train", "validation", "test")}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }
    ids = [each.id for part in parts.values() for each in part]
    assert sorted(ids) == sorted(f"train-{number}" for number in range(40))


def test_a_folder_of_files_and_the_variable(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tfds(tmp_path, "mynli/plain/1.0.0", {"train": [make_row(0)], "test": [make_row(1)]})
    splits = {"train": "train", "validation": "test", "test": "test"}
    reader = TfdsReader("mynli/plain/1.0.0", splits=splits, input="premise")
    assert [each.input for each in read(reader, tmp_path, "test")] == ["p 1"]
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    reader = TfdsReader("mynli/plain", splits=splits, input="premise")
    assert [each.input for each in read(reader, tmp_path / "else", "train")] == ["p 0"]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("esnli", "TFDS's esnli is not prepared: looked in {0}, which holds mynli."),
        ("mynli/large", "looked in {0}, which holds mynli/plain."),
        ("mynli/plain:9.9.9", "looked in {0}, which holds mynli/plain."),
    ],
)
def test_what_is_not_there(tmp_path: pathlib.Path, name: str, told: str) -> None:
    write_tfds(tmp_path, "mynli/plain/1.0.0", {"train": [make_row(0)]})
    with pytest.raises(SourceError) as caught:
        read(TfdsReader(name, data_dir=str(tmp_path)), tmp_path, "train")
    assert told.format(tmp_path) in str(caught.value)
    assert f"tfds.load({name!r}, data_dir={str(tmp_path)!r})" in str(caught.value)
    with pytest.raises(SourceError, match="looked in .*none, which does not exist"):
        read(TfdsReader(name, data_dir="none"), tmp_path, "train")


def test_bad_columns_splits_and_files(tmp_path: pathlib.Path) -> None:
    rows = [make_row(0), make_row(1, premise=" ")]
    folder = write_tfds(tmp_path, "mynli/1.0.0", {"train": rows, "dev": rows})
    splits = {"train": "train", "validation": "dev", "test": "dev"}
    for given, told in (
        ({"input": "premis"}, 'train, row 1: no "premis" among .*did you mean premise'),
        ({"input": "premise"}, "train, row 2: the input is ' ', expected a text"),
        ({"input": "label"}, "train, row 1: the input is 0, expected a text"),
        ({"input": "hypothesis", "id": "explanation_2"}, "train, row 1: the id is ''"),
        ({"input": "hypothesis", "label": "meta"}, "train, row 1: the label is {'doc': 0"),
        ({"input": "hypothesis", "splits": {**splits, "train": "nope"}}, "Unknown split"),
    ):
        with pytest.raises(SourceError, match=told):
            reader = TfdsReader("mynli", data_dir=".", **{"splits": splits, **given})
            read(reader, tmp_path, "train")
    with pytest.raises(UserError, match="splits has 'dev', expected the names train, val"):
        TfdsReader("mynli", splits={"dev": "x"})
    with pytest.raises(UserError, match="names no teacher; add teacher='NAME'"):
        TfdsReader("mynli", rationale="explanation_1")
    shard = folder / "mynli-train.tfrecord-00000-of-00001"
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(SourceError, match="cannot be read .*prepare it anew with TFDS"):
        read(TfdsReader("mynli", data_dir=".", splits=splits, input="premise"), tmp_path, "train")


def test_prepared_with_the_mapping_told(tmp_path: pathlib.Path) -> None:
    rows = [make_row(number) for number in range(30)]
    write_tfds(tmp_path, "mynli/1.0.0", {"train": rows})
    reader = TfdsReader("mynli", data_dir=str(tmp_path), input=join_texts)
    spec = DatasetSpec("mynli", reader, metrics.answers_match, needs_source_dir=False)
    told: list[str] = []
    info = build.prepare_dataset(spec, None, tmp_path / "data", tell=told.append)
    assert {name: split["examples"] for name, split in info["splits"].items()} == {
        "train": 24,
        "validation": 3,
        "test": 3,
    }
    assert told == [
        "note: TFDS's mynli/1.0.0 train: of \"label\" as a label 0 is 'entailment', 1 is "
        "'neutral', 2 is 'contradiction'"
    ]
