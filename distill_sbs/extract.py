r"""`python -m distill_sbs.extract`: a large language model's labels and rationales for your inputs.

    python -m distill_sbs.extract --task=cqa --input=in.jsonl --output=out.jsonl \
      --base_url=http://localhost:8000/v1 --model=NAME

Enters: inputs, a prompt, an OpenAI-compatible endpoint (its key in OPENAI_API_KEY). Leaves: a JSONL
of answers, appended as they arrive; on completion the published layout beside it. The same command
goes on where a killed run stopped. `--report`, `--merge` and `--show_prompt` call nobody.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from distill_sbs import files
from distill_sbs.cli import command_line, terminal
from distill_sbs.cli.callable_module import make_callable
from distill_sbs.cli.run_main import run_main
from distill_sbs.data import settings
from distill_sbs.data.dataset import Example
from distill_sbs.data.readers import request_description, responses
from distill_sbs.data.readers.request_description import RequestDescription
from distill_sbs.errors import UserError
from distill_sbs.teacher import inputs as teacher_inputs
from distill_sbs.teacher import options, prompts
from distill_sbs.teacher.inputs import Inputs
from distill_sbs.teacher.options import ExtractConfig
from distill_sbs.teacher.prompts import Prompt

if TYPE_CHECKING:
    from distill_sbs.teacher.budget import Prices
    from distill_sbs.teacher.collect import Outcome
    from distill_sbs.teacher.journal import Totals
    from distill_sbs.teacher.quality import AnsweredExample, Quality


@dataclasses.dataclass(frozen=True)
class ExtractResult:
    """What an extraction has come to, answers of earlier calls included.

    Attributes:
      output: the file of answers.
      examples: inputs that were to be asked about.
      parsed: those with a label and a rationale.
      failed: those that no answer came for, for good.
      accuracy: share of the examples with a gold label whose label agrees, 0 to 1; None without.
      stopped: why it ended before the last input; None where it did not.
      exit_status: 0; 3: the budget is spent; 4: the endpoint answers nobody; 128 + signal.
    """

    output: str
    examples: int
    parsed: int
    failed: int
    accuracy: float | None
    stopped: str | None = None
    exit_status: int = 0


# ---------------------------------- arguments --------------------------------


def _load_prompt(config: ExtractConfig, recorded: RequestDescription) -> Prompt:
    task = config.task or config.dataset or recorded.task_path
    if not task:
        raise UserError(
            f"--task is not given; it is one of {', '.join(prompts.known_tasks())}, a TOML file of "
            "your own, or a folder with one"
        )
    return prompts.load(task)


def _find_inputs(
    config: ExtractConfig, prompt_name: str | None, recorded: RequestDescription
) -> Inputs:
    """The inputs that the flags name, or else those that an output file was made from."""
    known = recorded.inputs or {}
    path = config.input or (known.get("input") if not config.dataset else None)
    if path:
        inputs = teacher_inputs.from_file(path, config.task or prompt_name or "")
    else:
        dataset = config.dataset or known.get("dataset")
        split = config.split or known.get("split")
        if not dataset:
            raise UserError("nothing to ask about: give --input=FILE, or --dataset and --split")
        if not split:
            raise UserError(f"--dataset={dataset} needs --split=train, validation or test")
        data_dir = config.data_dir or known.get("data_dir") or settings.default_data_dir()
        inputs = teacher_inputs.from_records(dataset, split, data_dir, config.task_file)
    shard = teacher_inputs.parse_shard(config.shard) if config.shard else None
    return inputs.part(shard, config.limit) if shard or config.limit else inputs


def _choose_output(config: ExtractConfig) -> str:
    if config.output:
        return config.output
    if not (config.dataset and config.split and config.teacher):
        raise UserError(
            "--output=FILE.jsonl is not given; with --dataset, --split and --teacher there is a "
            "default"
        )
    data_dir = config.data_dir or settings.default_data_dir()
    folder = responses.default_folder(data_dir, config.dataset, config.teacher)
    shard = teacher_inputs.parse_shard(config.shard) if config.shard else None
    part = f"-{shard[0]:05d}-of-{shard[1]:05d}" if shard else ""
    return str(folder / f"{config.split}{part}.jsonl")


def _find_description(paths: Sequence[str | None]) -> RequestDescription:
    """How the output that a report or a merge is about was asked for; defaults where unknown."""
    for path in paths:
        if path and not path.endswith(".json"):
            return request_description.read(path) or RequestDescription()
    return RequestDescription()


# ---------------------------------- modes ------------------------------------


def _show_prompt(config: ExtractConfig, index: int) -> int:
    prompt = _load_prompt(config, RequestDescription())
    inputs = _find_inputs(config, prompt.name, RequestDescription())
    if index >= inputs.size:
        raise UserError(f"--show_prompt={index}: there are {inputs.size} inputs")
    example = next(itertools.islice(inputs.examples(), index, None))
    gold = example.label if config.rationalise else None
    if config.rationalise and gold is None:
        raise UserError(f"--rationalise: input {example.id!r} has no gold label to give away")
    if config.completion:
        terminal.say(prompt.completion_text(example.input, gold))
        return 0
    for message in prompt.messages(example.input, gold):
        terminal.say(f"[{message['role']}]\n{message['content']}\n")
    return 0


def _merge(config: ExtractConfig, paths: Sequence[str]) -> int:
    from distill_sbs.teacher import export

    recorded = _find_description(paths)
    has_inputs = bool(config.input or config.dataset or recorded.inputs)
    inputs = _find_inputs(config, recorded.task, recorded) if has_inputs else None
    output = _choose_output(config)
    answered, failed, missing = export.merge(paths, output, inputs)
    terminal.say(
        f"{answered:,} examples answered, {failed:,} failed, {missing:,} not asked yet: {output}"
    )
    if inputs is not None and not missing:
        _finish(output, inputs)
    return 0


def _report(config: ExtractConfig, results_folder: str | None, json_file: str | None) -> int:
    from distill_sbs.teacher import console, quality

    config = _with_default_output(config)
    recorded = _find_description([config.output])
    judged, title, prompt = _judge(config, recorded)
    equations = prompt.answers == "equation"
    with terminal.show_status(f"reading {title}"):
        measured = quality.measure(judged, equations)
    console.print_report(title, measured)
    dataset = config.dataset or (recorded.inputs or {}).get("dataset") or prompt.name
    if json_file:
        figures = json.dumps(measured.as_dict(), indent=2, ensure_ascii=False) + "\n"
        files.write_file(json_file, figures)
    if results_folder:
        if measured.accuracy is None:
            raise UserError("--results needs gold labels, and the inputs have none")
        split = config.split or (recorded.inputs or {}).get("split")
        if split is None:
            raise UserError("--results needs --split, the name to put the accuracy under")
        teacher = config.teacher or recorded.teacher or "teacher"
        quality.write_results(
            results_folder, dataset, teacher, recorded.model or None, split, measured
        )
        terminal.say(f"{split} accuracy {measured.accuracy:.1%}: {results_folder}/results.json")
    return 0


def _with_default_output(config: ExtractConfig) -> ExtractConfig:
    """The output at its default place, where there is one and none is named."""
    if not config.output and config.dataset and config.split and config.teacher:
        default = _choose_output(config)
        if os.path.exists(default):
            return dataclasses.replace(config, output=default)
    return config


def _judge(
    config: ExtractConfig, recorded: RequestDescription
) -> tuple[Iterator[AnsweredExample], str, Prompt]:
    """The answers that `--report` is about, a title, and the prompt they were asked with."""
    from distill_sbs.teacher import export, quality

    prompt = _load_prompt(config, recorded)
    if not config.output and config.dataset and config.split and config.teacher:
        judged = _judge_prepared(config.dataset, config.split, config.teacher, config.data_dir)
        return judged, f"{config.dataset} {config.split}, {config.teacher}", prompt
    output = _choose_output(config)
    has_inputs = bool(config.input or config.dataset or recorded.inputs)
    if output.endswith(".json"):
        if not has_inputs:
            raise UserError(
                f"--output={output} holds texts by position; give the inputs they belong to with "
                "--input or --dataset"
            )
        inputs = _find_inputs(config, prompt.name, recorded)
        texts = export.positional_texts(export.published_texts(output), inputs.examples())
        judged = quality.judge_published(inputs.examples(), texts, prompt.name, prompt)
        return judged, output, prompt
    index = responses.AnswerIndex([output])
    selection = responses.Selection.of(output)
    if has_inputs:
        examples = _find_inputs(config, prompt.name, recorded).examples()
    else:  # the ids alone are known
        examples = (Example(example_id, "", None) for example_id in index.ids())
    judged = quality.judge_index(examples, index, selection, prompt)
    return judged, output, prompt


def _judge_prepared(
    dataset: str, split: str, teacher: str, data_dir: str | None
) -> Iterator[AnsweredExample]:
    """A teacher's answers in prepared records."""
    from distill_sbs.teacher import inputs, quality

    folder = data_dir or settings.default_data_dir()
    for example in inputs.read_with_teacher(dataset, split, folder, teacher):
        output = example.teacher_outputs[teacher]
        yield quality.AnsweredExample(example, output.label, output.rationale)


