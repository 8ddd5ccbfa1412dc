"""`python -m distill_sbs.curate`: chooses the training examples that are worth a student's time.

    python -m distill_sbs.curate --dataset=cqa --teacher=palm --examples=1000 --output=cqa_1000.json
    python -m distill_sbs.train … --gin.SELECTION="'cqa_1000.json'"

Enters: a prepared dataset with a teacher's outputs. Leaves: a selection, a file of ids that every
mixture of the dataset takes, with what was dropped and why. The recipe is LIMA's
(arXiv 2305.11206), brought over to rationales; the same command gives the same file to the byte.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence

from absl import flags

from distill_sbs import files
from distill_sbs.cli import command_line, flag_groups, interrupts, quiet_tensorflow, terminal
from distill_sbs.cli.callable_module import make_callable
from distill_sbs.cli.progress import show_progress
from distill_sbs.cli.run_main import run_main
from distill_sbs.curating.choosing import MODES, PREFERENCES, Choice, Stratum, Wanted, choose
from distill_sbs.curating.rules import Candidate, Limits
from distill_sbs.errors import UserError
from distill_sbs.json_lines import JsonObject

DESCRIPTION = "Chooses training examples by the quality and the variety of their rationales."

_CHARACTERS_SHOWN = 60
_STRATA_SHOWN = 15
# LIMA's recipe, in epochs of what was chosen.
_EPOCHS, _FIRST_EPOCH, _LAST_EPOCH = 15, 5, 10
_EXAMPLES_A_STEP = 32


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_list(
        "dataset", None, "A prepared dataset, or several with commas.", flag_values=values,
        required=True,
    )  # fmt: skip
    flags.DEFINE_list(
        "teacher",
        None,
        "Whose rationales are judged; of several, with commas, an example must pass with each.",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_integer(
        "examples", None, "How many to choose, exactly.", flag_values=values, required=True
    )
    flags.DEFINE_string(
        "output", None, "The selection, a JSON file; an earlier one is replaced.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder of the prepared records. Default: $DISTILL_SBS_DATA_DIR,"
        " else ~/.cache/distill_sbs.",
        flag_values=values,
    )
    flags.DEFINE_string(
        "dropped", None, "A JSONL file for every dropped example, its rule and the reason.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_multi_string(
        "task_file",
        [],
        "A file of your own that registers a dataset, or rules; repeatable.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "dry_run", False, "Chooses and shows what it would be, and writes nothing.",
        flag_values=values,
    )  # fmt: skip
    with flag_groups.group(values, "What is taken"):
        flags.DEFINE_enum(
            "mode",
            "curated",
            list(MODES),
            "For comparisons: 'unfiltered' asks no rule, 'homogeneous' takes one stratum,"
            " 'random' any examples.",
            flag_values=values,
        )
        flags.DEFINE_integer("seed", 0, "Of what is taken among equals.", flag_values=values)
        flags.DEFINE_list(
            "strata",
            ["dataset", "label", "question"],
            "What a stratum is made of: dataset, label, question, or what a task file registered.",
            flag_values=values,
        )
        flags.DEFINE_float(
            "temperature",
            3.0,
            "τ: a stratum of n examples gives in proportion to n^(1/τ); 1: as they are.",
            flag_values=values,
        )
        flags.DEFINE_enum(
            "prefer",
            "score",
            list(PREFERENCES),
            "Within a stratum: the highest score, or the greatest distance of what is taken.",
            flag_values=values,
        )
    with flag_groups.group(values, "Rules"):
        flags.DEFINE_float(
            "least_score",
            0.0,
            "Lower scores are dropped; the share of soft rules.",
            flag_values=values,
        )
        flags.DEFINE_list(
            "rationale_words",
            ["3", "128"],
            "Fewest and most words of a rationale.",
            flag_values=values,
        )
        flags.DEFINE_float(
            "least_overlap",
            Limits.least_overlap,
            "Share of a rationale's words that stand in the input.",
            flag_values=values,
        )
        flags.DEFINE_integer(
            "most_repeats",
            Limits.most_repeats,
            "How often the same four words may follow each other in a rationale.",
            flag_values=values,
        )
        flags.DEFINE_list("without_rules", [], "Rules that are not asked.", flag_values=values)


def curate(
    dataset: str | Sequence[str],
    teacher: str | Sequence[str],
    examples: int,
    output: str | None = None,
    *,
    data_dir: str | None = None,
    task_files: Sequence[str] = (),
    dropped: str | None = None,
    **how: object,
) -> Choice:
    """Chooses training examples, and writes the selection where `output` names a file.

    Args:
      dataset: one that is prepared, or several.
      teacher: whose rationales are judged; one, or several.
      examples: how many.
      output: the file; None writes nothing.
      data_dir: folder of the prepared records.
      task_files: files that register datasets or rules.
      dropped: a JSONL file for what was dropped.
      **how: the other fields of `curating.choosing.Wanted`.

    Returns:
      The choice, whose `keys` are (dataset, id).

    Raises:
      UserError: fewer examples pass than are asked for, an unknown name, a rule that fails, data
        that is not prepared; nothing was written.
    """
    quiet_tensorflow.import_tensorflow()
    from distill_sbs.curating import pool
    from distill_sbs.data import registration, selection, settings
    from distill_sbs.data.tasks import task_files as loader

    datasets = [dataset] if isinstance(dataset, str) else list(dataset)
    teachers = [teacher] if isinstance(teacher, str) else list(teacher)
    for name, values in (("dataset", datasets), ("teacher", teachers)):
        if len(set(values)) < len(values) or not values:
            raise UserError(f"--{name}={','.join(values)}: expected names, each once")
    registration.load_task_files(task_files)
    wanted = Wanted(examples, **how)  # type: ignore[arg-type]  # a wrong name is a TypeError
    specs = [registration.get_dataset(name) for name in datasets]
    folder = data_dir or settings.default_data_dir()
    if output is not None:
        selection.check_output(output)
    if dropped is not None:
        files.check_writable(dropped)
    settings.use(settings.DataSettings(folder))
    for spec in specs:
        if not spec.needs_source_dir:
            registration.prepare_missing(registration.get_mixture_or_task(f"{spec.name}_finetune"))
    total = pool.check_pool(specs, teachers, folder)
    with show_progress("reading", total) as advance, loader.tell_errors():
        groups = list(pool.read_pool(specs, teachers, folder, advance))
        held_out = pool.read_held_out(specs, folder, advance)
    with terminal.show_status("choosing"), loader.tell_errors():
        choice = choose(groups, held_out, wanted)
    if dropped is not None:
        with files.open_replacement(dropped) as file:
            for candidate, rule, reason in choice.dropped:
                file.write(json.dumps(_describe_dropped(candidate, rule, reason)) + "\n")
    if output is not None:
        by_dataset = collections.defaultdict(list)
        for name, key in choice.keys:
            by_dataset[name].append(key)
        selection.write_selection(output, by_dataset, _describe(choice, teachers, wanted))
    return choice


def _describe(choice: Choice, teachers: Sequence[str], wanted: Wanted) -> JsonObject:
    """How the choice was made, for the file."""
    how = {**dataclasses.asdict(wanted), **dataclasses.asdict(wanted.limits)}
    del how["limits"]
    described: JsonObject = json.loads(
        json.dumps(
            {
                "teachers": list(teachers),
                "made_with": how,
                "pool": choice.pool,
                "passed": choice.passed,
                "chosen": len(choice.keys),
                "mean_score": choice.mean_score,
                "dropped": {rule.name: rule.dropped for rule in choice.rules},
                "strata": {
                    each.name: {"pool": each.pool, "passed": each.passed, "chosen": each.chosen}
                    for each in choice.strata
                },
            }
        )
    )
    return described


def _describe_dropped(candidate: Candidate, rule: str, reason: str) -> Mapping[str, object]:
    return {
        "dataset": candidate.dataset,
        "id": candidate.id,
        "rule": rule,
        "reason": reason,
        "teacher": candidate.teacher,
        "input": candidate.input,
        "label": candidate.label,
        "teacher_label": candidate.teacher_label,
        "rationale": candidate.rationale,
    }


# ---------------------------------- what is printed --------------------------


def print_choice(choice: Choice) -> None:
    """Prints what was dropped, by which rule and for instance which, and the strata."""
    console = terminal.make_console()
    table = terminal.make_table(
        "rule", "dropped", "such as", "reason", title=f"{choice.pool:,} examples"
    )
    table.columns[1].justify = "right"
    for rule in choice.rules:
        shown = [(_show(candidate), reason) for candidate, reason in rule.shown] or [("", "")]
        for number, (such_as, reason) in enumerate(shown):
            first = (rule.name, f"{rule.dropped:,}") if number == 0 else ("", "")
            terminal.add_row(table, *first, such_as, reason)
    terminal.add_row(table, "passed", f"{choice.passed:,}", "", "")
    console.print(table)
    table = terminal.make_table("stratum", "examples", "passed", "chosen", right_from=1)
    by_size = sorted(choice.strata, key=lambda each: (-each.pool, each.name))
    rows, others = by_size[:_STRATA_SHOWN], by_size[_STRATA_SHOWN:]
    if others:
        sums = [
            sum(getattr(each, column) for each in others) for column in ("pool", "passed", "chosen")
        ]
        rows.append(Stratum(f"{len(others)} smaller ones", *sums))
    for each in rows:
        numbers = (each.pool, each.passed, each.chosen)
        terminal.add_row(table, each.name, *(f"{number:,}" for number in numbers))
    console.print(table)


def _show(candidate: Candidate) -> str:
    text = " ".join((candidate.rationale or candidate.input).split())
    return text if len(text) <= _CHARACTERS_SHOWN else text[: _CHARACTERS_SHOWN - 1] + "…"


def _tell_next(choice: Choice, values: flags.FlagValues) -> None:
    """The command that trains on the selection, by LIMA's recipe in steps of 32 examples."""
    dataset, teacher = values.dataset[0], values.teacher[0]
    epoch = -(-len(choice.keys) // _EXAMPLES_A_STEP)
    terminal.say(
        f"chosen: {len(choice.keys):,} examples"
        + ("" if choice.mean_score is None else f", mean score {choice.mean_score:.2f}")
        + f"; written to {values.output}\n"
        "train on them with any experiment of the dataset:\n"
        f"  --gin.MIXTURE_OR_TASK_NAME=\"'{dataset}_dss_{teacher}'\" "
        f"--gin.SELECTION=\"'{values.output}'\"\n"
        f"or by LIMA's recipe, {_EPOCHS} epochs of which {_FIRST_EPOCH} to {_LAST_EPOCH} may be "
        "the best:\n"
        f"  … --gin_file=gin/methods/lima.gin --gin.TRAIN_STEPS={_EPOCHS * epoch} "
        f"--gin.EVAL_PERIOD={epoch} --gin.FIRST_BEST_STEP={_FIRST_EPOCH * epoch} "
        f"--gin.LAST_BEST_STEP={_LAST_EPOCH * epoch}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Chooses what the command line asks for; returns the exit status."""
    return run_main(lambda: _work(sys.argv if argv is None else argv), "nothing was written")


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, _define_flags, DESCRIPTION)
    if not values.output and not values.dry_run:
        raise UserError("--output=FILE is not given, the selection's file; or give --dry_run")
    choice = curate(
        values.dataset,
        values.teacher,
        values.examples,
        None if values.dry_run else values.output,
        data_dir=values.data_dir,
        task_files=values.task_file,
        dropped=None if values.dry_run else values.dropped,
        mode=values.mode,
        seed=values.seed,
        temperature=values.temperature,
        strata=tuple(values.strata),
        prefer=values.prefer,
        least_score=values.least_score,
        limits=_read_limits(values),
        without_rules=tuple(values.without_rules),
    )
    print_choice(choice)
    if values.dry_run:
        terminal.say(f"would choose {len(choice.keys):,} examples; nothing was written")
        return None
    interrupts.change_message(f"{values.output} is written")
    _tell_next(choice, values)
    return None


def _read_limits(values: flags.FlagValues) -> Limits:
    try:
        fewest, most = map(int, values.rationale_words)
    except ValueError:
        raise UserError(
            f"--rationale_words={','.join(values.rationale_words)}: expected two whole numbers, "
            "the fewest and the most words, such as 3,128"
        ) from None
    return Limits(fewest, most, values.least_overlap, values.most_repeats)


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(main())
