"""From a dataset's description to its SeqIO tasks and mixtures.

Enters: a `DatasetSpec` (one file in `tasks/`, or a user's own). Leaves: the tasks and mixtures
that DESIGN.md names, in SeqIO's registries. Nothing is read before a task's data is asked for.
"""

from __future__ import annotations

import difflib
import functools
import importlib.util
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import seqio
import tensorflow as tf

from distill_sbs import constants, resources
from distill_sbs.data import metrics, settings, vocabulary
from distill_sbs.data.dataset import AnswerCheck, DatasetSpec
from distill_sbs.data.records import build, tfrecords
from distill_sbs.data.tasks import preprocessors
from distill_sbs.errors import UserError

DATASETS: dict[str, DatasetSpec] = {}
_DATASET_OF_TASK: dict[str, str] = {}
# Name of an augmented dataset -> (base, augmentation).
_AUGMENTED: dict[str, tuple[str, str]] = {}
# What stands between dataset and teacher in a name, the longest first.
_METHODS = ("dss_distill", "rationale", "distill", "joint", "label", "pinto", "dss")
_loaded_files: set[pathlib.Path] = set()

OUTPUT_FEATURES = {
    constants.INPUTS: seqio.Feature(vocabulary.ConfiguredVocabulary(), add_eos=True),
    constants.TARGETS: seqio.Feature(vocabulary.ConfiguredVocabulary(), add_eos=True),
    constants.TASK_IDS: seqio.Feature(seqio.PassThroughVocabulary(size=3), add_eos=False),
}


class RecordsDataSource(seqio.DataSource):
    """Prepared records as a SeqIO source; the folder is looked up when data is asked for."""

    def __init__(self, spec: DatasetSpec, teachers: Sequence[str]) -> None:
        super().__init__(splits=spec.splits)
        self._spec = spec
        self._teachers = tuple(teachers)

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """Any number of hosts may share a split: by files where there are enough, or by records."""
        return True

    def __repr__(self) -> str:
        return f"RecordsDataSource({self._spec.name})"

    def list_shards(self, split: str) -> Sequence[str]:
        """The record files of a split."""
        return tfrecords.split_files(settings.current().folder, self._spec.name, split)

    def num_input_examples(self, split: str) -> int:
        """The rows of a split, before any method drops some."""
        info = tfrecords.read_info(settings.current().folder, self._spec.name)
        return info["splits"][split]["examples"]

    def get_dataset(  # type: ignore[override]
        self,
        split: str = "train",
        shuffle: bool = True,
        seed: int | None = None,
        shard_info: seqio.ShardInfo | None = None,
        *,
        sequence_length: Mapping[str, int] | None = None,
        use_cached: bool = False,
        num_epochs: int | None = 1,
    ) -> tf.data.Dataset:
        """The records of `split`, each with `is_train`; see `seqio.DataSource.get_dataset`.

        Raises:
          records.UnpreparedDataError: the split has not been prepared.
        """
        files = self.list_shards(split)
        by_files = shard_info is not None and shard_info.num_shards <= len(files)
        if shard_info and by_files:
            files = files[shard_info.index :: shard_info.num_shards]
        dataset = tf.data.Dataset.from_tensor_slices(files)
        if shuffle:
            dataset = dataset.shuffle(len(files), seed=seed)
        dataset = dataset.interleave(tf.data.TFRecordDataset, cycle_length=8 if shuffle else 1)
        if shard_info and not by_files:
            # Unparsed, and in file order (shuffled files would be others in every process).
            dataset = dataset.shard(shard_info.num_shards, shard_info.index)
        parse = functools.partial(tfrecords.parse_record, teachers=self._teachers)

        def read(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
            return {**parse(serialized), "is_train": tf.constant(split == "train")}

        return dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE)


def _accuracy_metric(is_correct: AnswerCheck) -> Callable[..., Mapping[str, float]]:
    def accuracy(targets: Sequence[str], predictions: Sequence[str]) -> Mapping[str, float]:
        """Share of right answers, 0 to 1."""
        pairs = zip(targets, predictions, strict=True)
        return {"accuracy": sum(is_correct(*pair) for pair in pairs) / max(len(targets), 1)}

    return accuracy


def _joint_answer(text: str, **_: Any) -> str:
    """SeqIO postprocessor of joint tasks: scores the label, not the rationale."""
    return preprocessors.answer_after_marker(text)


