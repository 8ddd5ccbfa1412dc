"""`python -m distill_sbs.infer`: a student answers the inputs of a JSONL file.

    python -m distill_sbs.infer --checkpoint=runs/quickstart --input=in.jsonl --output=out.jsonl

Enters: any checkpoint folder, and lines {"id", "input"} (other keys pass through). Leaves: the
same lines with "prediction": a label, or with `--task=rationale` the student's rationale. At test
time the student needs neither the teacher nor a rationale.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from distill_sbs.cli import command_line, quiet_tensorflow
from distill_sbs.cli.run_main import run_main
from distill_sbs.distributed import processes
from distill_sbs.errors import UserError

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
    processes.define_flags(values)


def read_inputs(path: str) -> list[dict[str, Any]]:
    """Reads JSON lines that each have a text "input".

    Raises:
      UserError: the file is missing, or a line is wrong; the message names file and line.
    """
    from etils import epath

    if not epath.Path(path).exists():
        raise UserError(f"--input={path}: no such file")
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(epath.Path(path).read_text().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: broken JSON ({error})") from None
        if not isinstance(row, dict) or not isinstance(row.get("input"), str):
            raise UserError(
                f'{path}:{number}: expected an object with a text "input", such as '
                '{"id": "1", "input": "Anna has 3 apples …"}'
            )
        rows.append(row)
    if not rows:
        raise UserError(f"--input={path} holds no lines")
    return rows


def _answer(rows: Sequence[dict[str, Any]], values: flags.FlagValues) -> None:
    quiet_tensorflow.import_tensorflow()
    from etils import epath

    from distill_sbs.cli.progress import show_progress
    from distill_sbs.inference.student import Student

    student = Student.load(values.checkpoint, values.num_model_partitions)
    is_first = processes.is_first()
    with show_progress("answering", len(rows), silent=not is_first) as advance:
        answers = student.answer(
            [row["input"] for row in rows],
            values.task,
            student.decoder(values.batch_size, values.beam_size),
            advance,
        )
    if not is_first:
        return
    lines = [
        json.dumps({**row, "prediction": answer}, ensure_ascii=False) + "\n"
        for row, answer in zip(rows, answers, strict=True)
    ]
    epath.Path(values.output).parent.mkdir(parents=True, exist_ok=True)
    epath.Path(values.output).write_text("".join(lines))
    print(f"{len(rows)} {values.task}s of {student.step_folder} written to {values.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Answers what the command line asks for; returns the exit status."""
    return run_main(lambda: _work(sys.argv if argv is None else argv), "nothing was written")


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, _define_flags, DESCRIPTION)
    rows = read_inputs(values.input)
    given = values.flag_values_dict()
    processes.check_flags(given)
    quiet_tensorflow.import_tensorflow()  # see train.py
    with processes.join_processes(given, processes.settings_of(given)):
        _answer(rows, values)
    return None


if __name__ == "__main__":
    sys.exit(main())
