"""`python benchmarks/parity.py`: our T5 beside transformers', in numbers.

    python benchmarks/parity.py --results=parity.jsonl --output=docs/parity.md

Enters: CommonsenseQA's prepared records and T5's vocabulary; weights are drawn by transformers,
with a fixed seed. Leaves: a table on standard output; where `--output` names a file, the same in
Markdown between its two comments `<!-- transformers -->`. With `--results` every part is kept as
soon as it is measured, and the same command goes on after the last one. Exit status 1 where a
difference is beyond its limit.

Both sides run in float32 on the CPU with dropout off, one after the other on the same batches.
"""

from __future__ import annotations

import gc
import itertools
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import parity_table
import rich.console
import rich.progress
from absl import flags

from distill_sbs.cli import command_line, quiet_tensorflow
from distill_sbs.cli.peak_memory import peak_memory_mib
from distill_sbs.errors import UserError

SIZES = ("tiny", "base")
VERSIONS = ("1.0", "1.1")
PARTS = ("outputs", "greedy", "beam", "training", "rounding", "drawn")
EXAMPLES_A_BATCH = 4
# Off a terminal, wide enough for every column.
WIDTH = 150

DESCRIPTION = "Compares our T5 with transformers': outputs, loss, gradients, decoding, training."


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this script."""
    flags.DEFINE_list("size", list(SIZES), "Of tiny and base.", flag_values=values)
    flags.DEFINE_list("version", list(VERSIONS), "Of T5: 1.0 and 1.1.", flag_values=values)
    flags.DEFINE_list(
        "part",
        list(PARTS),
        f"Of {', '.join(PARTS)}: encoder output, logits, loss and gradients; decoding; ten steps"
        " of AdamW; how far transformers' ten steps in float32 are from its own in float64; and"
        " outputs again, with the weights as transformers draws them instead of scaled so that"
        " mistakes show (see parity_pairs.random_model).",
        flag_values=values,
    )
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder of the prepared records. "
        "Default: $DISTILL_SBS_DATA_DIR, else ~/.cache/distill_sbs.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "vocabulary_file",
        None,
        "T5's SentencePiece model. Default: $DISTILL_SBS_VOCABULARY_FILE, else "
        "$DISTILL_SBS_SOURCE_DIR/../vocab/spiece.model.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "results",
        None,
        "A file of JSON lines to keep what is measured in; what it has is not measured again, and"
        " the tables show all of it.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output", None, "A Markdown file to put the table in, too.", flag_values=values
    )


def check_choices(name: str, chosen: Sequence[str], known: Sequence[str]) -> None:
    """Raises UserError where a flag names something else than it may."""
    for each in chosen:
        if each not in known:
            raise UserError(f"--{name}={each}: expected one or more of {','.join(known)}")


def vocabulary_file(given: str | None) -> str:
    """The vocabulary that the flag or the environment names.

    Raises:
      UserError: neither does.
    """
    source_dir = os.environ.get("DISTILL_SBS_SOURCE_DIR")
    found = given or os.environ.get("DISTILL_SBS_VOCABULARY_FILE")
    if not found and source_dir:
        found = str(pathlib.Path(source_dir).parent / "vocab" / "spiece.model")
    if not found:
        raise UserError(
            "T5's vocabulary is not at hand: give its file by --vocabulary_file=…/spiece.model"
        )
    return found


def import_libraries() -> None:
    """Imports what takes seconds, silently.

    Raises:
      UserError: torch or transformers is not installed.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    try:
        import torch  # noqa: F401
        import transformers
    except ImportError as error:
        raise UserError(f"{error}; pip install -e '.[parity]'") from error
    transformers.logging.set_verbosity_error()
    quiet_tensorflow.import_tensorflow()


def measure(pair: Any, part: str, examples: Any) -> list[parity_table.Measurement]:
    """The measurements of one part."""
    import parity_outputs
    import parity_training

    if part in ("outputs", "drawn"):
        return parity_outputs.compare_outputs(pair, examples.rows(0, EXAMPLES_A_BATCH))
    if part == "training":
        return parity_training.compare_training(pair, examples, EXAMPLES_A_BATCH)
    if part == parity_table.ROUNDING:
        return parity_training.rounding_of_training(pair, examples, EXAMPLES_A_BATCH)
    beams = {"greedy": 1, "beam": 4}[part]
    return [parity_training.compare_decoding(pair, examples.label_inputs, beams)]


def measure_all(
    wanted: Sequence[parity_table.Key], examples: Any, bar: rich.progress.Progress
) -> Iterator[parity_table.Part]:
    """Parts as they are measured. One model at a time is in memory."""
    import parity_pairs

    task = bar.add_task("", total=len(wanted))
    for (size, version, weights), group in itertools.groupby(wanted, lambda key: key[:3]):
        bar.update(task, description=f"{version} {size}, weights {weights}")
        pair = parity_pairs.Pair.random(size, version, as_drawn=weights == "as drawn")
        for *_, part in group:
            bar.update(task, description=f"{version} {size}, weights {weights}: {part}")
            start = time.monotonic()
            measured = measure(pair, part, examples)
            peak = peak_memory_mib() * 2**20 / 1e9
            yield parity_table.Part(
                size, version, weights, part, time.monotonic() - start, peak, measured
            )
            bar.advance(task)
        del pair
        gc.collect()  # a model's cycles hold its weights


def main(argv: Sequence[str]) -> int:
    """Measures, prints and writes; returns the exit status."""
    values = command_line.parse_flags(argv, define_flags, DESCRIPTION)
    check_choices("size", values.size, SIZES)
    check_choices("version", values.version, VERSIONS)
    check_choices("part", values.part, PARTS)
    vocabulary = vocabulary_file(values.vocabulary_file)
    if values.output:
        parity_table.write(values.output, None)
    done = {each.key: each for each in parity_table.read(values.results)}
    wanted = [
        (size, version, "as drawn" if part == "drawn" else "scaled", part)
        for size in values.size
        for version in values.version
        for part in values.part
    ]
    missing = [key for key in wanted if key not in done]
    if missing:
        import_libraries()
        import parity_pairs

        examples = parity_pairs.cqa_examples(values.data_dir, vocabulary)
        console = rich.console.Console(stderr=True, soft_wrap=True)
        columns = rich.progress.Progress.get_default_columns()
        with rich.progress.Progress(
            *columns, console=console, disable=not console.is_terminal, transient=True
        ) as bar:
            for part in measure_all(missing, examples, bar):
                done[part.key] = part
                parity_table.append(values.results, part)
                console.print(f"{part.title}: {part.seconds:.0f} s", highlight=False)
    order = list(itertools.product(SIZES, VERSIONS, parity_table.WEIGHTS, PARTS))
    parts = [done[key] for key in order if key in done]
    console = rich.console.Console(width=None if sys.stdout.isatty() else WIDTH)
    for table in parity_table.terminal_tables(parts):
        console.print(table)
    console.print(parity_table.measured(parts), highlight=False)
    if values.output:
        parity_table.write(values.output, parity_table.markdown(parts))
        console.print(f"written to {values.output}", highlight=False, soft_wrap=True)
    beyond = [
        (part, line)
        for part in parity_table.folded(parts)
        for line in part.lines
        if not line.within
    ]
    for part, line in beyond:
        print(f"beyond the limit: {part.title}: {line.name}: {line.cell}", file=sys.stderr)
    return 1 if beyond else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv))
    except UserError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)
