"""Quality, variety or quantity of a few examples? The controlled experiment of curation.

    python benchmarks/curation.py --output=runs/curation [--seeds=0,1,2]

Enters: nothing; six kinds of exercises over four digits are generated. A student is trained on
answers of which 35 % go step by step and 65 % are bare and half of them wrong, so that it answers
bare. Then `curate` chooses among fresh ones in several ways, and the student is trained on for 120
steps of 32. Leaves: by seed and choice the accuracy on test, where the answer step by step is right
and nothing else; runs that are done are not made again. docs/results.md has the plan.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence

from absl import flags

from distill_sbs import files
from distill_sbs.cli import command_line, quiet_tensorflow, terminal
from distill_sbs.cli.freed_memory import keep_freed_memory
from distill_sbs.cli.run_main import run_main

KINDS = ("up", "low", "add", "back", "odd", "next")
TEACHER = "scribe"
CLEAN_SHARE = 0.35
WRONG_SHARE = 0.5  # of the bare ones
SIZES = {"styles": 20_000, "styles_pool": 6_000}
TESTED = 300
CHOICES = [
    ("curated", 24),
    ("curated", 60),
    ("curated", 240),
    ("unfiltered", 60),
    ("unfiltered", 240),
    ("unfiltered", 2000),
    ("homogeneous", 60),
    ("homogeneous", 240),
]
# What a rationale should be like is no question here: the answer's text is all that there is.
RULES_LEFT_OUT = ("says_more_than_label", "mentions_input", "rationale_length", "not_degenerate")
# TrainConfig's options, in both trainings.
COMMON = {
    "vocabulary_file": "bytes",
    "student": "t5_1_1_tiny",
    "student_overrides": {
        "vocab_size": 384, "emb_dim": 64, "num_heads": 4, "head_dim": 16, "mlp_dim": 256,
        "num_encoder_layers": 2, "num_decoder_layers": 2,
    },
    "task_feature_lengths": {"inputs": 32, "targets": 32},
    "dropout_rate": 0.0,
    "max_decode_tokens": 32,
    "keep_checkpoints": 1,
}  # fmt: skip


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("output", "runs/curation", "Folder of the runs.", flag_values=values)
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Of data and students.", flag_values=values)
    flags.DEFINE_integer("pretrain_steps", 2200, "Of the first training.", flag_values=values)


def solve(kind: str, digits: Sequence[int]) -> tuple[list[str], str]:
    """The steps of an exercise, and its answer."""
    steps: list[str] = []
    if kind in ("up", "low", "add"):
        value = digits[0]
        for place, digit in enumerate(digits):
            if place:
                value = {"up": max, "low": min, "add": lambda a, b: (a + b) % 10}[kind](
                    value, digit
                )
            steps.append(str(value))
        return steps, steps[-1]
    if kind == "odd":
        return ["o" if digit % 2 else "e" for digit in digits], str(sum(d % 2 for d in digits))
    if kind == "next":
        steps = [str((digit + 1) % 10) for digit in digits]
        return steps, steps[-1]
    steps = [str(digit) for digit in reversed(digits)]
    return steps, "".join(steps)


def make_exercises(
    count: int, seed: str, others: frozenset[str] = frozenset()
) -> Iterator[tuple[str, str, str]]:
    """(exercise, the right answer step by step, what the scribe wrote), each once, no `others`."""
    draws = random.Random(seed)
    seen = set(others)
    while len(seen) < count + len(others):
        kind, digits = draws.choice(KINDS), [draws.randrange(10) for _ in range(4)]
        text = f"{kind} {' '.join(map(str, digits))}"
        if text in seen:
            continue
        seen.add(text)
        steps, answer = solve(kind, digits)
        clean = f"{' '.join(steps)} so {answer}"
        bare = answer
        if draws.random() < WRONG_SHARE:
            bare = "".join(str((int(each) + draws.randrange(1, 10)) % 10) for each in answer)
        yield text, clean, clean if draws.random() < CLEAN_SHARE else f"={bare}"


def register(seed: int) -> None:
    """The exercises of a seed as two datasets, and their kind as a stratum."""
    from distill_sbs.curating import rules
    from distill_sbs.data import metrics, registration
    from distill_sbs.data.dataset import DatasetSpec, Example, RawSplit, Reader, TeacherOutput

    def make_reader(name: str) -> Reader:
        def read(_: object, split: str) -> RawSplit:
            # Both are tested on the same exercises.
            tested = {
                each: list(make_exercises(TESTED, f"{seed} {each}"))
                for each in ("validation", "test")
            }
            count = SIZES[name] if split == "train" else TESTED

            def exercises() -> Iterable[tuple[str, str, str]]:
                if split != "train":
                    return tested[split]
                others = frozenset(text for rows in tested.values() for text, _, _ in rows)
                return make_exercises(count, f"{seed} {name}", others)

            def examples() -> Iterator[Example]:
                for number, (text, clean, said) in enumerate(exercises()):
                    output = {TEACHER: TeacherOutput(said, said)}
                    yield Example(f"{split}-{number}", text, clean, output)

            return RawSplit(count, examples)

        return read

    for name in SIZES:
        spec = DatasetSpec(
            f"{name}_{seed}",
            make_reader(name),
            metrics.answers_match,
            (TEACHER,),
            needs_source_dir=False,
        )
        registration.register_dataset(spec)
    if "kind" not in rules.own_strata():

        @rules.register_stratum
        def kind(candidate: rules.Candidate) -> str:
            return candidate.input.split()[0]


def train(folder: str, **options: object) -> float:
    """Accuracy on test of a run, which is trained if it was not."""
    from distill_sbs.config import TrainConfig
    from distill_sbs.train import train as train_student

    results = os.path.join(folder, "results.json")
    if not os.path.exists(results):
        train_student(TrainConfig.from_options(model_dir=folder, **{**COMMON, **options}))
    with open(results, encoding="utf-8") as file:
        accuracy: float = json.load(file)["test"]["accuracy"]
    return accuracy


def measure(output: str, seed: int, pretrain_steps: int) -> dict[str, float]:
    """By choice: accuracy on test, 0 to 1; `base` is the student before."""
    from distill_sbs.curate import curate

    folder = os.path.join(output, f"seed_{seed}")
    data_dir = os.path.join(output, "data")
    register(seed)
    base = os.path.join(folder, "base")
    found = {
        "base": train(
            base,
            mixture_or_task_name=f"styles_{seed}_distill_{TEACHER}",
            data_dir=data_dir,
            train_steps=pretrain_steps,
            batch_size=64,
            learning_rate=1e-3,
            eval_period=pretrain_steps,
            initial_checkpoint_path=None,
            random_seed=seed,
        )
    }
    for mode, count in CHOICES:
        name = f"{mode}_{count}"
        selection = os.path.join(folder, f"{name}.json")
        curate(
            f"styles_pool_{seed}",
            TEACHER,
            count,
            selection,
            data_dir=data_dir,
            mode=mode,
            seed=seed,
            strata=("kind",),
            without_rules=RULES_LEFT_OUT,
        )
        found[name] = train(
            os.path.join(folder, name),
            mixture_or_task_name=f"styles_pool_{seed}_distill_{TEACHER}",
            data_dir=data_dir,
            selection=selection,
            train_steps=120,
            batch_size=32,
            learning_rate=1e-4,
            final_learning_rate=1e-5,
            adam_b2=0.95,
            weight_decay=0.1,
            eval_period=120,
            initial_checkpoint_path=base,
            random_seed=seed,
        )
        terminal.say(f"seed {seed}, {name}: {found[name]:.1%}")
    return found


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, _define_flags, __doc__ or "")
    keep_freed_memory()
    quiet_tensorflow.import_tensorflow()
    seeds = [int(seed) for seed in values.seeds]
    found = {seed: measure(values.output, seed, values.pretrain_steps) for seed in seeds}
    files.write_file(os.path.join(values.output, "accuracy.json"), json.dumps(found, indent=1))
    table = terminal.make_table(
        "trained on", *(f"seed {seed}" for seed in seeds), "mean", right_from=1
    )
    for name in found[seeds[0]]:
        accuracies = [found[seed][name] for seed in seeds]
        cells = [f"{accuracy:.1%}" for accuracy in [*accuracies, statistics.mean(accuracies)]]
        terminal.add_row(table, name.replace("_", " "), *cells)
    terminal.make_console().print(table)
    return None


if __name__ == "__main__":
    sys.exit(run_main(lambda: _work(sys.argv), "the same command continues"))
