"""records: what is written reads back, figures are counted right, folders are replaced whole."""

from __future__ import annotations

import json
import pathlib

import pytest
import tensorflow as tf
from etils import epath

from distill_sbs import files
from distill_sbs.data import metrics
from distill_sbs.data.dataset import Example, SourceError, TeacherOutput
from distill_sbs.data.records import tfrecords

EXAMPLES = [
    Example("a", "one?", "1", {"palm": TeacherOutput("1", "one two three")}),
    Example("b", "two?", "2", {"palm": TeacherOutput("9", "four words are here")}),
    Example("c", "three — ü?", "3", {"palm": TeacherOutput(None, None)}),
    Example("d", "four?", None, {"palm": TeacherOutput("4", "x")}),
]


def write(folder: epath.Path, examples=EXAMPLES, size=None, split="train"):
    folder.mkdir(parents=True, exist_ok=True)
    size = len(examples) if size is None else size
    return tfrecords.write_split(folder, split, examples, size, ["palm"], metrics.answers_match)


def read(data_dir: epath.Path) -> list[dict]:
    files = tfrecords.split_files(data_dir, "toy", "train")
    dataset = tf.data.TFRecordDataset(files).map(
        lambda s: tfrecords.parse_record(s, ["palm", "gpt"])
    )
    return list(dataset.as_numpy_iterator())


@pytest.fixture
def data_dir(tmp_path) -> epath.Path:
    return epath.Path(tmp_path)


def test_round_trip(data_dir: epath.Path) -> None:
    entry = write(data_dir / "toy")
    tfrecords.write_info(data_dir / "toy", "toy", {"train": entry})
    rows = read(data_dir)
    assert [row["id"] for row in rows] == [b"a", b"b", b"c", b"d"]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert rows[2]["input"].decode() == "three — ü?"
    assert [row["label"] for row in rows] == [b"1", b"2", b"3", b""]
    assert [row["palm_label"] for row in rows] == [b"1", b"9", b"", b"4"]
    assert rows[0]["palm_rationale"] == b"one two three"
    assert rows[0]["gpt_rationale"] == b""


def test_figures(data_dir: epath.Path) -> None:
    # 1 right of the 3 rows with a gold label; (3 + 4 + 1) words on 3 rationales.
    assert write(data_dir) == {
        "examples": 4,
        "teachers": {
            "palm": {
                "unparsed": 1,
                "label_accuracy": pytest.approx(1 / 3),
                "mean_rationale_words": pytest.approx(8 / 3),
            }
        },
    }


def test_no_gold_labels_and_no_teacher(data_dir: epath.Path) -> None:
    assert write(data_dir, [EXAMPLES[3]])["teachers"]["palm"]["label_accuracy"] is None
    assert write(data_dir, [Example("a", "b", None)])["teachers"] == {}


def test_shards(data_dir: epath.Path, monkeypatch) -> None:
    monkeypatch.setattr(tfrecords, "EXAMPLES_PER_SHARD", 3)
    entry = write(data_dir / "toy")
    tfrecords.write_info(data_dir / "toy", "toy", {"train": entry})
    names = [epath.Path(file).name for file in tfrecords.split_files(data_dir, "toy", "train")]
    assert names == ["train.tfrecord-00000-of-00002", "train.tfrecord-00001-of-00002"]
    assert [row["index"] for row in read(data_dir)] == [0, 1, 2, 3]
    (data_dir / "toy" / names[1]).unlink()
    with pytest.raises(tfrecords.UnpreparedDataError, match="1 of 2 shards"):
        tfrecords.split_files(data_dir, "toy", "train")


@pytest.mark.parametrize(
    ("examples", "size", "message"),
    [
        ([EXAMPLES[0], EXAMPLES[0]], 2, "'a' .* stands twice"),
        (EXAMPLES, 5, "ended after 4 examples, expected 5"),
        (EXAMPLES, 3, "goes on after its 3 examples"),
    ],
)
def test_bad_streams(data_dir: epath.Path, examples, size: int, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        write(data_dir, examples, size)


def test_unprepared_names_the_command(data_dir: epath.Path) -> None:
    command = f"python -m distill_sbs.prepare --dataset=toy --data_dir={data_dir}"
    with pytest.raises(tfrecords.UnpreparedDataError) as caught:
        tfrecords.split_files(data_dir, "toy", "train")
    assert command + "\n" in str(caught.value)
    tfrecords.write_info((data_dir / "toy").mkdir() or data_dir / "toy", "toy", {})
    with pytest.raises(tfrecords.UnpreparedDataError) as caught:
        tfrecords.split_files(data_dir, "toy", "test")
    assert command + " --splits=test\n" in str(caught.value)


def test_info_of_another_format(data_dir: epath.Path) -> None:
    (data_dir / "toy").mkdir()
    path = data_dir / "toy" / "info.json"
    path.write_text(json.dumps({"format_version": 99}))
    with pytest.raises(tfrecords.UnpreparedDataError, match="format version 99, expected 1"):
        tfrecords.read_info(data_dir, "toy")
    path.write_text("{")
    with pytest.raises(tfrecords.UnpreparedDataError, match="broken"):
        tfrecords.read_info(data_dir, "toy")


def test_replace_folder(data_dir: epath.Path) -> None:
    folder = data_dir / "toy"
    with files.replace_folder(folder) as partial:
        (partial / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt), files.replace_folder(folder) as partial:
        (partial / "new").write_text("half")
        raise KeyboardInterrupt
    assert [path.name for path in data_dir.iterdir()] == ["toy"]
    assert (folder / "old").read_text() == "old"
    with files.replace_folder(folder) as partial:
        (partial / "new").write_text("new")
    assert [path.name for path in data_dir.iterdir()] == ["toy"]
    assert [path.name for path in folder.iterdir()] == ["new"]


def test_replace_folder_puts_the_old_one_back(data_dir: epath.Path) -> None:
    folder = data_dir / "toy"
    folder.mkdir()
    (folder / "old").write_text("old")
    with pytest.raises(FileNotFoundError), files.replace_folder(folder) as partial:
        partial.rmtree()  # makes the last rename fail
    assert (folder / "old").read_text() == "old"
    assert [path.name for path in data_dir.iterdir()] == ["toy"]


def test_labels_of_a_closed_set(tiny_data: pathlib.Path) -> None:
    labels = tfrecords.list_labels(tiny_data, "tiny", 40)
    assert labels == sorted(f"yes {number}" for number in range(40))
    assert tfrecords.list_labels(tiny_data, "tiny", 39) is None
