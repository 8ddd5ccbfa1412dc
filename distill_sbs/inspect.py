"""`python -m distill_sbs.inspect`: what the rows of a dataset or a file become, before training.

    python -m distill_sbs.inspect wordproblems --vocabulary_file=embedded
    python -m distill_sbs.inspect tickets.csv --input_column=text --label_column=queue

Enters: a registered dataset, prepared or not, or a file of rows. Leaves: on standard output its
ids, labels, tokens, what is cut and what is unknown, and some examples of each task as the student
sees them. Nothing is written.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags
from rich import box

from distill_sbs import constants
from distill_sbs.cli import command_line, flag_groups, quiet_tensorflow, terminal
from distill_sbs.cli.progress import show_progress
from distill_sbs.cli.run_main import run_main
from distill_sbs.errors import UserError

if TYPE_CHECKING:
    from distill_sbs.data.batches.preview import Preview, ShownSequence
    from distill_sbs.data.dataset import RawSplit
    from distill_sbs.data.tokenizer import Tokenizer

DESCRIPTION = "What rows become: inspect DATASET_OR_FILE"
_MOST_LABELS = 12
_MOST_IDS_SHOWN = 24
_TEACHER = "the file"


def _define_flags(values: flags.FlagValues) -> None:
    texts = {
        "of": "A registered dataset, such as cqa, or a file: .jsonl, .csv, .tsv (also .gz, .zst)"
        " or .parquet; may be given without the flag's name.",
        "split": "train, validation or test, of a dataset; a file is one whole.",
        "data_dir": "Folder of the prepared records. Default: $DISTILL_SBS_DATA_DIR,"
        " else ~/.cache/distill_sbs.",
        "source_dir": "Folder of the raw data of a dataset that is not prepared."
        " Default: $DISTILL_SBS_SOURCE_DIR.",
        "vocabulary_file": "A SentencePiece model, 'bytes' or 'embedded'."
        " Default: $DISTILL_SBS_VOCABULARY_FILE.",
    }
    columns = {
        "id_column": "The column of ids. Default: made of the position.",
        "input_column": "The column of inputs, or the path of a nested field.",
        "label_column": "The column of labels. Default: label, if there is one.",
        "rationale_column": "That of rationales. Default: rationale, if there is one.",
    }
    defaults = {"split": "train", "input_column": "input"}
    for name, text in texts.items():
        flags.DEFINE_string(name, defaults.get(name), text, flag_values=values)
    numbers = {
        "input_tokens": (1024, "TASK_FEATURE_LENGTHS['inputs']: longer inputs are cut."),
        "target_tokens": (256, "TASK_FEATURE_LENGTHS['targets']: longer targets are cut."),
        "batch_size": (128, "BATCH_SIZE, for how sequences are packed."),
        "examples": (5, "How many of each task are shown."),
    }
    for name, (default, text) in numbers.items():
        flags.DEFINE_integer(name, default, text, flag_values=values, lower_bound=1)
    flags.DEFINE_multi_string(
        "task_file", [], "A registration file of your own; repeatable.", flag_values=values
    )
    with flag_groups.group(values, "Columns of a file"):
        for name, text in columns.items():
            flags.DEFINE_string(name, defaults.get(name), text, flag_values=values)


def main(argv: Sequence[str] | None = None) -> int:
    """Inspects what the command line names; returns the exit status."""
    return run_main(lambda: _work(sys.argv if argv is None else argv), "nothing was written")


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, _define_flags, DESCRIPTION, word="of")
    if not values.of:
        raise UserError("nothing is named: inspect DATASET_OR_FILE")
    from distill_sbs.data import sentencepiece_model, tokenizer
    from distill_sbs.data.settings import DataSettings
    from distill_sbs.data.unknown_pieces import PieceCounter

    vocabulary_file = values.vocabulary_file or DataSettings().vocabulary_file
    if not vocabulary_file:
        raise UserError(
            "--vocabulary_file is not given: name the student's SentencePiece model, 'bytes' or "
            "'embedded' (of wordproblems and comparisons); or set DISTILL_SBS_VOCABULARY_FILE"
        )
    counter = PieceCounter(vocabulary_file)
    encoder = tokenizer.from_description(sentencepiece_model.describe(vocabulary_file))
    limits = {constants.INPUTS: values.input_tokens, constants.TARGETS: values.target_tokens}
    quiet_tensorflow.import_tensorflow()
    from distill_sbs.data.batches import preview
    from distill_sbs.data.tasks import task_files

    with task_files.tell_errors():
        is_file = os.path.isfile(values.of)
        where, raw_split = _open_file(values) if is_file else _open_dataset(values)
        for line in raw_split.warnings:
            terminal.say(f"warning: {line}", stderr=True)
        for line in raw_split.notes:
            terminal.say(f"note: {line}", stderr=True)
        with show_progress(f"inspecting {where}", raw_split.size) as advance:
            examples = raw_split.examples()
            found = preview.preview(examples, encoder, counter, limits, values.examples, advance)
    more = ", …" if found.examples > len(found.first_ids) else ""
    terminal.say(f"{where}: {found.examples:,} examples; ids {', '.join(found.first_ids)}{more}")
    _print_labels(found)
    if not found.tasks:
        raise UserError(
            f"{where} holds neither labels nor rationales: there is nothing to train on"
        )
    _print_tasks(found, limits, vocabulary_file)
    _print_packing(found, limits, values.batch_size)
    for task in found.tasks.values():
        terminal.say(f"\n{task.name}, as the student sees it:")
        for each in task.shown:
            _print_sequence(each, encoder)
    return None


def _open_file(values: flags.FlagValues) -> tuple[str, RawSplit]:
    """The rows of a file as examples; columns that are not named are taken where they are."""
    from etils import epath

    from distill_sbs.data.tables import TableReader, read_table

    first = next((row for _, row in read_table(epath.Path(values.of))), {})
    label = values.label_column or ("label" if "label" in first else None)
    rationale = values.rationale_column or ("rationale" if "rationale" in first else None)
    reader = TableReader(
        values.of,
        values.of,
        values.of,
        id=values.id_column or ("id" if "id" in first else None),
        input=values.input_column,
        label=label,
        rationale=rationale,
        teacher=_TEACHER if rationale else None,
    )
    return values.of, reader(epath.Path("."), "train")


def _open_dataset(values: flags.FlagValues) -> tuple[str, RawSplit]:
    """The prepared records of a split; its raw data where nothing is prepared."""
    from etils import epath

    from distill_sbs.data import registration, settings
    from distill_sbs.data.dataset import Example, RawSplit
    from distill_sbs.data.records import build, joining, tfrecords

    registration.load_task_files(values.task_file)
    if os.sep in values.of or "." in values.of:
        raise UserError(f"{values.of}: no such file, and no name of a dataset")
    spec = registration.get_dataset(values.of)
    (split,) = build.check_splits(spec, [values.split])
    data_dir = values.data_dir or settings.default_data_dir()
    try:
        tfrecords.split_files(data_dir, spec.name, split)
    except tfrecords.UnpreparedDataError as error:
        source_dir = values.source_dir or os.environ.get("DISTILL_SBS_SOURCE_DIR")
        if source_dir is None and spec.needs_source_dir:
            raise UserError(f"{error}\n(or read the raw data with --source_dir=FOLDER)") from error
        raw_split = spec.reader(epath.Path(source_dir or "."), split)
        return f"{spec.name} {split} (raw, not prepared)", raw_split
    entry = tfrecords.read_info(data_dir, spec.name)["splits"][split]

    def examples() -> Iterable[Example]:
        return joining.read_all(data_dir, spec.name, split, list(entry["teachers"]))

    place = os.path.join(data_dir, spec.name)
    return f"{spec.name} {split} in {place}", RawSplit(entry["examples"], lambda: iter(examples()))


def _print_labels(found: Preview) -> None:
    without = f"; {found.without_label:,} without one" if found.without_label else ""
    terminal.say(f"gold labels: {len(found.labels):,} different{without}")
    table = terminal.make_table("label", "examples", "share", right_from=1, frame=box.SIMPLE)
    for label, count in found.labels.most_common(_MOST_LABELS):
        terminal.add_row(table, label, f"{count:,}", f"{count / found.examples:.1%}")
    if found.labels:
        terminal.make_console().print(table)


def _print_tasks(found: Preview, limits: dict[str, int], vocabulary: str) -> None:
    names = ("tokens: median", "95 %", "longest", "cut at", "are cut", "unknown pieces")
    table = terminal.make_table("task", "sequences", *names, right_from=1, frame=box.SIMPLE)
    notes = []
    for task in found.tasks.values():
        cuts = task.cut_shares(limits)
        for position, feature in enumerate((constants.INPUTS, constants.TARGETS)):
            lengths = np.asarray((task.input_lengths, task.target_lengths)[position])
            pieces = task.pieces[feature]
            terminal.add_row(
                table,
                f"{task.name}: {feature}",
                f"{len(lengths):,}",
                f"{np.median(lengths):.0f}",
                f"{np.quantile(lengths, 0.95):.0f}",
                f"{lengths.max():,}",
                f"{limits[feature]:,}",
                f"{cuts[position]:.1%}",
                f"{pieces.share:.2%}",
            )
            what = f"{task.name}: {feature}"
            if pieces.unknown:
                notes.append(f"{what}: unknown to {vocabulary} are {pieces.describe()}")
            if pieces.texts_with_line_breaks:
                notes.append(
                    f"{what}: {pieces.texts_with_line_breaks:,} of {pieces.texts:,} hold line "
                    f"breaks, which are spaces to {vocabulary}"
                )
    terminal.make_console().print(table)
    for note in notes:
        terminal.say(note)


def _print_packing(found: Preview, limits: dict[str, int], batch_size: int) -> None:
    from distill_sbs.data.batches import preview

    packing = preview.lay_out(found, limits, batch_size)
    for word, shape, padding in (
        ("packed", packing.shape, packing.padding),
        ("unpacked", packing.unpacked_shape, packing.unpacked_padding),
    ):
        terminal.say(
            f"{batch_size} sequences {word}: {shape.rows} rows of {shape.input_tokens} input and "
            f"{shape.target_tokens} target tokens, {padding:.1%} padding"
        )
    terminal.say(f"the first packed row holds {len(packing.first_row)} of the sequences")


def _print_sequence(each: ShownSequence, encoder: Tokenizer) -> None:
    terminal.say(f"- id {each.example_id}")
    for name, text, ids in (
        ("inputs", each.inputs, each.input_ids),
        ("targets", each.targets, each.target_ids),
    ):
        some = " ".join(map(str, ids[:_MOST_IDS_SHOWN]))
        more = f" … {ids[-1]}" if len(ids) > _MOST_IDS_SHOWN else ""
        terminal.say(f"  {name}: {text}")
        terminal.say(f"    {len(ids)} tokens: {some}{more}")
        if (seen := encoder.decode(ids)) != text:
            terminal.say(f"    read back: {seen}")


if __name__ == "__main__":
    sys.exit(main())
