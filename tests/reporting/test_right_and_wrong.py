"""The page on a student's answers: what is confused, and which examples are shown."""

from __future__ import annotations

import json
import pathlib

import report_runs

from distill_sbs.reporting import page, right_and_wrong
from distill_sbs.reporting.right_and_wrong import Answer


def said(label: str, answer: str, **more: str) -> Answer:
    return Answer(f"is it {label}?", label, answer, label == answer, **more)


def cells(table) -> list[list[object]]:
    return [[entry.value for entry in row] for row in table.rows]


def test_each_label_is_counted_by_what_was_said() -> None:
    every = [said("yes", "yes")] * 3 + [said("yes", "no"), said("no", "no"), said("no", "perhaps")]
    document = right_and_wrong.make_document("It.", {"accuracy": 4 / 6}, every, [], None)
    metrics, confusion = document.tables
    assert cells(metrics) == [["accuracy", 4 / 6]]
    assert [column.title for column in confusion.columns] == [
        "gold label",
        "said: no",
        "said: yes",
        "said: another text",
        "right",
    ]
    assert cells(confusion) == [["no", 1, 0, 1, 0.5], ["yes", 1, 3, 0, 0.75]]


def test_what_counts_as_the_label_stands_under_it() -> None:
    """Another way of writing the label, which the dataset takes for right."""
    every = [Answer("1 + 2?", "( 1 + 2 )", "(1+2)", True)]
    (_, confusion) = right_and_wrong.make_document("It.", {}, every, [], None).tables
    assert cells(confusion) == [["( 1 + 2 )", 1, 1.0]]


def test_open_labels_have_no_table() -> None:
    every = [said(f"name {number}", "x") for number in range(right_and_wrong.MOST_LABELS + 1)]
    assert [
        table.name for table in right_and_wrong.make_document("It.", {}, every, [], None).tables
    ] == ["metrics"]


def test_ten_right_and_ten_wrong_ones_are_shown_with_both_rationales() -> None:
    is_right = [number % 3 == 0 for number in range(60)]
    shown = right_and_wrong.choose_shown(is_right)
    assert sum(is_right[number] for number in shown) == 10 == len(shown) - 10
    assert shown == right_and_wrong.choose_shown(is_right) == sorted(shown)
    assert (
        right_and_wrong.choose_shown([False, True]) == [0, 1]
        and right_and_wrong.choose_shown([]) == []
    )
    every = [said("a", "a", rationale="<b>mine</b>", teacher_rationale="theirs"), said("a", "b")]
    document = right_and_wrong.make_document("It.", {}, every, [0, 1], "palm")
    wrong, right = document.tables[2:]
    assert (wrong.title, right.title) == ("Wrong answers", "Right answers")
    assert cells(right) == [["is it a?", "a", "a", "<b>mine</b>", "theirs"]]
    written = page.write_page(document, "Answers on test")
    assert "&lt;b&gt;mine" in written and "<b>mine" not in written
    assert "<title>Answers on test</title>" in written and "the rationale of palm" in written


def test_the_curves_of_its_run_stand_on_the_page(tmp_path: pathlib.Path) -> None:
    lines = [
        {"step": step, "label_loss": 3 / step, "validation_accuracy": step / 100}
        for step in range(10, 101, 10)
    ]
    report_runs.write_run(tmp_path / "run", 0.75, metrics=lines)
    (figure,) = right_and_wrong.draw_training(str(tmp_path / "run"), "test")
    assert figure.name == "training_1"
    document = right_and_wrong.make_document("It.", {}, [said("a", "a")], [], None, [figure])
    assert "data:image/svg+xml" in page.write_page(document)


def test_a_checkpoint_without_its_run_has_no_curves(tmp_path: pathlib.Path) -> None:
    assert right_and_wrong.draw_training(str(tmp_path), "test") == []
    assert right_and_wrong.draw_training("gs://bucket/run", "test") == []
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}) + "\n")
    assert right_and_wrong.draw_training(str(tmp_path), "test") == []
