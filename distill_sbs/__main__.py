"""`distill_sbs`, or `python -m distill_sbs`: which commands there are; or one of them, run.

    distill_sbs
    distill_sbs train --gin_file=gin/experiments/quickstart.gin
    source <(distill_sbs completion)

Enters: nothing, or a command line. Leaves: a list, or what that command leaves by itself.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence

from distill_sbs import resources
from distill_sbs.cli import terminal
from distill_sbs.cli.run_main import run_main
from distill_sbs.errors import UserError, did_you_mean

# In the order in which a project uses them.
COMMANDS = {
    "prepare": "makes records of raw data; joins a teacher's answers with them",
    "inspect": "what the rows of a dataset or a file become, before training",
    "extract": "asks a teacher for labels and rationales",
    "curate": "chooses the training examples whose rationales are worth a student's time",
    "train": "trains a student, and evaluates its best step on test",
    "allocate": "spends a fixed budget of tokens on several tasks, as a bandit finds best",
    "contrast": "which tokens of its own rationales a student should learn, by a weaker one",
    "evaluate": "accuracy of a student on a split",
    "infer": "answers the inputs of a JSONL file with labels or rationales",
    "serve": "answers over HTTP with a student that convert exported",
    "sweep": "one experiment over a grid of methods, data fractions, students and seeds",
    "report": "tables, figures and the paper's headlines of a folder of runs",
    "convert": "checkpoints of HuggingFace, T5X and this project, each into the others",
    "precompile": "whether a run fits a TPU slice, and how fast it could be, without a TPU",
    "resources": "prints the folder of the gin files, for other programs",
}
# Prints what a shell is to source.
COMPLETION = "completion"


def describe_commands() -> str:
    """What is printed where no command is given."""
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "Distilling step-by-step: a small student learns labels and rationales of a teacher.",
            "",
            "Usage: distill_sbs COMMAND --flag=value …   (or python -m distill_sbs.COMMAND …)",
            "",
            *(f"  {name:<{width}}  {does}" for name, does in COMMANDS.items()),
            "",
            "COMMAND --help tells the flags of one; `source <(distill_sbs completion)` lets Tab",
            "complete them. A first run:",
            "  distill_sbs train --gin_file=gin/experiments/quickstart.gin",
        ]
    )


def _work() -> int | None:
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "--helpfull"):
        terminal.say(describe_commands())
        return None
    if name == COMPLETION:
        terminal.say(resources.completion_script().read_text().rstrip())
        return None
    if name not in COMMANDS:
        raise UserError(
            f"unknown command {name!r}{did_you_mean(name, COMMANDS)}; python -m distill_sbs lists "
            "the commands"
        )
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Lists the commands, or says that there is none of the name; returns the exit status."""
    if argv is not None:
        sys.argv = list(argv)
    return run_main(_work, "nothing was started")


def run_command() -> int:
    """Runs the command on the command line as if it were called by its module; its exit status."""
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        command = sys.argv.pop(1)
        runpy.run_module(f"distill_sbs.{command}", run_name="__main__", alter_sys=True)
        return 0
    return main()


if __name__ == "__main__":
    sys.exit(run_command())
