"""What an extraction tells: a progress bar, a table at its end, the tables of a report.

Enters: counts. Leaves: lines on the terminal.
"""

from __future__ import annotations

import json
import textwrap
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from distill_sbs.cli import progress, terminal
from distill_sbs.cli.peak_memory import peak_memory_mib
from distill_sbs.teacher.budget import Prices
from distill_sbs.teacher.collect import Extraction, Outcome
from distill_sbs.teacher.journal import Totals
from distill_sbs.teacher.quality import AnsweredExample, Quality

# Off a terminal, where there is no bar, a line comes this often.
SECONDS_BETWEEN_LINES = 30.0


class ProgressBar:
    """Shows how far an extraction is: calls a second, tokens, cost, share of parsed answers.

    Args:
      total: answers that are wanted in all.
      done: answers that were there before.
      prices: of tokens.
    """

    def __init__(self, total: int, done: int, prices: Prices) -> None:
        self._console = terminal.make_console(stderr=True)
        self._total = total
        self._done_before = done
        self._prices = prices
        self._started = self._last_line = time.monotonic()
        self._bar = progress.make_bar(
            self._console,
            "{task.description}",
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            "{task.fields[status]}",
            "left",
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("asking", total=total, completed=done, status="")

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, extraction: Extraction) -> None:
        """Shows the state of `extraction`; cheap enough for every answer."""
        now = time.monotonic()
        is_terminal = self._console.is_terminal
        if not is_terminal and now - self._last_line < SECONDS_BETWEEN_LINES:
            return
        self._last_line = now
        totals, outcome = extraction.journal.totals, extraction.outcome
        done = totals.answered + totals.failed
        status = self._status(totals, outcome, extraction.pacer.in_flight, now)
        if is_terminal:
            self._bar.update(self._task, completed=done, status=status)
        else:
            self.say(f"{done:,}/{self._total:,} answers: {status}")

    def say(self, message: str) -> None:
        """Prints a line above the bar."""
        self._console.print(Text(terminal.clean(message)), soft_wrap=True)

    def _status(self, totals: Totals, outcome: Outcome, in_flight: int, now: float) -> str:
        parts = [
            f"{outcome.calls / max(now - self._started, 1e-9):.1f} calls/s",
            f"{in_flight} in flight",
            f"{totals.prompt_tokens + totals.completion_tokens:,} tokens",
        ]
        cost = self._prices.cost(totals.prompt_tokens, totals.completion_tokens)
        if cost is not None:
            parts.append(f"cost {cost:,.2f}")
        if totals.answered:
            parts.append(f"{totals.parsed / totals.answered:.1%} parsed")
        if totals.failed:
            parts.append(f"{totals.failed:,} failed")
        return ", ".join(parts)


def _two_columns(title: str) -> Table:
    table = terminal.make_table(title=title)
    table.add_column()
    table.add_column(justify="right")
    return table


def _share(count: int, of: int) -> str:
    return f"{count:,} ({count / of:.1%})" if of else f"{count:,}"


def _add_quality(table: Table, quality: Quality) -> None:
    terminal.add_row(table, "examples", f"{quality.examples:,}")
    terminal.add_row(table, "parsed", _share(quality.parsed, quality.examples))
    if quality.gold:
        terminal.add_row(
            table, "agreeing with gold (unparsed: wrong)", _share(quality.agreeing, quality.gold)
        )
        if quality.parsed_with_gold:
            of_parsed = _share(quality.agreeing, quality.parsed_with_gold)
            terminal.add_row(table, "… of the parsed ones", of_parsed)
    for problem, count in quality.problems.most_common():
        terminal.add_row(table, f"without a label: {textwrap.shorten(problem, 70)}", f"{count:,}")
    if quality.mean_words is not None:
        terminal.add_row(table, "mean rationale length in words", f"{quality.mean_words:.1f}")
    if quality.with_thinking:
        terminal.add_row(
            table,
            "with a thinking part, which is left out",
            _share(quality.with_thinking, quality.examples),
        )


