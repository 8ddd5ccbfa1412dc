"""joining: outputs by id into records, names that appear with them, the circle to a student."""

from __future__ import annotations

import json
import pathlib

import model_examples
import pytest
import seqio
import tensorflow as tf
from teacher_server import problems, running, write_answers

from distill_sbs import extract, prepare
from distill_sbs.config import TrainConfig
from distill_sbs.data import metrics, registration, settings
from distill_sbs.data.batches import input_pipeline
from distill_sbs.data.dataset import DatasetSpec, Example, RawSplit
from distill_sbs.data.jsonl import JsonlReader
from distill_sbs.data.readers import request_description, responses
from distill_sbs.data.records import build, tfrecords
from distill_sbs.errors import UserError

SIZES = {"train": 24, "validation": 4, "test": 4}


def read_ring(_: object, split: str) -> RawSplit:
    first = {"train": 0, "validation": 24, "test": 28}[split]
    chosen = problems(32)[first : first + SIZES[split]]
    examples = [Example(each.id, each.input, each.label) for each in chosen]
    return RawSplit(SIZES[split], lambda: iter(examples))


RING = DatasetSpec("ring", read_ring, metrics.equations_match, needs_source_dir=False)


@pytest.fixture
def data_dir(tmp_path: pathlib.Path):
    """`ring`, prepared: 32 word problems without a teacher."""
    if "ring" not in registration.DATASETS:
        registration.register_dataset(RING)
    folder = tmp_path / "data"
    build.prepare_dataset(RING, None, str(folder))
    settings.use(settings.DataSettings(str(folder), vocabulary_file="bytes"))
    yield folder
    settings.provide(settings.DataSettings)