def _add_task(
    spec: DatasetSpec,
    name: str,
    convert: Callable[[preprocessors.Record], preprocessors.TextPair],
    task_id: int,
    metric: Callable[..., Mapping[str, float]],
    postprocess: Callable[..., Any] | None = None,
    teachers: Sequence[str] = (),
) -> None:
    seqio.TaskRegistry.add(
        name,
        source=RecordsDataSource(spec, teachers),
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
    _DATASET_OF_TASK[name] = spec.name


def _rationale_rate(_: seqio.Task) -> float:
    """λ, read when the mixture is sampled."""
    return settings.current().rationale_rate


def register_dataset(spec: DatasetSpec) -> None:
    """Registers every task and mixture of a dataset.

    Raises:
      UserError: a dataset of that name is registered already.
    """
    if spec.name in DATASETS:
        raise UserError(
            f"dataset {spec.name!r} is registered already; give yours another name in DatasetSpec"
        )
    DATASETS[spec.name] = spec
    convert = preprocessors.label_task(None)
    metric = _accuracy_metric(spec.is_correct)
    _add_task(spec, f"{spec.name}_label", convert, constants.LABEL_TASK_ID, metric)
    seqio.MixtureRegistry.add(f"{spec.name}_finetune", [(f"{spec.name}_label", 1.0)])
    for teacher in spec.teachers:
        register_teacher(spec, teacher)


def register_teacher(spec: DatasetSpec, teacher: str) -> None:
    """Registers the tasks and mixtures of one teacher of a registered dataset.

    `get_mixture_or_task` does it for teachers that `prepare --teacher` joined; programs that look
    names up in SeqIO's registries themselves need it said in a task file.
    """
    name, is_label = spec.name, _accuracy_metric(spec.is_correct)
    teacher_labels = f"{name}_label_{teacher}"
    rationales = f"{name}_rationale_{teacher}"
    label_rows, rationale_rows = constants.LABEL_TASK_ID, constants.RATIONALE_TASK_ID

    def add(
        task: str,
        convert: Callable[[preprocessors.Record], preprocessors.TextPair],
        task_id: int = label_rows,
        metric: Callable[..., Mapping[str, float]] = is_label,
        postprocess: Callable[..., Any] | None = None,
    ) -> None:
        _add_task(spec, task, convert, task_id, metric, postprocess, (teacher,))

    add(teacher_labels, preprocessors.label_task(teacher))
    add(
        rationales,
        preprocessors.rationale_task(teacher),
        rationale_rows,
        metrics.rationale_overlap,
    )
    joint = preprocessors.joint_task(teacher)
    add(f"{name}_joint_{teacher}", joint, postprocess=_joint_answer)
    add(f"{name}_pinto_{teacher}", preprocessors.pinto_task(teacher))
    seqio.MixtureRegistry.add(f"{name}_distill_{teacher}", [(teacher_labels, 1.0)])
    seqio.MixtureRegistry.add(
        f"{name}_dss_{teacher}", [(f"{name}_label", 1.0), (rationales, _rationale_rate)]
    )
    seqio.MixtureRegistry.add(
        f"{name}_dss_distill_{teacher}",
        [(teacher_labels, 1.0), (rationales, _rationale_rate)],
    )


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
    if name not in _AUGMENTED:
        _AUGMENTED[name] = (base, augmentation)
        gold = labels(f"{base}_label", f"{augmentation}_label")
        seqio.MixtureRegistry.add(f"{name}_finetune", gold)
    taught = labels(f"{base}_label_{teacher}", f"{augmentation}_label_{teacher}")
    mixed = labels(f"{base}_label", f"{augmentation}_label_{teacher}")
    seqio.MixtureRegistry.add(f"{name}_distill_{teacher}", taught)
    seqio.MixtureRegistry.add(f"{name}_dss_{teacher}", mixed + rationales)
    seqio.MixtureRegistry.add(f"{name}_dss_distill_{teacher}", taught + rationales)


def load_task_files(extra: Sequence[str] = ()) -> None:
    """Runs the project's registration files, then the user's own; each file once.

    Raises:
      UserError: a file is missing or does not run; the message names it.
    """
    own = sorted(resources.task_folder().glob("*.py"))
    for path in [*own, *(pathlib.Path(file) for file in extra)]:
        path = path.resolve()
        if path in _loaded_files:
            continue
        if not path.is_file():
            raise UserError(f"--task_file={path}: no such file")
        module_spec = importlib.util.spec_from_file_location(f"distill_sbs_task_{path.stem}", path)
        assert module_spec and module_spec.loader
        module = importlib.util.module_from_spec(module_spec)
        sys.modules[module_spec.name] = module
        try:
            module_spec.loader.exec_module(module)
        except Exception as error:
            raise UserError(f"{path} could not be loaded: {error}") from error
        _loaded_files.add(path)


def _near(name: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    listed = ", ".join(matches) if matches else ", ".join(sorted(known)[:12])
    return f"did you mean: {listed}?" if matches else f"known: {listed} …"


def get_dataset(name: str) -> DatasetSpec:
    """Looks a dataset up; raises UserError with near matches where there is none."""
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}; {_near(name, list(DATASETS))}")
    return DATASETS[name]


def get_mixture_or_task(name: str) -> seqio.Task | seqio.Mixture:
    """Looks a task or mixture up; raises UserError with near matches where there is none.

    Names of a teacher whose outputs `prepare --teacher` joined with the records of `DATA_DIR` are
    registered here, when they are first asked for: importing a registration reads nothing.
    """

    def known() -> list[str]:
        return [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]

    if name not in known():
        wanted = _register_joined_teacher(name)
        if name not in known():
            raise UserError(
                f"MIXTURE_OR_TASK_NAME={name!r} is no registered task or mixture; "
                f"{wanted}{_near(name, known())}"
            )
    return seqio.get_mixture_or_task(name)


def _dataset_and_teacher(name: str, datasets: Sequence[str]) -> tuple[str, str] | None:
    """The dataset and the teacher in a name such as `cqa_dss_gpt`; the longest dataset wins."""
    for dataset in sorted(datasets, key=len, reverse=True):
        for method in _METHODS:
            prefix = f"{dataset}_{method}_"
            if name.startswith(prefix) and len(name) > len(prefix):
                return dataset, name.removeprefix(prefix)
    return None


def _joined_teachers(dataset: str) -> set[str]:
    """The teachers in the prepared records of a dataset; none where it is not prepared."""
    try:
        info = tfrecords.read_info(settings.current().folder, dataset)
    except tfrecords.UnpreparedDataError:
        return set()
    return {teacher for entry in info["splits"].values() for teacher in entry["teachers"]}


def _register_joined_teacher(name: str) -> str:
    """Registers what belongs to the teacher in `name`, or says what is missing for that."""
    found = _dataset_and_teacher(name, [*DATASETS, *_AUGMENTED])
    if found is None:
        return ""
    dataset, teacher = found
    parts: Sequence[str] = _AUGMENTED.get(dataset) or (dataset,)
    lacking = [part for part in parts if teacher not in _joined_teachers(part)]
    if lacking:
        folder = settings.current().folder
        return (
            f"{folder}/{lacking[0]} holds nothing of a teacher {teacher!r}, which prepare "
            f"--dataset={lacking[0]} --teacher={teacher} would join; "
        )
    for part in parts:
        if f"{part}_label_{teacher}" not in seqio.TaskRegistry.names():
            register_teacher(DATASETS[part], teacher)
    if dataset in _AUGMENTED:
        register_augmented(dataset, parts[0], parts[1], teacher)
    return ""


def dataset_of(task: seqio.Task) -> DatasetSpec:
    """The dataset that a task of ours reads."""
    return DATASETS[_DATASET_OF_TASK[task.name]]


def tasks_of(mixture_or_task: seqio.Task | seqio.Mixture) -> list[seqio.Task]:
    """The tasks of a mixture in the order of registration; a task is its own only one."""
    if isinstance(mixture_or_task, seqio.Task):
        return [mixture_or_task]
    order = list(mixture_or_task.rate_per_task_name)
    return sorted(mixture_or_task.tasks, key=lambda task: order.index(task.name))


def is_rationale(task: seqio.Task) -> bool:
    """Whether a task's targets are rationales (its label tasks are what accuracy is about)."""
    return "_rationale_" in task.name


def evaluation_task(mixture_or_task: seqio.Task | seqio.Mixture) -> seqio.Task:
    """The task whose accuracy the run reports: the first that is not a rationale task."""
    tasks = tasks_of(mixture_or_task)
    return next((task for task in tasks if not is_rationale(task)), tasks[0])


def check_prepared(mixture_or_task: seqio.Task | seqio.Mixture) -> None:
    """Raises `records.UnpreparedDataError`, with the command to type, where records are missing.

    `wordproblems` and whatever else needs no source folder is prepared on the spot.
    """
    folder = settings.current().folder
    for task in tasks_of(mixture_or_task):
        spec = dataset_of(task)
        if not spec.needs_source_dir:
            _prepare_if_missing(spec, folder)
        for split in spec.splits:
            tfrecords.split_files(folder, spec.name, split)


def _prepare_if_missing(spec: DatasetSpec, folder: str) -> None:
    try:
        for split in spec.splits:
            tfrecords.split_files(folder, spec.name, split)
    except tfrecords.UnpreparedDataError:
        build.prepare_dataset(spec, None, folder, None)
