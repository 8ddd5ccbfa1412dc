"""quality, teacher_files, products: voting, choosing, the figures of a report, the baseline."""

from __future__ import annotations

import json
import pathlib

import pytest

from distill_sbs import extract
from distill_sbs.data.dataset import Example, TeacherOutput
from distill_sbs.data.readers import thinking
from distill_sbs.data.readers.responses import (
    AnswerIndex,
    Selection,
    input_hash,
    output_of,
    read_lines,
)
from distill_sbs.errors import UserError
from distill_sbs.teacher import export, parsing, prompts, quality
from distill_sbs.teacher.quality import AnsweredExample, Quality


def row(example_id: str, label: str | None, sample: int = 0, **more) -> dict:
    rationale = None if label is None else f"because {sample}"
    return {"id": example_id, "label": label, "rationale": rationale, "sample": sample, **more}


def labels(rows: list[dict]) -> list[tuple[str | None, int]]:
    return [(each["label"], each["sample"]) for each in rows]


# ---------------------------------- choosing ---------------------------------


def test_the_majority_wins_and_the_first_of_equals() -> None:
    rows = [row("a", "x", 0), row("a", None, 1), row("a", "y", 2), row("a", "y", 3)]
    assert labels(Selection().choose(rows, None)) == [("y", 2)]
    assert labels(Selection(rationales="all").choose(rows, None)) == [("y", 2), ("y", 3)]
    assert labels(Selection().choose(rows[:3], None)) == [("x", 0)]


def test_equations_vote_by_value() -> None:
    rows = [row("a", "(9)", 0), row("a", "(2 + 3)", 1), row("a", "(3 + 2)", 2)]
    assert labels(Selection(equations=True, rationales="all").choose(rows, None)) == [
        ("(2 + 3)", 1),
        ("(3 + 2)", 2),
    ]


def test_what_is_kept() -> None:
    unparsed, right, wrong = [row("a", None)], [row("a", "yes")], [row("a", "no")]
    assert labels(Selection("all").choose(unparsed, "yes")) == [(None, 0)]
    assert Selection("parsed").choose(unparsed, "yes") == []
    assert labels(Selection("parsed").choose(wrong, "yes")) == [("no", 0)]
    assert Selection("agreeing").choose(wrong, "yes") == []
    assert labels(Selection("agreeing").choose(right, "yes")) == [("yes", 0)]
    assert labels(Selection("agreeing").choose(wrong, None)) == [("no", 0)]
    assert output_of([]) == output_of(unparsed) == TeacherOutput(None, None)
    assert output_of(right) == TeacherOutput("yes", "because 0")


def test_answers_are_found_by_id_in_several_files(tmp_path: pathlib.Path) -> None:
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    lines = [row("ä", "x", 1), row("b", None, error="empty"), row("ä", "y", 0)]
    first.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in lines))
    second.write_text(json.dumps(row("b", "z")) + "\n" + '{"id": "torn')
    index = AnswerIndex([str(first), str(second)])
    assert len(index) == 4
    assert labels(index.answers("ä")) == [("y", 0), ("x", 1)]
    assert index.never_asked_for() == (2, ["b", "b"])
    assert labels(index.answers("b")) == [("z", 0)]  # a success replaces a failure
    assert index.answers("c") == [] and index.never_asked_for() == (0, [])
    index.close()


# ---------------------------------- figures ----------------------------------


def judged(label: str | None, rationale: str | None, gold: str | None, **more) -> AnsweredExample:
    return AnsweredExample(Example("1", "in", gold), label, rationale, **more)


