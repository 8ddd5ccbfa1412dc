"""What may be chosen from: training examples of prepared datasets, with teachers' outputs.

Enters: datasets, teachers, DATA_DIR. Leaves: each example's candidates, one a teacher, and what
stands in evaluation splits, by hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from distill_sbs.curating import rules
from distill_sbs.curating.rules import Candidate
from distill_sbs.data.dataset import DatasetSpec
from distill_sbs.data.records import joining, tfrecords
from distill_sbs.errors import UserError, did_you_mean

# (rows done): moves a progress bar.
Advance = Callable[[int], None]


def check_pool(specs: Sequence[DatasetSpec], teachers: Sequence[str], data_dir: str) -> int:
    """How many records will be read.

    Raises:
      tfrecords.UnpreparedDataError: a dataset is not prepared.
      UserError: its training split holds nothing of a teacher.
    """
    total = 0
    for spec in specs:
        splits = tfrecords.read_info(data_dir, spec.name)["splits"]
        tfrecords.split_files(data_dir, spec.name, "train")
        known = splits["train"]["teachers"]
        for teacher in teachers:
            if teacher not in known:
                raise UserError(
                    f"--teacher={teacher}: the training split of {spec.name} in {data_dir} holds "
                    f"outputs of {', '.join(sorted(known)) or 'no teacher'}"
                    f"{did_you_mean(teacher, sorted(known))}"
                )
        others = sum(entry["examples"] for split, entry in splits.items() if split != "train")
        total += len(teachers) * splits["train"]["examples"] + others
    return total


def read_pool(
    specs: Sequence[DatasetSpec], teachers: Sequence[str], data_dir: str, advance: Advance
) -> Iterator[tuple[Candidate, ...]]:
    """The candidates of each training example, one a teacher."""
    for spec in specs:
        outputs = [
            joining.read_examples(data_dir, spec.name, "train", teacher) for teacher in teachers
        ]
        for examples in zip(*outputs, strict=True):
            group = []
            for teacher, example in zip(teachers, examples, strict=True):
                output = example.teacher_outputs[teacher]
                is_right = None
                if example.label is not None and output.label is not None:
                    is_right = spec.is_correct(example.label, output.label)
                group.append(
                    Candidate(
                        spec.name,
                        example.id,
                        example.input,
                        example.label,
                        teacher,
                        output.label,
                        output.rationale,
                        is_right,
                    )
                )
            advance(len(group))
            yield tuple(group)


def read_held_out(specs: Sequence[DatasetSpec], data_dir: str, advance: Advance) -> frozenset[str]:
    """`rules.hash_text` of every input of the splits that students are evaluated on."""
    held_out = set()
    for spec in specs:
        for split in tfrecords.read_info(data_dir, spec.name)["splits"]:
            if split == "train":
                continue
            for example in joining.read_examples(data_dir, spec.name, split):
                held_out.add(rules.hash_text(example.input))
                advance(1)
    return frozenset(held_out)
