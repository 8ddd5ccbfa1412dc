"""The embedded dataset `wordproblems`: arithmetic word problems, written by the project itself.

Enters: a seed and a `Difficulty`. Leaves: problems like SVAMP's, with an equation as label and
the answer of a teacher called `template`, and a small SentencePiece vocabulary that covers them.

    python -m distill_sbs.data.readers.wordproblems --show=3
    python -m distill_sbs.data.readers.wordproblems --train_vocabulary=PATH

The teacher errs as published teachers do, if less often: for a small share of the problems
(`Difficulty.wrong_teacher_share`) it forgets the last step, takes a wrong operation or uses a
number that does not matter. Its label is then wrong and its rationale argues for that label.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import pathlib
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags
from etils import epath

from distill_sbs import constants, files
from distill_sbs.data import dataset
from distill_sbs.data.readers import wordproblem_stories
from distill_sbs.data.readers.shuffled_rationales import add_shuffled_teacher
from distill_sbs.data.readers.wordproblem_stories import Difficulty, Operand, Result, Step, Story
from distill_sbs.errors import UserError

TEACHER = "template"
SPLIT_SIZES = {"train": 8_000, "validation": 400, "test": 400}
SEED = 2305
VOCABULARY_FILE = pathlib.Path(__file__).with_suffix(".model")
VOCABULARY_SIZE = 512
_PUNCTUATION = ".,?:"

# Test comes first: the splits drawn later leave out what it holds, so a larger training set
# or a smaller one has the same test problems.
_DRAWING_ORDER = ("test", "validation", "train")


def equation(steps: Sequence[Step]) -> str:
    """The last step written out in terms of the text's numbers: `( ( 12 + 7 ) - 5 )`."""

    def written(operand: Operand) -> str:
        if isinstance(operand, Result):
            step = steps[operand.step]
            return f"( {written(step.left)} {step.operator} {written(step.right)} )"
        return str(operand)

    return written(Result(len(steps) - 1))


def rationale(story: Story) -> str:
    """What does not matter, then the steps one after the other with their results."""
    values = wordproblem_stories.step_values(story.steps)

    def written(operand: Operand) -> str:
        return f"{values[operand.step]:g}" if isinstance(operand, Result) else str(operand)

    sentences = [distractor.remark for distractor in story.distractors]
    if story.opening:
        sentences.append(story.opening)
    for step, value in zip(story.steps, values, strict=True):
        computed = f"{written(step.left)} {step.operator} {written(step.right)} = {value:g}"
        sentences.append(f"{step.reason} {computed} {step.unit}".rstrip() + ".")
    return " ".join(sentences)


def _mistaken(rng: np.random.Generator, story: Story) -> Story | None:
    """The story as a teacher who errs understands it; None where this mistake does not work.

    A mistake has to look like one: its results are whole numbers from 2 to 99 too.
    """
    steps = list(story.steps)
    distractors = list(story.distractors)
    kind = ("forgotten step", "wrong operation", "wrong number")[int(rng.integers(3))]
    chosen = int(rng.integers(len(steps)))
    if kind == "forgotten step" and len(steps) > 1:
        steps.pop()
    elif kind == "wrong operation":
        swapped = {"+": "-", "-": "+", "*": "+", "/": "-"}[steps[chosen].operator]
        steps[chosen] = dataclasses.replace(steps[chosen], operator=swapped)
    elif kind == "wrong number" and distractors and not isinstance(steps[chosen].right, Result):
        wrong = distractors.pop(int(rng.integers(len(distractors))))
        steps[chosen] = dataclasses.replace(steps[chosen], right=wrong.number)
    else:
        return None
    values = wordproblem_stories.step_values(steps)
    sensible = all(
        value == int(value) and 2 <= value <= wordproblem_stories.LARGEST_RESULT for value in values
    )
    if not sensible or values[-1] == wordproblem_stories.step_values(story.steps)[-1]:
        return None
    return dataclasses.replace(story, steps=tuple(steps), distractors=tuple(distractors))


def problem(key: Sequence[int], difficulty: Difficulty) -> tuple[Story, Story]:
    """The story that `key` seeds, and the same story as the teacher understands it."""
    rng = np.random.default_rng(list(key))
    errs = rng.random() < difficulty.wrong_teacher_share
    while True:
        try:
            story = wordproblem_stories.tell(rng, difficulty)
        except wordproblem_stories.DeadEnd:
            continue
        if not errs:
            return story, story
        # Some stories leave no room for a mistake that looks sensible; tell another then.
        for _ in range(10):
            understood = _mistaken(rng, story)
            if understood is not None:
                return story, understood


