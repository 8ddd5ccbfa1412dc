"""What each interval did, as JSON Lines that another run can replay.

Enters: records. Leaves: `allocation_history.jsonl`, whose first line says which run it is of and
whose others are one interval each; and, read again, the mixtures of a run, or what they did to its
profile and utility.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from distill_sbs import json_lines
from distill_sbs.errors import SourceError, UserError
from distill_sbs.files import write_file
from distill_sbs.json_lines import JsonObject, JsonValue

HISTORY_FILE = "allocation_history.jsonl"
FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class HistoryHead:
    """Which run a history is of.

    Attributes:
      task: MIXTURE_OR_TASK_NAME.
      capabilities: name → what is trained on for it, in order.
      requirement: r, [K].
      profile: s before the first interval, [K]; nats a token, ≤ 0.
      options: what else a history depends on, macro → value.
    """

    task: str
    capabilities: Mapping[str, str]
    requirement: Sequence[float]
    profile: Sequence[float]
    options: Mapping[str, JsonValue]

    def to_json(self) -> JsonObject:
        """JSON-able."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Interval:
    """One line of a history.

    Attributes:
      interval: its number, from 0.
      step: the run's step after it.
      mixture: w, [K].
      generated, trained: tokens charged.
      tokens: trained tokens by capability, [K].
      profile: s after it, [K].
      reward: R.
      scaled_reward: ρ · R, which the policy was told.
      spill: the spillover in it.
      kappa: κ with which the mixture was chosen.
      utility: what the evaluation after it found; None where there was none.
    """

    interval: int
    step: int
    mixture: Sequence[float]
    generated: int
    trained: int
    tokens: Sequence[int]
    profile: Sequence[float]
    reward: float
    scaled_reward: float
    spill: float
    kappa: float
    utility: float | None = None

    def to_json(self) -> JsonObject:
        """JSON-able."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class History:
    """A run's intervals, and which run they are of."""

    head: HistoryHead
    intervals: tuple[Interval, ...] = ()

    def lines(self) -> str:
        """The file's content."""
        rows = [self.head.to_json(), *(each.to_json() for each in self.intervals)]
        return "".join(json.dumps(row) + "\n" for row in rows)

    def write(self, model_dir: str) -> None:
        """Writes the file, whole."""
        write_file(f"{model_dir}/{HISTORY_FILE}", self.lines())

    def interventions(self) -> tuple[np.ndarray, np.ndarray]:
        """Changes of profile [N, K] and of utility [N] between one evaluation and the next."""
        known = [each for each in self.intervals if each.utility is not None]
        profiles = np.array([each.profile for each in known]).reshape(len(known), -1)
        utilities = np.array([each.utility for each in known], float)
        return np.diff(profiles, axis=0), np.diff(utilities)


def read_history(path: str) -> History:
    """The history in a file.

    Raises:
      SourceError: it is missing, or a line is not what it should be; file and line are named.
    """
    try:
        rows = list(json_lines.read_json_lines(path))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise SourceError(
            f"{path}: no such file; expected the {HISTORY_FILE} of a run of allocate"
        ) from None
    if not rows:
        raise SourceError(f"{path}: empty; expected the {HISTORY_FILE} of a run of allocate")
    number, first = rows[0]
    head = parse_head(first, f"{path}, line {number}")
    found: list[Interval] = []
    for number, row in rows[1:]:
        place = f"{path}, line {number}"
        one = parse_interval(row, len(head.capabilities), place)
        if one.interval != len(found):
            raise SourceError(f"{place}: interval {one.interval}, expected {len(found)}")
        found.append(one)
    return History(head, tuple(found))


def parse_head(row: JsonObject, place: str) -> HistoryHead:
    """The first line.

    Raises:
      SourceError: it is not that of a history.
    """
    if row.get("format_version") != FORMAT_VERSION:
        raise SourceError(
            f"{place}: format_version is {json_lines.show_value(row.get('format_version'))}, "
            f"expected {FORMAT_VERSION}: the first line of a history says which run it is of"
        )
    capabilities, options = row.get("capabilities"), row.get("options")
    task = row.get("task")
    is_whole = (
        isinstance(capabilities, dict)
        and capabilities
        and all(isinstance(each, str) for each in capabilities.values())
        and isinstance(options, dict)
        and isinstance(task, str)
    )
    if not is_whole:
        raise SourceError(f"{place}: task, capabilities or options are not what they should be")
    assert isinstance(capabilities, dict) and isinstance(options, dict) and isinstance(task, str)
    count = len(capabilities)
    return HistoryHead(
        task,
        {name: str(each) for name, each in capabilities.items()},
        _numbers(row, "requirement", count, place),
        _numbers(row, "profile", count, place),
        options,
    )