def write_outputs(path: pathlib.Path, numbers: range, **changes) -> str:
    """Outputs for some of the problems: label "( 1 + n )", every fifth one unparsed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for number in numbers:
            example = problems(32)[number]
            parsed = number % 5 != 4
            row = {"id": example.id, "raw": "…", "sample": 0, "model": "m"}
            row["label"] = f"( 1 + {number} )" if parsed else None
            row["rationale"] = f"reason {number}" if parsed else None
            row["input_hash"] = responses.input_hash(example.input)
            file.write(json.dumps({**row, **changes}) + "\n")
    return str(path)


def fields(data_dir: pathlib.Path, split: str, teacher: str) -> list[tuple[str, str]]:
    files = tfrecords.split_files(data_dir, "ring", split)
    rows = tf.data.TFRecordDataset(files).map(lambda s: tfrecords.parse_record(s, [teacher]))
    return [
        (row[f"{teacher}_label"].decode(), row[f"{teacher}_rationale"].decode())
        for row in rows.as_numpy_iterator()
    ]


def join(data_dir: pathlib.Path, teacher: str, *files: str, splits=None) -> dict:
    return build.join_teacher(RING, None, str(data_dir), teacher, files, splits)


def test_outputs_are_joined_by_id_and_counted(data_dir: pathlib.Path, tmp_path) -> None:
    # Two files, the later ids first, none for the last four of the training split.
    first = write_outputs(tmp_path / "b.jsonl", range(10, 20))
    second = write_outputs(tmp_path / "a.jsonl", range(0, 10))
    info = join(data_dir, "gpt", first, second)
    assert info == tfrecords.read_info(data_dir, "ring")
    figures = info["splits"]["train"]["teachers"]["gpt"]
    # Unparsed: 4, 9, 14, 19, and the four without an answer.
    assert figures["unparsed"] == 8 and figures["unanswered"] == 4
    assert figures["mean_rationale_words"] == 2.0
    assert info["splits"]["test"]["teachers"] == {}
    found = fields(data_dir, "train", "gpt")
    assert found[3] == ("( 1 + 3 )", "reason 3")
    assert found[4] == found[20] == ("", "")
    # A second teacher leaves the first one as it is.
    info = join(data_dir, "other", write_outputs(tmp_path / "c.jsonl", range(32)))
    assert list(info["splits"]["train"]["teachers"]) == ["gpt", "other"]
    assert list(info["splits"]["validation"]["teachers"]) == ["other"]
    assert fields(data_dir, "train", "gpt") == found
    assert fields(data_dir, "test", "other")[0] == ("( 1 + 28 )", "reason 28")


def test_only_the_splits_that_are_named(data_dir: pathlib.Path, tmp_path) -> None:
    outputs = write_outputs(tmp_path / "a.jsonl", range(32))
    info = join(data_dir, "gpt", outputs, splits=["validation"])
    assert [split for split, entry in info["splits"].items() if entry["teachers"]] == ["validation"]


def test_what_was_not_kept_is_not_trained_on(data_dir: pathlib.Path, tmp_path) -> None:
    outputs = write_outputs(tmp_path / "a.jsonl", range(4), label=problems(1)[0].label)
    kept = {"keep": "agreeing", "answers": "equation"}
    request_description.path_of(outputs).write_text(json.dumps(kept))
    join(data_dir, "gpt", outputs)
    assert [bool(label) for label, _ in fields(data_dir, "train", "gpt")[:4]] == [
        True,
        False,
        False,
        False,
    ]


def write_samples(path: pathlib.Path) -> str:
    """Of the first three problems of training: three votes of four; one of one; none."""
    votes = {
        0: [("( 1 + 2 )", "first"), ("( 9 )", "wrong"), ("( 2 + 1 )", "second"), ("( 1 + 2 )", "")],
        1: [("( 5 )", "alone")],
        2: [(None, None)],
    }
    votes[0].append(("( 3 )", "third, by value"))
    with path.open("w") as file:
        for number, samples in votes.items():
            example = problems(32)[number]
            for sample, (label, rationale) in enumerate(samples):
                row = {"id": example.id, "raw": "…", "sample": sample, "model": "m"}
                row |= {"label": label, "rationale": rationale or None}
                row["input_hash"] = responses.input_hash(example.input)
                file.write(json.dumps(row) + "\n")
    request_description.RequestDescription(answers="equation").write(str(path))
    return str(path)


def read_training(task: str, epochs: int) -> list[list[str]]:
    """The targets of some epochs, in file order."""
    lengths = {"inputs": 200, "targets": 40, "task_ids": 40}
    data = input_pipeline.load_training_data(
        registration.get_mixture_or_task(task), lengths, batch_size=2, seed=0
    )
    (tokenised,) = data.tasks
    read = [tokenised.redraw(epoch) for epoch in range(epochs)] if tokenised.redraw else []
    vocabulary = seqio.ByteVocabulary()
    return [
        [vocabulary.decode(each.targets.tolist()) for each in sequences]
        for sequences in read or [tokenised.sequences]
    ]


@pytest.mark.slow
def test_several_rationales_take_turns(data_dir: pathlib.Path, tmp_path) -> None:
    join(data_dir, "many", write_samples(tmp_path / "samples.jsonl"))
    assert read_training("ring_rationale_many", 3) == [["first", "alone"]]
    use = {"data_dir": str(data_dir), "vocabulary_file": "bytes"}
    settings.use(settings.DataSettings(**use, rationales_per_example=2))
    turns = [["first", "alone"], ["second", "alone"]]
    assert read_training("ring_rationale_many", 3) == [*turns, turns[0]]
    settings.use(settings.DataSettings(**use, rationales_per_example=8))
    turns.append(["third, by value", "alone"])
    assert read_training("ring_rationale_many", 4) == [*turns, turns[0]]
    # Labels are what they were, one row an example.
    assert len(read_training("ring_label", 1)[0]) == 24


@pytest.mark.slow
def test_another_join_forgets_further_rationales(data_dir: pathlib.Path, tmp_path) -> None:
    join(data_dir, "many", write_samples(tmp_path / "samples.jsonl"))
    join(data_dir, "many", write_outputs(tmp_path / "others.jsonl", range(24)))
    settings.use(
        settings.DataSettings(str(data_dir), vocabulary_file="bytes", rationales_per_example=8)
    )
    (first, second) = read_training("ring_rationale_many", 2)
    assert first == second and first[0] == "reason 0"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "train-999"}, "1 of 1 answers have ids that no prepared split of ring holds, such"),
        ({"input_hash": "0" * 16}, "id 'train-0' was answered for another input text"),
    ],
)
def test_outputs_of_other_inputs_are_refused(
    data_dir: pathlib.Path, tmp_path, change: dict, message: str
) -> None:
    before = tfrecords.read_info(data_dir, "ring")
    outputs = write_outputs(tmp_path / "a.jsonl", range(1), **change)
    with pytest.raises(UserError, match=message):
        join(data_dir, "gpt", outputs)
    assert tfrecords.read_info(data_dir, "ring") == before
    assert [path.name for path in data_dir.iterdir()] == ["ring"]


def test_no_output_for_the_splits_asked_for(data_dir: pathlib.Path, tmp_path) -> None:
    outputs = write_outputs(tmp_path / "a.jsonl", range(5))
    with pytest.raises(UserError, match="no answer for an example of ring test"):
        join(data_dir, "gpt", outputs, splits=["test"])


@pytest.mark.parametrize("name", ["GPT", "4o", "a-b", "distill_x", ""])
def test_names_that_no_task_can_bear(data_dir: pathlib.Path, name: str) -> None:
    with pytest.raises(UserError, match="expected lower-case letters"):
        join(data_dir, name, "out.jsonl")


def test_the_name_of_a_teacher_that_is_there_already() -> None:
    spec = DatasetSpec("x", read_ring, metrics.answers_match, teachers=("palm",))
    with pytest.raises(UserError, match="has a teacher of that name"):
        build.join_teacher(spec, None, "nowhere", "palm", ["out.jsonl"])


# ---------------------------------- names ------------------------------------


def test_names_appear_with_the_records(data_dir: pathlib.Path, tmp_path) -> None:
    with pytest.raises(UserError, match="prepare --dataset=ring --teacher=late would join"):
        registration.get_mixture_or_task("ring_dss_late")
    assert "ring_label_late" not in seqio.TaskRegistry.names()
    join(data_dir, "late", write_outputs(tmp_path / "a.jsonl", range(20)))
    mixture = registration.get_mixture_or_task("ring_dss_late")
    assert [task.name for task in registration.tasks_of(mixture)] == [
        "ring_label",
        "ring_rationale_late",
    ]
    lengths = {"inputs": 256, "targets": 32, "task_ids": 32}
    task = registration.get_mixture_or_task("ring_label_late")
    rows = task.get_dataset(lengths, "train", shuffle=False, num_epochs=1)
    decoded = [seqio.ByteVocabulary().decode(row["targets"].numpy().tolist()) for row in rows]
    assert len(decoded) == 16 and decoded[:2] == ["( 1 + 0 )", "( 1 + 1 )"]
    for name in ("ring_dss_distill_late", "ring_joint_late", "ring_pinto_late"):
        assert registration.dataset_of(
            registration.tasks_of(registration.get_mixture_or_task(name))[-1]
        ).name == ("ring")


def test_an_augmented_dataset_needs_the_teacher_in_both(data_dir: pathlib.Path, tmp_path) -> None:
    if "ring_more_finetune" not in seqio.MixtureRegistry.names():
        more = DatasetSpec("more", read_ring, metrics.equations_match, needs_source_dir=False)
        registration.register_dataset(more)
        for name in ("ring", "more"):
            registration.register_teacher(registration.DATASETS[name], "first")
        registration.register_augmented("ring_more", "ring", "more", teacher="first")
    build.prepare_dataset(registration.DATASETS["more"], None, str(data_dir))
    outputs = write_outputs(tmp_path / "a.jsonl", range(20))
    join(data_dir, "both", outputs)
    with pytest.raises(UserError, match="more holds nothing of a teacher 'both'"):
        registration.get_mixture_or_task("ring_more_dss_both")
    more = registration.DATASETS["more"]
    build.join_teacher(more, None, str(data_dir), "both", [outputs])
    mixture = registration.get_mixture_or_task("ring_more_dss_both")
    assert [task.name for task in registration.tasks_of(mixture)] == [
        "ring_label",
        "more_label_both",
        "ring_rationale_both",
        "more_rationale_both",
    ]


# ---------------------------------- entry points -----------------------------


def test_prepare_names_what_is_missing(data_dir: pathlib.Path, tmp_path, capsys) -> None:
    arguments = ["prepare", "--dataset=ring", f"--data_dir={data_dir}"]
    assert prepare.main([*arguments, "--teacher=gpt"]) == 2
    assert "python -m distill_sbs.extract --dataset=ring" in capsys.readouterr().err
    assert prepare.main([*arguments, "--teacher_outputs=x.jsonl"]) == 2
    assert "--teacher_outputs needs --teacher=NAME" in capsys.readouterr().err
    assert prepare.main([*arguments, "--teacher=gpt", "--teacher_outputs=x.jsonl"]) == 2
    assert "x.jsonl: no such file" in capsys.readouterr().err
    outputs = write_outputs(tmp_path / "a.jsonl", range(20))
    assert prepare.main([*arguments, "--teacher=gpt", f"--teacher_outputs={outputs}"]) == 0
    assert "gpt" in capsys.readouterr().out
    assert prepare.main(arguments) == 0
    assert "train holds gpt's outputs no more" in capsys.readouterr().out


def test_a_users_jsonl_without_rationales(tmp_path: pathlib.Path) -> None:
    rows = ({"id": i, "input": f"in {i}", "label": "yes"} for i in range(30))
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = DatasetSpec("mine_bare", JsonlReader(train="mine.jsonl"), metrics.answers_match)
    info = build.prepare_dataset(spec, tmp_path, tmp_path / "data")
    assert info["splits"]["train"] == {"examples": 24, "teachers": {}}
    with open(tmp_path / "out.jsonl", "w") as file:
        for i in range(30):
            file.write(json.dumps({"id": str(i), "label": "yes", "rationale": "so"}) + "\n")
    info = build.join_teacher(spec, None, tmp_path / "data", "gpt", [str(tmp_path / "out.jsonl")])
    accuracies = {
        split: entry["teachers"]["gpt"]["label_accuracy"] for split, entry in info["splits"].items()
    }
    assert accuracies == {"train": 1.0, "validation": 1.0, "test": 1.0}


@pytest.mark.slow
def test_the_whole_circle(data_dir: pathlib.Path, tmp_path: pathlib.Path, capsys) -> None:
    """Extract from the scripted server, prepare, train; then the teacher as a baseline."""
    from distill_sbs.train import train

    answers = write_answers(tmp_path / "answers.jsonl", problems(32))
    asked = ["extract", "--dataset=ring", f"--data_dir={data_dir}", "--teacher=circle"]
    with running(answers, "--faults=0.2", "--kinds", "500", "malformed", "empty") as server:
        asking = ["--task=wordproblems", f"--base_url={server.url}", "--model=scripted"]
        for split in ("train", "test"):
            assert extract.main([*asked, *asking, f"--split={split}"]) == 0
    assert (data_dir / "teachers" / "ring" / "circle" / "llm" / "train_CoT_0.json").is_file()
    assert (
        prepare.main(["prepare", "--dataset=ring", f"--data_dir={data_dir}", "--teacher=circle"])
        == 0
    )
    info = tfrecords.read_info(data_dir, "ring")["splits"]
    assert info["train"]["teachers"]["circle"]["unanswered"] == 0
    config = TrainConfig.from_options(
        model_dir=str(tmp_path / "run"),
        mixture_or_task_name="ring_dss_circle",
        task_feature_lengths={"inputs": 256, "targets": 64, "task_ids": 64},
        train_steps=2,
        batch_size=8,
        initial_checkpoint_path=None,
        vocabulary_file="embedded",
        data_dir=str(data_dir),
        student="t5_1_1_tiny",
        student_overrides={"vocab_size": 512, **model_examples.ONE_LAYER},
        eval_period=2,
        log_period=1,
        max_decode_tokens=8,
    )
    results = train(config)
    assert results["mixture"] == "ring_dss_circle"
    assert 0.0 <= results["test"]["accuracy"] <= 1.0
    capsys.readouterr()
    baseline = ["--report", "--split=test", f"--results={tmp_path / 'teacher'}"]
    assert extract.main([*asked, *baseline, "--task=wordproblems"]) == 0
    found = json.loads((tmp_path / "teacher" / "results.json").read_text())
    teacher = info["test"]["teachers"]["circle"]["label_accuracy"]
    assert found["mixture"] == "ring_teacher_circle" and found["test"]["accuracy"] == teacher
