"""`python -m distill_sbs.train`: trains a student on labels and rationales, and evaluates it.

    python -m distill_sbs.train --gin_file=gin/experiments/quickstart.gin

Enters: prepared records, gin files. Leaves: in MODEL_DIR `config.gin`, `checkpoints/`,
`metrics.jsonl`, TensorBoard events and `results.json`. The same command again continues an
interrupted run, and ends with the parameters of one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from distill_sbs import constants
from distill_sbs.checkpoint.description import RunDescription
from distill_sbs.cli import command_line, quiet_tensorflow, terminal
from distill_sbs.cli.callable_module import make_callable
from distill_sbs.cli.compiled_programs import keep_compiled_programs
from distill_sbs.cli.freed_memory import keep_freed_memory
from distill_sbs.config import TrainConfig
from distill_sbs.constants import CONFIG_FILE, RESULTS_FILE
from distill_sbs.distributed import processes, stop_request
from distill_sbs.errors import UnreachableError, UserError, explain_unreachable, name_disk
from distill_sbs.files import write_file
from distill_sbs.folder_lock import FolderLock
from distill_sbs.model.config import T5Config

if TYPE_CHECKING:
    import seqio

    from distill_sbs.convert.source import ParameterSource
    from distill_sbs.data.batches.layout import Sequence2Sequence
    from distill_sbs.data.batches.sampler import TokenisedTask
    from distill_sbs.model.parameters import Params
    from distill_sbs.training.metrics_file import RunResults
    from distill_sbs.training.train_step import Metrics

DESCRIPTION = "Trains a student on labels and teacher rationales (distilling step-by-step)."

# Above this share of cut examples a warning names the feature and the share.
CUT_SHARE_WARNED = 0.01
# A shorter run may meet no batch of the rarer shape.
_STEPS_WORTH_COMPILING_AHEAD = 100


@dataclasses.dataclass(frozen=True)
class CheckedRun:
    """What `check_run` found.

    Attributes:
      mixture: what is trained on, a SeqIO task or mixture.
      evaluated_task: the SeqIO task whose accuracy is reported.
      vocabulary: the SeqIO vocabulary.
      architecture: the student's.
      pretrained: what the parameters start from; None: random, or the run has begun.
      description: what its checkpoints will say.
      continues_from: the step of this run in MODEL_DIR that it goes on from; None: it begins.
      damaged: newer steps there that are damaged, and how.
      notes: what the user should know though it stops nothing, one line each.
    """

    mixture: seqio.Task | seqio.Mixture
    evaluated_task: seqio.Task
    vocabulary: seqio.Vocabulary
    architecture: T5Config
    pretrained: ParameterSource | None
    description: RunDescription
    continues_from: int | None
    damaged: Mapping[int, str]
    notes: tuple[str, ...]


@explain_unreachable()
def check_run(config: TrainConfig, task_files: Sequence[str] = ()) -> CheckedRun:
    """Checks all that can be wrong with a run before it starts, but for its devices and its data.

    `train` and `--dry_run` both ask here. Nothing is written, prepared or compiled, and no device
    is looked at: the run may be meant for another machine.

    Args:
      config: the run's options, whose types and ranges are right already.
      task_files: the user's registration files.

    Raises:
      UserError: an unknown mixture, or one that has no pairs where they are asked for, a task file
        that does not run, a vocabulary that is missing or larger than the student's, an
        INITIAL_CHECKPOINT_PATH that is missing, of no known form, of another student or of another
        vocabulary where one is trimmed, or is not the expert of the contrast that is trained on, a
        MODEL_DIR that holds another run.
    """
    quiet_tensorflow.import_tensorflow()
    from etils import epath

    from distill_sbs.checkpoint import steps
    from distill_sbs.checkpoint.description import check_same_run
    from distill_sbs.convert.content import check_expert
    from distill_sbs.convert.open import open_source
    from distill_sbs.convert.source import compare_vocabularies
    from distill_sbs.data import registration, settings, vocabulary

    chosen = settings.DataSettings.of_run(config)
    settings.use(chosen)
    registration.load_task_files(task_files)
    mixture = registration.get_mixture_or_task(config.data.mixture_or_task_name)
    registration.check_selection(mixture)
    registration.check_pairs(mixture, config.objective.in_pairs)
    architecture = config.student.architecture()
    loaded = vocabulary.load(config.data.vocabulary_file)
    # Of a pretraining task with its sentinels.
    ids = max(
        task.output_features[constants.TARGETS].vocabulary.vocab_size
        for task in registration.tasks_of(mixture)
    )
    if ids > architecture.vocab_size:
        sentinels = f" and {ids - loaded.vocab_size} sentinels" if ids > loaded.vocab_size else ""
        raise UserError(
            f"the vocabulary has {loaded.vocab_size} pieces{sentinels}, the student "
            f"{config.student.name} embeds {architecture.vocab_size}; set STUDENT_OVERRIDES = "
            f"{{'vocab_size': {-(-ids // 128) * 128}}}, or more"
        )
    description = RunDescription.of_run(
        config,
        vocabulary.describe(config.data.vocabulary_file),
        None if chosen.selection is None else chosen.selection.sha256,
    )
    notes = []
    if epath.Path(config.run.model_dir).is_file():
        raise UserError(f"MODEL_DIR={config.run.model_dir} is a file; expected a folder")
    newest, damaged = steps.find_newest_whole(config.run.model_dir)
    if newest is not None:
        saved = steps.read_description(steps.step_folder(config.run.model_dir, newest))
        check_same_run(config.run.model_dir, saved, description, type(config))
        if unknown := saved.unknown_options():
            notes.append(
                f"{config.run.model_dir} was begun by an earlier version, which did not note "
                f"{', '.join(unknown)}: they must be what they were"
            )
    # A run that goes on reads its own; the one that it began from may be gone by then.
    pretrained = None
    if config.run.initial_checkpoint_path is not None and newest is None:
        try:
            pretrained = open_source(config.run.initial_checkpoint_path)
            pretrained.check(architecture)
        except UserError as error:
            raise UserError(
                f"INITIAL_CHECKPOINT_PATH: {error} (STUDENT={config.student.name!r} with "
                "STUDENT_OVERRIDES is what it must fit)"
            ) from error
        vocabulary_file = config.data.vocabulary_file
        if note := compare_vocabularies(pretrained, description.vocabulary, vocabulary_file):
            notes.append(note)
    for task in registration.tasks_of(mixture):
        manifest = registration.find_manifest(task)
        if manifest is not None and newest is None:
            check_expert(pretrained, manifest.expert, task.name)
    return CheckedRun(
        mixture,
        registration.evaluation_task(mixture),
        loaded,
        architecture,
        pretrained,
        description,
        newest,
        damaged,
        tuple(notes),
    )


def train(config: TrainConfig, *, task_files: Sequence[str] = ()) -> RunResults:
    """Trains, evaluates, and returns what `results.json` says.

    Args:
      config: all options of the run.
      task_files: a user's registration files.

    Raises:
      UserError: something given cannot work; nothing was compiled and nothing saved was touched.
        Or the loss stopped being finite; the last good checkpoint stays.
      SystemExit: SIGTERM (status 143) or Ctrl-C (130) came; a checkpoint was saved first.
    """
    try:
        with contextlib.ExitStack() as at_end:
            return _train(config, task_files, at_end)
    except Exception as error:
        name_disk(error, config.run.model_dir)  # all that a run writes lies there
        raise


def _train(
    config: TrainConfig, task_files: Sequence[str], at_end: contextlib.ExitStack
) -> RunResults:
    # Imported here: the command line has been checked by now, and these take seconds.
    quiet_tensorflow.import_tensorflow()
    import jax
    from etils import epath

    from distill_sbs.checkpoint import steps
    from distill_sbs.checkpoint.checkpointer import Checkpointer
    from distill_sbs.cli.progress import show_progress
    from distill_sbs.convert.mesh_reader import read_sharded
    from distill_sbs.data import registration
    from distill_sbs.data.batches import input_pipeline, layout
    from distill_sbs.data.batches.share import Share
    from distill_sbs.distributed import sharding
    from distill_sbs.inference import batch_decoder
    from distill_sbs.inference.outputs import explain_outputs
    from distill_sbs.model import flops
    from distill_sbs.training import optimizer as optimizers
    from distill_sbs.training import run_log
    from distill_sbs.training.finite_loss import check_finite
    from distill_sbs.training.metrics_file import read_metrics
    from distill_sbs.training.program import build_training_program
    from distill_sbs.training.target_loss import TargetLoss

    # ---------------------------------- checks ----------------------------------
    run, batch_config, evaluation = config.run, config.batch, config.evaluation
    model_dir, train_steps = run.model_dir, run.train_steps
    batch_size, num_microbatches = batch_config.batch_size, config.mesh.num_microbatches
    processes.check_joined()
    is_first = processes.is_first()
    # Before anything there is read; a folder that is missing is made when all has been checked.
    lock = at_end.enter_context(FolderLock(model_dir, "training", silent=not is_first))
    lock.take(create=False)
    checked = check_run(config, task_files)
    mixture, evaluated_task = checked.mixture, checked.evaluated_task
    pretrained = checked.pretrained
    for note in checked.notes if is_first else ():
        terminal.say(f"warning: {note}", stderr=True)
    processes.run_first_then_others(lambda: registration.prepare_missing(mixture))
    mesh = sharding.make_mesh(config.mesh.num_model_partitions, num_slices=config.mesh.num_slices)
    sharding.check_batch_size(batch_size, num_microbatches, mesh)
    sharding.check_attention(checked.architecture, batch_config, config.objective, mesh)
    schedule = optimizers.make_schedule(config.optimizer, train_steps)
    update = optimizers.make_optimizer(config.optimizer, train_steps)
    folder = epath.Path(model_dir)
    lock.take()
    processes.check_shared(model_dir)
    if is_first:
        steps.set_damaged_aside(model_dir, checked.damaged, checked.continues_from)
    processes.wait_for_all("damaged steps are set aside")
    checkpointer = Checkpointer(model_dir, run.keep_checkpoints)
    newest = checked.continues_from
    if is_first:
        write_file(folder / CONFIG_FILE, config.to_gin())

    # ---------------------------------- data ------------------------------------
    row_multiple = sharding.data_parallelism(mesh) * num_microbatches
    share = Share(jax.process_index(), jax.process_count(), processes.exchange)
    counts = [task.num_input_examples("train") for task in registration.tasks_of(mixture)]
    rows = None if None in counts else sum(counts) // share.count
    with show_progress("tokenising", rows, silent=not is_first) as advance:
        data = input_pipeline.load_training_data(
            mixture,
            batch_config.task_feature_lengths,
            batch_size,
            run.random_seed,
            row_multiple,
            batch_config.pack,
            advance,
            share,
            functools.partial(sharding.rows_here, mesh),
            config.objective.in_pairs,
            functools.partial(flops.step_cost, checked.architecture),
        )
    for warning in input_pipeline.warn_of_cuts(data.tasks, CUT_SHARE_WARNED) if is_first else ():
        terminal.say(f"warning: {warning}", stderr=True)
    read = functools.partial(
        input_pipeline.tokenise, lengths=batch_config.task_feature_lengths, share=share
    )
    known = [each for each in ("validation", "test") if each in evaluated_task.splits]
    splits = {split: read(evaluated_task, split) for split in known}
    explained_task = registration.find_rationale_task(mixture)
    known = registration.list_rationale_splits(explained_task)
    explained = {split: read(explained_task, split) for split in known}

    # ---------------------------------- state -----------------------------------
    program = build_training_program(
        checked.architecture,
        update,
        mesh,
        objective=config.objective,
        fsdp=config.mesh.fsdp,
        seed=run.random_seed,
        num_microbatches=num_microbatches,
        use_hardware_rng=config.mesh.use_hardware_rng,
    )
    model, abstract = program.model, program.state
    if newest is not None:
        state, progress = checkpointer.restore(newest, abstract)
    elif pretrained is not None:
        params = read_sharded(pretrained, abstract.params)
        state = program.make_state_around().replace(params=params)
        progress = steps.Progress(data.sampler.start())
    else:
        state = program.make_state()
        progress = steps.Progress(data.sampler.start())

    # ---------------------------------- step ------------------------------------
    decoder = batch_decoder.Decoder(
        model, mesh, evaluation.max_decode_tokens, evaluation.eval_batch_size
    )

    loss_of_targets = TargetLoss(model, mesh, program.logits_chunk_tokens)
    eval_rows = -(-evaluation.eval_batch_size // row_multiple) * row_multiple
    remarks: dict[str, str | None] = {}

    def measure_loss(params: Params, sequences: Sequence[Sequence2Sequence]) -> dict[str, float]:
        return loss_of_targets(params, input_pipeline.lay_out_singly(sequences, eval_rows))

    def answer(
        task: seqio.Task, split: str, examples: TokenisedTask, params: Params, limit: int | None
    ) -> dict[str, float]:
        outputs = decoder(params, [each.inputs for each in examples.sequences[:limit]])
        said = [checked.vocabulary.decode(output.tolist()) for output in outputs]
        if task is evaluated_task:
            remarks[split] = explain_outputs(outputs, said, evaluation.max_decode_tokens)
        texts = examples.texts[:limit]
        return batch_decoder.compute_metrics(task.metric_fns, task.postprocess_fn, texts, said)

    def evaluate_on(split: str, params: Params, limit: int | None = None) -> dict[str, float]:
        """Metrics of a split's decoded answers (`accuracy`, 0 to 1), or the loss of its targets."""
        examples = splits[split]
        if not evaluated_task.metric_fns:
            return measure_loss(params, examples.sequences[:limit])
        found = answer(evaluated_task, split, examples, params, limit)
        if split == "validation" and evaluation.validation_loss:
            found |= measure_loss(params, examples.sequences[:limit])
        return found

    def explain_on(split: str, params: Params) -> dict[str, float]:
        """Metrics of the rationales of a contrast's student, whose label prefix is not tuned."""
        if explained_task is None or split not in explained:
            return {}
        return answer(explained_task, split, explained[split], params, None)

    def count_answers(split: str, limit: int | None) -> dict[str, float]:
        """Of how many answers the accuracy is; nothing where the loss of texts is measured."""
        decodes = bool(evaluated_task.metric_fns)
        return {"examples": len(splits[split].sequences[:limit])} if decodes else {}

    # ---------------------------------- loop ------------------------------------
    first_step = int(state.step)
    checkpoint_period = run.checkpoint_period or evaluation.eval_period
    log = run_log.RunLog(model_dir, first_step, train_steps, batch_size, silent=not is_first)
    log.say(data.describe())
    if first_step:
        log.say(f"continuing {model_dir} from step {first_step}")
    if train_steps - first_step >= _STEPS_WORTH_COMPILING_AHEAD and jax.process_count() == 1:
        # The rarer shape, while the usual one is compiled and the first steps run.
        program.compile_step_ahead(layout.empty_batch(data.batch_layout.larger))
    stop = stop_request.StopRequest()
    batches = input_pipeline.Prefetcher(data.batches(progress.position))
    window: list[Metrics] = []
    try:
        for step in range(first_step + 1, train_steps + 1):
            batch, position = next(batches)
            with sharding.rules(mesh):
                state, metrics = program.step(state, sharding.put_batch(batch, mesh))
            progress.position = position
            window.append(metrics)
            log.advance(step)
            is_last = step == train_steps
            evaluates = step % evaluation.eval_period == 0 or is_last
            # Read once: a signal that comes later in this step is acted on in the next.
            stops = stop.before_end_of(step)
            saves = evaluates or step % checkpoint_period == 0 or stops
            # Two steps behind, so that the device is never waited for.
            check_finite(window[-3:-2], step - 2, checkpointer)
            if not (saves or step % run.log_period == 0):
                continue
            for age, each in reversed(list(enumerate(reversed(window)))):
                check_finite([each], step - age, checkpointer)
            values = run_log.average(window)
            values["learning_rate"] = float(schedule(step - 1))
            values["examples_per_second"] = log.examples_per_second(len(window))
            window = []
            if evaluates and "validation" in splits:
                log.advance(step, "evaluating …")
                found = evaluate_on("validation", state.params, evaluation.eval_examples)
                progress.add_evaluation(
                    step, found, evaluation.first_best_step, evaluation.last_best_step
                )
                values.update((f"validation_{name}", value) for name, value in found.items())
            log.write(step, values)
            if saves:
                checkpointer.save(step, state, progress, checked.description)
            log.restart_clock()
            if stops and not is_last:
                checkpointer.wait()
                log.say(
                    f"{stop.signal_name}: saved step {step}; the same command continues from there"
                )
                raise SystemExit(stop.exit_status)
    finally:
        stop.restore()
        batches.close()
        log.close()
    checkpointer.wait()

    # ---------------------------------- results ---------------------------------
    best_step = progress.best_step or train_steps
    unknown = {"accuracy" if evaluated_task.metric_fns else "loss": None}
    on_test = None
    if "test" in splits:
        if best_step != int(state.step):
            steps.check_step(steps.step_folder(model_dir, best_step))
            state, _ = checkpointer.restore(best_step, abstract)
        on_test = {**evaluate_on("test", state.params), **explain_on("test", state.params)}
        on_test |= count_answers("test", None)
    on_validation = progress.values_at(best_step)
    if on_validation is not None:  # where there is a test, the parameters are the best step's
        on_validation |= explain_on("validation", state.params) if on_test else {}
        on_validation |= count_answers("validation", evaluation.eval_examples)
    checkpointer.close()
    results: RunResults = {
        "mixture": config.data.mixture_or_task_name,
        "data_fraction": config.data.data_fraction,
        "rationale_rate": config.objective.rationale_rate,
        "seed": run.random_seed,
        "train_steps": train_steps,
        "best_step": best_step,
        "validation": on_validation or unknown,
        "test": on_test or unknown,
    }
    if not is_first:
        return results
    write_file(folder / RESULTS_FILE, json.dumps(results, indent=2) + "\n")
    remark = remarks.get("test", remarks.get("validation"))
    lines, _ = read_metrics(model_dir)
    run_log.print_summary(results, lines, model_dir, remark, config.data.data_dir, task_files)
    return results


