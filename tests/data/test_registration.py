"""registration: the fixed names, SeqIO's own checks, fractions, rates, near matches."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest
import seqio
import tensorflow as tf

from distill_sbs.data import metrics, registration
from distill_sbs.data.dataset import DatasetSpec, Example, RawSplit, TeacherOutput
from distill_sbs.data.feature_converter import StepByStepFeatureConverter
from distill_sbs.data.records import build
from distill_sbs.errors import UserError

LENGTHS = {"inputs": 64, "targets": 48, "task_ids": 48}


def targets(task: str, split: str = "train") -> list[str]:
    dataset = seqio.get_mixture_or_task(task).get_dataset(
        LENGTHS, split, shuffle=False, num_epochs=1
    )
    vocabulary = seqio.ByteVocabulary()
    return [vocabulary.decode(row["targets"].numpy().tolist()) for row in dataset]


@pytest.mark.usefixtures("tiny_settings")
def test_every_fixed_name_exists() -> None:
    tasks, mixtures = seqio.TaskRegistry.names(), seqio.MixtureRegistry.names()
    for dataset, teacher in [
        ("cqa", "palm"),
        ("svamp", "palm"),
        ("esnli", "palm"),
        ("anli1", "palm"),
        ("asdiv", "palm"),
        ("wordproblems", "template"),
        ("comparisons", "template"),
    ]:
        assert {
            f"{dataset}_label",
            f"{dataset}_label_{teacher}",
            f"{dataset}_rationale_{teacher}",
            f"{dataset}_joint_{teacher}",
            f"{dataset}_pinto_{teacher}",
        } <= set(tasks)
        assert {
            f"{dataset}_finetune",
            f"{dataset}_distill_{teacher}",
            f"{dataset}_dss_{teacher}",
            f"{dataset}_dss_distill_{teacher}",
        } <= set(mixtures)
    assert {"svamp_asdiv_finetune", "svamp_asdiv_dss_palm", "svamp_asdiv_dss_distill_palm"} <= set(
        mixtures
    )


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_settings")
def test_tasks_hold_the_right_targets() -> None:
    assert targets("tiny_label")[:2] == ["yes 0", "yes 1"]
    assert len(targets("tiny_label")) == 40
    # Every tenth output could not be parsed: 4 of 40.
    assert len(targets("tiny_label_gpt")) == len(targets("tiny_rationale_gpt")) == 36
    assert targets("tiny_label_gpt")[:2] == ["no 0", "no 1"]
    assert targets("tiny_label_gpt", "test")[0] == "yes 0"
    assert targets("tiny_rationale_gpt")[8:10] == ["rationale 8", "rationale 10"]
    assert targets("tiny_joint_gpt")[0] == "rationale 0 So the answer is yes 0"


@pytest.fixture(scope="module")
def sums_data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A dataset of five sums and a teacher: right, right in other words, wrong, without gold."""
    rows = [
        ("1 + 1", "1 + 1", "first"),
        ("2 + 1", "1 + 2", "second"),
        ("3 + 1", "3 + 2", "third"),
        (None, "4 + 1", "fourth"),
        ("5 + 1", None, None),
    ]

    def read(_: object, split: str) -> RawSplit:
        def examples() -> Iterator[Example]:
            for number, (gold, label, rationale) in enumerate(rows):
                output = {"gpt": TeacherOutput(label, rationale)}
                yield Example(f"{split}-{number}", f"{split} sum {number}", gold, output)

        return RawSplit(len(rows), examples)

    spec = DatasetSpec("sums", read, metrics.equations_match, ("gpt",), needs_source_dir=False)
    registration.register_dataset(spec)
    folder = tmp_path_factory.mktemp("sums")
    build.prepare_dataset(spec, None, str(folder), None)
    return folder


@pytest.mark.slow
def test_agreeing_rationales_are_those_of_right_labels(
    tiny_settings, sums_data: pathlib.Path
) -> None:
    tiny_settings(data_dir=str(sums_data))
    assert targets("sums_rationale_gpt") == ["first", "second", "third", "fourth"]
    tiny_settings(data_dir=str(sums_data), rationale_filter="agreeing")
    assert targets("sums_rationale_gpt") == ["first", "second", "fourth"]
    assert targets("sums_joint_gpt") == [
        "first So the answer is 1 + 1",
        "second So the answer is 2 + 1",
    ]
    assert targets("sums_pinto_gpt") == ["1 + 1", "2 + 1"]
    # Labels stay, and so does what is evaluated on.
    assert targets("sums_label") == ["1 + 1", "2 + 1", "3 + 1", "5 + 1"]
    assert len(targets("sums_rationale_gpt", "validation")) == 4
    assert len(targets("sums_pinto_gpt", "validation")) == 4


def test_an_unknown_filter_is_refused(tiny_settings) -> None:
    with pytest.raises(UserError, match="RATIONALE_FILTER='right' is unknown; known: 'all', 'agr"):
        tiny_settings(rationale_filter="right")


@pytest.mark.usefixtures("tiny_settings")
def test_a_joint_output_without_an_answer_is_wrong_and_counted() -> None:
    task = seqio.get_mixture_or_task("tiny_joint_gpt")
    said = [
        "because So the answer is yes",
        "So the answer is no, or So the answer is no",
        "because So the answer is",
        "because the answer is yes",
    ]
    answers = [task.postprocess_fn(text, is_target=False) for text in said]
    assert answers == ["yes", "no", "", ""]
    (accuracy,) = task.metric_fns
    # Even where the gold label is as empty as the answer.
    assert accuracy(["yes", "yes", "", "yes"], answers) == {"accuracy": 0.25, "unparsed": 0.5}


