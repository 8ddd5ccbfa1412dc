"""What an extraction tells: a progress bar, a table at its end, the tables of a report.

Enters: counts. Leaves: lines on the terminal.
"""

from __future__ import annotations

import contextlib
import json
import sys
import textwrap
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from distill_sbs.cli.peak_memory import peak_memory_mib
from distill_sbs.teacher.budget import Prices
from distill_sbs.teacher.collect import Extraction, Outcome
from distill_sbs.teacher.journal import Totals
from distill_sbs.teacher.quality import Quality

# Off a terminal, where there is no bar, a line comes this often.
SECONDS_BETWEEN_LINES = 30.0
_WIDTH_OFF_TERMINAL = 100


def _console(stderr: bool = False) -> Console:
    console = Console(stderr=stderr, soft_wrap=False, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=stderr, width=_WIDTH_OFF_TERMINAL, highlight=False)
    return console


def working(what: str) -> contextlib.AbstractContextManager[Any]:
    """Says what is going on while it is; silent off a terminal."""
    return Console(stderr=True).status(what)


class ProgressBar:
    """Shows how far an extraction is: calls a second, tokens, cost, share of parsed answers.

    Args:
      total: answers that are wanted in all.
      done: answers that were there before.
      prices: of tokens.
    """

    def __init__(self, total: int, done: int, prices: Prices) -> None:
        self._console = Console(stderr=True)
        self._total = total
        self._done_before = done
        self._prices = prices
        self._started = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[status]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
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
            print(f"{done:,}/{self._total:,} answers: {status}", file=sys.stderr, flush=True)

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
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    return table


def _share(count: int, of: int) -> str:
    return f"{count:,} ({count / of:.1%})" if of else f"{count:,}"


def _add_quality(table: Table, quality: Quality) -> None:
    table.add_row("examples", f"{quality.examples:,}")
    table.add_row("parsed", _share(quality.parsed, quality.examples))
    if quality.gold:
        table.add_row(
            "agreeing with gold (unparsed: wrong)", _share(quality.agreeing, quality.gold)
        )
        if quality.parsed_with_gold:
            of_parsed = _share(quality.agreeing, quality.parsed_with_gold)
            table.add_row("… of the parsed ones", of_parsed)
    for problem, count in quality.problems.most_common():
        table.add_row(Text(f"without a label: {textwrap.shorten(problem, 70)}"), f"{count:,}")
    if quality.mean_words is not None:
        table.add_row("mean rationale length in words", f"{quality.mean_words:.1f}")


def print_outcome(
    title: str, quality: Quality, totals: Totals, outcome: Outcome, prices: Prices
) -> None:
    """The table at the end of an extraction: the file in all, then this run."""
    table = _two_columns(title)
    _add_quality(table, quality)
    table.add_row(
        "tokens, prompt + answer", f"{totals.prompt_tokens:,} + {totals.completion_tokens:,}"
    )
    cost = prices.cost(totals.prompt_tokens, totals.completion_tokens)
    if cost is not None:
        table.add_row("cost", f"{cost:,.4f}")
    table.add_section()
    table.add_row("this run: calls", f"{outcome.calls:,}")
    table.add_row("answers", f"{outcome.answered:,}")
    for reason, count in outcome.retries.most_common():
        table.add_row(Text(f"asked again: {textwrap.shorten(reason, 70)}"), f"{count:,}")
    table.add_row("time", f"{outcome.seconds:,.1f} s")
    if outcome.seconds:
        table.add_row("answers a second", f"{outcome.answered / outcome.seconds:,.1f}")
    table.add_row("peak memory", f"{peak_memory_mib():,.0f} MiB")
    _console().print(table)


def print_report(title: str, quality: Quality, examples: bool = True) -> None:
    """The tables of `--report`."""
    console = _console()
    table = _two_columns(title)
    _add_quality(table, quality)
    if quality.parsed:
        quantiles = [quality.words_quantile(share) for share in (0.05, 0.5, 0.95, 1.0)]
        table.add_row("words, 5 / 50 / 95 % / longest", " / ".join(map(str, quantiles)))
        table.add_row("rationales that stand twice", _share(quality.duplicates, quality.parsed))
        table.add_row("rationales that hold the label", _share(quality.holds_label, quality.parsed))
        table.add_row(
            "… that say nothing but the label", _share(quality.nothing_but_label, quality.parsed)
        )
    console.print(table)
    if quality.parsed:
        _print_lengths(console, quality)
        _print_labels(console, quality)
    if examples:
        for kind, shown in quality.shown.items():
            console.print(Text(f"\n{kind}:", style="bold"))
            for judged in shown:
                console.print(Text(_described(judged)))


def _print_lengths(console: Console, quality: Quality) -> None:
    table = Table(title="rationale length in words", title_justify="left", show_header=False)
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    ranges = quality.words_histogram()
    most = max(count for _, _, count in ranges)
    for low, high, count in ranges:
        table.add_row(f"{low}–{high}", f"{count:,}", "█" * round(30 * count / most))
    console.print(table)


def _print_labels(console: Console, quality: Quality, most: int = 10) -> None:
    """Labels of the teacher against gold ones; of an open set the most frequent only."""
    table = Table(title="labels", title_justify="left")
    table.add_column("label")
    table.add_column("teacher", justify="right")
    if quality.gold:
        table.add_column("gold", justify="right")
    together = quality.labels + quality.gold_labels
    for label, _ in together.most_common(most):
        counts = [f"{quality.labels[label]:,}"]
        counts += [f"{quality.gold_labels[label]:,}"] if quality.gold else []
        table.add_row(Text(textwrap.shorten(label, 50, placeholder=" …")), *counts)
    if len(together) > most:
        different = [f"{len(quality.labels):,} different"]
        different += [f"{len(quality.gold_labels):,} different"] if quality.gold else []
        table.add_row("all", *different)
    console.print(table)


def _described(judged: Any) -> str:
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