def extract(config: ExtractConfig) -> ExtractResult:
    """Asks a teacher about every input that has no answer yet; shows how far it is.

    Answers are appended to the output as they arrive. A call with the same options goes on where
    an earlier one stopped, and asks nothing twice. When all inputs are answered, the published
    layout is written beside the output.

    Args:
      config: what is asked about, whom, how, and what is kept.

    Raises:
      UserError: something given cannot work, or the output was asked for with other settings.
    """
    prompt = _load_prompt(config, RequestDescription())
    output = _choose_output(config)
    if not output.endswith(".jsonl"):
        raise UserError(f"--output={output}: expected a name that ends in .jsonl")
    if not config.model:
        raise UserError("--model is not given: the name by which the endpoint knows the teacher")
    from distill_sbs.teacher import export, journal
    from distill_sbs.teacher.budget import Budget, Prices
    from distill_sbs.teacher.client import Endpoint, RequestParameters
    from distill_sbs.teacher.collect import Extraction, Settings
    from distill_sbs.teacher.console import ProgressBar

    temperature = config.temperature
    if temperature is None:
        temperature = 0.0 if config.samples == 1 else 0.7
    parameters = RequestParameters(
        model=config.model,
        max_tokens=config.max_tokens or prompt.max_tokens,
        temperature=temperature,
        stop=tuple(prompt.stop_sequences),
        completion=config.completion,
        seed=config.seed,
        extra_body=dict(config.extra_body) if config.extra_body else None,
    )

    def note(message: str) -> None:
        bar.say(f"note: {message}")

    endpoint = Endpoint(config.base_url, parameters, config.timeout_seconds, note)
    with terminal.show_status("checking the inputs"):
        inputs = _find_inputs(config, prompt.name, RequestDescription())
    _check_first_input(prompt, inputs, config.rationalise)
    export.check_llm_folder(output, inputs.split)
    extra_body = endpoint.redactor.hide_in(parameters.extra_body)
    asked = RequestDescription(
        task=prompt.name,
        prompt_sha256=prompt.digest,
        model=parameters.model,
        completion=parameters.completion,
        samples=config.samples,
        temperature=parameters.temperature,
        seed=parameters.seed,
        max_tokens=parameters.max_tokens,
        rationalise=config.rationalise,
        extra_body=extra_body if isinstance(extra_body, dict) else None,
        task_path=str(prompt.path.absolute()) if config.task else prompt.name,
        teacher=config.teacher,
        answers=prompt.answers,
        keep=config.keep,
        rationales=config.rationales,
        inputs=inputs.described,
    )
    with terminal.show_status(f"reading {output}"):
        out = journal.Journal(output, asked, config.retry_failed)
    prices = Prices(config.price_per_million_input_tokens, config.price_per_million_output_tokens)
    budget = Budget(out.totals, prices, config.max_tokens_total, config.max_cost)
    bar = ProgressBar(inputs.size * config.samples, out.finished, prices)
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
                    config.samples,
                    config.rationalise,
                    config.max_in_flight,
                    config.max_attempts,
                    config.outage_seconds,
                ),
                bar.update,
                note,
            )
            outcome = extraction.run(inputs.examples())
    finally:
        out.close()
    whole = not (config.shard or config.limit)
    measured = _print_outcome(output, inputs, prompt, out.totals, outcome, prices)
    if outcome.stopped is not None:
        terminal.say(f"{outcome.stopped}; the same command continues {output}", stderr=True)
    elif whole:
        _finish(output, inputs)
    return ExtractResult(
        output=output,
        examples=measured.examples,
        parsed=measured.parsed,
        failed=measured.failed,
        accuracy=measured.accuracy,
        stopped=outcome.stopped,
        exit_status=outcome.exit_status,
    )


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
    output: str, inputs: Inputs, prompt: Prompt, totals: Totals, outcome: Outcome, prices: Prices
) -> Quality:
    from distill_sbs.teacher import console, quality

    with terminal.show_status(f"counting {output}"):
        index = responses.AnswerIndex([output])
        selection = responses.Selection.of(output)
        judged = quality.judge_index(inputs.examples(), index, selection, prompt)
        measured = quality.measure(judged, prompt.answers == "equation")
        index.close()
    console.print_outcome(f"{prompt.name}: {output}", measured, totals, outcome, prices)
    return measured


def _finish(output: str, inputs: Inputs) -> None:
    """Writes what belongs to a complete output."""
    from distill_sbs.teacher import export

    with terminal.show_status("writing the published layout"):
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
    config = options.read(values)
    if values.show_prompt is not None:
        return _show_prompt(config, values.show_prompt)
    if values.merge:
        return _merge(config, values.merge)
    if values.report:
        return _report(config, values.results, values.report_json)
    return extract(config).exit_status


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(main())
