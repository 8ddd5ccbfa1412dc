"""From a dataset's description to its SeqIO tasks and mixtures.

Enters: a `DatasetSpec` (one file in `tasks/`, or a user's own). Leaves: the tasks and mixtures
that docs/data.md names, in SeqIO's registries, and beside each a `TaskInfo` that says what it is
(`tasks.names`). Registering reads nothing. What is registered is looked up here and in
`tasks.lookup`, whose functions this module has too.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import seqio
import tensorflow as tf

from distill_sbs import constants, resources
from distill_sbs.data import metrics, settings, vocabulary
from distill_sbs.data.dataset import AnswerCheck, DatasetSpec
from distill_sbs.data.tasks import (
    contrast_tasks,
    names,
    preprocessors,
    span_corruption,
    task_files,
    texts,
)
from distill_sbs.data.tasks.contrast_tasks import find_manifest
from distill_sbs.data.tasks.lookup import (
    check_pairs,
    check_prepared,
    check_selection,
    dataset_of,
    datasets_of,
    evaluation_task,
    find_pairs,
    get_dataset,
    get_task_info,
    is_pretraining,
    is_rationale,
    list_rationale_splits,
    prepare_missing,
    reads_rationales,
    reads_texts,
    tasks_of,
)
from distill_sbs.data.tasks.names import DATASETS, MIXTURE_METHODS, TASK_METHODS, TaskInfo
from distill_sbs.data.tasks.source import RecordsDataSource
from distill_sbs.errors import UserError

__all__ = [
    "DATASETS",
    "OUTPUT_FEATURES",
    "TaskInfo",
    "check_joined_teacher",
    "check_pairs",
    "check_prepared",
    "check_selection",
    "dataset_of",
    "datasets_of",
    "evaluation_task",
    "find_manifest",
    "find_pairs",
    "find_rationale_task",
    "get_dataset",
    "get_mixture_or_task",
    "get_task_info",
    "is_pretraining",
    "is_rationale",
    "list_rationale_splits",
    "load_task_files",
    "prepare_missing",
    "reads_rationales",
    "reads_texts",
    "register_augmented",
    "register_dataset",
    "register_pretraining",
    "register_teacher",
    "tasks_of",
]

OUTPUT_FEATURES = {
    constants.INPUTS: seqio.Feature(vocabulary.ConfiguredVocabulary(), add_eos=True),
    constants.TARGETS: seqio.Feature(vocabulary.ConfiguredVocabulary(), add_eos=True),
    constants.TASK_IDS: seqio.Feature(seqio.PassThroughVocabulary(size=4), add_eos=False),
}

# The same, with sentinels behind the vocabulary's pieces.
PRETRAINING_FEATURES = {
    **OUTPUT_FEATURES,
    **{
        name: seqio.Feature(
            vocabulary.ConfiguredVocabulary(sentinels=span_corruption.SENTINELS), add_eos=True
        )
        for name in (constants.INPUTS, constants.TARGETS)
    },
}


# How a task's records become texts, and what SeqIO makes of the answers: its score, and first of
# all what of an answer is scored.
Convert: TypeAlias = Callable[[preprocessors.Record], preprocessors.TextPair]
Metric: TypeAlias = Callable[..., Mapping[str, float]]
Postprocess: TypeAlias = Callable[..., str]
# How often a mixture draws from a task.
Rate: TypeAlias = float | Callable[[seqio.Task], float]


def _accuracy_metric(is_correct: AnswerCheck) -> Metric:
    def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
        """Share of right answers, 0 to 1."""
        pairs = zip(targets, predictions, strict=True)
        return {"accuracy": sum(is_correct(*pair) for pair in pairs) / max(len(targets), 1)}

    return accuracy


def _joint_metric(is_correct: AnswerCheck) -> Callable[..., Mapping[str, float]]:
    def joint_accuracy(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
        """Shares, 0 to 1, of right answers, and of outputs without any, which are wrong."""
        pairs = zip(targets, predictions, strict=True)
        right = sum(bool(said) and is_correct(gold, said) for gold, said in pairs)
        count = max(len(targets), 1)
        unparsed = sum(not said for said in predictions)
        return {"accuracy": right / count, "unparsed": unparsed / count}

    return joint_accuracy


def _joint_answer(text: str, **_: object) -> str:
    """SeqIO postprocessor of joint tasks: scores the label, not the rationale."""
    return preprocessors.answer_after_marker(text)


def _add_task(
    spec: DatasetSpec,
    info: TaskInfo,
    convert: Convert,
    metric: Metric,
    postprocess: Postprocess | None = None,
) -> None:
    is_rationale = info.method == "rationale"
    task_id = constants.RATIONALE_TASK_ID if is_rationale else constants.LABEL_TASK_ID
    teacher = info.teacher if info.method in names.RATIONALE_METHODS else None
    seqio.TaskRegistry.add(
        info.name,
        source=RecordsDataSource(spec, (info.teacher,) if info.teacher else ()),
        preprocessors=[
            *(
                [functools.partial(preprocessors.take_several_rationales, teacher=teacher)]
                if teacher
                else []
            ),
            functools.partial(
                preprocessors.to_text_pair,
                convert=convert,
                teacher=teacher,
            ),
            preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            # After the cache: one cache serves every fraction, filter and length.
            functools.partial(preprocessors.keep_fraction, dataset_name=spec.name),
            *(
                [functools.partial(preprocessors.keep_agreeing, is_correct=spec.is_correct)]
                if teacher
                else []
            ),
            seqio.preprocessors.append_eos_after_trim,
            functools.partial(preprocessors.tag_task_ids, task_id=task_id),
        ],
        postprocess_fn=postprocess,
        output_features=OUTPUT_FEATURES,
        metric_fns=[metric],
    )
    names.INFO[info.name] = info


def _add_mixture(info: TaskInfo, tasks: Sequence[tuple[str, Rate]]) -> None:
    seqio.MixtureRegistry.add(info.name, list(tasks))
    names.INFO[info.name] = info


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
    names.check_name("dataset", spec.name)
    label, finetune, pretrain = (
        TaskInfo(spec.name, method) for method in ("label", "finetune", "pretrain")
    )
    names.check_free([label, finetune, pretrain])
    for teacher in spec.teachers:
        _check_teacher(spec.name, teacher)
    DATASETS[spec.name] = spec
    _add_task(spec, label, preprocessors.label_task(None), _accuracy_metric(spec.is_correct))
    _add_mixture(finetune, [(label.name, 1.0)])
    _add_pretraining(
        pretrain,
        RecordsDataSource(spec, ()),
        [functools.partial(preprocessors.keep_fraction, dataset_name=spec.name)],
    )
    for teacher in spec.teachers:
        register_teacher(spec, teacher)


def register_pretraining(name: str, source: seqio.DataSource) -> None:
    """Registers `{name}_pretrain`: span corruption (`tasks.span_corruption`) of plain texts.

    Every dataset has such a task over its inputs, and `text_pretrain` reads `TEXT_DIR`. This is for
    other texts: `register_pretraining("wiki", seqio.TfdsDataSource("wikipedia/…", splits=…))`, say,
    with a source whose rows are texts, or have one as `input` or `text`.

    Raises:
      UserError: the name is taken, or cannot stand in the name of a task.
    """
    names.check_name("dataset", name)
    info = TaskInfo(name, "pretrain")
    names.check_free([info])
    _add_pretraining(info, source, [])


def _add_pretraining(
    info: TaskInfo,
    source: seqio.DataSource,
    before: Sequence[Callable[..., tf.data.Dataset]],
) -> None:
    seqio.TaskRegistry.add(
        info.name,
        source=source,
        preprocessors=[
            *before,
            texts.encode_inputs,
            span_corruption.corrupt_spans,
            seqio.preprocessors.append_eos_after_trim,
            # Its targets are what the student is to say: a task of labels, with no rationale.
            functools.partial(preprocessors.tag_task_ids, task_id=constants.LABEL_TASK_ID),
            texts.number_rows,
        ],
        output_features=PRETRAINING_FEATURES,
        metric_fns=[],  # no answer is right or wrong: it is scored by the loss of its targets
    )
    names.INFO[info.name] = info


def register_teacher(spec: DatasetSpec, teacher: str) -> None:
    """Registers the tasks and mixtures of one teacher of a registered dataset.

    `get_mixture_or_task` does it for teachers that `prepare --teacher` joined; programs that look
    names up in SeqIO's registries themselves need it said in a task file.

    Raises:
      UserError: the name cannot stand in the names of tasks, or one of those is taken.
    """
    _check_teacher(spec.name, teacher)
    _register_free_names(spec, teacher)


def register_live_teacher(name: str, teacher: str) -> None:
    """Registers a teacher whose outputs are in no records, where `name` is a task or mixture of it.

    Raises:
      UserError: the teacher's name cannot stand in the names of tasks.
    """
    for info in names.read_name(name):
        if info.teacher == teacher:
            names.check_name("teacher", teacher)
            _register_joined_teacher(info)


def _check_teacher(dataset: str, teacher: str) -> None:
    names.check_name("teacher", teacher)
    names.check_free(_list_infos(dataset, teacher))


def check_joined_teacher(spec: DatasetSpec, teacher: str) -> None:
    """Refuses to join a teacher whose tasks would be called as others are.

    Raises:
      UserError: a name is taken; it says by what.
    """
    infos = _list_infos(spec.name, teacher)
    names.check_free([info for info in infos if names.INFO.get(info.name) != info])


def _list_infos(dataset: str, teacher: str) -> list[TaskInfo]:
    """All tasks and mixtures of a dataset with a teacher."""
    return [TaskInfo(dataset, method, teacher) for method in TASK_METHODS + MIXTURE_METHODS]


def _register_free_names(spec: DatasetSpec, teacher: str) -> None:
    """Registers those of a teacher's tasks and mixtures whose names nothing else bears."""
    is_label = _accuracy_metric(spec.is_correct)
    label, rationale, joint, pinto = (
        TaskInfo(spec.name, method, teacher) for method in TASK_METHODS
    )

    def add(
        info: TaskInfo, convert: Convert, metric: Metric, postprocess: Postprocess | None = None
    ) -> None:
        if not names.is_registered(info.name):
            _add_task(spec, info, convert, metric, postprocess)

    add(label, preprocessors.label_task(teacher), is_label)
    add(rationale, preprocessors.rationale_task(teacher), metrics.rationale_overlap)
    add(joint, preprocessors.joint_task(teacher), _joint_metric(spec.is_correct), _joint_answer)
    add(pinto, preprocessors.pinto_task(teacher), is_label)
    gold_labels: tuple[str, Rate] = (TaskInfo(spec.name, "label").name, 1.0)
    teacher_labels: tuple[str, Rate] = (label.name, 1.0)
    rationales: tuple[str, Rate] = (rationale.name, _rationale_rate)
    for method, tasks in (
        ("distill", [teacher_labels]),
        ("dss", [gold_labels, rationales]),
        ("dss_distill", [teacher_labels, rationales]),
    ):
        info = TaskInfo(spec.name, method, teacher)
        tasks_are_ours = all(names.INFO.get(each.name) == each for each in (label, rationale))
        if tasks_are_ours and not names.is_registered(info.name):
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

    def labels(base_task: str, augmentation_task: str) -> list[tuple[str, Rate]]:
        return [(base_task, share(base, one)), (augmentation_task, share(augmentation, one))]

    rationales: list[tuple[str, Rate]] = [
        (TaskInfo(dataset, "rationale", teacher).name, share(dataset, _rationale_rate))
        for dataset in (base, augmentation)
    ]
    finetune = TaskInfo(name, "finetune")
    distill, dss, dss_distill = (TaskInfo(name, method, teacher) for method in MIXTURE_METHODS)
    is_new = name not in names.AUGMENTED
    names.check_name("dataset", name)
    names.check_free([*([finetune] if is_new else []), distill, dss, dss_distill])
    if is_new:
        names.AUGMENTED[name] = (base, augmentation)
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


