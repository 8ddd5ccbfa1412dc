"""prepare: the entry point and what stands behind it, on data made up in small."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import tensorflow as tf

from distill_sbs import prepare
from distill_sbs.data import metrics
from distill_sbs.data.dataset import DatasetSpec, Example, RawSplit, SourceError
from distill_sbs.data.jsonl import JsonlReader
from distill_sbs.data.records import build, tfrecords
from distill_sbs.errors import UserError

TASK_FILE = """
from distill_sbs.data import metrics, registration
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.jsonl import JsonlReader

registration.register_dataset(
    DatasetSpec(
        name="{name}",
        reader=JsonlReader(teacher="gpt", train="mine.jsonl"),
        is_correct=metrics.answers_match,
        teachers=("gpt",),
    )
)
"""


def write_rows(path: pathlib.Path, count: int) -> None:
    rows = (
        {"id": str(i), "input": f"in {i}", "label": "yes", "rationale": "two words"}
        for i in range(count)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def spec() -> DatasetSpec:
    return DatasetSpec(
        name="mine",
        reader=JsonlReader(teacher="gpt", train="mine.jsonl"),
        is_correct=metrics.answers_match,
        teachers=("gpt",),
    )


def count_records(data_dir: pathlib.Path, split: str) -> int:
    return sum(1 for _ in tf.data.TFRecordDataset(tfrecords.split_files(data_dir, "mine", split)))


def test_prepares_all_splits(tmp_path: pathlib.Path, spec: DatasetSpec) -> None:
    write_rows(tmp_path / "mine.jsonl", 30)
    info = build.prepare_dataset(spec, tmp_path, tmp_path / "data")
    assert info == tfrecords.read_info(tmp_path / "data", "mine")
    sizes = {split: entry["examples"] for split, entry in info["splits"].items()}
    assert sizes == {"train": 24, "validation": 3, "test": 3}
    assert count_records(tmp_path / "data", "train") == 24
    assert info["splits"]["train"]["teachers"]["gpt"] == {
        "unparsed": 0,
        "label_accuracy": None,  # no row has a teacher_label: each would equal itself
        "mean_rationale_words": 2.0,
    }


def test_a_part_is_merged_with_what_exists(tmp_path: pathlib.Path, spec: DatasetSpec) -> None:
    write_rows(tmp_path / "mine.jsonl", 30)
    data_dir = tmp_path / "data"
    info = build.prepare_dataset(spec, tmp_path, data_dir, ["test", "validation"])
    assert list(info["splits"]) == ["validation", "test"]
    with pytest.raises(tfrecords.UnpreparedDataError, match="--splits=train"):
        tfrecords.split_files(data_dir, "mine", "train")

    write_rows(tmp_path / "mine.jsonl", 50)
    info = build.prepare_dataset(spec, tmp_path, data_dir, ["train"])
    sizes = {split: entry["examples"] for split, entry in info["splits"].items()}
    assert sizes == {"train": 40, "validation": 3, "test": 3}
    assert [count_records(data_dir, split) for split in sizes] == [40, 3, 3]
    assert [path.name for path in data_dir.iterdir()] == ["mine"]


def test_failure_leaves_everything_as_it_was(tmp_path: pathlib.Path, spec: DatasetSpec) -> None:
    write_rows(tmp_path / "mine.jsonl", 30)
    data_dir = tmp_path / "data"
    with (tmp_path / "mine.jsonl").open("a") as file:
        file.write("{")
    with pytest.raises(SourceError, match="line 31"):
        build.prepare_dataset(spec, tmp_path, data_dir)
    assert not data_dir.exists()

    write_rows(tmp_path / "mine.jsonl", 30)
    info = build.prepare_dataset(spec, tmp_path, data_dir)

    def breaks_midway(source_dir, split):
        def examples():
            yield Example("a", "b", "c")
            raise OSError("disk full")

        return RawSplit(2, examples)

    broken = DatasetSpec(name="mine", reader=breaks_midway, is_correct=metrics.answers_match)
    with pytest.raises(OSError, match="disk full"):
        build.prepare_dataset(broken, tmp_path, data_dir)
    assert [path.name for path in data_dir.iterdir()] == ["mine"]
    assert tfrecords.read_info(data_dir, "mine") == info
    assert count_records(data_dir, "train") == 24


def test_refusals(tmp_path: pathlib.Path, spec: DatasetSpec) -> None:
    with pytest.raises(UserError, match="no split 'valid', .*did you mean validation"):
        build.prepare_dataset(spec, tmp_path, tmp_path, ["valid"])
    with pytest.raises(SourceError, match="--source_dir or set DISTILL_SBS_SOURCE_DIR"):
        build.prepare_dataset(spec, None, tmp_path)
    with pytest.raises(SourceError, match="nowhere does not exist"):
        build.prepare_dataset(spec, tmp_path / "nowhere", tmp_path)


def run(*arguments: str) -> int:
    return prepare.main(["prepare", *arguments])


def test_entry_point_with_a_dataset_of_ones_own(
    tmp_path: pathlib.Path, monkeypatch, capsys
) -> None:
    write_rows(tmp_path / "mine.jsonl", 30)
    (tmp_path / "my_task.py").write_text(TASK_FILE.format(name="mine_by_flag"))
    monkeypatch.setenv("DISTILL_SBS_SOURCE_DIR", str(tmp_path))
    monkeypatch.setenv("DISTILL_SBS_DATA_DIR", str(tmp_path / "data"))
    assert run("--dataset=mine_by_flag", f"--task_file={tmp_path / 'my_task.py'}") == 0
    printed = capsys.readouterr().out
    assert (
        "100.00%" not in printed
        and '"teacher_label"' in printed
        and str(tmp_path / "data" / "mine_by_flag") in printed
    )
    assert (tmp_path / "data" / "mine_by_flag" / "info.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=cqaa"], "unknown dataset 'cqaa'; did you mean: cqa"),
        (["--dataset=cqa", "--data_dri=x"], "unknown flag --data_dri; did you mean --data_dir"),
        (["--dataset=cqa", "--splits=tset"], "no split 'tset'"),
        (["--dataset=cqa"], "pass --source_dir or set DISTILL_SBS_SOURCE_DIR"),
        (["--dataset=cqa", "--source_dir=/nowhere"], "/nowhere does not exist"),
        (["--dataset=cqa", "--task_file=/no.py"], "/no.py: no such file"),
        ([], "--dataset"),
    ],
)
def test_entry_point_refusals(arguments, message: str, monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.delenv("DISTILL_SBS_SOURCE_DIR", raising=False)
    monkeypatch.setenv("DISTILL_SBS_DATA_DIR", str(tmp_path))
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not list(tmp_path.iterdir())


def test_refuses_flags_without_importing_tensorflow() -> None:
    code = (
        "import sys; from distill_sbs import prepare\n"
        "assert prepare.main(['prepare', '--datase=cqa']) == 2\n"
        "assert 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_terminated_run_leaves_no_folder(tmp_path: pathlib.Path) -> None:
    write_rows(tmp_path / "mine.jsonl", 40_000)
    (tmp_path / "my_task.py").write_text(TASK_FILE.format(name="mine"))
    data_dir = tmp_path / "data"
    command = [sys.executable, "-m", "distill_sbs.prepare", "--dataset=mine"]
    command += [f"--task_file={tmp_path / 'my_task.py'}", f"--source_dir={tmp_path}"]
    with subprocess.Popen([*command, f"--data_dir={data_dir}"]) as process:
        while process.poll() is None and not list(data_dir.glob("*")):
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    assert not list(data_dir.iterdir())


@pytest.mark.slow
@pytest.mark.realdata
def test_prepares_the_published_data(source_dir, tmp_path: pathlib.Path, capsys) -> None:
    arguments = [f"--source_dir={source_dir}", f"--data_dir={tmp_path}"]
    assert run("--dataset=cqa,svamp,asdiv", *arguments) == 0
    assert run("--dataset=anli1", "--splits=validation,test", *arguments) == 0
    assert run("--dataset=anli1", *arguments) == 2
    assert "anli1_train.json is missing" in capsys.readouterr().err
    sizes = {
        name: [
            entry["examples"] for entry in tfrecords.read_info(tmp_path, name)["splits"].values()
        ]
        for name in ("cqa", "svamp", "asdiv", "anli1")
    }
    assert sizes == {
        "cqa": [8766, 975, 1221],
        "svamp": [720, 80, 200],
        "asdiv": [2305],
        "anli1": [1000, 1000],
    }