def test_the_figures_of_a_report() -> None:
    measured = Quality(quality.choose_comparison(False))
    measured.add(judged("cat", "it has whiskers", "cat"))
    measured.add(judged("cat", "it has whiskers", "dog"))
    measured.add(judged("dog", "So the answer is a dog", "dog"))
    measured.add(judged("cow", "it gives us milk every single day", None))
    measured.add(judged(None, None, "cow", raw="moo", problem="no 'So'"))
    measured.add(judged(None, None, "cow", problem="failed: empty answer", failed=True))
    figures = measured.as_dict()
    assert (figures["examples"], figures["parsed"], figures["failed"]) == (6, 4, 1)
    assert (figures["with_gold_label"], figures["agreeing"]) == (5, 2)
    assert figures["accuracy"] == 2 / 5
    assert figures["problems"] == {"no 'So'": 1, "failed: empty answer": 1}
    # 3, 3, 6 and 7 words.
    assert figures["rationale_words"] == {"mean": 4.75, "p5": 3, "p50": 3, "p95": 7, "max": 7}
    assert measured.words_histogram(2) == [(3, 5, 2), (6, 7, 2)]
    assert figures["duplicate_rationales"] == 1
    assert figures["rationales_with_label"] == 1 / 4
    assert figures["rationales_nothing_but_label"] == 1
    assert figures["labels"] == {"cat": 2, "dog": 1, "cow": 1}
    assert figures["gold_labels"] == {"dog": 2, "cow": 2, "cat": 1}
    assert set(measured.shown) == {
        "no 'So'",
        "failed: empty answer",
        "label differs from gold",
        "rationale says nothing but the label",
    }


def test_an_empty_report() -> None:
    measured = Quality(quality.choose_comparison(True))
    assert measured.accuracy is None and measured.mean_words is None
    assert measured.words_histogram() == [] and measured.duplicates == 0


@pytest.mark.parametrize(
    ("rationale", "label", "nothing"),
    [
        ("The answer must be desk drawer.", "desk drawer", True),
        ("Because it is a drawer of a desk.", "desk drawer", True),
        ("Pens are kept in a desk drawer.", "desk drawer", False),
        ("10 * 45", "(10 * 45)", True),
        ("10 * 45 seeds", "(10 * 45)", False),
    ],
)
def test_rationales_that_say_nothing(rationale: str, label: str, nothing: bool) -> None:
    assert quality.says_nothing_but_the_label(rationale, label) == nothing


def test_labels_in_rationales() -> None:
    assert quality.holds_the_label("They planted 10 * 45 seeds.", "(10 * 45)")
    assert quality.holds_the_label("A Desk Drawer will do.", "desk drawer")
    assert not quality.holds_the_label("They planted seeds.", "(10 * 45)")


# ---------------------------------- reports ----------------------------------


def report(*arguments: str) -> int:
    return extract.main(["extract", "--report", *arguments])


def test_report_on_an_output(tmp_path: pathlib.Path, capsys) -> None:
    out = tmp_path / "out.jsonl"
    lines = [
        row("1", "yes", raw="Because. So the answer is yes.", input_hash=input_hash("is it?")),
        row("2", None, raw="I do not know.", input_hash=input_hash("are they?")),
    ]
    out.write_text("".join(json.dumps(each) + "\n" for each in lines))
    # Without inputs there is no gold label.
    assert report("--task=zero_shot", f"--output={out}") == 0
    printed = capsys.readouterr().out
    assert "1 (50.0%)" in printed and "gold" not in printed
    assert "no 'So the answer is'" in printed and "I do not know." in printed

    inputs = tmp_path / "in.jsonl"
    inputs.write_text(
        '{"id": "1", "input": "is it?", "label": "yes"}\n'
        '{"id": "2", "input": "are they?", "label": "no"}\n'
        '{"id": "3", "input": "am I?", "label": "no"}\n'
    )
    more = ["--task=zero_shot", f"--output={out}", f"--input={inputs}"]
    results, figures = tmp_path / "teacher", tmp_path / "report.json"
    more += ["--teacher=gpt", f"--results={results}", f"--report_json={figures}"]
    assert report(*more) == 2  # under which name?
    assert "--results needs --split" in capsys.readouterr().err
    assert report(*more, "--split=test") == 0
    assert "not asked yet" in capsys.readouterr().out
    assert json.loads(figures.read_text())["accuracy"] == 1 / 3
    found = json.loads((results / "results.json").read_text())
    assert found["mixture"] == "zero_shot_teacher_gpt" and found["method"] == "few_shot_cot"
    assert found["test"] == {"accuracy": 1 / 3, "examples": 3, "unparsed": 2}
    assert found["validation"] == {"accuracy": None}
    assert {"data_fraction", "rationale_rate", "seed", "train_steps", "best_step"} <= set(found)

    inputs.write_text('{"id": "1", "input": "another?", "label": "yes"}\n')
    assert report(*more[:3]) == 2
    assert "answered for another input text" in capsys.readouterr().err


