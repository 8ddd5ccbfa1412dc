"""prepare: another teacher's published files, warnings of what is plainly wrong, input groups."""

from __future__ import annotations

import json
import pathlib

import pytest

from distill_sbs import prepare
from distill_sbs.data import metrics, registration, settings
from distill_sbs.data.dataset import DatasetSpec, RawSplit, TeacherOutput
from distill_sbs.data.jsonl import JsonlReader
from distill_sbs.data.records import build, joining, tfrecords

pytestmark = pytest.mark.slow  # as a whole: many small tests

LABELS = ("entailment", "neutral", "contradiction")


def write_published(
    folder: pathlib.Path, published_split: str, outputs: list[str], dataset: str = "esnli"
) -> None:
    """Rows whose gold labels go round, and a teacher's texts beside them."""
    (folder / dataset / "llm").mkdir(parents=True, exist_ok=True)
    rows = [
        {"premise": f"{published_split} {i}", "hypothesis": "So.", "label": i % 3}
        for i in range(len(outputs))
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / dataset / f"{dataset}_{published_split}.json").write_text(lines)
    (folder / dataset / "llm" / f"{published_split}_CoT_0.json").write_text(json.dumps(outputs))


def answer(label: str, reason: str = "Because.") -> str:
    return f"{reason}\nAnswer: {label}\n\nPremise: more"


def gold_answers(count: int) -> list[str]:
    return [answer(LABELS[i % 3], f"Reason {i}.") for i in range(count)]


def run(folder: pathlib.Path, *arguments: str) -> int:
    places = [f"--source_dir={folder}", f"--data_dir={folder / 'data'}"]
    return prepare.main(["prepare", "--dataset=esnli", *places, *arguments])


def test_another_teacher_in_the_published_layout(tmp_path: pathlib.Path, capsys) -> None:
    write_published(tmp_path, "test", gold_answers(30))
    assert run(tmp_path, "--splits=test", "--teacher=llama3") == 0
    printed = capsys.readouterr()
    assert "llama3's outputs are those in" in printed.err and "100.00%" in printed.out
    assert "palm" not in printed.out
    entry = tfrecords.read_info(tmp_path / "data", "esnli")["splits"]["test"]
    assert list(entry["teachers"]) == ["llama3"]
    assert entry["teachers"]["llama3"] == {
        "unparsed": 0,
        "label_accuracy": 1.0,
        "mean_rationale_words": 2.0,
        "unanswered": 0,
    }
    (first, *_) = joining.read_examples(str(tmp_path / "data"), "esnli", "test", "llama3")
    assert first.teacher_outputs == {"llama3": TeacherOutput("entailment", "Reason 0.")}
    settings.use(settings.DataSettings(str(tmp_path / "data"), vocabulary_file="bytes"))
    try:
        mixture = registration.get_mixture_or_task("esnli_dss_llama3")
        rationale = registration.tasks_of(mixture)[1]
        assert registration.get_task_info(rationale).teacher == "llama3"
        lengths = {"inputs": 64, "targets": 32, "task_ids": 32}
        assert len(list(rationale.get_dataset(lengths, "test", shuffle=False))) == 30
    finally:
        settings.provide(settings.DataSettings)


def test_another_teacher_beside_palm(tmp_path: pathlib.Path, capsys) -> None:
    write_published(tmp_path, "test", gold_answers(30))
    assert run(tmp_path, "--splits=test") == 0
    before = tfrecords.read_info(tmp_path / "data", "esnli")
    assert list(before["splits"]["test"]["teachers"]) == ["palm"]
    # The files are PaLM's still.
    assert run(tmp_path, "--splits=test", "--teacher=llama3") == 2
    assert "is the one that the records hold as palm's" in capsys.readouterr().err
    assert tfrecords.read_info(tmp_path / "data", "esnli") == before
    write_published(tmp_path, "test", [answer("neutral", f"Hm {i}.") for i in range(30)])
    assert run(tmp_path, "--splits=test", "--teacher=llama3") == 0
    after = tfrecords.read_info(tmp_path / "data", "esnli")["splits"]["test"]["teachers"]
    assert after["palm"] == before["splits"]["test"]["teachers"]["palm"]
    assert after["llama3"]["label_accuracy"] == pytest.approx(1 / 3)
    assert run(tmp_path, "--splits=test", "--teacher=palm") == 2
    assert "has a teacher of that name in its raw data" in capsys.readouterr().err


def test_records_of_other_inputs(tmp_path: pathlib.Path, capsys) -> None:
    write_published(tmp_path, "test", gold_answers(30))
    assert run(tmp_path, "--splits=test") == 0
    write_published(tmp_path, "test", [answer("neutral")] * 31)
    assert run(tmp_path, "--splits=test", "--teacher=llama3") == 0  # the first 30 are the same
    capsys.readouterr()
    write_published(tmp_path, "test", [answer("neutral")] * 29)
    assert run(tmp_path, "--splits=test", "--teacher=llama4") == 2
    assert "were made from other inputs (id 'esnli-test-29'" in capsys.readouterr().err


