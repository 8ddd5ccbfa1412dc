"""`python -m distill_sbs.train`: trains a student on labels and rationales, and evaluates it.

    python -m distill_sbs.train --gin_file=gin/experiments/quickstart.gin

Enters: prepared records, gin files. Leaves: in MODEL_DIR `config.gin`, `checkpoints/`,
`metrics.jsonl`, TensorBoard events and `results.json`. The same command again continues an
interrupted run, and ends with the parameters of one that was never interrupted.
"""

from __future__ import annotations

import functools
import json
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from distill_sbs.cli import command_line, quiet_tensorflow
from distill_sbs.distributed import processes
from distill_sbs.errors import UserError

DESCRIPTION = "Trains a student on labels and teacher rationales (distilling step-by-step)."
RESULTS_FILE = "results.json"
CONFIG_FILE = "config.gin"

# A preempted process: 128 + SIGTERM, so that a scheduler starts it again.
PREEMPTED_EXIT_STATUS = 128 + signal.SIGTERM

# Above this share of cut examples a warning names the feature and the share.
CUT_SHARE_WARNED = 0.01


def train(
    *,
    model_dir: str,
    mixture_or_task_name: str,
    task_feature_lengths: Mapping[str, int],
    train_steps: int,
    batch_size: int,
    initial_checkpoint_path: str | None,
    vocabulary_file: str,
    data_dir: str | None = None,
    data_fraction: float = 1.0,
    fraction_seed: int = 0,
    rationale_rate: float = 1.0,
    pack: bool = True,
    student: str = "t5_1_1_base",
    student_overrides: Mapping[str, Any] | None = None,
    dropout_rate: float = 0.1,
    optimizer: str = "adamw",
    learning_rate: float = 5e-5,
    warmup_steps: int = 0,
    weight_decay: float = 0.0,
    gradient_clip_norm: float | None = 1.0,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    random_seed: int = 0,
    eval_period: int = 250,
    checkpoint_period: int | None = None,
    keep_checkpoints: int = 2,
    log_period: int = 50,
    eval_batch_size: int = 128,
    eval_examples: int | None = None,
    max_decode_tokens: int = 64,
    num_model_partitions: int = 1,
    num_slices: int | None = None,
    fsdp: bool | None = None,
    num_microbatches: int = 1,
    task_files: Sequence[str] = (),
    config_text: str = "",
) -> dict[str, Any]:
    """Trains, evaluates, and returns what `results.json` says.

    Every argument is a macro of `gin/runs/train.gin`, where it is explained; besides,
    `task_files` are a user's registration files and `config_text` is what `config.gin` will say.

    Raises:
      UserError: something given cannot work; nothing was compiled and nothing saved was touched.
        Or the loss stopped being finite; the last good checkpoint stays.
      SystemExit: SIGTERM came; a checkpoint was saved first.
    """
    # Imported here: the command line has been checked by now, and these take seconds.
    quiet_tensorflow.import_tensorflow()
    import jax
    from etils import epath

    from distill_sbs.checkpoint.checkpointer import Checkpointer, Progress, has_checkpoint
    from distill_sbs.cli.progress import show_progress, show_values
    from distill_sbs.convert import forms, source
    from distill_sbs.data import registration, settings, vocabulary
    from distill_sbs.data.batches import input_pipeline, layout
    from distill_sbs.data.batches.share import Share
    from distill_sbs.distributed import sharding
    from distill_sbs.inference import batch_decoder
    from distill_sbs.inference.student import check_same_run, describe_run, student_config
    from distill_sbs.training import optimizer as optimizers
    from distill_sbs.training import run_log
    from distill_sbs.training.program import training_program
    from distill_sbs.training.train_step import initial_state

    # ---------------------------------- checks ----------------------------------
    settings.use(
        settings.DataSettings(
            data_dir, data_fraction, fraction_seed, rationale_rate, vocabulary_file
        )
    )
    _check_positive(
        TRAIN_STEPS=train_steps,
        EVAL_PERIOD=eval_period,
        CHECKPOINT_PERIOD=checkpoint_period or eval_period,
        LOG_PERIOD=log_period,
        EVAL_BATCH_SIZE=eval_batch_size,
        MAX_DECODE_TOKENS=max_decode_tokens,
    )
    checkpoint_period = checkpoint_period or eval_period
    layout.check_feature_lengths(task_feature_lengths)
    registration.load_task_files(task_files)
    mixture = registration.get_mixture_or_task(mixture_or_task_name)
    evaluated_task = registration.evaluation_task(mixture)
    processes.check_joined()
    is_first = processes.is_first()
    processes.one_after_the_first(lambda: registration.check_prepared(mixture))
    loaded_vocabulary = vocabulary.load(vocabulary_file)
    config = student_config(
        student, {"dropout_rate": dropout_rate, **(student_overrides or {})}, loaded_vocabulary
    )
    mesh = sharding.make_mesh(num_model_partitions, num_slices=num_slices)
    sharding.check_fsdp(fsdp)
    sharding.check_batch_size(batch_size, num_microbatches, mesh)
    pretrained = None
    # A run that goes on reads its own; the one that it began from may be gone by then.
    if initial_checkpoint_path and not has_checkpoint(model_dir):
        try:
            pretrained = forms.open_source(initial_checkpoint_path)
            pretrained.check(config)
        except UserError as error:
            raise UserError(
                f"INITIAL_CHECKPOINT_PATH: {error} (STUDENT={student!r} with STUDENT_OVERRIDES is "
                "what it must fit)"
            ) from error
    schedule = optimizers.linear_decay(learning_rate, train_steps, warmup_steps)
    update = optimizers.make_optimizer(optimizer, schedule, weight_decay, gradient_clip_norm)
    description = describe_run(
        config,
        vocabulary_file,
        mixture_or_task_name,
        task_feature_lengths,
        max_decode_tokens,
        run={
            "data_fraction": data_fraction,
            "fraction_seed": fraction_seed,
            "rationale_rate": rationale_rate,
            "batch_size": batch_size,
            "num_microbatches": num_microbatches,
            "pack": pack,
            "optimizer": optimizer,
            "random_seed": random_seed,
            "initial_checkpoint_path": initial_checkpoint_path,
        },
    )
    if pretrained is not None and pretrained.vocabulary is not None:
        ids = [each.get("sha256") for each in (pretrained.vocabulary, description["vocabulary"])]
        if ids[0] != ids[1] and jax.process_index() == 0:
            print(
                f"warning: {initial_checkpoint_path} comes with another vocabulary than "
                f"VOCABULARY_FILE={vocabulary_file!r}; its tokens mean something else",
                file=sys.stderr,
            )
    folder = epath.Path(model_dir)
    processes.check_shared(model_dir)
    checkpointer = Checkpointer(model_dir, keep_checkpoints)
    newest = checkpointer.latest_step()
    if newest is not None:
        check_same_run(model_dir, checkpointer.read_description(newest), description)
    if is_first:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / CONFIG_FILE).write_text(config_text)

    # ---------------------------------- data ------------------------------------
    row_multiple = sharding.data_parallelism(mesh) * num_microbatches
    share = Share(jax.process_index(), jax.process_count(), processes.exchange)
    rows = sum(task.num_input_examples("train") for task in registration.tasks_of(mixture))
    with show_progress("tokenising", rows // share.count, silent=not is_first) as advance:
        data = input_pipeline.training_data(
            mixture,
            task_feature_lengths,
            batch_size,
            random_seed,
            row_multiple,
            pack,
            advance,
            share,
            functools.partial(sharding.rows_here, mesh),
        )
    for warning in input_pipeline.cut_warnings(data.tasks, CUT_SHARE_WARNED) if is_first else ():
        print(f"warning: {warning}", file=sys.stderr)
    splits = {
        split: input_pipeline.tokenise(evaluated_task, split, task_feature_lengths, share=share)
        for split in ("validation", "test")
        if split in evaluated_task.splits
    }

    # ---------------------------------- state -----------------------------------
    program = training_program(
        config,
        update,
        mesh,
        fsdp=fsdp,
        rationale_rate=rationale_rate,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        seed=random_seed,
        num_microbatches=num_microbatches,
    )
    model, abstract = program.model, program.state
    if newest is not None:
        state, progress = checkpointer.restore(newest, abstract)
    elif pretrained is not None:
        values = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract.params))
        with show_values("reading", values, silent=jax.process_index() > 0) as advance:
            params = source.place(pretrained, abstract.params, advance)
        # Of the optimizer's state alone: random parameters are never made.
        state = jax.jit(
            lambda: initial_state(model, update, random_seed).replace(params={}),
            out_shardings=program.shardings.replace(params={}),
        )().replace(params=params)
        progress = Progress(data.sampler.start())
    else:
        state = jax.jit(
            lambda: initial_state(model, update, random_seed), out_shardings=program.shardings
        )()
        progress = Progress(data.sampler.start())

    # ---------------------------------- step ------------------------------------
    decoder = batch_decoder.Decoder(model, mesh, max_decode_tokens, eval_batch_size)

    def accuracy_on(split: str, params: Any, limit: int | None = None) -> float:
        """Accuracy, 0 to 1, of the decoded labels of a split."""
        examples = splits[split]
        outputs = decoder(params, [each.inputs for each in examples.sequences[:limit]])
        predictions = [loaded_vocabulary.decode(output.tolist()) for output in outputs]
        return batch_decoder.metrics_of(
            evaluated_task.metric_fns,
            evaluated_task.postprocess_fn,
            examples.texts[:limit],
            predictions,
        )["accuracy"]

    # ---------------------------------- loop ------------------------------------
    first_step = int(state.step)
    log = run_log.RunLog(model_dir, first_step, train_steps, batch_size, silent=not is_first)
    log.say(data.describe())
    if first_step:
        log.say(f"continuing {model_dir} from step {first_step}")
    stop = processes.StopRequest()
    batches = input_pipeline.Prefetcher(data.batches(progress.position))
    window: list[Mapping[str, Any]] = []
    try:
        for step in range(first_step + 1, train_steps + 1):
            batch, position = next(batches)
            with sharding.rules(mesh):
                state, metrics = program.step(state, sharding.put_batch(batch, mesh))
            progress.position = position
            window.append(metrics)
            log.advance(step)
            is_last = step == train_steps
            evaluates = step % eval_period == 0 or is_last
            # Read once: a signal that comes later in this step is acted on in the next.
            stops = stop.before_end_of(step)
            saves = evaluates or step % checkpoint_period == 0 or stops
            # Two steps behind, so that the device is never waited for.
            _check_finite(window[-3:-2], step - 2, checkpointer)
            if not (saves or step % log_period == 0):
                continue
            for age, each in reversed(list(enumerate(reversed(window)))):
                _check_finite([each], step - age, checkpointer)
            values = run_log.average(window)
            values["learning_rate"] = float(schedule(step - 1))
            values["examples_per_second"] = log.examples_per_second(len(window))
            window = []
            if evaluates and "validation" in splits:
                log.advance(step, "evaluating …")
                accuracy = accuracy_on("validation", state.params, eval_examples)
                progress.add_evaluation(step, accuracy)
                values["validation_accuracy"] = accuracy
            log.write(step, values)
            if saves:
                checkpointer.save(step, state, progress, description)
            log.restart_clock()
            if stops and not is_last:
                checkpointer.wait()
                log.say(f"SIGTERM: saved step {step}; the same command continues from there")
                raise SystemExit(PREEMPTED_EXIT_STATUS)
    finally:
        batches.close()
        log.close()
        stop.restore()
    checkpointer.wait()

    # ---------------------------------- results ---------------------------------
    best_step = progress.best_step or train_steps
    accuracies = {each["step"]: each["accuracy"] for each in progress.evaluations}
    test_accuracy = None
    if "test" in splits:
        if best_step != int(state.step):
            state, _ = checkpointer.restore(best_step, abstract)
        test_accuracy = accuracy_on("test", state.params)
    checkpointer.close()
    results = {
        "mixture": mixture_or_task_name,
        "data_fraction": data_fraction,
        "rationale_rate": rationale_rate,
        "seed": random_seed,
        "train_steps": train_steps,
        "best_step": best_step,
        "validation": {"accuracy": accuracies.get(best_step)},
        "test": {"accuracy": test_accuracy},
    }
    if not is_first:
        return results
    partial = folder / f"{RESULTS_FILE}.partial"
    partial.write_text(json.dumps(results, indent=2) + "\n")
    partial.replace(folder / RESULTS_FILE)
    run_log.print_summary(results, run_log.RunLog.read(model_dir), model_dir)
    return results


def _check_positive(**values: Any) -> None:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name}={value!r}: expected a whole number of at least 1")


def _check_finite(window: Sequence[Mapping[str, Any]], step: int, checkpointer: Any) -> None:
    for metrics in window:
        if not math.isfinite(float(metrics["loss"])):
            checkpointer.wait()
            newest = checkpointer.latest_step()
            kept = f"the checkpoint of step {newest} is good" if newest else "nothing was saved yet"
            raise UserError(
                f"the loss of step {step} is {float(metrics['loss'])}; {kept}. Lower "
                "LEARNING_RATE, set WARMUP_STEPS, or compute in float32"
            )


def main(configuration: command_line.Configuration) -> None:
    """Trains with what the command line and the gin files say."""
    processes.check_flags(configuration.flags)
    # First: it drops what is written to the terminal meanwhile, such as that a process died.
    quiet_tensorflow.import_tensorflow()
    with processes.joined(configuration.flags, configuration.config_text, preemptible=True):
        train(
            **configuration.arguments,
            task_files=configuration.task_files,
            config_text=configuration.config_text,
        )


if __name__ == "__main__":
    command_line.run(main, "runs/train.gin", DESCRIPTION, processes.define_flags)
