"""From a dataset's description to its SeqIO tasks and mixtures.

Enters: a `DatasetSpec` (one file in `tasks/`, or a user's own). Leaves: the tasks and mixtures
that docs/data.md names, in SeqIO's registries, and beside each a `TaskInfo` that says what it is: a
name is looked up, never taken apart. Nothing is read before a task's data is asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio

from distill_sbs import constants, resources
from distill_sbs.data import metrics, settings, vocabulary
from distill_sbs.data.dataset import AnswerCheck, DatasetSpec
from distill_sbs.data.records import build, tfrecords
from distill_sbs.data.tasks import preprocessors, task_files
from distill_sbs.data.tasks.source import RecordsDataSource
from distill_sbs.errors import UserError, nearest_names

DATASETS: dict[str, DatasetSpec] = {}


@dataclasses.dataclass(frozen=True)
class TaskInfo:
    """What a task or a mixture of ours is made of; its name is these three, joined by `_`.

    Attributes:
      dataset: the dataset's name; of a mixture of two datasets, the name that both have together.
      method: of tasks `label`, `rationale`, `joint` or `pinto`; of mixtures `finetune`, `distill`,
        `dss` or `dss_distill`.
      teacher: whose outputs it reads; None where it reads gold labels alone.
    """

    dataset: str
    method: str
    teacher: str | None = None

    @property
    def name(self) -> str:
        """The name in SeqIO's registries."""
        return "_".join(filter(None, (self.dataset, self.method, self.teacher)))


# Every task and mixture of ours by name.
_INFO: dict[str, TaskInfo] = {}
# Name of an augmented dataset -> (base, augmentation).
_AUGMENTED: dict[str, tuple[str, str]] = {}
_TASK_METHODS = ("label", "rationale", "joint", "pinto")
_MIXTURE_METHODS = ("distill", "dss", "dss_distill")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")

OUTPUT_FEATURES = {
    constants.INPUTS: seqio.Feature(vocabulary.ConfiguredVocabulary(), add_eos=True),
    constants.TARGETS: seqio.Feature(vocabulary.ConfiguredVocabulary(), add_eos=True),
    constants.TASK_IDS: seqio.Feature(seqio.PassThroughVocabulary(size=3), add_eos=False),
}


def _accuracy_metric(is_correct: AnswerCheck) -> Callable[..., Mapping[str, float]]:
    def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
        """Share of right answers, 0 to 1."""
        pairs = zip(targets, predictions, strict=True)
        return {"accuracy": sum(is_correct(*pair) for pair in pairs) / max(len(targets), 1)}

    return accuracy


def _joint_answer(text: str, **_: Any) -> str:
    """SeqIO postprocessor of joint tasks: scores the label, not the rationale."""
    return preprocessors.answer_after_marker(text)


def _check_free(infos: Sequence[TaskInfo]) -> None:
    """Refuses names that something else bears already.

    Raises:
      UserError: a name is taken; it says by what, and what to rename.
    """
    for info in infos:
        if not _is_registered(info.name):
            continue
        owner = _INFO.get(info.name)
        bearer = _describe(owner) if owner else "something that SeqIO holds already"
        raise UserError(
            f"{info.name!r} would be {_describe(info)}, but is {bearer}; give the data set or the "
            "teacher another name"
        )


def _describe(info: TaskInfo) -> str:
    of_teacher = f" with teacher {info.teacher!r}" if info.teacher else ""
    return f"{info.method!r} of data set {info.dataset!r}{of_teacher}"


def _is_registered(name: str) -> bool:
    return name in _INFO or name in _registered_names()


def _registered_names() -> list[str]:
    return [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{kind} {name!r}: expected letters, digits and underscores, a letter first, for it "
            f"becomes part of names such as {'NAME' if kind == 'dataset' else 'DATASET'}_dss_"
            f"{'TEACHER' if kind == 'dataset' else 'NAME'}"
        )


