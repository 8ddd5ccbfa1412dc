"""The control of a prepared teacher: `prepare --teacher=shuffled --shuffle_rationales_of=T`."""

from __future__ import annotations

import json
import pathlib

import pytest
import seqio
import tensorflow as tf

from distill_sbs import prepare
from distill_sbs.data import metrics, registration, settings
from distill_sbs.data.dataset import DatasetSpec, Example, RawSplit, TeacherOutput
from distill_sbs.data.readers import shuffled_rationales
from distill_sbs.data.records import build, joining, tfrecords
from distill_sbs.errors import UserError

pytestmark = pytest.mark.slow  # as a whole: many small tests

SIZES = {"train": 12, "validation": 4, "test": 4}
# The unparsed outputs of a split, by position.
UNPARSED = {"train": {0, 7}, "validation": {1}, "test": set()}
DATASET = "cards"


def read_cards(_: object, split: str) -> RawSplit:
    examples = []
    for number in range(SIZES[split]):
        parsed = number not in UNPARSED[split]
        # Every fourth label of the teacher is wrong.
        label = "no" if number % 4 == 3 else "yes"
        output = TeacherOutput(*((label, f"{split} reason {number}") if parsed else (None, None)))
        examples.append(Example(f"{split}-{number}", f"card {number}", "yes", {"oak": output}))
    return RawSplit(SIZES[split], lambda: iter(examples))


CARDS = DatasetSpec(
    DATASET, read_cards, metrics.answers_match, teachers=("oak",), needs_source_dir=False
)


@pytest.fixture
def data_dir(tmp_path: pathlib.Path):
    """`cards`, prepared, with the outputs of `oak`."""
    if DATASET not in registration.DATASETS:
        registration.register_dataset(CARDS)
    folder = tmp_path / "data"
    build.prepare_dataset(CARDS, None, str(folder))
    settings.use(settings.DataSettings(str(folder), vocabulary_file="bytes"))
    yield folder
    settings.provide(settings.DataSettings)


def outputs(data_dir: pathlib.Path, split: str, teacher: str) -> list[TeacherOutput]:
    examples = joining.read_examples(str(data_dir), DATASET, split, teacher)
    return [example.teacher_outputs[teacher] for example in examples]


def contents(data_dir: pathlib.Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((data_dir / DATASET).iterdir())}


def test_labels_stay_and_rationales_move(data_dir: pathlib.Path) -> None:
    info = prepare.prepare(
        DATASET, data_dir=str(data_dir), teacher="shuffled", shuffle_rationales_of="oak"
    )
    assert info == tfrecords.read_info(data_dir, DATASET)
    for split in SIZES:
        original, shuffled = (outputs(data_dir, split, name) for name in ("oak", "shuffled"))
        assert [each.label for each in shuffled] == [each.label for each in original]
        assert {number for number, each in enumerate(shuffled) if each.rationale is None} == (
            UNPARSED[split]
        )
        moved = [
            (before.rationale, after.rationale)
            for before, after in zip(original, shuffled, strict=True)
            if before.rationale is not None
        ]
        assert sorted(after or "" for _, after in moved) == sorted(before for before, _ in moved)
        assert not any(before == after for before, after in moved)
        figures = info["splits"][split]["teachers"]
        assert figures["shuffled"] == {
            **figures["oak"],
            "unanswered": len(UNPARSED[split]),
            "rationales_of": "oak",
        }
    # What `numpy.random.default_rng(0).permutation(4)` says, 2 0 1 3: one cycle.
    assert [each.rationale for each in outputs(data_dir, "test", "shuffled")] == [
        "test reason 1",
        "test reason 3",
        "test reason 0",
        "test reason 2",
    ]


def test_the_mixture_trains_on_it(data_dir: pathlib.Path) -> None:
    with pytest.raises(UserError, match="--teacher=shuffled --shuffle_rationales_of=TEACHER would"):
        registration.get_mixture_or_task(f"{DATASET}_dss_shuffled")
    build.join_shuffled_teacher(CARDS, str(data_dir), "shuffled", "oak")
    mixture = registration.get_mixture_or_task(f"{DATASET}_dss_shuffled")
    names = [task.name for task in registration.tasks_of(mixture)]
    assert names == [f"{DATASET}_label", f"{DATASET}_rationale_shuffled"]
    lengths = {"inputs": 64, "targets": 32, "task_ids": 32}
    task = registration.get_mixture_or_task(names[1])
    rows = task.get_dataset(lengths, "train", shuffle=False, num_epochs=1)
    found = [seqio.ByteVocabulary().decode(row["targets"].numpy().tolist()) for row in rows]
    assert found == [
        each.rationale for each in outputs(data_dir, "train", "shuffled") if each.label
    ]


def test_the_rest_of_the_records_stays(data_dir: pathlib.Path) -> None:
    def fields(split: str) -> list[dict]:
        files = tfrecords.split_files(data_dir, DATASET, split)
        rows = tf.data.TFRecordDataset(files).map(lambda s: tfrecords.parse_record(s, ["oak"]))
        return [
            {name: value for name, value in row.items() if "more" not in name}
            for row in rows.as_numpy_iterator()
        ]

    before = {split: fields(split) for split in SIZES}
    build.join_shuffled_teacher(CARDS, str(data_dir), "shuffled", "oak", ["train"])
    assert {split: fields(split) for split in SIZES} == before
    teachers = {
        split: list(entry["teachers"])
        for split, entry in tfrecords.read_info(data_dir, DATASET)["splits"].items()
    }
    assert teachers == {"train": ["oak", "shuffled"], "validation": ["oak"], "test": ["oak"]}


