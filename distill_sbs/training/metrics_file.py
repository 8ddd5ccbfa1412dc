"""`metrics.jsonl`: what a run reported, one JSON object a logged step, in the order of steps.

Enters: the file as it stands, which a killed process, a full disk or an editor may have left in any
state. Leaves: the lines that a run wrote, and what was passed over.
"""

from __future__ import annotations

import math
from typing import Any

from etils import epath

from distill_sbs import json_lines
from distill_sbs.errors import SourceError

METRICS_FILE = "metrics.jsonl"


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


def _check(value: Any, number: int, after: float) -> dict[str, float]:
    if not isinstance(value, dict):
        raise SourceError(f"line {number}: {type(value).__name__} found, expected an object")
    step = value.get("step")
    if isinstance(step, bool) or not isinstance(step, int):
        raise SourceError(f"line {number}: its step is {step!r}")
    if step <= after:
        raise SourceError(f"line {number}: step {step} comes after step {after}")
    for name, each in value.items():
        is_number = isinstance(each, int | float) and not isinstance(each, bool)
        if not is_number or not math.isfinite(each):
            raise SourceError(f"line {number}: its {name} is {each!r}"[:100])
    return value
