"""What the tasks and mixtures of this project are called, and what each name stands for.

Enters: names of datasets and teachers. Leaves: a `TaskInfo` for each task or mixture, kept beside
SeqIO's registries, so that a name is looked up; and all that a name may stand for which nobody has
registered yet: that of a teacher whose outputs were joined.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import seqio

from distill_sbs.data import settings
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.readers.shuffled_rationales import SHUFFLED_TEACHER
from distill_sbs.data.records import tfrecords
from distill_sbs.errors import UserError, nearest_names

# Every dataset by name.
DATASETS: dict[str, DatasetSpec] = {}


@dataclasses.dataclass(frozen=True)
class TaskInfo:
    """What a task or a mixture of ours is made of; its name is these three, joined by `_`.

    Attributes:
      dataset: the dataset's name; of a mixture of two datasets, the name that both have together.
      method: of tasks `label`, `rationale`, `joint`, `pinto` or `pretrain`; of mixtures `finetune`,
        `distill`, `dss` or `dss_distill`.
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
INFO: dict[str, TaskInfo] = {}
# Name of an augmented dataset -> (base, augmentation).
AUGMENTED: dict[str, tuple[str, str]] = {}
TASK_METHODS = ("label", "rationale", "joint", "pinto")
# Those whose rows hold a rationale, as target or as input.
RATIONALE_METHODS = ("rationale", "joint", "pinto")
MIXTURE_METHODS = ("distill", "dss", "dss_distill")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.]*")


def check_free(infos: Sequence[TaskInfo]) -> None:
    """Refuses names that something else bears already.

    Raises:
      UserError: a name is taken; it says by what, and what to rename.
    """
    for info in infos:
        if not is_registered(info.name):
            continue
        owner = INFO.get(info.name)
        bearer = describe(owner) if owner else "something that SeqIO holds already"
        raise UserError(
            f"{info.name!r} would be {describe(info)}, but is {bearer}; give the dataset or the "
            "teacher another name"
        )


def describe(info: TaskInfo) -> str:
    """The task or mixture in words, for messages."""
    of_teacher = f" with teacher {info.teacher!r}" if info.teacher else ""
    return f"{info.method!r} of dataset {info.dataset!r}{of_teacher}"


def is_registered(name: str) -> bool:
    """Whether a task or mixture bears the name."""
    return name in INFO or name in list_registered()


def list_registered() -> list[str]:
    """The names of all tasks and mixtures that SeqIO knows."""
    return [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]


def check_name(kind: str, name: str) -> None:
    """Refuses the name of a 'dataset' or 'teacher' that cannot stand in the names of tasks.

    Raises:
      UserError: other characters are in it than SeqIO takes.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{kind} {name!r}: expected letters, digits and underscores (or dots), a letter or "
            "digit first, for it becomes part of names such as "
            f"{'NAME' if kind == 'dataset' else 'DATASET'}_dss_"
            f"{'TEACHER' if kind == 'dataset' else 'NAME'}"
        )


def suggest(name: str, known: Sequence[str]) -> str:
    """What an unknown name may have been meant for, as the end of a message."""
    near = nearest_names(name, known)
    if near:
        return f"did you mean: {', '.join(near)}?"
    return f"known: {', '.join(sorted(known)[:12])} …"


# ---------------------------------- names of joined teachers -----------------


def read_name(name: str) -> list[TaskInfo]:
    """All that a name with a teacher in it may stand for, the longest dataset first."""
    readings = []
    for dataset in sorted([*DATASETS, *AUGMENTED], key=len, reverse=True):
        methods = MIXTURE_METHODS if dataset in AUGMENTED else TASK_METHODS + MIXTURE_METHODS
        for method in sorted(methods, key=len, reverse=True):
            prefix = f"{dataset}_{method}_"
            if name.startswith(prefix) and len(name) > len(prefix):
                readings.append(TaskInfo(dataset, method, name.removeprefix(prefix)))
    return readings


def list_parts(dataset: str) -> tuple[str, ...]:
    """The datasets that a dataset's name stands for: two where it is an augmented one."""
    return AUGMENTED.get(dataset) or (dataset,)


def find_joined_teachers(dataset: str) -> set[str]:
    """The teachers in the prepared records of a dataset; none where it is not prepared."""
    try:
        info = tfrecords.read_info(settings.current().folder, dataset)
    except tfrecords.UnpreparedDataError:
        return set()
    return {teacher for entry in info["splits"].values() for teacher in entry["teachers"]}


def find_lacking(info: TaskInfo) -> list[str]:
    """The datasets whose records hold nothing of the teacher."""
    return [
        part for part in list_parts(info.dataset) if info.teacher not in find_joined_teachers(part)
    ]


def tell_lacking(info: TaskInfo) -> str:
    """Whose records hold nothing of the teacher, and what would join it, for messages."""
    lacking = find_lacking(info)[0]
    control = " --shuffle_rationales_of=TEACHER" if info.teacher == SHUFFLED_TEACHER else ""
    return (
        f"{settings.current().folder}/{lacking} holds nothing of a teacher {info.teacher!r}, which "
        f"prepare --dataset={lacking} --teacher={info.teacher}{control} would join; "
    )
