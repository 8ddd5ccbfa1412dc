"""Runs shell commands and draws what they print as an SVG, for the README.

    python docs/images/record_terminal.py --output=docs/images/quickstart.svg --title=Quickstart \
      'python -m distill_sbs.train --gin_file=gin/experiments/quickstart.gin' …

Enters: commands, run one after the other by bash in the working directory. Leaves: the picture, by
rich's own export. Standard output and standard error are drawn as they came.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys

import rich.console
import rich.text

COLUMNS = 108


def record(commands: list[str], title: str) -> str:
    """The SVG of a terminal in which `commands` ran; stops at the first that fails.

    Raises:
      subprocess.CalledProcessError: a command failed.
    """
    console = rich.console.Console(record=True, width=COLUMNS, file=io.StringIO())
    for command in commands:
        console.print(rich.text.Text(f"$ {command}", style="bold"))
        done = subprocess.run(
            ["bash", "-c", command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        console.print(rich.text.Text.from_ansi(done.stdout))
        if done.returncode:
            sys.stderr.write(done.stdout)
            raise subprocess.CalledProcessError(done.returncode, command)
    # A fixed id, so that the same output gives the same file.
    return console.export_svg(title=title, unique_id="terminal")


def main() -> None:
    """Records the commands of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="The SVG to write.")
    parser.add_argument("--title", default="", help="The title of the window.")
    parser.add_argument("commands", nargs="+", help="What to run.")
    arguments = parser.parse_args()
    svg = record(arguments.commands, arguments.title)
    with open(arguments.output, "w", encoding="utf-8") as file:
        file.write(svg)


if __name__ == "__main__":
    main()
