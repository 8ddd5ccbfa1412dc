"""`python -m distill_sbs.infer`: a student answers the inputs of a JSONL file.

    python -m distill_sbs.infer --checkpoint=runs/quickstart --input=in.jsonl --output=out.jsonl

Enters: any checkpoint folder, and lines {"id", "input"}. Leaves: the same lines, all other keys as
they were typed, with "prediction": a label, or with `--task=rationale` the student's rationale. The
file appears when all is answered. At test time the student needs neither the teacher nor a
rationale; and this program needs no TensorFlow.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from distill_sbs import files, json_lines
from distill_sbs.cli import command_line, interrupts, terminal
from distill_sbs.cli.compiled_programs import keep_compiled_programs
from distill_sbs.cli.freed_memory import keep_freed_memory
from distill_sbs.cli.run_main import run_main
from distill_sbs.distributed import processes
from distill_sbs.errors import UserError

if TYPE_CHECKING:
    import numpy as np

DESCRIPTION = "Answers the inputs of a JSONL file with a trained student."
TASKS = ("label", "rationale")


def _define_flags(values: flags.FlagValues) -> None:
    command_line.define_decoding_flags(values)
    flags.DEFINE_string(
        "input",
        None,
        'JSON lines {"id", "input"}, inputs without prefix.',
        flag_values=values,
        required=True,
    )
    flags.DEFINE_string(
        "output", None, "Where the answered lines go.", flag_values=values, required=True
    )
    flags.DEFINE_enum("task", "label", TASKS, "What to write.", flag_values=values)
    flags.DEFINE_multi_string(
        "label",
        [],
        "A label that may be answered; repeatable. Nothing else is then decoded.",
        flag_values=values,
    )
    processes.define_flags(values)


def read_inputs(path: str) -> list[tuple[str, str]]:
    """Reads JSON lines that each have a text "input": (the line as it stands, the input).

    Raises:
      UserError: the file is missing, or a line is wrong; the message names file and line.
    """
    rows: list[tuple[str, str]] = []
    try:
        for number, line in json_lines.read_lines(path):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            row = json_lines.parse_object(line, place)
            text = row.get("input")
            if not isinstance(text, str):
                raise UserError(
                    f'{place}: expected an object with a text "input", such as '
                    '{"id": "1", "input": "Anna has 3 apples …"}'
                )
            rows.append((line, text))
    except FileNotFoundError:
        raise UserError(f"--input={path}: no such file") from None
    if not rows:
        raise UserError(f"--input={path} holds no lines")
    return rows


def answer(
    rows: Sequence[tuple[str, str]],
    output: str,
    checkpoint: str,
    *,
    task: str = "label",
    batch_size: int = 128,
    beam_size: int = 1,
    num_model_partitions: int = 1,
    labels: Sequence[str] = (),
) -> None:
    """Writes `output`: the lines of `read_inputs`, each with the student's "prediction".

    Args:
      rows: from `read_inputs`.
      output: the file, which appears when all is answered.
      checkpoint: as `Student.load` takes it.
      task: of `TASKS`.
      batch_size: inputs at a time.
      beam_size: 1 is greedy.
      num_model_partitions: devices that share one copy of the parameters.
      labels: what may be answered, decoded greedily; where there are none, anything.

    Raises:
      UserError: there is no checkpoint, or it is damaged; two labels are one to the student.
    """
    # Imported here: the command line has been checked by now, and this takes seconds.
    from distill_sbs.cli.progress import show_progress
    from distill_sbs.inference.outputs import explain_outputs
    from distill_sbs.inference.student import Student

    student = Student.load(checkpoint, num_model_partitions)
    is_first = processes.is_first()
    with show_progress("answering", len(rows), silent=not is_first) as advance:
        texts = [text for _, text in rows]
        outputs: list[np.ndarray] = []
        if labels:
            inputs = [student.tokens(text, task) for text in texts]
            answers = student.choose(inputs, labels, batch_size, advance)
        else:
            decoder = student.decoder(batch_size, beam_size, task)
            outputs = student.decode(texts, task, decoder, advance)
            answers = [student.text(tokens) for tokens in outputs]
    if not is_first:
        return
    with files.open_replacement(output) as file:
        for (line, _), said in zip(rows, answers, strict=True):
            file.write(json_lines.set_member(line, "prediction", said) + "\n")
    interrupts.change_message(f"{output} is written")
    terminal.say(f"{len(rows)} {task}s of {student.step_folder} written to {output}")
    limit = student.description.longest_output(task)
    if outputs and (note := explain_outputs(outputs, answers, limit)):
        terminal.say(f"note: {note}", stderr=True)


def _check_covered(checkpoint: str, task: str, path: str, texts: Sequence[str]) -> None:
    """Refuses, with a count, inputs that the student's trimmed vocabulary does not cover."""
    from distill_sbs.inference.coverage import check_inputs

    def place(number: int) -> str:
        lines = (line for line, text in json_lines.read_lines(path) if text.strip())
        return f"in line {next(itertools.islice(lines, number, None))}"

    check_inputs(checkpoint, task, texts, f"--input={path}", place)


def main(argv: Sequence[str] | None = None) -> int:
    """Answers what the command line asks for; returns the exit status."""
    return run_main(lambda: _work(sys.argv if argv is None else argv), "nothing was written")


def _check_flags(values: flags.FlagValues) -> None:
    """Refuses what has no effect on answers that are chosen among labels."""
    if not values.label:
        return
    if values.task != "label":
        raise UserError(f"--label with --task={values.task}: only labels are chosen among labels")
    if values.beam_size > 1:
        raise UserError(f"--beam_size={values.beam_size} has no effect with --label; leave one out")
    if not all(label.strip() for label in values.label):
        raise UserError("--label= is empty, expected a label such as --label=entailment")


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, _define_flags, DESCRIPTION)
    _check_flags(values)
    rows = read_inputs(values.input)
    files.check_writable(values.output)
    given = values.flag_values_dict()
    processes.check_flags(given)
    keep_freed_memory()
    keep_compiled_programs()
    with processes.join_processes(given, processes.list_settings(given)):
        _check_covered(values.checkpoint, values.task, values.input, [text for _, text in rows])
        answer(
            rows,
            values.output,
            values.checkpoint,
            task=values.task,
            batch_size=values.batch_size,
            beam_size=values.beam_size,
            num_model_partitions=values.num_model_partitions,
            labels=values.label,
        )
    return None


if __name__ == "__main__":
    sys.exit(main())
