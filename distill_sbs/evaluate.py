"""`python -m distill_sbs.evaluate`: how accurate is a student on a split?

    python -m distill_sbs.evaluate --checkpoint=runs/quickstart --split=test

Enters: any checkpoint folder, prepared records. Leaves: one JSON object on standard output, the
accuracy in it, every example of the split counted once; with `--output` a line of JSON for each;
with `--page` an HTML page: curves, what is confused, right and wrong answers with rationales.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from absl import flags
from etils import epath

from distill_sbs import constants, files
from distill_sbs.cli import command_line, flag_groups, interrupts, quiet_tensorflow, terminal
from distill_sbs.cli.compiled_programs import keep_compiled_programs
from distill_sbs.cli.freed_memory import keep_freed_memory
from distill_sbs.cli.run_main import run_main
from distill_sbs.distributed import processes
from distill_sbs.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import seqio

    from distill_sbs.data.batches.sampler import TokenisedTask
    from distill_sbs.inference.student import Student

# More different labels than these are no closed set.
_MOST_LABELS = 64

DESCRIPTION = "Evaluates a trained student on a split of a prepared dataset."


def _define_flags(values: flags.FlagValues) -> None:
    command_line.define_decoding_flags(values)
    flags.DEFINE_string(
        "mixture_or_task",
        None,
        "What to evaluate on; default: what the student was trained on.",
        flag_values=values,
    )
    flags.DEFINE_string("split", "test", "validation or test.", flag_values=values)
    flags.DEFINE_string(
        "data_dir",
        None,
        "Folder of the prepared records. Default: $DISTILL_SBS_DATA_DIR,"
        " else ~/.cache/distill_sbs.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "task_file", [], "A registration file of your own; repeatable.", flag_values=values
    )
    with flag_groups.group(values, "Labels of a closed set"):
        flags.DEFINE_bool(
            "score",
            False,
            "Takes the likeliest of the training split's labels, in one pass of the decoder, in the"
            " place of decoding; for a few labels, such as those of NLI.",
            flag_values=values,
        )
        flags.DEFINE_bool(
            "constrain_labels",
            False,
            "Decodes greedily, but nothing other than the training split's labels, and stops"
            " where one of them alone is left.",
            flag_values=values,
        )
    with flag_groups.group(values, "What is written"):
        flags.DEFINE_string(
            "output",
            None,
            "A JSONL file for every input, reference and prediction.",
            flag_values=values,
        )
        flags.DEFINE_string(
            "page",
            None,
            "An HTML file: metrics, curves, which label is taken for which, ten right and ten wrong"
            " answers, with the student's rationale beside the teacher's.",
            flag_values=values,
        )
    processes.define_flags(values)


def evaluate(
    checkpoint: str,
    mixture_or_task: str | None = None,
    split: str = "test",
    *,
    data_dir: str | None = None,
    output: str | None = None,
    batch_size: int = 128,
    beam_size: int = 1,
    task_files: Sequence[str] = (),
    num_model_partitions: int = 1,
    score: bool = False,
    page: str | None = None,
    constrain_labels: bool = False,
) -> dict[str, object]:
    """Evaluates a checkpoint; every argument is the flag of its name (`task_files` `--task_file`).

    Returns:
      The step's folder, the task, the split, the number of examples, and the metrics by name.

    Raises:
      UserError: no such checkpoint, task or split, or unprepared data; options that exclude one
        another.
    """
    option = "--score" if score else "--constrain_labels" if constrain_labels else None
    if score and constrain_labels:
        raise UserError("--score and --constrain_labels are two ways to choose; give one of them")
    if option and beam_size > 1:
        raise UserError(f"--beam_size={beam_size} has no effect with {option}; leave one out")
    quiet_tensorflow.import_tensorflow()
    import jax

    from distill_sbs.checkpoint import steps as checkpoints
    from distill_sbs.cli.progress import show_progress
    from distill_sbs.data import registration, settings, vocabulary
    from distill_sbs.data.batches import input_pipeline
    from distill_sbs.data.batches.share import Share
    from distill_sbs.distributed import sharding
    from distill_sbs.inference import batch_decoder
    from distill_sbs.inference.outputs import explain_outputs
    from distill_sbs.inference.student import Student
    from distill_sbs.training.target_loss import TargetLoss

    step_folder = checkpoints.find_step_folder(checkpoint)
    description = checkpoints.read_description(step_folder)
    own_vocabulary = vocabulary.from_description(description.vocabulary)
    text_dir = description.options.get("TEXT_DIR")
    settings.use(
        settings.DataSettings(
            data_dir,
            vocabulary=own_vocabulary,
            text_dir=text_dir if isinstance(text_dir, str) else None,
            shared_encoder=description.shares_encoder,
        )
    )
    registration.load_task_files(task_files)
    mixture_or_task = mixture_or_task or description.mixture
    if mixture_or_task is None:
        raise UserError(
            f"{step_folder} was converted and names no task; give one: --mixture_or_task=cqa_label"
        )
    mixture = registration.get_mixture_or_task(mixture_or_task)
    task = registration.evaluation_task(mixture)
    if split not in task.splits:
        raise UserError(f"--split={split}: {task.name} has {', '.join(task.splits)}")
    processes.check_joined()
    is_first = processes.is_first()
    processes.run_first_then_others(lambda: registration.prepare_missing(task))
    labels = _read_labels(task, option) if option else []
    share = Share(jax.process_index(), jax.process_count(), processes.exchange)
    examples = input_pipeline.tokenise(task, split, description.task_feature_lengths, share=share)

    student = Student.load(str(step_folder), num_model_partitions)
    about: dict[str, object] = {
        "checkpoint": str(step_folder),
        "task": task.name,
        "split": split,
        "examples": len(examples.sequences),
    }
    if not task.metric_fns:
        for name, path in (("output", output), ("page", page)):
            if path:
                raise UserError(
                    f"--{name}={path}: {task.name} has no right answers, so nothing is decoded; it "
                    "is scored by the loss of its targets"
                )
        parallel = sharding.data_parallelism(student.mesh)
        batch_rows = -(-batch_size // parallel) * parallel
        loss_of_targets = TargetLoss(student.model, student.mesh)
        batches = input_pipeline.lay_out_singly(examples.sequences, batch_rows)
        return {**about, **loss_of_targets(student.params, batches)}
    with show_progress(
        f"{task.name} {split}", len(examples.sequences), silent=not is_first
    ) as advance:
        inputs = [each.inputs for each in examples.sequences]
        outputs: list[np.ndarray] = []
        if score:
            scores = student.score(inputs, labels, batch_size, advance)
            predictions = [labels[best] for best in scores.argmax(axis=1)]
            about["labels"] = labels
        elif constrain_labels:
            predictions = student.choose(inputs, labels, batch_size, advance)
            about["labels"] = labels
        else:
            start = description.decoder_starts[
                "rationale" if registration.is_rationale(task) else "label"
            ]
            decoder = student.decoder(batch_size, beam_size)
            outputs = decoder(student.params, inputs, advance, start)
            predictions = [student.text(each) for each in outputs]
    if output and is_first:
        rows = zip(examples.input_texts, examples.texts, predictions, strict=True)
        with files.open_replacement(output) as file:
            for text, label, said in rows:
                row = {"input": text, "label": label, "prediction": said}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        interrupts.change_message(f"{output} is written")
    note = explain_outputs(outputs, predictions, description.max_decode_tokens) if outputs else None
    if note and is_first:
        terminal.say(f"note: {note}", stderr=True)
    metrics = batch_decoder.compute_metrics(
        task.metric_fns, task.postprocess_fn, examples.texts, predictions
    )
    if page:
        written = _make_page(student, mixture, task, split, examples, predictions, metrics)
        if is_first:
            files.write_file(epath.Path(page), written)
            interrupts.change_message(f"{page} is written")
    return {**about, **metrics}


def _make_page(
    student: Student,
    mixture: seqio.Task | seqio.Mixture,
    task: seqio.Task,
    split: str,
    examples: TokenisedTask,
    predictions: Sequence[str],
    metrics: Mapping[str, float],
) -> str:
    """The page on all answers; the student explains those that are shown."""
    from distill_sbs.data import registration
    from distill_sbs.reporting import page
    from distill_sbs.reporting import right_and_wrong as reported

    is_correct = registration.dataset_of(task).is_correct
    postprocess = task.postprocess_fn or (lambda text, **_: text)
    golds = [str(postprocess(text, is_target=True)) for text in examples.texts]
    said = [str(postprocess(text, is_target=False)) for text in predictions]
    texts = [text.removeprefix(constants.LABEL_PREFIX) for text in examples.input_texts]
    is_right = [is_correct(gold, answer) for gold, answer in zip(golds, said, strict=True)]
    shown = reported.choose_shown(is_right)
    rationales = dict(zip(shown, student.explain([texts[each] for each in shown]), strict=True))
    teacher, of_teacher = _read_teacher(mixture, task, split)
    answers = [
        reported.Answer(
            texts[number],
            golds[number],
            said[number],
            is_right[number],
            rationales.get(number),
            of_teacher.get(int(examples.indices[number])),
        )
        for number in range(len(texts))
    ]
    about = f"{student.step_folder} on the {len(texts):,} examples of {task.name}, {split}."
    run_folder = epath.Path(student.step_folder).parent.parent
    figures = reported.draw_training(str(run_folder), split)
    document = reported.make_document(about, metrics, answers, shown, teacher, figures)
    return page.write_page(document, f"Answers on {split}")


def _read_teacher(
    mixture: seqio.Task | seqio.Mixture, task: seqio.Task, split: str
) -> tuple[str | None, dict[int, str | None]]:
    """The teacher that a mixture's rationales are of, and its rationales of a split by index."""
    from distill_sbs.data import registration, settings
    from distill_sbs.data.records import joining

    dataset, folder = registration.dataset_of(task).name, settings.current().folder
    for part in registration.tasks_of(mixture):
        info = registration.get_task_info(part)
        if info and info.teacher and split in registration.list_rationale_splits(part):
            read = joining.read_all(folder, dataset, split, [info.teacher])
            outputs = (each.teacher_outputs[info.teacher] for each in read)
            return info.teacher, {number: each.rationale for number, each in enumerate(outputs)}
    return None, {}


