"""Every option of an extraction, once: its name, type, default and help; the flags are made of it.

Enters: values from Python, or the command line of `python -m distill_sbs.extract`. Leaves: an
`ExtractConfig` whose values go together, or a `UserError` that names the option.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar, overload

from absl import flags

from distill_sbs import json_lines
from distill_sbs.cli import flag_groups
from distill_sbs.data.readers import responses
from distill_sbs.errors import UserError
from distill_sbs.json_lines import JsonObject
from distill_sbs.teacher import prompts

DESCRIPTION = (
    "Asks a teacher LLM for labels and rationales (few-shot chain of thought).\n"
    "Exit status: 0 complete, 2 something to mend (see the message), 3 stopped by the budget,\n"
    "4 the endpoint answers nobody, 130/143 interrupted. After 3, 4 and 130/143 the same command\n"
    "continues."
)
# What `extract` can do besides asking; these are flags, not options.
MODES = ("report", "merge", "show_prompt")
# The titles of --help, by the first option that stands under each.
_FIRST_OF_GROUP = {
    "task": "What is asked",
    "base_url": "Who is asked, and how",
    "keep": "What is kept",
    "max_in_flight": "How fast, how long, how much",
}
_RANGES = {int: "a whole number", float: "a number"}

T = TypeVar("T")


@overload
def _option(help: str, *, lowest: float | None = None) -> None: ...


@overload
def _option(
    help: str, default: T, *, lowest: float | None = None, choices: tuple[str, ...] = ()
) -> T: ...


def _option(
    help: str,
    default: object = None,
    *,
    lowest: float | None = None,
    choices: tuple[str, ...] = (),
) -> object:
    """A field with what its flag says; mypy takes it for the default."""
    described = {"help": help, "lowest": lowest, "choices": choices}
    return dataclasses.field(default=default, metadata=described)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """What a teacher is asked, how, and what is kept of it; each field is a flag of `extract`.

    Inputs are `input`, or `dataset` with `split`. `model` is the only other one that `extract`
    cannot do without; `output` has a default where `dataset`, `split` and `teacher` are given.

    Raises:
      UserError: a value of another type or out of range, or two that contradict each other.
    """

    task: str | None = _option(
        "Prompt and parser: {tasks}, a TOML file of your own, or a folder with one (and a"
        " parser.py). Default: the dataset's."
    )
    input: str | None = _option(
        'JSON lines {"id", "input"}, "label" optional; or a published inputs file.'
    )
    dataset: str | None = _option("Prepared data in place of --input, such as cqa.")
    split: str | None = _option(
        "The split of --dataset: train, validation or test; train+validation for both."
    )
    data_dir: str | None = _option(
        "Prepared records. Default: $DISTILL_SBS_DATA_DIR, else ~/.cache/distill_sbs."
    )
    task_file: tuple[str, ...] = _option("A registration file of your own; repeatable.", ())
    limit: int | None = _option("Asks about the first so many inputs only.", lowest=1)
    shard: str | None = _option(
        "i/n: every n-th input from the i-th, counted from 0; merge with --merge."
    )
    output: str | None = _option(
        "Where answers go: a JSONL file. Default with --dataset and --teacher:"
        " DATA_DIR/teachers/{dataset}/{teacher}/{split}.jsonl, where prepare --teacher looks."
    )
    teacher: str | None = _option(
        "A name of your choice for this teacher, in file names and results.json."
    )

    base_url: str | None = _option(
        "The endpoint, http://localhost:8000/v1 for example. Default: $OPENAI_BASE_URL, else"
        " OpenAI's."
    )
    model: str | None = _option("The endpoint's name of the model.")
    completion: bool = _option(
        "Sends the prompt as plain text (/completions), not as a chat.", False
    )
    samples: int = _option("Responses to each input; the labels are voted on.", 1, lowest=1)
    temperature: float | None = _option(
        "Default: 0 (greedy) for one sample, 0.7 for several.", lowest=0.0
    )
    seed: int | None = _option("Sample k is asked for with seed + k.")
    max_tokens: int | None = _option(
        "The longest response, in tokens. Default: the prompt's.", lowest=1
    )
    rationalise: bool = _option("Gives the gold label away and asks for the rationale only.", False)
    extra_body: Mapping[str, object] | None = _option(
        "JSON object of further request fields, the endpoint's own."
    )

    keep: str = _option(
        "Which answers count: all, parsed ones, or those agreeing with gold. May be changed later:"
        " every answer stays in --output.",
        "all",
        choices=responses.KEEP,
    )
    rationales: str = _option(
        "Of several samples: one of the majority's rationales, or all of them.",
        "one",
        choices=responses.RATIONALES,
    )

    max_in_flight: int = _option(
        "The most calls at a time; fewer while the endpoint says so.", 32, lowest=1
    )
    timeout_seconds: float = _option("The longest that a call may take.", 120.0, lowest=0.01)
    max_attempts: int = _option(
        "Calls about one input before it is written as failed.", 6, lowest=1
    )
    outage_seconds: float = _option(
        "How long the endpoint may answer nobody before the run ends.", 600.0, lowest=0.0
    )
    retry_failed: bool = _option("Asks again about inputs that were written as failed.", False)
    max_tokens_total: int | None = _option(
        "Stops when so many tokens are used, earlier runs included.", lowest=1
    )
    max_cost: float | None = _option("Stops when so much is spent; needs both prices.", lowest=0.0)
    price_per_million_input_tokens: float | None = _option(
        "For the cost shown, and --max_cost.", lowest=0.0
    )
    price_per_million_output_tokens: float | None = _option("Likewise.", lowest=0.0)

    def __post_init__(self) -> None:
        """Checks each value, and that they go together."""
        for field in dataclasses.fields(self):
            _check_value(field, getattr(self, field.name))
        if self.input and self.dataset:
            raise UserError("--input and --dataset both name inputs; give one of them")
        if self.teacher and not re.fullmatch(r"[a-z][a-z0-9_]*", self.teacher):
            raise UserError(
                f"--teacher={self.teacher}: expected lower-case letters, digits and underscores, a "
                "letter first; the model's own name goes into --model"
            )
        if self.extra_body is not None:
            _check_extra_body(self.extra_body)
        prices = (self.price_per_million_input_tokens, self.price_per_million_output_tokens)
        if self.max_cost is not None and None in prices:
            raise UserError(
                "--max_cost needs --price_per_million_input_tokens and "
                "--price_per_million_output_tokens"
            )
        if self.samples > 1 and self.temperature == 0:
            raise UserError(
                f"--samples={self.samples} at --temperature=0 would be the same answer so many "
                "times; give a temperature such as 0.7"
            )


def _kind(field: dataclasses.Field[object]) -> tuple[Any, bool]:
    """A field's type without None, and whether it may be None."""
    hint = typing.get_type_hints(ExtractConfig)[field.name]
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint, False
    (kind,) = (each for each in typing.get_args(hint) if each is not type(None))
    return kind, True


