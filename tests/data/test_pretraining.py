"""Pretraining tasks: what they read, which splits, sentinels, epochs, and what is refused."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import seqio

from distill_sbs.data import registration, vocabulary
from distill_sbs.data.batches import input_pipeline
from distill_sbs.data.tasks import texts
from distill_sbs.errors import SourceError, UserError

LENGTHS = {"inputs": 64, "targets": 32, "task_ids": 32}


@pytest.fixture
def text_dir(tmp_path: pathlib.Path, tiny_settings) -> pathlib.Path:
    """1,600 lines in two files, every second one blank: 200 texts, as TEXT_DIR."""
    folder = tmp_path / "text"
    (folder / "more").mkdir(parents=True)
    for name, start in (("one.txt", 0), ("more/two.txt", 800)):
        lines = "".join(f"line {start + n} says {n * n}\n\n" for n in range(800))
        (folder / name).write_text(lines)
    (folder / "no text.md").write_text("never read\n")
    tiny_settings(text_dir=str(folder))
    return folder


def read_texts(split: str, shard_info: seqio.ShardInfo | None = None) -> list[str]:
    dataset = texts.TextFolder().get_dataset(split, shuffle=False, shard_info=shard_info)
    return [row["input"].numpy().decode() for row in dataset]


@pytest.mark.usefixtures("text_dir")
def test_every_line_is_in_one_split() -> None:
    train, validation = read_texts("train"), read_texts("validation")
    assert len(train) + len(validation) == 200
    assert 1 <= len(validation) <= 25
    lines = {line for text in train + validation for line in text.split("\n")}
    assert len(lines) == 1_600
    assert not set(train) & set(validation)


@pytest.mark.slow
@pytest.mark.usefixtures("text_dir")
def test_hosts_share_the_texts_and_move_none_to_the_other_split() -> None:
    parts = [read_texts("train", seqio.ShardInfo(index, 3)) for index in range(3)]
    assert sorted(text for part in parts for text in part) == sorted(read_texts("train"))


def test_a_folder_without_text_is_named(tmp_path: pathlib.Path, tiny_settings) -> None:
    tiny_settings(text_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"TEXT_DIR='.*' holds no \*\.txt"):
        registration.check_prepared(registration.get_mixture_or_task("text_pretrain"))


def test_what_is_no_utf_8_is_named_with_its_line(text_dir: pathlib.Path) -> None:
    (text_dir / "more" / "three.txt").write_bytes(b"right\nwrong \xe4\n")
    with pytest.raises(SourceError, match=r"more/three.txt, line 2: not UTF-8"):
        registration.check_prepared(registration.get_mixture_or_task("text_pretrain"))


def test_a_fraction_of_a_folder_is_refused(text_dir: pathlib.Path, tiny_settings) -> None:
    tiny_settings(text_dir=str(text_dir), data_fraction=0.5)
    with pytest.raises(UserError, match="DATA_FRACTION=0.5: text_pretrain reads TEXT_DIR as it is"):
        read_texts("train")


@pytest.mark.usefixtures("tiny_settings")
def test_every_dataset_has_a_pretraining_task() -> None:
    for name in (*registration.DATASETS, "text"):
        task = registration.get_mixture_or_task(f"{name}_pretrain")
        assert registration.is_pretraining(task)
        assert task.metric_fns == []
    assert registration.datasets_of(seqio.get_mixture_or_task("text_pretrain")) == []
    (spec,) = registration.datasets_of(seqio.get_mixture_or_task("tiny_pretrain"))
    assert spec.name == "tiny"


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_settings")
def test_a_dataset_s_inputs_are_what_is_pretrained_on() -> None:
    """Labels and rationales are in no piece, and nothing of an input is lost."""
    task = seqio.get_mixture_or_task("tiny_pretrain")
    found = input_pipeline.tokenise(task, "validation", LENGTHS, keep_texts=False)
    restored: list[int] = []
    for each in found.sequences:
        inputs, targets = each.inputs.tolist(), each.targets.tolist()
        assert inputs[-1] == targets[-1] == 1 and set(each.task_ids.tolist()) == {1}
        assert max(inputs) == 358  # 259 ids of bytes, 100 sentinels
        for token in inputs[:-1]:
            if token <= 258:
                restored.append(token)
                continue
            start = targets.index(token) + 1
            later = [
                n for n, other in enumerate(targets) if n >= start and other in range(259, 359)
            ]
            restored.extend(targets[start : later[0] if later else -1])
    text = seqio.ByteVocabulary().decode(restored)
    assert text == "".join(f"question {number}" for number in range(8))


@pytest.mark.slow
def test_a_fraction_keeps_its_inputs(tiny_settings) -> None:
    tiny_settings(data_fraction=0.25)
    task = seqio.get_mixture_or_task("tiny_pretrain")
    found = input_pipeline.tokenise(task, "train", LENGTHS, keep_texts=False)
    tokens = sum(len(each.inputs) + len(each.targets) for each in found.sequences)
    # 10 inputs of 10 or 11 bytes; each piece has two sentinels a span and two end tokens besides.
    assert 100 < tokens < 170


@pytest.mark.slow
@pytest.mark.usefixtures("text_dir")
def test_each_epoch_takes_out_others_and_a_position_gives_the_same_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(input_pipeline, "_LEAST_IN_EPOCH", 32)
    task = seqio.get_mixture_or_task("text_pretrain")
    data = input_pipeline.load_training_data(task, LENGTHS, batch_size=4, seed=3)
    (first,) = data.tasks
    count = len(first.sequences)
    assert count >= 32 and first.redraw is not None
    second = first.redraw(1)
    assert len(second) == count
    differing = sum(
        not np.array_equal(one.inputs, other.inputs)
        for one, other in zip(first.sequences, second, strict=True)
    )
    assert differing > 0.9 * count
    # The same place of another walk, as after an interruption.
    at = {"text_pretrain": count + 5}
    again = input_pipeline.load_training_data(task, LENGTHS, batch_size=4, seed=3)
    drawn, after = data.sampler.draw(at, 3)
    repeated, _ = again.sampler.draw(at, 3)
    assert after == {"text_pretrain": count + 8}
    for one, other in zip(drawn, repeated, strict=True):
        assert np.array_equal(one.inputs, other.inputs)
        assert np.array_equal(one.targets, other.targets)


def test_sentinels_lie_behind_the_pieces(source_dir: pathlib.Path, tiny_settings) -> None:
    """T5's file of 32,000 pieces gives T5's ids: <extra_id_0> is 32099."""
    tiny_settings(vocabulary_file=str(source_dir.parent / "vocab" / "spiece.model"))
    assert vocabulary.ConfiguredVocabulary(sentinels=100).vocab_size == 32_100
    assert vocabulary.ConfiguredVocabulary().vocab_size == 32_000


def test_a_taken_name_is_refused() -> None:
    with pytest.raises(UserError, match="'text_pretrain' would be 'pretrain' of dataset 'text'"):
        registration.register_pretraining("text", texts.TextFolder())


@pytest.mark.slow
def test_another_source_of_text_is_one_call(tmp_path: pathlib.Path, tiny_settings) -> None:
    (tmp_path / "notes.txt").write_text("first note\nsecond note\n")
    source = seqio.TextLineDataSource({"train": str(tmp_path / "notes.txt")})
    registration.register_pretraining("notes", source)
    task = registration.get_mixture_or_task("notes_pretrain")
    found = input_pipeline.tokenise(task, "train", LENGTHS)
    (piece,) = found.sequences
    kept = [token for token in (*piece.inputs, *piece.targets) if 1 < token <= 258]
    assert sorted(seqio.ByteVocabulary().decode(kept)) == sorted("first notesecond note")
