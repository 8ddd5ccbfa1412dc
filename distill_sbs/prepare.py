"""`python -m distill_sbs.prepare`: raw data in, prepared records and a table of their figures out.

    python -m distill_sbs.prepare --dataset=cqa --source_dir=datasets --data_dir=prepared
    python -m distill_sbs.prepare --dataset=cqa --data_dir=prepared --teacher=llama
    python -m distill_sbs.prepare --dataset=cqa --data_dir=prepared --teacher=shuffled \
      --shuffle_rationales_of=palm

Enters: the published files (or a user's own, read by a registered dataset). Leaves:
`DATA_DIR/{dataset}/{train,validation,test}.tfrecord*` and `info.json`; what was there before stays
as it was if anything goes wrong.
"""

from __future__ import annotations

import itertools
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags
from rich import box

from distill_sbs.cli import command_line, flag_groups, interrupts, quiet_tensorflow, terminal
from distill_sbs.cli.callable_module import make_callable
from distill_sbs.cli.run_main import run_main
from distill_sbs.errors import SourceError, UserError

if TYPE_CHECKING:
    from distill_sbs.data.dataset import DatasetSpec
    from distill_sbs.data.records.counts import Info

SOURCE_DIR_VARIABLE = "DISTILL_SBS_SOURCE_DIR"
DESCRIPTION = "Prepares a dataset: raw inputs and teacher outputs become records to train on."


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_list(
        "dataset",
        None,
        "The dataset to prepare, such as cqa; several with commas, or 'all'.",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_string(
        "source_dir",
        None,
        f"Folder of the raw data, local or gs://. Default: ${SOURCE_DIR_VARIABLE}.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder of the prepared records, local or gs://. "
        "Default: $DISTILL_SBS_DATA_DIR, else ~/.cache/distill_sbs.",
        flag_values=values,
    )
    flags.DEFINE_list(
        "splits",
        None,
        "Prepares only these, such as validation,test; splits prepared earlier stay.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "vocabulary_file",
        None,
        "Warns of what is unknown to this vocabulary, the student's: a SentencePiece model,"
        " 'bytes' or 'embedded'. Default: $DISTILL_SBS_VOCABULARY_FILE; without one, nothing is"
        " counted.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "task_file",
        [],
        "A registration file of your own; repeatable.",
        flag_values=values,
    )
    with flag_groups.group(values, "A teacher's outputs"):
        flags.DEFINE_string(
            "teacher",
            None,
            "Joins this teacher's outputs with the records: by id what extract wrote, else by"
            " position the files SOURCE_DIR/{dataset}/llm/*_CoT_*.json; the name is yours to"
            " choose, and {dataset}_dss_NAME trains on them. Splits prepared earlier are taken as"
            " they are.",
            flag_values=values,
        )
        flags.DEFINE_list(
            "teacher_outputs",
            None,
            "Files that extract wrote, with commas. Default:"
            " DATA_DIR/teachers/{dataset}/{teacher}/*.jsonl, where extract --teacher puts them.",
            flag_values=values,
        )
        flags.DEFINE_list(
            "output_columns",
            None,
            "The --teacher_outputs are not extract's but files of rows (.jsonl, .csv, .tsv,"
            " .parquet): NAME:COLUMN with commas, names id or input, and label and rationale, or"
            " response. Nested fields by path: response:response.body.choices.message.content.",
            flag_values=values,
        )
        flags.DEFINE_string(
            "output_parser",
            None,
            "A Python file with parse(response, input) -> (label, rationale) or None, for the"
            " column response.",
            flag_values=values,
        )
        flags.DEFINE_string(
            "shuffle_rationales_of",
            None,
            "Joins a control under the name --teacher: the labels of this teacher, whom the records"
            " hold already, and its rationales, each at another example of its split.",
            flag_values=values,
        )


def print_summary(info: Info) -> None:
    """Prints a prepared dataset's figures, one line a split and teacher; accuracies in percent."""
    names = ("examples", "unparsed", "teacher accuracy", "mean rationale words")
    table = terminal.make_table("split", "teacher", *names, title=info["dataset"], frame=box.SIMPLE)
    for column in table.columns[2:]:
        column.justify = "right"
    nothing_compared = False
    for split, entry in info["splits"].items():
        examples = f"{entry['examples']:,}"
        if not entry["teachers"]:
            terminal.add_row(table, split, "–", examples, "–", "–", "–")
        for teacher, figures in entry["teachers"].items():
            accuracy, words = figures["label_accuracy"], figures["mean_rationale_words"]
            nothing_compared |= accuracy is None
            terminal.add_row(
                table,
                split,
                teacher,
                examples,
                f"{figures['unparsed']:,}",
                "–" if accuracy is None else f"{accuracy:.2%}",
                "–" if words is None else f"{words:.1f}",
            )
    terminal.make_console().print(table)
    if nothing_compared:
        terminal.say(
            "teacher accuracy –: nothing to compare; the rows hold no gold label, or no label of "
            'the teacher\'s own ("teacher_label")'
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Prepares what the command line asks for; returns the exit status (2: see the message)."""
    return run_main(
        lambda: _work(sys.argv if argv is None else argv),
        "nothing that was prepared before has changed",
    )


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, _define_flags, DESCRIPTION)
    names = values.dataset
    if values.teacher_outputs and len(names) > 1:
        raise UserError("--teacher_outputs are those of one dataset; give one --dataset")
    teacher_outputs = tuple(values.teacher_outputs or ())
    original = values.shuffle_rationales_of
    _check(_source_dir(values.source_dir), values.teacher, teacher_outputs, original)
    # Importing TensorFlow takes seconds: what can be refused without it has been.
    quiet_tensorflow.import_tensorflow()
    from distill_sbs.data import registration, settings
    from distill_sbs.data.records import build

    registration.load_task_files(values.task_file)
    names = list(registration.DATASETS) if names == ["all"] else names
    data_dir = values.data_dir or settings.default_data_dir()
    for name in names:
        spec = registration.get_dataset(name)
        build.check_splits(spec, values.splits)
        if original is not None:
            build.check_shuffle(spec, data_dir, values.teacher, original, values.splits)
    failed = 0
    written: list[str] = []
    for name in names:
        earlier = _joined_teachers(data_dir, name)
        try:
            info = prepare(
                name,
                source_dir=values.source_dir,
                data_dir=values.data_dir,
                splits=values.splits,
                teacher=values.teacher,
                teacher_outputs=teacher_outputs,
                shuffle_rationales_of=original,
                task_files=tuple(values.task_file),
                vocabulary_file=values.vocabulary_file,
                output_columns=tuple(values.output_columns or ()),
                output_parser=values.output_parser,
            )
        except SourceError as error:
            terminal.say(f"error: {name}: {error}", stderr=True)
            failed += 1
            continue
        written.append(name)
        interrupts.change_message(f"prepared by now: {', '.join(written)}")
        print_summary(info)
        terminal.say(f"written to {os.path.join(data_dir, name)}")
        for split, teacher in sorted(earlier.keys() - _joined_in(info).keys()):
            terminal.say(
                f"note: {split} holds {teacher}'s outputs no more: it was prepared anew; "
                f"{earlier[split, teacher]} joins them again"
            )
    return 2 if failed else 0


def prepare(
    dataset: str,
    *,
    source_dir: str | None = None,
    data_dir: str | None = None,
    splits: Sequence[str] | None = None,
    teacher: str | None = None,
    teacher_outputs: Sequence[str] = (),
    shuffle_rationales_of: str | None = None,
    task_files: Sequence[str] = (),
    vocabulary_file: str | None = None,
    output_columns: Sequence[str] = (),
    output_parser: str | None = None,
) -> Info:
    """Prepares one dataset, or joins a teacher's outputs with what is prepared.

    Args:
      dataset: its name, such as 'cqa'; a registered one.
      source_dir: folder of the raw data, local or gs://. Default: $DISTILL_SBS_SOURCE_DIR.
      data_dir: folder of the prepared records. Default: $DISTILL_SBS_DATA_DIR, else
        ~/.cache/distill_sbs.
      splits: prepares only these; splits prepared earlier stay. None: all.
      teacher: joins this teacher's outputs with the records.
      teacher_outputs: files that `extract` wrote. Default: those that it wrote for this teacher; if
        it wrote none, the outputs in the published layout, `{source_dir}/{dataset}/llm/`.
      shuffle_rationales_of: a teacher whom the records hold: `teacher` becomes its control, with
        its labels, and its rationales each at another example of the same split.
      task_files: registration files of your own.
      vocabulary_file: warns of what is unknown to this vocabulary. Default:
        $DISTILL_SBS_VOCABULARY_FILE; without one, nothing is counted.
      output_columns: which columns of `teacher_outputs` that others wrote are what, such as
        ['id:custom_id', 'label:answer', 'rationale:why'].
      output_parser: a file with `parse(response, input)`, for the column `response`.

    Returns:
      What `info.json` says: per split the examples, and per teacher how many outputs are unparsed,
      the accuracy of its labels (0 to 1) and the mean length of its rationales in words.

    Raises:
      UserError: an unknown dataset or split, or arguments that do not go together.
      SourceError: raw data that is missing or malformed; what was prepared before stays as it was.
    """
    lists = {"splits": splits, "teacher_outputs": teacher_outputs, "output_columns": output_columns}
    for name, value in lists.items():
        if isinstance(value, str):
            raise UserError(f"{name}={value!r}: expected a list of texts, such as [{value!r}]")
    source_dir = _source_dir(source_dir)
    _check(source_dir, teacher, teacher_outputs, shuffle_rationales_of)
    quiet_tensorflow.import_tensorflow()
    from distill_sbs.data import registration, settings
    from distill_sbs.data.records import build
    from distill_sbs.data.tasks import task_files as loader

    registration.load_task_files(task_files)
    spec = registration.get_dataset(dataset)
    build.check_splits(spec, splits)
    data_dir = data_dir or settings.default_data_dir()
    vocabulary_file = vocabulary_file or settings.DataSettings().vocabulary_file
    with loader.tell_errors():
        if teacher is None:
            return build.prepare_dataset(
                spec, source_dir, data_dir, splits, vocabulary_file=vocabulary_file
            )
        if shuffle_rationales_of is not None:
            registration.check_joined_teacher(spec, teacher)
            return build.join_shuffled_teacher(
                spec, data_dir, teacher, shuffle_rationales_of, splits
            )
        if output_columns or output_parser:
            info = _join_foreign(
                spec, data_dir, splits, teacher, teacher_outputs, output_columns, output_parser
            )
        else:
            info = _join(spec, source_dir, data_dir, splits, teacher, teacher_outputs)
        if vocabulary_file:
            build.tell_of_joined_pieces(info, data_dir, teacher, vocabulary_file, splits)
        return info


def _source_dir(given: str | None) -> str | None:
    return given or os.environ.get(SOURCE_DIR_VARIABLE) or None


def _check(
    source_dir: str | None,
    teacher: str | None,
    teacher_outputs: Sequence[str],
    original: str | None,
) -> None:
    """Refuses what can be refused before TensorFlow is imported."""
    if source_dir and "://" not in source_dir and not os.path.isdir(source_dir):
        raise UserError(f"source folder {source_dir} does not exist; correct --source_dir")
    if original is not None:
        given = f"--shuffle_rationales_of={original}"
        if not teacher:
            raise UserError(
                f"{given} needs --teacher=NAME, the name to call the control by, such as shuffled"
            )
        if teacher_outputs:
            raise UserError(
                f"{given} takes outputs that are joined already, --teacher_outputs others; join "
                "these first, under a name of their own"
            )
        if teacher == original:
            raise UserError(
                f"{given} and --teacher={teacher}: the control would replace the teacher; give it "
                "another name, such as --teacher=shuffled"
            )
    if teacher_outputs and not teacher:
        raise UserError("--teacher_outputs needs --teacher=NAME, the name to call the teacher by")
    for path in teacher_outputs:
        if os.path.isdir(path):
            raise UserError(f"--teacher_outputs={path} is a folder; name the files in it")
        if not os.path.isfile(path):
            raise UserError(f"--teacher_outputs={path}: no such file")


def _join(
    spec: DatasetSpec,
    source_dir: str | None,
    data_dir: str,
    splits: Sequence[str] | None,
    teacher: str,
    teacher_outputs: Sequence[str],
) -> Info:
    """Joins what extract wrote, or what lies in the published layout; returns the `info.json`."""
    from distill_sbs.data import registration
    from distill_sbs.data.readers import responses
    from distill_sbs.data.records import build

    registration.check_joined_teacher(spec, teacher)
    files = list(teacher_outputs) or responses.default_files(data_dir, spec.name, teacher)
    if files:
        return build.join_teacher(spec, source_dir, data_dir, teacher, files, splits)
    folder = responses.default_folder(data_dir, spec.name, teacher)
    if build.has_published_outputs(spec, source_dir):
        info = build.join_published_teacher(spec, source_dir, data_dir, teacher, splits)
        published = os.path.join(source_dir or "", spec.name, "llm")
        terminal.say(
            f"note: {teacher}'s outputs are those in {published} ({folder} holds none that extract "
            "wrote)",
            stderr=True,
        )
        return info
    raise UserError(
        f"no outputs of {teacher}: {folder} holds no .jsonl file; name what extract "
        "wrote with --teacher_outputs=FILE, or make it:\n  python -m distill_sbs.extract "
        f"--dataset={spec.name} --split=train --teacher={teacher} --data_dir={data_dir} "
        "--base_url=… --model=…"
    )


def _join_foreign(
    spec: DatasetSpec,
    data_dir: str,
    splits: Sequence[str] | None,
    teacher: str,
    teacher_outputs: Sequence[str],
    output_columns: Sequence[str],
    output_parser: str | None,
) -> Info:
    """Joins what others wrote, brought into the form of what extract writes."""
    from distill_sbs.data import registration
    from distill_sbs.data.readers import foreign_outputs
    from distill_sbs.data.records import build, joining, tfrecords
    from distill_sbs.teacher import prompts

    if not teacher_outputs:
        raise UserError("--output_columns and --output_parser need --teacher_outputs=FILES")
    columns = foreign_outputs.parse_columns(output_columns, output_parser is not None)
    if output_parser is not None and not os.path.isfile(output_parser):
        raise UserError(f"--output_parser={output_parser}: no such file")
    parse = None if output_parser is None else prompts.load_parser(pathlib.Path(output_parser))
    registration.check_joined_teacher(spec, teacher)
    prepared = list(tfrecords.read_info(data_dir, spec.name)["splits"])
    examples = itertools.chain.from_iterable(
        joining.read_examples(data_dir, spec.name, split) for split in prepared
    )
    with tempfile.TemporaryDirectory(prefix="distill_sbs_outputs") as folder:
        converted = os.path.join(folder, "outputs.jsonl")
        foreign_outputs.convert_outputs(teacher_outputs, columns, parse, examples, converted)
        return build.join_teacher(spec, None, data_dir, teacher, [converted], splits or prepared)


def _joined_in(info: Info) -> dict[tuple[str, str], str]:
    """(split, teacher) of every teacher joined after its split was prepared → what joins it."""
    joined = {}
    for split, entry in info["splits"].items():
        for teacher, figures in entry["teachers"].items():
            if "unanswered" not in figures:
                continue
            original = figures.get("rationales_of")
            control = f" --shuffle_rationales_of={original}" if original else ""
            joined[split, teacher] = f"--teacher={teacher}{control}"
    return joined


def _joined_teachers(data_dir: str, dataset: str) -> dict[tuple[str, str], str]:
    from distill_sbs.data.records import tfrecords

    try:
        return _joined_in(tfrecords.read_info(data_dir, dataset))
    except tfrecords.UnpreparedDataError:
        return {}


make_callable(__name__)

if __name__ == "__main__":
    # A preempted job clears its half-written folder away, as one stopped by Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    sys.exit(main())