def _check_value(field: dataclasses.Field[object], value: object) -> None:
    """Raises UserError for a value of another type, or out of range."""
    kind, is_optional = _kind(field)
    if value is None and is_optional:
        return
    kind = typing.get_origin(kind) or kind
    if json_lines.find_surrogate([*value] if isinstance(value, tuple) else value):
        raise UserError(f"--{field.name}={value}: not UTF-8; use a name that is")
    lowest, choices = field.metadata["lowest"], field.metadata["choices"]
    is_kind = isinstance(value, (int, float) if kind is float else kind)
    if isinstance(value, bool) and kind is not bool:
        is_kind = False
    if is_kind and isinstance(value, int | float) and lowest is not None:
        is_kind = math.isfinite(value) and value >= lowest
    if is_kind and (not choices or value in choices):
        return
    wanted = " or ".join(choices) or _RANGES.get(kind) or f"a {kind.__name__}"
    bound = "" if lowest is None else f" of at least {lowest:g}"
    raise UserError(f"--{field.name}={value!r}: expected {wanted}{bound}")


def _check_extra_body(body: Mapping[str, object]) -> None:
    """Raises UserError for a field that is not for it to set, or what is no JSON."""
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
    except (TypeError, ValueError):
        raise UserError("--extra_body holds NaN or Infinity, which are no JSON") from None