def test_outputs_that_are_never_parsed(tmp_path: pathlib.Path, capsys) -> None:
    texts = [f"\x1b[31mThe label\nis {i}" for i in range(6)]
    write_published(tmp_path, "test", texts)
    assert run(tmp_path, "--splits=test") == 0
    error = capsys.readouterr().err
    assert "warning: esnli test: 6 of 6 outputs of palm (100%) hold no label and" in error
    assert "(id esnli-test-0): \\x1b[31mThe label is 0\n" in error


@pytest.mark.parametrize(
    ("unparsed", "is_told"), [(2, False), (3, True)], ids=["20 percent", "30 percent"]
)
def test_the_share_of_unparsed_outputs(tmp_path, capsys, unparsed: int, is_told: bool) -> None:
    write_published(tmp_path, "test", ["?"] * unparsed + gold_answers(10)[unparsed:])
    assert run(tmp_path, "--splits=test") == 0
    error = capsys.readouterr().err
    assert ("warning: " in error) == is_told
    assert f"the first of {unparsed} outputs of palm" in error


def test_agreement_that_differs_between_splits(tmp_path: pathlib.Path, capsys) -> None:
    write_published(tmp_path, "train", gold_answers(40))
    wrong = [answer(LABELS[(i + (i > 0)) % 3]) for i in range(40)]
    write_published(tmp_path, "valid", gold_answers(40))
    write_published(tmp_path, "test", wrong)
    assert run(tmp_path) == 0
    error = capsys.readouterr().err
    assert (
        "warning: esnli: the labels of palm agree with the gold labels in 100.0% of validation "
        "but 2.5% of test" in error
    ) or "in 100.0% of train but 2.5% of test" in error
    assert "esnli test: the labels of palm that could be parsed agree" in error
    assert "2.5% of 40 examples" in error
    # Splits prepared earlier are compared with too.
    assert run(tmp_path, "--splits=test") == 0
    assert "but 2.5% of test" in capsys.readouterr().err


def test_agreement_as_by_guessing(tmp_path: pathlib.Path, capsys) -> None:
    write_published(tmp_path, "test", [answer("neutral")] * 60)
    assert run(tmp_path, "--splits=test") == 0
    assert "33.3% of 60 examples, as guessing among 3 would" in capsys.readouterr().err


def test_nothing_is_told_of_plausible_outputs(tmp_path: pathlib.Path, capsys) -> None:
    good = gold_answers(60)
    mixed = [text if i % 4 else answer(LABELS[(i + 1) % 3]) for i, text in enumerate(good)]
    for split in ("train", "valid", "test"):
        write_published(tmp_path, split, mixed)
    assert run(tmp_path) == 0
    printed = capsys.readouterr()
    assert "warning" not in printed.err and printed.out.count("75.00%") == 3


# ---------------------------------- a user's rows -----------------------------


def make_row(number: int, **changes: object) -> dict:
    return {
        "id": f"q{number}",
        "input": f"in {number}",
        "label": "yes",
        "rationale": "why",
        **changes,
    }


def prepare_rows(
    folder: pathlib.Path, rows: list[dict], **files: list[dict]
) -> tuple[dict, list[str]]:
    """The `info.json`, and what was told."""
    for name, content in {"train": rows, **files}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    reader = JsonlReader(
        teacher="gpt", train="train.jsonl", **{name: f"{name}.jsonl" for name in files}
    )
    spec = DatasetSpec("rows", reader, metrics.answers_match, teachers=("gpt",))
    told: list[str] = []
    info = build.prepare_dataset(spec, folder, folder / "data", tell=told.append)
    return info, told


def accuracy(info: dict) -> float | None:
    return info["splits"]["train"]["teachers"]["gpt"]["label_accuracy"]


def test_a_label_compared_with_itself_is_no_accuracy(tmp_path: pathlib.Path) -> None:
    info, told = prepare_rows(tmp_path, [make_row(number) for number in range(30)])
    assert accuracy(info) is None and told == []
    # One label of the teacher's own is enough: it stands where it differs.
    rows = [make_row(number) for number in range(30)]
    rows += [make_row(number, teacher_label="no") for number in range(30, 40)]
    separate = {
        "validation": [make_row(100, input="v")],
        "test": [make_row(200, input="t")],
    }
    info, told = prepare_rows(tmp_path, rows, **separate)
    assert accuracy(info) == 0.75 and told == []


def read_ids(folder: pathlib.Path) -> dict[str, list[str]]:
    return {
        split: [example.id for example in joining.read_examples(folder / "data", "rows", split)]
        for split in ("train", "validation", "test")
    }