def test_twice_is_the_same(data_dir: pathlib.Path) -> None:
    info = build.join_shuffled_teacher(CARDS, str(data_dir), "shuffled", "oak")
    before = {split: outputs(data_dir, split, "shuffled") for split in SIZES}
    assert build.join_shuffled_teacher(CARDS, str(data_dir), "shuffled", "oak") == info
    assert {split: outputs(data_dir, split, "shuffled") for split in SIZES} == before


def write_samples(file: pathlib.Path, numbers: range) -> str:
    rows = [
        {
            "id": f"train-{number}",
            "sample": sample,
            "label": "yes",
            "rationale": f"{number} {sample}",
        }
        for number in numbers
        for sample in range(2)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_of_a_teacher_that_was_joined(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Only in the splits that hold it; the rationales of one example move together."""
    told: list[str] = []
    samples = write_samples(tmp_path / "samples.jsonl", range(3))
    build.join_teacher(CARDS, None, str(data_dir), "elm", [samples])
    info = build.join_shuffled_teacher(CARDS, str(data_dir), "mixed", "elm")
    assert [split for split, each in info["splits"].items() if "mixed" in each["teachers"]] == [
        "train"
    ]
    found = outputs(data_dir, "train", "mixed")
    for number, output in enumerate(found[:3]):
        assert output.rationale is not None
        taken = int(output.rationale.split()[0])
        assert taken != number and output.more_rationales == (f"{taken} 1",)
    assert {output.rationale for output in found[3:]} == {None}
    # The original changes: the control does not by itself, and is told of.
    build.join_teacher(CARDS, None, str(data_dir), "elm", [samples], tell=told.append)
    assert told[-1] == (
        "note: cards train: mixed is still elm as it was before; --teacher=mixed "
        "--shuffle_rationales_of=elm shuffles it anew"
    )


def test_labels_that_are_copies_of_gold_are_not_compared(tmp_path: pathlib.Path) -> None:
    def read(_: object, split: str) -> RawSplit:
        examples = [
            Example(
                f"{split}-{n}",
                f"in {n}",
                "yes",
                {"me": TeacherOutput("yes", f"so {n}", label_is_gold=True)},
            )
            for n in range(3)
        ]
        return RawSplit(3, lambda: iter(examples))

    spec = DatasetSpec("copied", read, metrics.answers_match, ("me",), needs_source_dir=False)
    build.prepare_dataset(spec, None, tmp_path)
    info = build.join_shuffled_teacher(spec, tmp_path, "shuffled", "me")
    assert info["splits"]["train"]["teachers"]["shuffled"]["label_accuracy"] is None


# ---------------------------------- bad uses ----------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--shuffle_rationales_of=oak", "needs --teacher=NAME, the name to call the control by"),
        ("--shuffle_rationales_of=oak --teacher=oak", "the control would replace the teacher"),
        (
            "--shuffle_rationales_of=oak --teacher=shuffled --teacher_outputs=a.jsonl",
            "takes outputs that are joined already",
        ),
        (
            "--shuffle_rationales_of=aok --teacher=shuffled",
            "no outputs of a teacher 'aok' in train, validation, test, only oak; did you mean oak?",
        ),
        ("--shuffle_rationales_of=oak --teacher=Shuffled", "expected lower-case letters"),
        ("--shuffle_rationales_of=oak --teacher=x --splits=dev", "has no split 'dev'"),
        ("--shuffle_rationales_of= --teacher=shuffled", "no outputs of a teacher ''"),
        (
            "--shuffle_rationales_of=oak --teacher=shuffled --data_dir=/nowhere",
            "cards is not prepared: /nowhere/cards/info.json is missing",
        ),
    ],
)
def test_bad_uses_are_refused(
    data_dir: pathlib.Path, capsys: pytest.CaptureFixture[str], flags: str, message: str
) -> None:
    before = contents(data_dir)
    arguments = ["prepare", f"--dataset={DATASET}", f"--data_dir={data_dir}", *flags.split()]
    assert prepare.main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("error") == 1 and said.out == ""
    assert contents(data_dir) == before


def test_one_rationale_cannot_be_shuffled(
    data_dir: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = write_samples(tmp_path / "samples.jsonl", range(1))
    build.join_teacher(CARDS, None, str(data_dir), "ash", [samples])
    before = contents(data_dir)
    arguments = ["prepare", f"--dataset={DATASET}", f"--data_dir={data_dir}", "--teacher=shuffled"]
    assert prepare.main([*arguments, "--shuffle_rationales_of=ash"]) == 2
    assert "cards train: 1 rationale of ash, expected two or more" in capsys.readouterr().err
    assert contents(data_dir) == before


def test_what_is_lost_is_told_with_the_flags_that_bring_it_back(
    data_dir: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prepare", f"--dataset={DATASET}", f"--data_dir={data_dir}"]
    again = ["--teacher=shuffled", "--shuffle_rationales_of=oak"]
    assert prepare.main([*arguments, *again]) == 0
    assert "shuffled" in capsys.readouterr().out
    assert prepare.main(arguments) == 0
    assert f"{' '.join(again)} joins them again" in capsys.readouterr().out


@pytest.mark.parametrize("count", range(6))
def test_go_round_is_one_cycle(count: int) -> None:
    taken = shuffled_rationales.go_round(count, 3)
    place, visited = 0, []
    for _ in taken:
        place = taken[place]
        visited.append(place)
    assert sorted(visited) == list(range(count))
