"""`python -m distill_sbs.allocate`: spends a budget of tokens on capabilities that a task needs.

    python -m distill_sbs.allocate --gin_file=gin/experiments/wordproblems_allocate.gin

Enters: prepared records, gin files, a task card. Leaves: in MODEL_DIR what `train` leaves there,
`allocation_history.jsonl` (an interval a line) and, in the place of `results.json`,
`allocation.json`. Every interval is ordinary training on a mixture that a bandit chose
(arXiv 2605.11290). The same command again continues an interrupted run, and ends with the
parameters and the history of one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from distill_sbs import constants
from distill_sbs.allocating import history as histories
from distill_sbs.allocating import requirement as requirements
from distill_sbs.allocating import summary as summaries
from distill_sbs.allocating.options import AllocateConfig
from distill_sbs.cli import command_line, quiet_tensorflow, terminal
from distill_sbs.cli.callable_module import make_callable
from distill_sbs.cli.compiled_programs import keep_compiled_programs
from distill_sbs.cli.freed_memory import keep_freed_memory
from distill_sbs.errors import (
    UnreachableError,
    UserError,
    explain_unreachable,
    name_disk,
)
from distill_sbs.files import write_file
from distill_sbs.folder_lock import FolderLock
from distill_sbs.teacher import live
from distill_sbs.train import CheckedRun, check_run

if TYPE_CHECKING:
    import numpy as np
    import seqio

    from distill_sbs.data.dataset import Example, TeacherOutput
    from distill_sbs.model.parameters import Params
    from distill_sbs.training.train_step import Metrics

DESCRIPTION = "Spends a budget of tokens on the capabilities that a task needs (ReAD)."


@dataclasses.dataclass(frozen=True)
class CheckedAllocation:
    """What `check_allocation` found.

    Attributes:
      run: what `train` would have found.
      capabilities: name → the SeqIO task or mixture that is trained on for it.
      requirement: r, [K].
      generation: B_gen, in tokens.
      schedule: mixtures to replay, [K] each; None: the policy chooses.
      head: the first line of the history, its profile empty.
      teacher: who is asked while the run goes; None: nobody.
    """

    run: CheckedRun
    capabilities: Mapping[str, seqio.Task | seqio.Mixture]
    requirement: np.ndarray
    generation: int
    schedule: Sequence[np.ndarray] | None
    head: histories.HistoryHead
    teacher: live.LiveTeacher | None


@explain_unreachable()
def check_allocation(config: AllocateConfig, task_files: Sequence[str] = ()) -> CheckedAllocation:
    """Checks all that can be wrong before anything starts, but for devices and data.

    Raises:
      UserError: what `train.check_run` raises; an unknown capability; a task card, a history or a
        requirement vector that cannot be; a MODEL_DIR that holds another run's history.
    """
    run = check_run(config, task_files)
    from distill_sbs.data import registration
    from distill_sbs.data.batches import capabilities as loading

    options = config.allocation
    names = list(options.capabilities)
    found = loading.find_capabilities(options.capabilities, options.live_teacher)
    parts = [part for each in found.values() for part, _ in loading.find_parts(each)]
    taught = any(map(loading.is_taught, parts))
    requirement = requirements.find_requirement(options.task_card, names)
    schedule = None
    if options.replay_history is not None:
        schedule = histories.read_schedule(options.replay_history, names)
    teacher = None
    if options.live_teacher is not None:
        teacher = _make_teacher(config)
        for task in loading.find_live_tasks(found, options.live_teacher):
            teacher.check(registration.dataset_of(task).name)
    generation = options.generation_budget(taught)
    head = histories.HistoryHead(
        config.data.mixture_or_task_name,
        {name: str(task) for name, task in options.capabilities.items()},
        [float(each) for each in requirement],
        [],
        {
            "RANDOM_SEED": config.run.random_seed,
            "BUDGET_TOKENS": options.budget_tokens,
            "GENERATION_TOKENS": generation,
            "INTERVAL_TOKENS": options.interval_tokens,
            "POLICY": options.policy if schedule is None else "replay",
        },
    )
    histories.check_same_history(config.run.model_dir, head)
    return CheckedAllocation(run, found, requirement, generation, schedule, head, teacher)


def _make_teacher(config: AllocateConfig) -> live.LiveTeacher:
    options = config.allocation
    assert options.live_teacher is not None and options.teacher_model is not None
    return live.LiveTeacher(
        options.live_teacher,
        options.teacher_model,
        options.teacher_prompt,
        options.teacher_max_tokens,
        options.teacher_temperature,
        config.run.model_dir,
    )


def allocate(config: AllocateConfig, *, task_files: Sequence[str] = ()) -> dict[str, object]:
    """Trains until the budget is spent, and returns what `allocation.json` says.

    Args:
      config: all options.
      task_files: a user's registration files.

    Raises:
      UserError: something given cannot work; nothing was compiled and nothing saved was touched.
        Or the loss stopped being finite; the last good checkpoint stays.
      SystemExit: SIGTERM (status 143) or Ctrl-C (130) came; a checkpoint was saved first.
    """
    try:
        with contextlib.ExitStack() as at_end:
            return _allocate(config, task_files, at_end)
    except Exception as error:
        name_disk(error, config.run.model_dir)
        raise


def _allocate(
    config: AllocateConfig, task_files: Sequence[str], at_end: contextlib.ExitStack
) -> dict[str, object]:
    quiet_tensorflow.import_tensorflow()
    from etils import epath

    from distill_sbs.allocating import interval_plan, overlap
    from distill_sbs.allocating.bookkeeping import Allocator
    from distill_sbs.allocating.budget import GENERATION, TokenBudget
    from distill_sbs.allocating.interval_plan import mix_difficulties
    from distill_sbs.allocating.state import AllocationState
    from distill_sbs.checkpoint import steps
    from distill_sbs.checkpoint.checkpointer import Checkpointer
    from distill_sbs.cli.progress import show_progress
    from distill_sbs.convert.mesh_reader import read_sharded
    from distill_sbs.data import registration
    from distill_sbs.data.batches import capabilities as loading
    from distill_sbs.data.batches import input_pipeline, layout, live_targets
    from distill_sbs.distributed import sharding, stop_request
    from distill_sbs.inference import batch_decoder
    from distill_sbs.model import flops
    from distill_sbs.training import optimizer as optimizers
    from distill_sbs.training import run_log
    from distill_sbs.training.finite_loss import check_finite
    from distill_sbs.training.program import build_training_program
    from distill_sbs.training.target_loss import TargetLoss

    # ---------------------------------- checks ----------------------------------
    run, options, evaluation = config.run, config.allocation, config.evaluation
    model_dir, batch_size = run.model_dir, config.batch.batch_size
    lengths, num_microbatches = config.batch.task_feature_lengths, config.mesh.num_microbatches
    lock = at_end.enter_context(FolderLock(model_dir, "an allocation", silent=False))
    lock.take(create=False)
    checked = check_allocation(config, task_files)
    tokens = TokenBudget(
        options.budget_tokens, checked.generation, options.budget_tokens - checked.generation
    )
    evaluated_task = checked.run.evaluated_task
    for note in checked.run.notes:
        terminal.say(f"warning: {note}", stderr=True)
    for each in (checked.run.mixture, *checked.capabilities.values()):
        registration.prepare_missing(each)
    mesh = sharding.make_mesh(config.mesh.num_model_partitions, num_slices=config.mesh.num_slices)
    sharding.check_batch_size(batch_size, num_microbatches, mesh)
    sharding.check_attention(checked.run.architecture, config.batch, config.objective, mesh)
    schedule = optimizers.make_schedule(config.optimizer, run.train_steps)
    update = optimizers.make_optimizer(config.optimizer, run.train_steps)

    # ---------------------------------- data ------------------------------------
    known = [each for each in ("validation", "test") if each in evaluated_task.splits]
    splits = {each: input_pipeline.tokenise(evaluated_task, each, lengths) for each in known}
    if "validation" not in splits:
        raise UserError(
            f"MIXTURE_OR_TASK_NAME={config.data.mixture_or_task_name!r} has no validation split, "
            "and nothing tells what an interval was worth; choose another"
        )
    seen = (overlap.fingerprints(each.input_texts) for each in splits.values())
    evaluated = frozenset[bytes]().union(*seen)
    log: run_log.RunLog | None = None

    def ask(dataset: str, split: str, examples: Sequence[Example]) -> dict[str, TeacherOutput]:
        assert checked.teacher is not None
        return checked.teacher.ask(dataset, split, examples, log.say if log else terminal.say)

    if checked.teacher is not None:  # its answers lie in MODEL_DIR, from the first on
        lock.take()
    with show_progress("tokenising", None) as advance:
        data = loading.load_capabilities(
            checked.capabilities,
            lengths,
            options.probes,
            evaluated,
            advance,
            options.live_teacher,
            ask,
        )
    row_multiple = sharding.data_parallelism(mesh) * num_microbatches
    cost = functools.partial(flops.step_cost, checked.run.architecture)
    if config.batch.pack:
        batch_layout = loading.choose_one_shape(data, batch_size, row_multiple, cost)
    else:
        shape = layout.shape_unpacked(
            batch_size, lengths[constants.INPUTS], lengths[constants.TARGETS], row_multiple
        )
        batch_layout = layout.Layout(shape, shape)

    # ---------------------------------- state -----------------------------------
    lock.take()
    folder = epath.Path(model_dir)
    steps.set_damaged_aside(model_dir, checked.run.damaged, checked.run.continues_from)
    checkpointer = Checkpointer(model_dir, run.keep_checkpoints)
    write_file(folder / constants.CONFIG_FILE, config.to_gin())
    program = build_training_program(
        checked.run.architecture,
        update,
        mesh,
        objective=config.objective,
        fsdp=config.mesh.fsdp,
        seed=run.random_seed,
        num_microbatches=num_microbatches,
        use_hardware_rng=config.mesh.use_hardware_rng,
    )
    model, abstract = program.model, program.state
    newest, pretrained = checked.run.continues_from, checked.run.pretrained
    progress = steps.Progress({})
    if newest is not None:
        state, progress = checkpointer.restore(newest, abstract)
    elif pretrained is not None:
        params = read_sharded(pretrained, abstract.params)
        state = program.make_state_around().replace(params=params)
    else:
        state = program.make_state()

    # ---------------------------------- measures --------------------------------
    decoder = batch_decoder.Decoder(
        model, mesh, evaluation.max_decode_tokens, evaluation.eval_batch_size
    )
    loss_of_targets = TargetLoss(model, mesh, program.logits_chunk_tokens)
    probe_rows = -(-min(options.probes, evaluation.eval_batch_size) // row_multiple) * row_multiple
    eval_rows = -(-evaluation.eval_batch_size // row_multiple) * row_multiple

    def evaluate_on(split: str, params: Params, limit: int | None) -> dict[str, float]:
        """Metrics of a split's decoded answers, or the loss of its targets."""
        examples = splits[split]
        if not evaluated_task.metric_fns:
            batches = input_pipeline.lay_out_singly(examples.sequences[:limit], eval_rows)
            return loss_of_targets(params, batches)
        outputs = decoder(params, [each.inputs for each in examples.sequences[:limit]])
        predictions = [checked.run.vocabulary.decode(output.tolist()) for output in outputs]
        return batch_decoder.compute_metrics(
            evaluated_task.metric_fns,
            evaluated_task.postprocess_fn,
            examples.texts[:limit],
            predictions,
        )

    def find_profile(params: Params) -> list[float]:
        """s, the mean log-probability of a token of each capability's probes, [K]."""
        return [
            -loss_of_targets(params, data.probe_batches(number, probe_rows))["loss"]
            for number in range(len(checked.capabilities))
        ]

    # ---------------------------------- restore ---------------------------------
    saved = None
    if progress.allocation is not None:
        place = str(steps.step_folder(model_dir, int(state.step)))
        saved = AllocationState.from_json(progress.allocation, data.tasks, place)
        saved.check_requirement(checked.head.requirement, model_dir)
    profile = saved.head.profile if saved else find_profile(state.params)
    head = saved.head if saved else dataclasses.replace(checked.head, profile=profile)
    allocator = Allocator(
        options, checked.requirement, profile, tokens, run.random_seed, checked.schedule
    )
    allocator.restore(saved.intervals if saved else ())
    bought = saved.bought if saved else interval_plan.nothing_bought(data.tasks)
    interval_began = saved.step if saved else 0

    # ---------------------------------- loop ------------------------------------
    per_batch = batch_size * data.mean_tokens()
    expected_steps = max(int(tokens.training / per_batch), 1)
    first_step = int(state.step)
    log = run_log.RunLog(model_dir, first_step, expected_steps, batch_size)
    usual = batch_layout.usual
    log.say(
        f"{len(checked.capabilities)} capabilities; a step lays {batch_size} sequences into "
        f"{usual.rows} rows of {usual.input_tokens} input and {usual.target_tokens} target tokens"
    )
    for name, count in data.refused.items():
        if count:
            log.say(f"{name}: {count} training examples stand in evaluation too, left out")
    if first_step:
        log.say(f"continuing {model_dir} from step {first_step}")
    stop = stop_request.StopRequest()
    step = first_step
    window: list[Metrics] = []
    limit = evaluation.eval_examples

    def report() -> dict[str, float]:
        """What the steps since the last report were like, on the mean."""
        values = run_log.average(window)
        values["learning_rate"] = float(schedule(step - 1))
        values["examples_per_second"] = log.examples_per_second(len(window))
        window.clear()
        return values

    def save() -> None:
        began = AllocationState(head, allocator.intervals, bought, interval_began)
        progress.allocation = began.to_json()
        checkpointer.save(step, state, progress, checked.run.description)

    def stop_here() -> None:
        checkpointer.wait()
        log.say(f"{stop.signal_name}: saved step {step}; the same command continues from there")
        raise SystemExit(stop.exit_status)

    try:
        while step < run.train_steps:
            mixture = allocator.choose()
            plan = live_targets.resolve(
                functools.partial(
                    interval_plan.plan_interval,
                    data.tasks,
                    mixture,
                    run.random_seed,
                    len(allocator.intervals),
                    tokens.next_interval(options.interval_tokens),
                    bought,
                    batch_size,
                    len(checked.capabilities),
                    mix_difficulties(tokens.progress) if options.difficulty_schedule else None,
                ),
                lambda wanted: data.write(wanted, ask),
            )
            if not plan.batches:
                tokens.charge(GENERATION, plan.generated)
                break
            for members in plan.batches[step - interval_began :]:
                batch = layout.fill(data.take(members), batch_layout)
                with sharding.rules(mesh):
                    state, metrics = program.step(state, sharding.put_batch(batch, mesh))
                step += 1
                window.append(metrics)
                log.advance(step)
                is_last = step - interval_began == len(plan.batches)
                stops = stop.before_end_of(step)
                saves = stops or (run.checkpoint_period and step % run.checkpoint_period == 0)
                if not (is_last or saves or step % run.log_period == 0):
                    continue
                for age, each in reversed(list(enumerate(reversed(window)))):
                    check_finite([each], step - age, checkpointer)
                if not is_last:
                    log.write(step, report())
                if saves and not is_last:
                    save()
                if stops and not is_last:
                    stop_here()
            log.advance(step, "probing …")
            utility = None
            if allocator.is_evaluation_due(plan.generated + plan.trained):
                found = evaluate_on("validation", state.params, limit)
                progress.add_evaluation(step, found)
                utility = _utility(found)
            line = allocator.observe(
                mixture,
                plan.generated,
                plan.trained,
                plan.by_capability.tolist(),
                find_profile(state.params),
                step,
                utility,
            )
            bought, interval_began = dict(plan.bought), step
            values = report()
            values.update(reward=line.reward, spill=line.spill)
            if utility is not None:
                values["validation_utility"] = utility
            log.write(step, values)
            save()
            checkpointer.wait()
            histories.History(head, tuple(allocator.intervals)).write(model_dir)
            if stop.before_end_of(step):
                stop_here()
    finally:
        stop.restore()
        log.close()
    checkpointer.wait()

    # ---------------------------------- results ---------------------------------
    if not allocator.intervals:
        raise UserError(
            f"BUDGET_TOKENS={options.budget_tokens} and INTERVAL_TOKENS={options.interval_tokens} "
            f"do not pay for one batch of {batch_size} sequences (about {per_batch:.0f} trained "
            f"tokens; {checked.generation} may be generated); raise them, or lower BATCH_SIZE"
        )
    if allocator.intervals[-1].utility is None:
        found = evaluate_on("validation", state.params, limit)
        progress.add_evaluation(step, found)
        allocator.note_last_utility(_utility(found))
    histories.History(head, tuple(allocator.intervals)).write(model_dir)
    best_step = progress.best_step or step
    on_test = None
    if "test" in splits:
        if best_step != step:
            steps.check_step(steps.step_folder(model_dir, best_step))
            state, _ = checkpointer.restore(best_step, abstract)
        on_test = evaluate_on("test", state.params, None)
    checkpointer.close()
    history = histories.History(head, tuple(allocator.intervals))
    at_best = progress.values_at(best_step) or {}
    summary = summaries.summarise(
        history, tokens, best_step, at_best, progress.evaluations[-1], on_test
    )
    write_file(folder / summaries.SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")
    evaluations: list[tuple[str, Mapping[str, float]]] = [
        (f"validation, step {step}", progress.evaluations[-1]),
        (f"validation, best step {best_step}", at_best),
    ]
    if on_test is not None:
        evaluations.append((f"test, step {best_step}", on_test))
    summaries.print_summary(history, tokens, evaluations, model_dir)
    return summary


def _utility(found: Mapping[str, float]) -> float:
    """What an evaluation was worth: accuracy, or where answers are not scored the negative loss."""
    return found["accuracy"] if "accuracy" in found else -found["loss"]


def main(configuration: command_line.Configuration[AllocateConfig]) -> None:
    """Allocates with what the command line and the gin files say."""
    keep_freed_memory()
    keep_compiled_programs()
    quiet_tensorflow.import_tensorflow()
    allocate(configuration.config, task_files=configuration.task_files)


def dry_run(configuration: command_line.Configuration[AllocateConfig]) -> Iterator[str]:
    """Checks what can be checked without starting; gives what there is to say, line by line.

    Raises:
      UserError: what `allocate` would raise.
    """
    config = configuration.config
    try:
        checked = check_allocation(config, configuration.task_files)
    except UnreachableError as error:
        yield f"warning: {error}. What lies in it was not checked; nothing was started"
        return
    for note in checked.run.notes:
        yield f"warning: {note}"
    needed = zip(checked.capabilities, checked.head.requirement, strict=True)
    yield "needed: " + ", ".join(f"{name} {weight:.3f}" for name, weight in needed)
    total = config.allocation.budget_tokens
    yield f"budget: {total - checked.generation:,} trained and {checked.generation:,} generated"
    if checked.run.continues_from is not None:
        step = checked.run.continues_from
        yield f"MODEL_DIR={config.run.model_dir} holds this run, which would go on from step {step}"
    yield "nothing was started; not looked at: devices, prepared records, and the batch's shape"


make_callable(__name__)

if __name__ == "__main__":
    command_line.run(main, AllocateConfig, "runs/allocate.gin", DESCRIPTION, check=dry_run)
