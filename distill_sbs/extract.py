r"""`python -m distill_sbs.extract`: a large language model's labels and rationales for your inputs.

    python -m distill_sbs.extract --task=cqa --input=in.jsonl --output=out.jsonl \
      --base_url=http://localhost:8000/v1 --model=NAME

Enters: inputs, a prompt, an OpenAI-compatible endpoint (its key in OPENAI_API_KEY). Leaves: a JSONL
of answers, appended as they arrive; on completion the published layout beside it. The same command
goes on where a killed run stopped. `--report`, `--merge` and `--show_prompt` call nobody.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from distill_sbs import files
from distill_sbs.cli import command_line, terminal
from distill_sbs.cli.run_main import run_main
from distill_sbs.data import settings
from distill_sbs.data.dataset import Example
from distill_sbs.data.readers import request_description, responses
from distill_sbs.data.readers.request_description import RequestDescription
from distill_sbs.errors import UserError
from distill_sbs.teacher import inputs as teacher_inputs
from distill_sbs.teacher import options, prompts
from distill_sbs.teacher.inputs import Inputs
from distill_sbs.teacher.prompts import Prompt

# ---------------------------------- arguments --------------------------------


def _prompt(values: flags.FlagValues, recorded: RequestDescription) -> Prompt:
    task = values.task or values.dataset or recorded.task_path
    if not task:
        raise UserError(
            f"--task is not given; it is one of {', '.join(prompts.known_tasks())}, a TOML file of "
            "your own, or a folder with one"
        )
    return prompts.load(task)


def _inputs(
    values: flags.FlagValues, prompt_name: str | None, recorded: RequestDescription
) -> Inputs:
    """The inputs that the flags name, or else those that an output file was made from."""
    known = recorded.inputs or {}
    path = values.input or (known.get("input") if not values.dataset else None)
    if path:
        inputs = teacher_inputs.from_file(path, values.task or prompt_name or "")
    else:
        dataset = values.dataset or known.get("dataset")
        split = values.split or known.get("split")
        if not dataset:
            raise UserError("nothing to ask about: give --input=FILE, or --dataset and --split")
        if not split:
            raise UserError(f"--dataset={dataset} needs --split=train, validation or test")
        data_dir = values.data_dir or known.get("data_dir") or settings.default_data_dir()
        inputs = teacher_inputs.from_records(dataset, split, data_dir, tuple(values.task_file))
    shard = teacher_inputs.parse_shard(values.shard) if values.shard else None
    return inputs.part(shard, values.limit) if shard or values.limit else inputs


def _output(values: flags.FlagValues) -> str:
    if values.output:
        return values.output
    if not (values.dataset and values.split and values.teacher):
        raise UserError(
            "--output=FILE.jsonl is not given; with --dataset, --split and --teacher there is a "
            "default"
        )
    data_dir = values.data_dir or settings.default_data_dir()
    folder = responses.default_folder(data_dir, values.dataset, values.teacher)
    shard = teacher_inputs.parse_shard(values.shard) if values.shard else None
    part = f"-{shard[0]:05d}-of-{shard[1]:05d}" if shard else ""
    return str(folder / f"{values.split}{part}.jsonl")


def _recorded(values: flags.FlagValues) -> RequestDescription:
    """How the output that a report or a merge is about was asked for; defaults where unknown."""
    for path in values.merge or [values.output]:
        if path and not path.endswith(".json"):
            return request_description.read(path) or RequestDescription()
    return RequestDescription()


# ---------------------------------- modes ------------------------------------


def _show_prompt(values: flags.FlagValues) -> int:
    prompt = _prompt(values, RequestDescription())
    inputs = _inputs(values, prompt.name, RequestDescription())
    if values.show_prompt >= inputs.size:
        raise UserError(f"--show_prompt={values.show_prompt}: there are {inputs.size} inputs")
    example = next(itertools.islice(inputs.examples(), values.show_prompt, None))
    gold = example.label if values.rationalise else None
    if values.rationalise and gold is None:
        raise UserError(f"--rationalise: input {example.id!r} has no gold label to give away")
    if values.completion:
        terminal.say(prompt.completion_text(example.input, gold))
        return 0
    for message in prompt.messages(example.input, gold):
        terminal.say(f"[{message['role']}]\n{message['content']}\n")
    return 0


def _merge(values: flags.FlagValues) -> int:
    from distill_sbs.teacher import export

    recorded = _recorded(values)
    has_inputs = bool(values.input or values.dataset or recorded.inputs)
    inputs = _inputs(values, recorded.task, recorded) if has_inputs else None
    output = _output(values)
    answered, failed, missing = export.merge(values.merge, output, inputs)
    terminal.say(
        f"{answered:,} examples answered, {failed:,} failed, {missing:,} not asked yet: {output}"
    )
    if inputs is not None and not missing:
        _finish(output, inputs)
    return 0


def _report(values: flags.FlagValues) -> int:
    from distill_sbs.teacher import console, quality

    recorded = _recorded(values)
    judged, title, prompt, recorded = _judged(values, recorded)
    equations = prompt.answers == "equation"
    with console.working(f"reading {title}"):
        measured = quality.measure(judged, equations)
    console.print_report(title, measured)
    dataset = values.dataset or (recorded.inputs or {}).get("dataset") or prompt.name
    if values.report_json:
        figures = json.dumps(measured.as_dict(), indent=2, ensure_ascii=False) + "\n"
        files.write_file(values.report_json, figures)
    if values.results:
        if measured.accuracy is None:
            raise UserError("--results needs gold labels, and the inputs have none")
        split = values.split or (recorded.inputs or {}).get("split")
        if split is None:
            raise UserError("--results needs --split, the name to put the accuracy under")
        teacher = values.teacher or recorded.teacher or "teacher"
        results = quality.write_results(
            values.results, dataset, teacher, recorded.model or None, split, measured
        )
        accuracy = results[split]["accuracy"]
        terminal.say(f"{split} accuracy {accuracy:.1%}: {values.results}/results.json")
    return 0


def _judged(
    values: flags.FlagValues, recorded: RequestDescription
) -> tuple[Iterator[Any], str, Prompt, RequestDescription]:
    """The answers that `--report` is about, a title, and what they were asked with."""
    from distill_sbs.teacher import export, quality

    prompt = _prompt(values, recorded)
    if not values.output and values.dataset and values.split and values.teacher:
        default = _output(values)
        if not os.path.exists(default):
            title = f"{values.dataset} {values.split}, {values.teacher}"
            return _prepared(values), title, prompt, recorded
        values.output = default
        recorded = _recorded(values)
    output = _output(values)
    has_inputs = bool(values.input or values.dataset or recorded.inputs)
    if output.endswith(".json"):
        if not has_inputs:
            raise UserError(
                f"--output={output} holds texts by position; give the inputs they belong to with "
                "--input or --dataset"
            )
        inputs = _inputs(values, prompt.name, recorded)
        texts = export.positional_texts(export.published_texts(output), inputs.examples())
        judged = quality.judge_published(inputs.examples(), texts, prompt.name, prompt)
        return judged, output, prompt, recorded
    index = responses.AnswerIndex([output])
    selection = responses.Selection.of(output)
    if has_inputs:
        examples = _inputs(values, prompt.name, recorded).examples()
    else:  # the ids alone are known
        examples = (Example(example_id, "", None) for example_id in index.ids())
    judged = quality.judge_index(examples, index, selection, prompt)
    return judged, output, prompt, recorded


def _prepared(values: flags.FlagValues) -> Iterator[Any]:
    """A teacher's answers in prepared records."""
    from distill_sbs.teacher import inputs, quality

    data_dir = values.data_dir or settings.default_data_dir()
    for example in inputs.with_teacher(values.dataset, values.split, data_dir, values.teacher):
        output = example.teacher_outputs[values.teacher]
        yield quality.Judged(example, output.label, output.rationale)