# ---------------------------------- joined teachers --------------------------


def get_mixture_or_task(name: str) -> seqio.Task | seqio.Mixture:
    """Looks a task or mixture up.

    Names of a teacher whose outputs `prepare --teacher` joined with the records of `DATA_DIR` are
    registered here, when they are first asked for: importing a registration reads nothing.

    Raises:
      UserError: there is none (near matches are told), or the name may stand for two: `a_dss_x` of
        dataset `a`, and of a dataset `a_dss`.
    """
    readings = names.read_name(name)
    joined = [
        info for info in readings if info != names.INFO.get(name) and not names.find_lacking(info)
    ]
    owner = [names.INFO[name]] if name in names.INFO else []
    if len(owner + joined) > 1:
        told = " or ".join(names.describe(info) for info in owner + joined)
        raise UserError(
            f"MIXTURE_OR_TASK_NAME={name!r} may be {told}: join one of the teachers under another "
            "name with prepare --teacher=NAME"
        )
    if joined:
        _register_joined_teacher(joined[0])
    if name not in names.list_registered() and not readings:
        contrast_tasks.register_if_there(name, OUTPUT_FEATURES)
    if name not in names.list_registered():
        missing = names.tell_lacking(readings[0]) if readings else ""
        raise UserError(
            f"MIXTURE_OR_TASK_NAME={name!r} is no registered task or mixture; "
            f"{missing}{names.suggest(name, names.list_registered())}"
        )
    return seqio.get_mixture_or_task(name)


def find_rationale_task(mixture_or_task: seqio.Task | seqio.Mixture) -> seqio.Task | None:
    """The rationale task that a contrast's expert learned; None of other mixtures."""
    for task in tasks_of(mixture_or_task):
        manifest = find_manifest(task)
        if manifest is not None and manifest.teacher is not None:
            try:
                found = get_mixture_or_task(f"{manifest.dataset}_rationale_{manifest.teacher}")
            except UserError:  # the teacher is joined with other records
                return None
            return found if isinstance(found, seqio.Task) else None
    return None


def _register_joined_teacher(info: TaskInfo) -> None:
    """Registers all that belongs to the teacher of a name; what other names stand for stays."""
    assert info.teacher is not None
    for part in names.list_parts(info.dataset):
        _register_free_names(DATASETS[part], info.teacher)
    if info.dataset in names.AUGMENTED:
        register_augmented(info.dataset, *names.AUGMENTED[info.dataset], info.teacher)
