"""Several processes read and tokenise a part of a split each, and all get the whole.

Enters: the rows that this process made, with their indices in the split. Leaves: the rows of all
processes, in the order of the split, the same in every process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import seqio


def _alone(array: np.ndarray) -> list[np.ndarray]:
    return [array]


@dataclasses.dataclass(frozen=True)
class Share:
    """What this process reads of a split; by default all of it.

    Attributes:
      index: this process's number.
      count: how many processes there are.
      exchange: gives every process the array [n] of each, in the order of their numbers; called by
        all at the same time.
    """

    index: int = 0
    count: int = 1
    exchange: Callable[[np.ndarray], list[np.ndarray]] = _alone

    @property
    def shard_info(self) -> seqio.ShardInfo | None:
        """What SeqIO reads of a split."""
        return seqio.ShardInfo(self.index, self.count) if self.count > 1 else None

    def add_up(self, *numbers: int) -> list[int]:
        """The sum of each number over the processes."""
        sums: list[int] = np.sum(self.exchange(np.array(numbers, np.int64)), axis=0).tolist()
        return sums

    def gather_texts(self, own: Sequence[str], indices: np.ndarray) -> list[str]:
        """As `gather_rows`, of texts."""
        if self.count == 1:
            return list(own)
        coded = [np.frombuffer(text.encode(), np.uint8) for text in own]
        return [row.tobytes().decode() for row in self.gather_rows(coded, indices, np.uint8)]

    def gather_indices(self, own: Sequence[int]) -> np.ndarray:
        """What `gather_rows` needs: the indices of all processes' rows, int64 [N], by process."""
        return np.concatenate(self.exchange(np.array(own, np.int64)))

    def gather_rows(
        self, own: Sequence[np.ndarray], indices: np.ndarray, dtype: type = np.int32
    ) -> list[np.ndarray]:
        """The 1-D arrays of all processes, sorted by `indices`; `own` are this process's."""
        if self.count == 1:
            return list(own)
        lengths = np.concatenate(self.exchange(np.array([len(row) for row in own], np.int64)))
        flat = np.concatenate(self.exchange(np.concatenate([np.zeros(0, dtype), *own])))
        rows = np.split(flat, np.cumsum(lengths)[:-1])
        return [rows[number] for number in np.argsort(indices, kind="stable")]
