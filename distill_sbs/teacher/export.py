"""What becomes of a complete output file: published layout, kept answers, one file of many shards.

Enters: inputs and output files. Leaves: `llm/{split}_CoT_{k}.json` (raw texts by position, as the
published data has them), `{output}.kept.jsonl` (the chosen answers), a merged output file.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Sequence

from distill_sbs import files, json_lines
from distill_sbs.data.dataset import Example
from distill_sbs.data.readers import request_description, responses
from distill_sbs.data.readers.request_description import RequestDescription
from distill_sbs.data.readers.responses import AnswerIndex, ResponseRow, Selection
from distill_sbs.errors import UserError
from distill_sbs.teacher import parsing
from distill_sbs.teacher.inputs import Inputs

# About the published files' size: a reader holds one in memory.
TEXTS_PER_FILE = 5_000


def llm_folder(output: str) -> pathlib.Path:
    """Where the published layout of an output file goes."""
    return pathlib.Path(output).parent / "llm"


def check_llm_folder(output: str, split: str) -> None:
    """Finds out before any call is made whether the complete output can be written.

    Raises:
      UserError: another teacher's files, PaLM's for example, would be overwritten, or the folder
        cannot be written to.
    """
    earlier = request_description.read(output)
    ours = set(earlier.llm_files) if earlier else set()
    folder = llm_folder(output)
    for path in folder.glob(f"{split}_CoT_*.json"):
        if path.name not in ours:
            raise UserError(
                f"{path} exists and was not made from {output}, and the complete output would be "
                "written there too; give --output another folder"
            )
    if folder.exists() and not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise UserError(
            f"{folder} is no folder that you may write to, and the complete output is written "
            "there too; give --output another folder"
        )


def write_llm_files(output: str, inputs: Inputs, index: AnswerIndex) -> list[pathlib.Path]:
    """Writes the texts of the kept answers by position, '' where there is none.

    What a reader without finish reasons would misread is left out: see `parsing.text_to_publish`.
    """
    folder = llm_folder(output)
    folder.mkdir(parents=True, exist_ok=True)
    selection = Selection.of(output)
    count = -(-inputs.size // TEXTS_PER_FILE)
    names = [f"{inputs.split}_CoT_{number}.json" for number in range(count)]
    # Named first, so that a killed process does not leave files behind that it then refuses.
    asked = request_description.read(output) or RequestDescription()
    for name in set(asked.llm_files) - set(names):
        (folder / name).unlink(missing_ok=True)
    dataclasses.replace(asked, llm_files=tuple(names)).write(output)
    examples = inputs.examples()
    for name in names:
        texts = []
        for example in itertools.islice(examples, TEXTS_PER_FILE):
            kept = selection.choose(index.answers(example.id), example.label)
            texts.append(parsing.text_to_publish(kept[0]) if kept else "")
        files.write_file(folder / name, json.dumps(texts, ensure_ascii=False))
    return [folder / name for name in names]


def write_kept(output: str, inputs: Inputs, index: AnswerIndex) -> tuple[str, int]:
    """Writes the lines of the kept answers in the order of inputs; returns the file and its size.

    Such a file is an output file too: `prepare` and `--report` read it as they read the whole one.
    """
    selection = Selection.of(output)
    path = pathlib.Path(output)
    target = path.with_name(path.name.removesuffix(".jsonl") + ".kept.jsonl")
    count = 0
    with files.open_replacement(target) as file:
        for example in inputs.examples():
            for row in selection.choose(index.answers(example.id), example.label):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
    asked = request_description.read(output) or RequestDescription()
    dataclasses.replace(asked, llm_files=()).write(str(target))
    return str(target), count


def merge(shards: Sequence[str], output: str, inputs: Inputs | None) -> tuple[int, int, int]:
    """Writes the answers of some output files into one, by id, in the order of inputs.

    Without inputs they come in the order of the files. An answer that stands in two files is
    written once. The merged file is an output file: the same `extract` command goes on from it.

    Returns:
      The numbers of examples answered, of those failed, and of those that nothing was found for.

    Raises:
      UserError: the files were not asked for in the same way, or hold answers to other inputs.
    """
    first = _read_description(shards[0])
    for shard in shards[1:]:
        _read_description(shard).check_same_answers(first, shards[0])
    target = pathlib.Path(output)
    if target.exists() and target.stat().st_size:
        raise UserError(f"--output={output} exists; merge into a new file")
    index = AnswerIndex(shards)
    answered = failed = missing = 0
    try:
        with files.open_replacement(target) as file:
            for rows in _in_order(index, shards, inputs):
                for row in rows:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                is_answered = any(not row.get("error") for row in rows)
                answered += is_answered
                failed += bool(rows) and not is_answered
                missing += not rows
            unknown, some = index.never_asked_for()
            if unknown:
                raise UserError(
                    f"{unknown:,} answers in {', '.join(shards)} belong to none of the inputs, ids "
                    f"{', '.join(map(repr, some))} for example; give the inputs of all shards"
                )
            dataclasses.replace(first, llm_files=()).write(output)
    finally:
        index.close()
    return answered, failed, missing


def _read_description(shard: str) -> RequestDescription:
    asked = request_description.read(shard)
    if asked is None:
        raise UserError(
            f"{shard} has no {request_description.path_of(shard)}, which says how its answers were "
            "asked for; copy it along"
        )
    return asked


def _in_order(
    index: AnswerIndex, shards: Sequence[str], inputs: Inputs | None
) -> Iterator[list[ResponseRow]]:
    if inputs is None:
        yield from (index.answers(example_id) for example_id in index.ids())
        return
    for example in inputs.examples():
        rows = index.answers(example.id)
        for row in rows:
            responses.check_same_input(row, example.input, ", ".join(shards))
        yield rows


def published_texts(path: str) -> list[pathlib.Path]:
    """The files `{split}_CoT_{k}.json` beside `path`, one of them, in the order of k.

    Raises:
      UserError: one between the first and the last is missing.
    """
    file = pathlib.Path(path)
    stem = file.name.rpartition("_CoT_")[0]
    numbered = {
        int(digits): each
        for each in file.parent.glob(f"{stem}_CoT_*.json")
        if (digits := each.stem.rpartition("_CoT_")[2]).isdigit()
    }
    for position in range(max(numbered, default=-1) + 1):
        if position not in numbered:
            raise UserError(
                f"{file.parent / f'{stem}_CoT_{position}.json'} is missing; the texts go with the "
                "inputs by position, so every file is needed"
            )
    if not numbered:
        raise UserError(f"{path}: no such file")
    return [numbered[position] for position in sorted(numbered)]


def positional_texts(paths: Sequence[pathlib.Path], examples: Iterator[Example]) -> Iterator[str]:
    """The raw texts of the published layout, one for each of `examples`.

    Raises:
      UserError: a file is no list of texts, or there are more texts than inputs, or fewer.
    """

    def texts() -> Iterator[str]:
        for path in paths:
            content = json_lines.read_json(path)
            found = content if isinstance(content, list) else [None]
            own = [each for each in found if isinstance(each, str)]
            if len(own) < len(found):
                raise UserError(f"{path}: expected a JSON list of texts")
            yield from own

    stream = texts()
    for position, _ in enumerate(examples):
        text = next(stream, None)
        if text is None:
            raise UserError(
                f"{paths[0]} and the files after it hold {position:,} texts, fewer than there are "
                "inputs; they go together by position"
            )
        yield text
    if next(stream, None) is not None:
        raise UserError(
            f"{paths[0]} and the files after it hold more texts than there are inputs; they go "
            "together by position"
        )
