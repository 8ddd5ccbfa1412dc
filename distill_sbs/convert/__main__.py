"""`python -m distill_sbs.convert`: a checkpoint of one form becomes one of another.

    python -m distill_sbs.convert --to=native --input=google/flan-t5-base --output=flan_t5_base

Enters: a checkpoint of HuggingFace, T5X or distill_sbs. Leaves: one of another form, to the bit the
same values, whole or not at all. One tensor of one layer is in memory at a time.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from distill_sbs.cli import command_line, terminal
from distill_sbs.cli.peak_memory import peak_memory_mib
from distill_sbs.cli.run_main import run_main
from distill_sbs.data import sentencepiece_model as vocabularies
from distill_sbs.errors import UserError

DESCRIPTION = "Converts a checkpoint between the forms of HuggingFace, T5X and distill_sbs."
FORMS = {"hf": "HuggingFace", "t5x": "T5X", "native": "distill_sbs"}
DTYPES = ("float32", "bfloat16", "float16")


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "from",
        None,
        list(FORMS),
        "The form of --input. Default: recognised by its files.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "to", None, list(FORMS), "The form of --output.", flag_values=values, required=True
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
        "For hf and native: a SentencePiece model, 'bytes' or 'embedded'. Default: what --input"
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
        DTYPES,
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
    flags.DEFINE_bool("overwrite", False, "Replaces --output.", flag_values=values)


def _check_flags(values: flags.FlagValues) -> None:
    """Refuses what has no effect on the form asked for."""
    if values.dtype != "float32" and values.to != "hf":
        raise UserError(f"--dtype={values.dtype}: only --to=hf writes other types than float32")
    if values.scan_layers is not None and values.to == "hf":
        raise UserError("--scan_layers has no effect with --to=hf, whose layers are never stacked")
    if values.vocabulary_file and values.to == "t5x":
        raise UserError("--vocabulary_file has no effect with --to=t5x, which carries none")


def convert(
    location: str,
    output: str,
    to: str,
    *,
    form: str | None = None,
    vocabulary_file: str | None = None,
    student: str | None = None,
    dtype: str = "float32",
    with_tokenizer: bool = True,
    scan_layers: bool | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Converts; every argument is the flag of its name (`location` is `--input`, `form` `--from`).

    Returns:
      `tensors`, `parameters`, `bytes` of the output (None on gs://), `seconds`.

    Raises:
      UserError: something given cannot work; `output` is as it was before.
      Interrupted: Ctrl-C or SIGTERM came; so it is then.
    """
    started = time.monotonic()
    from distill_sbs.cli.progress import show_values
    from distill_sbs.convert import forms
    from distill_sbs.convert.source import parameters

    forms.check_output(output, location, overwrite)
    described = vocabularies.describe(vocabulary_file) if vocabulary_file else None
    source = forms.open_source(location, form)
    source.check(_expected(student, source.config) if student else source.config)
    shapes = [parameter.shape for parameter in parameters(source.config)]
    values = sum(math.prod(shape) for shape in shapes)

    def write(folder: str, advance: Callable[[int], None]) -> None:
        if to == "hf":
            from distill_sbs.convert.huggingface.files import write_huggingface

            write_huggingface(
                source,
                folder,
                vocabulary=described,
                with_tokenizer=with_tokenizer,
                dtype=dtype,
                advance=advance,
            )
        elif to == "t5x":
            from distill_sbs.convert.t5x import files as t5x_files  # type: ignore[attr-defined]

            scanned = source.config.scan_layers if scan_layers is None else scan_layers
            t5x_files.write_t5x(source, folder, scan_layers=scanned, advance=advance)
        else:
            from distill_sbs.convert.native import write_native

            write_native(
                source, folder, vocabulary=described, scan_layers=scan_layers, advance=advance
            )

    with (
        _Interruptions() as interruptions,
        show_values(f"writing for {FORMS[to]}", values) as advance,
        forms.appearing_whole(output) as folder,
    ):

        def advance_or_stop(count: int) -> None:
            advance(count)
            interruptions.check()

        try:
            write(folder, advance_or_stop)
        except OSError as error:
            raise UserError(f"--output={output} cannot be written ({error})") from None
    return {
        "tensors": len(shapes),
        "parameters": values,
        "bytes": _size(output),
        "seconds": time.monotonic() - started,
    }


class Interrupted(Exception):
    """A signal asked to stop, between two tensors."""


class _Interruptions:
    """Notes Ctrl-C and SIGTERM, for the writers, which have threads, to stop in between tensors."""

    def __init__(self) -> None:
        self._number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interruptions:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, _: Any) -> None:
        self._number = number

    def check(self) -> None:
        """Raises `Interrupted`, with the signal's number, where one came."""
        if self._number is not None:
            raise Interrupted(self._number)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def _expected(student: str, found: Any) -> Any:
    """The configuration of a named size, with those fields of `found` that no file is about."""
    from distill_sbs.model import config as configs

    try:
        config = configs.named_config(student)
    except ValueError as error:
        raise UserError(f"--student={student!r}: {error}") from None
    free = ("dropout_rate", "dtype", "float32_attention_logits", "scan_layers", "remat_policy")
    return dataclasses.replace(config, **{name: getattr(found, name) for name in free})


def _size(output: str) -> int | None:
    if "://" in output:
        return None
    files = [os.path.join(folder, name) for folder, _, names in os.walk(output) for name in names]
    return sum(os.path.getsize(file) for file in files)


def print_summary(done: Mapping[str, Any], output: str) -> None:
    """Prints what was written, with the memory that this process took at most."""
    import rich.console
    import rich.table

    table = rich.table.Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("tensors", f"{done['tensors']:,}")
    table.add_row("parameters", f"{done['parameters']:,}")
    if done["bytes"] is not None:
        table.add_row("size", f"{done['bytes'] / 2**20:,.1f} MiB")
    table.add_row("time", f"{done['seconds']:,.1f} s")
    table.add_row("peak memory", f"{peak_memory_mib():,.0f} MiB")
    console = rich.console.Console()
    console.print(table)
    console.print(f"written to {output}", highlight=False, soft_wrap=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Converts what the command line asks for; returns the exit status."""
    return run_main(lambda: _work(sys.argv if argv is None else argv), "nothing was written")


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, _define_flags, DESCRIPTION)
    _check_flags(values)
    # Nothing here computes; on an accelerator's machine it need not be woken.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        done = convert(
            values.input,
            values.output,
            values.to,
            form=values["from"].value,
            vocabulary_file=values.vocabulary_file,
            student=values.student,
            dtype=values.dtype,
            with_tokenizer=values.tokenizer,
            scan_layers=values.scan_layers,
            overwrite=values.overwrite,
        )
    except (Interrupted, KeyboardInterrupt) as error:
        terminal.say(f"interrupted: {values.output} is as it was before", stderr=True)
        return 128 + int(error.args[0] if error.args else signal.SIGINT)
    print_summary(done, values.output)
    return None


if __name__ == "__main__":
    sys.exit(main())
