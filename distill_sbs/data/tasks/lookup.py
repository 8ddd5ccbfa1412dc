"""What a task or mixture of ours reads, what it is about, and whether its records are there.

Enters: a SeqIO task or mixture. Leaves: its tasks, its dataset, the task that a run is scored by;
its records, prepared where no raw data is needed.
"""

from __future__ import annotations

import seqio

from distill_sbs.data import settings
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.records import build, tfrecords
from distill_sbs.data.tasks.names import DATASETS, INFO, RATIONALE_METHODS, TaskInfo, suggest
from distill_sbs.data.tasks.texts import TextFolder
from distill_sbs.errors import UserError


def get_dataset(name: str) -> DatasetSpec:
    """Looks a dataset up; raises UserError with near matches where there is none."""
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}; {suggest(name, list(DATASETS))}")
    return DATASETS[name]


def get_task_info(mixture_or_task: seqio.Task | seqio.Mixture) -> TaskInfo | None:
    """What a task or mixture of ours is made of; None of one that SeqIO got from elsewhere."""
    return INFO.get(mixture_or_task.name)


def dataset_of(task: seqio.Task) -> DatasetSpec:
    """The dataset that a task of ours reads.

    Raises:
      UserError: the task is not ours.
    """
    info = get_task_info(task)
    if info is None or info.dataset not in DATASETS:
        raise UserError(f"task {task.name!r} belongs to no dataset registered by register_dataset")
    return DATASETS[info.dataset]


def tasks_of(mixture_or_task: seqio.Task | seqio.Mixture) -> list[seqio.Task]:
    """The tasks of a mixture in the order of registration; a task is its own only one."""
    if isinstance(mixture_or_task, seqio.Task):
        return [mixture_or_task]
    order = list(mixture_or_task.rate_per_task_name)
    return sorted(mixture_or_task.tasks, key=lambda task: order.index(task.name))


def is_rationale(task: seqio.Task) -> bool:
    """Whether a task's targets are rationales (its label tasks are what accuracy is about)."""
    info = get_task_info(task)
    return info is not None and info.method == "rationale"


def reads_rationales(task: seqio.Task) -> bool:
    """Whether a task's rows hold a rationale, as target, in it, or in the input."""
    info = get_task_info(task)
    return info is not None and info.method in RATIONALE_METHODS


def is_pretraining(task: seqio.Task) -> bool:
    """Whether a task corrupts plain text: its sequences are others each time it is read."""
    info = get_task_info(task)
    return info is not None and info.method == "pretrain"


def reads_texts(task: seqio.Task) -> bool:
    """Whether a task of ours reads plain texts, not the records of a dataset."""
    info = get_task_info(task)
    return info is not None and info.dataset not in DATASETS


def find_pairs(
    mixture_or_task: seqio.Task | seqio.Mixture, shared_encoder: bool = False
) -> list[tuple[str, str]]:
    """The names of the label task and the rationale task of every dataset of a mixture, in order.

    Args:
      mixture_or_task: what is trained on.
      shared_encoder: whether SHARED_ENCODER asks for them, for messages.

    Raises:
      UserError: it does not have one of both for every dataset.
    """
    tasks = tasks_of(mixture_or_task)
    by_dataset: dict[str, dict[str, str]] = {}
    for task in tasks:
        if info := get_task_info(task):
            by_dataset.setdefault(info.dataset, {})[info.method] = task.name
    found = [
        (of_dataset["label"], of_dataset["rationale"])
        for of_dataset in by_dataset.values()
        if {"label", "rationale"} == set(of_dataset)
    ]
    if 2 * len(found) != len(tasks):
        of_mixture = get_task_info(mixture_or_task)
        dataset = of_mixture.dataset if of_mixture else "DATASET"
        asks, off = (
            (
                "SHARED_ENCODER = True encodes an example once, for its label and its",
                "SHARED_ENCODER = False",
            )
            if shared_encoder
            else (
                "MUTUAL_INFORMATION_WEIGHT above 0 compares each example's label with its",
                "MUTUAL_INFORMATION_WEIGHT = 0.0",
            )
        )
        raise UserError(
            f"{asks} rationale, and "
            f"MIXTURE_OR_TASK_NAME={mixture_or_task.name!r} does not pair them (its tasks: "
            f"{', '.join(task.name for task in tasks)}); train on {dataset}_dss_TEACHER or "
            f"{dataset}_dss_distill_TEACHER, or set {off}"
        )
    return found


