r"""What the teacher is asked: a prompt file, turned into the messages or the text of one example.

Enters: a TOML file, one of this package's (`prompts/*.toml`) or a user's own, and an input.
Leaves: chat messages or completion text, stop sequences; `parsing.py` reads the same layout
backwards.

    question = "Ticket: {input}"
    answer = "Reasons: {rationale}\nQueue: {label}"
    labels = ["billing", "shipping"]

    [[demonstrations]]
    input = "I was charged twice."
    rationale = "A charge is about money."
    label = "billing"

Demonstrations are written as `question` newline `answer`, separated by blank lines, and the query
ends where the teacher has to go on. In a chat each is a turn of the user and one of the assistant.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import pathlib
import re
import tomllib
from collections.abc import Callable, Mapping

from distill_sbs import resources
from distill_sbs.errors import UserError, nearest_names

# Tasks that are asked with the prompt of another.
SAME_PROMPT_AS = {"asdiv": "svamp"}

# How labels are compared, and what an answer must hold to be one.
ANSWER_KINDS = ("text", "choice", "equation")

# (response, input) -> (label, rationale), or None where no answer can be read. The response comes
# without what its model thought aloud.
OwnParser = Callable[[str, str], tuple[str, str] | None]

_FIELD = re.compile(r"\{(\w+)\}")
_CHOICE_LINE = re.compile(r"^\((\w)\)(.+)$", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """One worked example of the prompt."""

    input: str
    rationale: str
    label: str


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt file. The attributes are its keys.

    Attributes:
      name: the task's name, or the file's.
      path: where it was read from.
      digest: SHA-256 of the file's text.
      question: how an input is put; `{input}`, or the names in `input_fields`.
      answer: how an answer reads, with `{rationale}` before `{label}`. What stands between the two
        is the marker at which an answer is taken apart.
      demonstrations: worked examples; none is zero-shot.
      instruction: said first; the system message of a chat.
      hint: added to the question where the gold label is given away (`--rationalise`).
      input_separator: splits an input into `input_fields`.
      input_fields: names of the parts of an input.
      labels: the closed set of labels, if there is one.
      answers: "text", "choice" (one of the lettered choices in the input), "equation".
      stop: stop sequences; default: the start of the next question.
      max_tokens: of the longest response, in the teacher's tokens.
      own_parser: `parse` of a `parser.py` beside the prompt, where a folder was named.
    """

    name: str
    path: pathlib.Path
    digest: str
    question: str
    answer: str
    demonstrations: tuple[Demonstration, ...] = ()
    instruction: str = ""
    hint: str = "(The correct answer is {label}.)"
    input_separator: str = ""
    input_fields: tuple[str, ...] = ("input",)
    labels: tuple[str, ...] = ()
    answers: str = "text"
    stop: tuple[str, ...] | None = None
    max_tokens: int = 256
    own_parser: OwnParser | None = None

    @property
    def next_block(self) -> str:
        """What an invented next question starts with; '' where the layout does not say."""
        return _FIELD.split(self.question)[0].strip()

    @property
    def answer_prefix(self) -> str:
        """What the query ends with, `A:` for example; the teacher goes on behind it."""
        return self.answer.partition("{rationale}")[0].rstrip()

    @property
    def answer_marker(self) -> str:
        """What stands between rationale and label."""
        return self.answer.partition("{rationale}")[2].partition("{label}")[0].strip()

    @property
    def answer_suffix(self) -> str:
        """What ends an answer after the label, a period for example."""
        return self.answer.partition("{label}")[2].strip()

    @property
    def stop_sequences(self) -> list[str]:
        """The file's own, or a line that starts the next question."""
        if self.stop is not None:
            return list(self.stop)
        return [f"\n{self.next_block}"] if self.next_block else []

    def question_text(self, text: str, gold: str | None = None) -> str:
        """The question of one input; with `gold`, the label is given away in it.

        Raises:
          UserError: the input has not as many parts as the prompt has fields.
        """
        parts = text.split(self.input_separator) if self.input_separator else [text]
        if len(parts) != len(self.input_fields):
            raise UserError(
                f"the prompt {self.name} takes inputs of {' + '.join(self.input_fields)}, "
                f"separated by {self.input_separator!r}; {text[:80]!r} has {len(parts)} part(s)"
            )
        asked = _fill(self.question, dict(zip(self.input_fields, parts, strict=True)))
        if gold is not None:
            asked += "\n" + _fill(self.hint, {"label": self.shown_label(text, gold)})
        return asked

    def shown_label(self, text: str, label: str) -> str:
        """A label as an answer writes it: a choice goes with its letter."""
        if self.answers == "choice":
            for letter, choice in lettered_choices(text):
                if choice == label:
                    return f"({letter}) {choice}"
        return label

    def _answer_text(self, demonstration: Demonstration) -> str:
        label = self.shown_label(demonstration.input, demonstration.label)
        return _fill(self.answer, {"rationale": demonstration.rationale, "label": label})

    def completion_text(self, text: str, gold: str | None = None) -> str:
        """The prompt of a plain completion; it ends where the teacher has to go on."""
        blocks = [self.instruction] if self.instruction else []
        for each in self.demonstrations:
            asked = self.question_text(each.input, None if gold is None else each.label)
            blocks.append(f"{asked}\n{self._answer_text(each)}")
        blocks.append(f"{self.question_text(text, gold)}\n{self.answer_prefix}")
        return "\n\n".join(blocks)

    def messages(self, text: str, gold: str | None = None) -> list[dict[str, str]]:
        """The messages of a chat: the instruction, a pair of turns a demonstration, the question.

        The answers leave out their prefix: whose turn it is says as much.
        """
        turns = [{"role": "system", "content": self.instruction}] if self.instruction else []
        for each in self.demonstrations:
            asked = self.question_text(each.input, None if gold is None else each.label)
            said = self._answer_text(each).removeprefix(self.answer_prefix).lstrip()
            turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": said}]
        return [*turns, {"role": "user", "content": self.question_text(text, gold)}]


