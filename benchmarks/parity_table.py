"""Measurements of `parity.py` as tables: on the terminal, and in Markdown.

Enters: `Part`s, each the measurements of one model. Leaves: text. Imports neither JAX nor torch.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import re
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import NamedTuple

import rich.box
import rich.table

from distill_sbs.errors import UserError

MARKER = "<!-- transformers -->"
PACKAGES = ("jax", "flax", "optax", "torch", "transformers")
WEIGHTS = ("scaled", "as drawn")

# The part that measures what float32 leaves open in another one.
ROUNDING = "rounding"

# Size, version, weights, part.
Key = tuple[str, str, str, str]


class Measurement(NamedTuple):
    """One number of the table.

    Attributes:
      name: what was compared.
      value: the difference measured.
      limit: the most it may be; 0 where outputs are counted.
      note: how to read it.
      rounding: the difference of transformers from itself in float64, where that is known.
    """

    name: str
    value: float
    limit: float
    note: str = ""
    rounding: float | None = None

    @property
    def within(self) -> bool:
        """Whether the limit is kept; not so for NaN."""
        return self.value <= self.limit

    @property
    def cell(self) -> str:
        """The difference, with what float32 leaves open in brackets."""
        if self.limit == 0:
            return f"{self.value:.0f}"
        known = "" if self.rounding is None else f" ({self.rounding:.1e})"
        return f"{self.value:.1e}{known}"


class Part(NamedTuple):
    """What is measured in one go.

    Attributes:
      size: tiny or base.
      version: of T5, 1.0 or 1.1.
      weights: one of WEIGHTS.
      name: of the part.
      seconds: it took.
      peak_gigabytes: memory of the process until then.
      lines: the measurements.
    """

    size: str
    version: str
    weights: str
    name: str
    seconds: float
    peak_gigabytes: float
    lines: list[Measurement]

    @property
    def key(self) -> Key:
        """What tells it from others."""
        return (self.size, self.version, self.weights, self.name)

    @property
    def model(self) -> str:
        """Heads a column."""
        return f"{self.version} {self.size}"

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.model}, weights {self.weights}: {self.name}"

    def to_json(self) -> str:
        """One line."""
        return json.dumps(
            self._replace(lines=[line._asdict() for line in self.lines])._asdict(),
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Part:
        """The opposite of `to_json`."""
        values = json.loads(text)
        return cls(**{**values, "lines": [Measurement(**line) for line in values["lines"]]})


def read(path: str | None) -> list[Part]:
    """The parts in a file that `append` wrote; none where there is no file or none is named.

    Raises:
      UserError: a line is no part.
    """
    if path is None or not os.path.exists(path):
        return []
    parts = []
    with open(path, encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            try:
                parts.append(Part.from_json(text))
            except (ValueError, TypeError, KeyError) as error:
                raise UserError(
                    f"{path}:{number}: expected a line that this script wrote ({error}); delete it"
                ) from None
    return parts


def append(path: str | None, part: Part) -> None:
    """Writes a part to the end of the file, if one is named."""
    if path is None:
        return
    with open(path, "a", encoding="utf-8") as file:
        file.write(part.to_json() + "\n")


def folded(parts: Sequence[Part]) -> list[Part]:
    """Without the parts named `rounding`: their values become the rounding of their model's lines.

    What they measure bears the name of the line that it belongs to.
    """
    known = {
        (part.model, line.name): line.value
        for part in parts
        if part.name == ROUNDING
        for line in part.lines
    }

    def with_rounding(part: Part) -> Part:
        lines = [
            line._replace(rounding=known.get((part.model, line.name), line.rounding))
            for line in part.lines
        ]
        return part._replace(lines=lines)

    return [with_rounding(part) for part in parts if part.name != ROUNDING]


def _rows(parts: Sequence[Part]) -> tuple[list[str], list[list[Measurement | None]], list[str]]:
    """Names of the models; for every quantity its line of each model; names of the quantities."""
    models = list(dict.fromkeys(part.model for part in parts))
    quantities = list(dict.fromkeys(line.name for part in parts for line in part.lines))
    found = {(part.model, line.name): line for part in parts for line in part.lines}
    cells = [[found.get((model, name)) for model in models] for name in quantities]
    return models, cells, quantities


def _limit(lines: Sequence[Measurement | None]) -> str:
    limit = next(line.limit for line in lines if line is not None)
    return f"{limit:.0e}" if limit else "0"


def terminal_tables(parts: Sequence[Part]) -> Iterator[rich.table.Table]:
    """A table for each kind of weights: a row a quantity, a column a model."""
    for weights in WEIGHTS:
        chosen = [part for part in folded(parts) if part.weights == weights]
        if not chosen:
            continue
        models, rows, quantities = _rows(chosen)
        table = rich.table.Table(
            title=f"T5 of transformers against ours, weights {weights}",
            title_justify="left",
            box=rich.box.SIMPLE_HEAD,
        )
        table.add_column("difference (of transformers' float32 from its float64)", min_width=30)
        table.add_column("limit", justify="right", no_wrap=True)
        for model in models:
            table.add_column(model, justify="right", no_wrap=True)
        for name, lines in zip(quantities, rows, strict=True):
            cells = [
                "" if line is None else line.cell if line.within else f"[bold red]{line.cell} !"
                for line in lines
            ]
            table.add_row(name, _limit(lines), *cells)
        yield table


def markdown(parts: Sequence[Part]) -> str:
    """The same tables in Markdown, what was noted beside each measurement, and the machine."""
    text = []
    for weights in WEIGHTS:
        chosen = [part for part in folded(parts) if part.weights == weights]
        if not chosen:
            continue
        models, rows, quantities = _rows(chosen)
        text += [f"### Weights {weights}\n", _line("difference", "limit", *models)]
        text.append(_line("---", *["---:"] * (1 + len(models))))
        for name, lines in zip(quantities, rows, strict=True):
            cells = [
                "" if line is None else line.cell if line.within else f"**{line.cell}**"
                for line in lines
            ]
            text.append(_line(name, _limit(lines), *cells))
        text.append("")
        for name, lines in zip(quantities, rows, strict=True):
            notes = [
                f"{model}: {line.note}"
                for model, line in zip(models, lines, strict=True)
                if line is not None and line.note
            ]
            if notes:
                text.append(f"- {name.removeprefix('… ')}. {'; '.join(notes)}.")
        text.append("")
    return "\n".join([*text, measured(parts)])


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def describe_machine() -> str:
    """Processor and libraries, in words."""
    model = platform.processor() or platform.machine()
    if pathlib.Path("/proc/cpuinfo").exists():
        found = re.search(r"model name\s*: (.+)", pathlib.Path("/proc/cpuinfo").read_text())
        model = found[1] if found else model
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    cores = len(os.sched_getaffinity(0))
    return f"{cores} cores of {model}; Python {platform.python_version()}, {versions}"


def measured(parts: Sequence[Part]) -> str:
    """Time, memory, processor and libraries, in words."""
    seconds = sum(part.seconds for part in parts)
    peak = max(part.peak_gigabytes for part in parts)
    return f"Measured in {seconds:.0f} s with at most {peak:.1f} GB, on {describe_machine()}."


def write(path: str, text: str | None) -> None:
    """Puts the text between the file's two markers, or writes a file of it.

    Args:
      path: a Markdown file; may be missing.
      text: without it nothing is written, and the file is only looked at.

    Raises:
      UserError: the file has no such markers, or there is no such folder.
    """
    file = pathlib.Path(path)
    if not file.absolute().parent.is_dir():
        raise UserError(f"--output={path}: no such folder")
    before = file.read_text(encoding="utf-8") if file.exists() else f"{MARKER}\n{MARKER}\n"
    pieces = before.split(MARKER)
    if len(pieces) != 3:
        raise UserError(f"--output={path}: expected two lines {MARKER} to put the table between")
    if text is not None:
        file.write_text(f"{pieces[0]}{MARKER}\n{text}\n{MARKER}{pieces[2]}", encoding="utf-8")
