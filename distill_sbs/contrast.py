"""`python -m distill_sbs.contrast`: which tokens should a student learn of its own rationales?

    python -m distill_sbs.contrast --dataset=wordproblems --name=mine --expert=runs/expert \
      --amateur=runs/amateur

Enters: two checkpoints of one vocabulary, inputs without labels. Leaves: in
`DATA_DIR/contrast/{dataset}/{name}` the expert's rationales with soft labels where it knows more
than the amateur (arXiv 2510.07962), and a manifest; `train` then takes `{dataset}_contrast_{name}`,
or `{dataset}_contrast_label_{name}` with labels mixed in. Rollouts are saved in parts as they are
made: the same command again goes on where it was killed, and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from distill_sbs.cli import command_line, quiet_tensorflow, terminal
from distill_sbs.cli.callable_module import make_callable
from distill_sbs.cli.compiled_programs import keep_compiled_programs
from distill_sbs.cli.freed_memory import keep_freed_memory
from distill_sbs.cli.run_main import run_main
from distill_sbs.contrasting.options import MODES, ContrastOptions
from distill_sbs.distributed import processes
from distill_sbs.errors import UserError
from distill_sbs.folder_lock import FolderLock

if TYPE_CHECKING:
    import seqio

    from distill_sbs.contrasting.rollouts import Contest
    from distill_sbs.data.records.soft_labels import Manifest

DESCRIPTION = "Finds what an expert knows and an amateur does not, and makes soft labels of it."

_HELP = {
    "alpha": "Least share of the expert's highest probability that a token needs, in (0, 1].",
    "beta": "Positions whose divergence is at least this, in nats, are kept.",
    "num_problems": "The first inputs that are taken.",
    "max_rollout": "Longest rationale, in tokens.",
    "top_k": "Tokens that a soft label may have.",
    "skip_first": "First positions of a rationale that are never kept.",
    "anchor_weight": "Weight, in [0, 1), that keeps the other positions where they are.",
    "random_seed": "Of --mode=random_select.",
    "batch_size": "Inputs at a time.",
    "shard_size": "Rationales that are saved at a time.",
}


def _define_flags(values: flags.FlagValues) -> None:
    for name, what in (
        ("dataset", "The dataset whose inputs are taken, such as wordproblems."),
        ("name", "What to call the contrast; a part of its task's name."),
        ("expert", "The student to improve: a run's MODEL_DIR, or one step's folder."),
        ("amateur", "A weaker student of the same vocabulary."),
    ):
        flags.DEFINE_string(name, None, what, flag_values=values, required=True)
    flags.DEFINE_string("split", "train", "Of which split.", flag_values=values)
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder of the prepared records. Default: $DISTILL_SBS_DATA_DIR,"
        " else ~/.cache/distill_sbs.",
        flag_values=values,
    )
    for name, what in _HELP.items():
        default = getattr(ContrastOptions, name)
        define = flags.DEFINE_float if isinstance(default, float) else flags.DEFINE_integer
        define(name, default, what, flag_values=values)
    flags.DEFINE_float(
        "beta_quantile",
        None,
        "In the place of --beta: the share of positions below it, such as 0.9.",
        flag_values=values,
    )
    flags.DEFINE_enum("mode", "full", MODES, "Leaves a part of the method out.", flag_values=values)
    flags.DEFINE_integer(
        "num_model_partitions",
        1,
        "Devices that share one copy of the parameters.",
        flag_values=values,
        lower_bound=1,
    )
    flags.DEFINE_multi_string(
        "task_file", [], "A registration file of your own; repeatable.", flag_values=values
    )
    flags.DEFINE_bool(
        "dry_run", False, "Checks all that can be checked, and stops.", flag_values=values
    )
    processes.define_flags(values)


def contrast(
    dataset: str,
    name: str,
    expert: str,
    amateur: str,
    options: ContrastOptions | None = None,
    *,
    split: str = "train",
    data_dir: str | None = None,
    num_model_partitions: int = 1,
    task_files: Sequence[str] = (),
    dry_run: bool = False,
) -> Manifest | None:
    """Makes a contrast, or finds that it is there.

    Args:
      dataset: whose inputs are decoded.
      name: of the contrast.
      expert: the checkpoint of the student to improve.
      amateur: that of a weaker one.
      options: how.
      split: of which split the inputs are.
      data_dir: as the flag.
      num_model_partitions: devices that share one copy of the parameters.
      task_files: registration files.
      dry_run: check, and do nothing.

    Returns:
      What the manifest says; None of a dry run.

    Raises:
      UserError: no checkpoint, two of different vocabularies or of the same parameters, an unknown
        dataset or split, no inputs, or another contrast of this name.
    """
    options = options or ContrastOptions()
    # Before seconds go into imports: is there a checkpoint at all?
    from distill_sbs.checkpoint import steps
    from distill_sbs.contrasting.rollouts import check_pair

    folders = steps.find_step_folder(expert), steps.find_step_folder(amateur)
    descriptions = steps.read_description(folders[0]), steps.read_description(folders[1])
    check_pair(*descriptions, *map(str, folders))

    quiet_tensorflow.import_tensorflow()
    from distill_sbs.contrasting import rollouts as contests
    from distill_sbs.contrasting.contrast_summary import print_summary, warn_of
    from distill_sbs.convert.content import hash_parameters
    from distill_sbs.convert.open import open_source
    from distill_sbs.data import registration, settings, vocabulary
    from distill_sbs.data.records import soft_labels
    from distill_sbs.data.tasks import contrast_tasks

    own = vocabulary.from_description(descriptions[0].vocabulary)
    settings.use(settings.DataSettings(data_dir, vocabulary=own))
    registration.load_task_files(task_files)
    spec = registration.get_dataset(dataset)
    contrast_tasks.check_name(name)
    if split not in spec.splits:
        raise UserError(f"--split={split}: {dataset} has {', '.join(spec.splits)}")
    mixture = descriptions[0].mixture
    teacher = contrast_tasks.find_teacher(mixture, dataset)
    if options.mode == "gold" and teacher is None:
        raise UserError(
            f"--mode=gold takes a teacher's rationales, and the expert's mixture {mixture!r} names "
            f"no teacher of {dataset}; use an expert of {dataset}_dss_TEACHER"
        )
    hashes = [hash_parameters(open_source(str(folder))) for folder in folders]
    if hashes[0] == hashes[1]:
        raise UserError(
            f"--expert={expert} and --amateur={amateur} hold the same parameters: they differ "
            "nowhere; give a weaker amateur"
        )
    processes.check_joined()
    is_first = processes.is_first()
    label_task = registration.get_mixture_or_task(f"{dataset}_label")
    if not dry_run:
        processes.run_first_then_others(lambda: registration.prepare_missing(label_task))
    given = {**vars(options), "split": split}
    root = settings.current().folder
    target = soft_labels.find_folder(root, dataset, name)
    existing = soft_labels.read_manifest(target)
    if existing is not None:
        contests.check_same(str(target), existing.identity, hashes, given)
        if is_first:
            print_summary(existing)
            terminal.say(f"nothing to do: {target} holds this contrast")
        return existing
    if dry_run:
        terminal.say(f"{folders[0]} and {folders[1]} have one vocabulary and differ")
        terminal.say(f"nothing was started; {target} would be written")
        return None

    inputs = contrast_tasks.read_inputs(spec, split, options.num_problems)
    gold = None
    if options.mode == "gold":
        gold = contrast_tasks.read_rationales(
            spec, teacher or "", split, options.num_problems, options.max_rollout
        )
        inputs = [text for text, _ in gold]
    if not inputs:
        raise UserError(f"{dataset} has no inputs in --split={split}: nothing to decode")
    contest = contests.Contest.load(str(folders[0]), str(folders[1]), num_model_partitions, options)
    work = soft_labels.find_folder(root, dataset, ".rollouts") / contests.name_work(
        options, hashes, inputs, gold
    )
    with FolderLock(str(work), "contrasting", silent=not is_first) as lock:
        lock.take()
        processes.wait_for_all("the rollouts' folder is there")
        accuracies = _compare_students(contest, label_task, work)
        for line in warn_of(accuracies) if is_first else ():
            terminal.say(f"warning: {line}", stderr=True)
        contest.make_rollouts(work, inputs, gold, is_first)
        if is_first:
            figures, rows = contest.select(work, len(inputs))
            whole = soft_labels.Manifest(
                dataset=dataset,
                name=name,
                teacher=teacher,
                options=given,
                expert=hashes[0],
                amateur=hashes[1],
                vocabulary=str(descriptions[0].vocabulary.get("sha256", "bytes")),
                validation=accuracies,
                **dataclasses.asdict(figures),
            )
            if not whole.kept:
                raise UserError(
                    f"no position has a divergence of {whole.beta:g} or more: nothing to train "
                    "on; lower --beta, or give --beta_quantile=0.9 or a weaker amateur"
                )
            soft_labels.write_contrast(target, whole, map(soft_labels.ContrastRow._make, rows))
    processes.wait_for_all("the contrast is written")
    found = soft_labels.read_manifest(target)
    assert found is not None
    if is_first:
        print_summary(found)
        terminal.say(f"written to {target}; train on {dataset}_contrast_{name}")
    return found


def _compare_students(contest: Contest, task: seqio.Task, work: object) -> dict[str, float]:
    """Accuracy of labels on validation, 0 to 1, of 'expert' and 'amateur', found once."""
    import jax
    from etils import epath

    from distill_sbs.contrasting.rollouts import remember
    from distill_sbs.data.batches import input_pipeline
    from distill_sbs.data.batches.share import Share
    from distill_sbs.inference.batch_decoder import compute_metrics

    if "validation" not in task.splits:
        return {}

    def measure() -> dict[str, float]:
        share = Share(jax.process_index(), jax.process_count(), processes.exchange)
        lengths = contest.expert.description.task_feature_lengths
        examples = input_pipeline.tokenise(task, "validation", lengths, share=share)
        found = {}
        for role, student in (("expert", contest.expert), ("amateur", contest.amateur)):
            outputs = student.decoder(contest.options.batch_size)(
                student.params, [each.inputs for each in examples.sequences]
            )
            said = [student.text(output) for output in outputs]
            values = compute_metrics(task.metric_fns, task.postprocess_fn, examples.texts, said)
            found[role] = values["accuracy"]
        return found

    return remember(epath.Path(str(work)) / "validation.json", measure, processes.is_first())


def main(argv: Sequence[str] | None = None) -> int:
    """Makes the contrast that the command line asks for; returns the exit status."""
    return run_main(lambda: _work(sys.argv if argv is None else argv), "the same command continues")


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, _define_flags, DESCRIPTION)
    names = (*_HELP, "beta_quantile", "mode")
    options = ContrastOptions(**{name: getattr(values, name) for name in names})
    given = values.flag_values_dict()
    processes.check_flags(given)
    keep_freed_memory()
    keep_compiled_programs()
    quiet_tensorflow.import_tensorflow()  # drops what is written meanwhile: before processes join
    with processes.join_processes(given, processes.list_settings(given)):
        contrast(
            values.dataset,
            values.name,
            values.expert,
            values.amateur,
            options,
            split=values.split,
            data_dir=values.data_dir,
            num_model_partitions=values.num_model_partitions,
            task_files=values.task_file,
            dry_run=values.dry_run,
        )
    return None


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(main())