def test_rows_of_one_input_stay_in_one_split(tmp_path: pathlib.Path) -> None:
    rows = [
        make_row(10 * number + sample, input=f"question {number}", rationale=f"why {sample}")
        for number in range(30)
        for sample in range(10)
    ]
    info, told = prepare_rows(tmp_path, rows)
    sizes = [entry["examples"] for entry in info["splits"].values()]
    assert sizes == [240, 30, 30]
    found = {
        split: {int(each.removeprefix("q")) // 10 for each in ids}
        for split, ids in read_ids(tmp_path).items()
    }
    assert [len(questions) for questions in found.values()] == [24, 3, 3]
    assert not found["train"] & found["test"] and not found["train"] & found["validation"]
    (line,) = told
    assert "warning: " in line and "270 of 300 rows repeat the input text" in line
    assert "--teacher_outputs" in line


def test_groups_and_inputs_together(tmp_path: pathlib.Path) -> None:
    """Rows 0, 1 and 2 hang together over a group and an input; the others are alone."""
    rows = [make_row(number) for number in range(40)]
    rows[0]["group"] = "a"
    rows[1].update(group="a", input="same")
    rows[2].update(group=7, input="same")
    rows[3]["group"] = 7
    for seed in range(20):
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        reader = JsonlReader(teacher="gpt", train="train.jsonl", seed=seed)
        ids = {
            split: {example.id for example in reader(tmp_path, split).examples()}
            for split in ("train", "validation", "test")
        }
        together = {"q0", "q1", "q2", "q3"}
        assert sum(bool(together & found) for found in ids.values()) == 1
        assert sum(map(len, ids.values())) == 40
        assert len(ids["test"] - together) in (2, 3) and len(ids["validation"] - together) in (2, 3)


def test_the_split_without_repeats_is_as_it_was(tmp_path: pathlib.Path) -> None:
    prepare_rows(tmp_path, [make_row(number) for number in range(40)])
    found = read_ids(tmp_path)
    # Of the sorted ids, permuted by numpy.random.default_rng(0): the first four, the next four.
    assert sorted(found["test"]) == ["q12", "q19", "q30", "q33"]
    assert sorted(found["validation"]) == ["q10", "q11", "q3", "q4"]


@pytest.mark.parametrize("group", [True, 1.5, [], " "])
def test_groups_that_are_none(tmp_path: pathlib.Path, group: object) -> None:
    with pytest.raises(ValueError, match='line 2: "group" is'):
        prepare_rows(tmp_path, [make_row(0), make_row(1, group=group)])


def test_leaks_between_separate_files(tmp_path: pathlib.Path) -> None:
    train = [make_row(number) for number in range(20)]
    test = [make_row(100, input="in 3"), make_row(101), make_row(102, input="in 5"), make_row(103)]
    _, told = prepare_rows(tmp_path, train, validation=[make_row(200)], test=test)
    assert told == [
        "warning: rows: 2 of 4 inputs of test (50.0%) stand in train too: accuracy on test "
        "flatters by as much"
    ]
    # The same when the training split was prepared earlier.
    reader = JsonlReader("train.jsonl", "validation.jsonl", "test.jsonl", teacher="gpt")
    spec = DatasetSpec("rows", reader, metrics.answers_match, teachers=("gpt",))
    again: list[str] = []
    build.prepare_dataset(spec, tmp_path, tmp_path / "data", ["test"], tell=again.append)
    assert again == told


def test_outputs_that_were_left_out_are_no_unparsed_ones(tmp_path: pathlib.Path) -> None:
    """What `--keep=agreeing` leaves out was parsed, so nothing is warned of."""
    _, told = prepare_rows(tmp_path, [make_row(number) for number in range(30)])
    lines = [
        {"id": f"q{i}", "label": "yes" if i % 2 else "no", "rationale": "so"} for i in range(30)
    ]
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "out.jsonl.settings.json").write_text('{"keep": "agreeing"}')
    spec = DatasetSpec("rows", lambda *_: RawSplit(0, lambda: iter(())), metrics.answers_match)
    info = build.join_teacher(
        spec, None, tmp_path / "data", "late", [str(tmp_path / "out.jsonl")], tell=told.append
    )
    assert told == [] and info["splits"]["train"]["teachers"]["late"]["unparsed"] >= 8


def test_several_samples_are_voted_on(tmp_path: pathlib.Path) -> None:
    """What docs/data.md says of several rationales of one input."""
    prepare_rows(tmp_path, [make_row(number) for number in range(30)])
    lines = [
        {"id": f"q{i}", "sample": sample, "label": label, "rationale": f"reason {sample}"}
        for i in range(30)
        for sample, label in enumerate(["no", "yes", "yes"])
    ]
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    spec = DatasetSpec("rows", lambda *_: RawSplit(0, lambda: iter(())), metrics.answers_match)
    build.join_teacher(spec, None, tmp_path / "data", "late", [str(tmp_path / "out.jsonl")])
    outputs = {
        tuple(example.teacher_outputs.items())
        for example in joining.read_examples(tmp_path / "data", "rows", "train", "late")
    }
    assert outputs == {(("late", TeacherOutput("yes", "reason 1", ("reason 2",))),)}
