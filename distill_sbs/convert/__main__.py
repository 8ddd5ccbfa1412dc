"""`python -m distill_sbs.convert`: a checkpoint of one form becomes one of another.

    python -m distill_sbs.convert --to=native --input=google/flan-t5-base --output=flan_t5_base

Enters: the command line. Leaves: what `convert.write` wrote, and a summary of it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from distill_sbs.cli import command_line, flag_groups, interrupts, quiet_tensorflow, terminal
from distill_sbs.cli.peak_memory import peak_memory_mib
from distill_sbs.cli.progress import show_progress
from distill_sbs.cli.run_main import run_main
from distill_sbs.data.sentencepiece_model import TRIMMED_FILE
from distill_sbs.dtypes import FLOAT_TYPES
from distill_sbs.errors import UserError
from distill_sbs.serving.served_folder import FLOAT32, QUANTIZATIONS
from distill_sbs.serving.served_folder import FORMS as SERVED_FORMS

if TYPE_CHECKING:
    import numpy as np

    from distill_sbs.convert.write import ChooseKept, ConversionResult
    from distill_sbs.data.sentencepiece_model import VocabularyDescription

DESCRIPTION = (
    "Converts a checkpoint between the forms of HuggingFace, T5X and distill_sbs,\n"
    "or exports it for python -m distill_sbs.serve."
)
FORMS = ("hf", "t5x", "native")
_WITH_CARD = ("hf", *SERVED_FORMS)


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "from",
        None,
        FORMS,
        "The form of --input. Default: recognised by its files.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "to",
        None,
        (*FORMS, *SERVED_FORMS),
        "The form of --output.",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_string(
        "input",
        None,
        "hf: a folder or hub id; t5x: a checkpoint_N folder or the MODEL_DIR around it, local or"
        " gs://; native: a MODEL_DIR (its best step is taken) or one step's folder.",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_string(
        "output", None, "A folder that does not exist yet.", flag_values=values, required=True
    )
    flags.DEFINE_string(
        "student",
        None,
        "The size that --input must have, such as t5_1_1_base; anything else is refused.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "dtype",
        "float32",
        list(FLOAT_TYPES),
        "Of the values that --to=hf writes; others than float32 are rounded.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "scan_layers",
        None,
        "Whether --to=native and --to=t5x store layers stacked. Default: as --input, where that is"
        " native; else no.",
        flag_values=values,
    )
    flags.DEFINE_bool("overwrite", False, "Replaces --output.", flag_values=values)
    with flag_groups.group(values, "Exports"):
        flags.DEFINE_string(
            "license",
            None,
            "What --to=hf, ctranslate2 and onnx write into the model card (README.md) as the"
            " licence, such as cc-by-4.0: that of the data, say.",
            flag_values=values,
        )
        flags.DEFINE_enum(
            "quantization",
            FLOAT32,
            QUANTIZATIONS,
            "How --to=ctranslate2 and --to=onnx store weights; int8 also multiplies by them so.",
            flag_values=values,
        )
    with flag_groups.group(values, "Vocabulary"):
        flags.DEFINE_string(
            "vocabulary_file",
            None,
            "For all but t5x: a SentencePiece model, 'bytes' or 'embedded'. Default: what --input"
            " carries, which T5X's checkpoints do not.",
            flag_values=values,
        )
        flags.DEFINE_bool(
            "tokenizer", True, "Whether --to=hf writes tokenizer files.", flag_values=values
        )
        flags.DEFINE_list(
            "trim_vocabulary",
            None,
            "For --to=native: names of prepared datasets, tasks or mixtures. The embedding and"
            " the head keep rows for the pieces that occur in them alone; other texts are refused.",
            flag_values=values,
        )
        flags.DEFINE_string(
            "restore_vocabulary",
            None,
            "Of an --input whose vocabulary was trimmed: the checkpoint that it was trimmed from,"
            " whose rows stand in for those that were taken out.",
            flag_values=values,
        )
        flags.DEFINE_string(
            "data_dir",
            None,
            "With --trim_vocabulary: folder of the prepared records. Default:"
            " $DISTILL_SBS_DATA_DIR, else ~/.cache/distill_sbs.",
            flag_values=values,
        )
        flags.DEFINE_multi_string(
            "task_file",
            [],
            "With --trim_vocabulary: a registration file of your own; repeatable.",
            flag_values=values,
        )


def _check_flags(values: flags.FlagValues) -> None:
    """Refuses what has no effect on the form asked for."""
    if values.dtype != "float32" and values.to != "hf":
        raise UserError(f"--dtype={values.dtype}: only --to=hf writes other types than float32")
    if values.scan_layers is not None and values.to in _WITH_CARD:
        raise UserError(
            f"--scan_layers has no effect with --to={values.to}, whose layers are never stacked"
        )
    if values.license and values.to not in _WITH_CARD:
        raise UserError(
            f"--license={values.license}: only --to={', '.join(_WITH_CARD)} write a model card"
        )
    if values.quantization != FLOAT32 and values.to not in SERVED_FORMS:
        raise UserError(
            f"--quantization={values.quantization}: only --to={' and '.join(SERVED_FORMS)} have it;"
            " --to=hf --dtype=bfloat16 halves weights"
        )
    if not values.tokenizer and values.to in SERVED_FORMS:
        raise UserError(f"--notokenizer: --to={values.to} carries its vocabulary; leave it out")
    if values.vocabulary_file and values.to == "t5x":
        raise UserError("--vocabulary_file has no effect with --to=t5x, which carries none")
    if values.trim_vocabulary is not None:
        if values.to != "native":
            raise UserError(
                f"--trim_vocabulary with --to={values.to}: only --to=native has a form for it"
            )
        if values.restore_vocabulary:
            raise UserError(
                "--trim_vocabulary and --restore_vocabulary undo one another; give one of them"
            )
        if not all(name.strip() for name in values.trim_vocabulary or [""]):
            raise UserError("--trim_vocabulary names no dataset; give --trim_vocabulary=cqa, say")
    elif values.data_dir is not None or values.task_file:
        raise UserError("--data_dir and --task_file have no effect without --trim_vocabulary")


def _make_chooser(values: flags.FlagValues) -> ChooseKept | None:
    """What reads the data of `--trim_vocabulary`; None where nothing is trimmed."""
    if values.trim_vocabulary is None:
        return None

    def choose_kept(vocabulary: VocabularyDescription, rows: int) -> np.ndarray:
        quiet_tensorflow.import_tensorflow()
        from distill_sbs.data import occurring_pieces, registration, trimmed_ids
        from distill_sbs.data.sentencepiece_model import read_model

        occurring_pieces.use_whole_data(values.data_dir)
        registration.load_task_files(values.task_file)
        tasks = occurring_pieces.find_tasks([name.strip() for name in values.trim_vocabulary])
        total = occurring_pieces.count_rows(tasks)
        with show_progress("looking for pieces", total) as advance:
            found = occurring_pieces.find_pieces(tasks, vocabulary, advance)
        model = read_model(vocabulary)
        assert model is not None
        kept = trimmed_ids.choose_kept(model, found, rows)
        terminal.say(
            f"{len(found):,} pieces of {vocabulary['size']:,} occur in "
            f"{', '.join(task.name for task in tasks)}; the student keeps {len(kept):,} of "
            f"{rows:,} rows"
        )
        return kept

    return choose_kept


def print_summary(done: ConversionResult, output: str, is_trimmed: bool = False) -> None:
    """Prints what was written, with the memory that this process took at most."""
    table = terminal.make_table()
    table.add_column()
    table.add_column(justify="right")
    terminal.add_row(table, "tensors", f"{done.tensors:,}")
    terminal.add_row(table, "parameters", f"{done.parameters:,}")
    if done.bytes is not None:
        terminal.add_row(table, "size", f"{done.bytes / 2**20:,.1f} MiB")
    terminal.add_row(table, "time", f"{done.seconds:,.1f} s")
    terminal.add_row(table, "peak memory", f"{peak_memory_mib():,.0f} MiB")
    terminal.make_console().print(table)
    terminal.say(f"written to {output}")
    if is_trimmed:
        file = os.path.join(output, TRIMMED_FILE)
        terminal.say(
            f"train it with VOCABULARY_FILE = {file!r} and STUDENT_OVERRIDES = "
            f"{{'vocab_size': {done.vocabulary_ids}}}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Converts what the command line asks for; returns the exit status."""
    return run_main(lambda: _work(sys.argv if argv is None else argv), "nothing was written")


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, _define_flags, DESCRIPTION)
    _check_flags(values)
    # Nothing here computes; on an accelerator's machine it need not be woken.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Imported here: the command line has been checked by now, and this takes seconds.
    from distill_sbs.convert.write import Interrupted, convert_checkpoint

    try:
        done = convert_checkpoint(
            values.input,
            values.output,
            values.to,
            form=values["from"].value,
            vocabulary_file=values.vocabulary_file,
            student=values.student,
            dtype=values.dtype,
            with_tokenizer=values.tokenizer,
            scan_layers=values.scan_layers,
            license=values.license,
            quantization=values.quantization,
            overwrite=values.overwrite,
            choose_kept=_make_chooser(values),
            restore_vocabulary=values.restore_vocabulary,
        )
    except (Interrupted, KeyboardInterrupt) as error:
        terminal.say(f"interrupted: {values.output} is as it was before", stderr=True)
        return 128 + int(error.args[0] if error.args else signal.SIGINT)
    interrupts.change_message(f"{values.output} is written")
    print_summary(done, values.output, values.trim_vocabulary is not None)
    return None


if __name__ == "__main__":
    sys.exit(main())
