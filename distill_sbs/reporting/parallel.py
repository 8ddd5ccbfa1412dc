"""A report's figures drawn by several processes at once, as many as there are cores.

Enters: `Findings`. Leaves: the figures, the same bytes whoever drew what.

Matplotlib takes most of a second for a figure, and one core. A further process reads the findings
from a file and writes its figures to another, so nobody waits for anybody's pipe, and one whose
parent was killed comes to its end by itself. What it does not bring is drawn here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import pickle
import subprocess
import sys
import tempfile
from typing import IO

from distill_sbs.cli.cores import find_cores
from distill_sbs.reporting.drawing import Figure
from distill_sbs.reporting.figures import Drawer
from distill_sbs.reporting.findings import Findings

MOST_FIGURES = 60

# Starting a process takes as long as two or three figures.
_FEWEST_FIGURES_A_PROCESS = 6
_MOST_PROCESSES = 8

_PROGRAM = "from distill_sbs.reporting import parallel; parallel.draw_share()"


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A figure, its place among them, and a line for what of it was left out."""

    number: int
    figure: Figure
    notes: tuple[str, ...]


def draw_figures(findings: Findings) -> tuple[list[Figure], list[str]]:
    """Every figure that the runs have the points for, and a line for what was left out."""
    every = sum(1 for _ in Drawer(findings).plan())
    count = min(every, MOST_FIGURES)
    shares = max(1, min(len(find_cores()), _MOST_PROCESSES, count // _FEWEST_FIGURES_A_PROCESS))
    drawn = _share_out(findings, count, shares)
    notes = list(dict.fromkeys(note for each in drawn for note in each.notes))
    if every > count:
        left = every - count
        notes.append(f"{left} figures more are not drawn; report on fewer runs to see them")
    return [each.figure for each in drawn], notes


def draw(findings: Findings, numbers: range) -> list[Drawn]:
    """The figures of these numbers, in order from 0."""
    drawer = Drawer(findings)
    found = []
    for number, draw_one in enumerate(drawer.plan()):
        if number in numbers:
            drawer.notes.clear()
            found.append(Drawn(number, draw_one(), tuple(drawer.notes)))
    return found


def _share_out(findings: Findings, count: int, shares: int) -> list[Drawn]:
    """The figures in order; the first share of them is drawn here."""
    numbers = [range(first, count, shares) for first in range(shares)]
    children: list[_Child] = []
    try:
        with contextlib.suppress(OSError):  # no room for a file, or for a process
            for share in numbers[1:]:
                children.append(_Child(findings, share))
        found = draw(findings, numbers[0])
        for child, share in itertools.zip_longest(children, numbers[1:]):
            found += (child and child.result()) or draw(findings, share)
    finally:
        for child in children:
            child.close()
    return sorted(found, key=lambda each: each.number)


class _Child:
    """A process that draws a share of the figures."""

    def __init__(self, findings: Findings, share: range) -> None:
        self._output: IO[bytes] = tempfile.TemporaryFile()
        with tempfile.TemporaryFile() as task:
            pickle.dump((findings, share), task)
            task.seek(0)
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM],
                stdin=task,
                stdout=self._output,
                stderr=subprocess.DEVNULL,  # what goes wrong goes wrong here again, and is told
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                start_new_session=True,  # an interrupt is the parent's, which ends it
            )

    def result(self) -> list[Drawn] | None:
        """What it drew, when it has; None where it failed."""
        if self._process.wait():
            return None
        self._output.seek(0)
        found: list[Drawn] = pickle.load(self._output)
        return found

    def close(self) -> None:
        """Ends it, if it has not ended."""
        self._process.kill()
        self._process.wait()
        self._output.close()


def draw_share() -> None:
    """What a further process does: findings and numbers on its input, figures on its output."""
    findings, share = pickle.load(sys.stdin.buffer)
    pickle.dump(draw(findings, share), sys.stdout.buffer)