def _add_task(
    spec: DatasetSpec,
    info: TaskInfo,
    convert: Callable[[preprocessors.Record], preprocessors.TextPair],
    metric: Callable[..., Mapping[str, float]],
    postprocess: Callable[..., Any] | None = None,
) -> None:
    is_rationale = info.method == "rationale"
    task_id = constants.RATIONALE_TASK_ID if is_rationale else constants.LABEL_TASK_ID
    seqio.TaskRegistry.add(
        info.name,
        source=RecordsDataSource(spec, (info.teacher,) if info.teacher else ()),
        preprocessors=[
            functools.partial(preprocessors.to_text_pair, convert=convert),
            preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            # After the cache: one cache serves every fraction and every length.
            functools.partial(preprocessors.keep_fraction, dataset_name=spec.name),
            seqio.preprocessors.append_eos_after_trim,
            functools.partial(preprocessors.tag_task_ids, task_id=task_id),
        ],
        postprocess_fn=postprocess,
        output_features=OUTPUT_FEATURES,
        metric_fns=[metric],
    )
    _INFO[info.name] = info


def _add_mixture(info: TaskInfo, tasks: Sequence[tuple[str, Any]]) -> None:
    seqio.MixtureRegistry.add(info.name, list(tasks))
    _INFO[info.name] = info


def _rationale_rate(_: seqio.Task) -> float:
    """λ, read when the mixture is sampled."""
    return settings.current().rationale_rate


def register_dataset(spec: DatasetSpec) -> None:
    """Registers every task and mixture of a dataset.

    Raises:
      UserError: a dataset of that name is registered already, a name cannot stand in the names of
        tasks, or one of those names is another dataset's already.
    """
    if spec.name in DATASETS:
        raise UserError(
            f"dataset {spec.name!r} is registered already; give yours another name in DatasetSpec"
        )
    _check_name("dataset", spec.name)
    label, finetune = TaskInfo(spec.name, "label"), TaskInfo(spec.name, "finetune")
    _check_free([label, finetune])
    for teacher in spec.teachers:
        _check_teacher(spec.name, teacher)
    DATASETS[spec.name] = spec
    _add_task(spec, label, preprocessors.label_task(None), _accuracy_metric(spec.is_correct))
    _add_mixture(finetune, [(label.name, 1.0)])
    for teacher in spec.teachers:
        register_teacher(spec, teacher)


def register_teacher(spec: DatasetSpec, teacher: str) -> None:
    """Registers the tasks and mixtures of one teacher of a registered dataset.

    `get_mixture_or_task` does it for teachers that `prepare --teacher` joined; programs that look
    names up in SeqIO's registries themselves need it said in a task file.

    Raises:
      UserError: the name cannot stand in the names of tasks, or one of those is taken.
    """
    _check_teacher(spec.name, teacher)
    _register_free_names(spec, teacher)


def _check_teacher(dataset: str, teacher: str) -> None:
    _check_name("teacher", teacher)
    _check_free([TaskInfo(dataset, method, teacher) for method in _TASK_METHODS + _MIXTURE_METHODS])


def check_joined_teacher(spec: DatasetSpec, teacher: str) -> None:
    """Refuses to join a teacher whose tasks would be called as others are.

    Raises:
      UserError: a name is taken; it says by what.
    """
    infos = [TaskInfo(spec.name, method, teacher) for method in _TASK_METHODS + _MIXTURE_METHODS]
    _check_free([info for info in infos if _INFO.get(info.name) != info])


def _register_free_names(spec: DatasetSpec, teacher: str) -> None:
    """Registers those of a teacher's tasks and mixtures whose names nothing else bears."""
    is_label = _accuracy_metric(spec.is_correct)
    label, rationale, joint, pinto = (
        TaskInfo(spec.name, method, teacher) for method in _TASK_METHODS
    )

    def add(info: TaskInfo, *arguments: Any) -> None:
        if not _is_registered(info.name):
            _add_task(spec, info, *arguments)

    add(label, preprocessors.label_task(teacher), is_label)
    add(rationale, preprocessors.rationale_task(teacher), metrics.rationale_overlap)
    add(joint, preprocessors.joint_task(teacher), is_label, _joint_answer)
    add(pinto, preprocessors.pinto_task(teacher), is_label)
    gold_labels, teacher_labels = (f"{spec.name}_label", 1.0), (label.name, 1.0)
    rationales = (rationale.name, _rationale_rate)
    for method, tasks in (
        ("distill", [teacher_labels]),
        ("dss", [gold_labels, rationales]),
        ("dss_distill", [teacher_labels, rationales]),
    ):
        info = TaskInfo(spec.name, method, teacher)
        tasks_are_ours = all(_INFO.get(each.name) == each for each in (label, rationale))
        if tasks_are_ours and not _is_registered(info.name):
            _add_mixture(info, tasks)


