"""A teacher's outputs that others wrote, brought into the form of `extract`'s.

Enters: files of rows (`tables.read_table`), which column is what, perhaps a `parse` function of the
user's. Leaves: one JSON Lines file of `{"id", "sample", "label", "rationale", "raw"}`, which is
joined like any other.
"""

from __future__ import annotations

import collections
import json
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from etils import epath

from distill_sbs import files
from distill_sbs.data.columns import Row, look_up
from distill_sbs.data.dataset import Example, SourceError
from distill_sbs.data.readers import responses
from distill_sbs.data.tables import name_unit, read_table
from distill_sbs.errors import UserError, did_you_mean

# (response, input) -> (label, rationale), or None where the response holds none.
Parse = Callable[[str, str], tuple[str, str] | None]

COLUMNS = ("id", "input", "response", "label", "rationale")


def parse_columns(given: Sequence[str], has_parser: bool) -> dict[str, str]:
    """`["id:custom_id", "response:response.body"]` as a mapping of our names to columns.

    Raises:
      UserError: another form, an unknown name, or names that do not go together.
    """
    columns: dict[str, str] = {}
    for each in given:
        name, colon, path = each.partition(":")
        if not colon or not path or name not in COLUMNS:
            raise UserError(
                f"--output_columns has {each!r}, expected NAME:COLUMN with a name of "
                f"{', '.join(COLUMNS)}{did_you_mean(name, COLUMNS)}"
            )
        columns[name] = path
    if not {"id", "input"} & set(columns):
        raise UserError(
            "--output_columns names neither id nor input: an output is found by one of them"
        )
    if has_parser != ("response" in columns):
        raise UserError(
            "--output_columns with response and --output_parser=FILE.py go together: the parser "
            "makes label and rationale of a response"
        )
    if not has_parser and not {"label", "rationale"} <= set(columns):
        raise UserError(
            "--output_columns names no label and rationale; name both, or response and an "
            "--output_parser"
        )
    return columns


def convert_outputs(
    paths: Sequence[str],
    columns: Mapping[str, str],
    parse: Parse | None,
    examples: Iterable[Example],
    target: str,
) -> int:
    """Writes the outputs in `paths` to `target`, each under the id of its example.

    A list in a column of responses, labels or rationales is as many samples; further rows of one
    input are further samples.

    Args:
      paths: files of rows.
      columns: see `parse_columns`.
      parse: makes label and rationale of a response.
      examples: the prepared ones, to find ids by inputs, and inputs by ids for the parser.
      target: a JSON Lines file.

    Returns:
      How many samples were written.

    Raises:
      SourceError: a broken file or row, an input of no example, an error in `parse`.
    """
    by_input: dict[int, list[str]] = collections.defaultdict(list)
    inputs: dict[str, str] = {}
    for example in examples:
        by_input[responses.hash_text(example.input.strip())].append(example.id)
        if parse is not None:
            inputs[example.id] = example.input
    samples: collections.Counter[str] = collections.Counter()
    written = 0
    with files.open_replacement(target, "w") as file:
        for path in paths:
            for number, row in read_table(epath.Path(path)):
                place = f"{path}, {name_unit(path)} {number}"
                ids = _find_ids(row, columns, by_input, place)
                for example_id in ids:
                    text = inputs.get(example_id, "")
                    for answer in _read_answers(row, columns, parse, text, place):
                        line = {"id": example_id, "sample": samples[example_id], **answer}
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
                        samples[example_id] += 1
                        written += 1
    return written


def _find_ids(
    row: Row, columns: Mapping[str, str], by_input: Mapping[int, list[str]], place: str
) -> list[str]:
    if "id" in columns:
        value = look_up(row, columns["id"], place)
        if type(value) is int or (isinstance(value, str) and value):
            return [str(value)]
        raise SourceError(f"{place}: the id is {value!r}, expected a text or a whole number")
    text = look_up(row, columns["input"], place)
    found = by_input.get(responses.hash_text(text.strip())) if isinstance(text, str) else None
    if not found:
        shown = str(text)[:60]
        raise SourceError(
            f"{place}: no prepared example has the input {shown!r}; name the column of the bare "
            "input (without a prompt around it), or of ids"
        )
    return found


def _read_answers(
    row: Row, columns: Mapping[str, str], parse: Parse | None, text: str, place: str
) -> Iterator[dict[str, str | None]]:
    if parse is not None:
        for response in _as_list(look_up(row, columns["response"], place)):
            if not isinstance(response, str):
                yield {"label": None, "rationale": None, "raw": None, "error": "no response"}
                continue
            answer = _call(parse, response, text, place) or (None, None)
            yield {"label": answer[0], "rationale": answer[1], "raw": response}
        return
    labels = _as_list(look_up(row, columns["label"], place))
    rationales = _as_list(look_up(row, columns["rationale"], place))
    if len(labels) == 1:
        labels *= len(rationales)
    if len(labels) != len(rationales):
        raise SourceError(
            f"{place}: {len(labels)} labels and {len(rationales)} rationales; expected a label for "
            "each, or one for all"
        )
    for label, rationale in zip(labels, rationales, strict=True):
        for name, value in (("label", label), ("rationale", rationale)):
            if value is not None and not isinstance(value, str):
                raise SourceError(f"{place}: the {name} is {value!r}, expected a text")
        yield {"label": str(label) if label else None, "rationale": str(rationale or "") or None}


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [value]


def _call(parse: Parse, response: str, text: str, place: str) -> tuple[str, str] | None:
    """What the user's function makes of a response.

    Raises:
      SourceError: it raises an error, or returns something else.
    """
    try:
        found = parse(response, text)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(frame.filename)}, line {frame.lineno}"
        raise SourceError(
            f"{place}: parse raises {type(error).__name__}: {error} ({where})"
        ) from error
    if found is None or (
        isinstance(found, tuple) and len(found) == 2 and all(isinstance(x, str) for x in found)
    ):
        return found
    raise SourceError(
        f"{place}: parse returns {found!r}, expected (label, rationale), two texts, or None"
    )
