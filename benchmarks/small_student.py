"""The student that five benchmarks measure, and the frame of their command lines.

`closed_labels.py`, `reference.py`, `step_rows.py`, `trimmed_step.py` and `whole_run.py` import it.

Enters: a command line; a dataset and a vocabulary. Leaves: the configuration of a T5 v1.1 of width
256 with 4 + 4 layers, 22.7 million parameters with all of T5's rows; the rows of a dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from absl import flags

from distill_sbs.cli import command_line
from distill_sbs.cli.freed_memory import keep_freed_memory
from distill_sbs.cli.run_main import run_main

if TYPE_CHECKING:
    import numpy as np

    from distill_sbs.data.sentencepiece_model import VocabularyDescription
    from distill_sbs.model.config import T5Config

ROWS = 32128
# Of features that no text of the published data is longer than.
LENGTHS = {"inputs": 1024, "targets": 256, "task_ids": 256}
LEARNING_RATE = 1e-4


def make_config(rows: int = ROWS, dropout_rate: float = 0.1) -> T5Config:
    """The student, with so many rows of embedding and head."""
    from distill_sbs.model.config import named_config

    return named_config(
        "t5_1_1_small",
        vocab_size=rows,
        dropout_rate=dropout_rate,
        emb_dim=256,
        num_heads=4,
        head_dim=64,
        mlp_dim=512,
        num_encoder_layers=4,
        num_decoder_layers=4,
    )


def find_kept(
    described: VocabularyDescription, dataset: str, data_dir: str | None
) -> tuple[int, np.ndarray]:
    """How many pieces occur in a dataset, and the rows that are kept where it is trimmed to it."""
    from distill_sbs.data import (
        occurring_pieces,
        registration,
        sentencepiece_model,
        trimmed_ids,
    )

    registration.load_task_files(())
    occurring_pieces.use_whole_data(data_dir)
    found = occurring_pieces.find_pieces(occurring_pieces.find_tasks([dataset]), described)
    model = sentencepiece_model.read_model(described)
    assert model is not None
    return len(found), trimmed_ids.choose_kept(model, found, ROWS)


def run(
    work: Callable[[flags.FlagValues], None],
    define: Callable[[flags.FlagValues], None],
    description: str,
    argv: Sequence[str],
) -> int:
    """Does what a benchmark's command line asks for; returns the exit status."""

    def parse_and_work() -> None:
        values = command_line.parse_flags(argv, define, description)
        keep_freed_memory()
        from distill_sbs.cli import quiet_tensorflow

        quiet_tensorflow.import_tensorflow()
        work(values)

    return run_main(parse_and_work, "nothing was measured")
