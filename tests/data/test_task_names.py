"""registration: a task knows what it is, and a name that may stand for two is refused."""

from __future__ import annotations

import itertools
import pathlib

import pytest
import seqio

from distill_sbs.data import metrics, registration, settings
from distill_sbs.data.dataset import DatasetSpec, Example, RawSplit, TeacherOutput
from distill_sbs.data.records import build
from distill_sbs.data.registration import TaskInfo
from distill_sbs.errors import UserError

_numbers = itertools.count()


def make_spec(name: str, *teachers: str) -> DatasetSpec:
    def read(_: object, split: str) -> RawSplit:
        outputs = {teacher: TeacherOutput("no", f"{teacher} says so") for teacher in teachers}
        return RawSplit(1, lambda: iter([Example(f"{split}-0", "in", "yes", outputs)]))

    return DatasetSpec(name, read, metrics.answers_match, teachers, needs_source_dir=False)


def register(name: str, *teachers: str) -> str:
    """Registers a dataset whose name no other test has used; returns the name."""
    name = f"n{next(_numbers)}{name}"
    registration.register_dataset(make_spec(name, *teachers))
    return name


@pytest.fixture
def data_dir(tmp_path: pathlib.Path):
    settings.use(settings.DataSettings(str(tmp_path)))
    yield tmp_path
    settings.provide(settings.DataSettings)


def prepare_with(data_dir: pathlib.Path, dataset: str, *teachers: str) -> None:
    """Prepares records in which teachers stand that the registration does not know."""
    build.prepare_dataset(make_spec(dataset, *teachers), None, str(data_dir))


@pytest.mark.parametrize(
    ("dataset", "teacher"),
    [
        ("my_rationale_set", "gpt"),
        ("a_dss", "gpt"),
        ("plain", "x_rationale_y"),
        ("plain", "distill_x"),
        ("a_label_b", "dss_distill"),
    ],
)
def test_a_task_is_what_it_was_registered_as(dataset: str, teacher: str) -> None:
    name = register(dataset, teacher)
    label, rationale, joint = (
        registration.get_mixture_or_task(each)
        for each in (f"{name}_label", f"{name}_rationale_{teacher}", f"{name}_joint_{teacher}")
    )
    assert [registration.is_rationale(task) for task in (label, rationale, joint)] == [
        False,
        True,
        False,
    ]
    mixture = registration.get_mixture_or_task(f"{name}_dss_{teacher}")
    assert registration.evaluation_task(mixture).name == f"{name}_label"
    assert registration.get_task_info(rationale) == TaskInfo(name, "rationale", teacher)
    assert registration.get_task_info(mixture) == TaskInfo(name, "dss", teacher)
    assert registration.dataset_of(rationale).name == name
    assert registration.evaluation_task(rationale).name == rationale.name


@pytest.mark.parametrize(
    ("dataset", "method", "teacher"),
    [
        ("a_dss", "dss", "gpt"),
        ("a_label_b", "rationale", "gpt"),
        ("plain", "dss", "x_rationale_y"),
        ("plain", "label", "x_dss_y"),
    ],
)
def test_a_joined_teacher_is_found_by_what_the_records_hold(
    data_dir: pathlib.Path, dataset: str, method: str, teacher: str
) -> None:
    name = register(dataset)
    prepare_with(data_dir, name, teacher)
    found = registration.get_mixture_or_task(f"{name}_{method}_{teacher}")
    assert registration.get_task_info(found) == TaskInfo(name, method, teacher)


def test_of_two_readings_the_records_decide(data_dir: pathlib.Path) -> None:
    short = register("a")
    long = f"{short}_dss"
    registration.register_dataset(make_spec(long))
    prepare_with(data_dir, short, "distill_gpt")
    name = f"{short}_dss_distill_gpt"
    mixture = registration.get_mixture_or_task(name)
    assert registration.get_task_info(mixture) == TaskInfo(short, "dss", "distill_gpt")
    # As soon as the other reading holds too, the name is refused, registered or not.
    prepare_with(data_dir, long, "gpt")
    with pytest.raises(UserError, match=f"{name}' may be 'dss' of .* or 'distill' of dataset"):
        registration.get_mixture_or_task(name)


def test_both_readings_at_once(data_dir: pathlib.Path) -> None:
    short = register("a")
    long = f"{short}_dss"
    registration.register_dataset(make_spec(long))
    for name in (short, long):
        prepare_with(data_dir, name, "gpt")
    assert registration.get_mixture_or_task(f"{short}_dss_gpt")
    with pytest.raises(UserError, match="may be .* join one of the teachers under another name"):
        registration.get_mixture_or_task(f"{short}_dss_distill_gpt")
    assert registration.get_mixture_or_task(f"{long}_label_gpt")


def test_registered_names_that_collide_are_refused() -> None:
    short = register("a", "gpt")
    with pytest.raises(UserError, match="_dss_distill_gpt' would be 'distill' of dataset"):
        registration.register_dataset(make_spec(f"{short}_dss", "gpt"))
    assert f"{short}_dss" not in registration.DATASETS
    with pytest.raises(UserError, match="is 'dss_distill' of dataset .* with teacher 'gpt'"):
        registration.register_teacher(registration.DATASETS[short], "distill_gpt")


@pytest.mark.parametrize("name", ["", "a b", "a/b", "../a", "ä", "a-b"])
def test_names_that_cannot_stand_in_a_task(name: str) -> None:
    with pytest.raises(UserError, match="expected letters, digits and underscores"):
        registration.register_dataset(make_spec(name))
    with pytest.raises(UserError, match="expected letters, digits and underscores"):
        registration.register_dataset(make_spec("good", name))
    assert "good" not in registration.DATASETS


def test_a_task_of_somebody_else() -> None:
    name = f"foreign_rationale_{next(_numbers)}"
    task = seqio.TaskRegistry.add(
        name,
        source=seqio.FunctionDataSource(lambda split, shuffle_files: None, ["train"]),
        output_features=registration.OUTPUT_FEATURES,
    )
    assert not registration.is_rationale(task) and registration.get_task_info(task) is None
    with pytest.raises(UserError, match=f"task '{name}' belongs to no dataset"):
        registration.dataset_of(task)


def test_a_check_writes_nothing(data_dir: pathlib.Path) -> None:
    name = register("embedded")
    task = registration.get_mixture_or_task(f"{name}_label")
    with pytest.raises(UserError, match=f"prepare --dataset={name}"):
        registration.check_prepared(task)
    assert not list(data_dir.iterdir())
    registration.prepare_missing(task)
    assert [path.name for path in data_dir.iterdir()] == [name]
    registration.check_prepared(task)
