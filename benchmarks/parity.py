"""`python benchmarks/parity.py`: our T5 beside transformers', in numbers.

    python benchmarks/parity.py --size=tiny,base --version=1.0,1.1 --output=docs/parity.md

Enters: CommonsenseQA's prepared records and T5's vocabulary; weights are drawn by transformers,
with a fixed seed. Leaves: a table in Markdown on standard output, line by line as it is measured,
and where `--output` names a file, between its two comments `<!-- transformers -->`. Exit status 1
where a difference is beyond its limit.

Both sides run in float32 on the CPU with dropout off, one after the other on the same batches.
"""

from __future__ import annotations

import gc
import os
import pathlib
import platform
import re
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from distill_sbs import command_line, quiet_tensorflow
from distill_sbs.errors import UserError

SIZES = ("tiny", "base")
VERSIONS = ("1.0", "1.1")
BEAMS = (1, 4)
EXAMPLES_A_BATCH = 4

DESCRIPTION = "Compares our T5 with transformers': outputs, loss, gradients, decoding, training."
MARKER = "<!-- transformers -->"
PACKAGES = ("jax", "flax", "optax", "torch", "transformers")
HEADER = (
    "| T5 | ours against transformers | difference | limit | within | float32 | note |\n"
    "| --- | --- | ---: | ---: | --- | ---: | --- |"
)


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of this script."""
    flags.DEFINE_list("size", list(SIZES), "Of tiny and base.", flag_values=values)
    flags.DEFINE_list("version", list(VERSIONS), "Of T5: 1.0 and 1.1.", flag_values=values)
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
        "output", None, "A Markdown file to put the table in, too.", flag_values=values
    )
    flags.DEFINE_bool(
        "as_drawn",
        False,
        "Leaves the weights as transformers draws them, instead of scaling some so that mistakes "
        "show (see parity_pairs.random_model).",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "rounding",
        False,
        "Fills the column float32: the difference of transformers from itself in float64.",
        flag_values=values,
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


def measure(
    size: str, version: str, examples: Any, as_drawn: bool, rounding: bool
) -> Iterator[tuple[Any, float | None]]:
    """All measurements of one model as they are made, with the rounding where it is known."""
    import parity_outputs
    import parity_pairs
    import parity_training

    pair = parity_pairs.Pair.random(size, version, as_drawn)
    first = examples.rows(0, EXAMPLES_A_BATCH)
    known = parity_outputs.rounding_of_transformers(pair, first) if rounding else {}
    for measured in parity_outputs.compare_outputs(pair, first):
        yield measured, known.get(measured.name)
    for beams in BEAMS:
        yield parity_training.compare_decoding(pair, examples.label_inputs, beams), None
    for measured in parity_training.compare_training(pair, examples, EXAMPLES_A_BATCH):
        yield measured, None


def line(size: str, version: str, measured: Any, rounding: float | None) -> str:
    """A measurement as a line of the table."""
    counted = measured.limit == 0
    limit, within = "", ""
    if measured.limit is not None:
        limit = "0" if counted else f"{measured.limit:.0e}"
        within = "yes" if measured.within else "**no**"
    cells = (
        f"{version} {size}",
        measured.name,
        f"{measured.value:.0f}" if counted else f"{measured.value:.1e}",
        limit,
        within,
        "" if rounding is None else f"{rounding:.1e}",
        measured.note,
    )
    return f"| {' | '.join(cells)} |"


def machine() -> str:
    """Processor and libraries, in words."""
    from importlib import metadata

    model = platform.processor() or platform.machine()
    if pathlib.Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.+)", pathlib.Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}; Python {platform.python_version()}, {versions}."


def write(path: str, table: str) -> None:
    """Puts the table between the file's two markers, or writes a file of it."""
    file = pathlib.Path(path)
    text = file.read_text(encoding="utf-8") if file.exists() else f"{MARKER}\n{MARKER}\n"
    parts = text.split(MARKER)
    if len(parts) != 3:
        raise UserError(f"--output={path}: expected two lines {MARKER} to put the table between")
    file.write_text(f"{parts[0]}{MARKER}\n{table}\n{MARKER}{parts[2]}", encoding="utf-8")


def main(argv: Sequence[str]) -> int:
    """Measures, prints and writes; returns the exit status."""
    values = command_line.parse_flags(argv, define_flags, DESCRIPTION)
    check_choices("size", values.size, SIZES)
    check_choices("version", values.version, VERSIONS)
    vocabulary = vocabulary_file(values.vocabulary_file)
    import_libraries()
    import parity_pairs

    examples = parity_pairs.cqa_examples(values.data_dir, vocabulary)
    lines = [HEADER]
    print(HEADER, flush=True)
    failed, start = 0, time.monotonic()
    for size in values.size:
        for version in values.version:
            for measured, rounding in measure(
                size, version, examples, values.as_drawn, values.rounding
            ):
                failed += not measured.within
                lines.append(line(size, version, measured, rounding))
                print(lines[-1], flush=True)
            gc.collect()  # a model's cycles hold its weights
    # ru_maxrss is in KiB on Linux.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    seconds = time.monotonic() - start
    lines.append(f"\nMeasured in {seconds:.0f} s with at most {peak:.1f} GB, on {machine()}")
    print(lines[-1])
    if values.output:
        write(values.output, "\n".join(lines))
        print(f"written to {values.output}")
    if failed:
        print(f"{failed} beyond the limit", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv))
    except UserError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)