def register_augmented(name: str, base: str, augmentation: str, teacher: str) -> None:
    """Registers mixtures of a labelled dataset and one that only the teacher has labelled.

    The paper augments SVAMP with ASDiv so (section 4.4): `base` keeps its gold labels in
    `{name}_dss_{teacher}`, `augmentation` has the teacher's. Each dataset is drawn in proportion
    to its number of training examples. Evaluation is on `base`, whose task comes first.
    """

    def share(dataset: str, rate: Callable[[seqio.Task], float]) -> Callable[[seqio.Task], float]:
        return lambda task: rate(task) * float(task.source.num_input_examples("train"))

    def one(_: seqio.Task) -> float:
        return 1.0

    def labels(base_task: str, augmentation_task: str) -> list[tuple[str, Any]]:
        return [(base_task, share(base, one)), (augmentation_task, share(augmentation, one))]

    rationales = [
        (f"{dataset}_rationale_{teacher}", share(dataset, _rationale_rate))
        for dataset in (base, augmentation)
    ]
    finetune = TaskInfo(name, "finetune")
    distill, dss, dss_distill = (TaskInfo(name, method, teacher) for method in _MIXTURE_METHODS)
    is_new = name not in _AUGMENTED
    _check_name("dataset", name)
    _check_free([*([finetune] if is_new else []), distill, dss, dss_distill])
    if is_new:
        _AUGMENTED[name] = (base, augmentation)
        _add_mixture(finetune, labels(f"{base}_label", f"{augmentation}_label"))
    taught = labels(f"{base}_label_{teacher}", f"{augmentation}_label_{teacher}")
    mixed = labels(f"{base}_label", f"{augmentation}_label_{teacher}")
    _add_mixture(distill, taught)
    _add_mixture(dss, mixed + rationales)
    _add_mixture(dss_distill, taught + rationales)


def load_task_files(extra: Sequence[str] = ()) -> None:
    """Runs the project's registration files, then the user's own; each file once.

    Raises:
      UserError: a file is missing, does not run or registers nothing; the message names file, line
        and the kind of error.
    """
    own = sorted(resources.task_folder().glob("*.py"))
    for path in [*own, *(pathlib.Path(file) for file in extra)]:
        task_files.run_task_file(path)


# ---------------------------------- looking names up -------------------------


def _suggest(name: str, known: Sequence[str]) -> str:
    near = nearest_names(name, known)
    if near:
        return f"did you mean: {', '.join(near)}?"
    return f"known: {', '.join(sorted(known)[:12])} …"


def get_dataset(name: str) -> DatasetSpec:
    """Looks a dataset up; raises UserError with near matches where there is none."""
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}; {_suggest(name, list(DATASETS))}")
    return DATASETS[name]


def get_mixture_or_task(name: str) -> seqio.Task | seqio.Mixture:
    """Looks a task or mixture up.

    Names of a teacher whose outputs `prepare --teacher` joined with the records of `DATA_DIR` are
    registered here, when they are first asked for: importing a registration reads nothing.

    Raises:
      UserError: there is none (near matches are told), or the name may stand for two: `a_dss_x` of
        data set `a`, and of a data set `a_dss`.
    """
    readings = _read_name(name)
    joined = [info for info in readings if info != _INFO.get(name) and not _find_lacking(info)]
    owner = [_INFO[name]] if name in _INFO else []
    if len(owner + joined) > 1:
        told = " or ".join(_describe(info) for info in owner + joined)
        raise UserError(
            f"MIXTURE_OR_TASK_NAME={name!r} may be {told}: join one of the teachers under another "
            "name with prepare --teacher=NAME"
        )
    if joined:
        _register_joined_teacher(joined[0])
    if name not in _registered_names():
        missing = _tell_lacking(readings[0]) if readings else ""
        raise UserError(
            f"MIXTURE_OR_TASK_NAME={name!r} is no registered task or mixture; "
            f"{missing}{_suggest(name, _registered_names())}"
        )
    return seqio.get_mixture_or_task(name)


