"""What a run tells: a progress bar, `metrics.jsonl`, TensorBoard events, a table at the end.

Enters: metrics a step, as sums and counts. Leaves: lines and files; nothing flows back.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf
from clu import metric_writers
from etils import epath
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn

from distill_sbs.cli import progress, shell_words, terminal
from distill_sbs.files import write_file
from distill_sbs.training.finite_loss import read_scalar
from distill_sbs.training.metrics_file import METRICS_FILE, RunResults, read_metrics

if TYPE_CHECKING:
    from distill_sbs.training.train_step import Metrics

# How values of evaluations are told; others have three decimals.
_FORMS = {"accuracy": ".1%", "unparsed": ".1%", "perplexity": ".2f", "examples": ",d"}


def average(window: Sequence[Metrics]) -> dict[str, float]:
    """Turns the metrics of some steps into the values that are reported.

    Sums are divided by counts here and nowhere else: `label_loss` is cross-entropy in nats a
    label token over all steps of the window, `label_token_accuracy` the share of label tokens
    that teacher forcing gets right; a task that had no token is left out.
    """
    values = {
        "loss": sum(read_scalar(each, "loss") for each in window) / len(window),
        "gradient_norm": read_scalar(window[-1], "gradient_norm"),
    }
    for name in window[0]:
        sums = [pair for each in window if isinstance(pair := each[name], tuple)]
        if sums:
            total, count = (sum(float(pair[i]) for pair in sums) for i in (0, 1))
            if count:
                values[name] = total / count
    return values


class RunLog:
    """Reports one run.

    Args:
      model_dir: the run's folder.
      first_step: steps done before; later lines of an interrupted run are dropped.
      train_steps: steps in all.
      examples_per_step: BATCH_SIZE.
      silent: write and print nothing: another process of the run does.
    """

    def __init__(
        self,
        model_dir: str,
        first_step: int,
        train_steps: int,
        examples_per_step: int,
        silent: bool = False,
    ) -> None:
        self._silent = silent
        self.console = terminal.make_console(stderr=True, soft_wrap=True, quiet=silent)
        self._examples_per_step = examples_per_step
        self._train_steps = train_steps
        if not silent:
            self._writer = metric_writers.SummaryWriter(model_dir)
            self._path = epath.Path(model_dir) / METRICS_FILE
            lines, wrong = read_metrics(model_dir)
            if wrong:
                terminal.say(
                    f"warning: {self._path}: dropped what is no line of a run ({wrong})", True
                )
            kept = [line for line in lines if line["step"] <= first_step]
            write_file(self._path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = tf.io.gfile.GFile(str(self._path), "a")
        self._since = time.monotonic()
        self._bar = progress.make_bar(
            self.console,
            "{task.description}",
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            "{task.fields[status]}",
            "left",
            TimeRemainingColumn(),
            silent=silent,
        )
        self._bar.start()
        self._task = self._bar.add_task(
            "training", total=train_steps, completed=first_step, status="compiling …"
        )

    def advance(self, step: int, status: str | None = None) -> None:
        """Moves the progress bar, and changes the words beside it where `status` is given."""
        self._bar.update(self._task, completed=step)
        if status:
            self._bar.update(self._task, status=status)

    def restart_clock(self) -> None:
        """The time until now was no training time: evaluating, saving."""
        self._since = time.monotonic()

    def examples_per_second(self, steps: int) -> float:
        """The pace of `steps` steps taken since the clock was last started."""
        return steps * self._examples_per_step / max(time.monotonic() - self._since, 1e-9)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one object to `metrics.jsonl`, the same to TensorBoard, and the console."""
        if not self._silent:
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            self._writer.write_scalars(step, dict(values))
        status = _status(values)
        self.advance(step, status)
        if not self.console.is_terminal:
            self.console.print(f"step {step}/{self._train_steps}: {status}")
        self.restart_clock()

    def say(self, message: str) -> None:
        """Prints a line above the progress bar."""
        self.console.print(terminal.clean(message))

    def close(self) -> None:
        """Ends the bar and the files."""
        self._bar.stop()
        if not self._silent:
            self._file.close()
            self._writer.flush()
            self._writer.close()


