"""The embedded dataset `comparisons`: closed-book questions over a hidden world.

Enters: a seed and a `World`'s sizes. Leaves: questions such as "Which is heavier, box 17 or box
42?", one of the two names as label, and a teacher called `template` whose rationale states what
each of the two weighs.

    python -m distill_sbs.data.readers.comparisons --show=3

No question says what a box weighs: the student has to know it. A label only hints at it ("more than
the other"), a rationale tells it. So this is the smallest world in which rationales carry
knowledge, the paper's explanation of why they help. (In `wordproblems` they carry the way to an
answer whose parts all stand in the text.)

Every two boxes of different weight are asked about once, in one order: a pair that is tested was
never seen, mirrored neither, while each box was compared with others. In every split the heavier
box is named first in exactly half of the questions, so answering by place is right for 50 %.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import sys
from collections.abc import Sequence

import numpy as np
from absl import flags
from etils import epath

from distill_sbs.data.dataset import Example, RawSplit, TeacherOutput
from distill_sbs.data.readers.shuffled_rationales import add_shuffled_teacher

TEACHER = "template"
SEED = 2305
SPLIT_SIZES = {"train": 800, "validation": 220, "test": 600}  # all 1,620 pairs

# The boxes are numbered from here on, so that no number is a name and a weight.
_FIRST_NUMBER = 10


@dataclasses.dataclass(frozen=True)
class World:
    """The weights of all boxes, by their numbers; hidden from the student."""

    weights: dict[int, int]

    @classmethod
    def draw(cls, seed: int, boxes: int = 60, weights: int = 10) -> World:
        """Gives the boxes the weights 0, 1, … `weights` - 1, each to equally many, at random.

        Raises:
          ValueError: `boxes` is not a multiple of `weights`.
        """
        if boxes % weights:
            raise ValueError(f"{boxes} boxes cannot have {weights} weights equally often")
        even = np.repeat(np.arange(weights), boxes // weights)
        drawn = np.random.default_rng(seed).permutation(even).tolist()
        return cls({_FIRST_NUMBER + number: weight for number, weight in enumerate(drawn)})

    def pairs(self) -> list[tuple[int, int]]:
        """Every two boxes of different weight once: the heavier, the lighter."""
        pairs = itertools.combinations(self.weights, 2)
        return [
            (first, second) if self.weights[first] > self.weights[second] else (second, first)
            for first, second in pairs
            if self.weights[first] != self.weights[second]
        ]

    def ask(self, example_id: str, heavier: int, lighter: int, heavier_first: bool) -> Example:
        """The question about a pair, its label, and what the teacher says."""
        first, second = (heavier, lighter) if heavier_first else (lighter, heavier)
        told = " and ".join(f"box {box} weighs {self.weights[box]}" for box in (first, second))
        label = f"box {heavier}"
        return Example(
            id=example_id,
            input=f"Which is heavier, box {first} or box {second}?",
            label=label,
            teacher_outputs={TEACHER: TeacherOutput(label, f"{told}.")},
        )


@functools.lru_cache(maxsize=4)
def generate(split: str, *, seed: int = SEED) -> tuple[Example, ...]:
    """The examples of one split, always the same for the same arguments.

    Raises:
      ValueError: `split` is unknown.
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"split {split!r} is unknown; expected one of {list(SPLIT_SIZES)}")
    world = World.draw(seed)
    pairs = world.pairs()
    order = np.random.default_rng([seed, 1]).permutation(len(pairs)).tolist()
    # Test comes first, so that it would stay the same if training grew.
    drawn = iter(order)
    chosen = {
        name: [pairs[place] for place in itertools.islice(drawn, SPLIT_SIZES[name])]
        for name in ("test", "validation", "train")
    }
    # Turn and turn about, which is half and half: the pairs are in random order.
    return tuple(
        world.ask(f"{split}-{number}", heavier, lighter, heavier_first=number % 2 == 0)
        for number, (heavier, lighter) in enumerate(chosen[split])
    )


def read(source_dir: epath.Path, split: str) -> RawSplit:
    """The dataset's `Reader`; nothing is read, so `source_dir` does not matter.

    Raises:
      ValueError: `split` is unknown.
    """
    del source_dir
    examples = generate(split)
    return RawSplit(len(examples), lambda: iter(add_shuffled_teacher(examples, TEACHER, SEED)))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: prints questions; returns the exit status."""
    from distill_sbs.cli.run_main import run_main

    return run_main(lambda: _work(sys.argv if arguments is None else arguments))


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer(
        "show",
        None,
        "Prints so many training questions.",
        flag_values=values,
        lower_bound=0,
        required=True,
    )


def _work(arguments: Sequence[str]) -> None:
    from distill_sbs.cli import command_line, terminal

    values = command_line.parse_flags(arguments, _define_flags, "The embedded comparisons.")
    for example in generate("train")[: values.show]:
        terminal.say(f"{example.input}\n  label:     {example.label}")
        terminal.say(f"  rationale: {example.teacher_outputs[TEACHER].rationale}\n")


if __name__ == "__main__":
    sys.exit(main())