def _read_labels(task: seqio.Task, option: str) -> list[str]:
    """The labels to choose among: the gold ones of the training split.

    Raises:
      UserError: the task's answers are no labels, or there are too many different ones.
    """
    from distill_sbs.data import registration, settings
    from distill_sbs.data.records import tfrecords

    info = registration.get_task_info(task)
    if info is None or info.method not in ("label", "pinto"):
        raise UserError(
            f"{option}: the answers of {task.name} are no labels alone, so none can be chosen "
            "among; leave it out, and they are decoded"
        )
    folder = settings.current().folder
    labels = tfrecords.list_labels(folder, info.dataset, _MOST_LABELS)
    if labels is None:
        raise UserError(
            f"{option}: {info.dataset} has more than {_MOST_LABELS} different labels in training, "
            "which is no closed set; leave it out, and answers are decoded"
        )
    return labels


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluates what the command line asks for; returns the exit status."""
    return run_main(lambda: _work(sys.argv if argv is None else argv), "nothing was written")


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, _define_flags, DESCRIPTION)
    for path in filter(None, (values.output, values.page)):
        files.check_writable(path)
    given = values.flag_values_dict()
    processes.check_flags(given)
    keep_freed_memory()
    keep_compiled_programs()
    quiet_tensorflow.import_tensorflow()  # drops what is written meanwhile: before processes join
    with processes.join_processes(given, processes.list_settings(given)):
        result = evaluate(
            values.checkpoint,
            values.mixture_or_task,
            values.split,
            data_dir=values.data_dir,
            output=values.output,
            batch_size=values.batch_size,
            beam_size=values.beam_size,
            task_files=values.task_file,
            num_model_partitions=values.num_model_partitions,
            score=values.score,
            page=values.page,
            constrain_labels=values.constrain_labels,
        )
        if processes.is_first():
            terminal.say_json(result, indent=2)
    return None


if __name__ == "__main__":
    sys.exit(main())