def test_positional_texts_must_fit(tmp_path: pathlib.Path) -> None:
    for number, texts in enumerate((["a", "b"], ["c"])):
        (tmp_path / f"train_CoT_{number}.json").write_text(json.dumps(texts))
    paths = export.published_texts(str(tmp_path / "train_CoT_0.json"))
    examples = [Example(str(i), "x", None) for i in range(4)]
    assert list(export.positional_texts(paths, iter(examples[:3]))) == ["a", "b", "c"]
    with pytest.raises(UserError, match="hold 3 texts, fewer than"):
        list(export.positional_texts(paths, iter(examples)))
    with pytest.raises(UserError, match="more texts than there are inputs"):
        list(export.positional_texts(paths, iter(examples[:2])))
    (tmp_path / "train_CoT_0.json").unlink()
    with pytest.raises(UserError, match="train_CoT_0.json is missing"):
        export.published_texts(str(tmp_path / "train_CoT_1.json"))


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("task", "split", "examples", "unparsed", "accuracy"),
    [
        ("cqa", "train", 9_741, 3, 74.26),
        ("cqa", "test", 1_221, 0, 77.23),
        ("svamp", "train", 800, 13, 73.5),
        ("svamp", "test", 200, 2, 74.0),
    ],
)
def test_palm_as_a_baseline(
    source_dir: pathlib.Path, tmp_path, capsys, task, split, examples, unparsed, accuracy
) -> None:
    """Figures counted on the published files before this code was written."""
    folder = source_dir / task
    arguments = [f"--task={task}", f"--input={folder / f'{task}_{split}.json'}"]
    arguments += [f"--output={folder / 'llm' / f'{split}_CoT_0.json'}", f"--split={split}"]
    assert report(*arguments, "--teacher=palm", f"--results={tmp_path}") == 0
    assert f"{examples - unparsed:,}" in capsys.readouterr().out
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["mixture"] == f"{task}_teacher_palm"
    assert found[split]["examples"] == examples and found[split]["unparsed"] == unparsed
    assert round(100 * found[split]["accuracy"], 2) == accuracy


def test_thinking_and_cut_responses_are_counted(tmp_path: pathlib.Path) -> None:
    """In `--report` and in the table at the end of an extraction, which count the same way."""
    prompt = prompts.load("svamp")
    responses_and_reasons = [
        ("<thinking>Hm.</thinking>Add. The answer is (1 + 2).", "stop"),
        ("<|channel|>analysis<|message|>Add. The answer is (1 + 2).", "length"),
        ("Add. The answer is 3 + 4", "length"),
        ("Add. The answer is (3 + 4).", "stop"),
    ]
    output = tmp_path / "out.jsonl"
    with output.open("w") as file:
        for number, (raw, reason) in enumerate(responses_and_reasons):
            parsed = parsing.parse(prompt, "in", raw, reason)
            stored = row(str(number), parsed.label, raw=raw, finish_reason=reason)
            file.write(json.dumps({**stored, "rationale": parsed.rationale}) + "\n")
    index = AnswerIndex([str(output)])
    examples = [Example(str(number), "in", None) for number in range(4)]
    judged = list(quality.judge_index(examples, index, Selection(), prompt))
    index.close()
    measured = quality.measure(judged, equations=True)
    assert [each.label for each in judged] == ["(1 + 2)", None, None, "(3 + 4)"]
    assert measured.with_thinking == measured.as_dict()["with_thinking"] == 2
    assert measured.problems == {thinking.UNFINISHED: 1, parsing.CUT_OFF: 1}
    # What is published of them reads the same.
    texts = [parsing.text_to_publish(index_row) for _, index_row in read_lines(str(output))]
    again = quality.judge_published(examples, texts, "svamp", prompt)
    assert [each.label for each in again] == ["(1 + 2)", None, None, "(3 + 4)"]