@functools.lru_cache(maxsize=4)
def generate(
    split: str,
    *,
    seed: int = SEED,
    difficulty: Difficulty = Difficulty(),  # noqa: B008  (frozen)
    sizes: tuple[tuple[str, int], ...] = tuple(SPLIT_SIZES.items()),
) -> tuple[dataset.Example, ...]:
    """The examples of one split, always the same for the same arguments.

    No two problems have the same text, within a split or across splits.

    Raises:
      ValueError: `split` is not in `sizes`.
    """
    if split not in dict(sizes):
        raise ValueError(f"split {split!r} is unknown; expected one of {list(dict(sizes))}")
    order = _DRAWING_ORDER[: _DRAWING_ORDER.index(split)]
    taken = {
        example.input
        for earlier in order
        if earlier in dict(sizes)
        for example in generate(earlier, seed=seed, difficulty=difficulty, sizes=sizes)
    }
    examples = []
    for number in range(dict(sizes)[split]):
        attempt = 0
        while True:
            key = (seed, _DRAWING_ORDER.index(split), number, attempt)
            story, understood = problem(key, difficulty)
            if story.text not in taken:
                break
            attempt += 1
        taken.add(story.text)
        output = dataset.TeacherOutput(equation(understood.steps), rationale(understood))
        examples.append(
            dataset.Example(
                id=f"{split}-{number}",
                input=story.text,
                label=equation(story.steps),
                teacher_outputs={TEACHER: output},
            )
        )
    return tuple(examples)


def read(source_dir: epath.Path, split: str) -> dataset.RawSplit:
    """The dataset's `Reader`; nothing is read, so `source_dir` does not matter.

    Raises:
      ValueError: `split` is unknown.
    """
    del source_dir
    if split not in SPLIT_SIZES:
        raise ValueError(f"split {split!r} is unknown; expected one of {list(SPLIT_SIZES)}")
    return dataset.RawSplit(
        SPLIT_SIZES[split], lambda: iter(add_shuffled_teacher(generate(split), TEACHER, SEED))
    )


def _vocabulary_sentences() -> Iterator[str]:
    """The training split as the student sees it, and every number equally often."""
    for example in generate("train"):
        yield constants.LABEL_PREFIX + example.input
        yield constants.RATIONALE_PREFIX + example.input
        yield str(example.label)
        yield str(example.teacher_outputs[TEACHER].rationale)
    for number in range(wordproblem_stories.LARGEST_RESULT + 1):
        yield from [f"= {number} + {number}"] * 400


def train_vocabulary() -> bytes:
    """A SentencePiece BPE model of `VOCABULARY_SIZE` pieces, the same bytes every time.

    Ids as T5's: 0 padding, 1 end of sequence, 2 unknown. All of printable ASCII is covered,
    so that a user's own English sentence encodes too.
    """
    import sentencepiece  # only the command needs its trainer

    model = io.BytesIO()
    printable = {chr(code) for code in range(33, 127)}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=_vocabulary_sentences(),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCABULARY_SIZE,
        pad_id=constants.PAD_ID,
        eos_id=constants.EOS_ID,
        unk_id=2,
        bos_id=-1,
        # Pieces of their own, or "12." and "12" would be two numbers to the student.
        user_defined_symbols=list(_PUNCTUATION),
        required_chars="".join(sorted(printable - set(_PUNCTUATION))),
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: prints problems, writes the vocabulary; returns the exit status."""
    from distill_sbs.cli.run_main import run_main

    return run_main(lambda: _work(sys.argv if arguments is None else arguments))


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer(
        "show", None, "Prints so many training problems.", flag_values=values, lower_bound=0
    )
    flags.DEFINE_string(
        "train_vocabulary", None, "Writes the vocabulary to this file.", flag_values=values
    )


def _work(arguments: Sequence[str]) -> None:
    from distill_sbs.cli import command_line, interrupts, terminal

    values = command_line.parse_flags(arguments, _define_flags, "The embedded word problems.")
    if values.show is None and values.train_vocabulary is None:
        raise UserError("nothing to do: give --show=N or --train_vocabulary=PATH")
    for example in generate("train")[: values.show or 0]:
        output = example.teacher_outputs[TEACHER]
        terminal.say(f"{example.input}\n  label:     {example.label}")
        terminal.say(f"  teacher:   {output.label}\n  rationale: {output.rationale}\n")
    if values.train_vocabulary is not None:
        with files.open_replacement(values.train_vocabulary, "wb") as file:
            file.write(train_vocabulary())
        interrupts.change_message(f"{values.train_vocabulary} is written")


if __name__ == "__main__":
    sys.exit(main())
