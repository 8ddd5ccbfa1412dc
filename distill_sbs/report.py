"""`python -m distill_sbs.report`: tables, figures and findings of a folder of runs.

    python -m distill_sbs.report runs/sweep --output=runs/sweep/report

Enters: any tree of folders in which runs lie, finished or not, or results that somebody wrote down
(docs/report.md). Leaves: in `--output` one HTML page that needs nothing else, the same as Markdown
and CSV, and the figures as PNG and SVG. The same runs give the same bytes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from absl import flags

from distill_sbs import files
from distill_sbs.cli import command_line, interrupts, terminal
from distill_sbs.cli.run_main import run_main
from distill_sbs.errors import UserError
from distill_sbs.reporting import markdown, page, reading, spreadsheet
from distill_sbs.reporting.document import Document, make_document
from distill_sbs.reporting.drawing import Figure
from distill_sbs.reporting.run import SPLITS
from distill_sbs.reporting.table_form import Table

DESCRIPTION = "Tables, figures and findings of a folder of runs: report RUNS_DIR --output=FOLDER"
PAGE_FILE, MARKDOWN_FILE = "report.html", "report.md"

_MOST_PRINTED = 20


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "runs_dir",
        None,
        "Folder below which runs lie; may be given without the flag's name.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "output",
        None,
        "Folder for the report: a new or empty one, or that of an earlier report, which is"
        " replaced.",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_enum(
        "split", "test", list(SPLITS), "Whose accuracy is reported.", flag_values=values
    )


def report(runs_dir: str, output: str, split: str = "test") -> Document:
    """Writes the report on the runs below a folder, and returns what it says.

    Args:
      runs_dir: a tree of folders.
      output: see `--output`.
      split: 'test' or 'validation'.

    Raises:
      UserError: no such folder, nothing in it that could be read, or an `output` in which
        something else lies.
    """
    _check_output(output)
    found = reading.read_runs(runs_dir)
    for problem in found.problems[:_MOST_PRINTED]:
        terminal.say(f"warning: passed over: {problem}", stderr=True)
    if len(found.problems) > _MOST_PRINTED:
        more = len(found.problems) - _MOST_PRINTED
        terminal.say(f"warning: {more} more were passed over; the report names them", stderr=True)
    if not found.runs:
        raise UserError(
            f"RUNS_DIR={runs_dir}: none of its runs could be read, as said above; nothing was "
            "written"
        )
    document = make_document(found, split)
    for problem in document.problems[len(found.problems) :][:_MOST_PRINTED]:
        terminal.say(f"warning: {problem}", stderr=True)
    with files.replace_folder(output) as folder:
        files.write_file(folder / PAGE_FILE, page.write_page(document))
        files.write_file(folder / MARKDOWN_FILE, markdown.write_markdown(document))
        for table in document.tables:
            if table.is_overview:
                continue
            files.write_file(folder / f"{table.name}.csv", spreadsheet.write_csv(table))
        for figure in document.figures:
            _write_figure(os.path.join(folder, markdown.FIGURES_FOLDER), figure)
    return document


def _write_figure(folder: str, figure: Figure) -> None:
    files.write_file(os.path.join(folder, f"{figure.name}.svg"), figure.svg)
    with files.open_replacement(os.path.join(folder, f"{figure.name}.png"), "wb") as file:
        file.write(figure.png)


def _check_output(output: str) -> None:
    """Refuses a folder that is not a report's: all that is in it would be replaced."""
    if "://" in output:
        raise UserError(f"--output={output}: expected a local folder")
    if not os.path.isdir(output):
        files.check_writable(os.path.join(output, PAGE_FILE))
        return
    names = sorted(os.listdir(output))
    others = [name for name in names if not _is_of_report(os.path.join(output, name))]
    if names and (others or PAGE_FILE not in names):
        raise UserError(
            f"--output={output} holds what is not of a report ({(others or names)[0]}); choose a "
            "new folder, such as "
            f"--output={os.path.join(output, 'report')}"
        )


def _is_of_report(path: str) -> bool:
    name = os.path.basename(path)
    if name == markdown.FIGURES_FOLDER and os.path.isdir(path):
        return all(each.endswith((".png", ".svg")) for each in os.listdir(path))
    return name in (PAGE_FILE, MARKDOWN_FILE) or name.endswith(".csv")


def main(argv: Sequence[str] | None = None) -> int:
    """Reports on what the command line names; returns the exit status."""
    return run_main(lambda: _work(sys.argv if argv is None else argv), "nothing was written")


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, _define_flags, DESCRIPTION, word="runs_dir")
    if not values.runs_dir:
        raise UserError("no RUNS_DIR is given: report RUNS_DIR --output=FOLDER")
    document = report(values.runs_dir, values.output, values.split)
    interrupts.change_message(f"{values.output} is written")
    terminal.say(document.summary)
    for line in document.headlines[:_MOST_PRINTED]:
        terminal.say(f"- {line}")
    for table in document.tables:
        if table.is_overview:
            _print_table(table)
    terminal.say(f"written to {os.path.join(values.output, PAGE_FILE)}")
    return None


def _print_table(table: Table) -> None:
    columns = [column.title for column in table.columns]
    shown = terminal.make_table(*columns, title=table.title, right_from=1)
    for row in table.rows[:_MOST_PRINTED]:
        terminal.add_row(shown, *(entry.text for entry in row))
    terminal.make_console().print(shown)


if __name__ == "__main__":
    sys.exit(main())
