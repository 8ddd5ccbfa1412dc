"""How the answers in an output file of `extract` were asked for: the file beside it.

Enters: what an extraction asks with, or `{output}.settings.json`. Leaves: the other of the two.
`extract` goes on only where everything that decides an answer is as it was, so that no file mixes
two teachers or two prompts; `prepare` and `--report` read which answers count.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import types
import typing
from typing import Any, TypeVar

from distill_sbs import files, json_lines
from distill_sbs.data.dataset import SourceError
from distill_sbs.errors import UserError

FORMAT_VERSION = 1
SUFFIX = ".settings.json"

T = TypeVar("T")


def _changeable(default: T) -> T:
    """A field that may differ from run to run of one output file: it changes no answer."""
    field: T = dataclasses.field(default=default, metadata={"changeable": True})
    return field


@dataclasses.dataclass(frozen=True)
class RequestDescription:
    """What an extraction asks with.

    Attributes:
      task: the prompt's name.
      prompt_sha256: of the prompt's file, and its parser's.
      model: the endpoint's name of the model.
      completion: whether prompts are plain text, not chats.
      samples: responses to each input.
      temperature: 0 is greedy.
      seed: sample k is asked for with seed + k; None leaves it to the endpoint.
      max_tokens: of the longest response.
      rationalise: whether the gold label is given away in the question.
      extra_body: further fields of the request.
      task_path: the prompt's file, or its name where it is one of ours.
      teacher: the user's name of this teacher.
      answers: what labels are: "text", "choice" or "equation".
      keep: which answers count (`responses.KEEP`).
      rationales: how many of an example's (`responses.RATIONALES`).
      inputs: where the inputs are: {"input"} or {"dataset", "split", "data_dir"}.
      llm_files: names of the files in the published layout that were made from the output.
    """

    task: str = ""
    prompt_sha256: str = ""
    model: str = ""
    completion: bool = False
    samples: int = 1
    temperature: float = 0.0
    seed: int | None = None
    max_tokens: int = 256
    rationalise: bool = False
    extra_body: dict[str, object] | None = None
    task_path: str | None = _changeable(None)
    teacher: str | None = _changeable(None)
    answers: str = _changeable("text")
    keep: str = _changeable("all")
    rationales: str = _changeable("one")
    inputs: dict[str, str] | None = _changeable(None)
    llm_files: tuple[str, ...] = _changeable(())

    def check_same_answers(self, earlier: RequestDescription, output: str) -> None:
        """Refuses to add to `output`, asked for as `earlier` says, where other answers would come.

        Raises:
          UserError: names the first field that differs.
        """
        for field in dataclasses.fields(self):
            was, now = getattr(earlier, field.name), getattr(self, field.name)
            if field.metadata.get("changeable") or was == now:
                continue
            is_digest = field.name == "prompt_sha256"
            what = "the prompt" if is_digest else field.name
            detail = "" if is_digest else f": {was!r} there, {now!r} now"
            raise UserError(
                f"{output} holds answers that were asked for with another setting of {what}"
                f"{detail}. Go on with the same command as before, or choose another --output"
            )

    def write(self, output: str) -> None:
        """Writes the file beside `output`, all at once."""
        content = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        files.write_file(path_of(output), json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def path_of(output: str) -> pathlib.Path:
    """The file beside an output file that says how its answers were asked for."""
    return pathlib.Path(output + SUFFIX)


def read(output: str) -> RequestDescription | None:
    """What the file beside `output` says; None where there is none.

    Raises:
      SourceError: it is no description of a version that this program knows.
    """
    path = path_of(output)
    if not path.exists():
        return None
    content = json_lines.read_json(path)
    if not isinstance(content, dict):
        raise SourceError(f"{path}: expected a JSON object; restore it, or remove it")
    version = content.pop("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise SourceError(
            f"{path} has format_version {version!r}, and this program knows {FORMAT_VERSION}; "
            "use the version of distill_sbs that wrote it"
        )
    kinds = typing.get_type_hints(RequestDescription)
    checked: dict[str, Any] = {}  # each value is of its field's type
    for name, value in content.items():
        if name not in kinds:
            raise SourceError(f"{path}: unknown field {name!r}; restore the file, or remove it")
        checked[name] = _check_value(value, kinds[name], f"{path}: {name}")
    return RequestDescription(**checked)


def _check_value(value: object, kind: object, place: str) -> object:
    """`value` as the field holds it.

    Raises:
      SourceError: it is of another type.
    """
    if kind == tuple[str, ...]:
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            return tuple(value)
    else:
        if kind is float and type(value) is int:
            value = float(value)
        members = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
        if type(value) in {typing.get_origin(member) or member for member in members}:
            return value
    raise SourceError(f"{place} is {value!r}; restore the file, or remove it")