def _extract(values: flags.FlagValues) -> int:
    prompt = _prompt(values, RequestDescription())
    output = _output(values)
    if not output.endswith(".jsonl"):
        raise UserError(f"--output={output}: expected a name that ends in .jsonl")
    if not values.model:
        raise UserError("--model is not given: the name by which the endpoint knows the teacher")
    from distill_sbs.teacher import export, journal
    from distill_sbs.teacher.budget import Budget, Prices
    from distill_sbs.teacher.client import Endpoint, RequestParameters
    from distill_sbs.teacher.collect import Extraction, Settings
    from distill_sbs.teacher.console import ProgressBar, working

    temperature = values.temperature
    if temperature is None:
        temperature = 0.0 if values.samples == 1 else 0.7
    parameters = RequestParameters(
        model=values.model,
        max_tokens=values.max_tokens or prompt.max_tokens,
        temperature=temperature,
        stop=tuple(prompt.stop_sequences),
        completion=values.completion,
        seed=values.seed,
        extra_body=options.read_extra_body(values.extra_body),
    )

    def note(message: str) -> None:
        bar.say(f"note: {message}")

    endpoint = Endpoint(values.base_url, parameters, values.timeout_seconds, note)
    with working("checking the inputs"):
        inputs = _inputs(values, prompt.name, RequestDescription())
    _check_first_input(prompt, inputs, values.rationalise)
    export.check_llm_folder(output, inputs.split)
    asked = RequestDescription(
        task=prompt.name,
        prompt_sha256=prompt.digest,
        model=parameters.model,
        completion=parameters.completion,
        samples=values.samples,
        temperature=parameters.temperature,
        seed=parameters.seed,
        max_tokens=parameters.max_tokens,
        rationalise=values.rationalise,
        extra_body=endpoint.redactor.hide_in(parameters.extra_body),
        task_path=str(prompt.path.absolute()) if values.task else prompt.name,
        teacher=values.teacher,
        answers=prompt.answers,
        keep=values.keep,
        rationales=values.rationales,
        inputs=inputs.described,
    )
    with working(f"reading {output}"):
        out = journal.Journal(output, asked, values.retry_failed)
    prices = Prices(values.price_per_million_input_tokens, values.price_per_million_output_tokens)
    budget = Budget(out.totals, prices, values.max_tokens_total, values.max_cost)
    bar = ProgressBar(inputs.size * values.samples, out.finished, prices)
    if out.mended:
        bar.say(f"{output}: {out.mended}")
    if out.totals.uncounted:
        bar.say(f"{output}: {out.totals.uncounted:,} lines give no token counts: estimated")
    if out.finished:
        bar.say(f"continuing {output}: {out.finished:,} answers are there")
    try:
        with bar:
            extraction = Extraction(
                prompt,
                parameters,
                endpoint,
                out,
                budget,
                Settings(
                    values.samples,
                    values.rationalise,
                    values.max_in_flight,
                    values.max_attempts,
                    values.outage_seconds,
                ),
                bar.update,
                note,
            )
            outcome = extraction.run(inputs.examples())
    finally:
        out.close()
    whole = not (values.shard or values.limit)
    _print_outcome(output, inputs, prompt, out.totals, outcome, prices)
    if outcome.stopped is not None:
        terminal.say(f"{outcome.stopped}; the same command continues {output}", stderr=True)
        return outcome.exit_status
    if whole:
        _finish(output, inputs)
    return 0


