"""preprocessors: each method's (inputs, targets), fractions, task ids."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from distill_sbs.data.tasks import preprocessors


def record(is_train: bool = True, rationale: str = "because", label: str = "yes") -> dict:
    return {
        "input": tf.constant("x"),
        "label": tf.constant(label),
        "gpt_label": tf.constant("no" if rationale else ""),
        "gpt_rationale": tf.constant(rationale),
        "is_train": tf.constant(is_train),
        "index": tf.constant(0, tf.int64),
    }


def texts(pair: tuple[tf.Tensor, tf.Tensor]) -> tuple[str, str]:
    return pair[0].numpy().decode(), pair[1].numpy().decode()


def test_gold_labels() -> None:
    assert texts(preprocessors.label_task(None)(record())) == ("predict: x", "yes")


def test_teacher_labels_in_training_gold_in_evaluation() -> None:
    convert = preprocessors.label_task("gpt")
    assert texts(convert(record())) == ("predict: x", "no")
    assert texts(convert(record(is_train=False))) == ("predict: x", "yes")


def test_rationales() -> None:
    assert texts(preprocessors.rationale_task("gpt")(record())) == ("explain: x", "because")


def test_joint_and_pinto() -> None:
    assert texts(preprocessors.joint_task("gpt")(record())) == (
        "predict: x",
        "because So the answer is yes",
    )
    assert texts(preprocessors.pinto_task("gpt")(record())) == ("predict: x</s>because", "yes")


@pytest.mark.parametrize("method", ["label_task", "rationale_task", "joint_task", "pinto_task"])
def test_an_unparsed_output_is_no_target(method: str) -> None:
    convert = getattr(preprocessors, method)("gpt")
    assert texts(convert(record(rationale="")))[1] == ""


def test_evaluation_counts_rows_without_rationale() -> None:
    row = record(is_train=False, rationale="")
    assert texts(preprocessors.pinto_task("gpt")(row))[1] == "yes"
    assert texts(preprocessors.joint_task("gpt")(row))[1] != ""


def test_rows_without_target_are_dropped() -> None:
    rows = [record(rationale="because"), record(rationale="")]
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(rows),
        output_signature={k: tf.TensorSpec(v.shape, v.dtype) for k, v in rows[0].items()},
    )
    kept = preprocessors.to_text_pair(dataset, preprocessors.rationale_task("gpt"))
    assert [row["targets"].numpy() for row in kept] == [b"because"]


@pytest.mark.parametrize(
    ("examples", "fraction", "kept"),
    [(8766, 0.125, 1096), (720, 0.5, 360), (30, 0.1, 3), (30, 0.11, 4), (7, 1.0, 7), (10, 0.01, 1)],
)
def test_kept_examples_are_rounded_up(examples: int, fraction: float, kept: int) -> None:
    assert preprocessors.count_kept(examples, fraction) == kept


def test_fractions_are_nested_and_seeded() -> None:
    ranks = preprocessors.rank_examples(100, seed=0)
    assert sorted(ranks) == list(range(100))
    small, large = (set(np.flatnonzero(ranks < kept)) for kept in (10, 50))
    assert small < large
    assert not np.array_equal(ranks, preprocessors.rank_examples(100, seed=1))


def test_task_ids_stand_beside_every_target() -> None:
    dataset = tf.data.Dataset.from_tensors({"targets": tf.constant([5, 6, 1])})
    tagged = next(iter(preprocessors.tag_task_ids(dataset, 2)))
    assert tagged["task_ids"].numpy().tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Birds fly. So the answer is sky", "sky"),
        ("So the answer is a. So the answer is b", "b"),
        ("no marker", ""),
    ],
)
def test_answer_after_marker(text: str, answer: str) -> None:
    assert preprocessors.answer_after_marker(text) == answer