def lettered_choices(text: str) -> list[tuple[str, str]]:
    """The lines `(a) choice` of an input, as (letter, choice)."""
    found = ((letter, line.strip(" \t")) for letter, line in _CHOICE_LINE.findall(text))
    return [(letter, choice) for letter, choice in found if choice]


def _fill(template: str, values: Mapping[str, str]) -> str:
    """`template` with its fields replaced once: braces in a value stay what they are."""
    return _FIELD.sub(lambda match: values[match[1]], template)


# ---------------------------------- files ------------------------------------


def known_tasks() -> list[str]:
    """Names that `--task` takes besides paths."""
    own = [path.stem for path in resources.prompt_folder().glob("*.toml")]
    return sorted([*own, *SAME_PROMPT_AS])


def find(task: str) -> pathlib.Path:
    """The prompt file that `--task` means: a name of ours, a file, or a folder with one.

    Raises:
      UserError: there is none; near matches are named.
    """
    own = resources.prompt_folder() / f"{SAME_PROMPT_AS.get(task, task)}.toml"
    if re.fullmatch(r"\w+", task) and own.is_file():
        return own
    path = pathlib.Path(task)
    if path.is_file():
        return path
    if path.is_dir():
        files = sorted(path.glob("*.toml"))
        chosen = [file for file in files if file.name == "prompt.toml"] or files
        if len(chosen) == 1:
            return chosen[0]
        found = ", ".join(file.name for file in files) or "none"
        raise UserError(
            f"--task={task}: expected prompt.toml or one *.toml in that folder; found: {found}"
        )
    near = nearest_names(task, known_tasks(), most=1)
    hint = f"did you mean {near[0]}?" if near else f"the names are {', '.join(known_tasks())}"
    raise UserError(
        f"--task={task} is no prompt of ours, no file and no folder; {hint} A prompt of your own "
        "is one TOML file: copy one of "
        f"{resources.prompt_folder()}"
    )


def load(task: str) -> Prompt:
    """Reads and checks the prompt that `--task` means.

    Raises:
      UserError: no such prompt, or a key that is missing, unknown or of the wrong kind.
    """
    path = find(task)
    try:
        content = path.read_bytes()
        values = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}; expected a TOML file like {_example()}") from None
    name = task if re.fullmatch(r"\w+", task) else path.stem
    own_parser = None
    parser_path = path.parent / "parser.py"
    if pathlib.Path(task).is_dir() and parser_path.is_file():
        own_parser = load_parser(parser_path)
        content += parser_path.read_bytes()
    try:
        prompt = _read_values(values, name, path, hashlib.sha256(content).hexdigest())
    except _PromptError as mistake:
        raise UserError(f"{path}: {mistake}") from None
    return dataclasses.replace(prompt, own_parser=own_parser)


def load_parser(path: pathlib.Path) -> OwnParser:
    """`parse` of a user's `parser.py`.

    Raises:
      UserError: the file does not run, or defines no function of that name.
    """
    module_spec = importlib.util.spec_from_file_location("distill_sbs_own_parser", path)
    assert module_spec and module_spec.loader
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"{path} could not be loaded: {error}") from error
    if not callable(getattr(module, "parse", None)):
        raise UserError(f"{path} defines no parse(response, input) -> (label, rationale) or None")
    parser: OwnParser = module.parse
    return parser


class _PromptError(Exception):
    """What is wrong with a prompt file."""