def _check_first_input(prompt: Prompt, inputs: Inputs, rationalise: bool) -> None:
    """Finds out before any call whether inputs fit the prompt and, if need be, have gold labels."""
    first = next(inputs.examples())
    prompt.question_text(first.input)
    if rationalise and first.label is None:
        raise UserError(
            f"--rationalise gives the gold label away, and the first input ({first.id!r}) has "
            'none; add "label" to the inputs'
        )


def _print_outcome(
    output: str, inputs: Inputs, prompt: Prompt, totals: Any, outcome: Any, prices: Any
) -> None:
    from distill_sbs.teacher import console, quality

    with console.working(f"counting {output}"):
        index = responses.AnswerIndex([output])
        selection = responses.Selection.of(output)
        judged = quality.judge_index(inputs.examples(), index, selection, prompt)
        measured = quality.measure(judged, prompt.answers == "equation")
        index.close()
    console.print_outcome(f"{prompt.name}: {output}", measured, totals, outcome, prices)


def _finish(output: str, inputs: Inputs) -> None:
    """Writes what belongs to a complete output."""
    from distill_sbs.teacher import console, export

    with console.working("writing the published layout"):
        index = responses.AnswerIndex([output])
        written = export.write_llm_files(output, inputs, index)
    more = f", {written[-1].name}" if len(written) > 1 else ""
    terminal.say(f"written to {output} and {written[0]}{more}")
    asked = request_description.read(output) or RequestDescription()
    if asked.keep != "all" or asked.samples > 1:
        path, count = export.write_kept(output, inputs, index)
        terminal.say(f"{count:,} kept answers: {path}")
    index.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line asks for; returns the exit status."""
    return run_main(lambda: _work(sys.argv if argv is None else argv), "the same command continues")


def _work(argv: Sequence[str]) -> int | None:
    values = command_line.parse_flags(argv, options.define, options.DESCRIPTION)
    options.check(values)
    if values.show_prompt is not None:
        return _show_prompt(values)
    if values.merge:
        return _merge(values)
    return _report(values) if values.report else _extract(values)


if __name__ == "__main__":
    sys.exit(main())
