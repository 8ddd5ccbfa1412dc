"""A whole training run of ours beside one as the published code does it: time and peak memory.

    PYTHONPATH=. python benchmarks/whole_run.py --vocabulary_file=spiece.model --dataset=cqa

Enters: prepared records of a dataset, a SentencePiece model. Leaves: a table. Wanted beside our
own libraries: torch and transformers.

Both start from random parameters of the student of `reference.py`, read the same texts, take so
many steps of so many sequences, labels and rationales in turn, dropout 0.1, AdamW, then answer the
first inputs of validation and all of the test split, and save parameters and optimizer. Each run is
a process of its own; they take turns, and the most memory is what Linux says of it (VmHWM). Ours
also runs with a shared encoder. What XLA compiled is not kept from run to run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import small_student
from absl import flags

from distill_sbs import constants
from distill_sbs.cli import terminal
from distill_sbs.cli.peak_memory import read_peak_mib
from distill_sbs.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent
LENGTHS = {name: small_student.LENGTHS[name] for name in ("inputs", "targets")}
PEER = "published way"
WATCH_SECONDS = 0.05


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("vocabulary_file", None, "The model.", flag_values=values, required=True)
    flags.DEFINE_string("dataset", "cqa", "What is trained on.", flag_values=values)
    flags.DEFINE_string("teacher", "palm", "Whose rationales.", flag_values=values)
    flags.DEFINE_string("data_dir", None, "Of its records.", flag_values=values)
    flags.DEFINE_integer("batch_size", 32, "Sequences a step.", flag_values=values)
    flags.DEFINE_integer("steps", 60, "Of a run.", flag_values=values)
    flags.DEFINE_integer("answers", 256, "Of validation, at most.", flag_values=values)
    flags.DEFINE_integer("answer_tokens", 64, "Of each answer, at most.", flag_values=values)
    flags.DEFINE_integer("rounds", 3, "Runs of each.", flag_values=values)


@dataclasses.dataclass(frozen=True)
class Taken:
    """What a process took."""

    seconds: float
    processor_seconds: float
    mib: float


def watch(command: Sequence[str], log: pathlib.Path) -> Taken:
    """Runs a program to its end.

    Raises:
      UserError: it failed; its last words.
    """
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    with log.open("w") as output:
        since = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        most = 0.0
        while True:
            found, status, usage = os.wait4(process.pid, os.WNOHANG)
            if found:
                break
            most = read_peak_mib(process.pid) or most
            time.sleep(WATCH_SECONDS)
        seconds = time.monotonic() - since
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise UserError(f"{' '.join(command)} failed:\n{log.read_text()[-2000:]}")
    return Taken(seconds, usage.ru_utime + usage.ru_stime, most)


# ---------------------------------- the two ways -------------------------------


def find_data(values: flags.FlagValues) -> str:
    """The folder of prepared records, from wherever it is asked for."""
    from distill_sbs.data.settings import DataSettings

    return str(pathlib.Path(DataSettings(values.data_dir).folder).absolute())


def write_texts(values: flags.FlagValues, folder: pathlib.Path) -> None:
    """What `published_run.py` reads."""
    from distill_sbs.convert.huggingface import settings
    from distill_sbs.data.records import joining

    data_dir = find_data(values)
    for split in ("train", "validation", "test"):
        lines = []
        for example in joining.read_examples(data_dir, values.dataset, split, values.teacher):
            output = example.teacher_outputs[values.teacher]
            rationale = output.rationale or ""
            if example.label is None or (split == "train" and not rationale):
                continue
            if split == "validation" and len(lines) == values.answers:
                break
            texts = {"input": example.input, "label": example.label, "rationale": rationale}
            lines.append(json.dumps(texts))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    written = {
        "model": settings.make_settings(small_student.make_config()),
        "vocabulary_file": str(pathlib.Path(values.vocabulary_file).absolute()),
        "lengths": LENGTHS,
        "label_prefix": constants.LABEL_PREFIX,
        "rationale_prefix": constants.RATIONALE_PREFIX,
        "learning_rate": small_student.LEARNING_RATE,
        "steps": values.steps,
        "batch_size": values.batch_size,
        "answer_tokens": values.answer_tokens,
    }
    (folder / "settings.json").write_text(json.dumps(written, indent=2))


def our_command(values: flags.FlagValues, folder: pathlib.Path, shared: bool) -> list[str]:
    """A run of `train`."""
    student = dataclasses.asdict(small_student.make_config())
    names = ("emb_dim", "num_heads", "head_dim", "mlp_dim", "num_encoder_layers")
    macros: dict[str, object] = {
        "MODEL_DIR": str(folder),
        "DATA_DIR": find_data(values),
        "MIXTURE_OR_TASK_NAME": f"{values.dataset}_dss_{values.teacher}",
        "VOCABULARY_FILE": str(pathlib.Path(values.vocabulary_file).absolute()),
        "INITIAL_CHECKPOINT_PATH": None,
        "STUDENT": "t5_1_1_small",
        "STUDENT_OVERRIDES": {
            name: student[name] for name in (*names, "num_decoder_layers", "vocab_size")
        },
        "TASK_FEATURE_LENGTHS": LENGTHS,
        "LEARNING_RATE": small_student.LEARNING_RATE,
        "BATCH_SIZE": values.batch_size,
        "TRAIN_STEPS": values.steps,
        "WARMUP_STEPS": 0,
        "EVAL_PERIOD": values.steps,
        "EVAL_EXAMPLES": values.answers,
        "EVAL_BATCH_SIZE": values.batch_size,
        "MAX_DECODE_TOKENS": values.answer_tokens,
        "SHARED_ENCODER": shared,
    }
    file = ROOT / "gin" / "experiments" / "cqa_dss_base.gin"
    settings = [f"--gin.{name}={value!r}" for name, value in macros.items()]
    return [sys.executable, "-m", "distill_sbs.train", f"--gin_file={file}", *settings]


# ---------------------------------- measuring ----------------------------------


def compare(values: flags.FlagValues) -> None:
    """Runs all, and prints the table."""
    ways: dict[str, list[Taken]] = {PEER: [], "ours": [], "ours, shared encoder": []}
    with tempfile.TemporaryDirectory(prefix="whole_run_") as made:
        root = pathlib.Path(made)
        texts = root / "texts"
        texts.mkdir()
        write_texts(values, texts)
        for number in range(values.rounds):
            for name, taken in ways.items():
                folder = root / f"{name} {number}"
                if name == PEER:
                    program = str(ROOT / "benchmarks" / "published_run.py")
                    command = [sys.executable, program, str(texts), str(folder)]
                else:
                    command = our_command(values, folder, shared="shared" in name)
                taken.append(watch(command, root / "log"))
    table = terminal.make_table(
        "a whole run", "s", "times as fast", "processor s", "times", "MiB at most", right_from=1
    )
    for name, taken in ways.items():
        cells = []
        for what in ("seconds", "processor_seconds"):
            peer, found = ([getattr(each, what) for each in ways[key]] for key in (PEER, name))
            cells += [spread(found), f"{statistics.median(peer) / statistics.median(found):.2f}"]
        terminal.add_row(table, name, *cells, spread([each.mib for each in taken]))
    terminal.make_console().print(table)
    terminal.say(
        f"{values.steps} steps of {values.batch_size} sequences of {values.dataset}, then "
        f"{values.answers} answers of validation and all of test; {values.rounds} runs of each"
    )


def spread(found: Sequence[float]) -> str:
    """The median, and the least to the most."""
    return f"{statistics.median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f})"


if __name__ == "__main__":
    sys.exit(small_student.run(compare, _define_flags, __doc__ or "", sys.argv))