@pytest.mark.slow
@pytest.mark.parametrize(("fraction", "kept"), [(0.1, 4), (0.33, 14), (1.0, 40)])
def test_fraction_keeps_the_same_examples_for_both_tasks(
    tiny_settings, fraction: float, kept: int
) -> None:
    tiny_settings(data_fraction=fraction)
    labels = {text.split()[1] for text in targets("tiny_label")}
    rationales = {text.split()[1] for text in targets("tiny_rationale_gpt")}
    assert len(labels) == kept
    assert rationales == {i for i in labels if int(i) % 10 != 9}
    assert len(targets("tiny_label", "validation")) == len(targets("tiny_label", "test")) == 8


@pytest.mark.slow
def test_fractions_are_nested(tiny_settings) -> None:
    sets = []
    for fraction in (0.1, 0.25, 0.5):
        tiny_settings(data_fraction=fraction)
        sets.append(set(targets("tiny_label")))
    assert sets[0] < sets[1] < sets[2]


def test_rate_is_lambda(tiny_settings) -> None:
    tiny_settings(rationale_rate=0.25)
    mixture = seqio.get_mixture_or_task("tiny_dss_gpt")
    rates = {task.name: mixture.get_rate(task) for task in mixture.tasks}
    assert rates == {"tiny_label": 1.0, "tiny_rationale_gpt": 0.25}


@pytest.mark.usefixtures("tiny_settings")
def test_long_targets_keep_their_end_token() -> None:
    task = seqio.get_mixture_or_task("tiny_rationale_gpt")
    row = next(iter(task.get_dataset({"inputs": 8, "targets": 5, "task_ids": 5}, shuffle=False)))
    assert row["targets"].numpy().tolist()[-1] == row["inputs"].numpy().tolist()[-1] == 1
    assert row["task_ids"].numpy().tolist() == [2] * 5


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_settings")
def test_seqios_evaluator_scores_a_task() -> None:
    """A constant answer is right for one of the eight test rows."""
    evaluator = seqio.Evaluator(
        mixture_or_task_name="tiny_label",
        feature_converter=StepByStepFeatureConverter(pack=False),
        eval_split="test",
        sequence_length=LENGTHS,
    )
    vocabulary = seqio.ByteVocabulary()

    def always_first(dataset, *_, **__):
        return [(i, list(vocabulary.encode("yes 0"))) for i, _ in dataset]

    metrics_of, _ = evaluator.evaluate(
        compute_metrics=True, step=0, predict_fn=always_first, score_fn=always_first
    )
    assert metrics_of.result()["tiny_label"]["accuracy"] == 1 / 8


@pytest.mark.usefixtures("tiny_settings")
def test_seqios_cache_can_write_every_feature() -> None:
    task = seqio.get_mixture_or_task("tiny_rationale_gpt")
    rows = task.preprocess_precache(task.source.get_dataset("train", shuffle=False))
    # What seqio_cache_tasks does with each row, and what it may come back as.
    example = seqio.utils.dict_to_tfexample(next(rows.as_numpy_iterator()))
    assert example.features.feature["is_train"].int64_list.value[:] == [1]
    assert example.features.feature["targets_pretokenized"].bytes_list.value[:]


@pytest.mark.usefixtures("tiny_settings")
def test_unknown_names_get_near_matches() -> None:
    with pytest.raises(UserError, match="tiny_dss_gpt"):
        registration.get_mixture_or_task("tiny_dss_gtp")
    with pytest.raises(UserError, match="did you mean: cqa"):
        registration.get_dataset("cqaa")


@pytest.mark.usefixtures("tiny_settings")
def test_a_name_is_registered_once() -> None:
    spec = DatasetSpec("tiny", registration.DATASETS["tiny"].reader, metrics.answers_match)
    with pytest.raises(UserError, match="registered already"):
        registration.register_dataset(spec)


def test_a_broken_task_file_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import nothing_of_that_name")
    with pytest.raises(UserError, match=r"mine.py could not be loaded"):
        registration.load_task_files([str(path)])
    with pytest.raises(UserError, match="no such file"):
        registration.load_task_files([str(tmp_path / "other.py")])


def test_unprepared_data_names_the_command(tmp_path: pathlib.Path, tiny_settings) -> None:
    tiny_settings(data_dir=str(tmp_path))
    with pytest.raises(UserError, match="python -m distill_sbs.prepare --dataset=cqa"):
        registration.check_prepared(seqio.get_mixture_or_task("cqa_label"))


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_settings")
def test_a_mixture_in_seqios_terms() -> None:
    """`seqio.test_utils` on the whole mixture: its test split, label task first."""
    dataset = seqio.get_mixture_or_task("tiny_dss_gpt").get_dataset(
        LENGTHS, "test", shuffle=False, num_epochs=1, seed=0
    )
    vocabulary = seqio.ByteVocabulary()
    labels = [row for row in dataset.as_numpy_iterator() if row["task_ids"][0] == 1]
    seqio.test_utils.assert_dataset(
        tf.data.Dataset.from_generator(
            lambda: iter(labels),
            output_signature={key: tf.TensorSpec([None], tf.int32) for key in labels[0]},
        ).take(1),
        {
            "inputs": [*vocabulary.encode("predict: question 0"), 1],
            "targets": [*vocabulary.encode("yes 0"), 1],
            "task_ids": [1] * 6,
        },
    )
