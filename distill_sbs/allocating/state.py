"""What an allocation keeps in its checkpoints.

Enters: the history so far and what was paid for, as of the beginning of an interval. Leaves: JSON,
and the same again. A checkpoint in the middle of an interval holds the state at its beginning: the
interval is planned anew, the same, and its steps that were taken are passed over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from distill_sbs.allocating import history
from distill_sbs.allocating.interval_plan import TaskTokens
from distill_sbs.errors import DamagedError, SourceError, UserError
from distill_sbs.json_lines import JsonObject


@dataclasses.dataclass(frozen=True)
class AllocationState:
    """See the module.

    Attributes:
      head: which run it is.
      intervals: those that are done.
      bought: task → which sequences' targets are paid for, bool [N].
      step: the run's step at which the interval began.
    """

    head: history.HistoryHead
    intervals: Sequence[history.Interval]
    bought: Mapping[str, np.ndarray]
    step: int

    def to_json(self) -> JsonObject:
        """JSON-able; what is paid for stands in hexadecimal digits, eight sequences in two."""
        state: JsonObject = {
            "head": self.head.to_json(),
            "intervals": [each.to_json() for each in self.intervals],
            "bought": {
                name: np.packbits(each).tobytes().hex() for name, each in self.bought.items()
            },
            "step": self.step,
        }
        return state

    def check_requirement(self, requirement: Sequence[float], model_dir: str) -> None:
        """Refuses to go on with another requirement than the run began with.

        Raises:
          UserError: the task card says something else than it did.
        """
        if list(self.head.requirement) != list(requirement):
            raise UserError(
                f"TASK_CARD gives the requirement {list(requirement)}, and the run in "
                f"MODEL_DIR={model_dir} began with {list(self.head.requirement)}; give it the card "
                "that it began with, or choose another MODEL_DIR"
            )

    @classmethod
    def from_json(
        cls, saved: JsonObject, tasks: Sequence[TaskTokens], place: str
    ) -> AllocationState:
        """The state that `to_json` gave.

        Args:
          saved: it.
          tasks: of all capabilities.
          place: where it stands, for messages.

        Raises:
          DamagedError: it is not of that form.
          UserError: the tasks have other sequences than they had.
        """
        head, intervals, bought, step = map(saved.get, ("head", "intervals", "bought", "step"))
        is_whole = isinstance(head, dict) and isinstance(bought, dict)
        if not is_whole or not isinstance(intervals, list) or not isinstance(step, int):
            raise DamagedError(place, "it does not say head, intervals, bought and step")
        assert isinstance(head, dict) and isinstance(bought, dict)
        masks: dict[str, np.ndarray] = {}
        try:
            first = history.parse_head(head, place)
            done = [
                history.parse_interval(each, len(first.capabilities), place)
                for each in intervals
                if isinstance(each, dict)
            ]
            for task in tasks:
                if task.is_taught:
                    packed = np.frombuffer(bytes.fromhex(str(bought.get(task.name))), np.uint8)
                    masks[task.name] = np.unpackbits(packed).astype(bool)
        except (SourceError, ValueError) as error:
            raise DamagedError(place, str(error)) from None
        for task in tasks:
            if task.is_taught:
                count = len(task.targets)
                if len(masks[task.name]) != -(-count // 8) * 8:
                    raise UserError(
                        f"{place}: {task.name} has {count} sequences now, which is not what the run"
                        " began with; give it the same data again, or choose another MODEL_DIR"
                    )
                masks[task.name] = masks[task.name][:count]
        return cls(first, done, masks, step)
