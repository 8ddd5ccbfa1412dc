"""From rows that a user has, in files or elsewhere, to a split: checked, held out, streamed.

Enters: what streams the rows of a split as examples, and which splits are held out of them. Leaves:
a `RawSplit`. Rows of one input text, or of one group, stay in one split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from distill_sbs.data.dataset import Example, RawSplit, SourceError

# One group of ids in this many is held out where validation, or test, has no rows of its own.
HELD_OUT_ONE_IN = 10


class PlacedExample(NamedTuple):
    """An example, and where its row stands.

    Attributes:
      example: what the row became.
      group: what it must stay together with; None: with nothing but its own input text.
      file: the file, or whatever holds the rows.
      number: of the row in it, as `unit` counts.
    """

    example: Example
    group: str | None
    file: str
    number: int


class RowGroups:
    """Ids of which some must stay together: those that share a key, over however many steps."""

    def __init__(self) -> None:
        self._first_of: dict[int, str] = {}  # hash of a key -> the first id that had it
        self._above: dict[str, str | None] = {}  # id -> another of its group, None at the top

    def add(self, example_id: str, key: tuple[str, str]) -> None:
        """Puts an id into the group of all others that had this key."""
        self._above.setdefault(example_id, None)
        first = self._find_top(self._first_of.setdefault(hash(key), example_id))
        own = self._find_top(example_id)
        if own != first:
            self._above[own] = first

    def _find_top(self, example_id: str) -> str:
        path = []
        while (above := self._above[example_id]) is not None:
            path.append(example_id)
            example_id = above
        for passed in path:
            self._above[passed] = example_id
        return example_id

    def list_groups(self) -> dict[str, list[str]]:
        """The ids of each group, by the first of them in sorted order."""
        by_top: dict[str, list[str]] = {}
        for example_id in self._above:
            by_top.setdefault(self._find_top(example_id), []).append(example_id)
        return {min(ids): ids for ids in by_top.values()}


def make_split(
    stream: Callable[[], Iterator[PlacedExample]],
    where: str,
    split: str,
    held_out: Sequence[str],
    seed: int,
    unit: str = "line",
    tell: Callable[[], Sequence[str]] = lambda: (),
) -> RawSplit:
    """Checks every row, then hands over the split.

    Args:
      stream: streams the rows; is called once to check them, and again whenever they are read.
      where: what holds the rows, for messages.
      split: which split is wanted.
      held_out: the splits that are held out of these rows, a tenth of the groups each; empty where
        the rows are the split's alone.
      seed: of the permutation that chooses the held-out ones.
      unit: what `number` counts: 'line' or 'row'.
      tell: asked for notes once every row was checked.

    Raises:
      SourceError: no row, an id that stands twice, or too few rows to hold some out.
    """
    first_places: dict[int, tuple[str, int]] = {}  # by 64-bit hashes of the ids, which are long
    groups = RowGroups()
    inputs: set[int] = set()
    for example, group, file, number in stream():
        earlier = first_places.setdefault(hash(example.id), (file, number))
        if earlier != (file, number):
            other_file = "" if earlier[0] == file else f" of {earlier[0]}"
            raise SourceError(
                f"{file}, {unit} {number}: id {example.id!r} stands on {unit} {earlier[1]}"
                f"{other_file} too; ids choose the training subset, so each may stand once"
            )
        inputs.add(hash(example.input))
        if held_out:
            groups.add(example.id, ("input", example.input))
            if group is not None:
                groups.add(example.id, ("group", group))
    rows = len(first_places)
    if not rows:
        raise SourceError(f"{where} holds no rows; expected at least one")
    chosen = _choose_ids(groups, rows, split, held_out, seed, where) if held_out else None
    warnings = []
    if repeated := rows - len(inputs):
        warnings.append(
            f"{where}: {repeated:,} of {rows:,} rows repeat the input text of an earlier "
            "row; they stay in one split, and count as examples of their own (several "
            "rationales of one input: prepare --teacher_outputs, see docs/data.md)"
        )

    def examples() -> Iterator[Example]:
        for placed in stream():
            if chosen is None or placed.example.id in chosen:
                yield placed.example

    size = rows if chosen is None else len(chosen)
    return RawSplit(size, examples, tuple(warnings), tuple(tell()))


def _choose_ids(
    ids: RowGroups, rows: int, split: str, held_out: Sequence[str], seed: int, where: str
) -> set[str]:
    groups = ids.list_groups()
    count = max(1, len(groups) // HELD_OUT_ONE_IN)
    if len(groups) <= count * len(held_out):
        different = "" if len(groups) == rows else f" in {len(groups)} groups"
        raise SourceError(
            f"{where} holds {rows} rows{different}, too few to hold out "
            f"{' and '.join(held_out)}; "
            f"give more rows, or a file for {' and '.join(held_out)}"
        )
    in_order = sorted(groups)
    permuted = [in_order[i] for i in np.random.default_rng(seed).permutation(len(groups))]
    if split == "train":
        chosen = permuted[count * len(held_out) :]
    else:
        start = count * held_out.index(split)
        chosen = permuted[start : start + count]
    return {example_id for first in chosen for example_id in groups[first]}
