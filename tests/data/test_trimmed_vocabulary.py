"""A trimmed vocabulary: the ids of the whole one, mapped; what it does not cover is refused."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.config import TrainConfig
from distill_sbs.data import (
    occurring_pieces,
    registration,
    sentencepiece_model,
    settings,
    tokenizer,
    trimmed_ids,
    vocabulary,
)
from distill_sbs.data.batches import input_pipeline
from distill_sbs.errors import UserError

WHOLE = sentencepiece_model.describe("embedded")
LENGTHS = {"inputs": 32, "targets": 16, "task_ids": 16}


def kept_for(*texts: str) -> list[int]:
    encoder = tokenizer.from_description(WHOLE)
    return sorted({0, 1, 2}.union(*(encoder.encode(text) for text in texts)))


def trim_to(*texts: str) -> sentencepiece_model.VocabularyDescription:
    return sentencepiece_model.trim(WHOLE, np.array(kept_for(*texts), np.int32))


def write(folder: pathlib.Path, content: str) -> str:
    (folder / "vocabulary.json").write_text(content)
    return str(folder / "vocabulary.json")


def test_kept_are_specials_what_occurs_and_the_commonest() -> None:
    model = sentencepiece_model.read_model(WHOLE)
    assert model is not None
    kept = trimmed_ids.choose_kept(model, {300, 200}, rows=1024)
    assert kept.tolist() == [*range(126), 200, 300]  # 128 in all
    # As many as are asked for, and no more than there are rows.
    assert len(trimmed_ids.choose_kept(model, set(range(129)), rows=1024)) == 256
    assert trimmed_ids.choose_kept(model, set(range(129)), rows=150).tolist() == list(range(150))


@pytest.mark.parametrize("text", ["Anna has 12 apples.", "12 apples</s>Anna has", ""])
def test_ids_are_places_among_the_kept(text: str) -> None:
    described = trim_to("Anna has 12 apples.", "12 apples")
    kept = kept_for("Anna has 12 apples.", "12 apples")
    expected = [
        kept.index(each) for each in tokenizer.encode_text(tokenizer.from_description(WHOLE), text)
    ]
    assert described["size"] == len(kept)
    light = tokenizer.from_description(described)
    assert tokenizer.encode_text(light, text) == expected
    heavy = vocabulary.from_description(described)
    assert vocabulary.encode_text_tf(heavy, tf.constant(text)).numpy().tolist() == expected
    assert light.decode(expected) == heavy.decode(expected)
    assert light.decode(expected) == tokenizer.from_description(WHOLE).decode(
        [kept[each] for each in expected]
    )
    assert heavy.decode_tf(tf.constant(expected, tf.int32)).numpy().decode() == heavy.decode(
        expected
    )
    assert (heavy.vocab_size, heavy.eos_id, heavy.unk_id, heavy.bos_id) == (len(kept), 1, 2, None)


def test_segmentation_is_that_of_the_whole_model() -> None:
    # A model without "▁apples" would write it otherwise; here it is refused.
    described = trim_to("Anna has 12 apple s.")
    whole = tokenizer.from_description(WHOLE)
    (apples,) = set(whole.encode("apples")) - set(kept_for("Anna has 12 apple s."))
    light, heavy = tokenizer.from_description(described), vocabulary.from_description(described)
    with pytest.raises(UserError, match=r"'Anna has apples' holds 1 piece \('▁apples' 1\), which"):
        light.encode("Anna has apples")
    with pytest.raises(UserError, match="trimmed vocabulary of"):
        heavy.encode("Anna has apples")
    # In a graph it is an id that says which one it was.
    ids = heavy.encode_tf(tf.constant("apples")).numpy().tolist()
    assert ids == [described["size"] + apples]


def test_a_description_says_what_is_kept_and_by_its_hash() -> None:
    one, other = trim_to("Anna has 12 apples."), trim_to("Anna has 12 apples. She")
    assert len({each["sha256"] for each in (WHOLE, one, other)}) == 3
    assert one["model_base64"] == WHOLE["model_base64"]
    assert sentencepiece_model.untrim(one) == WHOLE
    kept = sentencepiece_model.read_kept(one)
    assert kept is not None and kept.tolist() == kept_for("Anna has 12 apples.")
    assert sentencepiece_model.read_kept(WHOLE) is None
    with pytest.raises(UserError, match=r"sha256 \w+, expected \w+: the checkpoint is damaged"):
        sentencepiece_model.read_kept({**one, "kept_base64": other["kept_base64"]})
    loaded = [vocabulary.from_description(each) for each in (one, one, other)]
    assert loaded[0] == loaded[1] != loaded[2] and len(set(loaded)) == 2
    for wrong in (one, sentencepiece_model.describe("bytes")):
        with pytest.raises(ValueError, match="only a whole SentencePiece vocabulary"):
            sentencepiece_model.trim(wrong, np.array([0, 1], np.int32))


def test_earlier_versions_refuse_a_checkpoint_of_it(tmp_path: pathlib.Path) -> None:
    config = TrainConfig.from_options(
        model_dir=str(tmp_path),
        mixture_or_task_name="tiny_label",
        task_feature_lengths=LENGTHS,
        train_steps=1,
        batch_size=8,
        initial_checkpoint_path=None,
        vocabulary_file="vocabulary.json",
        student="t5_1_1_tiny",
        student_overrides={"vocab_size": trim_to("Anna")["size"]},
        learning_rate=1e-2,
        eval_period=1,
    )
    described = RunDescription.of_run(config, trim_to("Anna"))
    saved = described.to_json()
    assert saved["format_version"] == 3  # they know 1 and 2
    assert RunDescription.from_json(saved, "here") == described
    with pytest.raises(UserError, match=r"is trimmed to \d+ ids, the student t5_1_1_tiny embeds"):
        RunDescription.of_run(config, trim_to("Anna has 12 apples."))


def test_a_file_is_read_as_it_was_written(tmp_path: pathlib.Path) -> None:
    described = trim_to("Anna has 12 apples.")
    file = write(tmp_path, sentencepiece_model.write_trimmed(described))
    assert sentencepiece_model.describe(file) == described
    loaded = vocabulary.load(file)
    assert loaded == vocabulary.from_description(described)
    trimmed = vocabulary.find_trimmed(loaded)
    assert trimmed is not None and trimmed.size == described["size"]
    assert vocabulary.find_trimmed(vocabulary.load("embedded")) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "is no JSON"),
        ({"format_version": 2}, "is no trimmed vocabulary; expected a vocabulary.json"),
        ({"kept_base64": ""}, "is no trimmed vocabulary"),
        ({"kept_base64": 7}, "is no trimmed vocabulary"),
        ({"size": 7}, "a trimmed vocabulary of 7 ids keeps 5 in 20 bytes"),
        ({"sha256": "0"}, "expected 0: the checkpoint is damaged; take another copy"),
        ({"model_base64": "AAAA"}, "the checkpoint is damaged"),
        ({"model_base64": "%"}, "is no base64"),
    ],
)
def test_another_file_is_refused(
    tmp_path: pathlib.Path, changes: dict[str, object] | None, message: str
) -> None:
    content = json.loads(sentencepiece_model.write_trimmed(trim_to("Anna has")))
    file = write(tmp_path, "{" if changes is None else json.dumps({**content, **changes}))
    with pytest.raises(UserError, match=message) as caught:
        sentencepiece_model.describe(file)
    assert str(caught.value).startswith(f"VOCABULARY_FILE={file!r}")
    assert "\n" not in str(caught.value)


def test_sentinels_are_refused() -> None:
    loaded = vocabulary.from_description(trim_to("Anna"))
    settings.use(settings.DataSettings(vocabulary=loaded))
    try:
        assert vocabulary.ConfiguredVocabulary().vocab_size == trim_to("Anna")["size"]
        with pytest.raises(UserError, match="no sentinels"):
            _ = vocabulary.ConfiguredVocabulary(sentinels=100).vocab_size
    finally:
        settings.provide(settings.DataSettings)


@pytest.mark.slow
def test_pieces_of_prepared_data_cover_all_its_tasks(tiny_data: pathlib.Path) -> None:
    occurring_pieces.use_whole_data(str(tiny_data))
    try:
        tasks = occurring_pieces.find_tasks(["tiny", "tiny_dss_gpt"])
        assert [task.name for task in tasks] == [
            "tiny_label",
            *(f"tiny_{method}_gpt" for method in ("label", "rationale", "joint", "pinto")),
        ]
        found = occurring_pieces.find_pieces(tasks, WHOLE)
        texts = ["predict: ", "explain: ", "So the answer is", "question yes no rationale"]
        texts += [str(number) for number in range(40)]
        whole = tokenizer.from_description(WHOLE)
        needed = {0, 1}.union(*(whole.encode(text) for text in texts))
        assert {*whole.encode("predict: question 3"), *whole.encode("yes 39")} <= found
        assert found <= needed | set(whole.encode("a 0 1 2 3 4 5 6 7 8 9"))
        with pytest.raises(UserError, match="tiny_pretrain has no texts that stay as they are"):
            occurring_pieces.find_tasks(["tiny_pretrain"])
        kept = np.array(sorted({2, *found}), np.int32)
        described = sentencepiece_model.trim(WHOLE, kept)
        settings.use(
            settings.DataSettings(str(tiny_data), vocabulary=vocabulary.from_description(described))
        )
        read = input_pipeline.tokenise(tasks[3], "train", LENGTHS)
        assert max(each.targets.max() for each in read.sequences) < len(kept)
    finally:
        settings.provide(settings.DataSettings)


def test_a_split_that_is_not_covered_is_refused_with_a_count(tiny_data: pathlib.Path) -> None:
    # Numbers of one digit alone; every other text is refused.
    one_digit = [str(number) for number in range(10)]
    texts = [f"{before} {each}" for before in ("predict: question", "yes") for each in one_digit]
    loaded = vocabulary.from_description(trim_to(*texts))
    settings.use(settings.DataSettings(str(tiny_data), vocabulary=loaded))
    try:
        task = registration.get_mixture_or_task("tiny_label")
        assert len(input_pipeline.tokenise(task, "test", LENGTHS).sequences) == 8
        message = (
            r"^tiny_label, split train, inputs: 30 of 40 texts hold 30 pieces \('▁\d\d' 1, .*…\), "
            r"which the student's trimmed vocabulary of \d+ ids lacks; the first is row 10 of its "
            r"records, 'predict: question 10'; take the student with its whole vocabulary"
        )
        with pytest.raises(trimmed_ids.UncoveredTextError, match=message):
            input_pipeline.tokenise(task, "train", LENGTHS)
    finally:
        settings.provide(settings.DataSettings)