def _example() -> str:
    return str(resources.prompt_folder() / "svamp.toml")


def _text(values: Mapping[str, object], key: str, default: str | None = None) -> str:
    value = values.get(key, default)
    if not isinstance(value, str):
        got = "is missing" if value is None else f"is {value!r}"
        raise _PromptError(f"{key} {got}; expected a text (see {_example()})")
    return value


def _texts(values: Mapping[str, object], key: str) -> tuple[str, ...]:
    value = values.get(key, [])
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise _PromptError(f"{key} is {value!r}; expected a list of texts")
    return tuple(value)


def _read_values(
    values: Mapping[str, object], name: str, path: pathlib.Path, digest: str
) -> Prompt:
    ours = {"name", "path", "digest", "own_parser"}
    known = {field.name for field in dataclasses.fields(Prompt)} - ours
    for key in values:
        if key not in known:
            near = nearest_names(key, known, most=1)
            hint = (
                f"did you mean {near[0]}?" if near else f"the keys are {', '.join(sorted(known))}"
            )
            raise _PromptError(f"unknown key {key}; {hint}")
    max_tokens = values.get("max_tokens", 256)
    if isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1:
        raise _PromptError(f"max_tokens is {max_tokens!r}; expected a whole number of at least 1")
    prompt = Prompt(
        name=name,
        path=path,
        digest=digest,
        question=_text(values, "question"),
        answer=_text(values, "answer"),
        demonstrations=_demonstrations(values),
        instruction=_text(values, "instruction", "").strip(),
        hint=_text(values, "hint", Prompt.hint),
        input_separator=_text(values, "input_separator", ""),
        input_fields=_texts(values, "input_fields") or ("input",),
        labels=_texts(values, "labels"),
        answers=_text(values, "answers", "text"),
        stop=_texts(values, "stop") if "stop" in values else None,
        max_tokens=max_tokens,
    )
    _check_layout(prompt)
    return prompt


def _check_layout(prompt: Prompt) -> None:
    if prompt.answers not in ANSWER_KINDS:
        raise _PromptError(
            f"answers is {prompt.answers!r}; expected one of {', '.join(ANSWER_KINDS)}"
        )
    if len(prompt.input_fields) > 1 and not prompt.input_separator:
        raise _PromptError(
            f"input_fields names {len(prompt.input_fields)} parts; set input_separator too"
        )
    if sorted(_FIELD.findall(prompt.question)) != sorted(prompt.input_fields):
        wanted = ", ".join(f"{{{field}}}" for field in prompt.input_fields)
        raise _PromptError(f"question must name {wanted} once each; it is {prompt.question!r}")
    if _FIELD.findall(prompt.answer) != ["rationale", "label"]:
        raise _PromptError(
            "answer must name {rationale} and then {label}, once each: the student learns from "
            f"reasons that come before the label; it is {prompt.answer!r}"
        )
    if not prompt.answer_marker:
        raise _PromptError(
            "answer needs words between {rationale} and {label}, such as 'So the answer is', or "
            "the two could not be told apart"
        )
    if _FIELD.findall(prompt.hint) != ["label"]:
        raise _PromptError(f"hint must name {{label}} once; it is {prompt.hint!r}")
    for number, each in enumerate(prompt.demonstrations, start=1):
        if prompt.labels and each.label not in prompt.labels:
            raise _PromptError(
                f"demonstration {number} has the label {each.label!r}, which is not in labels"
            )
        if prompt.answers == "choice" and each.label not in dict(
            (choice, letter) for letter, choice in lettered_choices(each.input)
        ):
            raise _PromptError(
                f"demonstration {number} has the label {each.label!r}, which is none of the "
                "choices in its input"
            )
        if prompt.input_separator:
            parts = each.input.count(prompt.input_separator) + 1
            if parts != len(prompt.input_fields):
                raise _PromptError(
                    f"the input of demonstration {number} has {parts} parts, expected "
                    f"{' + '.join(prompt.input_fields)} separated by {prompt.input_separator!r}"
                )


def _demonstrations(values: Mapping[str, object]) -> tuple[Demonstration, ...]:
    rows = values.get("demonstrations", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise _PromptError("demonstrations must be written as [[demonstrations]] tables")
    found = []
    for number, row in enumerate(rows, start=1):
        if set(row) != {"input", "rationale", "label"} or not all(
            isinstance(value, str) and value.strip() for value in row.values()
        ):
            raise _PromptError(
                f"demonstration {number} has the keys {', '.join(sorted(row)) or 'none'}; expected "
                "input, rationale and label, each a text that is not blank"
            )
        found.append(Demonstration(row["input"].strip(), row["rationale"].strip(), row["label"]))
    return tuple(found)