def check_pairs(mixture_or_task: seqio.Task | seqio.Mixture, in_pairs: bool) -> None:
    """Refuses a mixture without pairs where SHARED_ENCODER, or the loss (`in_pairs`), wants them.

    Raises:
      UserError: see `find_pairs`.
    """
    shared_encoder = settings.current().shared_encoder
    if shared_encoder or in_pairs:
        find_pairs(mixture_or_task, shared_encoder)


def datasets_of(mixture_or_task: seqio.Task | seqio.Mixture) -> list[DatasetSpec]:
    """The datasets whose records it reads, each once.

    Raises:
      UserError: a task is not ours.
    """
    tasks = [task for task in tasks_of(mixture_or_task) if not reads_texts(task)]
    return list({spec.name: spec for spec in map(dataset_of, tasks)}.values())


def evaluation_task(mixture_or_task: seqio.Task | seqio.Mixture) -> seqio.Task:
    """The task whose accuracy the run reports: the first that is not a rationale task.

    Of a contrast alone it is the label task of its dataset.
    """
    tasks = tasks_of(mixture_or_task)
    found = next((task for task in tasks if not is_rationale(task)), tasks[0])
    info = get_task_info(found)
    if info is not None and info.method == "contrast":
        label: seqio.Task = seqio.TaskRegistry.get(TaskInfo(info.dataset, "label").name)
        return label
    return found


def list_rationale_splits(task: seqio.Task | None) -> list[str]:
    """Of validation and test, those whose records hold rationales of the task's teacher, if any."""
    info = get_task_info(task) if task is not None else None
    if info is None:
        return []
    splits = tfrecords.read_info(settings.current().folder, info.dataset)["splits"]
    return [
        split
        for split in ("validation", "test")
        if split in splits and info.teacher in splits[split]["teachers"]
    ]


def check_selection(mixture_or_task: seqio.Task | seqio.Mixture) -> None:
    """Checks that `SELECTION`, where it is given, chooses of every dataset; no record is read.

    Raises:
      UserError: of one it chooses nothing, or what is read is no dataset.
    """
    selection = settings.current().selection
    if selection is None:
        return
    for spec in datasets_of(mixture_or_task):
        selection.ids_of(spec.name)
    for task in filter(reads_texts, tasks_of(mixture_or_task)):
        raise UserError(
            f"SELECTION={selection.place!r}: {task.name} reads texts, which have no ids; set "
            "SELECTION = None"
        )


def check_prepared(mixture_or_task: seqio.Task | seqio.Mixture) -> None:
    """Checks that the records of every task are there; nothing is written.

    Raises:
      tfrecords.UnpreparedDataError: records are missing; the message holds the command to type.
      UserError: a task reads `TEXT_DIR`, which holds no text, or a file of it that is no text; or
        `SELECTION` has ids that the records lack.
    """
    selection = settings.current().selection
    for spec in datasets_of(mixture_or_task):
        _check_records(spec)
        if selection is not None:
            tfrecords.find_indices(settings.current().folder, spec.name, selection)
    for task in filter(reads_texts, tasks_of(mixture_or_task)):
        if isinstance(task.source, TextFolder):
            task.source.check_files()


def prepare_missing(mixture_or_task: seqio.Task | seqio.Mixture) -> None:
    """Prepares what is missing and can be generated, as `wordproblems` can; checks the rest.

    Raises:
      tfrecords.UnpreparedDataError: see `check_prepared`.
    """
    for spec in datasets_of(mixture_or_task):
        if spec.needs_source_dir:
            continue
        try:
            _check_records(spec)
        except tfrecords.UnpreparedDataError:
            build.prepare_dataset(spec, None, settings.current().folder, None)
    check_prepared(mixture_or_task)


def _check_records(spec: DatasetSpec) -> None:
    """Checks that the records of every split are there."""
    for split in spec.splits:
        tfrecords.split_files(settings.current().folder, spec.name, split)
