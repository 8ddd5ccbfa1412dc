"""huggingface: what the library `datasets` reads, with the extra `hf`."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any

import pytest
from etils import epath

from distill_sbs.data.dataset import Example, SourceError, TeacherOutput
from distill_sbs.data.huggingface import HuggingFaceReader

datasets: Any = pytest.importorskip("datasets", reason="datasets is missing: pip install .[hf]")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def make_rows(count: int):
    features = datasets.Features(
        {
            "q": {"text": datasets.Value("string")},
            "label": datasets.ClassLabel(names=["no", "yes"]),
            "why": datasets.List(datasets.Value("string")),
        }
    )
    columns = {
        "q": [{"text": f"in {number}"} for number in range(count)],
        "label": [number % 2 for number in range(count)],
        "why": [["r", "s"] if number else [] for number in range(count)],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def read(reader: HuggingFaceReader, folder: pathlib.Path, split: str = "train") -> list[Example]:
    raw_split = reader(epath.Path(folder), split)
    examples = list(raw_split.examples())
    assert len(examples) == raw_split.size
    return examples


COLUMNS: dict[str, Any] = {"input": "q.text", "rationale": "why", "teacher": "t"}


def check(examples: list[Example]) -> None:
    first, second = examples[:2]
    assert (first.id, first.input, first.label) == ("train-0", "in 0", "no")
    assert first.teacher_outputs == {"t": TeacherOutput(None, None)}
    assert second.label == "yes"
    assert second.teacher_outputs == {"t": TeacherOutput("yes", "r", ("s",))}


def test_saved_to_disk(tmp_path: pathlib.Path) -> None:
    saved = {"train": make_rows(8), "validation": make_rows(2), "test": make_rows(3)}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "mine")
    reader = HuggingFaceReader("mine", **COLUMNS)
    check(read(reader, tmp_path))
    assert len(read(reader, tmp_path, "test")) == 3
    splits = {"train": "train[:75%]", "validation": "train[75%:]", "test": "test"}
    reader = HuggingFaceReader("mine", splits=splits, **COLUMNS)
    assert [len(read(reader, tmp_path, split)) for split in ("train", "validation")] == [6, 2]


def test_parquet_folder_and_file(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    make_rows(40).to_parquet(folder / "train-00000.parquet")
    make_rows(3).to_parquet(folder / "test-00000.parquet")
    reader = HuggingFaceReader("mine", **COLUMNS)
    assert {len(read(reader, tmp_path, split)) for split in ("train", "validation")} == {36, 4}
    assert read(reader, tmp_path, "test")[0].label == "no"
    alone = HuggingFaceReader("mine/train-00000.parquet", **COLUMNS)
    assert [len(read(alone, tmp_path, split)) for split in ("train", "test")] == [32, 4]
    (note,) = reader(epath.Path(tmp_path), "train").notes
    assert note.endswith("of \"label\" as a label 0 is 'no', 1 is 'yes'")


def test_class_names_in_parquet_are_known_to_the_table_reader(tmp_path: pathlib.Path) -> None:
    from distill_sbs.data.tables import TableReader

    make_rows(3).to_parquet(tmp_path / "a.parquet")
    reader = TableReader("a.parquet", "a.parquet", "a.parquet", input="q.text")
    raw_split = reader(epath.Path(tmp_path), "train")
    assert [each.label for each in raw_split.examples()] == ["no", "yes", "no"]


def test_what_cannot_be_read(tmp_path: pathlib.Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(SourceError, match="mine cannot be read by datasets .*expected a folder"):
        read(HuggingFaceReader("mine"), tmp_path)
    (tmp_path / "mine" / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(SourceError, match="mine cannot be read by datasets"):
        read(HuggingFaceReader("mine"), tmp_path)


def test_a_name_of_the_hub_without_a_network(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing listens there; both are set back afterwards.
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(SourceError) as caught:
        read(HuggingFaceReader("nobody/nothing_of_that_name"), tmp_path)
    told = str(caught.value)
    assert f"is not in the cache {tmp_path / 'cache'}" in told
    assert "the hub http://127.0.0.1:9 did not give it" in told
    assert datasets.config.HF_HUB_OFFLINE
    assert "\n" not in told


@pytest.mark.slow
def test_without_the_extra() -> None:
    program = (
        "import sys; sys.modules['datasets'] = None\n"
        "from etils import epath\n"
        "from distill_sbs.data.huggingface import HuggingFaceReader\n"
        "HuggingFaceReader('a/b')(epath.Path('.'), 'train')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'distill_sbs[hf]'" in done.stderr
