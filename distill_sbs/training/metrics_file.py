"""`metrics.jsonl`: what a run reported, one JSON object a logged step, in the order of steps.

Enters: the file as it stands, which a killed process, a full disk or an editor may have left in any
state. Leaves: the lines that a run wrote, and what was passed over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias, TypedDict

from etils import epath

from distill_sbs import json_lines
from distill_sbs.errors import SourceError
from distill_sbs.json_lines import JsonValue

METRICS_FILE = "metrics.jsonl"


# Of one split by name: `accuracy` of answers, 0 to 1, and of how many `examples`, or the loss of
# texts; None where there is nothing to evaluate.
SplitMetrics: TypeAlias = Mapping[str, float | None]


class RunResults(TypedDict):
    """What `results.json` says of a run."""

    mixture: str
    data_fraction: float
    rationale_rate: float
    seed: int
    train_steps: int
    best_step: int
    validation: SplitMetrics
    test: SplitMetrics


def read_metrics(model_dir: str) -> tuple[list[dict[str, float]], str | None]:
    """The lines that a run wrote, and what was passed over, in a few words, None if nothing was.

    A line counts that is an object of finite numbers with a whole `step` beyond that of the line
    before: others are torn, of another program, or of a run that had gone further.
    """
    path = epath.Path(model_dir) / METRICS_FILE
    lines: list[dict[str, float]] = []
    wrong: list[str] = []
    content = path.read_bytes() if path.exists() else b""
    for number, text in enumerate(content.split(b"\n"), start=1):
        if not text.strip():
            continue
        try:
            value = json_lines.parse_json(text, f"line {number}")
            line = _check(value, number, after=lines[-1]["step"] if lines else 0)
        except SourceError as error:
            wrong.append(str(error))
        else:
            lines.append(line)
    if not wrong:
        return lines, None
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return lines, f"{wrong[0]}{more}"


def _check(value: JsonValue, number: int, after: float) -> dict[str, float]:
    if not isinstance(value, dict):
        raise SourceError(f"line {number}: {json_lines.name_kind(value)} found, expected an object")
    step = value.get("step")
    if isinstance(step, bool) or not isinstance(step, int):
        raise SourceError(f"line {number}: its step is {step!r}")
    if step <= after:
        raise SourceError(f"line {number}: step {step} comes after step {after}")
    line: dict[str, float] = {}
    for name, each in value.items():
        if isinstance(each, bool) or not isinstance(each, int | float) or not math.isfinite(each):
            raise SourceError(f"line {number}: its {name} is {each!r}"[:100])
        line[name] = each
    return line