def print_outcome(
    title: str, quality: Quality, totals: Totals, outcome: Outcome, prices: Prices
) -> None:
    """The table at the end of an extraction: the file in all, then this run."""
    table = _two_columns(title)
    _add_quality(table, quality)
    terminal.add_row(
        table, "tokens, prompt + answer", f"{totals.prompt_tokens:,} + {totals.completion_tokens:,}"
    )
    cost = prices.cost(totals.prompt_tokens, totals.completion_tokens)
    if cost is not None:
        terminal.add_row(table, "cost", f"{cost:,.4f}")
    table.add_section()
    terminal.add_row(table, "this run: calls", f"{outcome.calls:,}")
    terminal.add_row(table, "answers", f"{outcome.answered:,}")
    for reason, count in outcome.retries.most_common():
        terminal.add_row(table, f"asked again: {textwrap.shorten(reason, 70)}", f"{count:,}")
    terminal.add_row(table, "time", f"{outcome.seconds:,.1f} s")
    if outcome.seconds:
        terminal.add_row(table, "answers a second", f"{outcome.answered / outcome.seconds:,.1f}")
    terminal.add_row(table, "peak memory", f"{peak_memory_mib():,.0f} MiB")
    terminal.make_console().print(table)


def print_report(title: str, quality: Quality, examples: bool = True) -> None:
    """The tables of `--report`."""
    console = terminal.make_console()
    table = _two_columns(title)
    _add_quality(table, quality)
    if quality.parsed:
        quantiles = [quality.words_quantile(share) for share in (0.05, 0.5, 0.95, 1.0)]
        terminal.add_row(table, "words, 5 / 50 / 95 % / longest", " / ".join(map(str, quantiles)))
        terminal.add_row(
            table, "rationales that stand twice", _share(quality.duplicates, quality.parsed)
        )
        terminal.add_row(
            table, "rationales that hold the label", _share(quality.holds_label, quality.parsed)
        )
        terminal.add_row(
            table,
            "… that say nothing but the label",
            _share(quality.nothing_but_label, quality.parsed),
        )
    console.print(table)
    if quality.parsed:
        _print_lengths(console, quality)
        _print_labels(console, quality)
    if examples:
        for kind, shown in quality.shown.items():
            console.print(Text(terminal.clean(f"\n{kind}:"), style="bold"))
            for judged in shown:
                console.print(Text(terminal.clean(_describe(judged))))


def _print_lengths(console: Console, quality: Quality) -> None:
    table = terminal.make_table(title="rationale length in words")
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    ranges = quality.words_histogram()
    most = max(count for _, _, count in ranges)
    for low, high, count in ranges:
        terminal.add_row(table, f"{low}–{high}", f"{count:,}", "█" * round(30 * count / most))
    console.print(table)


def _print_labels(console: Console, quality: Quality, most: int = 10) -> None:
    """Labels of the teacher against gold ones; of an open set the most frequent only."""
    columns = ["label", "teacher", "gold"] if quality.gold else ["label", "teacher"]
    table = terminal.make_table(*columns, title="labels")
    for column in table.columns[1:]:
        column.justify = "right"
    together = quality.labels + quality.gold_labels
    for label, _ in together.most_common(most):
        counts = [f"{quality.labels[label]:,}"]
        counts += [f"{quality.gold_labels[label]:,}"] if quality.gold else []
        terminal.add_row(table, textwrap.shorten(label, 50, placeholder=" …"), *counts)
    if len(together) > most:
        different = [f"{len(quality.labels):,} different"]
        different += [f"{len(quality.gold_labels):,} different"] if quality.gold else []
        terminal.add_row(table, "all", *different)
    console.print(table)


def _describe(judged: AnsweredExample) -> str:
    def quoted(text: str | None) -> str:
        return json.dumps(textwrap.shorten(text or "", 240, placeholder=" …"), ensure_ascii=False)

    lines = [f"  {judged.example.id}: {quoted(judged.example.input)}"]
    if judged.raw is not None:
        lines.append(f"    said {quoted(judged.raw)}")
    elif judged.rationale is not None:
        lines.append(f"    rationale {quoted(judged.rationale)}")
    if judged.label is not None:
        lines.append(f"    label {judged.label!r}, gold {judged.example.label!r}")
    return "\n".join(lines)