def _read_name(name: str) -> list[TaskInfo]:
    """All that a name with a teacher in it may stand for, the longest dataset first."""
    readings = []
    for dataset in sorted([*DATASETS, *_AUGMENTED], key=len, reverse=True):
        methods = _MIXTURE_METHODS if dataset in _AUGMENTED else _TASK_METHODS + _MIXTURE_METHODS
        for method in sorted(methods, key=len, reverse=True):
            prefix = f"{dataset}_{method}_"
            if name.startswith(prefix) and len(name) > len(prefix):
                readings.append(TaskInfo(dataset, method, name.removeprefix(prefix)))
    return readings


def _parts(dataset: str) -> tuple[str, ...]:
    """The datasets that a dataset's name stands for: two where it is an augmented one."""
    return _AUGMENTED.get(dataset) or (dataset,)


def _joined_teachers(dataset: str) -> set[str]:
    """The teachers in the prepared records of a dataset; none where it is not prepared."""
    try:
        info = tfrecords.read_info(settings.current().folder, dataset)
    except tfrecords.UnpreparedDataError:
        return set()
    return {teacher for entry in info["splits"].values() for teacher in entry["teachers"]}


def _find_lacking(info: TaskInfo) -> list[str]:
    """The datasets whose records hold nothing of the teacher."""
    return [part for part in _parts(info.dataset) if info.teacher not in _joined_teachers(part)]


def _tell_lacking(info: TaskInfo) -> str:
    lacking = _find_lacking(info)[0]
    return (
        f"{settings.current().folder}/{lacking} holds nothing of a teacher {info.teacher!r}, which "
        f"prepare --dataset={lacking} --teacher={info.teacher} would join; "
    )


def _register_joined_teacher(info: TaskInfo) -> None:
    """Registers all that belongs to the teacher of a name; what other names stand for stays."""
    assert info.teacher is not None
    for part in _parts(info.dataset):
        _register_free_names(DATASETS[part], info.teacher)
    if info.dataset in _AUGMENTED:
        register_augmented(info.dataset, *_AUGMENTED[info.dataset], info.teacher)


def get_task_info(mixture_or_task: seqio.Task | seqio.Mixture) -> TaskInfo | None:
    """What a task or mixture of ours is made of; None of one that SeqIO got from elsewhere."""
    return _INFO.get(mixture_or_task.name)


def dataset_of(task: seqio.Task) -> DatasetSpec:
    """The dataset that a task of ours reads.

    Raises:
      UserError: the task is not ours.
    """
    info = get_task_info(task)
    if info is None:
        raise UserError(f"task {task.name!r} belongs to no data set registered by register_dataset")
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


def evaluation_task(mixture_or_task: seqio.Task | seqio.Mixture) -> seqio.Task:
    """The task whose accuracy the run reports: the first that is not a rationale task."""
    tasks = tasks_of(mixture_or_task)
    return next((task for task in tasks if not is_rationale(task)), tasks[0])


def check_prepared(mixture_or_task: seqio.Task | seqio.Mixture) -> None:
    """Checks that the records of every task are there; nothing is written.

    Raises:
      tfrecords.UnpreparedDataError: records are missing; the message holds the command to type.
    """
    folder = settings.current().folder
    for spec in map(dataset_of, tasks_of(mixture_or_task)):
        for split in spec.splits:
            tfrecords.split_files(folder, spec.name, split)


def prepare_missing(mixture_or_task: seqio.Task | seqio.Mixture) -> None:
    """Prepares what is missing and can be generated, as `wordproblems` can; checks the rest.

    Raises:
      tfrecords.UnpreparedDataError: see `check_prepared`.
    """
    folder = settings.current().folder
    for spec in map(dataset_of, tasks_of(mixture_or_task)):
        if spec.needs_source_dir:
            continue
        try:
            for split in spec.splits:
                tfrecords.split_files(folder, spec.name, split)
        except tfrecords.UnpreparedDataError:
            build.prepare_dataset(spec, None, folder, None)
    check_prepared(mixture_or_task)
