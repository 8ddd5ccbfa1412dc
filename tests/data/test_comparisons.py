"""The embedded comparisons: true, reproducible, no pair twice, chance is one half."""

from __future__ import annotations

import re

import pytest
import sentencepiece
from etils import epath

from distill_sbs import constants, resources
from distill_sbs.data.readers import comparisons, shuffled_rationales

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def examples():
    return {split: comparisons.generate(split) for split in SPLITS}


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def test_the_first_questions_are_these(examples) -> None:
    first, second = examples["train"][:2]
    assert first.id == "train-0"
    assert first.input == "Which is heavier, box 16 or box 54?"
    assert first.label == "box 16"
    output = first.teacher_outputs["template"]
    assert (output.label, output.rationale) == ("box 16", "box 16 weighs 5 and box 54 weighs 4.")
    assert second.input == "Which is heavier, box 39 or box 58?"
    assert second.label == "box 58"


def test_a_world_of_four_boxes_by_hand() -> None:
    world = comparisons.World({10: 1, 11: 0, 12: 1, 13: 2})
    assert world.pairs() == [(10, 11), (13, 10), (12, 11), (13, 11), (13, 12)]
    example = world.ask("train-0", 13, 10, heavier_first=False)
    assert example.input == "Which is heavier, box 10 or box 13?"
    assert example.label == "box 13"
    assert example.teacher_outputs["template"].rationale == "box 10 weighs 1 and box 13 weighs 2."


def test_every_weight_is_equally_frequent() -> None:
    weights = list(comparisons.World.draw(seed=7).weights.values())
    assert {weight: weights.count(weight) for weight in range(10)} == dict.fromkeys(range(10), 6)
    with pytest.raises(ValueError, match="61 boxes cannot have 10 weights equally often"):
        comparisons.World.draw(0, boxes=61)


def test_no_pair_stands_twice_in_either_order(examples) -> None:
    pairs = [frozenset(numbers(row.input)) for rows in examples.values() for row in rows]
    assert len(set(pairs)) == len(pairs) == 1_620
    assert {split: len(rows) for split, rows in examples.items()} == comparisons.SPLIT_SIZES


def test_labels_follow_from_rationales_and_do_not_stand_in_them(examples) -> None:
    told: dict[int, set[int]] = {}
    for row in (row for rows in examples.values() for row in rows):
        first, second = numbers(row.input)
        rationale = row.teacher_outputs["template"].rationale
        named_first, weight, named_second, other_weight = numbers(rationale)
        assert (named_first, named_second) == (first, second)
        assert weight != other_weight
        assert row.label == f"box {first if weight > other_weight else second}"
        assert "heavier" not in rationale
        told.setdefault(first, set()).add(weight)
        told.setdefault(second, set()).add(other_weight)
    # One world: a box weighs the same wherever it is asked about.
    assert len(told) == 60
    assert all(len(weights) == 1 for weights in told.values())


def test_answering_by_place_is_right_for_one_half(examples) -> None:
    for rows in examples.values():
        first = [row.label == f"box {numbers(row.input)[0]}" for row in rows]
        assert sum(first) * 2 == len(rows)


def test_every_box_that_is_tested_was_trained_on(examples) -> None:
    boxes = {
        split: {n for row in rows for n in numbers(row.input)} for split, rows in examples.items()
    }
    assert boxes["test"] <= boxes["train"] and boxes["validation"] <= boxes["train"]


def test_the_same_seed_gives_the_same_world(examples) -> None:
    comparisons.generate.cache_clear()
    assert comparisons.generate("test") == examples["test"]
    assert comparisons.generate("test", seed=1) != examples["test"]


def test_reader_adds_the_shuffled_teacher_and_names_an_unknown_split() -> None:
    split = comparisons.read(epath.Path("/nowhere"), "validation")
    rows = list(split.examples())
    assert split.size == len(rows) == 220
    assert list(split.examples()) == rows
    for row in rows:
        own, wrong = row.teacher_outputs["template"], row.teacher_outputs["shuffled"]
        assert own.label == wrong.label == row.label
        assert numbers(own.rationale or "") != numbers(wrong.rationale or "")
    told = sorted(row.teacher_outputs["template"].rationale for row in rows)
    assert sorted(row.teacher_outputs["shuffled"].rationale for row in rows) == told
    with pytest.raises(ValueError, match="'dev' is unknown; expected one of"):
        comparisons.read(epath.Path("/nowhere"), "dev")


def test_shuffling_one_example_or_none_is_no_error(examples) -> None:
    assert shuffled_rationales.add_shuffled_teacher([], "template", 0) == ()
    (alone,) = shuffled_rationales.add_shuffled_teacher(examples["test"][:1], "template", 0)
    assert set(alone.teacher_outputs) == {"template", "shuffled"}


def test_the_embedded_vocabulary_holds_every_number_as_one_piece(examples) -> None:
    vocabulary = sentencepiece.SentencePieceProcessor(
        model_file=str(resources.embedded_vocabulary())
    )
    for row in examples["test"]:
        output = row.teacher_outputs["template"]
        for text in (constants.LABEL_PREFIX + row.input, row.label, output.rationale):
            pieces = vocabulary.encode(text, out_type=str)
            assert vocabulary.decode(vocabulary.encode(text)) == text
            assert {f"▁{number}" for number in numbers(text)} <= set(pieces)
            assert len(pieces) < 40


def test_show_prints_questions(capsys) -> None:
    assert comparisons.main(["comparisons", "--show=1"]) == 0
    assert capsys.readouterr().out == (
        "Which is heavier, box 16 or box 54?\n  label:     box 16\n"
        "  rationale: box 16 weighs 5 and box 54 weighs 4.\n\n"
    )
