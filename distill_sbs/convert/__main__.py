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

from distill_sbs.cli import command_line, interrupts, terminal
from distill_sbs.cli.peak_memory import peak_memory_mib
from distill_sbs.cli.run_main import run_main
from distill_sbs.dtypes import FLOAT_TYPES
from distill_sbs.errors import UserError
from distill_sbs.serving.served_folder import FLOAT32, QUANTIZATIONS
from distill_sbs.serving.served_folder import FORMS as SERVED_FORMS

if TYPE_CHECKING:
    from distill_sbs.convert.write import ConversionResult

DESCRIPTION = (
    "Converts a checkpoint between the forms of HuggingFace, T5X and distill_sbs, or exports it for"
    " python -m distill_sbs.serve."
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
        "vocabulary_file",
        None,
        "For all but t5x: a SentencePiece model, 'bytes' or 'embedded'. Default: what --input"
        " carries, which T5X's checkpoints do not.",
        flag_values=values,
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
        "tokenizer", True, "Whether --to=hf writes tokenizer files.", flag_values=values
    )
    flags.DEFINE_bool(
        "scan_layers",
        None,
        "Whether --to=native and --to=t5x store layers stacked. Default: as --input, where that is"
        " native; else no.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "license",
        None,
        "What --to=hf, ctranslate2 and onnx write into the model card (README.md) as the licence,"
        " such as cc-by-4.0: that of the data, say.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "quantization",
        FLOAT32,
        QUANTIZATIONS,
        "How --to=ctranslate2 and --to=onnx store weights; int8 also multiplies by them so.",
        flag_values=values,
    )
    flags.DEFINE_bool("overwrite", False, "Replaces --output.", flag_values=values)


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


def print_summary(done: ConversionResult, output: str) -> None:
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
        )
    except (Interrupted, KeyboardInterrupt) as error:
        terminal.say(f"interrupted: {values.output} is as it was before", stderr=True)
        return 128 + int(error.args[0] if error.args else signal.SIGINT)
    interrupts.change_message(f"{values.output} is written")
    print_summary(done, values.output)
    return None


if __name__ == "__main__":
    sys.exit(main())