def main(configuration: command_line.Configuration[TrainConfig]) -> None:
    """Trains with what the command line and the gin files say."""
    processes.check_flags(configuration.flags)
    keep_freed_memory()
    keep_compiled_programs()
    # First: it drops what is written to the terminal meanwhile, such as that a process died.
    quiet_tensorflow.import_tensorflow()
    with processes.join_processes(configuration.flags, configuration.config_text, preemptible=True):
        train(configuration.config, task_files=configuration.task_files)


def dry_run(configuration: command_line.Configuration[TrainConfig]) -> Iterator[str]:
    """Checks what can be checked without starting; gives what there is to say, line by line.

    Raises:
      UserError: what `train` would raise.
    """
    processes.check_flags(configuration.flags)
    try:
        checked = check_run(configuration.config, configuration.task_files)
    except UnreachableError as error:
        yield f"warning: {error}. What lies in it was not checked; nothing was started"
        return
    from distill_sbs.data import registration, settings
    from distill_sbs.data.records import tfrecords

    run = configuration.config.run
    for note in checked.notes:
        yield f"warning: {note}"
    for number, cause in checked.damaged.items():
        yield f"warning: step {number} of MODEL_DIR is damaged ({cause}); the run sets it aside"
    folder = settings.current().folder
    tasks = registration.tasks_of(checked.mixture)
    for task in filter(registration.reads_texts, tasks):
        yield f"{task.name}: {len(task.source.list_shards('train'))} files of text"
    for spec in registration.datasets_of(checked.mixture):
        try:
            for split in spec.splits:
                tfrecords.split_files(folder, spec.name, split)
            if (selection := settings.current().selection) is not None:
                tfrecords.find_indices(folder, spec.name, selection)
            yield f"{spec.name}: prepared in {folder}"
        except tfrecords.UnpreparedDataError:
            if spec.needs_source_dir:
                raise
            yield f"{spec.name}: not prepared in {folder} yet; the run prepares it"
    if checked.continues_from is not None:
        step = checked.continues_from
        yield f"MODEL_DIR={run.model_dir} holds this run, which would go on from step {step}"
    elif checked.pretrained is not None:
        yield f"INITIAL_CHECKPOINT_PATH={run.initial_checkpoint_path} fits the student"
    yield "nothing was started; not looked at: devices, and whether the batch divides over them"


make_callable(__name__)

if __name__ == "__main__":
    command_line.run(
        main, TrainConfig, "runs/train.gin", DESCRIPTION, processes.define_flags, check=dry_run
    )
