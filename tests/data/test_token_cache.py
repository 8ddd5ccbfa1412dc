"""Tokens that are kept: the same again, made anew where anything else is asked, never trusted."""

from __future__ import annotations

import dataclasses
import io
import pathlib
import shutil

import numpy as np
import pytest
import seqio

from distill_sbs.data import registration, settings
from distill_sbs.data.batches import input_pipeline, token_cache
from distill_sbs.data.selection import Selection

pytestmark = pytest.mark.slow

LENGTHS = {"inputs": 12, "targets": 11}


@pytest.fixture(autouse=True)
def few_are_kept(monkeypatch) -> None:
    monkeypatch.setattr(token_cache, "LEAST_SEQUENCES", 1)


@pytest.fixture
def own_data(tiny_settings, tiny_data: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    """A copy of `tiny` for this test alone, and settings that read it."""
    folder = tmp_path / "data"
    shutil.copytree(tiny_data / "tiny", folder / "tiny")
    tiny_settings(data_dir=str(folder))
    return folder


def find_files(folder: pathlib.Path) -> list[str]:
    return sorted(each.name for each in (folder / "tiny" / ".tokens").glob("*"))


def load(name: str, lengths: dict[str, int] = LENGTHS) -> list[list[int]]:
    data = input_pipeline.load_training_data(
        registration.get_mixture_or_task(name), lengths, batch_size=4, seed=0
    )
    return [
        [*each.inputs.tolist(), -1, *each.targets.tolist(), -1, *each.task_ids.tolist()]
        for task in data.tasks
        for each in task.sequences
    ]


def forbid_tokenising(monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("tokenised anew")

    monkeypatch.setattr(seqio.Task, "get_dataset", refuse)


def test_a_second_start_reads_what_the_first_one_made(own_data, monkeypatch) -> None:
    first = input_pipeline.load_training_data(
        registration.get_mixture_or_task("tiny_dss_gpt"), LENGTHS, batch_size=4, seed=0
    )
    made = load("tiny_dss_gpt")
    assert len(find_files(own_data)) == 2  # a file for each task
    forbid_tokenising(monkeypatch)
    assert load("tiny_dss_gpt") == made and len(made) == 40 + 36
    again = input_pipeline.load_training_data(
        registration.get_mixture_or_task("tiny_dss_gpt"), LENGTHS, batch_size=4, seed=0
    )
    for one, other in zip(first.tasks, again.tasks, strict=True):
        assert (one.cut_inputs, one.cut_targets) == (other.cut_inputs, other.cut_targets)
        assert one.cut_inputs > 0  # "explain: question 1" has more than 12 bytes
        np.testing.assert_array_equal(one.indices, other.indices)


@pytest.mark.parametrize(
    "change",
    [
        {"data_fraction": 0.5},
        {"data_fraction": 0.5, "fraction_seed": 1},
        {"selection": Selection({"tiny": ("train-1", "train-2")})},
        {"vocabulary_file": "embedded"},
        {"rationales_per_example": 2},
    ],
)
def test_another_setting_is_another_file(own_data, change: dict[str, object]) -> None:
    load("tiny_label")
    settings.use(dataclasses.replace(settings.current(), **change))
    load("tiny_label")
    assert len(find_files(own_data)) == 2


def test_lengths_records_and_code_count_too(own_data, monkeypatch) -> None:
    load("tiny_label")
    load("tiny_label", {"inputs": 13, "targets": 11})
    assert len(find_files(own_data)) == 2
    (shard,) = (own_data / "tiny").glob("train*")
    shard.touch()
    load("tiny_label")
    assert len(find_files(own_data)) == 3
    monkeypatch.setattr(token_cache, "_digest_code", lambda: "other code")
    load("tiny_label")
    assert len(find_files(own_data)) == 4
    monkeypatch.setattr(token_cache, "MOST_FILES", 2)
    load("tiny_label", {"inputs": 14, "targets": 11})
    assert len(find_files(own_data)) == 2


def test_a_filter_by_the_users_own_function_is_not_kept(own_data) -> None:
    settings.use(dataclasses.replace(settings.current(), rationale_filter="agreeing"))
    path = token_cache.find_path(registration.get_mixture_or_task("tiny_rationale_gpt"), LENGTHS)
    assert path is None


def rewrite(content: bytes, **changes: np.ndarray) -> bytes:
    with np.load(io.BytesIO(content)) as arrays:
        changed = {**arrays, **changes}
    out = io.BytesIO()
    np.savez(out, **changed)
    return out.getvalue()


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-40],
        lambda content: rewrite(content, inputs=np.zeros(3, np.int32)),
        lambda content: rewrite(content, inputs_lengths=np.full(40, -1, np.int32)),
        lambda content: rewrite(content, indices=np.zeros(2, np.int64)),
        lambda content: rewrite(content, cut=np.zeros(3)),
        lambda content: rewrite(content, inputs=np.array([{"a": 1}], object)),
    ],
)
def test_a_damaged_file_is_made_anew(own_data, damage) -> None:
    made = load("tiny_label")
    (path,) = (own_data / "tiny" / ".tokens").glob("*")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert load("tiny_label") == made
    assert path.read_bytes() == whole


def test_a_folder_that_cannot_be_written_to_costs_nothing(own_data) -> None:
    (own_data / "tiny" / ".tokens").write_text("in the way")
    assert len(load("tiny_label")) == 40