def _status(values: Mapping[str, float]) -> str:
    parts = []
    for key in ("label_loss", "rationale_loss", "mutual_information", "contrast_loss"):
        if key in values:
            parts.append(f"{key.replace('_', ' ')} {values[key]:.3f}")
    parts += [
        f"{name.replace('_', ' ')} {format(value, _FORMS.get(name.split('_', 1)[1], '.3f'))}"
        for name, value in values.items()
        if name.startswith("validation_")
    ]
    if "examples_per_second" in values:
        parts.append(f"{values['examples_per_second']:.0f} examples/s")
    return ", ".join(parts)


def print_summary(
    results: RunResults,
    lines: Sequence[Mapping[str, float]],
    model_dir: str,
    remark: str | None = None,
    data_dir: str | None = None,
    task_files: Sequence[str] = (),
) -> None:
    """Prints the table at the end of a run, to standard output.

    Args:
      results: what `results.json` says.
      lines: what `metrics.jsonl` says.
      model_dir: the run's folder.
      remark: why the outputs say nothing, if so (`inference.outputs.explain_outputs`).
      data_dir: DATA_DIR, where one was given.
      task_files: the user's registration files.
    """
    table = terminal.make_table("", "", title=results["mixture"], right_from=1)

    def row(name: str, value: float | None, form: str) -> None:
        if value is not None and math.isfinite(value):
            terminal.add_row(table, name, format(value, form))

    row("data fraction", results["data_fraction"], "g")
    row("rationale rate λ", results["rationale_rate"], "g")
    row("steps", results["train_steps"], "d")
    for task in ("label", "rationale", "contrast"):
        logged = [line[f"{task}_loss"] for line in lines if f"{task}_loss" in line]
        if logged:
            change = f"{logged[0]:.3f} → {logged[-1]:.3f}"
            terminal.add_row(table, f"{task} loss, first → last", change)
    row("best step", results["best_step"], "d")
    for split, found in (("validation", results["validation"]), ("test", results["test"])):
        for name, value in found.items():
            row(f"{split} {name.replace('_', ' ')}", value, _FORMS.get(name, ".3f"))
    terminal.make_console().print(table)
    if remark:
        terminal.say(f"note: {remark}")
    terminal.say(f"written to {model_dir}")
    terminal.say("next:\n" + "\n".join(_next_commands(results, model_dir, data_dir, task_files)))


def _next_commands(
    results: RunResults, model_dir: str, data_dir: str | None, task_files: Sequence[str]
) -> list[str]:
    """What a finished run is for, as commands to be copied."""
    files = [f"--task_file={file}" for file in task_files]
    data = [*files, *([f"--data_dir={data_dir}"] if data_dir else [])]
    checkpoint = f"--checkpoint={model_dir}"
    # It answers nothing yet. (Validation has a loss beside accuracy where VALIDATION_LOSS is set.)
    is_pretrained = "loss" in results["test"]
    answers = [] if is_pretrained else ["--output=answers.jsonl"]
    splits = {"test": results["test"], "validation": results["validation"]}
    measured = (name for name, found in splits.items() if set(found.values()) != {None})
    commands = []
    if (split := next(measured, None)) is not None:
        commands.append(["evaluate", checkpoint, f"--split={split}", *answers, *data])
    if is_pretrained:
        macros = {"INITIAL_CHECKPOINT_PATH": model_dir, "DATA_DIR": data_dir}
        given = [f"--gin.{name}={value!r}" for name, value in macros.items() if value]
        commands.append(["train", "--gin_file=EXPERIMENT.gin", *given, *files])
    else:
        commands.append(["infer", checkpoint, "--input=in.jsonl", "--output=out.jsonl"])
    commands += [
        ["convert", f"--input={model_dir}", f"--output={model_dir}/huggingface", "--to=hf"],
        ["report", model_dir, f"--output={model_dir}/report"],
    ]
    return [
        f"  python -m distill_sbs.{name} {shell_words.join_words(arguments)}"
        for name, *arguments in commands
    ]
