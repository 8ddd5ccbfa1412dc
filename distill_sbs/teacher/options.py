"""The flags of `python -m distill_sbs.extract`, and which of them go together.

Enters: nothing. Leaves: defined flags; a `UserError` where two contradict each other.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from absl import flags

from distill_sbs import json_lines
from distill_sbs.data.readers import responses
from distill_sbs.errors import UserError
from distill_sbs.teacher import prompts

DESCRIPTION = (
    "Asks a teacher LLM for labels and rationales (few-shot chain of thought).\n"
    "Exit status: 0 complete, 2 something to mend (see the message), 3 stopped by the budget,\n"
    "4 the endpoint answers nobody, 130/143 interrupted. After 3, 4 and 130/143 the same command\n"
    "continues."
)
MODES = ("report", "merge", "show_prompt")


def define(values: flags.FlagValues) -> None:
    """Defines the flags of `python -m distill_sbs.extract`."""

    def text(name: str, description: str, default: str | None = None) -> None:
        flags.DEFINE_string(name, default, description, flag_values=values)

    def number(name: str, default: float | None, description: str, lowest: float = 0.0) -> None:
        description += "" if default is None else f" Default: {default:g}."
        flags.DEFINE_float(name, default, description, flag_values=values, lower_bound=lowest)

    def whole(name: str, default: int | None, description: str, lowest: int = 1) -> None:
        description += "" if default is None else f" Default: {default}."
        flags.DEFINE_integer(name, default, description, flag_values=values, lower_bound=lowest)

    def switch(name: str, description: str) -> None:
        flags.DEFINE_bool(name, False, description, flag_values=values)

    # What is asked.
    text(
        "task",
        f"Prompt and parser: {', '.join(prompts.known_tasks())}, a TOML file of your own, or a"
        " folder with one (and a parser.py). Default: the data set's.",
    )
    text("input", 'JSON lines {"id", "input"}, "label" optional; or a published inputs file.')
    text("dataset", "Prepared data in place of --input, such as cqa.")
    text("split", "The split of --dataset: train, validation or test; train+validation for both.")
    text("data_dir", "Prepared records. Default: $DISTILL_SBS_DATA_DIR, else ~/.cache/distill_sbs.")
    flags.DEFINE_multi_string(
        "task_file", [], "A registration file of your own; repeatable.", flag_values=values
    )
    whole("limit", None, "Asks about the first so many inputs only.")
    text("shard", "i/n: every n-th input from the i-th, counted from 0; merge with --merge.")
    text(
        "output",
        "Where answers go: a JSONL file. Default with --dataset and --teacher:"
        " DATA_DIR/teachers/{dataset}/{teacher}/{split}.jsonl, where prepare --teacher looks.",
    )
    text("teacher", "A name of your choice for this teacher, in file names and results.json.")

    # Who is asked, and how.
    text(
        "base_url",
        "The endpoint, http://localhost:8000/v1 for example. Default: $OPENAI_BASE_URL, else"
        " OpenAI's.",
    )
    text("model", "The endpoint's name of the model.")
    switch("completion", "Sends the prompt as plain text (/completions), not as a chat.")
    whole("samples", 1, "Answers to each input; the labels are voted on.")
    number("temperature", None, "Default: 0 (greedy) for one sample, 0.7 for several.")
    flags.DEFINE_integer("seed", None, "Sample k is asked for with seed + k.", flag_values=values)
    whole("max_tokens", None, "The longest answer. Default: the prompt's.")
    switch("rationalise", "Gives the gold label away and asks for the rationale only.")
    text("extra_body", "JSON object of further request fields, the endpoint's own.")

    # What is kept.
    flags.DEFINE_enum(
        "keep",
        "all",
        responses.KEEP,
        "Which answers count: all, parsed ones, or those agreeing with gold. May be changed later:"
        " every answer stays in --output.",
        flag_values=values,
    )
    flags.DEFINE_enum(
        "rationales",
        "one",
        responses.RATIONALES,
        "Of several samples: one of the majority's rationales, or all of them.",
        flag_values=values,
    )

    # How fast, how long, how much.
    whole("max_in_flight", 32, "The most calls at a time; fewer while the endpoint says so.")
    number("timeout_seconds", 120.0, "The longest that a call may take.", 0.01)
    whole("max_attempts", 6, "Calls about one input before it is written as failed.")
    number("outage_seconds", 600.0, "How long the endpoint may answer nobody before the run ends.")
    switch("retry_failed", "Asks again about inputs that were written as failed.")
    whole("max_tokens_total", None, "Stops when so many tokens are used, earlier runs included.")
    number("max_cost", None, "Stops when so much is spent; needs both prices.")
    number("price_per_million_input_tokens", None, "For the cost shown, and --max_cost.")
    number("price_per_million_output_tokens", None, "Likewise.")

    # Other modes.
    whole("show_prompt", None, "Prints the prompt of example i, counted from 0, and stops.", 0)
    switch("report", "Prints what an output is worth, calls nobody.")
    text("results", "With --report: folder for results.json, the teacher as a baseline.")
    text("report_json", "With --report: file for the figures as JSON.")
    flags.DEFINE_list(
        "merge", [], "Output files to merge into --output, by id.", flag_values=values
    )


def check(values: flags.FlagValues) -> None:
    """Refuses flags that do not go together.

    Raises:
      UserError: two of them contradict each other, or one holds what it cannot hold.
    """
    _check_values(values)
    if values.input and values.dataset:
        raise UserError("--input and --dataset both name inputs; give one of them")
    if values.split and not (values.dataset or values.input or values.report):
        raise UserError("--split needs --dataset")
    chosen = [mode for mode in MODES if getattr(values, mode) not in (None, False, [])]
    if len(chosen) > 1:
        raise UserError(f"--{chosen[0]} and --{chosen[1]} are two things; do one after the other")
    if values.teacher and not re.fullmatch(r"[a-z][a-z0-9_]*", values.teacher):
        raise UserError(
            f"--teacher={values.teacher}: expected lower-case letters, digits and underscores, a "
            "letter first; the model's own name goes into --model"
        )
    prices = (values.price_per_million_input_tokens, values.price_per_million_output_tokens)
    if values.max_cost is not None and None in prices:
        raise UserError(
            "--max_cost needs --price_per_million_input_tokens and "
            "--price_per_million_output_tokens"
        )
    if values.samples > 1 and values.temperature == 0:
        raise UserError(
            f"--samples={values.samples} at --temperature=0 would be the same answer so many "
            "times; give a temperature such as 0.7"
        )
    for name in ("results", "report_json"):
        if getattr(values, name) and not values.report:
            raise UserError(f"--{name} belongs to --report")


def _check_values(values: flags.FlagValues) -> None:
    """Refuses numbers that are none, and texts that no file or endpoint takes."""
    for name in values:
        value = getattr(values, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"--{name}={value}: expected a number")
        for text in value if isinstance(value, list) else [value]:
            if json_lines.find_surrogate(text) is not None:
                raise UserError(f"--{name}={text}: not UTF-8; use a name that is")


def read_extra_body(text: str | None) -> dict[str, Any] | None:
    """The value of --extra_body.

    Raises:
      UserError: it is no JSON object, or holds a field that is not for it to set.
    """
    if not text:
        return None
    body = json_lines.parse_json(text, "--extra_body")
    if not isinstance(body, dict):
        raise UserError(f"--extra_body={text}: expected a JSON object")
    for name in ("messages", "prompt", "model"):
        if name in body:
            raise UserError(f"--extra_body sets {name!r}, which comes from other flags; leave it")
    if body.get("stream"):
        raise UserError(
            "--extra_body asks for an event stream, and extract reads whole responses; leave "
            '"stream" out, or set it to false'
        )
    try:
        json.dumps(body, allow_nan=False)
    except ValueError:
        raise UserError("--extra_body holds NaN or Infinity, which are no JSON") from None
    return body
