"""The embedded dataset: the problems are right, reproducible, disjoint, and fit the vocabulary."""

from __future__ import annotations

import re

import pytest
import sentencepiece
from etils import epath

from distill_sbs import constants
from distill_sbs.data import metrics
from distill_sbs.data.readers import wordproblem_stories, wordproblems

SPLITS = ("train", "validation", "test")
COMPUTATION = re.compile(r"(\d+) ([-+*/]) (\d+) = (\d+)")

# (number of the training example, its text, the answer worked out by hand)
WORKED_OUT = [
    (
        0,
        "Leo starts with 25 cards. Leo loses 22 cards. He buys 3 more cards. "
        "How many cards does Leo have now?",
        6,
    ),
    (
        2,
        "Lucy starts with 27 balloons. Lucy gets 21 balloons from Maya. Emma has 28 balloons. "
        "Carl has 11 balloons. How many balloons does Lucy have now?",
        48,
    ),
    (
        4,
        "Leo buys 10 muffins. He has 13 big apples and 18 small ones. "
        "How many apples does Leo have in all?",
        31,
    ),
    (
        6,
        "Anna has 19 balloons. She wants to have 29 balloons. "
        "How many more balloons does Anna need?",
        10,
    ),
    (
        8,
        "Leo has 7 cookies. Ben starts with 26 cookies. He buys 22 more cookies. "
        "Ivan has 12 cookies. Ben sells all the cookies for 2 dollars each. "
        "How many dollars does Ben get?",
        96,
    ),
    (
        10,
        "Mia fills 5 jars with 2 books each. Mia loses 3 books. How many books does Mia have now?",
        7,
    ),
    (
        12,
        "Lucy eats 28 cookies. Now she has 11 cookies. How many cookies did Lucy have at first?",
        39,
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def examples():
    return {split: wordproblems.generate(split) for split in SPLITS}


@pytest.fixture(scope="module")
def vocabulary():
    return sentencepiece.SentencePieceProcessor(model_file=str(wordproblems.VOCABULARY_FILE))


def numbers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


@pytest.mark.parametrize(("number", "text", "answer"), WORKED_OUT)
def test_labels_have_the_value_worked_out_by_hand(examples, number, text, answer):
    example = examples["train"][number]
    assert example.input == text
    assert metrics.equation_value(example.label) == answer


def test_the_teacher_explains_in_steps(examples):
    output = examples["train"][8].teacher_outputs["template"]
    assert output.label == "( ( 26 + 22 ) * 2 )"
    assert output.rationale == (
        "The 12 cookies of Ivan do not matter. The 7 cookies of Leo do not matter. "
        "Ben starts with 26 cookies. Ben buys 22 more, so 26 + 22 = 48. "
        "At 2 dollars each that is 48 * 2 = 96 dollars."
    )


def test_a_wrong_teacher_argues_for_its_wrong_label(examples):
    output = examples["train"][2].teacher_outputs["template"]
    assert examples["train"][2].label == "( 27 + 21 )"
    assert output.label == "( 27 + 28 )"
    assert "27 + 28 = 55" in output.rationale


def test_sizes_and_ids(examples):
    assert {split: len(rows) for split, rows in examples.items()} == {
        "train": 8_000,
        "validation": 400,
        "test": 400,
    }
    assert [row.id for row in examples["test"][:2]] == ["test-0", "test-1"]


def test_no_text_occurs_twice(examples):
    texts = [row.input for rows in examples.values() for row in rows]
    assert len(set(texts)) == len(texts) == 8_800


def test_the_same_arguments_give_the_same_problems(examples):
    wordproblems.generate.cache_clear()
    assert wordproblems.generate("validation") == examples["validation"]
    other_seed = wordproblems.generate("validation", seed=wordproblems.SEED + 1)
    assert other_seed[0].input != examples["validation"][0].input


def test_the_size_of_training_does_not_change_what_is_tested(examples):
    sizes = (("train", 50), ("validation", 400), ("test", 400))
    assert wordproblems.generate("test", sizes=sizes) == examples["test"]
    assert wordproblems.generate("train", sizes=sizes) == examples["train"][:50]


def test_equations_use_only_numbers_of_the_text_and_no_distractor():
    distracting = 0
    for number in range(300):
        story, understood = wordproblems.problem((7, number), wordproblem_stories.Difficulty())
        in_text = numbers(story.text)
        assert len(set(in_text)) == len(in_text)
        used = numbers(wordproblems.equation(story.steps))
        ignored = {str(distractor.number) for distractor in story.distractors}
        assert set(used) | ignored == set(in_text)
        assert not set(used) & ignored
        assert set(numbers(wordproblems.equation(understood.steps))) <= set(in_text)
        distracting += bool(ignored)
    assert 80 < distracting < 160  # 40 % of 300 have one or more


def test_the_arithmetic_of_rationales_is_right_and_leads_to_the_teachers_label(examples):
    for row in examples["train"][:2_000]:
        output = row.teacher_outputs["template"]
        computations = COMPUTATION.findall(output.rationale)
        assert 1 <= len(computations) <= 3
        for left, symbol, right, result in computations:
            assert metrics.equation_value(f"{left} {symbol} {right}") == int(result)
            assert 2 <= int(result) <= 99
        assert metrics.equation_value(output.label) == int(computations[-1][-1])
        assert output.rationale.count("=") == output.label.count("(")
        assert "(" not in output.rationale  # the label itself is never in its rationale


def test_the_teacher_is_wrong_by_value_or_not_at_all(examples):
    wrong = 0
    for rows in examples.values():
        for row in rows:
            label = row.teacher_outputs["template"].label
            if label != row.label:
                assert not metrics.equations_match(row.label, label)
                wrong += 1
    assert 0.07 < wrong / 8_800 < 0.09


def test_difficulty_is_obeyed():
    easy = wordproblem_stories.Difficulty(
        people=6,
        things=9,
        largest_number=12,
        step_weights=(0, 1, 0),
        distractor_weights=(0, 0, 1),
        wrong_teacher_share=0,
    )
    for number in range(200):
        story, understood = wordproblems.problem((number,), easy)
        assert understood is story
        assert len(story.steps) == len(story.distractors) == 2
        assert all(2 <= int(each) <= 12 for each in numbers(story.text))


def test_reader_streams_again_and_names_an_unknown_split():
    split = wordproblems.read(epath.Path("/nowhere"), "validation")
    assert split.size == 400
    assert list(split.examples()) == list(split.examples())
    with pytest.raises(ValueError, match="'dev' is unknown; expected one of"):
        wordproblems.read(epath.Path("/nowhere"), "dev")
    with pytest.raises(ValueError, match="'dev' is unknown"):
        wordproblems.generate("dev")


def test_the_vocabulary_has_t5s_special_ids(vocabulary):
    assert (vocabulary.pad_id(), vocabulary.eos_id(), vocabulary.unk_id()) == (0, 1, 2)
    assert len(vocabulary) == 512


@pytest.mark.slow
def test_everything_round_trips_through_the_vocabulary(examples, vocabulary):
    for rows in examples.values():
        for row in rows:
            output = row.teacher_outputs["template"]
            for text in (
                constants.LABEL_PREFIX + row.input,
                constants.RATIONALE_PREFIX + row.input,
                row.label,
                output.label,
                output.rationale,
            ):
                ids = vocabulary.encode(text)
                assert vocabulary.unk_id() not in ids
                assert vocabulary.decode(ids) == text


def test_words_and_numbers_are_one_piece_each(examples, vocabulary):
    for number in range(100):
        assert vocabulary.encode(f"{number}.", out_type=str) == [f"▁{number}", "."]
    words = {word for row in examples["train"] for word in re.findall(r"[A-Za-z]+", row.input)}
    assert {word for word in words if len(vocabulary.encode(word)) != 1} == set()
    assert vocabulary.encode("( ( 12 + 7 ) / 5 )", out_type=str) == [
        "▁(", "▁(", "▁12", "▁+", "▁7", "▁)", "▁/", "▁5", "▁)",
    ]  # fmt: skip


def test_a_users_own_english_has_no_unknown_piece(vocabulary):
    printable = "".join(chr(code) for code in range(33, 127))
    assert vocabulary.unk_id() not in vocabulary.encode(printable)
    assert vocabulary.decode(vocabulary.encode("Zebras cost $120!")) == "Zebras cost $120!"


@pytest.mark.slow
def test_the_vocabulary_command_reproduces_the_shipped_file(tmp_path):
    path = tmp_path / "again.model"
    assert wordproblems.main(["wordproblems", f"--train_vocabulary={path}"]) == 0
    assert path.read_bytes() == wordproblems.VOCABULARY_FILE.read_bytes()


@pytest.mark.slow
def test_show_prints_problems(capsys):
    assert wordproblems.main(["wordproblems", "--show=1"]) == 0
    shown = capsys.readouterr().out
    assert WORKED_OUT[0][1] in shown
    assert "( ( 25 - 22 ) + 3 )" in shown