def parse_interval(row: JsonObject, count: int, place: str) -> Interval:
    """A line of an interval.

    Raises:
      SourceError: it is not that of an interval with `count` capabilities.
    """
    mixture = _numbers(row, "mixture", count, place)
    if min(mixture) < 0.0 or abs(sum(mixture) - 1.0) > 1e-6:
        raise SourceError(f"{place}: the mixture {mixture} is not ≥ 0 or does not sum to 1")
    utility = None if row.get("utility") is None else _number(row, "utility", place)
    return Interval(
        interval=_whole(row, "interval", place),
        step=_whole(row, "step", place),
        mixture=mixture,
        generated=_whole(row, "generated", place),
        trained=_whole(row, "trained", place),
        tokens=[int(each) for each in _numbers(row, "tokens", count, place)],
        profile=_numbers(row, "profile", count, place),
        reward=_number(row, "reward", place),
        scaled_reward=_number(row, "scaled_reward", place),
        spill=_number(row, "spill", place),
        kappa=_number(row, "kappa", place),
        utility=utility,
    )


def check_capabilities(history: History, names: Sequence[str], path: str) -> None:
    """Refuses a history of a run with other capabilities.

    Raises:
      UserError: names both.
    """
    theirs = list(history.head.capabilities)
    if theirs != list(names):
        raise UserError(
            f"{path} is the history of another run: its capabilities are {', '.join(theirs)}, "
            f"CAPABILITIES has {', '.join(names)}"
        )


def read_schedule(path: str, names: Sequence[str]) -> list[np.ndarray]:
    """The mixtures of a history's intervals, [K] each, to be taken again.

    Raises:
      SourceError: it is no history, or has no interval.
      UserError: it is of other capabilities than `names`.
    """
    replayed = read_history(path)
    check_capabilities(replayed, names, path)
    if not replayed.intervals:
        raise SourceError(f"{path}: there is no interval to replay")
    return [np.array(each.mixture) for each in replayed.intervals]


def check_same_history(model_dir: str, head: HistoryHead) -> None:
    """Refuses a MODEL_DIR in which the history of another run lies; profiles are not compared.

    Raises:
      UserError: names each difference.
    """
    path = epath.Path(model_dir) / HISTORY_FILE
    if not path.exists():
        return
    before, now = (
        dataclasses.asdict(dataclasses.replace(each, profile=[]))
        for each in (read_history(str(path)).head, head)
    )
    differing = [name for name in now if before[name] != now[name]]
    if differing:
        told = "; ".join(f"{name}: {before[name]} there, {now[name]} now" for name in differing)
        raise UserError(
            f"{path} is the history of another run ({told}); choose another MODEL_DIR, or give the "
            "old values to continue it"
        )


def _is_number(value: JsonValue) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)  # type: ignore[arg-type]


def _number(row: JsonObject, name: str, place: str) -> float:
    value = row.get(name)
    if not _is_number(value):
        raise SourceError(f"{place}: {name} is {json_lines.show_value(value)}, expected a number")
    assert isinstance(value, int | float)
    return float(value)


def _whole(row: JsonObject, name: str, place: str) -> int:
    value = row.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        told = json_lines.show_value(value)
        raise SourceError(f"{place}: {name} is {told}, expected a whole number ≥ 0")
    return value


def _numbers(row: JsonObject, name: str, count: int, place: str) -> list[float]:
    value = row.get(name)
    if not isinstance(value, list) or len(value) != count or not all(map(_is_number, value)):
        told = json_lines.show_value(value)
        raise SourceError(f"{place}: {name} is {told}, expected {count} numbers")
    return [float(each) for each in value if isinstance(each, int | float)]