# ---------------------------------- flags ------------------------------------


def define(values: flags.FlagValues) -> None:
    """Defines the flags of `python -m distill_sbs.extract`."""
    title = ""
    for field in dataclasses.fields(ExtractConfig):
        title = _FIRST_OF_GROUP.get(field.name, title)
        with flag_groups.group(values, title):
            _define_flag(values, field)
    with flag_groups.group(values, "In the place of asking"):
        _define_modes(values)


def _define_modes(values: flags.FlagValues) -> None:
    flags.DEFINE_integer(
        "show_prompt",
        None,
        "Prints the prompt of example i, counted from 0, and stops.",
        flag_values=values,
        lower_bound=0,
    )
    flags.DEFINE_bool(
        "report", False, "Prints what an output is worth, calls nobody.", flag_values=values
    )
    for name, help in {
        "results": "With --report: folder for results.json, the teacher as a baseline.",
        "report_json": "With --report: file for the figures as JSON.",
    }.items():
        flags.DEFINE_string(name, None, help, flag_values=values)
    flags.DEFINE_list(
        "merge", [], "Output files to merge into --output, by id.", flag_values=values
    )


def _define_flag(values: flags.FlagValues, field: dataclasses.Field[object]) -> None:
    kind, _ = _kind(field)
    help = field.metadata["help"].replace("{tasks}", ", ".join(prompts.known_tasks()))
    lowest, choices = field.metadata["lowest"], field.metadata["choices"]
    default: Any = field.default  # of the field's type, which `kind` is
    if kind in (int, float):
        help += "" if default is None else f" Default: {default:g}."
        make = flags.DEFINE_integer if kind is int else flags.DEFINE_float
        make(field.name, default, help, flag_values=values, lower_bound=lowest)
    elif kind is bool:
        flags.DEFINE_bool(field.name, default, help, flag_values=values)
    elif choices:
        flags.DEFINE_enum(field.name, default, choices, help, flag_values=values)
    elif typing.get_origin(kind) is tuple:
        flags.DEFINE_multi_string(field.name, [], help, flag_values=values)
    else:
        flags.DEFINE_string(field.name, default, help, flag_values=values)


def read(values: flags.FlagValues) -> ExtractConfig:
    """The options among the flags.

    Raises:
      UserError: they, or the flags beside them, do not go together.
    """
    given: dict[str, Any] = {
        field.name: values[field.name].value for field in dataclasses.fields(ExtractConfig)
    }
    given["task_file"] = tuple(given["task_file"])
    given["extra_body"] = _parse_object("extra_body", given["extra_body"])
    config = ExtractConfig(**given)
    if config.split and not (config.dataset or config.input or values.report):
        raise UserError("--split needs --dataset")
    chosen = [mode for mode in MODES if getattr(values, mode) not in (None, False, [])]
    if len(chosen) > 1:
        raise UserError(f"--{chosen[0]} and --{chosen[1]} are two things; do one after the other")
    for name in ("results", "report_json"):
        if getattr(values, name) and not values.report:
            raise UserError(f"--{name} belongs to --report")
    return config


def _parse_object(name: str, text: str | None) -> JsonObject | None:
    if not text:
        return None
    body = json_lines.parse_json(text, f"--{name}")
    if not isinstance(body, dict):
        raise UserError(f"--{name}={text}: expected a JSON object")
    return body
